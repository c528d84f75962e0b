#include "compiler/cli.h"
#include "compiler/weights.h"

static const char help[] =
    "usage: strata init SPEC -o W.safetensors [--seed N] [--set KEY=VALUE]\n\n"
    "Writes freshly initialised float32 weights. The values of a tensor depend on the seed and "
    "its\n"
    "name only. Without --seed, train.seed of the spec is used.\n\n"
    "  strata init specs/tiny-attnres.yaml -o w.safetensors --seed 1\n";

/* Tensors are drawn one at a time into one buffer, so that models larger than memory can be made.
 */
struct draw {
    const struct params *ps;
    const struct param_part **part;
    const struct param **param;
    uint64_t seed;
    float *buf;
};

static const void *draw(void *ctx, size_t i)
{
    struct draw *d = ctx;
    const struct param_part *q = d->part[i];
    init_fill(d->param[i]->init, d->seed, rng_stream(q->tensor), 0, (size_t)part_count(q), d->buf);
    return d->buf;
}

int cmd_init(int argc, char **argv)
{
    struct cli c = {0};
    const char *out = NULL;
    int64_t seed = INT64_MIN; /* that of the spec */
    cli_parse(&c, argc, argv, help, 1,
              CLI_OPTIONS({"output", CLI_text, &out}, {"seed", CLI_int, &seed}));
    if (!out) cli_fail(RT_usage, "init needs -o FILE");
    if (seed < 0 && seed != INT64_MIN) cli_fail(RT_usage, "--seed must be at least 0");
    const struct model *m = cli_model(&c, c.arg.p[0]);
    const struct params *ps = params_of(c.arena, m);
    struct draw d = {.ps = ps, .seed = seed >= 0 ? (uint64_t)seed : m->train.seed};
    VEC(struct tf_tensor) t = {0};
    size_t most = 0, parts = 0;
    for (size_t i = 0; i < ps->n; i++) parts += ps->p[i].num_parts;
    d.part = NEW(c.arena, const struct param_part *, parts);
    d.param = NEW(c.arena, const struct param *, parts);
    for (size_t i = 0; i < ps->n; i++)
        for (size_t k = 0; k < ps->p[i].num_parts; k++) {
            const struct param_part *q = &ps->p[i].part[k];
            if ((size_t)part_count(q) > most) most = (size_t)part_count(q);
            d.part[t.n] = q;
            d.param[t.n] = &ps->p[i];
            vec_push(c.arena, &t, part_tensor(q));
        }
    d.buf = NEW(c.arena, float, most);
    const struct tf_meta meta = {"format", "pt"};
    const struct tf_content content = {t.p, t.n, &meta, 1, draw, &d};
    cli_check(&c, tensorfile_write(out, &content, &c.err));
    return 0;
}
