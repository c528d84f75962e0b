/* Row fusion and its CPU kernels: graphs of row operations, written out and random, at odd
 * sizes. Results agree with the float64 evaluator, and fused and unfused programs give the same
 * bits. Products between the regions are done by plain loops here. Golden texts of the pass:
 * tests/ir/fuse_*.ir (UPDATE=1). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <glob.h>
#include <math.h>
#include "abi.h"
#include "codegen/kernel.h"
#include "codegen/text.h"
#include "compiler/pass.h"
#include "eval.h"
#include "row_graphs.h"
#include "runtime/jit.h"
#include "scratch.h"

static struct arena *arena;
static struct jit *jit;

/* ---- a program: the graph, fused and not, and its input values ---- */

struct program {
    const char *name;
    struct ir_graph *g;
    struct ir_graph *k[2]; /* fused, unfused */
    struct ir_bind bind;
    struct ir_named *in;
    size_t nin;
    double tolerance;
};

static void make_inputs(struct program *p)
{
    p->in = NEW(arena, struct ir_named, p->g->node.n);
    for (ir_id n = 0; n < p->g->node.n; n++) {
        if (ir_at(p->g, n)->op != OP_input) continue;
        int64_t count = type_count(p->g->types, ir_at(p->g, n)->type, p->bind);
        double *v = NEW(arena, double, count);
        for (int64_t i = 0; i < count; i++) v[i] = (double)(float)row_graph_uniform();
        p->in[p->nin++] = (struct ir_named){ir_word(p->g, n, AK_name, ""), v, count};
    }
}

/* The text of a graph with regions reads back as the same text. */
static void check_text(const struct ir_graph *g)
{
    struct sb one = {0}, two = {0};
    graph_print(g, NULL, &one);
    struct diag *d = diag_open(arena);
    struct str text = str_of(str_dup(arena, str_of(one.p)));
    struct ir_graph *back = graph_parse(arena, d, diag_file(d, "text", text), text, NULL, NULL);
    assert_non_null(back);
    graph_print(back, NULL, &two);
    assert_string_equal(one.p, two.p);
    sb_free(&one);
    sb_free(&two);
}

static struct program *finish(const char *name, struct ir_graph *g, int64_t rows)
{
    struct program *p = NEW(arena, struct program, 1);
    *p = (struct program){.name = name, .g = g, .bind = {1, rows}, .tolerance = 2e-5};
    const char *why = graph_verify(g, STAGE_T);
    if (why) fail_msg("%s", why);
    make_inputs(p);
    for (int u = 0; u < 2; u++) {
        struct sb report = {0};
        struct pass_ctx c = {.arena = arena, .bind = p->bind, .unfused = u, .report = &report};
        p->k[u] = pass_fuse_rows(&c, g);
        assert_non_null(p->k[u]);
        why = graph_verify(p->k[u], STAGE_K);
        if (why) fail_msg("%s: %s", name, why);
        assert_true(report.n > 0);
        check_text(p->k[u]);
        sb_free(&report);
    }
    return p;
}

/* ---- running stage K ---- */

struct value {
    float *p;
    float **elem; /* of a tuple */
};

static float *memory(size_t floats)
{
    float *p = NEW(arena, float, floats + 16);
    for (size_t i = 0; i < floats + 16; i++) p[i] = nanf("");
    return p;
}

static struct cg_lowering *lower(const struct program *p, int u, ir_id n)
{
    struct cg_lowering *l = NEW(arena, struct cg_lowering, 1);
    cg_cpu_rows(arena, p->k[u], n, p->bind, &(struct cg_target){0}, l);
    return l;
}

static size_t count_of(const struct program *p, int u, ir_type_id t)
{
    return (size_t)type_count(p->k[u]->types, t, p->bind);
}

