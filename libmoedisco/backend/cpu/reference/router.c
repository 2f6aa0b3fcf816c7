/* backend/cpu/reference/router.c - which experts a token goes to, and the way there and back. */
#include "reference.h"

/* ids = the top_k highest of p, the lower index first among equals; always valid and distinct, even where p is not a number. */
static void choose(int32_t *ids, const real *p, int64_t experts, int64_t top_k)
{
    for (int64_t j = 0; j < top_k; j++) {
        int64_t best = -1;
        for (int64_t e = 0; e < experts; e++) {
            int taken = 0;
            for (int64_t before = 0; before < j; before++) taken |= ids[before] == e;
            if (!taken && (best < 0 || p[e] > p[best])) best = e;
        }
        ids[j] = (int32_t)best;
    }
}

/* The two losses, without coefficients: experts * sum_e f_e P_e, and mean lse^2. */
static void auxiliary_losses(const moed_op_router *a)
{
    const real *probabilities = a->probabilities, *lse = a->lse;
    real *losses = a->losses;
    double balance = 0, z = 0;

    for (int64_t e = 0; e < a->experts; e++) {
        int64_t chosen = 0;
        double probability = 0;
        for (int64_t c = 0; c < a->rows * a->top_k; c++) chosen += a->ids[c] == e;
        for (int64_t i = 0; i < a->rows; i++) probability += (double)probabilities[i * a->experts + e];
        balance += (double)chosen / (double)(a->rows * a->top_k) * (probability / (double)a->rows);
    }
    for (int64_t i = 0; i < a->rows; i++) z += (double)lse[i] * (double)lse[i];
    losses[0] = (real)((double)losses[0] + (double)a->experts * balance * a->loss_scale);
    losses[1] = (real)((double)losses[1] + z / (double)a->rows * a->loss_scale);
}

MOEDI_REFERENCE(router, router)
{
    (void)self;
    for (int64_t i = 0; i < a->rows; i++) {
        const real *logits = (const real *)a->logits + i * a->experts;
        real *p = (real *)a->probabilities + i * a->experts, *weights = (real *)a->weights + i * a->top_k;
        int32_t *ids = a->ids + i * a->top_k;
        double highest = -INFINITY, total = 0, chosen = 0;

        for (int64_t e = 0; e < a->experts; e++) highest = fmax(highest, (double)logits[e]);
        for (int64_t e = 0; e < a->experts; e++) total += exp((double)logits[e] - highest);
        for (int64_t e = 0; e < a->experts; e++) p[e] = (real)(exp((double)logits[e] - highest) / total);
        ((real *)a->lse)[i] = (real)(highest + log(total));

        if (!a->replay) choose(ids, p, a->experts, a->top_k);
        for (int64_t j = 0; j < a->top_k; j++) chosen += (double)p[ids[j]];
        for (int64_t j = 0; j < a->top_k; j++) weights[j] = (real)((double)p[ids[j]] / (a->normalise ? chosen : 1.0));
    }
    if (a->losses && a->rows > 0) auxiliary_losses(a);
    return MOED_OK;
}

/* d_probability of expert e of row i that comes through the chosen weights: w_j = p_j / s with s the sum of the chosen when
 * normalised, so d_p_j = (d_w_j - sum_l d_w_l w_l) / s. */
static double through_weights(const moed_op_router *a, int64_t i, int64_t e)
{
    const real *p = (const real *)a->probabilities + i * a->experts;
    const real *d_weights = (const real *)a->d_weights + i * a->top_k;
    const int32_t *ids = a->ids + i * a->top_k;
    double chosen = 0, shared = 0, own = 0;
    int taken = 0;

    for (int64_t j = 0; j < a->top_k; j++) {
        chosen += (double)p[ids[j]];
        if (ids[j] == e) own = (double)d_weights[j], taken = 1;
    }
    if (!taken || !a->normalise) return own;
    for (int64_t j = 0; j < a->top_k; j++) shared += (double)d_weights[j] * (double)p[ids[j]] / chosen;
    return (own - shared) / chosen;
}

