/* law.h - scaling laws: the loss that a model reaches from its active parameters, its experts and its tokens; published ones,
 * coefficients of one's own, and laws fitted to runs. */
#ifndef MOEDISCO_LAW_H
#define MOEDISCO_LAW_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_law moed_law;

/* Published coefficients. Each is a row of data: form, coefficients, source, range. */
enum {
    MOED_LAW_CUSTOM = 0,            /* the options' form and coefficients */
    MOED_LAW_LUDZIEJEWSKI_2025 = 1, /* arXiv 2502.05172, form JOINT: what EMO builds on */
    MOED_LAW_ABNAR_2025 = 2,        /* arXiv 2501.12370, form SPARSITY */
    MOED_LAW_KRAJEWSKI_2024 = 3     /* arXiv 2402.07871, form GRANULARITY; of 64 times as many experts as a token visits alone */
};

/* With N active parameters (embeddings included), D tokens, E experts in the pool, k of them visited by a token, X = E / k.
 * Coefficients stand in the order given here; exponents with the signs shown.
 *   JOINT        a, alpha, delta, gamma, b, beta, omega, zeta, e_start, e_max, c:
 *                L = a Y^delta N^(alpha + gamma ln Y) + b Y^omega D^(beta + zeta ln Y) + c,
 *                1/Y = 1 / (X - 1 + 1 / (1/e_start - 1/e_max)) + 1/e_max
 *   SPARSITY     a, alpha, b, beta, c, lambda, d, delta, gamma, e; R = 1/X, T all parameters:
 *                L = a T^-alpha + b D^-beta + c R^-lambda + d R^-delta T^-gamma + e
 *   GRANULARITY  a, alpha, b, beta, g, gamma, c; G = k, experts of 1/G of the size:
 *                L = (g G^-gamma + a) N^-alpha + b D^-beta + c
 *   CALLBACK     the options' loss function */
enum { MOED_FORM_JOINT = 0, MOED_FORM_SPARSITY = 1, MOED_FORM_GRANULARITY = 2, MOED_FORM_CALLBACK = 3 };

/* A law of the caller's own: *loss of a model of `active` parameters and `experts` in the pool after `tokens`. It falls with
 * active and with tokens. Called on the thread that called; non-zero stops with MOED_E_CALLBACK. */
typedef int32_t (*moed_loss_fn)(double active, double experts, double tokens, double *loss, void *user);

typedef struct moed_law_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t preset;             /* MOED_LAW_*; where it is not CUSTOM, form, coefficients, range and source are its own */
    int32_t form;               /* MOED_FORM_* */
    int32_t top_k;              /* k: experts that a token visits; the law sees E / k */
    int32_t coefficient_count;  /* as many as the form has */
    const double *coefficients; /* (coefficient_count); copied */
    double routed_share;        /* SPARSITY: of the active parameters, those in routed experts: T = N (1 - share + share X) */
    double active_min, active_max;   /* where the law holds; 0 = not known. Calls outside it are told to the context's log */
    double experts_min, experts_max; /* of E / k */
    double tokens_min, tokens_max;
    const char *source;         /* kept for the record; NULL = none */
    moed_loss_fn loss;          /* CALLBACK */
    void *loss_user;
} moed_law_options;

/* One trained model. */
typedef struct moed_run_point {
    double active;  /* N */
    double experts; /* E */
    double tokens;  /* D */
    double loss;    /* above 0 */
} moed_run_point;

/* How runs are fitted: least squares of log L with Huber's function, by L-BFGS, from a grid of starts, coarse to fine. Source:
 * Ludziejewski et al. 2025 (arXiv 2502.05172); docs/methods.md says what it leaves open. */
typedef struct moed_fit_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t top_k;          /* of all runs */
    int32_t fit_saturation; /* 1: e_start and e_max are fitted too, where runs have four different E or more; 0: they stay
                               published */
    int32_t starts;         /* of the grid's 19,683, the best that L-BFGS goes on from */
    int32_t bootstrap;      /* resampled fits for intervals; 0 = none */
    double held_out;        /* share of the runs that the fit does not see */
    double huber;           /* |residual of log L| up to which it counts by its square */
    double low_loss;        /* weight of a run is (lowest loss / its loss)^low_loss; 0 = all alike */
    double confidence;      /* of the intervals */
    uint64_t seed;          /* of the held-out runs and of resampling */
} moed_fit_options;

