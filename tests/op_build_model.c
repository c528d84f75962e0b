/* Mixture of experts, tokens, depth, loss, apply. */
#include "op_build.h"
#include <math.h>

/* ---- mixture of experts ---- */

struct routed {
    int64_t E, k;
    ir_id logits, ids, offsets, order, place;
    struct ir_dim A;
};

static ir_id route(struct k *k, int64_t experts, int64_t slots, ir_id logits)
{
    return ir_add(k->g, OP_moe_route, SRCS(logits, vec(k, "bias", experts)),
                  ATTRS(A_INT(k, slots), A_STR(score, k->option & 1 ? "softmax" : "sigmoid"),
                        A_INT(renormalize, k->option != 2), A_NUM(scale, k->option == 3 ? 2.5 : 1)),
                  NULL);
}

/* Sizes by option: one expert, some, more experts than tokens often reach. */
static struct routed routed(struct k *k)
{
    static const int64_t experts[4] = {3, 8, 1, 33}, slots[4] = {2, 1, 1, 3};
    struct routed r = {experts[k->option & 3], slots[k->option & 3], 0, 0, 0, 0, 0, {0, 0, 0}};
    r.A = dim_scale(k->N, r.k);
    r.logits = mat(k, "logits", k->N, r.E);
    ir_id t = route(k, r.E, r.k, r.logits);
    r.ids = ir_get(k->g, t, 0);
    t = ir_add(k->g, OP_moe_sort, SRCS(r.ids), ATTRS(A_INT(experts, r.E)), NULL);
    r.offsets = ir_get(k->g, t, 0), r.order = ir_get(k->g, t, 1), r.place = ir_get(k->g, t, 2);
    return r;
}

static ir_id expert_weights(struct k *k, int64_t E, int64_t rows, int64_t cols)
{
    struct ir_dim d[3] = {dim_const(E), dim_const(rows), dim_const(cols)};
    return input(k, "w", type_add(k->g->types, IR_f32, 3, d));
}

BUILD(grouped_matmul)
{
    struct k k = start(a, variant, STAGE_T);
    bool tb = k.option < 4;
    struct routed r = routed(&k);
    ir_id x = mat(&k, "x", r.A, k.C);
    ir_id w = tb ? expert_weights(&k, r.E, k.C2, k.C) : expert_weights(&k, r.E, k.C, k.C2);
    return finish(
        &k, ir_add(k.g, OP_grouped_matmul, SRCS(x, w, r.offsets), ATTRS(A_INT(tb, tb)), NULL));
}

BUILD(grouped_matmul_dw)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_grouped_matmul_dw,
                             SRCS(mat(&k, "dy", r.A, k.C2), mat(&k, "x", r.A, k.C), r.offsets),
                             NO_ATTRS, NULL));
}

BUILD(moe_route)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t E = k.C + 1;
    return finish(&k, route(&k, E, k.option == 4 ? E : 1 + k.C / 8, mat(&k, "logits", k.N, E)));
}

BUILD(moe_weights)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t E = k.C + 1;
    ir_id t = route(&k, E, 1 + k.C / 8, mat(&k, "others", k.N, E));
    struct ir_attr attr[AK_COUNT];
    size_t n = ir_attrs(k.g, t, attr);
    ir_id logits = mat(&k, "logits", k.N, E), ids = ir_get(k.g, t, 0);
    return finish(&k, ir_add(k.g, OP_moe_weights, SRCS(logits, ids), attr, n, NULL));
}

BUILD(moe_route_grad)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t E = k.C + 1;
    ir_id logits = mat(&k, "logits", k.N, E), t = route(&k, E, 1 + k.C / 8, logits);
    struct ir_attr attr[AK_COUNT];
    size_t n = ir_attrs(k.g, t, attr);
    ir_id chosen = ir_get(k.g, t, 0), dw = mat(&k, "dw", k.N, 1 + k.C / 8);
    return finish(&k, ir_add(k.g, OP_moe_route_grad, SRCS(logits, chosen, dw), attr, n, NULL));
}

