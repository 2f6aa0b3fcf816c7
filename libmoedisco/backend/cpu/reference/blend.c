/* backend/cpu/reference/blend.c - stretches of numbers made of others: one number after the other. */
#include "reference.h"

#include "util/item.h"
#include "util/narrow.h"
#include "util/normal.h"

static double number_at(const void *array, int32_t dtype, int64_t index)
{
    const char *at = (const char *)array + index * moedi_item_bytes(dtype);
    uint16_t half;
    float single;
    double x;
    switch (dtype) {
    case MOED_DTYPE_F16: memcpy(&half, at, 2); return (double)moedi_from_f16(half);
    case MOED_DTYPE_BF16: memcpy(&half, at, 2); return (double)moedi_bits_float((uint32_t)half << 16);
    case MOED_DTYPE_F32: memcpy(&single, at, 4); return (double)single;
    default: memcpy(&x, at, 8); return x;
    }
}

static void put_number(void *at, int32_t dtype, double x)
{
    const float single = (float)x;
    const uint32_t odd = moedi_double_odd(x);
    const uint16_t half = dtype == MOED_DTYPE_BF16 ? moedi_to_bf16(odd) : moedi_to_f16(moedi_bits_float(odd));
    switch (dtype) {
    case MOED_DTYPE_F64: memcpy(at, &x, 8); break;
    case MOED_DTYPE_F32: memcpy(at, &single, 4); break;
    default: memcpy(at, &half, 2);
    }
}

static double difference(double x, double y)
{
    return x == y || (isnan(x) && isnan(y)) ? 0.0 : x - y;
}

static void make_number(char *out, const moed_op_blend *a, int64_t b, int64_t r, int64_t c)
{
    const moed_op_term *first = &a->terms[0];
    const int64_t from = b * first->block + r * first->row + c;
    const int64_t size = moedi_item_bytes(a->dtype);
    double value = 0.0, sum = 0.0;
    char *to = out + (b * a->block + r * a->row + c) * size;
    if (first->op == MOED_PIECE_COPY && first->scale == 1.0 && first->dtype == a->dtype) {
        memcpy(to, (const char *)first->source + from * size, (size_t)size);
    } else {
        if (first->scale != 0.0)
            value = first->scale * (first->op == MOED_PIECE_DRAW
                                        ? moedi_normal(first->key, first->step, first->index + (uint64_t)from)
                                        : number_at(first->source, first->dtype, from));
        put_number(to, a->dtype, value);
    }
    if (a->count == 1) return;
    value = first->op == MOED_PIECE_COPY && first->scale == 1.0 ? number_at(first->source, first->dtype, from) : value;
    for (int64_t i = 1; i < a->count; i++) {
        const moed_op_term *t = &a->terms[i];
        const int64_t x = b * t->block + r * t->row + c, y = b * t->reference_block + r * t->reference_row + c;
        if (t->scale != 0.0)
            sum += t->scale * difference(number_at(t->source, t->dtype, x), number_at(t->reference, t->reference_dtype, y));
    }
    if (sum != 0.0) put_number(to, a->dtype, value + sum);
}

MOEDI_REFERENCE(blend, blend)
{
    (void)self;
    for (int64_t b = 0; b < a->blocks; b++)
        for (int64_t r = 0; r < a->rows; r++)
            for (int64_t c = 0; c < a->width; c++) make_number(a->out, a, b, r, c);
    return MOED_OK;
}
