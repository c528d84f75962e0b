#include "runtime/checkpoint.h"
#include "base/io.h"
#include "runtime/manifest.h"
#include "runtime/steps.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static int (*fault_hook)(void *, const char *, const char *);
static void *fault_ctx;

void ckpt_fault_hook(int (*hook)(void *ctx, const char *op, const char *path), void *ctx)
{
    fault_hook = hook;
    fault_ctx = ctx;
}

static int fault(const char *op, const char *path)
{
    return fault_hook ? fault_hook(fault_ctx, op, path) : 0;
}

/* ---- one file of a step ---- */

struct writer {
    int fd;
    const char *path;
    uint64_t size;
    XXH3_state_t *hash;
};

static int writer_sink(void *ctx, const void *p, size_t n)
{
    struct writer *w = ctx;
    int e = fault("write", w->path);
    if (!e) e = io_write_all(w->fd, p, n);
    if (e) return e;
    w->size += n;
    XXH3_128bits_update(w->hash, p, n);
    return 0;
}

static int writer_open(struct writer *w, const char *path)
{
    *w = (struct writer){.fd = -1, .path = path, .hash = XXH3_createState()};
    if (!w->hash) return ENOMEM;
    XXH3_128bits_reset(w->hash);
    int e = fault("open", path);
    if (e) return e;
    w->fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return w->fd < 0 ? errno : 0;
}

/* fsync and close; the file's row of the manifest. `e` is what went wrong before. */
static int writer_close(struct writer *w, int e, struct manifest_file *row)
{
    if (!e) e = fault("fsync", w->path);
    if (!e && fsync(w->fd)) e = errno;
    if (w->fd >= 0 && close(w->fd) && !e) e = errno;
    if (w->hash) {
        XXH128_hash_t h = XXH3_128bits_digest(w->hash);
        row->size = w->size;
        snprintf(row->hash, sizeof row->hash, "%016llx%016llx", (unsigned long long)h.high64,
                 (unsigned long long)h.low64);
    }
    XXH3_freeState(w->hash);
    return e;
}

static enum rt_status write_failed(struct rt_error *err, const char *path, int e)
{
    return rt_fail(err, RT_machine, "cannot write '%s': %s", path, strerror(e));
}

/* Either a tensor file or a text. */
static enum rt_status put_file(struct arena *a, const char *dir, const char *name,
                               const struct tf_content *tensors, struct str text,
                               struct manifest_file *row, struct rt_error *err)
{
    struct writer w;
    const char *path = str_fmt(a, "%s/%s", dir, name);
    row->name = name;
    int e = writer_open(&w, path);
    if (!e)
        e = tensors ? tensorfile_stream(tensors, writer_sink, &w) : writer_sink(&w, text.p, text.n);
    e = writer_close(&w, e, row);
    return e ? write_failed(err, path, e) : RT_ok;
}

static enum rt_status sync_dir(const char *path, struct rt_error *err)
{
    int e = fault("fsync", path);
    if (!e) e = io_sync_dir(path);
    return e ? write_failed(err, path, e) : RT_ok;
}

/* All files of a step into an empty folder, the manifest last. */
static enum rt_status put_files(struct arena *a, const char *dir, const struct ckpt_content *c,
                                struct rt_error *err)
{
    struct manifest_file *row = NEW(a, struct manifest_file, c->num_files + 3), own;
    struct ckpt_state state = *c->state;
    struct sb text = {0};
    size_t n = 0;
    ckpt_state_set(&state, "step", (int64_t)c->step);
    RT_TRY(put_file(a, dir, "model.safetensors", &c->model, (struct str){0}, &row[n++], err));
    RT_TRY(
        put_file(a, dir, "optimizer.safetensors", &c->optimizer, (struct str){0}, &row[n++], err));
    ckpt_state_text(&state, &text);
    RT_TRY(put_file(a, dir, "state.json", NULL, sb_take(&text, a), &row[n++], err));
    for (size_t i = 0; i < c->num_files; i++)
        RT_TRY(put_file(a, dir, c->files[i].name, NULL, c->files[i].text, &row[n++], err));
    manifest_text(row, n, &text);
    RT_TRY(put_file(a, dir, "manifest.json", NULL, sb_take(&text, a), &own, err));
    return sync_dir(dir, err);
}

/* ---- the folder of a run ---- */

struct ckpt_dir {
    char *path;
    int lock;
    struct {
        uint64_t step;
        bool valid;
    } * known; /* what this process saved or checked, so that pruning reads each step once */
    size_t num_known;
};

static enum rt_status take_lock(struct ckpt_dir *d, struct rt_error *err)
{
    char *path, pid[32] = "";
    if (asprintf(&path, "%s/.lock", d->path) < 0) return rt_fail(err, RT_machine, "no memory");
    d->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    int e = d->lock < 0 ? errno : 0;
    free(path);
    if (e) return rt_fail(err, RT_user, "cannot write in '%s': %s", d->path, strerror(e));
    if (flock(d->lock, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK)
            return rt_fail(err, RT_machine, "cannot lock '%s': %s", d->path, strerror(errno));
        ssize_t n = pread(d->lock, pid, sizeof pid - 1, 0);
        pid[n > 0 ? strspn(pid, "0123456789") : 0] = 0;
        return rt_fail(err, RT_user, "another run uses '%s' (process %s)", d->path,
                       *pid ? pid : "?");
    }
    int n = snprintf(pid, sizeof pid, "%d\n", (int)getpid());
    /* only for the message above: a full disk must not stop the run here */
    if (ftruncate(d->lock, 0) || pwrite(d->lock, pid, (size_t)n, 0) != n) errno = 0;
    return RT_ok;
}

