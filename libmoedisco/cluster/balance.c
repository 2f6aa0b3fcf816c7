/* cluster/balance.c - clusters of equal weight. From a plain fit, in rounds: distances to all centroids once; a
 * price per cluster, raised where it is too heavy and lowered where too light, until choosing the cheapest of
 * distance + price is nearly balanced (the dual of the transport problem); then single rows are moved, the
 * cheapest first, until the bound holds; then new centroids.
 *
 * The bound: every cluster within max(imbalance * mean, heaviest row) of the mean weight. It can always be met:
 * a cluster above it has a row that fits under the bound of one below the mean. Where single rows allow,
 * imbalance * mean is met. */
#include "balance.h"

#include <math.h>
#include <string.h>

#include "core/cancel.h"

enum { ROUNDS = 8, PRICE_STEPS = 80, LANES = 4 };
#define LEAST_STEP 0.1
#define MOST_STEP 1.5
#define WORTH_A_ROUND 0.005 /* relative gain in inertia */
#define ROUNDING 0x1p-21F   /* of a float number, with room for several of them */

typedef struct move {
    double regret; /* squared distance lost */
    int64_t row;
    int32_t to;
} move;

typedef struct balance {
    moedi_fit *fit;
    float *distance; /* (count, clusters) squared */
    double *price;   /* (clusters) in squared distance */
    double *step;    /* (clusters) of the price */
    float *charge;   /* (clusters) prices as rows pay them */
    double *change;  /* (clusters) of the price, in the last step */
    float *closing;  /* (clusters) how far a row's own cost may have come up to any other since the prices before, from above */
    float *slack;    /* (count) by how much every other cluster costs more than the chosen one, from below: costs are rounded,
                        and a row that is passed over must be one that would be chosen for the same cluster again */
    int chosen;      /* whether labels and slack belong to the prices before the last step */
    double *before;  /* (clusters) excess of the step before */
    double *weight;  /* (clusters) of f->labels */
    int64_t *count;  /* (clusters) */
    double *part;    /* (blocks, clusters) */
    move *moves;     /* (count) */
    double mean, heaviest;
    int32_t *best_labels;
} balance;

static moed_status balance_open(balance *b)
{
    const moedi_fit *f = b->fit;
    const moed_context *c = f->context;
    const size_t row = (size_t)f->count * sizeof *b->distance, all = (size_t)f->clusters * row;
    if ((size_t)f->clusters > SIZE_MAX / 2 / row)
        return moedi_fail(MOED_E_MEMORY, "all distances of %lld vectors to %lld centroids are more than a machine holds",
                          (long long)f->count, (long long)f->clusters);
    MOEDI_TRY(moedi_alloc(c, all + LANES * sizeof *b->distance, (void **)&b->distance)); /* clearing it would take long */
    memset((char *)b->distance + all, 0, LANES * sizeof *b->distance);
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->price));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->step));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters + LANES, &b->charge));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->change));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->closing));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &b->slack));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->before));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->weight));
    MOEDI_TRY(MOEDI_NEW(c, f->clusters, &b->count));
    MOEDI_TRY(moedi_alloc_array(c, moedi_blocks(f->count), (size_t)f->clusters * sizeof *b->part,
                                (void **)&b->part));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &b->moves));
    MOEDI_TRY(MOEDI_NEW(c, f->count, &b->best_labels));
    for (int64_t k = f->clusters; k < f->clusters + LANES; k++) b->charge[k] = INFINITY;
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
    void *const memory[] = {b->distance, b->price, b->step, b->charge, b->change, b->closing, b->slack, b->before, b->weight,
                            b->count,    b->part,  b->moves, b->best_labels};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) moedi_free(c, memory[i]);
}

/* ---- prices ---- */

/* Clusters side by side: compilers make no vectors of a search for the place of the lowest. */
typedef float floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t ints __attribute__((vector_size(LANES * sizeof(int32_t))));

static inline floats load(const float *from)
{
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}
static inline floats pick(ints first, floats a, floats b)
{
    return (floats)((first & (ints)a) | (~first & (ints)b));
}

