/* cuda/common/router.cu - the choice of experts, a warp for a row; its two losses; and the gradients. All of it in float. */
#include "backend/balance.h"
#include "numbers.cuh"
#include "operations.h"

enum { WARPS = 8, THREADS = 32 * WARPS, PARTS = 512, SIDE = 32, EXPERTS_MOST = 1024 /* 32 lanes of 32 bits */ };

/* ---- forward ---- */

/* Whether (p, e) goes before (q, f): higher, or equal and of a lower index. What is no number goes last; -1 is nobody. */
__device__ static inline bool before(float p, int e, float q, int f)
{
    if (f < 0) return e >= 0;
    if (e < 0) return false;
    const bool p_is = p == p, q_is = q == q;
    if (p_is != q_is) return p_is;
    return p_is && p != q ? p > q : e < f;
}

/* What the choice is made by. */
__device__ static inline float preference(const moed_op_router &a, const float *p, int x)
{
    return a.bias ? p[x] + static_cast<const float *>(a.bias)[x] : p[x];
}

/* The row's top_k of p and bias, one after the other. A lane has every 32nd expert, and a bit for each that says whether it is
 * taken. */
__device__ static void choose(const moed_op_router &a, int32_t *ids, const float *p, int lane)
{
    const int experts = (int)a.experts;
    uint32_t taken = 0;
    for (int64_t j = 0; j < a.top_k; j++) {
        float best = 0;
        int who = -1;
        for (int x = lane; x < experts; x += 32) {
            const float own = preference(a, p, x);
            if (!(taken >> (x >> 5) & 1) && before(own, x, best, who)) best = own, who = x;
        }
        for (int d = 16; d > 0; d >>= 1) {
            const float other = __shfl_xor_sync(0xffffffffu, best, d);
            const int whose = __shfl_xor_sync(0xffffffffu, who, d);
            if (before(other, whose, best, who)) best = other, who = whose;
        }
        if ((who & 31) == lane) taken |= 1u << (who >> 5);
        if (lane == 0) ids[j] = who;
    }
}

/* Of a row's scores, by all lanes; that of probabilities is 1 but for rounding. */
__device__ static inline float sum_of(const moed_op_router &a, const float *p, int lane)
{
    float sum = 0;
    if (a.score != MOED_SCORE_SIGMOID) return 1.0f;
    for (int x = lane; x < (int)a.experts; x += 32) sum += p[x];
    return warp_sum(sum);
}

__device__ static void route(const moed_op_router &a, int64_t row, int lane)
{
    const int experts = (int)a.experts;
    const float *logits = static_cast<const float *>(a.logits) + row * experts;
    float *p = static_cast<float *>(a.probabilities) + row * experts, *weights = static_cast<float *>(a.weights) + row * a.top_k;
    int32_t *ids = a.ids + row * a.top_k;
    float highest = -INFINITY, total = 0, chosen = 0;
    for (int x = lane; x < experts; x += 32) highest = fmaxf(highest, logits[x]);
    highest = warp_max(highest);
    for (int x = lane; x < experts; x += 32) total += expf(logits[x] - highest);
    total = warp_sum(total);
    for (int x = lane; x < experts; x += 32)
        p[x] = a.score == MOED_SCORE_SIGMOID ? 1.0f / (1.0f + expf(-logits[x])) : expf(logits[x] - highest) / total;
    if (lane == 0) static_cast<float *>(a.lse)[row] = highest + logf(total);
    __syncwarp();
    if (!a.replay) choose(a, ids, p, lane);
    __syncwarp();
    for (int64_t j = 0; j < a.top_k; j++) chosen += p[ids[j]];
    const float scale = a.weight_scale ? (float)a.weight_scale : 1.0f;
    for (int64_t j = lane; j < a.top_k; j += 32) weights[j] = scale * (p[ids[j]] / (a.normalise ? chosen : 1.0f));
}

/* What a block adds to the losses: how often each expert was chosen, its summed share of the scores, and summed lse^2. */
struct parts_of_losses {
    int32_t *counts;      /* (parts, experts) */
    double *probability;  /* (parts, experts) */
    double *square;       /* (parts) */
};

