/* growing.h - EMO's schedule as flags: a list of pool sizes and a rule, or a table. */
#ifndef GROWING_H
#define GROWING_H

#include "size.h"

enum { STAGES_MOST = 64 };

typedef struct growing {
    const char *grow;            /* "8,16,32", or "8:1e9,16:5e8": experts, and tokens where there is no rule */
    const char *law;             /* of the law rule */
    int32_t rule;                /* GROWING_* */
    double all_tokens, active;   /* 0 = the layout's */
    moed_growth_options options;
} growing;

enum { GROWING_LAW, GROWING_POWER };

void growing_flags(flags *f, growing *g);
/* The same for a run: its tokens are those of its steps. */
void growing_run_flags(flags *f, growing *g);
/* Says which of the flags have no part in the schedule. */
void growing_tell_unheeded(const flags *f, const growing *g);
/* Whether --grow says how many tokens each stage has, and the steps of them all. */
int growing_has_tokens(const growing *g);
int64_t growing_steps(const growing *g, int64_t step_tokens);
/* The pool sizes that --grow names (STAGES_MOST room). An exit code. */
int growing_experts(const growing *g, int32_t *experts, size_t *count);
/* The schedule. step_tokens: of an optimizer step; active: parameters of the model in use; top_k: experts that a token visits. */
int growing_make(moed_growth **out, moed_context *c, const growing *g, int64_t step_tokens, int64_t active, int64_t top_k);
/* Its stages as --grow would name them, "8:1000,16:500"; to be freed. */
char *growing_stages(const moed_growth *g);

#endif
