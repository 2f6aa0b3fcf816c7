/* cluster/lloyd.c - k-means steps through an engine's operations. On the CPU an operation takes a part of the rows
 * that it is done with in a few hundredths of a second, so that a cancelled fit ends soon. Parts depend on the shape
 * alone: sums are the same bits for any number of threads. */
#include "lloyd.h"

#include <string.h>

#include "core/cancel.h"

#define PART_WORK 5e8          /* multiply-adds of an operation */
#define PART_BYTES (64 << 20) /* and what it reads */
enum { PART_ROWS = 4096, BOUNDED_CLUSTERS = 24, DISTANCES_CLUSTERS = 64 };

static moed_status device_copy(moedi_lloyd *l, const void *host, size_t size, void **out)
{
    MOEDI_TRY(l->engine.table->alloc(l->engine.self, size, out));
    return l->engine.table->upload(l->engine.self, *out, host, size);
}

static int64_t part_rows(const moedi_lloyd *l, int64_t clusters)
{
    if (!l->engine.info.host_memory) return l->count;
    const double work = PART_WORK / ((double)clusters * (double)l->width),
                 bytes = (double)PART_BYTES / (4.0 * (double)l->width), least = work < bytes ? work : bytes;
    if (least >= (double)l->count) return l->count;
    const int64_t rows = least > PART_ROWS ? (int64_t)least : PART_ROWS, parts = (l->count + rows - 1) / rows;
    return (l->count + parts - 1) / parts;
}

moed_status moedi_lloyd_open(moedi_lloyd *l, moed_context *c, const float *x, const float *weights,
                             int64_t count, int64_t width, int64_t clusters, int bounded)
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
    if (part_rows(l, clusters) < count) {
        MOEDI_GO(MOEDI_NEW(c, clusters * (width + 1), &l->part));
        MOEDI_GO(MOEDI_NEW(c, clusters, &l->part_counts));
    }
    if (bounded && clusters >= BOUNDED_CLUSTERS && MOED_BACKEND_HAS(t, kmeans_step)) {
        MOEDI_GO(t->alloc(self, n * sizeof(float), &l->lower));
        MOEDI_GO(t->alloc(self, k * sizeof(float), &l->moved));
    }
    return MOED_OK;
out:
    moedi_lloyd_close(l);
    return status;
}

void moedi_lloyd_close(moedi_lloyd *l)
{
    void *const memory[] = {l->own_x,   l->own_weights, l->labels, l->distances, l->centroids,
                            l->penalty, l->sums,        l->totals, l->counts,    l->lower,     l->moved};
    if (!l->engine.table) return;
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (memory[i]) l->engine.table->free(l->engine.self, memory[i]);
    moedi_free(l->engine.context, l->part);
    moedi_free(l->engine.context, l->part_counts);
    moedi_engine_close(&l->engine);
    memset(l, 0, sizeof *l);
}

moed_status moedi_lloyd_turn(moedi_lloyd *l, const float *x, const float *weights, int64_t count)
{
    const moed_backend *t = l->engine.table;
    l->count = count;
    if (l->engine.info.host_memory) {
        l->x = x, l->weights = weights;
        return MOED_OK;
    }
    MOEDI_TRY(t->upload(l->engine.self, l->own_x, x, (size_t)(count * l->width) * sizeof *x));
    if (!l->own_weights) return MOED_OK;
    return t->upload(l->engine.self, l->own_weights, weights, (size_t)count * sizeof *weights);
}

static moed_status assign(moedi_lloyd *l, int64_t clusters, int with_penalty, float *distances)
{
    const int64_t rows = part_rows(l, clusters);
    for (int64_t from = 0; from < l->count; from += rows) {
        const moed_op_kmeans_assign a = {
            .labels = (int32_t *)l->labels + from,
            .distances = distances ? distances + from : NULL,
            .x = l->x + from * l->width,
            .centroids = l->centroids,
            .penalty = with_penalty ? l->penalty : NULL,
            .count = rows < l->count - from ? rows : l->count - from,
            .width = l->width,
            .clusters = clusters,
        };
        MOEDI_TRY(moedi_cancel_check(l->cancel));
        MOEDI_TRY(l->engine.table->kmeans_assign(l->engine.self, &a));
    }
    return MOED_OK;
}

