/* train.h - training: estimate, step, evaluate, checkpoint, resume, cost. */
#ifndef MOEDISCO_TRAIN_H
#define MOEDISCO_TRAIN_H

#include "corpus.h"
#include "expand.h"
#include "model.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_trainer moed_trainer;
typedef struct moed_comm moed_comm; /* a group of ranks; NULL = this process alone */

enum { MOED_SCHEDULE_CONSTANT = 0, MOED_SCHEDULE_COSINE = 1, MOED_SCHEDULE_WSD = 2 };

/* What the optimizer keeps of each number that trains. FULL: the number in 32 bits, and float moments (12 bytes with a BF16
 * device: 2 of weights, 2 of their low halves, 8). LEAN: the number as the device computes with it, rounded stochastically where
 * that is BF16, and moments of 8 bits with a scale for each 256 (4.03 bytes with a BF16 device). AUTO: FULL where a run fits with
 * it into the limits of the context and the device's memory, as far as these are known, or not with LEAN either; else LEAN.
 * Gradients come on top. */
enum { MOED_POLICY_AUTO = 0, MOED_POLICY_FULL = 1, MOED_POLICY_LEAN = 2 };

/* When selection biases move. STEP: after the update, by the choices of all its rows, as published. MICRO_BATCH: after each
 * micro-batch, by its choices and its share of balance_rate, so that what an update has put out of balance is put right within
 * the next step and not after it; a step's loads are nearer to each other the more micro-batches it has, and its results depend
 * on their number. Of several moed_trainer_forward_backward before one update each moves by a whole rate, for how many come is
 * not known. What a step has moved goes back where it is dropped, stopped, or still waits for its update when the trainer
 * goes. */
enum { MOED_BALANCE_STEP = 0, MOED_BALANCE_MICRO_BATCH = 1 };

/* What one step did. Losses are means per label, in nats. */
typedef struct moed_report {
    uint32_t struct_size;
    uint32_t flags;
    int64_t step;            /* optimizer steps done */
    int64_t tokens;          /* trained on so far */
    int64_t labels;          /* that the loss is a mean of */
    double loss;             /* cross-entropy */
    double load_balance;     /* mean over layers of E * sum_e f_e P_e: 1 when balanced (unweighted by its coefficient) */
    double z_loss;           /* mean over layers of the mean squared log-sum-exp of router logits */
    double gradient_norm;    /* before clipping */
    double learning_rate;
    double max_load;         /* largest share of an expert in any layer, times experts: 1 when balanced */
    double seconds;          /* of this step; of the whole evaluation */
    double tokens_per_second;
} moed_report;

/* Called on the thread that called the trainer, between steps. Non-zero stops with MOED_E_CALLBACK; the trainer stays valid. */
typedef int32_t (*moed_progress_fn)(const moed_report *report, void *user);