/* A block has `each` rows, and its warps take them in turns. The losses' parts come out where losses are asked for. */
static __global__ void router_kernel(moed_op_router a, int64_t each, parts_of_losses parts)
{
    extern __shared__ int32_t counts[];
    __shared__ double part[THREADS]; /* of THREADS rows at a time: one over the sum of the scores */
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, experts = (int)a.experts;
    const int64_t first = blockIdx.x * each, end = first + each < a.rows ? first + each : a.rows;
    double square = 0;
    if (a.losses)
        for (int x = threadIdx.x; x < experts; x += THREADS) counts[x] = 0;
    __syncthreads();
    for (int64_t row = first + warp; row < end; row += WARPS) {
        route(a, row, lane);
        if (!a.losses) continue;
        for (int64_t j = lane; j < a.top_k; j += 32) atomicAdd(counts + a.ids[row * a.top_k + j], 1);
        __syncwarp();
        const double lse = (double)static_cast<const float *>(a.lse)[row];
        if (lane == 0) square += lse * lse;
    }
    if (!a.losses) return;
    __syncthreads(); /* the block's probabilities and counts are there */
    const float *const p = static_cast<const float *>(a.probabilities);
    double *const shares = parts.probability + (int64_t)blockIdx.x * experts;
    for (int64_t from = first; from < end; from += THREADS) {
        const int64_t to = from + THREADS < end ? from + THREADS : end;
        for (int64_t row = from + warp; row < to; row += WARPS) {
            const float sum = sum_of(a, p + row * experts, lane);
            if (lane == 0) part[row - from] = 1.0 / (double)sum;
        }
        __syncthreads();
        for (int x = threadIdx.x; x < experts; x += THREADS) {
            double sum = from == first ? 0 : shares[x];
#pragma unroll 4
            for (int64_t row = from; row < to; row++) sum += (double)p[row * experts + x] * part[row - from];
            shares[x] = sum;
        }
        __syncthreads();
    }
    for (int x = threadIdx.x; x < experts; x += THREADS) parts.counts[(int64_t)blockIdx.x * experts + x] = counts[x];
    square = block_sum(square);
    if (threadIdx.x == 0) parts.square[blockIdx.x] = square;
}

/* The parts of all `count` blocks become losses. One block of SIDE x SIDE threads: as many experts at a time, and as many threads
 * for each. */
static __global__ void losses_kernel(moed_op_router a, int count, parts_of_losses parts)
{
    __shared__ double sums[SIDE][SIDE + 1];
    __shared__ int numbers[SIDE][SIDE + 1];
    const int column = threadIdx.x % SIDE, group = threadIdx.x / SIDE;
    double balance = 0, z = 0;
    for (int64_t first = 0; first < a.experts; first += SIDE) {
        const int64_t x = first + column;
        double sum = 0;
        int number = 0;
#pragma unroll 4
        for (int p = group; p < count; p += SIDE) {
            if (x >= a.experts) break;
            sum += parts.probability[p * a.experts + x], number += parts.counts[p * a.experts + x];
        }
        sums[group][column] = sum, numbers[group][column] = number;
        __syncthreads();
        for (int g = 1; group == 0 && g < SIDE; g++) sum += sums[g][column], number += numbers[g][column];
        if (group == 0) balance += (double)number / (double)(a.rows * a.top_k) * (sum / (double)a.rows);
        __syncthreads();
    }
    for (int p = threadIdx.x; p < count; p += SIDE * SIDE) z += parts.square[p];
    balance = block_sum(balance);
    z = block_sum(z);
    if (threadIdx.x) return;
    float *losses = static_cast<float *>(a.losses);
    losses[0] = (float)((double)losses[0] + (double)a.experts * balance * a.loss_scale);
    losses[1] = (float)((double)losses[1] + z / (double)a.rows * a.loss_scale);
}

/* Rows of a block. */
static int64_t rows_of_block(int64_t rows)
{
    const int64_t even = moedi_cuda_ceil(rows, PARTS);
    return even > WARPS ? even : WARPS;
}
static parts_of_losses lay(moedi_cuda_pieces *p, int64_t blocks, int64_t experts)
{
    parts_of_losses parts;
    parts.counts = p->take<int32_t>(blocks * experts);
    parts.probability = p->take<double>(blocks * experts), parts.square = p->take<double>(blocks);
    return parts;
}
/* More than router_backward's, which counts an expert's choices where it is not told their offsets. */
template <typename T> size_t moedi_cuda_router_room(const moed_workload *w)
{
    const int64_t tokens = w->rows * w->length;
    moedi_cuda_pieces p;
    if (w->experts > 1) lay(&p, moedi_cuda_ceil(tokens, rows_of_block(tokens)), w->experts);
    return p.used;
}
MOEDI_CUDA_ROOM_DEFINED(router)

template <typename T> moed_status moedi_cuda_router(moedi_cuda *e, const moed_op_router *a)
{
    const int64_t each = rows_of_block(a->rows);
    const unsigned blocks = (unsigned)moedi_cuda_ceil(a->rows, each);
    parts_of_losses parts = {};
    if (a->experts > EXPERTS_MOST)
        return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "%lld experts are more than this backend takes (%d)", (long long)a->experts,
                               EXPERTS_MOST);
    if (a->rows <= 0) return MOED_OK;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &p) { parts = lay(&p, blocks, a->experts); }));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, router_kernel, blocks, THREADS, (size_t)a->experts * sizeof(int32_t), *a, each, parts));
    return a->losses ? moedi_cuda_launch(e, losses_kernel, 1, SIDE * SIDE, 0, *a, (int)blocks, parts) : MOED_OK;
}
MOEDI_CUDA_DEFINED(router, router)

/* ---- backward ---- */

/* What the chosen weights pass on to expert x: w_j = f p_j, so d_p_j = f d_w_j; when normalised f is the scale over the sum of
 * the chosen, and d_p_j = f (d_w_j - sum_l d_w_l p_l / sum). */
