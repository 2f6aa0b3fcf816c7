/* stopwatch.h - wall-clock of the phases of a pipeline, over all starts of the command: DIRECTORY/seconds.jsonl, a line for each
 * stretch of work. */
#ifndef STOPWATCH_H
#define STOPWATCH_H

typedef struct stopwatch {
    char *path;          /* NULL: it stands still */
    const char *phase;   /* borrowed */
    double began, noted; /* the phase, and the end of its last line */
} stopwatch;

void stopwatch_start(stopwatch *w, const char *dir, const char *phase);
/* Called now and then, it writes down what has passed, so that a process that is killed loses at most a minute of it. */
void stopwatch_tick(stopwatch *w);
/* Gives code back, or what went wrong here when nothing had before. */
int stopwatch_stop(stopwatch *w, int code);

/* Of all stretches. */
double stopwatch_total(const char *dir, const char *phase);

#endif
