/* /metrics: Prometheus' text format. Names are ours, and with the option those of vLLM too, which
 * dashboards and load generators look for. */
#include "runtime/exchange.h"
#include "runtime/mem.h"
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

struct writer {
    struct sb *out;
    const char *model; /* of vLLM's label; NULL: our names */
};

/* "# HELP", "# TYPE"; the name is in *full. */
static void put_head(struct writer *w, const char *name, const char *type, const char *help,
                     char full[96])
{
    snprintf(full, 96, "%s%s", w->model ? "vllm:" : "strata_", name);
    sb_printf(w->out, "# HELP %s %s\n# TYPE %s %s\n", full, help, full, type);
}

/* {model_name="...",more}: a label of vLLM, and what else there is. */
static void put_labels(struct writer *w, const char *more)
{
    if (!w->model && !*more) return;
    sb_char(w->out, '{');
    if (w->model) {
        sb_str(w->out, "model_name=\"");
        for (const char *p = w->model; *p; p++) {
            if (*p == '"' || *p == '\\') sb_char(w->out, '\\');
            if (*p == '\n')
                sb_str(w->out, "\\n");
            else
                sb_char(w->out, *p);
        }
        sb_str(w->out, *more ? "\"," : "\"");
    }
    sb_str(w->out, more);
    sb_char(w->out, '}');
}

static void put_value(struct writer *w, const char *full, const char *labels, double v)
{
    sb_str(w->out, full);
    put_labels(w, labels);
    sb_printf(w->out, " %.17g\n", v);
}

static void put_one(struct writer *w, const char *name, const char *type, double v,
                    const char *help)
{
    char full[96];
    put_head(w, name, type, help, full);
    put_value(w, full, "", v);
}

static void put_histogram(struct writer *w, const char *name, const struct engine_histogram *h,
                          const char *help)
{
    char full[96], label[48];
    uint64_t n = 0;
    put_head(w, name, "histogram", help, full);
    for (int i = 0; i < ENGINE_BUCKETS; i++) {
        double at = 1;
        for (int k = i; k < 14; k++) at /= 2;
        for (int k = 14; k < i; k++) at *= 2;
        n += h->bucket[i];
        if (i + 1 < ENGINE_BUCKETS)
            snprintf(label, sizeof label, "le=\"%.10g\"", at);
        else
            snprintf(label, sizeof label, "le=\"+Inf\"");
        sb_printf(w->out, "%s_bucket", full);
        put_labels(w, label);
        sb_printf(w->out, " %" PRIu64 "\n", n);
    }
    sb_printf(w->out, "%s_sum", full);
    put_labels(w, "");
    sb_printf(w->out, " %.17g\n%s_count", h->sum, full);
    put_labels(w, "");
    sb_printf(w->out, " %" PRIu64 "\n", n);
}

static double share(int64_t used, int64_t of)
{
    return of > 0 ? (double)used / (double)of : 0;
}

static void put_engine(struct writer *w, const struct engine_stats *e)
{
    static const char *const why[ENGINE_FINISHES] = {
        [ENGINE_stop] = "stop", [ENGINE_text] = "stop", [ENGINE_length] = "length"};
    char full[96], label[48];
    put_one(w, "num_requests_running", "gauge", (double)e->running, "Answers being generated.");
    put_one(w, "num_requests_waiting", "gauge", (double)e->waiting, "Requests in the queue.");
    put_one(w, "kv_cache_usage_perc", "gauge", share(e->pages_used, e->pages),
            "Pages of keys and values in use, 1 is all.");
    put_one(w, "prefix_cache_queries_total", "counter", (double)e->prefix_queries,
            "Prompt tokens looked up in the prefix cache.");
    put_one(w, "prefix_cache_hits_total", "counter", (double)e->prefix_hits,
            "Prompt tokens found in the prefix cache.");
    put_one(w, "prompt_tokens_total", "counter", (double)e->prompt_tokens,
            "Tokens of prompts, cached ones too.");
    put_one(w, "generation_tokens_total", "counter", (double)e->completion_tokens,
            "Tokens generated.");
    put_one(w, w->model ? "num_preemptions_total" : "preemptions_total", "counter",
            (double)e->preemptions, "Requests set aside when pages ran out.");
    put_head(w, "request_success_total", "counter", "Answers that were finished.", full);
    for (int i = ENGINE_text; i <= ENGINE_length; i++) {
        uint64_t n = e->requests[i] + (i == ENGINE_text ? e->requests[ENGINE_stop] : 0);
        snprintf(label, sizeof label, "finished_reason=\"%s\"", why[i]);
        put_value(w, full, label, (double)n);
    }
    put_histogram(w, "time_to_first_token_seconds", &e->first_token,
                  "From a request's arrival to its first token.");
    put_histogram(w, "inter_token_latency_seconds", &e->between_tokens,
                  "Between tokens of an answer.");
    put_histogram(w, "e2e_request_latency_seconds", &e->whole, "From arrival to the last token.");
    put_histogram(w, "request_queue_time_seconds", &e->queued, "In the queue.");
    put_histogram(w, "request_prefill_time_seconds", &e->prefill, "Reading the prompt.");
    put_histogram(w, "request_decode_time_seconds", &e->decode,
                  "From the first token to the last.");
}

