/* Scaling laws: the published table, optima, ranges, and fits of runs. */
#include <fenv.h>

#include "support.h"

#include "law_runs.h"

static void near(double found, double expected, double share, const char *what)
{
    if (!(fabs(found - expected) <= share * fabs(expected))) fail_msg("%s: %.9g, not %.9g to %g", what, found, expected, share);
}

typedef struct heard {
    int warnings;
    char last[512];
} heard;

static void hear(int32_t level, const char *line, void *user)
{
    heard *h = user;
    if (level != MOED_LOG_WARNING) return;
    h->warnings++;
    snprintf(h->last, sizeof h->last, "%s", line);
}

static moed_context *listening(heard *h, int32_t threads)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.kernels = "reference", o.threads = threads, o.log = hear, o.log_user = h;
    assert_ok(moed_context_create(&c, &o));
    return c;
}

static moed_law_options law_options(int32_t preset)
{
    moed_law_options o;
    assert_ok(moed_options_init(MOED_STRUCT_LAW_OPTIONS, &o, sizeof o));
    o.preset = preset;
    return o;
}

static void the_preset_gives_the_published_table(void **state)
{
    static const double TABLE[6][5] = {{1, 30.364, .1817, 53.984, .1965},   {2, 27.798, .1780, 66.840, .2065},
                                       {4, 24.846, .1731, 87.702, .2192},   {8, 21.833, .1676, 119.913, .2338},
                                       {16, 19.016, .1617, 167.507, .2494}, {32, 16.542, .1557, 234.673, .2652}};
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    (void)state;
    assert_ok(moed_law_create(&l, c, NULL));
    for (int i = 0; i < 6; i++) {
        moed_law_terms t = {.struct_size = sizeof t};
        assert_ok(moed_law_get_terms(l, TABLE[i][0], &t));
        near(t.m, TABLE[i][1], 0.003, "m"), near(t.p, TABLE[i][2], 0.003, "mu");
        near(t.n, TABLE[i][3], 0.003, "n"), near(t.v, TABLE[i][4], 0.003, "nu");
        double loss;
        assert_ok(moed_law_predict(l, 1e9, TABLE[i][0], 2e10, &loss));
        near(loss, t.m * pow(1e9, -t.p) + t.n * pow(2e10, -t.v) + t.c, 1e-12, "loss");
    }
    moed_law_destroy(l);
    support_close(c);
}

static void the_optimum_is_the_closed_form_and_no_neighbour_is_better(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    double n, d, loss, other;
    moed_law_terms t = {.struct_size = sizeof t};
    (void)state;
    assert_ok(moed_law_create(&l, c, NULL));
    assert_ok(moed_law_optimum(l, 1e20, 8, &n, &d));
    near(n, 0.99e9, 0.02, "N"), near(d, 17e9, 0.02, "D");
    near(6 * n * d, 1e20, 1e-12, "budget");
    assert_ok(moed_law_get_terms(l, 8, &t));
    near(n, pow(t.p * t.m / (t.v * t.n), 1 / (t.p + t.v)) * pow(1e20 / 6, t.v / (t.p + t.v)), 1e-9, "closed N");
    assert_ok(moed_law_predict(l, n, 8, d, &loss));
    for (int side = -1; side <= 1; side += 2) {
        assert_ok(moed_law_predict(l, n * pow(1.01, side), 8, d / pow(1.01, side), &other));
        assert_true(other > loss);
    }
    assert_ok(moed_law_optimal_tokens(l, n, 8, &other)); /* the same balance from the other side */
    near(other, d, 1e-9, "D*");
    near(other, pow(t.v * t.n / (t.p * t.m) * pow(n, t.p), 1 / t.v), 1e-9, "closed D*");
    moed_law_destroy(l);
    support_close(c);
}

