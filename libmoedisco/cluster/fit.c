/* cluster/fit.c - what the phases of a fit share: its memory, sums over blocks of rows, centroids from sums. */
#include "fit.h"

#include <math.h>

#include "core/cancel.h"

moed_status moedi_fit_open(moedi_fit *f)
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

void moedi_fit_close(moedi_fit *f)
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

moed_status moedi_fit_each_block(const moedi_fit *f, moed_task_fn task, void *argument)
{
    block_run r = {f->cancel, task, argument};
    moedi_parallel(f->context, moedi_blocks(f->count), run_block, &r);
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
    const int64_t from = block * MOEDI_BLOCK, to = moedi_block_end(f->count, block);
    double sum = 0;
    for (int64_t i = from; i < to; i++)
        sum += moedi_fit_weight(f, i) *
               moedi_square_distance(f->x + i * f->width, f->centroids + f->labels[i] * f->width, f->width);
    s->part[block] = sum;
}

moed_status moedi_fit_measure(moedi_fit *f)
{
    block_sums s = {f, NULL};
    const int64_t blocks = moedi_blocks(f->count);
    moed_status status;
    MOEDI_GO(MOEDI_NEW(f->context, blocks, &s.part));
    MOEDI_GO(moedi_fit_each_block(f, inertia_block, &s));
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
    const int64_t from = block * MOEDI_BLOCK, to = moedi_block_end(f->count, block);
    double *restrict sum = s->part + block * 2 * f->width, *restrict square = sum + f->width;
    for (int64_t i = from; i < to; i++)
        for (int64_t j = 0; j < f->width; j++) {
            const double away = (double)f->x[i * f->width + j] - (double)f->x[j];
            sum[j] += away;
            square[j] += away * away;
        }
}

moed_status moedi_fit_variance(const moedi_fit *f, double *out)
{
    block_sums s = {f, NULL};
    const int64_t blocks = moedi_blocks(f->count);
    const double n = (double)f->count;
    moed_status status;
    MOEDI_GO(moedi_alloc_array(f->context, blocks, 2 * (size_t)f->width * sizeof *s.part, (void **)&s.part));
    MOEDI_GO(moedi_fit_each_block(f, moments_block, &s));
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

/* ---- centroids ---- */

double moedi_fit_move(moedi_fit *f)
{
    double shift = 0;
    for (int64_t k = 0; k < f->clusters; k++) {
        double square = 0;
        for (int64_t j = 0; f->totals[k] > 0 && j < f->width; j++) {
            float *c = &f->centroids[k * f->width + j];
            const float next = (float)(f->sums[k * f->width + j] / f->totals[k]);
            square += ((double)next - (double)*c) * ((double)next - (double)*c);
            *c = next;
        }
        if (f->moved) f->moved[k] = (float)(sqrt(square) * (1 + 1e-6));
        shift += square;
    }
    return shift;
}

moed_status moedi_fit_centre(moedi_fit *f)
{
    MOEDI_TRY(moedi_lloyd_accumulate(&f->lloyd, f->labels, f->sums, f->totals, f->counts));
    moedi_fit_move(f);
    return MOED_OK;
}
