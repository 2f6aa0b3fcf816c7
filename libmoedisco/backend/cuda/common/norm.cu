/* cuda/common/norm.cu - RMS norm, and sums over rows for its weights and for biases: each block sums its rows into shared memory,
 * then the blocks' sums are added in order, so that the same bits come out every time. */
#include <algorithm>

#include "numbers.cuh"
#include "operations.h"

enum { THREADS = 256, BLOCKS = 1024, GROUPS = 16, SHARED_MOST = 200 << 10 };

/* out[c] += sum over parts of partial (parts, width): 32 columns a block, GROUPS threads a column, sums added in order. */
template <typename T> __global__ void add_parts_kernel(T *out, const float *partial, int parts, int64_t width)
{
    __shared__ float sums[GROUPS][33];
    const int64_t c = (int64_t)blockIdx.x * 32 + threadIdx.x;
    float sum = 0;
    for (int p = threadIdx.y; c < width && p < parts; p += GROUPS) sum += partial[p * width + c];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y || c >= width) return;
    for (int g = 1; g < GROUPS; g++) sum += sums[g][threadIdx.x];
    out[c] = from_float<T>(to_float(out[c]) + sum);
}
template <typename T> static moed_status add_parts(moedi_cuda *e, T *out, const void *partial, int parts, int64_t width)
{
    return moedi_cuda_launch(e, add_parts_kernel<T>, (unsigned)moedi_cuda_ceil(width, 32), dim3(32, GROUPS), 0, out,
                             static_cast<const float *>(partial), parts, width);
}

static moed_status room_for_sums(moedi_cuda *e, const void *kernel, int64_t width)
{
    const int chip = (int)e->properties.sharedMemPerBlockOptin - 1024; /* for what is not dynamic */
    const int most = chip < SHARED_MOST ? chip : SHARED_MOST;
    if (width > most / (int64_t)sizeof(float))
        return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "rows of %lld numbers are wider than this device takes (%d)",
                               (long long)width, most / 4);
    MOEDI_CUDA_CHECK(e, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most));
    return MOED_OK;
}

/* Blocks that sum `rows` rows, BLOCKS / share of them at most, and the bytes of their sums. */
static int blocks_for(int64_t rows, int share)
{
    return rows < BLOCKS / share ? (int)rows : BLOCKS / share;
}
static size_t sums_size(int blocks, int64_t width)
{
    return (size_t)(blocks * width) * sizeof(float);
}
enum { NORM_SHARE = 1, BIAS_SHARE = 4 };

template <typename T> size_t moedi_cuda_rmsnorm_backward_room(const moed_workload *w)
{
    const int64_t tokens = w->rows * w->length, heads = w->heads > w->kv_heads ? w->heads : w->kv_heads;
    const size_t whole = sums_size(blocks_for(tokens, NORM_SHARE), std::max(w->hidden, heads * w->head_dim));
    return std::max(whole,
                    sums_size(blocks_for(tokens * heads, NORM_SHARE), w->head_dim)); /* where heads have norms of their own */
}
MOEDI_CUDA_ROOM_DEFINED(rmsnorm_backward)
/* The biases of q, k and v, and of o, where a model has them. */
template <typename T> size_t moedi_cuda_bias_backward_room(const moed_workload *w)
{
    return sums_size(blocks_for(w->rows * w->length, BIAS_SHARE),
                     std::max((w->heads + 2 * w->kv_heads) * w->head_dim, w->hidden));
}
MOEDI_CUDA_ROOM_DEFINED(bias_backward)

/* ---- norm ---- */

/* Where a row begins in an array whose whole rows lie `stride` apart. */
__device__ static inline int64_t norm_row(const moed_op_rmsnorm &a, int64_t row, int64_t stride)
{
    return a.parts ? row / a.parts * stride + row % a.parts * a.width : row * a.width;
}
/* Whether rows can be read and written by packs of V. */
static bool even_strides(const moed_op_rmsnorm *a, int V)
{
    return !a->parts || (a->stride % V == 0 && a->out_stride % V == 0);
}