/* The cluster that costs a row least, and by how much every other costs more, less what rounding may have added. Both arrays are
 * read past the clusters, to whole vectors; charges there are infinite. */
static int32_t cheapest(const float *distance, const float *charge, int64_t clusters, float *slack)
{
    floats lowest = load(distance) + load(charge), next = (floats){0} + INFINITY; /* of each lane */
    ints at = {0};
    for (int64_t k = LANES; k < clusters; k += LANES) {
        const floats cost = load(distance + k) + load(charge + k);
        const ints less = cost < lowest;
        const floats above = pick(less, lowest, cost);
        next = pick(above < next, above, next);
        at = (less & (int32_t)k) | (~less & at);
        lowest = pick(less, cost, lowest);
    }
    int best = 0; /* of equal ones the lower cluster */
    for (int l = 1; l < LANES; l++)
        if (lowest[l] < lowest[best] || (lowest[l] == lowest[best] && at[l] < at[best])) best = l;
    float other = next[best];
    for (int l = 0; l < LANES; l++)
        if (l != best && lowest[l] < other) other = lowest[l];
    *slack = other - lowest[best] - ROUNDING * (fabsf(other) + fabsf(lowest[best]));
    return at[best] + best;
}

static void choose_block(void *argument, int64_t block)
{
    const balance *b = argument;
    const moedi_fit *f = b->fit;
    const int64_t from = block * MOEDI_BLOCK, to = moedi_block_end(f->count, block);
    double *part = b->part + block * f->clusters;
    for (int64_t k = 0; k < f->clusters; k++) part[k] = 0;
    for (int64_t i = from; i < to; i++) {
        const float slack = b->chosen ? b->slack[i] - b->closing[f->labels[i]] : -1;
        b->slack[i] = slack;
        if (!(slack > 0)) f->labels[i] = cheapest(b->distance + i * f->clusters, b->charge, f->clusters, &b->slack[i]);
        part[f->labels[i]] += moedi_fit_weight(f, i);
    }
}

/* Labels by distance + price; worst is the largest excess over the mean, as a share of it. */
static moed_status choose(balance *b, double *worst)
{
    const moedi_fit *f = b->fit;
    const int64_t blocks = moedi_blocks(f->count);
    *worst = 0;
    MOEDI_TRY(moedi_fit_each_block(f, choose_block, b));
    for (int64_t k = 0; k < f->clusters; k++) {
        b->weight[k] = 0;
        for (int64_t block = 0; block < blocks; block++) b->weight[k] += b->part[block * f->clusters + k];
        const double away = fabs(b->weight[k] / b->mean - 1);
        if (away > *worst) *worst = away;
    }
    return MOED_OK;
}

/* From the last change: a row's own price rises, or another's falls. */
static void find_closing(balance *b)
{
    const int64_t clusters = b->fit->clusters;
    double fall = INFINITY, next_fall = INFINITY; /* the least change, and the least of the other clusters' */
    int64_t faller = -1;
    for (int64_t k = 0; k < clusters; k++) {
        if (b->change[k] < fall) next_fall = fall, fall = b->change[k], faller = k;
        else if (b->change[k] < next_fall) next_fall = b->change[k];
    }
    double most = 0; /* of the charges, which are rounded before and after */
    for (int64_t k = 0; k < clusters; k++) most = fmax(most, fmax(fabs(b->price[k]), fabs(b->price[k] - b->change[k])));
    for (int64_t k = 0; k < clusters; k++) {
        const double up = b->change[k] - (k == faller ? next_fall : fall);
        b->closing[k] = (float)(up + (fabs(up) + most) * (double)ROUNDING);
    }
    b->chosen = 1;
}

/* How many of the last change would have brought the excess to 0, were it a straight line: never far. */
static double secant(double before, double excess)
{
    if (before == excess) return MOST_STEP;
    const double share = fabs(excess / (before - excess));
    return share < LEAST_STEP ? LEAST_STEP : share < MOST_STEP ? share : MOST_STEP;
}

