/* model/companion.h - files that go along with a model wherever it is written: tokenizer, generation settings, code of its own.
 * */
#ifndef MOEDI_COMPANION_H
#define MOEDI_COMPANION_H

#include "core/context.h"

/* Whether a directory's file of that name is one. */
int moedi_is_companion(const char *name);
/* Copies those of one directory, which may be gone or NULL, into another. */
moed_status moedi_companions_copy(const moed_context *c, const char *from, const char *to);

#endif
