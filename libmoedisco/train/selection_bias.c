/* train/selection_bias.c - auxiliary-loss-free balancing (arXiv 2408.15664). */
#include "selection_bias.h"

#include <string.h>

static int64_t held_bytes(const moedi_config *c, size_t wide_item)
{
    return c->layers * c->experts * (int64_t)wide_item;
}

static int64_t offsets_count(const moedi_config *c)
{
    return c->layers * (c->experts + 1);
}

static int moves(const moedi_config *c, double rate)
{
    return rate > 0 && c->selection_bias && c->routed_layers > 0 && moedi_config_routes(c);
}

int64_t moedi_selection_biases_bytes(const moedi_config *c, const moed_backend_info *numbers, double rate)
{
    if (!moves(c, rate)) return 0;
    return held_bytes(c, moedi_dtype_size(numbers->wide)) + offsets_count(c) * (int64_t)sizeof(int64_t);
}

moed_status moedi_selection_biases_check(const moedi_config *c, const moedi_engine *e, double rate)
{
    if (!moves(c, rate) || MOED_BACKEND_HAS(e->table, balance)) return MOED_OK;
    return moedi_fail_parameter(MOED_E_UNSUPPORTED, "balance_rate",
                                "balance_rate is %g: the backend %s does not have the operation that moves selection biases; at "
                                "0 they rest", rate, e->table->name);
}

moed_status moedi_selection_biases_create(moedi_selection_biases *out, moedi_transformer *t, const moed_step_scalars *scalars,
                                          double rate)
{
    const moedi_config *c = moedi_transformer_config(t);
    const moedi_engine *e = moedi_transformer_engine(t);
    void *held = NULL, *offsets = NULL;
    moed_status status = MOED_OK;
    *out = (moedi_selection_biases){.transformer = t, .scalars = scalars};
    MOEDI_TRY(moedi_selection_biases_check(c, e, rate));
    if (!moves(c, rate)) return MOED_OK;
    MOEDI_GO(moedi_alloc_array(e->context, offsets_count(c), sizeof *out->sums, (void **)&out->sums));
    MOEDI_GO(e->table->alloc(e->self, (size_t)held_bytes(c, e->wide_item), &held));
    out->held = held;
    MOEDI_GO(e->table->alloc(e->self, (size_t)offsets_count(c) * sizeof *out->offsets, &offsets));
    out->offsets = offsets;
    return MOED_OK;
out:
    moedi_selection_biases_destroy(out);
    return status;
}

void moedi_selection_biases_destroy(moedi_selection_biases *b)
{
    if (b->transformer) {
        const moedi_engine *e = moedi_transformer_engine(b->transformer);
        e->table->free(e->self, b->offsets);
        e->table->free(e->self, b->held);
        moedi_free(e->context, b->sums);
    }
    memset(b, 0, sizeof *b);
}

/* ---- of each layer ---- */

moed_status moedi_selection_biases_move(moedi_selection_biases *b, const int64_t *offsets, double share, double band)
{
    const moedi_config *c = moedi_transformer_config(b->transformer);
    const moedi_engine *e = moedi_transformer_engine(b->transformer);
    if (!b->held) return MOED_OK;
    for (int64_t layer = 0; layer < c->layers; layer++, offsets += c->experts + 1) {
        const moed_op_balance a = {.bias = moedi_transformer_selection_bias(b->transformer, layer), .offsets = offsets,
                                   .scalars = b->scalars, .experts = c->experts, .share = share, .band = band};
        if (a.bias) MOEDI_TRY(e->table->balance(e->self, &a));
    }
    return MOED_OK;
}

moed_status moedi_selection_biases_move_by(moedi_selection_biases *b, const int64_t *loads, double band)
{
    const moedi_config *c = moedi_transformer_config(b->transformer);
    const moedi_engine *e = moedi_transformer_engine(b->transformer);
    int64_t *sums = b->sums;
    if (!b->held) return MOED_OK;
    for (int64_t layer = 0; layer < c->layers; layer++, sums++) {
        *sums = 0;
        for (int64_t i = 0; i < c->experts; i++, sums++) sums[1] = sums[0] + *loads++;
    }
    MOEDI_TRY(e->table->upload(e->self, b->offsets, b->sums, (size_t)offsets_count(c) * sizeof *b->sums));
    return moedi_selection_biases_move(b, b->offsets, 1, band);
}

/* ---- what they were ---- */

enum direction { HELD, BACK };

static moed_status copy_all(const moedi_selection_biases *b, enum direction to)
{
    const moedi_config *c = moedi_transformer_config(b->transformer);
    const moedi_engine *e = moedi_transformer_engine(b->transformer);
    const size_t bytes = (size_t)c->experts * e->wide_item;
    char *held = b->held;
    for (int64_t layer = 0; layer < c->layers; layer++, held += bytes) {
        void *const own = moedi_transformer_selection_bias(b->transformer, layer);
        if (own) MOEDI_TRY(e->table->copy(e->self, to == HELD ? held : own, to == HELD ? own : held, bytes));
    }
    return MOED_OK;
}

moed_status moedi_selection_biases_hold(moedi_selection_biases *b)
{
    if (!b->held) return MOED_OK;
    MOEDI_TRY(copy_all(b, HELD));
    b->holding = 1;
    return MOED_OK;
}

void moedi_selection_biases_release(moedi_selection_biases *b)
{
    b->holding = 0;
}

moed_status moedi_selection_biases_restore(moedi_selection_biases *b)
{
    return b->holding ? copy_all(b, BACK) : MOED_OK;
}
