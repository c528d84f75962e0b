/* The driver others use: graphs in, things that run out.
 *
 *   session_open(&options, &s, &err)
 *   struct program *train = program_open(s, graph, "train", bind);   passes, once
 *   struct plan *plan = program_plan(train, 8, 256);                 memory plan and steps, per (B,
 * T) session_compile(s, NULL, &err)                                   kernels of all plans together
 *   float *w = plan_value(plan, "model.norm.weight")->p; ... plan_run(plan);
 *
 * Named values of constant size (parameters, gradients, moments, loss) are at one place for all
 * programs of a session, and an output new.NAME is NAME after the run.
 *
 * On a device (session_options.device) plan_value.p is a mirror in the host's memory, and the value
 * itself lies on the device. At every plan_run come
 *   to the device   inputs that no program of the session makes as NAME or new.NAME, and that are
 *                   no parameters: tokens, targets, count, hyper, past, pages ...
 *   back            outputs that no program reads and that are not new.NAME: logits, ctl, sumsq ...
 * All others (parameters, moments, caches, gradients and loss beside an optimiser) stay where they
 * are, and session_push and session_pull move them: push after the host has set them, pull before
 * it reads them. On a CPU both do nothing. compiler/script.h runs several plans as one. */
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
    const char *cpu;    /* native (also NULL), x86-64-v3, x86-64-v4 */
    const char *device; /* runs on cuda or cuda:N; NULL or cpu: on the CPU */
    const char *gpu;    /* plans only, for a GPU of this architecture, as sm_90a; NULL: for what it
                         * runs on */
    bool no_library;    /* on a GPU all products by kernels of ours, whose sums do not depend on how
                         * many rows there are */
    unsigned streams;   /* on a GPU: steps side by side in so many; 0: as many as there are */
    unsigned threads;   /* 0: as pool_open */
    struct diag *diag;  /* for passes and for places in the specification; outlives the session */
    struct pipeline_options pipeline;
    uint64_t cache_bytes; /* as jit_options */
};
/* Starts no threads, and needs neither a compiler nor the cpu it plans for, before session_compile;
 * a device is opened. RT_user for an unknown cpu or device. */
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
/* All its plans so far, in the order they were made. */
struct plan *const *program_plans(const struct program *p, size_t *n);
/* C text of all kernels of that plan, with a header and a comment per kernel; made of what
 * `title` says (specification name and hash, say). */
void program_emit_c(struct program *p, int64_t B, int64_t T, const char *title, struct sb *out);

/* Makes all plans so far ready: memory, threads, and every kernel that is not loaded yet, compiled
 * together. Quick when nothing is missing. rep may be NULL. Statuses as jit_load, exec_open. */
enum rt_status session_compile(struct session *s, struct jit_report *rep, struct rt_error *err);
/* The device; NULL on a CPU. */
const struct gpu_about *session_device(const struct session *s);
/* Bytes of the device that nobody has. */
enum rt_status session_memory(const struct session *s, size_t *left, struct rt_error *err);
/* RT_ok, or the first failure of the device in a run or a script: none runs after it. */
enum rt_status session_status(const struct session *s, struct rt_error *err);
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
    uint64_t device; /* its address on the device; 0 on a CPU */
};
/* From the host's mirror to the device, and back; nothing on a CPU. */
enum rt_status session_push(struct session *s, const struct plan_value *v, struct rt_error *err);
enum rt_status session_pull(struct session *s, const struct plan_value *v, struct rt_error *err);

/* Parameters of serving programs (build_options.store) lie in an arena of their own, SA_weights,
 * which is the same bytes whatever CPU and plans: its items in the order of their offsets (valid
 * until the next program_plan), its size, and, after session_compile, its memory.
 * compiler/pack.h fills it. They are no plan values. */
const struct layout_stored *session_stored(const struct session *s, size_t *n);
uint64_t session_weights_bytes(const struct session *s);
void *session_weights(const struct session *s);

/* Memory beside the values of plans: `count` floats, zero at first, ready after the next
 * session_compile. Names differ from all others. */
const struct plan_value *session_value(struct session *s, const char *name, int64_t count);
/* Floats in a row, wherever the session runs. */
struct session_span {
    float *p;
    uint64_t device;
    size_t n;
};
enum combine_op { COMBINE_sum, COMBINE_max, COMBINE_copy };
/* to[i] = a[i] + b[i], a[i] > b[i] ? a[i] : b[i], or a[i], for all i of `to`, which may be a or b.
 * On a CPU by the pool. */
void session_combine(struct session *s, struct session_span to, struct session_span a,
                     struct session_span b, enum combine_op op);

/* An input, parameter or output of a plan that is ready; NULL where it has no such name. */
const struct plan_value *plan_value(const struct plan *plan, const char *name);
/* All of them, in the order of the graph: parameters and inputs, then outputs. */
const struct plan_value *plan_values(const struct plan *plan, size_t *n);
/* Runs all steps of a plan that is ready. Allocates nothing. On a device it ends with the outputs
 * in their mirrors; a failure is kept for session_status. */
void plan_run(struct plan *plan);
struct program *plan_program(const struct plan *plan);
/* Its steps, and the node of each. */
const struct lowered *plan_lowered(const struct plan *plan);
struct ir_bind plan_bind(const struct plan *plan);
/* The plan for others to run, kernels with their addresses, and the session's memory of its arenas;
 * on a CPU, once it is ready. */
const struct sa_plan *plan_flat(const struct plan *plan, void *memory[SA_external]);
/* Whether it can run: a session_compile came after program_plan. */
bool plan_ready(const struct plan *plan);
/* Measures every step of a ready plan from now on, from zero (on), or stops. */
void plan_profile(struct plan *plan, bool on);
/* Per step of plan_lowered; NULL where nothing was measured. On a device every step's time has that
 * of measuring in it, plan_event_seconds. */
const struct exec_tally *plan_tally(const struct plan *plan);
double plan_event_seconds(const struct plan *plan);
/* Planned bytes per arena: persistent is that of all programs of the session together, scratch is
 * shared by all plans (the largest counts), slot is this plan's own. */
void program_memory(const struct plan *plan, uint64_t bytes[SA_external]);
/* Numbers of a plan: steps, distinct kernels, steps that are products of a library, and the scratch
 * bytes that every thread needs. */
struct plan_size {
    uint32_t steps, kernels, products;
    uint64_t thread_scratch;
};
struct plan_size plan_size(const struct plan *plan);
/* Bytes that the session's graphs and plans take in this process. */
size_t session_bytes(const struct session *s);
/* Steps, places and lifetimes as text. */
void plan_print(const struct plan *plan, struct sb *out);
#endif
