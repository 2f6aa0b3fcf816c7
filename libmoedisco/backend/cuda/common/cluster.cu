/* cuda/common/cluster.cu - a step of Lloyd's k-means: labels by products of matrices, sums by sorted labels, centroids from them.
 *
 * ||x - c||^2 orders the centroids as base - 2 x.(c - m) does, where m is the centroids' mean and base = ||c||^2 - ||m||^2. The
 * products are of halves (IEEE, 16 bits), scaled by powers of two: up to 64 clusters by the kernel below, which streams x once; more by
 * cuBLAS. Every product comes with a bound of its error. What lies within the bounds of the lowest is decided again by differences in
 * float: labels are those of float, and a tie takes the lower cluster. Nothing depends on the order in which threads run. */
#include <cuda_fp16.h>

#include "numbers.cuh"
#include "operations.h"
#include "sort.h"

enum { WARPS = 8, THREADS = 32 * WARPS };

/* ---- what a step knows of the centroids ---- */

/* The cost of a cluster is base - 2 x.c, where x.c is the product of the halves times `scale`; its error is at most what base is rounded
 * by and 2 (row's a * norm + row's b * error). */
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

enum { STREAM_CLUSTERS = 64, STREAM_ROWS = 256, STREAM_STEP = 32, STREAM_X = STREAM_ROWS * STREAM_STEP / 4,
       STREAM_STAGE = STREAM_X + STREAM_CLUSTERS * STREAM_STEP / 8 /* of 16 bytes */ };

static __global__ void mean_kernel(float *mean, extremes *most, const float *centroids, int64_t clusters, int64_t width)
{
    const int64_t d = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sum = 0, highest = 0;
#pragma unroll 8
    for (int64_t k = 0; k < clusters && d < width; k++) {
        const float c = centroids[k * width + d];
        sum += c, highest = fmaxf(highest, fabsf(c));
    }
    if (d < width) mean[d] = sum / (float)clusters;
    highest = block_max(highest);
    if (threadIdx.x == 0) atomicMax(&most->number, __float_as_uint(highest));
}

/* The power of two that brings numbers below 2^(exponent of highest + 1) below 2^(places + 1). */
__device__ static inline float power_to(float highest, int places)
{
    const int exponent = (int)(__float_as_uint(highest) >> 23 & 255) - 127;
    return __uint_as_float((unsigned)(127 + places - (exponent > -100 ? exponent : -100)) << 23);
}
/* Of x, whose numbers are taken to be about as large as the centroids': the largest of these comes to 1. Those over 2^15 times as large
 * become no number, and their rows are decided by differences. */
__device__ static inline float scale_of_x(const extremes *most)
{
    return power_to(__uint_as_float(most->number), 0);
}

/* Where the streaming kernel has column d of centroid k: a lane loads 16 bytes for 8 clusters and 32 columns. Lane 4 g + t has centroid g,
 * and columns 4 t to 4 t + 3 of the first and of the second 16; x is loaded alike. */
__device__ static inline int64_t stream_place(int64_t k, int64_t d)
{
    return ((d / 32 * (STREAM_CLUSTERS / 8) + k / 8) * 32 + k % 8 * 4 + d % 16 / 4) * 8 + d / 16 % 2 * 4 + d % 4;
}

/* The centroids of a step. lines: base of each, then -2 scale of each. halves (zeroed before): by stream_place, or rows `stride` apart. */
struct prepared {
    float *mean, *lines;
    screen *screens;
    extremes *most;
    __half *halves;
};

