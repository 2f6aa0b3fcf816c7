/* tests/law_runs.h - runs that no one trained: drawn from a law, with noise on the logarithm of the loss. */
#ifndef MOEDI_TEST_LAW_RUNS_H
#define MOEDI_TEST_LAW_RUNS_H

#include <math.h>

#include "moedisco.h"
#include "util/random.h"

/* N log-uniform in 3e7 .. 3e9, tokens per parameter log-uniform in 2 .. 200, E one of `kinds` powers of two from 1 on. */
static inline moed_status law_runs(moed_run_point *out, size_t count, const moed_law *truth, int kinds, double noise,
                                   uint64_t seed)
{
    for (size_t i = 0; i < count; i++) {
        moed_run_point *r = &out[i];
        r->active = 3e7 * pow(100, moedi_random_uniform(seed, 100, 0, i));
        r->tokens = r->active * 2 * pow(100, moedi_random_uniform(seed, 100, 1, i));
        r->experts = 1 << (int)(kinds * moedi_random_uniform(seed, 100, 2, i));
        const moed_status status = moed_law_predict(truth, r->active, r->experts, r->tokens, &r->loss);
        if (status) return status;
        r->loss *= exp(noise * moedi_random_normal(seed, 100, 3, i));
    }
    return MOED_OK;
}

#endif
