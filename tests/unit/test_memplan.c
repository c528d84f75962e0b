/* The memory planner on random graphs: a shadow memory in which every element of every value
 * carries the value's number is written and read in node order, as the kernels would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "codegen/kernel.h"
#include "compiler/memplan.h"
#include "compiler/memplan_place.h"
#include "random_graph.h"

/* ---- shadow memory ---- */

struct shadow {
    const struct memplan *p;
    uint32_t *word[SA_external];
};

struct area { /* rows of words */
    uint32_t *at;
    int64_t rows, cols, ld;
};

static struct area area_of(const struct shadow *s, struct sa_buf at, ir_type_id type, int64_t ld)
{
    const struct ir_types *types = s->p->g->types;
    assert_int_equal(at.offset % 4, 0);
    struct area x = {s->word[at.arena] + at.offset / 4,
                     dim_value(type_rows(types, type), s->p->bind),
                     dim_value(type_cols(types, type), s->p->bind), ld};
    return x;
}

static void put(struct area x, uint32_t tag)
{
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) x.at[r * x.ld + c] = tag;
}

static bool holds(struct area x, uint32_t tag)
{
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++)
            if (x.at[r * x.ld + c] != tag) return false;
    return true;
}

static ir_id tag_of(const struct ir_graph *g, ir_id n)
{
    return 1 + ir_view(g, n).root; /* a get stands for its element */
}

static bool view(const struct ir_graph *g, ir_id n)
{
    return ir_at(g, n)->op == OP_get || ir_at(g, n)->op == OP_slice;
}

static ir_id get_of(const struct ir_graph *g, ir_id n, uint32_t i)
{
    if (ir_ty(g, n)->dtype != IR_tuple) return n;
    for (ir_id m = n; m < g->node.n; m++)
        if (ir_at(g, m)->op == OP_get && ir_src(g, m, 0) == n && ir_int(g, m, AK_index, 0) == i)
            return m;
    return (ir_id)g->node.n + n; /* a number of its own */
}

static void read_operands(const struct shadow *s, ir_id n)
{
    const struct ir_graph *g = s->p->g;
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        ir_id x = ir_src(g, n, i), of = ir_view(g, x).root;
        int64_t ld = ir_view(g, x).ld;
        ir_id from = ir_at(g, of)->op == OP_get ? ir_src(g, of, 0) : of;
        uint32_t index = from == of ? 0 : (uint32_t)ir_int(g, of, AK_index, 0);
        if (of == x && !(op_info((enum ir_op)ir_at(g, of)->op)->flags & F_LEAF) &&
            cg_concat_of(g, from, index) == n)
            ld = cg_result_ld(g, from, index);
        if (!holds(area_of(s, memplan_value(s->p, x), ir_at(g, x)->type, ld ? ld : 1),
                   tag_of(g, x)))
            fail_msg("node %u: operand %u (node %u) is overwritten", n, i, x);
    }
}

static void run_node(const struct shadow *s, ir_id n, const size_t *work)
{
    const struct ir_graph *g = s->p->g;
    if (view(g, n) || !memplan_has(s->p, n)) return;
    struct area w = {0};
    if (work[n]) {
        struct sa_buf at = memplan_work(s->p, n);
        w = (struct area){s->word[at.arena] + at.offset / 4, 1, (int64_t)work[n] / 4, 0};
        put(w, UINT32_MAX);
    }
    read_operands(s, n);
    uint32_t count = ir_ty(g, n)->dtype == IR_tuple ? ir_ty(g, n)->count : 1;
    for (int check = 0; check < 2; check++)
        for (uint32_t i = 0; i < count; i++) {
            ir_type_id t = ir_at(g, n)->type;
            if (ir_ty(g, n)->dtype == IR_tuple) t = type_elem(g->types, t, i);
            int64_t ld = op_info((enum ir_op)ir_at(g, n)->op)->flags & F_LEAF
                             ? ir_cols(g, n).add
                             : cg_result_ld(g, n, i);
            struct area x = area_of(s, memplan_result(s->p, n, i), t, ld);
            if (!check)
                put(x, 1 + get_of(g, n, i));
            else if (!holds(x, 1 + get_of(g, n, i)))
                fail_msg("node %u: results overlap", n);
        }
    if (!holds(w, UINT32_MAX)) fail_msg("node %u: its workspace is overwritten", n);
}

