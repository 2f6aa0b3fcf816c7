/* train/checkpoint.h - DIRECTORY/checkpoints/step-N: model/, optimizer.safetensors, state.json, and manifest.json, which lists
 * size and checksum of the others. */
#ifndef MOEDI_CHECKPOINT_H
#define MOEDI_CHECKPOINT_H

#include "trainer.h"

/* Host memory that saving takes for a while: two pieces of a tensor in double, and buffers. */
#define MOEDI_CHECKPOINT_SAVING ((int64_t)(2 << 23) + (4 << 20))

/* A whole checkpoint of the trainer's step or none; then the oldest beyond options.keep go. */
moed_status moedi_checkpoint_save(moed_trainer *t);
/* The newest valid one; MOED_E_NOT_FOUND, MOED_E_MISMATCH. */
moed_status moedi_checkpoint_resume(moed_trainer *t);
/* 1 when the directory holds any, valid or not. */
moed_status moedi_checkpoint_any(const moed_trainer *t, int *any);

#endif
