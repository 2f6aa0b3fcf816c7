/* model/transformer.h - the one transformer: weights on an engine, forward and backward over the operation
 * table. */
#ifndef MOEDI_TRANSFORMER_H
#define MOEDI_TRANSFORMER_H

#include "model.h"
#include "staged.h"

typedef struct moedi_transformer moedi_transformer;

enum {
    MOEDI_TRANSFORMER_TRAIN = 1, /* keep activations, have gradients */
    MOEDI_TRANSFORMER_MASTERS = 2 /* where reals are narrow: low halves of the numbers that train, so that no bit of an update is
                                     lost */
};

/* Coefficients of one micro-batch. */
typedef struct moedi_objective {
    double load_balance, z_loss; /* coefficients */
    double scale;                /* of the whole gradient: 1, or 1 / micro-batches */
    double label_weight;         /* sum of the label weights the loss is a mean over; 0 = this batch's own */
} moedi_objective;

enum { MOEDI_RESULTS = 3 };     /* what a forward pass leaves on the device, wide: loss, load balance, z-loss */

/* What one forward pass found; host numbers, valid after moedi_transformer_losses. */
typedef struct moedi_losses {
    double loss;                 /* sum of label losses / label_weight */
    double label_weight;         /* of this batch; moedi_transformer_read_results does not know it */
    double load_balance, z_loss; /* means over layers, without coefficients */
} moedi_losses;

/* Weights of m on an engine of its context (host memory is used in place where the engine can, so that
 * updates change m), room for `rows` x `length` tokens, and with TRAIN gradients of the parameters with
 * trained[param] != 0 (NULL = all). Memory for gradients is had by whole groups (q, k and v of a layer; its
 * experts' gates and ups; its experts' downs): a frozen member costs it, and has none. */
moed_status moedi_transformer_create(moedi_transformer **out, const moed_model *m, int64_t rows,
                                     int64_t length, uint32_t flags, const uint8_t *trained);
void moedi_transformer_destroy(moedi_transformer *t);
/* Bytes that create will take on the device. */
moed_status moedi_transformer_bytes(const moed_layout *l, const moed_backend_info *numbers, int64_t rows,
                                    int64_t length, uint32_t flags, const uint8_t *trained, int64_t *weights,
                                    int64_t *gradients, int64_t *activations);
/* And of host memory, wherever it computes: tables, and numbers on their way. */
int64_t moedi_transformer_host_bytes(const moed_layout *l, const moed_backend_info *numbers);
moedi_engine *moedi_transformer_engine(moedi_transformer *t);
const moedi_config *moedi_transformer_config(const moedi_transformer *t);

/* Refuses a batch with wrong ids, sizes or label weights by name; room for rows x length. labels [out] counts those that are
 * not -1, label_weight [out] sums their weights. */
moed_status moedi_batch_check(const moed_batch *b, int64_t vocabulary, int64_t rows, int64_t length, int64_t *labels,
                              double *label_weight);

/* Forward; with labels also the loss. With an objective too, in TRAIN mode, the head's gradients are added
 * and backward may follow; without one (NULL) gradients are left alone: evaluation. Rows up to those of
 * create, length likewise. */
moed_status moedi_transformer_forward(moedi_transformer *t, const moed_batch *b, const moedi_objective *o,
                                      const moed_cancel *cancel);
/* The same for one shard of a batch that was checked and uploaded before: only enqueues. */
moed_status moedi_transformer_forward_shard(moedi_transformer *t, const moedi_staged *batch, int64_t shard,
                                            const moedi_objective *o, const moed_cancel *cancel);
/* After a forward with labels and objective in TRAIN mode, once: adds to the gradients. */
moed_status moedi_transformer_backward(moedi_transformer *t, const moed_cancel *cancel);
/* The next forwards leave what they find in the caller's device memory: results (MOEDI_RESULTS, wide) and offsets (layers,
 * experts + 1), which an only expert's do not touch. NULL, NULL: in the transformer's own. */
