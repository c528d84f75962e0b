#include "runtime/exec.h"
#include "runtime/mem.h"
#include "base/map.h"
#include <stdlib.h>

struct exec {
    const struct sa_plan *plan;
    struct pool *pool;
    unsigned slots;
    char *arena[SA_external];
    size_t owned[SA_external]; /* bytes that exec_close gives back; 0: the caller's memory */
    size_t slot_stride;
    void **external;
    void **pointer;           /* [slots, num_bufs]: the bufs of the plan, resolved */
    struct exec_tally *tally; /* [num_steps], NULL until profiling is on */
    bool external_moved;      /* pointers to external inputs are out of date */
    bool profiling;
};

struct call {
    const struct sa_step *step;
    sa_kernel *fn;
    void *const *p;
    const int64_t *n;
    struct pool *pool;
};

static void check_step(const struct sa_plan *p, const struct sa_step *s)
{
    CHECK(s->kernel < p->num_kernels);
    if (!p->kernels[s->kernel].fn)
        BUG("step '%s': kernel '%s' is not loaded", s->label, p->kernels[s->kernel].symbol);
    CHECK((uint64_t)s->first_buf + s->num_bufs <= p->num_bufs);
    CHECK((uint64_t)s->first_int + s->num_ints <= p->num_ints);
    CHECK(s->items >= 0 && s->grain >= 1 && s->label);
}

static void check_plan(const struct sa_plan *p)
{
    for (uint32_t i = 0; i < p->num_steps; i++) check_step(p, &p->steps[i]);
    for (uint32_t i = 0; i < p->num_bufs; i++) {
        uint32_t a = p->bufs[i].arena;
        CHECK(a < SA_external + p->num_externs);
        CHECK(p->bufs[i].offset <=
              (a < SA_external ? p->arena_bytes[a] : p->externs[a - SA_external].bytes));
    }
    for (uint32_t i = 0; i < p->num_entries; i++)
        CHECK((uint64_t)p->entries[i].first_step + p->entries[i].num_steps <= p->num_steps);
    for (uint32_t i = 0; i < p->num_values; i++) {
        CHECK(p->values[i].at.arena < SA_external + p->num_externs);
        CHECK(p->values[i].rank <= SA_RANK && p->values[i].dtype < SA_DTYPES);
    }
}

static char *address(const struct exec *x, struct sa_buf b, unsigned slot)
{
    if (b.arena >= SA_external) {
        char *base = x->external[b.arena - SA_external];
        return base ? base + b.offset : NULL;
    }
    return x->arena[b.arena] + (b.arena == SA_slot ? slot * x->slot_stride : 0) + b.offset;
}

static void resolve(struct exec *x, bool external_only)
{
    uint32_t n = x->plan->num_bufs;
    for (unsigned s = 0; s < x->slots; s++)
        for (uint32_t i = 0; i < n; i++)
            if (!external_only || x->plan->bufs[i].arena >= SA_external)
                x->pointer[(size_t)s * n + i] = address(x, x->plan->bufs[i], s);
    x->external_moved = false;
}

static enum rt_status get_memory(struct exec *x, const struct exec_options *o, struct rt_error *err)
{
    static const char *const name[] = {"parameters", "activations", "scratch", "weights"};
    const struct sa_plan *p = x->plan;
    x->slots = o && o->slots ? o->slots : 1;
    x->slot_stride = (p->arena_bytes[SA_slot] + 63) / 64 * 64;
    for (int a = 0; a < SA_external; a++) {
        x->arena[a] = o ? o->memory[a] : NULL;
        if (x->arena[a]) {
            CHECK((uintptr_t)x->arena[a] % 64 == 0);
            continue;
        }
        size_t bytes = a == SA_slot ? x->slot_stride * x->slots : p->arena_bytes[a];
        if (!bytes) bytes = 64;
        x->arena[a] = mem_alloc(bytes);
        if (!x->arena[a])
            return rt_fail(err, RT_machine, "no memory for %zu bytes of %s", bytes, name[a]);
        x->owned[a] = bytes;
    }
    uint64_t scratch = 0;
    for (uint32_t i = 0; i < p->num_steps; i++)
        if (p->steps[i].scratch_bytes > scratch) scratch = p->steps[i].scratch_bytes;
    return scratch ? pool_reserve(x->pool, scratch, err) : RT_ok;
}

static void *table(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    CHECK(p);
    return p;
}

enum rt_status exec_open(const struct sa_plan *plan, struct pool *pool,
                         const struct exec_options *options, struct exec **out,
                         struct rt_error *err)
{
    *out = NULL;
    check_plan(plan);
    struct exec *x = table(1, sizeof *x);
    x->plan = plan;
    x->pool = pool;
    enum rt_status st = get_memory(x, options, err);
    if (st) {
        exec_close(x);
        return st;
    }
    x->external = table(plan->num_externs, sizeof *x->external);
    x->pointer = table((size_t)x->slots * plan->num_bufs, sizeof *x->pointer);
    resolve(x, false);
    *out = x;
    return RT_ok;
}

void exec_close(struct exec *x)
{
    if (!x) return;
    for (int a = 0; a < SA_external; a++)
        if (x->owned[a]) mem_free(x->arena[a], x->owned[a]);
    free(x->external);
    free(x->pointer);
    free(x->tally);
    free(x);
}

void exec_bind(struct exec *x, uint32_t i, void *p)
{
    CHECK(i < x->plan->num_externs);
    if (x->external[i] == p) return;
    x->external[i] = p;
    x->external_moved = true;
}

