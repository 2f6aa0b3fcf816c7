/* cuda/common/kmeans_sums.cu - a step of Lloyd's k-means beside its labels: sums by sorted labels, the step of both, and the
 * centroids moved. Nothing depends on the order in which threads run. */
#include "numbers.cuh"
#include "operations.h"
#include "sort.h"

/* ---- sums ---- */

/* Rows in the order of their labels are summed in pieces of PIECE, a piece's rows of one cluster in double in a register, and the
 * pieces of a cluster in order. The part of cluster k in piece p has the number p + k, which no other part has. */
enum { PIECE = 512, SUM_THREADS = 128, AHEAD = 8 /* rows whose loads are under way together */ };

/* The first place in sorted labels whose label is k or more. */
__device__ static inline int64_t first_of(const int32_t *labels, int64_t count, int64_t k)
{
    int64_t from = 0, end = count;
    while (from < end) {
        const int64_t middle = (from + end) / 2;
        if (labels[middle] < k) from = middle + 1;
        else end = middle;
    }
    return from;
}

/* Piece blockIdx.y, SUM_THREADS * V columns of blockIdx.x. */
template <int V>
static __global__ void __launch_bounds__(SUM_THREADS, 8)
    part_kernel(double *parts, moed_op_kmeans_accumulate a, const int32_t *labels, const int32_t *places)
{
    __shared__ int32_t label[PIECE], place[PIECE];
    __shared__ float weight[PIECE];
    const int64_t piece = blockIdx.y, column = ((int64_t)blockIdx.x * SUM_THREADS + threadIdx.x) * V;
    const int count = (int)(a.count - piece * PIECE < PIECE ? a.count - piece * PIECE : PIECE);
    for (int i = threadIdx.x; i < count; i += SUM_THREADS) {
        label[i] = labels[piece * PIECE + i], place[i] = places[piece * PIECE + i];
        weight[i] = a.weights ? a.weights[place[i]] : 1.0f;
    }
    __syncthreads();
    if (column >= a.width) return;
    for (int from = 0; from < count;) {
        const int k = label[from], end = (int)first_of(label, count, (int64_t)k + 1);
        double sum[V] = {};
        int i = from;
        for (; i + AHEAD <= end; i += AHEAD) {
            float x[AHEAD][V];
#pragma unroll
            for (int n = 0; n < AHEAD; n++) load(x[n], a.x + (int64_t)place[i + n] * a.width + column);
#pragma unroll
            for (int n = 0; n < AHEAD; n++)
#pragma unroll
                for (int j = 0; j < V; j++) sum[j] = fma((double)weight[i + n], (double)x[n][j], sum[j]);
        }
        for (; i < end; i++) {
            float x[V];
            load(x, a.x + (int64_t)place[i] * a.width + column);
#pragma unroll
            for (int j = 0; j < V; j++) sum[j] = fma((double)weight[i], (double)x[j], sum[j]);
        }
#pragma unroll
        for (int j = 0; j < V; j++) parts[(piece + k) * a.width + column + j] = sum[j];
        from = end;
    }
}

