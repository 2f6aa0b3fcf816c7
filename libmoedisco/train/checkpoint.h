/* train/checkpoint.h - DIRECTORY/checkpoints/step-N: model/, optimizer.safetensors, state.json, and manifest.json, which lists
 * size and checksum of the others. */
#ifndef MOEDI_CHECKPOINT_H
#define MOEDI_CHECKPOINT_H

#include "trainer.h"

/* A whole checkpoint of the trainer's step or none; then the oldest beyond options.keep go. */
moed_status moedi_checkpoint_save(moed_trainer *t);
/* The newest valid one; MOED_E_NOT_FOUND, MOED_E_MISMATCH. */
moed_status moedi_checkpoint_resume(moed_trainer *t);
/* Host memory that saving takes for a while, and resuming no more: pieces of tensors, what a file's header is made of,
 * buffers. */
int64_t moedi_checkpoint_bytes(const moed_layout *l, const moed_backend_info *numbers, const uint8_t *trained, int32_t policy);
/* 1 when the directory holds any, valid or not. */
moed_status moedi_checkpoint_any(const moed_trainer *t, int *any);

#endif
