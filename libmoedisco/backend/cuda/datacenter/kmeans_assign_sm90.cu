/* cuda/datacenter/kmeans_assign_sm90.cu - candidates for the nearest of 65 to 1,024 centroids on Hopper: x is read once and its
 * products are never stored.
 *
 * A block has 128 rows and 256 centroids; up to four blocks side by side, a cluster, have all centroids. Each copies its share of
 * the rows to all of them at once. One warp of a block copies ahead; two groups of four warps turn floats into halves in
 * registers while the multipliers have those before. In the end the blocks tell each other the lowest that a cost can be at most,
 * and each says which of its centroids can be below that. What the halves of a row lack is not measured here, but bounded by its
 * length: each block has all of it. */
#define NDEBUG 1 /* CUTLASS asserts in its kernels */

#include <utility>

#include "cute/arch/cluster_sm90.hpp"
#include "cute/arch/copy_sm90_tma.hpp"
#include "cute/arch/mma_sm90_gmma.hpp"
#include "cutlass/arch/barrier.h"
#include "cutlass/arch/reg_reconfig.h"

#include "../common/kmeans_screen.cuh"

namespace {

enum : int {
    ROWS = 128,             /* of a block */
    COLUMNS = 256,          /* centroids of a block */
    ACROSS = 4,             /* blocks side by side, at most */
    STEP = 32,              /* of the width */
    STAGES = 6,
    WORKERS = 256, THREADS = WORKERS + 128,
    WORKER_WARPS = WORKERS / 32,
    WORDS = COLUMNS / 64    /* of candidates, of a block */
};
using product = cute::SM90::GMMA::MMA_64x256x16_F32F16F16_RS<cute::SM90::GMMA::Major::K, cute::SM90::GMMA::Major::K>;
using cutlass::arch::ClusterBarrier;
using cutlass::arch::ClusterTransactionBarrier;

/* As the copy engine lays them and readers find all banks: rows of x of 128 bytes, chunk c of row r in the place of c ^ r % 8; of
 * c of 64 bytes, likewise by two rows. */
struct alignas(1024) stage {
    float x[ROWS * STEP];
    __half c[COLUMNS * STEP];
};
/* Of a centroid, its cost being base + slope * product, `reach` times the row's length the most that it is off, but for base's
 * rounding. */
struct alignas(16) line {
    float base, slope, reach, nothing;
};
struct shared_memory {
    stage stages[STAGES];
    line lines[COLUMNS];
    float limits[2][ACROSS][ROWS]; /* of tiles in turn: no block is ahead by two */
    ClusterTransactionBarrier full[STAGES];
    ClusterBarrier empty[STAGES], told;
};

struct job {
    uint64_t *candidates; /* (count, words) */
    const screen *screens;
    const extremes *most;
    int64_t count;
    int clusters, across, steps, words, tiles; /* a tile: ROWS rows, to a cluster of blocks */
    unsigned nothing; /* 0, which the compiler does not know */
    float precision; /* what halves of x lack and products lose, by the lengths of their factors */
    float least;     /* added to the length of a scaled row: the smallest halves are off by more than their share */
};

/* Where a centroid's column is in a row of halves: a lane has columns 4 t to 4 t + 3 of 16, which the multipliers know as 2 t, 2
 * t + 1, 2 t + 8 and 2 t + 9. */
struct lane_place {
    int64_t stride;
    __device__ int64_t operator()(int64_t k, int64_t d) const
    {
        return k * stride + d / 16 * 16 + d % 16 / 4 * 2 + d % 2 + (d % 4 < 2 ? 0 : 8);
    }
};

/* Waits for what other blocks of the cluster told. */
__device__ inline void wait_for_told(ClusterBarrier *barrier, unsigned phase)
{
    asm volatile("{\n\t.reg .pred done;\n\tagain:\n\t"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;\n\t}" ::"r"(cute::cast_smem_ptr_to_uint(barrier)),
                 "r"(phase)
                 : "memory");
}
/* Writes to the same place in another block. */
__device__ inline void tell(const float *place, unsigned block, float x)
{
    asm volatile("{\n\t.reg .b32 there;\n\tmapa.shared::cluster.u32 there, %0, %1;\n\t"
                 "st.shared::cluster.f32 [there], %2;\n\t}" ::"r"(cute::cast_smem_ptr_to_uint(place)),
                 "r"(block), "f"(x)
                 : "memory");
}

template <size_t... I>
__device__ inline void multiply(float (&sums)[128], const uint32_t (&x)[4], uint64_t c, bool more, std::index_sequence<I...>)
{
    product::fma(x[0], x[1], x[2], x[3], c, sums[I]...,
                 more ? cute::SM90::GMMA::ScaleOut::One : cute::SM90::GMMA::ScaleOut::Zero);
}

