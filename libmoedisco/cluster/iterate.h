/* cluster/iterate.h - Lloyd's iteration of a fit. */
#ifndef MOEDI_ITERATE_H
#define MOEDI_ITERATE_H

#include "fit.h"

/* From f->centroids until they move by less than `limit` (a sum of squares) or for the iterations of the options. Labels,
 * centroids and inertia belong together afterwards. */
moed_status moedi_fit_iterate(moedi_fit *f, double limit);
/* Labels and inertia of the centroids as they are; what fills an empty cluster now becomes its centroid. followed: f->moved
 * leads here from the last step. */
moed_status moedi_fit_finish(moedi_fit *f, int followed);

#endif
