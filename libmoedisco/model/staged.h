/* model/staged.h - a batch on the device, brought there in one upload, and cut into shards of equal rows. */
#ifndef MOEDI_STAGED_H
#define MOEDI_STAGED_H

#include "core/context.h"

typedef struct moedi_staged {
    const moedi_engine *engine;
    int64_t room;                /* tokens */
    char *host, *device;         /* one after the other: tokens, labels, start, positions, weights of the labels (room each) */
    /* the batch that is there */
    int64_t rows, length;
    int64_t shard;               /* rows of a shard; the last may have fewer */
    int64_t labels;              /* that are not -1 */
    double label_weight;         /* sum of their weights */
    int32_t labelled, weighted;
    int32_t whole;               /* every row is one document */
} moedi_staged;

/* Arrays of one shard, on the device. */
typedef struct moedi_shard {
    int64_t rows;
    const int32_t *tokens, *labels, *positions;
    const int32_t *start;        /* first token that each attends to, counted in the shard */
    const float *weights;        /* NULL: all labels weigh 1 */
} moedi_shard;

/* Of device memory, and of host memory again. */
int64_t moedi_staged_bytes(int64_t tokens);
moed_status moedi_staged_create(moedi_staged *out, const moedi_engine *e, int64_t tokens);
void moedi_staged_destroy(moedi_staged *s);
/* b has been checked and fits; labels and label_weight are what the check found. */
moed_status moedi_staged_upload(moedi_staged *s, const moed_batch *b, int64_t shard, int64_t labels, double label_weight);
int64_t moedi_staged_shards(const moedi_staged *s);
moedi_shard moedi_staged_shard(const moedi_staged *s, int64_t index);

#endif