/* A block a centroid. */
template <bool STREAM>
static __global__ void prepare_kernel(prepared p, const float *centroids, const double *penalty, int64_t width, int64_t stride)
{
    const int64_t k = blockIdx.x;
    double base = 0, square = 0, lost = 0;
    float highest = 0;
    for (int64_t d = threadIdx.x; d < width; d += THREADS) highest = fmaxf(highest, fabsf(centroids[k * width + d] - p.mean[d]));
    const float scale = power_to(block_max(highest), 14);
    for (int64_t d = threadIdx.x; d < width; d += THREADS) {
        const float at = centroids[k * width + d], m = p.mean[d], c = at - m;
        const __half rounded = __float2half_rn(c * scale);
        const double rest = (double)c - (double)__half2float(rounded) / (double)scale;
        base += ((double)at - (double)m) * ((double)at + (double)m);
        square += (double)c * (double)c, lost += rest * rest;
        p.halves[STREAM ? stream_place(k, d) : k * stride + d] = rounded;
    }
    base = block_sum(base), square = block_sum(square), lost = block_sum(lost);
    if (threadIdx.x) return;
    if (penalty) base += penalty[k];
    const screen s = {(float)base, __double2float_ru(sqrt(square) * (1 + 0x1p-10)), __double2float_ru(sqrt(lost)), 1 / scale / scale_of_x(p.most)};
    p.screens[k] = s;
    p.lines[k] = s.base, p.lines[gridDim.x + k] = -2.0f * s.scale;
    atomicMax(&p.most->base, __float_as_uint(fabsf(s.base)));
    atomicMax(&p.most->norm, __float_as_uint(s.norm));
    atomicMax(&p.most->error, __float_as_uint(s.error));
}

/* A cluster's cost is at least `at` less `by`, at most `at` and `by`. */
struct cost {
    float at, by;
};
__device__ static inline cost cost_of(float dot, const screen &s, const reach &r)
{
    return {fmaf(-2.0f * s.scale, dot, s.base), fmaf(2.0f, fmaf(r.a, s.norm, r.b * s.error), fabsf(s.base) * 0x1p-22f)};
}
/* From sums of squares of a row's scaled numbers, and of what their halves lack of them. */
__device__ static inline reach reach_of(float square, float lost, float scale, float precision)
{
    const float length = sqrtf(square) * (1 + 0x1p-9f) / scale;
    return {(sqrtf(lost) / scale + precision * length) * (1 + 0x1p-9f), length};
}

/* ---- products, up to 64 clusters ---- */

