/* backend/lean.h - moments of 8 bits with a scale for each block of numbers: the codes that every engine writes and checkpoints
 * hold, and the random bits they are rounded by.
 *
 * A block's numbers are divided by the largest of them. What is left is at most 1 and becomes a float of few bits, counted down
 * from 1, so that relative accuracy reaches far below the largest, which arXiv 2110.02861 found to matter; arithmetic takes the
 * place of its table. m is a sign, 4 bits of exponent and 3 of fraction; of v the square root is kept, 4 bits of exponent and 4
 * of fraction. Rounding is stochastic: to nearest, a mean that moves by less than half a step an update would stand still. */
#ifndef MOEDI_LEAN_H
#define MOEDI_LEAN_H

#include "util/narrow.h"

enum { MOEDI_LEAN_BLOCK = 256 }; /* numbers that share a scale; a tensor's last block may have fewer */

/* ---- codes: `fraction` bits of fraction kept, 1 is the code `top`, 0 is 0 ---- */

MOEDI_EVERYWHERE float moedi_lean_decode(uint32_t code, uint32_t fraction, uint32_t top)
{
    return code ? moedi_bits_float((code + (127u << fraction) - top) << (23 - fraction)) : 0.0f;
}
/* y from 0 to 1 and a rounding error more; random: 8 bits. */
MOEDI_EVERYWHERE uint32_t moedi_lean_encode(float y, uint32_t random, uint32_t fraction, uint32_t top)
{
    const uint32_t dropped = 23 - fraction, zero = (127u << fraction) - top;
    const uint32_t kept = (moedi_float_bits(y) + (random << (dropped - 8)) + (1u << (dropped - 9))) >> dropped;
    const uint32_t code = kept > zero ? kept - zero : 0;
    return code < top ? code : top;
}

/* Both relative to the block's scale. */
MOEDI_EVERYWHERE float moedi_lean_decode_m(uint32_t code)
{
    const float magnitude = moedi_lean_decode(code & 127, 3, 127);
    return code & 128 ? -magnitude : magnitude;
}
MOEDI_EVERYWHERE uint32_t moedi_lean_encode_m(float y, uint32_t random)
{
    const uint32_t bits = moedi_float_bits(y);
    return moedi_lean_encode(moedi_bits_float(bits & 0x7fffffffu), random & 255, 3, 127) | bits >> 31 << 7;
}
MOEDI_EVERYWHERE float moedi_lean_decode_root(uint32_t code)
{
    return moedi_lean_decode(code, 4, 255);
}
/* Never 0 for what is not: an update divides by it. */
MOEDI_EVERYWHERE uint32_t moedi_lean_encode_root(float y, uint32_t random)
{
    const uint32_t code = moedi_lean_encode(y, random >> 8 & 255, 4, 255);
    return code == 0 && y > 0 ? 1 : code;
}

/* The scale of a block whose largest magnitude this is, and by what to multiply. What has faded away altogether is 0. */
MOEDI_EVERYWHERE float moedi_lean_scale(float largest)
{
    return largest < 0x1p-100f ? 0.0f : largest;
}
MOEDI_EVERYWHERE float moedi_lean_inverse(float scale)
{
    return scale > 0 ? 1.0f / scale : 0.0f;
}

/* ---- random bits: of a step (scalars->random), a block, a number in it ---- */

MOEDI_EVERYWHERE uint32_t moedi_lean_key(uint64_t random, int64_t block)
{
    uint64_t x = random + (uint64_t)block * UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
    return (uint32_t)(x >> 32);
}
/* Bits 0 to 7 round m, 8 to 15 v, 16 to 31 the parameter. */
MOEDI_EVERYWHERE uint32_t moedi_lean_random(uint32_t key, uint32_t number)
{
    uint32_t x = key ^ number;
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* A float as one of the two BF16 beside it, the nearer the likelier; infinities stay, and NaNs as arithmetic makes them. */
MOEDI_EVERYWHERE uint16_t moedi_lean_round(float x, uint32_t random)
{
    const uint32_t bits = moedi_float_bits(x), finite = (bits & 0x7f800000u) != 0x7f800000u;
    return (uint16_t)((bits + (finite ? random >> 16 : 0)) >> 16);
}

#endif
