/* cuda/common/kmeans_assign.cu - the nearest centroid of each row, by products of halves and their bounds (kmeans_screen.cuh).
 *
 * Up to 64 clusters the kernel below streams x once; more are multiplied by a kernel of the chip where there is one, else by
 * cuBLAS. What lies within the bounds of the lowest cost is decided again by differences in float: labels are those of float, and
 * a tie takes the lower cluster. Nothing depends on the order in which threads run. */
#include "kmeans_screen.cuh"

enum { WARPS = 8, THREADS = 32 * WARPS };

/* A cluster's cost is at least `at` less `by`, at most `at` and `by`. */
struct cost {
    float at, by;
};
__device__ static inline cost cost_of(float dot, const screen &s, const reach &r)
{
    return {fmaf(-2.0f * s.scale, dot, s.base), fmaf(2.0f, fmaf(r.a, s.norm, r.b * s.error), fabsf(s.base) * 0x1p-22f)};
}

/* ---- products, up to 64 clusters ---- */

enum { STREAM_CLUSTERS = 64, STREAM_ROWS = 256, STREAM_STEP = 32, STREAM_X = STREAM_ROWS * STREAM_STEP / 4,
       STREAM_STAGE = STREAM_X + STREAM_CLUSTERS * STREAM_STEP / 8 /* of 16 bytes */ };

/* Where the streaming kernel has column d of centroid k: a lane loads 16 bytes for 8 clusters and 32 columns. Lane 4 g + t has
 * centroid g, and columns 4 t to 4 t + 3 of the first and of the second 16; x is loaded alike. */
struct stream_place {
    __device__ int64_t operator()(int64_t k, int64_t d) const
    {
        return ((d / 32 * (STREAM_CLUSTERS / 8) + k / 8) * 32 + k % 8 * 4 + d % 16 / 4) * 8 + d / 16 % 2 * 4 + d % 4;
    }
};

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

/* A block has 256 rows, a warp 32 of them with all clusters: each number of x is taken once. Steps of 32 columns come by
 * asynchronous copies, STAGES - 1 ahead. Odd rows have their halves of a step swapped, which spares conflicts of banks. */
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
            for (int d = 1; d < 4; d <<= 1)
                square += __shfl_xor_sync(0xffffffffu, square, d), rest += __shfl_xor_sync(0xffffffffu, rest, d);
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

/* Rows `stride` apart. */
struct row_place {
    int64_t stride;
    __device__ int64_t operator()(int64_t k, int64_t d) const { return k * stride + d; }
};

/* A warp a row: its halves (rows of `stride`, zeros behind the width), and how far products of them may be off. */
template <int V>
static __global__ void halve_kernel(__half *halves, reach *reaches, const float *x, const extremes *most, int64_t count,
                                    int64_t width, int64_t stride, float precision)
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
template <int V>
__device__ static inline void consider(choice &c, const moed_op_kmeans_assign &a, int64_t row, int64_t k, int lane)
{
    const float of = square_distance<V>(a.x + row * a.width, a.centroids + k * a.width, a.width, lane);
    const double with = (double)of + (a.penalty ? a.penalty[k] : 0.0);
    if (c.nearest < 0 || with < c.lowest) c = {with, of, (int)k};
}