uint32_t exec_find_extern(const struct exec *x, const char *name)
{
    for (uint32_t i = 0; i < x->plan->num_externs; i++)
        if (!strcmp(x->plan->externs[i].name, name)) return i;
    return UINT32_MAX;
}

uint32_t exec_find_entry(const struct exec *x, const char *name)
{
    for (uint32_t i = 0; i < x->plan->num_entries; i++)
        if (!strcmp(x->plan->entries[i].name, name)) return i;
    return UINT32_MAX;
}

uint32_t exec_find_value(const struct exec *x, const char *name)
{
    for (uint32_t i = 0; i < x->plan->num_values; i++)
        if (!strcmp(x->plan->values[i].name, name)) return i;
    return UINT32_MAX;
}

void *exec_value(const struct exec *x, uint32_t value, unsigned slot)
{
    CHECK(value < x->plan->num_values && slot < x->slots);
    return address(x, x->plan->values[value].at, slot);
}

void *exec_arena(const struct exec *x, enum sa_arena arena)
{
    CHECK(arena < SA_external);
    return x->arena[arena];
}

static void call_kernel(void *arg, int64_t lo, int64_t hi, unsigned worker)
{
    const struct call *c = arg;
    c->fn(c->p, c->n, lo, hi, pool_scratch(c->pool, worker));
}

static void check_bound(const struct exec *x, const struct sa_step *s)
{
    for (uint32_t i = s->first_buf; i < s->first_buf + s->num_bufs; i++) {
        uint32_t a = x->plan->bufs[i].arena;
        if (a >= SA_external && !x->external[a - SA_external])
            BUG("step '%s': input '%s' is not bound", s->label,
                x->plan->externs[a - SA_external].name);
    }
}

static void run_step(struct exec *x, const struct sa_step *s, void *const *pointer)
{
    if (!s->items) return;
    struct call c = {s, x->plan->kernels[s->kernel].fn, pointer + s->first_buf,
                     x->plan->ints + s->first_int, x->pool};
    pool_run(x->pool, call_kernel, &c, s->items, s->grain);
}

void exec_run(struct exec *x, uint32_t entry, unsigned slot)
{
    const struct sa_plan *p = x->plan;
    CHECK(entry < p->num_entries && slot < x->slots);
    uint64_t allocations = mem_allocations();
    uint32_t first = p->entries[entry].first_step, end = first + p->entries[entry].num_steps;
    if (x->external_moved) resolve(x, true);
    for (uint32_t i = first; i < end; i++) check_bound(x, &p->steps[i]);
    void *const *pointer = x->pointer + (size_t)slot * p->num_bufs;
    if (!x->profiling) {
        for (uint32_t i = first; i < end; i++) run_step(x, &p->steps[i], pointer);
    } else {
        double t0 = mem_seconds();
        for (uint32_t i = first; i < end; i++) {
            run_step(x, &p->steps[i], pointer);
            double t1 = mem_seconds();
            struct exec_tally *sum = &x->tally[i];
            if (!sum->calls || t1 - t0 < sum->best) sum->best = t1 - t0;
            sum->seconds += t1 - t0;
            sum->calls++;
            t0 = t1;
        }
    }
    CHECK(mem_allocations() == allocations);
}

void exec_profile(struct exec *x, bool on)
{
    x->profiling = on;
    if (!on) return;
    free(x->tally);
    x->tally = table(x->plan->num_steps, sizeof *x->tally);
}

struct exec_tally exec_profile_step(const struct exec *x, uint32_t i)
{
    CHECK(i < x->plan->num_steps);
    return x->tally ? x->tally[i] : (struct exec_tally){0};
}

struct row {
    const char *label;
    struct exec_tally sum;
};

static int longest_first(const void *pa, const void *pb)
{
    const struct row *a = pa, *b = pb;
    if (a->sum.seconds != b->sum.seconds) return a->sum.seconds > b->sum.seconds ? -1 : 1;
    return strcmp(a->label, b->label);
}

const struct exec_tally *exec_tally(const struct exec *x)
{
    return x->tally;
}

void exec_profile_print(const struct exec *x, struct sb *out)
{
    exec_tally_print(x->plan, x->tally, out);
}

void exec_tally_print(const struct sa_plan *p, const struct exec_tally *tally, struct sb *out)
{
    if (!tally) return;
    struct arena *a = arena_open("profile");
    struct row *row = NEW(a, struct row, p->num_steps);
    struct map index; /* label to row + 1 */
    map_init(&index, a);
    uint32_t rows = 0;
    double total = 0;
    for (uint32_t i = 0; i < p->num_steps; i++) {
        if (!tally[i].calls) continue;
        uint32_t *at = map_str(&index, str_of(p->steps[i].label));
        if (!*at) {
            row[rows].label = p->steps[i].label;
            *at = ++rows;
        }
        row[*at - 1].sum.seconds += tally[i].seconds;
        row[*at - 1].sum.calls += tally[i].calls;
        total += tally[i].seconds;
    }
    qsort(row, rows, sizeof *row, longest_first);
    sb_printf(out, "%10s %6s %9s %10s  %s\n", "seconds", "share", "calls", "us/call", "step");
    for (uint32_t i = 0; i < rows; i++) {
        struct exec_tally t = row[i].sum;
        sb_printf(out, "%10.4f %5.1f%% %9llu %10.2f  %s\n", t.seconds,
                  total > 0 ? 100 * t.seconds / total : 0.0, (unsigned long long)t.calls,
                  1e6 * t.seconds / (double)t.calls, row[i].label);
    }
    sb_printf(out, "%10.4f %5.1f%%\n", total, 100.0);
    arena_close(a);
}
