/* expand.h - a Mixture-of-Experts model with more experts, or with fewer.
 * Source: EMO (arXiv 2605.13247): the pool grows while the model trains. */
#ifndef MOEDISCO_EXPAND_H
#define MOEDISCO_EXPAND_H

#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_expansion moed_expansion;

enum { /* moed_expansion_options.method: what new experts are */
    MOED_EXPAND_DRAW = 0, /* normal numbers, router rows too */
    MOED_EXPAND_CLONE = 1 /* clones of the others in turn, with noise or redrawn units; router rows are clones too */
};

typedef struct moed_expansion_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t experts;     /* of every layer that has experts, afterwards */
    int32_t top_k;       /* 0 = as it is (cut to experts) */
    int32_t method;      /* MOED_EXPAND_* */
    int32_t keep_bias;   /* 1: old experts keep their selection biases; 0: all biases are 0 (EMO) */
    int32_t dtype;       /* of the result's floating parameters; 0 = the model's */
    int32_t reserved;
    uint64_t seed;
    double std;          /* DRAW: of new experts and their router rows; negative = the config's initializer_range */
    double noise;        /* CLONE: on every number of an expert or router row, as a share of its tensor's root mean square (router
                            rows: of std) */
    double redraw;       /* CLONE: share of an expert's intermediate units that are drawn anew; 1/2 in Drop-Upcycling */
    int64_t shard_bytes; /* of the result's directory: as in moed_model_options */
} moed_expansion_options;

enum { /* kind: which numbers moed_expansion_pieces speaks of */
    MOED_KIND_WEIGHTS = 0, /* weights and masters */
    MOED_KIND_MOMENTS = 1  /* what an optimizer keeps of each number: that of new experts is 0 */
};

/* from: of a family with experts, in memory or streamed; kept alive. usage (layers, experts; nullable): how often each expert is
 * chosen. With more experts than there are, the old ones keep their numbers and places, new ones come after them; clones are of
 * the most used first, or without usage in order. With fewer, the most used stay, in their order; usage is needed. A function of
 * the model, usage and options alone. Returns MOED_E_RANGE, MOED_E_ARGUMENT naming the field, MOED_E_UNSUPPORTED (a layout by
 * hand, a dense family). Ownership: the caller's. Threads: from may be read by others meanwhile; calls that take the expansion
 * const may run side by side. Since: 0.1. */
MOED_API moed_status moed_expansion_create(moed_expansion **out, const moed_model *from, const double *usage,
                                           const moed_expansion_options *o);
MOED_API void moed_expansion_destroy(moed_expansion *x);
/* Of the result; borrowed. Since: 0.1. */
MOED_API const moed_layout *moed_expansion_layout(const moed_expansion *x);
/* How parameter `param` of the result, or what an optimizer keeps of it (kind), is made of the same of `from`, source 0: what
 * build executes for weights, and what a foreign trainer executes on its own shards by moed_piece_apply. pieces [out, nullable]
 * (capacity), count [out] of all. Returns MOED_E_RANGE. Reads the model where noise or redrawn units need the size of what they
 * replace. Since: 0.1. */
MOED_API moed_status moed_expansion_pieces(moed_expansion *x, size_t param, int32_t kind, moed_piece *pieces, size_t capacity,
                                           size_t *count);
/* Makes the model: in memory (dir NULL), where `from` is, or streamed to a Hugging Face directory, all or nothing, then opened
 * with MOED_MODEL_STREAM. out nullable when dir is given. Threads: one call at a time. Since: 0.1. */
MOED_API moed_status moed_expansion_build(moed_model **out, moed_expansion *x, const char *dir, const moed_cancel *cancel);

#ifdef __cplusplus
}
#endif
#endif
