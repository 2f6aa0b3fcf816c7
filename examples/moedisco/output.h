/* output.h - what the command prints: a progress line on a terminal, plain lines to a pipe, JSON lines with --json. */
#ifndef OUTPUT_H
#define OUTPUT_H

#include <jansson.h>
#include <moedisco.h>

void output_mode(int json, int quiet);
int output_json(void);

/* A line for people: nothing with --json. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Text broken at blanks to at most width columns; prints from column indent on, where the further lines begin too. */
void wrapped(const char *text, int indent, int width);
/* A line for people that is broken to the width of the terminal, 110 at most. */
void say_wrapped(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A JSON line: nothing without --json. Takes o. */
void emit(json_t *o);
/* jansson's set and append, which take the value; running out of memory ends the program. */
void put(json_t *o, const char *name, json_t *value);
void put_last(json_t *list, json_t *value);
/* json_dumps, which loses parts of the text, unseen, when it cannot grow; free() it. */
char *json_line(const json_t *o, size_t how);

typedef struct progress {
    const char *label;           /* "F-phase" */
    const moed_context *context; /* whose memory is shown, nullable */
    int64_t steps;
    int64_t first;               /* step at which this process took up the run, -1 = none yet */
    double started, last;        /* seconds */
} progress;

void progress_begin(progress *p, const char *label, int64_t steps, const moed_context *c);
/* A moed_progress_fn; user is the progress. Non-zero once the command is to stop. */
int32_t progress_step(const moed_report *report, void *user);
void progress_end(progress *p);
/* A line of progress with a text of the caller's own. */
void progress_text(progress *p, int last, const char *text);
/* Removes a line that is being rewritten, so that something else can be printed. */
void output_clear(void);

/* What a JSON line can hold: json_pack refuses text that is not UTF-8 and numbers that are not finite. */
const char *utf8(const char *text);   /* text, or a copy (valid for three more calls) with '?' for what is not UTF-8 */
json_t *finite_or_null(double value);

/* Bytes of text made safe for a terminal or a log: anything unprintable becomes '.', newlines stay when asked for. Characters of
 * UTF-8 beyond ASCII stay, but for those that steer a terminal or turn the direction of writing. */
void put_printable(char *out, size_t size, const char *bytes, size_t count, int newlines);

#endif
