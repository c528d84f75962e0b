#include "compiler/tokens.h"
#include "base/io.h"
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

enum rt_status tokens_open(const struct model *m, const char *source, struct tokenizer **out,
                           struct rt_error *err)
{
    *out = NULL;
    enum rt_status st = RT_ok;
    switch (m->tokenizer.type) {
    case TOK_none: return RT_ok;
    case TOK_bytes: st = tokenizer_bytes(out, err); break;
    case TOK_chars: st = chars(m, source, out, err); break;
    case TOK_file:
        return rt_fail(err, RT_user, "%s: tokenizer files are not supported yet",
                       m->tokenizer.path);
    }
    if (st != RT_ok) return st;
    st = (*out)->ops->fits(*out, m->vocab_size, err);
    if (st != RT_ok) tokenizer_close(*out), *out = NULL;
    return st;
}
