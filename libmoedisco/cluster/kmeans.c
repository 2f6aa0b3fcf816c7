/* cluster/kmeans.c - the k-means handle: fits of vectors in memory, labels, assignments. */
#include "kmeans.h"

#include <string.h>

#include "balance.h"
#include "core/options.h"
#include "iterate.h"
#include "minibatch.h"
#include "starts.h"

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
    MOEDI_TRY(moedi_fit_open(f));
    if (f->options.tolerance > 0) MOEDI_TRY(moedi_fit_variance(f, &variance));
    const double limit = f->options.tolerance * variance;
    for (int32_t r = 0; r < restarts; r++) {
        if (starts) memcpy(f->centroids, starts, (size_t)(f->clusters * f->width) * sizeof(float));
        else MOEDI_TRY(moedi_fit_start(f, (uint64_t)r));
        if (f->options.batch) MOEDI_TRY(moedi_fit_minibatch(f, &source, limit));
        else MOEDI_TRY(moedi_fit_iterate(f, limit));
        if (f->options.batch) MOEDI_TRY(moedi_fit_finish(f, 0));
        if (f->options.method == MOED_KMEANS_BALANCED) MOEDI_TRY(moedi_fit_balance(f));
        if (!best->fitted || f->inertia < best->info.inertia) MOEDI_TRY(moedi_kmeans_keep(best, f));
    }
    return MOED_OK;
}

moed_status moedi_kmeans_fit_memory(moedi_fit *f, moed_kmeans *best, const float *starts)
{
    const moed_status status = fit_all(f, best, starts);
    moedi_fit_close(f);
    return status;
}

moed_status moed_kmeans_fit(moed_kmeans *k, const moed_tensor *x, const float *weights,
                            const moed_tensor *starts, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(k, "the kmeans is NULL");
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_TRY(moedi_context_check(k->context));
    MOEDI_TRY(moedi_check_matrix(k->context, cancel, x, "x", 0, 0));
    MOEDI_TRY(moedi_check_weights(weights, x->shape[0], k->options.clusters));
    if (starts) MOEDI_TRY(moedi_check_matrix(k->context, cancel, starts, "starts", k->options.clusters, x->shape[1]));
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
    MOEDI_TRY(moedi_check_matrix(k->context, cancel, x, "x", 0, k->info.width));
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
