/* growth/law.c - what a law says: its terms at a number of experts, the loss, and where N and D balance. Sources: Ludziejewski et
 * al. 2025 (arXiv 2502.05172), Abnar et al. 2025 (2501.12370), Krajewski et al. 2024 (2402.07871). */
#include "law.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "core/options.h"

const double MOEDI_LAW_E_START = 2.0732, MOEDI_LAW_E_MAX = 290.4521;

static const double LOG_MOST = 69.07755278982137; /* of 1e30, the largest number of parameters, experts or tokens */

typedef struct form {
    int32_t count;
    const char *names[MOEDI_LAW_MOST];
} form;

static const form FORMS[] = {
    [MOED_FORM_JOINT] = {11, {"a", "alpha", "delta", "gamma", "b", "beta", "omega", "zeta", "e_start", "e_max", "c"}},
    [MOED_FORM_SPARSITY] = {10, {"a", "alpha", "b", "beta", "c", "lambda", "d", "delta", "gamma", "e"}},
    [MOED_FORM_GRANULARITY] = {7, {"a", "alpha", "b", "beta", "g", "gamma", "c"}},
    [MOED_FORM_CALLBACK] = {0, {0}},
};

/* Ranges: what the papers say of their own runs, as far as it is known here. */
typedef struct preset {
    int32_t form;
    double values[MOEDI_LAW_MOST];
    double active_max, experts_min, experts_max;
    const char *source;
} preset;

static const preset PRESETS[] = {
    [MOED_LAW_LUDZIEJEWSKI_2025] =
        {MOED_FORM_JOINT,
         {35.91, -0.1889, -0.2285, 0.0098, 35.98, -0.1775, 0.5529, -0.0259, 2.0732, 290.4521, 1.3637},
         2.7e9, 1, 32, "Ludziejewski et al. 2025, arXiv 2502.05172"},
    [MOED_LAW_ABNAR_2025] =
        {MOED_FORM_SPARSITY,
         {16612.5, 0.5962, 5455.67, 0.3954, 0.4598, -0.1666, 17.26, 0.1603, 0.1595, 0.94},
         0, 0, 0, "Abnar et al. 2025, arXiv 2501.12370 (coefficients second-hand)"},
    [MOED_LAW_KRAJEWSKI_2024] =
        {MOED_FORM_GRANULARITY, {18.1, 0.115, 30.8, 0.147, 2.1, 0.58, 0.47}, 0, 64, 64,
         "Krajewski et al. 2024, arXiv 2402.07871"},
};

/* ---- the handle ---- */

static moed_status check_values(int32_t kind, const double *values)
{
    const form *f = &FORMS[kind];
    for (int32_t i = 0; i < f->count; i++)
        if (!(fabs(values[i]) <= 1e15)) /* NaN too */
            return moedi_fail_parameter(MOED_E_RANGE, "coefficients", "coefficient %s is %g; it must be from -1e15 to 1e15",
                                        f->names[i], values[i]);
    if (kind == MOED_FORM_JOINT && !(values[8] >= 1e-3 && values[9] > values[8]))
        return moedi_fail_parameter(MOED_E_RANGE, "coefficients", "e_start %g and e_max %g: they must rise from 0.001 on",
                                    values[8], values[9]);
    return MOED_OK;
}

static moed_status check_range(const char *what, double low, double high)
{
    if (high == 0 || low <= high) return MOED_OK;
    return moedi_fail_parameter(MOED_E_RANGE, what, "%s_min %g is above %s_max %g", what, low, what, high);
}

moed_status moedi_law_make(moed_law **out, moed_context *c, const moed_law_info *info, const double *values)
{
    moed_law *l = NULL;
    const int32_t count = FORMS[info->form].count;
    MOEDI_TRY(check_values(info->form, values));
    MOEDI_TRY(check_range("active", info->active_min, info->active_max));
    MOEDI_TRY(check_range("experts", info->experts_min, info->experts_max));
    MOEDI_TRY(check_range("tokens", info->tokens_min, info->tokens_max));
    MOEDI_TRY(MOEDI_NEW(c, 1, &l));
    l->context = moedi_context_retain(c);
    l->info = *info;
    l->info.coefficients = count;
    for (int32_t i = 0; i < count; i++) l->values[i] = l->low[i] = l->high[i] = values[i];
    atomic_init(&l->told, 0);
    *out = l;
    return MOED_OK;
}

