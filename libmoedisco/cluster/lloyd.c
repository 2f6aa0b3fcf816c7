/* cluster/lloyd.c - k-means steps through an engine's operations. On the CPU an operation takes a part of the rows
 * that it is done with in a few hundredths of a second, so that a cancelled fit ends soon. Parts depend on the shape
 * alone: sums are the same bits for any number of threads. */
#include "lloyd.h"

#include <string.h>

#include "core/cancel.h"

#define PART_WORK 5e8          /* multiply-adds of an operation */
#define PART_BYTES (64 << 20) /* and what it reads */
enum { PART_ROWS = 4096, BOUNDED_CLUSTERS = 24, DISTANCES_CLUSTERS = 64, DISTANCES_A_ROW = 4 };

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
    l->room = count * (clusters < DISTANCES_A_ROW ? clusters : DISTANCES_A_ROW);
    MOEDI_GO(t->alloc(self, (size_t)l->room * sizeof(float), &l->distances));
    MOEDI_GO(t->alloc(self, k * d * sizeof(float), &l->centroids));
    MOEDI_GO(t->alloc(self, k * sizeof(double), &l->penalty));
    MOEDI_GO(t->alloc(self, k * d * sizeof(double), &l->sums));
    MOEDI_GO(t->alloc(self, k * sizeof(double), &l->totals));
    MOEDI_GO(t->alloc(self, k * sizeof(int64_t), &l->counts));
    if (part_rows(l, clusters) < count) {
        MOEDI_GO(MOEDI_NEW(c, clusters * (width + 1), &l->part));
        MOEDI_GO(MOEDI_NEW(c, clusters, &l->part_counts));
    }
    bounded = bounded && clusters >= BOUNDED_CLUSTERS && MOED_BACKEND_HAS(t, kmeans_step);
    if (bounded) MOEDI_GO(t->alloc(self, n * sizeof(float), &l->lower));
    if (bounded || moedi_lloyd_moves(l)) MOEDI_GO(t->alloc(self, k * sizeof(float), &l->moved));
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

/* What the engine has summed over a part, added to what the parts before gave. sums NULL: they stay there; then there is one
 * part, as everywhere but on the CPU. */