__device__ static inline void copy_16(void *shared, const void *from, bool there)
{
    const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

/* c (16, 8) += a (16, 16) b (16, 8) */
__device__ static inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
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

struct stream_job {
    uint64_t *candidates; /* (count): a bit for each cluster that may be the nearest */
    const float *x;
    const uint4 *centroids; /* by stream_place */
    const screen *screens;
    const extremes *most;
    int64_t count, width;
    int clusters;
    float precision; /* of a product, by the lengths of its factors */
};

/* A block has 256 rows, a warp 32 of them with all clusters: each number of x is taken once. Steps of 32 columns come by asynchronous
 * copies, STAGES - 1 ahead. Odd rows have their halves of a step swapped, which spares conflicts of banks. */
template <int STAGES> static __global__ void __launch_bounds__(THREADS, 1) stream_kernel(const stream_job a)
{
    extern __shared__ uint4 memory[];
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, first_row = (threadIdx.x >> 5) * 32 + g;
    const int64_t first = (int64_t)blockIdx.x * STREAM_ROWS;
    const int steps = (int)((a.width + STREAM_STEP - 1) / STREAM_STEP);
    const float scale = scale_of_x(a.most);
    float sums[2][8][4] = {}, squares[2][2] = {}, lost[2][2] = {};

    const auto fetch = [&](int step) {
        uint4 *const to = memory + step % STAGES * STREAM_STAGE;
        if (step < steps) {
#pragma unroll
            for (int i = 0; i < STREAM_X / THREADS; i++) {
                const int chunk = (int)threadIdx.x + i * THREADS, row = chunk >> 3, place = chunk & 7;
                const int64_t d = (int64_t)step * STREAM_STEP + place * 4;
                const bool there = first + row < a.count && d < a.width;
                copy_16(to + row * 8 + (place ^ (row & 1) << 2), there ? a.x + (first + row) * a.width + d : a.x, there);
            }
#pragma unroll
            for (int i = 0; i < (STREAM_STAGE - STREAM_X) / THREADS; i++) {
                const int chunk = (int)threadIdx.x + i * THREADS;
                copy_16(to + STREAM_X + chunk, a.centroids + (int64_t)step * (STREAM_STAGE - STREAM_X) + chunk, true);
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    for (int step = 0; step < STAGES - 1; step++) fetch(step);
    for (int step = 0; step < steps; step++) {
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
        __syncthreads(); /* the step has come for all, and all are done with the one that is written over */
        fetch(step + STAGES - 1);
        const uint4 *const from = memory + step % STAGES * STREAM_STAGE;
        uint4 b[8];
#pragma unroll
        for (int n = 0; n < 8; n++) b[n] = from[STREAM_X + n * 32 + lane];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t x[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int row = first_row + m * 16 + r * 8;
                    const float4 v = *reinterpret_cast<const float4 *>(from + row * 8 + ((half * 4 + t) ^ (g & 1) << 2));
                    x[m][r] = halve(v.x * scale, v.y * scale, squares[m][r], lost[m][r]);
                    x[m][r + 2] = halve(v.z * scale, v.w * scale, squares[m][r], lost[m][r]);
                }
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int m = 0; m < 2; m++) multiply(sums[m][n], x[m], half ? b[n].z : b[n].x, half ? b[n].w : b[n].y);
        }
    }
    /* four lanes have a row's clusters, 16 each */
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int64_t row = first + first_row + m * 16 + r * 8;
            float square = squares[m][r], rest = lost[m][r], limit = INFINITY;
            uint64_t near = 0;
#pragma unroll
            for (int d = 1; d < 4; d <<= 1) square += __shfl_xor_sync(0xffffffffu, square, d), rest += __shfl_xor_sync(0xffffffffu, rest, d);
            const reach own = reach_of(square, rest, scale, a.precision);
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const int k = i / 2 * 8 + t * 2 + i % 2;
                if (k >= a.clusters) continue;
                const cost c = cost_of(sums[m][i / 2][r * 2 + i % 2], a.screens[k], own);
                limit = fminf(limit, c.at + c.by);
            }
#pragma unroll
            for (int d = 1; d < 4; d <<= 1) limit = fminf(limit, __shfl_xor_sync(0xffffffffu, limit, d));
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const int k = i / 2 * 8 + t * 2 + i % 2;
                if (k >= a.clusters) continue;
                const cost c = cost_of(sums[m][i / 2][r * 2 + i % 2], a.screens[k], own);
                if (!(c.at - c.by > limit)) near |= (uint64_t)1 << k; /* what is no number is decided again too */
            }
#pragma unroll
            for (int d = 1; d < 4; d <<= 1) near |= __shfl_xor_sync(0xffffffffu, (unsigned long long)near, d);
            if (t == 0 && row < a.count) a.candidates[row] = near;
        }
}

static moed_status stream_products(moedi_cuda *e, const stream_job &job)
{
    enum { MOST = 5, FEWEST = 2, BYTES = STREAM_STAGE * 16 };
    const bool most = e->properties.sharedMemPerBlockOptin >= (size_t)MOST * BYTES;
    const auto kernel = most ? stream_kernel<MOST> : stream_kernel<FEWEST>;
    const int shared = (most ? MOST : FEWEST) * BYTES;
    MOEDI_CUDA_CHECK(e, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(job.count, STREAM_ROWS), THREADS, (size_t)shared, job);
}

/* ---- halves for products by cuBLAS ---- */

/* A warp a row: its halves (rows of `stride`, zeros behind the width), and how far products of them may be off. */
template <int V>
static __global__ void halve_kernel(__half *halves, reach *reaches, const float *x, const extremes *most, int64_t count, int64_t width, int64_t stride,
                                    float precision)
{
    const int lane = threadIdx.x & 31;
    const int64_t i = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    const float scale = scale_of_x(most);
    float square = 0, lost = 0;
    if (i >= count) return;
#pragma unroll 8
    for (int64_t d = lane * V; d < width; d += 32 * V) {
        float v[V];
        pack<__half, V> h;
        load(v, x + i * width + d);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const float at = v[j] * scale;
            h.at[j] = __float2half_rn(at);
            const float rest = at - __half2float(h.at[j]);
            square = fmaf(at, at, square), lost = fmaf(rest, rest, lost);
        }
        *reinterpret_cast<pack<__half, V> *>(halves + i * stride + d) = h;
    }
    for (int64_t d = width + lane; d < stride; d += 32) halves[i * stride + d] = __float2half_rn(0.0f);
    square = warp_sum(square), lost = warp_sum(lost);
    if (lane == 0) reaches[i] = reach_of(square, lost, scale, precision);
}

