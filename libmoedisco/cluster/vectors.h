/* cluster/vectors.h - vectors to cluster: blocks of them, checks, and reading. */
#ifndef MOEDI_VECTORS_H
#define MOEDI_VECTORS_H

#include "core/context.h"
#include "moedisco/cluster.h"

/* Blocks of rows that work is parted by: fixed, so that sums do not depend on threads. */
#define MOEDI_BLOCK 2048
static inline int64_t moedi_blocks(int64_t count)
{
    return (count + MOEDI_BLOCK - 1) / MOEDI_BLOCK;
}
/* Behind the last row of a block that begins at block * MOEDI_BLOCK. */
static inline int64_t moedi_block_end(int64_t count, int64_t block)
{
    const int64_t most = (block + 1) * MOEDI_BLOCK;
    return most < count ? most : count;
}

/* A contiguous F32 matrix in host memory, of `rows` rows and `width` columns (0: any), whose numbers all are finite. */
moed_status moedi_check_matrix(const moed_context *c, const moed_cancel *cancel, const moed_tensor *x, const char *name,
                               int64_t rows, int64_t width);
/* Rows with weight, at least one per cluster; weights nullable. */
moed_status moedi_check_weights(const float *weights, int64_t count, int64_t clusters);

/* Vectors in memory (x) or read through a callback (own). */
typedef struct moedi_source {
    const moed_context *context;
    const moed_cancel *cancel;
    const float *x;
    const moed_vectors *own;
    const float *weights;
    int64_t count, width;
} moedi_source;

/* A run of this many neighbours is read at once where vectors come through a callback. */
enum { MOEDI_SOURCE_RUN = 64 };

/* Rows `first` on into out (count, width), checked where they come through the callback. */
moed_status moedi_source_read(const moedi_source *s, int64_t first, int64_t count, float *out);
/* `count` vectors in runs of `run`, the rows in equal stretches, a run at a random place of each: a pure function of seed and
 * step. weights nullable. */
moed_status moedi_source_draw(const moedi_source *s, uint64_t seed, uint64_t step, int64_t count, int64_t run, float *out,
                              float *weights);

#endif
