/* cluster/stream.c - k-means over vectors that are read batch by batch. */
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"
#include "kmeans.h"
#include "minibatch.h"

enum { BATCH_BYTES = 16 << 20, SAMPLE_BYTES = 64 << 20, SAMPLE_STEPS = 20, REFILLS = 4 };

/* ---- whole passes ---- */

typedef struct stream {
    moedi_fit fit;     /* without vectors and labels of its own */
    moedi_source source;
    int64_t rows;      /* of a batch */
    float *x;          /* (rows, width) */
    int32_t *labels;   /* (rows) */
    float *distances;  /* (rows) */
    double *sums, *totals; /* of the batch */
    int64_t *counts;
    float *far;        /* (clusters, width): the farthest vectors of a pass, the farthest first */
    float *how_far;    /* (clusters); -1: none */
    int64_t wanted;    /* of far */
} stream;

static void stream_close(stream *s)
{
    const moed_context *c = s->fit.context;
    void *const memory[] = {s->x,      s->labels, s->distances, s->sums,          s->totals,     s->counts,     s->far,
                            s->how_far, s->fit.centroids, s->fit.sums, s->fit.totals, s->fit.counts};
    moedi_lloyd_close(&s->fit.lloyd);
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) moedi_free(c, memory[i]);
}

static moed_status stream_open(stream *s)
{
    moedi_fit *f = &s->fit;
    moed_context *c = f->context;
    s->rows = BATCH_BYTES / (int64_t)sizeof(float) / f->width;
    if (s->rows < 1) s->rows = 1;
    if (s->rows > s->source.count) s->rows = s->source.count;
    MOEDI_TRY(moedi_alloc_array(c, s->rows, (size_t)f->width * sizeof *s->x, (void **)&s->x));
    MOEDI_TRY(MOEDI_NEW(c, s->rows, &s->labels));
    MOEDI_TRY(MOEDI_NEW(c, s->rows, &s->distances));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &s->sums));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &s->totals));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &s->counts));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &s->far));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &s->how_far));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &f->centroids));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &f->sums));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &f->totals));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &f->counts));
    MOEDI_TRY(moedi_lloyd_open(&f->lloyd, c, s->x, s->source.weights, s->rows, f->width, f->clusters, 0));
    f->lloyd.cancel = f->cancel;
    return MOED_OK;
}

static const float *batch_weights(const stream *s, int64_t first)
{
    return s->source.weights ? s->source.weights + first : NULL;
}

/* Reads the batch that begins at `first`; returns its rows in count. */
static moed_status next_batch(stream *s, int64_t first, int64_t *count)
{
    *count = s->rows < s->source.count - first ? s->rows : s->source.count - first;
    MOEDI_TRY(moedi_cancel_check(s->fit.cancel));
    MOEDI_TRY(moedi_source_read(&s->source, first, *count, s->x));
    return moedi_lloyd_turn(&s->fit.lloyd, s->x, batch_weights(s, first), *count);
}

/* One iteration; returns the squared movement. */
static moed_status stream_step(stream *s, double *shift)
{
    moedi_fit *f = &s->fit;
    const int64_t cells = f->clusters * f->width;
    memset(f->sums, 0, (size_t)cells * sizeof *f->sums);
    memset(f->totals, 0, (size_t)f->clusters * sizeof *f->totals);
    for (int64_t first = 0, count; first < s->source.count; first += count) {
        MOEDI_TRY(next_batch(s, first, &count));
        MOEDI_TRY(moedi_lloyd_step(&f->lloyd, f->centroids, NULL, s->sums, s->totals, s->counts));
        for (int64_t i = 0; i < cells; i++) f->sums[i] += s->sums[i];
        for (int64_t k = 0; k < f->clusters; k++) f->totals[k] += s->totals[k];
    }
    *shift = moedi_fit_move(f);
    return MOED_OK;
}

/* Keeps a vector among the `wanted` farthest: equal distances would mostly be equal vectors, so only one is kept. */
static void keep_far(stream *s, const float *x, float distance)
{
    const int64_t width = s->fit.width;
    int64_t at = s->wanted;
    while (at > 0 && distance > s->how_far[at - 1]) at--;
    if (at == s->wanted || !(distance > 0) || (at > 0 && s->how_far[at - 1] == distance)) return;
    memmove(s->how_far + at + 1, s->how_far + at, (size_t)(s->wanted - at - 1) * sizeof *s->how_far);
    memmove(s->far + (at + 1) * width, s->far + at * width, (size_t)((s->wanted - at - 1) * width) * sizeof *s->far);
    s->how_far[at] = distance;
    memcpy(s->far + at * width, x, (size_t)width * sizeof *x);
}

