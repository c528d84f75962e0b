/* Checkpoints of a training run: what is saved, and how a run goes on from it. */
#include "compiler/trainer.h"
#include <stdio.h>

/* First and second moments by parameter; keep[] says which exist. */
struct moments {
    float **p;
    bool *keep;
};

static struct moments moments(const struct trainer *t, struct arena *a, const char *which)
{
    const struct params *ps = t->run.params;
    struct moments m = {NEW(a, float *, ps->n), NEW(a, bool, ps->n)};
    for (size_t i = 0; i < ps->n; i++) {
        const struct plan_value *v = plan_value(t->apply, str_fmt(a, "%s%s", which, ps->p[i].name));
        m.keep[i] = v != NULL;
        if (v) m.p[i] = v->p;
    }
    return m;
}

/* Both moments from the device or to it; nothing on a CPU. */
static enum rt_status move_moments(const struct trainer *t, bool push, struct rt_error *err)
{
    struct session *s = t->run.session;
    size_t n;
    const struct plan_value *v = plan_values(t->apply, &n);
    for (size_t i = 0; i < n; i++) {
        if (strncmp(v[i].name, "m.", 2) && strncmp(v[i].name, "v.", 2)) continue;
        RT_TRY(push ? session_push(s, &v[i], err) : session_pull(s, &v[i], err));
    }
    return RT_ok;
}

/* How long every expert has been idle, as idle.model.layers.N.block_sparse_moe [E]. */
static void list_idle(const struct trainer *t, struct arena *a, tf_list *out)
{
    for (size_t i = 0; i < t->loads.n; i++) {
        const char *name = str_fmt(a, "idle.%s", t->loads.p[i].name + strlen("load."));
        struct tf_tensor x = {.name = name, .dtype = TF_F32, .rank = 1, .data = t->idle[i]};
        x.shape[0] = (int64_t)t->loads.p[i].n;
        vec_push(a, out, x);
    }
}

static void load_idle(struct trainer *t, const struct tensorfile *f, const char *path)
{
    struct cli *c = t->run.cli;
    for (size_t i = 0; i < t->loads.n; i++) {
        const char *name = str_fmt(c->arena, "idle.%s", t->loads.p[i].name + strlen("load."));
        const struct tf_tensor *x = tensorfile_find(f, name);
        if (!x || x->count != t->loads.p[i].n)
            cli_fail(RT_user, "%s: %s is not there, or not of %zu experts", path, name,
                     t->loads.p[i].n);
        cli_check(c, tf_read_f32(x, 0, x->count, t->idle[i], &c->err));
    }
}

static struct ckpt_state state_of(const struct trainer *t)
{
    struct ckpt_state s = {.n = 0};
    ckpt_state_set(&s, "skipped", (int64_t)t->skipped);
    ckpt_state_set(&s, "bad_in_row", (int64_t)t->bad_in_row);
    ckpt_state_set(&s, "data", (int64_t)dataset_fingerprint(t->data));
    return s;
}

enum rt_status trainer_save(struct trainer *t, struct ckpt_dir *dir, struct rt_error *err)
{
    run_pull(&t->run);
    RT_TRY(move_moments(t, false, err));
    struct arena *a = arena_open("save");
    tf_list model = {0}, opt = {0};
    struct moments m = moments(t, a, "m."), v = moments(t, a, "v.");
    weights_list(a, t->run.params, t->run.weights, NULL, "", &model);
    weights_list(a, t->run.params, m.p, m.keep, "m.", &opt);
    weights_list(a, t->run.params, v.p, v.keep, "v.", &opt);
    list_idle(t, a, &opt);
    struct ckpt_state state = state_of(t);
    struct ckpt_file file[1 + TOK_FILES] = {{"spec.yaml", str_of(t->run.model->canonical)}};
    const struct tf_meta meta = {"format", "pt"};
    struct ckpt_content c = {
        .step = t->step,
        .model = {.tensors = model.p, .count = model.n, .meta = &meta, .num_meta = 1},
        .optimizer = {.tensors = opt.p, .count = opt.n},
        .state = &state,
        .files = file,
        .num_files = 1};
    const struct tokenizer *tok = t->tokenizer;
    for (int i = 0; tok && tok->ops->file && i < TOK_FILES && tok->ops->file(tok, i); i++) {
        struct sb s = {0};
        tok->ops->save(tok, i, &s);
        file[c.num_files++] = (struct ckpt_file){tok->ops->file(tok, i), sb_take(&s, a)};
    }
    int64_t keep = t->run.model->train.checkpoint_keep;
    enum rt_status st = ckpt_save(dir, &c, keep > 0 ? (unsigned)keep : UINT32_MAX, err);
    arena_close(a);
    return st;
}

