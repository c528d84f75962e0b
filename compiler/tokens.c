#include "compiler/tokens.h"
#include "base/io.h"
#include "base/vec.h"
#include <sys/stat.h>

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static enum rt_status chars(const struct model *m, const char *source, struct tokenizer **out,
                            struct rt_error *err)
{
    if (source && is_folder(source)) {
        struct arena *a = arena_open("tokens");
        const char *file = str_fmt(a, "%s/chars.json", source);
        enum rt_status st = io_exists(file) ? tokenizer_chars_load(file, out, err) : RT_ok;
        arena_close(a);
        if (*out || st != RT_ok) return st;
        source = NULL;
    }
    if (!source) source = m->train.data_path;
    if (!source)
        return rt_fail(err, RT_user,
                       "the chars tokenizer needs its training text: the spec has no "
                       "train.data.path");
    return tokenizer_chars_of_file(source, out, err);
}

struct tok_options tokens_options(const struct model *m, struct arena *a)
{
    const struct tokenizer_spec *t = &m->tokenizer;
    struct tok_name *special = NEW(a, struct tok_name, t->num_special);
    for (size_t i = 0; i < t->num_special; i++)
        special[i] = (struct tok_name){t->special[i].text, t->special[i].id};
    return (struct tok_options){t->pattern, special, t->num_special};
}

static enum rt_status file(const struct model *m, const char *source, struct tokenizer **out,
                           struct rt_error *err)
{
    struct arena *a = arena_open("tokens");
    enum rt_status st = RT_ok;
    if (source && is_folder(source) && io_exists(io_join(a, source, "manifest.json")))
        st = tokenizer_folder_open(source, out, err);
    if (st == RT_ok && !*out) {
        struct tok_options o = tokens_options(m, a);
        st = tokenizer_file_open(m->tokenizer.path, &o, out, err);
    }
    arena_close(a);
    return st;
}

const int32_t *tokens_stops(const struct model *m, const struct tokenizer *t, struct arena *a,
                            size_t *n)
{
    const struct tokenizer_spec *s = &m->tokenizer;
    VEC(int32_t) stop = {0};
    if (s->type != TOK_none && s->eos >= 0) vec_push(a, &stop, (int32_t)s->eos);
    for (size_t i = 0; s->type != TOK_none && i < s->num_stop; i++)
        if (s->stop[i] != s->eos) vec_push(a, &stop, (int32_t)s->stop[i]);
    for (int i = 0; t && s->eos < 0 && !s->num_stop && i < t->num_stop; i++)
        vec_push(a, &stop, t->stop[i]);
    *n = stop.n;
    return stop.p;
}

enum rt_status tokens_open(const struct model *m, const char *source, struct tokenizer **out,
                           struct rt_error *err)
{
    *out = NULL;
    enum rt_status st = RT_ok;
    switch (m->tokenizer.type) {
    case TOK_none: return RT_ok;
    case TOK_bytes: st = tokenizer_bytes(out, err); break;
    case TOK_chars: st = chars(m, source, out, err); break;
    case TOK_file: st = file(m, source, out, err); break;
    }
    if (st != RT_ok) return st;
    st = (*out)->ops->fits(*out, m->vocab_size, err);
    if (st != RT_ok) tokenizer_close(*out), *out = NULL;
    return st;
}
