/* model/layerwise.c - the one transformer over one layer, whose numbers are exchanged between passes. */
#include "layerwise.h"

#include "core/cancel.h"
#include "core/context.h"

/* A model of one layer, with or without experts. */
typedef struct single {
    moed_model *model;
    moedi_transformer *transformer;
} single;

struct moedi_layerwise {
    moed_model *whole;
    int64_t rows, length;
    int32_t window;                /* experts held at once, 0 = a layer's all */
    single singles[2];             /* [dense]; made when first needed */
    single *now;
    int32_t layer;                 /* that was loaded */
    int32_t *zeros;                /* (rows, length): the tokens of a single layer, which has a vocabulary of one */
};

/* Experts that are held at once, 0 = a layer's all. */
static int32_t window_of(const moed_model *m, int64_t experts)
{
    const moedi_config *c = &m->layout->config;
    const int64_t item = (int64_t)moedi_dtype_size(m->context->backend_info.wide);
    const int64_t fitting = experts / (3 * c->expert_width * c->hidden * item);
    return fitting >= c->experts ? 0 : fitting > 1 ? (int32_t)fitting : c->experts > 1;
}

enum { ROWS = 2 }; /* at a time, through a layer that is held whole */

moed_status moedi_layerwise_rows(const moed_model *m, int64_t length, int64_t experts, int64_t bytes, int64_t waiting,
                                 int64_t *rows)
{
    moed_layout *l = NULL;
    int64_t each, most = ROWS;
    if (window_of(m, experts)) {
        MOEDI_TRY(moedi_layout_one_layer(&l, m->layout, 0));
        const moed_status status =
            moedi_transformer_bytes(l, &m->context->backend_info, 1, length, 0, NULL, NULL, NULL, &each);
        moed_layout_destroy(l);
        MOEDI_TRY(status);
        most = bytes / each > 1 ? bytes / each : 1;
    }
    *rows = waiting < most ? waiting : most;
    return MOED_OK;
}

moed_status moedi_layerwise_create(moedi_layerwise **out, const moed_model *m, int64_t rows, int64_t length, int64_t experts)
{
    moedi_layerwise *w = NULL;
    moed_status status;
    MOEDI_TRY(MOEDI_NEW(m->context, 1, &w));
    w->whole = moedi_model_retain(m);
    w->rows = rows, w->length = length;
    w->window = window_of(m, experts);
    MOEDI_GO(MOEDI_NEW(m->context, rows * length, &w->zeros));
    *out = w;
    return MOED_OK;
out:
    moedi_layerwise_destroy(w);
    return status;
}

void moedi_layerwise_destroy(moedi_layerwise *w)
{
    if (!w) return;
    moed_model *m = w->whole;
    for (int i = 0; i < 2; i++) {
        moedi_transformer_destroy(w->singles[i].transformer);
        moed_model_destroy(w->singles[i].model);
    }
    moedi_free(m->context, w->zeros);
    moedi_free(m->context, w);
    moed_model_destroy(m);
}

moedi_transformer *moedi_layerwise_transformer(moedi_layerwise *w)
{
    return w->now->transformer;
}

enum { CHUNK = 1 << 18 }; /* elements read at a time */

/* Elements [first, first + count) of a parameter as another type. */
static moed_status read_as(const moed_model *m, size_t param, int64_t first, int64_t count, void *out, int32_t dtype)
{
    const int32_t own = m->layout->params[param].dtype;
    const size_t to = moedi_dtype_size(dtype);
    void *chunk = NULL;
    moed_status status = MOED_OK;
    MOEDI_TRY(moedi_alloc(m->context, (size_t)(count < CHUNK ? count : CHUNK) * moedi_dtype_size(own), &chunk));
    for (int64_t at = 0; at < count && status == MOED_OK; at += CHUNK) {
        const int64_t n = count - at < CHUNK ? count - at : CHUNK;
        status = moedi_model_read(m, param, first + at, n, chunk);
        if (status == MOED_OK) moedi_convert((char *)out + (size_t)at * to, dtype, chunk, own, n);
    }
    moedi_free(m->context, chunk);
    return status;
}

moed_status moedi_layerwise_embed(moedi_layerwise *w, const int32_t *tokens, int64_t count, void *states)
{
    const moed_model *m = w->whole;
    const int64_t hidden = m->layout->config.hidden, table = moedi_layout_slot(m->layout, MOEDI_SLOT_EMBEDDING, -1, -1);
    const int32_t real = m->context->backend_info.dtype;
    char *out = states;
    for (int64_t i = 0; i < count; i++, out += (size_t)hidden * moedi_dtype_size(real))
        MOEDI_TRY(read_as(m, (size_t)table, tokens[i] * hidden, hidden, out, real));
    return MOED_OK;
}

