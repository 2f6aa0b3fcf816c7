/* json_file.c - JSON files of the command, files of lines of it, and the memory that jansson takes here. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "json_file.h"
#include "output.h"

/* jansson 2.14's reader ends the process, or loses characters unseen, when a buffer of it cannot grow by some bytes. Those bytes
 * come from here when there are no others: more than all that a command reads. Nothing of it is used twice. */
enum { RESERVE = 1 << 20, SMALL = 1 << 12 };
static _Alignas(max_align_t) char reserve[RESERVE];
static atomic_size_t taken;

static void *json_memory(size_t size)
{
    void *memory = malloc(size);
    if (memory || size > SMALL) return memory;
    const size_t room = (size + sizeof(max_align_t) - 1) / sizeof(max_align_t) * sizeof(max_align_t),
                 at = atomic_fetch_add(&taken, room);
    return at <= RESERVE - room ? reserve + at : NULL;
}

static void give_back(void *memory)
{
    if ((uintptr_t)memory - (uintptr_t)reserve >= RESERVE) free(memory);
}

void json_begin(void)
{
    json_set_alloc_funcs(json_memory, give_back);
}

/* Seventeen digits make 0.45 into 0.45000000000000001: fifteen do where they read back the same. Rewrites text in place. */
static void shorten_reals(char *text)
{
    char *out = text;
    for (int quoted = 0; *text;) {
        const size_t length = quoted ? 0 : strspn(text, "0123456789+-.eE");
        char number[40] = "", *end;
        if (*text != 'e' && length < sizeof number && memchr(text, '.', length)) { /* the e of true and false is no number */
            const double value = strtod(text, &end);
            snprintf(number, sizeof number, "%.15g", value);
            if (strtod(number, NULL) != value) number[0] = 0;
            else if (!strpbrk(number, ".e")) snprintf(number, sizeof number, "%.15g.0", value);
        }
        if (number[0] && strlen(number) < length) {
            memcpy(out, number, strlen(number));
            out += strlen(number);
            text += length;
            continue;
        }
        const size_t plain = length ? length : quoted && *text == '\\' ? 2 : 1;
        if (!length && *text == '"') quoted = !quoted;
        memmove(out, text, plain);
        out += plain;
        text += plain;
    }
    *out = 0;
}

static char *printed(const json_t *o)
{
    char *text = json_line(o, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    shorten_reals(text);
    char *ended = text_format("%s\n", text);
    free(text);
    return ended;
}

/* 0, or errno. */
static int write_synced(const char *path, const char *text)
{
    const int file = open_again(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    if (file < 0) return errno;
    int reason = write_whole(file, text, strlen(text)) ? errno : 0;
    while (!reason && fsync(file)) {
        if (errno != EINTR) reason = errno;
    }
    if (close(file) && errno != EINTR && !reason) reason = errno;
    return reason;
}

int write_json(const char *path, json_t *o)
{
    char *temporary = text_format("%s.tmp", path), *text = printed(o);
    json_decref(o);
    int reason = write_synced(temporary, text);
    if (!reason && rename(temporary, path)) reason = errno;
    if (reason) unlink(temporary);
    const int code = reason ? fail_errno(path, "cannot be written", reason) : EXIT_DONE;
    free(temporary);
    free(text);
    return code;
}

json_t *parse_json(const char *text, size_t size, json_error_t *why)
{
    json_t *value = json_loadb(text, size, JSON_REJECT_DUPLICATES, why);
    free(must(malloc(65536 + 16 * size))); /* jansson takes a lack of memory for a fault of the text */
    return value;
}

json_t *read_json(const char *path)
{
    json_error_t e;
    size_t size;
    char *text = read_text(path, &size);
    if (!text) return NULL;
    json_t *o = parse_json(text, size, &e);
    free(text);
    if (json_is_object(o)) return o;
    json_decref(o);
    fail(EXIT_INPUT, "%s: is no JSON object: %s at byte %d", path, e.text, e.position);
    return NULL;
}

char *trimmed(char *text)
{
    while (isspace((unsigned char)*text)) text++;
    char *end = text + strlen(text);
    while (end > text && isspace((unsigned char)end[-1])) *--end = 0;
    return text;
}

int lines_open(lines *l, const char *path)
{
    size_t size;
    *l = (lines){.path = path};
    l->text = l->next = read_text(path, &size);
    if (!l->text) return EXIT_INPUT;
    if (!strncmp(l->text, "\xef\xbb\xbf", 3)) l->next += 3; /* a byte order mark */
    return strlen(l->text) == size ? EXIT_DONE : fail(EXIT_INPUT, "%s: holds a zero byte: no lines of text", path);
}

int lines_next(lines *l)
{
    while ((l->line = strsep(&l->next, "\n"))) {
        l->number++;
        l->line = trimmed(l->line);
        if (*l->line) return 1;
    }
    return 0;
}

int lines_fail(const lines *l, const char *format, ...)
{
    char what[512];
    va_list list;
    va_start(list, format);
    vsnprintf(what, sizeof what, format, list);
    va_end(list);
    return fail(EXIT_INPUT, "%s: line %lld%s", l->path, (long long)l->number, what);
}

json_t *lines_object(const lines *l)
{
    json_error_t e;
    json_t *o = parse_json(l->line, strlen(l->line), &e);
    if (json_is_object(o)) return o;
    lines_fail(l, " is no JSON object%s%s", o ? "" : ": ", o ? "" : e.text);
    json_decref(o);
    return NULL;
}

void lines_close(lines *l)
{
    free(l->text);
}
