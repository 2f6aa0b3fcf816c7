/* cluster/starts.c - where a fit begins.
 *
 * k-means++ (Arthur and Vassilvitskii, 2007) with greedy trials: of a few candidates drawn by squared distance, the
 * one that lowers the total most becomes the next centroid; the candidates of a centroid are tried in one reading.
 * k-means|| (Bahmani et al., "Scalable K-Means++", 2012): in a few rounds about 2 K candidates each, then k-means++
 * among them, weighted by the rows they are nearest to. */
#include "starts.h"

#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "util/random.h"

enum { ROUNDS = 5, MOST_TRIALS = 32 };

typedef struct draw {
    moedi_fit *fit;
    uint64_t restart, counter;
    int trials;
    float *nearest;   /* (count) squared distance to the nearest centroid so far */
    float *candidate; /* (trials, count) the same to each candidate */
    float *rows;      /* (trials, width) the candidates */
    double *part;     /* (blocks, trials) sums of weight * distance */
    double *shares;   /* (blocks) the same of nearest */
} draw;

/* Candidates' distances become those with the candidate added, and are summed. */
static void try_block(void *argument, int64_t block)
{
    draw *s = argument;
    const moedi_fit *f = s->fit;
    const int64_t from = block * MOEDI_BLOCK, to = moedi_block_end(f->count, block);
    for (int t = 0; t < s->trials; t++) {
        float *with = s->candidate + t * f->count;
        double sum = 0;
        for (int64_t i = from; i < to; i++) {
            if (s->nearest[i] < with[i]) with[i] = s->nearest[i];
            sum += moedi_fit_weight(f, i) * (double)with[i];
        }
        s->part[block * s->trials + t] = sum;
    }
}

/* ---- k-means++ ---- */

/* A row drawn by its share of weight * distance (distance NULL: by weight); shares (blocks) are their sums. */
static int64_t pick(draw *s, const float *distance, const double *shares)
{
    const moedi_fit *f = s->fit;
    const int64_t blocks = moedi_blocks(f->count);
    double total = 0;
    int64_t last = -1;
    for (int64_t b = 0; b < blocks; b++) total += shares[b];
    double left = moedi_random_uniform(f->options.seed, MOEDI_RANDOM_KMEANS, s->restart, s->counter++) * total;
    for (int64_t b = 0; b < blocks; b++) {
        if (!(shares[b] > 0)) continue;
        if (left >= shares[b] && b + 1 < blocks) {
            left -= shares[b];
            last = -2 - b; /* its last row, should nothing follow */
            continue;
        }
        for (int64_t i = b * MOEDI_BLOCK; i < moedi_block_end(f->count, b); i++) {
            const double share = moedi_fit_weight(f, i) * (distance ? (double)distance[i] : 1.0);
            if (share > 0) last = i;
            if (share > 0 && (left -= share) < 0) return i;
        }
    }
    if (last >= -1) return last; /* -1: nothing has a share */
    const int64_t b = -2 - last;
    for (int64_t i = moedi_block_end(f->count, b) - 1; i >= b * MOEDI_BLOCK; i--)
        if (moedi_fit_weight(f, i) * (distance ? (double)distance[i] : 1.0) > 0) return i;
    return -1;
}

static void take(moedi_fit *f, int64_t cluster, int64_t row)
{
    memcpy(f->centroids + cluster * f->width, f->x + row * f->width, (size_t)f->width * sizeof(float));
}

static void share_block(void *argument, int64_t block)
{
    draw *s = argument;
    const moedi_fit *f = s->fit;
    double sum = 0;
    for (int64_t i = block * MOEDI_BLOCK; i < moedi_block_end(f->count, block); i++) sum += moedi_fit_weight(f, i);
    s->shares[block] = sum;
}

/* The first centroid, by weight; nearest and shares are of it. */
static moed_status first_row(draw *s, int64_t *row)
{
    moedi_fit *f = s->fit;
    const int64_t blocks = moedi_blocks(f->count);
    const int trials = s->trials;
    MOEDI_TRY(moedi_fit_each_block(f, share_block, s));
    *row = pick(s, NULL, s->shares);
    take(f, 0, *row);
    MOEDI_TRY(moedi_lloyd_distances(&f->lloyd, f->centroids, 1, s->candidate, 1, f->count));
    for (int64_t i = 0; i < f->count; i++) s->nearest[i] = INFINITY;
    s->trials = 1;
    MOEDI_TRY(moedi_fit_each_block(f, try_block, s));
    s->trials = trials;
    memcpy(s->nearest, s->candidate, (size_t)f->count * sizeof *s->nearest);
    memcpy(s->shares, s->part, (size_t)blocks * sizeof *s->shares);
    return MOED_OK;
}

