/* cluster/kmeans.h - a fit being made: what its phases share. */
#ifndef MOEDI_KMEANS_H
#define MOEDI_KMEANS_H

#include "lloyd.h"

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

/* k-means++ with greedy trials, into f->centroids; a pure function of seed and `restart`. */
moed_status moedi_kmeans_starts(moedi_fit *f, uint64_t restart);
/* From a converged plain fit to clusters of equal weight: labels, centroids and inertia are replaced. */
moed_status moedi_kmeans_balance(moedi_fit *f);
/* Centroids of f->labels (sums, totals and counts too); every cluster must have weight. Then the exact inertia.
 */
moed_status moedi_kmeans_centre(moedi_fit *f);

/* Blocks of rows that work is parted by: fixed, so that sums do not depend on threads. */
#define MOEDI_KMEANS_BLOCK 2048
static inline int64_t moedi_kmeans_blocks(int64_t count)
{
    return (count + MOEDI_KMEANS_BLOCK - 1) / MOEDI_KMEANS_BLOCK;
}

#endif