__device__ static inline float through_weights(const moed_op_router &a, const float *d_weights, const int32_t *ids, float chosen,
                                               float shared, int x)
{
    const float scale = a.weight_scale ? (float)a.weight_scale : 1.0f;
    for (int64_t j = 0; j < a.top_k; j++)
        if (ids[j] == x) return scale * (a.normalise ? (d_weights[j] - shared) / chosen : d_weights[j]);
    return 0;
}

/* What dispatch would have told: offsets (experts + 1). One block. */
static __global__ void offsets_kernel(int64_t *offsets, moed_op_router a)
{
    extern __shared__ int32_t counts[];
    for (int x = threadIdx.x; x < (int)a.experts; x += THREADS) counts[x] = 0;
    __syncthreads();
    for (int64_t c = threadIdx.x; c < a.rows * a.top_k; c += THREADS) atomicAdd(counts + a.ids[c], 1);
    __syncthreads();
    if (threadIdx.x) return;
    offsets[0] = 0;
    for (int x = 0; x < (int)a.experts; x++) offsets[x + 1] = offsets[x] + counts[x];
}

/* With d of all experts through the weights, and b of the load balance by the share q = p / sum p: softmax, where p = q:
 * d_logits = p (d + b - sum p (d + b)); sigmoid: d_logits = p (1 - p) (d + (b - sum q b) / sum p). And 2 lse softmax / rows of
 * the z-loss. */
template <typename T> __global__ void router_backward_kernel(moed_op_router a)
{
    const int lane = threadIdx.x & 31, experts = (int)a.experts;
    const int64_t row = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= a.rows) return;
    const float *p = static_cast<const float *>(a.probabilities) + row * experts;
    const float *d_weights = static_cast<const float *>(a.d_weights) + row * a.top_k;
    const int32_t *ids = a.ids + row * a.top_k;
    /* of the load balance, for each choice that an expert got */
    const float balance = (float)(a.load_balance * a.loss_scale * (double)experts / (double)a.rows / (double)(a.rows * a.top_k));
    const float z = (float)(a.z_loss * a.loss_scale * 2.0 / (double)a.rows) * static_cast<const float *>(a.lse)[row];
    const bool sigmoid = a.score == MOED_SCORE_SIGMOID;
    const float all = sum_of(a, p, lane), lse = static_cast<const float *>(a.lse)[row];
    const float *logits = static_cast<const float *>(a.logits) + row * experts;
    float chosen = 0, shared = 0, mean = 0;
    for (int64_t j = 0; j < a.top_k; j++) chosen += p[ids[j]], shared += d_weights[j] * p[ids[j]];
    shared /= chosen;
    const auto weighed = [&](int x) { return through_weights(a, d_weights, ids, chosen, shared, x); };
    const auto balanced = [&](int x) { return balance * (float)(a.offsets[x + 1] - a.offsets[x]); };
    for (int x = lane; x < experts; x += 32) mean += p[x] / all * (balanced(x) + (sigmoid ? 0.0f : weighed(x)));
    mean = warp_sum(mean);
    for (int x = lane; x < experts; x += 32) {
        const float d = weighed(x) + (balanced(x) - mean) / all;
        const float made = sigmoid ? p[x] * (1.0f - p[x]) * d + z * expf(logits[x] - lse) : p[x] * (d + z);
        static_cast<T *>(a.d_logits)[row * experts + x] = from_float<T>(made);
    }
}
template <typename T> moed_status moedi_cuda_router_backward(moedi_cuda *e, const moed_op_router *a)
{
    moed_op_router op = *a;
    if (a->rows <= 0) return MOED_OK;
    if (!a->offsets) {
        void *memory;
        MOEDI_CUDA_TRY(moedi_cuda_scratch(e, (size_t)(a->experts + 1) * sizeof(int64_t), &memory));
        int64_t *offsets = static_cast<int64_t *>(memory);
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, offsets_kernel, 1, THREADS, (size_t)a->experts * sizeof(int32_t), offsets, *a));
        op.offsets = offsets;
    }
    return moedi_cuda_launch(e, router_backward_kernel<T>, (unsigned)moedi_cuda_ceil(a->rows, WARPS), THREADS, 0, op);
}
MOEDI_CUDA_DEFINED(router_backward, router)

/* ---- loss-free balancing ---- */

static __global__ void balance_kernel(moed_op_balance a)
{
    const int64_t total = a.offsets[a.experts] - a.offsets[0];
    const double rate = a.scalars->balance_rate * a.share;
    float *bias = static_cast<float *>(a.bias);
    for (int64_t e = threadIdx.x; e < a.experts; e += blockDim.x) {
        const int64_t own = (a.offsets[e + 1] - a.offsets[e]) * a.experts;
        bias[e] = (float)__dadd_rn((double)bias[e], __dmul_rn(rate, moedi_balance_way(own, total, a.band))); /* not fused */
    }
}
template <typename T> moed_status moedi_cuda_balance(moedi_cuda *e, const moed_op_balance *a)
{
    return moedi_cuda_launch(e, balance_kernel, 1, THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(balance, balance)
