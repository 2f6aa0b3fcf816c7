/* growth/law_fit.c - fits the joint law to runs. Source: Ludziejewski et al. 2025 (arXiv 2502.05172), after Hoffmann et al. 2022:
 * L-BFGS on Huber's function of the residuals of log L, the sum of the law's three terms taken as log-sum-exp, from a grid of
 * starts. Coarse to fine: the grid is only looked at, its best starts run a few iterations, the best of these run to the end.
 *
 * ln N, ln D and ln Y are centred and scaled, which turns the law's four coefficients of a term into four others, linearly:
 * without it they are so nearly dependent that L-BFGS takes thousands of iterations. */
#include <fenv.h>
#include <lbfgs.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"
#include "law.h"
#include "util/random.h"

/* Variables of the fit: four of each term (the term at the middle, and its slopes by e, by x and by e x), ln c, and two for
 * e_start, e_max. */
enum { OF_N = 0, OF_D = 4, OF_C = 8, OF_START = 9, OF_MAX = 10, VARIABLES = 11, ROOM = 16 };
/* liblbfgs, where it is built for vectors, works on whole groups of eight, aligned. */
typedef struct point {
    _Alignas(64) double u[ROOM];
} point;

enum { GRID_DIGITS = 9, GRID = 19683 }; /* three values of each of nine coefficients */
enum { COARSE_RUNS = 256 };             /* the grid is looked at with that many at most */
enum { FIRST_ITERATIONS = 60, LAST_STARTS = 8, LAST_ITERATIONS = 3000 };
/* Runs hardly tell e_start and e_max from the slopes by E: as much as one run of usual noise could say draws them to the
 * published ones, or they, and the slopes with them, would wander over many powers of ten. */
static const double PULL = 0.05;
static const double UNIT = 0.01; /* residuals are measured in hundredths, so that the gradient's size says when to stop */

typedef struct fit {
    const moed_context *context;
    const moed_cancel *cancel;
    moed_fit_options options;
    int64_t runs, trained;        /* the first `trained` are fitted, the others held out */
    int64_t groups;               /* different E */
    double *x, *y, *log_loss;     /* (runs): ln N and ln D, centred and scaled; ln L */
    double *weight;               /* (runs) */
    int64_t *group;               /* (runs) */
    double *expansion;            /* (groups) E / k, rising */
    double n, n_scale, d, d_scale, e, e_scale; /* middles and scales of ln N, ln D, ln Y */
    int by_experts, by_saturation; /* whether slopes by e, and e_start and e_max, are fitted */
} fit;

/* ---- the law in the fit's variables ---- */

/* ln Y of each group, and its slopes by the two variables of saturation: e_start = exp(s), e_max = e_start (1 + exp(t)). room:
 * (groups, 3). */
static void effective_experts(const fit *f, const double *u, double *room)
{
    const double s = fmin(fmax(u[OF_START], -20), 20), t = fmin(fmax(u[OF_MAX], -30), 30), start = exp(s), more = exp(t);
    const double inner = start * (1 + 1 / more), outer = 1 / (start * (1 + more)); /* 1/(1/e_start - 1/e_max); 1/e_max */
    for (int64_t g = 0; g < f->groups; g++) {
        const double a = f->expansion[g] - 1 + inner, inverse = 1 / a + outer;
        room[3 * g] = -log(inverse);
        room[3 * g + 1] = (inner / (a * a) + outer) / inverse;
        room[3 * g + 2] = (outer * more / (1 + more) - start / more / (a * a)) / inverse;
    }
}

typedef struct sight {
    double logs[3], share[3]; /* of the three terms: ln, and its part of the loss */
    double e, log_loss;
} sight;

