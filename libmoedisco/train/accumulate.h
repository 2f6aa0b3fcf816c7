/* train/accumulate.h - the gradients of a step's shards, summed in a fixed pairwise tree. */
#ifndef MOEDI_ACCUMULATE_H
#define MOEDI_ACCUMULATE_H

#include "model/transformer.h"

/* A binary counter of partial sums: block d of the stack holds a finished subtree. ((0+1)+(2+3))+((4+5)+6): the order depends on
 * the number of shards alone, so ranks that each own an aligned run of shards find their part of the same tree. */
typedef struct moedi_accumulator {
    moedi_transformer *transformer;
    void *blocks[64];            /* (depth); block 0 is the transformer's own and ends up with the total */
    int32_t block_count;
    int32_t depth;               /* subtrees on the stack, or 0: one block takes all in turn */
    int64_t shards;              /* closed since begin */
    int32_t empty;               /* the total is nothing yet, whatever block 0 holds */
    int64_t reals;               /* of a block */
} moedi_accumulator;

/* Extra blocks that `shards` shards need: floor(log2(shards)). None where reals are narrow: such engines promise no tree, and a
 * block more would cost what they are narrow for; their shards add to one block in turn. */
int32_t moedi_accumulator_extra(const moed_backend_info *numbers, int64_t shards);
moed_status moedi_accumulator_create(moedi_accumulator *out, moedi_transformer *t, int64_t shards);
void moedi_accumulator_destroy(moedi_accumulator *a);
void moedi_accumulator_clear(moedi_accumulator *a);          /* the total is nothing */
void moedi_accumulator_begin(moedi_accumulator *a);          /* the first shard adds to the total that is there */
moed_status moedi_accumulator_open(moedi_accumulator *a);    /* the next backward's gradients go to a shard of their own */
moed_status moedi_accumulator_close(moedi_accumulator *a);
moed_status moedi_accumulator_finish(moedi_accumulator *a);  /* the total is the transformer's gradient */
moed_status moedi_accumulator_settle(moedi_accumulator *a);  /* for who looks at it: where it is nothing it holds zeros */

#endif
