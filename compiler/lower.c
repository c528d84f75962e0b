#include "compiler/lower.h"
#include <stdio.h>

struct lowering {
    ir_id at; /* the node at hand, for bug reports */
    struct arena *a;
    const struct ir_graph *g;
    struct ir_bind b;
    const struct cg_target *t;
    struct lowered *l;
    struct cg_lowering *node; /* what the back end made of each node */
    struct map symbols;       /* kernel index + 1 */
    VEC(struct sa_code) code;
    VEC(struct lower_kernel) kernel;
    VEC(struct sa_step) step;
    VEC(struct sa_buf) buf;
    VEC(int64_t) num;
    VEC(uint32_t) node_of_step;
    VEC(uint32_t) last_of_step;
    VEC(const char *) route;
    VEC(struct sa_value) value;
};

/* ---- copies and constants, which belong to no operation ---- */

static const char copy_text[] =
    "/* rows lo..hi-1 of n[0] bytes, n[1] bytes apart, to rows without gaps */\n"
    "void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch)\n"
    "{\n"
    "    (void)scratch;\n"
    "    for (int64_t i = lo; i < hi; i++)\n"
    "        __builtin_memcpy((char *)p[1] + i * n[0], (const char *)p[0] + i * n[1], n[0]);\n"
    "}\n";

static const char fill_text[] =
    "/* elements lo..hi-1 become the n[0] bytes of n[1] */\n"
    "void @FN@(void *const *p, const int64_t *n, int64_t lo, int64_t hi, void *scratch)\n"
    "{\n"
    "    (void)scratch;\n"
    "    for (int64_t i = lo; i < hi; i++)\n"
    "        __builtin_memcpy((char *)p[0] + i * n[0], &n[1], n[0]);\n"
    "}\n";

static const char cuda_copy_text[] =
    "/* rows of n bytes, `gap` bytes apart, to rows without gaps; all a multiple of 4 */\n"
    "extern \"C\" __global__ void __launch_bounds__(256)\n"
    "@FN@(const uint32_t *x, uint32_t *y, int64_t n, int64_t gap, int64_t rows)\n"
    "{\n"
    "    const int64_t words = n / 4, step = (int64_t)gridDim.x * 256;\n"
    "    for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < rows * words; i += step)\n"
    "        y[i] = x[i / words * (gap / 4) + i % words];\n"
    "}\n";

static const char cuda_fill_text[] =
    "/* `items` elements of `bytes` (4 or 8) become those of `bits` */\n"
    "extern \"C\" __global__ void __launch_bounds__(256)\n"
    "@FN@(uint32_t *y, int64_t bytes, int64_t bits, int64_t items)\n"
    "{\n"
    "    const int64_t words = bytes / 4, step = (int64_t)gridDim.x * 256;\n"
    "    for (int64_t i = blockIdx.x * 256ll + threadIdx.x; i < items * words; i += step)\n"
    "        y[i] = (uint32_t)(bits >> (i % words * 32));\n"
    "}\n";

enum { PIECE = 1 << 18 }; /* bytes that are worth a thread's time */

/* Enough blocks of 256 threads for so many words, a few each. */
static struct sa_launch word_launch(int64_t words)
{
    int64_t blocks = (words + 1023) / 1024;
    return (struct sa_launch){{(uint32_t)(blocks < 2048 ? blocks : 2048), 1, 1}, 256, 0};
}

static void fill_const(struct lowering *c, ir_id n)
{
    const struct ir_type *t = ir_ty(c->g, n);
    double v = ir_num(c->g, n, AK_value, 0);
    float f = (float)v;
    int32_t i = (int32_t)v;
    int64_t bits = 0, bytes = (int64_t)dtype_size((enum ir_dtype)t->dtype);
    if (t->dtype == IR_f32)
        memcpy(&bits, &f, sizeof f);
    else if (t->dtype == IR_i32)
        memcpy(&bits, &i, sizeof i);
    else if (t->dtype == IR_f64)
        memcpy(&bits, &v, sizeof v);
    else
        BUG("a constant of type %s", dtype_name((enum ir_dtype)t->dtype));
    bool gpu = c->t->sm != 0;
    struct cg_step *s =
        cg_add(c->a, &c->node[n], "fill", str_of(gpu ? cuda_fill_text : fill_text), "constant");
    cg_refs(c->a, s, CG_REFS(R_(0)));
    s->items = type_count(c->g->types, ir_at(c->g, n)->type, c->b);
    s->grain = PIECE / bytes;
    s->launch = word_launch(s->items * bytes / 4);
    if (gpu)
        cg_nums(c->a, s, CG_NUMS(bytes, bits, s->items));
    else
        cg_nums(c->a, s, CG_NUMS(bytes, bits));
}

