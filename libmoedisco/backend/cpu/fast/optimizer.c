/* fast/optimizer.c - AdamW (Loshchilov and Hutter 2019) over all slices in one pass, and the norm it is clipped by. */
#include "fast.h"

#include "backend/lean.h"

enum { CHUNK = 65536 }; /* whole blocks of codes */
_Static_assert(CHUNK % MOEDI_LEAN_BLOCK == 0, "a block of codes is one task's");

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

/* What every number of a step is multiplied by. */
typedef struct rates {
    float scale, beta1, rest1, beta2, rest2, rate, root, epsilon, keep;
} rates;

static rates rates_of(const moed_op_update *a, const moed_op_slice *slice)
{
    const moed_step_scalars *s = a->scalars;
    return (rates){.scale = (float)(s->gradient_scale * s->clip_factor),
                   .beta1 = (float)a->beta1, .rest1 = (float)(1.0 - a->beta1),
                    .beta2 = (float)a->beta2, .rest2 = (float)(1.0 - a->beta2),
                   .rate = (float)(s->learning_rate / s->beta1_correction), .root = (float)(1.0 / sqrt(s->beta2_correction)),
                   .epsilon = (float)a->epsilon, .keep = (float)(s->learning_rate * slice->weight_decay)};
}

static void step_numbers(const moed_op_slice *slice, const rates *r, int64_t from, int64_t count)
{
    float *restrict p = (float *)slice->parameter + from, *restrict m = (float *)slice->m + from;
    float *restrict v = (float *)slice->v + from;
    const float *restrict gradient = (const float *)slice->gradient + from;
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * r->scale;
        m[i] = r->beta1 * m[i] + r->rest1 * g;
        v[i] = r->beta2 * v[i] + r->rest2 * g * g;
        p[i] -= r->rate * m[i] / (sqrtf(v[i]) * r->root + r->epsilon) + r->keep * p[i];
    }
}

/* Bits of the largest magnitude: those of floats from 0 up are in the order of the floats. */
static uint32_t largest_bits(const float *x, int64_t count)
{
    uint32_t most = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = moedi_float_bits(x[i]) & 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most;
}

/* The same where moments are codes: `count` numbers of block `index` of the slice pass through floats. */
static void step_block(const moed_op_slice *slice, const rates *r, uint64_t random, int64_t index, int64_t count)
{
    const int64_t from = index * MOEDI_LEAN_BLOCK;
    float m[MOEDI_LEAN_BLOCK], root[MOEDI_LEAN_BLOCK];
    float *restrict p = (float *)slice->parameter + from;
    const float *restrict gradient = (const float *)slice->gradient + from;
    uint8_t *restrict m_code = (uint8_t *)slice->m + from, *restrict v_code = (uint8_t *)slice->v + from;
    const float m_before = slice->m_scale[index], v_before = slice->v_scale[index];
    for (int64_t i = 0; i < count; i++) {
        const float g = gradient[i] * r->scale, was = moedi_lean_decode_root(v_code[i]) * v_before;
        m[i] = r->beta1 * (moedi_lean_decode_m(m_code[i]) * m_before) + r->rest1 * g;
        root[i] = sqrtf(r->beta2 * was * was + r->rest2 * g * g);
        p[i] -= r->rate * m[i] / (root[i] * r->root + r->epsilon) + r->keep * p[i];
    }
    const float m_scale = moedi_lean_scale(moedi_bits_float(largest_bits(m, count))), m_inverse = moedi_lean_inverse(m_scale);
    const float v_scale = moedi_lean_scale(moedi_bits_float(largest_bits(root, count))), v_inverse = moedi_lean_inverse(v_scale);
    const uint32_t key = moedi_lean_key(random, slice->block + index);
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = moedi_lean_random(key, (uint32_t)i);
        m_code[i] = (uint8_t)moedi_lean_encode_m(m[i] * m_inverse, bits);
        v_code[i] = (uint8_t)moedi_lean_encode_root(root[i] * v_inverse, bits);
    }
    slice->m_scale[index] = m_scale, slice->v_scale[index] = v_scale;
}

static void adamw_task(void *argument, int64_t index)
{
    const update_job *job = argument;
    int64_t from, count;
    const moed_op_slice *slice = find(job, index, &from, &count);
    const rates r = rates_of(job->a, slice);
    if (!slice->m_scale) {
        step_numbers(slice, &r, from, count);
        return;
    }
    for (int64_t at = from; at < from + count; at += MOEDI_LEAN_BLOCK)
        step_block(slice, &r, job->a->scalars->random, at / MOEDI_LEAN_BLOCK, least_of(MOEDI_LEAN_BLOCK, from + count - at));
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
