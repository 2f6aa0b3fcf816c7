/* util/numbers.h - loops over numbers of the four floating types, compiled once per instruction set: the same bits from each. */
#ifndef MOEDI_NUMBERS_H
#define MOEDI_NUMBERS_H

#include "moedisco/base.h"

enum { MOEDI_LANES = 8 };          /* partial sums of add_squares: how many shows in the bits, so it is fixed */

typedef struct moedi_numbers {
    const char *name;
    void (*to_double)(double *to, const void *from, moed_dtype from_type, int64_t count);
    void (*from_double)(void *to, moed_dtype to_type, const double *from, int64_t count); /* one rounding, to nearest even */
    /* x becomes x - y, and 0 where both are the same, infinite or NaN too; sum += scale * x (scale 0: nothing). */
    void (*add_difference)(double *sum, double scale, double *x, const double *y, int64_t count);
    void (*add_squares)(double lanes[MOEDI_LANES], const double *x, int64_t count);
    /* out = value + sum wherever sum is not 0; elsewhere out's bits stay. */
    void (*settle)(void *out, moed_dtype type, const double *value, const double *sum, int64_t count);
    void (*normals)(double *out, uint64_t seed, uint32_t purpose, uint64_t step, uint64_t first,
                    int64_t count); /* as in random.h */
} moedi_numbers;

/* The fastest that runs on this machine. */
const moedi_numbers *moedi_numbers_best(void);
/* Number `index` of those that were compiled; NULL past the last and for one that does not run here. Number 0 always runs. */
enum { MOEDI_NUMBERS_SETS = 4 };
const moedi_numbers *moedi_numbers_set(int index);

#endif
