/* integrate.h - K trained submodels (and the base) into one MoE model.
 * Source: MoE-DisCo (arXiv 2601.06857), step 4. Every shared number becomes base + sum_k gamma_k (theta_k - base),
 * so untrained submodels give the base back bit for bit. */
#ifndef MOEDISCO_INTEGRATE_H
#define MOEDISCO_INTEGRATE_H

#include "split.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_integration moed_integration;

enum { MOED_MERGE_UNIFORM = 0, MOED_MERGE_WEIGHTED = 1, MOED_MERGE_EXPLICIT = 2 };
enum { MOED_GATE_BASE = 0, MOED_GATE_RANDOM = 1, MOED_GATE_CENTROIDS = 2, MOED_GATE_RIDGE = 3, MOED_GATE_SUBMODELS = 4 };

enum {
    MOED_INTEGRATION_CLONES = 1 /* flags: submodels are clones: from which part of a split one comes is not compared, so that one
                                   model may serve several parts (one dense model cloned into every expert is upcycling) */
};

typedef struct moed_integration_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t merge;         /* UNIFORM: gamma = 1/parts added; WEIGHTED: weights given at add (tokens), divided by their sum;
                              EXPLICIT: gamma = the weight given */
    int32_t gate;          /* BASE: the base's rows and biases (rows that submodels carry are ignored, trained or not); RANDOM:
                              drawn; CENTROIDS, RIDGE: rows given by moed_integration_set_gate; these three with router biases of
                              0; SUBMODELS: rows and biases that submodels carry (dense ones have none), each expert's from its
                              part */
    int32_t allow_missing; /* 1: finish without a lost submodel; its experts come from the base */
    int32_t dtype;         /* of the result's floating parameters; 0 = the base's */
    uint64_t seed;         /* RANDOM */
    double gate_std;       /* RANDOM: standard deviation; CENTROIDS: root mean square of each row; negative = the root mean
                              square that the base's row of that expert has. RIDGE: of all rows of a layer, or the base's */
    int64_t shard_bytes;   /* of the result's directory: as in moed_model_options */
} moed_integration_options;

typedef struct moed_integration_info {
    uint32_t struct_size;
    uint32_t flags;
    int32_t parts;
    int32_t present;
    int32_t first_missing; /* -1 = none */
    int32_t reserved;
    double drift;          /* after finish: root mean square of (theta_k - base) over shared parameters and parts,
                              relative to that of base; 0 before, and in device memory */
} moed_integration_info;

/* base: in memory or streamed; kept alive, like the split. o nullable. Since: 0.1. */
MOED_API moed_status moed_integration_create(moed_integration **out, moed_split *s, const moed_model *base,
                                             const moed_integration_options *o);
MOED_API void moed_integration_destroy(moed_integration *i);
/* Registers the submodel of `part` (any order), in memory or streamed. weight: see merge; finite, at least 0. The model
 * is kept alive. A submodel says in its config.json which base, part and experts it was split from (a layout from
 * moed_split_layout: part and experts); one that says nothing is judged by its layout alone. dtypes may differ from the
 * base's.
 * Returns MOED_E_MISMATCH naming the tensor or field when it does not belong, MOED_E_EXISTS when the part is there
 * already. Since: 0.1. */
MOED_API moed_status moed_integration_add(moed_integration *i, int32_t part, const moed_model *submodel, double weight);
/* gamma [out] (parts), 0 for missing ones; UNIFORM and WEIGHTED divide by those that were added. MOED_E_STATE when all
 * weights are 0. Since: 0.1. */
MOED_API moed_status moed_integration_weights(const moed_integration *i, double *gamma);
/* How parameter `param` of the base's layout is made: exactly what finish executes. Source 0 is the base, 1 + k submodel k; with
 * MOED_GATE_CENTROIDS and MOED_GATE_RIDGE source 1 + parts holds the rows given to set_gate, its parameters numbered by layer.
 * pieces [out, nullable] (capacity), count [out] of all. MOED_E_STATE naming the missing part. Since: 0.1. */
MOED_API moed_status moed_integration_pieces(moed_integration *i, size_t param, moed_piece *pieces, size_t capacity,
                                             size_t *count);
/* MOED_GATE_CENTROIDS, MOED_GATE_RIDGE: rows (parts, width) f32 for `layer` (-1 = all), copied: the mean over parts is
 * subtracted, and the rows scaled to gate_std, each by itself (CENTROIDS) or all by one factor (RIDGE, rows that
 * moed_model_fit_gate makes: their sizes mean something). An expert takes the row of its part, one without a part keeps the
 * base's; where a part has several experts of a layer, the base's row of each is added, which tells them apart. MOED_E_ARGUMENT
 * when nothing is left to scale (as with one part). Since: 0.1. Source: FlexOlmo, Nexus (router rows from domain embeddings). */
MOED_API moed_status moed_integration_set_gate(moed_integration *i, int32_t layer, const moed_tensor *rows);
/* For gates that do not renormalise their top-k weights: multiplies the output tensors (MOED_PARAM_EXPERT_OUTPUT) of
 * expert e in layer l by 1 / (top_k * weight[l][e]), so that top_k experts trained alone at scale 1 again weigh 1
 * together. weight (layers, experts), as moed_model_usage gives; 0 leaves an expert alone. Since: 0.1. */
MOED_API moed_status moed_integration_set_scale(moed_integration *i, const double *weight, int32_t top_k);
MOED_API moed_status moed_integration_get_info(const moed_integration *i, moed_integration_info *out);
/* Makes the model: in memory (dir NULL) or streamed tensor by tensor to a directory, all or nothing, then opened with
 * MOED_MODEL_STREAM. out nullable when dir is given. In memory it is where the base is; in device memory the submodels must be
 * there too, MOED_GATE_CENTROIDS and MOED_GATE_RIDGE (whose rows are host memory) are refused, and drift is not measured.
 * Returns MOED_E_STATE naming the missing part, MOED_E_ARGUMENT for memories mixed. Since: 0.1. */
MOED_API moed_status moed_integration_finish(moed_model **out, moed_integration *i, const char *dir, const moed_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
