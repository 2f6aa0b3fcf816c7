/* train/accumulate.c - pairwise sums by the carries of a binary counter: log2(shards) blocks instead of one per shard. */
#include "accumulate.h"

#include <string.h>

static int in_turn(const moed_backend_info *numbers)
{
    return numbers->wide != numbers->dtype;
}

int32_t moedi_accumulator_extra(const moed_backend_info *numbers, int64_t shards)
{
    int32_t extra = 0;
    if (in_turn(numbers)) return 0;
    while (shards > 1) shards >>= 1, extra++;
    return extra;
}

moed_status moedi_accumulator_create(moedi_accumulator *out, moedi_transformer *t, int64_t shards)
{
    moedi_accumulator a;
    memset(&a, 0, sizeof a);
    a.transformer = t;
    a.blocks[0] = moedi_transformer_gradients(t, &a.reals);
    const moedi_engine *e = moedi_transformer_engine(t);
    const int32_t count = 1 + moedi_accumulator_extra(&e->info, shards);
    const size_t bytes = (size_t)a.reals * e->item;
    for (a.block_count = 1; a.block_count < count; a.block_count++) {
        void **const block = &a.blocks[a.block_count];
        moed_status status = e->table->alloc(e->self, bytes, block);
        if (status == MOED_OK) status = e->table->zero(e->self, *block, bytes);
        if (status != MOED_OK) {
            a.block_count += *block != NULL;
            moedi_accumulator_destroy(&a);
            return status;
        }
    }
    *out = a;
    moedi_accumulator_clear(out);
    return MOED_OK;
}

void moedi_accumulator_destroy(moedi_accumulator *a)
{
    if (!a->transformer) return;
    const moedi_engine *e = moedi_transformer_engine(a->transformer);
    (void)moedi_transformer_open_gradients(a->transformer, a->blocks[0], 0);
    for (int32_t i = 1; i < a->block_count; i++) e->table->free(e->self, a->blocks[i]);
    memset(a, 0, sizeof *a);
}

void moedi_accumulator_clear(moedi_accumulator *a)
{
    (void)moedi_transformer_open_gradients(a->transformer, a->blocks[0], 0);
    a->depth = 0, a->shards = 0, a->empty = 1;
}

void moedi_accumulator_begin(moedi_accumulator *a)
{
    a->depth = 0, a->shards = 0;
}

moed_status moedi_accumulator_open(moedi_accumulator *a)
{
    const int32_t fresh = a->depth > 0 || a->empty;
    if (a->depth == 0) a->empty = 0;
    return moedi_transformer_open_gradients(a->transformer, a->blocks[a->depth], fresh);
}

/* The top subtree is added to the one below it. */
static moed_status merge(moedi_accumulator *a)
{
    const moedi_engine *e = moedi_transformer_engine(a->transformer);
    void *below = a->blocks[a->depth - 2];
    const moed_op_add add = {.out = below, .a = below, .b = a->blocks[a->depth - 1], .count = a->reals};
    a->depth--;
    return e->table->add(e->self, &add);
}

moed_status moedi_accumulator_close(moedi_accumulator *a)
{
    if (in_turn(&moedi_transformer_engine(a->transformer)->info)) return MOED_OK;
    a->depth++;
    for (int64_t carry = a->shards++; carry & 1; carry >>= 1) MOEDI_TRY(merge(a));
    return MOED_OK;
}

moed_status moedi_accumulator_finish(moedi_accumulator *a)
{
    while (a->depth > 1) MOEDI_TRY(merge(a));
    return moedi_transformer_open_gradients(a->transformer, a->blocks[0], 0);
}

moed_status moedi_accumulator_settle(moedi_accumulator *a)
{
    const moedi_engine *e = moedi_transformer_engine(a->transformer);
    if (a->empty) MOEDI_TRY(e->table->zero(e->self, a->blocks[0], (size_t)a->reals * e->item));
    a->empty = 0; /* zeros are as good to add to */
    return MOED_OK;
}
