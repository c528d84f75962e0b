/* What a load generator asks, and when: functions of options, seed and number. See load.h. */
#include "runtime/api_text.h"
#include "runtime/load.h"
#include "runtime/philox.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Words of one token in most vocabularies of English. */
static const char words[] =
    "the of and to in a is that for it as was with be by on not he his but at are this have from "
    "or had an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new some could "
    "these two may first then do any like my now over such our man me even most made after also "
    "did many off before must well back through years much where your way down should because "
    "long each just state those people too little world very year still see own work men day get "
    "here old both life between being under three never know same last another while us off might "
    "great go come since against right came take used himself few house use place during without "
    "high again home small found water hand part name light story night river stone layer depth";
enum { WORDS = 256 }; /* at most */

enum { STREAM_lengths, STREAM_words, STREAM_arrivals };

static int64_t pick(const struct load_options *o, uint64_t i, struct load_range r)
{
    double span = (double)(r.high - r.low + 1);
    return r.low + (int64_t)(rng_uniform(o->seed, STREAM_lengths, i) * span);
}

/* The word at u in [0, 1) of the list. */
static struct str word(double u)
{
    static struct str list[WORDS];
    static size_t n;
    for (const char *p = words + (n ? sizeof words - 1 : 0); *p; p += strspn(p, " ")) {
        CHECK(n < WORDS);
        list[n++] = (struct str){p, strcspn(p, " ")};
        p += list[n - 1].n;
    }
    return list[(size_t)(u * (double)n)];
}

/* Request i's words or ids come from a part of the stream that no other request uses. */
static void random_prompt(const struct load_options *o, uint64_t i, int64_t n, struct sb *out)
{
    struct sb text = {0};
    if (o->vocab) sb_char(out, '[');
    for (int64_t k = 0; k < n; k++) {
        double u = rng_uniform(o->seed, STREAM_words, (i << 24) + (uint64_t)k);
        if (o->vocab) {
            sb_printf(out, "%s%lld", k ? "," : "", (long long)(u * (double)o->vocab));
            continue;
        }
        struct str w = word(u);
        if (k) sb_char(&text, ' ');
        sb_add(&text, w.p, w.n);
    }
    if (o->vocab)
        sb_char(out, ']');
    else
        api_put_string(out, (struct str){text.p ? text.p : "", text.n});
    sb_free(&text);
}

void load_body(const struct load_options *o, uint64_t i, struct sb *out)
{
    sb_str(out, "{\"model\":");
    api_put_string(out, str_of(o->model));
    sb_str(out, o->chat ? ",\"messages\":[{\"role\":\"user\",\"content\":" : ",\"prompt\":");
    if (o->num_given)
        api_put_string(out, o->given[i % o->num_given]);
    else
        random_prompt(o, i, pick(o, 2 * i, o->prompt), out);
    if (o->chat) sb_str(out, "}]");
    sb_printf(out, ",\"max_tokens\":%lld,\"temperature\":%.6g,\"seed\":%llu,\"stream\":true",
              (long long)pick(o, 2 * i + 1, o->max_tokens), o->temperature,
              (unsigned long long)(i & 0x7fffffff));
    if (o->ignore_eos) sb_str(out, ",\"ignore_eos\":true");
    sb_str(out, ",\"stream_options\":{\"include_usage\":true}}");
}

double load_due(const struct load_options *o, uint64_t i, double before)
{
    return before - log1p(-rng_uniform(o->seed, STREAM_arrivals, i)) / o->rate;
}

enum rt_status load_url_read(const char *text, struct load_url *out, struct rt_error *err)
{
    *out = (struct load_url){.port = "80"};
    if (strncmp(text, "http://", 7))
        return rt_fail(err, RT_user, "a URL begins with http://, '%.80s' does not", text);
    const char *host = text + 7, *end = host + strcspn(host, "/?#");
    const char *colon = memchr(host, ':', (size_t)(end - host));
    if (*host == '[') { /* IPv6 */
        host++;
        colon = strchr(host, ']');
        if (!colon || colon > end || (colon[1] != ':' && colon + 1 != end))
            return rt_fail(err, RT_user, "'%.80s' is no URL", text);
    }
    size_t n = (size_t)((colon ? colon : end) - host), prefix = strlen(end);
    while (prefix && end[prefix - 1] == '/') prefix--;
    if (!n || n >= sizeof out->host || prefix >= sizeof out->prefix || strpbrk(end, "?# \r\n"))
        return rt_fail(err, RT_user, "'%.80s' is no URL of a server", text);
    memcpy(out->host, host, n);
    memcpy(out->prefix, end, prefix);
    if (colon && *colon == ']') colon = colon[1] == ':' ? colon + 1 : NULL;
    if (colon) {
        size_t digits = strspn(colon + 1, "0123456789");
        if (colon + 1 + digits != end || digits > 5 || !digits || atoi(colon + 1) > 65535)
            return rt_fail(err, RT_user, "'%.80s' has no port after its ':'", text);
        memcpy(out->port, colon + 1, digits);
        out->port[digits] = 0;
    }
    return RT_ok;
}