BUILD(moe_sort)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_src(k.g, r.offsets, 0));
}

BUILD(moe_gather)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_moe_gather, SRCS(mat(&k, "x", k.N, k.C), r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_gather_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k,
                  ir_add(k.g, OP_moe_gather_grad, SRCS(mat(&k, "dy", r.A, k.C), r.order, r.place),
                         ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_combine)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add(k.g, OP_moe_combine,
                             SRCS(mat(&k, "y", r.A, k.C), mat(&k, "w", k.N, r.k), r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_combine_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    ir_id d = mat(&k, "dout", k.N, k.C), y = mat(&k, "y", r.A, k.C), w = mat(&k, "w", k.N, r.k);
    return finish(&k, ir_add(k.g, OP_moe_combine_grad, SRCS(d, y, w, r.order, r.place),
                             ATTRS(A_INT(k, r.k)), NULL));
}

BUILD(moe_load)
{
    struct k k = start(a, variant, STAGE_T);
    struct routed r = routed(&k);
    return finish(&k, ir_add_typed(k.g, OP_moe_load, ir_type1(k.g, IR_f32, dim_const(r.E)),
                                   SRCS(r.offsets), NO_ATTRS, NULL));
}

/* ---- tokens ---- */

BUILD(embed)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k,
                  ir_add(k.g, OP_embed, SRCS(mat(&k, "table", dim_const(k.C2), k.C), ids(&k, k.C2)),
                         NO_ATTRS, NULL));
}

BUILD(embed_grad)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add_typed(k.g, OP_embed_grad,
                                   ir_type2(k.g, IR_f32, dim_const(k.C2), dim_const(k.C)),
                                   SRCS(mat(&k, "dy", k.N, k.C), ids(&k, k.C2)), NO_ATTRS, NULL));
}

/* Options 2 and 5: after past tokens; else by position in the sequence. */
static ir_id rope_angles(struct k *k, int64_t hd)
{
    if (k->option == 2 || k->option == 5)
        return ir_add_typed(k->g, OP_rope_table, ir_type2(k->g, IR_f32, k->N, dim_const(hd)),
                            SRCS(past(k, 1)), ATTRS(A_NUM(theta, 500000)), NULL);
    return ir_add_typed(k->g, OP_rope_table,
                        ir_type2(k->g, IR_f32, dim_sym(SYM_T, 1), dim_const(hd)), NO_SRCS,
                        ATTRS(A_NUM(theta, k->option == 1 ? 500000 : 10000)), NULL);
}

BUILD(rope_table)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, rope_angles(&k, (k.C + 1) / 2 * 2));
}

BUILD(rope)
{
    struct k k = start(a, variant, STAGE_T);
    int64_t heads = 1 + k.option % 3, turned = (k.C + 1) / 2 * 2;
    bool part = k.option > 2; /* only the last elements of a head turn */
    int64_t hd = part ? turned + k.C2 : turned;
    const struct ir_attr attr[] = {A_INT(heads, heads), A_INT(head_dim, hd),
                                   A_INT(inverse, k.option == 2 || k.option == 4),
                                   A_INT(rotary, turned)};
    return finish(&k,
                  ir_add(k.g, OP_rope, SRCS(mat(&k, "x", k.N, heads * hd), rope_angles(&k, turned)),
                         attr, part ? 4 : 3, NULL));
}

static ir_id attend(struct k *k, ir_id *q, ir_id *kk, ir_id *v, struct ir_attr *attr, size_t *n)
{
    static const int64_t heads[6] = {1, 4, 4, 3, 2, 4}, kv[6] = {1, 2, 4, 1, 2, 2},
                         window[6] = {0, 0, 3, 1, 0, 5};
    int64_t o = k->option, hd = k->C, vd = o < 4 ? hd : k->C2;
    const struct ir_attr all[] = {A_INT(heads, heads[o]),
                                  A_INT(kv_heads, kv[o]),
                                  A_INT(head_dim, hd),
                                  A_NUM(scale, o == 3 ? 0.3 : 1 / sqrt((double)hd)),
                                  window[o] ? A_INT(window, window[o])
                                            : A_INT(v_dim, vd), /* no window: no attribute */
                                  A_INT(v_dim, vd)};
    *n = 4 + (size_t)(window[o] != 0) + (o >= 4);
    memcpy(attr, all, sizeof all);
    *q = mat(k, "q", k->N, heads[o] * hd);
    *kk = mat(k, "k", k->N, kv[o] * hd);
    *v = mat(k, "v", k->N, kv[o] * vd);
    return ir_add(k->g, OP_attention, SRCS(*q, *kk, *v), attr, *n, NULL);
}