static sight look(const fit *f, const double *u, const double *room, int64_t i)
{
    sight s;
    const double x = f->x[i], y = f->y[i], e = (room[3 * f->group[i]] - f->e) / f->e_scale;
    double sum = 0;
    s.e = e;
    s.logs[0] = u[OF_N] + u[OF_N + 1] * e + (u[OF_N + 2] + u[OF_N + 3] * e) * x;
    s.logs[1] = u[OF_D] + u[OF_D + 1] * e + (u[OF_D + 2] + u[OF_D + 3] * e) * y;
    s.logs[2] = u[OF_C];
    const double most = fmax(fmax(s.logs[0], s.logs[1]), s.logs[2]);
    for (int k = 0; k < 3; k++) sum += s.share[k] = exp(fmax(s.logs[k] - most, -700));
    for (int k = 0; k < 3; k++) s.share[k] /= sum;
    s.log_loss = most + log(sum);
    return s;
}

/* Huber's function of a residual in UNITs, and its slope. */
static double huber(const fit *f, double residual, double *slope)
{
    const double r = residual / UNIT, limit = f->options.huber / UNIT;
    if (fabs(r) <= limit) return *slope = r, 0.5 * r * r;
    *slope = r < 0 ? -limit : limit;
    return limit * (fabs(r) - 0.5 * limit);
}

typedef struct job {
    const fit *fit;
    const double *weight; /* (trained) */
    double *room;         /* (groups, 3) */
} job;

static void add_gradient(const fit *f, const double *u, const double *room, int64_t i, const sight *s, double slope, double *g)
{
    const double x = f->x[i], y = f->y[i], of_n = slope * s->share[0], of_d = slope * s->share[1];
    g[OF_N] += of_n, g[OF_N + 2] += of_n * x;
    g[OF_D] += of_d, g[OF_D + 2] += of_d * y;
    g[OF_C] += slope * s->share[2];
    if (f->by_experts) {
        g[OF_N + 1] += of_n * s->e, g[OF_N + 3] += of_n * s->e * x;
        g[OF_D + 1] += of_d * s->e, g[OF_D + 3] += of_d * s->e * y;
    }
    if (f->by_saturation) {
        const double by_e = (of_n * (u[OF_N + 1] + u[OF_N + 3] * x) + of_d * (u[OF_D + 1] + u[OF_D + 3] * y)) / f->e_scale;
        g[OF_START] += by_e * room[3 * f->group[i] + 1];
        g[OF_MAX] += by_e * room[3 * f->group[i] + 2];
    }
}

static double published_start(void) { return log(MOEDI_LAW_E_START); }
static double published_max(void) { return log(MOEDI_LAW_E_MAX / MOEDI_LAW_E_START - 1); }

static double pull_to_published(const fit *f, const double *u, double *g)
{
    const double pull = PULL / (double)f->trained, s = u[OF_START] - published_start(), t = u[OF_MAX] - published_max();
    g[OF_START] += 2 * pull * s;
    g[OF_MAX] += 2 * pull * t;
    return pull * (s * s + t * t);
}

/* lbfgs_evaluate_t */
static double evaluate(void *instance, const double *u, double *g, const int count, const double step)
{
    const job *j = instance;
    const fit *f = j->fit;
    double sum = 0, weights = 0;
    (void)step;
    memset(g, 0, (size_t)count * sizeof *g);
    effective_experts(f, u, j->room);
    for (int64_t i = 0; i < f->trained; i++) {
        if (j->weight[i] <= 0) continue;
        const sight s = look(f, u, j->room, i);
        double slope;
        sum += j->weight[i] * huber(f, s.log_loss - f->log_loss[i], &slope);
        weights += j->weight[i];
        add_gradient(f, u, j->room, i, &s, j->weight[i] * slope / UNIT, g);
    }
    for (int k = 0; k < count; k++) g[k] /= weights;
    return sum / weights + (f->by_saturation ? pull_to_published(f, u, g) : 0);
}

