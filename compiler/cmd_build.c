#include "compiler/build_app.h"
#include "compiler/compile_cuda.h"
#include "compiler/cuda_units.h"
#include "compiler/tokens.h"
#include "codegen/text.h"
#include "runtime/checkpoint.h"
#include "runtime/mem.h"
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static const char help[] =
    "usage: strata build SPEC --weights W -o APP [--target TARGET] [--dtype D] [--beside]\n"
    "                    [--lib] [--set KEY=VALUE]\n\n"
    "Makes one program of a spec and its weights: a static executable with kernels, plans,\n"
    "tokenizer and weights, that needs nothing else where it runs. 'APP --help' tells what it "
    "can.\n"
    "The same inputs give the same bytes. Sequences at a time and their context are those of the\n"
    "spec (serve.max_sequences, serve.max_context).\n\n"
    "  strata build examples/tiny-moe/spec.yaml --weights out/tiny-moe -o tiny-moe\n"
    "  ./tiny-moe generate --prompt 'And God said' --temperature 0.8\n\n"
    "  --weights W        safetensors file, Hugging Face folder, step folder or run folder\n"
    "  --target TARGET    cpu (default): kernels for several processors, the best of which is\n"
    "                     chosen at the start; cpu:x86-64-v3, cpu:x86-64-v4: for one kind "
    "only.\n"
    "                     cuda:sm_90a, cuda:sm_80 ...: for one NVIDIA GPU, whose driver the\n"
    "                     program loads; needs NVRTC to build\n" RUN_DTYPE_HELP
    "  --beside           weights go to APP.weights instead of into the program\n"
    "  --lib              APP is a folder: a C library, its header, and the model\n"
    "  --set KEY=VALUE    change a value of the spec\n";

struct build {
    struct cli c;
    struct run r;
    struct run_options o;
    const char *out, *target, *weights;
    bool beside, lib;
    char found[PATH_MAX]; /* the weights */
    struct app_plans plans;
    struct tokenizer *tok;
    struct object_set set[CPU_KINDS];
    size_t num_sets;
    object_paths object; /* to link */
    struct str *cubin;   /* on a GPU */
    size_t num_cubins;
    char *dir; /* for what is compiled */
};

static const char *stored_as(enum ir_store s)
{
    if (s == STORE_i8) return "int8";
    return s == STORE_bf16 || s == STORE_rows_bf16 ? "bf16" : "fp32";
}

/* The model's name as part of a file's: of a library and its header. */
static const char *file_name(struct build *b)
{
    const char *name = b->r.model->name;
    char *out = str_dup(b->c.arena, str_of(name && *name ? name : "model"));
    for (char *p = out; *p; p++)
        if (!isalnum((unsigned char)*p) && !strchr("-_.", *p)) *p = '_';
    return out;
}

/* The kinds of processors that a target names. */
static void choose_sets(struct build *b, bool bf16)
{
    struct arena *a = b->c.arena;
    const char *t = b->target;
    if (strcmp(t, "cpu") && !str_starts(str_of(t), "cpu:"))
        cli_fail(RT_usage,
                 "no target '%s': it is cpu, cpu:x86-64-v3, cpu:x86-64-v4, "
                 "cpu:x86-64-v4-bf16 or cuda:sm_90a, say",
                 t);
    enum cpu_kind only = t[3] ? cpu_find(t + 4) : CPU_KINDS;
    if (t[3] && only == CPU_KINDS)
        cli_fail(RT_usage, "no processor '%s': it is x86-64-v3, x86-64-v4 or x86-64-v4-bf16",
                 t + 4);
    for (enum cpu_kind k = CPU_v3; k < CPU_KINDS; k++)
        if (only == k || (!t[3] && (bf16 || !cpu_about(k)->bf16_dot)))
            object_set_init(&b->set[b->num_sets++], a, k);
}

