/* cuda/common/dispatch.cu - tokens to their experts and back: a stable counting sort of the choices by expert, then rows moved by it. */
#include "numbers.cuh"
#include "operations.h"

enum { THREADS = 256, CHUNK = 512 /* choices that one warp numbers */ };

/* ---- the sort ---- */

/* counts (chunks, experts) of each chunk's choices. */
static __global__ void count_kernel(int32_t *counts, const int32_t *ids, int64_t choices, int experts)
{
    extern __shared__ int32_t mine[];
    for (int x = threadIdx.x; x < experts; x += blockDim.x) mine[x] = 0;
    __syncthreads();
    for (int64_t c = (int64_t)blockIdx.x * CHUNK + threadIdx.x; c < choices && c < ((int64_t)blockIdx.x + 1) * CHUNK; c += blockDim.x)
        atomicAdd(mine + ids[c], 1);
    __syncthreads();
    for (int x = threadIdx.x; x < experts; x += blockDim.x) counts[blockIdx.x * (int64_t)experts + x] = mine[x];
}

/* counts become the number of the same expert's choices in earlier chunks; totals (experts). */
static __global__ void scan_chunks(int32_t *counts, int32_t *totals, int64_t chunks, int experts)
{
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    int32_t sum = 0;
    if (x >= experts) return;
    for (int64_t i = 0; i < chunks; i++) {
        const int32_t n = counts[i * experts + x];
        counts[i * experts + x] = sum;
        sum += n;
    }
    totals[x] = sum;
}
static __global__ void scan_experts(int64_t *offsets, const int32_t *totals, int experts)
{
    int64_t sum = 0;
    for (int x = 0; x < experts; x++) {
        offsets[x] = sum;
        sum += totals[x];
    }
    offsets[experts] = sum;
}

/* A warp goes through its chunk in order; lanes with the same expert stand behind one another. */
static __global__ void place_kernel(int32_t *slot, int32_t *source, const int32_t *ids, const int32_t *counts, const int64_t *offsets,
                                    int64_t choices, int64_t top_k, int experts)
{
    extern __shared__ int32_t next[];
    const int lane = threadIdx.x;
    for (int x = lane; x < experts; x += 32) next[x] = (int32_t)offsets[x] + counts[blockIdx.x * (int64_t)experts + x];
    __syncwarp();
    for (int64_t first = (int64_t)blockIdx.x * CHUNK; first < choices && first < ((int64_t)blockIdx.x + 1) * CHUNK; first += 32) {
        const int64_t c = first + lane;
        const unsigned active = __ballot_sync(0xffffffffu, c < choices);
        if (c < choices) {
            const int x = ids[c];
            const unsigned same = __match_any_sync(active, x);
            const int32_t place = next[x] + __popc(same & ((1u << lane) - 1));
            __syncwarp(active);
            if (lane == 31 - __clz(same)) next[x] = place + 1;
            slot[c] = place;
            source[place] = (int32_t)(c / top_k);
        }
        __syncwarp();
    }
}
template <typename T> moed_status moedi_cuda_dispatch(moedi_cuda *e, const moed_op_dispatch *a)
{
    const int64_t choices = a->rows * a->top_k, chunks = moedi_cuda_ceil(choices, CHUNK);
    const int experts = (int)a->experts;
    const size_t shared = (size_t)experts * sizeof(int32_t);
    void *memory;
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, (size_t)((chunks + 1) * experts) * sizeof(int32_t), &memory));
    int32_t *counts = static_cast<int32_t *>(memory), *totals = counts + chunks * experts;
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, count_kernel, (unsigned)chunks, THREADS, shared, counts, a->ids, choices, experts));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, scan_chunks, (unsigned)moedi_cuda_ceil(experts, 64), 64, 0, counts, totals, chunks, experts));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, scan_experts, 1, 1, 0, a->offsets, (const int32_t *)totals, experts));
    return moedi_cuda_launch(e, place_kernel, (unsigned)chunks, 32, shared, a->slot, a->source, a->ids, (const int32_t *)counts,
                             (const int64_t *)a->offsets, choices, a->top_k, experts);
}
MOEDI_CUDA_DEFINED(dispatch, dispatch)

/* ---- rows there ---- */