/* Cluster blockIdx.x, columns of blockIdx.y. */
static __global__ void whole_kernel(moed_op_kmeans_accumulate a, const double *parts, const int32_t *labels,
                                    const int32_t *places)
{
    const int64_t k = blockIdx.x, from = first_of(labels, a.count, k), end = first_of(labels, a.count, k + 1);
    const int64_t column = (int64_t)blockIdx.y * SUM_THREADS + threadIdx.x;
    double sum = 0, total = 0;
    if (column < a.width && from < end) {
#pragma unroll 8
        for (int64_t piece = from / PIECE; piece <= (end - 1) / PIECE; piece++) sum += parts[(piece + k) * a.width + column];
    }
    if (column < a.width) a.sums[k * a.width + column] = sum;
    if (blockIdx.y) return;
    if (a.weights) {
        for (int64_t i = from + threadIdx.x; i < end; i += SUM_THREADS) total += (double)a.weights[places[i]];
        total = block_sum(total);
    } else {
        total = (double)(end - from);
    }
    if (threadIdx.x == 0) a.totals[k] = total, a.counts[k] = end - from;
}
template <typename T> moed_status moedi_cuda_kmeans_accumulate(moedi_cuda *e, const moed_op_kmeans_accumulate *a)
{
    int64_t sorting;
    MOEDI_CUDA_TRY(moedi_cuda_sort_room(e, a->count, a->clusters, &sorting));
    const int64_t pieces = moedi_cuda_ceil(a->count, PIECE);
    const int columns = packs<float>(a->width, a->x) ? 4 : 1;
    moedi_cuda_sorted sorted;
    double *parts;
    char *work;
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &p) {
        parts = p.take<double>((pieces + a->clusters) * a->width), work = p.take<char>(sorting);
    }));
    MOEDI_CUDA_TRY(moedi_cuda_sort(e, a->labels, a->count, a->clusters, work, &sorted));
    const unsigned slices = (unsigned)moedi_cuda_ceil(a->width, SUM_THREADS * columns);
    const unsigned most = 1 << 15; /* a grid's y has 16 bits: pieces from `first` on */
    for (int64_t first = 0; first < pieces; first += most) {
        moed_op_kmeans_accumulate part = *a;
        part.count = a->count - first * PIECE;
        const unsigned some = (unsigned)(pieces - first < most ? pieces - first : most);
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, columns == 4 ? part_kernel<4> : part_kernel<1>, dim3(slices, some), SUM_THREADS, 0,
                                         parts + first * a->width, part, sorted.keys + first * PIECE,
                                         sorted.places + first * PIECE));
    }
    return moedi_cuda_launch(e, whole_kernel, dim3((unsigned)a->clusters, (unsigned)moedi_cuda_ceil(a->width, SUM_THREADS)),
                             SUM_THREADS, 0, *a, (const double *)parts, sorted.keys, sorted.places);
}
MOEDI_CUDA_DEFINED(kmeans_accumulate, kmeans_accumulate)
/* ---- labels and sums ---- */

/* Nothing is kept from step to step. */
template <typename T> moed_status moedi_cuda_kmeans_step(moedi_cuda *e, const moed_op_kmeans_step *a)
{
    const moed_op_kmeans_assign labels = {a->labels, nullptr, a->x, a->centroids, nullptr, a->count, a->width, a->clusters};
    const moed_op_kmeans_accumulate sums = {a->sums, a->totals, a->counts, a->x, a->weights, a->labels, a->count, a->width,
                                            a->clusters};
    MOEDI_CUDA_TRY(moedi_cuda_kmeans_assign<T>(e, &labels));
    return moedi_cuda_kmeans_accumulate<T>(e, &sums);
}
MOEDI_CUDA_DEFINED(kmeans_step, kmeans_step)

/* ---- centroids ---- */

enum { MOVE_THREADS = 256 };

/* A block a centroid. */
static __global__ void move_kernel(moed_op_kmeans_move a)
{
    const int64_t k = blockIdx.x;
    const double total = a.totals[k];
    double square = 0;
    for (int64_t d = threadIdx.x; d < a.width && total > 0; d += MOVE_THREADS) {
        float *const c = a.centroids + k * a.width + d;
        const float next = (float)(a.sums[k * a.width + d] / total);
        const double away = (double)next - (double)*c;
        square += away * away;
        *c = next;
    }
    square = block_sum(square);
    if (threadIdx.x == 0) a.moved[k] = (float)(sqrt(square) * (1 + 1e-6));
}
template <typename T> moed_status moedi_cuda_kmeans_move(moedi_cuda *e, const moed_op_kmeans_move *a)
{
    return moedi_cuda_launch(e, move_kernel, (unsigned)a->clusters, MOVE_THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(kmeans_move, kmeans_move)
