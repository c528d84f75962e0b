/* Chat templates: messages to the text that a model was trained on. Built in, chosen by name
 * (`tokenizer.chat_template` of a spec), data in chat.c:
 *   kimi    <|im_user|>user<|im_middle|>TEXT<|im_end|> and so on (the Kimi K2 family); without a
 *           system message first, a default one
 *   llama   <|begin_of_text|>, then <|start_header_id|>user<|end_header_id|>\n\nTEXT<|eot_id|>
 *           (Llama 3); white space around TEXT is cut off
 *   chatml  <|im_start|>user\nTEXT<|im_end|>\n
 *   plain   no special tokens: "User: TEXT\n\nAssistant: TEXT\n\n", behind the system text; users
 * and assistants take turns. Only here can a user's text look like another turn. A prompt is a list
 * of pieces, special tokens by name and plain text, which are encoded apart: no text of a message
 * ever becomes a special token. */
#ifndef STRATA_RUNTIME_CHAT_H
#define STRATA_RUNTIME_CHAT_H
#include "runtime/tokenize.h"

enum chat_role { CHAT_system, CHAT_user, CHAT_assistant, CHAT_ROLES };

struct chat_message {
    enum chat_role role;
    struct str content; /* UTF-8; may be empty */
    struct str name;    /* of the speaker; empty where none was given. Only kimi shows it. */
};

struct chat_piece {
    bool special;    /* the name of a special token, else text */
    struct str text; /* a special token's name is terminated */
};
struct chat_prompt {
    struct chat_piece *piece; /* texts beside each other are one piece */
    size_t n;
};

struct chat_template;
/* The template of a name, or NULL. chat_names: all of them, "kimi, llama ... or plain". */
const struct chat_template *chat_template_find(const char *name);
const char *chat_names(void);
const char *chat_template_name(const struct chat_template *t);
/* Whether a space before an answer belongs to the template (plain: "Assistant: TEXT"), so that it is
 * not shown; with it the conversation goes on as the same tokens. */
bool chat_answer_space(const struct chat_template *t);
/* Names of special tokens that end an answer, and texts that do where the template has no such
 * tokens: the i-th, or NULL. */
const char *chat_stop_token(const struct chat_template *t, int i);
const char *chat_stop_text(const struct chat_template *t, int i);

/* The prompt of messages (at least one), in the arena, which also keeps the texts where they were
 * changed; the others are those of the messages. `generate` adds the beginning of an answer.
 * RT_user where the template does not allow this order of roles; *bad is then that message. */
enum rt_status chat_render(struct arena *a, const struct chat_template *t,
                           const struct chat_message *m, size_t n, bool generate,
                           struct chat_prompt *out, size_t *bad, struct rt_error *err);

/* The id of a special token; RT_user where the tokenizer has none of this name. */
enum rt_status chat_special(const struct tokenizer *t, const char *name, int32_t *id,
                            struct rt_error *err);
/* Appends the ids of a prompt. RT_user for a special token that the tokenizer lacks, and for text
 * without ids. */
enum rt_status chat_encode(const struct tokenizer *t, const struct chat_prompt *p,
                           struct tok_ids *out, struct rt_error *err);
#endif
