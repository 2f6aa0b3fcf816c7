/* cluster/vectors.c - vectors to cluster: checked, read, and drawn as a sample. */
#include "vectors.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "util/random.h"

/* ---- checks ---- */

static moed_status check_shape(const moed_tensor *x, const char *name, int64_t rows, int64_t width)
{
    if (!x->data) return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: data is NULL", name);
    if (x->dtype != MOED_DTYPE_F32)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: dtype is %s, not F32", name,
                                    moed_dtype_name(x->dtype));
    if (x->device != 0)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: not in host memory (device %ld)", name,
                                    (long)x->device);
    if (x->rank != 2)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: rank is %ld, not 2", name, (long)x->rank);
    if (x->shape[0] < 1 || x->shape[1] < 1 || x->shape[0] > INT64_MAX / 8 / x->shape[1])
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: shape (%lld, %lld)", name,
                                    (long long)x->shape[0], (long long)x->shape[1]);
    if ((rows && x->shape[0] != rows) || (width && x->shape[1] != width))
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: shape (%lld, %lld) where (%lld, %lld) belongs",
                                    name, (long long)x->shape[0], (long long)x->shape[1],
                                    (long long)(rows ? rows : x->shape[0]),
                                    (long long)(width ? width : x->shape[1]));
    if (x->strides[0] != x->shape[1] || x->strides[1] != 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, name, "%s: not contiguous, strides (%lld, %lld)", name,
                                    (long long)x->strides[0], (long long)x->strides[1]);
    return MOED_OK;
}

typedef struct rows_check {
    const moed_cancel *cancel;
    const float *x;
    int64_t count, width, first;
    const char *name;
} rows_check;

static double square_length(const float *x, int64_t width)
{
    double sum[8] = {0}, total = 0;
    int64_t j = 0;
    for (; j + 8 <= width; j += 8)
        for (int l = 0; l < 8; l++) sum[l] += (double)x[j + l] * (double)x[j + l];
    for (; j < width; j++) sum[j & 7] += (double)x[j] * (double)x[j];
    for (int l = 0; l < 8; l++) total += sum[l];
    return total;
}

static moed_status check_block(void *argument, int64_t block)
{
    const rows_check *r = argument;
    const int64_t from = block * MOEDI_BLOCK, to = moedi_block_end(r->count, block);
    MOEDI_TRY(moedi_cancel_check(r->cancel));
    for (int64_t i = from; i < to; i++) {
        const double square = square_length(r->x + i * r->width, r->width);
        if (!isfinite(square))
            return moedi_fail_parameter(MOED_E_NUMERIC, r->name, "%s: row %lld holds NaN or infinity", r->name,
                                        (long long)(r->first + i));
        if (square > FLT_MAX / 16)
            return moedi_fail_parameter(MOED_E_NUMERIC, r->name,
                                        "%s: row %lld is too long for squared distances in float: %g", r->name,
                                        (long long)(r->first + i), sqrt(square));
    }
    return MOED_OK;
}

/* x (count, width), its rows numbered from `first` on. */
static moed_status check_rows(const moed_context *c, const moed_cancel *cancel, const float *x, int64_t count, int64_t width,
                              int64_t first, const char *name)
{
    rows_check r = {cancel, x, count, width, first, name};
    return moedi_parallel_try(c, moedi_blocks(count), check_block, &r);
}

moed_status moedi_check_matrix(const moed_context *c, const moed_cancel *cancel, const moed_tensor *x, const char *name,
                               int64_t rows, int64_t width)
{
    MOEDI_TRY(check_shape(x, name, rows, width));
    return check_rows(c, cancel, x->data, x->shape[0], x->shape[1], 0, name);
}

moed_status moedi_check_weights(const float *weights, int64_t count, int64_t clusters)
{
    int64_t positive = 0;
    for (int64_t i = 0; weights && i < count; i++) {
        if (!isfinite(weights[i]))
            return moedi_fail_parameter(MOED_E_NUMERIC, "weights", "weights: number %lld is NaN or infinite",
                                        (long long)i);
        if (weights[i] < 0)
            return moedi_fail_parameter(MOED_E_RANGE, "weights", "weights: number %lld is %g, below 0",
                                        (long long)i, (double)weights[i]);
        positive += weights[i] > 0;
    }
    if (!weights) positive = count;
    if (positive < clusters)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "clusters", "%lld clusters of %lld vectors%s",
                                    (long long)clusters, (long long)positive,
                                    weights ? " with a weight above 0: fewer vectors than clusters"
                                            : ": fewer vectors than clusters");
    return MOED_OK;
}

/* ---- sources ---- */

moed_status moedi_source_read(const moedi_source *s, int64_t first, int64_t count, float *out)
{
    if (s->x) {
        memcpy(out, s->x + first * s->width, (size_t)(count * s->width) * sizeof *out);
        return MOED_OK;
    }
    const int32_t code = s->own->read(first, count, out, s->own->user);
    if (code) return moedi_fail_callback("moed_vectors.read", code);
    return check_rows(s->context, s->cancel, out, count, s->width, first, "x");
}

moed_status moedi_source_draw(const moedi_source *s, uint64_t seed, uint64_t step, int64_t count, int64_t run, float *out,
                               float *weights)
{
    const int64_t runs = (count + run - 1) / run;
    for (int64_t r = 0; r < runs; r++) {
        const int64_t size = run < count - r * run ? run : count - r * run;
        const double stretch = (double)s->count / (double)runs;
        const double u = moedi_random_uniform(seed, MOEDI_RANDOM_KMEANS, step, (uint64_t)r);
        const double room = stretch > (double)size ? stretch - (double)size : 0;
        int64_t first = count == s->count ? r * run : (int64_t)(stretch * (double)r + u * room);
        if (first > s->count - size) first = s->count - size;
        MOEDI_TRY(moedi_source_read(s, first, size, out + r * run * s->width));
        if (weights) memcpy(weights + r * run, s->weights + first, (size_t)size * sizeof *weights);
    }
    return MOED_OK;
}
