#include "runtime/chat.h"
#include <stdlib.h>

/* A turn is written as bits: special tokens, text, and what the message gives. */
enum bit_kind { BIT_end, BIT_special, BIT_text, BIT_role, BIT_content };
struct bit {
    enum bit_kind kind;
    const char *text;
};
#define SPECIAL(name)     \
    {                     \
        BIT_special, name \
    }
#define TEXT(text)     \
    {                  \
        BIT_text, text \
    }
#define ROLE(word)     \
    {                  \
        BIT_role, word \
    } /* the speaker's name, or this word */
#define CONTENT           \
    {                     \
        BIT_content, NULL \
    }

enum { BITS = 8, STOPS = 4 };
struct chat_template {
    const char *name;
    const char *system; /* of a conversation that begins without one; NULL for none */
    bool trim;          /* white space around a message is cut off */
    bool strict;        /* system first only, then users and assistants take turns */
    struct bit start[BITS];
    struct bit turn[CHAT_ROLES][BITS];
    struct bit answer[BITS]; /* the beginning of the turn to generate */
    const char *stop_token[STOPS];
    const char *stop_text[STOPS];
};

/* Kimi K2's file; its default system text is the one of Kimi Linear's model card. */
#define KIMI(token, word)                                                                    \
    {                                                                                        \
        SPECIAL(token), ROLE(word), SPECIAL("<|im_middle|>"), CONTENT, SPECIAL("<|im_end|>") \
    }
#define LLAMA(word)                                                                             \
    {                                                                                           \
        SPECIAL("<|start_header_id|>"), TEXT(word), SPECIAL("<|end_header_id|>"), TEXT("\n\n"), \
            CONTENT, SPECIAL("<|eot_id|>")                                                      \
    }
#define CHATML(word)                                                                         \
    {                                                                                        \
        SPECIAL("<|im_start|>"), TEXT(word "\n"), CONTENT, SPECIAL("<|im_end|>"), TEXT("\n") \
    }

static const struct chat_template templates[] = {
    {.name = "kimi",
     .system = "You are a helpful assistant provided by Moonshot-AI.",
     .turn = {[CHAT_system] = KIMI("<|im_system|>", "system"),
              [CHAT_user] = KIMI("<|im_user|>", "user"),
              [CHAT_assistant] = KIMI("<|im_assistant|>", "assistant")},
     .answer = {SPECIAL("<|im_assistant|>"), TEXT("assistant"), SPECIAL("<|im_middle|>")},
     .stop_token = {"<|im_end|>", "[EOS]"}},
    {.name = "llama",
     .trim = true,
     .start = {SPECIAL("<|begin_of_text|>")},
     .turn = {[CHAT_system] = LLAMA("system"),
              [CHAT_user] = LLAMA("user"),
              [CHAT_assistant] = LLAMA("assistant")},
     .answer = {SPECIAL("<|start_header_id|>"), TEXT("assistant"), SPECIAL("<|end_header_id|>"),
                TEXT("\n\n")},
     .stop_token = {"<|eot_id|>", "<|end_of_text|>"}},
    {.name = "chatml",
     .turn = {[CHAT_system] = CHATML("system"),
              [CHAT_user] = CHATML("user"),
              [CHAT_assistant] = CHATML("assistant")},
     .answer = {SPECIAL("<|im_start|>"), TEXT("assistant\n")},
     .stop_token = {"<|im_end|>", "<|endoftext|>"}},
    {.name = "plain",
     .strict = true,
     .turn = {[CHAT_system] = {CONTENT, TEXT("\n\n")},
              [CHAT_user] = {TEXT("User: "), CONTENT, TEXT("\n\n")},
              [CHAT_assistant] = {TEXT("Assistant: "), CONTENT, TEXT("\n\n")}},
     .answer = {TEXT("Assistant:")}, /* the space belongs to the answer's first token */
     .stop_text = {"\n\nUser:"}},
};
enum { TEMPLATES = sizeof templates / sizeof *templates };

const struct chat_template *chat_template_find(const char *name)
{
    for (int i = 0; i < TEMPLATES; i++)
        if (!strcmp(templates[i].name, name)) return &templates[i];
    return NULL;
}

const char *chat_names(void)
{
    return "kimi, llama, chatml or plain";
}

const char *chat_template_name(const struct chat_template *t)
{
    return t->name;
}

bool chat_answer_space(const struct chat_template *t)
{
    const struct bit *turn = t->turn[CHAT_assistant];
    return turn->kind == BIT_text && str_ends(str_of(turn->text), " ");
}

const char *chat_stop_token(const struct chat_template *t, int i)
{
    return i >= 0 && i < STOPS ? t->stop_token[i] : NULL;
}

const char *chat_stop_text(const struct chat_template *t, int i)
{
    return i >= 0 && i < STOPS ? t->stop_text[i] : NULL;
}

/* Pieces being written: special tokens as they come, text gathered until the next of them. */
struct writer {
    struct arena *arena;
    struct chat_prompt *out;
    size_t cap;
    struct str text; /* what is gathered, one slice as long as that is enough */
    struct sb sb;    /* else here */
    const struct chat_template *t;
};

static void put_piece(struct writer *w, bool special, struct str text)
{
    struct chat_prompt *p = w->out;
    if (p->n == w->cap) {
        w->cap = w->cap ? 2 * w->cap : 32;
        struct chat_piece *more = NEW(w->arena, struct chat_piece, w->cap);
        if (p->n) memcpy(more, p->piece, p->n * sizeof *more);
        p->piece = more;
    }
    p->piece[p->n++] = (struct chat_piece){special, text};
}

