/* cuda/common/operations.h - the operations of the table, for reals of float and of bf16; wide numbers are float. */
#ifndef MOEDI_CUDA_OPERATIONS_H
#define MOEDI_CUDA_OPERATIONS_H

#include "engine.h"

#define MOEDI_CUDA_OPERATIONS(X)                                                                                              \
    X(embedding, embedding) X(embedding_backward, embedding) X(rmsnorm, rmsnorm) X(rmsnorm_backward, rmsnorm) X(gemm, gemm)   \
    X(grouped_gemm, grouped_gemm) X(bias_backward, bias_backward) X(rope, rope) X(attention, attention)                       \
    X(attention_backward, attention) X(swiglu, swiglu) X(swiglu_backward, swiglu) X(router, router) X(router_backward, router) \
    X(dispatch, dispatch) X(gather, gather) X(gather_backward, gather) X(combine, combine) X(combine_backward, combine)       \
    X(sigmoid_gate, sigmoid_gate) X(sigmoid_gate_backward, sigmoid_gate) X(cross_entropy, cross_entropy)                      \
    X(gradient_norm, update) X(adamw, update) X(sum, sum) X(add, add) X(embed_mean, embed_mean)                               \
    X(kmeans_assign, kmeans_assign) X(kmeans_accumulate, kmeans_accumulate) X(kmeans_step, kmeans_step)                       \
    X(kmeans_distances, kmeans_distances) X(kmeans_move, kmeans_move) X(blend, blend)            \
    X(squash, squash) X(squash_backward, squash) X(balance, balance)

/* template <typename T> moed_status moedi_cuda_OPERATION(moedi_cuda *, const moed_op_ARGUMENTS *): T is the engine's real. */
#define MOEDI_CUDA_DECLARE(slot, arguments) \
    template <typename T> moed_status moedi_cuda_##slot(moedi_cuda *e, const moed_op_##arguments *a);
MOEDI_CUDA_OPERATIONS(MOEDI_CUDA_DECLARE)

/* At the end of the file that has the operation. */
#define MOEDI_CUDA_DEFINED(slot, arguments)                                                          \
    template moed_status moedi_cuda_##slot<float>(moedi_cuda *, const moed_op_##arguments *);        \
    template moed_status moedi_cuda_##slot<__nv_bfloat16>(moedi_cuda *, const moed_op_##arguments *);

/* template <typename T> size_t moedi_cuda_OPERATION_room(const moed_workload *): bytes that an operation asks of
 * moedi_cuda_scratch in a step of w, at most, without a device. Each stands beside its operation, and both go by the same
 * sizes; what is not here asks for nothing in a step. attention_backward's is that of attention too. */
#define MOEDI_CUDA_ROOMS(X)                                                                                                   \
    X(embedding_backward) X(rmsnorm_backward) X(bias_backward) X(grouped_gemm) X(attention_backward) X(router) X(dispatch)    \
    X(cross_entropy)
#define MOEDI_CUDA_DECLARE_ROOM(slot) template <typename T> size_t moedi_cuda_##slot##_room(const moed_workload *w);
MOEDI_CUDA_ROOMS(MOEDI_CUDA_DECLARE_ROOM)
#define MOEDI_CUDA_ROOM_DEFINED(slot)                                            \
    template size_t moedi_cuda_##slot##_room<float>(const moed_workload *);      \
    template size_t moedi_cuda_##slot##_room<__nv_bfloat16>(const moed_workload *);
/* What the optimizer keeps on the device beside scratch. */
size_t moedi_cuda_update_room(const moed_workload *w);

/* Of halves (IEEE, 16 bits), summed in float; wide_c. */
moed_status moedi_cuda_gemm_halves(moedi_cuda *e, const moed_op_gemm *a);

/* What a datacenter chip does faster. They return MOED_E_UNSUPPORTED, and write nothing, where shape or chip is not theirs. */
moed_status moedi_cuda_grouped_sm90(moedi_cuda *e, const moed_op_grouped_gemm *a);
moed_status moedi_cuda_kmeans_assign_sm90(moedi_cuda *e, const moed_op_kmeans_assign *a);
moed_status moedi_cuda_attention_cudnn(moedi_cuda *e, const moed_op_attention *a);
moed_status moedi_cuda_attention_backward_cudnn(moedi_cuda *e, const moed_op_attention *a);
/* Their rooms; 0 where they are not built, or no step of w is theirs. */
size_t moedi_cuda_grouped_sm90_room(const moed_workload *w);
size_t moedi_cuda_attention_cudnn_room(const moed_workload *w);

/* What engines keep between calls; NULL is nothing. */
void moedi_cuda_gemm_forget(moedi_cuda *e);
void moedi_cuda_attention_forget(moedi_cuda *e);
void moedi_cuda_update_forget(moedi_cuda *e);

#endif