/* ---- plan arrays ---- */

static uint32_t kernel_of(struct lowering *c, const struct cg_step *s, ir_id n)
{
    if (s->product) {
        CHECK(s->nref == 3 && s->nnum == SA_P_ints);
        return SA_PRODUCT;
    }
    uint32_t *at = map_str(&c->symbols, str_of(s->symbol));
    if (!*at) {
        struct lower_kernel k = {s->text, s->label, s->why, n, 0};
        vec_push(c->a, &c->kernel, k);
        vec_push(c->a, &c->code, ((struct sa_code){s->symbol, NULL}));
        *at = (uint32_t)c->kernel.n;
    }
    struct lower_kernel *k = &c->kernel.p[*at - 1];
    if (!str_eq(k->text, s->text)) BUG("two kernels are named %s", s->symbol);
    k->steps++;
    return *at - 1;
}

static struct sa_buf resolve(const struct lowering *c, ir_id n, struct cg_ref r)
{
    struct sa_buf at;
    const struct memplan *p = c->l->mem;
    if (r.kind == CG_SRC)
        at = memplan_value(p, ir_src(c->g, n, r.index));
    else if (r.kind == CG_RES)
        at = memplan_result(p, n, r.index);
    else
        at = memplan_work(p, n);
    at.offset = (uint64_t)((int64_t)at.offset + r.offset);
    return at;
}

static struct sa_step *open_step(struct lowering *c, const struct cg_step *s, ir_id n)
{
    if (s->grain < 1) BUG("step '%s' has grain %lld", s->label, (long long)s->grain);
    struct sa_step x = {.kernel = kernel_of(c, s, n),
                        .first_buf = (uint32_t)c->buf.n,
                        .first_int = (uint32_t)c->num.n,
                        .num_ints = (uint32_t)s->nnum,
                        .items = s->items,
                        .grain = s->grain,
                        .scratch_bytes = s->scratch,
                        .launch = s->launch,
                        .label = s->label};
    for (size_t i = 0; i < s->nnum; i++) vec_push(c->a, &c->num, s->num[i]);
    vec_push(c->a, &c->step, x);
    vec_push(c->a, &c->node_of_step, n);
    vec_push(c->a, &c->last_of_step, n);
    vec_push(c->a, &c->route, s->route);
    return &vec_last(&c->step);
}

/* Is step s, of one row, one more row of the table of the last step? Then it becomes that. */
static bool join_step(struct lowering *c, ir_id n, const struct cg_step *s)
{
    uint32_t most = s->join.most, refs = s->join.refs, cols = s->join.cols;
    if (!most || !c->step.n) return false;
    struct sa_step *x = &vec_last(&c->step);
    uint32_t kernel = *map_str(&c->symbols, str_of(s->symbol));
    if (!kernel || x->kernel != kernel - 1) return false;
    struct sa_buf *buf = c->buf.p + x->first_buf;
    int64_t *num = c->num.p + x->first_int, rows = num[cols * most];
    if (rows == most) return false;
    for (size_t k = most * refs; k < s->nref; k++) {
        struct sa_buf at = resolve(c, n, s->ref[k]);
        if (at.arena != buf[k].arena || at.offset != buf[k].offset) return false;
    }
    for (uint32_t k = 0; k < refs; k++) buf[rows * refs + k] = resolve(c, n, s->ref[k]);
    for (uint32_t k = 1; k < cols; k++) num[k * most + rows] = s->num[k * most];
    num[rows] = num[rows - 1] + s->num[0];
    num[cols * most] = rows + 1;
    x->launch.grid[0] += s->launch.grid[0];
    vec_last(&c->last_of_step) = n;
    return true;
}

static void node_steps(struct lowering *c, ir_id n)
{
    for (size_t i = 0; i < c->node[n].step.n; i++) {
        const struct cg_step *s = &c->node[n].step.p[i];
        if (join_step(c, n, s)) continue;
        struct sa_step *x = open_step(c, s, n);
        x->num_bufs = (uint32_t)s->nref;
        for (size_t k = 0; k < s->nref; k++) vec_push(c->a, &c->buf, resolve(c, n, s->ref[k]));
    }
}