/* ---- one warp: copies ahead ---- */

__device__ void copy_tiles(shared_memory &s, const job &a, const CUtensorMap &x, const CUtensorMap &c, int n, int cluster,
                           int clusters)
{
    const int part = ROWS / a.across; /* of x, copied by this block to all */
    const uint16_t all = (1 << a.across) - 1;
    const auto once = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_FIRST);
    const auto often = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_LAST);
    int slot = 0;
    unsigned phase = 1;
    for (int tile = cluster; tile < a.tiles; tile += clusters)
        for (int step = 0; step < a.steps; step++) {
            stage &to = s.stages[slot];
            auto *const full = reinterpret_cast<uint64_t *>(&s.full[slot]);
            s.empty[slot].wait(phase);
            s.full[slot].arrive_and_expect_tx(sizeof(stage));
            cute::SM90_TMA_LOAD_MULTICAST_2D::copy(&x, full, all, once, to.x + n * part * STEP, step * STEP,
                                                   tile * ROWS + n * part);
            cute::SM90_TMA_LOAD_2D::copy(&c, full, often, to.c, step * STEP, n * COLUMNS);
            if (++slot == STAGES) slot = 0, phase ^= 1;
        }
}

/* ---- two groups of warps: multiply ---- */

/* A lane's part of a warp's 16 rows. The rows that lanes g have are such that eight lanes read from all banks at once. */
struct lane_rows {
    int g, t, low; /* low: the lower of two rows, of the block; the other 8 below */
    __device__ lane_rows()
    {
        const int lane = threadIdx.x & 31;
        g = lane >> 2, t = lane & 3, low = (int)(threadIdx.x >> 5) * 16 + (g >> 1 | (g & 1) << 2);
    }
};

/* Halves of a step of the lane's rows, as the multipliers take them: [16 columns][]. */
struct taken {
    uint32_t x[STEP / 16][4];
};
__device__ inline void take(taken &out, const stage &from, const lane_rows &at, float scale, float (&square)[2])
{
#pragma unroll
    for (int i = 0; i < STEP / 16; i++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const int row = at.low + r * 8, chunk = (i * 4 + at.t) ^ (row & 7);
            const float4 v = *reinterpret_cast<const float4 *>(from.x + row * STEP + chunk * 4);
            float ignored = 0;
            out.x[i][r] = halve(v.x * scale, v.y * scale, square[r], ignored);
            out.x[i][r + 2] = halve(v.z * scale, v.w * scale, square[r], ignored);
        }
}

/* Starts sums += x c. */
__device__ inline void multiply_step(float (&sums)[128], const taken &x, const stage &from, bool more)
{
    const uint64_t place = (cute::cast_smem_ptr_to_uint(from.c) & 0x3ffff) >> 4;
    const uint64_t c =
        place | 1 << 16 | (uint64_t)(512 >> 4) << 32 | (uint64_t)2 << 62; /* eight rows are 512 bytes; swizzled by 64 */
#pragma unroll
    for (int i = 0; i < 128; i++) cute::warpgroup_fence_operand(sums[i]);
    cute::warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < STEP / 16; i++) multiply(sums, x.x[i], c + i * (32 >> 4), more || i > 0, std::make_index_sequence<128>());
    cute::warpgroup_commit_batch();
}

/* The warp is done with a stage: so those learn who write it. */
__device__ inline void release(shared_memory &s, int slot, const job &a)
{
    const int lane = threadIdx.x & 31;
    __syncwarp();
    s.empty[slot].arrive(lane, lane < a.across);
}

/* Stages in their order. */
struct cursor {
    int slot = 0;
    unsigned phase = 0;
    __device__ void next()
    {
        if (++slot == STAGES) slot = 0, phase ^= 1;
    }
};

/* Sums of x c over the width, and of squares. */
__device__ inline void multiply_tile(float (&sums)[128], float (&square)[2], shared_memory &s, const job &a, const lane_rows &at,
                                     float scale, cursor &to)
{
    taken now = {}, after;
    s.full[to.slot].wait(to.phase);
    take(after, s.stages[to.slot], at, scale, square);
    for (int step = 0; step < a.steps; step++) {
        const int slot = to.slot;
        /* the old ones in it keep their registers from other use while the multipliers read them */
#pragma unroll
        for (int i = 0; i < STEP / 16 * 4; i++)
            now.x[i / 4][i % 4] = after.x[i / 4][i % 4] ^ (now.x[i / 4][i % 4] & a.nothing);
        multiply_step(sums, now, s.stages[slot], step > 0);
        to.next();
        if (step + 1 < a.steps) {
            s.full[to.slot].wait(to.phase);
            take(after, s.stages[to.slot], at, scale, square);
        }
        cute::warpgroup_wait<0>();
#pragma unroll
        for (int i = 0; i < 128; i++) cute::warpgroup_fence_operand(sums[i]);
        release(s, slot, a);
    }
}

