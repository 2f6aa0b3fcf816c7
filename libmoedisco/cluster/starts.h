/* cluster/starts.h - the first centroids of a fit. */
#ifndef MOEDI_STARTS_H
#define MOEDI_STARTS_H

#include "fit.h"

/* k-means++ with greedy trials or k-means||, into f->centroids; a pure function of seed and `restart`. */
moed_status moedi_fit_start(moedi_fit *f, uint64_t restart);

#endif
