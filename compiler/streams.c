#include "compiler/streams.h"

/* Rough times, which only choose between streams: a launch, a byte and an operation. */
static const double LAUNCH = 2e-6, BYTE = 1 / 4e12, FLOP = 1 / 6e14;
/* What waiting for another stream costs. */
static const double CROSS = 1e-6;

#define NONE UINT32_MAX

/* The steps of one node, or one copy of an output: what they touch. */
struct unit {
    uint32_t first, steps;
    VEC(struct mem_range) read;
    VEC(struct mem_range) write;
    double seconds;
};

static uint64_t length(struct mem_range r)
{
    return r.to - r.from;
}

static void touch_node(struct arena *a, const struct memplan *p, ir_id n, struct unit *u)
{
    const struct ir_graph *g = p->g;
    for (uint32_t i = 0; i < ir_at(g, n)->nsrc; i++) {
        CHECK(ir_ty(g, ir_src(g, n, i))->dtype != IR_tuple);
        struct mem_range r = memplan_value_range(p, ir_src(g, n, i));
        if (length(r)) vec_push(a, &u->read, r);
    }
    for (uint32_t i = 0; i < memplan_results(p, n); i++) {
        struct mem_range r = memplan_result_range(p, n, i);
        if (length(r)) vec_push(a, &u->write, r);
    }
    struct mem_range work = memplan_work_range(p, n);
    if (length(work)) vec_push(a, &u->write, work);
}

static void touch_copy(struct arena *a, const struct mem_copy *c, struct unit *u)
{
    uint64_t to = (uint64_t)(c->rows * c->cols) * c->elem_bytes, from = 0;
    if (c->rows) from = (uint64_t)((c->rows - 1) * c->ld + c->cols) * c->elem_bytes;
    vec_push(a, &u->read,
             ((struct mem_range){c->from.arena, c->from.offset, c->from.offset + from}));
    vec_push(a, &u->write, ((struct mem_range){c->to.arena, c->to.offset, c->to.offset + to}));
}

static double estimate(const struct lowered *l, ir_id n, const struct unit *u)
{
    double bytes = 0, flops = 0;
    for (size_t i = 0; i < u->read.n; i++) bytes += (double)length(u->read.p[i]);
    for (size_t i = 0; i < u->write.n; i++) bytes += (double)length(u->write.p[i]);
    if (n < l->mem->g->node.n) flops = op_cost(l->mem->g, n, l->mem->bind).flops;
    double busy = bytes * BYTE > flops * FLOP ? bytes * BYTE : flops * FLOP;
    return u->steps * LAUNCH + busy;
}

/* The units of a plan in order; returns how many. */
static size_t find_units(struct arena *a, const struct lowered *l, struct unit **out)
{
    uint32_t nodes = (uint32_t)l->mem->g->node.n, copies = 0;
    size_t n = 0;
    struct unit *unit = NEW(a, struct unit, l->plan.num_steps);
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        ir_id node = l->node_of_step[i];
        if (n && node < nodes && node == l->node_of_step[i - 1]) {
            unit[n - 1].steps++;
            continue;
        }
        struct unit *u = &unit[n++];
        u->first = i;
        u->steps = 1;
        if (node < nodes) /* and, in one launch, later ones of its kind */
            for (ir_id k = node; k <= l->last_of_step[i]; k++) {
                if (ir_at(l->mem->g, k)->op == ir_at(l->mem->g, node)->op)
                    touch_node(a, l->mem, k, u);
            }
        else
            touch_copy(a, &l->mem->copy.p[copies++], u);
    }
    for (size_t i = 0; i < n; i++)
        unit[i].seconds = estimate(l, l->node_of_step[unit[i].first], &unit[i]);
    *out = unit;
    return n;
}

static bool meet(struct mem_range a, struct mem_range b)
{
    return a.arena == b.arena && a.from < b.to && b.from < a.to;
}

static bool conflict(const struct unit *a, const struct unit *b)
{
    for (size_t i = 0; i < a->write.n; i++) {
        for (size_t k = 0; k < b->write.n; k++)
            if (meet(a->write.p[i], b->write.p[k])) return true;
        for (size_t k = 0; k < b->read.n; k++)
            if (meet(a->write.p[i], b->read.p[k])) return true;
    }
    for (size_t i = 0; i < a->read.n; i++)
        for (size_t k = 0; k < b->write.n; k++)
            if (meet(a->read.p[i], b->write.p[k])) return true;
    return false;
}

/* The nodes of one launch run at the same time. */
static const char *check_launch(const struct lowered *l, struct arena *a, uint32_t step)
{
    const struct ir_graph *g = l->mem->g;
    VEC(struct unit) row = {0};
    for (ir_id n = l->node_of_step[step]; n <= l->last_of_step[step]; n++) {
        if (n >= g->node.n || ir_at(g, n)->op != ir_at(g, l->node_of_step[step])->op) continue;
        struct unit u = {0};
        touch_node(a, l->mem, n, &u);
        for (size_t i = 0; i < row.n; i++)
            if (conflict(&row.p[i], &u))
                return str_fmt(a, "step %u (%s) is one launch for nodes that touch the same memory",
                               step, l->plan.steps[step].label);
        vec_push(a, &row, u);
    }
    return NULL;
}

