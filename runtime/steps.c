#include "runtime/steps.h"
#include "base/io.h"
#include "base/vec.h"
#include "runtime/manifest.h"
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

/* ---- state.json ---- */

void ckpt_state_set(struct ckpt_state *s, const char *name, int64_t value)
{
    CHECK(strlen(name) < sizeof s->item[0].name);
    size_t i = 0;
    while (i < s->n && strcmp(s->item[i].name, name)) i++;
    if (i == s->n) {
        CHECK(s->n < CKPT_STATE_MAX);
        strcpy(s->item[s->n++].name, name);
    }
    s->item[i].value = value;
}

bool ckpt_state_get(const struct ckpt_state *s, const char *name, int64_t *value)
{
    for (size_t i = 0; i < s->n; i++) {
        if (strcmp(s->item[i].name, name)) continue;
        *value = s->item[i].value;
        return true;
    }
    return false;
}

void ckpt_state_text(const struct ckpt_state *s, struct sb *out)
{
    for (size_t i = 0; i < s->n; i++)
        sb_printf(out, "%s\"%s\": %lld", i ? ",\n " : "{", s->item[i].name,
                  (long long)s->item[i].value);
    sb_str(out, s->n ? "}\n" : "{}\n");
}

enum rt_status ckpt_load_state(const char *step_dir, struct ckpt_state *s, struct rt_error *err)
{
    *s = (struct ckpt_state){0};
    struct arena *a = arena_open("state");
    const char *path = str_fmt(a, "%s/state.json", step_dir), *key;
    struct str text = {0};
    int e = io_read(a, path, 1 << 20, &text);
    json_t *root = e ? NULL : json_loadb(text.p, text.n, JSON_REJECT_DUPLICATES, NULL), *v;
    enum rt_status r = RT_ok;
    if (e)
        r = rt_fail(err, RT_user, "cannot read '%s': %s", path, strerror(e));
    else if (!json_is_object(root) || json_object_size(root) > CKPT_STATE_MAX)
        r = rt_fail(err, RT_user, "'%s' is not the state of a run", path);
    else
        json_object_foreach(root, key, v)
        {
            if (json_is_integer(v) && strlen(key) < sizeof s->item[0].name)
                ckpt_state_set(s, key, json_integer_value(v));
            else
                r = rt_fail(err, RT_user, "'%s': '%.40s' is not an integer", path, key);
        }
    json_decref(root);
    arena_close(a);
    return r;
}

/* ---- folders ---- */

/* "step-<digits>" without leading zeros. */
static bool parse_step(const char *name, uint64_t *step)
{
    if (strncmp(name, "step-", 5)) return false;
    const char *p = name + 5;
    size_t n = strspn(p, "0123456789");
    if (n == 0 || n > 18 || p[n] || (n > 1 && *p == '0')) return false;
    *step = strtoull(p, NULL, 10);
    return true;
}

static int falling(const void *pa, const void *pb)
{
    uint64_t a = *(const uint64_t *)pa, b = *(const uint64_t *)pb;
    return (a < b) - (a > b);
}

enum rt_status steps_list(struct arena *a, const char *dir, struct step_list *out,
                          struct rt_error *err)
{
    VEC(uint64_t) v = {0};
    *out = (struct step_list){0};
    DIR *d = opendir(dir);
    if (!d && (errno == ENOENT || errno == ENOTDIR)) return RT_ok;
    if (!d) return rt_fail(err, RT_user, "cannot read '%s': %s", dir, strerror(errno));
    uint64_t step;
    for (struct dirent *e; (e = readdir(d));)
        if (parse_step(e->d_name, &step)) vec_push(a, &v, step);
    closedir(d);
    if (v.n) qsort(v.p, v.n, sizeof *v.p, falling);
    *out = (struct step_list){v.p, v.n};
    return RT_ok;
}

