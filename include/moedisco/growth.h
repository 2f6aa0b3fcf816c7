/* growth.h - EMO's schedule (arXiv 2605.13247): how many experts the pool has at which token, and the learning rate there.
 * Arithmetic alone: a trainer asks before each step what is due, does it, and says so:
 *
 *     for (;;) {
 *         moed_growth_at(g, tokens, &p);
 *         if (p.due & MOED_GROWTH_EXPAND) { ... from p.experts_now to p.experts ...; moed_growth_enter(g, p.stage, tokens); }
 *         if (p.due & MOED_GROWTH_END) break;
 *         ... a step with p.learning_rate ...; tokens += step_tokens;
 *         ... in a checkpoint: weights, tokens, moed_growth_get_state ...
 *     } */
#ifndef MOEDISCO_GROWTH_H
#define MOEDISCO_GROWTH_H

#include "law.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_growth moed_growth;

enum { MOED_DECAY_NONE = 0, MOED_DECAY_LINEAR = 1, MOED_DECAY_COSINE = 2 };

/* A stretch of training with one number of experts. */
typedef struct moed_stage {
    uint32_t struct_size;
    uint32_t flags;
    int32_t experts;      /* in the pool, never fewer than in the stage before */
    int32_t top_k;        /* experts that a token visits; 0 = as before */
    int64_t tokens;       /* of this stage */
    double learning_rate; /* peak */
    int64_t warmup;       /* tokens at its beginning, linear from 0 to the peak */
    int64_t decay;        /* tokens at its end, from the peak to final_rate of it */
    double final_rate;
    int32_t decay_shape;  /* MOED_DECAY_* */
    int32_t reserved;     /* 0 */
    int64_t start;        /* out: tokens before it */
} moed_stage;

typedef struct moed_growth_options {
    uint32_t struct_size;
    uint32_t flags;
    int64_t step_tokens;  /* of an optimizer step: rules end stages with a whole step, and a step has the rate of its end */
    /* for the rules alone; an explicit table says it all itself */
    int64_t tokens;       /* of all stages; rounded up to whole steps */
    double active;        /* law rule: active parameters, embeddings included */
    double exponent;      /* power rule: stage s ends at tokens * (E_s / E_last)^exponent */
    double learning_rate; /* peak of the first stage */
    double expert_rate;   /* peak of stage s is learning_rate * (E_s / E_1)^expert_rate; 0: EMO's, -0.25: Ludziejewski's */
    int64_t warmup;       /* steps at the beginning of every stage; a shorter stage has no more than its own */
    double decay;         /* share of all steps, at the end of the last stage, or all of that where it is shorter */
    double final_rate;    /* there, of the peak */
    int32_t decay_shape;  /* MOED_DECAY_* */
    int32_t top_k;        /* of every stage; 0 = the model's */
} moed_growth_options;

typedef struct moed_growth_info {
    uint32_t struct_size;
    uint32_t flags;
    int32_t stages;
    int32_t entered;      /* the stage that the trainer is in, as moed_growth_enter said; 0 at first */
    int64_t entered_at;   /* at that many tokens */
    int64_t tokens;       /* of all stages */
    int64_t step_tokens;
} moed_growth_info;

enum { /* moed_growth_point.due */
    MOED_GROWTH_EXPAND = 1, /* before the next step: from experts_now to experts (and top_k), then moed_growth_enter(stage) */
    MOED_GROWTH_END = 2     /* all tokens are done */
};

/* Where a run stands that has trained on `tokens`. */
typedef struct moed_growth_point {
    uint32_t struct_size;
    uint32_t flags;
    int32_t stage;         /* of the next step */
    int32_t experts;       /* of that stage */
    int32_t top_k;         /* of that stage; 0 = the model's */
    int32_t due;           /* bits MOED_GROWTH_* */
    int32_t experts_now;   /* of the stage that was entered */
    int32_t reserved;
    int64_t start, end;    /* of the stage, in tokens */
    double learning_rate;  /* of the next step */
} moed_growth_point;

/* An explicit table (count). o nullable: step_tokens alone is used. Returns MOED_E_RANGE naming stage and field, MOED_E_STRUCT.
 * Ownership: the caller's. Threads: calls that take it const may run side by side. Since: 0.1. */
MOED_API moed_status moed_growth_create(moed_growth **out, moed_context *c, const moed_stage *stages, size_t count,
                                        const moed_growth_options *o);
