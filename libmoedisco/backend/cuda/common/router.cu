/* cuda/common/router.cu - the choice of experts, a warp for a row; its two losses; and the gradients. All of it in float. */
#include "numbers.cuh"
#include "operations.h"

enum { WARPS = 8, THREADS = 32 * WARPS, PARTS = 256, EXPERTS_MOST = 1024 /* 32 lanes of 32 bits */ };

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

__device__ static inline bool is_taken(const int32_t *ids, int64_t count, int expert)
{
    for (int64_t j = 0; j < count; j++)
        if (ids[j] == expert) return true;
    return false;
}

/* The row's top_k of p, one after the other. A lane has every 32nd expert, and a bit for each that says whether it is taken. */
__device__ static void choose(int32_t *ids, const float *p, int experts, int64_t top_k, int lane)
{
    uint32_t taken = 0;
    for (int64_t j = 0; j < top_k; j++) {
        float best = 0;
        int who = -1;
        for (int x = lane; x < experts; x += 32)
            if (!(taken >> (x >> 5) & 1) && before(p[x], x, best, who)) best = p[x], who = x;
        for (int d = 16; d > 0; d >>= 1) {
            const float other = __shfl_xor_sync(0xffffffffu, best, d);
            const int whose = __shfl_xor_sync(0xffffffffu, who, d);
            if (before(other, whose, best, who)) best = other, who = whose;
        }
        if ((who & 31) == lane) taken |= 1u << (who >> 5);
        if (lane == 0) ids[j] = who;
    }
}

static __global__ void router_kernel(moed_op_router a)
{
    const int lane = threadIdx.x & 31, experts = (int)a.experts;
    const int64_t row = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= a.rows) return;
    const float *logits = static_cast<const float *>(a.logits) + row * experts;
    float *p = static_cast<float *>(a.probabilities) + row * experts, *weights = static_cast<float *>(a.weights) + row * a.top_k;
    int32_t *ids = a.ids + row * a.top_k;
    float highest = -INFINITY, total = 0, chosen = 0;
    for (int x = lane; x < experts; x += 32) highest = fmaxf(highest, logits[x]);
    highest = warp_max(highest);
    for (int x = lane; x < experts; x += 32) total += expf(logits[x] - highest);
    total = warp_sum(total);
    for (int x = lane; x < experts; x += 32) p[x] = expf(logits[x] - highest) / total;
    if (lane == 0) static_cast<float *>(a.lse)[row] = highest + logf(total);
    __syncwarp();
    if (!a.replay) choose(ids, p, experts, a.top_k, lane);
    __syncwarp();
    for (int64_t j = 0; j < a.top_k; j++) chosen += p[ids[j]];
    for (int64_t j = lane; j < a.top_k; j += 32) weights[j] = p[ids[j]] / (a.normalise ? chosen : 1.0f);
}

/* ---- shares ---- */

/* A block's part of how often each expert was chosen, of its probabilities' sum, and of the sum of lse^2 (the last two nullable). */
static __global__ void share_kernel(moed_op_router a, int32_t *counts, double *probability, double *square)
{
    for (int x = threadIdx.x; x < (int)a.experts; x += THREADS) {
        int count = 0;
        double sum = 0;
        for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
            count += is_taken(a.ids + row * a.top_k, a.top_k, x);
            if (probability) sum += (double)static_cast<const float *>(a.probabilities)[row * a.experts + x];
        }
        counts[blockIdx.x * a.experts + x] = count;
        if (probability) probability[blockIdx.x * a.experts + x] = sum;
    }
    double z = 0;
    if (!square) return;
    for (int64_t row = blockIdx.x + (int64_t)gridDim.x * threadIdx.x; row < a.rows; row += (int64_t)gridDim.x * THREADS) {
        const double lse = (double)static_cast<const float *>(a.lse)[row];
        z += lse * lse;
    }
    z = block_sum(z);
    if (threadIdx.x == 0) square[blockIdx.x] = z;
}

/* share (experts) of all choices; with probability also the two losses. One block. */
static __global__ void finish_shares(moed_op_router a, int parts, const int32_t *counts, const double *probability, const double *square,
                                     float *share)
{
    double balance = 0, z = 0;
    for (int x = threadIdx.x; x < (int)a.experts; x += THREADS) {
        int64_t count = 0;
        double sum = 0;
        for (int p = 0; p < parts; p++) {
            count += counts[p * a.experts + x];
            if (probability) sum += probability[p * a.experts + x];
        }
        const double f = (double)count / (double)(a.rows * a.top_k);
        if (share) share[x] = (float)f;
        balance += f * (sum / (double)a.rows);
    }
    if (!probability) return;
    for (int p = threadIdx.x; p < parts; p += THREADS) z += square[p];
    balance = block_sum(balance);
    z = block_sum(z);
    if (threadIdx.x) return;
    float *losses = static_cast<float *>(a.losses);
    losses[0] = (float)((double)losses[0] + (double)a.experts * balance * a.loss_scale);
    losses[1] = (float)((double)losses[1] + z / (double)a.rows * a.loss_scale);
}