/* By hand from the formulas. */
static void other_presets_and_top_k_say_what_their_formulas_say(void **state)
{
    heard h = {0};
    moed_context *c = listening(&h, 1);
    moed_law *l = NULL, *whole = NULL;
    moed_law_options o = law_options(MOED_LAW_ABNAR_2025);
    double loss, other, n, d;
    (void)state;
    o.top_k = 2, o.routed_share = 0.5;
    assert_ok(moed_law_create(&l, c, &o));
    assert_int_equal(h.warnings, 1); /* its range is not known */
    const double all = 1e9 * (0.5 + 0.5 * 4), r = 0.25;
    assert_ok(moed_law_predict(l, 1e9, 8, 2e10, &loss));
    near(loss, 16612.5 * pow(all, -.5962) + 5455.67 * pow(2e10, -.3954) + .4598 * pow(r, .1666) +
                   17.26 * pow(r, -.1603) * pow(all, -.1595) + .94, 1e-12, "Abnar");
    assert_ok(moed_law_optimum(l, 1e20, 8, &n, &d));
    assert_ok(moed_law_predict(l, n, 8, d, &loss));
    assert_ok(moed_law_predict(l, n * 1.05, 8, d / 1.05, &other));
    assert_true(other > loss);
    moed_law_destroy(l);

    o = law_options(MOED_LAW_KRAJEWSKI_2024);
    o.top_k = 8;
    assert_ok(moed_law_create(&l, c, &o));
    h.warnings = 0;
    assert_ok(moed_law_predict(l, 1e9, 512, 2e10, &loss));
    near(loss, .47 + (2.1 * pow(8, -.58) + 18.1) * pow(1e9, -.115) + 30.8 * pow(2e10, -.147), 1e-12, "Krajewski");
    assert_int_equal(h.warnings, 0);
    assert_ok(moed_law_predict(l, 1e9, 256, 2e10, &loss)); /* 32 for each visited, not 64 */
    assert_int_equal(h.warnings, 1);
    moed_law_destroy(l);

    o = law_options(MOED_LAW_LUDZIEJEWSKI_2025);
    o.top_k = 8;
    assert_ok(moed_law_create(&l, c, &o));
    assert_ok(moed_law_create(&whole, c, NULL));
    assert_ok(moed_law_predict(l, 1e9, 64, 2e10, &loss));
    assert_ok(moed_law_predict(whole, 1e9, 8, 2e10, &other));
    assert_true(loss == other);
    moed_law_destroy(l), moed_law_destroy(whole);
    support_close(c);
}

static void outside_the_range_the_log_tells_once_and_the_call_answers(void **state)
{
    heard h = {0};
    moed_context *c = listening(&h, 1);
    moed_law *l = NULL;
    double loss;
    (void)state;
    assert_ok(moed_law_create(&l, c, NULL));
    assert_ok(moed_law_predict(l, 2.7e9, 32, 1e15, &loss));
    assert_int_equal(h.warnings, 0);
    for (int i = 0; i < 3; i++) assert_ok(moed_law_predict(l, 2.8e9, 32, 1e10, &loss));
    assert_int_equal(h.warnings, 1);
    assert_non_null(strstr(h.last, "2.8e+09 active parameters"));
    assert_non_null(strstr(h.last, "2502.05172"));
    assert_ok(moed_law_predict(l, 1e9, 33, 1e10, &loss));
    assert_int_equal(h.warnings, 2);
    moed_law_destroy(l);
    support_close(c);
}

