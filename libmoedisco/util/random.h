/* util/random.h - counter-based random numbers: a pure function of (seed, purpose, step, index), no state, no libm, the same on
 * every machine. */
#ifndef MOEDI_RANDOM_H
#define MOEDI_RANDOM_H

#include <stdint.h>

enum { /* purpose: one per use, so that streams never meet */
    MOEDI_RANDOM_INIT = 1,     /* step: parameter's hash */
    MOEDI_RANDOM_EPOCH = 2,    /* step: epoch; index: position */
    MOEDI_RANDOM_DIVIDE = 3,
    MOEDI_RANDOM_KMEANS = 4,   /* step: restart */
    MOEDI_RANDOM_PIECE = 5,
    MOEDI_RANDOM_ROW = 7,      /* step: epoch */
    MOEDI_RANDOM_ROUNDING = 8, /* step: optimizer's */
    MOEDI_RANDOM_CLONE = 9,    /* step: tensor's hash, or layer and expert */
    MOEDI_RANDOM_LAW = 20      /* step: 0 the runs held out, 1 + i resampling i */
};

uint64_t moedi_random(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index);
double moedi_random_uniform(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index); /* [0, 1), 53 bits */
double moedi_random_normal(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index);
/* The same of indices first, first + 1, ..., in a quarter of the time. */
void moedi_random_normals(double *out, uint64_t seed, uint32_t purpose, uint64_t step, uint64_t first, int64_t count);
/* An order of 0..count-1, in place of `order`. */
void moedi_random_permutation(uint64_t seed, uint32_t purpose, uint64_t step, int64_t *order, int64_t count);
/* Where such an order puts `index` of 0..count-1, without holding the order: for counts too large to hold. Another order than
 * moedi_random_permutation's. */
int64_t moedi_random_place(uint64_t seed, uint32_t purpose, uint64_t step, int64_t index, int64_t count);

#endif
