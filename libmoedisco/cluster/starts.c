/* cluster/starts.c - k-means++ (Arthur and Vassilvitskii, 2007) with greedy trials: of a few candidates drawn
 * by squared distance, the one that lowers the total most becomes the next centroid. */
#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "kmeans.h"
#include "util/random.h"

typedef struct draw {
    moedi_fit *fit;
    uint64_t restart, counter;
    float *nearest;          /* (count) squared distance to the nearest centroid so far */
    float *candidate, *best; /* (count) the same with a candidate added; with the best one */
    int32_t *labels;         /* (count) of one-centroid assignments: all 0 */
} draw;

/* A row drawn by weight * distance (distance NULL: by weight), `total` being their sum. */
static int64_t pick(draw *s, const float *distance, double total)
{
    const moedi_fit *f = s->fit;
    double left = moedi_random_uniform(f->options.seed, MOEDI_RANDOM_KMEANS, s->restart, s->counter++) * total;
    int64_t last = -1;
    for (int64_t i = 0; i < f->count; i++) {
        const double share = moedi_fit_weight(f, i) * (distance ? (double)distance[i] : 1.0);
        if (share > 0) last = i;
        if (share > 0 && (left -= share) < 0) return i;
    }
    return last; /* -1: nothing has a share */
}

/* `out` = smaller of nearest and the distance to row; returns the weighted sum. */
static moed_status try_row(draw *s, int64_t row, const float *nearest, float *out, double *total)
{
    moedi_fit *f = s->fit;
    MOEDI_TRY(moedi_lloyd_assign(&f->lloyd, f->x + row * f->width, 1, NULL, s->labels, out));
    *total = 0;
    for (int64_t i = 0; i < f->count; i++) {
        if (nearest && nearest[i] < out[i]) out[i] = nearest[i];
        *total += moedi_fit_weight(f, i) * (double)out[i];
    }
    return MOED_OK;
}

static void take(moedi_fit *f, int64_t cluster, int64_t row)
{
    memcpy(f->centroids + cluster * f->width, f->x + row * f->width, (size_t)f->width * sizeof(float));
}

static moed_status draw_starts(draw *s)
{
    moedi_fit *f = s->fit;
    const int trials = 2 + (int)log((double)f->clusters);
    double weight = 0, total = 0;
    for (int64_t i = 0; i < f->count; i++) weight += moedi_fit_weight(f, i);
    const int64_t first = pick(s, NULL, weight);
    take(f, 0, first);
    MOEDI_TRY(try_row(s, first, NULL, s->nearest, &total));
    for (int64_t k = 1; k < f->clusters; k++) {
        int64_t best_row = k; /* all rows lie on centroids already: any will do */
        double lowest = INFINITY;
        MOEDI_TRY(moedi_cancel_check(f->cancel));
        for (int t = 0; t < trials; t++) {
            double with = 0;
            const int64_t row = pick(s, s->nearest, total);
            if (row < 0) break;
            MOEDI_TRY(try_row(s, row, s->nearest, s->candidate, &with));
            if (with >= lowest) continue;
            lowest = with;
            best_row = row;
            float *swap = s->best;
            s->best = s->candidate, s->candidate = swap;
        }
        take(f, k, best_row);
        if (lowest == INFINITY) continue;
        total = lowest;
        float *swap = s->nearest;
        s->nearest = s->best, s->best = swap;
    }
    return MOED_OK;
}

moed_status moedi_kmeans_starts(moedi_fit *f, uint64_t restart)
{
    draw s = {.fit = f, .restart = restart};
    moed_status status;
    MOEDI_GO(MOEDI_NEW(f->context, f->count, &s.nearest));
    MOEDI_GO(MOEDI_NEW(f->context, f->count, &s.candidate));
    MOEDI_GO(MOEDI_NEW(f->context, f->count, &s.best));
    MOEDI_GO(MOEDI_NEW(f->context, f->count, &s.labels));
    status = draw_starts(&s);
out:
    moedi_free(f->context, s.nearest);
    moedi_free(f->context, s.candidate);
    moedi_free(f->context, s.best);
    moedi_free(f->context, s.labels);
    return status;
}