static void own_coefficients_and_wrong_arguments(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL, *published = NULL;
    moed_law_options o = law_options(MOED_LAW_CUSTOM);
    double values[11], loss, other, d;
    (void)state;
    assert_ok(moed_law_create(&published, c, NULL));
    for (size_t i = 0; i < 11; i++) {
        moed_coefficient k = {.struct_size = sizeof k};
        assert_ok(moed_law_coefficient(published, i, &k));
        assert_true(k.low == k.value && k.high == k.value);
        if (i == 3) assert_string_equal(k.name, "gamma");
        values[i] = k.value;
    }
    moed_coefficient none = {.struct_size = sizeof none};
    assert_refused(moed_law_coefficient(published, 11, &none), MOED_E_RANGE, "no coefficient 11");
    assert_refused(moed_law_create(&l, c, &o), MOED_E_ARGUMENT, "the form has 11, from a to c");
    o.coefficients = values, o.coefficient_count = 11, o.source = "mine", o.tokens_max = 1e9;
    assert_ok(moed_law_create(&l, c, &o));
    moed_law_info info = {.struct_size = sizeof info};
    assert_ok(moed_law_get_info(l, &info));
    assert_string_equal(info.source, "mine");
    assert_true(info.tokens_max == 1e9 && info.coefficients == 11);
    assert_ok(moed_law_predict(l, 1e9, 8, 1e10, &loss));
    assert_ok(moed_law_predict(published, 1e9, 8, 1e10, &other));
    assert_true(loss == other);
    moed_law_destroy(l);

    values[9] = 1;
    assert_refused(moed_law_create(&l, c, &o), MOED_E_RANGE, "e_start");
    values[9] = NAN;
    assert_refused(moed_law_create(&l, c, &o), MOED_E_RANGE, "coefficient e_max");
    o.form = MOED_FORM_CALLBACK;
    assert_refused(moed_law_create(&l, c, &o), MOED_E_ARGUMENT, "loss is NULL");
    assert_refused(moed_law_predict(published, 0, 8, 1e10, &loss), MOED_E_RANGE, "active is 0");
    assert_refused(moed_law_predict(published, 1e9, 0.5, 1e10, &loss), MOED_E_RANGE, "experts is 0.5");
    assert_refused(moed_law_predict(published, 1e9, 8, NAN, &loss), MOED_E_RANGE, "tokens is");
    assert_refused(moed_law_optimum(published, 1, 8, &d, &other), MOED_E_RANGE, "flops is 1");
    moed_law_destroy(published);
    support_close(c);
}

static int32_t callback_loss(double active, double experts, double tokens, double *loss, void *user)
{
    const int32_t code = user ? *(int32_t *)user : 0;
    *loss = 21.833 * pow(active, -.1676) + 119.913 * pow(tokens, -.2338) + 1.36 - 1e-3 * experts;
    return code;
}

static void a_function_of_the_callers_is_a_law_too(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    moed_law_options o = law_options(MOED_LAW_CUSTOM);
    moed_law_terms t = {.struct_size = sizeof t};
    int32_t code = 0;
    double n, d, tokens;
    (void)state;
    o.form = MOED_FORM_CALLBACK, o.loss = callback_loss, o.loss_user = &code;
    assert_ok(moed_law_create(&l, c, &o));
    assert_ok(moed_law_optimum(l, 1e20, 8, &n, &d));
    near(n, pow(.1676 * 21.833 / (.2338 * 119.913), 1 / .4014) * pow(1e20 / 6, .2338 / .4014), 1e-6, "N");
    assert_ok(moed_law_optimal_tokens(l, n, 8, &tokens));
    near(tokens, d, 1e-6, "D*");
    assert_refused(moed_law_get_terms(l, 8, &t), MOED_E_UNSUPPORTED, "no terms");
    code = 7;
    assert_refused(moed_law_optimum(l, 1e20, 8, &n, &d), MOED_E_CALLBACK, "7");
    moed_law_destroy(l);
    support_close(c);
}

/* ---- fits ---- */

static void published_runs(moed_run_point *out, size_t count, int kinds, double noise, uint64_t seed)
{
    moed_context *c = support_context("reference", 1);
    moed_law *truth = NULL;
    assert_ok(moed_law_create(&truth, c, NULL));
    assert_ok(law_runs(out, count, truth, kinds, noise, seed));
    moed_law_destroy(truth);
    support_close(c);
}

static moed_fit_options fit_options(void)
{
    moed_fit_options o;
    assert_ok(moed_options_init(MOED_STRUCT_FIT_OPTIONS, &o, sizeof o));
    return o;
}

static double coefficient(const moed_law *l, size_t index)
{
    moed_coefficient k = {.struct_size = sizeof k};
    assert_ok(moed_law_coefficient(l, index, &k));
    return k.value;
}

