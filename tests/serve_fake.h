/* For tests of the server: a language model that is a table, and a client on plain sockets. */
#ifndef STRATA_TESTS_SERVE_FAKE_H
#define STRATA_TESTS_SERVE_FAKE_H
#include <pthread.h>
#include <stdatomic.h>
#include "runtime/serve.h"

enum { FAKE_VOCAB = 260, FAKE_EOS = 256, FAKE_CONTEXT = 4096, FAKE_SITES = 2 };
/* After a token comes next[token], with any other as likely as e^-30. */
struct fake_lm {
    struct lm lm;
    int32_t next[FAKE_VOCAB];
    _Atomic int64_t sleep;  /* microseconds of a call */
    _Atomic int64_t calls;  /* of run so far */
    _Atomic int64_t breaks; /* calls from this one on give no numbers; 0: none does */
    float logits[16 * FAKE_VOCAB], depth[256 * 3];
    struct lm_site site[FAKE_SITES];
};
/* 'a' to 'z' go round; a capital letter A gives a text that the .c file lists. */
void fake_lm_open(struct fake_lm *m);

/* A server of it with `o`, on a port of its own. The tokenizer is bytes, the template plain. */
struct fake_server {
    struct fake_lm lm;
    struct tokenizer *tok;
    struct serve_options o;
    bool no_chat; /* without a template */
    struct serve *serve;
    int port;
};
void fake_server_options(struct fake_server *s); /* before changing s->o */
void fake_server_open(struct fake_server *s);
void fake_server_close(struct fake_server *s);

/* A client. Functions fail the test where a socket fails or nothing comes for ten seconds. */
int client_open(int port);
void client_send(int fd, const char *text, size_t n);
/* All that comes until the server closes; the text is terminated, and the caller's to sb_free. */
struct sb client_rest(int fd);
/* One answer: its head and, by its length or in chunks, its body (put together). */
struct client_answer {
    int status;
    struct sb head, body;
    bool closes; /* Connection: close */
};
struct client_answer client_answer(int fd);
/* An answer without body to HEAD. */
struct client_answer client_head_answer(int fd);
void client_free(struct client_answer *a);
/* The value of a header, or NULL; in memory that the next call overwrites. */
const char *client_header(const struct client_answer *a, const char *name);
/* A request on a connection of its own; `body` NULL for GET. */
struct client_answer client_ask(int port, const char *path, const char *body);
/* Appends a POST of JSON with further headers ("Name: value\r\n" each). */
void client_post(struct sb *out, const char *path, const char *body, const char *headers);
/* Sends a request and does not wait for its answer. */
int client_start(int port, const char *path, const char *body);
/* The value of a sample of /metrics, -1 where there is none. */
double client_metric(int port, const char *name);
/* Waits until it is that, for five seconds. */
void client_wait(int port, const char *name, double want);
void client_nap(double seconds);

#define FAKE_MODEL "\"model\":\"fake\","
/* Answers of 4000 tokens, and of 3. */
#define FAKE_ENDLESS "{" FAKE_MODEL "\"prompt\":\"a\",\"max_tokens\":4000,\"ignore_eos\":true}"
#define FAKE_ENDLESS_STREAM \
    "{" FAKE_MODEL "\"prompt\":\"a\",\"max_tokens\":4000,\"ignore_eos\":true,\"stream\":true}"
#define FAKE_SHORT "{" FAKE_MODEL "\"prompt\":\"a\",\"max_tokens\":3}"
#endif
