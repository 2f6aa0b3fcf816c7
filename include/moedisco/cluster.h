/* cluster.h - k-means over documents, and the partition it yields. Source: MoE-DisCo (arXiv 2601.06857), step 1. */
#ifndef MOEDISCO_CLUSTER_H
#define MOEDISCO_CLUSTER_H

#include "corpus.h"
#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_kmeans moed_kmeans;
typedef struct moed_partition moed_partition;

typedef struct moed_embed_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t normalise;  /* 1: each vector to length 1 */
    int32_t centre;     /* 1: subtract the mean over documents (before normalising) */
} moed_embed_options;

/* out (documents, hidden) f32, host, contiguous: the mean over a document's tokens of the model's embedding table (its first
 * parameter marked MOED_PARAM_EMBEDDING); zeros for an empty document, which has no part in the centre. m may be streamed.
 * Returns MOED_E_MISMATCH (the corpus' vocabulary is larger than the table), MOED_E_NUMERIC naming the document.
 * Since: 0.1. Source: MoE-DisCo, step 1. */
MOED_API moed_status moed_corpus_embed(const moed_corpus *d, const moed_model *m, moed_tensor *out,
                                       const moed_embed_options *o, const moed_cancel *cancel);
/* Tokens of every document, out (documents): the usual weights of a balanced fit. Since: 0.1. */
MOED_API moed_status moed_corpus_weights(const moed_corpus *d, float *out);

enum { MOED_KMEANS_PLAIN = 0, MOED_KMEANS_BALANCED = 1 /* equal weight per cluster */ };
enum { MOED_START_PLUSPLUS = 0, MOED_START_PARALLEL = 1 /* k-means||, Bahmani et al., 2012: few passes for many clusters */ };

/* Vectors that need not be in memory. read writes rows [first, first + count) to out (count, width); it may be asked for any
 * rows, several times, always runs on the thread that called the library, and returns 0, or non-zero to stop
 * (MOED_E_CALLBACK). */
typedef struct moed_vectors {
    uint32_t struct_size;
    uint32_t flags;
    int64_t count;
    int64_t width;
    int32_t (*read)(int64_t first, int64_t count, float *out, void *user);
    void *user;
} moed_vectors;

typedef struct moed_kmeans_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t clusters;    /* K */
    int32_t method;      /* MOED_KMEANS_* */
    int32_t iterations;  /* of Lloyd, at most */
    int32_t restarts;    /* k-means++ starts, the best inertia wins */
    uint64_t seed;
    double tolerance;    /* stop when the centroids' squared movement is below this times the mean variance */
    double imbalance;    /* balanced: clusters weigh the mean give or take this share of it (or the heaviest vector, if that is
                            more) */
    int32_t start;       /* MOED_START_* */
    int32_t batch;       /* vectors of a mini-batch (Sculley, 2010): `iterations` of these, then one pass; 0 = all vectors in
                            every iteration */
} moed_kmeans_options;

typedef struct moed_kmeans_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t clusters;
    int64_t width;
    int64_t iterations;      /* done by the winning start */
    double inertia;          /* sum of weight * squared distance to the own centroid */
    const float *centroids;  /* (clusters, width), borrowed until the next fit */
    const double *weights;   /* (clusters) total weight of each, borrowed */
    const int64_t *counts;   /* (clusters) vectors of each, borrowed */
} moed_kmeans_info;

/* Since: 0.1. Ownership: the caller's. Threads: one at a time; assign and get_info may run in parallel. */
MOED_API moed_status moed_kmeans_create(moed_kmeans **out, moed_context *c, const moed_kmeans_options *o);
MOED_API void moed_kmeans_destroy(moed_kmeans *k);
/* x (count, width) f32, host, contiguous. weights (count) nullable: of a vector in centroids, inertia and balance
 * (NULL: all 1; a vector of weight 0 gets a label and pulls nothing). starts (clusters, width) nullable: use these
 * centroids instead of k-means++. No cluster is left without a vector, identical ones included. The same bits for any
 * number of threads. A balanced fit holds count * clusters floats. A fit that fails leaves the one before.
 * Returns MOED_E_ARGUMENT (fewer vectors of a weight above 0 than clusters), MOED_E_NUMERIC naming the row with NaN.
 * Since: 0.1. */