/* lbfgs_progress_t */
static int progress(void *instance, const double *u, const double *g, const double value, const double length, const double slope,
                    const double step, int count, int iteration, int looks)
{
    (void)u, (void)g, (void)value, (void)length, (void)slope, (void)step, (void)count, (void)iteration, (void)looks;
    return moedi_cancel_seen(((const job *)instance)->fit->cancel) ? LBFGSERR_CANCELED : 0;
}

/* From *at to the nearest minimum. Divisions by what may be 0 are liblbfgs' own: they raise nothing in a host that traps them. */
static moed_status minimise(job *j, int iterations, point *at, double *value)
{
    lbfgs_parameter_t how;
    fenv_t before;
    lbfgs_parameter_init(&how);
    how.m = 12;
    how.epsilon = 1e-7;
    how.max_iterations = iterations;
    feholdexcept(&before);
    const int code = lbfgs(VARIABLES, at->u, value, evaluate, progress, j, &how);
    fesetenv(&before);
    MOEDI_TRY(moedi_cancel_check(j->fit->cancel));
    if (code == LBFGSERR_OUTOFMEMORY) return moedi_fail(MOED_E_MEMORY, "no memory for L-BFGS over %d variables", VARIABLES);
    for (int k = 0; k < VARIABLES; k++)
        if (!isfinite(at->u[k])) return moedi_fail(MOED_E_NUMERIC, "the fit left the range of numbers");
    return MOED_OK; /* any other code: it stays at the best point it found */
}

/* ---- from the law's coefficients to the fit's variables, and back ---- */

/* ln term = c[0] + c[1] e' + (c[2] + c[3] e') x' in plain logarithms; the same in e = (e' - middle) / scale and x likewise. */
static void centre(double *u, const double *c, double x, double x_scale, double e, double e_scale)
{
    u[0] = c[0] + c[1] * e + c[2] * x + c[3] * e * x;
    u[1] = (c[1] + c[3] * x) * e_scale;
    u[2] = (c[2] + c[3] * e) * x_scale;
    u[3] = c[3] * e_scale * x_scale;
}

static void uncentre(double *c, const double *u, double x, double x_scale, double e, double e_scale)
{
    c[3] = u[3] / (e_scale * x_scale);
    c[1] = u[1] / e_scale - c[3] * x;
    c[2] = u[2] / x_scale - c[3] * e;
    c[0] = u[0] - c[1] * e - c[2] * x - c[3] * e * x;
}

/* The published grid: a, b, c, the exponents, and the four slopes by experts. */
static void grid_start(const fit *f, int64_t index, point *out)
{
    static const double EXPONENT[] = {-0.05, -0.25, -0.5}, FACTOR[] = {30, 100, 300}, REST[] = {0.5, 1, 2},
                        SLOPE[] = {-0.5, 0, 0.5};
    int digit[GRID_DIGITS];
    for (int k = 0; k < GRID_DIGITS; k++, index /= 3) digit[k] = (int)(index % 3);
    const double slopes = f->by_experts ? 1 : 0;
    const double n[] = {log(FACTOR[digit[0]]), slopes * SLOPE[digit[1]], EXPONENT[digit[2]], slopes * SLOPE[digit[3]]};
    const double d[] = {log(FACTOR[digit[4]]), slopes * SLOPE[digit[5]], EXPONENT[digit[6]], slopes * SLOPE[digit[7]]};
    memset(out, 0, sizeof *out);
    centre(out->u + OF_N, n, f->n, f->n_scale, f->e, f->e_scale);
    centre(out->u + OF_D, d, f->d, f->d_scale, f->e, f->e_scale);
    out->u[OF_C] = log(REST[digit[8]]);
    out->u[OF_START] = published_start();
    out->u[OF_MAX] = published_max();
}

