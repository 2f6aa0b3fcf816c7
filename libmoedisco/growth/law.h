/* growth/law.h - a scaling law: coefficients of a form, and what is known of them. */
#ifndef MOEDI_LAW_H
#define MOEDI_LAW_H

#include <stdatomic.h>

#include "core/context.h"
#include "moedisco/law.h"

enum { MOEDI_LAW_MOST = 11 }; /* coefficients of any form */

struct moed_law {
    moed_context *context;
    moed_law_info info;
    double values[MOEDI_LAW_MOST], low[MOEDI_LAW_MOST], high[MOEDI_LAW_MOST];
    moed_loss_fn loss;
    void *loss_user;
    atomic_int told; /* bits: outside of which ranges the log has told */
};

/* The published e_start and e_max. */
extern const double MOEDI_LAW_E_START, MOEDI_LAW_E_MAX;

/* A law with info's form, range and source, and the form's coefficients. */
moed_status moedi_law_make(moed_law **out, moed_context *c, const moed_law_info *info, const double *values);

#endif
