/* cluster/minibatch.c - centroids by mini-batches of vectors (Sculley, "Web-Scale K-Means Clustering", 2010). */
#include "minibatch.h"

#include "core/cancel.h"

/* Each centroid moves towards its part of the batch by that part's share of all that it has seen. */
static double move_towards(moedi_fit *f, const double *sums, const double *totals, double *seen)
{
    double shift = 0;
    for (int64_t k = 0; k < f->clusters; k++) {
        if (!(totals[k] > 0)) continue;
        seen[k] += totals[k];
        for (int64_t j = 0; j < f->width; j++) {
            float *c = &f->centroids[k * f->width + j];
            const float next = (float)((double)*c + (sums[k * f->width + j] - totals[k] * (double)*c) / seen[k]);
            shift += ((double)next - (double)*c) * ((double)next - (double)*c);
            *c = next;
        }
    }
    return shift;
}

moed_status moedi_fit_minibatch(moedi_fit *f, const moedi_source *s, double limit)
{
    const int64_t batch = f->options.batch < s->count ? f->options.batch : s->count;
    const int64_t run = s->x ? 1 : MOEDI_SOURCE_RUN, cells = f->clusters * f->width;
    float *x = NULL, *weights = NULL;
    double *sums = NULL;
    int64_t *counts = NULL;
    moedi_lloyd l = {0};
    moed_status status;
    MOEDI_GO(moedi_alloc_array(f->context, batch, (size_t)f->width * sizeof *x, (void **)&x));
    if (s->weights) MOEDI_GO(MOEDI_NEW(f->context, batch, &weights));
    MOEDI_GO(MOEDI_NEW(f->context, cells + 2 * f->clusters, &sums));
    MOEDI_GO(MOEDI_NEW(f->context, f->clusters, &counts));
    MOEDI_GO(moedi_lloyd_open(&l, f->context, x, weights, batch, f->width, f->clusters, 0));
    l.cancel = f->cancel;
    for (f->iterations = 0; f->iterations < f->options.iterations;) {
        const uint64_t step = (UINT64_C(1) << 32) + (uint64_t)f->iterations++;
        MOEDI_GO(moedi_source_draw(s, f->options.seed, step, batch, run, x, weights));
        MOEDI_GO(moedi_lloyd_turn(&l, x, weights, batch));
        MOEDI_GO(moedi_lloyd_step(&l, f->centroids, NULL, sums, sums + cells, counts));
        if (move_towards(f, sums, sums + cells, sums + cells + f->clusters) <= limit) break;
    }
out:
    moedi_lloyd_close(&l);
    moedi_free(f->context, x);
    moedi_free(f->context, weights);
    moedi_free(f->context, sums);
    moedi_free(f->context, counts);
    return status;
}
