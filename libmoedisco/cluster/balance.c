/* cluster/balance.c - clusters of equal weight. From a plain fit, in rounds: distances to all centroids once; a
 * price per cluster, raised where it is too heavy and lowered where too light, until choosing the cheapest of
 * distance + price is nearly balanced (the dual of the transport problem); then single rows are moved, the
 * cheapest first, until the bound holds; then new centroids.
 *
 * The bound: every cluster within max(imbalance * mean, heaviest row) of the mean weight. It can always be met:
 * a cluster above it has a row that fits under the bound of one below the mean. Where single rows allow,
 * imbalance * mean is met. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/cancel.h"
#include "kmeans.h"

enum { ROUNDS = 8, PRICE_STEPS = 80 };
#define WORTH_A_ROUND 0.003 /* relative gain in inertia */

typedef struct move {
    double regret; /* squared distance lost */
    int64_t row;
    int32_t to;
} move;

typedef struct balance {
    moedi_fit *fit;
    float *distance; /* (clusters, count) squared */
    double *price;   /* (clusters) in squared distance */
    double *step;    /* (clusters) of the price */
    double *change;  /* (clusters) of the price, in the last step */
    float *slack;    /* (count) by how much every other cluster costs more than the chosen one, from below */
    int chosen;      /* whether labels and slack belong to the prices before the last step */
    int32_t faller;  /* the cluster whose price has changed by `fall`, the least; next_fall: of the others */
    double fall, next_fall;
    double *before;  /* (clusters) excess of the step before */
    double *weight;  /* (clusters) of f->labels */
    int64_t *count;  /* (clusters) */
    double *part;    /* (blocks, clusters) */
    move *moves;     /* (count) */
    double mean, heaviest;
    int32_t *best_labels;
    float *best_centroids;
    double best_inertia;
} balance;

static moed_status balance_open(balance *b)
{
    const moedi_fit *f = b->fit;
    const moed_context *c = f->context;
    const size_t row = (size_t)f->count * sizeof *b->distance;
    if ((size_t)f->clusters > SIZE_MAX / 2 / row)
        return moedi_fail(MOED_E_MEMORY, "all distances of %lld vectors to %lld centroids are more than a machine holds",
                          (long long)f->count, (long long)f->clusters);
    MOEDI_TRY(moedi_alloc(c, (size_t)f->clusters * row, (void **)&b->distance)); /* clearing it would take long */
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->price));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->step));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->change));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &b->slack));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->before));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->weight));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->count));
    MOEDI_TRY(moedi_alloc_array(c, moedi_kmeans_blocks(f->count), (size_t)f->clusters * sizeof *b->part,
                                (void **)&b->part));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &b->moves));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &b->best_labels));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters * f->width, &b->best_centroids));
    for (int64_t i = 0; i < f->count; i++) {
        const double w = moedi_fit_weight(f, i);
        b->mean += w;
        if (w > b->heaviest) b->heaviest = w;
    }
    b->mean /= (double)f->clusters;
    return MOED_OK;
}

static void balance_close(balance *b)
{
    const moed_context *c = b->fit->context;
    void *const memory[] = {b->distance, b->price, b->step, b->change, b->slack, b->before, b->weight,
                            b->count,    b->part,  b->moves, b->best_labels, b->best_centroids};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) moedi_free(c, memory[i]);
}

/* ---- prices ---- */

/* How far a row's own cost may have come up to that of any other cluster since the prices before. */
static double closing(const balance *b, int32_t label)
{
    return b->change[label] - (label == b->faller ? b->next_fall : b->fall);
}

static void choose_block(void *argument, int64_t block)
{
    const balance *b = argument;
    const moedi_fit *f = b->fit;
    const int64_t from = block * MOEDI_KMEANS_BLOCK, most = from + MOEDI_KMEANS_BLOCK,
                  to = most < f->count ? most : f->count;
    double *part = b->part + block * f->clusters;
    float lowest[MOEDI_KMEANS_BLOCK], next[MOEDI_KMEANS_BLOCK];
    int32_t open[MOEDI_KMEANS_BLOCK], opened = 0, *labels = f->labels + from;
    for (int64_t i = from; i < to; i++) {
        b->slack[i] = b->chosen ? b->slack[i] - (float)closing(b, f->labels[i]) : -1;
        open[opened] = (int32_t)(i - from);
        opened += !(b->slack[i] > 0);
    }
    for (int32_t j = 0; j < opened; j++) lowest[j] = next[j] = INFINITY;
    for (int64_t k = 0; k < f->clusters; k++) {
        const float *distance = b->distance + k * f->count + from, price = (float)b->price[k];
        part[k] = 0;
        for (int32_t j = 0; j < opened; j++) {
            const float cost = distance[open[j]] + price, low = lowest[j], above = cost > low ? cost : low;
            next[j] = above < next[j] ? above : next[j];
            labels[open[j]] = cost < low ? (int32_t)k : labels[open[j]];
            lowest[j] = cost < low ? cost : low;
        }
    }
    for (int32_t j = 0; j < opened; j++) b->slack[from + open[j]] = next[j] - lowest[j];
    for (int64_t i = from; i < to; i++) part[f->labels[i]] += moedi_fit_weight(f, i);
}