/* Totals, counts and inertia of the centroids as they are; the farthest vectors, of which `wanted` are kept. */
static moed_status stream_measure(stream *s)
{
    moedi_fit *f = &s->fit;
    f->inertia = 0;
    memset(f->totals, 0, (size_t)f->clusters * sizeof *f->totals);
    memset(f->counts, 0, (size_t)f->clusters * sizeof *f->counts);
    for (int64_t k = 0; k < f->clusters; k++) s->how_far[k] = -1;
    for (int64_t first = 0, count; first < s->source.count; first += count) {
        MOEDI_TRY(next_batch(s, first, &count));
        MOEDI_TRY(moedi_lloyd_assign(&f->lloyd, f->centroids, f->clusters, NULL, s->labels, s->distances));
        for (int64_t i = 0; i < count; i++) {
            const double weight = s->source.weights ? (double)s->source.weights[first + i] : 1.0;
            f->totals[s->labels[i]] += weight;
            f->counts[s->labels[i]]++;
            f->inertia += weight * (double)s->distances[i];
            if (s->wanted && weight > 0) keep_far(s, s->x + i * f->width, s->distances[i]);
        }
    }
    return MOED_OK;
}

static int64_t empty_clusters(const moedi_fit *f)
{
    int64_t empty = 0;
    for (int64_t k = 0; k < f->clusters; k++) empty += !(f->totals[k] > 0);
    return empty;
}

/* Centroids without weight become the farthest vectors; returns whether any did. */
static moed_status stream_refill(stream *s, int *filled)
{
    moedi_fit *f = &s->fit;
    int64_t next = 0;
    *filled = 0;
    s->wanted = empty_clusters(f);
    if (!s->wanted) return MOED_OK;
    MOEDI_TRY(stream_measure(s));
    for (int64_t k = 0; k < f->clusters && next < s->wanted; k++) {
        if (f->totals[k] > 0 || s->how_far[next] < 0) continue;
        memcpy(f->centroids + k * f->width, s->far + next++ * f->width, (size_t)f->width * sizeof *s->far);
        *filled = 1;
    }
    s->wanted = 0;
    return MOED_OK;
}

static moed_status stream_iterate(stream *s, double limit)
{
    moedi_fit *f = &s->fit;
    int filled = 0;
    if (f->options.batch) {
        MOEDI_TRY(moedi_fit_minibatch(f, &s->source, limit));
    } else {
        for (f->iterations = 0; f->iterations < f->options.iterations;) {
            double shift;
            MOEDI_TRY(stream_step(s, &shift));
            MOEDI_TRY(stream_refill(s, &filled));
            f->iterations++;
            if (shift <= limit && !filled) break;
        }
    }
    MOEDI_TRY(stream_measure(s));
    for (int i = 0; i < REFILLS && empty_clusters(f); i++) {
        MOEDI_TRY(stream_refill(s, &filled));
        if (!filled) break;
        MOEDI_TRY(stream_measure(s));
    }
    return MOED_OK;
}

/* ---- the start: a fit of a sample ---- */

static moed_status sample_starts(stream *s, const float *starts, double *variance)
{
    const moedi_fit *f = &s->fit;
    const int64_t fits = SAMPLE_BYTES / (int64_t)sizeof(float) / f->width, least = 4 * f->clusters;
    int64_t count = fits > least ? fits : least;
    float *x = NULL, *weights = NULL;
    moed_kmeans best = {.context = f->context};
    moed_status status;
    if (count > s->source.count) count = s->source.count;
    MOEDI_GO(moedi_alloc_array(f->context, count, (size_t)f->width * sizeof *x, (void **)&x));
    if (s->source.weights) MOEDI_GO(MOEDI_NEW(f->context, count, &weights));
    const int64_t run = count < MOEDI_SOURCE_RUN * f->clusters ? 1 : MOEDI_SOURCE_RUN;
    MOEDI_GO(moedi_source_draw(&s->source, f->options.seed, UINT64_C(1) << 33, count, run, x, weights));
    moedi_fit own = {.context = f->context, .cancel = f->cancel, .options = f->options, .x = x, .weights = weights,
                     .count = count, .width = f->width, .clusters = f->clusters};
    MOEDI_GO(moedi_fit_variance(&own, variance));
    if (starts) {
        memcpy(f->centroids, starts, (size_t)(f->clusters * f->width) * sizeof *starts);
        goto out;
    }
    MOEDI_GO(moedi_check_weights(weights, count, f->clusters));
    own.options.batch = 0;
    if (own.options.iterations > SAMPLE_STEPS) own.options.iterations = SAMPLE_STEPS;
    MOEDI_GO(moedi_kmeans_fit_memory(&own, &best, NULL));
    memcpy(f->centroids, best.centroids, (size_t)(f->clusters * f->width) * sizeof *best.centroids);
out:
    moedi_kmeans_forget(&best);
    moedi_free(f->context, x);
    moedi_free(f->context, weights);
    return status;
}

