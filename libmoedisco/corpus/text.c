/* corpus/text.c - where text comes from: folders in name order, text files cut at blank lines, JSON lines. */
#include "text.h"

#include <stdio.h>
#include <string.h>

#include "core/cancel.h"
#include "util/json_field.h"
#include "util/utf8.h"

#define CHUNK 65536
#define BATCH (2 << 20) /* bytes of lines that are parsed at once */
#define LINE_LIMIT (256 << 20) /* bytes of a JSON line: what one line may make the library hold in memory */

/* ---- is it text? ---- */

static moed_status read_chunk(const moedi_builder *b, const moedi_file *f, int64_t at, unsigned char *chunk,
                              int64_t *count)
{
    MOEDI_TRY(moedi_cancel_check(b->cancel));
    *count = f->size - at < CHUNK ? f->size - at : CHUNK;
    return moedi_file_read(f, at, chunk, (size_t)*count);
}

/* Where the text begins: behind a byte-order mark, which says that it is UTF-8 and is no part of it. */
static moed_status find_start(const moedi_builder *b, const moedi_file *f, unsigned char *chunk, int64_t *start)
{
    int64_t n = 0;
    MOEDI_TRY(read_chunk(b, f, 0, chunk, &n));
    *start = n >= 3 && memcmp(chunk, "\xEF\xBB\xBF", 3) == 0 ? 3 : 0;
    return MOED_OK;
}

static moed_status check_text(const moedi_builder *b, const moedi_file *f, unsigned char *chunk, int *text)
{
    moedi_utf8 u = {0, 0, 0};
    int64_t n = 0;
    *text = 1;
    for (int64_t at = 0; at < f->size && *text; at += n) {
        MOEDI_TRY(read_chunk(b, f, at, chunk, &n));
        *text = moedi_utf8_take(&u, chunk, n);
    }
    if (u.need) *text = 0;
    return MOED_OK;
}

/* ---- cutting ---- */

/* Where a long file is parted: after a blank line once a document has its size; where there is none for as long
 * again, after any line; and at twice that, between two characters. What is left at the end is not parted into
 * a crumb. */
typedef struct cutter {
    int64_t target; /* bytes; 0 = never cut */
    int64_t size;   /* of the document at hand */
    int64_t left;   /* bytes of the file from the next on */
    int breaks;     /* line feeds in the run that ends here */
} cutter;

static int cut_before(cutter *k, unsigned char byte)
{
    const int line_end = byte == '\n' || byte == '\r';
    int cut = 0;
    if (k->target && k->size >= k->target && k->left > k->target / 2)
        cut = (!line_end && k->breaks >= 2) || (!line_end && k->breaks >= 1 && k->size >= 2 * k->target) ||
              ((byte & 0xc0) != 0x80 && k->size >= 4 * k->target);
    k->breaks = byte == '\n' ? k->breaks + 1 : byte == '\r' ? k->breaks : 0;
    k->size = cut ? 1 : k->size + 1;
    k->left--;
    return cut;
}

/* Bytes that can be passed over at once: none of them is where a document ends. `count` are at hand. */
static int64_t pass_over(cutter *k, const unsigned char *bytes, int64_t count)
{
    int64_t n = k->target - k->size, run = 0;
    if (n > count) n = count;
    if (n <= 0) return 0;
    int64_t i = n; /* the run of line feeds at their end, carriage returns left out */
    while (i > 0 && (bytes[i - 1] == '\n' || bytes[i - 1] == '\r')) run += bytes[--i] == '\n';
    const int64_t breaks = run + (i == 0 ? k->breaks : 0);
    k->breaks = breaks < 2 ? (int)breaks : 2; /* two are a blank line, more are no more */
    k->size += n;
    k->left -= n;
    return n;
}

static moed_status read_text(moedi_builder *b, const moedi_file *f, int64_t start, unsigned char *chunk)
{
    const int64_t target = b->options.document_bytes;
    cutter k = {target > 0 && f->size / 2 > target ? target : 0, 0, f->size - start, 0};
    int64_t n = 0;
    for (int64_t at = start; at < f->size; at += n) {
        int64_t from = 0;
        MOEDI_TRY(read_chunk(b, f, at, chunk, &n));
        for (int64_t i = 0; k.target && i < n; i++) {
            i += pass_over(&k, chunk + i, n - i);
            if (i == n || !cut_before(&k, chunk[i])) continue;
            MOEDI_TRY(moedi_builder_append(b, chunk + from, i - from));
            MOEDI_TRY(moedi_builder_end(b));
            from = i;
        }
        MOEDI_TRY(moedi_builder_append(b, chunk + from, n - from));
    }
    return moedi_builder_end(b);
}

