/* cuda/common/cluster.cu - the two halves of a step of Lloyd's k-means. */
#include <cub/device/device_radix_sort.cuh>

#include "numbers.cuh"
#include "operations.h"

enum { WARPS = 8, THREADS = 32 * WARPS, COLUMNS = 128 };

/* A warp a vector: the distance to each centroid by differences, in float; costs in double, so that penalties count in full. */
static __global__ void assign_kernel(moed_op_kmeans_assign a)
{
    const int lane = threadIdx.x & 31;
    const int64_t i = (int64_t)blockIdx.x * WARPS + (threadIdx.x >> 5);
    if (i >= a.count) return;
    const float *x = a.x + i * a.width;
    double lowest = 0;
    float nearest = 0;
    int32_t label = 0;
    for (int64_t k = 0; k < a.clusters; k++) {
        float distance = 0;
        for (int64_t d = lane; d < a.width; d += 32) {
            const float difference = x[d] - a.centroids[k * a.width + d];
            distance += difference * difference;
        }
        distance = warp_sum(distance);
        const double cost = (double)distance + (a.penalty ? a.penalty[k] : 0.0);
        if (k == 0 || cost < lowest) lowest = cost, nearest = distance, label = (int32_t)k;
    }
    if (lane) return;
    a.labels[i] = label;
    if (a.distances) a.distances[i] = nearest;
}
template <typename T> moed_status moedi_cuda_kmeans_assign(moedi_cuda *e, const moed_op_kmeans_assign *a)
{
    return moedi_cuda_launch(e, assign_kernel, (unsigned)moedi_cuda_ceil(a->count, WARPS), THREADS, 0, *a);
}
MOEDI_CUDA_DEFINED(kmeans_assign, kmeans_assign)

static __global__ void number_kernel(int32_t *places, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) places[i] = (int32_t)i;
}

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

/* Cluster blockIdx.x, columns of blockIdx.y: its vectors are summed in the order of their numbers. */
static __global__ void accumulate_kernel(moed_op_kmeans_accumulate a, const int32_t *labels, const int32_t *places)
{
    const int64_t k = blockIdx.x, from = first_of(labels, a.count, k), end = first_of(labels, a.count, k + 1);
    const int64_t column = (int64_t)blockIdx.y * COLUMNS + threadIdx.x;
    double sum = 0, total = 0;
    for (int64_t i = from; column < a.width && i < end; i++)
        sum += (a.weights ? (double)a.weights[places[i]] : 1.0) * (double)a.x[(int64_t)places[i] * a.width + column];
    if (column < a.width) a.sums[k * a.width + column] = sum;
    if (blockIdx.y) return;
    for (int64_t i = from + threadIdx.x; i < end; i += COLUMNS) total += a.weights ? (double)a.weights[places[i]] : 1.0;
    total = block_sum(total);
    if (threadIdx.x == 0) a.totals[k] = total, a.counts[k] = end - from;
}
template <typename T> moed_status moedi_cuda_kmeans_accumulate(moedi_cuda *e, const moed_op_kmeans_accumulate *a)
{
    size_t sorting = 0;
    void *memory;
    int bits = 1;
    while (bits < 31 && a->clusters > (int64_t)1 << bits) bits++;
    MOEDI_CUDA_CHECK(e, (cub::DeviceRadixSort::SortPairs(nullptr, sorting, a->labels, (int32_t *)nullptr, (const int32_t *)nullptr,
                                                         (int32_t *)nullptr, a->count, 0, bits, e->stream)));
    moedi_cuda_pieces p;
    int32_t *places, *labels, *sorted;
    char *work;
    const auto lay = [&] {
        places = p.take<int32_t>(a->count), labels = p.take<int32_t>(a->count), sorted = p.take<int32_t>(a->count);
        work = p.take<char>((int64_t)sorting);
    };
    lay();
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, p.used, &memory));
    p.base = static_cast<char *>(memory), p.used = 0;
    lay();
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, number_kernel, (unsigned)moedi_cuda_ceil(a->count, THREADS), THREADS, 0, places, a->count));
    MOEDI_CUDA_CHECK(e, (cub::DeviceRadixSort::SortPairs(work, sorting, a->labels, labels, (const int32_t *)places, sorted, a->count, 0, bits,
                                                         e->stream)));
    return moedi_cuda_launch(e, accumulate_kernel, dim3((unsigned)a->clusters, (unsigned)moedi_cuda_ceil(a->width, COLUMNS)), COLUMNS, 0, *a,
                             (const int32_t *)labels, (const int32_t *)sorted);
}
MOEDI_CUDA_DEFINED(kmeans_accumulate, kmeans_accumulate)
