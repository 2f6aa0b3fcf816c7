/* cluster/kmeans.c - k-means: the handle, the checks, and Lloyd's iteration. */
#include "kmeans.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"

moed_status moed_kmeans_create(moed_kmeans **out, moed_context *c, const moed_kmeans_options *o)
{
    moed_kmeans_options options;
    moed_kmeans *k = NULL;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_KMEANS_OPTIONS, o, &options));
    MOEDI_TRY(MOEDI_NEW(c, 1, &k));
    k->context = moedi_context_retain(c);
    k->options = options;
    *out = k;
    return MOED_OK;
}

void moedi_kmeans_forget(moed_kmeans *k)
{
    moedi_free(k->context, k->labels);
    moedi_free(k->context, k->centroids);
    moedi_free(k->context, k->weights);
    moedi_free(k->context, k->counts);
}

void moed_kmeans_destroy(moed_kmeans *k)
{
    if (!k) return;
    moed_context *c = k->context;
    moedi_kmeans_forget(k);
    moedi_free(c, k);
    moedi_context_release(c);
}

/* ---- checks ---- */

moed_status moedi_check_matrix(const moed_tensor *x, const char *name, int64_t rows, int64_t width)
{
    if (!x->data) return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: data is NULL", name);
    if (x->dtype != MOED_DTYPE_F32)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: dtype is %s, not F32", name,
                                    moed_dtype_name(x->dtype));
    if (x->device != 0)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: not in host memory (device %ld)", name,
                                    (long)x->device);
    if (x->rank != 2)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: rank is %ld, not 2", name, (long)x->rank);
    if (x->shape[0] < 1 || x->shape[1] < 1 || x->shape[0] > INT64_MAX / 8 / x->shape[1])
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: shape (%lld, %lld)", name,
                                    (long long)x->shape[0], (long long)x->shape[1]);
    if ((rows && x->shape[0] != rows) || (width && x->shape[1] != width))
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: shape (%lld, %lld) where (%lld, %lld) belongs",
                                    name, (long long)x->shape[0], (long long)x->shape[1],
                                    (long long)(rows ? rows : x->shape[0]),
                                    (long long)(width ? width : x->shape[1]));
    if (x->strides[0] != x->shape[1] || x->strides[1] != 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: not contiguous, strides (%lld, %lld)", name,
                                    (long long)x->strides[0], (long long)x->strides[1]);
    return MOED_OK;
}

typedef struct rows_check {
    const moed_cancel *cancel;
    const float *x;
    int64_t count, width, first;
    const char *name;
} rows_check;

static double square_length(const float *x, int64_t width)
{
    double sum[8] = {0}, total = 0;
    int64_t j = 0;
    for (; j + 8 <= width; j += 8)
        for (int l = 0; l < 8; l++) sum[l] += (double)x[j + l] * (double)x[j + l];
    for (; j < width; j++) sum[j & 7] += (double)x[j] * (double)x[j];
    for (int l = 0; l < 8; l++) total += sum[l];
    return total;
}

static moed_status check_block(void *argument, int64_t block)
{
    const rows_check *r = argument;
    const int64_t from = block * MOEDI_KMEANS_BLOCK, most = from + MOEDI_KMEANS_BLOCK,
                  to = most < r->count ? most : r->count;
    MOEDI_TRY(moedi_cancel_check(r->cancel));
    for (int64_t i = from; i < to; i++) {
        const double square = square_length(r->x + i * r->width, r->width);
        if (!isfinite(square))
            return moedi_fail_parameter(MOED_E_NUMERIC, r->name, "%s: row %lld holds NaN or infinity", r->name,
                                        (long long)(r->first + i));
        if (square > FLT_MAX / 16)
            return moedi_fail_parameter(MOED_E_NUMERIC, r->name,
                                        "%s: row %lld is too long for squared distances in float: %g", r->name,
                                        (long long)(r->first + i), sqrt(square));
    }
    return MOED_OK;
}

moed_status moedi_check_rows(const moed_context *c, const moed_cancel *cancel, const float *x, int64_t count, int64_t width,
                             int64_t first, const char *name)
{
    rows_check r = {cancel, x, count, width, first, name};
    return moedi_parallel_try(c, moedi_kmeans_blocks(count), check_block, &r);
}
static moed_status check_tensor(const moed_context *c, const moed_cancel *cancel, const moed_tensor *x, const char *name)
{
    return moedi_check_rows(c, cancel, x->data, x->shape[0], x->shape[1], 0, name);
}

