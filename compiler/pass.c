#include "compiler/pipeline.h"
#include "base/io.h"
#include <stdio.h>
#include <time.h>

struct run {
    struct pass_ctx *c;
    const struct pipeline_options *o;
    const struct pass_row *rows; /* where names are looked up */
    size_t nrows;
    VEC(const struct pass_row *) pass; /* what runs */
    size_t at;                         /* the pass that runs now */
    const struct ir_graph *g;          /* its input */
    struct arena *temp; /* of r->g, where a later pass makes the graph that is returned */
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool complain(struct run *r, const char *text)
{
    diag_add(r->c->diag, D_plain, (struct span){0}, text);
    return false;
}

/* ---- lists of names ---- */

/* The next name of a list; false at its end. */
static bool next_name(const char **list, struct str *out)
{
    while (**list == ',' || **list == ' ') ++*list;
    out->p = *list;
    out->n = strcspn(*list, ", ");
    *list += out->n;
    return out->n > 0;
}

static bool in_list(const char *list, const char *name)
{
    struct str s;
    while (list && next_name(&list, &s))
        if (str_is(s, name)) return true;
    return false;
}

static const struct pass_row *find_row(struct run *r, struct str name)
{
    const struct pass_row *near = NULL;
    unsigned best = 4;
    for (size_t i = 0; i < r->nrows; i++) {
        if (str_is(name, r->rows[i].name)) return &r->rows[i];
        unsigned d = str_distance(name, str_of(r->rows[i].name));
        if (d < best) best = d, near = &r->rows[i];
    }
    complain(r, str_fmt(r->c->arena, "no pass is named '%.*s'", (int)name.n, name.p));
    if (near) diag_hint(r->c->diag, "Did you mean '%s'?", near->name);
    return NULL;
}

static bool check_skip(struct run *r)
{
    const char *list = r->o->skip;
    struct str s;
    while (list && next_name(&list, &s)) {
        const struct pass_row *row = find_row(r, s);
        if (!row) return false;
        if (!row->skippable)
            return complain(r, str_fmt(r->c->arena, "pass '%s' cannot be skipped", row->name));
    }
    return true;
}

static bool check_dump(struct run *r)
{
    const char *list = r->o->dump_ir;
    struct str s;
    if (list && !r->o->dump_dir) CHECK(r->o->dump);
    while (list && next_name(&list, &s)) {
        size_t skip = str_starts(s, "before:") ? 7 : str_starts(s, "after:") ? 6 : 0;
        struct str name = {s.p + skip, s.n - skip};
        if (!skip)
            return complain(r, str_fmt(r->c->arena,
                                       "'%.*s' is not before:PASS, after:PASS or after:all",
                                       (int)s.n, s.p));
        if (!str_is(name, "all") && !find_row(r, name)) return false;
    }
    return true;
}

static bool choose(struct run *r)
{
    const char *list = r->o->passes;
    struct str s;
    if (!list)
        for (size_t i = 0; i < r->nrows; i++) vec_push(r->c->arena, &r->pass, &r->rows[i]);
    while (list && next_name(&list, &s)) {
        const struct pass_row *row = find_row(r, s);
        if (!row) return false;
        vec_push(r->c->arena, &r->pass, row);
    }
    return check_skip(r) && check_dump(r);
}

/* ---- what the manager does around a pass ---- */

static void dump(struct run *r, const char *when, const char *pass, const struct ir_graph *g,
                 bool unchanged)
{
    const struct pipeline_options *o = r->o;
    struct arena *a = r->c->arena;
    if (!in_list(o->dump_ir, str_fmt(a, "%s:%s", when, pass)) &&
        !in_list(o->dump_ir, str_fmt(a, "%s:all", when)))
        return;
    struct sb text = {0};
    sb_printf(&text, "; %s %s: %s%s\n", when, pass, g->program, unchanged ? " (unchanged)" : "");
    if (!unchanged) graph_print(g, r->c->diag, &text);
    if (o->dump_dir) {
        const char *file =
            io_join(a, o->dump_dir, str_fmt(a, "%s-%02zu-%s-%s.ir", g->program, r->at, when, pass));
        int err = io_mkdirs(o->dump_dir);
        if (!err) err = io_write_atomic(file, text.p, text.n);
        if (err)
            diag_add(r->c->diag, D_plain, (struct span){0},
                     str_fmt(a, "cannot write '%s': %s", file, strerror(err)));
    } else {
        sb_add(o->dump, text.p, text.n);
    }
    sb_free(&text);
}

static void roundtrip(struct run *r, const struct ir_graph *g)
{
    struct arena *a = arena_open("roundtrip");
    struct diag *d = diag_open(a);
    struct sb one = {0}, two = {0};
    graph_print(g, NULL, &one);
    struct str text = {one.p, one.n};
    struct ir_graph *back = graph_parse(a, d, diag_file(d, "printed", text), text, NULL, NULL);
    if (!back) {
        diag_print(d, &two);
        BUG("the printed graph after %s cannot be read\n%s", r->pass.p[r->at]->name, two.p);
    }
    graph_print(back, NULL, &two);
    if (!str_eq(text, (struct str){two.p, two.n}))
        BUG("the graph after %s changes when it is printed and read", r->pass.p[r->at]->name);
    sb_free(&one);
    sb_free(&two);
    arena_close(a);
}

/* On a bug: names the pass and writes the rest of the pipeline with the graph it began with. The
 * file is what `strata opt` reads; its first line says which passes to run. */
static void write_repro(void *arg)
{
    struct run *r = arg;
    fprintf(stderr, "in pass %s of program %s\n", r->pass.p[r->at]->name, r->g->program);
    if (!r->o->repro) return;
    struct sb s = {0};
    sb_str(&s, "; passes: ");
    for (size_t i = r->at; i < r->pass.n; i++)
        sb_printf(&s, "%s%s", i > r->at ? "," : "", r->pass.p[i]->name);
    sb_char(&s, '\n');
    graph_print(r->g, NULL, &s);
    int err = io_write_atomic(r->o->repro, s.p, s.n);
    if (err)
        fprintf(stderr, "cannot write '%s': %s\n", r->o->repro, strerror(err));
    else
        fprintf(stderr, "reproducer: %s\n", r->o->repro);
}

static struct ir_graph *run_pass(struct run *r, const struct pass_row *row, bool off)
{
    r->c->unfused = off;
    double t0 = seconds();
    struct ir_graph *g = row->fn(r->c, r->g);
    if (r->o->times)
        sb_printf(r->o->times, "%8.2f ms  %-12s %s, %zu nodes\n", 1e3 * (seconds() - t0), row->name,
                  r->g->program, g ? g->node.n : 0);
    if (!g) return NULL;
    g->stage = row->out;
    const char *why = r->o->no_verify ? NULL : graph_verify(g, row->out);
    if (why) BUG("after pass %s: %s", row->name, why);
    if (r->o->roundtrip_each) roundtrip(r, g);
    return g;
}

static bool is_off(const struct run *r, size_t at)
{
    const struct pass_row *row = r->pass.p[at];
    return in_list(r->o->skip, row->name) ||
           (r->o->limited && at >= r->o->pass_limit && row->skippable);
}

/* Whether a pass after this one makes a new graph. */
static bool more_follow(const struct run *r)
{
    for (size_t i = r->at + 1; i < r->pass.n; i++)
        if (!is_off(r, i) || r->pass.p[i]->in != r->pass.p[i]->out) return true;
    return false;
}

/* Runs pass r->at on r->g; false when it failed. */
static bool step(struct run *r)
{
    const struct pass_row *row = r->pass.p[r->at];
    bool off = is_off(r, r->at);
    if (r->g->stage != row->in)
        return complain(
            r, str_fmt(r->c->arena, "pass '%s' does not take a graph of this stage", row->name));
    if (off && row->in == row->out) return true;
    dump(r, "before", row->name, r->g, false);
    struct arena *keep = r->c->arena, *own = more_follow(r) ? arena_open(row->name) : NULL;
    if (own) r->c->arena = own;
    struct ir_graph *g = run_pass(r, row, off);
    r->c->arena = keep;
    if (!g) {
        arena_close(own);
        CHECK(diag_errors(r->c->diag));
        return false;
    }
    if (r->o->dump_ir) dump(r, "after", row->name, g, graph_hash(g) == graph_hash(r->g));
    arena_close(r->temp);
    r->temp = own;
    r->g = g;
    return true;
}

struct ir_graph *pipeline_run(struct pass_ctx *c, const struct pipeline_options *o,
                              const struct pass_row *rows, size_t nrows, const struct ir_graph *g)
{
    struct run r = {.c = c, .o = o, .rows = rows, .nrows = nrows, .g = g};
    c->report = o->report;
    if (!choose(&r)) return NULL;
    size_t errors = diag_errors(c->diag);
    bool ok = true;
    for (; ok && r.at < r.pass.n; r.at++) {
        bug_context(write_repro, &r);
        ok = step(&r);
        bug_context(NULL, NULL);
    }
    arena_close(r.temp);
    return ok && diag_errors(c->diag) == errors ? (struct ir_graph *)r.g : NULL;
}