/* By how much costs of the lane's rows may be off, for each centroid's reach; infinite where halves may be. */
__device__ inline float length_of(float square, const job &a, float scale)
{
#pragma unroll
    for (int d = 1; d < 4; d <<= 1) square += __shfl_xor_sync(0xffffffffu, square, d);
    return square < 65504.0f * 65504.0f ? (sqrtf(square) + a.least) * (1 + 0x1p-9f) / scale : INFINITY;
}

/* Costs in place of the sums; the blocks learn what the lowest is at most. */
__device__ inline void tell_limits(float (&sums)[128], const float (&length)[2], shared_memory &s, const job &a,
                                   const lane_rows &at, int n, int turn)
{
    float limit[2] = {INFINITY, INFINITY};
#pragma unroll
    for (int i = 0; i < 64; i++) {
        const line l = s.lines[i / 2 * 8 + at.t * 2 + i % 2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float &cost = sums[i / 2 * 4 + r * 2 + i % 2];
            cost = fmaf(l.slope, cost, l.base);
            limit[r] = fminf(limit[r], fmaf(l.reach, length[r], cost));
        }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int d = 1; d < 4; d <<= 1) limit[r] = fminf(limit[r], __shfl_xor_sync(0xffffffffu, limit[r], d));
        if (at.t < a.across) tell(&s.limits[turn][n][at.low + r * 8], at.t, limit[r]);
    }
    __syncwarp();
    const int lane = threadIdx.x & 31;
    s.told.arrive(lane, lane < a.across);
}

/* Which costs may be the lowest of all blocks. */
__device__ inline void write_candidates(const float (&sums)[128], const float (&length)[2], const shared_memory &s, const job &a,
                                        const lane_rows &at, int64_t first, int n, int turn)
{
    const float slack = 2.0f * 0x1p-22f * __uint_as_float(a.most->base);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = at.low + r * 8;
        float limit = INFINITY;
        for (int b = 0; b < a.across; b++) limit = fminf(limit, s.limits[turn][b][row]);
        limit += slack;
        unsigned long long near[WORDS] = {};
#pragma unroll
        for (int i = 0; i < 64; i++) {
            const float reach = s.lines[i / 2 * 8 + at.t * 2 + i % 2].reach;
            if (!(fmaf(-reach, length[r], sums[i / 2 * 4 + r * 2 + i % 2]) > limit)) /* what is no number, too */
                near[i / 16] |= 1ull << (i / 2 % 8 * 8 + i % 2);
        }
#pragma unroll
        for (int w = 0; w < WORDS; w++) {
            near[w] <<= at.t * 2;
#pragma unroll
            for (int d = 1; d < 4; d <<= 1) near[w] |= __shfl_xor_sync(0xffffffffu, near[w], d);
        }
        const unsigned long long low = at.t & 1 ? near[1] : near[0], high = at.t & 1 ? near[3] : near[2],
                                 own_word = at.t & 2 ? high : low;
        const int left = a.clusters - (n * WORDS + at.t) * 64; /* of this word's */
        const unsigned long long mask = left >= 64 ? ~0ull : left > 0 ? (1ull << left) - 1 : 0;
        if (first + row < a.count) a.candidates[(first + row) * a.words + n * WORDS + at.t] = own_word & mask;
    }
}

__device__ void multiply_tiles(shared_memory &s, const job &a, int n, int cluster, int clusters)
{
    const lane_rows at;
    const float scale = scale_of_x(a.most);
    cursor to;
    int turn = 0;
    unsigned told = 0;
    float sums[128];
    for (int tile = cluster; tile < a.tiles; tile += clusters) {
        float square[2] = {};
        multiply_tile(sums, square, s, a, at, scale, to);
        const float length[] = {length_of(square[0], a, scale), length_of(square[1], a, scale)};
        tell_limits(sums, length, s, a, at, n, turn);
        wait_for_told(&s.told, told);
        write_candidates(sums, length, s, a, at, (int64_t)tile * ROWS, n, turn);
        turn ^= 1, told ^= 1;
    }
}