/* For which kernels are compiled by NVRTC. */
static void choose_gpu(struct build *b)
{
    if (b->lib) cli_fail(RT_usage, "a library (--lib) runs on CPUs only");
    if (!str_starts(str_of(b->target), "cuda:"))
        cli_fail(RT_usage, "target %s needs an architecture, as cuda:sm_90a", b->target);
    b->o.gpu = compile_cuda_arch(&b->c, b->target, "cubin");
    object_set_init(&b->set[b->num_sets++], b->c.arena, CPU_v3);
}

static void open_tokenizer(struct build *b)
{
    struct stat st;
    const char *from = b->found;
    if (!stat(from, &st) && !S_ISDIR(st.st_mode)) from = io_dirname(b->c.arena, from);
    cli_check(&b->c, tokens_open(b->r.model, from, &b->tok, &b->c.err));
}

static void add_kernels(struct build *b, struct program *p)
{
    size_t n;
    struct plan *const *plan = program_plans(p, &n);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < b->num_sets; k++)
            object_set_add(&b->set[k], b->c.arena, plan_lowered(plan[i]));
}

/* Kernels of a GPU to cubins. */
static void compile_cubins(struct build *b)
{
    struct arena *a = b->c.arena;
    const struct object_set *s = &b->set[0];
    uint32_t *unit_of = NEW(a, uint32_t, s->text.n);
    struct nvrtc_image *image;
    cli_check(&b->c, cuda_compile(a, s->text.p, s->text.n, b->o.gpu, 0, unit_of, &image,
                                  &b->num_cubins, &b->c.err));
    b->cubin = NEW(a, struct str, b->num_cubins + 1);
    for (size_t i = 0; i < b->num_cubins; i++) b->cubin[i] = image[i].code;
}

static void compile(struct build *b)
{
    struct arena *a = b->c.arena;
    const char *tmp = getenv("TMPDIR");
    add_kernels(b, b->plans.program);
    add_kernels(b, b->plans.score);
    if (b->plans.depth) add_kernels(b, b->plans.depth);
    if (b->o.gpu) compile_cubins(b);
    for (size_t k = 0; !b->o.gpu && k < b->num_sets; k++)
        object_set_text(&b->set[k], a, "strata_peak_read", str_of(cg_text_peak));
    b->dir = str_fmt(a, "%s/strata-build-XXXXXX", tmp && *tmp ? tmp : P_tmpdir);
    if (!mkdtemp(b->dir))
        cli_fail(RT_machine, "cannot make a folder like '%s': %s", b->dir, strerror(errno));
    if (b->o.gpu) return;
    enum rt_status st = objects_make(a, b->dir, b->set, b->num_sets, &b->object, &b->c.err);
    if (st) io_remove_tree(b->dir);
    cli_check(&b->c, st);
}

/* The executable's bytes; nothing for a library, which is then made. */
static enum rt_status link_all(struct build *b, struct str *program)
{
    struct arena *a = b->c.arena;
    struct rt_error *err = &b->c.err;
    const char *elf = str_fmt(a, "%s/program", b->dir), *header, *runtime;
    *program = (struct str){"", 0};
    RT_TRY(app_beside(a,
                      b->lib     ? "strata-lib.o"
                      : b->o.gpu ? "strata-gpu.o"
                                 : "strata-app.o",
                      &runtime, err));
    vec_push(a, &b->object, runtime);
    if (!b->lib) {
        RT_TRY(app_link(a, b->object.p, b->object.n, !b->o.gpu, elf, err));
        int e = io_read(a, elf, SIZE_MAX / 2, program);
        return e ? rt_fail(err, RT_machine, "cannot read '%s': %s", elf, strerror(e)) : RT_ok;
    }
    const char *name = file_name(b);
    struct str text;
    int e = io_mkdirs(b->out);
    if (e) return rt_fail(err, RT_user, "cannot make the folder '%s': %s", b->out, strerror(e));
    RT_TRY(app_archive(a, b->dir, b->object.p, b->object.n, str_fmt(a, "%s/lib%s.a", b->out, name),
                       err));
    RT_TRY(app_beside(a, "strata-lib.h", &header, err));
    const char *to = str_fmt(a, "%s/%s.h", b->out, name);
    e = io_read(a, header, 1 << 20, &text);
    if (!e) e = io_write_atomic(to, text.p, text.n);
    return e ? rt_fail(err, RT_machine, "cannot write '%s': %s", to, strerror(e)) : RT_ok;
}

