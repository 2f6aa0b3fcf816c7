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

struct moed_kmeans {
    moed_context *context;
    moed_kmeans_options options;
    int fitted;
    int64_t count;
    int32_t *labels; /* (count) of the fit; NULL: a streamed one */
    float *centroids;
    double *weights;
    int64_t *counts;
    moed_kmeans_info info;
};

/* The handle's arrays, given back / those of a fit, copied into it. */
void moedi_kmeans_forget(moed_kmeans *k);
moed_status moedi_kmeans_keep(moed_kmeans *k, const moedi_fit *f);
moed_status moedi_kmeans_fit_memory(moedi_fit *f, moed_kmeans *best, const float *starts);
/* Runs a task for every block of rows, unless cancelled meanwhile. */
moed_status moedi_kmeans_each_block(const moedi_fit *f, moed_task_fn task, void *argument);
/* Mean over columns of the variance of f->x: the scale that the tolerance is measured by. */
moed_status moedi_kmeans_variance(const moedi_fit *f, double *out);

moed_status moedi_check_matrix(const moed_tensor *x, const char *name, int64_t rows, int64_t width);
/* x (count, width), its rows numbered from `first` on. */
moed_status moedi_check_rows(const moed_context *c, const moed_cancel *cancel, const float *x, int64_t count, int64_t width,
                             int64_t first, const char *name);
moed_status moedi_check_weights(const float *weights, int64_t count, int64_t clusters);

/* Vectors in memory (x) or read through a callback (own). */
typedef struct moedi_source {
    const moed_context *context;
    const moed_cancel *cancel;
    const float *x;
    const moed_vectors *own;
    const float *weights;
    int64_t count, width;
} moedi_source;
/* f->centroids by mini-batches of the source. */
moed_status moedi_kmeans_minibatch(moedi_fit *f, const moedi_source *s, double limit);

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

/* k-means++ with greedy trials or k-means||, into f->centroids; a pure function of seed and `restart`. */
moed_status moedi_kmeans_starts(moedi_fit *f, uint64_t restart);
/* From a converged plain fit to clusters of equal weight: labels, centroids and inertia are replaced. */
moed_status moedi_kmeans_balance(moedi_fit *f);
/* Centroids from sums; how far each has gone (moved, nullable), and the squares of that over all of them. Without weight they
 * stay: weights may be so far apart that sums lose the small ones. */
double moedi_kmeans_move(float *centroids, const double *sums, const double *totals, int64_t clusters, int64_t width,
                         float *moved);
/* Centroids of f->labels (sums, totals, counts and moved too); every cluster must have weight. */
moed_status moedi_kmeans_centre(moedi_fit *f);
/* The exact inertia. */
moed_status moedi_kmeans_measure(moedi_fit *f);

/* Blocks of rows that work is parted by: fixed, so that sums do not depend on threads. */
#define MOEDI_KMEANS_BLOCK 2048
static inline int64_t moedi_kmeans_blocks(int64_t count)
{
    return (count + MOEDI_KMEANS_BLOCK - 1) / MOEDI_KMEANS_BLOCK;
}

#endif
