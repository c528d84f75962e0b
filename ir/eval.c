#include "eval_op.h"
#include "panel.h"
#include <math.h>

const double *ev_src(const struct eval *e, size_t i)
{
    const struct ir_value *v = &e->node[ir_src(e->g, e->n, (uint32_t)i)];
    CHECK(v->count == 1);
    return v->e[0].v;
}

int64_t ev_count(const struct eval *e, size_t i)
{
    return e->node[ir_src(e->g, e->n, (uint32_t)i)].e[0].n;
}

int64_t ev_dim(const struct eval *e, size_t i, int k)
{
    const struct ir_type *t = ir_ty(e->g, ir_src(e->g, e->n, (uint32_t)i));
    if (k < 0) k += t->rank;
    CHECK(k >= 0 && k < t->rank);
    return dim_value(t->dim[k], e->b);
}

int64_t ev_cols(const struct eval *e, size_t i)
{
    return dim_value(ir_cols(e->g, ir_src(e->g, e->n, (uint32_t)i)), e->b);
}

int64_t ev_rows(const struct eval *e, size_t i)
{
    return dim_value(ir_rows(e->g, ir_src(e->g, e->n, (uint32_t)i)), e->b);
}

double *ev_out(struct eval *e, size_t i)
{
    CHECK(i < e->out.count);
    return e->out.e[i].v;
}

int64_t ev_int(const struct eval *e, enum ir_attr_key k, int64_t absent)
{
    return ir_int(e->g, e->n, k, absent);
}

double ev_num(const struct eval *e, enum ir_attr_key k, double absent)
{
    return ir_num(e->g, e->n, k, absent);
}

int64_t ev_index(const struct eval *e, double v, int64_t limit)
{
    if (!(v >= 0 && v < (double)limit))
        BUG("eval: %%%s: index %g is not below %lld", ir_name(e->g, e->n), v, (long long)limit);
    return (int64_t)v;
}

/* ---- leaves ---- */

static void leaf(struct eval *e)
{
    const char *name = ir_word(e->g, e->n, AK_name, "");
    for (size_t i = 0; i < e->env->nin; i++) {
        const struct ir_named *x = &e->env->in[i];
        if (strcmp(x->name, name)) continue;
        if (x->n != e->out.e[0].n)
            BUG("eval: input %s has %lld elements, not %lld", name, (long long)x->n,
                (long long)e->out.e[0].n);
        if (x->n) memcpy(e->out.e[0].v, x->v, (size_t)x->n * sizeof *x->v);
        return;
    }
    BUG("eval: no input %s", name);
}

/* A row of a matrix in i8; its numbers are float32, as are scale and quotients. */
static void round_i8(double *v, int64_t n)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf((float)v[i]));
    float scale = most / 127;
    for (int64_t i = 0; i < n; i++)
        v[i] = scale > 0 ? (double)rintf((float)v[i] / scale) * (double)scale : 0;
}

/* What the storage of a parameter holds (panel.h). */
static void stored(struct eval *e)
{
    struct ir_array *x = &e->out.e[0];
    enum ir_store s = ir_stored(e->g, e->n);
    int64_t k = ir_ty(e->g, e->n)->rank ? dim_value(ir_cols(e->g, e->n), e->b) : 1;
    bool bf16 = s == STORE_bf16 || s == STORE_rows_bf16;
    for (int64_t i = 0; bf16 && i < x->n; i++) x->v[i] = ev_bf16(x->v[i]);
    for (int64_t i = 0; s == STORE_i8 && i < x->n; i += k) round_i8(x->v + i, k);
}

void eval_param(struct eval *e)
{
    leaf(e);
    stored(e);
}

void eval_input(struct eval *e)
{
    leaf(e);
    stored(e);
}

void eval_const(struct eval *e)
{
    double v = ev_num(e, AK_value, 0);
    for (int64_t i = 0; i < e->out.e[0].n; i++) e->out.e[0].v[i] = v;
}