MOED_API moed_status moed_kmeans_fit(moed_kmeans *k, const moed_tensor *x, const float *weights, const moed_tensor *starts,
                                     const moed_cancel *cancel);
/* The same for vectors that are read batch by batch, once per iteration: what it holds does not depend on count. It starts from a
 * fit of a sample of them (64 MiB at most, restarts and all), or from `starts`. No labels are kept: ask
 * moed_kmeans_assign_stream. A cluster may be left without a vector where fewer than K differ. weights stays the caller's
 * (count). Plain only. Cancelled between batches of 16 MiB.
 * Returns MOED_E_CALLBACK, MOED_E_UNSUPPORTED (a balanced fit), MOED_E_NUMERIC naming the row with NaN. Since: 0.1. */
MOED_API moed_status moed_kmeans_fit_stream(moed_kmeans *k, const moed_vectors *x, const float *weights,
                                            const moed_tensor *starts, const moed_cancel *cancel);
/* Labels of the fit itself (balanced ones included), (count). MOED_E_STATE before a fit, and after a streamed one. Since: 0.1. */
MOED_API moed_status moed_kmeans_labels(const moed_kmeans *k, int32_t *labels, int64_t count);
/* Nearest centroid of new vectors; distances (count) squared, nullable. Since: 0.1. */
MOED_API moed_status moed_kmeans_assign(const moed_kmeans *k, const moed_tensor *x, int32_t *labels, float *distances,
                                        const moed_cancel *cancel);
/* The same, batch by batch; labels (count) and distances (count) nullable: what is written before a failure stays. Since: 0.1. */
MOED_API moed_status moed_kmeans_assign_stream(const moed_kmeans *k, const moed_vectors *x, int32_t *labels, float *distances,
                                               const moed_cancel *cancel);
MOED_API moed_status moed_kmeans_get_info(const moed_kmeans *k, moed_kmeans_info *out);

typedef struct moed_partition_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t documents;
    int64_t clusters;
    int64_t width;            /* of the centroids, 0 = none kept */
    const int32_t *labels;    /* (documents), borrowed */
    const float *centroids;   /* (clusters, width), borrowed, NULL = none */
    char fingerprint[40];     /* of the corpus, "" = not bound to one */
} moed_partition_info;

/* labels (count) in [0, clusters), one per document of the whole corpus; centroids (clusters, width) f32 nullable; corpus (or a
 * view of it) nullable: binds the partition to it. MOED_E_MISMATCH when it has another number of documents. Since: 0.1. */
MOED_API moed_status moed_partition_create(moed_partition **out, moed_context *c, const int32_t *labels, int64_t count,
                                           int64_t clusters, const moed_tensor *centroids, const moed_corpus *corpus);
/* A safetensors file: assignments I32 (documents), centroids F32 (clusters, width; may be absent); metadata: format
 * "moedisco-partition", version "1", clusters, corpus (the fingerprint or ""), digest (of the numbers; may be absent). Everything
 * is checked; MOED_E_CHECKSUM for numbers that are not the digest's. Since: 0.1. */
MOED_API moed_status moed_partition_open(moed_partition **out, moed_context *c, const char *path);
MOED_API moed_status moed_partition_save(const moed_partition *p, const char *path);
MOED_API moed_status moed_partition_get_info(const moed_partition *p, moed_partition_info *out);
MOED_API void moed_partition_destroy(moed_partition *p);
/* The documents of one cluster as a view. Labels are by document of the whole corpus; d may be that corpus or a view of
 * it (then its documents of that cluster). MOED_E_MISMATCH with both fingerprints when d is another corpus,
 * MOED_E_NOT_FOUND when the cluster has no document in d. Since: 0.1. */
MOED_API moed_status moed_partition_view(moed_corpus **out, const moed_partition *p, const moed_corpus *d, int32_t cluster);

#ifdef __cplusplus
}
#endif
#endif