/* Both kernels over scratch; share [out] lies there. */
static moed_status shares(moedi_cuda *e, const moed_op_router *a, bool losses, float **share)
{
    const int parts = a->rows < PARTS ? (int)a->rows : PARTS;
    void *memory;
    moedi_cuda_pieces p;
    int32_t *counts;
    double *probability, *square;
    const auto lay = [&] {
        counts = p.take<int32_t>(parts * a->experts), *share = p.take<float>(a->experts);
        probability = p.take<double>(losses ? parts * a->experts : 0), square = p.take<double>(losses ? parts : 0);
    };
    lay();
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, p.used, &memory));
    p.base = static_cast<char *>(memory), p.used = 0;
    lay();
    if (!losses) probability = square = nullptr;
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, share_kernel, parts, THREADS, 0, *a, counts, probability, square));
    return moedi_cuda_launch(e, finish_shares, 1, THREADS, 0, *a, parts, counts, probability, square, *share);
}

template <typename T> moed_status moedi_cuda_router(moedi_cuda *e, const moed_op_router *a)
{
    float *ignored;
    if (a->experts > EXPERTS_MOST)
        return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "%lld experts are more than this backend takes (%d)", (long long)a->experts, EXPERTS_MOST);
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, router_kernel, (unsigned)moedi_cuda_ceil(a->rows, WARPS), THREADS, 0, *a));
    return a->losses && a->rows > 0 ? shares(e, a, true, &ignored) : MOED_OK;
}
MOEDI_CUDA_DEFINED(router, router)

/* ---- backward ---- */

/* What the chosen weights pass on to expert x: w_j = p_j / s with s the sum of the chosen when normalised, so
 * d_p_j = (d_w_j - sum_l d_w_l w_l) / s. */
__device__ static inline float through_weights(const moed_op_router &a, const float *d_weights, const int32_t *ids, float chosen, float shared, int x)
{
    for (int64_t j = 0; j < a.top_k; j++)
        if (ids[j] == x) return a.normalise ? (d_weights[j] - shared) / chosen : d_weights[j];
    return 0;
}

/* With d_p of all experts: d_logits = p (d_p - sum p d_p), and 2 lse p / rows of the z-loss. */
template <typename T> __global__ void router_backward_kernel(moed_op_router a, const float *share)
{
    const int lane = threadIdx.x & 31, experts = (int)a.experts;
    const int64_t row = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (row >= a.rows) return;
    const float *p = static_cast<const float *>(a.probabilities) + row * experts;
    const float *d_weights = static_cast<const float *>(a.d_weights) + row * a.top_k;
    const int32_t *ids = a.ids + row * a.top_k;
    const float balance = (float)(a.load_balance * a.loss_scale * (double)experts / (double)a.rows);
    const float z = (float)(a.z_loss * a.loss_scale * 2.0 / (double)a.rows) * static_cast<const float *>(a.lse)[row];
    float chosen = 0, shared = 0, mean = 0;
    for (int64_t j = 0; j < a.top_k; j++) chosen += p[ids[j]], shared += d_weights[j] * p[ids[j]];
    shared /= chosen;
    for (int x = lane; x < experts; x += 32) mean += p[x] * (through_weights(a, d_weights, ids, chosen, shared, x) + balance * share[x]);
    mean = warp_sum(mean);
    for (int x = lane; x < experts; x += 32) {
        const float d = through_weights(a, d_weights, ids, chosen, shared, x) + balance * share[x];
        static_cast<T *>(a.d_logits)[row * experts + x] = from_float<T>(p[x] * (d - mean + z));
    }
}
template <typename T> moed_status moedi_cuda_router_backward(moedi_cuda *e, const moed_op_router *a)
{
    float *share;
    if (a->rows <= 0) return MOED_OK;
    MOEDI_CUDA_TRY(shares(e, a, false, &share));
    return moedi_cuda_launch(e, router_backward_kernel<T>, (unsigned)moedi_cuda_ceil(a->rows, WARPS), THREADS, 0, *a, (const float *)share);
}
MOEDI_CUDA_DEFINED(router_backward, router)
