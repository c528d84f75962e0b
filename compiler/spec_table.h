/* The table of the spec language (spec.def) as data, for the reader, the merger and the documents.
 */
#ifndef STRATA_COMPILER_SPEC_TABLE_H
#define STRATA_COMPILER_SPEC_TABLE_H
#include "compiler/model.h"

enum spec_obj {
#define OBJ(id, path, bare, help) OBJ_##id,
#include "compiler/spec.def"
    OBJ_COUNT /* also: no object of the table */
};

/* The scalar that may stand for a mapping. */
enum spec_bare { BARE_no, BARE_type, BARE_none, BARE_flag };

enum spec_kind {
    K_int,     /* integer; int64_t */
    K_int0,    /* integer or null, which is stored as 0; int64_t */
    K_int_all, /* integer or the word all, which is stored as 0; int64_t */
    K_seed,    /* integer; uint64_t */
    K_num,     /* number; double */
    K_num0,    /* number or null, which is stored as 0; double */
    K_pair,    /* list of two numbers; two doubles */
    K_bool,    /* true or false; bool */
    K_str,     /* any scalar but null; const char * */
    K_name,    /* 1 to 64 of A-Z a-z 0-9 . _ -; const char * */
    K_path,    /* file name, stored absolute; const char * */
    K_word,    /* one of a list; an enum */
    K_obj,     /* a mapping; the field, where there is one, is a bool that says it is there */
    K_named,   /* names to mappings */
    K_layers,  /* list of layers and repeats */
    K_ints,    /* list of integers */
    K_stop,    /* list of token ids */
    K_special, /* texts to token ids */
    K_any      /* not looked into */
};

enum spec_list {
    LIST_none,
    LIST_norm_type,
    LIST_residual_type,
    LIST_mixer_type,
    LIST_gate_type,
    LIST_gate_rank,
    LIST_ffn_type,
    LIST_activation,
    LIST_router_score,
    LIST_balance_type,
    LIST_tokenizer_type,
    LIST_data_order,
    LIST_optimizer_type,
    LIST_schedule_type,
    LIST_precision
};

struct spec_word {
    enum spec_list list;
    int value;
    const char *list_name, *word;
};
struct spec_object {
    const char *id, *path;
    enum spec_bare bare;
    const char *help;
};
struct spec_key {
    enum spec_obj object;
    const char *name;
    enum spec_kind kind;
    int arg;       /* enum spec_list or enum spec_obj */
    uint32_t when; /* bit set of the object's types that use the key */
    const char *dflt, *range;
    size_t field; /* offset in struct model, mixer, ffn or spec_item; SPEC_NOWHERE */
    const char *help;
};
#define SPEC_NOWHERE ((size_t)-1)
#define SPEC_ANY 0xffffffffu /* spec_key.when: used by every type */

/* What a row of layers or repeat is read into, before references are resolved. */
struct spec_item {
    const char *mixer, *ffn;
    bool sites[2]; /* mixer, ffn */
    int64_t repeat;
};

struct spec_range {
    double lo, hi;
    bool lo_open, hi_open;
};

extern const struct spec_object spec_objects[OBJ_COUNT];
extern const struct spec_key spec_keys[];
extern const size_t spec_num_keys;
extern const struct spec_word spec_words[];
extern const size_t spec_num_words;

/* The row of a key that `type` uses; NULL where there is none. type < 0: any row of that name. */
const struct spec_key *spec_key_find(enum spec_obj object, struct str name, int type);
/* The word of a list, or NULL. */
const struct spec_word *spec_word_find(enum spec_list list, struct str text);
/* The tag of the list's enum: "mixer_type", ... */
const char *spec_list_name(enum spec_list list);
/* The list of the object's `type` key, LIST_none where it has none. */
enum spec_list spec_type_list(enum spec_obj object);
/* "[1,8]", "(0,1]", ... ; the whole line for "". */
struct spec_range spec_range_of(const char *text);
/* "from 1 to 8", "above 0 and at most 1", ... appended. */
void spec_range_phrase(struct sb *out, const char *text);
/* "a, b or c" of a word list, appended. */
void spec_words_phrase(struct sb *out, enum spec_list list);
#endif
