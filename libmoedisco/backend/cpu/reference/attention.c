/* backend/cpu/reference/attention.c - rotary positions, and causal attention with grouped queries and document boundaries. */
#include "reference.h"

MOEDI_REFERENCE(rope, rope)
{
    const int64_t half = a->head_dim / 2;
    (void)self;

    for (int64_t i = 0; i < a->count; i++)
        for (int64_t h = 0; h < a->heads; h++) {
            real *x = (real *)a->x + i * a->stride + h * a->head_dim;
            for (int64_t d = 0; d < half; d++) {
                const double c = (double)((const real *)a->cosine)[a->positions[i] * half + d];
                const double angle_sine = (double)((const real *)a->sine)[a->positions[i] * half + d];
                const double s = a->inverse ? -angle_sine : angle_sine;
                const double x1 = (double)x[d], x2 = (double)x[d + half];
                x[d] = (real)(x1 * c - x2 * s);
                x[d + half] = (real)(x2 * c + x1 * s);
            }
        }
    return MOED_OK;
}

static double dot(const real *x, const real *y, int64_t count)
{
    double sum = 0;
    for (int64_t d = 0; d < count; d++) sum += (double)x[d] * (double)y[d];
    return sum;
}

/* Where head h of token i lies in q, k, v or their gradients. */
static int64_t place(const moed_op_attention *a, int64_t i, int64_t h)
{
    return i * a->stride + h * a->head_dim;
}

/* out and lse of one head of one token; scores: room for `length` numbers. */
static void attend(const moed_op_attention *a, int64_t i, int64_t h, double *scores)
{
    const int64_t group = a->heads / a->kv_heads, first = a->start[i];
    const real *q = (const real *)a->q + place(a, i, h);
    real *out = (real *)a->out + (i * a->heads + h) * a->head_dim;
    double highest = -INFINITY, total = 0;

    for (int64_t j = first; j <= i; j++) {
        scores[j - first] = a->scale * dot(q, (const real *)a->k + place(a, j, h / group), a->head_dim);
        highest = fmax(highest, scores[j - first]);
    }
    for (int64_t j = first; j <= i; j++) total += exp(scores[j - first] - highest);
    const double lse = highest + log(total);
    for (int64_t d = 0; d < a->head_dim; d++) {
        double sum = 0;
        for (int64_t j = first; j <= i; j++)
            sum += exp(scores[j - first] - lse) * (double)((const real *)a->v)[place(a, j, h / group) + d];
        out[d] = (real)sum;
    }
    ((real *)a->lse)[h * a->rows * a->length + i] = (real)lse;
}

MOEDI_REFERENCE(attention, attention)
{
    void *scores;
    moed_status status = moedi_cpu_scratch(self, (size_t)a->length * sizeof(double), &scores);
    if (status != MOED_OK) return status;

    for (int64_t i = 0; i < a->rows * a->length; i++)
        for (int64_t h = 0; h < a->heads; h++) attend(a, i, h, scores);
    return MOED_OK;
}

/* Adds what one query head of row `row` gives to d_k, d_v (length, head_dim; double), and sets its d_q.
 * With p the attention weights and s the scores: d_v = p d_out, d_s = p (d_out . v - d_out . out), d_q = scale d_s k, d_k = scale
 * d_s q. */
static void attend_backward(const moed_op_attention *a, int64_t row, int64_t h, double *d_k, double *d_v, double *d_q)
{
    const int64_t D = a->head_dim, kv = h / (a->heads / a->kv_heads), base = row * a->length;

    for (int64_t i = base; i < base + a->length; i++) {
        const real *q = (const real *)a->q + place(a, i, h);
        const real *out = (const real *)a->out + (i * a->heads + h) * D;
        const real *d_out = (const real *)a->d_out + (i * a->heads + h) * D;
        const double lse = (double)((const real *)a->lse)[h * a->rows * a->length + i];
        const double delta = dot(d_out, out, D);
        for (int64_t d = 0; d < D; d++) d_q[d] = 0;
        for (int64_t j = a->start[i]; j <= i; j++) {
            const real *k = (const real *)a->k + place(a, j, kv), *v = (const real *)a->v + place(a, j, kv);
            const double p = exp(a->scale * dot(q, k, D) - lse);
            const double d_s = p * (dot(d_out, v, D) - delta) * a->scale;
            for (int64_t d = 0; d < D; d++) {
                d_v[(j - base) * D + d] += p * (double)d_out[d];
                d_k[(j - base) * D + d] += d_s * (double)q[d];
                d_q[d] += d_s * (double)k[d];
            }
        }
        for (int64_t d = 0; d < D; d++) ((real *)a->d_q)[place(a, i, h) + d] = (real)d_q[d];
    }
}

MOEDI_REFERENCE(attention_backward, attention)
{
    const int64_t D = a->head_dim, group = a->heads / a->kv_heads, size = a->length * D;
    void *scratch;
    moed_status status = moedi_cpu_scratch(self, (size_t)(2 * size + D) * sizeof(double), &scratch);
    if (status != MOED_OK) return status;
    double *d_k = scratch, *d_v = d_k + size, *d_q = d_v + size;

    for (int64_t row = 0; row < a->rows; row++)
        for (int64_t kv = 0; kv < a->kv_heads; kv++) {
            for (int64_t x = 0; x < 2 * size; x++) d_k[x] = 0;
            for (int64_t h = kv * group; h < (kv + 1) * group; h++) attend_backward(a, row, h, d_k, d_v, d_q);
            for (int64_t j = 0; j < a->length; j++)
                for (int64_t d = 0; d < D; d++) {
                    ((real *)a->d_k)[place(a, row * a->length + j, kv) + d] = (real)d_k[j * D + d];
                    ((real *)a->d_v)[place(a, row * a->length + j, kv) + d] = (real)d_v[j * D + d];
                }
        }
    return MOED_OK;
}
