/* backend/cpu/reference/embedding.c - rows of the token table. */
#include "reference.h"

MOEDI_REFERENCE(embedding, embedding)
{
    const real *table = a->table; /* (vocabulary, width) */
    real *out = a->out;           /* (count, width) */
    (void)self;

    for (int64_t i = 0; i < a->count; i++)
        for (int64_t d = 0; d < a->width; d++) out[i * a->width + d] = table[a->tokens[i] * a->width + d];
    return MOED_OK;
}

MOEDI_REFERENCE(embedding_backward, embedding)
{
    const real *d_out = a->d_out;
    real *d_table = a->d_table;
    (void)self;

    for (int64_t i = 0; i < a->count; i++)
        for (int64_t d = 0; d < a->width; d++) d_table[a->tokens[i] * a->width + d] += d_out[i * a->width + d];
    return MOED_OK;
}

MOEDI_REFERENCE(embed_mean, embed_mean)
{
    const real *table = a->table;
    (void)self;

    for (int64_t i = 0; i < a->documents; i++) {
        const int64_t first = a->offsets[i], end = a->offsets[i + 1];
        for (int64_t d = 0; d < a->width; d++) {
            double sum = 0;
            for (int64_t t = first; t < end; t++) sum += (double)table[a->tokens[t] * a->width + d];
            a->out[i * a->width + d] = end > first ? (float)(sum / (double)(end - first)) : 0.0f;
        }
    }
    return MOED_OK;
}
