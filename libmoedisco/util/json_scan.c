/* util/json_scan.c - reads JSON (RFC 8259) strictly, one part after the other. */
#include "json_scan.h"

#include <string.h>

#include "utf8.h"

enum { ANY_VALUE, FIRST_OR_CLOSE, COMMA_OR_CLOSE }; /* what a scan expects */

static moedi_json_part wrong(moedi_json_scan *s, const char *at, const char *why)
{
    s->at = at;
    s->wrong = at == s->end ? "it ends too early" : why;
    return MOEDI_JSON_WRONG;
}

static int take(moedi_json_scan *s, char c)
{
    if (s->at == s->end || *s->at != c) return 0;
    s->at++;
    return 1;
}

static void skip_space(moedi_json_scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) s->at++;
}

/* ---- strings ---- */

enum { NO_DIGITS = 0x10000, NO_CHARACTER = 0x110000, HALF_A_PAIR }; /* beyond what there is */

static uint32_t four_digits(const char *at)
{
    uint32_t n = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned char c = (unsigned char)at[i], letter = c | 0x20;
        if (c >= '0' && c <= '9') n = n << 4 | (uint32_t)(c - '0');
        else if (letter >= 'a' && letter <= 'f') n = n << 4 | (uint32_t)(letter - 'a' + 10);
        else return NO_DIGITS;
    }
    return n;
}

/* The character that the backslash at *at stands for, which is passed over; or one of the above. */
static uint32_t take_escape(const char **at, const char *end)
{
    static const char letters[] = "\"\\/bfnrt", characters[] = "\"\\/\b\f\n\r\t";
    const char *p = *at + 1;
    if (p == end || *p == 0) return NO_CHARACTER;
    const char *letter = strchr(letters, *p);
    if (letter) {
        *at = p + 1;
        return (unsigned char)characters[letter - letters];
    }
    if (*p != 'u' || end - p < 5) return NO_CHARACTER;
    const uint32_t first = four_digits(p + 1);
    if (first == NO_DIGITS) return NO_CHARACTER;
    if (first < 0xd800 || first > 0xdfff) {
        *at = p + 5;
        return first;
    }
    if (first > 0xdbff || end - p < 11 || p[5] != '\\' || p[6] != 'u') return HALF_A_PAIR;
    const uint32_t second = four_digits(p + 7);
    if (second < 0xdc00 || second > 0xdfff) return HALF_A_PAIR;
    *at = p + 11;
    return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
}

static char *put_character(char *to, uint32_t c)
{
    if (c < 0x80) {
        *to++ = (char)c;
    } else if (c < 0x800) {
        *to++ = (char)(0xc0 | c >> 6);
    } else if (c < 0x10000) {
        *to++ = (char)(0xe0 | c >> 12);
        *to++ = (char)(0x80 | (c >> 6 & 0x3f));
    } else {
        *to++ = (char)(0xf0 | c >> 18);
        *to++ = (char)(0x80 | (c >> 12 & 0x3f));
        *to++ = (char)(0x80 | (c >> 6 & 0x3f));
    }
    if (c >= 0x80) *to++ = (char)(0x80 | (c & 0x3f));
    return to;
}

int64_t moedi_json_unescape(char *text, int64_t size)
{
    const char *at = text, *const end = text + size;
    char *to = text; /* never past `at`: an escape is longer than what it stands for */
    while (at < end) {
        const char *slash = memchr(at, '\\', (size_t)(end - at));
        const size_t plain = (size_t)((slash ? slash : end) - at);
        memmove(to, at, plain);
        to += plain, at += plain;
        if (slash) to = put_character(to, take_escape(&at, end));
    }
    return to - text;
}

/* Bytes that are neither quote nor backslash nor control character, in eights. */
static const char *pass_plain(const char *at, const char *end)
{
    const uint64_t ones = UINT64_C(0x0101010101010101), tops = UINT64_C(0x8080808080808080);
    for (; end - at >= 8; at += 8) {
        uint64_t w;
        memcpy(&w, at, sizeof w);
        const uint64_t quote = w ^ ones * '"', slash = w ^ ones * '\\';
        if ((((quote - ones) & ~quote) | ((slash - ones) & ~slash) | ((w - ones * 0x20) & ~w)) & tops) break;
    }
    return at;
}

static moedi_json_part wrong_escape(moedi_json_scan *s, uint32_t c)
{
    return wrong(s, s->at, c == 0             ? "the zero character stands in a string"
                           : c == HALF_A_PAIR ? "half of a surrogate pair stands in a string"
                                              : "a backslash stands before what JSON does not know");
}

static moedi_json_part wrong_bytes(moedi_json_scan *s)
{
    moedi_utf8 u = {0, 0, 0};
    const char *at = s->string.text;
    while (moedi_utf8_take(&u, (const unsigned char *)at, 1)) at++;
    return wrong(s, at, "a string is not UTF-8");
}