enum rt_status ckpt_open(const char *dir, struct ckpt_dir **out, struct rt_error *err)
{
    *out = NULL;
    int e = io_mkdirs(dir);
    if (e) return rt_fail(err, RT_user, "cannot create '%s': %s", dir, strerror(e));
    struct ckpt_dir *d = calloc(1, sizeof *d);
    if (!d || !(d->path = strdup(dir))) {
        free(d);
        return rt_fail(err, RT_machine, "no memory to open '%s'", dir);
    }
    d->lock = -1;
    struct arena *a = arena_open("checkpoint");
    io_sync_dir(io_dirname(a, dir)); /* the folder's own name must last too; best effort */
    arena_close(a);
    enum rt_status r = take_lock(d, err);
    if (r == RT_ok) r = steps_clear_leftovers(dir, err);
    if (r == RT_ok)
        *out = d;
    else
        ckpt_close(d);
    return r;
}

void ckpt_close(struct ckpt_dir *d)
{
    if (!d) return;
    if (d->lock >= 0) close(d->lock);
    free(d->known);
    free(d->path);
    free(d);
}

/* ---- pruning ---- */

static void note_valid(struct ckpt_dir *d, uint64_t step, bool valid)
{
    for (size_t i = 0; i < d->num_known; i++) {
        if (d->known[i].step != step) continue;
        d->known[i].valid = valid;
        return;
    }
    void *p = realloc(d->known, (d->num_known + 1) * sizeof *d->known);
    if (!p) return; /* then it is checked again */
    d->known = p;
    d->known[d->num_known].step = step;
    d->known[d->num_known++].valid = valid;
}

/* RT_machine when it cannot be told. */
static enum rt_status is_valid(struct ckpt_dir *d, const char *path, uint64_t step, bool *valid,
                               struct rt_error *err)
{
    for (size_t i = 0; i < d->num_known; i++) {
        if (d->known[i].step != step) continue;
        *valid = d->known[i].valid;
        return RT_ok;
    }
    enum rt_status r = ckpt_verify(path, err);
    if (r == RT_machine) return r;
    *valid = r == RT_ok;
    note_valid(d, step, *valid);
    return RT_ok;
}

/* Away from its step name in one rename, then gone. */
static enum rt_status remove_step(struct ckpt_dir *d, struct arena *a, uint64_t step,
                                  struct rt_error *err)
{
    const char *path = str_fmt(a, "%s/step-%llu", d->path, (unsigned long long)step);
    const char *away =
        str_fmt(a, "%s/.deleting-%llu.%d", d->path, (unsigned long long)step, getpid());
    int e = fault("rename", path);
    if (!e && rename(path, away)) e = errno;
    if (!e) {
        note_valid(d, step, false);
        e = fault("remove", away);
    }
    if (!e) e = io_remove_tree(away);
    return e ? rt_fail(err, RT_machine, "cannot remove '%s': %s", path, strerror(e)) : RT_ok;
}

static enum rt_status prune(struct ckpt_dir *d, struct arena *a, uint64_t newest, unsigned keep,
                            struct rt_error *err)
{
    struct step_list l = {0};
    RT_TRY(steps_list(a, d->path, &l, err));
    unsigned kept = 0;
    for (size_t i = 0; i < l.n; i++) {
        bool valid = false;
        uint64_t step = l.p[i];
        if (step > newest) continue;
        if (kept < keep)
            RT_TRY(is_valid(d, str_fmt(a, "%s/step-%llu", d->path, (unsigned long long)step), step,
                            &valid, err));
        if (valid)
            kept++;
        else
            RT_TRY(remove_step(d, a, step, err));
    }
    return RT_ok;
}

/* ---- saving ---- */

/* From the finished temporary folder to the step's name. A step-N that is there is not valid. */
static enum rt_status publish(struct ckpt_dir *d, struct arena *a, const char *tmp, uint64_t step,
                              struct rt_error *err)
{
    const char *path = str_fmt(a, "%s/step-%llu", d->path, (unsigned long long)step);
    if (io_exists(path)) RT_TRY(remove_step(d, a, step, err));
    int e = fault("rename", path);
    if (!e && rename(tmp, path)) e = errno;
    if (e) return write_failed(err, path, e);
    RT_TRY(sync_dir(d->path, err));
    note_valid(d, step, true);
    return RT_ok;
}

static enum rt_status save(struct ckpt_dir *d, struct arena *a, const struct ckpt_content *c,
                           struct rt_error *err)
{
    const char *tmp =
        str_fmt(a, "%s/.saving-%llu.%d", d->path, (unsigned long long)c->step, getpid());
    int e = io_remove_tree(tmp);
    if (!e) e = fault("mkdir", tmp);
    if (!e && mkdir(tmp, 0777)) e = errno;
    if (e) return write_failed(err, tmp, e);
    enum rt_status r = put_files(a, tmp, c, err);
    if (r == RT_ok) r = publish(d, a, tmp, c->step, err);
    /* gives the space back; what cannot be removed now goes at the next start */
    if (r != RT_ok) io_remove_tree(tmp);
    return r;
}

enum rt_status ckpt_save(struct ckpt_dir *d, const struct ckpt_content *c, unsigned keep,
                         struct rt_error *err)
{
    CHECK(keep >= 1);
    struct arena *a = arena_open("checkpoint");
    const char *path = str_fmt(a, "%s/step-%llu", d->path, (unsigned long long)c->step);
    bool there = false;
    enum rt_status r = RT_ok;
    if (io_exists(path)) r = is_valid(d, path, c->step, &there, err);
    if (r == RT_ok && !there) r = save(d, a, c, err);
    if (r == RT_ok) r = prune(d, a, c->step, keep, err);
    arena_close(a);
    return r;
}
