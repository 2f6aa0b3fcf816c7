/* train/step.h - one optimizer step for the trainer's loop as a whole, for foreign ones in two halves. */
#ifndef MOEDI_STEP_H
#define MOEDI_STEP_H

#include "trainer.h"

/* The handle can work: this process, nothing broken. */
moed_status moedi_step_check(const moed_trainer *t);
/* A whole step on the stream's next rows, of which the host waits once; afterwards as after the two halves. */
moed_status moedi_step_run(moed_trainer *t, moed_report *out, const moed_cancel *cancel);
/* The model's own tensors are as the last whole step left the trainer's weights, whatever stopped the work after it: returns
 * status, or why they could not be brought there. */
moed_status moedi_step_store(moed_trainer *t, moed_status status);
moed_status moedi_step_evaluate(moed_trainer *t, const moed_corpus *d, int64_t tokens, moed_report *out,
                                const moed_cancel *cancel);

#endif
