/* cuda/common/cluster.cu - a step of Lloyd's k-means: labels by products of matrices, sums by sorted labels, centroids from them.
 *
 * ||x - c||^2 orders the centroids as base - 2 x.(c - m) does, where m is the centroids' mean and base = ||c||^2 - ||m||^2. The
 * products are of narrow numbers: up to 64 clusters by the kernel below, which streams x once and splits each float in two bf16;
 * more by cuBLAS in TF32. Every product comes with a bound of its error. What lies within the bounds of the lowest is decided
 * again by differences in float: labels are those of float, and a tie takes the lower cluster. Nothing depends on the order in
 * which threads run. */
#include "numbers.cuh"
#include "operations.h"
#include "sort.h"

enum { WARPS = 8, THREADS = 32 * WARPS };

/* ---- what a step knows of the centroids ---- */

/* The cost of a cluster is base - 2 x.c; its error is at most slack + 2 (row's a * norm + row's b * error). */
struct alignas(16) screen {
    float base, norm, error, slack;
};
/* Of a row: a, b above, rounded up. */
typedef __nv_bfloat162 reach;

enum { STREAM_CLUSTERS = 64, STREAM_ROWS = 256, STREAM_STEP = 32, STREAM_X = STREAM_ROWS * STREAM_STEP / 4,
       STREAM_STAGE = STREAM_X + STREAM_CLUSTERS * STREAM_STEP / 4 /* of 16 bytes */ };

static __global__ void mean_kernel(float *mean, const float *centroids, int64_t clusters, int64_t width)
{
    const int64_t d = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    float sum = 0;
    if (d >= width) return;
#pragma unroll 8
    for (int64_t k = 0; k < clusters; k++) sum += centroids[k * width + d];
    mean[d] = sum / (float)clusters;
}

__device__ static inline float tf32(float x)
{
    uint32_t bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
    return __uint_as_float(bits);
}

/* Where the streaming kernel has bf16 halves of column d of centroid k: its lanes load 16 bytes for 8 clusters and 16 columns,
 * four high halves and then four low ones. Lane 4 g + t has centroid g and columns 4 t to 4 t + 3; x is loaded alike. */
__device__ static inline int64_t stream_place(int64_t k, int64_t d)
{
    return (((d / 16 * (STREAM_CLUSTERS / 8) + k / 8) * 32 + k % 8 * 4 + d % 16 / 4) * 8) + d % 4;
}

