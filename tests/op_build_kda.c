/* Short convolution and the KDA recurrence. */
#include "op_build.h"
#include <math.h>

BUILD(repeat)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add(k.g, OP_repeat, SRCS(vec(&k, "x", k.C)),
                             ATTRS(A_INT(times, k.option ? k.C2 : 3)), NULL));
}

/* Four taps, one, and more than many sequences are long. */
static int64_t taps(const struct k *k)
{
    static const int64_t n[3] = {4, 1, 7};
    return n[k->option];
}

BUILD(short_conv)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id x = mat(&k, "x", k.N, k.C), w = mat(&k, "w", dim_const(k.C), taps(&k));
    return finish(&k, ir_add(k.g, OP_short_conv, SRCS(x, w), NO_ATTRS, NULL));
}

BUILD(short_conv_grad)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id dy = mat(&k, "dy", k.N, k.C), x = mat(&k, "x", k.N, k.C);
    ir_id w = mat(&k, "w", dim_const(k.C), taps(&k));
    return finish(&k, ir_add(k.g, OP_short_conv_grad, SRCS(dy, x, w), NO_ATTRS, NULL));
}

/* The forward's operands: one head, several; tokens that forget all, nothing, either. */
static int64_t kda_operands(struct k *k, ir_id s[5])
{
    static const char *const decay[5] = {"decay", "decay", "fast", "slow", "mixed"};
    int64_t heads = k->option == 0 ? 1 : k->option == 1 ? 3 : 2;
    const char *key = str_fmt(k->g->arena, "unit.%lld.k", (long long)k->C);
    s[0] = mat(k, "q", k->N, heads * k->C);
    s[1] = mat(k, key, k->N, heads * k->C);
    s[2] = mat(k, "v", k->N, heads * k->C2);
    s[3] = mat(k, decay[k->option], k->N, heads * k->C);
    s[4] = mat(k, "frac.beta", k->N, heads);
    return heads;
}

BUILD(kda)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id s[5];
    int64_t heads = kda_operands(&k, s);
    return finish(&k,
                  ir_add(k.g, OP_kda, s, 5,
                         ATTRS(A_INT(heads, heads), A_NUM(scale, 1 / sqrt((double)k.C))), NULL));
}

BUILD(kda_grad)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id s[6];
    int64_t heads = kda_operands(&k, s);
    s[5] = mat(&k, "do", k.N, heads * k.C2);
    return finish(&k,
                  ir_add(k.g, OP_kda_grad, s, 6,
                         ATTRS(A_INT(heads, heads), A_NUM(scale, 1 / sqrt((double)k.C))), NULL));
}

/* Four taps, and more than many sequences are long. */
BUILD(conv_cached)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t J = k.option ? 7 : 4;
    ir_id x = mat(&k, "x", k.N, k.C), w = mat(&k, "w", dim_const(k.C), J);
    ir_id state = mat(&k, "state", dim_const(STATES * (J - 1)), k.C);
    return finish(&k, ir_add(k.g, OP_conv_cached, SRCS(x, w, state, states(&k), past(&k, 1)),
                             NO_ATTRS, NULL));
}

BUILD(kda_cached)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id s[8];
    int64_t heads = kda_operands(&k, s);
    s[5] = mat(&k, "state", dim_const(STATES * heads * k.C), k.C2);
    s[6] = states(&k), s[7] = past(&k, 1);
    return finish(&k,
                  ir_add(k.g, OP_kda_cached, s, 8,
                         ATTRS(A_INT(heads, heads), A_NUM(scale, 1 / sqrt((double)k.C))), NULL));
}
