/* backend/cpu/reference/optimizer.c - AdamW (Loshchilov and Hutter 2019) and the norm it is clipped by. */
#include "reference.h"

MOEDI_REFERENCE(gradient_norm, update)
{
    moed_step_scalars *s = a->scalars;
    double squares = 0;
    (void)self;

    for (int64_t t = 0; t < a->count; t++) {
        const real *gradient = a->slices[t].gradient;
        for (int64_t i = 0; i < a->slices[t].count; i++) squares += (double)gradient[i] * (double)gradient[i];
    }
    const real *losses = a->losses;
    for (int64_t i = 0; losses && i < a->loss_count; i++)
        if (!isfinite(losses[i])) squares = NAN;
    s->gradient_norm = sqrt(squares) * fabs(s->gradient_scale);
    s->clip_factor = a->clip > 0 && s->gradient_norm > a->clip ? a->clip / s->gradient_norm : 1.0;
    return MOED_OK;
}

MOEDI_REFERENCE(adamw, update)
{
    const moed_step_scalars *s = a->scalars;
    (void)self;

    if (!isfinite(s->gradient_norm)) return MOED_OK;
    for (int64_t t = 0; t < a->count; t++) {
        const moed_op_slice *slice = &a->slices[t];
        real *parameter = slice->parameter, *m = slice->m, *v = slice->v;
        const real *gradient = slice->gradient;
        for (int64_t i = 0; i < slice->count; i++) {
            const double g = (double)gradient[i] * s->gradient_scale * s->clip_factor, p = (double)parameter[i];
            const double m_new = a->beta1 * (double)m[i] + (1.0 - a->beta1) * g;
            const double v_new = a->beta2 * (double)v[i] + (1.0 - a->beta2) * g * g;
            const double step = m_new / s->beta1_correction / (sqrt(v_new / s->beta2_correction) + a->epsilon);
            m[i] = (real)m_new;
            v[i] = (real)v_new;
            parameter[i] = (real)(p - s->learning_rate * (step + slice->weight_decay * p));
        }
    }
    return MOED_OK;
}