void moedi_transformer_set_results(moedi_transformer *t, void *results, int64_t *offsets);
/* Losses from results and the choices from offsets, brought to host memory; offsets [in, out]: complete. */
void moedi_transformer_read_results(const moedi_transformer *t, const void *results, int64_t *offsets, int64_t tokens,
                                    moedi_losses *out);
/* Waits, and brings back the losses of the last forward. */
moed_status moedi_transformer_losses(moedi_transformer *t, moedi_losses *out);
/* Choices per expert in a layer of the last forward as running sums: (experts + 1) from 0. Valid after
 * moedi_transformer_losses. */
const int64_t *moedi_transformer_offsets(const moedi_transformer *t, int32_t layer);
/* Label losses of the last forward, each with its weight, 0 where there is no label: (rows * length) to host memory of the
 * engine's wide dtype. */
moed_status moedi_transformer_token_losses(moedi_transformer *t, void *out);
/* Logits of the last forward (rows * length, vocabulary) to host memory of the engine's wide dtype. */
moed_status moedi_transformer_logits(moedi_transformer *t, void *out);
/* Routing of the last forward in a layer, to host memory: ids (tokens, top_k), weights (same, wide dtype,
 * nullable). */
moed_status moedi_transformer_routing(moedi_transformer *t, int32_t layer, int32_t *ids, void *weights);
/* 1: the next forwards keep the expert choices of the last one (gradient checks, recomputation). */
void moedi_transformer_replay(moedi_transformer *t, int replay);

/* A forward pass that begins with states (rows * length, hidden) of host memory, reals of the engine, in the place of embeddings,
 * and leaves there what comes out of the last layer. */
moed_status moedi_transformer_pass(moedi_transformer *t, const moed_batch *b, void *states, const moed_cancel *cancel);
/* The next forwards call tap in each layer with what its router and experts see: h (rows * length, hidden) of device memory, the
 * batch's tokens; what it fails with ends the pass. NULL: no more. */
typedef moed_status (*moedi_tap_fn)(moedi_transformer *t, int64_t layer, const void *h, void *user);
void moedi_transformer_tap(moedi_transformer *t, moedi_tap_fn tap, void *user);
/* Of a model whose layout has a window of experts: the next forwards call bring before each product with experts [first, first +
 * count), which puts their gates and ups, or (down) their downs, in the places of the model's first ones. */
typedef moed_status (*moedi_bring_fn)(int64_t first, int64_t count, int down, void *user);
void moedi_transformer_bring(moedi_transformer *t, moedi_bring_fn bring, void *user);

/* Device memory of a parameter, of its gradient (NULL = frozen), and of the low halves of its numbers (NULL = it has none). */
void *moedi_transformer_weight(moedi_transformer *t, size_t param);
void *moedi_transformer_gradient(moedi_transformer *t, size_t param);
int16_t *moedi_transformer_low(moedi_transformer *t, size_t param);
/* Device memory of a layer's selection biases (experts, wide); NULL = it has none. */
void *moedi_transformer_selection_bias(moedi_transformer *t, int64_t layer);
/* Numbers of a parameter as wide as they are trained, to host memory and back; waits. */
moed_status moedi_transformer_read(moedi_transformer *t, size_t param, int64_t first, int64_t count, void *wide);
moed_status moedi_transformer_write(moedi_transformer *t, size_t param, int64_t first, int64_t count, void *wide);
/* All gradients as one block of `count` reals: added and exchanged as one. */
void *moedi_transformer_gradients(moedi_transformer *t, int64_t *count);
/* Gradients go to a block of that size from now on. fresh: what it holds counts for nothing, and the forward and backward that
 * follow need not add to it: no pass over all gradients zeroes them. */
moed_status moedi_transformer_open_gradients(moedi_transformer *t, void *block, int32_t fresh);
/* Copies weights back to the model's host memory (nothing to do where they are in place). */
moed_status moedi_transformer_store(moedi_transformer *t);
moed_status moedi_transformer_load(moedi_transformer *t);  /* the other way, after the model changed */

/* Floating-point operations per token of a forward pass over rows of `length`: 2 per active matmul weight +
 * causal attention. */
double moedi_transformer_flops(const moed_layout *l, int64_t length);

#endif
