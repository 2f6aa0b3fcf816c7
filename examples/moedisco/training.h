/* training.h - one training run to its end: memory told beforehand, taken up where it was stopped, saved when told to stop. */
#ifndef TRAINING_H
#define TRAINING_H

#include "app.h"
#include "flags.h"
#include "stopwatch.h"

typedef struct training {
    const char *label;          /* of the progress line */
    moed_context *context;
    moed_model *model;          /* trained in place */
    const moed_corpus *corpus;
    moed_train_options options; /* directory set */
    stopwatch *watch;           /* nullable: told that time passes */
    moed_report last;           /* out: the last step; step 0 when there was none to do */
} training;

/* What `run` and `plan` train by where no flag says otherwise. */
void training_defaults(moed_train_options *o);
int training_run(training *t);
/* The held-out loss of the whole corpus, in rows of the options' length. */
int training_evaluate(const moed_model *m, const moed_corpus *d, const moed_train_options *o, moed_report *out);

/* Bytes that training may take, with the model: the limit that was set, or what the machine and the control groups of this
 * process have, less what is held already (of which `loaded` bytes are the model) and the order of the corpus' documents, which
 * an estimate knows nothing of. */
typedef struct memory_room {
    int64_t host, device;       /* INT64_MAX: not known */
} memory_room;
memory_room training_room(const moed_context *c, const moed_corpus *d, int64_t loaded);
int training_within(const moed_estimate *e, const memory_room *room);
/* NULL when a run is within it, else one sentence, to be freed. */
char *training_lacks(const moed_context *c, const moed_estimate *e, const memory_room *room);
/* EXIT_FIT, with the nearest setting that fits, when training would take more memory than there is beside what is held.
 * loaded: bytes of the model, when it is held already. */
int training_fits(const moed_context *c, const moed_layout *l, const moed_corpus *d, const moed_train_options *o, int64_t loaded);
/* Bytes in the memory that computes: a device's own, or on the CPU the host's; and whose that is. */
int64_t training_memory(const moed_estimate *e);
void training_place(const moed_context *c, char out[128]);
/* moed_train_estimate with the faults told. */
int training_estimate(const moed_layout *l, const moed_train_options *o, moed_estimate *out);
/* Tells which flags that were given nothing in such a model heeds. */
void training_tell_unheeded(const flags *f, const moed_layout *l);
/* Seconds of one optimizer step here, by a few steps on a copy that is thrown away; refused as training_fits does. */
int training_measure(moed_context *c, const moed_layout *l, const moed_corpus *d, const moed_train_options *given, double seconds,
                     double *step);

#endif
