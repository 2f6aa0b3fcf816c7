/* train/estimate.h - bytes of a run before it starts. */
#ifndef MOEDI_ESTIMATE_H
#define MOEDI_ESTIMATE_H

#include "model/transformer.h"
#include "moedisco/train.h"

typedef struct moedi_budget {
    int64_t weights;               /* of the arithmetic's dtype, with their low halves */
    int64_t gradients, moments;
    int64_t activations;
    int64_t workspace;             /* of the CPU's operations; other devices count it in their own memory */
    int64_t rest;                  /* host: rows, routing, lists, the order of the corpus' documents */
} moedi_budget;

/* numbers: of the context's backend; documents: of the corpus, 0 = not known. */
moed_status moedi_budget_compute(const moed_layout *l, const moed_backend_info *numbers, const moed_train_options *o,
                                 const uint8_t *trained, int64_t documents, moedi_budget *out);

#endif
