/* util/random.c - Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") keyed by seed and purpose, counted by
 * step and index. Normals come from the inverse of the normal distribution by rational approximations and a logarithm made of
 * additions, multiplications and divisions alone, so that every machine draws the same weights. */
#include "random.h"

#include <math.h>
#include <string.h>

uint64_t moedi_random(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index)
{
    /* The purpose is spread over the key so that neighbouring seeds and purposes share no key. */
    const uint64_t key = seed + purpose * 0x9E3779B97F4A7C15u;
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t x0 = (uint32_t)index, x1 = (uint32_t)(index >> 32), x2 = (uint32_t)step, x3 = (uint32_t)(step >> 32);
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)x0 * 0xD2511F53u, b = (uint64_t)x2 * 0xCD9E8D57u;
        const uint32_t y0 = (uint32_t)(b >> 32) ^ x1 ^ k0, y2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x0 = y0, x1 = (uint32_t)b, x2 = y2, x3 = (uint32_t)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (uint64_t)x1 << 32 | x0;
}

double moedi_random_uniform(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index)
{
    return (double)(moedi_random(seed, purpose, step, index) >> 11) * 0x1p-53;
}

/* Natural logarithm of x in (0, 1): exponent and mantissa m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)) as a series. */
static double logarithm(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t exponent = (int64_t)(bits >> 52) - 1023;
    bits = (bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        exponent++;
    }
    const double z = (m - 1) / (m + 1), q = z * z;
    double sum = 0;
    for (int k = 21; k >= 1; k -= 2) sum = sum * q + 1.0 / k;
    return (double)exponent * 0.693147180559945309417 + 2 * z * sum;
}

/* (a[0] + a[1] x + ... + a[7] x^7) / (1 + b[0] x + ... + b[6] x^7) */
static double ratio(const double a[8], const double b[7], double x)
{
    double above = a[7], below = b[6];
    for (int k = 6; k >= 0; k--) above = above * x + a[k];
    for (int k = 5; k >= 0; k--) below = below * x + b[k];
    return above / (below * x + 1);
}

/* Inverse of the normal distribution function, p in (0, 1): the published coefficients of algorithm AS 241 (Wichura 1988, PPND16),
 * about 1e-15 relative. */
static double inverse_normal(double p)
{
    static const double centre[2][8] = {
        {3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125, 45921.953931549871457,
         67265.770927008700853, 33430.575583588128105, 2509.0809287301226727},
        {42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867, 39307.895800092710610,
         28729.085735721942674, 5226.4952788528545610}};
    static const double middle[2][8] = {
        {1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504, 1.27045825245236838258,
         0.241780725177450611770, 0.0227238449892691845833, 7.74545014278341407640e-4},
        {2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590, 0.0151986665636164571966,
         5.47593808499534494600e-4, 1.05075007164441684324e-9}};
    static const double far[2][8] = {
        {6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230, 0.0265321895265761230930,
         0.00124266094738807843860, 2.71155556874348757815e-5, 2.01033439929228813265e-7},
        {0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525, 7.86869131145613259100e-4,
         1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15}};
    const double q = p - 0.5;
    if (q >= -0.425 && q <= 0.425) return q * ratio(centre[0], centre[1], 0.180625 - q * q);
    const double r = sqrt(-logarithm(q < 0 ? p : 1 - p));
    const double x = r <= 5 ? ratio(middle[0], middle[1], r - 1.6) : ratio(far[0], far[1], r - 5);
    return q < 0 ? -x : x;
}

double moedi_random_normal(uint64_t seed, uint32_t purpose, uint64_t step, uint64_t index)
{
    /* the middle of one of 2^52 intervals: never 0 or 1 */
    const double p = ((double)(moedi_random(seed, purpose, step, index) >> 12) + 0.5) * 0x1p-52;
    return inverse_normal(p);
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
