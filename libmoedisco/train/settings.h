/* train/settings.h - the trainer's options, read and checked against the layout they are for. */
#ifndef MOEDI_SETTINGS_H
#define MOEDI_SETTINGS_H

#include "model/layout.h"
#include "moedisco/train.h"

/* Defaults, ranges, and what depends on more than one field. Strings stay the caller's. Errors name field and value. */
moed_status moedi_settings_read(const moed_layout *l, const moed_train_options *given, moed_train_options *out);
/* "auto", "full" or "lean", as the options, state.json and messages say it. */
const char *moedi_policy_name(int32_t policy);

#endif
