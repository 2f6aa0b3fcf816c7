/* train/selection.h - which parameters train: roles or name patterns, taken and taken away. */
#ifndef MOEDI_SELECTION_H
#define MOEDI_SELECTION_H

#include "model/layout.h"

/* trained (params) [out]: 1 where `train` (NULL = all) takes a parameter and `freeze` (NULL = none) does not. Buffers (opaque)
 * and integers never train. MOED_E_ARGUMENT for a word that is no role and matches no parameter, or when nothing is left to
 * train. */
moed_status moedi_selection(const moed_layout *l, const char *train, const char *freeze, uint8_t *trained);

#endif
