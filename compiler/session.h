/* What program.c, device.c and script.c share: the parts of a session. */
#ifndef STRATA_COMPILER_SESSION_H
#define STRATA_COMPILER_SESSION_H
#include "compiler/program.h"
#include "runtime/gpu_exec.h"
#include "runtime/reserve.h"

enum move {              /* how a value comes to a device and back, at every run */
            MOVE_in = 1, /* an input that no program of the session makes, and no parameter */
            MOVE_out = 2 /* an output that no program reads and that replaces nothing */
};
struct plan {
    struct program *program;
    struct ir_bind bind;
    struct lowered *l;
    void *slot; /* inputs and outputs of run-time size; on a device their mirror */
    struct exec *exec;
    struct plan_value *value;
    uint8_t *move; /* enum move of each value */
    /* on a device */
    cu_ptr device_slot;
    struct gpu_exec *gpu_exec;
    struct gpu_recording *recording; /* of all steps, from the second run on */
    unsigned placed;                 /* addresses and recording are of this generation */
    bool ran;
};
struct program {
    struct session *s;
    const char *name;
    const struct ir_graph *g; /* stage K */
    VEC(struct plan *) plan;
};

/* Persistent memory of a device: bytes from..to of the arena. It grows by pieces and never moves;
 * no value lies in two. */
struct piece {
    uint64_t from, to;
    cu_ptr at;
};
struct device {
    struct gpu *gpu; /* NULL: the session runs on the CPU, and the rest is unused */
    VEC(struct piece) persistent;
    cu_ptr scratch;
    uint64_t scratch_bytes;
    unsigned generation; /* goes up when scratch moves */
    VEC(struct CUmod_st *) module;
    VEC(struct CUfunc_st *) fn;
    struct CUfunc_st *combine;
    enum rt_status failed; /* the first failure of a run; nothing runs after it */
    struct rt_error failure;
};

struct session {
    struct arena *a;
    struct session_options o;
    struct cg_target target;
    struct layout layout;
    struct reserve persistent, scratch; /* on a device `persistent` is a mirror */
    struct reserve weights;
    struct pool *pool;
    struct jit *jit;
    VEC(struct program *) program;
    struct map loaded; /* symbol: index + 1 into fn */
    VEC(sa_kernel *) fn;
    VEC(struct plan_value *) own; /* of session_value */
    VEC(struct script *) script;
    struct device device;
};

/* "cuda" or "cuda:N": opens it and sets the session's architecture. */
enum rt_status device_open(struct session *s, const char *name, struct rt_error *err);
void device_close(struct session *s);
/* What session_compile does on a device, once the mirror has memory. */
enum rt_status device_compile(struct session *s, struct jit_report *rep, struct rt_error *err);
/* Launches the steps of a plan; inputs and results are the caller's matter. */
enum rt_status device_launch(struct plan *p, struct rt_error *err);
/* plan_run on a device. */
void device_run(struct plan *p);
/* Where a place of the persistent arena is on the device; 0 on a CPU. */
cu_ptr device_persistent(const struct session *s, uint64_t offset);
/* session_combine on a device, without waiting. */
enum rt_status device_combine(struct session *s, struct session_span to, struct session_span a,
                              struct session_span b, enum combine_op op, struct rt_error *err);

void script_close(struct script *x);
#endif