static bool is_leftover(struct str name)
{
    return str_starts(name, ".saving-") || str_starts(name, ".deleting-") ||
           str_starts(name, "metrics.jsonl.tmp.");
}

enum rt_status steps_clear_leftovers(const char *dir, struct rt_error *err)
{
    DIR *d = opendir(dir);
    if (!d) return rt_fail(err, RT_user, "cannot read '%s': %s", dir, strerror(errno));
    struct arena *a = arena_open("steps");
    enum rt_status r = RT_ok;
    for (struct dirent *e; r == RT_ok && (e = readdir(d));) {
        if (!is_leftover(str_of(e->d_name))) continue;
        const char *path = str_fmt(a, "%s/%s", dir, e->d_name);
        int fail = io_remove_tree(path);
        if (fail) r = rt_fail(err, RT_machine, "cannot remove '%s': %s", path, strerror(fail));
    }
    closedir(d);
    arena_close(a);
    return r;
}

bool ckpt_any(const char *dir)
{
    struct arena *a = arena_open("steps");
    struct step_list l;
    bool any = steps_list(a, dir, &l, NULL) == RT_ok && l.n > 0;
    arena_close(a);
    return any;
}

enum rt_status ckpt_verify(const char *step_dir, struct rt_error *err)
{
    return manifest_verify(step_dir, err);
}

enum rt_status ckpt_newest(const char *dir, ckpt_refused_fn *refused, void *ctx,
                           char step_dir[PATH_MAX], uint64_t *step, struct rt_error *err)
{
    struct arena *a = arena_open("steps");
    struct step_list l;
    bool found = false;
    enum rt_status r = steps_list(a, dir, &l, err);
    *step = 0;
    for (size_t i = 0; i < l.n && r == RT_ok && !found; i++) {
        struct rt_error why;
        int n = snprintf(step_dir, PATH_MAX, "%s/step-%llu", dir, (unsigned long long)l.p[i]);
        if (n >= PATH_MAX) {
            r = rt_fail(err, RT_user, "path too long: '%s'", dir);
        } else if (ckpt_verify(step_dir, &why) == RT_ok) {
            found = true;
            *step = l.p[i];
        } else if (refused) {
            refused(ctx, step_dir, why.text);
        }
    }
    if (!found) step_dir[0] = 0;
    arena_close(a);
    return r;
}

static bool has(struct arena *a, const char *dir, const char *name)
{
    return io_exists(str_fmt(a, "%s/%s", dir, name));
}

/* Whether the path is a folder that is named as a step. */
static bool is_step_path(struct arena *a, const char *path)
{
    char *p = str_dup(a, str_of(path));
    for (size_t n = strlen(p); n > 1 && p[n - 1] == '/'; n--) p[n - 1] = 0;
    const char *slash = strrchr(p, '/');
    uint64_t step;
    struct stat st;
    return parse_step(slash ? slash + 1 : p, &step) && !stat(p, &st) && S_ISDIR(st.st_mode);
}

enum rt_status ckpt_weights(const char *path, ckpt_refused_fn *refused, void *ctx,
                            char out[PATH_MAX], struct rt_error *err)
{
    uint64_t step;
    enum rt_status r = RT_ok;
    if ((size_t)snprintf(out, PATH_MAX, "%s", path) >= PATH_MAX)
        return rt_fail(err, RT_user, "path too long: '%s'", path);
    struct arena *a = arena_open("weights");
    if (has(a, path, "manifest.json") || is_step_path(a, path)) {
        r = ckpt_verify(path, err);
    } else if (ckpt_any(path) && !has(a, path, "model.safetensors") &&
               !has(a, path, "model.safetensors.index.json")) {
        r = ckpt_newest(path, refused, ctx, out, &step, err);
        if (r == RT_ok && !out[0])
            r = rt_fail(err, RT_user, "'%s' holds no valid checkpoint", path);
    }
    arena_close(a);
    return r;
}