typedef struct moed_law_info {
    uint32_t struct_size;
    uint32_t flags;
    int32_t preset;
    int32_t form;
    int32_t top_k;
    int32_t coefficients;
    double routed_share;
    double active_min, active_max; /* where the law holds; 0 = not known */
    double experts_min, experts_max;
    double tokens_min, tokens_max;
    /* of a fit, else 0 */
    int64_t trained_runs;
    int64_t held_out_runs;
    double trained_rmse;           /* root mean squared error of log L */
    double held_out_rmse;
    int32_t bootstrap;             /* resampled fits that the intervals are of */
    int32_t reserved;
    char source[192];
} moed_law_info;

typedef struct moed_coefficient {
    uint32_t struct_size;
    uint32_t flags;
    const char *name;  /* "alpha"; static */
    double value;
    double low, high;  /* interval of a fit with bootstrap; else both the value */
} moed_coefficient;

/* L = m N^-p + m2 N^-p2 + n D^-v + c at one number of experts. */
typedef struct moed_law_terms {
    uint32_t struct_size;
    uint32_t flags;
    double m, p;   /* mu = -p */
    double m2, p2; /* SPARSITY: its second term of N; else m2 = 0 */
    double n, v;   /* nu = -v */
    double c;
} moed_law_terms;

/* A published law, coefficients of the caller's, or a function of the caller's. o NULL: Ludziejewski 2025.
 * Returns MOED_E_RANGE, MOED_E_ARGUMENT (how many coefficients the form has). Ownership: the caller's. Threads: calls that take
 * it const may run side by side, but for a CALLBACK law. Since: 0.1. */
MOED_API moed_status moed_law_create(moed_law **out, moed_context *c, const moed_law_options *o);
/* A JOINT law fitted to runs (count). The same runs, options and library give the same law for any number of threads. Where all
 * runs have one E, the law is of that E alone, and the log says so. cancel nullable: within an iteration, milliseconds where
 * there are some thousand runs. Works on the context's threads; L-BFGS itself takes some kilobytes a thread outside the context's
 * allocator. Returns MOED_E_ARGUMENT (too few runs, all of one size or length, or of no law), MOED_E_RANGE naming the run,
 * MOED_E_NUMERIC, MOED_E_CANCELLED. Since: 0.1. */
MOED_API moed_status moed_law_fit(moed_law **out, moed_context *c, const moed_run_point *runs, size_t count,
                                  const moed_fit_options *o, const moed_cancel *cancel);
MOED_API void moed_law_destroy(moed_law *l);
MOED_API moed_status moed_law_get_info(const moed_law *l, moed_law_info *out);
/* Coefficient `index` in the form's order. MOED_E_RANGE past the last. Since: 0.1. */
MOED_API moed_status moed_law_coefficient(const moed_law *l, size_t index, moed_coefficient *out);

/* The loss, in nats per token, after `tokens`. All three above 0, experts at least top_k. Outside the law's range the log tells
 * it once for each of the three. Returns MOED_E_RANGE. Since: 0.1. */
MOED_API moed_status moed_law_predict(const moed_law *l, double active, double experts, double tokens, double *loss);
/* The law at one number of experts. MOED_E_UNSUPPORTED for a CALLBACK law. Since: 0.1. */
MOED_API moed_status moed_law_get_terms(const moed_law *l, double experts, moed_law_terms *out);
/* Active parameters and tokens of the least loss for `flops` = 6 N D. MOED_E_RANGE where there is none between 1 and 1e30.
 * Source: arXiv 2502.05172; the closed form for one term of N is N = G (F/6)^(v/(p+v)), G = (p m / (v n))^(1/(p+v)). Since: 0.1.
 */
MOED_API moed_status moed_law_optimum(const moed_law *l, double flops, double experts, double *active, double *tokens);
/* D*(E): the tokens for which `active` parameters are the compute-optimal size, [v n N^p / (p m)]^(1/v) for one term of N. Since:
 * 0.1. */
MOED_API moed_status moed_law_optimal_tokens(const moed_law *l, double active, double experts, double *tokens);

#ifdef __cplusplus
}
#endif
#endif