/* ---- who touched memory last ---- */

/* Disjoint stretches of an arena, ascending; what lies in none was never touched. */
struct stretch {
    uint64_t from, to;
    uint32_t writer, reader[SA_STREAMS]; /* the last unit, of each stream; NONE */
};
struct memory {
    VEC(struct stretch) arena[SA_external];
};

static void insert(struct arena *a, struct memory *m, uint32_t arena, size_t at, struct stretch s)
{
    vec_push(a, &m->arena[arena], s);
    struct stretch *p = m->arena[arena].p;
    memmove(p + at + 1, p + at, (m->arena[arena].n - 1 - at) * sizeof *p);
    p[at] = s;
}

/* Makes `at` a boundary of stretches: the index of the first at or behind it. */
static size_t cut(struct arena *a, struct memory *m, uint32_t arena, uint64_t at)
{
    size_t low = 0, high = m->arena[arena].n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        if (m->arena[arena].p[mid].to <= at)
            low = mid + 1;
        else
            high = mid;
    }
    if (low == m->arena[arena].n || m->arena[arena].p[low].from >= at) return low;
    struct stretch left = m->arena[arena].p[low];
    m->arena[arena].p[low].from = left.to = at;
    insert(a, m, arena, low, left);
    return low + 1;
}

static void need(uint32_t *of_stream, const uint32_t *stream, uint32_t unit)
{
    if (unit == NONE) return;
    uint32_t *x = &of_stream[stream[unit]];
    if (*x == NONE || *x < unit) *x = unit;
}

/* The last unit of each stream that must have ended before somebody reads or writes r. */
static void find_needs(struct arena *a, struct memory *m, struct mem_range r, bool write,
                       const uint32_t *stream, uint32_t *of_stream)
{
    for (size_t i = cut(a, m, r.arena, r.from); i < m->arena[r.arena].n; i++) {
        const struct stretch *s = &m->arena[r.arena].p[i];
        if (s->from >= r.to) break;
        need(of_stream, stream, s->writer);
        for (int k = 0; write && k < SA_STREAMS; k++) need(of_stream, stream, s->reader[k]);
    }
}

static void note_read(struct arena *a, struct memory *m, struct mem_range r, uint32_t unit,
                      uint32_t stream)
{
    cut(a, m, r.arena, r.to);
    size_t i = cut(a, m, r.arena, r.from);
    for (uint64_t at = r.from; at < r.to; i++) { /* gaps become stretches without a writer */
        const struct stretch *s = i < m->arena[r.arena].n ? &m->arena[r.arena].p[i] : NULL;
        if (!s || s->from > at) {
            struct stretch gap = {at, s && s->from < r.to ? s->from : r.to, NONE, {NONE, NONE}};
            insert(a, m, r.arena, i, gap);
        }
        m->arena[r.arena].p[i].reader[stream] = unit;
        at = m->arena[r.arena].p[i].to;
    }
}

static void note_write(struct arena *a, struct memory *m, struct mem_range r, uint32_t unit)
{
    cut(a, m, r.arena, r.to);
    size_t first = cut(a, m, r.arena, r.from), end = cut(a, m, r.arena, r.to);
    struct stretch *p = m->arena[r.arena].p, s = {r.from, r.to, unit, {NONE, NONE}};
    if (end == first) {
        insert(a, m, r.arena, first, s);
        return;
    }
    p[first] = s;
    memmove(p + first + 1, p + end, (m->arena[r.arena].n - end) * sizeof *p);
    m->arena[r.arena].n -= end - first - 1;
}

/* ---- the choice ---- */

struct clock { /* the last unit of each stream that something comes after */
    uint32_t last[SA_STREAMS];
};
struct chooser {
    struct arena *a;
    struct lowered *l;
    struct unit *unit;
    uint32_t *stream;          /* of each unit */
    double *end;               /* of each unit, by the estimate */
    struct clock *known;       /* of each unit */
    uint32_t last[SA_STREAMS]; /* unit of each stream */
    struct memory memory;
    VEC(uint32_t) waits;
};

/* The last unit of stream t that stream s comes after so far. */
static uint32_t known(const struct chooser *c, unsigned s, unsigned t)
{
    return c->last[s] == NONE ? NONE : c->known[c->last[s]].last[t];
}

static bool must_wait(const struct chooser *c, unsigned s, unsigned t, uint32_t unit)
{
    uint32_t k = known(c, s, t);
    return s != t && unit != NONE && (k == NONE || k < unit);
}

/* When a unit with these needs could begin in stream s. */
static double begin_in(const struct chooser *c, unsigned s, const uint32_t *needs, unsigned streams)
{
    double begin = c->last[s] == NONE ? 0 : c->end[c->last[s]];
    for (unsigned t = 0; t < streams; t++) {
        if (needs[t] == NONE) continue;
        double ready = c->end[needs[t]] + (must_wait(c, s, t, needs[t]) ? CROSS : 0);
        if (ready > begin) begin = ready;
    }
    return begin;
}

