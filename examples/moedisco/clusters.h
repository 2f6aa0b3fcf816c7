/* clusters.h - corpora and their clusters: which documents a verb works on, and how the partition is made and shown. */
#ifndef CLUSTERS_H
#define CLUSTERS_H

#include "app.h"

/* Which documents of a corpus: a cluster of it, without or only those held out. */
typedef struct choice {
    const char *partition;
    int64_t cluster;
    int32_t part;         /* all, train, held-out */
    double held_out;
    uint64_t held_out_seed;
} choice;
enum { PART_ALL, PART_TRAIN, PART_HELD_OUT };

void choice_flags(flags *f, choice *c, int32_t part);
/* The chosen view. held_out nullable: the view of the held-out documents, NULL when none are. */
int choice_view(const choice *pick, moed_context *c, const moed_corpus *d, moed_corpus **view, moed_corpus **held_out);

void corpus_tell(const char *name, const moed_corpus *d);
int corpus_build(moed_context *c, const char *const *paths, size_t count, const char *prefix, const moed_corpus_options *o);

typedef struct clustering {
    moed_embed_options embed;
    moed_kmeans_options kmeans;
} clustering;

void clustering_flags(flags *f, clustering *k, const char *except);
/* Clusters the documents of `train` (a view of d, or d) by the model's embeddings, shows the clusters and makes the partition of
 * d: documents outside train, if any (in `held_out`), get the nearest centroid. */
int clusters_make(moed_context *c, const moed_corpus *d, const moed_corpus *train, const moed_corpus *held_out,
                  const moed_model *m, const clustering *k, moed_partition **out);

#endif
