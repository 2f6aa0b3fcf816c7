/* backend/cpu/reference/ffn.c - SwiGLU and the shared expert's gate. */
#include "reference.h"

static double sigmoid(double x)
{
    return 1.0 / (1.0 + exp(-x));
}

MOEDI_REFERENCE(swiglu, swiglu)
{
    (void)self;
    for (int64_t i = 0; i < a->rows; i++) {
        const real *gate = (const real *)a->gate_up + i * 2 * a->width, *up = gate + a->width;
        real *out = (real *)a->out + i * a->width;
        for (int64_t d = 0; d < a->width; d++) out[d] = (real)((double)gate[d] * sigmoid((double)gate[d]) * (double)up[d]);
    }
    return MOED_OK;
}

MOEDI_REFERENCE(swiglu_backward, swiglu)
{
    (void)self;
    for (int64_t i = 0; i < a->rows; i++) {
        const int64_t row = a->slot ? a->slot[i] : i;
        const real *gate = (const real *)a->gate_up + row * 2 * a->width, *up = gate + a->width;
        const real *d_out = (const real *)a->d_out + row * a->width;
        real *d_gate = (real *)a->d_gate_up + row * 2 * a->width, *d_up = d_gate + a->width;
        const double weight = a->weights ? (double)((const real *)a->weights)[i] : 1.0;
        double sum = 0;
        for (int64_t d = 0; d < a->width; d++) {
            const double g = (double)gate[d], u = (double)up[d], s = sigmoid(g), o = (double)d_out[d];
            sum += o * g * s * u;
            d_gate[d] = (real)(weight * o * u * s * (1.0 + g * (1.0 - s)));
            d_up[d] = (real)(weight * o * g * s);
            if (a->out) ((real *)a->out)[row * a->width + d] = (real)(weight * g * s * u);
        }
        if (a->d_weights) ((real *)a->d_weights)[i] = (real)sum;
    }
    return MOED_OK;
}

MOEDI_REFERENCE(sigmoid_gate, sigmoid_gate)
{
    (void)self;
    for (int64_t i = 0; i < a->rows; i++) {
        const real *x = (const real *)a->x + i * a->width;
        real *out = (real *)a->out + i * a->width;
        const double s = sigmoid((double)((const real *)a->gate)[i]);
        for (int64_t d = 0; d < a->width; d++) out[d] = (real)((double)out[d] + s * (double)x[d]);
    }
    return MOED_OK;
}

MOEDI_REFERENCE(sigmoid_gate_backward, sigmoid_gate)
{
    (void)self;
    for (int64_t i = 0; i < a->rows; i++) {
        const real *x = (const real *)a->x + i * a->width, *d_out = (const real *)a->d_out + i * a->width;
        real *d_x = (real *)a->d_x + i * a->width;
        const double s = sigmoid((double)((const real *)a->gate)[i]);
        double sum = 0;
        for (int64_t d = 0; d < a->width; d++) {
            sum += (double)d_out[d] * (double)x[d];
            d_x[d] = (real)(s * (double)d_out[d]);
        }
        ((real *)a->d_gate)[i] = (real)(s * (1.0 - s) * sum);
    }
    return MOED_OK;
}

MOEDI_REFERENCE(squash, squash)
{
    (void)self;
    for (int64_t i = 0; i < a->count; i++) ((real *)a->out)[i] = (real)tanh((double)((const real *)a->x)[i]);
    return MOED_OK;
}

MOEDI_REFERENCE(squash_backward, squash)
{
    (void)self;
    for (int64_t i = 0; i < a->count; i++) {
        const double out = (double)((const real *)a->out)[i];
        ((real *)a->d_x)[i] = (real)((double)((const real *)a->d_out)[i] * (1.0 - out * out));
    }
    return MOED_OK;
}
