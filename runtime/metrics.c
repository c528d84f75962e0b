#include "runtime/metrics.h"
#include "base/io.h"
#include "runtime/mapped.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct metrics {
    char *path;
    int fd;
    off_t size;
    struct sb line;
};

const char *number_text(double v, char buf[32])
{
    if (!isfinite(v)) return strcpy(buf, "null");
    for (int digits = 15; digits <= 17; digits++) {
        snprintf(buf, 32, "%.*g", digits, v);
        if (strtod(buf, NULL) == v) break;
    }
    return buf;
}

const char *float_text(float v, char buf[32])
{
    if (!isfinite(v)) return strcpy(buf, "null");
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(buf, 32, "%.*g", digits, (double)v);
        if (strtof(buf, NULL) == v) break;
    }
    return buf;
}

/* A whole JSON object with an integer step below `from`. */
static bool keeps(struct str line, uint64_t from)
{
    json_t *root = json_loadb(line.p, line.n, JSON_REJECT_DUPLICATES, NULL);
    const json_t *step = json_object_get(root, "step");
    bool ok = json_is_integer(step) && json_integer_value(step) >= 0 &&
              (uint64_t)json_integer_value(step) < from;
    json_decref(root);
    return ok;
}

static enum rt_status drop_lost(const char *path, uint64_t from, struct rt_error *err)
{
    struct mapped m;
    if (!io_exists(path)) return RT_ok;
    RT_TRY(mapped_open(path, &m, err));
    struct sb kept = {0};
    for (size_t at = 0; at < m.size;) {
        const char *p = m.bytes + at, *end = memchr(p, '\n', m.size - at);
        if (!end) break; /* torn */
        struct str line = {p, (size_t)(end - p) + 1};
        if (keeps(line, from)) sb_add(&kept, line.p, line.n);
        at += line.n;
    }
    int e = kept.n == m.size ? 0 : io_write_atomic(path, kept.p, kept.n);
    mapped_close(&m);
    sb_free(&kept);
    return e ? rt_fail(err, RT_machine, "cannot write '%s': %s", path, strerror(e)) : RT_ok;
}

enum rt_status metrics_open(const char *path, uint64_t from_step, struct metrics **out,
                            struct rt_error *err)
{
    *out = NULL;
    RT_TRY(drop_lost(path, from_step, err));
    struct metrics *m = calloc(1, sizeof *m);
    if (!m || !(m->path = strdup(path))) {
        free(m);
        return rt_fail(err, RT_machine, "no memory to open '%s'", path);
    }
    m->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    m->size = m->fd < 0 ? -1 : lseek(m->fd, 0, SEEK_END);
    if (m->size >= 0) {
        *out = m;
        return RT_ok;
    }
    int e = errno;
    metrics_close(m);
    return rt_fail(err, RT_user, "cannot write '%s': %s", path, strerror(e));
}

void metrics_close(struct metrics *m)
{
    if (!m) return;
    if (m->fd >= 0) close(m->fd);
    sb_free(&m->line);
    free(m->path);
    free(m);
}

static void name_field(struct metrics *m, const char *name)
{
    sb_printf(&m->line, "%s\"%s\": ", m->line.n ? ", " : "{", name);
}

void metrics_int(struct metrics *m, const char *name, int64_t v)
{
    name_field(m, name);
    sb_printf(&m->line, "%lld", (long long)v);
}

void metrics_double(struct metrics *m, const char *name, double v)
{
    char buf[32];
    name_field(m, name);
    sb_str(&m->line, number_text(v, buf));
}

void metrics_float(struct metrics *m, const char *name, float v)
{
    char buf[32];
    name_field(m, name);
    sb_str(&m->line, float_text(v, buf));
}

void metrics_text(struct metrics *m, const char *name, const char *v)
{
    name_field(m, name);
    json_t *j = json_string(v);
    char *text = j ? json_dumps(j, JSON_ENCODE_ANY) : NULL;
    sb_str(&m->line, text ? text : "null"); /* not UTF-8 */
    free(text);
    json_decref(j);
}

void metrics_floats(struct metrics *m, const char *name, const float *v, size_t n)
{
    char buf[32];
    name_field(m, name);
    sb_char(&m->line, '[');
    for (size_t i = 0; i < n; i++) {
        if (i) sb_str(&m->line, ", ");
        sb_str(&m->line, float_text(v[i], buf));
    }
    sb_char(&m->line, ']');
}

enum rt_status metrics_end(struct metrics *m, struct rt_error *err)
{
    sb_str(&m->line, m->line.n ? "}\n" : "{}\n");
    int e = io_write_all(m->fd, m->line.p, m->line.n);
    if (!e)
        m->size += (off_t)m->line.n;
    else if (ftruncate(m->fd, m->size))
        e = errno; /* the torn line is dropped when the run resumes */
    m->line.n = 0;
    return e ? rt_fail(err, RT_machine, "cannot write '%s': %s", m->path, strerror(e)) : RT_ok;
}

enum rt_status metrics_sync(struct metrics *m, struct rt_error *err)
{
    if (!fsync(m->fd)) return RT_ok;
    return rt_fail(err, RT_machine, "cannot write '%s': %s", m->path, strerror(errno));
}
