/* model/batch.c - a batch from the caller: its ids, sizes and label weights are believed only after this. */
#include <math.h>

#include "transformer.h"

static moed_status check_place(const moed_batch *b, int64_t i, int64_t vocabulary)
{
    const long long row = i / b->length, at = i % b->length;
    if (b->tokens[i] < 0 || b->tokens[i] >= vocabulary)
        return moedi_fail_parameter(MOED_E_RANGE, "tokens",
                                    "row %lld of the batch: token %d at %lld is outside the vocabulary of %lld", row,
                                    (int)b->tokens[i], at, (long long)vocabulary);
    if (!b->labels || b->labels[i] == -1) return MOED_OK;
    if (b->labels[i] < 0 || b->labels[i] >= vocabulary)
        return moedi_fail_parameter(MOED_E_RANGE, "labels",
                                    "row %lld of the batch: label %d at %lld is neither -1 nor in the vocabulary of %lld", row,
                                    (int)b->labels[i], at, (long long)vocabulary);
    if (!b->weights || (b->weights[i] >= 0 && isfinite(b->weights[i]))) return MOED_OK;
    return moedi_fail_parameter(b->weights[i] < 0 ? MOED_E_RANGE : MOED_E_NUMERIC, "weights",
                                "row %lld of the batch: label weight %g at %lld is not a number from 0 up", row,
                                (double)b->weights[i], at);
}

moed_status moedi_batch_check(const moed_batch *b, int64_t vocabulary, int64_t rows, int64_t length, int64_t *labels,
                              double *label_weight)
{
    if (!b->tokens) return moedi_fail_parameter(MOED_E_ARGUMENT, "tokens", "the batch has no tokens");
    if (b->rows < 1 || b->rows > rows)
        return moedi_fail_parameter(MOED_E_RANGE, "rows", "the batch has %lld rows, there is room for 1 to %lld",
                                    (long long)b->rows, (long long)rows);
    if (b->length < 1 || b->length > length)
        return moedi_fail_parameter(MOED_E_RANGE, "length", "the batch's rows have %lld tokens, there is room for 1 to %lld",
                                    (long long)b->length, (long long)length);
    int64_t count = 0;
    double weight = 0;
    for (int64_t i = 0; i < b->rows * b->length; i++) {
        MOEDI_TRY(check_place(b, i, vocabulary));
        if (!b->labels || b->labels[i] < 0) continue;
        count++;
        weight += b->weights ? (double)b->weights[i] : 1.0;
    }
    *labels = count, *label_weight = weight;
    return MOED_OK;
}
