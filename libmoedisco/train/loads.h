/* train/loads.h - how often each expert was chosen, over any number of forward passes. */
#ifndef MOEDI_LOADS_H
#define MOEDI_LOADS_H

#include "model/transformer.h"

/* loads (layers, experts) += the choices of the last forward; after moedi_transformer_losses. */
void moedi_loads_add(const moedi_transformer *t, int64_t *loads);
/* The largest share of an expert in any layer, times experts: 1 when balanced, 0 when nothing was chosen. */
double moedi_loads_most(const moedi_config *c, const int64_t *loads);

#endif
