/* cuda/datacenter/attention_layout.cu - what cuDNN's attention wants in other shapes. */
#include "attention_layout.h"

#include "../common/numbers.cuh"

enum { THREADS = 256 };

__global__ void lse_by_row_kernel(float *to, const float *from, int64_t rows, int64_t heads, int64_t length)
{
    const int64_t at = blockIdx.y * rows * length + blockIdx.z * length, i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < length) to[(blockIdx.z * heads + blockIdx.y) * length + i] = from[at + i];
}

moed_status moedi_cuda_lse_by_row(moedi_cuda *e, float *to, const float *from, int64_t rows, int64_t heads, int64_t length)
{
    const dim3 grid((unsigned)moedi_cuda_ceil(length, THREADS), (unsigned)heads, (unsigned)rows);
    return moedi_cuda_launch(e, lse_by_row_kernel, grid, THREADS, 0, to, from, rows, heads, length);
}

/* Finite: a tile whose keys are all hidden must not make NaN of infinity minus itself. */
__global__ void bias_kernel(bf16 *bias, const int32_t *start, int64_t length, int64_t stride)
{
    const int64_t i = (int64_t)blockIdx.z * length + blockIdx.y, j = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (j < length) bias[i * stride + j] = __float2bfloat16_rn(blockIdx.z * length + j < start[i] ? -1e30f : 0.0f);
}

moed_status moedi_cuda_document_bias(moedi_cuda *e, void *bias, const int32_t *start, int64_t rows, int64_t length)
{
    const dim3 grid((unsigned)moedi_cuda_ceil(length, THREADS), (unsigned)length, (unsigned)rows);
    return moedi_cuda_launch(e, bias_kernel, grid, THREADS, 0, static_cast<bf16 *>(bias), start, length,
                             moedi_cuda_bias_stride(length));
}
