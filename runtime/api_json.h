/* A request's body as JSON, with every limit checked before the parser sees it. */
#ifndef STRATA_RUNTIME_API_JSON_H
#define STRATA_RUNTIME_API_JSON_H
#include "runtime/api.h"
#include <jansson.h>

/* The body's object (json_decref), or NULL with *err; err->param is the member where the text
 * breaks or a number is out of range. Integers beyond 64 bits and numbers beyond double are
 * refused, never changed; so are members of the same name. */
json_t *api_json_load(struct str body, struct api_error *err);
/* Reads the members of a body into a request that holds the defaults. */
bool api_read_body(struct api_request *r, const json_t *body, const struct api_limits *lim,
                   struct api_error *err);
#endif