/* Rows with weight, at least one per cluster. */
moed_status moedi_check_weights(const float *weights, int64_t count, int64_t clusters)
{
    int64_t positive = 0;
    for (int64_t i = 0; weights && i < count; i++) {
        if (!isfinite(weights[i]))
            return moedi_fail_parameter(MOED_E_NUMERIC, "weights", "weights: number %lld is NaN or infinite",
                                        (long long)i);
        if (weights[i] < 0)
            return moedi_fail_parameter(MOED_E_RANGE, "weights", "weights: number %lld is %g, below 0",
                                        (long long)i, (double)weights[i]);
        positive += weights[i] > 0;
    }
    if (!weights) positive = count;
    if (positive < clusters)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "clusters", "%lld clusters of %lld vectors%s",
                                    (long long)clusters, (long long)positive,
                                    weights ? " with a weight above 0: fewer vectors than clusters"
                                            : ": fewer vectors than clusters");
    return MOED_OK;
}

/* ---- sums over blocks ---- */

typedef struct block_run {
    const moed_cancel *cancel;
    moed_task_fn task;
    void *argument;
} block_run;

static void run_block(void *argument, int64_t block)
{
    const block_run *r = argument;
    if (!moedi_cancel_seen(r->cancel)) r->task(r->argument, block);
}

moed_status moedi_kmeans_each_block(const moedi_fit *f, moed_task_fn task, void *argument)
{
    block_run r = {f->cancel, task, argument};
    moedi_parallel(f->context, moedi_kmeans_blocks(f->count), run_block, &r);
    return moedi_cancel_check(f->cancel);
}

typedef struct block_sums {
    const moedi_fit *fit;
    double *part; /* (blocks) */
} block_sums;

static void inertia_block(void *argument, int64_t block)
{
    const block_sums *s = argument;
    const moedi_fit *f = s->fit;
    const int64_t from = block * MOEDI_KMEANS_BLOCK, most = from + MOEDI_KMEANS_BLOCK,
                  to = most < f->count ? most : f->count;
    double sum = 0;
    for (int64_t i = from; i < to; i++)
        sum += moedi_fit_weight(f, i) *
               moedi_square_distance(f->x + i * f->width, f->centroids + f->labels[i] * f->width, f->width);
    s->part[block] = sum;
}

moed_status moedi_kmeans_measure(moedi_fit *f)
{
    block_sums s = {f, NULL};
    const int64_t blocks = moedi_kmeans_blocks(f->count);
    moed_status status;
    MOEDI_GO(MOEDI_NEW(f->context, blocks, &s.part));
    MOEDI_GO(moedi_kmeans_each_block(f, inertia_block, &s));
    f->inertia = 0;
    for (int64_t b = 0; b < blocks; b++) f->inertia += s.part[b];
out:
    moedi_free(f->context, s.part);
    return status;
}

/* Sums of x - x[0] and of its square, per column: away from the first row, digits are kept. */
static void moments_block(void *argument, int64_t block)
{
    const block_sums *s = argument;
    const moedi_fit *f = s->fit;
    const int64_t from = block * MOEDI_KMEANS_BLOCK, most = from + MOEDI_KMEANS_BLOCK,
                  to = most < f->count ? most : f->count;
    double *restrict sum = s->part + block * 2 * f->width, *restrict square = sum + f->width;
    for (int64_t i = from; i < to; i++)
        for (int64_t j = 0; j < f->width; j++) {
            const double away = (double)f->x[i * f->width + j] - (double)f->x[j];
            sum[j] += away;
            square[j] += away * away;
        }
}