BUILD(attention)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id q, kk, v;
    struct ir_attr attr[6];
    size_t n;
    return finish(&k, attend(&k, &q, &kk, &v, attr, &n));
}

BUILD(attention_grad)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id q, kk, v;
    struct ir_attr attr[6];
    size_t n;
    ir_id t = attend(&k, &q, &kk, &v, attr, &n), o = ir_get(k.g, t, 0), lse = ir_get(k.g, t, 1);
    ir_id d = mat(&k, "do", k.N, ir_cols(k.g, o).add);
    return finish(&k, ir_add(k.g, OP_attention_grad, SRCS(q, kk, v, o, lse, d), attr, n, NULL));
}

/* Heads, k_nope, k_rope and v by option; all sizes of a case odd against each other. */
struct latent {
    int64_t h, n, r, v;
};

static struct latent latent(const struct k *k)
{
    static const int64_t h[3] = {1, 3, 2}, r[3] = {1, 6, 17};
    return (struct latent){h[k->option], k->C, r[k->option], k->C2};
}

#define LATENT(x) ATTRS(A_INT(heads, (x).h), A_INT(head_dim, (x).n), A_INT(v_dim, (x).v))

BUILD(mla_keys)
{
    struct k k = start(a, variant, STAGE_T);
    struct latent x = latent(&k);
    ir_id kv = mat(&k, "kv", k.N, x.h * (x.n + x.v)), kr = mat(&k, "kr", k.N, x.r);
    return finish(&k, ir_add(k.g, OP_mla_keys, SRCS(kv, kr), LATENT(x), NULL));
}

BUILD(mla_keys_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct latent x = latent(&k);
    ir_id dk = mat(&k, "dk", k.N, x.h * (x.n + x.r)), dv = mat(&k, "dv", k.N, x.h * x.v);
    return finish(&k, ir_add(k.g, OP_mla_keys_grad, SRCS(dk, dv), LATENT(x), NULL));
}

/* ---- caches ---- */

BUILD(last_rows)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add(k.g, OP_last_rows, SRCS(mat(&k, "x", k.N, k.C)), NO_ATTRS, NULL));
}

BUILD(cache_write)
{
    struct k k = start(a, variant, STAGE_T);
    int times = 1 + (int)k.option;
    ir_id cache = mat(&k, "cache", dim_const(PAGES * IR_PAGE), k.C), x = mat(&k, "x", k.N, k.C);
    return finish(&k, ir_add(k.g, OP_cache_write, SRCS(cache, x, pages(&k, times), past(&k, times)),
                             ATTRS(A_INT(context, CONTEXT)), NULL));
}

BUILD(attention_cached)
{
    static const int64_t heads[7] = {1, 4, 4, 3, 7, 10, 8}, kv[7] = {1, 2, 4, 1, 1, 2, 1},
                         window[7] = {0, 0, 3, 1, 0, 0, 70};
    static const int times[7] = {1, 1, 2, 2, 1, -110, -80};
    struct k k = start(a, variant, STAGE_T);
    int64_t o = k.option, hd = k.C < 24 ? k.C : 24;
    ir_id cache[2];
    for (int i = 0; i < 2; i++)
        cache[i] = mat(&k, i ? "v" : "k", dim_const(PAGES * IR_PAGE), kv[o] * hd);
    return finish(&k, ir_add(k.g, OP_attention_cached,
                             SRCS(mat(&k, "q", k.N, heads[o] * hd), cache[0], cache[1],
                                  pages(&k, times[o]), past(&k, times[o])),
                             ATTRS(A_INT(heads, heads[o]), A_INT(kv_heads, kv[o]),
                                   A_INT(head_dim, hd), A_INT(window, window[o]),
                                   A_NUM(scale, o == 3 ? 0.3 : 1 / sqrt((double)hd)),
                                   A_INT(context, CONTEXT)),
                             NULL));
}

