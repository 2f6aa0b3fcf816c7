/* train/schedule.h - the learning rate of each step: constant, cosine, warm-up-stable-decay. */
#ifndef MOEDI_SCHEDULE_H
#define MOEDI_SCHEDULE_H

#include "moedisco/train.h"

/* Rate of optimizer step `step` = 1 .. options.steps; the last step has the final rate exactly. Past the end it stays there. */
double moedi_schedule_rate(const moed_train_options *o, int64_t step);
/* Whether that step is one of the warm-up. */
int moedi_schedule_rises(const moed_train_options *o, int64_t step);

#endif
