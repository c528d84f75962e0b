/* Text form, builder and verifier of the IR. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "fd.h"
#include "op_cases.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static struct str text_of(struct arena *a, const struct ir_graph *g)
{
    struct sb s = {0};
    graph_print(g, NULL, &s);
    return sb_take(&s, a);
}

/* NULL with *said = the diagnostics, on a mistake. */
static struct ir_graph *parse(struct arena *a, const char *text, const char **said)
{
    struct diag *d = diag_open(a);
    struct str t = {text, strlen(text)};
    struct ir_graph *g = graph_parse(a, d, diag_file(d, "x.ir", t), t, NULL, NULL);
    struct sb s = {0};
    diag_print(d, &s);
    sb_char(&s, ' ');
    *said = sb_take(&s, a).p;
    return g;
}

static struct ir_graph *parse_well(struct arena *a, const char *text)
{
    const char *said;
    struct ir_graph *g = parse(a, text, &said);
    if (!g) fail_msg("%s\nin\n%s", said, text);
    return g;
}

/* print(parse(print(g))) = print(g), and what was read is a graph of g's stage. */
static struct ir_graph *round_trip(struct arena *a, struct ir_graph *g, const char *what)
{
    struct str before = text_of(a, g);
    struct ir_graph *h = parse_well(a, before.p);
    struct str after = text_of(a, h);
    if (!str_eq(before, after)) fail_msg("%s:\n%s\nbecame\n%s", what, before.p, after.p);
    const char *why = graph_verify(h, g->stage);
    if (why) fail_msg("%s: %s", what, why);
    assert_true(graph_hash(g) == graph_hash(h));
    assert_int_equal(g->node.n, h->node.n);
    return h;
}

/* ---- text ---- */

static void cases_round_trip(void **state)
{
    (void)state;
    for (size_t i = 0; i < op_case_count; i++)
        for (int v = 0; v < op_cases[i].variants; v++) {
            struct arena *a = arena_open("case");
            struct ir_graph *g = op_cases[i].build(a, v);
            struct ir_graph *h = round_trip(a, g, op_cases[i].name);
            if (v < OP_CASE_SIZES / 2) { /* and computes the same */
                size_t n;
                struct ir_named *in = op_case_inputs(a, g, op_case_bind(v), 4, &n);
                struct ir_values x = ir_eval(a, g, op_case_bind(v), in, n);
                struct ir_values y = ir_eval(a, h, op_case_bind(v), in, n);
                for (size_t k = 0; k < g->out.n; k++) {
                    const char *name = intern_text(g->names, g->out.p[k].name);
                    struct ir_array p = ir_eval_output(&x, name), q = ir_eval_output(&y, name);
                    assert_memory_equal(p.v, q.v, (size_t)p.n * sizeof(double));
                }
            }
            arena_close(a);
        }
}

/* A random graph: repeated names, numbers of all kinds, stateful ops, tuples, regions with strides.
 */