/* A block a centroid. narrow: halves for the streaming kernel (zeroed before), or TF32. */
template <bool STREAM>
static __global__ void prepare_kernel(screen *screens, void *narrow, const float *centroids, const float *mean, const double *penalty, int64_t width)
{
    const int64_t k = blockIdx.x;
    double base = 0, square = 0, lost = 0;
    for (int64_t d = threadIdx.x; d < width; d += THREADS) {
        const float at = centroids[k * width + d], m = mean[d], c = at - m;
        base += ((double)at - (double)m) * ((double)at + (double)m);
        square += (double)c * (double)c;
        if (STREAM) {
            bf16 *const to = static_cast<bf16 *>(narrow) + stream_place(k, d);
            const bf16 high = __float2bfloat16_rn(c);
            to[0] = high;
            to[4] = __float2bfloat16_rn(c - __bfloat162float(high));
        } else {
            const float rounded = tf32(c);
            static_cast<float *>(narrow)[k * width + d] = rounded;
            lost += ((double)c - (double)rounded) * ((double)c - (double)rounded);
        }
    }
    base = block_sum(base), square = block_sum(square), lost = block_sum(lost);
    if (threadIdx.x) return;
    if (penalty) base += penalty[k];
    const float slack = fabsf((float)base) * 0x1p-22f;
    screens[k] = {(float)base, __double2float_ru(sqrt(square) * (1 + 0x1p-10)), __double2float_ru(sqrt(lost)), slack};
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
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Two floats as two pairs of bf16: x = high + low to 2^-18 of it. */
__device__ static inline void split(float x, float y, uint32_t &high, uint32_t &low)
{
    const __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
    const __nv_bfloat162 l = __floats2bfloat162_rn(x - __low2float(h), y - __high2float(h));
    memcpy(&high, &h, sizeof high);
    memcpy(&low, &l, sizeof low);
}

struct stream_job {
    float *dots; /* (count, clusters) */
    reach *reaches;
    const float *x;
    const uint4 *centroids; /* by stream_place */
    int64_t count, width;
    int clusters;
    float precision; /* of a product, by the lengths of its factors */
};

/* A block has 256 rows, a warp 32 of them with all clusters: each number of x is split once. Steps of 32 columns come by
 * asynchronous copies, STAGES - 1 ahead. Odd rows have their halves of a step swapped, which spares conflicts of banks. */
template <int STAGES> static __global__ void __launch_bounds__(THREADS, 1) stream_kernel(const stream_job a)
{
    extern __shared__ uint4 memory[];
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, first_row = (threadIdx.x >> 5) * 32 + g;
    const int64_t first = (int64_t)blockIdx.x * STREAM_ROWS;
    const int steps = (int)((a.width + STREAM_STEP - 1) / STREAM_STEP);
    float sums[2][8][4] = {}, squares[2][2] = {};

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
        const uint4 *const from = memory + step % STAGES * STREAM_STAGE, *const centroids = from + STREAM_X + lane;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            uint32_t high[2][4], low[2][4];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const int row = first_row + m * 16 + r * 8;
                    const float4 v = *reinterpret_cast<const float4 *>(from + row * 8 + ((half * 4 + t) ^ (g & 1) << 2));
                    split(v.x, v.y, high[m][r], low[m][r]);
                    split(v.z, v.w, high[m][r + 2], low[m][r + 2]);
                    squares[m][r] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
                }
#pragma unroll
            for (int n = 0; n < 8; n += 4) {
                uint4 b[4];
#pragma unroll
                for (int i = 0; i < 4; i++) b[i] = centroids[(half * 8 + n + i) * 32];
#pragma unroll
                for (int i = 0; i < 8; i++) multiply(sums[i & 1][n + i / 2], low[i & 1], b[i / 2].x, b[i / 2].y);
#pragma unroll
                for (int i = 0; i < 8; i++) multiply(sums[i & 1][n + i / 2], high[i & 1], b[i / 2].z, b[i / 2].w);
#pragma unroll
                for (int i = 0; i < 8; i++) multiply(sums[i & 1][n + i / 2], high[i & 1], b[i / 2].x, b[i / 2].y);
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int64_t row = first + first_row + m * 16 + r * 8;
            float square = squares[m][r];
            square += __shfl_xor_sync(0xffffffffu, square, 1);
            square += __shfl_xor_sync(0xffffffffu, square, 2);
            if (row >= a.count) continue;
            if (t == 0) a.reaches[row] = {__float2bfloat16_ru(a.precision * sqrtf(square)), __float2bfloat16_ru(0.0f)};
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int j = 0; j < 2; j++)
                    if (n * 8 + t * 2 + j < a.clusters) a.dots[row * a.clusters + n * 8 + t * 2 + j] = sums[m][n][r * 2 + j];
        }
}

static moed_status stream_products(moedi_cuda *e, const stream_job &job)
{
    enum { MOST = 4, FEWEST = 2, BYTES = STREAM_STAGE * 16 };
    const bool most = e->properties.sharedMemPerBlockOptin >= (size_t)MOST * BYTES;
    const auto kernel = most ? stream_kernel<MOST> : stream_kernel<FEWEST>;
    const int shared = (most ? MOST : FEWEST) * BYTES;
    MOEDI_CUDA_CHECK(e, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(job.count, STREAM_ROWS), THREADS, (size_t)shared, job);
}

/* ---- products by cuBLAS ---- */