/* ---- JSON lines ---- */

/* Lines that were read and not yet taken: parsed side by side, taken in order. */
typedef struct line {
    int64_t from, size, number;
    const char *text; /* of the field, NULL: a blank line */
    int64_t length;
    json_t *object;   /* that holds the text, where it is not in the line itself */
} line;

typedef struct lines {
    moedi_builder *builder;
    const char *path;
    char *text;
    int64_t capacity, used, begin; /* begin: of the line that is being read */
    line *all;
    int64_t count, room, number;
} lines;

enum { GROUP = 64 }; /* lines that one task parses */

/* What moedi_json_field leaves: unusual lines, and those that are wrong. */
static moed_status parse_any_line(const lines *l, line *k)
{
    char name[4096];
    snprintf(name, sizeof name, "%s:%lld", l->path, (long long)k->number);
    MOEDI_TRY(moedi_json_parse(&k->object, l->text + k->from, (size_t)k->size, name));
    const json_t *value = json_object_get(k->object, l->builder->options.field);
    if (json_is_string(value)) {
        k->text = json_string_value(value), k->length = (int64_t)json_string_length(value);
        return MOED_OK;
    }
    return moedi_fail_file(MOED_E_FORMAT, name, -1, value ? "field \"%s\" is no string" : "there is no field \"%s\"",
                           l->builder->options.field);
}

static moed_status parse_line(const lines *l, line *k)
{
    char *text = l->text + k->from;
    moedi_json_string found;
    int64_t at = 0;
    while (at < k->size && (text[at] == ' ' || text[at] == '\t' || text[at] == '\r')) at++;
    if (at == k->size) return MOED_OK;
    if (!moedi_json_field(text, k->size, l->builder->options.field, &found)) return parse_any_line(l, k);
    k->text = found.text;
    k->length = found.escaped ? moedi_json_unescape(text + (found.text - text), found.size) : found.size;
    return MOED_OK;
}

static moed_status parse_group(void *argument, int64_t index)
{
    const lines *l = argument;
    const int64_t end = (index + 1) * GROUP < l->count ? (index + 1) * GROUP : l->count;
    MOEDI_TRY(moedi_cancel_check(l->builder->cancel));
    for (int64_t i = index * GROUP; i < end; i++) MOEDI_TRY(parse_line(l, &l->all[i]));
    return MOED_OK;
}

static moed_status take_line(moedi_builder *b, const line *k)
{
    if (!k->text) return MOED_OK;
    MOEDI_TRY(moedi_builder_append(b, (const unsigned char *)k->text, k->length));
    return moedi_builder_end(b);
}

/* Takes all whole lines and keeps the beginning of the next. */
static moed_status take_lines(lines *l)
{
    moed_status status = moedi_parallel_try(l->builder->context, (l->count + GROUP - 1) / GROUP, parse_group, l);
    for (int64_t i = 0; i < l->count; i++) {
        if (status == MOED_OK) status = take_line(l->builder, &l->all[i]);
        json_decref(l->all[i].object);
    }
    l->count = 0;
    l->used -= l->begin;
    if (l->used > 0) memmove(l->text, l->text + l->begin, (size_t)l->used);
    l->begin = 0;
    return status;
}

static moed_status end_line(lines *l)
{
    if (l->count == l->room) {
        const int64_t larger = l->room ? 2 * l->room : 1024;
        MOEDI_TRY(moedi_realloc_array(l->builder->context, larger, sizeof *l->all, (void **)&l->all));
        l->room = larger;
    }
    l->all[l->count++] = (line){.from = l->begin, .size = l->used - l->begin, .number = l->number++};
    l->begin = l->used;
    return l->used >= BATCH ? take_lines(l) : MOED_OK;
}

static moed_status add_to_line(lines *l, const unsigned char *bytes, int64_t count, int64_t at)
{
    if (l->used - l->begin + count > LINE_LIMIT)
        return moedi_fail_file(MOED_E_LIMIT, l->path, at, "line %lld has more than %d bytes", (long long)l->number, LINE_LIMIT);
    if (!l->text || l->used + count > l->capacity) { /* a first line that is empty needs a place too */
        const int64_t larger = l->used + count > 2 * l->capacity ? l->used + count : 2 * l->capacity;
        MOEDI_TRY(moedi_realloc_array(l->builder->context, larger, 1, (void **)&l->text));
        l->capacity = larger;
    }
    memcpy(l->text + l->used, bytes, (size_t)count);
    l->used += count;
    return MOED_OK;
}