static struct ir_graph *random_graph(struct arena *a, uint64_t *state)
{
    static const char *const names[] = {NULL, "x", "model.layers.0.mlp", "x.y", "a-b_c", "7th"};
    static const double numbers[] = {0.1,   -0.0, 1.0 / 3,  1e-300, 5e-324, 1.7976931348623157e308,
                                     -1e22, 3.0,  HUGE_VAL, -2.5};
    struct ir_graph *g = graph_open(a, "random", STAGE_T, NULL, NULL);
    ir_type_id t =
        ir_type2(g, IR_f32, dim_sym(SYM_N, 1 + (int)(3 * fabs(fd_random(state)))), dim_const(6));
    ir_id ctl = ir_add_typed(g, OP_input, ir_type1(g, IR_f32, dim_const(4)), NO_SRCS,
                             ATTRS(A_STR(name, "ctl")), "ctl");
    ir_id v[64] = {ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, "x.0")), "x")};
    size_t n = 1, steps = 2 + (size_t)(60 * fabs(fd_random(state)));
    while (n < steps) {
        ir_id p = v[(size_t)((double)n * fabs(fd_random(state)))];
        ir_id q = v[(size_t)((double)n * fabs(fd_random(state)))];
        const char *name = names[(size_t)(6 * fabs(fd_random(state)))];
        int what = (int)(6 * fabs(fd_random(state)));
        ir_id x = p;
        if (what == 0) x = ir_add(g, OP_mul, SRCS(p, q), NO_ATTRS, name);
        if (what == 1)
            x = ir_binary(g, OP_add, p,
                          ir_const(g, numbers[(size_t)(10 * fabs(fd_random(state)))]));
        if (what == 2) x = ir_add(g, OP_tanh, SRCS(p), NO_ATTRS, name);
        if (what == 3)
            ir_get(g,
                   ir_add(g, OP_grad_norm, SRCS(ir_const(g, 1), p, ctl), ATTRS(A_NUM(clip, 0.1)),
                          name),
                   0);
        if (what == 4) {
            ir_id parts[] = {ir_slice(g, p, 1, 0, 2), ir_slice(g, q, 1, 2, 6)};
            x = ir_add(g, OP_concat, parts, 2, ATTRS(A_INT(axis, 1)), name);
        }
        if (what == 5)
            x = ir_add_instance(g, OP_exp, t, SRCS(p), NO_ATTRS,
                                1 + (uint32_t)(3 * fabs(fd_random(state))), name);
        v[n++] = x;
    }
    ir_output(g, "out", v[n - 1]);
    ir_output(g, "other.out-1", v[n / 2]);
    vec_last(&g->out).ld = 12;
    return g;
}

static void random_graphs_round_trip(void **state)
{
    (void)state;
    uint64_t seed = 77;
    for (int i = 0; i < 300; i++) {
        struct arena *a = arena_open("random");
        round_trip(a, random_graph(a, &seed), str_fmt(a, "random %d", i));
        arena_close(a);
    }
}

/* Text that the printer writes so, comments and blank lines aside. */
static void canonical_text(void **state)
{
    (void)state;
    struct arena *a = arena_open("text");
    const char *said = "graph train stage K\n"
                       "%w : f32[256] = param {name=model.norm.weight}\n"
                       "%x : f32[2N+3,4] = input {name=x}\n"
                       "%2 : f32[2N+3,4] = exp %x {#5}\n"
                       "%3 : f32[2N+3,4] = exp %x {#2}\n"
                       "%4 : f32[2N+3,4] = exp %x\n"
                       "%5 : (f32[2N+3,4], f32[2N+3,1]) = rows %2, %3, %4 {region=0}\n"
                       "%6 : f32[2N+3,1] = get %5 {index=1}\n"
                       "%x'1 : f32[] = const {value=-0.1}\n"
                       "out y = %6 {ld=8}\n"
                       "region 0 body {\n"
                       "  %0 : f32[2N+3,4] = arg {index=0}\n"
                       "  %1 : f32[2N+3,1] = rowmax %0\n"
                       "  out a = %0\n"
                       "  out b = %1\n"
                       "}\n";
    assert_string_equal(text_of(a, parse_well(a, said)).p, said);
    const char *loose =
        "\n; a comment\ngraph  train   stage K ; more\n\n  %a:f32[2]=input{name=a}\n"
        "%b : f32[2] =  add %a,%a ; x\n\nout o=%b\n\n";
    assert_string_equal(text_of(a, parse_well(a, loose)).p,
                        "graph train stage K\n%a : f32[2] = input {name=a}\n"
                        "%b : f32[2] = add %a, %a\nout o = %b\n");
    arena_close(a);
}

