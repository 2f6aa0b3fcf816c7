/* upcycle.h - one dense model into a Mixture-of-Experts model. */
#ifndef MOEDISCO_UPCYCLE_H
#define MOEDISCO_UPCYCLE_H

#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_upcycle_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t experts;     /* of every layer */
    int32_t top_k;
    int32_t dtype;       /* of the result's floating parameters; 0 = the dense model's */
    int32_t reserved;
    uint64_t seed;
    double noise;        /* normal noise on every number of an expert, of this share of its tensor's root mean square; 0 = none */
    double redraw;       /* share of the intermediate units of every expert that are drawn anew; 0 = none, 1/2 in
                            Drop-Upcycling */
    double router_std;   /* of router rows; negative = the config's initializer_range */
    int64_t shard_bytes; /* of the result's directory: as in moed_model_options */
} moed_upcycle_options;

/* Makes an MoE model of which every expert is the dense model's feed-forward: a clone, a clone with noise, or a clone of which a
 * share of the units is drawn anew (which ones, each expert by itself: rows of gate and up, columns of down, normal with the
 * root mean square that the numbers in their place have). Router rows are drawn; all else is copied. Chosen weights are
 * normalised (norm_topk_prob where a family has it), so that clones compute what the dense model does. dense: of a family that
 * has one with experts (llama and mistral: Mixtral; qwen3: Qwen3-MoE), or a model of one expert a layer, which gets more; in
 * memory or streamed. In memory (dir NULL) the result is where dense is, and noise is for host memory alone; otherwise it is
 * streamed to a Hugging Face directory, all or nothing, with a few MB of memory for a model of any size, and opened with
 * MOED_MODEL_STREAM. out nullable when dir is given. A function of the dense model and the options alone. Returns
 * MOED_E_UNSUPPORTED naming the family, MOED_E_RANGE. Threads: dense may be read by others meanwhile. Since: 0.1. Source: sparse
 * upcycling (arXiv 2212.05055), Drop-Upcycling (2502.19261). */
MOED_API moed_status moed_model_upcycle(moed_model **out, const moed_model *dense, const char *dir, const moed_upcycle_options *o,
                                        const moed_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