static void run_plan(const struct memplan *p, const size_t *work, struct arena *a)
{
    struct shadow s = {.p = p};
    for (int i = 0; i < SA_external; i++) s.word[i] = NEW(a, uint32_t, p->bytes[i] / 4 + 1);
    for (ir_id n = 0; n < p->g->node.n; n++) run_node(&s, n, work);
    for (size_t i = 0; i < p->copy.n; i++) {
        struct mem_copy c = p->copy.p[i];
        const uint32_t *from = s.word[c.from.arena] + c.from.offset / 4;
        uint32_t *to = s.word[c.to.arena] + c.to.offset / 4;
        for (int64_t r = 0; r < c.rows; r++)
            memcpy(to + r * c.cols, from + r * c.ld, (size_t)c.cols * 4);
    }
    for (size_t i = 0; i < p->g->out.n; i++) {
        const char *name = intern_text(p->g->names, p->g->out.p[i].name);
        for (size_t k = 0; k < p->named.n; k++)
            if (!strcmp(p->named.p[k].name, name)) {
                ir_id n = p->named.p[k].node;
                struct area x =
                    area_of(&s, p->named.p[k].at, ir_at(p->g, n)->type, ir_cols(p->g, n).add);
                if (!holds(x, tag_of(p->g, n))) fail_msg("output %s is not in its place", name);
            }
    }
}

static void random_graphs_keep_their_values(void **state)
{
    (void)state;
    double most = 0;
    for (uint64_t i = 0; i < 300; i++) {
        struct arena *a = arena_open("test");
        struct ir_graph *g = random_graph(a, i, STAGE_K, "");
        assert_null(graph_verify(g, STAGE_K));
        size_t *work = NEW(a, size_t, g->node.n);
        for (ir_id n = 0; n < g->node.n; n++)
            if (ir_at(g, n)->op == OP_depth_mix_grad || ir_at(g, n)->op == OP_matmul)
                work[n] = 4 * random_below(200);
        struct layout l;
        layout_init(&l, a);
        struct memplan *p = memplan_make(
            a, g, (struct ir_bind){1 + random_below(3), 1 + random_below(7)}, work, &l);
        assert_null(memplan_check(p, a));
        assert_true(p->bytes[SA_scratch] >= p->live);
        if (p->live && (double)p->bytes[SA_scratch] / (double)p->live > most)
            most = (double)p->bytes[SA_scratch] / (double)p->live;
        run_plan(p, work, a);
        arena_close(a);
    }
    print_message("scratch is at most %.3f of what is alive\n", most);
    assert_true(most < 1.2);
}

/* ---- single rules ---- */

static void optimiser_works_in_place(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct random_maker m = {
        .a = a, .prefix = "", .g = graph_open(a, "apply", STAGE_K, NULL, NULL)};
    ir_type_id t = ir_type1(m.g, IR_f32, dim_const(10)), four = ir_type1(m.g, IR_f32, dim_const(4));
    ir_id p = random_leaf(&m, OP_input, "p", t), gr = random_leaf(&m, OP_input, "grad.p", t);
    ir_id m1 = random_leaf(&m, OP_input, "m.p", t), v1 = random_leaf(&m, OP_input, "v.p", t);
    ir_id ctl = random_leaf(&m, OP_input, "ctl", four),
          hyper = random_leaf(&m, OP_input, "hyper", four);
    ir_id s = ir_add(m.g, OP_adamw, SRCS(p, gr, m1, v1, ctl, hyper),
                     ATTRS(A_NUM(beta1, .9), A_NUM(beta2, .99), A_NUM(eps, 1e-8)), NULL);
    ir_output(m.g, "new.p", ir_get(m.g, s, 0));
    ir_output(m.g, "new.m.p", ir_get(m.g, s, 1));
    ir_output(m.g, "new.v.p", ir_get(m.g, s, 2));
    struct layout l;
    layout_init(&l, a);
    size_t *work = NEW(a, size_t, m.g->node.n);
    struct memplan *x = memplan_make(a, m.g, (struct ir_bind){1, 1}, work, &l);
    assert_int_equal(x->copy.n, 0);
    assert_int_equal(x->bytes[SA_scratch], 0);
    assert_int_equal(memplan_result(x, s, 0).offset, layout_find(&l, "p")->offset);
    assert_int_equal(memplan_result(x, s, 2).offset, layout_find(&l, "v.p")->offset);
    assert_null(layout_find(&l, "new.p"));
    assert_int_equal(x->bytes[SA_persistent], 6 * 64);
    arena_close(a);
}

