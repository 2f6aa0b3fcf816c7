/* backend/cpu/reference/reference.h - the plain operations: serial, one loop per sum, what sys/backend.h says and nothing else.
 * Every other kernel is measured against them. Compiled twice: `real` is float or double. Sums are taken in double and rounded
 * once. */
#ifndef MOEDI_REFERENCE_H
#define MOEDI_REFERENCE_H

#include <math.h>

#include "backend/cpu/cpu.h"

typedef MOEDI_REAL real;

#define MOEDI_REFERENCE(name, arguments) moed_status MOEDI_VARIED(name)(void *self, const moed_op_##arguments *a)

MOEDI_REFERENCE(embedding, embedding);
MOEDI_REFERENCE(embedding_backward, embedding);
MOEDI_REFERENCE(embed_mean, embed_mean);
MOEDI_REFERENCE(rmsnorm, rmsnorm);
MOEDI_REFERENCE(rmsnorm_backward, rmsnorm);
MOEDI_REFERENCE(gemm, gemm);
MOEDI_REFERENCE(grouped_gemm, grouped_gemm);
MOEDI_REFERENCE(bias_backward, bias_backward);
MOEDI_REFERENCE(rope, rope);
MOEDI_REFERENCE(attention, attention);
MOEDI_REFERENCE(attention_backward, attention);
MOEDI_REFERENCE(swiglu, swiglu);
MOEDI_REFERENCE(swiglu_backward, swiglu);
MOEDI_REFERENCE(sigmoid_gate, sigmoid_gate);
MOEDI_REFERENCE(sigmoid_gate_backward, sigmoid_gate);
MOEDI_REFERENCE(squash, squash);
MOEDI_REFERENCE(squash_backward, squash);
MOEDI_REFERENCE(router, router);
MOEDI_REFERENCE(router_backward, router);
MOEDI_REFERENCE(balance, balance);
MOEDI_REFERENCE(dispatch, dispatch);
MOEDI_REFERENCE(gather, gather);
MOEDI_REFERENCE(gather_backward, gather);
MOEDI_REFERENCE(combine, combine);
MOEDI_REFERENCE(combine_backward, combine);
MOEDI_REFERENCE(cross_entropy, cross_entropy);
MOEDI_REFERENCE(gradient_norm, update);
MOEDI_REFERENCE(adamw, update);
MOEDI_REFERENCE(sum, sum);
MOEDI_REFERENCE(add, add);
MOEDI_REFERENCE(kmeans_assign, kmeans_assign);
MOEDI_REFERENCE(kmeans_accumulate, kmeans_accumulate);
MOEDI_REFERENCE(kmeans_move, kmeans_move);
MOEDI_REFERENCE(blend, blend);

#endif