BUILD(mla_cached)
{
    static const int64_t heads[4] = {1, 3, 2, 9}, rope[4] = {1, 6, 17, 16},
                         wide[4] = {5, 16, 33, 40};
    struct k k = start(a, variant, STAGE_T);
    int64_t o = k.option, h = heads[o], r = rope[o], l = wide[o];
    int64_t n = k.C < 24 ? k.C : 24, v = k.C2 < 20 ? k.C2 : 20;
    int times = o == 3 ? -120 : (int)o;
    ir_id q = mat(&k, "q", k.N, h * (n + r)), w = mat(&k, "w", dim_const(h * (n + v)), l);
    ir_id cache = mat(&k, "cache", dim_const(PAGES * IR_PAGE), l + r);
    return finish(&k,
                  ir_add(k.g, OP_mla_cached, SRCS(q, w, cache, pages(&k, times), past(&k, times)),
                         ATTRS(A_INT(heads, h), A_INT(head_dim, n), A_INT(v_dim, v),
                               A_NUM(scale, o == 3 ? 0.1 : 1 / sqrt((double)(n + r) * (double)l)),
                               A_INT(context, CONTEXT)),
                         NULL));
}

/* ---- depth ---- */

enum { MAX_SOURCES = 10, MAX_QUERIES = 7 };

struct depth {
    uint32_t n, q;
    ir_id u[MAX_QUERIES], v[MAX_SOURCES];
};

/* Sources and queries by option; option 3 has logits that overflow exp without the maximum taken
 * off. */
static struct depth depth(struct k *k)
{
    static const uint32_t n[4] = {2, 1, 10, 5}, q[4] = {3, 2, 7, 1};
    struct depth d = {n[k->option & 3], q[k->option & 3], {0}, {0}};
    struct arena *a = k->g->arena;
    for (uint32_t i = 0; i < d.q; i++)
        d.u[i] = vec(k, str_fmt(a, "%s.u%u", k->option == 3 ? "big" : "q", i), k->C);
    for (uint32_t j = 0; j < d.n; j++) d.v[j] = mat(k, str_fmt(a, "v%u", j), k->N, k->C);
    return d;
}

/* Accumulators for all sources (options 1, 2), every second one (4) or none; fills `have`. */
static size_t accumulators(struct k *k, uint32_t n, ir_id *src, char *have)
{
    size_t count = 0;
    for (uint32_t j = 0; j < n; j++) {
        bool use = k->option == 1 || k->option == 2 || (k->option == 4 && j % 2 == 1);
        have[j] = use ? '1' : '0';
        if (use) src[count++] = mat(k, str_fmt(k->g->arena, "acc%u", j), k->N, k->C);
    }
    have[n] = 0;
    return count;
}

static ir_id mix(struct k *k, const struct depth *d, uint32_t i)
{
    ir_id src[1 + MAX_SOURCES] = {d->u[i]};
    memcpy(src + 1, d->v, d->n * sizeof *src);
    return ir_add(k->g, OP_depth_mix, src, 1 + d->n,
                  ATTRS(A_STR(site, "site"), A_INT(sources, d->n), A_NUM(eps, 1e-6)), NULL);
}

BUILD(depth_mix)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    return finish(&k, mix(&k, &d, 0));
}

BUILD(depth_mix_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    ir_id t = mix(&k, &d, 0), src[6 + 2 * MAX_SOURCES];
    char have[MAX_SOURCES + 1];
    src[0] = mat(&k, "dh", k.N, k.C), src[1] = ir_get(k.g, t, 0), src[2] = d.u[0];
    for (uint32_t i = 0; i < 3; i++) src[3 + i] = ir_get(k.g, t, 1 + i);
    memcpy(src + 6, d.v, d.n * sizeof *src);
    size_t n = 6 + d.n + accumulators(&k, d.n, src + 6 + d.n, have);
    return finish(&k,
                  ir_add(k.g, OP_depth_mix_grad, src, n,
                         ATTRS(A_STR(site, "site"), A_INT(sources, d.n), A_STR(have, have)), NULL));
}

