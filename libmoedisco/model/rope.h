/* model/rope.h - rotary positions: how far each pair of a head turns from one token to the next. */
#ifndef MOEDI_ROPE_H
#define MOEDI_ROPE_H

#include "util/json.h"

enum { /* moedi_rope.kind */
    MOEDI_ROPE_DEFAULT,  /* theta^(-2 i / head_dim) */
    MOEDI_ROPE_LINEAR,   /* that, divided by factor */
    MOEDI_ROPE_LLAMA3,   /* only where waves are long; a smooth passage between the wavelengths original / high and original /
                            low */
    MOEDI_ROPE_YARN      /* likewise, the passage between the pairs that turn `high` and `low` times in `original` tokens */
};

typedef struct moedi_rope {
    int32_t kind;
    int32_t whole;       /* yarn: the passage begins and ends at whole pairs */
    double theta;
    double factor, original, low, high;
    double magnitude;    /* what cosine and sine are multiplied with: 1 but with yarn */
} moedi_rope;

/* From rope_parameters (Transformers 5), or rope_scaling and rope_theta (before). theta: the family's default. What is not known
 * is an error that names the field. "dynamic" is the default here: it changes only rows longer than max_position_embeddings,
 * which are refused. */
moed_status moedi_rope_read(moedi_rope *out, double theta, int64_t context_length, const json_t *o, const char *path);
/* Radians per token of pair i of head_dim / 2. */
double moedi_rope_frequency(const moedi_rope *r, int64_t head_dim, int64_t i);

#endif
