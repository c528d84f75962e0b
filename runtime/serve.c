#include "runtime/serve.h"
#include "base/io.h"
#include "runtime/http.h"
#include "runtime/mem.h"
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

/* ---- options */

void serve_defaults(struct serve_options *o)
{
    *o = (struct serve_options){.host = "127.0.0.1"};
#define LIMIT(member, kind, standard, lowest, highest, name, help) o->member = standard;
#include "runtime/serve.def"
}

size_t serve_rows(struct serve_options *o, struct cli_option row[SERVE_ROWS])
{
    size_t n = 0;
#define OPTION(member, kind, name, argument, help) \
    row[n++] = (struct cli_option){name, CLI_##kind, &o->member};
#define LIMIT(member, kind, standard, lowest, highest, name, help) \
    row[n++] = (struct cli_option){name, CLI_##kind, &o->member};
#include "runtime/serve.def"
    CHECK(n <= SERVE_ROWS);
    return n;
}

static void put_row(struct sb *out, const char *name, const char *argument, const char *help)
{
    char left[64];
    snprintf(left, sizeof left, "%s%s%s", name, *argument ? " " : "", argument);
    sb_printf(out, "  --%-24s %s", left, help);
}

void serve_help(struct sb *out)
{
#define OPTION(member, kind, name, argument, help) \
    put_row(out, name, argument, help);            \
    sb_char(out, '\n');
#define LIMIT(member, kind, standard, lowest, highest, name, help) \
    put_row(out, name, "N", help);                                 \
    sb_printf(out, " (%.10g)\n", (double)(standard));
#include "runtime/serve.def"
}

static enum rt_status in_range(const char *name, double v, double lowest, double highest,
                               struct rt_error *err)
{
    if (v >= lowest && v <= highest) return RT_ok;
    return rt_fail(err, RT_usage, "--%s must be from %.10g to %.10g, not %.10g", name, lowest,
                   highest, v);
}

static enum rt_status check_ranges(const struct serve_options *o, struct rt_error *err)
{
#define LIMIT(member, kind, standard, lowest, highest, name, help) \
    RT_TRY(in_range(name, (double)o->member, lowest, highest, err));
#include "runtime/serve.def"
    return RT_ok;
}

/* The first line of a file. */
static enum rt_status read_key(const char *path, struct arena *a, const char **key,
                               struct rt_error *err)
{
    struct str text;
    int e = io_read(a, path, 65536, &text);
    if (e) return rt_fail(err, RT_user, "--api-key-file %s: %s", path, strerror(e));
    size_t n = 0;
    while (n < text.n && text.p[n] != '\n' && text.p[n] != '\r') n++;
    *key = str_dup(a, (struct str){text.p, n});
    return n ? RT_ok : rt_fail(err, RT_user, "--api-key-file %s: its first line is empty", path);
}

enum rt_status serve_check(struct serve_options *o, struct arena *a, struct rt_error *err)
{
    RT_TRY(check_ranges(o, err));
    if (o->api_key && o->api_key_file)
        return rt_fail(err, RT_usage, "--api-key and --api-key-file exclude each other");
    if (o->api_key_file) RT_TRY(read_key(o->api_key_file, a, &o->api_key, err));
    if (!o->api_key) o->api_key = getenv("STRATA_API_KEY");
    if (o->api_key && !*o->api_key)
        return rt_fail(err, RT_user, "the API key is empty; leave it out to ask for none");
    for (const char *p = o->api_key; p && *p; p++)
        if (*p <= ' ' || *p > '~')
            return rt_fail(err, RT_user, "the API key may have printable characters only");
    if (o->chat_template && !chat_template_find(o->chat_template))
        return rt_fail(err, RT_usage, "--chat-template must be %s, not '%.40s'", chat_names(),
                       o->chat_template);
    return RT_ok;
}

/* ---- a server */

struct serve {
    struct serve_model model;
    struct serve_options o;
    struct engine *engine;
    struct service *service;
    struct http *http;
    int port;
};

static enum rt_status open_parts(struct serve *s, struct rt_error *err)
{
    RT_TRY(http_open(&s->o, &s->http, &s->port, err));
    service_engine(&s->model, &s->o.engine);
    RT_TRY(engine_open(s->model.lm, &s->o.engine, &s->engine, err));
    const struct service_hooks hooks = http_hooks(s->http);
    RT_TRY(service_open(&s->model, &s->o, s->engine, &hooks, &s->service, err));
    RT_TRY(engine_start(s->engine, err));
    return http_start(s->http, s->service, err);
}

enum rt_status serve_open(const struct serve_model *m, const struct serve_options *o,
                          struct serve **out, struct rt_error *err)
{
    RT_TRY(check_ranges(o, err));
    struct serve *s = calloc(1, sizeof *s);
    if (!s) return rt_fail(err, RT_machine, "no memory for the server");
    s->model = *m;
    s->o = *o;
    if (o->name) s->model.name = o->name;
    if (o->chat_template) s->model.chat = chat_template_find(o->chat_template);
    enum rt_status st = open_parts(s, err);
    if (st == RT_ok)
        *out = s;
    else
        serve_close(s);
    return st;
}

int serve_port(const struct serve *s)
{
    return s->port;
}

void serve_drain(struct serve *s)
{
    service_drain(s->service);
}

void serve_cut(struct serve *s)
{
    http_cut(s->http);
}

int64_t serve_active(struct serve *s)
{
    int64_t a = service_active(s->service), b = http_busy(s->http);
    return a > b ? a : b;
}

void serve_close(struct serve *s)
{
    if (!s) return;
    if (s->http) http_stop(s->http);
    if (s->service) service_stop(s->service);
    engine_close(s->engine);
    http_close(s->http);
    service_close(s->service);
    free(s);
}

/* ---- a server process */

static int signalled = -1; /* an eventfd */
static volatile sig_atomic_t signals;

static void on_signal(int number)
{
    const uint64_t one = 1;
    int error = errno;
    (void)number;
    if (signals++) _exit(EXIT_USER);
    if (write(signalled, &one, sizeof one) < 0) _exit(EXIT_USER);
    errno = error;
}

static enum rt_status catch_signals(struct rt_error *err)
{
    struct sigaction a = {.sa_handler = on_signal}, ignore = {.sa_handler = SIG_IGN};
    signals = 0;
    signalled = eventfd(0, EFD_CLOEXEC);
    if (signalled < 0) return rt_fail(err, RT_machine, "eventfd: %s", strerror(errno));
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
    return RT_ok;
}

static void wait_signal(void)
{
    struct pollfd p = {signalled, POLLIN, 0};
    while (poll(&p, 1, -1) < 1) continue;
}

/* Waits until nothing is being answered, for some seconds at most. Whether that was so. */
static bool wait_idle(struct serve *s, double seconds)
{
    const struct timespec pause = {0, 10000000};
    double until = mem_seconds() + seconds;
    while (serve_active(s) && mem_seconds() < until) nanosleep(&pause, NULL);
    return !serve_active(s);
}

static void say_ready(const struct serve *s)
{
    const struct lm_about *about = &s->model.lm->about;
    bool six = strchr(s->o.host, ':');
    fprintf(stderr,
            "listening on http://%s%s%s:%d, model %s, context %lld tokens, chat template %s%s\n",
            six ? "[" : "", s->o.host, six ? "]" : "", s->port, s->model.name,
            (long long)about->context, s->model.chat ? chat_template_name(s->model.chat) : "none",
            s->o.api_key ? ", with an API key" : "");
    if (!s->o.api_key && strncmp(s->o.host, "127.", 4) && strcmp(s->o.host, "::1") &&
        strcmp(s->o.host, "localhost"))
        fprintf(stderr, "warning: whoever reaches this address can use the server; --api-key-file "
                        "FILE asks for a key\n");
}

enum rt_status serve_run(const struct serve_model *m, const struct serve_options *o,
                         struct rt_error *err)
{
    struct serve *s;
    RT_TRY(catch_signals(err));
    RT_TRY(serve_open(m, o, &s, err));
    say_ready(s);
    wait_signal();
    serve_drain(s);
    fprintf(stderr,
            "draining: %lld requests are being answered, for at most %g s; a second signal "
            "ends them now\n",
            (long long)serve_active(s), o->drain_seconds);
    if (!wait_idle(s, o->drain_seconds)) {
        serve_cut(s);
        wait_idle(s, 2);
    }
    serve_close(s);
    close(signalled);
    return RT_ok;
}