static moed_status take_own(const moed_law_options *o, moed_law_info *info)
{
    info->form = o->form;
    if (o->form == MOED_FORM_CALLBACK) {
        MOEDI_REQUIRE(o->loss, "form is callback, and loss is NULL");
    } else if (o->coefficient_count != FORMS[o->form].count || !o->coefficients) {
        return moedi_fail_parameter(MOED_E_ARGUMENT, "coefficients",
                                    "%d coefficients%s were given; the form has %d, from %s to %s", (int)o->coefficient_count,
                                    o->coefficients ? "" : " (NULL)", (int)FORMS[o->form].count, FORMS[o->form].names[0],
                                    FORMS[o->form].names[FORMS[o->form].count - 1]);
    }
    info->active_min = o->active_min, info->active_max = o->active_max;
    info->experts_min = o->experts_min, info->experts_max = o->experts_max;
    info->tokens_min = o->tokens_min, info->tokens_max = o->tokens_max;
    snprintf(info->source, sizeof info->source, "%s", o->source ? o->source : "");
    return MOED_OK;
}

static void take_preset(const preset *p, moed_law_info *info)
{
    info->form = p->form;
    info->active_max = p->active_max;
    info->experts_min = p->experts_min;
    info->experts_max = p->experts_max;
    snprintf(info->source, sizeof info->source, "%s", p->source);
}

moed_status moed_law_create(moed_law **out, moed_context *c, const moed_law_options *o)
{
    moed_law_options options;
    moed_law_info info = {.struct_size = sizeof info};
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_LAW_OPTIONS, o, &options));
    info.preset = options.preset;
    info.top_k = options.top_k;
    info.routed_share = options.routed_share;
    const preset *p = &PRESETS[options.preset];
    const int own = options.preset == MOED_LAW_CUSTOM;
    if (own) MOEDI_TRY(take_own(&options, &info));
    else take_preset(p, &info);
    MOEDI_TRY(moedi_law_make(out, c, &info, own ? options.coefficients : p->values));
    if (own) (*out)->loss = options.loss, (*out)->loss_user = options.loss_user;
    else if (p->active_max == 0)
        moedi_log(c, MOED_LOG_WARNING, "law of %s: the range of its runs is not known here: compare it with runs of your own",
                  p->source);
    return MOED_OK;
}

void moed_law_destroy(moed_law *l)
{
    if (!l) return;
    moed_context *c = l->context;
    moedi_free(c, l);
    moedi_context_release(c);
}