template <typename T, int V> __global__ void rmsnorm_kernel(moed_op_rmsnorm a)
{
    const T *const x = static_cast<const T *>(a.x) + norm_row(a, blockIdx.x, a.stride);
    const T *const weight = static_cast<const T *>(a.weight);
    T *const out = static_cast<T *>(a.out) + norm_row(a, blockIdx.x, a.out_stride);
    float square = 0;
    for (int64_t c = (int64_t)threadIdx.x * V; c < a.width; c += (int64_t)blockDim.x * V) {
        float v[V];
        load(v, x + c);
#pragma unroll
        for (int k = 0; k < V; k++) square += v[k] * v[k];
    }
    square = block_sum(square);
    const float r = 1.0f / sqrtf(square / (float)a.width + (float)a.epsilon);
    if (threadIdx.x == 0) static_cast<float *>(a.rstd)[blockIdx.x] = r;
    for (int64_t c = (int64_t)threadIdx.x * V; c < a.width; c += (int64_t)blockDim.x * V) {
        float v[V], w[V];
        load(v, x + c), load(w, weight + c);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = v[k] * r * w[k];
        store(out + c, v);
    }
}
template <typename T, int V> static moed_status norm(moedi_cuda *e, const moed_op_rmsnorm *a)
{
    const int64_t threads = (moedi_cuda_ceil(a->width, V) + 31) / 32 * 32;
    if (a->rows <= 0) return MOED_OK;
    return moedi_cuda_launch(e, rmsnorm_kernel<T, V>, (unsigned)a->rows, (unsigned)std::min<int64_t>(threads, THREADS), 0, *a);
}
template <typename T> moed_status moedi_cuda_rmsnorm(moedi_cuda *e, const moed_op_rmsnorm *a)
{
    if (packs<T>(a->width, a->out, a->x, a->weight) && even_strides(a, WIDE_ACCESS<T>)) return norm<T, WIDE_ACCESS<T>>(e, a);
    return norm<T, 1>(e, a);
}
MOEDI_CUDA_DEFINED(rmsnorm, rmsnorm)

/* With n = x rstd: d_x [+]= rstd (w d_out - n mean(n w d_out)), and the block's part of d_weight = sum d_out n. Each thread has
 * its own columns, and has read a place before it writes there: d_x may be d_out. */
