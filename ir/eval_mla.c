/* Multi-head latent attention (kimi-linear.md 3). */
#include "eval_op.h"

/* Sizes of a node: heads, k_nope, k_rope, v. */
struct mla {
    int64_t h, n, r, v;
};

static struct mla sizes(const struct eval *e, int64_t rope)
{
    return (struct mla){ev_int(e, AK_heads, 0), ev_int(e, AK_head_dim, 0), rope,
                        ev_int(e, AK_v_dim, 0)};
}

void eval_mla_keys(struct eval *e)
{
    struct mla x = sizes(e, ev_cols(e, 1));
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t h = 0; h < x.h; h++) {
            const double *kv = ev_src(e, 0) + (t * x.h + h) * (x.n + x.v);
            double *k = ev_out(e, 0) + (t * x.h + h) * (x.n + x.r);
            memcpy(k, kv, (size_t)x.n * sizeof *k);
            memcpy(k + x.n, ev_src(e, 1) + t * x.r, (size_t)x.r * sizeof *k);
            memcpy(ev_out(e, 1) + (t * x.h + h) * x.v, kv + x.n, (size_t)x.v * sizeof *k);
        }
}

void eval_mla_keys_grad(struct eval *e)
{
    struct mla x = sizes(e, ev_cols(e, 0) / ev_int(e, AK_heads, 1) - ev_int(e, AK_head_dim, 0));
    for (int64_t t = 0; t < ev_rows(e, 0); t++)
        for (int64_t h = 0; h < x.h; h++) {
            const double *dk = ev_src(e, 0) + (t * x.h + h) * (x.n + x.r);
            double *dkv = ev_out(e, 0) + (t * x.h + h) * (x.n + x.v);
            memcpy(dkv, dk, (size_t)x.n * sizeof *dk);
            memcpy(dkv + x.n, ev_src(e, 1) + (t * x.h + h) * x.v, (size_t)x.v * sizeof *dk);
            for (int64_t i = 0; i < x.r; i++) ev_out(e, 1)[t * x.r + i] += dk[x.n + i];
        }
}