static moed_status take_sums(moedi_lloyd *l, int first, double *sums, double *totals, int64_t *counts)
{
    const moed_backend *t = l->engine.table;
    void *self = l->engine.self;
    const int64_t k = l->clusters, all = k * l->width;
    double *to_sums = first ? sums : l->part, *to_totals = first ? totals : l->part + all;
    int64_t *to_counts = first ? counts : l->part_counts;
    if (sums) MOEDI_TRY(t->download(self, to_sums, l->sums, (size_t)all * sizeof *sums));
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
    if (!l->ahead) {
        MOEDI_TRY(put_centroids(l, centroids, l->clusters));
        if (bounded) MOEDI_TRY(t->upload(self, l->moved, moved, (size_t)l->clusters * sizeof *moved));
    }
    if (!MOED_BACKEND_HAS(t, kmeans_step)) {
        MOEDI_TRY(assign(l, l->clusters, 0, NULL));
        return accumulate(l, sums, totals, counts);
    }
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

int moedi_lloyd_moves(const moedi_lloyd *l)
{
    return !l->engine.info.host_memory && MOED_BACKEND_HAS(l->engine.table, kmeans_move);
}

moed_status moedi_lloyd_move(moedi_lloyd *l, float *moved)
{
    const moed_backend *t = l->engine.table;
    const moed_op_kmeans_move a = {l->centroids, l->moved, l->sums, l->totals, l->width, l->clusters};
    MOEDI_TRY(t->kmeans_move(l->engine.self, &a));
    l->ahead = 1;
    MOEDI_TRY(t->download(l->engine.self, moved, l->moved, (size_t)l->clusters * sizeof *moved));
    return t->synchronize(l->engine.self);
}

moed_status moedi_lloyd_fetch(moedi_lloyd *l, float *centroids, double *sums)
{
    const moed_backend *t = l->engine.table;
    const size_t all = (size_t)(l->clusters * l->width);
    if (l->ahead) MOEDI_TRY(t->download(l->engine.self, centroids, l->centroids, all * sizeof *centroids));
    MOEDI_TRY(t->download(l->engine.self, sums, l->sums, all * sizeof *sums));
    l->ahead = 0;
    return t->synchronize(l->engine.self);
}

moed_status moedi_lloyd_labels(moedi_lloyd *l, int32_t *labels)
{
    const moed_backend *t = l->engine.table;
    MOEDI_TRY(t->download(l->engine.self, labels, l->labels, (size_t)l->count * sizeof *labels));
    return t->synchronize(l->engine.self);
}

/* Distances (clusters, count) of a part go to their places. */
enum { PLACED_ROWS = 256 };
typedef struct placing {
    float *to;
    const float *from;
    int64_t count, clusters, by_row, by_cluster;
} placing;

static void place(void *argument, int64_t block)
{
    const placing *p = argument;
    const int64_t first = block * PLACED_ROWS, end = first + PLACED_ROWS < p->count ? first + PLACED_ROWS : p->count;
    if (p->by_row == 1) {
        for (int64_t k = 0; k < p->clusters; k++)
            memcpy(p->to + first + k * p->by_cluster, p->from + first + k * p->count, (size_t)(end - first) * sizeof *p->to);
        return;
    }
    for (int64_t i = first; i < end; i++)
        for (int64_t k = 0; k < p->clusters; k++) p->to[i * p->by_row + k * p->by_cluster] = p->from[k * p->count + i];
}

/* The engine's distances (clusters, count) of a part, to `clusters` of its centroids from `first` on. */
static moed_status part_distances(moedi_lloyd *l, int64_t first, int64_t clusters, int64_t from, int64_t count)
{
    const moed_backend *t = l->engine.table;
    const float *x = l->x + from * l->width, *centroids = (const float *)l->centroids + first * l->width;
    MOEDI_TRY(moedi_cancel_check(l->cancel));
    if (MOED_BACKEND_HAS(t, kmeans_distances)) {
        const moed_op_kmeans_distances a = {l->distances, x, centroids, count, l->width, clusters};
        return t->kmeans_distances(l->engine.self, &a);
    }
    const moed_op_kmeans_assign a = {l->labels, l->distances, x, centroids, NULL, count, l->width, 1};
    return t->kmeans_assign(l->engine.self, &a);
}

/* A few clusters at a time, part by part of the vectors: as many distances as there is room for. host: the same room, NULL where
 * an engine's memory is the host's. */
static moed_status all_distances(moedi_lloyd *l, int64_t clusters, float *distances, int64_t by_row, int64_t by_cluster,
                                 float *host)
{
    const moed_backend *t = l->engine.table;
    const int64_t most = MOED_BACKEND_HAS(t, kmeans_distances) ? DISTANCES_CLUSTERS : 1;
    for (int64_t k = 0; k < clusters; k += most) {
        const int64_t few = clusters - k < most ? clusters - k : most, fits = part_rows(l, few);
        const int64_t room = l->room / few, rows = fits < room ? fits : room;
        for (int64_t from = 0; from < l->count; from += rows) {
            const int64_t count = rows < l->count - from ? rows : l->count - from;
            placing p = {distances + from * by_row + k * by_cluster, host ? host : l->distances, count, few, by_row, by_cluster};
            MOEDI_TRY(part_distances(l, k, few, from, count));
            if (host) MOEDI_TRY(t->download(l->engine.self, host, l->distances, (size_t)(few * count) * sizeof *host));
            MOEDI_TRY(t->synchronize(l->engine.self));
            moedi_parallel(l->engine.context, (count + PLACED_ROWS - 1) / PLACED_ROWS, place, &p);
        }
    }
    return MOED_OK;
}

moed_status moedi_lloyd_distances(moedi_lloyd *l, const float *centroids, int64_t clusters, float *distances, int64_t by_row,
                                  int64_t by_cluster)
{
    float *own = NULL;
    moed_status status;
    MOEDI_TRY(put_centroids(l, centroids, clusters));
    if (!l->engine.info.host_memory) MOEDI_TRY(MOEDI_NEW(l->engine.context, l->room, &own));
    status = all_distances(l, clusters, distances, by_row, by_cluster, own);
    moedi_free(l->engine.context, own);
    return status;
}