static void pass(struct eval *e, const struct ir_array *from, uint32_t n)
{
    CHECK(e->out.count == n);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(e->out.e[i].n == from[i].n);
        e->out.e[i] = from[i]; /* values do not change, so they can be shared */
    }
}

void eval_arg(struct eval *e)
{
    int64_t i = ev_int(e, AK_index, -1);
    CHECK(i >= 0 && (size_t)i < e->env->nargs);
    pass(e, e->env->arg[i].e, e->env->arg[i].count);
}

void eval_get(struct eval *e)
{
    const struct ir_value *t = &e->node[ir_src(e->g, e->n, 0)];
    int64_t i = ev_int(e, AK_index, -1);
    CHECK(i >= 0 && i < t->count);
    pass(e, &t->e[i], 1);
}

/* ---- kernels ---- */

void eval_rows(struct eval *e)
{
    const struct ir_graph *r = e->g->region.p[ev_int(e, AK_region, -1)];
    uint32_t nsrc = ir_at(e->g, e->n)->nsrc;
    struct ir_value *arg = NEW(e->a, struct ir_value, nsrc);
    for (uint32_t i = 0; i < nsrc; i++) arg[i] = e->node[ir_src(e->g, e->n, i)];
    struct eval_env env = {e->env->in, e->env->nin, arg, nsrc};
    struct ir_values v = ev_graph(e->a, r, e->b, &env);
    struct ir_array *out = NEW(e->a, struct ir_array, r->out.n);
    for (size_t i = 0; i < r->out.n; i++) out[i] = v.node[r->out.p[i].id].e[0];
    pass(e, out, (uint32_t)r->out.n);
}

void eval_pack(struct eval *e)
{
    pass(e, e->node[ir_src(e->g, e->n, 0)].e, 1);
}

/* ---- the whole ---- */

static void (*const op_fn[OP_COUNT])(struct eval *) = {
#define OP(name, sources, shape, vjp, cost, stages, flags) eval_##name,
#include "op.def"
};

static struct ir_value allocate(struct arena *a, const struct ir_graph *g, ir_type_id type,
                                struct ir_bind b)
{
    const struct ir_type *t = type_get(g->types, type);
    bool tuple = t->dtype == IR_tuple;
    struct ir_value v = {tuple ? t->count : 1, NULL};
    v.e = NEW(a, struct ir_array, v.count);
    for (uint32_t i = 0; i < v.count; i++) {
        v.e[i].n = type_count(g->types, tuple ? type_elem(g->types, type, i) : type, b);
        v.e[i].v = NEW(a, double, v.e[i].n);
    }
    return v;
}

/* Results with `narrow`. Arrays may be shared with what they pass on, so these are new. */
static void round_results(struct eval *e)
{
    for (uint32_t i = 0; i < e->out.count; i++) {
        if (!ir_narrow_result(e->g, e->n, i)) continue;
        struct ir_array *x = &e->out.e[i];
        double *v = NEW(e->a, double, x->n);
        for (int64_t k = 0; k < x->n; k++) v[k] = ev_bf16(x->v[k]);
        x->v = v;
    }
}

struct ir_values ev_graph(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                          const struct eval_env *env)
{
    struct ir_value *node = NEW(a, struct ir_value, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++) {
        struct eval e = {a, g, n, b, env, node, allocate(a, g, ir_at(g, n)->type, b)};
        op_fn[ir_at(g, n)->op](&e);
        round_results(&e);
        node[n] = e.out;
    }
    return (struct ir_values){g, node};
}

struct ir_values ir_eval(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                         const struct ir_named *in, size_t nin)
{
    struct eval_env env = {in, nin, NULL, 0};
    return ev_graph(a, g, b, &env);
}

struct ir_array ir_eval_output(const struct ir_values *v, const char *name)
{
    ir_id n = ir_find_output(v->g, name);
    if (n == IR_NONE || v->node[n].count != 1) BUG("eval: no output %s", name);
    return v->node[n].e[0];
}
