/* cuda/common/sort.h - places by key: what lets a sum by label have one order. */
#ifndef MOEDI_CUDA_SORT_H
#define MOEDI_CUDA_SORT_H

#include "engine.h"

/* The keys in order, and the place that each came from; equal keys keep theirs. Device memory. */
struct moedi_cuda_sorted {
    const int32_t *keys, *places;
};

/* Bytes that sorting `count` keys, each from 0 to limit - 1, asks for. */
moed_status moedi_cuda_sort_room(moedi_cuda *e, int64_t count, int64_t limit, int64_t *room);
/* No less than that, whatever the limit and the chip: what is known without one. */
int64_t moedi_cuda_sort_most(int64_t count);
/* Sorts on the engine's stream. memory: sort_room bytes, aligned to 256, where the result lies. */
moed_status moedi_cuda_sort(moedi_cuda *e, const int32_t *keys, int64_t count, int64_t limit, void *memory,
                            moedi_cuda_sorted *out);

#endif