typedef struct moed_train_options {
    uint32_t struct_size;
    uint32_t flags;
    int64_t steps;             /* optimizer steps of the whole run: the schedule's length */
    int64_t rows;              /* rows per step */
    int64_t length;            /* tokens per row */
    int64_t micro_batches;     /* virtual shards of a step's rows: each one forward and backward; their gradients are summed
                                  in a fixed pairwise tree. Divides rows. */
    int32_t schedule;          /* MOED_SCHEDULE_* */
    int32_t document_mask;     /* 1: attention stays inside a document */
    double learning_rate;      /* peak */
    double final_rate;         /* end of cosine and of wsd's decay, as a share of the peak */
    double warmup;             /* share of steps, linear */
    double decay;              /* wsd: share of steps, linear */
    double beta1, beta2, epsilon;
    double weight_decay;       /* decoupled; on matrices only, not on norms and biases */
    double clip;               /* global gradient norm, 0 = off */
    double load_balance;       /* coefficient of the load-balance loss */
    double z_loss;             /* coefficient of the router z-loss */
    uint64_t seed;
    const char *train;         /* comma-separated roles (shared, expert, router, bias) or name patterns with * ; NULL = all; what
                                * is MOED_PARAM_FIXED never does */
    const char *freeze;        /* the same, taken away from the former; NULL = none */
    const char *directory;     /* of checkpoints/ and metrics.jsonl; NULL = none are written */
    int64_t checkpoint_every;  /* steps; 0 = only by moed_trainer_save */
    int64_t keep;              /* newest checkpoints kept, at least 1 */
    int64_t evaluate_every;    /* steps; 0 = never by itself */
    int64_t evaluate_tokens;   /* of held_out at most; 0 = all */
    const moed_corpus *held_out; /* nullable */
    moed_progress_fn progress; /* nullable */
    void *progress_user;
    int32_t policy;            /* MOED_POLICY_* */
    int32_t graph;             /* 1: where the device can, a step's work is recorded once and launched as a whole; the results are
                                  the same */
    int32_t store_late;        /* 1: the model's own tensors follow a device's weights at the last of `steps` and at
                                  moed_trainer_destroy alone, not after every moed_trainer_run and _update: for loops of many
                                  short calls, each of which would bring all weights to the host */
    int32_t balance_each;      /* MOED_BALANCE_*: when selection biases move */
    double balance_rate;       /* of routers with a selection bias: after every step an expert's bias moves by so much, up where
                                  it had less than the mean of the step's choices, down where it had more; 0 = biases rest. train
                                  and freeze are of gradients: they do not stop it. Every row of the step counts. Source:
                                  auxiliary-loss-free balancing (arXiv 2408.15664) */
    int64_t first_row;         /* of the corpus' stream: where this run takes it up, as many rows as runs before it took. 0 = its
                                  beginning */
    double balance_boost;      /* balance_rate begins so many times as large and falls to itself by equal factors while the
                                  learning rate rises: new experts find their share soon, and loads are at rest when the warm-up
                                  ends. 0 = as 1: what a caller of before this field has */
    double balance_band;       /* an expert whose load differs from the mean by less than this share of it has its bias moved in
                                  proportion to the difference; beyond, by the whole rate. 0 = always by the whole rate, as
                                  published. Loads then come nearer to each other, for biases no longer swing by the rate; in the
                                  source as a variant */
} moed_train_options;

/* What a run will take, before it starts. */
typedef struct moed_estimate {
    uint32_t struct_size;
    uint32_t flags;
    int64_t weights;         /* bytes, like all below */
    int64_t gradients;
    int64_t moments;
    int64_t activations;     /* with workspace */
    int64_t host_bytes;      /* everything in host memory (on the CPU: the sum) */
    int64_t device_bytes;
    int64_t disk_bytes;      /* checkpoints kept, and the next one before the oldest goes; 0 without a directory */
    double flops_per_token;  /* forward and backward, of active parameters, causal attention counted once */
    double flops;            /* of the whole run */
    double seconds;          /* of the whole run at the device's speed; 0 when that is not known */
    int32_t policy;          /* FULL or LEAN: what AUTO comes to */
    int32_t reserved;
} moed_estimate;

/* What moed_trainer_create and a run will take on device d (nullable: the CPU, and no time). Needs no device: d may be filled in
 * by hand (struct_size, backend, memory, flops, dtype; the rest 0). Of memory it takes next to nothing. host_bytes is everything
 * in host memory: on the CPU the model's own weights, gradients (one block, and log2(micro_batches) more), moments, activations
 * with workspace, rows, and what passes through when saving. device_bytes is what counts against a device_limit: what the driver
 * takes is not in it, and what operations keep only where the backend that d names is found here and tells. No corpus is given:
 * the trainer takes 32 bytes more for each document of its own, and as many for each of one that it evaluates.
 * Returns MOED_E_RANGE, MOED_E_ARGUMENT, MOED_E_STRUCT, MOED_E_UNSUPPORTED (a layout by hand). Since: 0.1. */
MOED_API moed_status moed_train_estimate(const moed_layout *l, const moed_device_info *d, const moed_train_options *o,
                                         moed_estimate *out);