/* Address of a value that may be a view. */
static float *address(const struct program *p, int u, const struct value *v, ir_id n)
{
    struct ir_view w = ir_view(p->k[u], n);
    const struct ir_node *x = ir_at(p->k[u], w.root);
    float *base = x->op == OP_get
                      ? v[ir_src(p->k[u], w.root, 0)].elem[ir_int(p->k[u], w.root, AK_index, 0)]
                      : v[w.root].p;
    assert_non_null(base);
    return base + dim_value(w.offset, p->bind);
}

/* Where result i of node n goes, and that a concat that alone reads it takes it in place. */
static float *result_place(const struct program *p, int u, struct value *v, ir_id n, uint32_t i)
{
    struct ir_graph *g = p->k[u];
    const struct ir_graph *r = g->region.p[ir_int(g, n, AK_region, 0)];
    ir_type_id type = ir_at(r, r->out.p[i].id)->type;
    if (!r->out.p[i].ld) return memory(count_of(p, u, type));
    ir_id at = n, cat = IR_NONE;
    for (ir_id m = n + 1; m < g->node.n; m++) {
        if (ir_at(g, m)->op == OP_get && ir_src(g, m, 0) == n && ir_int(g, m, AK_index, 0) == i)
            at = m;
        for (uint32_t s = 0; s < ir_at(g, m)->nsrc; s++)
            if (ir_src(g, m, s) == at && ir_at(g, m)->op == OP_concat) cat = m;
    }
    assert_true(cat != IR_NONE && r->out.p[i].ld == ir_cols(g, cat).add);
    if (!v[cat].p) v[cat].p = memory(count_of(p, u, ir_at(g, cat)->type));
    int64_t column = 0;
    for (uint32_t s = 0; ir_src(g, cat, s) != at; s++) column += ir_cols(g, ir_src(g, cat, s)).add;
    return v[cat].p + column;
}

static void run_rows(const struct program *p, int u, struct value *v, ir_id n,
                     const struct jit_kernel *kernel)
{
    struct ir_graph *g = p->k[u];
    struct cg_lowering *l = lower(p, u, n);
    size_t results = ir_ty(g, n)->dtype == IR_tuple ? ir_ty(g, n)->count : 1;
    float **res = NEW(arena, float *, results);
    for (size_t i = 0; i < results; i++) res[i] = result_place(p, u, v, n, (uint32_t)i);
    char *work = NEW(arena, char, l->workspace);
    memset(work, 0xff, l->workspace);
    for (size_t s = 0; s < l->step.n; s++) {
        struct cg_step *st = &l->step.p[s];
        void **q = NEW(arena, void *, st->nref);
        for (size_t i = 0; i < st->nref; i++) {
            struct cg_ref ref = st->ref[i];
            q[i] = ref.kind == CG_SRC   ? (void *)address(p, u, v, ir_src(g, n, ref.index))
                   : ref.kind == CG_RES ? (void *)res[ref.index]
                                        : (void *)(work + ref.offset);
        }
        sa_kernel *fn;
        memcpy(&fn, &kernel[s].fn, sizeof fn);
        void *scratch = arena_alloc(arena, st->scratch + 64, 64, STRATA_SITE);
        int64_t half = st->items / 2; /* in pieces and out of order */
        fn(q, st->num, half, st->items, scratch);
        memset(scratch, 0x7f, st->scratch);
        fn(q, st->num, 0, half, scratch);
    }
    v[n] = (struct value){res[0], res};
}

static void run_matmul(const struct program *p, int u, struct value *v, ir_id n)
{
    struct ir_graph *g = p->k[u];
    ir_id a = ir_src(g, n, 0), b = ir_src(g, n, 1);
    bool ta = ir_int(g, n, AK_ta, 0), tb = ir_int(g, n, AK_tb, 0);
    int64_t m = dim_value(ir_rows(g, n), p->bind), c = ir_cols(g, n).add;
    int64_t k = ta ? dim_value(ir_rows(g, a), p->bind) : ir_cols(g, a).add;
    int64_t lda = ir_view(g, a).ld, ldb = ir_view(g, b).ld;
    const float *x = address(p, u, v, a), *w = address(p, u, v, b);
    float *y = v[n].p = memory((size_t)(m * c));
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < c; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++) {
                float xi = x[ta ? l * lda + i : i * lda + l];
                sum += (double)xi * (double)w[tb ? j * ldb + l : l * ldb + j];
            }
            y[i * c + j] = (float)sum;
        }
}

