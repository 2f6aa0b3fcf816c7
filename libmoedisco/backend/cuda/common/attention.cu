/* cuda/common/attention.cu - causal attention with grouped queries and document boundaries, plain: a warp goes over one query's
 * keys, or one key's queries, without the (T, T) matrix. The faster ways take the shapes they can; this one takes all. */
#include "numbers.cuh"
#include "operations.h"

enum { WARPS = 4, THREADS = 32 * WARPS, LANE_MOST = 8, HEAD_MOST = 32 * LANE_MOST };

/* A head's vector, spread over the lanes. */
struct spread {
    float at[LANE_MOST];
};
template <typename T> __device__ static inline spread load_spread(const T *from, int dim)
{
    spread s;
#pragma unroll
    for (int k = 0; k < LANE_MOST; k++) {
        const int d = k * 32 + (threadIdx.x & 31);
        s.at[k] = d < dim ? to_float(from[d]) : 0.0f;
    }
    return s;
}
template <typename T> __device__ static inline void store_spread(T *to, const spread &s, float factor, int dim)
{
#pragma unroll
    for (int k = 0; k < LANE_MOST; k++) {
        const int d = k * 32 + (threadIdx.x & 31);
        if (d < dim) to[d] = from_float<T>(s.at[k] * factor);
    }
}
__device__ static inline float dot(const spread &x, const spread &y)
{
    float sum = 0;
#pragma unroll
    for (int k = 0; k < LANE_MOST; k++) sum += x.at[k] * y.at[k];
    return warp_sum(sum);
}
__device__ static inline void add(spread &to, float factor, const spread &x)
{
#pragma unroll
    for (int k = 0; k < LANE_MOST; k++) to.at[k] += factor * x.at[k];
}

/* out and lse of one query of one head */
template <typename T> __global__ void attention_kernel(moed_op_attention a)
{
    const int64_t N = a.rows * a.length, i = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5), h = blockIdx.y,
                  kv = h / (a.heads / a.kv_heads);
    const int dim = (int)a.head_dim;
    if (i >= N) return;
    const T *k = static_cast<const T *>(a.k) + kv * dim, *v = static_cast<const T *>(a.v) + kv * dim;
    const spread q = load_spread(static_cast<const T *>(a.q) + i * a.stride + h * dim, dim);
    spread out = {};
    float highest = -INFINITY, total = 0;
    for (int64_t j = a.start[i]; j <= i; j++) {
        const float score = dot(q, load_spread(k + j * a.stride, dim)) * (float)a.scale, most = fmaxf(highest, score);
        const float before = expf(highest - most), now = expf(score - most);
#pragma unroll
        for (int x = 0; x < LANE_MOST; x++) out.at[x] *= before;
        add(out, now, load_spread(v + j * a.stride, dim));
        total = total * before + now;
        highest = most;
    }
    store_spread(static_cast<T *>(a.out) + (i * a.heads + h) * dim, out, 1.0f / total, dim);
    if ((threadIdx.x & 31) == 0) static_cast<float *>(a.lse)[h * N + i] = highest + logf(total);
}

/* d_q of one query of one head; delta (heads, N) = d_out . out, for the keys' kernel. */
template <typename T> __global__ void query_backward_kernel(moed_op_attention a, float *delta)
{
    const int64_t N = a.rows * a.length, i = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5), h = blockIdx.y,
                  kv = h / (a.heads / a.kv_heads);
    const int dim = (int)a.head_dim;
    if (i >= N) return;
    const T *k = static_cast<const T *>(a.k) + kv * dim, *v = static_cast<const T *>(a.v) + kv * dim;
    const int64_t at = (i * a.heads + h) * dim;
    const spread q = load_spread(static_cast<const T *>(a.q) + i * a.stride + h * dim, dim);
    const spread d_out = load_spread(static_cast<const T *>(a.d_out) + at, dim);
    const float through = dot(d_out, load_spread(static_cast<const T *>(a.out) + at, dim)),
                lse = static_cast<const float *>(a.lse)[h * N + i];
    spread d_q = {};
    for (int64_t j = a.start[i]; j <= i; j++) {
        const spread key = load_spread(k + j * a.stride, dim);
        const float p = expf(dot(q, key) * (float)a.scale - lse);
        add(d_q, p * (dot(d_out, load_spread(v + j * a.stride, dim)) - through), key);
    }
    store_spread(static_cast<T *>(a.d_q) + i * a.stride + h * dim, d_q, (float)a.scale, dim);
    if ((threadIdx.x & 31) == 0) delta[h * N + i] = through;
}