/* In the order of MOED_FORM_JOINT. */
static void coefficients_of(const fit *f, const point *at, double *out)
{
    double n[4], d[4];
    const double s = fmin(fmax(at->u[OF_START], -20), 20), t = fmin(fmax(at->u[OF_MAX], -30), 30);
    uncentre(n, at->u + OF_N, f->n, f->n_scale, f->e, f->e_scale);
    uncentre(d, at->u + OF_D, f->d, f->d_scale, f->e, f->e_scale);
    out[0] = exp(fmin(fmax(n[0], -600), 600)), out[1] = n[2], out[2] = n[1], out[3] = n[3];
    out[4] = exp(fmin(fmax(d[0], -600), 600)), out[5] = d[2], out[6] = d[1], out[7] = d[3];
    out[8] = exp(s), out[9] = exp(s) * (1 + exp(t)), out[10] = exp(fmin(fmax(at->u[OF_C], -600), 600));
}

/* ---- reading the runs ---- */

static moed_status check_run(const moed_run_point *r, size_t index, int32_t top_k)
{
    const struct { const char *name; double value, least; } rows[] = {
        {"active", r->active, 1}, {"experts", r->experts, top_k}, {"tokens", r->tokens, 1}, {"loss", r->loss, 1e-6}};
    for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
        if (!(rows[k].value >= rows[k].least && rows[k].value <= 1e30))
            return moedi_fail_parameter(MOED_E_RANGE, rows[k].name, "run %zu: %s is %g; it must be from %g to 1e30", index,
                                        rows[k].name, rows[k].value, rows[k].least);
    return MOED_OK;
}

static void middle_and_scale(double *x, int64_t count, int64_t counted, double *middle, double *scale)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < counted; i++) sum += x[i];
    *middle = sum / (double)counted;
    for (int64_t i = 0; i < counted; i++) squares += (x[i] - *middle) * (x[i] - *middle);
    *scale = sqrt(squares / (double)counted);
    if (*scale < 1e-9) *scale = 0;
    for (int64_t i = 0; i < count; i++) x[i] = *scale > 0 ? (x[i] - *middle) / *scale : 0;
}

static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static moed_status take_groups(fit *f, const moed_run_point *runs, const int64_t *order)
{
    double least = 0, most = 0;
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &f->expansion));
    for (int64_t i = 0; i < f->runs; i++) f->expansion[i] = runs[i].experts / f->options.top_k;
    qsort(f->expansion, (size_t)f->runs, sizeof *f->expansion, by_value);
    for (int64_t i = 0; i < f->runs; i++)
        if (i == 0 || f->expansion[i] != f->expansion[f->groups - 1]) f->expansion[f->groups++] = f->expansion[i];
    for (int64_t i = 0; i < f->runs; i++) {
        const double wanted = runs[order[i]].experts / f->options.top_k;
        int64_t low = 0, high = f->groups - 1;
        while (low < high) {
            const int64_t middle = (low + high) / 2;
            if (f->expansion[middle] < wanted) low = middle + 1;
            else high = middle;
        }
        f->group[i] = low;
        if (i == 0 || (i < f->trained && wanted < least)) least = wanted;
        if (i == 0 || (i < f->trained && wanted > most)) most = wanted;
    }
    f->by_experts = most > least;
    return MOED_OK;
}

/* Where ln Y lies, with the published saturation: what e is centred and scaled by. */
static moed_status take_experts(fit *f)
{
    double *room = NULL, *e = NULL;
    point published;
    moed_status status = MOEDI_NEW(f->context, 3 * f->groups, &room);
    if (!status) status = MOEDI_NEW(f->context, f->trained, &e);
    if (!status) {
        f->e = 0, f->e_scale = 1;
        grid_start(f, 0, &published);
        effective_experts(f, published.u, room);
        for (int64_t i = 0; i < f->trained; i++) e[i] = room[3 * f->group[i]];
        middle_and_scale(e, f->trained, f->trained, &f->e, &f->e_scale);
        if (f->e_scale == 0) f->e_scale = 1;
    }
    moedi_free(f->context, room);
    moedi_free(f->context, e);
    return status;
}

