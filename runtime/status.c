#include "runtime/status.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum rt_status rt_fail(struct rt_error *err, enum rt_status status, const char *fmt, ...)
{
    if (!err) return status;
    char text[sizeof err->text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    /* Names in hostile files must not reach the terminal as control sequences or further lines. */
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < 0x20 || *p == 0x7f) *p = '?';
    memcpy(err->text, text, sizeof text);
    return status;
}
