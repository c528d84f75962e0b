#include "compiler/build_app.h"
#include "compiler/caches.h"
#include "compiler/tokens.h"
#include "runtime/app.h"
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <sys/stat.h>

/* ---- plans ---- */

static struct program *open_program(struct run *r, const struct build_options *o)
{
    return run_program(r, BUILD_decode, o, 1, 1);
}

/* All that lm_cut and decoding need. */
static void make_plans(struct program *p, int64_t batch)
{
    for (int64_t T = 1; T <= LM_CHUNK; T += T < LM_STEP ? 1 : LM_STEP) program_plan(p, 1, T);
    for (int64_t B = 2; B <= batch; B++) program_plan(p, B, 1);
}

struct app_plans app_plans_make(struct run *r)
{
    const struct model *m = r->model;
    const struct caches c = caches_served(m, r->params, !store_in_panels(r->store));
    struct app_plans x = {.batch = m->serve_max_sequences};
    x.decode = (struct build_options){.pages = c.pages, .states = c.states, .context = c.context};
    struct build_options score = x.decode, depth = x.decode;
    score.all_logits = true;
    depth.depth_weights = true;
    x.program = open_program(r, &x.decode);
    x.score = open_program(r, &score);
    make_plans(x.program, x.batch);
    if (m->residual == RESIDUAL_attnres) {
        x.depth = open_program(r, &depth);
        make_plans(x.depth, x.batch);
    }
    program_plan(x.score, 1, 1);
    program_plan(x.score, 1, LM_STEP);
    program_plan(x.score, 1, APP_SCORE);
    return x;
}

size_t app_plans_count(struct program *p)
{
    size_t n;
    program_plans(p, &n);
    return n;
}

void app_plans_write(struct program *p, struct sb *out)
{
    struct arena *a = arena_open("plans");
    size_t n;
    struct plan *const *plan = program_plans(p, &n);
    struct plan_item *item = NEW(a, struct plan_item, n);
    for (size_t i = 0; i < n; i++) {
        const struct ir_bind b = plan_bind(plan[i]);
        item[i] = (struct plan_item){b.B, b.T, plan_lowered(plan[i])->plan};
        /* layouts have grown since this plan was made */
        program_memory(plan[i], item[i].plan.arena_bytes);
    }
    plan_file_write(item, n, out);
    arena_close(a);
}

/* ---- meta ---- */

/* The spec as resolved, with names in place of paths: the file must not depend on where it was
 * built. */
static struct str spec_text(struct arena *a, const struct model *m)
{
    const char *path[] = {m->tokenizer.path, m->train.data_path, m->train.checkpoint_dir};
    struct sb s = {0};
    for (const char *p = m->canonical; *p;) {
        size_t i = 0, k = sizeof path / sizeof *path;
        while (i < k && !(path[i] && path[i][0] == '/' && !strncmp(p, path[i], strlen(path[i]))))
            i++;
        if (i == k) {
            sb_char(&s, *p++);
            continue;
        }
        sb_str(&s, strrchr(path[i], '/') + 1);
        p += strlen(path[i]);
    }
    return sb_take(&s, a);
}

static json_t *stops_json(struct arena *a, const struct model *m, const struct tokenizer *t)
{
    size_t n;
    const int32_t *stop = tokens_stops(m, t, a, &n);
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++) json_array_append_new(list, json_integer(stop[i]));
    return list;
}

static json_t *tokenizer_json(struct arena *a, const struct model *m, const struct tokenizer *t)
{
    json_t *files = json_array();
    for (int i = 0; t && t->ops->file && i < TOK_FILES && t->ops->file(t, i); i++)
        json_array_append_new(files, json_string(t->ops->file(t, i)));
    return json_pack("{s:s, s:o, s:I, s:o}", "type", t ? t->ops->type : "none", "files", files,
                     "bos", (json_int_t)m->tokenizer.bos, "stop", stops_json(a, m, t));
}

/* Bytes of the weights that one token reads: of experts those it is sent to, and of an embedding
 * table that is no head a row. */
static uint64_t read_by_token(const struct run *r)
{
    uint64_t sum = 0;
    size_t n;
    const struct layout_stored *item = session_stored(r->session, &n);
    for (size_t i = 0; i < n; i++) {
        const struct param *p = params_find(r->params, item[i].name);
        uint64_t bytes = item[i].bytes;
        if (!strcmp(p->name, "model.embed_tokens.weight") && !r->model->tie_embeddings)
            bytes /= (uint64_t)p->dim[0];
        if (p->active_den) bytes = bytes * (uint64_t)p->active_num / (uint64_t)p->active_den;
        sum += bytes;
    }
    return sum;
}

