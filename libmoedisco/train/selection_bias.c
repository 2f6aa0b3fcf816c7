/* train/selection_bias.c - auxiliary-loss-free balancing (arXiv 2408.15664). */
#include "selection_bias.h"

#include <string.h>

static char *layer_of(const moedi_selection_biases *b, int64_t layer)
{
    const moedi_engine *e = moedi_transformer_engine(b->transformer);
    return b->numbers + (size_t)(layer * b->layout->config.experts) * e->wide_item;
}

static int64_t param_of(const moedi_selection_biases *b, int64_t layer)
{
    return moedi_layout_slot(b->layout, MOEDI_SLOT_ROUTER_BIAS, (int32_t)layer, -1);
}

moed_status moedi_selection_biases_create(moedi_selection_biases *out, moedi_transformer *t, const moed_layout *l)
{
    const moedi_config *c = &l->config;
    const moedi_engine *e = moedi_transformer_engine(t);
    *out = (moedi_selection_biases){.transformer = t, .layout = l};
    if (!c->selection_bias || !moedi_config_routes(c)) return MOED_OK;
    MOEDI_TRY(moedi_alloc_array(e->context, c->layers * c->experts, e->wide_item, (void **)&out->numbers));
    return moedi_alloc_array(e->context, c->layers * c->experts, e->wide_item, (void **)&out->held);
}

void moedi_selection_biases_destroy(moedi_selection_biases *b)
{
    if (b->numbers) {
        const moed_context *c = moedi_transformer_engine(b->transformer)->context;
        moedi_free(c, b->numbers);
        moedi_free(c, b->held);
    }
    memset(b, 0, sizeof *b);
}

void moedi_selection_biases_forget(moedi_selection_biases *b)
{
    b->known = 0;
}

static moed_status learn(moedi_selection_biases *b)
{
    const moedi_config *c = &b->layout->config;
    for (int64_t layer = 0; layer < c->layers; layer++) {
        const int64_t param = param_of(b, layer);
        if (param >= 0) MOEDI_TRY(moedi_transformer_read(b->transformer, (size_t)param, 0, c->experts, layer_of(b, layer)));
    }
    b->known = 1;
    return MOED_OK;
}

static moed_status upload(const moedi_selection_biases *b, int64_t layer)
{
    const moedi_engine *e = moedi_transformer_engine(b->transformer);
    const int64_t param = param_of(b, layer);
    if (param < 0) return MOED_OK;
    return e->table->upload(e->self, moedi_transformer_weight(b->transformer, (size_t)param), layer_of(b, layer),
                            (size_t)b->layout->config.experts * e->wide_item);
}

/* Which way, and how much of the rate: an expert's load is own / experts of the whole. Near the mean the way is in proportion. */
static double way(int64_t own, int64_t total, double band)
{
    if (own == total) return 0;
    const double away = band > 0 ? (double)(total - own) / ((double)total * band) : own < total ? 1 : -1;
    return away > 1 ? 1 : away < -1 ? -1 : away;
}

moed_status moedi_selection_biases_move(moedi_selection_biases *b, const int64_t *loads, double rate, double band)
{
    const moedi_config *c = &b->layout->config;
    const moedi_engine *e = moedi_transformer_engine(b->transformer);
    if (!b->numbers || rate == 0) return MOED_OK;
    if (!b->known) MOEDI_TRY(learn(b));
    for (int64_t layer = 0; layer < c->layers; layer++, loads += c->experts) {
        int64_t total = 0;
        if (param_of(b, layer) < 0) continue;
        for (int64_t i = 0; i < c->experts; i++) total += loads[i];
        for (int64_t i = 0; i < c->experts; i++) {
            char *const at = layer_of(b, layer) + (size_t)i * e->wide_item;
            const int64_t own = loads[i] * c->experts; /* against the mean, in whole numbers */
            double x;
            moedi_to_double(&x, at, e->info.wide, 1);
            x += rate * way(own, total, band);
            moedi_from_double(at, e->info.wide, &x, 1);
        }
        MOEDI_TRY(upload(b, layer));
    }
    return MOED_OK;
}

static size_t all_bytes(const moedi_selection_biases *b)
{
    const moedi_config *c = &b->layout->config;
    return (size_t)(c->layers * c->experts) * moedi_transformer_engine(b->transformer)->wide_item;
}

moed_status moedi_selection_biases_hold(moedi_selection_biases *b)
{
    if (!b->numbers) return MOED_OK;
    if (!b->known) MOEDI_TRY(learn(b));
    memcpy(b->held, b->numbers, all_bytes(b));
    b->holding = 1;
    return MOED_OK;
}

void moedi_selection_biases_release(moedi_selection_biases *b)
{
    b->holding = 0;
}

moed_status moedi_selection_biases_restore(moedi_selection_biases *b)
{
    if (!b->holding) return MOED_OK;
    memcpy(b->numbers, b->held, all_bytes(b));
    for (int64_t layer = 0; layer < b->layout->config.layers; layer++) MOEDI_TRY(upload(b, layer));
    return MOED_OK;
}
