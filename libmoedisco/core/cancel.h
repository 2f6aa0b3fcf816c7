/* core/cancel.h - the cancel token, private side. */
#ifndef MOEDI_CANCEL_H
#define MOEDI_CANCEL_H

#include "status.h"

/* MOED_E_CANCELLED when requested, MOED_OK otherwise and for NULL. */
moed_status moedi_cancel_check(const moed_cancel *cancel);

/* Whether it was requested: no error is set. 0 for NULL. */
int moedi_cancel_seen(const moed_cancel *cancel);

#endif