static void copy_step(struct lowering *c, const struct mem_copy *x)
{
    struct cg_lowering one = {0};
    bool gpu = c->t->sm != 0;
    struct cg_step *s =
        cg_add(c->a, &one, "move", str_of(gpu ? cuda_copy_text : copy_text), "output copy");
    int64_t bytes = x->cols * x->elem_bytes, ld = x->ld * x->elem_bytes, rows = x->rows;
    if (ld == bytes && rows * bytes > PIECE && rows < 16) { /* few long rows: as 64-byte pieces */
        int64_t all = rows * bytes;
        if (all % 64 == 0) rows = all / 64, ld = bytes = 64;
    }
    if (gpu)
        cg_nums(c->a, s, CG_NUMS(bytes, ld, rows));
    else
        cg_nums(c->a, s, CG_NUMS(bytes, ld));
    s->items = rows;
    s->launch = word_launch(rows * bytes / 4);
    s->grain = bytes < PIECE ? PIECE / (bytes ? bytes : 1) : 1;
    struct sa_step *step = open_step(c, s, (ir_id)c->g->node.n);
    step->num_bufs = 2;
    vec_push(c->a, &c->buf, x->from);
    vec_push(c->a, &c->buf, x->to);
}

static uint32_t sa_dtype_of(enum ir_dtype t)
{
    switch (t) {
    case IR_f32: return SA_f32;
    case IR_bf16: return SA_bf16;
    case IR_f64: return SA_f64;
    case IR_i32: return SA_i32;
    default: BUG("a named value of type %s", dtype_name(t));
    }
}

static void named_values(struct lowering *c)
{
    for (size_t i = 0; i < c->l->mem->named.n; i++) {
        const struct mem_named *x = &c->l->mem->named.p[i];
        const struct ir_type *t = ir_ty(c->g, x->node);
        struct sa_value v = {x->name, sa_dtype_of((enum ir_dtype)t->dtype), t->rank, {0}, x->at};
        for (unsigned d = 0; d < t->rank; d++) v.dims[d] = dim_value(t->dim[d], c->b);
        vec_push(c->a, &c->value, v);
    }
}

static void finish(struct lowering *c)
{
    struct lowered *l = c->l;
    struct sa_entry *entry = NEW(c->a, struct sa_entry, 1);
    *entry = (struct sa_entry){c->g->program, 0, (uint32_t)c->step.n};
    l->code = c->code.p;
    l->step = c->step.p;
    l->kernel = c->kernel.p;
    l->node_of_step = c->node_of_step.p;
    l->last_of_step = c->last_of_step.p;
    l->route = c->route.p;
    l->gpu = c->t->sm != 0;
    l->plan = (struct sa_plan){
        .kernels = c->code.p,
        .num_kernels = (uint32_t)c->code.n,
        .steps = c->step.p,
        .num_steps = (uint32_t)c->step.n,
        .bufs = c->buf.p,
        .num_bufs = (uint32_t)c->buf.n,
        .ints = c->num.p,
        .num_ints = (uint32_t)c->num.n,
        .values = c->value.p,
        .num_values = (uint32_t)c->value.n,
        .entries = entry,
        .num_entries = 1,
    };
    for (int i = 0; i < SA_external; i++) l->plan.arena_bytes[i] = l->mem->bytes[i];
}

/* On a bug: which node it was about. */
static void tell_node(void *arg)
{
    const struct lowering *c = arg;
    if (c->at >= c->g->node.n) return;
    fprintf(stderr, "at node %u (%s %%%s) of program %s, B=%lld, T=%lld\n", c->at,
            op_info((enum ir_op)ir_at(c->g, c->at)->op)->name, ir_name(c->g, c->at), c->g->program,
            (long long)c->b.B, (long long)c->b.T);
}

struct lowered *lower(struct arena *a, const struct ir_graph *g, struct ir_bind b,
                      const struct cg_target *t, struct layout *layout)
{
    CHECK(g->stage == STAGE_K);
    struct lowering c = {.a = a, .g = g, .b = b, .t = t};
    c.l = NEW(a, struct lowered, 1);
    c.node = NEW(a, struct cg_lowering, g->node.n);
    map_init(&c.symbols, a);
    size_t *workspace = NEW(a, size_t, g->node.n);
    struct cg_memo *memo = cg_memo_open(a, g);
    bug_context(tell_node, &c);
    for (ir_id n = 0; n < g->node.n; n++) {
        c.at = n;
        c.node[n].memo = memo;
        if (ir_at(g, n)->op == OP_const) continue;
        cg_lower_node(a, g, n, b, t, &c.node[n]);
        workspace[n] = c.node[n].workspace;
    }
    c.at = IR_NONE;
    c.l->mem = memplan_make(a, g, b, workspace, layout);
    for (ir_id n = 0; n < g->node.n; n++) {
        c.at = n;
        if (ir_at(g, n)->op == OP_const && memplan_has(c.l->mem, n)) fill_const(&c, n);
        node_steps(&c, n);
    }
    for (size_t i = 0; i < c.l->mem->copy.n; i++) copy_step(&c, &c.l->mem->copy.p[i]);
    named_values(&c);
    finish(&c);
    bug_context(NULL, NULL);
    return c.l;
}