/* part, or MOEDI_JSON_WRONG */
static moedi_json_part take_string(moedi_json_scan *s, moedi_json_part part)
{
    s->string = (moedi_json_string){.text = ++s->at};
    for (;;) {
        s->at = pass_plain(s->at, s->end);
        while (s->at < s->end && *s->at != '"' && *s->at != '\\' && (unsigned char)*s->at >= 0x20) s->at++;
        if (s->at == s->end || *s->at != '\\') break;
        const char *slash = s->at;
        const uint32_t c = take_escape(&s->at, s->end);
        if (c == 0 || c >= NO_CHARACTER) {
            s->at = slash;
            return wrong_escape(s, c);
        }
        s->string.escaped = 1;
    }
    s->string.size = s->at - s->string.text;
    if (!take(s, '"')) return wrong(s, s->at, "a control character stands in a string");
    return moedi_utf8_text(s->string.text, s->string.size) ? part : wrong_bytes(s);
}

/* ---- values ---- */

static int64_t take_digits(moedi_json_scan *s)
{
    const char *first = s->at;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') s->at++;
    return s->at - first;
}

static moedi_json_part take_number(moedi_json_scan *s)
{
    static const char digit[] = "a digit was expected";
    const char *first = s->at;
    moedi_json_part part = MOEDI_JSON_INTEGER;
    int64_t whole = 1, exponent = 0;
    const int minus = take(s, '-');
    if (!take(s, '0') && (whole = take_digits(s)) == 0) return wrong(s, s->at, minus ? digit : "a value was expected");
    if (take(s, '.')) {
        part = MOEDI_JSON_REAL;
        if (take_digits(s) == 0) return wrong(s, s->at, digit);
    }
    if (take(s, 'e') || take(s, 'E')) {
        part = MOEDI_JSON_REAL;
        if (!take(s, '-')) take(s, '+');
        if ((exponent = take_digits(s)) == 0) return wrong(s, s->at, digit);
    }
    s->string = (moedi_json_string){.text = first, .size = s->at - first};
    s->fits = whole <= 18 && exponent <= 2;
    return part;
}

static moedi_json_part take_word(moedi_json_scan *s, const char *word, moedi_json_part part)
{
    const int64_t size = (int64_t)strlen(word);
    if (s->end - s->at < size || memcmp(s->at, word, (size_t)size) != 0) return wrong(s, s->at, "a value was expected");
    s->at += size;
    return part;
}

static moedi_json_part open_with(moedi_json_scan *s, char close, moedi_json_part part)
{
    if (s->depth == MOEDI_JSON_DEPTH) return wrong(s, s->at, "objects and lists are nested too deep");
    s->close[s->depth++] = close;
    s->expects = FIRST_OR_CLOSE;
    s->at++;
    return part;
}

static moedi_json_part take_value(moedi_json_scan *s)
{
    s->expects = COMMA_OR_CLOSE;
    switch (s->at < s->end ? *s->at : 0) {
    case '"': return take_string(s, MOEDI_JSON_STRING);
    case '{': return open_with(s, '}', MOEDI_JSON_OBJECT);
    case '[': return open_with(s, ']', MOEDI_JSON_LIST);
    case 't': return take_word(s, "true", MOEDI_JSON_TRUE);
    case 'f': return take_word(s, "false", MOEDI_JSON_FALSE);
    case 'n': return take_word(s, "null", MOEDI_JSON_NULL);
    default: return take_number(s);
    }
}

static moedi_json_part take_name(moedi_json_scan *s)
{
    if (s->at == s->end || *s->at != '"') return wrong(s, s->at, "a name in quotes was expected");
    const moedi_json_part part = take_string(s, MOEDI_JSON_NAME);
    if (part == MOEDI_JSON_WRONG) return part;
    skip_space(s);
    if (!take(s, ':')) return wrong(s, s->at, "a colon was expected");
    s->expects = ANY_VALUE;
    return part;
}

void moedi_json_begin(moedi_json_scan *s, const char *text, int64_t size)
{
    s->at = text, s->end = text + size;
    s->expects = ANY_VALUE, s->depth = 0;
}

moedi_json_part moedi_json_next(moedi_json_scan *s)
{
    skip_space(s);
    if (s->expects == ANY_VALUE) return take_value(s);
    if (s->depth == 0) return s->at == s->end ? MOEDI_JSON_END : wrong(s, s->at, "something follows its end");
    const char close = s->close[s->depth - 1];
    if (take(s, close)) {
        s->depth--;
        s->expects = COMMA_OR_CLOSE;
        return MOEDI_JSON_CLOSE;
    }
    if (s->expects == COMMA_OR_CLOSE) {
        if (!take(s, ',')) return wrong(s, s->at, close == '}' ? "a comma or } was expected" : "a comma or ] was expected");
        skip_space(s);
    }
    return close == '}' ? take_name(s) : take_value(s);
}