/* Labels by distance + price; worst is the largest excess over the mean, as a share of it. */
static moed_status choose(balance *b, double *worst)
{
    const moedi_fit *f = b->fit;
    const int64_t blocks = moedi_kmeans_blocks(f->count);
    *worst = 0;
    MOEDI_TRY(moedi_kmeans_each_block(f, choose_block, b));
    for (int64_t k = 0; k < f->clusters; k++) {
        b->weight[k] = 0;
        for (int64_t block = 0; block < blocks; block++) b->weight[k] += b->part[block * f->clusters + k];
        const double away = fabs(b->weight[k] / b->mean - 1);
        if (away > *worst) *worst = away;
    }
    return MOED_OK;
}

static void find_falls(balance *b)
{
    b->chosen = 1;
    b->fall = b->next_fall = INFINITY;
    for (int32_t k = 0; k < b->fit->clusters; k++) {
        if (b->change[k] < b->fall) b->next_fall = b->fall, b->fall = b->change[k], b->faller = k;
        else if (b->change[k] < b->next_fall) b->next_fall = b->change[k];
    }
}

/* A price's step grows while its cluster stays on one side of the mean and shrinks when it has crossed: no
 * scale has to be known. */
static moed_status set_prices(balance *b, double first_step)
{
    const moedi_fit *f = b->fit;
    for (int64_t k = 0; k < f->clusters; k++) b->step[k] = first_step, b->before[k] = 0;
    b->chosen = 0;
    for (int s = 0; s < PRICE_STEPS; s++) {
        double worst;
        MOEDI_TRY(choose(b, &worst));
        if (worst <= f->options.imbalance) break;
        for (int64_t k = 0; k < f->clusters; k++) {
            const double excess = b->weight[k] / b->mean - 1;
            if (excess * b->before[k] > 0) b->step[k] *= 1.3;
            if (excess * b->before[k] < 0) b->step[k] *= 0.4;
            b->before[k] = excess;
            b->change[k] = fabs(excess) <= f->options.imbalance / 2 ? 0 : excess > 0 ? b->step[k] : -b->step[k];
            b->price[k] += b->change[k];
        }
        find_falls(b);
    }
    return MOED_OK;
}

/* ---- single rows ---- */

