/* train/optimizer.h - AdamW over the parameters that train: their moments, and the scalars that change by step. */
#ifndef MOEDI_OPTIMIZER_H
#define MOEDI_OPTIMIZER_H

#include "model/transformer.h"
#include "moedisco/train.h"

typedef struct moedi_optimizer {
    moedi_transformer *transformer;
    const moed_context *context;
    size_t *params;                 /* (count) parameter of each slice */
    moed_op_slice *slices;          /* (count); pointers on the device */
    size_t count;
    void *moments;                  /* device: m and v of every slice in one block */
    moed_step_scalars *scalars;     /* device */
    int64_t numbers;                /* that have moments */
} moedi_optimizer;

moed_status moedi_optimizer_create(moedi_optimizer *out, moedi_transformer *t, const moed_layout *l, const uint8_t *trained,
                                   double weight_decay);
void moedi_optimizer_destroy(moedi_optimizer *o);
/* Bytes of moments, scalars excluded. */
int64_t moedi_optimizer_bytes(const moed_layout *l, const moed_backend_info *numbers, const uint8_t *trained);

/* Norm of the gradients times scale, before clipping; waits for it. Nothing is changed yet: apply does that with the same step's
 * scalars. */
moed_status moedi_optimizer_measure(moedi_optimizer *o, const moed_train_options *options, int64_t step, double rate,
                                    double scale, double *gradient_norm);
moed_status moedi_optimizer_apply(moedi_optimizer *o, const moed_train_options *options);

#endif