static struct str meta_text(struct arena *a, const struct app_content *x, struct str spec,
                            uint64_t weight_hash)
{
    const struct run *r = x->run;
    const struct model *m = r->model;
    const struct app_plans *p = x->plans;
    char hex[33];
    hash_hex(spec.p, spec.n, hex);
    json_t *j = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:{s:I, s:I}, s:o}", "name",
        m->name ? m->name : "strata", "spec", hex, "target", x->target, "dtype", x->dtype, "vocab",
        (json_int_t)m->vocab_size, "context", (json_int_t)p->decode.context, "pages",
        (json_int_t)p->decode.pages, "states", (json_int_t)p->decode.states, "batch",
        (json_int_t)p->batch, "snapshots", (json_int_t)m->serve_snapshots, "parameters", "total",
        (json_int_t)params_total(r->params), "active", (json_int_t)params_active(r->params, m),
        "tokenizer", tokenizer_json(a, m, x->tok));
    CHECK(j);
    json_object_set_new(
        j, "weights",
        json_pack("{s:I, s:s, s:I, s:b}", "bytes", (json_int_t)session_weights_bytes(r->session),
                  "hash", str_fmt(a, "%016llx", (unsigned long long)weight_hash), "read_by_token",
                  (json_int_t)read_by_token(r), "beside", x->beside != NULL));
    if (m->tokenizer.chat_template)
        json_object_set_new(j, "chat_template", json_string(m->tokenizer.chat_template));
    char *text = json_dumps(j, JSON_INDENT(1));
    CHECK(text);
    struct str out = {str_dup(a, str_of(text)), strlen(text)};
    free(text);
    json_decref(j);
    return out;
}

/* ---- the file ---- */

struct sink {
    struct bundle_writer *w;
    struct rt_error *err;
};

static int into_bundle(void *ctx, const void *p, size_t n)
{
    struct sink *s = ctx;
    return bundle_write(s->w, p, n, s->err) ? EIO : 0;
}

static enum rt_status write_weights(const struct app_content *x, struct bundle_writer *w,
                                    uint64_t *hash, struct rt_error *err)
{
    struct sink s = {w, err};
    size_t n;
    const struct layout_stored *item = session_stored(x->run->session, &n);
    RT_TRY(bundle_section(w, "weights", err));
    RT_TRY(weights_pack_stream(x->weights, item, n, session_weights_bytes(x->run->session), NULL,
                               into_bundle, &s, err));
    *hash = bundle_hash(w);
    return RT_ok;
}

static enum rt_status write_section(struct bundle_writer *w, const char *name, struct str s,
                                    struct rt_error *err)
{
    RT_TRY(bundle_section(w, name, err));
    return bundle_write(w, s.p, s.n, err);
}

static enum rt_status write_plans(struct arena *a, struct bundle_writer *w, const char *name,
                                  struct program *p, struct app_sizes *sizes, struct rt_error *err)
{
    struct sb s = {0};
    if (!p) return RT_ok;
    app_plans_write(p, &s);
    sizes->plans += s.n;
    return write_section(w, name, sb_take(&s, a), err);
}

static enum rt_status write_small(struct arena *a, const struct app_content *x,
                                  struct bundle_writer *w, uint64_t weight_hash,
                                  struct app_sizes *sizes, struct rt_error *err)
{
    const struct tokenizer *t = x->tok;
    struct str spec = spec_text(a, x->run->model);
    for (size_t i = 0; i < x->num_cubins; i++)
        RT_TRY(write_section(w, str_fmt(a, "cubin/%zu", i), x->cubin[i], err));
    for (int i = 0; t && t->ops->file && i < TOK_FILES && t->ops->file(t, i); i++) {
        struct sb s = {0};
        t->ops->save(t, i, &s);
        RT_TRY(
            write_section(w, str_fmt(a, "tokenizer/%s", t->ops->file(t, i)), sb_take(&s, a), err));
    }
    RT_TRY(write_plans(a, w, "plans", x->plans->program, sizes, err));
    RT_TRY(write_plans(a, w, "depth", x->plans->depth, sizes, err));
    RT_TRY(write_plans(a, w, "score", x->plans->score, sizes, err));
    RT_TRY(write_section(w, "spec.yaml", spec, err));
    return write_section(w, "meta", meta_text(a, x, spec, weight_hash), err);
}

/* One bundle: weights, or what is small, or both. */
static enum rt_status write_bundle(struct arena *a, struct outfile *f, uint64_t before,
                                   const struct app_content *x, bool weights, bool small,
                                   uint64_t *hash, struct app_sizes *sizes, struct rt_error *err)
{
    struct bundle_writer *w;
    RT_TRY(bundle_begin(f, before, &w, err));
    enum rt_status st = weights ? write_weights(x, w, hash, err) : RT_ok;
    if (!st && small) st = write_small(a, x, w, *hash, sizes, err);
    if (!st) st = bundle_end(w, err);
    bundle_writer_close(w);
    return st;
}

static enum rt_status write_file(struct arena *a, const char *path, struct str program,
                                 const struct app_content *x, bool weights, bool small,
                                 uint64_t *hash, struct app_sizes *sizes, struct rt_error *err)
{
    struct outfile f;
    RT_TRY(outfile_open(path, &f, err));
    enum rt_status st = outfile_write(&f, program.p, program.n, err);
    if (!st) st = write_bundle(a, &f, program.n, x, weights, small, hash, sizes, err);
    mode_t mask = umask(0);
    umask(mask);
    if (!st && program.n && fchmod(f.fd, 0777 & ~mask))
        st = rt_fail(err, RT_machine, "cannot make '%s' executable: %s", path, strerror(errno));
    if (!st) return outfile_commit(&f, err);
    outfile_drop(&f);
    return st;
}

enum rt_status app_write(struct arena *a, const char *path, struct str program,
                         const struct app_content *x, struct app_sizes *sizes, struct rt_error *err)
{
    uint64_t hash = 0;
    *sizes =
        (struct app_sizes){.program = program.n, .weights = session_weights_bytes(x->run->session)};
    if (x->beside)
        RT_TRY(write_file(a, x->beside, (struct str){"", 0}, x, true, false, &hash, sizes, err));
    return write_file(a, path, program, x, !x->beside, true, &hash, sizes, err);
}
