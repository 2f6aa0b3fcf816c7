/* model.h - a layout says what parameters are; a model is a layout with memory behind it. */
#ifndef MOEDISCO_MODEL_H
#define MOEDISCO_MODEL_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_layout moed_layout;
typedef struct moed_model moed_model;

typedef struct moed_layout_info {
    uint32_t struct_size;
    uint32_t flags;
    char family[32];            /* "qwen2_moe", "mixtral", ...; "" for a layout made by hand */
    int64_t params;             /* tensors */
    int64_t layers;
    int64_t experts;            /* most experts of any layer; layers without may be among them */
    int64_t top_k;              /* 0 for a layout made by hand, like all below but the totals */
    int64_t hidden;
    int64_t vocabulary;
    int64_t context_length;     /* max_position_embeddings */
    int64_t total;              /* numbers in all parameters; tied ones once */
    int64_t active;             /* of those, used per token (0 by hand) */
    int64_t shared;             /* numbers in shared parameters */
    int64_t bytes;              /* in the parameters' own dtypes */
    double forward_flops;       /* per token of a row of context_length: 2 per matmul weight + causal attention */
} moed_layout_info;

enum {
    MOED_MODEL_STREAM = 1 /* open: leave the numbers on disk; init: draw them when they are read; for surgery, save and info, not
                             for training */
};

typedef struct moed_model_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t dtype;     /* save: of floating parameters, 0 = exactly as they are held: the dtype of arithmetic, or a streamed
                          model's own */
    int32_t reserved;
    uint64_t seed;     /* init */
    double init_std;   /* init: standard deviation; negative = the config's initializer_range */
    int64_t shard_bytes; /* save: bytes of tensors in one file at most, with an index beside the files (a larger tensor has a file
                            of its own); 0 = one file */
} moed_model_options;

/* A layout of any architecture, by hand. params (count) are copied, names too.
 * Returns MOED_E_ARGUMENT naming the parameter: duplicate or empty name, bad role, axis or shape.
 * Ownership: the caller's. Threads: read-only after create. Since: 0.1. */
MOED_API moed_status moed_layout_create(moed_layout **out, moed_context *c, const moed_param *params, size_t count);

/* The layout of a supported family from its Hugging Face config.json text (bytes long).
 * Returns MOED_E_FORMAT, MOED_E_RANGE, MOED_E_UNSUPPORTED: each names the field. Since: 0.1. */
MOED_API moed_status moed_layout_from_config(moed_layout **out, moed_context *c, const char *json, size_t bytes);

MOED_API moed_status moed_layout_get_info(const moed_layout *l, moed_layout_info *out);
/* Parameter `index`; its name is borrowed from the layout. MOED_E_RANGE past the last. Since: 0.1. */
MOED_API moed_status moed_layout_param(const moed_layout *l, size_t index, moed_param *out);
/* The layout's config.json text, "" for one made by hand. Borrowed. Since: 0.1. */
MOED_API const char *moed_layout_config(const moed_layout *l);
MOED_API void moed_layout_destroy(moed_layout *l);

/* Executes pieces on contiguous tensors (what a foreign trainer does on its own shards, masters and moments), all in host memory
 * or all in the memory of the context's device (moed_tensor.device), with the same bits but for NaNs that arithmetic makes or
 * converts. On a device the work is enqueued on the context's stream, nothing is copied to the host, and the call returns at
 * once; with a stream of the library's own it returns when the work is done. pieces (count), all of one destination tensor;
 * sources: one array of whole tensors per source number, indexed by piece.source_param: sources[piece.source][piece.source_param]
 * must exist or be behind a NULL array; dst the whole tensor, or its shard when `shard` is given, and apart from the sources in
 * memory. The bits are the same however a tensor is cut into shards. Dtypes f64, f32, f16, bf16 in any mixture (any of whole
 * bytes, for pure copies of equal dtype). Everything is checked before dst is written.
 * Returns MOED_E_ARGUMENT (memories mixed, too), MOED_E_RANGE or MOED_E_UNSUPPORTED, naming the piece, on a device MOED_E_MEMORY,
 * MOED_E_LIMIT or MOED_E_DEVICE. Threads: one call per dst. Since: 0.1. */
MOED_API moed_status moed_piece_apply(moed_context *c, const moed_piece *pieces, size_t count,
                                      const moed_tensor *const *sources, moed_tensor *dst, const moed_shard *shard);

/* Opens a Hugging Face directory (config.json + model.safetensors, or an index and its shards). Numbers are read into
 * memory as the context's dtype of arithmetic (which the layout then says) unless MOED_MODEL_STREAM. A tied model may
 * carry its head if it equals the embedding.
 * Returns MOED_E_NOT_FOUND, MOED_E_FORMAT, MOED_E_MISMATCH (missing, extra or misshapen tensor), MOED_E_LIMIT.
 * Since: 0.1. */
MOED_API moed_status moed_model_open(moed_model **out, moed_context *c, const char *dir, const moed_model_options *o);

enum { /* moed_finding.kind */
    MOED_FINDING_FILE = 1,       /* a file that is not there, or of which nothing can be read */
    MOED_FINDING_INDEX = 2,      /* the index and the shards do not say the same */
    MOED_FINDING_MISSING = 3,    /* a tensor that the model needs */
    MOED_FINDING_EXTRA = 4,      /* one that it has no use for */
    MOED_FINDING_SHAPE = 5,      /* one of another shape or dtype */
    MOED_FINDING_CUT = 6,        /* its file ends before it does */
    MOED_FINDING_TIED = 7,       /* a head that is not the embedding, which it is tied to */
    MOED_FINDING_NOT_FINITE = 8, /* numbers that are NaN or infinite */
    MOED_FINDING_ZERO = 9        /* all its numbers are 0, and it is no bias */
};

