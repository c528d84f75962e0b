/* `strata bench --url`: a server under load (runtime/load.h), and the report. */
#ifndef STRATA_COMPILER_BENCH_URL_H
#define STRATA_COMPILER_BENCH_URL_H
#include "compiler/cli.h"

struct bench_url_options {
    const char *url, *model, *key, *prompt, *max_tokens, *prompts; /* as typed; NULL: default */
    int64_t clients, requests, seed, vocab;
    double rate, seconds, timeout, temperature, cancel, slo_ttft, slo_tpot; /* SLOs: ms, 0: none */
    bool chat, ignore_eos, json;
};
#define BENCH_URL_DEFAULTS                                                                 \
    {                                                                                      \
        .prompt = "128", .max_tokens = "64", .seed = 1, .timeout = 120, .temperature = 0.8 \
    }
#define BENCH_URL_OPTIONS(o)                                                                       \
    {"url", CLI_text, &(o).url}, {"clients", CLI_int, &(o).clients}, {"rate", CLI_num, &(o).rate}, \
        {"requests", CLI_int, &(o).requests}, {"seconds", CLI_num, &(o).seconds},                  \
        {"prompt-tokens", CLI_text, &(o).prompt}, {"max-tokens", CLI_text, &(o).max_tokens},       \
        {"prompts", CLI_text, &(o).prompts}, {"vocab", CLI_int, &(o).vocab},                       \
        {"seed", CLI_int, &(o).seed}, {"temperature", CLI_num, &(o).temperature},                  \
        {"timeout", CLI_num, &(o).timeout}, {"cancel", CLI_num, &(o).cancel},                      \
        {"slo-ttft", CLI_num, &(o).slo_ttft}, {"slo-tpot", CLI_num, &(o).slo_tpot},                \
        {"model", CLI_text, &(o).model}, {"api-key", CLI_text, &(o).key},                          \
        {"chat", CLI_flag, &(o).chat},                                                             \
    {                                                                                              \
        "ignore-eos", CLI_flag, &(o).ignore_eos                                                    \
    }
#define BENCH_URL_HELP                                                                             \
    "\nof a server (--url); times count from when a request was due:\n"                            \
    "  --url URL          http://HOST:PORT of an OpenAI-compatible server\n"                       \
    "  --clients N        so many, each asking again when it has its answer (16), or\n"            \
    "  --rate R           R requests a second at random times, whatever the server does\n"         \
    "  --requests N       requests in all; --seconds S: nothing new after S seconds (10)\n"        \
    "  --prompt-tokens N  words of a random prompt (128); N:M: between N and M\n"                  \
    "  --vocab V          prompts are random token ids below V instead: exactly so many tokens\n"  \
    "  --prompts FILE     prompts in turn, a line each\n"                                          \
    "  --max-tokens N     of an answer (64); N:M: between N and M; --ignore-eos: no fewer\n"       \
    "  --chat             /v1/chat/completions instead of /v1/completions\n"                       \
    "  --model NAME       the first that the server lists; --api-key KEY; --temperature X (0.8)\n" \
    "  --slo-ttft MS, --slo-tpot MS   count the requests that meet both (goodput)\n"               \
    "  --cancel P         share of requests given up in the middle of their answer\n"              \
    "  --timeout S        of a request (120)\n"                                                    \
    "  --seed N           of prompts, lengths and times (1)\n"

/* Runs and reports; the exit status: 0, also where requests failed, which the report says; exits 1
 * when no request had an answer. */
int bench_url(struct cli *c, const struct bench_url_options *o);
#endif
