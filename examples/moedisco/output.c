/* output.c - what the command prints. */
#include <stdarg.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "app.h"
#include "output.h"

static int mode_json, mode_quiet, line_open;

void output_mode(int json, int quiet)
{
    mode_json = json;
    mode_quiet = quiet;
    setvbuf(stdout, NULL, _IOLBF, 0);
}

int output_json(void) { return mode_json; }

void output_clear(void)
{
    if (!line_open) return;
    fputs("\r\033[K", stdout);
    fflush(stdout);
    line_open = 0;
}

void say(const char *format, ...)
{
    if (mode_json) return;
    output_clear();
    va_list list;
    va_start(list, format);
    vprintf(format, list);
    va_end(list);
    putchar('\n');
}

void wrapped(const char *text, int indent, int width)
{
    int column = indent;
    while (*text) {
        const int length = (int)strcspn(text, " ");
        if (column > indent && column + 1 + length > width) {
            printf("\n%*s", indent, "");
            column = indent;
        } else if (column > indent) {
            putchar(' ');
            column++;
        }
        printf("%.*s", length, text);
        column += length;
        text += length;
        while (*text == ' ') text++;
    }
    putchar('\n');
}

/* Columns of the terminal but one, 0 for a pipe. */
static int terminal_width(void)
{
    struct winsize w;
    if (!isatty(STDOUT_FILENO)) return 0;
    return !ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) && w.ws_col > 1 ? w.ws_col - 1 : 79;
}

void say_wrapped(const char *format, ...)
{
    char text[1024];
    if (mode_json) return;
    output_clear();
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    const int width = terminal_width();
    printf("  ");
    wrapped(text, 2, width && width < 110 ? width : 110);
}

char *json_line(const json_t *o, size_t how)
{
    const size_t size = json_dumpb(o, NULL, 0, how);
    char *text = must(calloc(1, size + 1));
    if (!size || json_dumpb(o, text, size, how) != size) must(NULL);
    return text;
}

void emit(json_t *o)
{
    if (mode_json) { /* text first: a line comes whole or not at all */
        char *line = json_line(must(o), JSON_COMPACT | JSON_REAL_PRECISION(9));
        puts(line);
        free(line);
    }
    json_decref(o);
}

void put(json_t *o, const char *name, json_t *value)
{
    if (json_object_set_new(must(o), name, must(value))) must(NULL);
}

void put_last(json_t *list, json_t *value)
{
    if (json_array_append_new(must(list), must(value))) must(NULL);
}

void progress_begin(progress *p, const char *label, int64_t steps, const moed_context *c)
{
    p->label = label;
    p->context = c;
    p->steps = steps;
    p->first = -1;
    p->started = now_seconds();
    p->last = 0;
}

void progress_text(progress *p, int last, const char *text)
{
    if (mode_quiet || mode_json) return;
    const double now = now_seconds();
    const int width = terminal_width();
    if (!last && now - p->last < (width ? 0.1 : 5.0)) return;
    p->last = now;
    if (width) { /* a line longer than the terminal would wrap, and not be rewritten */
        printf("\r\033[K%.*s", width, text);
        fflush(stdout);
        line_open = 1;
    } else {
        puts(text);
    }
}

int32_t progress_step(const moed_report *r, void *user)
{
    progress *p = user;
    const double now = now_seconds();
    if (p->first < 0) {
        p->first = r->step - 1;
        p->started = now - r->seconds;
    }
    const double per_step = (now - p->started) / (double)(r->step - p->first);
    const double left = per_step * (double)(p->steps - r->step);
    if (mode_json) {
        emit(json_pack("{s:s, s:s, s:I, s:I, s:f, s:f, s:o, s:o}", "event", "step", "phase", p->label, "step",
                       (json_int_t)r->step, "steps", (json_int_t)p->steps, "loss", r->loss, "learning_rate", r->learning_rate,
                       "tokens_per_second", finite_or_null(r->tokens_per_second), "seconds_left", finite_or_null(left)));
    } else {
        moed_context_info info = {.struct_size = sizeof info};
        char text[256], speed[32], time_left[32], memory[32] = "";
        if (p->context && moed_context_get_info(p->context, &info) == MOED_OK) human_bytes(info.host_in_use, memory);
        snprintf(text, sizeof text, "%s: step %lld/%lld  loss %.4f  %s tokens/s  %s left  %s", p->label, (long long)r->step,
                 (long long)p->steps, r->loss, human_count(r->tokens_per_second, speed), human_time(left, time_left), memory);
        progress_text(p, r->step == p->steps, text);
    }
    return app_stopped();
}

void progress_end(progress *p)
{
    (void)p;
    if (!line_open) return;
    putchar('\n');
    line_open = 0;
}

/* Bytes of the UTF-8 character beyond ASCII at `at`, 0 when there is none. */
static size_t encoded(const char *at, size_t left, uint32_t *code)
{
    const unsigned char *b = (const unsigned char *)at;
    const size_t length = b[0] >= 0xF0 && b[0] < 0xF5 ? 4 : b[0] >= 0xE0 && b[0] < 0xF0 ? 3 : b[0] >= 0xC2 && b[0] < 0xE0 ? 2 : 0;
    if (!length || length > left) return 0;
    *code = b[0] & (0x7Fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((b[i] & 0xC0) != 0x80) return 0;
        *code = *code << 6 | (b[i] & 0x3F);
    }
    static const uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
    return *code < LEAST[length] || *code > 0x10FFFF || (*code >= 0xD800 && *code < 0xE000) ? 0 : length;
}

/* As encoded, without what steers a terminal (C1), turns the direction of writing, or shows nothing. */
static size_t character(const char *at, size_t left)
{
    uint32_t code = 0;
    const size_t length = encoded(at, left, &code);
    const int hidden = code < 0xA0 || (code >= 0x200B && code <= 0x200F) || (code >= 0x2028 && code <= 0x202E) ||
                       (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF || code == 0x61C;
    return length && !hidden ? length : 0;
}

const char *utf8(const char *text)
{
    static char copies[4][4096];
    static unsigned next;
    const size_t count = strlen(text);
    char *out = copies[next++ % 4];
    size_t at = 0, bad = 0;
    uint32_t code;
    for (size_t i = 0; i < count && at + 5 < sizeof copies[0];) {
        const size_t length = (unsigned char)text[i] < 0x80 ? 1 : encoded(text + i, count - i, &code);
        bad += !length;
        if (length) memcpy(out + at, text + i, length);
        else out[at] = '?';
        at += length ? length : 1;
        i += length ? length : 1;
    }
    out[at] = 0;
    return bad ? out : text;
}

json_t *finite_or_null(double value) { return isfinite(value) ? json_real(value) : json_null(); }

void put_printable(char *out, size_t size, const char *bytes, size_t count, int newlines)
{
    size_t at = 0;
    for (size_t i = 0; i < count && at + 1 < size; i++) {
        const unsigned char b = (unsigned char)bytes[i];
        const size_t length = b < 0x80 ? 1 : character(bytes + i, count - i);
        if (length > 1) {
            if (at + length >= size) break;
            memcpy(out + at, bytes + i, length);
            at += length;
            i += length - 1;
        } else if (b >= 32 && b < 127) out[at++] = (char)b;
        else if (b == '\n' && newlines) out[at++] = '\n';
        else if (b == '\n' || b == '\t' || b == '\r') out[at++] = ' ';
        else out[at++] = '.';
    }
    out[at] = 0;
}