/* A warp a row: how far cuBLAS' product may be off. Tensor cores drop what TF32 does not hold of x, or round it. */
template <int V> static __global__ void reach_kernel(reach *reaches, const float *x, int64_t count, int64_t width, float precision)
{
    const int lane = threadIdx.x & 31;
    const int64_t i = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    float square = 0, lost = 0;
    if (i >= count) return;
#pragma unroll 4
    for (int64_t d = lane * V; d < width; d += 32 * V) {
        float v[V];
        load(v, x + i * width + d);
#pragma unroll
        for (int j = 0; j < V; j++) {
            const float rest = v[j] - __uint_as_float(__float_as_uint(v[j]) & 0xffffe000u);
            square += v[j] * v[j], lost += rest * rest;
        }
    }
    const float length = sqrtf(warp_sum(square)) * (1 + 0x1p-12f), rest = sqrtf(warp_sum(lost)) * (1 + 0x1p-12f);
    if (lane == 0) reaches[i] = {__float2bfloat16_ru(rest + precision * length), __float2bfloat16_ru(length)};
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

/* A cluster's cost is at least `at` less `by`, at most `at` and `by`. */
struct cost {
    float at, by;
};
__device__ static inline cost cost_of(float dot, const screen &s, float2 r)
{
    return {fmaf(-2.0f, dot, s.base), fmaf(2.0f, fmaf(r.x, s.norm, r.y * s.error), s.slack)};
}

/* A warp has ROWS rows. dots NULL: no product is known, every cluster may be the nearest. */
enum { ROWS = 4 };
template <int V> static __global__ void decide_kernel(moed_op_kmeans_assign a, const float *dots, const screen *screens, const reach *reaches)
{
    const int lane = threadIdx.x & 31;
    const int64_t first = ((int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5)) * ROWS;
    const int rows = (int)(a.count - first < ROWS ? a.count - first : ROWS);
    float limit[ROWS];
    float2 r[ROWS];
    int found[ROWS] = {}, nearest[ROWS] = {};
    if (rows <= 0) return;
#pragma unroll
    for (int i = 0; i < ROWS; i++) limit[i] = INFINITY, r[i] = dots && i < rows ? __bfloat1622float2(reaches[first + i]) : float2{0, 0};
    const auto candidate = [&](int i, int64_t k, const screen &s) {
        const cost c = cost_of(dots[(first + i) * a.clusters + k], s, r[i]);
        return !(c.at - c.by > limit[i]); /* what is no number is decided again too */
    };
    for (int64_t k = lane; dots && k < a.clusters; k += 32) {
        const screen s = screens[k];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (i >= rows) continue;
            const cost c = cost_of(dots[(first + i) * a.clusters + k], s, r[i]);
            limit[i] = fminf(limit[i], c.at + c.by);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) limit[i] = warp_min(limit[i]);
    for (int64_t from = 0; dots && from < a.clusters; from += 32) {
        const int64_t k = from + lane;
        const screen s = k < a.clusters ? screens[k] : screen{};
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const unsigned near = __ballot_sync(0xffffffffu, i < rows && k < a.clusters && candidate(i, k, s));
            if (near && !found[i]) nearest[i] = (int)from + __ffs((int)near) - 1;
            found[i] += __popc(near);
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (i >= rows) continue;
        const float *const x = a.x + (first + i) * a.width;
        float distance = 0;
        if (found[i] == 1 || a.clusters == 1) {
            if (a.distances) distance = square_distance<V>(x, a.centroids + nearest[i] * a.width, a.width, lane);
        } else {
            double lowest = 0;
            nearest[i] = -1;
            for (int64_t from = 0; from < a.clusters; from += 32) {
                const int64_t own = from + lane;
                unsigned near = __ballot_sync(0xffffffffu, own < a.clusters && (!dots || candidate(i, own, screens[own])));
                for (; near; near &= near - 1) {
                    const int64_t k = from + __ffs((int)near) - 1;
                    const float of = square_distance<V>(x, a.centroids + k * a.width, a.width, lane);
                    const double with = (double)of + (a.penalty ? a.penalty[k] : 0.0);
                    if (nearest[i] < 0 || with < lowest) lowest = with, distance = of, nearest[i] = (int)k;
                }
            }
        }
        if (lane) continue;
        a.labels[first + i] = nearest[i];
        if (a.distances) a.distances[first + i] = distance;
    }
}

static moed_status decide(moedi_cuda *e, const moed_op_kmeans_assign *a, const float *dots, const screen *screens, const reach *reaches)
{
    const auto kernel = packs<float>(a->width, a->x, a->centroids) ? decide_kernel<4> : decide_kernel<1>;
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(a->count, WARPS * ROWS), THREADS, 0, *a, dots, screens, reaches);
}

/* ---- labels ---- */

/* Rows that are multiplied at a time: whole waves of blocks, as long as the products' bytes allow. */
static int64_t rows_at_a_time(const moedi_cuda *e, bool stream, int64_t count, int64_t clusters)
{
    const int64_t bytes = stream ? 128 << 20 : 200 << 20; /* of cuBLAS: measured, more at a time than stays in the L2 */
    const int64_t wave = (int64_t)e->properties.multiProcessorCount * (stream ? STREAM_ROWS : 32);
    const int64_t waves = bytes / 4 / clusters / wave, rows = waves > 0 ? waves * wave : wave;
    return rows < count ? rows : count;
}

