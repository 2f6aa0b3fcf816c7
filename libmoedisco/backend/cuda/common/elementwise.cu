/* cuda/common/elementwise.cu - operations whose every output depends on a few inputs: memory speed is all there is. */
#include "numbers.cuh"
#include "operations.h"

enum { THREADS = 256 };

/* A grid that gives each thread one pack of V. */
static dim3 grid_for(int64_t packs_)
{
    return dim3((unsigned)moedi_cuda_ceil(packs_, THREADS));
}
__device__ static inline int64_t index_now()
{
    return (int64_t)blockIdx.x * THREADS + threadIdx.x;
}

/* Calls `call(std::integral_constant<int, V>)` with V = the packs that fit. */
#define WITH_PACKS(fits, T, ...)                      \
    do {                                              \
        if (fits) {                                   \
            constexpr int V = WIDE_ACCESS<T>;         \
            return __VA_ARGS__;                       \
        } else {                                      \
            constexpr int V = 1;                      \
            return __VA_ARGS__;                       \
        }                                             \
    } while (0)

/* ---- add ---- */

template <typename T, int V> __global__ void add_kernel(T *out, const T *a, const T *b, int64_t packs_)
{
    const int64_t i = index_now();
    if (i >= packs_) return;
    float x[V], y[V];
    load(x, a + i * V), load(y, b + i * V);
#pragma unroll
    for (int k = 0; k < V; k++) x[k] += y[k];
    store(out + i * V, x);
}
template <typename T> moed_status moedi_cuda_add(moedi_cuda *e, const moed_op_add *a)
{
    T *out = static_cast<T *>(a->out);
    const T *x = static_cast<const T *>(a->a), *y = static_cast<const T *>(a->b);
    WITH_PACKS(packs<T>(a->count, out, x, y), T,
               moedi_cuda_launch(e, add_kernel<T, V>, grid_for(a->count / V), THREADS, 0, out, x, y, a->count / V));
}
MOEDI_CUDA_DEFINED(add, add)

/* ---- the router's hidden layer: a few numbers a token ---- */

template <typename T> __global__ void squash_kernel(T *out, const T *x, int64_t count)
{
    const int64_t i = index_now();
    if (i < count) out[i] = from_float<T>(tanhf(to_float(x[i])));
}
template <typename T> __global__ void squash_backward_kernel(T *d_x, const T *out, const T *d_out, int64_t count)
{
    const int64_t i = index_now();
    if (i >= count) return;
    const float made = to_float(out[i]);
    d_x[i] = from_float<T>(to_float(d_out[i]) * (1.0f - made * made));
}
template <typename T> moed_status moedi_cuda_squash(moedi_cuda *e, const moed_op_squash *a)
{
    if (a->count <= 0) return MOED_OK;
    return moedi_cuda_launch(e, squash_kernel<T>, grid_for(a->count), THREADS, 0, static_cast<T *>(a->out),
                             static_cast<const T *>(a->x), a->count);
}
MOEDI_CUDA_DEFINED(squash, squash)
template <typename T> moed_status moedi_cuda_squash_backward(moedi_cuda *e, const moed_op_squash *a)
{
    if (a->count <= 0) return MOED_OK;
    return moedi_cuda_launch(e, squash_backward_kernel<T>, grid_for(a->count), THREADS, 0, static_cast<T *>(a->d_x),
                             static_cast<const T *>(a->out), static_cast<const T *>(a->d_out), a->count);
}
MOEDI_CUDA_DEFINED(squash_backward, squash)

/* ---- rope ---- */