/* A run goes on under the spec it began with; what only watches or saves it may change. */
static void same_spec(struct trainer *t, const char *step_dir)
{
    struct cli *c = t->run.cli;
    struct str text;
    const char *path = str_fmt(c->arena, "%s/spec.yaml", step_dir);
    if (io_read(c->arena, path, 64 << 20, &text)) cli_fail(RT_machine, "cannot read %s", path);
    const struct model *was = spec_parse(c->arena, c->diag, path, text, NULL);
    if (!was) {
        cli_diagnostics(c);
        cli_fail(RT_user, "%s is not a spec that can be read", path);
    }
    const char *difference = spec_difference(c->arena, t->run.model, was);
    if (!difference) return;
    cli_fail(
        RT_user,
        "%s was saved by another spec: %s\n"
        "hint: Undo the change, or train into another checkpoint.dir (with --weights %s to start "
        "from these weights).",
        step_dir, difference, step_dir);
}

static void load_moments(struct trainer *t, const char *path)
{
    struct cli *c = t->run.cli;
    struct tensorfile *f;
    struct moments m = moments(t, c->arena, "m."), v = moments(t, c->arena, "v.");
    cli_check(c, tensorfile_open(path, &f, &c->err));
    cli_check(c, weights_read(t->run.params, f, path, "m.", m.keep, m.p, c->diag, &c->err));
    cli_check(c, weights_read(t->run.params, f, path, "v.", v.keep, v.p, c->diag, &c->err));
    load_idle(t, f, path);
    tensorfile_close(f);
    cli_check(c, move_moments(t, true, &c->err));
}

bool trainer_resume(struct trainer *t, const char *dir)
{
    struct cli *c = t->run.cli;
    char step_dir[PATH_MAX];
    uint64_t step;
    cli_check(c, ckpt_newest(dir, run_refused, c, step_dir, &step, &c->err));
    if (!*step_dir) return false;
    same_spec(t, step_dir);
    struct ckpt_state s;
    cli_check(c, ckpt_load_state(step_dir, &s, &c->err));
    int64_t skipped = 0, bad = 0, data = 0;
    if (!ckpt_state_get(&s, "skipped", &skipped) || !ckpt_state_get(&s, "bad_in_row", &bad) ||
        !ckpt_state_get(&s, "data", &data))
        cli_fail(RT_user, "%s/state.json lacks what a run continues from", step_dir);
    if ((uint64_t)data != dataset_fingerprint(t->data))
        cli_fail(RT_user, "the data is not what %s was trained on: %s has changed", step_dir,
                 t->run.model->train.data_path);
    const char *model = str_fmt(c->arena, "%s/model.safetensors", step_dir);
    cli_check(c, weights_load(t->run.params, model, t->run.weights, c->diag, &c->err));
    run_push(&t->run);
    load_moments(t, str_fmt(c->arena, "%s/optimizer.safetensors", step_dir));
    t->step = step, t->skipped = (uint64_t)skipped, t->bad_in_row = (unsigned)bad;
    return true;
}
