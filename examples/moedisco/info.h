/* info.h - saying what a model is. */
#ifndef INFO_H
#define INFO_H

#include "app.h"

void layout_tell(const char *name, const moed_layout *l);

#endif
