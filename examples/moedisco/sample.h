/* sample.h - text from a model of byte tokens. */
#ifndef SAMPLE_H
#define SAMPLE_H

#include "app.h"

typedef struct sampling {
    int64_t bytes;
    double temperature;
    int64_t sample_top_k;
    uint64_t sample_seed;
    int32_t color;
    int64_t layer;
    int32_t raw;
} sampling;

/* alone: --top-k and --seed; beside other flags: --sample-top-k and --sample-seed. */
void sampling_flags(flags *f, sampling *s, int alone);
/* Prints the prompt and what the model makes of it. */
int sample_text(const moed_model *m, const char *prompt, const sampling *s);

#endif
