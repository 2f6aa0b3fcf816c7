/* train/checkpoint_size.h - what a checkpoint takes in host memory. */
#ifndef MOEDI_CHECKPOINT_SIZE_H
#define MOEDI_CHECKPOINT_SIZE_H

#include "model/model.h"

enum { MOEDI_CHECKPOINT_CHUNK = 1 << 17 }; /* numbers that pass through the host at a time */

/* Host memory that saving takes for a while, and resuming no more: pieces of tensors, what a file's header is made of,
 * buffers. */
int64_t moedi_checkpoint_bytes(const moed_layout *l, const moed_backend_info *numbers, const uint8_t *trained, int32_t policy);

#endif