/* kept: (count) for the rows' reaches, which depend on x alone; known: they are there. NULL: none is kept. */
static moed_status assign(moedi_cuda *e, const moed_op_kmeans_assign *a, reach *kept, bool known)
{
    if (a->count <= 0) return MOED_OK;
    if (a->clusters == 1) return decide(e, a, nullptr, nullptr, nullptr);
    const bool stream = a->clusters <= STREAM_CLUSTERS && packs<float>(a->width, a->x);
    const int64_t rows = rows_at_a_time(e, stream, a->count, a->clusters), steps = moedi_cuda_ceil(a->width, STREAM_STEP);
    const int64_t room = stream ? steps * (STREAM_STAGE - STREAM_X) * 16 : a->clusters * a->width * (int64_t)sizeof(float);
    moedi_cuda_pieces p;
    float *mean, *dots;
    screen *screens;
    char *narrow;
    reach *reaches;
    void *memory;
    const auto lay = [&] {
        mean = p.take<float>(a->width), screens = p.take<screen>(a->clusters), narrow = p.take<char>(room);
        dots = p.take<float>(rows * a->clusters), reaches = !stream && kept ? kept : p.take<reach>(a->count);
    };
    lay();
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, p.used, &memory));
    p.base = static_cast<char *>(memory), p.used = 0;
    lay();
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, mean_kernel, (unsigned)moedi_cuda_ceil(a->width, THREADS), THREADS, 0, mean, a->centroids, a->clusters, a->width));
    if (stream) MOEDI_CUDA_CHECK(e, cudaMemsetAsync(narrow, 0, (size_t)room, e->stream));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, stream ? prepare_kernel<true> : prepare_kernel<false>, (unsigned)a->clusters, THREADS, 0, screens,
                                     (void *)narrow, a->centroids, mean, a->penalty, a->width));
    /* what is left out of the factors, and every addition of a product to the sum so far */
    const float precision = 0x1p-16f + 0x1p-23f * (float)a->width * (stream ? 3.0f / 16 : 1.0f / 4);
    if (!stream && !(kept && known)) {
        const auto kernel = packs<float>(a->width, a->x) ? reach_kernel<4> : reach_kernel<1>;
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(a->count, WARPS), THREADS, 0, reaches, a->x, a->count, a->width, precision));
    }
    for (int64_t from = 0; from < a->count; from += rows) {
        moed_op_kmeans_assign part = *a;
        part.labels += from, part.x += from * a->width, part.count = rows < a->count - from ? rows : a->count - from;
        if (part.distances) part.distances += from;
        if (stream) {
            const stream_job job = {dots, reaches + from, part.x, reinterpret_cast<const uint4 *>(narrow), part.count, a->width, (int)a->clusters, precision};
            MOEDI_CUDA_TRY(stream_products(e, job));
        } else {
            moed_op_gemm product = {};
            product.c = dots, product.a = part.x, product.b = narrow, product.transpose_b = 1;
            product.m = part.count, product.n = a->clusters, product.k = a->width;
            product.lda = product.ldb = a->width, product.ldc = a->clusters;
            MOEDI_CUDA_TRY(moedi_cuda_gemm_tf32(e, &product));
        }
        MOEDI_CUDA_TRY(decide(e, &part, dots, screens, reaches + from));
    }
    return MOED_OK;
}
template <typename T> moed_status moedi_cuda_kmeans_assign(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    return assign(e, a, nullptr, false);
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
    void *memory;
    MOEDI_CUDA_TRY(moedi_cuda_sort_room(e, a->count, a->clusters, &sorting));
    const int64_t pieces = moedi_cuda_ceil(a->count, PIECE);
    const int columns = packs<float>(a->width, a->x) ? 4 : 1;
    moedi_cuda_pieces p;
    moedi_cuda_sorted sorted;
    double *parts;
    char *work;
    const auto lay = [&] { parts = p.take<double>((pieces + a->clusters) * a->width), work = p.take<char>(sorting); };
    lay();
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, p.used, &memory));
    p.base = static_cast<char *>(memory), p.used = 0;
    lay();
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

/* Of `lower`, only the rows' reaches are made: they hold as long as x does. */
template <typename T> moed_status moedi_cuda_kmeans_step(moedi_cuda *e, const moed_op_kmeans_step *a)
{
    const moed_op_kmeans_assign labels = {a->labels, nullptr, a->x, a->centroids, nullptr, a->count, a->width, a->clusters};
    const moed_op_kmeans_accumulate sums = {a->sums, a->totals, a->counts, a->x, a->weights, a->labels, a->count, a->width, a->clusters};
    static_assert(sizeof(reach) == sizeof *a->lower, "a reach is kept where a float belongs");
    MOEDI_CUDA_TRY(assign(e, &labels, reinterpret_cast<reach *>(a->lower), a->moved != nullptr));
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
