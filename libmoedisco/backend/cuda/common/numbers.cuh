/* cuda/common/numbers.cuh - reals in registers: loads and stores of 16 bytes, sums over warps and blocks; arithmetic in float. */
#ifndef MOEDI_CUDA_NUMBERS_CUH
#define MOEDI_CUDA_NUMBERS_CUH

#include "engine.h"

typedef __nv_bfloat16 bf16;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16_rn(x); }

/* V reals that move as one. */
template <typename T, int V> struct alignas(sizeof(T) * V) pack {
    T at[V];
};
template <int V, typename T> __device__ inline void load(float (&out)[V], const T *from)
{
    const pack<T, V> p = *reinterpret_cast<const pack<T, V> *>(from);
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = to_float(p.at[i]);
}
template <int V, typename T> __device__ inline void store(T *to, const float (&in)[V])
{
    pack<T, V> p;
#pragma unroll
    for (int i = 0; i < V; i++) p.at[i] = from_float<T>(in[i]);
    *reinterpret_cast<pack<T, V> *>(to) = p;
}

/* Reals of one 16-byte access where width and addresses allow it, else 1. */
template <typename T> constexpr int WIDE_ACCESS = 16 / int(sizeof(T));
template <typename T, typename... Pointers> bool packs(int64_t width, Pointers... pointers)
{
    uintptr_t together = 0;
    ((together |= reinterpret_cast<uintptr_t>(pointers)), ...);
    return width % WIDE_ACCESS<T> == 0 && together % 16 == 0;
}

__device__ inline float warp_sum(float x)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ inline double warp_sum(double x)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}
__device__ inline float warp_max(float x)
{
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    return x;
}

/* Of numbers that are not below 0: their bits are in their order. */
__device__ inline float warp_max_magnitude(float x)
{
    return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x)));
}

/* Over a block of up to 1,024 threads, to all of them. In a fixed order. */
template <typename T> __device__ inline T block_sum(T x)
{
    __shared__ T parts[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    x = warp_sum(x);
    __syncthreads(); /* parts may still be read by an earlier sum */
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < warps ? parts[lane] : T(0);
    return warp_sum(x);
}
__device__ inline float block_max(float x)
{
    __shared__ float parts[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
    x = warp_max(x);
    __syncthreads();
    if (lane == 0) parts[warp] = x;
    __syncthreads();
    x = lane < warps ? parts[lane] : -INFINITY;
    return warp_max(x);
}

#endif