static int by_regret(const void *left, const void *right)
{
    const move *a = left, *b = right;
    if (a->regret != b->regret) return a->regret < b->regret ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

static double distance_of(const balance *b, int64_t row, int64_t cluster)
{
    return (double)b->distance[cluster * b->fit->count + row];
}

static void weigh(balance *b)
{
    const moedi_fit *f = b->fit;
    for (int64_t k = 0; k < f->clusters; k++) b->weight[k] = 0, b->count[k] = 0;
    for (int64_t i = 0; i < f->count; i++)
        b->weight[f->labels[i]] += moedi_fit_weight(f, i), b->count[f->labels[i]]++;
}

/* Whether a row may go: it leaves a cluster above the band or helps one below it, and makes no new breach. */
static int may_move(const balance *b, double w, int64_t from, int64_t to, double low, double high)
{
    if (from == to || b->count[from] < 2) return 0;
    if (b->weight[from] <= high && b->weight[to] >= low) return 0;
    return b->weight[from] - w >= low && b->weight[to] + w <= high;
}

/* The cheapest place that a row may go to, or -1. */
static int32_t best_target(const balance *b, int64_t row, double w, double low, double high)
{
    const moedi_fit *f = b->fit;
    int32_t to = -1;
    for (int32_t k = 0; k < f->clusters; k++)
        if (may_move(b, w, f->labels[row], k, low, high) &&
            (to < 0 || distance_of(b, row, k) < distance_of(b, row, to)))
            to = k;
    return to;
}

/* Moves rows until every weight is in [low, high] or no move is left. Each pass lists what would help, cheapest
 * per weight first, and applies what still does. Every move shrinks a breach and makes none; a row finds its
 * next best target in the next pass, so passes are bounded by the clusters (and for weights too small to count
 * in a sum). */
static moed_status move_rows(balance *b, double band)
{
    const moedi_fit *f = b->fit;
    const double low = b->mean - band, high = b->mean + band;
    int64_t applied = 1;
    for (int64_t pass = 0; pass < 16 + 4 * f->clusters && applied > 0; pass++) {
        int64_t listed = 0, breaches = 0;
        applied = 0;
        for (int64_t k = 0; k < f->clusters; k++) breaches += b->weight[k] > high || b->weight[k] < low;
        if (!breaches) return MOED_OK;
        for (int64_t i = 0; i < f->count; i++) {
            const double w = moedi_fit_weight(f, i);
            if (i % MOEDI_KMEANS_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
            const int32_t to = w > 0 ? best_target(b, i, w, low, high) : -1;
            if (to >= 0)
                b->moves[listed++] = (move){distance_of(b, i, to) - distance_of(b, i, f->labels[i]), i, to};
        }
        qsort(b->moves, (size_t)listed, sizeof *b->moves, by_regret);
        for (int64_t m = 0; m < listed; m++) {
            const int64_t row = b->moves[m].row, from = f->labels[row], to = b->moves[m].to;
            const double w = moedi_fit_weight(f, row);
            if (!may_move(b, w, from, to, low, high)) continue;
            f->labels[row] = (int32_t)to;
            b->weight[from] -= w, b->weight[to] += w;
            b->count[from]--, b->count[to]++;
            applied++;
        }
    }
    return MOED_OK;
}

/* A cluster without weight takes the row that lies nearest to it of those that leave another behind. Only where
 * single rows outweigh a whole share can there be one. */
static void fill_clusters(balance *b)
{
    moedi_fit *f = b->fit;
    for (int64_t k = 0; k < f->clusters; k++) {
        int64_t row = -1;
        if (b->weight[k] > 0) continue;
        for (int64_t i = 0; i < f->count; i++) {
            const double w = moedi_fit_weight(f, i);
            if (w > 0 && b->weight[f->labels[i]] > w && b->count[f->labels[i]] > 1 &&
                (row < 0 || distance_of(b, i, k) < distance_of(b, row, k)))
                row = i;
        }
        if (row < 0) return;
        b->weight[f->labels[row]] -= moedi_fit_weight(f, row), b->count[f->labels[row]]--;
        f->labels[row] = (int32_t)k;
        b->weight[k] += moedi_fit_weight(f, row), b->count[k]++;
    }
}

/* ---- rounds ---- */

static moed_status one_round(balance *b, double first_step)
{
    moedi_fit *f = b->fit;
    const double tight = f->options.imbalance * b->mean, sure = tight > b->heaviest ? tight : b->heaviest;
    MOEDI_TRY(moedi_lloyd_distances(&f->lloyd, f->centroids, f->clusters, b->distance));
    MOEDI_TRY(set_prices(b, first_step));
    weigh(b);
    MOEDI_TRY(move_rows(b, tight));
    if (sure > tight) MOEDI_TRY(move_rows(b, sure));
    fill_clusters(b);
    return moedi_kmeans_centre(f);
}

moed_status moedi_kmeans_balance(moedi_fit *f)
{
    balance b = {.fit = f, .best_inertia = INFINITY};
    moed_status status;
    const size_t labels = (size_t)f->count * sizeof *f->labels,
                 centroids = (size_t)(f->clusters * f->width) * sizeof *f->centroids;
    MOEDI_GO(balance_open(&b));
    /* steps in proportion to what separates rows from centroids; any number where nothing does */
    const double scale = f->inertia > 0 ? f->inertia / (b.mean * (double)f->clusters) : 1;
    for (int round = 0; round < ROUNDS; round++) {
        const double before = b.best_inertia;
        MOEDI_GO(one_round(&b, round ? 0.005 * scale : 0.05 * scale));
        f->iterations++;
        if (f->inertia < b.best_inertia) {
            b.best_inertia = f->inertia;
            memcpy(b.best_labels, f->labels, labels);
            memcpy(b.best_centroids, f->centroids, centroids);
        }
        if (!(f->inertia < before * (1 - WORTH_A_ROUND))) break;
    }
    memcpy(f->labels, b.best_labels, labels);
    memcpy(f->centroids, b.best_centroids, centroids);
    MOEDI_GO(moedi_lloyd_accumulate(&f->lloyd, f->labels, f->sums, f->totals, f->counts));
    f->inertia = b.best_inertia;
out:
    balance_close(&b);
    return status;
}
