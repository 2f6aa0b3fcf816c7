/* util/json_field.c - reads JSON (RFC 8259) strictly, and gives up rather than guess. */
#include "json_field.h"

#include <string.h>

#include "utf8.h"

enum { DEPTH = 16, NAMES = 64 }; /* objects and lists in each other; names that wait to be compared, of all open objects */

typedef struct scan {
    const char *at, *end;
    moedi_json_string names[NAMES];
    int used, depth;
} scan;

static int take(scan *s, char c)
{
    if (s->at == s->end || *s->at != c) return 0;
    s->at++;
    return 1;
}

static void skip_space(scan *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\t' || *s->at == '\n' || *s->at == '\r')) s->at++;
}

/* ---- strings ---- */

static uint32_t four_digits(const char *at)
{
    uint32_t n = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned char c = (unsigned char)at[i], letter = c | 0x20;
        if (c >= '0' && c <= '9') n = n << 4 | (uint32_t)(c - '0');
        else if (letter >= 'a' && letter <= 'f') n = n << 4 | (uint32_t)(letter - 'a' + 10);
        else return 0;
    }
    return n;
}

/* The character that the backslash at *at stands for, which is passed over; 0: none, or the zero character, which is refused. */
static uint32_t take_escape(const char **at, const char *end)
{
    static const char letters[] = "\"\\/bfnrt", characters[] = "\"\\/\b\f\n\r\t";
    const char *p = *at + 1;
    if (p == end || *p == 0) return 0;
    const char *letter = strchr(letters, *p);
    if (letter) {
        *at = p + 1;
        return (unsigned char)characters[letter - letters];
    }
    if (*p != 'u' || end - p < 5) return 0;
    const uint32_t first = four_digits(p + 1);
    *at = p + 5;
    if (first < 0xd800 || first > 0xdfff) return first;
    if (first > 0xdbff || end - p < 11 || p[5] != '\\' || p[6] != 'u') return 0;
    const uint32_t second = four_digits(p + 7);
    *at = p + 11;
    return second >= 0xdc00 && second <= 0xdfff ? 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00) : 0;
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

static int take_string(scan *s, moedi_json_string *out)
{
    if (!take(s, '"')) return 0;
    out->text = s->at, out->escaped = 0;
    for (;;) {
        s->at = pass_plain(s->at, s->end);
        while (s->at < s->end && *s->at != '"' && *s->at != '\\' && (unsigned char)*s->at >= 0x20) s->at++;
        if (s->at == s->end || *s->at != '\\') break;
        out->escaped = 1;
        if (!take_escape(&s->at, s->end)) return 0;
    }
    out->size = s->at - out->text;
    return take(s, '"');
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

/* ---- values ---- */

static int take_value(scan *s);

static int take_word(scan *s, const char *word)
{
    const size_t size = strlen(word);
    if ((size_t)(s->end - s->at) < size || memcmp(s->at, word, size) != 0) return 0;
    s->at += size;
    return 1;
}

static int64_t take_digits(scan *s)
{
    const char *first = s->at;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') s->at++;
    return s->at - first;
}

/* Of a size that fits int64_t and double for certain. */
static int take_number(scan *s)
{
    take(s, '-');
    if (!take(s, '0')) {
        const int64_t digits = take_digits(s);
        if (digits < 1 || digits > 18) return 0;
    }
    if (take(s, '.') && take_digits(s) < 1) return 0;
    if (take(s, 'e') || take(s, 'E')) {
        if (!take(s, '-')) take(s, '+');
        const int64_t digits = take_digits(s);
        if (digits < 1 || digits > 2) return 0;
    }
    return 1;
}

/* Names stand once in an object, whose names begin at `first`. */
static int take_name(scan *s, int first)
{
    moedi_json_string name;
    skip_space(s);
    if (!take_string(s, &name) || name.escaped || s->used == NAMES) return 0;
    for (int i = first; i < s->used; i++)
        if (s->names[i].size == name.size && memcmp(s->names[i].text, name.text, (size_t)name.size) == 0) return 0;
    s->names[s->used++] = name;
    skip_space(s);
    return take(s, ':');
}

/* field: NULL where none is looked for. */
static int take_object(scan *s, const char *field, moedi_json_string *out)
{
    const int first = s->used;
    if (!take(s, '{') || ++s->depth > DEPTH) return 0;
    skip_space(s);
    if (!take(s, '}')) {
        do {
            if (!take_name(s, first)) return 0;
            const moedi_json_string *name = &s->names[s->used - 1];
            const int wanted = field && (size_t)name->size == strlen(field) && memcmp(name->text, field, (size_t)name->size) == 0;
            skip_space(s);
            if (!(wanted ? take_string(s, out) : take_value(s))) return 0;
            skip_space(s);
        } while (take(s, ','));
        if (!take(s, '}')) return 0;
    }
    s->used = first, s->depth--;
    return 1;
}

static int take_list(scan *s)
{
    if (!take(s, '[') || ++s->depth > DEPTH) return 0;
    skip_space(s);
    if (!take(s, ']')) {
        do {
            skip_space(s);
            if (!take_value(s)) return 0;
            skip_space(s);
        } while (take(s, ','));
        if (!take(s, ']')) return 0;
    }
    s->depth--;
    return 1;
}

static int take_value(scan *s)
{
    moedi_json_string ignored;
    switch (s->at < s->end ? *s->at : 0) {
    case '"': return take_string(s, &ignored);
    case '{': return take_object(s, NULL, NULL);
    case '[': return take_list(s);
    case 't': return take_word(s, "true");
    case 'f': return take_word(s, "false");
    case 'n': return take_word(s, "null");
    default: return take_number(s);
    }
}

int moedi_json_field(const char *text, int64_t size, const char *field, moedi_json_string *out)
{
    scan s = {.at = text, .end = text + size};
    out->text = NULL;
    skip_space(&s);
    if (!take_object(&s, field, out) || !out->text) return 0;
    skip_space(&s);
    return s.at == s.end && moedi_utf8_text(text, size);
}
