/* stopwatch.c - wall-clock of the phases of a pipeline. */
#include "stopwatch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "json_file.h"
#include "output.h"

#define TICK_LEAST 2.0
#define TICK_MOST 60.0

void stopwatch_start(stopwatch *w, const char *dir, const char *phase)
{
    const double now = now_seconds();
    *w = (stopwatch){.path = path_join(dir, "seconds.jsonl"), .phase = phase, .began = now, .noted = now};
}

/* One line; one that is not whole is taken back. 0, or an errno. */
static int note(stopwatch *w, double now)
{
    char *line = text_format("{\"phase\": \"%s\", \"seconds\": %.3f}\n", w->phase, now - w->noted);
    const int file = open_again(w->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC);
    const off_t before = file >= 0 ? lseek(file, 0, SEEK_END) : 0;
    const int reason = file < 0 || write_whole(file, line, strlen(line)) ? errno : 0;
    if (reason && file >= 0 && ftruncate(file, before)) say("%s: ends in half a line", w->path);
    if (file >= 0) close(file);
    if (!reason) w->noted = now;
    free(line);
    return reason;
}

/* Each stretch is as long as all before it, within bounds: a few lines tell of any run. */
void stopwatch_tick(stopwatch *w)
{
    if (!w->path) return;
    const double now = now_seconds(), passed = w->noted - w->began;
    const double stretch = passed < TICK_LEAST ? TICK_LEAST : passed < TICK_MOST ? passed : TICK_MOST;
    if (now - w->noted >= stretch) (void)note(w, now); /* what cannot be written now is part of the next */
}

int stopwatch_stop(stopwatch *w, int code)
{
    const int reason = note(w, now_seconds());
    if (reason && !code) code = fail_errno(w->path, "cannot be written", reason);
    free(w->path);
    w->path = NULL;
    return code;
}

double stopwatch_total(const char *dir, const char *phase)
{
    char *path = path_join(dir, "seconds.jsonl");
    lines l = {0};
    double sum = 0;
    const int there = path_exists(path) && !lines_open(&l, path);
    while (there && lines_next(&l)) {
        json_t *o = parse_json(l.line, strlen(l.line), NULL); /* the last may be half a line */
        const char *name = json_string_value(json_object_get(o, "phase"));
        if (name && !strcmp(name, phase)) sum += json_number_value(json_object_get(o, "seconds"));
        json_decref(o);
    }
    lines_close(&l);
    free(path);
    return sum;
}