__global__ void __launch_bounds__(THREADS, 1)
    candidates_kernel(const job a, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap c)
{
    extern __shared__ char memory[];
    shared_memory &s = *reinterpret_cast<shared_memory *>((reinterpret_cast<uintptr_t>(memory) + 1023) / 1024 * 1024);
    const int n = (int)cute::block_rank_in_cluster(), cluster = (int)blockIdx.x / a.across, clusters = (int)gridDim.x / a.across;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) s.full[i].init(1), s.empty[i].init(a.across * WORKER_WARPS);
        s.told.init(a.across * WORKER_WARPS);
        cutlass::arch::fence_barrier_init();
    }
    for (int i = threadIdx.x; i < COLUMNS; i += THREADS) {
        const int k = n * COLUMNS + i;
        const screen c = k < a.clusters ? a.screens[k] : screen{INFINITY, 0, 0, 0};
        s.lines[i] = {c.base, -2.0f * c.scale, 2.0f * fmaf(a.precision, c.norm, c.error) * (1 + 0x1p-20f), 0};
    }
    __syncthreads();
    cute::cluster_sync();
    if (threadIdx.x < WORKERS) {
        cutlass::arch::warpgroup_reg_alloc<232>();
        multiply_tiles(s, a, n, cluster, clusters);
    } else {
        cutlass::arch::warpgroup_reg_dealloc<40>();
        if (threadIdx.x == WORKERS) copy_tiles(s, a, x, c, n, cluster, clusters);
    }
    __syncwarp();
    cute::cluster_sync(); /* no block goes while others write to it */
}

/* ---- the host's side ---- */

/* Rows of `stride` items whose first `width` are seen, copied in boxes of a step of `rows` rows; zeros are read past the ends. */
bool describe(CUtensorMap *out, CUtensorMapDataType type, size_t item, const void *memory, int64_t count, int64_t width,
              int64_t stride, int rows)
{
    const auto encode = moedi_cuda_driver_of_process().describe;
    const cuuint64_t sizes[] = {(cuuint64_t)width, (cuuint64_t)count}, strides[] = {(cuuint64_t)stride * item};
    const cuuint32_t box[] = {STEP, (cuuint32_t)rows}, steps[] = {1, 1};
    const auto swizzle = STEP * item == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
    return encode && encode(out, type, 2, const_cast<void *>(memory), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                            swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

/* As many clusters of blocks as run at once; 0 where none does. */
int clusters_at_once(moedi_cuda *e, cudaLaunchConfig_t *config, int size)
{
    int clusters = 0;
    config->gridDim = (unsigned)(e->properties.multiProcessorCount / size * size);
    if (cudaOccupancyMaxActiveClusters(&clusters, candidates_kernel, config) != cudaSuccess)
        (void)cudaGetLastError(), clusters = 0;
    return clusters;
}

} // namespace

moed_status moedi_cuda_kmeans_assign_sm90(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    const int64_t stride = moedi_cuda_ceil(a->width, STEP) * STEP, most_rows = (int64_t)INT32_MAX - ROWS;
    if (e->properties.major != 9 || a->clusters > ACROSS * COLUMNS || a->count > most_rows || stride > most_rows)
        return MOED_E_UNSUPPORTED;
    if (!packs<float>(a->width, a->x)) return MOED_E_UNSUPPORTED;
    const int blocks = (int)moedi_cuda_ceil(a->clusters, COLUMNS), across = blocks > 2 ? 4 : blocks;
    constexpr int shared = sizeof(shared_memory) + 1024;
    MOEDI_CUDA_CHECK(e, cudaFuncSetAttribute(candidates_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {(unsigned)across, 1, 1};
    cudaLaunchConfig_t config = {};
    config.blockDim = THREADS, config.dynamicSmemBytes = shared, config.stream = e->stream, config.attrs = &together,
    config.numAttrs = 1;
    const int at_once = clusters_at_once(e, &config, across);
    if (at_once < 1) return MOED_E_UNSUPPORTED;

    prepared p;
    job j = {};
    CUtensorMap x, c;
    j.across = across, j.words = across * WORDS;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &pieces) {
        p = take_prepared(pieces, a, a->clusters * stride), j.candidates = pieces.take<uint64_t>(a->count * j.words);
    }));
    if (!describe(&x, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, sizeof(float), a->x, a->count, a->width, a->width, ROWS / across) ||
        !describe(&c, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, sizeof(__half), p.halves, a->clusters, stride, stride, COLUMNS))
        return MOED_E_UNSUPPORTED;
    MOEDI_CUDA_TRY(prepare(e, a, p, a->clusters * stride, lane_place{stride}));
    j.screens = p.screens, j.most = p.most, j.count = a->count, j.clusters = (int)a->clusters, j.steps = (int)(stride / STEP);
    j.tiles = (int)moedi_cuda_ceil(a->count, ROWS), j.precision = 0x1p-11f + precision_of(a->width);
    j.least = sqrtf((float)a->width) * 0x1p-14f;
    config.gridDim = (unsigned)((at_once < j.tiles ? at_once : j.tiles) * across);
    MOEDI_CUDA_CHECK(e, cudaLaunchKernelEx(&config, candidates_kernel, j, x, c));
    return moedi_cuda_kmeans_decide(e, a, j.candidates, j.words);
}
