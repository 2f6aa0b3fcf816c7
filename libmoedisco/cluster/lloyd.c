/* cluster/lloyd.c - k-means steps through an engine's operations. */
#include "lloyd.h"

#include <string.h>

static moed_status device_copy(moedi_lloyd *l, const void *host, size_t size, void **out)
{
    MOEDI_TRY(l->engine.table->alloc(l->engine.self, size, out));
    return l->engine.table->upload(l->engine.self, *out, host, size);
}

moed_status moedi_lloyd_open(moedi_lloyd *l, moed_context *c, const float *x, const float *weights,
                             int64_t count, int64_t width, int64_t clusters)
{
    moed_status status;
    memset(l, 0, sizeof *l);
    l->count = count, l->width = width, l->clusters = clusters;
    l->x = x, l->weights = weights;
    MOEDI_TRY(moedi_engine_open(&l->engine, c));
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const size_t n = (size_t)count, d = (size_t)width, k = (size_t)clusters;
    if (!l->engine.info.host_memory) {
        MOEDI_GO(device_copy(l, x, n * d * sizeof *x, &l->own_x));
        l->x = l->own_x;
        if (weights) MOEDI_GO(device_copy(l, weights, n * sizeof *weights, &l->own_weights));
        l->weights = l->own_weights;
    }
    MOEDI_GO(t->alloc(self, n * sizeof(int32_t), &l->labels));
    MOEDI_GO(t->alloc(self, n * sizeof(float), &l->distances));
    MOEDI_GO(t->alloc(self, k * d * sizeof(float), &l->centroids));
    MOEDI_GO(t->alloc(self, k * sizeof(double), &l->penalty));
    MOEDI_GO(t->alloc(self, k * d * sizeof(double), &l->sums));
    MOEDI_GO(t->alloc(self, k * sizeof(double), &l->totals));
    MOEDI_GO(t->alloc(self, k * sizeof(int64_t), &l->counts));
    return MOED_OK;
out:
    moedi_lloyd_close(l);
    return status;
}

void moedi_lloyd_close(moedi_lloyd *l)
{
    void *const memory[] = {l->own_x,   l->own_weights, l->labels, l->distances, l->centroids,
                            l->penalty, l->sums,        l->totals, l->counts};
    if (!l->engine.table) return;
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (memory[i]) l->engine.table->free(l->engine.self, memory[i]);
    moedi_engine_close(&l->engine);
    memset(l, 0, sizeof *l);
}

moed_status moedi_lloyd_assign(moedi_lloyd *l, const float *centroids, int64_t clusters, const double *penalty,
                               int32_t *labels, float *distances)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const size_t n = (size_t)l->count;
    MOEDI_TRY(t->upload(self, l->centroids, centroids, (size_t)(clusters * l->width) * sizeof(float)));
    if (penalty) MOEDI_TRY(t->upload(self, l->penalty, penalty, (size_t)clusters * sizeof *penalty));
    const moed_op_kmeans_assign a = {
        .labels = l->labels,
        .distances = distances ? l->distances : NULL,
        .x = l->x,
        .centroids = l->centroids,
        .penalty = penalty ? l->penalty : NULL,
        .count = l->count,
        .width = l->width,
        .clusters = clusters,
    };
    MOEDI_TRY(t->kmeans_assign(self, &a));
    MOEDI_TRY(t->download(self, labels, l->labels, n * sizeof *labels));
    if (distances) MOEDI_TRY(t->download(self, distances, l->distances, n * sizeof *distances));
    return t->synchronize(self);
}

moed_status moedi_lloyd_accumulate(moedi_lloyd *l, const int32_t *labels, double *sums, double *totals,
                                   int64_t *counts)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const size_t k = (size_t)l->clusters;
    MOEDI_TRY(t->upload(self, l->labels, labels, (size_t)l->count * sizeof *labels));
    const moed_op_kmeans_accumulate a = {
        .sums = l->sums,
        .totals = l->totals,
        .counts = l->counts,
        .x = l->x,
        .weights = l->weights,
        .labels = l->labels,
        .count = l->count,
        .width = l->width,
        .clusters = l->clusters,
    };
    MOEDI_TRY(t->kmeans_accumulate(self, &a));
    MOEDI_TRY(t->download(self, sums, l->sums, k * (size_t)l->width * sizeof *sums));
    MOEDI_TRY(t->download(self, totals, l->totals, k * sizeof *totals));
    MOEDI_TRY(t->download(self, counts, l->counts, k * sizeof *counts));
    return t->synchronize(self);
}
