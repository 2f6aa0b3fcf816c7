/* cluster/balance.h - clusters of equal weight. */
#ifndef MOEDI_BALANCE_H
#define MOEDI_BALANCE_H

#include "fit.h"

/* From a converged plain fit to clusters of equal weight: labels, centroids and inertia are replaced. */
moed_status moedi_fit_balance(moedi_fit *f);

#endif
