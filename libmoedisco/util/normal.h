/* util/normal.h - the arithmetic of one random number, inline for the function of one (random.c), the loops over many
 * (vector/normals.c) and kernels: additions, multiplications, divisions and square roots alone, in one order, so that all of
 * them and every machine draw the same bits. */
#ifndef MOEDI_NORMAL_H
#define MOEDI_NORMAL_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "util/everywhere.h"

/* The purpose is spread over the key so that neighbouring seeds and purposes share no key. */
MOEDI_EVERYWHERE uint64_t moedi_philox_key(uint64_t seed, uint32_t purpose)
{
    return seed + purpose * 0x9E3779B97F4A7C15u;
}

/* Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 64 of its 128 bits. */
MOEDI_EVERYWHERE uint64_t moedi_philox(uint64_t key, uint64_t step, uint64_t index)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t x0 = (uint32_t)index, x1 = (uint32_t)(index >> 32), x2 = (uint32_t)step, x3 = (uint32_t)(step >> 32);
    MOEDI_UNROLL(10)
    for (int round = 0; round < 10; round++) {
        const uint64_t a = (uint64_t)x0 * 0xD2511F53u, b = (uint64_t)x2 * 0xCD9E8D57u;
        const uint32_t y0 = (uint32_t)(b >> 32) ^ x1 ^ k0, y2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x0 = y0, x1 = (uint32_t)b, x2 = y2, x3 = (uint32_t)a;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (uint64_t)x1 << 32 | x0;
}

/* The middle of one of 2^52 intervals, less a half: in (-1/2, 1/2). */
MOEDI_EVERYWHERE double moedi_normal_quantile(uint64_t random)
{
    const uint64_t bits = random >> 12 | 0x4330000000000000u; /* 2^52 + these 52 bits: exact, and made of vectors everywhere */
    double x;
    memcpy(&x, &bits, sizeof x);
    return ((x - 0x1p52) + 0.5) * 0x1p-52 - 0.5;
}

/* Natural logarithm of x in (0, 1): exponent and mantissa m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)) as a
 * series. */
MOEDI_EVERYWHERE double moedi_normal_logarithm(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    const int32_t exponent = (int32_t)(bits >> 52) - 1023;
    bits = (bits & 0xFFFFFFFFFFFFFu) | 0x3FF0000000000000u;
    double m;
    memcpy(&m, &bits, sizeof m);
    const int high = m > 1.4142135623730951;
    m = high ? m * 0.5 : m;
    const double z = (m - 1) / (m + 1), q = z * z;
    double sum = 0;
    MOEDI_UNROLL(11)
    for (int k = 21; k >= 1; k -= 2) sum = sum * q + 1.0 / k;
    return (double)(exponent + high) * 0.693147180559945309417 + 2 * z * sum;
}

/* (a[0] + a[1] x + ... + a[7] x^7) / (1 + b[0] x + ... + b[6] x^7) */
MOEDI_EVERYWHERE double moedi_normal_ratio(const double a[8], const double b[7], double x)
{
    double above = a[7], below = b[6];
    MOEDI_UNROLL(7)
    for (int k = 6; k >= 0; k--) above = above * x + a[k];
    MOEDI_UNROLL(6)
    for (int k = 5; k >= 0; k--) below = below * x + b[k];
    return above / (below * x + 1);
}

/* Inverse of the normal distribution function at q + 1/2: the published coefficients of algorithm AS 241 (Wichura 1988, PPND16),
 * about 1e-15 relative. In three parts: |q| up to MOEDI_NORMAL_CENTRE; beyond it, by r, to MOEDI_NORMAL_MIDDLE and from there
 * on. */
#define MOEDI_NORMAL_CENTRE 0.425
#define MOEDI_NORMAL_MIDDLE 5.0

MOEDI_EVERYWHERE double moedi_normal_centre(double q)
{
    static const double a[8] = {3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
                                45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727};
    static const double b[7] = {42.313330701600911252, 687.18700749205790830, 5394.1960214247511077, 21213.794301586595867,
                                39307.895800092710610, 28729.085735721942674, 5226.4952788528545610};
    return q * moedi_normal_ratio(a, b, 0.180625 - q * q);
}

/* From the nearer end: q + 1/2 is exact again, and 1 - (q + 1/2) too. */
MOEDI_EVERYWHERE double moedi_normal_r(double q)
{
    const double p = q + 0.5;
    return sqrt(-moedi_normal_logarithm(q < 0 ? p : 1 - p));
}

MOEDI_EVERYWHERE double moedi_normal_middle(double r)
{
    static const double a[8] = {1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
                                1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833,
                                7.74545014278341407640e-4};
    static const double b[7] = {2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550, 0.148103976427480074590,
                                0.0151986665636164571966, 5.47593808499534494600e-4, 1.05075007164441684324e-9};
    return moedi_normal_ratio(a, b, r - 1.6);
}

MOEDI_EVERYWHERE double moedi_normal_far(double r)
{
    static const double a[8] = {6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580, 0.296560571828504891230,
                                0.0265321895265761230930, 0.00124266094738807843860, 2.71155556874348757815e-5,
                                2.01033439929228813265e-7};
    static const double b[7] = {0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
                                7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831614588870e-7,
                                2.04426310338993978564e-15};
    return moedi_normal_ratio(a, b, r - 5);
}

MOEDI_EVERYWHERE double moedi_normal_tail(double q)
{
    const double r = moedi_normal_r(q), x = r <= MOEDI_NORMAL_MIDDLE ? moedi_normal_middle(r) : moedi_normal_far(r);
    return q < 0 ? -x : x;
}

MOEDI_EVERYWHERE double moedi_normal(uint64_t key, uint64_t step, uint64_t index)
{
    const double q = moedi_normal_quantile(moedi_philox(key, step, index));
    return q >= -MOEDI_NORMAL_CENTRE && q <= MOEDI_NORMAL_CENTRE ? moedi_normal_centre(q) : moedi_normal_tail(q);
}

#endif
