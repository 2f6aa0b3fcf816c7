/* train/state.h - state.json: where a run is, and what must agree for it to go on. */
#ifndef MOEDI_TRAIN_STATE_H
#define MOEDI_TRAIN_STATE_H

#include "trainer.h"
#include "util/json.h"

/* A new object, or NULL without memory. */
json_t *moedi_state_make(const moed_trainer *t);
/* MOED_E_MISMATCH naming the first field that differs, with both values; MOED_E_UNSUPPORTED for a state of another format. */
moed_status moedi_state_compare(const moed_trainer *t, const json_t *state, const char *path);
/* The policy of the checkpoint; MOED_E_MISMATCH when the trainer was asked for another. */
moed_status moedi_state_policy(const moed_trainer *t, const json_t *state, const char *path, int32_t *policy);
/* Where the run is: read before anything is restored, so that a state that lacks something changes nothing. */
typedef struct moedi_state {
    int64_t step, tokens, row, evaluated;
    double best_held_out;
    int64_t moments_since;
} moedi_state;
moed_status moedi_state_read(moedi_state *out, const moed_trainer *t, const json_t *state, const char *path);

#endif