/* ---- decisions ---- */

template <int V> __device__ static inline float square_distance(const float *x, const float *c, int64_t width, int lane)
{
    float sum = 0;
#pragma unroll 4
    for (int64_t d = lane * V; d < width; d += 32 * V) {
        float p[V], q[V];
        load(p, x + d), load(q, c + d);
#pragma unroll
        for (int j = 0; j < V; j++) sum += (p[j] - q[j]) * (p[j] - q[j]);
    }
    return warp_sum(sum);
}
__device__ static inline float warp_min(float x)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fminf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* A row's nearest so far, by differences: a warp together, clusters in order. */
struct choice {
    double lowest;
    float distance;
    int nearest;
};
template <int V> __device__ static inline void consider(choice &c, const moed_op_kmeans_assign &a, int64_t row, int64_t k, int lane)
{
    const float of = square_distance<V>(a.x + row * a.width, a.centroids + k * a.width, a.width, lane);
    const double with = (double)of + (a.penalty ? a.penalty[k] : 0.0);
    if (c.nearest < 0 || with < c.lowest) c = {with, of, (int)k};
}

/* A lane has a row; rows with more than one candidate, and all where distances are wanted, take the warp. candidates NULL: one cluster. */
template <int V> static __global__ void decide_candidates_kernel(moed_op_kmeans_assign a, const uint64_t *candidates)
{
    const int lane = threadIdx.x & 31;
    const int64_t first = ((int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5)) * 32, row = first + lane;
    const unsigned long long near = row >= a.count ? 0 : candidates ? candidates[row] : 1;
    const bool alone = !(near & (near - 1));
    if (row < a.count && alone) a.labels[row] = __ffsll((long long)near) - 1;
    for (unsigned left = __ballot_sync(0xffffffffu, near && (!alone || a.distances)); left; left &= left - 1) {
        const int from = __ffs((int)left) - 1;
        choice best = {0, 0, -1};
        for (unsigned long long bits = __shfl_sync(0xffffffffu, near, from); bits; bits &= bits - 1)
            consider<V>(best, a, first + from, __ffsll((long long)bits) - 1, lane);
        if (lane) continue;
        a.labels[first + from] = best.nearest;
        if (a.distances) a.distances[first + from] = best.distance;
    }
}

/* The lowest of some costs, its cluster, and the lowest but for it. */
struct lowest_two {
    float first, second;
    int cluster;
};
__device__ static inline void take(lowest_two &l, float cost, int k)
{
    l.second = fminf(l.second, fmaxf(l.first, cost));
    if (cost < l.first) l.first = cost, l.cluster = k;
}
__device__ static inline lowest_two warp_lowest(lowest_two l)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
        const float first = __shfl_xor_sync(0xffffffffu, l.first, d), second = __shfl_xor_sync(0xffffffffu, l.second, d);
        const int cluster = __shfl_xor_sync(0xffffffffu, l.cluster, d);
        l.second = fminf(fminf(l.second, second), fmaxf(l.first, first));
        if (first < l.first) l.first = first, l.cluster = cluster;
    }
    return l;
}

/* A row whose lowest two costs lie too near: each cluster with its own bound, and those left by differences. A warp together. */
template <int V>
__device__ static inline choice decide_row(const moed_op_kmeans_assign &a, const float *dots, const screen *screens, const reach &own, int64_t row, int lane)
{
    float limit = INFINITY;
    choice best = {0, 0, -1};
    for (int64_t k = lane; k < a.clusters; k += 32) {
        const cost c = cost_of(dots[row * a.clusters + k], screens[k], own);
        limit = fminf(limit, c.at + c.by);
    }
    limit = warp_min(limit);
    for (int64_t from = 0; from < a.clusters; from += 32) {
        const int64_t k = from + lane;
        bool near = false;
        if (k < a.clusters) {
            const cost c = cost_of(dots[row * a.clusters + k], screens[k], own);
            near = !(c.at - c.by > limit); /* what is no number is decided again too */
        }
        for (unsigned left = __ballot_sync(0xffffffffu, near); left; left &= left - 1)
            consider<V>(best, a, row, from + __ffs((int)left) - 1, lane);
    }
    return best;
}

