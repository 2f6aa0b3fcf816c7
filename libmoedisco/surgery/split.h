/* surgery/split.h - a split, private side: which experts each part holds, and the layouts that follow. */
#ifndef MOEDI_SPLIT_H
#define MOEDI_SPLIT_H

#include "moedisco/split.h"
#include "surgery/piece.h"
#include "surgery/provenance.h"

/* One part once it was asked for. */
typedef struct moedi_part {
    moed_layout *layout;
    int64_t *base;                 /* (layout->count): the base's parameter that each is made of */
    size_t *own;                   /* (base's count): the part's parameter, SIZE_MAX = it has none */
} moedi_part;

struct moed_split {
    atomic_int references;
    moed_context *context;
    moed_layout *layout;           /* of the base */
    int32_t parts;
    int dense;                     /* 1: submodels are of the dense family */
    int32_t dtype;                 /* of what is built; MOED_DTYPE_NONE = the base's */
    int64_t shard_bytes;           /* of its files */
    int32_t **experts;             /* (parts, layers): lists */
    int32_t *counts;               /* (parts, layers): their lengths */
    moedi_part *made;              /* (parts) */
    int used;                      /* 1: checked, and no longer to be changed */
};

moed_split *moedi_split_retain(const moed_split *s);
/* Checks the whole assignment and closes it. */
moed_status moedi_split_use(moed_split *s);
/* The part's layout and maps, made when first asked for. */
moed_status moedi_split_part(moed_split *s, int32_t part, const moedi_part **out);
/* Part and slot (position in its list) that hold an expert; part -1 when none does. */
void moedi_split_owner(const moed_split *s, int32_t layer, int32_t expert, int32_t *part, int32_t *slot);
/* Experts of a part in a layer. */
int32_t moedi_split_count(const moed_split *s, int32_t part, int32_t layer);
/* What a submodel of `part` says of its origin; base nullable. */
moed_status moedi_split_provenance(const moed_split *s, int32_t part, const char *base, json_t **out);

#endif
