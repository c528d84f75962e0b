#include "runtime/app.h"
#include "runtime/chat.h"
#include "runtime/stops.h"
#include <stdlib.h>
#include <unistd.h>

static const char help[] =
    "Talks with the model: a line of standard input is a message, the answer comes as it is made.\n"
    "Uses the chat template of the spec (tokenizer.chat_template). The line /new begins anew; the\n"
    "end of the input (Ctrl-D) ends it.\n\n"
    "  chat --system 'You answer in verse.' --temperature 0.7\n\n"
    "  --system TEXT      what the model is told first\n"
    "  --max-tokens N     of an answer; default 1024\n"
    "  --temperature X    default 0; 0.8 is a good start\n"
    "  --top-p P          keep the most likely tokens that make up P; default 1\n"
    "  --seed S           of sampling; default 0\n" APP_HELP;

struct chat {
    struct app *p;
    const struct chat_template *t;
    struct generate g;
    struct sampler s;
    const char *system;
    int64_t max;
    struct arena *a; /* of the conversation */
    VEC(struct chat_message) message;
    struct str stop_text[4]; /* texts that end an answer */
    size_t num_stop_text;
};

/* Stop ids: those of the spec and of the template. */
static void find_stops(struct chat *c)
{
    VEC(int32_t) stop = {0};
    int32_t id;
    for (size_t i = 0; i < c->g.num_stop; i++) vec_push(c->p->a, &stop, c->g.stop[i]);
    for (int i = 0; chat_stop_token(c->t, i); i++)
        if (!chat_special(c->p->tok, chat_stop_token(c->t, i), &id, NULL))
            vec_push(c->p->a, &stop, id);
    for (int i = 0; chat_stop_text(c->t, i) && i < 4; i++)
        c->stop_text[c->num_stop_text++] = str_of(chat_stop_text(c->t, i));
    c->g.stop = stop.p;
    c->g.num_stop = stop.n;
}

static void begin(struct chat *c)
{
    arena_close(c->a);
    c->a = arena_open("chat");
    c->message.p = NULL, c->message.n = c->message.cap = 0;
    c->g.text.n = c->g.known = 0;
    if (c->system)
        vec_push(c->a, &c->message,
                 ((struct chat_message){.role = CHAT_system, .content = str_of(c->system)}));
}

/* The conversation's ids as the text to go on from; what is in the caches of it already stays. */
static enum rt_status render(struct chat *c, struct rt_error *err)
{
    struct chat_prompt prompt;
    struct tok_ids ids = {0}, *text = &c->g.text;
    size_t bad, same = 0;
    RT_TRY(chat_render(c->a, c->t, c->message.p, c->message.n, true, &prompt, &bad, err));
    enum rt_status st = chat_encode(c->p->tok, &prompt, &ids, err);
    if (!st && (int64_t)ids.n >= c->p->about.context)
        st = rt_fail(err, RT_user,
                     "the conversation is longer than the context of %lld tokens: /new begins anew",
                     (long long)c->p->about.context);
    if (st) {
        free(ids.p);
        return st;
    }
    while (same < ids.n && same < text->n && ids.p[same] == text->p[same]) same++;
    if (same == ids.n) same--; /* the last token is always run, for its logits */
    if (same < c->g.known) c->g.known = c->p->lm->about.recurrent ? 0 : same;
    free(text->p);
    *text = ids;
    return RT_ok;
}

/* Shows what is new of an answer and adds it to all of it; a space before the answer may be the
 * template's. */
static void put(const struct chat *c, struct sb *s, struct sb *all)
{
    size_t from = s->n && !all->n && s->p[0] == ' ' && chat_answer_space(c->t);
    if (s->n) fwrite(s->p + from, 1, s->n - from, stdout);
    if (s->n) sb_add(all, s->p + from, s->n - from);
    fflush(stdout);
    s->n = 0;
}

/* Makes and shows an answer, and adds it to the conversation. */
static enum rt_status answer(struct chat *c, struct rt_error *err)
{
    struct answer_text t = {.stops = stops_open(c->a, c->stop_text, c->num_stop_text)};
    struct sb all = {0}, out = {0};
    enum rt_status st = RT_ok;
    bool end = false, stopped = false;
    int64_t room = c->p->about.context - (int64_t)c->g.text.n, max = c->max < room ? c->max : room;
    for (int64_t i = 0; i < max && !st && !end && !stopped; i++) {
        int32_t id;
        st = generate_next(&c->g, &c->s, &id, &end, err);
        if (!st && !end) stopped = answer_text_add(&t, c->p->tok, id, &out);
        put(c, &out, &all);
    }
    if (!stopped) answer_text_end(&t, &out);
    put(c, &out, &all);
    putchar('\n');
    answer_text_close(&t);
    sb_free(&out);
    vec_push(c->a, &c->message,
             ((struct chat_message){.role = CHAT_assistant, .content = sb_take(&all, c->a)}));
    return st;
}

static enum rt_status talk(struct chat *c, struct rt_error *err)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    bool people = isatty(STDIN_FILENO);
    enum rt_status st = RT_ok;
    begin(c);
    for (;;) {
        if (people) fputs("> ", stdout);
        fflush(stdout);
        if (st || (n = getline(&line, &cap, stdin)) < 0) break;
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r')) line[--n] = 0;
        if (!strcmp(line, "/new")) begin(c);
        if (!n || !strcmp(line, "/new")) continue;
        const struct str said = {str_dup(c->a, (struct str){line, (size_t)n}), (size_t)n};
        vec_push(c->a, &c->message, ((struct chat_message){.role = CHAT_user, .content = said}));
        st = render(c, err);
        if (!st) st = answer(c, err);
        if (st != RT_user || !people) continue;
        printf("%s\n", err->text);
        c->message.n--;
        st = RT_ok;
    }
    free(line);
    return st;
}

int app_chat_command(const char *program, int argc, char **argv)
{
    struct command_line c = {program, argv[0], arena_open("options"), {0}};
    struct chat chat = {.s = {.top_p = 1}, .max = 1024};
    struct app_options run = {0};
    struct rt_error err;
    int64_t seed = 0;
    options_parse(
        &c, argc, argv, help, 0, 0,
        CLI_OPTIONS({"system", CLI_text, &chat.system}, {"max-tokens", CLI_int, &chat.max},
                    {"temperature", CLI_num, &chat.s.temperature},
                    {"top-p", CLI_num, &chat.s.top_p}, {"seed", CLI_int, &seed}, APP_OPTIONS(run)));
    if (!(chat.s.temperature >= 0) || !(chat.s.top_p > 0 && chat.s.top_p <= 1))
        options_wrong(&c, "--temperature must be at least 0, --top-p in (0, 1]");
    if (chat.max < 1 || seed < 0)
        options_wrong(&c, "--max-tokens must be at least 1, --seed at least 0");
    chat.s.seed = (uint64_t)seed;
    struct app *p = app_self(program, &run, true);
    chat.p = p;
    chat.t = p->about.template ? chat_template_find(p->about.template) : NULL;
    enum rt_status st = RT_ok;
    if (!chat.t || !p->tok)
        st = rt_fail(&err, RT_user,
                     "the spec this program was built from names no %s: build it with "
                     "--set tokenizer.%s",
                     p->tok ? "chat template" : "tokenizer",
                     p->tok ? "chat_template=plain" : "path=FILE");
    app_check(program, st, &err);
    chat.g = app_generate(p);
    find_stops(&chat);
    st = talk(&chat, &err);
    app_check(program, st, &err);
    generate_end(&chat.g);
    arena_close(chat.a);
    app_close(p);
    arena_close(c.arena);
    return 0;
}