/* A warp has ROWS rows, a lane K clusters side by side. All clusters are first given the widest bound of any. */
enum { ROWS = 4 };
template <int V, int K>
static __global__ void decide_kernel(moed_op_kmeans_assign a, const float *dots, prepared p, const reach *reaches)
{
    const int lane = threadIdx.x & 31;
    const int64_t first = ((int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROWS;
    const int rows = (int)(a.count - first < ROWS ? a.count - first : ROWS);
    const float norm = __uint_as_float(p.most->norm), error = __uint_as_float(p.most->error), slack = __uint_as_float(p.most->base) * 0x1p-22f;
    lowest_two l[ROWS];
    if (rows <= 0) return;
#pragma unroll
    for (int i = 0; i < ROWS; i++) l[i] = {INFINITY, INFINITY, 0};
#pragma unroll 2
    for (int64_t k = lane * K; k < a.clusters; k += 32 * K) {
        float dot[ROWS][K], base[K], scale[K];
        load(base, p.lines + k), load(scale, p.lines + a.clusters + k);
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (i < rows) load(dot[i], dots + (first + i) * a.clusters + k);
#pragma unroll
        for (int j = 0; j < K; j++)
#pragma unroll
            for (int i = 0; i < ROWS; i++)
                if (i < rows) take(l[i], fmaf(scale[j], dot[i][j], base[j]), (int)k + j);
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (i >= rows) continue;
        const reach own = reaches[first + i];
        const lowest_two found = warp_lowest(l[i]);
        const float by = fmaf(2.0f, fmaf(own.a, norm, own.b * error), slack);
        choice best = {0, 0, found.cluster};
        /* of equals, and of what is no number, none is far enough */
        if (!(found.second - found.first > 2.0f * by * (1 + 0x1p-20f))) best = decide_row<V>(a, dots, p.screens, own, first + i, lane);
        else if (a.distances) consider<V>(best = {0, 0, -1}, a, first + i, found.cluster, lane);
        if (lane) continue;
        a.labels[first + i] = best.nearest;
        if (a.distances) a.distances[first + i] = best.distance;
    }
}

/* ---- labels ---- */

static prepared take_prepared(moedi_cuda_pieces &p, const moed_op_kmeans_assign *a, int64_t halves)
{
    return {p.take<float>(a->width), p.take<float>(2 * a->clusters), p.take<screen>(a->clusters), p.take<extremes>(1),
            p.take<__half>(halves)};
}
template <bool STREAM> static moed_status prepare(moedi_cuda *e, const moed_op_kmeans_assign *a, const prepared &p, int64_t halves, int64_t stride)
{
    MOEDI_CUDA_CHECK(e, cudaMemsetAsync(p.most, 0, sizeof *p.most, e->stream));
    MOEDI_CUDA_CHECK(e, cudaMemsetAsync(p.halves, 0, (size_t)halves * sizeof *p.halves, e->stream));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, mean_kernel, (unsigned)moedi_cuda_ceil(a->width, THREADS), THREADS, 0, p.mean, p.most, a->centroids,
                                     a->clusters, a->width));
    return moedi_cuda_launch(e, prepare_kernel<STREAM>, (unsigned)a->clusters, THREADS, 0, p, a->centroids, a->penalty, a->width,
                             stride);
}
/* What every addition of a product to the sum so far may lose, and the roundings of the bounds. */
static float precision_of(int64_t width)
{
    return 0x1p-18f + 0x1p-23f * (float)width / 8;
}