static void run_concat(const struct program *p, int u, struct value *v, ir_id n)
{
    struct ir_graph *g = p->k[u];
    int64_t rows = dim_value(ir_rows(g, n), p->bind), cols = ir_cols(g, n).add, at = 0;
    if (!v[n].p) v[n].p = memory((size_t)(rows * cols));
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        ir_id s = ir_src(g, n, i);
        int64_t c = ir_cols(g, s).add, ld = ir_view(g, s).ld;
        const float *x = address(p, u, v, s);
        for (int64_t r = 0; r < rows && x != v[n].p + at; r++)
            memcpy(v[n].p + r * cols + at, x + r * ld, (size_t)c * 4);
        at += c;
    }
}

/* Kernels of all `rows` nodes of a program, in the order of the steps. */
static void collect(const struct program *p, int u, struct jit_kernel *list, size_t *n)
{
    for (ir_id i = 0; i < p->k[u]->node.n; i++) {
        if (ir_at(p->k[u], i)->op != OP_rows) continue;
        struct cg_lowering *l = lower(p, u, i);
        for (size_t s = 0; s < l->step.n; s++)
            list[(*n)++] = (struct jit_kernel){l->step.p[s].symbol, l->step.p[s].text, NULL};
    }
}

static struct value *run(const struct program *p, int u, const struct jit_kernel *kernels,
                         size_t *at)
{
    struct ir_graph *g = p->k[u];
    struct value *v = NEW(arena, struct value, g->node.n);
    for (ir_id n = 0; n < g->node.n; n++) {
        switch (ir_at(g, n)->op) {
        case OP_input:
            for (size_t i = 0; i < p->nin; i++) {
                if (strcmp(p->in[i].name, ir_word(g, n, AK_name, ""))) continue;
                v[n].p = memory((size_t)p->in[i].n);
                for (int64_t j = 0; j < p->in[i].n; j++) v[n].p[j] = (float)p->in[i].v[j];
            }
            break;
        case OP_rows: {
            run_rows(p, u, v, n, kernels + *at);
            *at += lower(p, u, n)->step.n;
            break;
        }
        case OP_matmul: run_matmul(p, u, v, n); break;
        case OP_concat: run_concat(p, u, v, n); break;
        case OP_get: v[n].p = address(p, u, v, n); break;
        default: break;
        }
    }
    return v;
}

static void compare(const struct program *p, struct value *const v[2])
{
    struct ir_values want = ir_eval(arena, p->g, p->bind, p->in, p->nin);
    for (size_t o = 0; o < p->g->out.n; o++) {
        const char *name = intern_text(p->g->names, p->g->out.p[o].name);
        struct ir_array w = ir_eval_output(&want, name);
        const float *got[2];
        for (int u = 0; u < 2; u++) got[u] = address(p, u, v[u], ir_find_output(p->k[u], name));
        double big = 0.1, worst = 0;
        for (int64_t i = 0; i < w.n; i++) {
            double off = fabs((double)got[0][i] - w.v[i]);
            if (fabs(w.v[i]) > big) big = fabs(w.v[i]);
            if (!(off <= worst)) worst = off;
        }
        if (!(worst <= p->tolerance * big))
            fail_msg("%s: %s is off by %g of %g", p->name, name, worst, big);
        if (memcmp(got[0], got[1], (size_t)w.n * 4))
            fail_msg("%s: %s: fused and unfused differ", p->name, name);
    }
}

