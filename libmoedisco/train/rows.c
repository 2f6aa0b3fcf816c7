/* train/rows.c - rows of a corpus, every token once as a label. */
#include "rows.h"

moed_status moedi_rows_open(moedi_rows *r, const moed_corpus *d, int64_t tokens, int64_t rows, int64_t length)
{
    *r = (moedi_rows){.context = d->context, .rows = rows, .length = length, .left = tokens > 0 ? tokens : INT64_MAX};
    MOEDI_TRY(moedi_sampler_create(&r->sampler, d, 0));
    r->all_rows = moedi_sampler_evaluation_rows(r->sampler, length);
    MOEDI_TRY(MOEDI_NEW(r->context, rows * length, &r->tokens));
    MOEDI_TRY(MOEDI_NEW(r->context, rows * length, &r->labels));
    return MOEDI_NEW(r->context, rows * length, &r->documents);
}

void moedi_rows_close(moedi_rows *r)
{
    if (!r->context) return;
    moedi_sampler_destroy(r->sampler);
    moedi_free(r->context, r->tokens);
    moedi_free(r->context, r->labels);
    moedi_free(r->context, r->documents);
}

moed_status moedi_rows_next(moedi_rows *r, moed_batch *out, int64_t *labels)
{
    const int64_t rest = r->all_rows - r->row, rows = rest < r->rows ? rest : r->rows;
    *labels = 0;
    if (rest <= 0 || r->left <= 0) return MOED_OK;
    *out = (moed_batch){.tokens = r->tokens, .labels = r->labels, .documents = r->documents, .rows = rows, .length = r->length};
    MOEDI_TRY(moedi_sampler_evaluation(r->sampler, r->row, rows, r->length, r->tokens, r->labels, r->documents));
    r->row += rows;
    for (int64_t i = 0; i < rows * r->length; i++) {
        if (r->labels[i] < 0) continue;
        if (r->left > 0) r->left--, ++*labels;
        else r->labels[i] = -1;
    }
    return MOED_OK;
}
