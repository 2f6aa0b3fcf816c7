/* cuda/common/dispatch.cu - tokens to their experts and back: a stable counting sort of the choices by expert, then rows moved by
 * it. */
#include "numbers.cuh"
#include "operations.h"

enum { THREADS = 256, WARPS = THREADS / 32, CHUNKS = 128 /* at most */, CHUNK_LEAST = 512 };

/* ---- the sort: choices are cut into chunks, a block each ---- */

/* counts (experts, chunks) of each chunk's choices. */
static __global__ void count_kernel(int32_t *counts, const int32_t *ids, int64_t choices, int64_t chunk, int experts)
{
    extern __shared__ int32_t mine[];
    const int64_t first = blockIdx.x * chunk, end = first + chunk < choices ? first + chunk : choices;
    for (int x = threadIdx.x; x < experts; x += THREADS) mine[x] = 0;
    __syncthreads();
    for (int64_t c = first + threadIdx.x; c < end; c += THREADS) atomicAdd(mine + ids[c], 1);
    __syncthreads();
    for (int x = threadIdx.x; x < experts; x += THREADS) counts[(int64_t)x * gridDim.x + blockIdx.x] = mine[x];
}

/* next (experts): the number of the same expert's choices in earlier chunks; totals (experts) of all chunks. A warp an expert. */
__device__ static void sum_chunks(int32_t *next, int32_t *totals, const int32_t *counts, int experts)
{
    const int lane = threadIdx.x & 31, chunks = (int)gridDim.x;
    for (int x = threadIdx.x >> 5; x < experts; x += WARPS) {
        int before = 0, total = 0;
        for (int i = lane; i < chunks; i += 32) {
            const int n = counts[(int64_t)x * chunks + i];
            total += n;
            if (i < (int)blockIdx.x) before += n;
        }
        before = __reduce_add_sync(0xffffffffu, before), total = __reduce_add_sync(0xffffffffu, total);
        if (lane == 0) next[x] = before, totals[x] = total;
    }
}
/* next moves on by the choices of the experts before; the first block tells the offsets. One warp, 32 experts at a time. */
__device__ static void sum_experts(int32_t *next, const int32_t *totals, int64_t *offsets, int experts)
{
    const int lane = threadIdx.x & 31;
    int carried = 0;
    for (int first = 0; first < experts; first += 32) {
        const int x = first + lane, own = x < experts ? totals[x] : 0;
        int sum = own;
        for (int d = 1; d < 32; d <<= 1) {
            const int left = __shfl_up_sync(0xffffffffu, sum, d);
            if (lane >= d) sum += left;
        }
        if (x < experts) next[x] += carried + sum - own;
        if (x < experts && blockIdx.x == 0) offsets[x] = carried + sum - own;
        carried += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (lane == 0 && blockIdx.x == 0) offsets[experts] = carried;
}
/* A block goes through its chunk in order, a warp after the other; lanes with the same expert stand behind one another. */
static __global__ void place_kernel(moed_op_dispatch a, const int32_t *counts, int64_t choices, int64_t chunk)
{
    extern __shared__ int32_t next[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, experts = (int)a.experts;
    const int64_t begin = blockIdx.x * chunk, end = begin + chunk < choices ? begin + chunk : choices;
    sum_chunks(next, next + experts, counts, experts);
    __syncthreads();
    if (warp == 0) sum_experts(next, next + experts, a.offsets, experts);
    __syncthreads();
    for (int64_t first = begin; first < end; first += THREADS) {
        const int64_t c = first + threadIdx.x;
        const int x = c < end ? a.ids[c] : -1;
        const unsigned same = __match_any_sync(0xffffffffu, x);
        int place = 0;
        for (int w = 0; w < WARPS; w++) {
            if (warp == w) {
                if (x >= 0) place = next[x];
                __syncwarp();
                if (x >= 0 && lane == 31 - __clz(same)) next[x] = place + __popc(same);
            }
            __syncthreads();
        }
        if (x < 0) continue;
        place += __popc(same & ((1u << lane) - 1));
        a.slot[c] = place;
        a.source[place] = (int32_t)(c / a.top_k);
    }
}
/* Choices of a chunk, and the number of chunks. */
static int64_t chunk_of(int64_t choices)
{
    const int64_t even = moedi_cuda_ceil(choices, CHUNKS);
    return even > CHUNK_LEAST ? even : CHUNK_LEAST;
}
static int64_t chunks_of(int64_t choices)
{
    return choices > 0 ? moedi_cuda_ceil(choices, chunk_of(choices)) : 1;
}
template <typename T> size_t moedi_cuda_dispatch_room(const moed_workload *w)
{
    return w->experts > 1 ? (size_t)(chunks_of(w->rows * w->length * w->top_k) * w->experts) * sizeof(int32_t) : 0;
}
MOEDI_CUDA_ROOM_DEFINED(dispatch)

template <typename T> moed_status moedi_cuda_dispatch(moedi_cuda *e, const moed_op_dispatch *a)
{
    const int64_t choices = a->rows * a->top_k, chunk = chunk_of(choices);
    const unsigned chunks = (unsigned)chunks_of(choices);
    const int experts = (int)a->experts;
    const size_t shared = (size_t)experts * sizeof(int32_t);
    void *memory;
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, chunks * shared, &memory));
    int32_t *counts = static_cast<int32_t *>(memory);
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, count_kernel, chunks, THREADS, shared, counts, a->ids, choices, chunk, experts));
    return moedi_cuda_launch(e, place_kernel, chunks, THREADS, 2 * shared, *a, (const int32_t *)counts, choices, chunk);
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
    if (packs<T>(a->width, out, x))
        return moedi_cuda_launch(e, gather_kernel<T, WIDE_ACCESS<T>>, rows, THREADS, 0, out, x, a->source, a->width);
    return moedi_cuda_launch(e, gather_kernel<T, 1>, rows, THREADS, 0, out, x, a->source, a->width);
}
MOEDI_CUDA_DEFINED(gather, gather)

