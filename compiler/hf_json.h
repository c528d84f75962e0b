/* Reading a JSON object key by key: every value has a checked kind, every mistake names its key and
 * its place, and a key that nobody asked for is told in the end. */
#ifndef STRATA_COMPILER_HF_JSON_H
#define STRATA_COMPILER_HF_JSON_H
#include "base/diag.h"
#include "base/map.h"
#include "base/vec.h"
#include <jansson.h>

struct hf_text { /* one file */
    struct arena *a;
    struct diag *d;
    uint32_t file;
    struct str text;
};
struct hf_object {
    const struct hf_text *t;
    const json_t *json;
    const char *path; /* in front of its keys in messages: "" or "text_config." */
    size_t at;        /* of its brace in the text */
    struct map used;  /* keys asked for */
};
typedef VEC(int64_t) hf_ints;
#define HF_REQUIRED INT64_MIN

/* Parses a text whose root is an object, without duplicate keys; false after an error. The JSON
 * lives until json_decref((json_t *)o->json). Where `loose`, whole numbers of any size are real. */
bool hf_parse(struct arena *a, struct diag *d, const char *path, struct str text, bool loose,
              struct hf_object *o);
/* The value of a key, NULL where it is absent or null. */
const json_t *hf_get(struct hf_object *o, const char *key);
/* Kinds. Where the key is absent or null the result is the default; HF_REQUIRED (NAN, NULL with
 * `required`) makes that an error. After an error the result is the lowest value, 1, false, "". */
int64_t hf_int(struct hf_object *o, const char *key, int64_t low, int64_t high, int64_t absent);
double hf_number(struct hf_object *o, const char *key, double absent);
bool hf_bool(struct hf_object *o, const char *key, bool absent);
const char *hf_word(struct hf_object *o, const char *key, const char *absent);
bool hf_int_list(struct hf_object *o, const char *key, int64_t low, int64_t high, hf_ints *out);
/* An object below this one; false where it is absent, null or an error. */
bool hf_sub(struct hf_object *o, const char *key, struct hf_object *sub);
/* Where a key stands, for diagnostics. */
struct span hf_place(const struct hf_object *o, const char *key);
/* "KEY is VALUE: why" as an error at the key. */
void hf_refuse(struct hf_object *o, const char *key, const char *why);
/* A value as JSON, cut where it is long; in the arena. */
const char *hf_show(const struct hf_object *o, const char *key);
/* Warns of every key that was not asked for and for which known(key) is false. */
void hf_unknown(const struct hf_object *o, bool (*known)(const char *key));
#endif