template <typename T, int V> __global__ void gather_kernel(T *out, const T *x, const int32_t *source, int64_t width)
{
    const T *from = x + (int64_t)source[blockIdx.x] * width;
    T *to = out + blockIdx.x * width;
    for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += THREADS * V)
        *reinterpret_cast<pack<T, V> *>(to + c) = *reinterpret_cast<const pack<T, V> *>(from + c);
}
template <typename T> moed_status moedi_cuda_gather(moedi_cuda *e, const moed_op_gather *a)
{
    T *out = static_cast<T *>(a->out);
    const T *x = static_cast<const T *>(a->x);
    const dim3 rows((unsigned)(a->rows * a->top_k));
    if (packs<T>(a->width, out, x)) return moedi_cuda_launch(e, gather_kernel<T, WIDE_ACCESS<T>>, rows, THREADS, 0, out, x, a->source, a->width);
    return moedi_cuda_launch(e, gather_kernel<T, 1>, rows, THREADS, 0, out, x, a->source, a->width);
}
MOEDI_CUDA_DEFINED(gather, gather)

/* ---- rows back ---- */

/* to[row] += sum over the row's slots of weight * y[slot]; weights NULL: 1. */
template <typename T, int V>
__global__ void combine_kernel(T *to, const T *y, const float *weights, const int32_t *slot, int64_t top_k, int64_t width)
{
    const int64_t row = blockIdx.x;
    for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += THREADS * V) {
        float sum[V] = {}, old[V];
        for (int64_t j = row * top_k; j < (row + 1) * top_k; j++) {
            const float w = weights ? weights[j] : 1.0f;
            float v[V];
            load(v, y + (int64_t)slot[j] * width + c);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += w * v[k];
        }
        load(old, to + row * width + c);
#pragma unroll
        for (int k = 0; k < V; k++) old[k] += sum[k];
        store(to + row * width + c, old);
    }
}
template <typename T>
static moed_status add_back(moedi_cuda *e, void *out, const void *rows_of, const void *weights, const int32_t *slot, int64_t rows, int64_t top_k,
                            int64_t width)
{
    T *to = static_cast<T *>(out);
    const T *y = static_cast<const T *>(rows_of);
    const float *w = static_cast<const float *>(weights);
    const dim3 grid((unsigned)rows);
    if (packs<T>(width, to, y)) return moedi_cuda_launch(e, combine_kernel<T, WIDE_ACCESS<T>>, grid, THREADS, 0, to, y, w, slot, top_k, width);
    return moedi_cuda_launch(e, combine_kernel<T, 1>, grid, THREADS, 0, to, y, w, slot, top_k, width);
}
template <typename T> moed_status moedi_cuda_gather_backward(moedi_cuda *e, const moed_op_gather *a)
{
    return add_back<T>(e, a->d_x, a->d_out, nullptr, a->slot, a->rows, a->top_k, a->width);
}
MOEDI_CUDA_DEFINED(gather_backward, gather)
template <typename T> moed_status moedi_cuda_combine(moedi_cuda *e, const moed_op_combine *a)
{
    return add_back<T>(e, a->out, a->y, a->weights, a->slot, a->rows, a->top_k, a->width);
}
MOEDI_CUDA_DEFINED(combine, combine)

/* A block a row: d_y[slot] = weight d_out, d_weight = d_out . y[slot]. */
template <typename T, int V>
__global__ void combine_backward_kernel(T *d_y, float *d_weights, const T *y, const float *weights, const T *d_out, const int32_t *slot,
                                        int64_t top_k, int64_t width)
{
    const int64_t row = blockIdx.x;
    for (int64_t j = row * top_k; j < (row + 1) * top_k; j++) {
        const int64_t base = (int64_t)slot[j] * width;
        const float w = weights[j];
        float dot = 0;
        for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += THREADS * V) {
            float d[V], v[V];
            load(d, d_out + row * width + c), load(v, y + base + c);
#pragma unroll
            for (int k = 0; k < V; k++) dot += d[k] * v[k], d[k] *= w;
            store(d_y + base + c, d);
        }
        dot = block_sum(dot);
        if (threadIdx.x == 0) d_weights[j] = dot;
    }
}
template <typename T> moed_status moedi_cuda_combine_backward(moedi_cuda *e, const moed_op_combine *a)
{
    T *d_y = static_cast<T *>(a->d_y);
    float *d_weights = static_cast<float *>(a->d_weights);
    const T *y = static_cast<const T *>(a->y), *d_out = static_cast<const T *>(a->d_out);
    const float *weights = static_cast<const float *>(a->weights);
    const dim3 rows((unsigned)a->rows);
    if (packs<T>(a->width, d_y, y, d_out))
        return moedi_cuda_launch(e, combine_backward_kernel<T, WIDE_ACCESS<T>>, rows, THREADS, 0, d_y, d_weights, y, weights, d_out, a->slot,
                                 a->top_k, a->width);
    return moedi_cuda_launch(e, combine_backward_kernel<T, 1>, rows, THREADS, 0, d_y, d_weights, y, weights, d_out, a->slot, a->top_k, a->width);
}
MOEDI_CUDA_DEFINED(combine_backward, combine)
