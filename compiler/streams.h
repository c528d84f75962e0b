/* Which stream of a GPU each step of a plan runs in, and what it waits for there. Steps that touch
 * nothing of each other may run side by side: the gradient of a weight beside that of its input,
 * conversions of weights long before they are due, small things beside large ones. Bits do not
 * depend on it: a step waits for the last writer of whatever it reads, and for the last writer and
 * readers of the memory that it writes, so every order that the waits allow gives the same. */
#ifndef STRATA_COMPILER_STREAMS_H
#define STRATA_COMPILER_STREAMS_H
#include "compiler/lower.h"

/* Sets stream and waits of the steps, for so many streams (1 to SA_STREAMS), all in stream 0
 * before. Steps keep their order; each goes where it can begin first by a rough estimate of times.
 * A launch for several nodes that touch anything of each other is a bug: the memory plan knows
 * nothing of it. */
void streams_assign(struct arena *a, struct lowered *l, unsigned streams);
/* NULL when every two steps that touch the same memory, one of them writing, come in their order,
 * whatever streams do; else a message (in the arena). */
const char *streams_check(const struct lowered *l, struct arena *a);
/* Steps beside stream 0. */
uint32_t streams_beside(const struct lowered *l);
#endif
