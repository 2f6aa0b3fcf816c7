/* surgery.h - split and integrate on directories, as verbs and as phases of a pipeline do them. */
#ifndef SURGERY_H
#define SURGERY_H

#include "app.h"

/* Writes submodel `part` of the model in base_dir to out_dir. */
int surgery_split(moed_context *c, const char *base_dir, int64_t parts, int64_t part, const char *out_dir);

typedef struct merger {
    moed_integration_options options;
    int64_t parts;
    const double *weights;       /* (parts), nullable: 1 each */
    const char *const *submodels; /* (parts) directories, NULL = lost */
    const char *experts;         /* file with a table of experts, nullable: as the submodels say */
    int clones;                  /* one submodel serves every part */
    const moed_partition *partition; /* of a gate from centroids or clusters, nullable */
    const moed_corpus *documents; /* of a gate from clusters */
    int64_t gate_tokens;         /* of each cluster at most, 0 = all */
    double ridge;
    moed_split *split;           /* set by surgery_integrate */
    const moed_corpus *scale;    /* documents that measure the scale of experts, nullable */
    int64_t scale_tokens;        /* of them at most, 0 = all */
} merger;

int surgery_integrate(moed_context *c, const char *base_dir, const merger *given, const char *out_dir, double *drift);

/* Tokens of the clusters of a corpus or view, (clusters); NULL after telling why not. */
double *cluster_tokens(const moed_partition *p, const moed_corpus *d, int64_t *clusters);

#endif