static moed_status set_prices(balance *b, double first_step)
{
    const moedi_fit *f = b->fit;
    for (int64_t k = 0; k < f->clusters; k++) b->step[k] = first_step, b->before[k] = 0;
    b->chosen = 0;
    for (int s = 0; s < PRICE_STEPS; s++) {
        double worst;
        for (int64_t k = 0; k < f->clusters; k++) b->charge[k] = (float)b->price[k];
        MOEDI_TRY(choose(b, &worst));
        if (worst <= f->options.imbalance) break;
        for (int64_t k = 0; k < f->clusters; k++) {
            const double excess = b->weight[k] / b->mean - 1;
            if (s > 0 && b->change[k] != 0) b->step[k] *= secant(b->before[k], excess);
            b->before[k] = excess;
            b->change[k] = fabs(excess) <= f->options.imbalance / 2 ? 0 : excess > 0 ? b->step[k] : -b->step[k];
            b->price[k] += b->change[k];
        }
        find_closing(b);
    }
    return MOED_OK;
}

/* ---- single rows ---- */

static int comes_first(const move *a, const move *b)
{
    return a->regret != b->regret ? a->regret < b->regret : a->row < b->row;
}

/* A heap of moves, the first one on top: a few of many are taken. */
static void sink(move *heap, int64_t count, int64_t at)
{
    const move m = heap[at];
    for (int64_t below; (below = 2 * at + 1) < count; at = below) {
        if (below + 1 < count && comes_first(&heap[below + 1], &heap[below])) below++;
        if (comes_first(&m, &heap[below])) break;
        heap[at] = heap[below];
    }
    heap[at] = m;
}

static moed_status make_heap(const balance *b, int64_t count)
{
    for (int64_t at = count / 2; at-- > 0;) {
        if (at % MOEDI_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(b->fit->cancel));
        sink(b->moves, count, at);
    }
    return MOED_OK;
}