/* ---- text ---- */

void lower_print(const struct lowered *l, struct sb *out)
{
    const struct sa_plan *p = &l->plan;
    const struct memplan *m = l->mem;
    sb_printf(out, "plan %s stage P B=%lld T=%lld\n", p->entries[0].name, (long long)m->bind.B,
              (long long)m->bind.T);
    for (uint32_t i = 0; i < p->num_steps; i++) {
        const struct sa_step *s = &p->steps[i];
        const struct sa_launch *x = &s->launch;
        sb_printf(out, "step %u node %u ", i, l->node_of_step[i]);
        if (s->kernel == SA_PRODUCT)
            sb_str(out, "cublas [");
        else if (l->gpu)
            sb_printf(out, "%s grid=%u,%u,%u threads=%u shared=%u [", p->kernels[s->kernel].symbol,
                      x->grid[0], x->grid[1], x->grid[2], x->threads, x->shared);
        else
            sb_printf(out, "%s items=%lld grain=%lld [", p->kernels[s->kernel].symbol,
                      (long long)s->items, (long long)s->grain);
        for (uint32_t k = 0; k < s->num_bufs; k++) {
            struct sa_buf b = p->bufs[s->first_buf + k];
            sb_printf(out, "%s@%u+%llu", k ? " " : "", b.arena, (unsigned long long)b.offset);
        }
        sb_str(out, "] (");
        for (uint32_t k = 0; k < s->num_ints; k++)
            sb_printf(out, "%s%lld", k ? " " : "", (long long)p->ints[s->first_int + k]);
        sb_str(out, ")");
        if (s->stream) sb_printf(out, " stream=%u", s->stream);
        for (uint32_t k = 0; k < s->num_waits; k++)
            sb_printf(out, "%s%u", k ? "," : " after=", p->waits[s->first_wait + k]);
        sb_printf(out, "  ; %s\n", s->label);
    }
    memplan_print(m, out);
}

void lower_routes(const struct lowered *l, struct sb *out)
{
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        uint32_t times = 0, first = 0;
        if (!l->route[i]) continue;
        while (!l->route[first] || strcmp(l->route[first], l->route[i]) != 0) first++;
        if (first < i) continue;
        for (uint32_t k = i; k < l->plan.num_steps; k++)
            times += l->route[k] && !strcmp(l->route[k], l->route[i]);
        sb_printf(out, "%u x %s\n", times, l->route[i]);
    }
}

static void kernel_comment(const struct lowered *l, uint32_t k, const struct diag *d,
                           struct sb *out)
{
    const struct lower_kernel *x = &l->kernel[k];
    const struct ir_graph *g = l->mem->g;
    sb_printf(out, "/* %s: %s; %u step%s", l->code[k].symbol, x->label, x->steps,
              x->steps == 1 ? "" : "s");
    struct span s = x->node < g->node.n ? ir_span(g, x->node) : (struct span){0};
    if (d && s.file) {
        unsigned line, col;
        diag_line_col(d, s, &line, &col);
        sb_printf(out, "; first from %s:%u:%u", diag_file_name(d, s.file), line, col);
    }
    sb_str(out, " */\n");
}

/* The first kernel from `from` on with the text of kernel k, the number of kernels where there is
 * none. */
static uint32_t same_text(const struct lowered *l, uint32_t k, uint32_t from)
{
    while (from < l->plan.num_kernels && !str_eq(l->kernel[from].text, l->kernel[k].text)) from++;
    return from;
}

void lower_emit_c(const struct lowered *l, const struct diag *d, const char *title, struct sb *out)
{
    sb_printf(out,
              "/* %s\n * program %s, B=%lld, T=%lld: %u kernels, %u steps\n * graph %016llx */\n",
              title, l->mem->g->program, (long long)l->mem->bind.B, (long long)l->mem->bind.T,
              l->plan.num_kernels, l->plan.num_steps, (unsigned long long)graph_hash(l->mem->g));
    sb_str(out, l->gpu ? cg_cuda_prelude() : cg_cpu_prelude());
    for (uint32_t k = 0; k < l->plan.num_kernels; k++) { /* a text may hold several kernels */
        if (same_text(l, k, 0) < k) continue;
        sb_char(out, '\n');
        for (uint32_t i = k; i < l->plan.num_kernels; i = same_text(l, k, i + 1))
            kernel_comment(l, i, d, out);
        sb_add(out, l->kernel[k].text.p, l->kernel[k].text.n);
    }
}