static ir_id inter(struct k *k, const struct depth *d)
{
    ir_id src[MAX_QUERIES + MAX_SOURCES];
    memcpy(src, d->u, d->q * sizeof *src);
    memcpy(src + d->q, d->v, d->n * sizeof *src);
    return ir_add(k->g, OP_depth_inter, src, d->q + d->n,
                  ATTRS(A_INT(sources, d->n), A_INT(queries, d->q), A_NUM(eps, 1e-6)), NULL);
}

BUILD(depth_inter)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    return finish(&k, inter(&k, &d));
}

/* delta is an input of its own: in a program it belongs to the merged mix, not to this part. */
BUILD(depth_inter_grad)
{
    struct k k = start(a, variant, STAGE_T);
    struct depth d = depth(&k);
    ir_id t = inter(&k, &d), src[2 + 4 * MAX_QUERIES + 2 * MAX_SOURCES];
    ir_id lse = ir_get(k.g, t, d.q + 2);
    char have[MAX_SOURCES + 1];
    src[0] = ir_get(k.g, t, d.q), src[1] = ir_get(k.g, t, d.q + 1);
    for (uint32_t i = 0; i < d.q; i++) {
        src[2 + i] = d.u[i];
        src[2 + d.q + i] = mat(&k, str_fmt(k.g->arena, "dh%u", i), k.N, k.C);
        src[2 + 2 * d.q + i] = mat(&k, str_fmt(k.g->arena, "delta%u", i), k.N, 1);
        /* the whole mix has more sources, so a larger lse */
        src[2 + 3 * d.q + i] = ir_binary(k.g, OP_add, ir_slice(k.g, lse, 1, i, i + 1),
                                         mat(&k, str_fmt(k.g->arena, "pos%u", i), k.N, 1));
    }
    memcpy(src + 2 + 4 * d.q, d.v, d.n * sizeof *src);
    size_t n = 2 + 4 * d.q + d.n;
    n += accumulators(&k, d.n, src + n, have);
    return finish(&k,
                  ir_add(k.g, OP_depth_inter_grad, src, n,
                         ATTRS(A_INT(sources, d.n), A_INT(queries, d.q), A_STR(have, have)), NULL));
}

/* ---- loss ---- */

static ir_id logits(struct k *k)
{
    return mat(k, k->option ? "big.logits" : "logits", k->N, k->C);
}

BUILD(cross_entropy)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k,
                  ir_add(k.g, OP_cross_entropy, SRCS(logits(&k), ids(&k, k.C)), NO_ATTRS, NULL));
}

BUILD(cross_entropy_grad)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id x = logits(&k), target = ids(&k, k.C);
    ir_id lse = ir_get(k.g, ir_add(k.g, OP_cross_entropy, SRCS(x, target), NO_ATTRS, NULL), 1);
    return finish(&k, ir_add(k.g, OP_cross_entropy_grad, SRCS(x, target, lse, mat(&k, "d", k.N, 1)),
                             NO_ATTRS, NULL));
}

BUILD(count_valid)
{
    struct k k = start(a, variant, STAGE_T);
    return finish(&k, ir_add(k.g, OP_count_valid, SRCS(ids(&k, 1 + k.option)), NO_ATTRS, NULL));
}

BUILD(head_loss)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id h = mat(&k, "h", k.N, k.C), w = mat(&k, "w", dim_const(k.C2), k.C);
    return finish(&k, ir_add(k.g, OP_head_loss, SRCS(h, w, ids(&k, k.C2), mat(&k, "d", k.N, 1)),
                             ATTRS(A_INT(chunk, k.option ? 16 : 256)), NULL));
}

