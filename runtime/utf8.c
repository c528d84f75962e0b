#include "runtime/utf8.h"

int utf8_next(const char *p, size_t n, uint32_t *cp)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    unsigned char c = (unsigned char)p[0];
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    int len = c >= 0xc2 && c < 0xe0 ? 2 : c >= 0xe0 && c < 0xf0 ? 3 : c >= 0xf0 && c < 0xf5 ? 4 : 0;
    if (!len) return 0;
    uint32_t v = c & (0x7fu >> len);
    int i = 1;
    for (; i < len && (size_t)i < n; i++) {
        unsigned char b = (unsigned char)p[i];
        if ((b & 0xc0) != 0x80) return 0;
        v = v << 6 | (b & 0x3f);
    }
    /* the range of code points that the bytes read so far can still become */
    uint32_t low = v << 6 * (len - i);
    uint32_t high = low | ((1u << 6 * (len - i)) - 1);
    if (high < least[len] || low >= UTF8_LIMIT || (low >= 0xd800 && high < 0xe000)) return 0;
    if (i < len) return -1;
    *cp = v;
    return len;
}

int utf8_put(uint32_t cp, char out[UTF8_MAX])
{
    int len = cp < 0x80 ? 1 : cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = len - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 0x3f));
    out[0] = (char)(lead[len] | cp);
    return len;
}

size_t utf8_check(struct str s)
{
    uint32_t cp;
    for (size_t i = 0; i < s.n;) {
        int n = utf8_next(s.p + i, s.n - i, &cp);
        if (n <= 0) return i;
        i += (size_t)n;
    }
    return s.n;
}
