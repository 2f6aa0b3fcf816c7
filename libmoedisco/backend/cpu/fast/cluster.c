/* fast/cluster.c - the two halves of a step of Lloyd's k-means. */
#include "fast.h"

/* ---- assignment ----
 * ||x - c||^2 = ||x||^2 + (||c||^2 - 2 x.c): the products by the micro-kernel in float, enough to leave only candidates within their
 * rounding error; these are compared by their exact distance in double, penalties added. So near ties come out as in the definition. */

enum { POINTS = 84 };

typedef struct assign_job {
    const moed_op_kmeans_assign *a;
    moedi_slices slices;
    float *centroids; /* panels */
    float *norms;     /* (clusters): ||c||^2 */
    float longest;    /* of the norms */
} assign_job;

static double squared_distance(const float *x, const float *c, int64_t width)
{
    double lanes[8] = {0}, total = 0;
    int64_t d = 0;
    for (; d + 8 <= width; d += 8)
        for (int l = 0; l < 8; l++) {
            const double difference = (double)x[d + l] - (double)c[d + l];
            lanes[l] += difference * difference;
        }
    for (; d < width; d++) total += ((double)x[d] - (double)c[d]) * ((double)x[d] - (double)c[d]);
    for (int l = 0; l < 8; l++) total += lanes[l];
    return total;
}

static void assign_one(const assign_job *job, int64_t i, const float *products)
{
    const moed_op_kmeans_assign *a = job->a;
    const float *x = a->x + i * a->width;
    double lowest = INFINITY, best = INFINITY, its_distance = 0;
    int64_t label = -1;
    for (int64_t k = 0; k < a->clusters; k++) {
        const double cost = (double)job->norms[k] - 2.0 * (double)products[k] + (a->penalty ? a->penalty[k] : 0.0);
        if (cost < lowest) lowest = cost;
    }
    const double length = (double)dot(x, x, a->width) + (double)job->longest;
    const double limit = lowest + length * (8.0 + sqrt((double)a->width)) * 0x1p-22;
    for (int64_t k = 0; k < a->clusters; k++) {
        const double penalty = a->penalty ? a->penalty[k] : 0.0;
        if ((double)job->norms[k] - 2.0 * (double)products[k] + penalty > limit) continue;
        const double distance = squared_distance(x, a->centroids + k * a->width, a->width);
        if (label < 0 || distance + penalty < best) best = distance + penalty, its_distance = distance, label = k;
    }
    a->labels[i] = label < 0 ? 0 : (int32_t)label;
    if (a->distances) a->distances[i] = (float)its_distance;
}
static void assign_task(void *argument, int64_t index)
{
    assign_job *job = argument;
    const moed_op_kmeans_assign *a = job->a;
    const int64_t first = index * POINTS, count = least_of(POINTS, a->count - first);
    float *points = moedi_slices_claim(&job->slices), *products = points + POINTS * a->width;
    moedi_pack_left(points, a->x + first * a->width, a->width, 1, count, a->width);
    moedi_multiply_packed(products, a->clusters, points, job->centroids, NULL, count, a->clusters, a->width, false);
    for (int64_t i = 0; i < count; i++) assign_one(job, first + i, products + i * a->clusters);
    moedi_slices_release(&job->slices, points);
}
moed_status MOEDI_VARIED(kmeans_assign)(void *self, const moed_op_kmeans_assign *a)
{
    const int64_t tasks = (a->count + POINTS - 1) / POINTS;
    const int64_t shared = round_up(a->clusters, COLUMNS) * a->width + round_up(a->clusters, 16);
    assign_job job = {.a = a};
    const moed_status status = moedi_slices_open_with(&job.slices, self, tasks, POINTS * (a->width + a->clusters) * (int64_t)sizeof(float),
                                                      shared * (int64_t)sizeof(float), (void **)&job.norms);
    if (status != MOED_OK) return status;
    job.centroids = job.norms + round_up(a->clusters, 16);
    for (int64_t k = 0; k < a->clusters; k++) {
        job.norms[k] = dot(a->centroids + k * a->width, a->centroids + k * a->width, a->width);
        if (job.norms[k] > job.longest) job.longest = job.norms[k];
    }
    moedi_pack_right(job.centroids, a->centroids, a->width, 1, a->clusters, a->width);
    run(self, tasks, assign_task, &job);
    return MOED_OK;
}

/* ---- accumulation: a task has columns of its own and takes the points in order; the last one counts ---- */

enum { SUM_COLUMNS = 64 };

static void accumulate_task(void *argument, int64_t index)
{
    const moed_op_kmeans_accumulate *a = argument;
    const int64_t first = index * SUM_COLUMNS, columns = least_of(SUM_COLUMNS, a->width - first);
    if (columns <= 0) {
        memset(a->totals, 0, (size_t)a->clusters * sizeof *a->totals);
        memset(a->counts, 0, (size_t)a->clusters * sizeof *a->counts);
        for (int64_t i = 0; i < a->count; i++) {
            a->totals[a->labels[i]] += a->weights ? (double)a->weights[i] : 1.0;
            a->counts[a->labels[i]] += 1;
        }
        return;
    }
    for (int64_t k = 0; k < a->clusters; k++) memset(a->sums + k * a->width + first, 0, (size_t)columns * sizeof *a->sums);
    for (int64_t i = 0; i < a->count; i++) {
        const double weight = a->weights ? (double)a->weights[i] : 1.0;
        const float *restrict x = a->x + i * a->width + first;
        double *restrict sums = a->sums + a->labels[i] * a->width + first;
        for (int64_t d = 0; d < columns; d++) sums[d] += weight * (double)x[d];
    }
}
moed_status MOEDI_VARIED(kmeans_accumulate)(void *self, const moed_op_kmeans_accumulate *a)
{
    moed_op_kmeans_accumulate copy = *a;
    run(self, (a->width + SUM_COLUMNS - 1) / SUM_COLUMNS + 1, accumulate_task, &copy);
    return MOED_OK;
}
