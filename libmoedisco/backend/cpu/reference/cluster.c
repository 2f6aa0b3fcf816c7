/* backend/cpu/reference/cluster.c - the two halves of a step of Lloyd's k-means. */
#include "reference.h"

MOEDI_REFERENCE(kmeans_assign, kmeans_assign)
{
    (void)self;
    for (int64_t i = 0; i < a->count; i++) {
        double lowest = INFINITY, its_distance = 0;
        int32_t label = 0;
        for (int64_t k = 0; k < a->clusters; k++) {
            double distance = 0;
            for (int64_t d = 0; d < a->width; d++) {
                const double difference = (double)a->x[i * a->width + d] - (double)a->centroids[k * a->width + d];
                distance += difference * difference;
            }
            const double cost = distance + (a->penalty ? a->penalty[k] : 0.0);
            if (k == 0 || cost < lowest) lowest = cost, its_distance = distance, label = (int32_t)k;
        }
        a->labels[i] = label;
        if (a->distances) a->distances[i] = (float)its_distance;
    }
    return MOED_OK;
}

MOEDI_REFERENCE(kmeans_accumulate, kmeans_accumulate)
{
    (void)self;
    for (int64_t k = 0; k < a->clusters; k++) {
        a->totals[k] = 0;
        a->counts[k] = 0;
        for (int64_t d = 0; d < a->width; d++) a->sums[k * a->width + d] = 0;
    }
    for (int64_t i = 0; i < a->count; i++) {
        const int64_t k = a->labels[i];
        const double weight = a->weights ? (double)a->weights[i] : 1.0;
        a->totals[k] += weight;
        a->counts[k] += 1;
        for (int64_t d = 0; d < a->width; d++) a->sums[k * a->width + d] += weight * (double)a->x[i * a->width + d];
    }
    return MOED_OK;
}

MOEDI_REFERENCE(kmeans_move, kmeans_move)
{
    (void)self;
    for (int64_t k = 0; k < a->clusters; k++) {
        double square = 0;
        for (int64_t d = 0; d < a->width && a->totals[k] > 0; d++) {
            float *c = &a->centroids[k * a->width + d];
            const float next = (float)(a->sums[k * a->width + d] / a->totals[k]);
            square += ((double)next - (double)*c) * ((double)next - (double)*c);
            *c = next;
        }
        a->moved[k] = (float)(sqrt(square) * (1 + 1e-6));
    }
    return MOED_OK;
}
