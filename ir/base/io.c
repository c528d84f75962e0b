#include "base/io.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int read_fd(struct arena *a, int fd, size_t size, struct str *out)
{
    char *p = arena_alloc(a, size + 1, 16, STRATA_SITE);
    size_t n = 0;
    while (n < size) {
        ssize_t r = read(fd, p + n, size - n);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) return errno;
        if (r == 0) break;
        n += (size_t)r;
    }
    p[n] = 0;
    *out = (struct str){p, n};
    return 0;
}

/* Pipes, devices and the files of /proc have no size: read in pieces up to `max`. */
static int read_stream(struct arena *a, int fd, size_t max, struct str *out)
{
    struct sb s = {0};
    char buf[65536];
    for (;;) {
        ssize_t r = read(fd, buf, sizeof buf);
        if (r < 0 && errno == EINTR) continue;
        int err = r < 0 ? errno : s.n + (size_t)r > max ? EFBIG : 0;
        if (err) {
            sb_free(&s);
            return err;
        }
        if (r == 0) break;
        sb_add(&s, buf, (size_t)r);
    }
    *out = sb_take(&s, a);
    return 0;
}

int io_read(struct arena *a, const char *path, size_t max, struct str *out)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno;
    struct stat st;
    int err = fstat(fd, &st) ? errno : 0;
    if (!err && S_ISDIR(st.st_mode)) err = EISDIR;
    if (!err && S_ISREG(st.st_mode) && st.st_size > 0) {
        if ((uint64_t)st.st_size > max)
            err = EFBIG;
        else
            err = read_fd(a, fd, (size_t)st.st_size, out);
    } else if (!err) {
        err = read_stream(a, fd, max, out);
    }
    close(fd);
    return err;
}

int io_write_all(int fd, const void *data, size_t n)
{
    const char *p = data;
    while (n) {
        ssize_t r = write(fd, p, n > (1u << 30) ? 1u << 30 : n);
        if (r < 0 && errno == EINTR) continue;
        if (r < 0) return errno;
        if (r == 0) return EIO;
        p += r;
        n -= (size_t)r;
    }
    return 0;
}

int io_sync_dir(const char *path)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return errno;
    int err = fsync(fd) ? errno : 0;
    close(fd);
    return err;
}

bool io_special(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && !S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode);
}

static int write_special(const char *path, const void *data, size_t n)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC), err = fd < 0 ? errno : io_write_all(fd, data, n);
    if (fd >= 0 && close(fd) && !err) err = errno;
    return err;
}

int io_write_atomic(const char *path, const void *data, size_t n)
{
    if (io_special(path)) return write_special(path, data, n);
    struct arena *a = arena_open("io");
    char *tmp = str_fmt(a, "%s.tmp.%d", path, (int)getpid());
    int fd = open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), err = 0;
    if (fd < 0) {
        err = errno;
    } else {
        err = io_write_all(fd, data, n);
        if (!err && fsync(fd)) err = errno;
        if (close(fd) && !err) err = errno;
        if (!err && rename(tmp, path)) err = errno;
        if (err) unlink(tmp);
        if (!err) err = io_sync_dir(io_dirname(a, path));
    }
    arena_close(a);
    return err;
}

int io_mkdirs(const char *path)
{
    struct arena *a = arena_open("io");
    char *p = str_dup(a, str_of(path));
    int err = 0;
    for (char *q = p + 1; !err && *q; q++) {
        if (*q != '/') continue;
        *q = 0;
        if (mkdir(p, 0777) && errno != EEXIST) err = errno;
        *q = '/';
    }
    if (!err && mkdir(p, 0777) && errno != EEXIST) err = errno;
    arena_close(a);
    return err;
}

int io_remove_tree(const char *path)
{
    struct stat st;
    if (lstat(path, &st)) return errno == ENOENT ? 0 : errno;
    if (!S_ISDIR(st.st_mode)) return unlink(path) ? errno : 0;
    DIR *d = opendir(path);
    if (!d) return errno;
    int err = 0;
    struct dirent *e;
    struct arena *a = arena_open("io");
    while (!err && (e = readdir(d))) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        err = io_remove_tree(str_fmt(a, "%s/%s", path, e->d_name));
    }
    closedir(d);
    arena_close(a);
    if (!err && rmdir(path)) err = errno;
    return err;
}

bool io_exists(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0;
}

const char *io_dirname(struct arena *a, const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash) return ".";
    if (slash == path) return "/";
    return str_dup(a, (struct str){path, (size_t)(slash - path)});
}

const char *io_join(struct arena *a, const char *dir, const char *name)
{
    if (name[0] == '/' || !dir[0] || !strcmp(dir, ".")) return str_dup(a, str_of(name));
    return str_fmt(a, "%s/%s", dir, name);
}

const char *io_cache_dir(struct arena *a)
{
    const char *s = getenv("STRATA_CACHE"), *x = getenv("XDG_CACHE_HOME"), *h = getenv("HOME");
    if (s && *s) return str_dup(a, str_of(s));
    if (x && *x) return str_fmt(a, "%s/strata", x);
    return str_fmt(a, "%s/.cache/strata", h && *h ? h : ".");
}

/* Feeds `in` and drains the output at the same time, so that neither side can block for ever. */
static void converse(int to, int from, struct str in, struct sb *out)
{
    char buf[16384];
    size_t at = 0;
    while (from >= 0) {
        struct pollfd f[2] = {{from, POLLIN, 0}, {to, POLLOUT, 0}};
        if (poll(f, to >= 0 ? 2 : 1, -1) < 0) {
            if (errno == EINTR) continue;
            break;
        }
        if (to >= 0 && f[1].revents) {
            ssize_t w = write(to, in.p + at, in.n - at);
            if (w > 0) at += (size_t)w;
            if ((w < 0 && errno != EINTR && errno != EAGAIN) || at == in.n) {
                close(to);
                to = -1;
            }
        }
        if (f[0].revents) {
            ssize_t r = read(from, buf, sizeof buf);
            if (r == 0 || (r < 0 && errno != EINTR && errno != EAGAIN)) break;
            if (r > 0 && out->n < (1u << 20)) sb_add(out, buf, (size_t)r);
        }
    }
    if (to >= 0) close(to);
}

int io_spawn(struct arena *a, char *const argv[], struct str in, struct str *out, int *status)
{
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC)) return errno;
    if (pipe2(from, O_CLOEXEC)) {
        int err = errno;
        close(to[0]), close(to[1]);
        return err;
    }
    posix_spawn_file_actions_t fa;
    posix_spawn_file_actions_init(&fa);
    posix_spawn_file_actions_adddup2(&fa, to[0], 0);
    posix_spawn_file_actions_adddup2(&fa, from[1], 1);
    posix_spawn_file_actions_adddup2(&fa, from[1], 2);
    pid_t pid;
    int err = posix_spawnp(&pid, argv[0], &fa, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&fa);
    close(to[0]), close(from[1]);
    if (err) {
        close(to[1]), close(from[0]);
        return err;
    }
    struct sigaction ign = {.sa_handler = SIG_IGN}, old;
    sigaction(SIGPIPE, &ign, &old);
    if (!in.n) close(to[1]), to[1] = -1;
    fcntl(to[1], F_SETFL, O_NONBLOCK);
    struct sb text = {0};
    converse(to[1], from[0], in, &text);
    close(from[0]);
    sigaction(SIGPIPE, &old, NULL);
    while (waitpid(pid, status, 0) < 0 && errno == EINTR) {
    }
    *out = sb_take(&text, a);
    return 0;
}