static moed_status check_spread(const fit *f)
{
    const int wanted = 5 + (f->by_experts ? 4 : 0) + (f->by_saturation ? 2 : 0);
    if (f->trained < wanted + 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "runs",
                                    "%lld runs, %lld of them to fit %d coefficients: at least %d are needed", (long long)f->runs,
                                    (long long)f->trained, wanted, wanted + 1);
    if (f->n_scale == 0)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "active", "all runs have the same number of active parameters");
    if (f->d_scale == 0) return moedi_fail_parameter(MOED_E_ARGUMENT, "tokens", "all runs have the same number of tokens");
    if (!f->by_experts)
        moedi_log(f->context, MOED_LOG_WARNING, "law: all runs have %g experts: the law is of that number alone",
                  f->expansion[f->group[0]] * f->options.top_k);
    return MOED_OK;
}

static moed_status take_runs(fit *f, const moed_run_point *runs, size_t count)
{
    int64_t *order = NULL;
    double lowest = INFINITY;
    moed_status status = MOED_OK;
    for (size_t i = 0; i < count; i++) MOEDI_TRY(check_run(&runs[i], i, f->options.top_k));
    f->runs = (int64_t)count;
    f->trained = f->runs - (int64_t)(f->options.held_out * (double)count + 0.5);
    if (f->trained < 6)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "runs", "%zu runs, %lld of them to fit: a law takes at least 6", count,
                                    (long long)f->trained);
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &f->x));
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &f->y));
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &f->log_loss));
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &f->weight));
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &f->group));
    MOEDI_TRY(MOEDI_NEW(f->context, f->runs, &order));
    for (int64_t i = 0; i < f->runs; i++) order[i] = i;
    moedi_random_permutation(f->options.seed, MOEDI_RANDOM_LAW, 0, order, f->runs);
    MOEDI_GO(take_groups(f, runs, order));
    for (int64_t i = 0; i < f->runs; i++) {
        const moed_run_point *r = &runs[order[i]];
        f->x[i] = log(r->active), f->y[i] = log(r->tokens), f->log_loss[i] = log(r->loss);
        if (i < f->trained) lowest = fmin(lowest, f->log_loss[i]);
    }
    for (int64_t i = 0; i < f->runs; i++) f->weight[i] = exp(fmax(f->options.low_loss * (lowest - f->log_loss[i]), -600));
    middle_and_scale(f->x, f->runs, f->trained, &f->n, &f->n_scale);
    middle_and_scale(f->y, f->runs, f->trained, &f->d, &f->d_scale);
    f->by_saturation = f->options.fit_saturation && f->by_experts && f->groups >= 4;
    MOEDI_GO(check_spread(f));
    MOEDI_GO(take_experts(f));
out:
    moedi_free(f->context, order);
    return status;
}

static void forget(fit *f)
{
    moedi_free(f->context, f->x);
    moedi_free(f->context, f->y);
    moedi_free(f->context, f->log_loss);
    moedi_free(f->context, f->weight);
    moedi_free(f->context, f->group);
    moedi_free(f->context, f->expansion);
}

/* ---- coarse to fine ---- */

typedef struct candidate {
    double value;
    int64_t index; /* of the grid: decides between equals, so that the order of work never shows */
    point at;
} candidate;

static int better(const void *a, const void *b)
{
    const candidate *x = a, *y = b;
    return x->value != y->value ? (x->value > y->value) - (x->value < y->value) : (x->index > y->index) - (x->index < y->index);
}

typedef struct search {
    const fit *fit;
    candidate *candidates;
    int iterations;
} search;

enum { GRID_BLOCK = 243 }; /* starts a task */

