/* model/storage.h - the tensors in which a layout's parameters lie on disk: each in its own, or experts of a layer in two
 * stacks. */
#ifndef MOEDI_STORAGE_H
#define MOEDI_STORAGE_H

#include "layout.h"

/* One tensor on disk: `count` parameters from `first` on, one after another. */
typedef struct moedi_stored {
    size_t first, count;
    moed_param tensor;              /* its name, shape and dtype */
    char name[128];                 /* of a stack, where tensor.name points */
    int stacked;                    /* it is one of those that Transformers has in memory, not one of those that it writes */
} moedi_stored;

/* Whether a tensor of that name may be there and is of no use. */
int moedi_storage_ignores(const moed_layout *l, const char *name);
/* What the name of a tensor that no model has tells of how it was saved: the end of a sentence that says what to do, "" =
 * nothing. */
const char *moedi_storage_advice(const char *name);
/* The tensor of that name; 0 when it holds no parameter of the layout. */
int moedi_storage_find(const moed_layout *l, const char *name, moedi_stored *out);
/* The tensor that begins with a parameter, as l->stacked has it. */
void moedi_storage_from(const moed_layout *l, size_t param, moedi_stored *out);

#endif
