/* backend/cpu/reference/norm.c - RMSNorm. */
#include "reference.h"

MOEDI_REFERENCE(rmsnorm, rmsnorm)
{
    const real *weight = a->weight;
    real *rstd = a->rstd;
    (void)self;

    for (int64_t i = 0; i < a->rows; i++) {
        const real *x = (const real *)a->x + i * a->width;
        real *out = (real *)a->out + i * a->width;
        double squares = 0;
        for (int64_t d = 0; d < a->width; d++) squares += (double)x[d] * (double)x[d];
        const double r = 1.0 / sqrt(squares / (double)a->width + a->epsilon);
        for (int64_t d = 0; d < a->width; d++) out[d] = (real)((double)x[d] * r * (double)weight[d]);
        rstd[i] = (real)r;
    }
    return MOED_OK;
}

/* With x^ = x * rstd: d_x = rstd * (w d_out - x^ * mean(w d_out x^)), d_weight = sum over rows of d_out x^. */
MOEDI_REFERENCE(rmsnorm_backward, rmsnorm)
{
    const real *weight = a->weight, *rstd = a->rstd;
    real *d_weight = a->d_weight;
    (void)self;

    for (int64_t i = 0; i < a->rows; i++) {
        const real *x = (const real *)a->x + i * a->width;
        const real *d_out = (const real *)a->d_out + i * a->width;
        real *d_x = (real *)a->d_x + i * a->width;
        const double r = (double)rstd[i];
        double mean = 0;
        for (int64_t d = 0; d < a->width; d++) mean += (double)weight[d] * (double)d_out[d] * (double)x[d] * r;
        mean /= (double)a->width;
        for (int64_t d = 0; d < a->width; d++)
            d_x[d] = (real)((double)d_x[d] + r * ((double)weight[d] * (double)d_out[d] - (double)x[d] * r * mean));
    }
    if (!d_weight) return MOED_OK;
    for (int64_t d = 0; d < a->width; d++) {
        double sum = 0;
        for (int64_t i = 0; i < a->rows; i++)
            sum += (double)((const real *)a->d_out)[i * a->width + d] * (double)((const real *)a->x)[i * a->width + d] *
                   (double)rstd[i];
        d_weight[d] = (real)((double)d_weight[d] + sum);
    }
    return MOED_OK;
}