/* d_k and d_v of one key of one head of keys, over all queries of its group. start never falls within a row. */
template <typename T> __global__ void key_backward_kernel(moed_op_attention a, const float *delta)
{
    const int64_t N = a.rows * a.length, j = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5), kv = blockIdx.y,
                  group = a.heads / a.kv_heads;
    const int dim = (int)a.head_dim;
    if (j >= N) return;
    const int64_t end = (j / a.length + 1) * a.length;
    const spread key = load_spread(static_cast<const T *>(a.k) + j * a.stride + kv * dim, dim);
    const spread value = load_spread(static_cast<const T *>(a.v) + j * a.stride + kv * dim, dim);
    spread d_k = {}, d_v = {};
    for (int64_t h = kv * group; h < (kv + 1) * group; h++)
        for (int64_t i = j; i < end && a.start[i] <= j; i++) {
            const spread q = load_spread(static_cast<const T *>(a.q) + i * a.stride + h * dim, dim);
            const spread d_out = load_spread(static_cast<const T *>(a.d_out) + (i * a.heads + h) * dim, dim);
            const float p = expf(dot(q, key) * (float)a.scale - static_cast<const float *>(a.lse)[h * N + i]);
            add(d_v, p, d_out);
            add(d_k, p * (dot(d_out, value) - delta[h * N + i]), q);
        }
    store_spread(static_cast<T *>(a.d_k) + j * a.stride + kv * dim, d_k, (float)a.scale, dim);
    store_spread(static_cast<T *>(a.d_v) + j * a.stride + kv * dim, d_v, 1.0f, dim);
}

static moed_status check(moedi_cuda *e, const moed_op_attention *a)
{
    if (a->head_dim <= HEAD_MOST) return MOED_OK;
    return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "heads of %lld numbers are wider than this backend takes (%d)",
                           (long long)a->head_dim, HEAD_MOST);
}

template <typename T> moed_status moedi_cuda_attention(moedi_cuda *e, const moed_op_attention *a)
{
    if (sizeof(T) == 2) {
        const moed_status status = moedi_cuda_attention_cudnn(e, a);
        if (status != MOED_E_UNSUPPORTED) return status;
    }
    MOEDI_CUDA_TRY(check(e, a));
    const dim3 grid((unsigned)moedi_cuda_ceil(a->rows * a->length, WARPS), (unsigned)a->heads);
    return moedi_cuda_launch(e, attention_kernel<T>, grid, THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(attention, attention)

/* A number for each query of each head. */
static size_t delta_size(int64_t rows, int64_t length, int64_t heads)
{
    return (size_t)(heads * rows * length) * sizeof(float);
}
template <typename T> size_t moedi_cuda_attention_backward_room(const moed_workload *w)
{
    const size_t plain = delta_size(w->rows, w->length, w->heads);
    const size_t fused = sizeof(T) == 2 ? moedi_cuda_attention_cudnn_room(w) : 0;
    return plain > fused ? plain : fused;
}
MOEDI_CUDA_ROOM_DEFINED(attention_backward)

template <typename T> moed_status moedi_cuda_attention_backward(moedi_cuda *e, const moed_op_attention *a)
{
    if (sizeof(T) == 2) {
        const moed_status status = moedi_cuda_attention_backward_cudnn(e, a);
        if (status != MOED_E_UNSUPPORTED) return status;
    }
    void *delta;
    const int64_t N = a->rows * a->length;
    MOEDI_CUDA_TRY(check(e, a));
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, delta_size(a->rows, a->length, a->heads), &delta));
    const unsigned blocks = (unsigned)moedi_cuda_ceil(N, WARPS);
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, query_backward_kernel<T>, dim3(blocks, (unsigned)a->heads), THREADS, 0, *a,
                                     static_cast<float *>(delta)));
    return moedi_cuda_launch(e, key_backward_kernel<T>, dim3(blocks, (unsigned)a->kv_heads), THREADS, 0, *a,
                             static_cast<const float *>(delta));
}
MOEDI_CUDA_DEFINED(attention_backward, attention)
