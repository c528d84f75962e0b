#include "compiler/caches.h"
#include "compiler/compile_cuda.h"
#include "compiler/run.h"
#include "runtime/cc.h"
#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char help[] =
    "usage: strata compile SPEC --emit FORM -o PATH [--target TARGET] [--program NAME]\n"
    "                      [--batch B] [--seq T]\n\n"
    "Writes what the compiler makes of a spec, and prints how many kernels that is. Needs no "
    "GPU.\n\n"
    "  strata compile specs/bench-a.yaml --emit c -o bench.c --program train\n"
    "  strata compile specs/bench-a.yaml --emit ir -o bench.ir --dump-ir=after:dce\n"
    "  strata compile specs/kimi-tiny.yaml --target cuda:sm_90a --emit cubin -o kimi.cubin\n\n"
    "  --target TARGET    cpu (default); cuda:sm_80, cuda:sm_90a, cuda:sm_100 ...\n"
    "  --emit FORM        ir: the kernel graph with its plan (steps, places, lifetimes)\n"
    "                     c: the C text of all kernels; obj: that text compiled to an object file\n"
    "                     cuda: the CUDA C text of all kernels; ptx, cubin: that text compiled by\n"
    "                     NVRTC, which is only needed for these two. Large programs are several\n"
    "                     cubins, x.1.cubin, x.2.cubin ...; --report lists every kernel's "
    "registers,\n"
    "                     and why one is not of the faster form that there is\n"
    "  --program NAME     train (default): loss and gradients; loss, forward, apply (optimiser);\n"
    "                     prefill, decode: one program over caches, its plan for pieces of a "
    "prompt or\n"
    "                     for one more token\n"
    "  --batch B          sequences; default: those of a micro-batch of the spec, else 1\n"
    "  --seq T            positions; default: train.seq_len, else 128; 256 of prefill, 1 of "
    "decode\n" RUN_HELP;

enum { CHUNK = 256 }; /* tokens of a prompt that prefill takes at once */

struct compile {
    struct cli c;
    struct run r;
    const struct model *model;
    struct run_options o;
    const char *target, *emit, *program, *out;
    int64_t B, T;
    struct program *p;
};

/* The target's forms of --emit. */
static void check_words(struct compile *k)
{
    static const char *const forms[2][4] = {{"ir", "c", "obj"}, {"ir", "cuda", "ptx", "cubin"}};
    bool gpu = str_starts(str_of(k->target), "cuda:"), known = false;
    if (!k->out || !k->emit) cli_fail(RT_usage, "compile needs --emit and -o PATH");
    if (!strcmp(k->target, "cuda"))
        cli_fail(RT_usage, "target cuda needs an architecture, as cuda:sm_90a");
    if (!gpu && strcmp(k->target, "cpu"))
        cli_fail(RT_usage, "no target '%s': it is cpu or cuda:sm_90a, say", k->target);
    for (int i = 0; i < 4; i++) known |= forms[gpu][i] && !strcmp(k->emit, forms[gpu][i]);
    if (!known)
        cli_fail(RT_usage, "no form '%s' for target %s: --emit is %s", k->emit, k->target,
                 gpu ? "ir, cuda, ptx or cubin" : "ir, c or obj");
    if (gpu) k->o.gpu = compile_cuda_arch(&k->c, k->target, k->emit);
    if (k->B < 0 || k->T < 0 || k->B > 1 << 20 || k->T > 1 << 24 || k->B * k->T > 1 << 28)
        cli_fail(RT_usage,
                 "--batch and --seq must be at least 1, and together at most 2^28 tokens");
}

static void open_program(struct compile *k)
{
    static const char *const name[] = {"forward", "loss", "train", "decode"};
    struct run *r = &k->r;
    const struct caches x = caches_served(k->model, r->params, k->o.gpu != NULL);
    const struct build_options o = {.pages = x.pages, .states = x.states, .context = x.context};
    const char *program = strcmp(k->program, "prefill") ? k->program : "decode";
    for (int i = 0; i < 4; i++)
        if (!strcmp(program, name[i])) k->p = run_program(r, (enum build_program)i, &o, k->B, k->T);
    if (k->p) return;
    if (strcmp(k->program, "apply"))
        cli_fail(RT_usage, "no program '%s': it is train, loss, forward, prefill, decode or apply",
                 k->program);
    if (!r->model->train.present)
        cli_fail(RT_user, "the apply program needs a train section, which this spec has not");
    k->B = k->T = 1;
    k->p = program_open(r->session, build_apply(k->c.arena, r->model, r->params), "apply",
                        (struct ir_bind){1, 1});
    if (k->p) return;
    cli_diagnostics(&k->c);
    exit(EXIT_USER);
}

static void write_text(const char *path, struct str s)
{
    int e = io_write_atomic(path, s.p, s.n);
    if (e)
        cli_fail(e == ENOSPC || e == EIO ? RT_machine : RT_user, "cannot write '%s': %s", path,
                 strerror(e));
}

static struct str c_text(struct compile *k)
{
    struct sb s = {0};
    const struct model *m = k->r.model;
    program_emit_c(k->p, k->B, k->T, str_fmt(k->c.arena, "%s (%s)", m->name, m->path), &s);
    return sb_take(&s, k->c.arena);
}