static moed_status read_lines(moedi_builder *b, const moedi_file *f, int64_t start, unsigned char *chunk)
{
    lines l = {.builder = b, .path = f->path, .number = 1};
    int64_t n = 0;
    moed_status status = MOED_OK;
    for (int64_t at = start; at < f->size; at += n) {
        MOEDI_GO(read_chunk(b, f, at, chunk, &n));
        for (int64_t from = 0; from < n;) {
            const unsigned char *end = memchr(chunk + from, '\n', (size_t)(n - from));
            const int64_t count = end ? end - (chunk + from) : n - from;
            MOEDI_GO(add_to_line(&l, chunk + from, count, at));
            from += count + (end != NULL);
            if (end) MOEDI_GO(end_line(&l));
        }
    }
    if (l.used > l.begin) MOEDI_GO(end_line(&l));
    status = take_lines(&l);
out:
    moedi_free(b->context, l.text);
    moedi_free(b->context, l.all);
    return status;
}

/* ---- files and folders ---- */

static int has_suffix(const char *path, const char *suffix)
{
    const size_t n = strlen(path), m = strlen(suffix);
    return n >= m && strcmp(path + n - m, suffix) == 0;
}

static moed_status read_file(moedi_builder *b, const char *path, int named)
{
    moedi_file f;
    unsigned char *chunk = NULL;
    int text = 1;
    int64_t start = 0;
    MOEDI_TRY(moedi_file_open(&f, b->context, path));
    moed_status status = moedi_alloc(b->context, CHUNK, (void **)&chunk);
    if (status != MOED_OK) goto out;
    MOEDI_GO(find_start(b, &f, chunk, &start));
    if (has_suffix(path, ".jsonl") || has_suffix(path, ".ndjson")) {
        MOEDI_GO(read_lines(b, &f, start, chunk));
    } else {
        MOEDI_GO(check_text(b, &f, chunk, &text));
        if (text) MOEDI_GO(read_text(b, &f, start, chunk));
    }
    if (!text && named) {
        status = moedi_fail_file(MOED_E_FORMAT, path, -1, "a binary file: it holds a NUL byte or is not UTF-8");
        goto out;
    }
    b->report.files += text;
    b->report.binary_files += !text;
out:
    moedi_free(b->context, chunk);
    moedi_file_close(&f);
    return status;
}

static int is_own(const moedi_builder *b, const struct stat *s)
{
    for (int i = 0; i < b->owns; i++)
        if (b->own[i].st_dev == s->st_dev && b->own[i].st_ino == s->st_ino) return 1;
    return 0;
}

/* Symbolic links inside a folder are not followed: nothing from outside, nothing twice, no loops. Hidden
 * entries, devices and pipes are passed over. */
static moed_status read_folder(moedi_builder *b, const char *path)
{
    char **names = NULL, *inner = NULL;
    size_t count = 0;
    moed_status status = MOED_OK;
    MOEDI_TRY(moedi_directory_list(b->context, path, &names, &count));
    for (size_t i = 0; i < count; i++) {
        struct stat s;
        if (names[i][0] == '.') continue;
        MOEDI_GO(moedi_cancel_check(b->cancel));
        MOEDI_GO(moedi_path_join(b->context, path, names[i], &inner));
        if (lstat(inner, &s) != 0) MOEDI_GO(moedi_fail_errno(inner, "read"));
        if (S_ISDIR(s.st_mode)) MOEDI_GO(read_folder(b, inner));
        else if (S_ISREG(s.st_mode) && !is_own(b, &s)) MOEDI_GO(read_file(b, inner, 0));
        moedi_free(b->context, inner);
        inner = NULL;
    }
out:
    moedi_free(b->context, inner);
    for (size_t i = 0; i < count; i++) moedi_free(b->context, names[i]);
    moedi_free(b->context, names);
    return status;
}

moed_status moedi_text_read(moedi_builder *b, const char *path)
{
    struct stat s;
    if (stat(path, &s) != 0) return moedi_fail_errno(path, "read");
    return S_ISDIR(s.st_mode) ? read_folder(b, path) : read_file(b, path, 1);
}
