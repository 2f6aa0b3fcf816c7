/* train/loads.h - how often each expert was chosen, over any number of forward passes. */
#ifndef MOEDI_LOADS_H
#define MOEDI_LOADS_H

#include "model/transformer.h"

/* loads (layers, experts) += the choices of a forward: offsets (layers, experts + 1), running sums of each layer. */
void moedi_loads_add(const moedi_config *c, const int64_t *offsets, int64_t *loads);
/* The largest share of an expert in any layer, times experts: 1 when balanced, 0 when nothing was chosen. */
double moedi_loads_most(const moedi_config *c, const int64_t *loads);

#endif
