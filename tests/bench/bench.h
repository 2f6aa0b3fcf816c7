/* bench.h - what the bench programs share: a clock, the best of several runs, and one JSON line a figure, which run.sh makes a
 * table of. */
#ifndef BENCH_H
#define BENCH_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline double bench_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* seconds of ours, of the floor and of a peer (0 = none); note: a rate or a size, in words. */
static inline void bench_row(const char *what, double ours, double floor, double peer, const char *note)
{
    printf("{\"what\": \"%s\", \"ours\": %.6g, \"floor\": %.6g, \"peer\": %.6g, \"note\": \"%s\"}\n", what, ours, floor, peer,
           note);
    fflush(stdout);
}

#endif
