/* util/vector/numbers.c - plain loops for the compiler to make vectors of, built with the flags of each instruction set; no
 * contraction of products and sums, so that every build gives the same bits. */
#include "util/numbers.h"

#include "util/narrow.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

enum { CHUNK = 256 };

/* From double the narrow types are reached with one rounding: to odd in float, then to nearest. Bits of the floats; count <=
 * CHUNK. In three loops, each of numbers of one width: the compiler makes vectors of those. */
static inline void odd_floats(uint32_t *restrict out, const double *restrict x, int64_t count)
{
    float near[CHUNK];
    int32_t side[CHUNK]; /* of the float on which x lies: 1 above, -1 below, 0 none */
    for (int64_t i = 0; i < count; i++) near[i] = (float)x[i];
    for (int64_t i = 0; i < count; i++) {
        const double back = (double)near[i];
        side[i] = (int32_t)(back < x[i]) - (int32_t)(back > x[i]);
    }
    memcpy(out, near, (size_t)count * sizeof *out);
    for (int64_t i = 0; i < count; i++) {
        out[i] = moedi_float_odd(out[i], side[i]);
    }
}

static void to_double(double *to, const void *from, moed_dtype from_type, int64_t count)
{
    const uint16_t *half = from;
    const float *single = from;
    switch (from_type) {
    case MOED_DTYPE_F64: memcpy(to, from, (size_t)count * 8); break;
    case MOED_DTYPE_F32:
        for (int64_t i = 0; i < count; i++) to[i] = (double)single[i];
        break;
    case MOED_DTYPE_F16:
        for (int64_t i = 0; i < count; i++) to[i] = (double)moedi_from_f16(half[i]);
        break;
    case MOED_DTYPE_BF16:
        for (int64_t i = 0; i < count; i++) to[i] = (double)moedi_bits_float((uint32_t)half[i] << 16);
        break;
    default: break;
    }
}

static void from_double(void *to, moed_dtype to_type, const double *from, int64_t count)
{
    uint16_t *half = to;
    float *single = to;
    uint32_t odd[CHUNK];
    switch (to_type) {
    case MOED_DTYPE_F64: memcpy(to, from, (size_t)count * 8); break;
    case MOED_DTYPE_F32:
        for (int64_t i = 0; i < count; i++) single[i] = (float)from[i];
        break;
    case MOED_DTYPE_F16:
    case MOED_DTYPE_BF16:
        for (int64_t at = 0; at < count; at += CHUNK) {
            const int64_t n = count - at < CHUNK ? count - at : CHUNK;
            odd_floats(odd, from + at, n);
            if (to_type == MOED_DTYPE_BF16)
                for (int64_t i = 0; i < n; i++) half[at + i] = moedi_to_bf16(odd[i]);
            else
                for (int64_t i = 0; i < n; i++) half[at + i] = moedi_to_f16(moedi_bits_float(odd[i]));
        }
        break;
    default: break;
    }
}

static void add_difference(double *restrict sum, double scale, double *restrict x, const double *restrict y, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const int same = (x[i] == y[i]) | ((x[i] != x[i]) & (y[i] != y[i]));
        x[i] = same ? 0.0 : x[i] - y[i];
    }
    if (scale != 0.0)
        for (int64_t i = 0; i < count; i++) sum[i] += scale * x[i];
}

static void add_squares(double lanes[MOEDI_LANES], const double *x, int64_t count)
{
    typedef double vector __attribute__((vector_size(MOEDI_LANES * sizeof(double))));
    vector all, v;
    int64_t i = 0;
    memcpy(&all, lanes, sizeof all);
    for (; i + MOEDI_LANES <= count; i += MOEDI_LANES) {
        memcpy(&v, x + i, sizeof v);
        all += v * v;
    }
    memcpy(lanes, &all, sizeof all);
    for (int l = 0; i + l < count; l++) lanes[l] += x[i + l] * x[i + l];
}

static void settle(void *out, moed_dtype type, const double *value, const double *sum, int64_t count)
{
    double made[CHUNK];
    union { uint16_t half[CHUNK]; uint32_t single[CHUNK]; uint64_t whole[CHUNK]; } bits;
    const size_t size = type == MOED_DTYPE_F64 ? 8 : type == MOED_DTYPE_F32 ? 4 : 2;
    for (int64_t at = 0; at < count; at += CHUNK) {
        const int64_t n = count - at < CHUNK ? count - at : CHUNK;
        const double *s = sum + at;
        char *to = (char *)out + (size_t)at * size;
        for (int64_t i = 0; i < n; i++) made[i] = value[at + i] + s[i];
        from_double(&bits, type, made, n);
        switch (size) {
        case 2:
            for (int64_t i = 0; i < n; i++) ((uint16_t *)to)[i] = s[i] != 0.0 ? bits.half[i] : ((uint16_t *)to)[i];
            break;
        case 4:
            for (int64_t i = 0; i < n; i++) ((uint32_t *)to)[i] = s[i] != 0.0 ? bits.single[i] : ((uint32_t *)to)[i];
            break;
        default:
            for (int64_t i = 0; i < n; i++) ((uint64_t *)to)[i] = s[i] != 0.0 ? bits.whole[i] : ((uint64_t *)to)[i];
        }
    }
}

#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
extern const moedi_numbers JOIN(moedi_numbers_, MOEDI_VARIANT);
extern void JOIN(moedi_normals_, MOEDI_VARIANT)(double *, uint64_t, uint32_t, uint64_t, uint64_t, int64_t); /* normals.c */
const moedi_numbers JOIN(moedi_numbers_, MOEDI_VARIANT) = {
    TEXT(MOEDI_VARIANT), to_double, from_double, add_difference, add_squares, settle, JOIN(moedi_normals_, MOEDI_VARIANT)};
