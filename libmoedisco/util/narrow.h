/* util/narrow.h - numbers of 16 bits and back, inline for loops over many (vector/numbers.c) and for one (backends): integer
 * arithmetic and exact steps alone, so that every machine, GPUs among them, gives the same bits. */
#ifndef MOEDI_NARROW_H
#define MOEDI_NARROW_H

#include <stdint.h>
#include <string.h>

#include "util/everywhere.h"

MOEDI_EVERYWHERE uint32_t moedi_float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

MOEDI_EVERYWHERE float moedi_bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

MOEDI_EVERYWHERE float moedi_from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3FF;
    if (exponent == 31) return moedi_bits_float(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return moedi_bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = (float)mantissa * 0x1p-24f;
    return sign ? -small : small;
}

MOEDI_EVERYWHERE uint16_t moedi_to_f16(float x)
{
    const uint32_t u = moedi_float_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* rounds to 65520 or more */
    if (magnitude < 0x38800000) { /* subnormal: the float addition rounds at 2^-24 */
        const float shifted = moedi_bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (moedi_float_bits(shifted) - 0x3F000000));
    }
    return (uint16_t)(sign | ((magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

MOEDI_EVERYWHERE uint16_t moedi_to_bf16(uint32_t u)
{
    const uint32_t nan = u >> 16 | 0x40; /* NaN stays NaN */
    const uint32_t rounded = (u + 0x7FFF + (u >> 16 & 1)) >> 16;
    return (uint16_t)((u & 0x7FFFFFFF) > 0x7F800000 ? nan : rounded);
}

/* A double becomes a narrow number with one rounding: to odd in float, then to nearest. near: the bits of the nearest float;
 * lies: where the double lies of it, 1 above, -1 below, 0 on it. */
MOEDI_EVERYWHERE uint32_t moedi_float_odd(uint32_t near, int32_t lies)
{
    const uint32_t away = near >> 31 ? 0u - (uint32_t)lies : (uint32_t)lies;
    return near + (near & 1 ? 0 : away);
}

MOEDI_EVERYWHERE uint32_t moedi_double_odd(double x)
{
    const float near = (float)x;
    return moedi_float_odd(moedi_float_bits(near), (int32_t)((double)near < x) - (int32_t)((double)near > x));
}

#endif
