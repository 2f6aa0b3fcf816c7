/* train/selection_bias.h - biases that experts are chosen by, moved by how often they were. */
#ifndef MOEDI_SELECTION_BIAS_H
#define MOEDI_SELECTION_BIAS_H

#include "model/transformer.h"

/* The host's numbers are those of the device: it only ever takes them from here. */
typedef struct moedi_selection_biases {
    moedi_transformer *transformer;
    const moed_layout *layout;
    char *numbers;  /* (layers, experts) wide; NULL: the model has none */
    int32_t known;  /* numbers are the device's */
    char *held;     /* the numbers of before, where holding */
    int32_t holding;
} moedi_selection_biases;

moed_status moedi_selection_biases_create(moedi_selection_biases *out, moedi_transformer *t, const moed_layout *l);
void moedi_selection_biases_destroy(moedi_selection_biases *b);
/* Weights have changed by another hand. */
void moedi_selection_biases_forget(moedi_selection_biases *b);
/* b += rate sign(mean load - load), in every layer: loads (layers, experts). band above 0: loads that differ from
 * the mean by less than that share of it move their bias in proportion. Enqueued; the next call comes after a wait. Source: arXiv
 * 2408.15664. */
moed_status moedi_selection_biases_move(moedi_selection_biases *b, const int64_t *loads, double rate, double band);

/* From here on the biases may move, and be brought back to what they are now, until released. */
moed_status moedi_selection_biases_hold(moedi_selection_biases *b);
void moedi_selection_biases_release(moedi_selection_biases *b);
/* Without a hold nothing changes. Enqueued, as a move. */
moed_status moedi_selection_biases_restore(moedi_selection_biases *b);

#endif