/* One thing that is wrong in a model's directory. Strings are borrowed for the call. */
typedef struct moed_finding {
    uint32_t struct_size;
    uint32_t flags;
    int32_t kind;        /* MOED_FINDING_* */
    int32_t reserved;
    int64_t count;       /* NOT_FINITE: such numbers; ZERO: its numbers; else 0 */
    const char *file;    /* path of the file, or of the directory */
    const char *tensor;  /* its name, "" where none is meant */
    const char *text;    /* one sentence with all of it */
} moed_finding;

/* Called on the thread that called, in the order of the files; must not call the library. Non-zero stops with MOED_E_CALLBACK. */
typedef int32_t (*moed_finding_fn)(const moed_finding *finding, void *user);

/* All that is wrong in the directory of a model, where moed_model_open ends at the first fault. What config.json describes is
 * held against the index, the headers of the files and, unless o (nullable) has MOED_MODEL_STREAM, every number; each tensor
 * is read once, some MB at a time on each thread. findings [out] how many there are, 0 for a model that is whole; tell
 * nullable.
 * Returns MOED_OK when it looked at everything, whatever it found. Else MOED_E_NOT_FOUND, MOED_E_FORMAT, MOED_E_RANGE or
 * MOED_E_UNSUPPORTED where there is no directory or its config.json describes no model, MOED_E_IO, MOED_E_MEMORY,
 * MOED_E_CANCELLED. Since: 0.1. */
MOED_API moed_status moed_model_inspect(moed_context *c, const char *dir, const moed_model_options *o, moed_finding_fn tell,
                                        void *user, int64_t *findings, const moed_cancel *cancel);

/* A fresh model in the context's dtype of arithmetic: weights normal(0, init_std), norms 1, biases and opaque
 * parameters 0, by a counter-based generator without libm: a tensor's numbers depend on seed, name and index alone, on
 * every machine. With MOED_MODEL_STREAM no numbers are held, whatever the model's size: they are drawn when saved or split, in
 * the layout's own dtypes. Since: 0.1. */
MOED_API moed_status moed_model_init(moed_model **out, moed_context *c, const moed_layout *l, const moed_model_options *o);

/* Called once when the library drops its last reference to borrowed tensors. Not from inside a call of
 * the borrower's own on another handle; must not call the library. */
typedef void (*moed_release_fn)(void *user);

/* A model on the caller's arrays. tensors: one per parameter, in the layout's order, all in host memory or all in that of the
 * context's device. A model in device memory is there for surgery and to be saved; logits, routing and training take one in host
 * memory. release nullable; not called when this call fails. Ownership: arrays stay the caller's and must
 * live until release; in device memory work on the context's stream may still read them then: free them in its order.
 * Since: 0.1. */
MOED_API moed_status moed_model_borrow(moed_model **out, moed_context *c, const moed_layout *l, const moed_tensor *tensors,
                                       size_t count, moed_release_fn release, void *user);

/* Borrowed from the model. Since: 0.1. */
MOED_API const moed_layout *moed_model_layout(const moed_model *m);
/* A view of parameter `param`, in the memory that its device names; writing through it changes the model (not while a trainer
 * uses it). MOED_E_STATE for a streamed model. Since: 0.1. */
MOED_API moed_status moed_model_tensor(const moed_model *m, size_t param, moed_tensor *out);

/* out [in] (rows, length, vocabulary), contiguous, of the context's dtype. Since: 0.1. */
MOED_API moed_status moed_model_logits(const moed_model *m, const moed_batch *b, moed_tensor *out, const moed_cancel *cancel);

/* Log-likelihoods, in nats, of b->labels: of each position's label given the tokens of its row up to there (with documents: of
 * its document). rows [out] (rows): sums over the labels of a row, each times its weight where b has weights. tokens [out,
 * nullable] (rows, length): each one alone, 0 where there is no label.
 * A continuation given a context is one row: the context and the continuation but its last token; labels are the token that
 * comes next, and -1 before the context's last token. Rows that are shorter than the longest are filled up behind with any
 * token and label -1: what comes before does not see it. Rows go through the model a few thousand tokens at a time, whatever
 * their number.
 * Returns MOED_E_ARGUMENT (no labels), MOED_E_RANGE naming a token, label or weight below 0, MOED_E_NUMERIC (a weight that is
 * NaN or infinite), MOED_E_LIMIT, MOED_E_CANCELLED. Since: 0.1. */
MOED_API moed_status moed_model_likelihood(const moed_model *m, const moed_batch *b, double *rows, float *tokens,
                                           const moed_cancel *cancel);

/* The router's choices: experts (layers, rows * length, top_k) and weights (same shape, nullable); -1 and 0 in layers without
 * experts. Since: 0.1. */
MOED_API moed_status moed_model_routing(const moed_model *m, const moed_batch *b, int32_t *experts, float *weights,
                                        const moed_cancel *cancel);

/* Writes a Hugging Face directory, all or nothing: a fresh directory is filled, synced and renamed. An existing
 * directory that holds a model and nothing else is replaced in the same way (behind a symbolic link the link's target),
 * any other is MOED_E_EXISTS. config.json keeps its unknown fields and names the dtype written. A model that was opened from a
 * directory takes along what else belongs to it, as far as it is still there: tokenizer, generation settings, chat template, code
 * that config.json names (docs/formats.md lists the names); so do its submodels and what is integrated on it. o nullable (dtype,
 * shard_bytes).
 * Since: 0.1. */
MOED_API moed_status moed_model_save(const moed_model *m, const char *dir, const moed_model_options *o);
MOED_API void moed_model_destroy(moed_model *m);

#ifdef __cplusplus
}
#endif
#endif
