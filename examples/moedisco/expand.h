/* expand.h - how new experts are made, as flags. */
#ifndef EXPAND_H
#define EXPAND_H

#include "flags.h"

/* Says which flags of new experts, named with this prefix, have no part in how they are made. */
void expand_tell_unheeded(const flags *f, const moed_expansion_options *o, const char *prefix);

#endif
