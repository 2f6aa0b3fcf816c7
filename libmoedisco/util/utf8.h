/* util/utf8.h - is it UTF-8 without NUL? Overlong forms, surrogates and numbers above U+10FFFF are not. */
#ifndef MOEDI_UTF8_H
#define MOEDI_UTF8_H

#include <stdint.h>
#include <string.h>

/* Zeroed at the beginning; a text that may end here has need 0. */
typedef struct moedi_utf8 {
    int need;           /* continuation bytes still to come */
    unsigned low, high; /* range of the next one */
} moedi_utf8;

/* Bytes from 1 to 0x7f at the beginning, in eights: most of most text. */
static inline int64_t moedi_utf8_plain(const unsigned char *bytes, int64_t count)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = UINT64_C(0x8080808080808080);
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        uint64_t eight;
        memcpy(&eight, bytes + i, sizeof eight);
        if ((eight | (eight - ones)) & tops) break; /* a high byte, or perhaps a zero */
    }
    return i;
}

/* 0 at the first byte that cannot stand here. */
static inline int moedi_utf8_take(moedi_utf8 *u, const unsigned char *bytes, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        if (!u->need) {
            i += moedi_utf8_plain(bytes + i, count - i);
            if (i == count) break;
        }
        const unsigned b = bytes[i];
        if (u->need) {
            if (b < u->low || b > u->high) return 0;
            u->need--;
            u->low = 0x80, u->high = 0xbf;
        } else if (b >= 0x80) {
            if (b < 0xc2 || b > 0xf4) return 0;
            u->need = b < 0xe0 ? 1 : b < 0xf0 ? 2 : 3;
            u->low = b == 0xe0 ? 0xa0 : b == 0xf0 ? 0x90 : 0x80;
            u->high = b == 0xed ? 0x9f : b == 0xf4 ? 0x8f : 0xbf;
        } else if (b == 0) {
            return 0;
        }
    }
    return 1;
}

static inline int moedi_utf8_text(const char *text, int64_t count)
{
    moedi_utf8 u = {0, 0, 0};
    return moedi_utf8_take(&u, (const unsigned char *)text, count) && u.need == 0;
}

#endif