moed_status moedi_kmeans_variance(const moedi_fit *f, double *out)
{
    block_sums s = {f, NULL};
    const int64_t blocks = moedi_kmeans_blocks(f->count);
    const double n = (double)f->count;
    moed_status status;
    MOEDI_GO(moedi_alloc_array(f->context, blocks, 2 * (size_t)f->width * sizeof *s.part, (void **)&s.part));
    MOEDI_GO(moedi_kmeans_each_block(f, moments_block, &s));
    *out = 0;
    for (int64_t j = 0; j < f->width; j++) {
        double sum = 0, square = 0;
        for (int64_t b = 0; b < blocks; b++)
            sum += s.part[b * 2 * f->width + j], square += s.part[(b * 2 + 1) * f->width + j];
        const double variance = square / n - sum / n * (sum / n);
        *out += (variance > 0 ? variance : 0) / (double)f->width;
    }
out:
    moedi_free(f->context, s.part);
    return status;
}

/* ---- Lloyd ---- */

/* A cluster without weight takes the farthest row of those whose cluster keeps another (ties: the lowest
 * number). At most one row per empty cluster; sums, totals, counts and the host's labels follow. */
static moed_status fill_empty(moedi_fit *f, int64_t *filled)
{
    int64_t empty = 0;
    *filled = 0;
    for (int64_t k = 0; k < f->clusters; k++) empty += !(f->totals[k] > 0);
    if (!empty) return MOED_OK;
    if (moedi_lloyd_moves(&f->lloyd)) MOEDI_TRY(moedi_lloyd_fetch(&f->lloyd, f->centroids, f->sums));
    MOEDI_TRY(moedi_lloyd_assign(&f->lloyd, f->centroids, f->clusters, NULL, f->labels, f->distances));
    for (int64_t k = 0; k < f->clusters; k++) {
        if (f->totals[k] > 0) continue;
        int64_t row = -1;
        for (int64_t i = 0; i < f->count; i++) {
            const double w = moedi_fit_weight(f, i);
            const int64_t from = f->labels[i];
            if (i % MOEDI_KMEANS_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
            if (w > 0 && f->totals[from] > w && f->counts[from] > 1 &&
                (row < 0 || f->distances[i] > f->distances[row]))
                row = i;
        }
        if (row < 0) return MOED_OK;
        const int64_t from = f->labels[row];
        const double w = moedi_fit_weight(f, row);
        for (int64_t j = 0; j < f->width; j++) {
            const double part = w * (double)f->x[row * f->width + j];
            f->sums[from * f->width + j] -= part;
            f->sums[k * f->width + j] = part;
        }
        f->labels[row] = (int32_t)k;
        f->totals[from] -= w, f->counts[from] -= 1;
        f->totals[k] = w, f->counts[k] += 1;
        f->distances[row] = 0;
        *filled += 1;
    }
    return MOED_OK;
}

double moedi_kmeans_move(float *centroids, const double *sums, const double *totals, int64_t clusters, int64_t width,
                         float *moved)
{
    double shift = 0;
    for (int64_t k = 0; k < clusters; k++) {
        double square = 0;
        for (int64_t j = 0; totals[k] > 0 && j < width; j++) {
            float *c = &centroids[k * width + j];
            const float next = (float)(sums[k * width + j] / totals[k]);
            square += ((double)next - (double)*c) * ((double)next - (double)*c);
            *c = next;
        }
        if (moved) moved[k] = (float)(sqrt(square) * (1 + 1e-6));
        shift += square;
    }
    return shift;
}
static double move_on_host(moedi_fit *f)
{
    return moedi_kmeans_move(f->centroids, f->sums, f->totals, f->clusters, f->width, f->moved);
}

/* The labels and sums of a step. Sums stay with an engine that moves the centroids, until a cluster is empty. */
static moed_status step(moedi_fit *f, int followed)
{
    double *sums = moedi_lloyd_moves(&f->lloyd) ? NULL : f->sums;
    return moedi_lloyd_step(&f->lloyd, f->centroids, followed ? f->moved : NULL, sums, f->totals, f->counts);
}

/* What follows a step; filled: sums have changed on the host. */
static moed_status move_centroids(moedi_fit *f, int64_t filled, double *shift)
{
    *shift = 0;
    if (filled || !moedi_lloyd_moves(&f->lloyd)) {
        *shift = move_on_host(f);
        return MOED_OK;
    }
    MOEDI_TRY(moedi_lloyd_move(&f->lloyd, f->moved));
    for (int64_t k = 0; k < f->clusters; k++) *shift += (double)f->moved[k] * (double)f->moved[k];
    return MOED_OK;
}

moed_status moedi_kmeans_centre(moedi_fit *f)
{
    MOEDI_TRY(moedi_lloyd_accumulate(&f->lloyd, f->labels, f->sums, f->totals, f->counts));
    move_on_host(f);
    return MOED_OK;
}

/* Labels belong to the centroids that are handed out; what fills an empty cluster now becomes its centroid.
 * followed: f->moved leads here from the last step. */
static moed_status finish(moedi_fit *f, int followed)
{
    int64_t filled;
    MOEDI_TRY(step(f, followed));
    MOEDI_TRY(fill_empty(f, &filled));
    if (filled) move_on_host(f);
    else MOEDI_TRY(moedi_lloyd_labels(&f->lloyd, f->labels));
    return moedi_kmeans_measure(f);
}

static moed_status iterate(moedi_fit *f, double limit)
{
    int64_t filled = 0;
    double shift = 0;
    for (f->iterations = 0; f->iterations < f->options.iterations;) {
        MOEDI_TRY(step(f, f->iterations && !filled));
        MOEDI_TRY(fill_empty(f, &filled));
        f->iterations++;
        MOEDI_TRY(move_centroids(f, filled, &shift));
        if (shift <= limit) break;
    }
    if (f->lloyd.ahead) MOEDI_TRY(moedi_lloyd_fetch(&f->lloyd, f->centroids, f->sums));
    if (shift == 0 && !filled) { /* the labels are those of these centroids */
        MOEDI_TRY(moedi_lloyd_labels(&f->lloyd, f->labels));
        return moedi_kmeans_measure(f);
    }
    return finish(f, f->iterations && !filled);
}

static moed_status fit_open(moedi_fit *f)
{
    moed_context *c = f->context;
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &f->centroids));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &f->labels));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &f->distances));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &f->sums));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &f->totals));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &f->counts));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &f->moved));
    MOEDI_TRY(moedi_lloyd_open(&f->lloyd, c, f->x, f->weights, f->count, f->width, f->clusters, 1));
    f->lloyd.cancel = f->cancel;
    return MOED_OK;
}

