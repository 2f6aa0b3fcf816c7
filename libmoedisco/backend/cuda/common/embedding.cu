/* cuda/common/embedding.cu - rows of a table by token, and their gradients: places are sorted by token, so that each row of the
 * table is added to by one block, in order. */
#include "numbers.cuh"
#include "operations.h"
#include "sort.h"

enum { THREADS = 256 };

/* Rows of the table, gathered by token. */
template <typename T> moed_status moedi_cuda_embedding(moedi_cuda *e, const moed_op_embedding *a)
{
    moed_op_gather rows = {};
    rows.out = a->out, rows.x = a->table, rows.source = a->tokens, rows.rows = a->count, rows.top_k = 1, rows.width = a->width;
    return moedi_cuda_gather<T>(e, &rows);
}
MOEDI_CUDA_DEFINED(embedding, embedding)

/* A block for each place in sorted order; those that begin a token's run do the run. */
template <typename T, int V>
__global__ void embedding_backward_kernel(T *d_table, const T *d_out, const int32_t *tokens, const int32_t *places, int64_t count,
                                          int64_t width)
{
    const int64_t first = blockIdx.x;
    const int32_t token = tokens[first];
    if (first > 0 && tokens[first - 1] == token) return;
    T *to = d_table + (int64_t)token * width;
    for (int64_t c = ((int64_t)blockIdx.y * THREADS + threadIdx.x) * V; c < width; c += (int64_t)gridDim.y * THREADS * V) {
        float sum[V] = {};
        for (int64_t i = first; i < count && tokens[i] == token; i++) {
            float d[V];
            load(d, d_out + (int64_t)places[i] * width + c);
#pragma unroll
            for (int k = 0; k < V; k++) sum[k] += d[k];
        }
        float old[V];
        load(old, to + c);
#pragma unroll
        for (int k = 0; k < V; k++) old[k] += sum[k];
        store(to + c, old);
    }
}
template <typename T> size_t moedi_cuda_embedding_backward_room(const moed_workload *w)
{
    return (size_t)moedi_cuda_sort_most(w->rows * w->length);
}
MOEDI_CUDA_ROOM_DEFINED(embedding_backward)

template <typename T> moed_status moedi_cuda_embedding_backward(moedi_cuda *e, const moed_op_embedding *a)
{
    int64_t room;
    void *memory;
    moedi_cuda_sorted sorted;
    if (a->count <= 0) return MOED_OK;
    MOEDI_CUDA_TRY(moedi_cuda_sort_room(e, a->count, a->vocabulary, &room));
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, (size_t)room, &memory));
    MOEDI_CUDA_TRY(moedi_cuda_sort(e, a->tokens, a->count, a->vocabulary, memory, &sorted));
    T *d_table = static_cast<T *>(a->d_table);
    const T *d_out = static_cast<const T *>(a->d_out);
    const int V = packs<T>(a->width, d_table, d_out) ? WIDE_ACCESS<T> : 1;
    const dim3 grid((unsigned)a->count, (unsigned)moedi_cuda_ceil(a->width, THREADS * V));
    if (V > 1)
        return moedi_cuda_launch(e, embedding_backward_kernel<T, WIDE_ACCESS<T>>, grid, THREADS, 0, d_table, d_out, sorted.keys,
                                 sorted.places, a->count, a->width);
    return moedi_cuda_launch(e, embedding_backward_kernel<T, 1>, grid, THREADS, 0, d_table, d_out, sorted.keys, sorted.places,
                             a->count, a->width);
}
MOEDI_CUDA_DEFINED(embedding_backward, embedding)

template <typename T>
__global__ void embed_mean_kernel(float *out, const T *table, const int32_t *tokens, const int64_t *offsets, int64_t width)
{
    const int64_t from = offsets[blockIdx.x], end = offsets[blockIdx.x + 1];
    for (int64_t c = threadIdx.x; c < width; c += THREADS) {
        double sum = 0;
        for (int64_t i = from; i < end; i++) sum += (double)to_float(table[(int64_t)tokens[i] * width + c]);
        out[blockIdx.x * width + c] = end > from ? (float)(sum / (double)(end - from)) : 0.0f;
    }
}
template <typename T> moed_status moedi_cuda_embed_mean(moedi_cuda *e, const moed_op_embed_mean *a)
{
    return moedi_cuda_launch(e, embed_mean_kernel<T>, (unsigned)a->documents, THREADS, 0, a->out,
                             static_cast<const T *>(a->table), a->tokens, a->offsets, a->width);
}
MOEDI_CUDA_DEFINED(embed_mean, embed_mean)