#define HEAD "graph g stage T\n%x : f32[N,4] = input {name=x}\n"
static const struct {
    const char *text, *said;
} mistakes[] = {
    {"", "1:1: error: graph NAME stage S expected"},
    {"graph", "graph NAME stage S expected"},
    {"graph g", "stage expected"},
    {"graph g stage ", "1:15: error: stage T, K or P expected"},
    {"graph g stage Q\n", "stage T, K or P expected"},
    {HEAD "%y = exp %x\n", "3:4: error: %name : type expected"},
    {HEAD "%y : f33[2] = exp %x\n", "3:6: error: a type expected"},
    {HEAD "%y : f32[N,1,1,1,1] = exp %x\n", "a type expected"},
    {HEAD "%y : f32[N,-4] = exp %x\n", "a type expected"},
    {HEAD "%y : f32[99999999999999999999] = exp %x\n", "a type expected"},
    {HEAD "%y : f32[9999999999N] = exp %x\n", "a type expected"},
    {HEAD "%y : ((f32[])) = exp %x\n", "a type expected"},
    {HEAD "%y : (f32[] = exp %x\n", "a type expected"},
    {HEAD "%y : f32[N,4] exp %x\n", "= expected"},
    {HEAD "%y : f32[N,4] = expp %x\n", "no such operation"},
    {HEAD "%y : f32[N,4] = exp %z\n", "3:22: error: no such value"},
    {HEAD "%y : f32[N,4] = exp x\n", "wrong number of operands"},
    {HEAD "%y : f32[N,4] = exp %y\n", "no such value"},
    {HEAD "%y : f32[N,4] = exp\n", "wrong number of operands"},
    {HEAD "%y : f32[N,4] = exp %x, %x\n", "wrong number of operands"},
    {HEAD "%y : f32[N,5] = exp %x\n", "the type is not what the operands give"},
    {HEAD "%y : f32[N,4] = exp %x {colour=3}\n", "key=value expected"},
    {HEAD "%y : f32[N,4] = exp %x {k}\n", "key=value expected"},
    {HEAD "%y : f32[N,4] = exp %x {k=}\n", "a number expected"},
    {HEAD "%y : f32[N,4] = exp %x {k=1, k=2}\n", "an attribute is given twice"},
    {HEAD "%y : f32[N,4] = exp %x {k=1\n", "key=value expected"},
    {HEAD "%y : f32[N,4] = exp %x !\n", "end of line expected"},
    {HEAD "%y : f32[N,2] = slice %x {axis=1, from=2, to=5}\n", "slice: out of range"},
    {HEAD "%y : f32[2,4] = slice %x {axis=0, from=0, to=2}\n",
     "slice: the axis has a run-time size"},
    {HEAD "%y : f32[N,3] = reshape %x\n", "reshape: element counts differ"},
    {HEAD "%y : f32[1000000000000,1000000000000,1000000000000] = reshape %x\n", "counts differ"},
    {HEAD "%y : f32[N,4] = matmul %x, %x\n", "matmul: inner sizes differ"},
    {HEAD "%y : f32[N,4] = get %x {index=0}\n", "get needs a tuple"},
    {HEAD "%y : f32[3] = input {name=y}\n%z : f32[N,4] = add %x, %y\n",
     "operands do not broadcast"},
    {HEAD "%y : f32[N,4] = depth_mix %x {sources=9223372036854775807}\n", "number of sources"},
    {HEAD "%y : f32[N,4] = depth_inter_grad %x, %x {sources=9223372036854775807, queries=4}\n",
     "depth_inter_grad: operands"},
    {HEAD "out o = %y\n", "no such value"},
    {HEAD "out o %x\n", "out name = %value expected"},
    {HEAD "out o = %x\nout o = %x\n", "two outputs of one name"},
    {HEAD "out o = %x {k=3}\n", "an output has no attribute but ld"},
    {HEAD "region 0 r\n", "region"},
    {HEAD "region 0 r {\n%a : f32[] = exp %x\n}\n", "no such value"},
    {HEAD "region 0 r {\n", "} expected"},
    {HEAD "}\n", "3:1: error: a value, an output or a region expected"},
};

