/* output.c - what the command prints. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
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

void emit(json_t *o)
{
    if (mode_json) {
        json_dumpf(o, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9));
        putchar('\n');
    }
    json_decref(o);
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
    const int terminal = isatty(STDOUT_FILENO);
    if (!last && now - p->last < (terminal ? 0.1 : 5.0)) return;
    p->last = now;
    if (terminal) {
        printf("\r\033[K%.150s", text);
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
        emit(json_pack("{s:s, s:s, s:I, s:I, s:f, s:f, s:f, s:f}", "event", "step", "phase", p->label, "step", (json_int_t)r->step,
                       "steps", (json_int_t)p->steps, "loss", r->loss, "learning_rate", r->learning_rate, "tokens_per_second",
                       r->tokens_per_second, "seconds_left", left));
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

void put_printable(char *out, size_t size, const char *bytes, size_t count, int newlines)
{
    size_t at = 0;
    for (size_t i = 0; i < count && at + 1 < size; i++) {
        const unsigned char b = (unsigned char)bytes[i];
        if (b >= 32 && b < 127) out[at++] = (char)b;
        else if (b == '\n' && newlines) out[at++] = '\n';
        else if (b == '\n' || b == '\t' || b == '\r') out[at++] = ' ';
        else out[at++] = '.';
    }
    out[at] = 0;
}