static void report(struct build *b, const struct app_sizes *z, double compiled, double all)
{
    struct arena *a = b->c.arena;
    const char *name = b->lib ? str_fmt(a, "%s/%s.model", b->out, file_name(b)) : b->out;
    printf("%s: %s of program, %s of plans (%zu), %s of weights as %s%s\n", name,
           cli_bytes(a, (double)z->program), cli_bytes(a, (double)z->plans),
           app_plans_count(b->plans.program), cli_bytes(a, (double)z->weights),
           stored_as(b->r.store), b->beside ? " beside it" : "");
    printf("%zu kernels for", b->set[0].symbol.n);
    for (size_t i = 0; i < b->num_sets; i++)
        printf("%s %s", i ? "," : "", b->o.gpu ? b->target : cpu_about(b->set[i].cpu)->name);
    printf("; compiled in %.1f s, %.1f s in all\n", compiled, all);
}

static void write_all(struct build *b, struct str program, struct app_sizes *z)
{
    struct cli *c = &b->c;
    const char *model = str_fmt(c->arena, "%s/%s.model", b->out, file_name(b));
    struct app_content x = {.run = &b->r,
                            .plans = &b->plans,
                            .tok = b->tok,
                            .dtype = stored_as(b->r.store),
                            .target = b->target,
                            .beside = b->beside ? str_fmt(c->arena, "%s.weights", b->out) : NULL};
    x.cubin = b->cubin, x.num_cubins = b->num_cubins;
    cli_check(c, pack_open(b->r.params, b->found, c->diag, &x.weights, &c->err));
    cli_check(c, app_write(c->arena, b->lib ? model : b->out, program, &x, z, &c->err));
    pack_close(x.weights);
    cli_diagnostics(c); /* tensors that are not used */
}

int cmd_build(int argc, char **argv)
{
    struct build b = {.target = "cpu", .o = {.no_library = true}};
    struct app_sizes z;
    struct str program;
    double begin = mem_seconds();
    cli_parse(&b.c, argc, argv, help, 1,
              CLI_OPTIONS({"weights", CLI_text, &b.weights}, {"output", CLI_text, &b.out},
                          {"target", CLI_text, &b.target}, {"beside", CLI_flag, &b.beside},
                          {"lib", CLI_flag, &b.lib}, RUN_DTYPE(b.o)));
    if (!b.weights || !b.out) cli_fail(RT_usage, "build needs --weights W and -o APP");
    if (b.lib && b.beside) cli_fail(RT_usage, "--lib always leaves the weights beside the library");
    const struct model *m = cli_model(&b.c, b.c.arg.p[0]);
    if (str_starts(str_of(b.target), "cuda")) choose_gpu(&b);
    run_open(&b.r, &b.c, m, &b.o);
    if (!b.o.gpu) choose_sets(&b, m->train.precision == PREC_bf16);
    cli_check(&b.c, ckpt_weights(b.weights, run_refused, &b.c, b.found, &b.c.err));
    open_tokenizer(&b);
    b.plans = app_plans_make(&b.r);
    double start = mem_seconds();
    compile(&b);
    double compiled = mem_seconds() - start;
    enum rt_status st = link_all(&b, &program);
    io_remove_tree(b.dir);
    cli_check(&b.c, st);
    write_all(&b, program, &z);
    report(&b, &z, compiled, mem_seconds() - begin);
    tokenizer_close(b.tok);
    run_close(&b.r);
    return 0;
}
