/* cuda/common/kmeans_screen.cuh - what a step of k-means knows of its centroids before it multiplies: their halves, and bounds of
 * what these lose.
 *
 * ||x - c||^2 orders the centroids as base - 2 x.(c - m) does, where m is the centroids' mean and base = ||c||^2 - ||m||^2. The
 * products are of halves (IEEE, 16 bits), scaled by powers of two. Every product comes with a bound of its error. */
#ifndef MOEDI_CUDA_KMEANS_SCREEN_CUH
#define MOEDI_CUDA_KMEANS_SCREEN_CUH

#include <cuda_fp16.h>

#include "numbers.cuh"
#include "operations.h"

/* The cost of a cluster is base - 2 x.c, where x.c is the product of the halves times `scale`; its error is at most what base is
 * rounded by and 2 (row's a * norm + row's b * error). */
struct alignas(16) screen {
    float base, norm, error, scale;
};
/* Of a row: a, b above, rounded up. */
struct alignas(8) reach {
    float a, b;
};
/* Of all centroids, as bits: the order of floats that are not below 0, NaN the highest. Zeroed before. */
struct extremes {
    unsigned number, base, norm, error;
};

enum { SCREEN_THREADS = 256 };

/* A lane has a column, a warp of the block every eighth centroid. */
static __global__ void mean_kernel(float *mean, extremes *most, const float *centroids, int64_t clusters, int64_t width)
{
    enum { WARPS = SCREEN_THREADS / 32 };
    __shared__ float sums[WARPS][32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int64_t d = (int64_t)blockIdx.x * 32 + lane;
    float sum = 0, highest = 0;
#pragma unroll 8
    for (int64_t k = warp; k < clusters && d < width; k += WARPS) {
        const float c = centroids[k * width + d];
        sum += c, highest = fmaxf(highest, fabsf(c));
    }
    sums[warp][lane] = sum;
    highest = block_max(highest);
    if (threadIdx.x == 0) atomicMax(&most->number, __float_as_uint(highest));
    if (warp || d >= width) return;
    for (int w = 1; w < WARPS; w++) sum += sums[w][lane];
    mean[d] = sum / (float)clusters;
}

/* The power of two that brings numbers below 2^(exponent of highest + 1) below 2^(places + 1). */
__device__ static inline float power_to(float highest, int places)
{
    const int exponent = (int)(__float_as_uint(highest) >> 23 & 255) - 127;
    return __uint_as_float((unsigned)(127 + places - (exponent > -100 ? exponent : -100)) << 23);
}
/* Of x, whose numbers are taken to be about as large as the centroids': the largest of these comes to 1. Those over 2^15 times as
 * large become no number, and their rows are decided by differences. */
__device__ static inline float scale_of_x(const extremes *most)
{
    return power_to(__uint_as_float(most->number), 0);
}

/* The centroids of a step. lines: base of each, then -2 scale of each. halves (zeroed before): where a Place says. */
struct prepared {
    float *mean, *lines;
    screen *screens;
    extremes *most;
    __half *halves;
};

/* A block a centroid. */
template <typename Place>
static __global__ void prepare_kernel(prepared p, const float *centroids, const double *penalty, int64_t width, Place place)
{
    const int64_t k = blockIdx.x;
    double base = 0, square = 0, lost = 0;
    float highest = 0;
    for (int64_t d = threadIdx.x; d < width; d += SCREEN_THREADS)
        highest = fmaxf(highest, fabsf(centroids[k * width + d] - p.mean[d]));
    const float scale = power_to(block_max(highest), 14);
    for (int64_t d = threadIdx.x; d < width; d += SCREEN_THREADS) {
        const float at = centroids[k * width + d], m = p.mean[d], c = at - m;
        const __half rounded = __float2half_rn(c * scale);
        const double rest = (double)c - (double)__half2float(rounded) / (double)scale;
        base += ((double)at - (double)m) * ((double)at + (double)m);
        square += (double)c * (double)c, lost += rest * rest;
        p.halves[place(k, d)] = rounded;
    }
    base = block_sum(base), square = block_sum(square), lost = block_sum(lost);
    if (threadIdx.x) return;
    if (penalty) base += penalty[k];
    const screen s = {(float)base, __double2float_ru(sqrt(square) * (1 + 0x1p-10)), __double2float_ru(sqrt(lost)),
                      1 / scale / scale_of_x(p.most)};
    p.screens[k] = s;
    p.lines[k] = s.base, p.lines[gridDim.x + k] = -2.0f * s.scale;
    atomicMax(&p.most->base, __float_as_uint(fabsf(s.base)));
    atomicMax(&p.most->norm, __float_as_uint(s.norm));
    atomicMax(&p.most->error, __float_as_uint(s.error));
}

/* From sums of squares of a row's scaled numbers, and of what their halves lack of them. */
__device__ static inline reach reach_of(float square, float lost, float scale, float precision)
{
    const float length = sqrtf(square) * (1 + 0x1p-9f) / scale;
    return {(sqrtf(lost) / scale + precision * length) * (1 + 0x1p-9f), length};
}

/* Two scaled floats as halves; what these are of them is added to the sums. */
__device__ static inline uint32_t halve(float x, float y, float &square, float &lost)
{
    const __half2 h = __floats2half2_rn(x, y);
    const float rest_x = x - __low2float(h), rest_y = y - __high2float(h);
    uint32_t bits;
    square = fmaf(x, x, fmaf(y, y, square)), lost = fmaf(rest_x, rest_x, fmaf(rest_y, rest_y, lost));
    memcpy(&bits, &h, sizeof bits);
    return bits;
}

static inline prepared take_prepared(moedi_cuda_pieces &p, const moed_op_kmeans_assign *a, int64_t halves)
{
    return {p.take<float>(a->width), p.take<float>(2 * a->clusters), p.take<screen>(a->clusters), p.take<extremes>(1),
            p.take<__half>(halves)};
}
template <typename Place>
static moed_status prepare(moedi_cuda *e, const moed_op_kmeans_assign *a, const prepared &p, int64_t halves, Place place)
{
    MOEDI_CUDA_CHECK(e, cudaMemsetAsync(p.most, 0, sizeof *p.most, e->stream));
    MOEDI_CUDA_CHECK(e, cudaMemsetAsync(p.halves, 0, (size_t)halves * sizeof *p.halves, e->stream));
    const unsigned blocks = (unsigned)moedi_cuda_ceil(a->width, 32), clusters = (unsigned)a->clusters;
    MOEDI_CUDA_TRY(
        moedi_cuda_launch(e, mean_kernel, blocks, SCREEN_THREADS, 0, p.mean, p.most, a->centroids, a->clusters, a->width));
    return moedi_cuda_launch(e, prepare_kernel<Place>, clusters, SCREEN_THREADS, 0, p, a->centroids, a->penalty, a->width, place);
}
/* What every addition of a product to the sum so far may lose, and the roundings of the bounds. */
static inline float precision_of(int64_t width)
{
    return 0x1p-18f + 0x1p-23f * (float)width / 8;
}

/* Labels, and distances where they are wanted, from candidates (count, words; 1, 4, 8 or 16 words of 64 clusters): a bit for each
 * cluster that may be the nearest. By differences in float where there are several. candidates NULL: one cluster. */
moed_status moedi_cuda_kmeans_decide(moedi_cuda *e, const moed_op_kmeans_assign *a, const uint64_t *candidates, int words);

#endif
