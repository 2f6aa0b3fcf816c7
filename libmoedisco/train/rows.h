/* train/rows.h - rows of a corpus, every token once as a label: what evaluates a model goes through these. */
#ifndef MOEDI_ROWS_H
#define MOEDI_ROWS_H

#include "corpus/corpus.h"

typedef struct moedi_rows {
    const moed_context *context;
    moedi_sampler *sampler;
    int32_t *tokens, *labels, *documents; /* (rows, length) */
    int64_t rows, length;                 /* at a time */
    int64_t row, all_rows;                /* next, and how many there are */
    int64_t left;                         /* labels still wanted */
} moedi_rows;

/* tokens: how many labels are wanted, 0 = all. moedi_rows_close also where this fails; of zeros it does nothing. */
moed_status moedi_rows_open(moedi_rows *r, const moed_corpus *d, int64_t tokens, int64_t rows, int64_t length);
void moedi_rows_close(moedi_rows *r);
/* The next rows, borrowed until the one after; labels [out] how many positions count, 0 at the end. Labels past the wanted number
 * become -1. */
moed_status moedi_rows_next(moedi_rows *r, moed_batch *out, int64_t *labels);

#endif