static moed_status look_at_block(void *argument, int64_t block)
{
    const search *s = argument;
    const fit *f = s->fit;
    double *room = NULL;
    const int64_t stride = (f->trained + COARSE_RUNS - 1) / COARSE_RUNS;
    MOEDI_TRY(moedi_cancel_check(f->cancel));
    MOEDI_TRY(MOEDI_NEW(f->context, 3 * f->groups, &room));
    for (int64_t index = block * GRID_BLOCK; index < (block + 1) * GRID_BLOCK; index++) {
        candidate *c = &s->candidates[index];
        double slope, sum = 0;
        grid_start(f, index, &c->at);
        if (index == block * GRID_BLOCK) effective_experts(f, c->at.u, room); /* the grid does not vary the saturation */
        for (int64_t i = 0; i < f->trained; i += stride)
            sum += f->weight[i] * huber(f, look(f, c->at.u, room, i).log_loss - f->log_loss[i], &slope);
        c->value = sum;
        c->index = index;
    }
    moedi_free(f->context, room);
    return MOED_OK;
}

static moed_status refine(void *argument, int64_t i)
{
    const search *s = argument;
    const fit *f = s->fit;
    job j = {.fit = f, .weight = f->weight};
    MOEDI_TRY(moedi_cancel_check(f->cancel));
    MOEDI_TRY(MOEDI_NEW(f->context, 3 * f->groups, &j.room));
    const moed_status status = minimise(&j, s->iterations, &s->candidates[i].at, &s->candidates[i].value);
    moedi_free(f->context, j.room);
    return status;
}

static moed_status find_best(const fit *f, point *best)
{
    search s = {.fit = f};
    moed_status status = MOEDI_NEW(f->context, GRID, &s.candidates);
    if (status) return status;
    MOEDI_GO(moedi_parallel_try(f->context, GRID / GRID_BLOCK, look_at_block, &s));
    qsort(s.candidates, GRID, sizeof *s.candidates, better);
    s.iterations = FIRST_ITERATIONS;
    MOEDI_GO(moedi_parallel_try(f->context, f->options.starts, refine, &s));
    qsort(s.candidates, (size_t)f->options.starts, sizeof *s.candidates, better);
    s.iterations = LAST_ITERATIONS;
    const int64_t last = f->options.starts < LAST_STARTS ? f->options.starts : LAST_STARTS;
    MOEDI_GO(moedi_parallel_try(f->context, last, refine, &s));
    qsort(s.candidates, (size_t)last, sizeof *s.candidates, better);
    *best = s.candidates[0].at;
out:
    moedi_free(f->context, s.candidates);
    return status;
}

/* ---- intervals: fits of runs drawn with replacement, from the best point on ---- */

typedef struct resampling {
    const fit *fit;
    const point *from;
    double *values; /* (MOEDI_LAW_MOST, bootstrap) */
} resampling;

static moed_status resample(void *argument, int64_t b)
{
    const resampling *r = argument;
    const fit *f = r->fit;
    job j = {.fit = f};
    point at = *r->from;
    double *weight = NULL, value, found[MOEDI_LAW_MOST];
    moed_status status = MOED_OK;
    MOEDI_TRY(moedi_cancel_check(f->cancel));
    MOEDI_GO(MOEDI_NEW(f->context, f->trained, &weight));
    MOEDI_GO(MOEDI_NEW(f->context, 3 * f->groups, &j.room));
    for (int64_t i = 0; i < f->trained; i++) {
        const int64_t drawn =
            (int64_t)(moedi_random(f->options.seed, MOEDI_RANDOM_LAW, (uint64_t)b + 1, (uint64_t)i) % (uint64_t)f->trained);
        weight[drawn] += f->weight[drawn];
    }
    j.weight = weight;
    MOEDI_GO(minimise(&j, LAST_ITERATIONS, &at, &value));
    coefficients_of(f, &at, found);
    for (int k = 0; k < MOEDI_LAW_MOST; k++) r->values[k * (int64_t)f->options.bootstrap + b] = found[k];
out:
    moedi_free(f->context, weight);
    moedi_free(f->context, j.room);
    return status;
}

