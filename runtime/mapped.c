#include "runtime/mapped.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum rt_status mapped_open(const char *path, struct mapped *m, struct rt_error *err)
{
    *m = (struct mapped){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block */
    if (fd < 0) return rt_fail(err, RT_user, "cannot read '%s': %s", path, strerror(errno));
    struct stat st;
    enum rt_status r = RT_ok;
    if (fstat(fd, &st)) {
        r = rt_fail(err, RT_machine, "cannot read '%s': %s", path, strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        r = rt_fail(err, RT_user, "'%s' is not a regular file", path);
    } else if (st.st_size == 0) {
        m->bytes = "";
    } else {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            r = rt_fail(err, RT_machine, "cannot map '%s': %s", path, strerror(errno));
        else
            *m = (struct mapped){p, (size_t)st.st_size};
    }
    close(fd);
    return r;
}

void mapped_close(struct mapped *m)
{
    if (m->size) munmap((void *)m->bytes, m->size);
    *m = (struct mapped){0};
}