static void check_all(struct program **p, size_t count)
{
    size_t n = 0, at = 0;
    struct jit_kernel *k = NEW(arena, struct jit_kernel, 40000);
    for (size_t i = 0; i < count; i++)
        for (int u = 0; u < 2; u++) collect(p[i], u, k, &n);
    struct rt_error err;
    struct jit_report rep;
    if (jit_load(jit, cg_text_prelude, k, n, &rep, &err)) fail_msg("%s", err.text);
    print_message("%zu programs, %zu kernels, %zu of them different, %.1f s to compile\n", count, n,
                  rep.compiled + rep.cached, rep.seconds);
    for (size_t i = 0; i < count; i++) {
        struct value *v[2];
        for (int u = 0; u < 2; u++) v[u] = run(p[i], u, k, &at);
        compare(p[i], v);
    }
}

/* ---- written-out graphs ---- */

static const int64_t sizes[] = {1, 7, 16, 37, 48, 256, 1000};
static const int64_t row_counts[] = {1, 5, 33, 100};

static void written(void **state)
{
    (void)state;
    struct program *p[3 * 7];
    size_t n = 0;
    for (int c = 0; c < 7; c++) {
        p[n++] = finish("norm", row_graph_norm(arena, sizes[c]), row_counts[c % 4]);
        p[n++] = finish("swiglu", row_graph_swiglu(arena, sizes[c]), row_counts[(c + 1) % 4]);
        p[n++] = finish("mixed", row_graph_mixed(arena, sizes[c]), row_counts[(c + 2) % 4]);
    }
    check_all(p, n);
}

/* ---- random graphs ---- */

static struct program *random_program(unsigned k)
{
    struct ir_graph *g = row_graph_random(arena, k, sizes[k % 7] > 256 ? 130 : sizes[k % 7]);
    struct program *q = finish(g->program, g, row_counts[row_graph_pick(4)]);
    q->tolerance = 1e-3; /* chains of thirty operations */
    return q;
}

static void random_graphs(void **state)
{
    (void)state;
    enum { COUNT = 14 };
    const char *env = getenv("STRATA_TEST_SEED");
    row_graph_seed = env ? strtoull(env, NULL, 10) : 7;
    struct program *p[COUNT];
    for (unsigned i = 0; i < COUNT; i++) p[i] = random_program(i);
    check_all(p, COUNT);
}

/* ---- golden texts ---- */

static void golden(void **state)
{
    (void)state;
    glob_t files;
    assert_int_equal(glob("tests/ir/fuse_*.ir", 0, NULL, &files), 0);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        struct str text, want = {0};
        const char *path = files.gl_pathv[i];
        assert_int_equal(io_read(arena, path, 1 << 20, &text), 0);
        struct diag *d = diag_open(arena);
        struct ir_graph *g = graph_parse(arena, d, diag_file(d, path, text), text, NULL, NULL);
        struct sb out = {0};
        if (!g) {
            diag_print(d, &out);
            fail_msg("%s", out.p);
        }
        struct pass_ctx c = {.arena = arena, .diag = d, .bind = {2, 8}, .report = &out};
        struct ir_graph *k = pass_fuse_rows(&c, g);
        sb_str(&out, "\n");
        graph_print(k, NULL, &out);
        const char *file = str_fmt(arena, "%.*s.want", (int)strlen(path) - 3, path);
        if (getenv("UPDATE")) assert_int_equal(io_write_atomic(file, out.p, out.n), 0);
        assert_int_equal(io_read(arena, file, 1 << 20, &want), 0);
        if (!str_eq(want, (struct str){out.p, out.n})) fail_msg("%s: got\n%s", file, out.p);
        sb_free(&out);
    }
    globfree(&files);
}

static int setup(void **state)
{
    (void)state;
    struct rt_error err;
    arena = arena_open("test_rows");
    if (!scratch_open() || setenv("STRATA_CACHE", in_dir("cache"), 1)) return -1;
    return jit_open(&(struct jit_options){.cpu = getenv("STRATA_TEST_CPU")}, &jit, &err);
}

static int teardown(void **state)
{
    (void)state;
    jit_close(jit);
    scratch_close();
    arena_close(arena);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden),
        cmocka_unit_test(written),
        cmocka_unit_test(random_graphs),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