/* The law rule: stage s ends at tokens * D*(E_s) / D*(E_last), with D* of moed_law_optimal_tokens at options.active, of any law:
 * published, fitted, or the caller's function. experts (count), rising. MOED_E_RANGE where a stage would have less than one step
 * or D* does not rise with the experts. Source: inferred from EMO's published shares (docs/methods.md). Since: 0.1. */
MOED_API moed_status moed_growth_from_law(moed_growth **out, moed_context *c, const moed_law *law, const int32_t *experts,
                                          size_t count, const moed_growth_options *o);
/* The power rule. Since: 0.1. */
MOED_API moed_status moed_growth_from_power(moed_growth **out, moed_context *c, const int32_t *experts, size_t count,
                                            const moed_growth_options *o);
/* Stages of so many tokens (count), each rounded to whole steps, with rates as the rules set them; options.tokens does not count.
 * MOED_E_RANGE naming stage and field. Since: 0.1. */
MOED_API moed_status moed_growth_from_tokens(moed_growth **out, moed_context *c, const int32_t *experts, const int64_t *tokens,
                                             size_t count, const moed_growth_options *o);
/* From what moed_growth_get_state gave: the table, and where its trainer stood. MOED_E_FORMAT, MOED_E_CHECKSUM,
 * MOED_E_RANGE or MOED_E_MISMATCH naming stage and field. Since: 0.1. */
MOED_API moed_status moed_growth_from_state(moed_growth **out, moed_context *c, const void *state, size_t size);
MOED_API void moed_growth_destroy(moed_growth *g);
MOED_API moed_status moed_growth_get_info(const moed_growth *g, moed_growth_info *out);
/* MOED_E_RANGE past the last. Since: 0.1. */
MOED_API moed_status moed_growth_stage(const moed_growth *g, size_t index, moed_stage *out);

/* What the step that begins after `tokens` is to be. It depends on the table, on tokens, and (due alone) on the stage entered: a
 * run that goes on from any checkpoint finds the schedule of one that was never stopped. Between stages the later one counts; a
 * step that crosses the end of a stage is wholly that stage's. Past the end: the last stage and its last rate. Since: 0.1. */
MOED_API moed_status moed_growth_at(const moed_growth *g, int64_t tokens, moed_growth_point *out);
/* The trainer has made the model of stage `stage` and trained on `tokens`. Stages may be left out, not gone back to:
 * MOED_E_STATE. Since: 0.1. */
MOED_API moed_status moed_growth_enter(moed_growth *g, int32_t stage, int64_t tokens);
/* The table and the stage entered, to be kept in a checkpoint: a few hundred bytes, the same on every machine, with version and
 * checksum. *size: bytes it takes; state NULL with capacity 0 asks for it. MOED_E_RANGE when capacity is less. Since: 0.1. */
MOED_API moed_status moed_growth_get_state(const moed_growth *g, void *state, size_t capacity, size_t *size);
/* Where that trainer stood. MOED_E_MISMATCH naming the stage and field when it is the state of another table; nothing changes
 * then, nor on MOED_E_FORMAT and MOED_E_CHECKSUM. Since: 0.1. */
MOED_API moed_status moed_growth_set_state(moed_growth *g, const void *state, size_t size);

/* A step time that was measured or is given: seconds per token with that many experts in the pool, on the devices and with the
 * batch that are meant. */
typedef struct moed_step_time {
    double experts;
    double seconds;
} moed_step_time;

enum { /* where a step time comes from */
    MOED_TIME_GIVEN = 0,
    MOED_TIME_BETWEEN = 1, /* on the line between its neighbours in E: a part that does not depend on E, and one in proportion
                              to it (weights that the optimizer goes through, small products) */
    MOED_TIME_BEYOND = 2,  /* on the line of the two nearest, continued; never below 0 */
    MOED_TIME_SINGLE = 3   /* one point alone: taken as the same for every E */
};

/* Seconds per token at `experts`, from points (count) of different E in any order. how nullable. Returns MOED_E_RANGE,
 * MOED_E_ARGUMENT. Threads: any. Since: 0.1. */
MOED_API moed_status moed_step_time_at(const moed_step_time *points, size_t count, double experts, double *seconds, int32_t *how);

#ifdef __cplusplus
}
#endif
#endif