static moed_status decide_candidates(moedi_cuda *e, const moed_op_kmeans_assign *a, const uint64_t *candidates)
{
    const auto kernel = packs<float>(a->width, a->x, a->centroids) ? decide_candidates_kernel<4> : decide_candidates_kernel<1>;
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(a->count, THREADS), THREADS, 0, *a, candidates);
}

static moed_status assign_few(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    const int64_t halves = moedi_cuda_ceil(a->width, STREAM_STEP) * STREAM_STEP * STREAM_CLUSTERS;
    prepared c;
    uint64_t *candidates;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &p) {
        c = take_prepared(p, a, halves), candidates = p.take<uint64_t>(a->count);
    }));
    MOEDI_CUDA_TRY(prepare<true>(e, a, c, halves, 0));
    const stream_job job = {candidates, a->x, reinterpret_cast<const uint4 *>(c.halves), c.screens, c.most, a->count, a->width, (int)a->clusters,
                            precision_of(a->width)};
    MOEDI_CUDA_TRY(stream_products(e, job));
    return decide_candidates(e, a, candidates);
}

/* Rows that are multiplied at a time: whole waves of blocks, as long as the bytes of each allow. Measured, K = 1024: 400 MB 15.7 ms, 1 GB
 * 15.3; of slower kernels before, 400 MB 16.6, 128 MB 19.8. */
enum { PRODUCT_BYTES = 400 << 20 };
static int64_t rows_at_a_time(const moedi_cuda *e, int64_t count, int64_t bytes)
{
    const int64_t wave = (int64_t)e->properties.multiProcessorCount * 32;
    const int64_t waves = PRODUCT_BYTES / bytes / wave, rows = waves > 0 ? waves * wave : wave;
    return rows < count ? rows : count;
}

static moed_status assign_many(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    const int64_t stride = moedi_cuda_ceil(a->width, 8) * 8, rows = rows_at_a_time(e, a->count, 4 * a->clusters + 2 * stride);
    prepared c;
    float *dots;
    __half *halves;
    reach *reaches;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &p) {
        c = take_prepared(p, a, a->clusters * stride);
        dots = p.take<float>(rows * a->clusters), halves = p.take<__half>(rows * stride), reaches = p.take<reach>(rows);
    }));
    MOEDI_CUDA_TRY(prepare<false>(e, a, c, a->clusters * stride, stride));
    const bool wide = packs<float>(a->width, a->x, a->centroids), four = a->clusters % 4 == 0;
    const auto halve = wide ? halve_kernel<4> : halve_kernel<1>;
    const auto decide = wide ? (four ? decide_kernel<4, 4> : decide_kernel<4, 1>) : four ? decide_kernel<1, 4> : decide_kernel<1, 1>;
    for (int64_t from = 0; from < a->count; from += rows) {
        moed_op_kmeans_assign part = *a;
        moed_op_gemm product = {};
        part.labels += from, part.x += from * a->width, part.count = rows < a->count - from ? rows : a->count - from;
        if (part.distances) part.distances += from;
        product.c = dots, product.a = halves, product.b = c.halves, product.transpose_b = product.wide_c = 1;
        product.m = part.count, product.n = product.ldc = a->clusters, product.k = product.lda = product.ldb = stride;
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, halve, (unsigned)moedi_cuda_ceil(part.count, WARPS), THREADS, 0, halves, reaches, part.x,
                                         (const extremes *)c.most, part.count, a->width, stride, precision_of(a->width)));
        MOEDI_CUDA_TRY(moedi_cuda_gemm_halves(e, &product));
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, decide, (unsigned)moedi_cuda_ceil(part.count, WARPS * ROWS), THREADS, 0, part, (const float *)dots, c,
                                         (const reach *)reaches));
    }
    return MOED_OK;
}

template <typename T> moed_status moedi_cuda_kmeans_assign(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    if (a->count <= 0) return MOED_OK;
    if (a->clusters == 1) return decide_candidates(e, a, nullptr);
    return a->clusters <= STREAM_CLUSTERS && packs<float>(a->width, a->x) ? assign_few(e, a) : assign_many(e, a);
}
MOEDI_CUDA_DEFINED(kmeans_assign, kmeans_assign)

