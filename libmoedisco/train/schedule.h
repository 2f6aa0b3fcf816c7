/* train/schedule.h - the learning rate of each step: constant, cosine, warm-up-stable-decay. */
#ifndef MOEDI_SCHEDULE_H
#define MOEDI_SCHEDULE_H

#include "moedisco/train.h"

/* Rate of optimizer step `step` = 1 .. options.steps; the last step has the final rate exactly. Past the end it stays there. */
double moedi_schedule_rate(const moed_train_options *o, int64_t step);
/* By how much that step moves selection biases: balance_boost times balance_rate at the first step, falling by equal factors to
 * balance_rate at the warm-up's end; without a boost that throughout. */
double moedi_schedule_balance(const moed_train_options *o, int64_t step);

#endif
