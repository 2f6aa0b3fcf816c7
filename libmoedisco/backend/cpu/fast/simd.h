/* fast/simd.h - vectors of the set's own width, through the compiler's vector extensions: one source for every set. */
#ifndef MOEDI_FAST_SIMD_H
#define MOEDI_FAST_SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR 16 /* floats in a vector */
#elif defined(__AVX__)
#define VECTOR 8
#else
#define VECTOR 4
#endif

#define INLINE static inline __attribute__((always_inline, unused))

typedef float vfloat __attribute__((vector_size(VECTOR * 4)));
typedef int32_t vint __attribute__((vector_size(VECTOR * 4)));
typedef double vdouble __attribute__((vector_size(VECTOR * 8)));

INLINE vfloat load(const float *p)
{
    vfloat v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store(float *p, vfloat v)
{
    __builtin_memcpy(p, &v, sizeof v);
}
/* count < VECTOR floats; the rest is zero, and is not written */
INLINE vfloat load_part(const float *p, int64_t count)
{
    union {
        float f[VECTOR];
        vfloat v;
    } u = {{0}};
    for (int64_t i = 0; i < count; i++) u.f[i] = p[i];
    return u.v;
}
INLINE void store_part(float *p, vfloat v, int64_t count)
{
    union {
        float f[VECTOR];
        vfloat v;
    } u;
    u.v = v;
    for (int64_t i = 0; i < count; i++) p[i] = u.f[i];
}
/* `count` floats of a row from here to its end, at most a vector of them */
INLINE vfloat get(const float *p, int64_t count)
{
    return count >= VECTOR ? load(p) : load_part(p, count);
}
INLINE void put(float *p, vfloat v, int64_t count)
{
    if (count >= VECTOR) store(p, v);
    else store_part(p, v, count);
}
INLINE vfloat splat(float x)
{
    return x - (vfloat){0};
}
INLINE vfloat choose(vint mask, vfloat yes, vfloat no)
{
    return (vfloat)((mask & (vint)yes) | (~mask & (vint)no));
}
/* b where the comparison is false, so that a NaN in b stays */
INLINE vfloat vmax(vfloat a, vfloat b)
{
    return choose(a > b, a, b);
}
/* Sums and maxima over the lanes, always in the same order: quarters of four first. */
typedef float quad __attribute__((vector_size(16)));

/* VECTOR rows of four columns, at source[row * stride], turned: out[c] has column c of all rows. Rows from `rows` on are the
 * last. */
#if defined(__AVX512F__)
#define UNPACK_LOW(a, b) (vfloat)_mm512_unpacklo_ps((__m512)(a), (__m512)(b))
#define UNPACK_HIGH(a, b) (vfloat)_mm512_unpackhi_ps((__m512)(a), (__m512)(b))
#define PAIRS_LOW(a, b) (vfloat)_mm512_unpacklo_pd((__m512d)(a), (__m512d)(b))
#define PAIRS_HIGH(a, b) (vfloat)_mm512_unpackhi_pd((__m512d)(a), (__m512d)(b))
#define QUADS(q0, q1, q2, q3)                                                                                        \
    (vfloat) _mm512_insertf32x4(_mm512_insertf32x4(_mm512_insertf32x4(_mm512_castps128_ps512(_mm_loadu_ps(q0)),      \
                                                                      _mm_loadu_ps(q1), 1), _mm_loadu_ps(q2), 2),    \
                                _mm_loadu_ps(q3), 3)
#elif defined(__AVX__)
#define UNPACK_LOW(a, b) (vfloat)_mm256_unpacklo_ps((__m256)(a), (__m256)(b))
#define UNPACK_HIGH(a, b) (vfloat)_mm256_unpackhi_ps((__m256)(a), (__m256)(b))
#define PAIRS_LOW(a, b) (vfloat)_mm256_unpacklo_pd((__m256d)(a), (__m256d)(b))
#define PAIRS_HIGH(a, b) (vfloat)_mm256_unpackhi_pd((__m256d)(a), (__m256d)(b))
#define QUADS(q0, q1, q2, q3) (vfloat) _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(q0)), _mm_loadu_ps(q1), 1)
#else
#if defined(__clang__)
#define MIX(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define MIX(a, b, i, j, k, l) __builtin_shuffle(a, b, (vint){i, j, k, l})
#endif
#define UNPACK_LOW(a, b) MIX(a, b, 0, 4, 1, 5)
#define UNPACK_HIGH(a, b) MIX(a, b, 2, 6, 3, 7)
#define PAIRS_LOW(a, b) MIX(a, b, 0, 1, 4, 5)
#define PAIRS_HIGH(a, b) MIX(a, b, 2, 3, 6, 7)
#define QUADS(q0, q1, q2, q3) load(q0)
#endif
INLINE void turn_four(vfloat out[4], const float *source, int64_t stride, const int rows)
{
    vfloat in[4];
    for (int i = 0; i < 4; i++) {
        const float *q[4];
        for (int j = 0; j < 4; j++) q[j] = source + (4 * j + i < rows ? 4 * j + i : rows - 1) * stride;
        in[i] = QUADS(q[0], q[1], q[2], q[3]);
    }
    const vfloat ab = UNPACK_LOW(in[0], in[1]), cd = UNPACK_LOW(in[2], in[3]);
    const vfloat ab2 = UNPACK_HIGH(in[0], in[1]), cd2 = UNPACK_HIGH(in[2], in[3]);
    out[0] = PAIRS_LOW(ab, cd), out[1] = PAIRS_HIGH(ab, cd);
    out[2] = PAIRS_LOW(ab2, cd2), out[3] = PAIRS_HIGH(ab2, cd2);
}

/* Sums of four lanes each: halves of the vector are added until a quad is left. */
INLINE quad fold(vfloat v)
{
#if defined(__AVX512F__)
    const __m512 whole = (__m512)v;
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(whole),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(whole), 1)));
    return (quad)_mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif defined(__AVX__)
    return (quad)_mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