static void a_fit_finds_the_law_behind_the_runs_for_any_number_of_threads(void **state)
{
    moed_run_point runs[300];
    moed_law_info info = {.struct_size = sizeof info};
    moed_law *one = NULL, *three = NULL, *truth = NULL;
    moed_context *c = support_context("reference", 1), *other = support_context("reference", 3);
    moed_fit_options o = fit_options();
    (void)state;
    published_runs(runs, 300, 6, 0.005, 1);
    o.bootstrap = 20;
    assert_ok(moed_law_fit(&one, c, runs, 300, &o, NULL));
    assert_ok(moed_law_fit(&three, other, runs, 300, &o, NULL));
    assert_ok(moed_law_get_info(one, &info));
    assert_int_equal(info.trained_runs, 240);
    assert_int_equal(info.held_out_runs, 60);
    assert_true(info.held_out_rmse < 0.006 && info.held_out_rmse > 0.003);
    assert_true(info.trained_rmse < 0.006 && info.trained_rmse > 0.003);
    assert_true(info.active_min > 2e7 && info.active_max < 4e9 && info.experts_min == 1 && info.experts_max == 32);
    for (size_t i = 0; i < 11; i++) {
        moed_coefficient a = {.struct_size = sizeof a}, b = {.struct_size = sizeof b};
        assert_ok(moed_law_coefficient(one, i, &a));
        assert_ok(moed_law_coefficient(three, i, &b));
        assert_true(a.value == b.value && a.low == b.low && a.high == b.high);
        assert_true(a.low < a.high);
    }
    assert_ok(moed_law_create(&truth, c, NULL));
    for (int i = 0; i < 12; i++) { /* inside the range, far below the noise of one run */
        double fitted, real;
        const double n = 5e7 * pow(4, i % 3), e = 1 << (i / 3 * 5 / 3), d = n * 20;
        assert_ok(moed_law_predict(one, n, e, d, &fitted));
        assert_ok(moed_law_predict(truth, n, e, d, &real));
        near(fitted, real, 0.005, "fitted loss");
    }
    moed_law_destroy(one), moed_law_destroy(three), moed_law_destroy(truth);
    support_close(c), support_close(other);
}

static void without_noise_a_fit_returns_the_coefficients(void **state)
{
    moed_run_point runs[120];
    moed_context *c = support_context("reference", 2);
    moed_law *l = NULL;
    moed_fit_options o = fit_options();
    (void)state;
    published_runs(runs, 120, 6, 0, 2);
    o.fit_saturation = 0, o.held_out = 0;
    assert_ok(moed_law_fit(&l, c, runs, 120, &o, NULL));
    static const double TRUE_VALUES[] = {35.91,  -0.1889, -0.2285, 0.0098,   35.98, -0.1775,
                                         0.5529, -0.0259, 2.0732,  290.4521, 1.3637};
    for (size_t i = 0; i < 11; i++) near(coefficient(l, i), TRUE_VALUES[i], 0.02, "coefficient");
    moed_law_destroy(l);
    support_close(c);
}

static void runs_of_one_number_of_experts_give_a_law_of_that_number(void **state)
{
    heard h = {0};
    moed_run_point runs[60];
    moed_context *c = listening(&h, 1);
    moed_law *l = NULL, *truth = NULL;
    double fitted, real;
    (void)state;
    published_runs(runs, 60, 1, 0.002, 3);
    assert_ok(moed_law_fit(&l, c, runs, 60, NULL, NULL));
    assert_int_equal(h.warnings, 1);
    assert_non_null(strstr(h.last, "all runs have 1 experts"));
    assert_ok(moed_law_create(&truth, c, NULL));
    assert_ok(moed_law_predict(l, 3e8, 1, 6e9, &fitted));
    assert_ok(moed_law_predict(truth, 3e8, 1, 6e9, &real));
    near(fitted, real, 0.003, "loss");
    moed_law_destroy(l), moed_law_destroy(truth);
    support_close(c);
}

static void outliers_move_a_fit_little(void **state)
{
    moed_run_point runs[200];
    moed_context *c = support_context("reference", 2);
    moed_law *l = NULL, *truth = NULL;
    double fitted, real;
    (void)state;
    published_runs(runs, 200, 4, 0.002, 4);
    for (int i = 0; i < 200; i += 20) runs[i].loss *= 1.5; /* runs that diverged */
    assert_ok(moed_law_fit(&l, c, runs, 200, NULL, NULL));
    assert_ok(moed_law_create(&truth, c, NULL));
    assert_ok(moed_law_predict(l, 3e8, 4, 6e9, &fitted));
    assert_ok(moed_law_predict(truth, 3e8, 4, 6e9, &real));
    near(fitted, real, 0.004, "loss");
    moed_law_destroy(l), moed_law_destroy(truth);
    support_close(c);
}

