/* train/evaluate.h - held-out loss of a transformer, private side. */
#ifndef MOEDI_EVALUATE_H
#define MOEDI_EVALUATE_H

#include "corpus/corpus.h"
#include "model/transformer.h"
#include "moedisco/evaluate.h"

/* Scores tokens of d (0 = all) once each, in order, packed in rows of `length`, `rows` at a time (room for
 * both in t). out: labels, tokens, loss, load_balance, z_loss, max_load, seconds and tokens_per_second; the
 * rest 0. Leaves gradients alone. MOED_E_NUMERIC when the loss is NaN or infinite. */
moed_status moedi_evaluate(moedi_transformer *t, const moed_corpus *d, int64_t tokens, int64_t rows,
                           int64_t length, int32_t document_mask, moed_report *out,
                           const moed_cancel *cancel);

/* moed_model_usage, of a streamed model with so many bytes of experts' weights in memory at once (model/layerwise.h). */
moed_status moedi_evaluate_usage(const moed_model *m, const moed_corpus *d, int64_t tokens, int64_t experts, double *usage,
                                 double *weight, const moed_cancel *cancel);

/* Whether every token of d, end tokens too, is in the vocabulary of l; `which` names d in the error. MOED_E_MISMATCH. */
moed_status moedi_evaluate_check(const moed_layout *l, const moed_corpus *d, const char *which);
/* A model and a corpus that it can be run over. */
moed_status moedi_evaluate_check_pair(const moed_model *m, const moed_corpus *d);
/* Rows at a time (`most` at most) and their length, where nobody says them: up to 512 tokens each, 4096 together. */
void moedi_evaluate_shape(const moedi_config *c, int64_t most, int64_t *rows, int64_t *length);

#endif
