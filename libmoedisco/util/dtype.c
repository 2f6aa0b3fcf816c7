/* util/dtype.c - element types and conversion. */
#include "dtype.h"

#include <string.h>

#include "numbers.h"

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

/* ---- the loops' builds ---- */

extern const moedi_numbers moedi_numbers_plain;
#if defined(__x86_64__)
extern const moedi_numbers moedi_numbers_v2, moedi_numbers_v3, moedi_numbers_v4;
#endif

const moedi_numbers *moedi_numbers_set(int index)
{
    switch (index) {
    case 0: return &moedi_numbers_plain;
#if defined(__x86_64__)
    case 1: return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") ? &moedi_numbers_v2 : NULL;
    case 2:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")
                   ? &moedi_numbers_v3
                   : NULL;
    case 3:
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                       __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl")
                   ? &moedi_numbers_v4
                   : NULL;
#endif
    default: return NULL;
    }
}

const moedi_numbers *moedi_numbers_best(void)
{
    for (int i = MOEDI_NUMBERS_SETS - 1; i > 0; i--)
        if (moedi_numbers_set(i)) return moedi_numbers_set(i);
    return &moedi_numbers_plain;
}

void moedi_to_double(double *to, const void *from, moed_dtype from_type, int64_t count)
{
    moedi_numbers_best()->to_double(to, from, from_type, count);
}

void moedi_from_double(void *to, moed_dtype to_type, const double *from, int64_t count)
{
    moedi_numbers_best()->from_double(to, to_type, from, count);
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

void moedi_halve(uint16_t *high, int16_t *low, const float *from, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, sizeof bits);
        const int number = (bits & 0x7fffffffu) <= 0x7f800000u; /* rounding would carry a NaN over to a zero */
        high[i] = number ? (uint16_t)((bits + 0x8000u) >> 16) : (uint16_t)(bits >> 16 | 0x40u);
        if (low) low[i] = number ? (int16_t)(uint16_t)bits : 0;
    }
}

void moedi_unite(float *to, const uint16_t *high, const int16_t *low, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        const uint32_t bits = ((uint32_t)high[i] << 16) + (low ? (uint32_t)(int32_t)low[i] : 0u);
        memcpy(to + i, &bits, sizeof bits);
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