static struct str ir_text(struct compile *k)
{
    struct sb s = {0}, plan = {0};
    graph_print(program_graph(k->p), k->c.diag, &s);
    plan_print(program_plan(k->p, k->B, k->T), &plan);
    /* comments of the graph text */
    for (const char *p = plan.p, *e; (e = strchr(p, '\n')); p = e + 1)
        sb_printf(&s, "; %.*s\n", (int)(e - p), p);
    sb_free(&plan);
    return sb_take(&s, k->c.arena);
}

/* Bytes of machine code: the executable sections of an ELF file. */
static uint64_t code_bytes(struct str elf)
{
    Elf64_Ehdr h;
    uint64_t sum = 0;
    if (elf.n < sizeof h) return 0;
    memcpy(&h, elf.p, sizeof h);
    for (unsigned i = 0; i < h.e_shnum; i++) {
        Elf64_Shdr s;
        uint64_t at = h.e_shoff + (uint64_t)i * sizeof s;
        if (at > elf.n || elf.n - at < sizeof s) return 0;
        memcpy(&s, elf.p + at, sizeof s);
        if (s.sh_flags & SHF_EXECINSTR) sum += s.sh_size;
    }
    return sum;
}

/* Compiles in a folder of its own, so that the file at PATH is whole or absent. */
static void write_object(struct compile *k)
{
    struct arena *a = k->c.arena;
    const char *clang, *tmp = getenv("TMPDIR");
    struct str object;
    cli_check(&k->c, cc_find(a, &clang, &k->c.err));
    if (!clang) cli_fail(RT_user, "clang is not installed: apt-get install clang-14");
    char *dir = str_fmt(a, "%s/strata-compile-XXXXXX", tmp && *tmp ? tmp : P_tmpdir);
    if (!mkdtemp(dir))
        cli_fail(RT_machine, "cannot make a folder like '%s': %s", dir, strerror(errno));
    const struct cc_unit unit = {str_fmt(a, "%s/kernels.c", dir), str_fmt(a, "%s/kernels.o", dir),
                                 str_fmt(a, "%s/log", dir), NULL};
    write_text(unit.source, c_text(k));
    enum rt_status st = cc_compile(a, clang, cc_object_flags(a, k->o.cpu ? k->o.cpu : "native"),
                                   &unit, 1, &k->c.err);
    int e = st ? 0 : io_read(a, unit.object, SIZE_MAX / 2, &object);
    io_remove_tree(dir);
    cli_check(&k->c, st);
    if (e) cli_fail(RT_machine, "cannot read '%s': %s", unit.object, strerror(e));
    write_text(k->out, object);
    printf("machine code %s\n", cli_bytes(a, (double)code_bytes(object)));
}

int cmd_compile(int argc, char **argv)
{
    struct compile k = {.target = "cpu", .program = "train"};
    cli_parse(&k.c, argc, argv, help, 1,
              CLI_OPTIONS({"target", CLI_text, &k.target}, {"emit", CLI_text, &k.emit},
                          {"program", CLI_text, &k.program}, {"output", CLI_text, &k.out},
                          {"batch", CLI_int, &k.B}, {"seq", CLI_int, &k.T}, RUN_OPTIONS(k.o)));
    check_words(&k);
    const struct model *m = cli_model(&k.c, k.c.arg.p[0]);
    const struct train_spec *t = &m->train;
    k.model = m;
    bool prefill = !strcmp(k.program, "prefill"), decode = !strcmp(k.program, "decode");
    if (prefill || decode) {
        if (!k.B) k.B = 1;
        if (!k.T) k.T = prefill ? CHUNK : 1;
        k.o.no_library = true; /* as generate does it */
    }
    if (!k.B) k.B = t->present ? t->batch_size / t->micro_batches : 1;
    if (!k.T) k.T = t->present ? t->seq_len : 128;
    if (k.B * k.T > model_max_tokens(m))
        cli_fail(RT_user, "a program of this model can have %lld tokens, not %lld",
                 (long long)model_max_tokens(m), (long long)(k.B * k.T));
    run_open(&k.r, &k.c, m, &k.o);
    open_program(&k);
    const struct plan_size z = plan_size(program_plan(k.p, k.B, k.T));
    run_texts();
    struct str c = c_text(&k);
    if (k.o.report && k.o.gpu) {
        struct sb text = {0};
        lower_routes(plan_lowered(program_plan(k.p, k.B, k.T)), &text);
        fwrite(text.p, 1, text.n, stderr);
        sb_free(&text);
    }
    printf("program %s, B %lld, T %lld: %u steps, %u distinct kernels, ", k.program, (long long)k.B,
           (long long)k.T, z.steps, z.kernels);
    if (k.o.gpu) printf("%u products of cuBLAS, ", z.products);
    printf("%s of %s\n", cli_bytes(k.c.arena, (double)c.n), k.o.gpu ? "CUDA C" : "C");
    if (!strcmp(k.emit, "obj"))
        write_object(&k);
    else if (compile_cuda_form(k.emit))
        compile_cuda(&k.c, plan_lowered(program_plan(k.p, k.B, k.T)), k.o.gpu, k.emit, k.out,
                     (unsigned)k.o.threads, k.o.report);
    else
        write_text(k.out, strcmp(k.emit, "ir") ? c : ir_text(&k));
    run_close(&k.r);
    return 0;
}