static void programs_share_names(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct layout l;
    layout_init(&l, a);
    uint64_t w0[2];
    for (int i = 0; i < 2; i++) {
        struct random_maker m = {
            .a = a, .prefix = "", .g = graph_open(a, i ? "b" : "a", STAGE_K, NULL, NULL)};
        ir_id x = random_leaf(&m, OP_input, "x", random_matrix(&m, 8));
        if (i) random_leaf(&m, OP_param, "other", ir_type1(m.g, IR_f32, dim_const(100)));
        ir_output(m.g, "y", random_product(&m, x, 8));
        size_t *work = NEW(a, size_t, m.g->node.n);
        struct memplan *p = memplan_make(a, m.g, (struct ir_bind){2, 3}, work, &l);
        w0[i] = layout_find(&l, "w0")->offset;
        assert_int_equal(p->bytes[SA_slot], 2 * (2 * 3 * 8 * 4));
        assert_null(layout_find(&l, "x"));
    }
    assert_int_equal(w0[0], w0[1]);
    assert_int_equal(l.bytes, 256 + 448);
    arena_close(a);
}

static void pieces_lie_in_their_concat(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct random_maker m = {.a = a, .prefix = "", .g = graph_open(a, "c", STAGE_K, NULL, NULL)};
    ir_id x = random_leaf(&m, OP_input, "x", random_matrix(&m, 8));
    ir_id one = random_product(&m, x, 8), two = random_product(&m, x, 16);
    ir_id c = ir_add(m.g, OP_concat, SRCS(one, x, two), ATTRS(A_INT(axis, 1)), NULL);
    ir_output(m.g, "y", c);
    struct layout l;
    layout_init(&l, a);
    size_t *work = NEW(a, size_t, m.g->node.n);
    struct memplan *p = memplan_make(a, m.g, (struct ir_bind){1, 5}, work, &l);
    struct sa_buf at = memplan_value(p, c);
    assert_int_equal(at.arena, SA_slot);
    assert_int_equal(memplan_value(p, one).offset, at.offset);
    assert_int_equal(memplan_value(p, two).offset, at.offset + 16 * 4);
    assert_int_equal(p->bytes[SA_scratch], 0);
    arena_close(a);
}

/* Random blocks; of `nested` ones the lives lie in each other, as in training. */
static void pack_blocks(int n, int nested, uint32_t end, double most)
{
    struct arena *a = arena_open("test");
    struct mem_block *b = NEW(a, struct mem_block, n);
    for (int i = 0; i < n; i++) {
        b[i] = (struct mem_block){64u * (1 + random_below(50)), random_below(end), 0, 0};
        b[i].last = b[i].first + random_below(60);
        if (i >= nested) continue;
        b[i].first = random_below(end / 2);
        b[i].last = end - b[i].first;
    }
    uint64_t got = memplan_place(a, b, (size_t)n), live = memplan_live(a, b, (size_t)n);
    assert_true((double)got < most * (double)live);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < i; k++)
            assert_true(b[i].first > b[k].last || b[k].first > b[i].last ||
                        b[i].offset >= b[k].offset + b[k].bytes ||
                        b[k].offset >= b[i].offset + b[i].bytes);
    arena_close(a);
}

static void packing_is_tight(void **state)
{
    (void)state;
    random_seed = 5;
    pack_blocks(400, 0, 1000, 1.1);
    pack_blocks(400, 200, 1000, 1.1);
    pack_blocks(4000, 0, 10000, 1.25); /* more than are packed in several orders */
    pack_blocks(4000, 2000, 10000, 1.05);
}

static void overlaps_are_found(void **state)
{
    (void)state;
    struct arena *a = arena_open("test");
    struct ir_graph *g = graph_open(a, "p", STAGE_K, NULL, NULL);
    struct memplan p = {.g = g};
    struct mem_buffer one = {"one", {SA_scratch, 0}, 128, 2, 5, false};
    struct mem_buffer two = {"two", {SA_scratch, 64}, 64, 5, 9, false};
    vec_push(a, &p.buf, one);
    vec_push(a, &p.buf, two);
    assert_string_equal(memplan_check(&p, a), "p: two and one overlap");
    p.buf.p[0].last = 4;
    assert_null(memplan_check(&p, a));
    p.buf.p[0].last = 9;
    p.buf.p[1].at.arena = SA_slot;
    assert_null(memplan_check(&p, a));
    p.buf.p[1].at.offset = 32;
    assert_string_equal(memplan_check(&p, a), "two is not aligned");
    arena_close(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_graphs_keep_their_values),
        cmocka_unit_test(optimiser_works_in_place),
        cmocka_unit_test(programs_share_names),
        cmocka_unit_test(pieces_lie_in_their_concat),
        cmocka_unit_test(packing_is_tight),
        cmocka_unit_test(overlaps_are_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
