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
} moedi_lloyd;

/* x and weights stay the caller's until close. */
moed_status moedi_lloyd_open(moedi_lloyd *l, moed_context *c, const float *x, const float *weights,
                             int64_t count, int64_t width, int64_t clusters);
void moedi_lloyd_close(moedi_lloyd *l);
/* Host arrays: nearest of `clusters` centroids (at most those of open), with penalties (nullable); distances
 * nullable. */
moed_status moedi_lloyd_assign(moedi_lloyd *l, const float *centroids, int64_t clusters, const double *penalty,
                               int32_t *labels, float *distances);
/* Host arrays: sums (clusters, width), totals (clusters), counts (clusters). */
moed_status moedi_lloyd_accumulate(moedi_lloyd *l, const int32_t *labels, double *sums, double *totals,
                                   int64_t *counts);

#endif
