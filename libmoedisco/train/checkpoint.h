/* train/checkpoint.h - DIRECTORY/checkpoints/step-N: model/, optimizer.safetensors, state.json, and manifest.json, which lists
 * size and checksum of the others. */
#ifndef MOEDI_CHECKPOINT_H
#define MOEDI_CHECKPOINT_H

#include "trainer.h"

/* A whole checkpoint of the trainer's step or none; then the oldest beyond options.keep go. */
moed_status moedi_checkpoint_save(moed_trainer *t);
/* The newest valid one; MOED_E_NOT_FOUND, MOED_E_MISMATCH. */
moed_status moedi_checkpoint_resume(moed_trainer *t);

#endif
