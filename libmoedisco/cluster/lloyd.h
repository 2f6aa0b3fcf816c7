/* cluster/lloyd.h - the two halves of a k-means step on an engine, with its memory. */
#ifndef MOEDI_LLOYD_H
#define MOEDI_LLOYD_H

#include "core/context.h"
#include "moedisco/cluster.h"

typedef struct moedi_lloyd {
    moedi_engine engine;
    int64_t count, width, clusters;
    const float *x, *weights;  /* (count, width), (count) nullable: device memory */
    void *own_x, *own_weights; /* the same where device memory is not host memory */
    void *labels, *distances, *centroids, *penalty, *sums, *totals, *counts;
    int64_t room;              /* numbers in distances, at least count */
    void *lower;               /* of a bounded step; NULL = without */
    void *moved;               /* (clusters) of a bounded step, or of moedi_lloyd_move */
    int ahead;                 /* the engine's centroids have moved on from the host's */
    double *part;              /* (clusters, width + 1): host memory, for sums of several calls */
    int64_t *part_counts;
    const moed_cancel *cancel; /* asked between operations */
} moedi_lloyd;

/* x and weights stay the caller's until close. bounded: steps may keep a bound for every row, where that pays. */
moed_status moedi_lloyd_open(moedi_lloyd *l, moed_context *c, const float *x, const float *weights,
                             int64_t count, int64_t width, int64_t clusters, int bounded);
void moedi_lloyd_close(moedi_lloyd *l);
/* Other rows (host arrays), at most those of open, and weights only where open had some. */
moed_status moedi_lloyd_turn(moedi_lloyd *l, const float *x, const float *weights, int64_t count);
/* Host arrays: nearest of `clusters` centroids (at most those of open), with penalties (nullable); distances
 * nullable. The labels stay with the engine too. */
moed_status moedi_lloyd_assign(moedi_lloyd *l, const float *centroids, int64_t clusters, const double *penalty,
                               int32_t *labels, float *distances);
/* Host arrays: sums (clusters, width), totals (clusters), counts (clusters). */
moed_status moedi_lloyd_accumulate(moedi_lloyd *l, const int32_t *labels, double *sums, double *totals,
                                   int64_t *counts);
/* Both at once; the labels stay with the engine. centroids are those of the host, or the engine's own where moedi_lloyd_move has
 * moved them on. moved (clusters): how far each centroid has gone since the step before; NULL: there was none, or its labels
 * have been changed. sums NULL, where the engine moves centroids: they stay there. */
moed_status moedi_lloyd_step(moedi_lloyd *l, const float *centroids, const float *moved, double *sums,
                             double *totals, int64_t *counts);
/* Whether sums and centroids may stay with an engine whose memory is not the host's. Then, after a step: centroids from sums,
 * moved to the host; and centroids and sums to the host, which has the centroids again. */
int moedi_lloyd_moves(const moedi_lloyd *l);
moed_status moedi_lloyd_move(moedi_lloyd *l, float *moved);
moed_status moedi_lloyd_fetch(moedi_lloyd *l, float *centroids, double *sums);
moed_status moedi_lloyd_labels(moedi_lloyd *l, int32_t *labels);
/* Squared distances to all of `clusters` centroids, in a host array: row i's to centroid k at i * by_row + k * by_cluster.
 * Labels with the engine are lost. */
moed_status moedi_lloyd_distances(moedi_lloyd *l, const float *centroids, int64_t clusters, float *distances, int64_t by_row,
                                  int64_t by_cluster);

#endif
