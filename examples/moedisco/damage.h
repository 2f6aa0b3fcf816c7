/* damage.h - what is wrong in a model's directory. */
#ifndef DAMAGE_H
#define DAMAGE_H

#include "app.h"

/* Whether the directory holds tensors, or an index of some: else it is a configuration alone. */
int damage_has_tensors(const char *dir);
/* Tells every fault, with numbers those of the numbers too; EXIT_INPUT when there is one. */
int damage_tell(moed_context *c, const char *dir, int numbers);

#endif