/* ---- rows back ---- */

/* to[row] = from[row] + sum over the row's slots of weight * y[slot]; weights NULL: 1. */
template <typename T, int V>
__global__ void combine_kernel(T *to, const T *from, const T *y, const float *weights, const int32_t *slot, int64_t top_k,
                               int64_t width)
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
        load(old, from + row * width + c);
#pragma unroll
        for (int k = 0; k < V; k++) old[k] += sum[k];
        store(to + row * width + c, old);
    }
}
template <typename T>
static moed_status add_back(moedi_cuda *e, void *out, const void *addend, const void *rows_of, const void *weights,
                            const int32_t *slot, int64_t rows, int64_t top_k, int64_t width)
{
    T *to = static_cast<T *>(out);
    const T *from = static_cast<const T *>(addend ? addend : out), *y = static_cast<const T *>(rows_of);
    const float *w = static_cast<const float *>(weights);
    const dim3 grid((unsigned)rows);
    if (packs<T>(width, to, from, y))
        return moedi_cuda_launch(e, combine_kernel<T, WIDE_ACCESS<T>>, grid, THREADS, 0, to, from, y, w, slot, top_k, width);
    return moedi_cuda_launch(e, combine_kernel<T, 1>, grid, THREADS, 0, to, from, y, w, slot, top_k, width);
}
template <typename T> moed_status moedi_cuda_gather_backward(moedi_cuda *e, const moed_op_gather *a)
{
    return add_back<T>(e, a->d_x, nullptr, a->d_out, nullptr, a->slot, a->rows, a->top_k, a->width);
}
MOEDI_CUDA_DEFINED(gather_backward, gather)
template <typename T> moed_status moedi_cuda_combine(moedi_cuda *e, const moed_op_combine *a)
{
    return add_back<T>(e, a->out, a->addend, a->y, a->weights, a->slot, a->rows, a->top_k, a->width);
}
MOEDI_CUDA_DEFINED(combine, combine)

/* A block a row: d_y[slot] = weight d_out, d_weight = d_out . y[slot]. */
template <typename T, int V>
__global__ void combine_backward_kernel(T *d_y, float *d_weights, const T *y, const float *weights, const T *d_out,
                                        const int32_t *slot, int64_t top_k, int64_t width)
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
        return moedi_cuda_launch(e, combine_backward_kernel<T, WIDE_ACCESS<T>>, rows, THREADS, 0, d_y, d_weights, y, weights,
                                 d_out, a->slot, a->top_k, a->width);
    return moedi_cuda_launch(e, combine_backward_kernel<T, 1>, rows, THREADS, 0, d_y, d_weights, y, weights, d_out, a->slot,
                             a->top_k, a->width);
}
MOEDI_CUDA_DEFINED(combine_backward, combine)