/* ---- single layers ---- */

/* One parameter of the layer, to where the expert `to` (-1: none's) of the single one has it; 0 in *there: it has none. */
static moed_status load(const moedi_layerwise *w, moedi_slot slot, int32_t expert, int32_t to, int *there)
{
    const moed_model *own = w->now->model, *from = w->whole;
    const int64_t mine = moedi_layout_slot(own->layout, slot, 0, to);
    const int64_t whole = moedi_layout_slot(from->layout, slot, w->layer, expert);
    *there = mine >= 0;
    if (mine < 0) return MOED_OK;
    const moed_tensor *t = &own->tensors[mine];
    return read_as(from, (size_t)whole, 0, moedi_param_elements(&own->layout->params[mine]), t->data, t->dtype);
}

typedef struct bringing {
    const moedi_layerwise *w;
    moedi_slot slot;               /* the first of `slots` */
    int64_t slots, first;
} bringing;

/* Task: one slot of one expert. */
static moed_status bring_slot(void *argument, int64_t index)
{
    const bringing *g = argument;
    const int64_t expert = index / g->slots;
    int there;
    return load(g->w, (moedi_slot)(g->slot + index % g->slots), (int32_t)(g->first + expert), (int32_t)expert, &there);
}

static moed_status bring(int64_t first, int64_t count, int down, void *user)
{
    const moedi_layerwise *w = user;
    bringing g = {w, down ? MOEDI_SLOT_EXPERT_DOWN : MOEDI_SLOT_EXPERT_GATE, down ? 1 : 2, first};
    return moedi_parallel_try(w->whole->context, g.slots * count, bring_slot, &g);
}

static moed_status open_single(moedi_layerwise *w, single *x, int dense)
{
    const moed_context *c = w->whole->context;
    moed_layout *l = NULL;
    moed_status status;
    MOEDI_GO(moedi_layout_one_layer(&l, w->whole->layout, dense));
    MOEDI_GO(moedi_layout_take_dtype(&l, c->backend_info.wide));
    if (w->window && !dense) MOEDI_GO(moedi_layout_narrow(l, w->window));
    MOEDI_GO(moedi_model_create(&x->model, w->whole->context, l));
    MOEDI_GO(moedi_transformer_create(&x->transformer, x->model, w->rows, w->length, 0, NULL));
    if (l->window) moedi_transformer_bring(x->transformer, bring, w);
out:
    moed_layout_destroy(l);
    return status;
}

typedef struct loading {
    const moedi_layerwise *w;
    const moed_cancel *cancel;
} loading;

/* Task: one slot, of every expert where it has some, unless these are brought during passes. */
static moed_status load_slot(void *argument, int64_t index)
{
    const loading *g = argument;
    const moed_layout *l = g->w->now->model->layout;
    const moedi_slot slot = (moedi_slot)index;
    const int of_expert = moedi_slot_of_expert(slot);
    int there = 1;
    if (!moedi_slot_of_layer(slot) || (of_expert && l->window)) return MOED_OK;
    for (int32_t e = of_expert ? 0 : -1; there && e < (of_expert ? (int32_t)l->config.experts : 0); e++) {
        MOEDI_TRY(moedi_cancel_check(g->cancel));
        MOEDI_TRY(load(g->w, slot, e, e, &there));
    }
    return MOED_OK;
}

moed_status moedi_layerwise_load(moedi_layerwise *w, int32_t layer, const moed_cancel *cancel)
{
    const int dense = moedi_config_dense(&w->whole->layout->config, layer);
    single *x = &w->singles[dense];
    loading g = {w, cancel};
    if (!x->transformer) MOEDI_TRY(open_single(w, x, dense));
    w->now = x, w->layer = layer;
    MOEDI_TRY(moedi_parallel_try(w->whole->context, MOEDI_SLOT_COUNT, load_slot, &g));
    return moedi_transformer_load(x->transformer);
}

moed_status moedi_layerwise_pass(moedi_layerwise *w, const moed_batch *b, void *states, const moed_cancel *cancel)
{
    const moed_batch own = {.tokens = w->zeros, .documents = b->documents, .rows = b->rows, .length = b->length};
    return moedi_transformer_pass(w->now->transformer, &own, states, cancel);
}
