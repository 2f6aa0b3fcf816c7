/* model/layerwise.c - the one transformer over one layer, whose numbers are exchanged between passes. */
#include "layerwise.h"

#include "core/cancel.h"
#include "core/context.h"

/* A model of one layer, with or without experts. */
typedef struct window {
    moed_model *model;
    moedi_transformer *transformer;
} window;

struct moedi_layerwise {
    moed_model *whole;
    int64_t rows, length;
    window windows[2];             /* [dense]; made when first needed */
    window *now;
    int32_t *zeros;                /* (rows, length): the tokens of a window, which has a vocabulary of one */
};

moed_status moedi_layerwise_create(moedi_layerwise **out, const moed_model *m, int64_t rows, int64_t length)
{
    moedi_layerwise *w = NULL;
    moed_status status;
    MOEDI_TRY(MOEDI_NEW(m->context, 1, &w));
    w->whole = moedi_model_retain(m);
    w->rows = rows, w->length = length;
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
        moedi_transformer_destroy(w->windows[i].transformer);
        moed_model_destroy(w->windows[i].model);
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

/* ---- windows ---- */

static moed_status open_window(moedi_layerwise *w, window *x, int dense)
{
    moed_layout *l = NULL;
    moed_status status;
    MOEDI_GO(moedi_layout_one_layer(&l, w->whole->layout, dense));
    MOEDI_GO(moedi_layout_take_dtype(&l, w->whole->context->backend_info.wide));
    MOEDI_GO(moedi_model_create(&x->model, w->whole->context, l));
    MOEDI_GO(moedi_transformer_create(&x->transformer, x->model, w->rows, w->length, 0, NULL));
out:
    moed_layout_destroy(l);
    return status;
}

typedef struct loading {
    const moedi_layerwise *w;
    int32_t layer;
    const moed_cancel *cancel;
} loading;

/* Task: one slot, of every expert where it has some. */
static moed_status load_slot(void *argument, int64_t index)
{
    const loading *g = argument;
    const moed_model *to = g->w->now->model, *from = g->w->whole;
    const moedi_slot slot = (moedi_slot)index;
    const int of_expert = moedi_slot_of_expert(slot);
    if (!moedi_slot_of_layer(slot)) return MOED_OK;
    for (int32_t e = of_expert ? 0 : -1; e < (of_expert ? (int32_t)to->layout->config.experts : 0); e++) {
        const int64_t mine = moedi_layout_slot(to->layout, slot, 0, e);
        const int64_t whole = moedi_layout_slot(from->layout, slot, g->layer, e);
        if (mine < 0) return MOED_OK;
        const moed_tensor *t = &to->tensors[mine];
        MOEDI_TRY(moedi_cancel_check(g->cancel));
        MOEDI_TRY(read_as(from, (size_t)whole, 0, moedi_param_elements(&to->layout->params[mine]), t->data, t->dtype));
    }
    return MOED_OK;
}

moed_status moedi_layerwise_load(moedi_layerwise *w, int32_t layer, const moed_cancel *cancel)
{
    const int dense = moedi_config_dense(&w->whole->layout->config, layer);
    window *x = &w->windows[dense];
    loading g = {w, layer, cancel};
    if (!x->transformer) MOEDI_TRY(open_window(w, x, dense));
    w->now = x;
    MOEDI_TRY(moedi_parallel_try(w->whole->context, MOEDI_SLOT_COUNT, load_slot, &g));
    return moedi_transformer_load(x->transformer);
}

moed_status moedi_layerwise_pass(moedi_layerwise *w, const moed_batch *b, void *states, const moed_cancel *cancel)
{
    const moed_batch own = {.tokens = w->zeros, .documents = b->documents, .rows = b->rows, .length = b->length};
    return moedi_transformer_pass(w->now->transformer, &own, states, cancel);
}
