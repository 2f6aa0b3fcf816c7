/* fast/optimizer.c - AdamW (Loshchilov and Hutter 2019) over all slices in one pass, and the norm it is clipped by. */
#include "fast.h"

enum { CHUNK = 65536 };

typedef struct update_job {
    const moed_op_update *a;
    int64_t *first;  /* (slices + 1): chunks before a slice */
    double *partial; /* (chunks) */
} update_job;

/* Counts the chunks; scratch for `first` and `partial`. */
static moed_status prepare(update_job *job, moedi_cpu *e, const moed_op_update *a)
{
    int64_t chunks = 0;
    for (int64_t s = 0; s < a->count; s++) chunks += (a->slices[s].count + CHUNK - 1) / CHUNK;
    void *scratch;
    const moed_status status = moedi_cpu_scratch(e, (size_t)(a->count + 1 + chunks) * 8, &scratch);
    if (status != MOED_OK) return status;
    job->a = a, job->first = scratch, job->partial = (double *)(job->first + a->count + 1);
    job->first[0] = 0;
    for (int64_t s = 0; s < a->count; s++) job->first[s + 1] = job->first[s] + (a->slices[s].count + CHUNK - 1) / CHUNK;
    return MOED_OK;
}
/* The slice of a chunk, and its part of it. */
static const moed_op_slice *find(const update_job *job, int64_t chunk, int64_t *from, int64_t *count)
{
    int64_t low = 0, high = job->a->count; /* first[low] <= chunk < first[high] */
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        if (job->first[middle] <= chunk) low = middle;
        else high = middle;
    }
    const moed_op_slice *slice = job->a->slices + low;
    *from = (chunk - job->first[low]) * CHUNK;
    *count = least_of(CHUNK, slice->count - *from);
    return slice;
}

static void norm_task(void *argument, int64_t index)
{
    update_job *job = argument;
    int64_t from, count, i = 0;
    const moed_op_slice *slice = find(job, index, &from, &count);
    const float *gradient = (const float *)slice->gradient + from;
    double lanes[8] = {0}, total = 0;
    for (; i + 8 <= count; i += 8)
        for (int l = 0; l < 8; l++) lanes[l] += (double)gradient[i + l] * (double)gradient[i + l];
    for (; i < count; i++) total += (double)gradient[i] * (double)gradient[i];
    for (int l = 0; l < 8; l++) total += lanes[l];
    job->partial[index] = total;
}
/* in a tree of pairs */
static double tree_sum(const double *x, int64_t count)
{
    if (count <= 0) return 0;
    if (count == 1) return x[0];
    return tree_sum(x, count / 2) + tree_sum(x + count / 2, count - count / 2);
}
moed_status MOEDI_VARIED(gradient_norm)(void *self, const moed_op_update *a)
{
    update_job job;
    const moed_status status = prepare(&job, self, a);
    if (status != MOED_OK) return status;
    run(self, job.first[a->count], norm_task, &job);
    moed_step_scalars *s = a->scalars;
    s->gradient_norm = sqrt(tree_sum(job.partial, job.first[a->count])) * fabs(s->gradient_scale);
    const float *losses = a->losses;
    for (int64_t i = 0; losses && i < a->loss_count; i++)
        if (!isfinite(losses[i])) s->gradient_norm = NAN;
    s->clip_factor = a->clip > 0 && s->gradient_norm > a->clip ? a->clip / s->gradient_norm : 1.0;
    return MOED_OK;
}

static void adamw_task(void *argument, int64_t index)
{
    const update_job *job = argument;
    const moed_op_update *a = job->a;
    const moed_step_scalars *s = a->scalars;
    int64_t from, count;
    const moed_op_slice *slice = find(job, index, &from, &count);
    float *restrict p = (float *)slice->parameter + from, *restrict m = (float *)slice->m + from;
    float *restrict v = (float *)slice->v + from;
    const float *restrict gradient = (const float *)slice->gradient + from;
    const float scale = (float)(s->gradient_scale * s->clip_factor);
    const float beta1 = (float)a->beta1, rest1 = (float)(1.0 - a->beta1), beta2 = (float)a->beta2,
                rest2 = (float)(1.0 - a->beta2);
    const float rate = (float)(s->learning_rate / s->beta1_correction), root = (float)(1.0 / sqrt(s->beta2_correction));
    const float epsilon = (float)a->epsilon, keep = (float)(s->learning_rate * slice->weight_decay);
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * scale;
        m[i] = beta1 * m[i] + rest1 * g;
        v[i] = beta2 * v[i] + rest2 * g * g;
        p[i] -= rate * m[i] / (sqrtf(v[i]) * root + epsilon) + keep * p[i];
    }
}
moed_status MOEDI_VARIED(adamw)(void *self, const moed_op_update *a)
{
    update_job job;
    if (!isfinite(a->scalars->gradient_norm)) return MOED_OK;
    const moed_status status = prepare(&job, self, a);
    if (status != MOED_OK) return status;
    run(self, job.first[a->count], adamw_task, &job);
    return MOED_OK;
}