static moed_status put_centroids(moedi_lloyd *l, const float *centroids, int64_t clusters)
{
    return l->engine.table->upload(l->engine.self, l->centroids, centroids,
                                   (size_t)(clusters * l->width) * sizeof(float));
}

moed_status moedi_lloyd_assign(moedi_lloyd *l, const float *centroids, int64_t clusters, const double *penalty,
                               int32_t *labels, float *distances)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const size_t n = (size_t)l->count;
    MOEDI_TRY(put_centroids(l, centroids, clusters));
    if (penalty) MOEDI_TRY(t->upload(self, l->penalty, penalty, (size_t)clusters * sizeof *penalty));
    MOEDI_TRY(assign(l, clusters, penalty != NULL, distances ? l->distances : NULL));
    MOEDI_TRY(t->download(self, labels, l->labels, n * sizeof *labels));
    if (distances) MOEDI_TRY(t->download(self, distances, l->distances, n * sizeof *distances));
    return t->synchronize(self);
}

/* What the engine has summed over a part, added to what the parts before gave. */
static moed_status take_sums(moedi_lloyd *l, int first, double *sums, double *totals, int64_t *counts)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const int64_t k = l->clusters, all = k * l->width;
    double *to_sums = first ? sums : l->part, *to_totals = first ? totals : l->part + all;
    int64_t *to_counts = first ? counts : l->part_counts;
    MOEDI_TRY(t->download(self, to_sums, l->sums, (size_t)all * sizeof *sums));
    MOEDI_TRY(t->download(self, to_totals, l->totals, (size_t)k * sizeof *totals));
    MOEDI_TRY(t->download(self, to_counts, l->counts, (size_t)k * sizeof *counts));
    MOEDI_TRY(t->synchronize(self));
    for (int64_t i = 0; !first && i < all; i++) sums[i] += to_sums[i];
    for (int64_t i = 0; !first && i < k; i++) totals[i] += to_totals[i], counts[i] += to_counts[i];
    return MOED_OK;
}

static moed_status accumulate_part(moedi_lloyd *l, int64_t from, int64_t count)
{
    const moed_op_kmeans_accumulate a = {
        .sums = l->sums,
        .totals = l->totals,
        .counts = l->counts,
        .x = l->x + from * l->width,
        .weights = l->weights ? l->weights + from : NULL,
        .labels = (int32_t *)l->labels + from,
        .count = count,
        .width = l->width,
        .clusters = l->clusters,
    };
    return l->engine.table->kmeans_accumulate(l->engine.self, &a);
}

/* The same parts as a step: the same sums. */
static moed_status accumulate(moedi_lloyd *l, double *sums, double *totals, int64_t *counts)
{
    const int64_t rows = part_rows(l, l->clusters);
    for (int64_t from = 0; from < l->count; from += rows) {
        MOEDI_TRY(moedi_cancel_check(l->cancel));
        MOEDI_TRY(accumulate_part(l, from, rows < l->count - from ? rows : l->count - from));
        MOEDI_TRY(take_sums(l, from == 0, sums, totals, counts));
    }
    return MOED_OK;
}

moed_status moedi_lloyd_accumulate(moedi_lloyd *l, const int32_t *labels, double *sums, double *totals,
                                   int64_t *counts)
{
    MOEDI_TRY(l->engine.table->upload(l->engine.self, l->labels, labels, (size_t)l->count * sizeof *labels));
    return accumulate(l, sums, totals, counts);
}