/* A block a token. */
template <typename T, int V> __global__ void rope_kernel(moed_op_rope a)
{
    const int half = (int)a.head_dim / 2, each = half / V, packs_ = (int)a.heads * each;
    const int64_t table = (int64_t)a.positions[blockIdx.x] * half;
    T *const x = static_cast<T *>(a.x) + blockIdx.x * a.stride;
    for (int i = threadIdx.x; i < packs_; i += THREADS) {
        const int d = i % each * V;
        T *const at = x + i / each * a.head_dim + d;
        float first[V], second[V], c[V], s[V];
        load(first, at), load(second, at + half);
        load(c, static_cast<const float *>(a.cosine) + table + d), load(s, static_cast<const float *>(a.sine) + table + d);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float sine = a.inverse ? -s[k] : s[k], x1 = first[k], x2 = second[k];
            first[k] = x1 * c[k] - x2 * sine;
            second[k] = x2 * c[k] + x1 * sine;
        }
        store(at, first), store(at + half, second);
    }
}
template <typename T> moed_status moedi_cuda_rope(moedi_cuda *e, const moed_op_rope *a)
{
    constexpr int V = 4; /* of the table's floats, 16 bytes */
    const bool fits = a->head_dim / 2 % V == 0 && a->stride % V == 0 &&
                      reinterpret_cast<uintptr_t>(a->x) % (V * sizeof(T)) == 0 && packs<float>(V, a->cosine, a->sine);
    return moedi_cuda_launch(e, fits ? rope_kernel<T, V> : rope_kernel<T, 1>, dim3((unsigned)a->count), THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(rope, rope)

/* ---- swiglu ---- */

/* exp may overflow to infinity: the quotient is then 0, as it should be. Where T is narrow, by functions that are right to more
 * places than T has, in a third of the instructions. */
template <typename T> __device__ inline float sigmoid(float x)
{
    return sizeof(T) == 2 ? __fdividef(1.0f, 1.0f + __expf(-x)) : 1.0f / (1.0f + expf(-x));
}
template <typename T, int V> __global__ void swiglu_kernel(T *out, const T *gate_up, int64_t width, int64_t packs_)
{
    const int64_t i = index_now();
    if (i >= packs_) return;
    const int64_t per_row = width / V, row = i / per_row, column = i % per_row * V;
    float gate[V], up[V];
    load(gate, gate_up + row * 2 * width + column), load(up, gate_up + row * 2 * width + width + column);
#pragma unroll
    for (int k = 0; k < V; k++) up[k] *= gate[k] * sigmoid<T>(gate[k]);
    store(out + row * width + column, up);
}
template <typename T> moed_status moedi_cuda_swiglu(moedi_cuda *e, const moed_op_swiglu *a)
{
    T *out = static_cast<T *>(a->out);
    const T *gate_up = static_cast<const T *>(a->gate_up);
    WITH_PACKS(packs<T>(a->width, out, gate_up), T,
               moedi_cuda_launch(e, swiglu_kernel<T, V>, grid_for(a->rows * a->width / V), THREADS, 0, out, gate_up, a->width,
                                 a->rows * a->width / V));
}
MOEDI_CUDA_DEFINED(swiglu, swiglu)

/* A block a row. Each thread has read a place before it writes there: outputs may lie where inputs do. */
template <typename T, int V> __global__ void swiglu_backward_kernel(moed_op_swiglu a)
{
    const int64_t row = a.slot ? a.slot[blockIdx.x] : blockIdx.x;
    const float weight = a.weights ? static_cast<const float *>(a.weights)[blockIdx.x] : 1.0f;
    const T *const gates = static_cast<const T *>(a.gate_up) + row * 2 * a.width;
    const T *const d_out = static_cast<const T *>(a.d_out) + row * a.width;
    T *const d_gates = static_cast<T *>(a.d_gate_up) + row * 2 * a.width, *const out = static_cast<T *>(a.out) + row * a.width;
    float dot = 0;
    for (int64_t c = (int64_t)threadIdx.x * V; c < a.width; c += (int64_t)blockDim.x * V) {
        float gate[V], up[V], d[V], made[V];
        load(gate, gates + c), load(up, gates + a.width + c), load(d, d_out + c);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float s = sigmoid<T>(gate[k]), silu = gate[k] * s, d_silu = s * (1.0f + gate[k] * (1.0f - s));
            dot += d[k] * silu * up[k];
            made[k] = weight * silu * up[k];
            d[k] *= weight;
            gate[k] = d[k] * up[k] * d_silu;
            up[k] = d[k] * silu;
        }
        store(d_gates + c, gate), store(d_gates + a.width + c, up);
        if (a.out) store(out + c, made);
    }
    if (!a.d_weights) return;
    dot = block_sum(dot);
    if (threadIdx.x == 0) static_cast<float *>(a.d_weights)[blockIdx.x] = dot;
}
/* As many threads as share a row evenly. */
static unsigned threads_for(int64_t packs_)
{
    const int64_t turns = moedi_cuda_ceil(packs_, THREADS);
    return turns > 0 ? (unsigned)(moedi_cuda_ceil(moedi_cuda_ceil(packs_, turns), 32) * 32) : 32;
}
template <typename T> moed_status moedi_cuda_swiglu_backward(moedi_cuda *e, const moed_op_swiglu *a)
{
    WITH_PACKS(packs<T>(a->width, a->d_gate_up, a->gate_up, a->d_out, a->out), T,
               moedi_cuda_launch(e, swiglu_backward_kernel<T, V>, dim3((unsigned)a->rows), threads_for(a->width / V), 0, *a));
}
MOEDI_CUDA_DEFINED(swiglu_backward, swiglu)

/* ---- the shared expert's switch ---- */

template <typename T, int V> __global__ void sigmoid_gate_kernel(T *out, const T *x, const T *gate, int64_t width, int64_t packs_)
{
    const int64_t i = index_now();
    if (i >= packs_) return;
    const float s = sigmoid<T>(to_float(gate[i * V / width]));
    float sum[V], add[V];
    load(sum, out + i * V), load(add, x + i * V);
#pragma unroll
    for (int k = 0; k < V; k++) sum[k] += s * add[k];
    store(out + i * V, sum);
}
template <typename T> moed_status moedi_cuda_sigmoid_gate(moedi_cuda *e, const moed_op_sigmoid_gate *a)
{
    T *out = static_cast<T *>(a->out);
    const T *x = static_cast<const T *>(a->x), *gate = static_cast<const T *>(a->gate);
    WITH_PACKS(packs<T>(a->width, out, x), T,
               moedi_cuda_launch(e, sigmoid_gate_kernel<T, V>, grid_for(a->rows * a->width / V), THREADS, 0, out, x, gate,
                                 a->width, a->rows * a->width / V));
}
MOEDI_CUDA_DEFINED(sigmoid_gate, sigmoid_gate)

/* A block a row: d_x = s d_out, d_gate = s (1 - s) (d_out . x). */
template <typename T, int V>
__global__ void sigmoid_gate_backward_kernel(T *d_x, T *d_gate, const T *x, const T *gate, const T *d_out, int64_t width)
{
    const int64_t row = blockIdx.x, base = row * width;
    const float s = sigmoid<T>(to_float(gate[row]));
    float dot = 0;
    for (int64_t c = (int64_t)threadIdx.x * V; c < width; c += (int64_t)blockDim.x * V) {
        float d[V], y[V];
        load(d, d_out + base + c), load(y, x + base + c);
#pragma unroll
        for (int k = 0; k < V; k++) dot += d[k] * y[k], d[k] *= s;
        store(d_x + base + c, d);
    }
    dot = block_sum(dot);
    if (threadIdx.x == 0) d_gate[row] = from_float<T>(s * (1.0f - s) * dot);
}
template <typename T> moed_status moedi_cuda_sigmoid_gate_backward(moedi_cuda *e, const moed_op_sigmoid_gate *a)
{
    T *d_x = static_cast<T *>(a->d_x), *d_gate = static_cast<T *>(a->d_gate);
    const T *x = static_cast<const T *>(a->x), *gate = static_cast<const T *>(a->gate), *d_out = static_cast<const T *>(a->d_out);
    WITH_PACKS(packs<T>(a->width, d_x, x, d_out), T,
               moedi_cuda_launch(e, sigmoid_gate_backward_kernel<T, V>, dim3((unsigned)a->rows), THREADS, 0, d_x, d_gate, x, gate,
                                 d_out, a->width));
}
MOEDI_CUDA_DEFINED(sigmoid_gate_backward, sigmoid_gate)

/* ---- sum ---- */

static __global__ void sum_kernel(float *out, const float *x, int64_t count, double scale, int accumulate)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += (double)x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *out = (float)((accumulate ? (double)*out : 0.0) + sum * scale);
}
template <typename T> moed_status moedi_cuda_sum(moedi_cuda *e, const moed_op_sum *a)
{
    return moedi_cuda_launch(e, sum_kernel, 1, 1024, 0, static_cast<float *>(a->out), static_cast<const float *>(a->x), a->count,
                             a->scale, a->accumulate);
}
MOEDI_CUDA_DEFINED(sum, sum)
