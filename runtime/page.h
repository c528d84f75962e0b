/* The built-in web page of the server (page.html): to chat, and to look at depth attention. It
 * needs nothing but the server's own routes. */
#ifndef STRATA_RUNTIME_PAGE_H
#define STRATA_RUNTIME_PAGE_H
#include <stddef.h>

extern const char page_html[]; /* terminated */
extern const size_t page_bytes;
/* A Content-Security-Policy that allows this page its own style and script, by their hashes, and
 * requests to where it came from, and nothing else. */
extern const char page_policy[];
#endif
