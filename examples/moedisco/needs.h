/* needs.h - what training a model takes, each way, from its layout alone. */
#ifndef NEEDS_H
#define NEEDS_H

#include "app.h"

typedef struct needs {
    int64_t parts, length;
} needs;

void needs_flags(flags *f, needs *n);
/* Parameters of the whole and of one part, and the memory that training either takes. An exit code. */
int needs_tell(const needs *n, const moed_layout *l);

#endif
