/* The driver others use: graphs in, things that run out.
 *
 *   session_open(&options, &s, &err)
 *   struct program *train = program_open(s, graph, "train", bind);   passes, once
 *   struct plan *plan = program_plan(train, 8, 256);                 memory plan and steps, per (B,
 * T) session_compile(s, NULL, &err)                                   kernels of all plans together
 *   float *w = plan_value(plan, "model.norm.weight")->p; ... plan_run(plan);
 *
 * Named values of constant size (parameters, gradients, moments, loss) are at one place for all
 * programs of a session, and an output new.NAME is NAME after the run. */
#ifndef STRATA_COMPILER_PROGRAM_H
#define STRATA_COMPILER_PROGRAM_H
#include "compiler/lower.h"
#include "compiler/pipeline.h"
#include "runtime/exec.h"
#include "runtime/jit.h"

struct session;
struct program;
struct plan;

struct session_options {
    const char *cpu;   /* native (also NULL), x86-64-v3, x86-64-v4 */
    const char *gpu;   /* plans for a GPU of this architecture, as sm_90a; NULL: for the CPU */
    unsigned threads;  /* 0: as pool_open */
    struct diag *diag; /* for passes and for places in the specification; outlives the session */
    struct pipeline_options pipeline;
    uint64_t cache_bytes; /* as jit_options */
};
/* Starts no threads, and needs neither a compiler nor the cpu it plans for, before session_compile.
 * RT_user for an unknown cpu. */
enum rt_status session_open(const struct session_options *o, struct session **out,
                            struct rt_error *err);
/* Closes the session with all its programs and plans. NULL is fine. */
void session_close(struct session *s);

/* Runs the pipeline over a T graph (or takes a K graph as it is). The graph's arena outlives the
 * session. `name` goes into messages; bind are the sizes that cost decisions look at. NULL means
 * diagnostics. */
struct program *program_open(struct session *s, const struct ir_graph *g, const char *name,
                             struct ir_bind bind);
/* The K graph. */
const struct ir_graph *program_graph(const struct program *p);
/* The plan for B sequences of T tokens, made on first use. It needs session_compile before it runs;
 * planning alone allocates no memory for values. */
struct plan *program_plan(struct program *p, int64_t B, int64_t T);
/* C text of all kernels of that plan, with a header and a comment per kernel; made of what
 * `title` says (specification name and hash, say). */
void program_emit_c(struct program *p, int64_t B, int64_t T, const char *title, struct sb *out);

/* Makes all plans so far ready: memory, threads, and every kernel that is not loaded yet, compiled
 * together. Quick when nothing is missing. rep may be NULL. Statuses as jit_load, exec_open. */
enum rt_status session_compile(struct session *s, struct jit_report *rep, struct rt_error *err);
/* Whether the session's CPU has bf16 products (train.precision: bf16). */
bool session_bf16(const struct session *s);
/* The pool, for work of the caller between runs; NULL before session_compile. */
struct pool *session_pool(const struct session *s);

/* A named value in memory: valid as long as the session. */
struct plan_value {
    const char *name;
    void *p;
    enum sa_dtype dtype;
    uint32_t rank;
    int64_t dims[SA_RANK];
    int64_t count; /* elements */
    size_t bytes;
};
/* An input, parameter or output of a plan that is ready; NULL where it has no such name. */
const struct plan_value *plan_value(const struct plan *plan, const char *name);
/* All of them, in the order of the graph: parameters and inputs, then outputs. */
const struct plan_value *plan_values(const struct plan *plan, size_t *n);
/* Runs all steps of a plan that is ready. Allocates nothing. */
void plan_run(struct plan *plan);
struct program *plan_program(const struct plan *plan);
/* Its steps, and the node of each. */
const struct lowered *plan_lowered(const struct plan *plan);
struct ir_bind plan_bind(const struct plan *plan);
/* For profiling (exec_profile); NULL before session_compile. */
struct exec *plan_exec(const struct plan *plan);
/* Planned bytes per arena: persistent is that of all programs of the session together, scratch is
 * shared by all plans (the largest counts), slot is this plan's own. */
void program_memory(const struct plan *plan, uint64_t bytes[SA_external]);
/* Numbers of a plan: steps, distinct kernels, and the scratch bytes that every thread needs. */
struct plan_size {
    uint32_t steps, kernels;
    uint64_t thread_scratch;
};
struct plan_size plan_size(const struct plan *plan);
/* Bytes that the session's graphs and plans take in this process. */
size_t session_bytes(const struct session *s);
/* Steps, places and lifetimes as text. */
void plan_print(const struct plan *plan, struct sb *out);
#endif
