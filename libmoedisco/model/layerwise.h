/* model/layerwise.h - a streamed model's forward pass, a layer at a time, and of a large layer a few experts at a time: what is
 * in memory depends on neither the model's depth nor its number of experts. */
#ifndef MOEDI_LAYERWISE_H
#define MOEDI_LAYERWISE_H

#include "transformer.h"

typedef struct moedi_layerwise moedi_layerwise;

/* Room for rows x length tokens at a time; m: of a family, in memory or streamed. experts: bytes of experts' weights, of the wide
 * dtype, that may be held at once. Where those of a layer are more, each pass reads them, as many at a time as fit, one at least;
 * the results have the same bits. */
moed_status moedi_layerwise_create(moedi_layerwise **out, const moed_model *m, int64_t rows, int64_t length, int64_t experts);
/* How many rows it should take at a time, of `waiting` that are there: few where a layer is held whole, and else as many as have
 * their activations in `bytes`, one at least. */
moed_status moedi_layerwise_rows(const moed_model *m, int64_t length, int64_t experts, int64_t bytes, int64_t waiting,
                                 int64_t *rows);
void moedi_layerwise_destroy(moedi_layerwise *w);
/* What enters the first layer, for `count` tokens: states (count, hidden), as the engine has reals. */
moed_status moedi_layerwise_embed(moedi_layerwise *w, const int32_t *tokens, int64_t count, void *states);
/* Reads a layer; from then on passes go through it. */
moed_status moedi_layerwise_load(moedi_layerwise *w, int32_t layer, const moed_cancel *cancel);
/* Takes states (rows, length, hidden) of a batch, of which documents count alone, through the layer, in place. */
moed_status moedi_layerwise_pass(moedi_layerwise *w, const moed_batch *b, void *states, const moed_cancel *cancel);
/* The transformer of the layer that was loaded, its layer 0: for the routing of the last pass. */
moedi_transformer *moedi_layerwise_transformer(moedi_layerwise *w);

#endif
