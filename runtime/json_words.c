#include "runtime/json_words.h"
#include "base/arena.h"
#include "runtime/mem.h"
#include <math.h>
#include <string.h>

struct json_words {
    int64_t num;
    size_t *at; /* [num + 1]: id's text is bytes at[id] .. at[id + 1] - 1 */
    char *bytes;
    /* Speed only: whether a text is plain (json_plain), and its first byte that is not white space,
     * or 0. */
    bool *plain;
    unsigned char *lead;
};

struct json_words *json_words_open(struct str (*text)(void *arg, int32_t id), void *arg,
                                   int64_t num)
{
    struct json_words *w = mem_alloc(sizeof *w);
    if (!w) return NULL;
    size_t n = (size_t)num;
    w->num = num;
    w->at = mem_alloc((n + 1) * sizeof *w->at);
    w->plain = mem_alloc(n * sizeof *w->plain);
    w->lead = mem_alloc(n * sizeof *w->lead);
    for (int64_t i = 0; w->at && i < num; i++) w->at[i + 1] = w->at[i] + text(arg, (int32_t)i).n;
    w->bytes = w->at ? mem_alloc(w->at[n]) : NULL;
    if (!w->bytes || !w->plain || !w->lead) {
        json_words_close(w);
        return NULL;
    }
    for (int64_t i = 0; i < num; i++) {
        struct str s = text(arg, (int32_t)i);
        if (!s.n) continue;
        memcpy(w->bytes + w->at[i], s.p, s.n);
        w->plain[i] = json_plain(s.p, s.n);
        for (; s.n && (*s.p == ' ' || *s.p == '\t' || *s.p == '\n' || *s.p == '\r'); s.n--) s.p++;
        if (s.n) w->lead[i] = (unsigned char)*s.p;
    }
    return w;
}

void json_words_close(struct json_words *w)
{
    if (!w) return;
    size_t n = (size_t)w->num;
    if (w->at) mem_free(w->bytes, w->at[n]);
    mem_free(w->at, (n + 1) * sizeof *w->at);
    mem_free(w->plain, n * sizeof *w->plain);
    mem_free(w->lead, n * sizeof *w->lead);
    mem_free(w, sizeof *w);
}

bool json_words_accepts(const struct json_words *w, const struct json_guide *g, int32_t id)
{
    size_t n = w->at[id + 1] - w->at[id];
    return n && json_guide_accepts(g, w->bytes + w->at[id], n);
}

bool json_words_mask(const struct json_words *w, const struct json_guide *g, const float *from,
                     float *to)
{
    bool in_string = json_guide_in_string(g), between = json_guide_between(g);
    bool first[256], any = false;
    for (int c = 0; c < 256; c++) first[c] = json_guide_accepts(g, (char[]){(char)c}, 1);
    for (int32_t id = 0; id < w->num; id++) {
        bool fits = in_string && w->plain[id] && w->at[id + 1] > w->at[id];
        if (!fits && (!between || !w->lead[id] || first[w->lead[id]]))
            fits = json_words_accepts(w, g, id);
        to[id] = fits ? from[id] : -INFINITY;
        any |= fits && to[id] != -INFINITY;
    }
    return any;
}

void json_words_take(const struct json_words *w, struct json_guide *g, int32_t id)
{
    CHECK(json_guide_take(g, w->bytes + w->at[id], w->at[id + 1] - w->at[id]));
}
