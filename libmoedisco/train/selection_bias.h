/* train/selection_bias.h - biases that experts are chosen by, moved on the device by how often they were. */
#ifndef MOEDI_SELECTION_BIAS_H
#define MOEDI_SELECTION_BIAS_H

#include "model/transformer.h"

typedef struct moedi_selection_biases {
    moedi_transformer *transformer;
    const moed_step_scalars *scalars; /* device: balance_rate */
    char *held;       /* device (layers, experts) wide: the biases of before, where holding; NULL: none move */
    int64_t *offsets; /* device (layers, experts + 1): of a whole step's choices */
    int64_t *sums;    /* the same in host memory */
    int32_t holding;
} moedi_selection_biases;

/* Of device memory; of host memory it is no more. */
int64_t moedi_selection_biases_bytes(const moedi_config *c, const moed_backend_info *numbers, double rate);
/* Whether an engine can move what would have to move: MOED_E_UNSUPPORTED. */
moed_status moedi_selection_biases_check(const moedi_config *c, const moedi_engine *e, double rate);
/* rate: balance_rate of the options; at 0, or in a model without such biases, nothing ever moves. */
moed_status moedi_selection_biases_create(moedi_selection_biases *out, moedi_transformer *t, const moed_step_scalars *scalars,
                                          double rate);
void moedi_selection_biases_destroy(moedi_selection_biases *b);

/* By the choices of a part of the step: offsets (layers, experts + 1) on the device, share as moed_op_balance has it, and band.
 * Enqueued, like all that follows. Source: arXiv 2408.15664. */
moed_status moedi_selection_biases_move(moedi_selection_biases *b, const int64_t *offsets, double share, double band);
/* By those of the whole step: loads (layers, experts) in host memory. */
moed_status moedi_selection_biases_move_by(moedi_selection_biases *b, const int64_t *loads, double band);

/* From here on the biases may move, and be brought back to what they are now, until released. */
moed_status moedi_selection_biases_hold(moedi_selection_biases *b);
void moedi_selection_biases_release(moedi_selection_biases *b);
/* Without a hold nothing changes. */
moed_status moedi_selection_biases_restore(moedi_selection_biases *b);

#endif
