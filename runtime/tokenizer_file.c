#include "runtime/tokenizer_file.h"
#include "base/io.h"
#include "runtime/mapped.h"

/* A text that is there only sometimes; s is empty where it is not. */
static enum rt_status read_beside(struct arena *a, const char *path, struct str *s,
                                  struct rt_error *err)
{
    enum { MOST = 64 << 20 };
    *s = (struct str){"", 0};
    if (!io_exists(path)) return RT_ok;
    int e = io_read(a, path, MOST, s);
    return e ? rt_fail(err, RT_user, "cannot read '%s': %s", path, strerror(e)) : RT_ok;
}

enum rt_status tokenizer_file_parse(const struct tok_file_text *f, struct tokenizer **out,
                                    struct rt_error *err)
{
    *out = NULL;
    struct str s = f->text;
    size_t i = 0;
    while (i < s.n && (s.p[i] == ' ' || s.p[i] == '\n' || s.p[i] == '\r' || s.p[i] == '\t')) i++;
    if (i == s.n) return rt_fail(err, RT_user, "'%s' is empty", f->label);
    if (s.p[i] == '{') return tokenizer_json_parse(f, out, err);
    /* a llama2.c file begins with a small number and a float, a rank file with base64 */
    if (s.n >= 4 && (!s.p[1] || !s.p[2] || !s.p[3])) return tokenizer_llama2c_parse(f, out, err);
    return tokenizer_rank_parse(f, out, err);
}

enum rt_status tokenizer_file_open(const char *path, const struct tok_options *o,
                                   struct tokenizer **out, struct rt_error *err)
{
    struct mapped m;
    *out = NULL;
    RT_TRY(mapped_open(path, &m, err));
    struct arena *a = arena_open("tokenizer");
    struct tok_file_text f = {.text = {m.bytes, m.size}, .label = path, .o = o};
    enum rt_status st = read_beside(a, str_fmt(a, "%s.json", path), &f.beside, err);
    const char *name = strrchr(path, '/'), *model = ".tiktoken.model";
    name = name ? name + 1 : path;
    const char *config = io_join(a, io_dirname(a, path), "tokenizer_config.json");
    if (str_ends(str_of(name), model) && strlen(name) > strlen(model)) {
        const char *own =
            str_fmt(a, "%.*s.tokenizer_config.json", (int)(strlen(path) - strlen(model)), path);
        if (io_exists(own)) config = own;
    }
    if (st == RT_ok) st = read_beside(a, config, &f.config, err);
    if (st == RT_ok) st = tokenizer_file_parse(&f, out, err);
    arena_close(a);
    mapped_close(&m);
    return st;
}

enum rt_status tokenizer_folder_open(const char *folder, struct tokenizer **out,
                                     struct rt_error *err)
{
    static const char *const names[] = {"tokenizer.tiktoken", "tokenizer.json", "tokenizer.bin"};
    enum rt_status st = RT_ok;
    *out = NULL;
    struct arena *a = arena_open("tokenizer");
    for (size_t i = 0; i < sizeof names / sizeof *names && st == RT_ok && !*out; i++) {
        const char *path = io_join(a, folder, names[i]);
        if (io_exists(path)) st = tokenizer_file_open(path, NULL, out, err);
    }
    arena_close(a);
    return st;
}
