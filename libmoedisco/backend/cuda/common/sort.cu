/* cuda/common/sort.cu - keys and their places, by CUB's radix sort, which is stable. */
#include "sort.h"

#include <cub/device/device_radix_sort.cuh>

enum { THREADS = 256 };

static __global__ void number_kernel(int32_t *places, int64_t count)
{
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i < count) places[i] = (int32_t)i;
}

/* work NULL: room becomes what CUB asks for. */
static cudaError_t sort_pairs(moedi_cuda *e, void *work, size_t &room, const int32_t *keys, int32_t *sorted_keys,
                              const int32_t *places, int32_t *sorted_places, int64_t count, int64_t limit)
{
    int bits = 1;
    while (bits < 31 && limit > (int64_t)1 << bits) bits++;
    return cub::DeviceRadixSort::SortPairs(work, room, keys, sorted_keys, places, sorted_places, count, 0, bits, e->stream);
}

struct layout {
    int32_t *places, *sorted_keys, *sorted_places;
    char *work;
    size_t used;
};
static layout lay(void *memory, int64_t count, size_t room)
{
    moedi_cuda_pieces p;
    layout l = {};
    p.base = static_cast<char *>(memory);
    l.places = p.take<int32_t>(count), l.sorted_keys = p.take<int32_t>(count), l.sorted_places = p.take<int32_t>(count);
    l.work = p.take<char>((int64_t)room);
    l.used = p.used;
    return l;
}

moed_status moedi_cuda_sort_room(moedi_cuda *e, int64_t count, int64_t limit, int64_t *room)
{
    size_t work = 0;
    MOEDI_CUDA_CHECK(e, sort_pairs(e, nullptr, work, nullptr, nullptr, nullptr, nullptr, count, limit));
    *room = (int64_t)lay(nullptr, count, work).used;
    return MOED_OK;
}

/* CUB takes the keys and places once more, and for each tile (of 6528 keys or more) and each pass 256 counts. */
int64_t moedi_cuda_sort_most(int64_t count)
{
    return (int64_t)lay(nullptr, count, (size_t)(8 * count + count / 4 + (64 << 10))).used;
}

moed_status moedi_cuda_sort(moedi_cuda *e, const int32_t *keys, int64_t count, int64_t limit, void *memory,
                            moedi_cuda_sorted *out)
{
    size_t work = 0;
    MOEDI_CUDA_CHECK(e, sort_pairs(e, nullptr, work, nullptr, nullptr, nullptr, nullptr, count, limit));
    const layout l = lay(memory, count, work);
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, number_kernel, (unsigned)moedi_cuda_ceil(count, THREADS), THREADS, 0, l.places, count));
    MOEDI_CUDA_CHECK(e, sort_pairs(e, l.work, work, keys, l.sorted_keys, l.places, l.sorted_places, count, limit));
    *out = {l.sorted_keys, l.sorted_places};
    return MOED_OK;
}