static moed_status find_intervals(const fit *f, const point *best, moed_law *l)
{
    resampling r = {.fit = f, .from = best};
    const int64_t count = f->options.bootstrap;
    if (count == 0) return MOED_OK;
    moed_status status = MOEDI_NEW(f->context, MOEDI_LAW_MOST * count, &r.values);
    if (status) return status;
    MOEDI_GO(moedi_parallel_try(f->context, count, resample, &r));
    const double tail = 0.5 * (1 - f->options.confidence) * (double)(count - 1);
    for (int k = 0; k < MOEDI_LAW_MOST; k++) {
        double *v = r.values + k * count;
        qsort(v, (size_t)count, sizeof *v, by_value);
        l->low[k] = v[(int64_t)tail];
        l->high[k] = v[count - 1 - (int64_t)tail];
    }
    l->info.bootstrap = f->options.bootstrap;
out:
    moedi_free(f->context, r.values);
    return status;
}

/* ---- the whole ---- */

static double root_mean_square(const fit *f, const point *at, double *room, int64_t from, int64_t to)
{
    double sum = 0;
    effective_experts(f, at->u, room);
    for (int64_t i = from; i < to; i++) {
        const double r = look(f, at->u, room, i).log_loss - f->log_loss[i];
        sum += r * r;
    }
    return to > from ? sqrt(sum / (double)(to - from)) : 0;
}

static void widen(double *low, double *high, double value)
{
    if (*low == 0 || value < *low) *low = value;
    if (value > *high) *high = value;
}

static moed_status describe(const fit *f, const moed_run_point *runs, const point *best, moed_law_info *info)
{
    double *room = NULL;
    MOEDI_TRY(MOEDI_NEW(f->context, 3 * f->groups, &room));
    for (int64_t i = 0; i < f->runs; i++) {
        widen(&info->active_min, &info->active_max, runs[i].active);
        widen(&info->experts_min, &info->experts_max, runs[i].experts / f->options.top_k);
        widen(&info->tokens_min, &info->tokens_max, runs[i].tokens);
    }
    info->form = MOED_FORM_JOINT;
    info->top_k = f->options.top_k;
    info->routed_share = 1;
    info->trained_runs = f->trained;
    info->held_out_runs = f->runs - f->trained;
    info->trained_rmse = root_mean_square(f, best, room, 0, f->trained);
    info->held_out_rmse = root_mean_square(f, best, room, f->trained, f->runs);
    snprintf(info->source, sizeof info->source, "fitted to %lld runs", (long long)f->runs);
    moedi_free(f->context, room);
    return MOED_OK;
}

/* Runs whose losses do not fall with size and length lead anywhere. */
static moed_status make_law(moed_law **out, moed_context *c, const moed_law_info *info, const double *values)
{
    char what[160];
    const moed_status status = moedi_law_make(out, c, info, values);
    if (status != MOED_E_RANGE) return status;
    snprintf(what, sizeof what, "%s", moed_last_error());
    return moedi_fail(MOED_E_ARGUMENT, "the runs do not look like a law's, the nearest has no usable numbers: %s", what);
}

moed_status moed_law_fit(moed_law **out, moed_context *c, const moed_run_point *runs, size_t count, const moed_fit_options *o,
                         const moed_cancel *cancel)
{
    fit f = {.context = c, .cancel = cancel};
    moed_law_info info = {.struct_size = sizeof info};
    moed_law *l = NULL;
    double values[MOEDI_LAW_MOST];
    point best;
    moed_status status = MOED_OK;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(runs || count == 0, "runs is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_FIT_OPTIONS, o, &f.options));
    MOEDI_GO(take_runs(&f, runs, count));
    MOEDI_GO(find_best(&f, &best));
    MOEDI_GO(describe(&f, runs, &best, &info));
    coefficients_of(&f, &best, values);
    MOEDI_GO(make_law(&l, c, &info, values));
    MOEDI_GO(find_intervals(&f, &best, l));
    *out = l;
    l = NULL;
out:
    moed_law_destroy(l);
    forget(&f);
    return status;
}
