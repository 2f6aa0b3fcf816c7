/* backend/cpu/reference/loss.c - the output head and its cross-entropy. */
#include "reference.h"

static double logit(const moed_op_cross_entropy *a, int64_t i, int64_t word)
{
    const real *h = (const real *)a->h + i * a->width, *head = (const real *)a->head + word * a->width;
    double sum = 0;
    for (int64_t d = 0; d < a->width; d++) sum += (double)h[d] * (double)head[d];
    return sum;
}

/* Gradients of one row from its probabilities p (vocabulary): d_logits = weight (p - onehot(label)). */
static void row_backward(const moed_op_cross_entropy *a, int64_t i, const double *p, double factor)
{
    const real *h = (const real *)a->h + i * a->width, *head = a->head;
    real *d_h = (real *)a->d_h + i * a->width, *d_head = a->d_head;

    for (int64_t d = 0; d < a->width; d++) {
        double sum = 0;
        for (int64_t w = 0; w < a->vocabulary; w++) {
            const double d_logit = factor * (p[w] - (w == a->labels[i] ? 1.0 : 0.0));
            sum += d_logit * (double)head[w * a->width + d];
            if (d_head) d_head[w * a->width + d] = (real)((double)d_head[w * a->width + d] + d_logit * (double)h[d]);
        }
        d_h[d] = (real)sum;
    }
}

MOEDI_REFERENCE(cross_entropy, cross_entropy)
{
    real *losses = a->losses;
    void *scratch;
    moed_status status = moedi_cpu_scratch(self, (size_t)a->vocabulary * sizeof(double), &scratch);
    if (status != MOED_OK) return status;
    double *p = scratch;

    for (int64_t i = 0; i < a->rows; i++) {
        const int64_t label = a->labels[i];
        const double weight = a->weights ? (double)a->weights[i] : 1.0;
        double highest = -INFINITY, total = 0;
        if (label < 0) {
            losses[i] = 0;
            for (int64_t d = 0; a->d_h && d < a->width; d++) ((real *)a->d_h)[i * a->width + d] = 0;
            continue;
        }
        for (int64_t w = 0; w < a->vocabulary; w++) {
            p[w] = logit(a, i, w);
            highest = fmax(highest, p[w]);
        }
        for (int64_t w = 0; w < a->vocabulary; w++) total += exp(p[w] - highest);
        const double lse = highest + log(total);
        losses[i] = (real)(weight * (lse - p[label]));
        if (!a->d_h) continue;
        for (int64_t w = 0; w < a->vocabulary; w++) p[w] = exp(p[w] - lse);
        row_backward(a, i, p, weight * a->scale);
    }
    return MOED_OK;
}
