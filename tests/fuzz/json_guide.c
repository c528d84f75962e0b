/* Fuzz target: runtime/json_guide.h beside jansson. A completed text parses; every prefix of a
 * valid object that keeps to the guide's bounds is accepted; what is accepted can be completed. */
#include "base/arena.h"
#include "runtime/json_guide.h"
#include <ctype.h>
#include <jansson.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool parses(const char *p, size_t n)
{
    json_t *j = json_loadb(p, n, JSON_DECODE_INT_AS_REAL, NULL);
    bool good = json_is_object(j);
    json_decref(j);
    return good;
}

/* The least that completes a text: bytes are tried in an order that closes what is open. */
static void complete(struct json_guide g)
{
    static const char closing[] = "\"}]:{0\\unrelsfa\x80\xa0\x90"
                                  "DCdc1";
    for (int i = 0; i < 1000 && !json_guide_complete(&g); i++) {
        const char *c = closing;
        while (*c && !json_guide_accepts(&g, c, 1)) c++;
        CHECK(*c && json_guide_take(&g, c, 1));
    }
    CHECK(json_guide_complete(&g));
}

/* Whether the bounds of the guide are the reason that it stops before a text that is valid. */
static bool beyond_bounds(const char *p, size_t n)
{
    size_t depth = 0, space = 0, number = 0, power = 0;
    bool in_string = false;
    for (size_t i = 0; i < n; i++) {
        if (in_string) {
            if (p[i] == '\\')
                i++;
            else if (p[i] == '"')
                in_string = false;
            continue;
        }
        space = strchr(" \t\r\n", p[i]) && p[i] ? space + 1 : 0;
        in_string = p[i] == '"';
        if (p[i] == '{' || p[i] == '[') depth++;
        if (p[i] == '}' || p[i] == ']') depth--;
        bool of_number = strchr("0123456789+-.eE", p[i]) && p[i];
        number = of_number ? number + 1 : 0;
        power = !of_number                              ? 0
                : p[i] == 'e' || p[i] == 'E'            ? 1
                : power && isdigit((unsigned char)p[i]) ? power + 1
                                                        : power;
        if (depth > JSON_DEPTH || space > JSON_LINE_END + JSON_INDENT * depth ||
            number > JSON_NUMBER - 3 || power > 3)
            return true;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data;
    struct json_guide g;
    json_guide_start(&g);
    size_t n = 0;
    for (; n < size; n++) {
        struct json_guide before = g;
        if (!json_guide_take(&g, p + n, 1)) {
            g = before;
            break;
        }
        CHECK(json_guide_accepts(&before, p + n, 1));
        if (json_guide_complete(&g) && !json_guide_complete(&before)) CHECK(parses(p, n + 1));
    }
    complete(g);
    /* jansson passes over a zero byte behind a number */
    if (n < size && !memchr(p, 0, size) && parses(p, size)) CHECK(beyond_bounds(p, size));
    if (n == size && json_guide_complete(&g)) CHECK(parses(p, size));
    return 0;
}