moed_status moedi_lloyd_step(moedi_lloyd *l, const float *centroids, const float *moved, double *sums,
                             double *totals, int64_t *counts)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const int64_t rows = part_rows(l, l->clusters);
    const int bounded = l->lower && moved;
    MOEDI_TRY(put_centroids(l, centroids, l->clusters));
    if (!MOED_BACKEND_HAS(t, kmeans_step)) {
        MOEDI_TRY(assign(l, l->clusters, 0, NULL));
        return accumulate(l, sums, totals, counts);
    }
    if (bounded) MOEDI_TRY(t->upload(self, l->moved, moved, (size_t)l->clusters * sizeof *moved));
    for (int64_t from = 0; from < l->count; from += rows) {
        const moed_op_kmeans_step a = {
            .labels = (int32_t *)l->labels + from,
            .sums = l->sums,
            .totals = l->totals,
            .counts = l->counts,
            .lower = l->lower ? (float *)l->lower + from : NULL,
            .x = l->x + from * l->width,
            .weights = l->weights ? l->weights + from : NULL,
            .centroids = l->centroids,
            .moved = bounded ? l->moved : NULL,
            .count = rows < l->count - from ? rows : l->count - from,
            .width = l->width,
            .clusters = l->clusters,
        };
        MOEDI_TRY(moedi_cancel_check(l->cancel));
        MOEDI_TRY(t->kmeans_step(self, &a));
        MOEDI_TRY(take_sums(l, from == 0, sums, totals, counts));
    }
    return MOED_OK;
}

moed_status moedi_lloyd_labels(moedi_lloyd *l, int32_t *labels)
{
    const moed_backend *t = l->engine.table;
    MOEDI_TRY(t->download(l->engine.self, labels, l->labels, (size_t)l->count * sizeof *labels));
    return t->synchronize(l->engine.self);
}

/* Rows (clusters, count) of a part go to their places among those of all vectors. */
typedef struct placing {
    float *to;
    const float *from;
    int64_t count, all;
} placing;

static void place(void *argument, int64_t k)
{
    const placing *p = argument;
    memcpy(p->to + k * p->all, p->from + k * p->count, (size_t)p->count * sizeof *p->to);
}

/* To a few clusters, part by part of the vectors; l->distances has room for a part. */
static moed_status distances_to(moedi_lloyd *l, const float *centroids, int64_t clusters, float *distances)
{
    const int64_t fits = part_rows(l, clusters), room = l->count / clusters;
    const int64_t rows = fits == l->count || fits < room ? fits : room;
    for (int64_t from = 0; from < l->count; from += rows) {
        const moed_op_kmeans_distances a = {
            .distances = rows == l->count ? distances : l->distances,
            .x = l->x + from * l->width,
            .centroids = centroids,
            .count = rows < l->count - from ? rows : l->count - from,
            .width = l->width,
            .clusters = clusters,
        };
        placing p = {distances + from, l->distances, a.count, l->count};
        MOEDI_TRY(moedi_cancel_check(l->cancel));
        MOEDI_TRY(l->engine.table->kmeans_distances(l->engine.self, &a));
        if (rows < l->count) moedi_parallel(l->engine.context, clusters, place, &p);
    }
    return MOED_OK;
}

moed_status moedi_lloyd_distances(moedi_lloyd *l, const float *centroids, int64_t clusters, float *distances)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    if (l->engine.info.host_memory && MOED_BACKEND_HAS(t, kmeans_distances)) {
        MOEDI_TRY(put_centroids(l, centroids, clusters));
        for (int64_t k = 0; k < clusters; k += DISTANCES_CLUSTERS) {
            const int64_t few = clusters - k < DISTANCES_CLUSTERS ? clusters - k : DISTANCES_CLUSTERS;
            MOEDI_TRY(distances_to(l, (const float *)l->centroids + k * l->width, few, distances + k * l->count));
        }
        return t->synchronize(self);
    }
    for (int64_t k = 0; k < clusters; k++) {
        MOEDI_TRY(put_centroids(l, centroids + k * l->width, 1));
        MOEDI_TRY(assign(l, 1, 0, l->distances));
        MOEDI_TRY(t->download(self, distances + k * l->count, l->distances, (size_t)l->count * sizeof *distances));
    }
    return t->synchronize(self);
}
