/* Tokenizer files: rank files of tiktoken, tokenizer.json of Hugging Face, tokenizer.bin of
 * llama2.c; told apart by their content. */
#ifndef STRATA_RUNTIME_TOKENIZER_FILE_H
#define STRATA_RUNTIME_TOKENIZER_FILE_H
#include "runtime/tokenize.h"

/* What a spec says beside the file; it goes before what the file or its neighbours say. */
struct tok_name {
    const char *text;
    int64_t id;
};
struct tok_options {
    const char *pattern; /* gpt2, cl100k, kimi or a regular expression; NULL: the file's own */
    const struct tok_name *special;
    size_t num_special;
};

/* Opens a tokenizer file. Rank files: gpt2, cl100k and kimi are known by their tokens; others need
 * a pattern, from `o` or from FILE.json beside it, which `strata tokenizer train` and checkpoints
 * write. Names of special tokens of kimi come from tokenizer_config.json (or NAME.tokenizer_config
 * .json for NAME.tiktoken.model) beside it. RT_user, naming file and line, for anything malformed
 * or not understood. */
enum rt_status tokenizer_file_open(const char *path, const struct tok_options *o,
                                   struct tokenizer **out, struct rt_error *err);
/* The saved file in a folder, if there is one (*out is NULL otherwise). */
enum rt_status tokenizer_folder_open(const char *folder, struct tokenizer **out,
                                     struct rt_error *err);

/* The formats, from memory; `label` names the file in messages. */
struct tok_file_text {
    struct str text;
    struct str beside, config; /* FILE.json, tokenizer_config.json; empty where there is none */
    const char *label;
    const struct tok_options *o;
};
enum rt_status tokenizer_file_parse(const struct tok_file_text *f, struct tokenizer **out,
                                    struct rt_error *err);
enum rt_status tokenizer_rank_parse(const struct tok_file_text *f, struct tokenizer **out,
                                    struct rt_error *err);
enum rt_status tokenizer_json_parse(const struct tok_file_text *f, struct tokenizer **out,
                                    struct rt_error *err);
enum rt_status tokenizer_llama2c_parse(const struct tok_file_text *f, struct tokenizer **out,
                                       struct rt_error *err);

/* Appends FILE.json for a rank file: its pattern (a word or an expression) and special tokens. */
enum rt_status tokenizer_rank_beside(const struct tok_options *o, struct sb *out,
                                     struct rt_error *err);
/* Appends a line of a rank file. */
void tokenizer_rank_line(struct str token, uint32_t rank, struct sb *out);
#endif
