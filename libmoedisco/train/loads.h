/* train/loads.h - how often each expert was chosen, over any number of forward passes. */
#ifndef MOEDI_LOADS_H
#define MOEDI_LOADS_H

#include "model/transformer.h"

static inline size_t moedi_loads_bytes(const moedi_config *c)
{
    return (size_t)(c->layers * c->experts) * sizeof(int64_t);
}
/* loads (layers, experts) += the choices of a forward: offsets (layers, experts + 1), running sums of each layer. */
void moedi_loads_add(const moedi_config *c, const int64_t *offsets, int64_t *loads);
/* How even the choices of a layer are. */
typedef struct moedi_evenness {
    double most;    /* largest share of an expert, times experts: 1 when balanced */
    double least;   /* smallest: 0 where an expert was never chosen */
    double entropy; /* of the shares, over that of equal ones: 1 when balanced, 0 when one expert has all */
    double gini;    /* 0 when balanced, (experts - 1) / experts when one has all */
} moedi_evenness;
/* Of `experts` loads; zeros when nothing was chosen. scratch (experts). */
moedi_evenness moedi_loads_evenness(const int64_t *loads, int64_t experts, int64_t *scratch);
/* The largest `most` of any layer, 0 when nothing was chosen. */
double moedi_loads_most(const moedi_config *c, const int64_t *loads);

#endif
