/* evaluate.h - what a model makes of a corpus without being trained on it: held-out loss, how its routers use experts, and router
 * rows that fit clusters of it. */
#ifndef MOEDISCO_EVALUATE_H
#define MOEDISCO_EVALUATE_H

#include "cluster.h"
#include "train.h"

#ifdef __cplusplus
extern "C" {
#endif

/* moed_trainer_evaluate without a trainer; rows of `length` tokens, `rows` at a time. Since: 0.1. */
MOED_API moed_status moed_model_evaluate(const moed_model *m, const moed_corpus *d, int64_t tokens, int64_t rows,
                                         int64_t length, int32_t document_mask, moed_report *out, const moed_cancel *cancel);

/* How a trained or fresh router uses the experts of a corpus. usage (layers, experts): share of token-choices that went to the
 * expert, rows sum to 1. weight (layers, experts), nullable: mean routed weight of the tokens it got (0 if none). tokens: how
 * many to look at, 0 = all. Attention is masked at documents: a corpus' usage does not depend on how it is packed into rows. A
 * streamed model is read a layer at a time, which alone is in memory, as the context's numbers, once for every 32 MiB of hidden
 * states (128 beside a device). Of a layer with more than 48 MiB of experts (4 GiB) as many of them are in memory as fit, one at
 * least, and they are read again for every few rows of 512 tokens, whose activations fit in 144 MiB (1 GiB); the result has the
 * same bits. Returns MOED_E_MISMATCH when the corpus has tokens outside the model's vocabulary, MOED_E_NUMERIC naming the layer
 * whose router's weights are NaN. Since: 0.1. */
MOED_API moed_status moed_model_usage(const moed_model *m, const moed_corpus *d, int64_t tokens, double *usage, double *weight,
                                      const moed_cancel *cancel);

/* Rows for moed_integration_set_gate with MOED_GATE_RIDGE by ridge regression: of each layer the hidden states h that its router
 * sees, over the documents of every cluster in turn, against the cluster they are of. rows [out] (layers, clusters, hidden); row
 * k of a layer is
 *   argmin over w of sum_t (w . h_t - y_t)^2 + ridge * mean_d(sum_t h_td^2) |w|^2,   y_t = [t is of cluster k] - 1 / clusters
 * so that the rows of a layer add up to zero; zeros where a layer has no experts. m: in memory: the model that the gate is for
 * as far as it is there, such as the integrated one with another gate. tokens: of each cluster at most, 0 = all (unequal
 * clusters then weigh what they hold). ridge > 0: 0.01 is a good start. Holds layers * hidden^2 doubles. Attention stays inside
 * documents. Returns MOED_E_MISMATCH as moed_model_usage and moed_partition_view do, MOED_E_NUMERIC naming the layer. Since:
 * 0.1. Source: DUME (arXiv 2603.29765). */
MOED_API moed_status moed_model_fit_gate(const moed_model *m, const moed_corpus *d, const moed_partition *p, int64_t tokens,
                                         double ridge, float *rows, const moed_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
