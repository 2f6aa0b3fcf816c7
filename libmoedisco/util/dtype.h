/* util/dtype.h - element types and conversion between the floating ones (f64, f32, f16, bf16; round to nearest even). */
#ifndef MOEDI_DTYPE_H
#define MOEDI_DTYPE_H

#include "core/status.h"

int moedi_dtype_is_float(moed_dtype dtype);                    /* one of the four above */
moed_dtype moedi_dtype_parse(const char *safetensors_name);    /* MOED_DTYPE_NONE when unknown */
size_t moedi_dtype_size(moed_dtype dtype);                     /* bytes; 0 below a byte and unknown */
void moedi_convert(void *to, moed_dtype to_type, const void *from, moed_dtype from_type, int64_t count);
void moedi_to_double(double *to, const void *from, moed_dtype from_type, int64_t count);
void moedi_from_double(void *to, moed_dtype to_type, const double *from, int64_t count);

/* A float as the nearest bf16 (ties up) and what is left in the last place of its bits (low nullable), and together again. */
void moedi_halve(uint16_t *high, int16_t *low, const float *from, int64_t count);
void moedi_unite(float *to, const uint16_t *high, const int16_t *low, int64_t count);

/* elements of shape, or -1 on overflow or a negative size */
int64_t moedi_shape_elements(const int64_t *shape, int32_t rank);
/* contiguous host tensor */
void moedi_tensor_set(moed_tensor *t, void *data, moed_dtype dtype, int32_t rank, const int64_t *shape);

#endif
