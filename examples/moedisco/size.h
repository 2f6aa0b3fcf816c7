/* size.h - the sizes of a model as flags, and the config.json they make. */
#ifndef SIZE_H
#define SIZE_H

#include "app.h"

typedef struct sizes {
    const char *config;
    int32_t preset;
    int32_t family;
    int64_t hidden, layers, heads, kv_heads;
    int64_t experts, top_k, expert_width, shared_width;
    int64_t context_length, vocabulary;
    double rope_theta;
    moed_model_options init; /* seed, init_std */
} sizes;

void sizes_flags(flags *f, sizes *s);
/* After parsing: the preset's sizes for those that were not given. */
void sizes_settle(sizes *s, const flags *f);
/* The layout; vocabulary 0 in the sizes takes `vocabulary`. An exit code. */
int sizes_layout(const sizes *s, moed_context *c, int64_t vocabulary, moed_layout **out);

#endif
