/* cuda/datacenter/attention_layout.h - what cuDNN's attention wants in other shapes than the table has it, made on
 * the device. */
#ifndef MOEDI_CUDA_ATTENTION_LAYOUT_H
#define MOEDI_CUDA_ATTENTION_LAYOUT_H

#include "../common/engine.h"

/* to (rows, heads, length) = from (heads, rows, length) */
moed_status moedi_cuda_lse_by_row(moedi_cuda *e, float *to, const float *from, int64_t rows, int64_t heads, int64_t length);

/* A bias' row in numbers, the keys of one query: such that each begins aligned to 16 bytes. */
static inline int64_t moedi_cuda_bias_stride(int64_t length)
{
    return (length + 7) / 8 * 8;
}

/* bias (rows, length, bias_stride) bf16 = 0 where a query may see a key of its row by its document, else a number
 * that no score outweighs. */
moed_status moedi_cuda_document_bias(moedi_cuda *e, void *bias, const int32_t *start, int64_t rows, int64_t length);

#endif
