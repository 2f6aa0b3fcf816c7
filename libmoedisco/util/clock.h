/* util/clock.h - time that passes, for figures in reports. */
#ifndef MOEDI_CLOCK_H
#define MOEDI_CLOCK_H

#include <time.h>

/* Seconds since some fixed moment. */
static inline double moedi_clock_seconds(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (double)at.tv_sec + 1e-9 * (double)at.tv_nsec;
}

#endif
