/* Running an incremental program (BUILD_decode): one call gives every sequence of a batch T more
 * tokens. What a sequence has seen lies in its slot of the program's caches; which slot is whose,
 * and how many tokens it holds, is the caller's to keep. */
#ifndef STRATA_COMPILER_DECODE_H
#define STRATA_COMPILER_DECODE_H
#include "compiler/program.h"

struct decoder {
    struct session *session;
    struct program *program;       /* BUILD_decode of that session, */
    int64_t slots, context, chunk; /* built with these options */
};
struct decode_call {
    int64_t B, T;          /* sequences; new tokens of each, at most `chunk` */
    const int32_t *tokens; /* [B*T], a sequence after the other */
    const int32_t
        *past; /* [B]: tokens of the sequence that are in its slot already; 0 begins anew */
    const int32_t *slots; /* [B], all different */
};
/* Runs it. *logits, f32[B,V] of the last tokens (f32[B*T,V] with all_logits), is valid until the
 * next call. The first call of a (B, T) makes its plan, which compiles kernels only where none are
 * cached; later ones allocate nothing. Statuses as session_compile. */
enum rt_status decode_run(const struct decoder *d, const struct decode_call *c,
                          const float **logits, struct rt_error *err);
#endif