/* ---- public ---- */

static moed_status check_vectors(const moed_vectors *x, int64_t width)
{
    if (x->struct_size < sizeof *x)
        return moedi_fail(MOED_E_STRUCT, "moed_vectors: struct_size is %lu, not %lu", (unsigned long)x->struct_size,
                          (unsigned long)sizeof *x);
    if (!x->read) return moedi_fail_parameter(MOED_E_ARGUMENT, "x", "x: read is NULL");
    if (x->count < 1 || x->width < 1 || x->count > INT64_MAX / 8 / x->width)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "x", "x: shape (%lld, %lld)", (long long)x->count,
                                    (long long)x->width);
    if (width && x->width != width)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "x", "x: vectors of width %lld where %lld belongs",
                                    (long long)x->width, (long long)width);
    return MOED_OK;
}

moed_status moed_kmeans_fit_stream(moed_kmeans *k, const moed_vectors *x, const float *weights,
                                   const moed_tensor *starts, const moed_cancel *cancel)
{
    double variance = 0;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    MOEDI_TRY(check_vectors(x, 0));
    if (k->options.method != MOED_KMEANS_PLAIN)
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, "method",
                                    "method: a balanced fit needs all vectors in memory: call moed_kmeans_fit");
    MOEDI_TRY(moedi_check_weights(weights, x->count, k->options.clusters));
    if (starts) MOEDI_TRY(moedi_check_matrix(k->context, cancel, starts, "starts", k->options.clusters, x->width));
    stream s = {
        .fit = {.context = k->context, .cancel = cancel, .options = k->options, .count = x->count,
                .width = x->width, .clusters = k->options.clusters},
        .source = {k->context, cancel, NULL, x, weights, x->count, x->width},
    };
    moed_kmeans best = {.context = k->context, .options = k->options};
    MOEDI_GO(stream_open(&s));
    MOEDI_GO(sample_starts(&s, starts ? starts->data : NULL, &variance));
    MOEDI_GO(stream_iterate(&s, k->options.tolerance * variance));
    MOEDI_GO(moedi_kmeans_keep(&best, &s.fit));
out:
    stream_close(&s);
    if (status == MOED_OK) {
        moedi_kmeans_forget(k);
        *k = best;
    } else {
        moedi_kmeans_forget(&best);
    }
    return status;
}

moed_status moed_kmeans_assign_stream(const moed_kmeans *k, const moed_vectors *x, int32_t *labels,
                                      float *distances, const moed_cancel *cancel)
{
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    if (!k->fitted) return moedi_fail(MOED_E_STATE, "nothing has been fitted yet: call moed_kmeans_fit first");
    MOEDI_TRY(check_vectors(x, k->info.width));
    stream s = {
        .fit = {.context = k->context, .cancel = cancel, .options = k->options, .count = x->count,
                .width = x->width, .clusters = k->info.clusters},
        .source = {k->context, cancel, NULL, x, NULL, x->count, x->width},
    };
    MOEDI_GO(stream_open(&s));
    for (int64_t first = 0, count; first < x->count; first += count) {
        MOEDI_GO(next_batch(&s, first, &count));
        MOEDI_GO(moedi_lloyd_assign(&s.fit.lloyd, k->centroids, k->info.clusters, NULL, s.labels,
                                    distances ? s.distances : NULL));
        if (labels) memcpy(labels + first, s.labels, (size_t)count * sizeof *labels);
        if (distances) memcpy(distances + first, s.distances, (size_t)count * sizeof *distances);
    }
out:
    stream_close(&s);
    return status;
}
