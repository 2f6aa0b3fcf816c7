/* corpus/text.c - where text comes from: folders in name order, text files cut at blank lines, JSON lines. */
#include <stdio.h>
#include <string.h>

#include "builder.h"
#include "core/cancel.h"
#include "util/utf8.h"

#define CHUNK 65536
#define LINE_LIMIT (256 << 20) /* bytes of a JSON line: what one line may make the library hold in memory */

/* ---- is it text? ---- */

static moed_status read_chunk(const moedi_builder *b, const moedi_file *f, int64_t at, unsigned char *chunk,
                              int64_t *count)
{
    MOEDI_TRY(moedi_cancel_check(b->cancel));
    *count = f->size - at < CHUNK ? f->size - at : CHUNK;
    return moedi_file_read(f, at, chunk, (size_t)*count);
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

static moed_status read_text(moedi_builder *b, const moedi_file *f, unsigned char *chunk)
{
    const int64_t target = b->options.document_bytes;
    cutter k = {target > 0 && f->size / 2 > target ? target : 0, 0, f->size, 0};
    int64_t n = 0;
    for (int64_t at = 0; at < f->size; at += n) {
        int64_t from = 0;
        MOEDI_TRY(read_chunk(b, f, at, chunk, &n));
        for (int64_t i = 0; k.target && i < n; i++) {
            if (!cut_before(&k, chunk[i])) continue;
            MOEDI_TRY(moedi_builder_append(b, chunk + from, i - from));
            MOEDI_TRY(moedi_builder_end(b));
            from = i;
        }
        MOEDI_TRY(moedi_builder_append(b, chunk + from, n - from));
    }
    return moedi_builder_end(b);
}

/* ---- JSON lines ---- */

static moed_status take_line(moedi_builder *b, const char *path, int64_t number, const char *line, size_t size)
{
    json_t *o = NULL;
    size_t at = 0;
    char name[4096];
    while (at < size && (line[at] == ' ' || line[at] == '\t' || line[at] == '\r')) at++;
    if (at == size) return MOED_OK;
    snprintf(name, sizeof name, "%s:%lld", path, (long long)number);
    MOEDI_TRY(moedi_json_parse(&o, line, size, name));
    const json_t *text = json_object_get(o, b->options.field);
    moed_status status;
    if (!json_is_string(text)) {
        status =
            moedi_fail_file(MOED_E_FORMAT, name, -1,
                            text ? "field \"%s\" is no string" : "there is no field \"%s\"", b->options.field);
        goto out;
    }
    MOEDI_GO(moedi_builder_append(b, (const unsigned char *)json_string_value(text),
                                  (int64_t)json_string_length(text)));
    status = moedi_builder_end(b);
out:
    json_decref(o);
    return status;
}

static moed_status read_lines(moedi_builder *b, const moedi_file *f, unsigned char *chunk)
{
    char *line = NULL;
    int64_t capacity = CHUNK, used = 0, number = 1, n = 0;
    moed_status status = MOED_OK;
    MOEDI_GO(MOEDI_NEW(b->context, capacity, &line));
    for (int64_t at = 0; at < f->size; at += n) {
        MOEDI_GO(read_chunk(b, f, at, chunk, &n));
        for (int64_t from = 0; from < n;) {
            const unsigned char *end = memchr(chunk + from, '\n', (size_t)(n - from));
            const int64_t count = end ? end - (chunk + from) : n - from;
            if (used + count > LINE_LIMIT) {
                status = moedi_fail_file(MOED_E_LIMIT, f->path, at, "line %lld has more than %d bytes",
                                         (long long)number, LINE_LIMIT);
                goto out;
            }
            if (used + count > capacity) {
                const int64_t larger = used + count > 2 * capacity ? used + count : 2 * capacity;
                MOEDI_GO(moedi_realloc_array(b->context, larger, 1, (void **)&line));
                capacity = larger;
            }
            memcpy(line + used, chunk + from, (size_t)count);
            used += count;
            from += count;
            if (!end) continue;
            MOEDI_GO(take_line(b, f->path, number++, line, (size_t)used));
            used = 0;
            from++;
        }
    }
    if (used) status = take_line(b, f->path, number, line, (size_t)used);
out:
    moedi_free(b->context, line);
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
    MOEDI_TRY(moedi_file_open(&f, b->context, path));
    moed_status status = moedi_alloc(b->context, CHUNK, (void **)&chunk);
    if (status != MOED_OK) goto out;
    if (has_suffix(path, ".jsonl") || has_suffix(path, ".ndjson")) {
        MOEDI_GO(read_lines(b, &f, chunk));
    } else {
        MOEDI_GO(check_text(b, &f, chunk, &text));
        if (text) MOEDI_GO(read_text(b, &f, chunk));
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

moed_status moedi_builder_path(moedi_builder *b, const char *path)
{
    struct stat s;
    if (stat(path, &s) != 0) return moedi_fail_errno(path, "read");
    return S_ISDIR(s.st_mode) ? read_folder(b, path) : read_file(b, path, 1);
}
