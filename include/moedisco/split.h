/* split.h - one MoE model into K submodels: the shared backbone plus one expert (or a subset) each.
 * Source: MoE-DisCo (arXiv 2601.06857), step 2. Works on layouts alone: any architecture. */
#ifndef MOEDISCO_SPLIT_H
#define MOEDISCO_SPLIT_H

#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_split moed_split;

enum {
    MOED_SPLIT_DENSE = 1 /* flags: submodels of one expert as models of the dense family that computes the same (Mixtral: Mistral,
                            Qwen3-MoE: Qwen3), without router rows; MOED_E_UNSUPPORTED where there is none, or a part has several
                            experts */
};

typedef struct moed_split_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t parts;     /* K; 0 = as many as the layers with most experts have experts */
    int32_t dtype;     /* of submodels' floating parameters; 0 = the base's */
    int64_t shard_bytes; /* of submodels' directories: as in moed_model_options */
} moed_split_options;

/* Part k starts with expert k of every layer (experts k, k + parts, ... when there are more experts than parts). An
 * expert that no part holds stays the base's. The layout is kept alive. Returns MOED_E_ARGUMENT when no layer has
 * experts, or one has fewer than parts. Since: 0.1. */
MOED_API moed_status moed_split_create(moed_split **out, const moed_layout *l, const moed_split_options *o);
MOED_API void moed_split_destroy(moed_split *s);
/* Gives part `part` the listed experts (count) of `layer` (-1 = all layers with experts), in that order. Every part
 * holds the same number in a layer (a family's model: in all layers), no expert twice; checked when the split is first
 * used for a layout, pieces, a model or an integration, and MOED_E_STATE from then on. Since: 0.1. */
MOED_API moed_status moed_split_assign(moed_split *s, int32_t part, int32_t layer, const int32_t *experts, int32_t count);
/* Gives every part the same number of experts of each layer (experts / parts, those left over stay the base's), by usage: usage
 * (parts, layers, experts), experts those of the layers with most, as moed_model_usage gives for the documents of each part (the
 * cluster it will be trained on). Layer by layer the sum over parts of what their own documents use of their experts is the
 * largest there is (an assignment problem, solved exactly in experts^3 steps), so that trained experts meet their own data. Each
 * list ascends. Returns MOED_E_ARGUMENT naming a usage that is negative or not finite; the layers before stay assigned when it
 * is stopped. Since: 0.1. */
MOED_API moed_status moed_split_assign_usage(moed_split *s, const double *usage, const moed_cancel *cancel);
/* Gives part `part` the experts that a submodel's config.json says it holds, as split_build wrote them there: all that is needed
 * to integrate submodels of a split that was made elsewhere. submodel: its layout. Returns MOED_E_NOT_FOUND when it says nothing
 * (trainers may drop fields they do not know), MOED_E_MISMATCH naming the field when it is of another split. Since: 0.1. */
MOED_API moed_status moed_split_assign_from(moed_split *s, int32_t part, const moed_layout *submodel);
/* experts [out, nullable] (capacity) of a part in a layer, count [out]. Since: 0.1. */
MOED_API moed_status moed_split_experts(const moed_split *s, int32_t part, int32_t layer, int32_t *experts,
                                        int32_t capacity, int32_t *count);
/* The layout of part `part`: a valid model of the base's family (or its dense one) when the base has one, its experts numbered
 * from 0 in the order of the list. By hand: tensors of one expert keep their names, stacks shrink along expert_axis. Router rows
 * and biases go with their expert. Its config says which part of what split it is. Owned by the split. NULL with the last error
 * set when the assignment is not right. Since: 0.1. */
MOED_API const moed_layout *moed_split_layout(moed_split *s, int32_t part);
/* How parameter `param` of the part's layout is made of the base (source 0). pieces [out, nullable] (capacity),
 * count [out]. Since: 0.1. */
MOED_API moed_status moed_split_pieces(moed_split *s, int32_t part, size_t param, moed_piece *pieces, size_t capacity,
                                       size_t *count);
/* Makes the submodel, in the base's dtypes or the one of the options: in memory of its own (dir NULL), to be trained without
 * touching the base, or streamed to a Hugging Face directory, all or nothing, with a few MB of memory for a model of any size,
 * and opened with MOED_MODEL_STREAM. out nullable when dir is given. base: in memory or streamed, any dtypes. In memory the
 * submodel is where the base is: in device memory (freed with the model), enqueued on the stream of the base's context, if the
 * base is there. Returns MOED_E_MISMATCH when base has another layout. Since: 0.1. */
MOED_API moed_status moed_split_build(moed_model **out, moed_split *s, int32_t part, const moed_model *base, const char *dir,
                                      const moed_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