/* A stretch of work on a kind of device, to be priced. */
typedef struct moed_phase {
    uint32_t struct_size;
    uint32_t flags;
    const char *name;
    double flops;            /* of each device's share, the largest */
    double device_flops;     /* effective FLOP/s of the priced device */
    double price;            /* per device-hour */
    int32_t devices;         /* side by side, all paid until the last is done (the paper's way) */
    int32_t reserved;
    double seconds;          /* wall-clock measured here, 0 = not measured */
} moed_phase;

typedef struct moed_cost {
    uint32_t struct_size;
    uint32_t flags;
    double money;            /* price * device_hours */
    double flops;            /* arithmetic of all devices */
    double hours;            /* wall-clock on the priced devices, phases one after another */
    double device_hours;
    double seconds;          /* measured here */
} moed_cost;

/* Sums phases (count), one after another. flops counts every device's share as the largest. Returns MOED_E_RANGE, MOED_E_STRUCT
 * naming the phase. Since: 0.1. Source: MoE-DisCo, cost = devices * longest submodel * price. */
MOED_API moed_status moed_train_cost(const moed_phase *phases, size_t count, moed_cost *out);

typedef struct moed_trainer_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t step;
    int64_t steps;
    int64_t tokens;
    int64_t trained;         /* numbers that have optimizer state */
    int64_t frozen;
    double best_held_out;    /* 0 = none measured */
    char resumed_from[256];  /* checkpoint directory, "" = fresh */
    int32_t policy;          /* FULL or LEAN: what AUTO came to */
    int32_t reserved;
} moed_trainer_info;

/* Trains m in place; m and d are kept alive and must not be used elsewhere meanwhile. m is of context c; d and held_out
 * may be of another (they are only read, and what they hold counts there). comm NULL. Allocates all it will need but
 * what evaluations and checkpoints hold for a while. Writes nothing yet. A parameter that does not train keeps its
 * bits, has no moments and no part in the gradient's norm; it still takes memory for a gradient where another of its
 * group trains, since the group's is computed as one (q, k and v of a layer; their biases; its experts' gates and ups;
 * its experts' downs; the shared expert's gate and up). Borrowed arrays must not overlap where they are trained
 * (MOED_E_ARGUMENT naming both).
 * Returns MOED_E_LIMIT with the figures, MOED_E_STATE for a streamed model, MOED_E_RANGE, MOED_E_MISMATCH (the corpus
 * has tokens outside the model's vocabulary, or m is of another context), MOED_E_UNSUPPORTED where the context's backend
 * lacks an optional operation that the model or a balance_rate needs. Since: 0.1. */
MOED_API moed_status moed_trainer_create(moed_trainer **out, moed_context *c, moed_model *m, const moed_corpus *d,
                                         moed_comm *comm, const moed_train_options *o);
MOED_API void moed_trainer_destroy(moed_trainer *t);
MOED_API moed_status moed_trainer_get_info(const moed_trainer *t, moed_trainer_info *out);
/* steps more steps (0 = to the end of options.steps). last nullable. After the last of options.steps none is left: what was due
 * there and is not done yet is made up for, last gets step and tokens and is 0 otherwise, and the call returns MOED_OK.
 * Evaluates held_out at the end, and saves there when checkpoint_every is set. A loss or gradient that is NaN or infinite:
 * MOED_E_NUMERIC naming the step; nothing of that step is applied. Whatever stops a run, the trainer and (unless
 * options.store_late) the model's own tensors stay at its last whole step.
 * MOED_E_EXISTS when options.directory holds another run's metrics or checkpoints and moed_trainer_resume was not called,
 * MOED_E_STATE when another trainer is writing there. Cancel: within an operation, on the CPU within a few hundredths of a
 * second; an update or a checkpoint that has begun is finished. A device gets the work of a whole step at once: there a step
 * that was handed over is finished too. Since: 0.1. */
