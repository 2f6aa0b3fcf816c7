/* assignment.h - which experts go to which submodel: by index, from a file, by usage on each cluster, or as submodels say
 * themselves. */
#ifndef ASSIGNMENT_H
#define ASSIGNMENT_H

#include "app.h"

typedef struct assignment {
    const char *experts;           /* file with a table of experts, nullable */
    const char *usage;             /* file with a table of usage, nullable */
    const char *partition, *corpus; /* usage is measured on these clusters, nullable */
    int64_t usage_tokens;          /* of each cluster at most, 0 = all */
} assignment;

void assignment_flags(flags *f, assignment *a);
/* Parts that the files are for, 0 = they do not say; an exit code. */
int assignment_parts(const assignment *a, moed_context *c, int64_t *parts);
/* Assigns the experts of base (in memory, or streamed: usage then takes a layer at a time), and tells what share of its
 * cluster's choices each part's experts get. usage [out]: (parts, layers, experts), NULL where there is none; free it. */
int assignment_make(const assignment *a, moed_context *c, const moed_model *base, moed_split *s, int64_t parts, double **usage);
/* The table of a split, and the usage it was made by (nullable), as a file that --experts and --usage take. */
int assignment_write(const moed_split *s, const moed_layout *base, int64_t parts, const double *usage, const char *path);
/* Only a table of experts, for integration. */
int assignment_read(moed_split *s, const moed_layout *base, int64_t parts, const char *path);

#endif
