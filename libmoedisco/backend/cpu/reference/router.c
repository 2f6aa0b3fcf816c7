/* backend/cpu/reference/router.c - which experts a token goes to, and the way there and back. */
#include "reference.h"

#include "backend/balance.h"

/* What the choice is made by. */
static double preference(const moed_op_router *a, const real *scores, int64_t e)
{
    return (double)scores[e] + (a->bias ? (double)((const real *)a->bias)[e] : 0.0);
}

/* The top_k most preferred, the lower index first among equals; always valid and distinct, even where scores are not numbers. */
static void choose(const moed_op_router *a, int32_t *ids, const real *scores)
{
    for (int64_t j = 0; j < a->top_k; j++) {
        int64_t best = -1;
        for (int64_t e = 0; e < a->experts; e++) {
            int taken = 0;
            for (int64_t before = 0; before < j; before++) taken |= ids[before] == e;
            if (!taken && (best < 0 || preference(a, scores, e) > preference(a, scores, best))) best = e;
        }
        ids[j] = (int32_t)best;
    }
}

/* Of a row's scores: 1 but for rounding where they are probabilities. */
static double sum_of(const moed_op_router *a, const real *scores)
{
    double sum = 0;
    for (int64_t e = 0; e < a->experts; e++) sum += (double)scores[e];
    return a->score == MOED_SCORE_SIGMOID ? sum : 1.0;
}

/* What a chosen score is multiplied with to be a weight. */
static double factor_of(const moed_op_router *a, const real *scores, const int32_t *ids)
{
    double chosen = 0;
    for (int64_t j = 0; j < a->top_k; j++) chosen += (double)scores[ids[j]];
    return (a->weight_scale ? a->weight_scale : 1.0) / (a->normalise ? chosen : 1.0);
}

/* The two losses, without coefficients: experts * sum_e f_e P_e, and mean lse^2. */
static void auxiliary_losses(const moed_op_router *a)
{
    const real *scores = a->probabilities, *lse = a->lse;
    real *losses = a->losses;
    double balance = 0, z = 0;

    for (int64_t e = 0; e < a->experts; e++) {
        int64_t chosen = 0;
        double share = 0;
        for (int64_t c = 0; c < a->rows * a->top_k; c++) chosen += a->ids[c] == e;
        for (int64_t i = 0; i < a->rows; i++) share += (double)scores[i * a->experts + e] / sum_of(a, scores + i * a->experts);
        balance += (double)chosen / (double)(a->rows * a->top_k) * (share / (double)a->rows);
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
        real *scores = (real *)a->probabilities + i * a->experts, *weights = (real *)a->weights + i * a->top_k;
        int32_t *ids = a->ids + i * a->top_k;
        double highest = -INFINITY, total = 0;

        for (int64_t e = 0; e < a->experts; e++) highest = fmax(highest, (double)logits[e]);
        for (int64_t e = 0; e < a->experts; e++) total += exp((double)logits[e] - highest);
        for (int64_t e = 0; e < a->experts; e++)
            scores[e] = (real)(a->score == MOED_SCORE_SIGMOID ? 1.0 / (1.0 + exp(-(double)logits[e]))
                                                              : exp((double)logits[e] - highest) / total);
        ((real *)a->lse)[i] = (real)(highest + log(total));

        if (!a->replay) choose(a, ids, scores);
        const double factor = factor_of(a, scores, ids);
        for (int64_t j = 0; j < a->top_k; j++) weights[j] = (real)((double)scores[ids[j]] * factor);
    }
    if (a->losses && a->rows > 0) auxiliary_losses(a);
    return MOED_OK;
}

/* d_score of expert e of row i that comes through the chosen weights: w_j = f s_j, so d_s_j = f d_w_j; when normalised f is the
 * scale over the sum of the chosen scores, and d_s_j = f (d_w_j - sum_l d_w_l s_l / sum). */
static double through_weights(const moed_op_router *a, int64_t i, int64_t e)
{
    const real *scores = (const real *)a->probabilities + i * a->experts;
    const real *d_weights = (const real *)a->d_weights + i * a->top_k;
    const int32_t *ids = a->ids + i * a->top_k;
    double chosen = 0, shared = 0, own = 0;
    int taken = 0;

    for (int64_t j = 0; j < a->top_k; j++) {
        chosen += (double)scores[ids[j]];
        if (ids[j] == e) own = (double)d_weights[j], taken = 1;
    }
    if (!taken) return 0;
    for (int64_t j = 0; j < a->top_k && a->normalise; j++) shared += (double)d_weights[j] * (double)scores[ids[j]] / chosen;
    return factor_of(a, scores, ids) * (own - shared);
}

/* With d_s of all experts through the weights, and b_e of the load balance by the share q_e = s_e / sum s:
 *   softmax: s = q, d_logits = s (d - sum s d) with d = d_s + b;
 *   sigmoid: d = d_s + (b - sum q b) / sum s, d_logits = s (1 - s) d;
 * and of mean lse^2: 2 lse softmax / rows. */
MOEDI_REFERENCE(router_backward, router)
{
    const int64_t E = a->experts;
    const int sigmoid = a->score == MOED_SCORE_SIGMOID;
    void *scratch;
    moed_status status = moedi_cpu_scratch(self, (size_t)(2 * E) * sizeof(double), &scratch);
    if (status != MOED_OK) return status;
    double *balance = scratch, *d_s = balance + E;

    for (int64_t e = 0; e < E; e++) {
        int64_t chosen = 0;
        for (int64_t c = 0; c < a->rows * a->top_k; c++) chosen += a->ids[c] == e;
        const double share = (double)chosen / (double)(a->rows * a->top_k);
        balance[e] = a->load_balance * a->loss_scale * (double)E * share / (double)a->rows;
    }
    for (int64_t i = 0; i < a->rows; i++) {
        const real *scores = (const real *)a->probabilities + i * E, *logits = (const real *)a->logits + i * E;
        const double lse = (double)((const real *)a->lse)[i], z = a->z_loss * a->loss_scale * 2.0 * lse / (double)a->rows;
        const double sum = sum_of(a, scores);
        double mean = 0; /* of b by q, with softmax of all d */
        for (int64_t e = 0; e < E; e++) {
            d_s[e] = through_weights(a, i, e);
            mean += (double)scores[e] / sum * (balance[e] + (sigmoid ? 0.0 : d_s[e]));
        }
        for (int64_t e = 0; e < E; e++) {
            const double s = (double)scores[e], d = d_s[e] + (balance[e] - mean) / sum;
            ((real *)a->d_logits)[i * E + e] =
                (real)(sigmoid ? s * (1.0 - s) * d + z * exp((double)logits[e] - lse) : s * (d + z));
        }
    }
    return MOED_OK;
}

MOEDI_REFERENCE(balance, balance)
{
    const int64_t total = a->offsets[a->experts] - a->offsets[0];
    const double rate = a->scalars->balance_rate * a->share;
    real *bias = a->bias;
    (void)self;

    for (int64_t e = 0; e < a->experts; e++) {
        const int64_t own = (a->offsets[e + 1] - a->offsets[e]) * a->experts;
        bias[e] = (real)((double)bias[e] + rate * moedi_balance_way(own, total, a->band));
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