static double resident_bytes(void)
{
    long long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f) return 0;
    if (fscanf(f, "%lld %lld", &size, &resident) != 2) resident = 0;
    fclose(f);
    return (double)resident * (double)sysconf(_SC_PAGESIZE);
}

/* What vLLM has no name for. */
static void put_own(struct writer *w, struct service *s, const struct engine_stats *e)
{
    static const char *const reason[API_PROBLEMS] = {
        [API_invalid] = "invalid",       [API_context] = "context_length",
        [API_key] = "api_key",           [API_forbidden] = "forbidden",
        [API_no_route] = "no_route",     [API_no_model] = "no_model",
        [API_bad_method] = "method",     [API_slow] = "timeout",
        [API_too_large] = "too_large",   [API_long_line] = "long_line",
        [API_media_type] = "media_type", [API_rate] = "rate_limit",
        [API_large_head] = "large_head", [API_internal] = "internal",
        [API_overloaded] = "overloaded", [API_loading] = "loading",
        [API_draining] = "draining"};
    char full[96], label[48];
    put_one(w, "state_slots_usage_perc", "gauge", share(e->states_used, e->states),
            "Recurrent states in use, 1 is all.");
    put_one(w, "waiting_prompt_tokens", "gauge", (double)e->waiting_tokens,
            "Tokens of the prompts in the queue.");
    put_one(w, "cached_pages", "gauge", (double)e->pages_cached,
            "Pages of no answer that the prefix cache can find.");
    put_one(w, "cached_tokens_total", "counter", (double)e->cached_tokens,
            "Prompt tokens that needed no reading.");
    put_one(w, "steps_total", "counter", (double)e->steps, "Steps of the engine.");
    put_one(w, "requests_cancelled_total", "counter", (double)e->requests[ENGINE_cancelled],
            "Requests whose client went away.");
    put_one(w, "requests_failed_total", "counter", (double)e->requests[ENGINE_failed],
            "Requests at which the model failed.");
    put_head(w, "requests_rejected_total", "counter", "Requests answered with an error.", full);
    for (int i = 0; i < API_PROBLEMS; i++) {
        snprintf(label, sizeof label, "reason=\"%s\"", reason[i]);
        put_value(w, full, label, (double)s->refused[i]);
    }
    put_one(w, "tokenized_requests_total", "counter", (double)s->tokenized,
            "Requests for answers whose prompts were tokenised; those refused before are not.");
    put_one(w, "token_write_seconds_max", "gauge", 1e-9 * (double)s->longest_write,
            "Longest time that a step of the engine spent on giving a token to its answer.");
    put_one(w, "http_connections", "gauge", (double)s->connections, "Open connections.");
    put_one(w, "requests_active", "gauge", (double)s->active, "Requests being answered.");
    put_one(w, "requests_reading", "gauge", (double)s->reading,
            "Requests whose bodies are complete and not read yet.");
    put_one(w, "uptime_seconds", "gauge", mem_seconds() - s->begun, "Since the server started.");
    sb_printf(w->out,
              "# HELP process_resident_memory_bytes Memory in use.\n"
              "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %.0f\n",
              resident_bytes());
}

void service_put_metrics(struct service *s, struct sb *out)
{
    struct engine_stats e;
    struct writer w = {out, NULL};
    engine_stats(s->engine, &e);
    put_engine(&w, &e);
    put_own(&w, s, &e);
    if (!s->o.vllm_metrics) return;
    w.model = s->model.name;
    put_engine(&w, &e);
}
