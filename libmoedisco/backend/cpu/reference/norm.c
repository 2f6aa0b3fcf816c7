/* backend/cpu/reference/norm.c - RMSNorm. */
#include "reference.h"

MOEDI_REFERENCE(rmsnorm, rmsnorm)
{
    const real *weight = a->weight;
    real *rstd = a->rstd;
    (void)self;

    for (int64_t i = 0; i < a->rows; i++) {
        const real *x = (const real *)a->x + moedi_norm_row(a, i, a->stride);
        real *out = (real *)a->out + moedi_norm_row(a, i, a->out_stride);
        double squares = 0;
        for (int64_t d = 0; d < a->width; d++) squares += (double)x[d] * (double)x[d];
        const double r = 1.0 / sqrt(squares / (double)a->width + a->epsilon);
        for (int64_t d = 0; d < a->width; d++) out[d] = (real)((double)x[d] * r * (double)weight[d]);
        rstd[i] = (real)r;
    }
    return MOED_OK;
}

/* With x^ = x * rstd: d_x = rstd * (w d_out - x^ * mean(w d_out x^)), d_weight = sum over rows of d_out x^. d_x may be d_out: the
 * weight's gradient comes first. */
MOEDI_REFERENCE(rmsnorm_backward, rmsnorm)
{
    const real *weight = a->weight, *rstd = a->rstd;
    real *d_weight = a->d_weight;
    (void)self;

    for (int64_t d = 0; d_weight && d < a->width; d++) {
        double sum = 0;
        for (int64_t i = 0; i < a->rows; i++)
            sum += (double)((const real *)a->d_out)[moedi_norm_row(a, i, a->out_stride) + d] *
                   (double)((const real *)a->x)[moedi_norm_row(a, i, a->stride) + d] * (double)rstd[i];
        d_weight[d] = (real)((double)d_weight[d] + sum);
    }
    for (int64_t i = 0; i < a->rows; i++) {
        const real *x = (const real *)a->x + moedi_norm_row(a, i, a->stride);
        const real *d_out = (const real *)a->d_out + moedi_norm_row(a, i, a->out_stride);
        real *d_x = (real *)a->d_x + moedi_norm_row(a, i, a->out_stride);
        const double r = (double)rstd[i], kept = a->d_x == a->d_out ? 0 : 1;
        double mean = 0;
        for (int64_t d = 0; d < a->width; d++) mean += (double)weight[d] * (double)d_out[d] * (double)x[d] * r;
        mean /= (double)a->width;
        for (int64_t d = 0; d < a->width; d++)
            d_x[d] = (real)(kept * (double)d_x[d] + r * ((double)weight[d] * (double)d_out[d] - (double)x[d] * r * mean));
    }
    return MOED_OK;
}