static double distance_of(const balance *b, int64_t row, int64_t cluster)
{
    return (double)b->distance[row * b->fit->clusters + cluster];
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

static int64_t breaches(const balance *b, double low, double high)
{
    int64_t found = 0;
    for (int64_t k = 0; k < b->fit->clusters; k++) found += b->weight[k] > high || b->weight[k] < low;
    return found;
}

/* The moves that would help, as a heap. */
static moed_status list_moves(balance *b, double low, double high, int64_t *listed)
{
    const moedi_fit *f = b->fit;
    *listed = 0;
    for (int64_t i = 0; i < f->count; i++) {
        const double w = moedi_fit_weight(f, i);
        if (i % MOEDI_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
        const int32_t to = w > 0 ? best_target(b, i, w, low, high) : -1;
        if (to >= 0)
            b->moves[(*listed)++] = (move){distance_of(b, i, to) - distance_of(b, i, f->labels[i]), i, to};
    }
    return make_heap(b, *listed);
}

/* Moves rows until every weight is in [low, high] or no move is left. Each pass lists what would help and applies what
 * still does, the cheapest first. Every move shrinks a breach and makes none; a row finds its next best target in the
 * next pass, so passes are bounded by the clusters (and for weights too small to count in a sum). */
static moed_status move_rows(balance *b, double band)
{
    const moedi_fit *f = b->fit;
    const double low = b->mean - band, high = b->mean + band;
    int64_t applied = 1, left = breaches(b, low, high), listed;
    for (int64_t pass = 0; pass < 16 + 4 * f->clusters && applied > 0 && left > 0; pass++) {
        MOEDI_TRY(list_moves(b, low, high, &listed));
        for (applied = 0; listed > 0 && left > 0;) {
            const move m = b->moves[0];
            const int64_t from = f->labels[m.row];
            const double w = moedi_fit_weight(f, m.row);
            b->moves[0] = b->moves[--listed];
            if (listed) sink(b->moves, listed, 0);
            if (listed % MOEDI_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
            if (!may_move(b, w, from, m.to, low, high)) continue;
            f->labels[m.row] = m.to;
            b->weight[from] -= w, b->weight[m.to] += w;
            b->count[from]--, b->count[m.to]++;
            applied++, left = breaches(b, low, high);
        }
    }
    return MOED_OK;
}

/* A cluster without weight takes the row that lies nearest to it of those that leave another behind. Only where
 * single rows outweigh a whole share can there be one. */
static moed_status fill_clusters(balance *b)
{
    moedi_fit *f = b->fit;
    for (int64_t k = 0; k < f->clusters; k++) {
        int64_t row = -1;
        if (b->weight[k] > 0) continue;
        for (int64_t i = 0; i < f->count; i++) {
            const double w = moedi_fit_weight(f, i);
            if (i % MOEDI_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
            if (w > 0 && b->weight[f->labels[i]] > w && b->count[f->labels[i]] > 1 &&
                (row < 0 || distance_of(b, i, k) < distance_of(b, row, k)))
                row = i;
        }
        if (row < 0) return MOED_OK;
        b->weight[f->labels[row]] -= moedi_fit_weight(f, row), b->count[f->labels[row]]--;
        f->labels[row] = (int32_t)k;
        b->weight[k] += moedi_fit_weight(f, row), b->count[k]++;
    }
    return MOED_OK;
}

/* ---- rounds ---- */

/* The inertia once each centroid is its rows' mean. Then they are nearer by the square of its way, so that their costs stay
 * what they were, on average, when its price grows by as much. */
static moed_status move_centroids(balance *b, double *inertia)
{
    moedi_fit *f = b->fit;
    *inertia = 0;
    for (int64_t i = 0; i < f->count; i++) *inertia += moedi_fit_weight(f, i) * distance_of(b, i, f->labels[i]);
    MOEDI_TRY(moedi_fit_centre(f));
    for (int64_t k = 0; k < f->clusters; k++) {
        const double nearer = (double)f->moved[k] * (double)f->moved[k];
        *inertia -= f->totals[k] * nearer;
        b->price[k] += nearer;
    }
    return MOED_OK;
}

static moed_status one_round(balance *b, double first_step, double *inertia)
{
    moedi_fit *f = b->fit;
    const double tight = f->options.imbalance * b->mean, sure = tight > b->heaviest ? tight : b->heaviest;
    MOEDI_TRY(moedi_lloyd_distances(&f->lloyd, f->centroids, f->clusters, b->distance, f->clusters, 1));
    MOEDI_TRY(set_prices(b, first_step));
    weigh(b);
    MOEDI_TRY(move_rows(b, tight));
    if (sure > tight) MOEDI_TRY(move_rows(b, sure));
    MOEDI_TRY(fill_clusters(b));
    return move_centroids(b, inertia);
}

/* Rounds until they gain little. The labels of the best are kept: its centroids are theirs. */
moed_status moedi_fit_balance(moedi_fit *f)
{
    balance b = {.fit = f};
    double best = INFINITY, inertia = INFINITY;
    moed_status status;
    const size_t labels = (size_t)f->count * sizeof *f->labels;
    MOEDI_GO(balance_open(&b));
    /* steps in proportion to what separates rows from centroids; any number where nothing does */
    const double scale = f->inertia > 0 ? f->inertia / (b.mean * (double)f->clusters) : 1;
    for (int round = 0; round < ROUNDS; round++) {
        const double before = best;
        MOEDI_GO(one_round(&b, round ? 0.005 * scale : 0.05 * scale, &inertia));
        f->iterations++;
        if (inertia < best) best = inertia, memcpy(b.best_labels, f->labels, labels);
        if (!(inertia < before * (1 - WORTH_A_ROUND))) break;
    }
    if (best < inertia) {
        memcpy(f->labels, b.best_labels, labels);
        MOEDI_GO(moedi_fit_centre(f));
    }
    MOEDI_GO(moedi_fit_measure(f));
out:
    balance_close(&b);
    return status;
}
