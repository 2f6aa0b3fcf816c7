/* backend/cpu/reference/optimizer.c - AdamW (Loshchilov and Hutter 2019) and the norm it is clipped by. */
#include "reference.h"

#include "backend/lean.h"

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

/* One number: its moments, and the parameter that is returned. */
static double step_number(const moed_op_update *a, double weight_decay, double gradient, double p, double *m, double *v)
{
    const moed_step_scalars *s = a->scalars;
    const double g = gradient * s->gradient_scale * s->clip_factor;
    *m = a->beta1 * *m + (1.0 - a->beta1) * g;
    *v = a->beta2 * *v + (1.0 - a->beta2) * g * g;
    const double step = *m / s->beta1_correction / (sqrt(*v / s->beta2_correction) + a->epsilon);
    return p - s->learning_rate * (step + weight_decay * p);
}

static void step_numbers(const moed_op_update *a, const moed_op_slice *slice)
{
    real *parameter = slice->parameter, *m = slice->m, *v = slice->v;
    const real *gradient = slice->gradient;
    for (int64_t i = 0; i < slice->count; i++) {
        double m_new = (double)m[i], v_new = (double)v[i];
        parameter[i] = (real)step_number(a, slice->weight_decay, (double)gradient[i], (double)parameter[i], &m_new, &v_new);
        m[i] = (real)m_new;
        v[i] = (real)v_new;
    }
}

/* The same where moments are codes: `count` numbers of block `index` of the slice. */
static void step_block(const moed_op_update *a, const moed_op_slice *slice, int64_t index, int64_t count)
{
    const int64_t first = index * MOEDI_LEAN_BLOCK;
    real *parameter = (real *)slice->parameter + first;
    const real *gradient = (const real *)slice->gradient + first;
    uint8_t *m = (uint8_t *)slice->m + first, *v = (uint8_t *)slice->v + first;
    double m_new[MOEDI_LEAN_BLOCK], root[MOEDI_LEAN_BLOCK], m_largest = 0, root_largest = 0;
    for (int64_t i = 0; i < count; i++) {
        const double before = (double)moedi_lean_decode_root(v[i]) * (double)slice->v_scale[index];
        double v_new = before * before;
        m_new[i] = (double)moedi_lean_decode_m(m[i]) * (double)slice->m_scale[index];
        parameter[i] = (real)step_number(a, slice->weight_decay, (double)gradient[i], (double)parameter[i], &m_new[i], &v_new);
        root[i] = sqrt(v_new);
        m_largest = fmax(m_largest, fabs(m_new[i]));
        root_largest = fmax(root_largest, root[i]);
    }
    const float m_scale = moedi_lean_scale((float)m_largest), v_scale = moedi_lean_scale((float)root_largest);
    const uint32_t key = moedi_lean_key(a->scalars->random, slice->block + index);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t random = moedi_lean_random(key, (uint32_t)i);
        m[i] = (uint8_t)moedi_lean_encode_m((float)m_new[i] * moedi_lean_inverse(m_scale), random);
        v[i] = (uint8_t)moedi_lean_encode_root((float)root[i] * moedi_lean_inverse(v_scale), random);
    }
    slice->m_scale[index] = m_scale;
    slice->v_scale[index] = v_scale;
}

MOEDI_REFERENCE(adamw, update)
{
    (void)self;

    if (!isfinite(a->scalars->gradient_norm)) return MOED_OK;
    for (int64_t t = 0; t < a->count; t++) {
        const moed_op_slice *slice = &a->slices[t];
        if (!slice->m_scale) step_numbers(a, slice);
        else
            for (int64_t at = 0; at < slice->count; at += MOEDI_LEAN_BLOCK) {
                const int64_t left = slice->count - at;
                step_block(a, slice, at / MOEDI_LEAN_BLOCK, left < MOEDI_LEAN_BLOCK ? left : MOEDI_LEAN_BLOCK);
            }
    }
    return MOED_OK;
}