static void settle(struct chooser *c, uint32_t i, unsigned s, const uint32_t *needs)
{
    const struct unit *u = &c->unit[i];
    struct sa_step *step = c->l->step + u->first;
    for (unsigned t = 0; t < SA_STREAMS; t++) c->known[i].last[t] = known(c, s, t);
    step->first_wait = (uint32_t)c->waits.n;
    for (unsigned t = 0; t < SA_STREAMS; t++) {
        if (!must_wait(c, s, t, needs[t])) continue;
        const struct unit *other = &c->unit[needs[t]];
        vec_push(c->a, &c->waits, other->first + other->steps - 1);
        for (unsigned x = 0; x < SA_STREAMS; x++) {
            uint32_t k = c->known[needs[t]].last[x];
            if (k != NONE && (c->known[i].last[x] == NONE || c->known[i].last[x] < k))
                c->known[i].last[x] = k;
        }
    }
    step->num_waits = (uint32_t)c->waits.n - step->first_wait;
    for (uint32_t k = 0; k < u->steps; k++) step[k].stream = s;
    c->known[i].last[s] = i;
    c->stream[i] = s;
    c->last[s] = i;
    for (size_t k = 0; k < u->read.n; k++) note_read(c->a, &c->memory, u->read.p[k], i, s);
    for (size_t k = 0; k < u->write.n; k++) note_write(c->a, &c->memory, u->write.p[k], i);
}

static void choose(struct chooser *c, uint32_t i, unsigned streams)
{
    const struct unit *u = &c->unit[i];
    uint32_t needs[SA_STREAMS];
    for (unsigned s = 0; s < SA_STREAMS; s++) needs[s] = NONE;
    for (size_t k = 0; k < u->read.n; k++)
        find_needs(c->a, &c->memory, u->read.p[k], false, c->stream, needs);
    for (size_t k = 0; k < u->write.n; k++)
        find_needs(c->a, &c->memory, u->write.p[k], true, c->stream, needs);
    unsigned best = 0;
    for (unsigned s = 1; s < streams; s++)
        if (begin_in(c, s, needs, streams) < begin_in(c, best, needs, streams)) best = s;
    c->end[i] = begin_in(c, best, needs, streams) + u->seconds;
    settle(c, i, best, needs);
}

void streams_assign(struct arena *a, struct lowered *l, unsigned streams)
{
    CHECK(streams >= 1 && streams <= SA_STREAMS);
    struct chooser c = {.a = a, .l = l};
    for (uint32_t i = 0; i < l->plan.num_steps; i++) {
        const char *why = l->last_of_step[i] > l->node_of_step[i] ? check_launch(l, a, i) : NULL;
        if (why) BUG("%s: %s", l->mem->g->program, why);
    }
    size_t n = find_units(a, l, &c.unit);
    c.stream = NEW(a, uint32_t, n);
    c.end = NEW(a, double, n);
    c.known = NEW(a, struct clock, n);
    for (unsigned s = 0; s < SA_STREAMS; s++) c.last[s] = NONE;
    for (uint32_t i = 0; i < n; i++) choose(&c, i, streams);
    l->plan.waits = c.waits.p;
    l->plan.num_waits = (uint32_t)c.waits.n;
}

uint32_t streams_beside(const struct lowered *l)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < l->plan.num_steps; i++) n += l->plan.steps[i].stream != 0;
    return n;
}

/* ---- the check ---- */

/* Which steps certainly end before each step begins, from nothing but streams and waits. */
static uint8_t **find_before(struct arena *a, const struct sa_plan *p)
{
    uint32_t n = p->num_steps, last[SA_STREAMS];
    size_t bytes = (n + 7) / 8;
    uint8_t **before = NEW(a, uint8_t *, n);
    for (unsigned s = 0; s < SA_STREAMS; s++) last[s] = NONE;
    for (uint32_t i = 0; i < n; i++) {
        const struct sa_step *s = &p->steps[i];
        before[i] = NEW(a, uint8_t, bytes);
        for (uint32_t k = 0; k <= s->num_waits; k++) {
            uint32_t j = k < s->num_waits ? p->waits[s->first_wait + k] : last[s->stream];
            if (j == NONE || j >= i) continue;
            for (size_t b = 0; b < bytes; b++) before[i][b] |= before[j][b];
            before[i][j / 8] |= (uint8_t)(1u << j % 8);
        }
        last[s->stream] = i;
    }
    return before;
}

const char *streams_check(const struct lowered *l, struct arena *a)
{
    struct unit *unit;
    size_t n = find_units(a, l, &unit);
    uint8_t **before = find_before(a, &l->plan);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++) {
            uint32_t last = unit[j].first + unit[j].steps - 1, first = unit[i].first;
            if (before[first][last / 8] >> last % 8 & 1 || !conflict(&unit[j], &unit[i])) continue;
            return str_fmt(a, "step %u (%s) does not wait for step %u (%s)", first,
                           l->plan.steps[first].label, last, l->plan.steps[last].label);
        }
    return NULL;
}
