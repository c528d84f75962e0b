#include "runtime/outfile.h"
#include "base/io.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static enum rt_status fail(enum rt_status st, const char *path, int e, struct rt_error *err)
{
    return rt_fail(err, st, "cannot write '%s': %s", path, strerror(e));
}

enum rt_status outfile_open(const char *path, struct outfile *f, struct rt_error *err)
{
    struct stat st;
    *f = (struct outfile){.path = path, .fd = -1};
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) return fail(RT_user, path, EISDIR, err);
    if (io_special(path)) {
        f->fd = open(path, O_WRONLY | O_CLOEXEC);
        return f->fd < 0 ? fail(RT_user, path, errno, err) : RT_ok;
    }
    if (asprintf(&f->tmp, "%s.tmp.%d", path, (int)getpid()) < 0) {
        f->tmp = NULL;
        return rt_fail(err, RT_machine, "no memory to write '%s'", path);
    }
    f->fd = open(f->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd >= 0) return RT_ok;
    int e = errno;
    free(f->tmp);
    f->tmp = NULL;
    return fail(RT_user, path, e, err);
}

enum rt_status outfile_write(struct outfile *f, const void *p, size_t n, struct rt_error *err)
{
    int e = io_write_all(f->fd, p, n);
    return e ? fail(RT_machine, f->path, e, err) : RT_ok;
}

enum rt_status outfile_commit(struct outfile *f, struct rt_error *err)
{
    int e = f->tmp && fsync(f->fd) ? errno : 0;
    if (close(f->fd) && !e) e = errno;
    f->fd = -1;
    if (!f->tmp) return e ? fail(RT_machine, f->path, e, err) : RT_ok;
    if (!e && rename(f->tmp, f->path)) e = errno;
    if (e) unlink(f->tmp);
    free(f->tmp);
    f->tmp = NULL;
    if (!e) {
        struct arena *a = arena_open("outfile");
        e = io_sync_dir(io_dirname(a, f->path));
        arena_close(a);
    }
    return e ? fail(RT_machine, f->path, e, err) : RT_ok;
}

void outfile_drop(struct outfile *f)
{
    if (f->fd >= 0) close(f->fd);
    if (f->tmp) unlink(f->tmp);
    free(f->tmp);
    *f = (struct outfile){.fd = -1};
}
