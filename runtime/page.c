/* See page.h. The Makefile writes page.inc from page.html. */
#include "runtime/page.h"

#pragma GCC diagnostic ignored "-Woverlength-strings"
const char page_html[] =
#include "runtime/page.inc"
    ;
const size_t page_bytes = sizeof page_html - 1;
const char page_policy[] = "default-src 'none'; connect-src 'self'; img-src data:; "
                           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
#include "runtime/page_policy.inc"
    ;