static void put_text(struct writer *w, struct str s)
{
    if (!s.n) return;
    if (!w->text.n && !w->sb.n) {
        w->text = s;
        return;
    }
    if (!w->sb.n) sb_add(&w->sb, w->text.p, w->text.n);
    sb_add(&w->sb, s.p, s.n);
}

static void end_text(struct writer *w)
{
    if (w->sb.n)
        put_piece(w, false, sb_take(&w->sb, w->arena));
    else if (w->text.n)
        put_piece(w, false, w->text);
    w->text = (struct str){NULL, 0};
}

/* Without the white space that Jinja's trim takes off (ASCII's; a model's file means that). */
static struct str trimmed(struct str s)
{
    static const char space[] = " \t\n\v\f\r";
    while (s.n && memchr(space, s.p[0], sizeof space - 1)) s.p++, s.n--;
    while (s.n && memchr(space, s.p[s.n - 1], sizeof space - 1)) s.n--;
    return s;
}

static void put_bits(struct writer *w, const struct bit *b, const struct chat_message *m)
{
    for (int i = 0; i < BITS && b[i].kind != BIT_end; i++) switch (b[i].kind) {
        case BIT_special:
            end_text(w);
            put_piece(w, true, str_of(b[i].text));
            break;
        case BIT_role: put_text(w, m && m->name.n ? m->name : str_of(b[i].text)); break;
        case BIT_content: put_text(w, w->t->trim ? trimmed(m->content) : m->content); break;
        case BIT_text: put_text(w, str_of(b[i].text)); break;
        case BIT_end: break;
        }
}

/* Whether message i may stand there. *last: the role of the last turn, CHAT_system before any, so
 * that the user begins. */
static enum rt_status check_turn(const struct chat_template *t, size_t i, enum chat_role role,
                                 enum chat_role *last, struct rt_error *err)
{
    if (role == CHAT_system) {
        if (i == 0) return RT_ok;
        return rt_fail(err, RT_user, "in the chat template %s a system message comes first",
                       t->name);
    }
    enum chat_role want = *last == CHAT_user ? CHAT_assistant : CHAT_user;
    if (role != want)
        return rt_fail(err, RT_user, "in the chat template %s users and assistants take turns",
                       t->name);
    *last = role;
    return RT_ok;
}

enum rt_status chat_render(struct arena *a, const struct chat_template *t,
                           const struct chat_message *m, size_t n, bool generate,
                           struct chat_prompt *out, size_t *bad, struct rt_error *err)
{
    CHECK(n > 0);
    enum chat_role last = CHAT_system;
    for (size_t i = 0; t->strict && i < n; i++) {
        *bad = i;
        RT_TRY(check_turn(t, i, m[i].role, &last, err));
    }
    *bad = n - 1;
    if (t->strict && generate && last == CHAT_assistant)
        return rt_fail(err, RT_user, "in the chat template %s the last message is the user's",
                       t->name);
    *out = (struct chat_prompt){NULL, 0};
    struct writer w = {.arena = a, .out = out, .t = t};
    put_bits(&w, t->start, NULL);
    if (t->system && m[0].role != CHAT_system) {
        const struct chat_message system = {.role = CHAT_system, .content = str_of(t->system)};
        put_bits(&w, t->turn[CHAT_system], &system);
    }
    for (size_t i = 0; i < n; i++) put_bits(&w, t->turn[m[i].role], &m[i]);
    if (generate) put_bits(&w, t->answer, NULL);
    end_text(&w);
    return RT_ok;
}

enum rt_status chat_special(const struct tokenizer *t, const char *name, int32_t *id,
                            struct rt_error *err)
{
    struct tok_encoder *e;
    struct tok_ids ids = {0};
    RT_TRY(tok_encoder_open(t, TOK_special, &e, err));
    enum rt_status st = tok_encoder_add(e, str_of(name), true, &ids, err);
    if (st == RT_ok) {
        if (ids.n == 1 && ids.p[0] >= 0 && ids.p[0] < t->vocab_size)
            *id = ids.p[0];
        else
            st = rt_fail(err, RT_user, "the tokenizer has no special token %s", name);
    }
    tok_encoder_close(e);
    free(ids.p);
    return st;
}

/* Special tokens that were looked up; their names are the template's own pointers. */
struct known {
    const char *name[16];
    int32_t id[16];
    int n;
};

static enum rt_status look_up(struct known *k, const struct tokenizer *t, const char *name,
                              int32_t *id, struct rt_error *err)
{
    for (int i = 0; i < k->n; i++)
        if (k->name[i] == name) {
            *id = k->id[i];
            return RT_ok;
        }
    RT_TRY(chat_special(t, name, id, err));
    if (k->n < 16) {
        k->name[k->n] = name;
        k->id[k->n++] = *id;
    }
    return RT_ok;
}

enum rt_status chat_encode(const struct tokenizer *t, const struct chat_prompt *p,
                           struct tok_ids *out, struct rt_error *err)
{
    struct known known = {.n = 0};
    for (size_t i = 0; i < p->n; i++) {
        if (!p->piece[i].special) {
            RT_TRY(tokenizer_encode(t, p->piece[i].text, out, err));
            continue;
        }
        int32_t id = -1;
        RT_TRY(look_up(&known, t, p->piece[i].text.p, &id, err));
        RT_TRY(tok_ids_add(out, id, err));
    }
    return RT_ok;
}
