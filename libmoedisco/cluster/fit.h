/* cluster/fit.h - a fit being made: what its phases share. */
#ifndef MOEDI_FIT_H
#define MOEDI_FIT_H

#include "lloyd.h"
#include "vectors.h"

typedef struct moedi_fit {
    moed_context *context;
    const moed_cancel *cancel;
    moed_kmeans_options options;
    const float *x, *weights; /* (count, width); (count), NULL = all 1 */
    int64_t count, width, clusters;
    moedi_lloyd lloyd;
    /* of the start at hand */
    float *centroids;      /* (clusters, width) */
    int32_t *labels;       /* (count) */
    float *distances;      /* (count) squared, to the own centroid of the last assignment */
    double *sums, *totals; /* (clusters, width), (clusters) */
    int64_t *counts;       /* (clusters) */
    float *moved;          /* (clusters) of the centroids, from above */
    double inertia;
    int64_t iterations;
} moedi_fit;

static inline double moedi_fit_weight(const moedi_fit *f, int64_t i)
{
    return f->weights ? (double)f->weights[i] : 1.0;
}

/* The memory of a fit of vectors in memory, and an engine of its own for them; close takes one that open has not finished. */
moed_status moedi_fit_open(moedi_fit *f);
void moedi_fit_close(moedi_fit *f);

/* Runs a task for every block of rows, unless cancelled meanwhile. */
moed_status moedi_fit_each_block(const moedi_fit *f, moed_task_fn task, void *argument);
/* The exact inertia. */
moed_status moedi_fit_measure(moedi_fit *f);
/* Mean over columns of the variance of f->x: the scale that the tolerance is measured by. */
moed_status moedi_fit_variance(const moedi_fit *f, double *out);

/* Centroids from sums; how far each has gone (f->moved, nullable), and the squares of that over all of them. Without weight they
 * stay: weights may be so far apart that sums lose the small ones. */
double moedi_fit_move(moedi_fit *f);
/* Centroids of f->labels (sums, totals, counts and moved too); every cluster must have weight. */
moed_status moedi_fit_centre(moedi_fit *f);

/* Sums side by side: the compiler may not reorder one. */
static inline double moedi_square_distance(const float *x, const float *c, int64_t width)
{
    double sum[8] = {0};
    int64_t j = 0;
    for (; j + 8 <= width; j += 8)
        for (int l = 0; l < 8; l++) {
            const double away = (double)x[j + l] - (double)c[j + l];
            sum[l] += away * away;
        }
    for (; j < width; j++) sum[j & 7] += ((double)x[j] - (double)c[j]) * ((double)x[j] - (double)c[j]);
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

#endif
