/* train/trainer.h - the trainer, private side. */
#ifndef MOEDI_TRAINER_H
#define MOEDI_TRAINER_H

#include "accumulate.h"
#include "corpus/corpus.h"
#include "findings.h"
#include "metrics.h"
#include "optimizer.h"
#include "recording.h"
#include "selection_bias.h"

/* What the calls since the last update found. */
typedef struct moedi_pending {
    int64_t calls;
    int64_t rows;                  /* of the corpus' stream */
    int64_t tokens, labels;
    double loss, load_balance, z_loss; /* sums over calls */
    double seconds;
} moedi_pending;

struct moed_trainer {
    moed_context *context;
    moed_model *model;
    moed_corpus *corpus, *held_out;
    moed_train_options options;    /* strings owned: train, freeze, directory */
    int32_t policy;                /* FULL or LEAN */
    uint8_t *trained;              /* (params) */
    moedi_sampler *sampler;
    moedi_transformer *transformer;
    moedi_accumulator gradients;
    moedi_optimizer optimizer;
    moedi_staged batch;            /* of the step */
    moedi_findings findings;
    moedi_selection_biases biases;
    moedi_recording recordings[2]; /* of a step's work, by moedi_staged.whole */
    int32_t *tokens, *labels, *documents; /* (rows, length) of one step */
    int64_t *loads, *last_loads;   /* (layers, experts): choices since the last update, and before it */
    int64_t *scratch;              /* (experts) */
    void *staging;                 /* one parameter, where device memory is not host memory */
    moedi_metrics metrics;
    moedi_pending pending;
    int64_t step, consumed;        /* steps done, tokens trained on */
    int64_t row;                   /* of the corpus' stream that comes next: first_row + rows * step unless a foreign loop
                                      took others */
    int64_t saved;                 /* step of the last checkpoint of this process, -1 = none */
    int64_t built;                 /* host bytes of what depends on model and policy */
    int64_t workspace;             /* what operations keep beside it, by the estimate */
    int64_t evaluated;             /* step of the last held-out evaluation of a run */
    double best_held_out;
    int32_t claimed;               /* the directory is this run's */
    int32_t resuming;              /* resume was asked for: what lies in the directory may be cut back */
    int32_t behind;                /* the model's own tensors are: options.store_late */
    int32_t broken;                /* a restore, an update or a change of policy ended half-way: weights are not to be trusted */
    char resumed_from[256];
};

/* With AUTO: everything that depends on the policy is made anew for a checkpoint's, where that is another. Frees first: when it
 * does not succeed, the trainer is broken. */
moed_status moedi_trainer_adopt(moed_trainer *t, int32_t policy);
/* Another model in the place of its own, with the policy that it has; moments are 0. What does not fit changes nothing; what
 * fails later breaks the trainer. */
moed_status moedi_trainer_take_model(moed_trainer *t, moed_model *m);

#endif
