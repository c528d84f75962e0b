/* What the files of the machine share (see cudacpu.h): its state, and the checks of accesses. */
#ifndef STRATA_TESTS_CUDACPU_MACHINE_H
#define STRATA_TESTS_CUDACPU_MACHINE_H
#include "cudacpu.h"

enum { WARP = 32, THREADS = 1024, STACK = 256 << 10, DYNAMIC = 227 << 10, SLACK = 64 << 10 };

struct cudacpu {
    void *lib;
    char *dir, *object, *base; /* where the object lies: as a file, and in memory */
    bool checked;
    struct region *shared; /* static shared memory, NULL where the text has none */
};

/* The launch that runs. Blocks are numbered from 1 in the order in which they run, over all
 * launches. thread: the one whose fiber runs, or -1. */
struct machine {
    struct cudacpu *c;
    uint32_t block, first_block;
    unsigned threads;
    int thread;
    char *stacks; /* STACK bytes for each of THREADS fibers */
};
extern struct machine cudacpu_machine;

/* Ends the launch with a report; formats "kind: ", what, and adds kernel, block and thread. */
_Noreturn void cudacpu_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

enum access_kind { ACCESS_none, ACCESS_read, ACCESS_write, ACCESS_atomic, ACCESS_pending };
/* Memory with a shadow; SLACK bytes on both sides belong to it and are out of bounds. */
struct region *cudacpu_region(char *begin, size_t n, bool shared, bool slack);
void cudacpu_region_free(struct region *r);
/* n is at most what the region was made with. */
void cudacpu_region_resize(struct region *r, size_t n);
void cudacpu_region_fill(struct region *r);
/* A thread's access to n bytes: fails on a race, out of bounds and where `align` does not divide
 * the address. pc: the address after the instruction. Does nothing in an unchecked text. */
void cudacpu_touch(int thread, const void *p, size_t n, size_t align, enum access_kind kind,
                   const void *pc);
/* The copy of `thread` to p[0..n) has been waited for. */
void cudacpu_arrived(int thread, const void *p, size_t n);
void cudacpu_checks_launch(unsigned blocks);
void cudacpu_checks_block(void);
/* These threads have met at a barrier. */
void cudacpu_join(const int *thread, int n);
#endif