static void a_host_may_trap_what_finite_numbers_do_not_raise(void **state)
{
    moed_run_point runs[60];
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    (void)state;
    published_runs(runs, 60, 4, 0.002, 7);
    feclearexcept(FE_ALL_EXCEPT);
    feenableexcept(FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW);
    const moed_status status = moed_law_fit(&l, c, runs, 60, NULL, NULL);
    const int still = fegetexcept();
    fedisableexcept(FE_ALL_EXCEPT);
    assert_ok(status);
    assert_int_equal(still, FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW);
    moed_law_destroy(l);
    support_close(c);
}

static void bad_runs_are_refused_by_number_and_field(void **state)
{
    moed_run_point runs[40];
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    moed_fit_options o = fit_options();
    (void)state;
    published_runs(runs, 40, 3, 0.002, 5);
    assert_refused(moed_law_fit(&l, c, runs, 5, NULL, NULL), MOED_E_ARGUMENT, "5 runs");
    assert_refused(moed_law_fit(&l, c, runs, 10, NULL, NULL), MOED_E_ARGUMENT, "at least 10");
    assert_refused(moed_law_fit(&l, c, NULL, 10, NULL, NULL), MOED_E_ARGUMENT, "runs is NULL");
    const double loss = runs[7].loss;
    runs[7].loss = NAN;
    assert_refused(moed_law_fit(&l, c, runs, 40, NULL, NULL), MOED_E_RANGE, "run 7: loss");
    runs[7].loss = -1;
    assert_refused(moed_law_fit(&l, c, runs, 40, NULL, NULL), MOED_E_RANGE, "run 7: loss is -1");
    runs[7].loss = loss;
    o.top_k = 64;
    assert_refused(moed_law_fit(&l, c, runs, 40, &o, NULL), MOED_E_RANGE, "run 0: experts");
    for (int i = 0; i < 40; i++) runs[i].tokens = 1e9;
    assert_refused(moed_law_fit(&l, c, runs, 40, NULL, NULL), MOED_E_ARGUMENT, "same number of tokens");
    assert_null(l);
    support_close(c);
}

static void a_cancelled_fit_and_one_without_memory_leave_nothing(void **state)
{
    moed_run_point runs[60];
    moed_cancel *cancel = NULL;
    moed_law *l = NULL;
    int64_t allowed = 0;
    moed_context *c = support_scarce_context(&allowed);
    moed_fit_options o = fit_options();
    (void)state;
    published_runs(runs, 60, 4, 0.002, 6);
    o.starts = 1, o.bootstrap = 1;
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_law_fit(&l, c, runs, 60, &o, cancel), MOED_E_CANCELLED, "cancelled");
    moed_cancel_destroy(cancel);
    assert_int_equal(support_held(c), 0);
    moed_status status = MOED_E_MEMORY;
    for (int64_t n = 0; support_scarce(c, &allowed, n, 0, status); n += n < 20 ? 1 : 20) /* the grid's blocks are alike */
        status = moed_law_fit(&l, c, runs, 60, &o, NULL);
    moed_law_destroy(l);
    support_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_preset_gives_the_published_table),
        cmocka_unit_test(the_optimum_is_the_closed_form_and_no_neighbour_is_better),
        cmocka_unit_test(other_presets_and_top_k_say_what_their_formulas_say),
        cmocka_unit_test(outside_the_range_the_log_tells_once_and_the_call_answers),
        cmocka_unit_test(own_coefficients_and_wrong_arguments),
        cmocka_unit_test(a_function_of_the_callers_is_a_law_too),
        cmocka_unit_test(a_fit_finds_the_law_behind_the_runs_for_any_number_of_threads),
        cmocka_unit_test(without_noise_a_fit_returns_the_coefficients),
        cmocka_unit_test(runs_of_one_number_of_experts_give_a_law_of_that_number),
        cmocka_unit_test(outliers_move_a_fit_little),
        cmocka_unit_test(a_host_may_trap_what_finite_numbers_do_not_raise),
        cmocka_unit_test(bad_runs_are_refused_by_number_and_field),
        cmocka_unit_test(a_cancelled_fit_and_one_without_memory_leave_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
