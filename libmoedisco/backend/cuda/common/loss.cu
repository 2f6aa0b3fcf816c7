/* cuda/common/loss.cu - the loss of the output head in pieces of rows: logits of a piece, which turn into their gradients in
 * place, and the two products that take those on. Logits of a whole batch never exist. */
#include "numbers.cuh"
#include "operations.h"

enum { THREADS = 1024, PIECE_BYTES = 5 << 27, PIECE_MULTIPLE = 128 };

/* A block a row: its loss, and with gradients scale * weight * (p - onehot) in place of the logits: zeros where scale is 0. */
template <typename T, int V>
__global__ void cross_entropy_kernel(float *losses, T *logits, const int32_t *labels, const float *weights, int64_t vocabulary,
                                     bool gradients, float scale)
{
    const int64_t row = blockIdx.x;
    const int32_t label = labels[row];
    T *x = logits + row * vocabulary;
    if (label < 0) {
        const float zero[V] = {};
        if (threadIdx.x == 0) losses[row] = 0;
        for (int64_t c = (int64_t)threadIdx.x * V; gradients && c < vocabulary; c += THREADS * V) store(x + c, zero);
        return;
    }
    /* each thread's own highest, and the sum of exponentials below it */
    float highest = -INFINITY, total = 0;
    for (int64_t c = (int64_t)threadIdx.x * V; c < vocabulary; c += THREADS * V) {
        float v[V], most = highest;
        load(v, x + c);
#pragma unroll
        for (int k = 0; k < V; k++) most = fmaxf(most, v[k]);
        total *= highest == most ? 1.0f : __expf(highest - most);
#pragma unroll
        for (int k = 0; k < V; k++) total += __expf(v[k] - most);
        highest = most;
    }
    const float all = block_max(highest);
    total = block_sum(highest == -INFINITY ? 0.0f : total * __expf(highest - all));
    const float weight = weights ? weights[row] : 1.0f, lse = all + logf(total);
    if (threadIdx.x == 0) losses[row] = weight * (lse - to_float(x[label]));
    if (!gradients) return;
    __syncthreads(); /* the label's logit has been read */
    const float factor = weight * scale;
    for (int64_t c = (int64_t)threadIdx.x * V; c < vocabulary; c += THREADS * V) {
        float v[V];
        load(v, x + c);
#pragma unroll
        for (int k = 0; k < V; k++) v[k] = factor * (__expf(v[k] - lse) - (c + k == label ? 1.0f : 0.0f));
        store(x + c, v);
    }
}

/* Rows of logits that are there at a time: pieces are alike. 8,192 rows of 151,936 are four pieces of 2,048, whose gradient of h
 * has 128 tiles of 128 x 256 for 132 multiprocessors; of 1,664 it had 104. */
template <typename T> static int64_t rows_at_a_time(int64_t rows, int64_t vocabulary)
{
    const int64_t fitting = PIECE_BYTES / (int64_t)sizeof(T) / vocabulary / PIECE_MULTIPLE * PIECE_MULTIPLE;
    const int64_t most = fitting > PIECE_MULTIPLE ? fitting : PIECE_MULTIPLE;
    if (rows <= most) return rows;
    return moedi_cuda_ceil(moedi_cuda_ceil(rows, moedi_cuda_ceil(rows, most)), PIECE_MULTIPLE) * PIECE_MULTIPLE;
}
template <typename T> size_t moedi_cuda_cross_entropy_room(const moed_workload *w)
{
    return (size_t)(rows_at_a_time<T>(w->rows * w->length, w->vocabulary) * w->vocabulary) * sizeof(T);
}
MOEDI_CUDA_ROOM_DEFINED(cross_entropy)

template <typename T> moed_status moedi_cuda_cross_entropy(moedi_cuda *e, const moed_op_cross_entropy *a)
{
    const int64_t D = a->width, V = a->vocabulary, piece = rows_at_a_time<T>(a->rows, V);
    void *logits;
    if (a->rows <= 0) return MOED_OK;
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, (size_t)(piece * V) * sizeof(T), &logits));
    const bool wide = packs<T>(V, logits);
    for (int64_t at = 0; at < a->rows; at += piece) {
        const int64_t rows = a->rows - at < piece ? a->rows - at : piece;
        const T *h = static_cast<const T *>(a->h) + at * D;
        moed_op_gemm g = {};
        g.c = logits, g.a = h, g.b = a->head, g.m = rows, g.n = V, g.k = D, g.lda = D, g.ldb = D, g.ldc = V, g.transpose_b = 1;
        MOEDI_CUDA_TRY(moedi_cuda_gemm<T>(e, &g));
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, wide ? cross_entropy_kernel<T, WIDE_ACCESS<T>> : cross_entropy_kernel<T, 1>,
                                         (unsigned)rows, THREADS, 0, static_cast<float *>(a->losses) + at,
                                         static_cast<T *>(logits), a->labels + at, a->weights ? a->weights + at : nullptr, V,
                                         a->d_h != nullptr, (float)a->scale));
        if (!a->d_h) continue;
        g = {};
        g.c = static_cast<T *>(a->d_h) + at * D, g.a = logits, g.b = a->head, g.m = rows, g.n = D, g.k = V, g.lda = V, g.ldb = D,
        g.ldc = D;
        MOEDI_CUDA_TRY(moedi_cuda_gemm<T>(e, &g));
        if (!a->d_head) continue;
        g = {};
        g.c = a->d_head, g.a = logits, g.b = h, g.m = V, g.n = D, g.k = rows, g.lda = V, g.ldb = D, g.ldc = D, g.transpose_a = 1,
        g.accumulate = 1;
        MOEDI_CUDA_TRY(moedi_cuda_gemm<T>(e, &g));
    }
    return MOED_OK;
}
MOEDI_CUDA_DEFINED(cross_entropy, cross_entropy)
