/* cluster/minibatch.h - the mini-batches of a fit. */
#ifndef MOEDI_MINIBATCH_H
#define MOEDI_MINIBATCH_H

#include "fit.h"

/* From f->centroids on by mini-batches of the source, until they move by less than `limit` (a sum of squares) or for the
 * iterations of the options. No labels. */
moed_status moedi_fit_minibatch(moedi_fit *f, const moedi_source *s, double limit);

#endif