static void parse_mistakes(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mistakes / sizeof *mistakes; i++) {
        struct arena *a = arena_open("mistake");
        const char *said;
        if (parse(a, mistakes[i].text, &said))
            fail_msg("read without a word:\n%s", mistakes[i].text);
        if (!strstr(said, mistakes[i].said) || !strstr(said, "x.ir:"))
            fail_msg("%s\ndoes not say '%s' but\n%s", mistakes[i].text, mistakes[i].said, said);
        arena_close(a);
    }
}

/* Damaged texts of every case are read or refused, never worse; what is read prints and reads
 * again. */
static void damaged_text(void **state)
{
    (void)state;
    static const char junk[] = "%,:=(){}[]#;\n 0129NTBxf32aki-.'\\\"\0";
    uint64_t seed = 3;
    size_t well = 0, all = 0;
    for (size_t i = 0; i < op_case_count; i++)
        for (int v = 0; v < op_cases[i].variants; v += 3)
            for (int k = 0; k < 12; k++) {
                struct arena *a = arena_open("damage");
                struct str t = text_of(a, op_cases[i].build(a, v));
                char *p = str_dup(a, t);
                for (int m = 0; m <= k % 3; m++) {
                    size_t at = (size_t)((double)t.n * fabs(fd_random(&seed)));
                    size_t from = (size_t)((double)t.n * fabs(fd_random(&seed)));
                    size_t len = (size_t)(12 * fabs(fd_random(&seed)));
                    p[at] = junk[(size_t)((double)(sizeof junk - 1) * fabs(fd_random(&seed)))];
                    if (k > 5 && at + len < t.n && from + len < t.n) memmove(p + at, p + from, len);
                }
                const char *said;
                struct ir_graph *g = parse(a, p, &said);
                all++;
                if (g) {
                    well++;
                    struct str once = text_of(a, g);
                    struct str twice = text_of(a, parse_well(a, once.p));
                    if (!str_eq(once, twice)) fail_msg("%s\nbecame\n%s", once.p, twice.p);
                    (void)graph_verify(g, g->stage);
                }
                arena_close(a);
            }
    assert_true(well > 50 && well < all);
}

/* ---- builder ---- */