/* With d_p of all experts: d_logits = p (d_p - sum p d_p), plus the gradient of mean lse^2, which is 2 lse p / rows. */
MOEDI_REFERENCE(router_backward, router)
{
    const int64_t E = a->experts;
    void *scratch;
    moed_status status = moedi_cpu_scratch(self, (size_t)(2 * E) * sizeof(double), &scratch);
    if (status != MOED_OK) return status;
    double *balance = scratch, *d_p = balance + E;

    for (int64_t e = 0; e < E; e++) {
        int64_t chosen = 0;
        for (int64_t c = 0; c < a->rows * a->top_k; c++) chosen += a->ids[c] == e;
        const double share = (double)chosen / (double)(a->rows * a->top_k);
        balance[e] = a->load_balance * a->loss_scale * (double)E * share / (double)a->rows;
    }
    for (int64_t i = 0; i < a->rows; i++) {
        const real *p = (const real *)a->probabilities + i * E;
        const double z = a->z_loss * a->loss_scale * 2.0 * (double)((const real *)a->lse)[i] / (double)a->rows;
        double mean = 0;
        for (int64_t e = 0; e < E; e++) {
            d_p[e] = through_weights(a, i, e) + balance[e];
            mean += (double)p[e] * d_p[e];
        }
        for (int64_t e = 0; e < E; e++) ((real *)a->d_logits)[i * E + e] = (real)((double)p[e] * (d_p[e] - mean + z));
    }
    return MOED_OK;
}

MOEDI_REFERENCE(dispatch, dispatch)
{
    int64_t place = 0;
    (void)self;

    for (int64_t e = 0; e < a->experts; e++) {
        a->offsets[e] = place;
        for (int64_t c = 0; c < a->rows * a->top_k; c++)
            if (a->ids[c] == e) {
                a->slot[c] = (int32_t)place;
                a->source[place++] = (int32_t)(c / a->top_k);
            }
    }
    a->offsets[a->experts] = place;
    return MOED_OK;
}

MOEDI_REFERENCE(gather, gather)
{
    const real *x = a->x;
    real *out = a->out;
    (void)self;

    for (int64_t s = 0; s < a->rows * a->top_k; s++)
        for (int64_t d = 0; d < a->width; d++) out[s * a->width + d] = x[a->source[s] * a->width + d];
    return MOED_OK;
}

MOEDI_REFERENCE(gather_backward, gather)
{
    const real *d_out = a->d_out;
    real *d_x = a->d_x;
    (void)self;

    for (int64_t i = 0; i < a->rows; i++)
        for (int64_t d = 0; d < a->width; d++) {
            double sum = 0;
            for (int64_t j = 0; j < a->top_k; j++) sum += (double)d_out[a->slot[i * a->top_k + j] * a->width + d];
            d_x[i * a->width + d] = (real)((double)d_x[i * a->width + d] + sum);
        }
    return MOED_OK;
}

MOEDI_REFERENCE(combine, combine)
{
    const real *y = a->y, *weights = a->weights, *addend = a->addend ? a->addend : a->out;
    real *out = a->out;
    (void)self;

    for (int64_t i = 0; i < a->rows; i++)
        for (int64_t d = 0; d < a->width; d++) {
            double sum = 0;
            for (int64_t j = 0; j < a->top_k; j++)
                sum += (double)weights[i * a->top_k + j] * (double)y[a->slot[i * a->top_k + j] * a->width + d];
            out[i * a->width + d] = (real)((double)addend[i * a->width + d] + sum);
        }
    return MOED_OK;
}

MOEDI_REFERENCE(combine_backward, combine)
{
    const real *y = a->y, *weights = a->weights, *d_out = a->d_out;
    real *d_y = a->d_y, *d_weights = a->d_weights;
    (void)self;

    for (int64_t c = 0; c < a->rows * a->top_k; c++) {
        const int64_t i = c / a->top_k, s = a->slot[c];
        double sum = 0;
        for (int64_t d = 0; d < a->width; d++) {
            sum += (double)d_out[i * a->width + d] * (double)y[s * a->width + d];
            d_y[s * a->width + d] = (real)((double)weights[c] * (double)d_out[i * a->width + d]);
        }
        d_weights[c] = (real)sum;
    }
    return MOED_OK;
}