static void fit_close(moedi_fit *f)
{
    moedi_lloyd_close(&f->lloyd);
    moedi_free(f->context, f->centroids);
    moedi_free(f->context, f->labels);
    moedi_free(f->context, f->distances);
    moedi_free(f->context, f->sums);
    moedi_free(f->context, f->totals);
    moedi_free(f->context, f->counts);
    moedi_free(f->context, f->moved);
}

moed_status moedi_kmeans_keep(moed_kmeans *k, const moedi_fit *f)
{
    if (!k->centroids) {
        if (f->labels) MOEDI_TRY(MOEDI_NEW(f->context, f->count, &k->labels));
        MOEDI_TRY(MOEDI_NEW(f->context, f->clusters * f->width, &k->centroids));
        MOEDI_TRY(MOEDI_NEW(f->context, f->clusters, &k->weights));
        MOEDI_TRY(MOEDI_NEW(f->context, f->clusters, &k->counts));
    }
    if (f->labels) memcpy(k->labels, f->labels, (size_t)f->count * sizeof *k->labels);
    memcpy(k->centroids, f->centroids, (size_t)(f->clusters * f->width) * sizeof *k->centroids);
    memcpy(k->weights, f->totals, (size_t)f->clusters * sizeof *k->weights);
    memcpy(k->counts, f->counts, (size_t)f->clusters * sizeof *k->counts);
    k->info = (moed_kmeans_info){
        .struct_size = sizeof k->info,
        .clusters = f->clusters,
        .width = f->width,
        .iterations = f->iterations,
        .inertia = f->inertia,
        .centroids = k->centroids,
        .weights = k->weights,
        .counts = k->counts,
    };
    k->count = f->count;
    k->fitted = 1;
    return MOED_OK;
}

