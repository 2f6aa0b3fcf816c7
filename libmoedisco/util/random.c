/* util/random.c - Philox 4x32-10 keyed by seed and purpose, counted by step and index; normals by the inverse of the normal
 * distribution. */
#include "random.h"

#include "normal.h"
#include "numbers.h"

uint64_t moedi_random(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index)
{
    return moedi_philox(moedi_philox_key(seed, purpose), step, index);
}

double moedi_random_uniform(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index)
{
    return (double)(moedi_random(seed, purpose, step, index) >> 11) * 0x1p-53;
}

double moedi_random_normal(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index)
{
    return moedi_normal(moedi_philox_key(seed, purpose), step, index);
}

void moedi_random_normals(double *out, uint64_t seed, uint32_t purpose, uint64_t step, uint64_t first, int64_t count)
{
    moedi_numbers_best()->normals(out, seed, purpose, step, first, count);
}

void moedi_random_permutation(uint64_t seed, uint32_t purpose, uint64_t step, int64_t *order, int64_t count)
{
    for (int64_t i = 0; i < count; i++) order[i] = i;
    for (int64_t i = count - 1; i > 0; i--) {
        const uint64_t r = moedi_random(seed, purpose, step, (uint64_t)i);
        const int64_t j = (int64_t)(((unsigned __int128)r * (uint64_t)(i + 1)) >> 64);
        const int64_t kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

/* A Feistel network over the next power of four, walked until it lands below count: a bijection of 0..count-1. */
int64_t moedi_random_place(uint64_t seed, uint32_t purpose, uint64_t step, int64_t index, int64_t count)
{
    enum { ROUNDS = 6 };
    int half = 1; /* bits of a half */
    while (half < 31 && (uint64_t)count > UINT64_C(1) << 2 * half) half++;
    const uint64_t mask = (UINT64_C(1) << half) - 1;
    uint64_t at = (uint64_t)index;
    do {
        uint64_t left = at >> half, right = at & mask;
        for (uint64_t round = 0; round < ROUNDS; round++) {
            const uint64_t mixed = left ^ (moedi_random(seed, purpose, step, round << 32 | right) & mask);
            left = right;
            right = mixed;
        }
        at = left << half | right;
    } while (at >= (uint64_t)count);
    return (int64_t)at;
}
