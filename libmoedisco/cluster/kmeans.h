/* cluster/kmeans.h - the k-means handle. */
#ifndef MOEDI_KMEANS_H
#define MOEDI_KMEANS_H

#include "fit.h"

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
/* The best of the restarts, kept in `best`; f: context to clusters are given. starts nullable. */
moed_status moedi_kmeans_fit_memory(moedi_fit *f, moed_kmeans *best, const float *starts);

#endif