#else
    return v;
#endif
}
INLINE float lanes_sum(vfloat v)
{
    const quad q = fold(v);
    return (q[0] + q[2]) + (q[1] + q[3]);
}
INLINE float lanes_max(vfloat v)
{
    quad q[VECTOR / 4];
    __builtin_memcpy(q, &v, sizeof v);
    float highest = q[0][0];
    for (int i = 0; i < VECTOR / 4; i++)
        for (int l = 0; l < 4; l++) highest = q[i][l] > highest ? q[i][l] : highest;
    return highest;
}

/* e^x to about one unit in the last place: x = n ln 2 + r with |r| <= ln 2 / 2, e^r by its series to r^7 (the next term is below
 * 6e-9), 2^n through the exponent bits. Below -87.3 it is 0, above 88.7 infinity; NaN stays NaN. */
INLINE vfloat vexp(vfloat x)
{
    const vint under = x < -87.33f, over = x > 88.72f;
    const vfloat magic = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    vfloat t = choose(over, splat(88.0f), choose(under, splat(-87.0f), x));
    vfloat shifted = t * 1.44269504088896341f + magic;
    vfloat n = shifted - magic;
    vfloat r = t - n * 0.693359375f; /* few bits: the product is exact */
    r = r - n * -2.12194440054690583e-4f;
    vfloat p = r * (1.0f / 5040) + (1.0f / 720);
    p = p * r + (1.0f / 120);
    p = p * r + (1.0f / 24);
    p = p * r + (1.0f / 6);
    p = p * r + 0.5f;
    p = p * (r * r) + r;
    /* n reaches 128, whose power of two is no float: half of it is applied at a time */
    const vint whole = (vint)shifted - (vint)magic, half = whole >> 1, rest = whole - half;
    const vfloat low = (vfloat)((half + 127) << 23), high = (vfloat)((rest + 127) << 23);
    vfloat e = (p + 1.0f) * low * high;
    return choose(over, splat(INFINITY), choose(under, splat(0), e));
}
INLINE vfloat vsigmoid(vfloat x)
{
    return 1.0f / (1.0f + vexp(-x));
}
INLINE float exp1(float x)
{
    return vexp(splat(x))[0];
}

/* sum of a[i] * b[i], in four vectors side by side */
INLINE float dot(const float *a, const float *b, int64_t n)
{
    vfloat s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    int64_t i = 0;
    for (; i + 4 * VECTOR <= n; i += 4 * VECTOR) {
        s0 += load(a + i) * load(b + i);
        s1 += load(a + i + VECTOR) * load(b + i + VECTOR);
        s2 += load(a + i + 2 * VECTOR) * load(b + i + 2 * VECTOR);
        s3 += load(a + i + 3 * VECTOR) * load(b + i + 3 * VECTOR);
    }
    for (; i + VECTOR <= n; i += VECTOR) s0 += load(a + i) * load(b + i);
    if (i < n) s1 += load_part(a + i, n - i) * load_part(b + i, n - i);
    return lanes_sum((s0 + s1) + (s2 + s3));
}
/* y += factor * x */
INLINE void axpy(float *y, float factor, const float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VECTOR <= n; i += VECTOR) store(y + i, load(y + i) + factor * load(x + i));
    for (; i < n; i++) y[i] += factor * x[i];
}

#endif
