/* cuda/common/grouped.cu - products of groups whose sizes only the device knows, plain: tiles of 64 x 64 in shared memory, float
 * arithmetic. The faster ways take the shapes they can; this one takes all. */
#include "numbers.cuh"
#include "operations.h"

enum { TILE = 64, DEPTH = 16, EACH = 4, THREADS = 256 };

/* One tile of c (rows x columns at c, row stride ldc): the sum over k of a(i, p) b(p, j), read through their strides. */
template <typename T>
__device__ void multiply_tile(T *c, int64_t ldc, const T *a, int64_t a_row, int64_t a_depth, const T *b, int64_t b_depth,
                              int64_t b_column, int64_t rows, int64_t columns, int64_t k, bool accumulate)
{
    __shared__ float left[DEPTH][TILE + 1], right[DEPTH][TILE + 1];
    const int ty = threadIdx.x / 16 * EACH, tx = threadIdx.x % 16 * EACH;
    float sum[EACH][EACH] = {};
    for (int64_t p = 0; p < k; p += DEPTH) {
        for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
            const int row = a_depth == 1 ? i / DEPTH : i % TILE, depth = a_depth == 1 ? i % DEPTH : i / TILE;
            left[depth][row] = row < rows && p + depth < k ? to_float(a[row * a_row + (p + depth) * a_depth]) : 0.0f;
        }
        for (int i = threadIdx.x; i < TILE * DEPTH; i += THREADS) {
            const int column = b_depth == 1 ? i / DEPTH : i % TILE, depth = b_depth == 1 ? i % DEPTH : i / TILE;
            right[depth][column] =
                column < columns && p + depth < k ? to_float(b[(p + depth) * b_depth + column * b_column]) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int d = 0; d < DEPTH; d++)
#pragma unroll
            for (int i = 0; i < EACH; i++)
#pragma unroll
                for (int j = 0; j < EACH; j++) sum[i][j] += left[d][ty + i] * right[d][tx + j];
        __syncthreads();
    }
    for (int i = 0; i < EACH; i++)
        for (int j = 0; j < EACH; j++)
            if (ty + i < rows && tx + j < columns) {
                T *to = c + (ty + i) * ldc + tx + j;
                *to = from_float<T>(sum[i][j] + (accumulate ? to_float(*to) : 0.0f));
            }
}

__device__ static inline int64_t least(int64_t x, int64_t y)
{
    return x < y ? x : y;
}

/* blockIdx.x counts the groups' tiles of rows one after the other; those past the last have nothing to do. */
template <typename T> __global__ void ragged_rows_kernel(moed_op_grouped_gemm a)
{
    int64_t tile = blockIdx.x, g = 0;
    while (g < a.groups) {
        const int64_t tiles = (a.offsets[g + 1] - a.offsets[g] + TILE - 1) / TILE;
        if (tile < tiles) break;
        tile -= tiles, g++;
    }
    if (g == a.groups) return;
    const int64_t row = a.offsets[g] + tile * TILE, column = (int64_t)blockIdx.y * TILE;
    const T *b = static_cast<const T *>(a.b) + g * a.stride_b;
    multiply_tile(static_cast<T *>(a.c) + row * a.ldc + column, a.ldc, static_cast<const T *>(a.a) + row * a.lda, a.lda, 1,
                  a.transpose_b ? b + column * a.ldb : b + column, a.transpose_b ? 1 : a.ldb, a.transpose_b ? a.ldb : 1,
                  least(TILE, a.offsets[g + 1] - row), least(TILE, a.n - column), a.k, a.accumulate);
}
template <typename T> __global__ void ragged_reduction_kernel(moed_op_grouped_gemm a)
{
    const int64_t g = blockIdx.z, from = a.offsets[g], row = (int64_t)blockIdx.x * TILE, column = (int64_t)blockIdx.y * TILE;
    multiply_tile(static_cast<T *>(a.c) + g * a.stride_c + row * a.ldc + column, a.ldc,
                  static_cast<const T *>(a.a) + from * a.lda + row, 1, a.lda, static_cast<const T *>(a.b) + from * a.ldb + column,
                  a.ldb, 1, least(TILE, a.m - row), least(TILE, a.n - column), a.offsets[g + 1] - from, a.accumulate);
}

template <typename T> size_t moedi_cuda_grouped_gemm_room(const moed_workload *w)
{
    return sizeof(T) == 2 && w->experts > 1 ? moedi_cuda_grouped_sm90_room(w) : 0;
}
MOEDI_CUDA_ROOM_DEFINED(grouped_gemm)

template <typename T> moed_status moedi_cuda_grouped_gemm(moedi_cuda *e, const moed_op_grouped_gemm *a)
{
    if (a->m <= 0 || a->n <= 0 || a->groups <= 0) return MOED_OK;
    if (sizeof(T) == 2) {
        const moed_status status = moedi_cuda_grouped_sm90(e, a);
        if (status != MOED_E_UNSUPPORTED) return status;
    }
    const unsigned rows = (unsigned)moedi_cuda_ceil(a->m, TILE), columns = (unsigned)moedi_cuda_ceil(a->n, TILE);
    if (a->reduce)
        return moedi_cuda_launch(e, ragged_reduction_kernel<T>, dim3(rows, columns, (unsigned)a->groups), THREADS, 0, *a);
    return moedi_cuda_launch(e, ragged_rows_kernel<T>, dim3(rows + (unsigned)a->groups, columns), THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(grouped_gemm, grouped_gemm)
