/* util/dtype.c - element types and conversion. */
#include "dtype.h"

#include <string.h>

static const struct {
    const char *name;
    int32_t bits;
} types[] = {
    [MOED_DTYPE_NONE] = {"", 0},        [MOED_DTYPE_F32] = {"F32", 32},       [MOED_DTYPE_F16] = {"F16", 16},
    [MOED_DTYPE_BF16] = {"BF16", 16},   [MOED_DTYPE_F64] = {"F64", 64},       [MOED_DTYPE_I32] = {"I32", 32},
    [MOED_DTYPE_I64] = {"I64", 64},     [MOED_DTYPE_U8] = {"U8", 8},          [MOED_DTYPE_I8] = {"I8", 8},
    [MOED_DTYPE_U16] = {"U16", 16},     [MOED_DTYPE_I16] = {"I16", 16},       [MOED_DTYPE_U32] = {"U32", 32},
    [MOED_DTYPE_U64] = {"U64", 64},     [MOED_DTYPE_BOOL] = {"BOOL", 8},      [MOED_DTYPE_F8_E4M3] = {"F8_E4M3", 8},
    [MOED_DTYPE_F8_E5M2] = {"F8_E5M2", 8}, [MOED_DTYPE_F8_E8M0] = {"F8_E8M0", 8}, [MOED_DTYPE_F6_E2M3] = {"F6_E2M3", 6},
    [MOED_DTYPE_F6_E3M2] = {"F6_E3M2", 6}, [MOED_DTYPE_F4] = {"F4", 4},       [MOED_DTYPE_C64] = {"C64", 64},
};
enum { TYPES = sizeof types / sizeof *types };

int32_t moed_dtype_bits(moed_dtype dtype)
{
    return dtype > 0 && dtype < TYPES ? types[dtype].bits : 0;
}

const char *moed_dtype_name(moed_dtype dtype)
{
    return dtype > 0 && dtype < TYPES ? types[dtype].name : "";
}

moed_dtype moedi_dtype_parse(const char *name)
{
    for (int32_t i = 1; i < TYPES; i++)
        if (!strcmp(types[i].name, name)) return i;
    return MOED_DTYPE_NONE;
}

int moedi_dtype_is_float(moed_dtype dtype)
{
    return dtype == MOED_DTYPE_F32 || dtype == MOED_DTYPE_F16 || dtype == MOED_DTYPE_BF16 || dtype == MOED_DTYPE_F64;
}

size_t moedi_dtype_size(moed_dtype dtype)
{
    return (size_t)moed_dtype_bits(dtype) / 8;
}

static uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static uint16_t to_bf16(float x)
{
    const uint32_t u = float_bits(x);
    if ((u & 0x7FFFFFFF) > 0x7F800000) return (uint16_t)(u >> 16 | 0x40); /* NaN stays NaN */
    return (uint16_t)((u + 0x7FFF + (u >> 16 & 1)) >> 16);
}

static float from_f16(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, mantissa = h & 0x3FF;
    if (exponent == 31) return bits_float(sign | 0x7F800000 | mantissa << 13);
    if (exponent) return bits_float(sign | (exponent + 112) << 23 | mantissa << 13);
    const float small = (float)mantissa * 0x1p-24f;
    return sign ? -small : small;
}

static uint16_t to_f16(float x)
{
    const uint32_t u = float_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return (uint16_t)(sign | 0x7E00 | (magnitude >> 13 & 0x3FF));
    if (magnitude >= 0x477FF000) return (uint16_t)(sign | 0x7C00); /* rounds to 65520 or more */
    if (magnitude < 0x38800000) { /* subnormal: the float addition rounds at 2^-24 */
        const float shifted = bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (float_bits(shifted) - 0x3F000000));
    }
    return (uint16_t)(sign | ((magnitude + 0xFFF + (magnitude >> 13 & 1) - 0x38000000) >> 13));
}

/* From double the narrow types are reached with one rounding: to odd in float, then to nearest. */
static float double_to_odd_float(double x)
{
    const float f = (float)x;
    if ((double)f == x || f != f) return f;
    uint32_t u = float_bits(f);
    if (!(u & 1)) {
        const int away = (double)f < x;
        u = (away == !(u >> 31)) ? u + 1 : u - 1;
    }
    return bits_float(u);
}

#define EACH(to_expr)                                \
    do {                                             \
        for (int64_t i = 0; i < count; i++) to_expr; \
    } while (0)

void moedi_to_double(double *to, const void *from, moed_dtype from_type, int64_t count)
{
    switch (from_type) {
    case MOED_DTYPE_F64: memcpy(to, from, (size_t)count * 8); break;
    case MOED_DTYPE_F32: EACH(to[i] = ((const float *)from)[i]); break;
    case MOED_DTYPE_F16: EACH(to[i] = from_f16(((const uint16_t *)from)[i])); break;
    case MOED_DTYPE_BF16: EACH(to[i] = bits_float((uint32_t)((const uint16_t *)from)[i] << 16)); break;
    default: break;
    }
}

void moedi_from_double(void *to, moed_dtype to_type, const double *from, int64_t count)
{
    switch (to_type) {
    case MOED_DTYPE_F64: memcpy(to, from, (size_t)count * 8); break;
    case MOED_DTYPE_F32: EACH(((float *)to)[i] = (float)from[i]); break;
    case MOED_DTYPE_F16: EACH(((uint16_t *)to)[i] = to_f16(double_to_odd_float(from[i]))); break;
    case MOED_DTYPE_BF16: EACH(((uint16_t *)to)[i] = to_bf16(double_to_odd_float(from[i]))); break;
    default: break;
    }
}

void moedi_convert(void *to, moed_dtype to_type, const void *from, moed_dtype from_type, int64_t count)
{
    if (to_type == from_type) {
        memcpy(to, from, (size_t)count * moedi_dtype_size(to_type));
        return;
    }
    double chunk[512]; /* every narrow type is exact in double */
    const size_t to_size = moedi_dtype_size(to_type), from_size = moedi_dtype_size(from_type);
    for (int64_t at = 0; at < count; at += 512) {
        const int64_t n = count - at < 512 ? count - at : 512;
        moedi_to_double(chunk, (const char *)from + (size_t)at * from_size, from_type, n);
        moedi_from_double((char *)to + (size_t)at * to_size, to_type, chunk, n);
    }
}

int64_t moedi_shape_elements(const int64_t *shape, int32_t rank)
{
    int64_t n = 1;
    for (int32_t i = 0; i < rank; i++)
        if (shape[i] < 0) return -1;
    for (int32_t i = 0; i < rank; i++)
        if (shape[i] == 0) return 0;
    for (int32_t i = 0; i < rank; i++)
        if (__builtin_mul_overflow(n, shape[i], &n)) return -1;
    return n;
}

void moedi_tensor_set(moed_tensor *t, void *data, moed_dtype dtype, int32_t rank, const int64_t *shape)
{
    memset(t, 0, sizeof *t);
    t->data = data;
    t->dtype = dtype;
    t->rank = rank;
    int64_t stride = 1;
    for (int32_t i = rank - 1; i >= 0; i--) {
        t->shape[i] = shape[i];
        t->strides[i] = stride;
        stride *= shape[i];
    }
}