/* Centroid k: the best of a few candidates. */
static moed_status next_centroid(draw *s, int64_t k)
{
    moedi_fit *f = s->fit;
    const int64_t blocks = moedi_blocks(f->count);
    int best = 0;
    double lowest = INFINITY;
    for (int t = 0; t < s->trials; t++) {
        const int64_t row = pick(s, s->nearest, s->shares);
        if (row < 0) { /* all rows lie on centroids already: any will do */
            take(f, k, k);
            return MOED_OK;
        }
        memcpy(s->rows + t * f->width, f->x + row * f->width, (size_t)f->width * sizeof *s->rows);
    }
    MOEDI_TRY(moedi_lloyd_distances(&f->lloyd, s->rows, s->trials, s->candidate, 1, f->count));
    MOEDI_TRY(moedi_fit_each_block(f, try_block, s));
    for (int t = 0; t < s->trials; t++) {
        double with = 0;
        for (int64_t b = 0; b < blocks; b++) with += s->part[b * s->trials + t];
        if (with < lowest) lowest = with, best = t;
    }
    memcpy(f->centroids + k * f->width, s->rows + best * f->width, (size_t)f->width * sizeof *s->rows);
    memcpy(s->nearest, s->candidate + best * f->count, (size_t)f->count * sizeof *s->nearest);
    for (int64_t b = 0; b < blocks; b++) s->shares[b] = s->part[b * s->trials + best];
    return MOED_OK;
}

static moed_status draw_open(draw *s)
{
    const moedi_fit *f = s->fit;
    const int64_t blocks = moedi_blocks(f->count);
    s->trials = 2 + (int)log((double)f->clusters);
    if (s->trials > MOST_TRIALS) s->trials = MOST_TRIALS;
    if (s->trials > f->clusters) s->trials = (int)f->clusters; /* as many as the engine has room for */
    MOEDI_TRY(MOEDI_NEW(f->context, f->count, &s->nearest));
    MOEDI_TRY(moedi_alloc_array(f->context, s->trials, (size_t)f->count * sizeof(float), (void **)&s->candidate));
    MOEDI_TRY(MOEDI_NEW(f->context, s->trials * f->width, &s->rows));
    MOEDI_TRY(MOEDI_NEW(f->context, blocks * s->trials, &s->part));
    return MOEDI_NEW(f->context, blocks, &s->shares);
}
static void draw_close(draw *s)
{
    void *const memory[] = {s->nearest, s->candidate, s->rows, s->part, s->shares};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++) moedi_free(s->fit->context, memory[i]);
}

static moed_status plus_plus(moedi_fit *f, uint64_t restart)
{
    draw s = {.fit = f, .restart = restart};
    int64_t first;
    moed_status status;
    MOEDI_GO(draw_open(&s));
    MOEDI_GO(first_row(&s, &first));
    for (int64_t k = 1; k < f->clusters; k++) {
        MOEDI_GO(moedi_cancel_check(f->cancel));
        MOEDI_GO(next_centroid(&s, k));
    }
out:
    draw_close(&s);
    return status;
}

/* ---- k-means|| ---- */

typedef struct oversample {
    draw draw;
    int64_t *rows;    /* the candidates' */
    int64_t count, room;
    float *x;         /* (clusters, width): some of them, for the engine */
    int32_t *owner;   /* (count) nearest candidate */
    int32_t *labels;  /* (count) among those of one call */
} oversample;

/* Distances to the candidates from `first` on. */
static moed_status meet(oversample *o, int64_t first)
{
    draw *s = &o->draw;
    moedi_fit *f = s->fit;
    while (first < o->count) {
        const int64_t n = f->clusters < o->count - first ? f->clusters : o->count - first;
        for (int64_t j = 0; j < n; j++)
            memcpy(o->x + j * f->width, f->x + o->rows[first + j] * f->width, (size_t)f->width * sizeof *o->x);
        MOEDI_TRY(moedi_lloyd_assign(&f->lloyd, o->x, n, NULL, o->labels, s->candidate));
        for (int64_t i = 0; i < f->count; i++)
            if (s->candidate[i] < s->nearest[i])
                s->nearest[i] = s->candidate[i], o->owner[i] = (int32_t)(first + o->labels[i]);
        first += n;
    }
    return MOED_OK;
}