/* A lane has a row; rows with more than one candidate, and all where distances are wanted, take the warp. */
template <int V, int WORDS> static __global__ void decide_candidates_kernel(moed_op_kmeans_assign a, const uint64_t *candidates)
{
    const int lane = threadIdx.x & 31;
    const int64_t first = ((int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5)) * 32, row = first + lane;
    int count = 0, only = 0;
    if (row < a.count) {
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            const unsigned long long near = candidates ? candidates[row * WORDS + w] : 1;
            count += __popcll(near);
            if (near) only = w * 64 + __ffsll((long long)near) - 1;
        }
    }
    if (count == 1) a.labels[row] = only;
    for (unsigned left = __ballot_sync(0xffffffffu, count > 1 || (count && a.distances)); left; left &= left - 1) {
        const int64_t at = first + __ffs((int)left) - 1;
        const unsigned long long own = lane >= WORDS ? 0 : candidates ? candidates[at * WORDS + lane] : 1;
        choice best = {0, 0, -1};
        for (unsigned words = __ballot_sync(0xffffffffu, own != 0); words; words &= words - 1) {
            const int w = __ffs((int)words) - 1;
            for (unsigned long long near = __shfl_sync(0xffffffffu, own, w); near; near &= near - 1)
                consider<V>(best, a, at, w * 64 + __ffsll((long long)near) - 1, lane);
        }
        if (lane) continue;
        a.labels[at] = best.nearest;
        if (a.distances) a.distances[at] = best.distance;
    }
}
template <int V> static auto decide_candidates_of(int words)
{
    return words == 1   ? decide_candidates_kernel<V, 1>
           : words == 4 ? decide_candidates_kernel<V, 4>
           : words == 8 ? decide_candidates_kernel<V, 8>
                        : decide_candidates_kernel<V, 16>;
}
moed_status moedi_cuda_kmeans_decide(moedi_cuda *e, const moed_op_kmeans_assign *a, const uint64_t *candidates, int words)
{
    const auto kernel =
        packs<float>(a->width, a->x, a->centroids) ? decide_candidates_of<4>(words) : decide_candidates_of<1>(words);
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(a->count, THREADS), THREADS, 0, *a, candidates);
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
__device__ static inline choice decide_row(const moed_op_kmeans_assign &a, const float *dots, const screen *screens,
                                           const reach &own, int64_t row, int lane)
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
    const float norm = __uint_as_float(p.most->norm), error = __uint_as_float(p.most->error),
                slack = __uint_as_float(p.most->base) * 0x1p-22f;
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
        if (!(found.second - found.first > 2.0f * by * (1 + 0x1p-20f)))
            best = decide_row<V>(a, dots, p.screens, own, first + i, lane);
        else if (a.distances) consider<V>(best = {0, 0, -1}, a, first + i, found.cluster, lane);
        if (lane) continue;
        a.labels[first + i] = best.nearest;
        if (a.distances) a.distances[first + i] = best.distance;
    }
}
/* ---- labels ---- */

static moed_status assign_few(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    const int64_t halves = moedi_cuda_ceil(a->width, STREAM_STEP) * STREAM_STEP * STREAM_CLUSTERS;
    prepared c;
    uint64_t *candidates;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &p) {
        c = take_prepared(p, a, halves), candidates = p.take<uint64_t>(a->count);
    }));
    MOEDI_CUDA_TRY(prepare(e, a, c, halves, stream_place()));
    const stream_job job = {candidates, a->x, reinterpret_cast<const uint4 *>(c.halves), c.screens, c.most,
                            a->count, a->width, (int)a->clusters, precision_of(a->width)};
    MOEDI_CUDA_TRY(stream_products(e, job));
    return moedi_cuda_kmeans_decide(e, a, candidates, 1);
}

/* Rows that are multiplied at a time: whole waves of blocks, as long as the bytes of each allow. Measured, K = 1024: 400 MB 15.7
 * ms, 1 GB 15.3; of slower kernels before, 400 MB 16.6, 128 MB 19.8. */
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
    MOEDI_CUDA_TRY(prepare(e, a, c, a->clusters * stride, row_place{stride}));
    const bool wide = packs<float>(a->width, a->x, a->centroids), four = a->clusters % 4 == 0;
    const auto halve = wide ? halve_kernel<4> : halve_kernel<1>;
    const auto decide = wide ? (four ? decide_kernel<4, 4> : decide_kernel<4, 1>)
                             : (four ? decide_kernel<1, 4> : decide_kernel<1, 1>);
    for (int64_t from = 0; from < a->count; from += rows) {
        moed_op_kmeans_assign part = *a;
        moed_op_gemm product = {};
        part.labels += from, part.x += from * a->width, part.count = rows < a->count - from ? rows : a->count - from;
        if (part.distances) part.distances += from;
        product.c = dots, product.a = halves, product.b = c.halves, product.transpose_b = product.wide_c = 1;
        product.m = part.count, product.n = product.ldc = a->clusters, product.k = product.lda = product.ldb = stride;
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, halve, (unsigned)moedi_cuda_ceil(part.count, WARPS), THREADS, 0, halves, reaches,
                                         part.x, (const extremes *)c.most, part.count, a->width, stride, precision_of(a->width)));
        MOEDI_CUDA_TRY(moedi_cuda_gemm_halves(e, &product));
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, decide, (unsigned)moedi_cuda_ceil(part.count, WARPS * ROWS), THREADS, 0, part,
                                         (const float *)dots, c, (const reach *)reaches));
    }
    return MOED_OK;
}

template <typename T> moed_status moedi_cuda_kmeans_assign(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    if (a->count <= 0) return MOED_OK;
    if (a->clusters == 1) return moedi_cuda_kmeans_decide(e, a, nullptr, 1);
    if (a->clusters <= STREAM_CLUSTERS && packs<float>(a->width, a->x)) return assign_few(e, a);
    const moed_status status = moedi_cuda_kmeans_assign_sm90(e, a);
    return status == MOED_E_UNSUPPORTED ? assign_many(e, a) : status;
}
MOEDI_CUDA_DEFINED(kmeans_assign, kmeans_assign)

/* ---- all distances ---- */

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
