/* cluster/iterate.c - Lloyd's iteration over vectors in memory (Lloyd, 1982), until the centroids rest. */
#include "iterate.h"

#include "core/cancel.h"

/* A cluster without weight takes the farthest row of those whose cluster keeps another (ties: the lowest
 * number). At most one row per empty cluster; sums, totals, counts and the host's labels follow. */
static moed_status fill_empty(moedi_fit *f, int64_t *filled)
{
    int64_t empty = 0;
    *filled = 0;
    for (int64_t k = 0; k < f->clusters; k++) empty += !(f->totals[k] > 0);
    if (!empty) return MOED_OK;
    if (moedi_lloyd_moves(&f->lloyd)) MOEDI_TRY(moedi_lloyd_fetch(&f->lloyd, f->centroids, f->sums));
    MOEDI_TRY(moedi_lloyd_assign(&f->lloyd, f->centroids, f->clusters, NULL, f->labels, f->distances));
    for (int64_t k = 0; k < f->clusters; k++) {
        if (f->totals[k] > 0) continue;
        int64_t row = -1;
        for (int64_t i = 0; i < f->count; i++) {
            const double w = moedi_fit_weight(f, i);
            const int64_t from = f->labels[i];
            if (i % MOEDI_BLOCK == 0) MOEDI_TRY(moedi_cancel_check(f->cancel));
            if (w > 0 && f->totals[from] > w && f->counts[from] > 1 &&
                (row < 0 || f->distances[i] > f->distances[row]))
                row = i;
        }
        if (row < 0) return MOED_OK;
        const int64_t from = f->labels[row];
        const double w = moedi_fit_weight(f, row);
        for (int64_t j = 0; j < f->width; j++) {
            const double part = w * (double)f->x[row * f->width + j];
            f->sums[from * f->width + j] -= part;
            f->sums[k * f->width + j] = part;
        }
        f->labels[row] = (int32_t)k;
        f->totals[from] -= w, f->counts[from] -= 1;
        f->totals[k] = w, f->counts[k] += 1;
        f->distances[row] = 0;
        *filled += 1;
    }
    return MOED_OK;
}

/* The labels and sums of a step. Sums stay with an engine that moves the centroids, until a cluster is empty. */
static moed_status step(moedi_fit *f, int followed)
{
    double *sums = moedi_lloyd_moves(&f->lloyd) ? NULL : f->sums;
    return moedi_lloyd_step(&f->lloyd, f->centroids, followed ? f->moved : NULL, sums, f->totals, f->counts);
}

/* What follows a step; filled: sums have changed on the host. */
static moed_status move_centroids(moedi_fit *f, int64_t filled, double *shift)
{
    *shift = 0;
    if (filled || !moedi_lloyd_moves(&f->lloyd)) {
        *shift = moedi_fit_move(f);
        return MOED_OK;
    }
    MOEDI_TRY(moedi_lloyd_move(&f->lloyd, f->moved));
    for (int64_t k = 0; k < f->clusters; k++) *shift += (double)f->moved[k] * (double)f->moved[k];
    return MOED_OK;
}

moed_status moedi_fit_finish(moedi_fit *f, int followed)
{
    int64_t filled;
    MOEDI_TRY(step(f, followed));
    MOEDI_TRY(fill_empty(f, &filled));
    if (filled) moedi_fit_move(f);
    else MOEDI_TRY(moedi_lloyd_labels(&f->lloyd, f->labels));
    return moedi_fit_measure(f);
}

moed_status moedi_fit_iterate(moedi_fit *f, double limit)
{
    int64_t filled = 0;
    double shift = 0;
    for (f->iterations = 0; f->iterations < f->options.iterations;) {
        MOEDI_TRY(step(f, f->iterations && !filled));
        MOEDI_TRY(fill_empty(f, &filled));
        f->iterations++;
        MOEDI_TRY(move_centroids(f, filled, &shift));
        if (shift <= limit) break;
    }
    if (f->lloyd.ahead) MOEDI_TRY(moedi_lloyd_fetch(&f->lloyd, f->centroids, f->sums));
    if (shift == 0 && !filled) { /* the labels are those of these centroids */
        MOEDI_TRY(moedi_lloyd_labels(&f->lloyd, f->labels));
        return moedi_fit_measure(f);
    }
    return moedi_fit_finish(f, f->iterations && !filled);
}
