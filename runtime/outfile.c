#include "runtime/outfile.h"
#include "base/io.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum rt_status outfile_open(const char *path, struct outfile *f, struct rt_error *err)
{
    *f = (struct outfile){.path = path, .fd = -1};
    if (asprintf(&f->tmp, "%s.tmp.%d", path, (int)getpid()) < 0) {
        f->tmp = NULL;
        return rt_fail(err, RT_machine, "no memory to write '%s'", path);
    }
    f->fd = open(f->tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (f->fd >= 0) return RT_ok;
    int e = errno;
    free(f->tmp);
    f->tmp = NULL;
    return rt_fail(err, RT_user, "cannot write '%s': %s", path, strerror(e));
}

enum rt_status outfile_write(struct outfile *f, const void *p, size_t n, struct rt_error *err)
{
    int e = io_write_all(f->fd, p, n);
    return e ? rt_fail(err, RT_machine, "cannot write '%s': %s", f->path, strerror(e)) : RT_ok;
}

enum rt_status outfile_commit(struct outfile *f, struct rt_error *err)
{
    int e = fsync(f->fd) ? errno : 0;
    if (close(f->fd) && !e) e = errno;
    f->fd = -1;
    if (!e && rename(f->tmp, f->path)) e = errno;
    if (e) unlink(f->tmp);
    free(f->tmp);
    f->tmp = NULL;
    if (!e) {
        struct arena *a = arena_open("outfile");
        e = io_sync_dir(io_dirname(a, f->path));
        arena_close(a);
    }
    return e ? rt_fail(err, RT_machine, "cannot write '%s': %s", f->path, strerror(e)) : RT_ok;
}

void outfile_drop(struct outfile *f)
{
    if (f->fd >= 0) close(f->fd);
    if (f->tmp) unlink(f->tmp);
    free(f->tmp);
    *f = (struct outfile){.fd = -1};
}