/* ---- sums ---- */

/* Rows in the order of their labels are summed in pieces of PIECE, a piece's rows of one cluster in double in a register, and the
 * pieces of a cluster in order. The part of cluster k in piece p has the number p + k, which no other part has. */
enum { PIECE = 512, SUM_THREADS = 128, AHEAD = 8 /* rows whose loads are under way together */ };

/* The first place in sorted labels whose label is k or more. */
__device__ static inline int64_t first_of(const int32_t *labels, int64_t count, int64_t k)
{
    int64_t from = 0, end = count;
    while (from < end) {
        const int64_t middle = (from + end) / 2;
        if (labels[middle] < k) from = middle + 1;
        else end = middle;
    }
    return from;
}

/* Piece blockIdx.y, SUM_THREADS * V columns of blockIdx.x. */
template <int V>
static __global__ void __launch_bounds__(SUM_THREADS, 8) part_kernel(double *parts, moed_op_kmeans_accumulate a, const int32_t *labels, const int32_t *places)
{
    __shared__ int32_t label[PIECE], place[PIECE];
    __shared__ float weight[PIECE];
    const int64_t piece = blockIdx.y, column = ((int64_t)blockIdx.x * SUM_THREADS + threadIdx.x) * V;
    const int count = (int)(a.count - piece * PIECE < PIECE ? a.count - piece * PIECE : PIECE);
    for (int i = threadIdx.x; i < count; i += SUM_THREADS) {
        label[i] = labels[piece * PIECE + i], place[i] = places[piece * PIECE + i];
        weight[i] = a.weights ? a.weights[place[i]] : 1.0f;
    }
    __syncthreads();
    if (column >= a.width) return;
    for (int from = 0; from < count;) {
        const int k = label[from], end = (int)first_of(label, count, (int64_t)k + 1);
        double sum[V] = {};
        int i = from;
        for (; i + AHEAD <= end; i += AHEAD) {
            float x[AHEAD][V];
#pragma unroll
            for (int n = 0; n < AHEAD; n++) load(x[n], a.x + (int64_t)place[i + n] * a.width + column);
#pragma unroll
            for (int n = 0; n < AHEAD; n++)
#pragma unroll
                for (int j = 0; j < V; j++) sum[j] = fma((double)weight[i + n], (double)x[n][j], sum[j]);
        }
        for (; i < end; i++) {
            float x[V];
            load(x, a.x + (int64_t)place[i] * a.width + column);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] = fma((double)weight[i], (double)x[j], sum[j]);
        }
#pragma unroll
        for (int j = 0; j < V; j++) parts[(piece + k) * a.width + column + j] = sum[j];
        from = end;
    }
}