template <typename T, int V> __global__ void rmsnorm_backward_kernel(moed_op_rmsnorm a, float *partial)
{
    extern __shared__ float sums[];
    const T *const weight = static_cast<const T *>(a.weight);
    const float kept = a.d_x == a.d_out ? 0.0f : 1.0f;
    if (partial)
        for (int64_t c = threadIdx.x; c < a.width; c += THREADS) sums[c] = 0;
    __syncthreads();
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const int64_t at = norm_row(a, row, a.out_stride);
        const T *const x = static_cast<const T *>(a.x) + norm_row(a, row, a.stride);
        const T *const d_out = static_cast<const T *>(a.d_out) + at;
        T *const d_x = static_cast<T *>(a.d_x) + at;
        const float r = static_cast<const float *>(a.rstd)[row];
        float dot = 0;
        for (int64_t c = (int64_t)threadIdx.x * V; c < a.width; c += THREADS * V) {
            float v[V], w[V], d[V];
            load(v, x + c), load(w, weight + c), load(d, d_out + c);
#pragma unroll
            for (int k = 0; k < V; k++) dot += v[k] * w[k] * d[k];
        }
        dot = block_sum(dot) * r * r / (float)a.width;
        for (int64_t c = (int64_t)threadIdx.x * V; c < a.width; c += THREADS * V) {
            float v[V], w[V], d[V], to[V];
            load(v, x + c), load(w, weight + c), load(d, d_out + c), load(to, d_x + c);
#pragma unroll
            for (int k = 0; k < V; k++) {
                to[k] = kept * to[k] + r * (w[k] * d[k] - v[k] * dot);
                if (partial) sums[c + k] += d[k] * v[k] * r;
            }
            store(d_x + c, to);
        }
    }
    if (!partial) return;
    __syncthreads();
    for (int64_t c = threadIdx.x; c < a.width; c += THREADS) partial[blockIdx.x * a.width + c] = sums[c];
}
/* The same for rows that a block holds whole, a pack a thread: weights and sums stay in registers; each number is read once. */
template <typename T, int V> __global__ void __launch_bounds__(1024) rmsnorm_backward_whole(moed_op_rmsnorm a, float *partial)
{
    const int64_t c = (int64_t)threadIdx.x * V;
    const bool mine = c < a.width;
    const float kept = a.d_x == a.d_out ? 0.0f : 1.0f;
    float w[V] = {}, sum[V] = {};
    if (mine) load(w, static_cast<const T *>(a.weight) + c);
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
        const int64_t from = norm_row(a, row, a.stride) + c, at = norm_row(a, row, a.out_stride) + c;
        const float r = static_cast<const float *>(a.rstd)[row];
        float v[V] = {}, d[V] = {}, to[V] = {}, dot = 0;
        if (mine)
            load(v, static_cast<const T *>(a.x) + from), load(d, static_cast<const T *>(a.d_out) + at),
            load(to, static_cast<T *>(a.d_x) + at);
#pragma unroll
        for (int k = 0; k < V; k++) dot += v[k] * w[k] * d[k];
        dot = block_sum(dot) * r * r / (float)a.width;
#pragma unroll
        for (int k = 0; k < V; k++) {
            to[k] = kept * to[k] + r * (w[k] * d[k] - v[k] * dot);
            sum[k] += d[k] * v[k] * r;
        }
        if (mine) store(static_cast<T *>(a.d_x) + at, to);
    }
    if (partial && mine) store(partial + blockIdx.x * a.width + c, sum);
}
template <typename T, int V> static moed_status norm_backward(moedi_cuda *e, const moed_op_rmsnorm *a)
{
    const int64_t threads = (moedi_cuda_ceil(a->width, V) + 31) / 32 * 32;
    const bool whole = threads <= 1024;
    const int blocks = blocks_for(a->rows, NORM_SHARE);
    T *d_weight = static_cast<T *>(a->d_weight);
    void *partial = nullptr;
    if (blocks == 0) return MOED_OK;
    if (d_weight) {
        if (!whole) MOEDI_CUDA_TRY(room_for_sums(e, (const void *)rmsnorm_backward_kernel<T, V>, a->width));
        MOEDI_CUDA_TRY(moedi_cuda_scratch(e, sums_size(blocks, a->width), &partial));
    }
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, whole ? rmsnorm_backward_whole<T, V> : rmsnorm_backward_kernel<T, V>, blocks,
                                     (unsigned)(whole ? threads : THREADS),
                                     whole || !d_weight ? 0 : (size_t)a->width * sizeof(float), *a,
                                     static_cast<float *>(partial)));
    if (!d_weight) return MOED_OK;
    return add_parts<T>(e, d_weight, partial, blocks, a->width);
}
template <typename T> moed_status moedi_cuda_rmsnorm_backward(moedi_cuda *e, const moed_op_rmsnorm *a)
{
    if (packs<T>(a->width, a->d_x, a->x, a->weight, a->d_out) && even_strides(a, WIDE_ACCESS<T>))
        return norm_backward<T, WIDE_ACCESS<T>>(e, a);
    return norm_backward<T, 1>(e, a);
}
MOEDI_CUDA_DEFINED(rmsnorm_backward, rmsnorm)

/* ---- bias ---- */

template <typename T, int V>
__global__ void bias_backward_kernel(float *partial, const T *d_out, int64_t m, int64_t n, int64_t ld)
{
    const int64_t c = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * V;
    float sum[V] = {};
    if (c >= n) return;
#pragma unroll 4
    for (int64_t row = blockIdx.x; row < m; row += gridDim.x) {
        float d[V];
        load(d, d_out + row * ld + c);
#pragma unroll
        for (int k = 0; k < V; k++) sum[k] += d[k];
    }
    store(partial + blockIdx.x * n + c, sum);
}
template <typename T, int V> static moed_status bias_backward(moedi_cuda *e, const moed_op_bias_backward *a)
{
    const int blocks = blocks_for(a->m, BIAS_SHARE);
    void *partial;
    if (blocks == 0) return MOED_OK;
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, sums_size(blocks, a->n), &partial));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, bias_backward_kernel<T, V>, dim3(blocks, (unsigned)moedi_cuda_ceil(a->n, THREADS * V)),
                                     THREADS, 0, static_cast<float *>(partial), static_cast<const T *>(a->d_out), a->m, a->n,
                                     a->ld));
    return add_parts<T>(e, static_cast<T *>(a->d_bias), partial, blocks, a->n);
}
template <typename T> moed_status moedi_cuda_bias_backward(moedi_cuda *e, const moed_op_bias_backward *a)
{
    if (packs<T>(a->n, a->d_out) && a->ld % WIDE_ACCESS<T> == 0) return bias_backward<T, WIDE_ACCESS<T>>(e, a);
    return bias_backward<T, 1>(e, a);
}
MOEDI_CUDA_DEFINED(bias_backward, bias_backward)