static void equal_nodes_are_one(void **state)
{
    (void)state;
    struct arena *a = arena_open("cse");
    struct ir_graph *g = graph_open(a, "cse", STAGE_T, NULL, NULL);
    ir_type_id t = ir_type2(g, IR_f32, dim_sym(SYM_N, 1), dim_const(4));
    ir_id x = ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, "x")), "x");
    ir_id y = ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, "y")), "y");
    assert_int_not_equal(x, y);
    assert_int_equal(x, ir_add_typed(g, OP_input, t, NO_SRCS, ATTRS(A_STR(name, "x")), "again"));
    assert_string_equal(ir_name(g, x), "x"); /* keeps its first name */
    assert_int_equal(ir_binary(g, OP_add, x, y), ir_binary(g, OP_add, y, x));
    assert_int_not_equal(ir_binary(g, OP_sub, x, y), ir_binary(g, OP_sub, y, x));
    assert_int_equal(ir_slice(g, x, 1, 0, 2), ir_slice(g, x, 1, 0, 2));
    assert_int_not_equal(ir_slice(g, x, 1, 0, 2), ir_slice(g, x, 1, 1, 3));
    assert_int_equal(ir_matmul(g, x, y, false, true, NULL),
                     ir_add(g, OP_matmul, SRCS(x, y), ATTRS(A_INT(tb, 1), A_INT(ta, 0)), NULL));
    assert_int_equal(ir_const(g, 0.1), ir_const(g, 0.1));
    assert_int_not_equal(ir_const(g, 0.0), ir_const(g, -0.0));

    /* what folds */
    assert_int_equal(ir_binary(g, OP_mul, x, ir_const(g, 1)), x);
    assert_int_equal(ir_binary(g, OP_mul, ir_const(g, 1), x), x);
    assert_int_equal(ir_binary(g, OP_div, x, ir_const(g, 1)), x);
    assert_int_not_equal(ir_binary(g, OP_div, ir_const(g, 1), x), x);
    assert_int_equal(ir_binary(g, OP_add, x, ir_const(g, 0)), x);
    assert_int_equal(ir_binary(g, OP_sub, x, ir_const(g, 0)), x);
    assert_int_not_equal(ir_binary(g, OP_sub, ir_const(g, 0), x), x);
    assert_int_equal(ir_unary(g, OP_neg, ir_unary(g, OP_neg, x)), x);
    assert_int_equal(ir_reshape(g, x, t), x);
    ir_id one = ir_add_typed(g, OP_const, t, NO_SRCS, ATTRS(A_NUM(value, 1)), NULL);
    assert_int_not_equal(ir_binary(g, OP_mul, ir_const(g, 3), one),
                         ir_const(g, 3)); /* it spreads */

    assert_null(graph_verify(g, STAGE_T));

    /* what must not merge */
    ir_id ctl = ir_add_typed(g, OP_input, ir_type1(g, IR_f32, dim_const(4)), NO_SRCS,
                             ATTRS(A_STR(name, "ctl")), NULL);
    const ir_id s[] = {x, y, ctl, ctl};
    ir_id m = ir_add(g, OP_momentum, s, 4, ATTRS(A_NUM(momentum, 0.9)), NULL);
    assert_int_not_equal(m, ir_add(g, OP_momentum, s, 4, ATTRS(A_NUM(momentum, 0.9)), NULL));
    ir_id e = ir_unary(g, OP_exp, x),
          clone = ir_add_instance(g, OP_exp, t, SRCS(x), NO_ATTRS, 9, NULL);
    assert_int_not_equal(e, clone);
    assert_int_equal(clone, ir_add_instance(g, OP_exp, t, SRCS(x), NO_ATTRS, 9, NULL));
    assert_int_equal(e, ir_unary(g, OP_exp, x));
    arena_close(a);
}

static void types(void **state)
{
    (void)state;
    struct arena *a = arena_open("types");
    struct ir_types *t = types_open(a);
    static const char *const text[] = {"f32[]",     "bf16[7]",      "f32[N,256]",
                                       "i32[2N+1]", "f64[B,T,3,4]", "(f32[N,4], i32[N,2])",
                                       "()",        "(f32[])",      "f32[0]"};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        const char *at = text[i];
        ir_type_id id, again;
        assert_true(type_parse(t, &at, &id));
        assert_int_equal(*at, 0);
        struct sb s = {0};
        type_print(t, id, &s);
        assert_string_equal(s.p, text[i]);
        sb_free(&s);
        at = text[i];
        assert_true(type_parse(t, &at, &again));
        assert_int_equal(id, again);
    }
    const struct ir_bind b = {3, 5};
    assert_int_equal(dim_value((struct ir_dim){1, 2, SYM_N}, b), 31);
    assert_int_equal(dim_value(dim_sym(SYM_B, 2), b), 6);
    assert_int_equal(dim_value(dim_sym(SYM_T, 1), b), 5);
    assert_int_equal(dim_value(dim_const(8), b), 8);
    const struct ir_dim d[3] = {dim_sym(SYM_N, 1), dim_const(4), dim_const(6)};
    ir_type_id id = type_add(t, IR_f32, 3, d);
    assert_int_equal(type_count(t, id, b), 15 * 24);
    assert_true(dim_eq(type_rows(t, id), dim_sym(SYM_N, 4)) && type_cols(t, id).add == 6);
    arena_close(a);
}

/* ---- verifier ---- */