/* Cluster blockIdx.x, columns of blockIdx.y. */
static __global__ void whole_kernel(moed_op_kmeans_accumulate a, const double *parts, const int32_t *labels, const int32_t *places)
{
    const int64_t k = blockIdx.x, from = first_of(labels, a.count, k), end = first_of(labels, a.count, k + 1);
    const int64_t column = (int64_t)blockIdx.y * SUM_THREADS + threadIdx.x;
    double sum = 0, total = 0;
    if (column < a.width && from < end) {
#pragma unroll 8
        for (int64_t piece = from / PIECE; piece <= (end - 1) / PIECE; piece++) sum += parts[(piece + k) * a.width + column];
    }
    if (column < a.width) a.sums[k * a.width + column] = sum;
    if (blockIdx.y) return;
    if (a.weights) {
        for (int64_t i = from + threadIdx.x; i < end; i += SUM_THREADS) total += (double)a.weights[places[i]];
        total = block_sum(total);
    } else {
        total = (double)(end - from);
    }
    if (threadIdx.x == 0) a.totals[k] = total, a.counts[k] = end - from;
}
template <typename T> moed_status moedi_cuda_kmeans_accumulate(moedi_cuda *e, const moed_op_kmeans_accumulate *a)
{
    int64_t sorting;
    MOEDI_CUDA_TRY(moedi_cuda_sort_room(e, a->count, a->clusters, &sorting));
    const int64_t pieces = moedi_cuda_ceil(a->count, PIECE);
    const int columns = packs<float>(a->width, a->x) ? 4 : 1;
    moedi_cuda_sorted sorted;
    double *parts;
    char *work;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &p) {
        parts = p.take<double>((pieces + a->clusters) * a->width), work = p.take<char>(sorting);
    }));
    MOEDI_CUDA_TRY(moedi_cuda_sort(e, a->labels, a->count, a->clusters, work, &sorted));
    const unsigned slices = (unsigned)moedi_cuda_ceil(a->width, SUM_THREADS * columns);
    const unsigned most = 1 << 15; /* a grid's y has 16 bits: pieces from `first` on */
    for (int64_t first = 0; first < pieces; first += most) {
        moed_op_kmeans_accumulate part = *a;
        part.count = a->count - first * PIECE;
        const unsigned some = (unsigned)(pieces - first < most ? pieces - first : most);
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, columns == 4 ? part_kernel<4> : part_kernel<1>, dim3(slices, some), SUM_THREADS, 0,
                                         parts + first * a->width, part, sorted.keys + first * PIECE,
                                         sorted.places + first * PIECE));
    }
    return moedi_cuda_launch(e, whole_kernel, dim3((unsigned)a->clusters, (unsigned)moedi_cuda_ceil(a->width, SUM_THREADS)), SUM_THREADS, 0, *a,
                             (const double *)parts, sorted.keys, sorted.places);
}
MOEDI_CUDA_DEFINED(kmeans_accumulate, kmeans_accumulate)

/* ---- both, and distances alone ---- */

/* Nothing is kept from step to step. */
template <typename T> moed_status moedi_cuda_kmeans_step(moedi_cuda *e, const moed_op_kmeans_step *a)
{
    const moed_op_kmeans_assign labels = {a->labels, nullptr, a->x, a->centroids, nullptr, a->count, a->width, a->clusters};
    const moed_op_kmeans_accumulate sums = {a->sums, a->totals, a->counts, a->x, a->weights, a->labels, a->count, a->width, a->clusters};
    MOEDI_CUDA_TRY(moedi_cuda_kmeans_assign<T>(e, &labels));
    return moedi_cuda_kmeans_accumulate<T>(e, &sums);
}
MOEDI_CUDA_DEFINED(kmeans_step, kmeans_step)

/* A warp a row. Rows are read from memory once, then from the caches. */
template <int V> static __global__ void distances_kernel(moed_op_kmeans_distances a)
{
    const int lane = threadIdx.x & 31;
    const int64_t i = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (i >= a.count) return;
    for (int64_t k = 0; k < a.clusters; k++) {
        const float distance = square_distance<V>(a.x + i * a.width, a.centroids + k * a.width, a.width, lane);
        if (lane == 0) a.distances[k * a.count + i] = distance;
    }
}
template <typename T> moed_status moedi_cuda_kmeans_distances(moedi_cuda *e, const moed_op_kmeans_distances *a)
{
    const auto kernel = packs<float>(a->width, a->x, a->centroids) ? distances_kernel<4> : distances_kernel<1>;
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(a->count, WARPS), THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(kmeans_distances, kmeans_distances)

/* ---- centroids ---- */

/* A block a centroid. */
static __global__ void move_kernel(moed_op_kmeans_move a)
{
    const int64_t k = blockIdx.x;
    const double total = a.totals[k];
    double square = 0;
    for (int64_t d = threadIdx.x; d < a.width && total > 0; d += THREADS) {
        float *const c = a.centroids + k * a.width + d;
        const float next = (float)(a.sums[k * a.width + d] / total);
        const double away = (double)next - (double)*c;
        square += away * away;
        *c = next;
    }
    square = block_sum(square);
    if (threadIdx.x == 0) a.moved[k] = (float)(sqrt(square) * (1 + 1e-6));
}
template <typename T> moed_status moedi_cuda_kmeans_move(moedi_cuda *e, const moed_op_kmeans_move *a)
{
    return moedi_cuda_launch(e, move_kernel, (unsigned)a->clusters, THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(kmeans_move, kmeans_move)