/* Every row by itself, with 2 K rows expected. */
static moed_status draw_round(oversample *o, int round)
{
    const draw *s = &o->draw;
    const moedi_fit *f = s->fit;
    const int64_t before = o->count;
    double total = 0;
    for (int64_t i = 0; i < f->count; i++) total += moedi_fit_weight(f, i) * (double)s->nearest[i];
    if (!(total > 0)) return MOED_OK;
    const double scale = 2 * (double)f->clusters / total;
    for (int64_t i = 0; i < f->count && o->count < o->room; i++) {
        if (i % MOEDI_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
        const uint64_t index = ((uint64_t)(round + 1) << 48) + (uint64_t)i;
        const double share = moedi_fit_weight(f, i) * (double)s->nearest[i] * scale;
        if (share > 0 && moedi_random_uniform(f->options.seed, MOEDI_RANDOM_KMEANS, s->restart, index) < share)
            o->rows[o->count++] = i;
    }
    return meet(o, before);
}

/* k-means++ among the candidates, each with the weight of the rows that are nearest to it. */
static moed_status reduce(oversample *o)
{
    const draw *s = &o->draw;
    moedi_fit *f = s->fit;
    moedi_fit few = {.context = f->context, .cancel = f->cancel, .options = f->options, .count = o->count,
                     .width = f->width, .clusters = f->clusters, .centroids = f->centroids};
    float *x = NULL, *weights = NULL;
    moed_status status;
    MOEDI_GO(moedi_alloc_array(f->context, o->count, (size_t)f->width * sizeof *x, (void **)&x));
    MOEDI_GO(MOEDI_NEW(f->context, o->count, &weights));
    for (int64_t j = 0; j < o->count; j++)
        memcpy(x + j * f->width, f->x + o->rows[j] * f->width, (size_t)f->width * sizeof *x);
    for (int64_t i = 0; i < f->count; i++) weights[o->owner[i]] += (float)moedi_fit_weight(f, i);
    few.x = x, few.weights = weights;
    MOEDI_GO(moedi_lloyd_open(&few.lloyd, f->context, x, weights, few.count, few.width, few.clusters, 0));
    few.lloyd.cancel = f->cancel;
    status = plus_plus(&few, s->restart);
out:
    moedi_lloyd_close(&few.lloyd);
    moedi_free(f->context, x);
    moedi_free(f->context, weights);
    return status;
}

static moed_status in_parallel(moedi_fit *f, uint64_t restart)
{
    oversample o = {.draw = {.fit = f, .restart = restart}, .room = 1 + 4 * ROUNDS * f->clusters};
    moed_status status;
    if (o.room > f->count) o.room = f->count;
    MOEDI_GO(draw_open(&o.draw));
    MOEDI_GO(MOEDI_NEW(f->context, o.room, &o.rows));
    MOEDI_GO(MOEDI_NEW(f->context, f->clusters * f->width, &o.x));
    MOEDI_GO(MOEDI_NEW(f->context, f->count, &o.owner));
    MOEDI_GO(MOEDI_NEW(f->context, f->count, &o.labels));
    MOEDI_GO(first_row(&o.draw, &o.rows[0]));
    o.count = 1;
    for (int round = 0; round < ROUNDS; round++) {
        MOEDI_GO(moedi_cancel_check(f->cancel));
        MOEDI_GO(draw_round(&o, round));
    }
    /* too few to choose among where few rows differ */
    status = o.count > f->clusters ? reduce(&o) : plus_plus(f, restart);
out:
    draw_close(&o.draw);
    moedi_free(f->context, o.rows);
    moedi_free(f->context, o.x);
    moedi_free(f->context, o.owner);
    moedi_free(f->context, o.labels);
    return status;
}

moed_status moedi_fit_start(moedi_fit *f, uint64_t restart)
{
    return f->options.start == MOED_START_PARALLEL ? in_parallel(f, restart) : plus_plus(f, restart);
}