moed_status moed_law_get_info(const moed_law *l, moed_law_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(l, "the law is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    return moedi_info_write(MOED_STRUCT_LAW_INFO, &l->info, out);
}

moed_status moed_law_coefficient(const moed_law *l, size_t index, moed_coefficient *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(l, "the law is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    if (index >= (size_t)l->info.coefficients)
        return moedi_fail(MOED_E_RANGE, "the law has %d coefficients, no coefficient %zu", (int)l->info.coefficients, index);
    const moed_coefficient full = {.struct_size = sizeof full,
                                   .name = FORMS[l->info.form].names[index],
                                   .value = l->values[index],
                                   .low = l->low[index],
                                   .high = l->high[index]};
    return moedi_info_write(MOED_STRUCT_COEFFICIENT, &full, out);
}

/* ---- arguments ---- */

static moed_status check_number(const char *what, double value, double least)
{
    if (value >= least && value <= 1e30) return MOED_OK; /* NaN fails both */
    return moedi_fail_parameter(MOED_E_RANGE, what, "%s is %g; it must be from %g to 1e30", what, moedi_told(value), least);
}

/* Told once: whoever predicts in a loop would drown in it. */
static void tell_outside(const moed_law *l, int bit, const char *what, double value, double low, double high)
{
    if ((low == 0 || value >= low) && (high == 0 || value <= high)) return;
    if (atomic_fetch_or(&((moed_law *)(uintptr_t)l)->told, bit) & bit) return;
    if (low > 0 && low == high)
        moedi_log(l->context, MOED_LOG_WARNING, "law: %.4g %s are not the %.4g that it is known for alone (%s)", value, what, low,
                  l->info.source);
    else if (low > 0 && high > 0)
        moedi_log(l->context, MOED_LOG_WARNING, "law: %.4g %s lie outside the %.4g to %.4g that it is known for (%s)", value,
                  what, low, high, l->info.source);
    else
        moedi_log(l->context, MOED_LOG_WARNING, "law: %.4g %s lie %s the %.4g that it is known %s (%s)", value, what,
                  high > 0 ? "above" : "below", high > 0 ? high : low, high > 0 ? "up to" : "from", l->info.source);
}

static void tell_experts(const moed_law *l, double experts)
{
    tell_outside(l, 1, l->info.top_k > 1 ? "experts for each visited" : "experts", experts / l->info.top_k, l->info.experts_min,
                 l->info.experts_max);
}
static void tell_active(const moed_law *l, double active)
{
    tell_outside(l, 2, "active parameters", active, l->info.active_min, l->info.active_max);
}
static void tell_tokens(const moed_law *l, double tokens)
{
    tell_outside(l, 4, "tokens", tokens, l->info.tokens_min, l->info.tokens_max);
}

static moed_status begin(const moed_law *l, double experts)
{
    if (!l) return moedi_fail(MOED_E_ARGUMENT, "the law is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    return check_number("experts", experts, l->info.top_k);
}

/* ---- terms ---- */

/* L = exp(m) N^-p + exp(m2) N^-p2 + exp(n) D^-v + c. In logarithms no step on the way leaves the numbers' range. */
typedef struct terms {
    double m, p, m2, p2, n, v, c;
    int second;
} terms;

/* exp, as far as doubles reach: what is beyond is no loss, and is told as that. */
static double bounded_exp(double x) { return exp(x < 600 ? x > -600 ? x : -600 : 600); }

static double positive_log(double x) { return x > 0 ? log(x) : -1e300; }

static terms terms_at(const moed_law *l, double experts)
{
    const double *k = l->values, x = experts / l->info.top_k;
    if (l->info.form == MOED_FORM_JOINT) {
        const double inner = 1 / (x - 1 + 1 / (1 / k[8] - 1 / k[9])) + 1 / k[9], y = -log(inner);
        return (terms){.m = positive_log(k[0]) + k[2] * y, .p = -(k[1] + k[3] * y), .n = positive_log(k[4]) + k[6] * y,
                       .v = -(k[5] + k[7] * y), .c = k[10]};
    }
    if (l->info.form == MOED_FORM_SPARSITY) {
        const double all = log1p(l->info.routed_share * (x - 1)), r = -log(x); /* of T / N; of 1 - S */
        return (terms){.m = positive_log(k[0]) - k[1] * all, .p = k[1], .n = positive_log(k[2]), .v = k[3],
                       .m2 = positive_log(k[6]) - k[7] * r - k[8] * all, .p2 = k[8], .second = 1,
                       .c = k[9] + k[4] * bounded_exp(-k[5] * r)};
    }
    return (terms){.m = positive_log(k[0] + k[4] * bounded_exp(-k[5] * log(l->info.top_k))),
                   .p = k[1],
                   .n = positive_log(k[2]),
                   .v = k[3],
                   .c = k[6]};
}

static moed_status own_loss(const moed_law *l, double active, double experts, double tokens, double *loss)
{
    const int32_t code = l->loss(active, experts, tokens, loss, l->loss_user);
    if (code) return moedi_fail_callback("loss", code);
    if (!isfinite(*loss))
        return moedi_fail(MOED_E_NUMERIC, "the loss function gave %g for %g active parameters, %g experts, %g tokens", *loss,
                          active, experts, tokens);
    return MOED_OK;
}

static moed_status loss_at(const moed_law *l, double active, double experts, double tokens, double *loss)
{
    if (l->info.form == MOED_FORM_CALLBACK) return own_loss(l, active, experts, tokens, loss);
    const terms t = terms_at(l, experts);
    const double n = log(active), d = log(tokens);
    *loss = bounded_exp(t.m - t.p * n) + (t.second ? bounded_exp(t.m2 - t.p2 * n) : 0) + bounded_exp(t.n - t.v * d) + t.c;
    if (fabs(*loss) < 1e100) return MOED_OK;
    return moedi_fail(MOED_E_NUMERIC, "the law gives no loss for %g active parameters, %g experts, %g tokens", active, experts,
                      tokens);
}

moed_status moed_law_predict(const moed_law *l, double active, double experts, double tokens, double *loss)
{
    double found = 0;
    moedi_clear_error();
    MOEDI_TRY(begin(l, experts));
    MOEDI_REQUIRE(loss, "loss is NULL");
    MOEDI_TRY(check_number("active", active, 1));
    MOEDI_TRY(check_number("tokens", tokens, 1));
    tell_active(l, active), tell_experts(l, experts), tell_tokens(l, tokens);
    MOEDI_TRY(loss_at(l, active, experts, tokens, &found));
    *loss = found;
    return MOED_OK;
}

moed_status moed_law_get_terms(const moed_law *l, double experts, moed_law_terms *out)
{
    moedi_clear_error();
    MOEDI_TRY(begin(l, experts));
    if (l->info.form == MOED_FORM_CALLBACK) return moedi_fail(MOED_E_UNSUPPORTED, "a law that is a function has no terms");
    tell_experts(l, experts);
    const terms t = terms_at(l, experts);
    const moed_law_terms full = {.struct_size = sizeof full,
                                 .m = bounded_exp(t.m),
                                 .p = t.p,
                                 .m2 = t.second ? bounded_exp(t.m2) : 0,
                                 .p2 = t.p2,
                                 .n = bounded_exp(t.n),
                                 .v = t.v,
                                 .c = t.c};
    return moedi_info_write(MOED_STRUCT_LAW_TERMS, &full, out);
}

/* ---- where N and D balance: -dL/d ln N = -dL/d ln D, along fixed N or along a fixed budget ---- */

/* What a share more of active parameters saves, less what that of tokens saves. */
static moed_status balance(const moed_law *l, double experts, double n, double d, double *out)
{
    if (l->info.form != MOED_FORM_CALLBACK) {
        const terms t = terms_at(l, experts);
        *out = t.p * bounded_exp(t.m - t.p * n) + (t.second ? t.p2 * bounded_exp(t.m2 - t.p2 * n) : 0) -
               t.v * bounded_exp(t.n - t.v * d);
        return MOED_OK;
    }
    const double h = 1e-4; /* errors of h^2 and of rounding / h are both far below what a schedule shows */
    double more_n = 0, less_n = 0, more_d = 0, less_d = 0;
    MOEDI_TRY(own_loss(l, exp(n + h), experts, exp(d), &more_n));
    MOEDI_TRY(own_loss(l, exp(n - h), experts, exp(d), &less_n));
    MOEDI_TRY(own_loss(l, exp(n), experts, exp(d + h), &more_d));
    MOEDI_TRY(own_loss(l, exp(n), experts, exp(d - h), &less_d));
    *out = (less_n - more_n) - (less_d - more_d);
    return MOED_OK;
}

/* The ln D where they balance, from low to high; ln N = n, or budget - ln D where budget is not 0. The balance rises with D. */
static moed_status settle(const moed_law *l, double experts, double n, double budget, double low, double high, double *out)
{
    double at_low = 0, at_high = 0;
    MOEDI_TRY(balance(l, experts, budget != 0 ? budget - low : n, low, &at_low));
    MOEDI_TRY(balance(l, experts, budget != 0 ? budget - high : n, high, &at_high));
    if (!(at_low <= 0 && at_high >= 0))
        return moedi_fail(MOED_E_RANGE, "the law with %g experts has no balance of parameters and tokens between 1 and 1e30",
                          experts);
    for (int i = 0; i < 100 && high - low > 1e-14 * high; i++) {
        const double middle = 0.5 * (low + high);
        double there = 0;
        MOEDI_TRY(balance(l, experts, budget != 0 ? budget - middle : n, middle, &there));
        if (there < 0) low = middle;
        else high = middle;
    }
    *out = 0.5 * (low + high);
    return MOED_OK;
}

moed_status moed_law_optimum(const moed_law *l, double flops, double experts, double *active, double *tokens)
{
    double d = 0;
    moedi_clear_error();
    MOEDI_TRY(begin(l, experts));
    MOEDI_REQUIRE(active && tokens, "active or tokens is NULL");
    if (!(flops >= 12 && flops <= 1e60))
        return moedi_fail_parameter(MOED_E_RANGE, "flops", "flops is %g; it must be from 12 to 1e60", flops);
    const double budget = log(flops / 6), most = budget < LOG_MOST ? budget : LOG_MOST;
    MOEDI_TRY(settle(l, experts, 0, budget, budget - most, most, &d));
    *active = exp(budget - d);
    *tokens = exp(d);
    tell_active(l, *active), tell_experts(l, experts), tell_tokens(l, *tokens);
    return MOED_OK;
}

moed_status moed_law_optimal_tokens(const moed_law *l, double active, double experts, double *tokens)
{
    double d = 0;
    moedi_clear_error();
    MOEDI_TRY(begin(l, experts));
    MOEDI_REQUIRE(tokens, "tokens is NULL");
    MOEDI_TRY(check_number("active", active, 1));
    MOEDI_TRY(settle(l, experts, log(active), 0, 0, LOG_MOST, &d));
    *tokens = exp(d);
    tell_active(l, active), tell_experts(l, experts), tell_tokens(l, *tokens);
    return MOED_OK;
}
