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
    void *moments;                  /* device: what every slice keeps, in one block */
    moed_step_scalars *scalars;     /* device; borrowed */
    int64_t numbers;                /* that have moments */
    int32_t policy;                 /* MOED_POLICY_FULL or _LEAN */
    int64_t since;                  /* the step after which moments were all 0 */
} moedi_optimizer;

moed_status moedi_optimizer_create(moedi_optimizer *out, moedi_transformer *t, const moed_layout *l, const uint8_t *trained,
                                   double weight_decay, int32_t policy, moed_step_scalars *scalars);
void moedi_optimizer_destroy(moedi_optimizer *o);
/* Bytes of moments, scalars excluded. */
int64_t moedi_optimizer_bytes(const moed_layout *l, const moed_backend_info *numbers, const uint8_t *trained, int32_t policy);

/* What is kept of a slice: an array each of m and v, and where those are codes of their scales. */
enum { MOEDI_MOMENT_PARTS = 4 };
typedef struct moedi_moment {
    const char *name;               /* "m", "v", "m_scale", "v_scale" */
    moed_dtype dtype;
    int64_t count;
    void *memory;                   /* device */
} moedi_moment;
int moedi_optimizer_parts(int32_t policy);
/* As a policy keeps it: with the memory that it has where that is the optimizer's own, else without. */
moedi_moment moedi_optimizer_part(const moedi_optimizer *o, int32_t policy, size_t slice, int part);

/* Brings up the numbers of optimizer step `step`: its rate, scale, a factor of the gradients, and by how much selection biases
 * move. */
moed_status moedi_optimizer_prepare(moedi_optimizer *o, const moed_train_options *options, int64_t step, double rate,
                                    double scale);
/* Norm of the gradients times scale, before clipping, to the scalars; NaN where one of losses (count, wide, on the device) is not
 * finite. Nothing is changed yet: apply does that, unless the norm is not finite. Both only enqueue. */
moed_status moedi_optimizer_measure(moedi_optimizer *o, const moed_train_options *options, const void *losses, int64_t count);
moed_status moedi_optimizer_apply(moedi_optimizer *o, const moed_train_options *options);

#endif
