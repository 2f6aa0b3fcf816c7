/* train/state.h - state.json: where a run is, and what must agree for it to go on. */
#ifndef MOEDI_TRAIN_STATE_H
#define MOEDI_TRAIN_STATE_H

#include "trainer.h"
#include "util/json.h"

/* A new object, or NULL without memory. */
json_t *moedi_state_make(const moed_trainer *t);
/* MOED_E_MISMATCH naming the first field that differs, with both values. */
moed_status moedi_state_compare(const moed_trainer *t, const json_t *state, const char *path);
/* Step, tokens and position; call after everything else was restored. */
moed_status moedi_state_restore(moed_trainer *t, const json_t *state, const char *path);

#endif