MOED_API moed_status moed_trainer_run(moed_trainer *t, int64_t steps, moed_report *last, const moed_cancel *cancel);
/* For foreign loops: adds the gradient of the batch's mean loss (b NULL: the corpus' next rows); several calls before
 * one update average. b has at most options.rows rows of options.length tokens. When a call does not succeed for what
 * it computed, the gradients of those before it are dropped too. out nullable. Since: 0.1. */
MOED_API moed_status moed_trainer_forward_backward(moed_trainer *t, const moed_batch *b, moed_report *out);
/* The sum over calls since the last update of the gradient of parameter `param` (of the context's dtype), host memory, borrowed
 * until the next call; data NULL when frozen. Since: 0.1. */
MOED_API moed_status moed_trainer_gradient(moed_trainer *t, size_t param, moed_tensor *out);
/* Clip, AdamW, schedule's rate times factor (together 100 at most), then gradients are zero again; a line goes to the
 * metrics. Does not evaluate or save by itself. MOED_E_STATE when no gradient waits, MOED_E_NUMERIC as in
 * moed_trainer_run; MOED_E_IO or MOED_E_SPACE when the line could not be written: the step is done nevertheless. out
 * nullable. Since: 0.1. */
MOED_API moed_status moed_trainer_update(moed_trainer *t, double factor, moed_report *out);
/* The trainer goes on with the model that moed_expansion_build makes of its weights, to the last bit, with the same usage and
 * options, which takes the place of the one it was made with (that one keeps the last step's numbers). The schedule and the data
 * go on; carry: 1 = so do the optimizer's moments, those of new experts 0; 0 = all moments are 0, as in EMO. A checkpoint made
 * afterwards is resumed by a trainer made with a model of so many experts. Takes host memory for the weights (and moments)
 * twice. What the limits do not allow is refused with MOED_E_LIMIT, and the trainer goes on as it was; where memory runs out
 * nevertheless it is at its end (MOED_E_STATE from then on): resume from a checkpoint. Threads: as moed_trainer_run. Since: 0.1.
 * Source: EMO. */
MOED_API moed_status moed_trainer_expand(moed_trainer *t, const double *usage, const moed_expansion_options *o, int32_t carry);
/* The model that is trained: the one of moed_trainer_create, or what the last moed_trainer_expand made. Borrowed. Since: 0.1. */
MOED_API const moed_model *moed_trainer_model(const moed_trainer *t);
/* How often each expert was chosen in the last step that was applied, over all its rows: loads [out] (layers, experts), capacity
 * of them, zeros in layers without experts. MOED_E_RANGE. Since: 0.1. */
MOED_API moed_status moed_trainer_loads(const moed_trainer *t, int64_t *loads, size_t capacity);
/* Held-out loss, tokens at most (0 = all): every token of d scored once, in order, packed in rows. Since: 0.1. */
MOED_API moed_status moed_trainer_evaluate(moed_trainer *t, const moed_corpus *d, int64_t tokens, moed_report *out,
                                           const moed_cancel *cancel);
/* Writes DIRECTORY/checkpoints/step-N (options.directory): model/, optimizer.safetensors, state.json, and manifest.json
 * with sizes and checksums; a fresh directory, synced, then renamed. Then the oldest beyond options.keep go. The same
 * step twice is written once. Since: 0.1. */
MOED_API moed_status moed_trainer_save(moed_trainer *t);
/* Goes on from the newest checkpoint in options.directory whose manifest is valid (others are passed over, with a line
 * in the log); metrics are cut back to it. For a trainer at step 0. MOED_E_NOT_FOUND when there is none: the trainer is
 * unchanged, and a run may start afresh in the directory. MOED_E_CHECKSUM when there are some and none is whole:
 * nothing is cut. MOED_E_MISMATCH naming what differs: layout, corpus, or any option but directory, those of checkpoints,
 * evaluation and progress, graph and store_late (steps count: they are the schedule's length). A trainer with MOED_POLICY_AUTO
 * takes over the checkpoint's policy, if that fits. Since: 0.1. */
MOED_API moed_status moed_trainer_resume(moed_trainer *t);

#ifdef __cplusplus
}
#endif
#endif