static moed_status fit_all(moedi_fit *f, moed_kmeans *best, const float *starts)
{
    double variance = 0;
    const int32_t restarts = starts ? 1 : f->options.restarts;
    const moedi_source source = {f->context, f->cancel, f->x, NULL, f->weights, f->count, f->width};
    MOEDI_TRY(fit_open(f));
    if (f->options.tolerance > 0) MOEDI_TRY(moedi_kmeans_variance(f, &variance));
    const double limit = f->options.tolerance * variance;
    for (int32_t r = 0; r < restarts; r++) {
        if (starts) memcpy(f->centroids, starts, (size_t)(f->clusters * f->width) * sizeof(float));
        else MOEDI_TRY(moedi_kmeans_starts(f, (uint64_t)r));
        if (f->options.batch) MOEDI_TRY(moedi_kmeans_minibatch(f, &source, limit));
        else MOEDI_TRY(iterate(f, limit));
        if (f->options.batch) MOEDI_TRY(finish(f, 0));
        if (f->options.method == MOED_KMEANS_BALANCED) MOEDI_TRY(moedi_kmeans_balance(f));
        if (!best->fitted || f->inertia < best->info.inertia) MOEDI_TRY(moedi_kmeans_keep(best, f));
    }
    return MOED_OK;
}

moed_status moedi_kmeans_fit_memory(moedi_fit *f, moed_kmeans *best, const float *starts)
{
    const moed_status status = fit_all(f, best, starts);
    fit_close(f);
    return status;
}

moed_status moed_kmeans_fit(moed_kmeans *k, const moed_tensor *x, const float *weights,
                            const moed_tensor *starts, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    MOEDI_TRY(moedi_check_matrix(x, "x", 0, 0));
    MOEDI_TRY(moedi_check_weights(weights, x->shape[0], k->options.clusters));
    MOEDI_TRY(check_tensor(k->context, cancel, x, "x"));
    if (starts) {
        MOEDI_TRY(moedi_check_matrix(starts, "starts", k->options.clusters, x->shape[1]));
        MOEDI_TRY(check_tensor(k->context, cancel, starts, "starts"));
    }
    moedi_fit f = {
        .context = k->context,
        .cancel = cancel,
        .options = k->options,
        .x = x->data,
        .weights = weights,
        .count = x->shape[0],
        .width = x->shape[1],
        .clusters = k->options.clusters,
    };
    moed_kmeans best = {.context = k->context, .options = k->options};
    const moed_status status = moedi_kmeans_fit_memory(&f, &best, starts ? starts->data : NULL);
    if (status == MOED_OK) {
        moedi_kmeans_forget(k);
        *k = best;
    } else {
        moedi_kmeans_forget(&best);
    }
    return status;
}

static moed_status check_fitted(const moed_kmeans *k)
{
    return k->fitted ? MOED_OK
                     : moedi_fail(MOED_E_STATE, "nothing has been fitted yet: call moed_kmeans_fit first");
}

moed_status moed_kmeans_labels(const moed_kmeans *k, int32_t *labels, int64_t count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(labels, "labels is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    MOEDI_TRY(check_fitted(k));
    if (!k->labels) return moedi_fail(MOED_E_STATE, "a streamed fit keeps no labels: call moed_kmeans_assign_stream");
    if (count != k->count)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "count",
                                    "count: %lld labels asked for, %lld vectors were fitted", (long long)count,
                                    (long long)k->count);
    memcpy(labels, k->labels, (size_t)count * sizeof *labels);
    return MOED_OK;
}

moed_status moed_kmeans_assign(const moed_kmeans *k, const moed_tensor *x, int32_t *labels, float *distances,
                               const moed_cancel *cancel)
{
    moedi_lloyd l;
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_REQUIRE(labels, "labels is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    MOEDI_TRY(check_fitted(k));
    MOEDI_TRY(moedi_check_matrix(x, "x", 0, k->info.width));
    MOEDI_TRY(check_tensor(k->context, cancel, x, "x"));
    MOEDI_TRY(moedi_lloyd_open(&l, k->context, x->data, NULL, x->shape[0], x->shape[1], k->info.clusters, 0));
    l.cancel = cancel;
    const moed_status status = moedi_lloyd_assign(&l, k->centroids, k->info.clusters, NULL, labels, distances);
    moedi_lloyd_close(&l);
    return status;
}

moed_status moed_kmeans_get_info(const moed_kmeans *k, moed_kmeans_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    MOEDI_TRY(check_fitted(k));
    return moedi_info_write(MOED_STRUCT_KMEANS_INFO, &k->info, out);
}