static void expect(struct ir_graph *g, enum ir_stage stage, const char *want)
{
    const char *why = graph_verify(g, stage);
    if (!why) fail_msg("not noticed: %s", want);
    if (!strstr(why, want)) fail_msg("'%s' instead of '%s'", why, want);
}

/* Each mistake is made in a fresh copy of this graph. */
static const char sound[] =
    "graph g stage T\n"
    "%p : f32[4] = input {name=p}\n"
    "%ctl : f32[4] = input {name=ctl}\n"
    "%q : f32[4] = exp %p\n"
    "%m : (f32[4], f32[4]) = momentum %q, %p, %ctl, %ctl {momentum=0.9, #1}\n"
    "%n : f32[4] = get %m {index=1}\n"
    "out n = %n\n";

static void broken_graphs(void **state)
{
    (void)state;
    struct arena *a = arena_open("broken");
    struct ir_graph *g = parse_well(a, sound);
    assert_null(graph_verify(g, STAGE_T));

    g->node.p[2].type = ir_type1(g, IR_f32, dim_const(5));
    expect(g, STAGE_T, "node 2 (exp %q): type is not what the operands give");
    g = parse_well(a, sound);
    g->edge.p[g->node.p[2].src] = 3;
    expect(g, STAGE_T, "operand is not earlier");
    g = parse_well(a, sound);
    g->edge.p[g->node.p[2].src] = 2;
    expect(g, STAGE_T, "operand is not earlier");
    g = parse_well(a, sound);
    g->node.p[2].nsrc = 0;
    expect(g, STAGE_T, "wrong number of operands");
    g = parse_well(a, sound);
    g->node.p[2].op = OP_COUNT;
    expect(g, STAGE_T, "no such operation");
    g = parse_well(a, sound);
    g->out.p[0].id = 99;
    expect(g, STAGE_T, "an output that does not exist");
    g = parse_well(a, sound);
    vec_push(a, &g->out, g->out.p[0]);
    expect(g, STAGE_T, "two outputs of one name");
    g = parse_well(a, sound); /* momentum replaces %p */
    ir_output(g, "late", ir_unary(g, OP_tanh, 0));
    expect(g, STAGE_T, "a replaced value is read afterwards");

    g = parse_well(a, sound); /* also through a view made before */
    ir_id view = ir_reshape(g, 0, ir_type2(g, IR_f32, dim_const(1), dim_const(4)));
    struct ir_node m = g->node.p[3], n = g->node.p[4];
    g->node.p[3] = g->node.p[view], g->node.p[view] = n, g->node.p[4] = m;
    g->edge.p[n.src] = 4, g->out.p[0].id = view;
    assert_null(graph_verify(g, STAGE_T));
    ir_output(g, "late", ir_unary(g, OP_tanh, 3));
    expect(g, STAGE_T, "a replaced value is read afterwards");
    g = parse_well(a, sound);
    ir_output(g, "late", 0);
    expect(g, STAGE_T, "a replaced value is read afterwards");

    const char *rows = "graph g stage K\n%x : f32[N,4] = input {name=x}\n"
                       "%y : f32[N,4] = rows %x {region=0}\nout y = %y\n"
                       "region 0 r {\n%a : f32[N,4] = arg {index=0}\nout a = %a\n}\n";
    g = parse_well(a, rows);
    assert_null(graph_verify(g, STAGE_K));
    expect(g, STAGE_T, "operation is not legal in this stage");
    g->region.n = 0;
    expect(g, STAGE_K, "no such region");
    g = parse_well(a, rows);
    g->region.p[0]->node.p[0].op = OP_exp;
    expect(g, STAGE_K, "wrong number of operands");
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cases_round_trip),
        cmocka_unit_test(random_graphs_round_trip),
        cmocka_unit_test(canonical_text),
        cmocka_unit_test(parse_mistakes),
        cmocka_unit_test(damaged_text),
        cmocka_unit_test(equal_nodes_are_one),
        cmocka_unit_test(types),
        cmocka_unit_test(broken_graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