BUILD(head_nll)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id h = mat(&k, "h", k.N, k.C), w = mat(&k, "w", dim_const(k.C2), k.C);
    return finish(&k, ir_add(k.g, OP_head_nll, SRCS(h, w, ids(&k, k.C2)),
                             ATTRS(A_INT(chunk, k.option ? 16 : 256)), NULL));
}

/* ---- apply ---- */

/* Options: a matrix, a vector, a stack of matrices, and a step that is skipped. */
static ir_type_id weight_type(struct k *k)
{
    struct ir_dim d[3] = {dim_const(3), dim_const(k->C2), dim_const(k->C)};
    return k->option == 1   ? ir_type1(k->g, IR_f32, d[2])
           : k->option == 2 ? type_add(k->g->types, IR_f32, 3, d)
                            : ir_type2(k->g, IR_f32, d[1], d[2]);
}

static ir_id ctl(struct k *k)
{
    return vec(k, k->option == 3 ? "ctl0" : "ctl", 4);
}

BUILD(adamw)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = weight_type(&k);
    ir_id p = input(&k, "p", t), g = input(&k, "g", t), m = input(&k, "m", t),
          v = input(&k, "pos.v", t);
    return finish(&k, ir_add(k.g, OP_adamw, SRCS(p, g, m, v, ctl(&k), vec(&k, "hyper", 4)),
                             ATTRS(A_NUM(beta1, 0.9), A_NUM(beta2, 0.95), A_NUM(eps, 1e-8),
                                   A_NUM(weight_decay, k.option == 1 ? 0 : 0.1)),
                             NULL));
}

BUILD(momentum)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = weight_type(&k);
    ir_id g = input(&k, "g", t), m = input(&k, "m", t);
    return finish(&k, ir_add(k.g, OP_momentum, SRCS(g, m, ctl(&k), vec(&k, "hyper", 4)),
                             ATTRS(A_NUM(momentum, 0.95)), NULL));
}

BUILD(muon_step)
{
    struct k k = start(a, variant, STAGE_T);
    ir_type_id t = weight_type(&k);
    ir_id p = input(&k, "p", t), x = input(&k, "x", t);
    return finish(&k, ir_add(k.g, OP_muon_step, SRCS(p, x, ctl(&k), vec(&k, "hyper", 4)),
                             ATTRS(A_NUM(scale, 1.6), A_NUM(weight_decay, 0.1)), NULL));
}

BUILD(grad_norm)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id loss = scalar(&k, "loss"), x = mat(&k, "g0", dim_const(k.C2), k.C),
          y = vec(&k, "g1", k.C);
    ir_id z = mat(&k, "g2", dim_const(97), 3 * k.C2);
    return finish(&k, ir_add(k.g, OP_grad_norm, SRCS(loss, x, y, z),
                             ATTRS(A_NUM(clip, k.option ? 0.5 : 0)), NULL));
}

/* Two groups of two query heads of three rows, of which the first two or the last one count. */
BUILD(qk_clip)
{
    struct k k = start(a, variant, STAGE_T);
    static const char *const part[] = {"q", "k", "rope", "q"};
    ir_id p = mat(&k, "p", dim_const(20), k.C), top = vec(&k, "pos", 4);
    bool rope = k.option == 2;
    return finish(&k,
                  ir_add(k.g, OP_qk_clip, SRCS(p, top, ctl(&k)),
                         ATTRS(A_INT(index, 5), A_INT(from, rope ? 2 : 0), A_INT(to, rope ? 3 : 2),
                               A_NUM(value, 0.7), A_INT(heads, 4), A_INT(kv_heads, 2),
                               A_INT(head_dim, 3), A_STR(part, part[k.option])),
                         NULL));
}

BUILD(balance)
{
    struct k k = start(a, variant, STAGE_T);
    ir_id bias = vec(&k, "bias", k.C), load = vec(&k, "load", k.C);
    return finish(&k,
                  ir_add(k.g, OP_balance, SRCS(bias, load, vec(&k, k.option ? "ctl0" : "ctl", 4)),
                         ATTRS(A_NUM(rate, 1e-3)), NULL));
}
