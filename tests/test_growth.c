/* The schedule of a growing pool: rules, rates, what is due, its state, and step times. */
#include "support.h"

static void near(double found, double expected, double share, const char *what)
{
    if (!(fabs(found - expected) <= share * fabs(expected))) fail_msg("%s: %.12g, not %.12g", what, found, expected);
}

static moed_growth_options growth_options(void)
{
    moed_growth_options o;
    assert_ok(moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &o, sizeof o));
    return o;
}

static moed_growth_point at(const moed_growth *g, int64_t tokens)
{
    moed_growth_point p = {.struct_size = sizeof p};
    assert_ok(moed_growth_at(g, tokens, &p));
    return p;
}

static moed_stage stage_of(const moed_growth *g, size_t index)
{
    moed_stage s = {.struct_size = sizeof s};
    assert_ok(moed_growth_stage(g, index, &s));
    return s;
}

/* 4 experts for 100 tokens, 8 for 200, 16 for 100, in steps of 10; the last 40 tokens fall to a tenth. */
static moed_growth *table(moed_context *c)
{
    const moed_stage stages[3] = {
        {.struct_size = sizeof *stages, .experts = 4, .top_k = 2, .tokens = 100, .learning_rate = 1, .warmup = 50},
        {.struct_size = sizeof *stages, .experts = 8, .tokens = 200, .learning_rate = 2, .warmup = 20},
        {.struct_size = sizeof *stages,
         .experts = 16,
         .top_k = 4,
         .tokens = 100,
         .learning_rate = 1,
         .decay = 40,
         .final_rate = 0.1,
         .decay_shape = MOED_DECAY_LINEAR},
    };
    moed_growth *g = NULL;
    moed_growth_options o = growth_options();
    o.step_tokens = 10;
    assert_ok(moed_growth_create(&g, c, stages, 3, &o));
    return g;
}

/* EMO's main run; the shares that the formula gives with the published coefficients. */
static void the_law_rule_gives_the_shares_of_the_formula(void **state)
{
    static const int32_t EXPERTS[] = {8, 16, 32, 64, 128};
    static const double SHARES[] = {25.4, 9.9, 15.5, 21.7, 27.4};
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    moed_growth *g = NULL;
    moed_law_options law;
    moed_growth_options o = growth_options();
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_LAW_OPTIONS, &law, sizeof law));
    law.top_k = 8;
    assert_ok(moed_law_create(&l, c, &law));
    o.tokens = 1920000000000, o.step_tokens = 8000000, o.active = 1.1e9;
    assert_ok(moed_growth_from_law(&g, c, l, EXPERTS, 5, &o));
    moed_law_destroy(l);
    int64_t sum = 0;
    for (size_t i = 0; i < 5; i++) {
        const moed_stage s = stage_of(g, i);
        if (fabs(100.0 * (double)s.tokens / 1.92e12 - SHARES[i]) > 0.1)
            fail_msg("stage %zu: %.3f%%", i, (double)s.tokens / 1.92e10);
        assert_int_equal(s.start, sum);
        assert_int_equal(s.tokens % o.step_tokens, 0);
        assert_int_equal(s.warmup, 500 * o.step_tokens);
        assert_int_equal(s.experts, EXPERTS[i]);
        near(s.learning_rate, 9e-4, 0, "rate");
        sum += s.tokens;
    }
    assert_int_equal(sum, o.tokens);
    assert_int_equal(stage_of(g, 4).decay, o.tokens / 10);
    near(at(g, sum - o.step_tokens).learning_rate + 1, 1, 0, "last rate");
    moed_growth_destroy(g);
    support_close(c);
}

static void tokens_by_hand_are_whole_steps_with_the_rates_of_a_rule(void **state)
{
    static const int32_t EXPERTS[] = {2, 4, 4};
    int64_t tokens[] = {104, 296, 5};
    moed_context *c = support_context("reference", 1);
    moed_growth *g = NULL;
    moed_growth_options o = growth_options();
    (void)state;
    o.step_tokens = 10, o.warmup = 2, o.expert_rate = -1, o.learning_rate = 1, o.decay = 0.1, o.decay_shape = MOED_DECAY_LINEAR;
    assert_ok(moed_growth_from_tokens(&g, c, EXPERTS, tokens, 2, &o));
    assert_int_equal(stage_of(g, 0).tokens, 100);
    assert_int_equal(stage_of(g, 0).warmup, 20);
    assert_int_equal(stage_of(g, 0).decay, 0);
    assert_int_equal(stage_of(g, 1).tokens, 300);
    assert_int_equal(stage_of(g, 1).decay, 40); /* a tenth of all, at the end */
    near(stage_of(g, 1).learning_rate, 0.5, 1e-15, "rate by experts");
    moed_growth_destroy(g);
    assert_ok(moed_growth_from_tokens(&g, c, EXPERTS, tokens, 3, &o)); /* half a step is one */
    assert_int_equal(stage_of(g, 2).tokens, 10);
    moed_growth_destroy(g);
    tokens[2] = 4;
    assert_refused(moed_growth_from_tokens(&g, c, EXPERTS, tokens, 3, &o), MOED_E_RANGE, "half a step");
    assert_refused(moed_growth_from_tokens(&g, c, EXPERTS, tokens, 0, &o), MOED_E_RANGE, "0 stages");
    int32_t one[20];
    int64_t most[20];
    for (int i = 0; i < 20; i++) one[i] = 1, most[i] = (int64_t)1 << 60;
    o.step_tokens = 1;
    assert_refused(moed_growth_from_tokens(&g, c, one, most, 20, &o), MOED_E_RANGE, "more than 2^61");
    support_close(c);
}

static void the_power_rule_ends_stages_at_its_power_in_whole_steps(void **state)
{
    static const int32_t EXPERTS[] = {2, 4, 16};
    moed_context *c = support_context("reference", 1);
    moed_growth *g = NULL;
    moed_growth_options o = growth_options();
    (void)state;
    o.tokens = 10001, o.step_tokens = 10, o.warmup = 1, o.exponent = 0.5, o.expert_rate = -1, o.learning_rate = 1;
    assert_ok(moed_growth_from_power(&g, c, EXPERTS, 3, &o));
    assert_int_equal(stage_of(g, 0).tokens, 3540); /* sqrt(1/8) of 1,001 steps */
    assert_int_equal(stage_of(g, 1).start + stage_of(g, 1).tokens, 5010); /* a half: 500.5 steps */
    assert_int_equal(stage_of(g, 2).start + stage_of(g, 2).tokens, 10010);
    near(stage_of(g, 2).learning_rate, 1.0 / 8, 1e-15, "rate by experts");
    moed_growth_destroy(g);

    o.tokens = 20;
    assert_refused(moed_growth_from_power(&g, c, EXPERTS, 3, &o), MOED_E_RANGE, "would get no step");
    o.tokens = 0;
    assert_refused(moed_growth_from_power(&g, c, EXPERTS, 3, &o), MOED_E_RANGE, "tokens is 0");
    o.tokens = 10000;
    static const int32_t FALLING[] = {4, 4};
    assert_refused(moed_growth_from_power(&g, c, FALLING, 2, &o), MOED_E_RANGE, "4 after 4");
    support_close(c);
}

static int32_t steep_loss(double active, double experts, double tokens, double *loss, void *user)
{
    (void)user;
    *loss = pow(active, -0.5) + 1e-3 * experts * pow(tokens, -0.5); /* D* = 1e-6 experts^2 active */
    return 0;
}

static void a_law_of_the_callers_makes_a_schedule(void **state)
{
    static const int32_t EXPERTS[] = {1, 2};
    moed_context *c = support_context("reference", 1);
    moed_law *l = NULL;
    moed_growth *g = NULL;
    moed_law_options law;
    moed_growth_options o = growth_options();
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_LAW_OPTIONS, &law, sizeof law));
    law.preset = MOED_LAW_CUSTOM, law.form = MOED_FORM_CALLBACK, law.loss = steep_loss;
    assert_ok(moed_law_create(&l, c, &law));
    o.tokens = 4000000, o.active = 1e9;
    assert_ok(moed_growth_from_law(&g, c, l, EXPERTS, 2, &o));
    near((double)stage_of(g, 0).tokens, 1e6, 1e-5, "a quarter");
    moed_growth_destroy(g);
    o.active = 0;
    assert_refused(moed_growth_from_law(&g, c, l, EXPERTS, 2, &o), MOED_E_RANGE, "active is 0");
    moed_law_destroy(l);
    support_close(c);
}

static void the_rate_rises_after_each_expansion_and_falls_at_the_end(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_growth *g = table(c);
    (void)state;
    near(at(g, 0).learning_rate, 0.2, 1e-15, "first step"); /* of its end: 10 of 50 */
    near(at(g, 40).learning_rate, 1, 1e-15, "peak");
    near(at(g, 90).learning_rate, 1, 1e-15, "plateau");
    near(at(g, 100).learning_rate, 1, 1e-15, "half of the second warm-up");
    near(at(g, 110).learning_rate, 2, 1e-15, "second peak");
    near(at(g, 350).learning_rate, 1, 1e-15, "before the fall");
    near(at(g, 360).learning_rate, 0.775, 1e-15, "a quarter of it");
    near(at(g, 390).learning_rate, 0.1, 1e-15, "last step");
    near(at(g, 395).learning_rate, 0.1, 1e-15, "a step that ends beyond");
    near(at(g, 4000).learning_rate, 0.1, 1e-15, "beyond");
    moed_growth_destroy(g);

    moed_stage one = {.struct_size = sizeof one, .experts = 1, .tokens = 100, .learning_rate = 1, .decay = 100, .final_rate = 0.2,
                      .decay_shape = MOED_DECAY_COSINE};
    moed_growth_options o = growth_options();
    o.step_tokens = 1;
    assert_ok(moed_growth_create(&g, c, &one, 1, &o));
    near(at(g, 49).learning_rate, 0.6, 1e-12, "middle of a cosine");
    near(at(g, 99).learning_rate, 0.2, 1e-12, "its end");
    moed_growth_destroy(g);
    support_close(c);
}

/* A loop that trains, expands when that is due, and is killed and resumed from its state at any point. */
static void a_run_that_is_killed_anywhere_finds_the_same_schedule(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_growth *g = table(c);
    unsigned char kept[1024];
    double rates[64];
    int32_t experts[64];
    size_t size = 0;
    int steps = 0;
    (void)state;
    for (int kill = -1; kill < 80; kill++) { /* -1: never; then before or after the expansion of a step */
        moed_growth_destroy(g);
        g = table(c);
        int64_t tokens = 0;
        int32_t pool = 4, expansions = 0, visited = 0;
        int step = 0, events = 0;
        for (;;) {
            for (int half = 0; half < 2; half++) {
                if (events++ == kill) { /* what is in memory is gone; the checkpoint is of this moment */
                    assert_ok(moed_growth_get_state(g, kept, sizeof kept, &size));
                    moed_growth_destroy(g);
                    if (kill % 2) assert_ok(moed_growth_from_state(&g, c, kept, size));
                    else {
                        g = table(c);
                        assert_ok(moed_growth_set_state(g, kept, size));
                    }
                }
                const moed_growth_point p = at(g, tokens);
                if (half == 0 && p.due & MOED_GROWTH_EXPAND) {
                    assert_int_equal(p.experts_now, pool);
                    pool = p.experts, visited = p.top_k, expansions++;
                    assert_ok(moed_growth_enter(g, p.stage, tokens));
                    assert_false(at(g, tokens).due & MOED_GROWTH_EXPAND);
                }
            }
            const moed_growth_point p = at(g, tokens);
            if (p.due & MOED_GROWTH_END) break;
            assert_int_equal(p.experts, pool);
            if (kill < 0) rates[step] = p.learning_rate, experts[step] = pool;
            else assert_true(rates[step] == p.learning_rate && experts[step] == pool);
            step++;
            tokens += 10;
        }
        if (kill < 0) steps = step;
        assert_int_equal(step, 40);
        assert_int_equal(expansions, 2);
        assert_int_equal(visited, 4);
    }
    assert_int_equal(steps, 40);
    assert_int_equal(at(g, 150).top_k, 2); /* as before */
    moed_growth_info info = {.struct_size = sizeof info};
    assert_ok(moed_growth_get_info(g, &info));
    assert_int_equal(info.entered, 2), assert_int_equal(info.entered_at, 300), assert_int_equal(info.tokens, 400);
    assert_refused(moed_growth_enter(g, 1, 400), MOED_E_STATE, "in stage 2 already");
    assert_refused(moed_growth_enter(g, 3, 400), MOED_E_RANGE, "no stage 3");
    moed_growth_destroy(g);
    support_close(c);
}

static void damaged_and_foreign_states_change_nothing(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_growth *g = table(c), *other = NULL;
    unsigned char kept[1024], bad[1024];
    size_t size = 0;
    (void)state;
    assert_ok(moed_growth_enter(g, 1, 100));
    assert_ok(moed_growth_get_state(g, NULL, 0, &size));
    assert_refused(moed_growth_get_state(g, kept, size - 1, &size), MOED_E_RANGE, "takes");
    assert_ok(moed_growth_get_state(g, kept, sizeof kept, &size));
    for (size_t i = 0; i < size; i++) {
        memcpy(bad, kept, size);
        bad[i] ^= 0x40;
        const moed_status status = moed_growth_set_state(g, bad, size);
        assert_true(status == MOED_E_FORMAT || status == MOED_E_CHECKSUM);
        assert_true(moed_growth_from_state(&other, c, bad, size) == status);
    }
    for (size_t n = 0; n < size; n++) assert_refused(moed_growth_set_state(g, kept, n), MOED_E_FORMAT, "state");
    assert_null(other);

    moed_stage s = stage_of(g, 0);
    moed_growth_options o = growth_options();
    o.step_tokens = 10;
    assert_ok(moed_growth_create(&other, c, &s, 1, &o));
    assert_refused(moed_growth_set_state(other, kept, size), MOED_E_MISMATCH, "3 stages, this one has 1");
    moed_growth_destroy(other);
    moed_stage stages[3];
    for (size_t i = 0; i < 3; i++) stages[i] = stage_of(g, i);
    stages[1].learning_rate = 3;
    assert_ok(moed_growth_create(&other, c, stages, 3, &o));
    assert_refused(moed_growth_set_state(other, kept, size), MOED_E_MISMATCH, "stage 1: learning_rate");
    moed_growth_info info = {.struct_size = sizeof info};
    assert_ok(moed_growth_get_info(other, &info));
    assert_int_equal(info.entered, 0);
    moed_growth_destroy(other), moed_growth_destroy(g);
    support_close(c);
}

static void bad_tables_are_refused_by_stage_and_field(void **state)
{
    moed_context *c = support_context("reference", 1);
    moed_growth *g = NULL;
    const moed_stage good = {
        .struct_size = sizeof good, .experts = 4, .tokens = 100, .learning_rate = 1, .warmup = 10, .decay = 10, .decay_shape = 1};
    moed_stage s[2] = {good, good};
    (void)state;
    assert_refused(moed_growth_create(&g, c, s, 0, NULL), MOED_E_RANGE, "0 stages");
    s[1].experts = 3;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "stage 1: experts is 3");
    s[1] = good, s[1].warmup = 95;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "stage 1: decay");
    s[1] = good, s[1].tokens = 0;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "tokens is 0");
    s[1] = good, s[1].learning_rate = NAN;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "must be from 0 to 100");
    s[1] = good, s[1].top_k = 5;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "top_k is 5");
    s[1] = good, s[1].flags = 4;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "stage 1: flags is 4");
    s[1] = good, s[1].reserved = 1;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_RANGE, "stage 1: reserved is 1");
    s[1] = good, s[1].struct_size = 8;
    assert_refused(moed_growth_create(&g, c, s, 2, NULL), MOED_E_STRUCT, "stage 1: struct_size");
    s[1] = good;
    assert_ok(moed_growth_create(&g, c, s, 2, NULL));
    moed_growth_point p = {.struct_size = sizeof p};
    moed_stage none = {.struct_size = sizeof none};
    assert_int_equal(at(g, 150).due, 0); /* as many experts as before: nothing to expand */
    assert_refused(moed_growth_at(g, -1, &p), MOED_E_RANGE, "below 0");
    assert_refused(moed_growth_stage(g, 2, &none), MOED_E_RANGE, "no stage 2");
    moed_growth_destroy(g);
    support_close(c);
}

static void without_memory_nothing_is_left(void **state)
{
    static const int32_t EXPERTS[] = {2, 4};
    int64_t allowed = 0;
    moed_context *c = support_scarce_context(&allowed);
    moed_growth *g = NULL;
    moed_growth_options o = growth_options();
    moed_status status = MOED_E_MEMORY;
    (void)state;
    o.tokens = 1000;
    for (int64_t n = 0; support_scarce(c, &allowed, n, 0, status); n++)
        status = moed_growth_from_power(&g, c, EXPERTS, 2, &o);
    moed_growth_destroy(g);
    support_close(c);
}

static void step_times_lie_on_lines_and_say_where_they_come_from(void **state)
{
    const moed_step_time points[] = {{64, 4}, {8, 1}, {16, 2}};
    const struct { double experts, seconds; int32_t how; } rows[] = {
        {8, 1, MOED_TIME_GIVEN}, {64, 4, MOED_TIME_GIVEN}, {12, 1.5, MOED_TIME_BETWEEN}, {40, 3, MOED_TIME_BETWEEN},
        {112, 6, MOED_TIME_BEYOND}, {4, 0.5, MOED_TIME_BEYOND}, {1, 0.125, MOED_TIME_BEYOND},
    };
    double seconds;
    int32_t how;
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        assert_ok(moed_step_time_at(points, 3, rows[i].experts, &seconds, &how));
        near(seconds, rows[i].seconds, 1e-12, "seconds");
        assert_int_equal(how, rows[i].how);
    }
    assert_ok(moed_step_time_at(points, 1, 8, &seconds, &how));
    assert_true(seconds == 4 && how == MOED_TIME_SINGLE);
    assert_ok(moed_step_time_at(points, 1, 64, &seconds, &how));
    assert_int_equal(how, MOED_TIME_GIVEN);
    const moed_step_time falling[] = {{8, 2}, {16, 1}};
    assert_ok(moed_step_time_at(falling, 2, 100, &seconds, NULL));
    assert_true(seconds == 0);
    const moed_step_time twice[] = {{8, 2}, {8, 1}}, none[] = {{8, 0}};
    assert_refused(moed_step_time_at(twice, 2, 8, &seconds, NULL), MOED_E_ARGUMENT, "both of 8");
    assert_refused(moed_step_time_at(none, 1, 8, &seconds, NULL), MOED_E_RANGE, "seconds is 0");
    assert_refused(moed_step_time_at(points, 0, 8, &seconds, NULL), MOED_E_ARGUMENT, "no step time");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_law_rule_gives_the_shares_of_the_formula),
        cmocka_unit_test(the_power_rule_ends_stages_at_its_power_in_whole_steps),
        cmocka_unit_test(tokens_by_hand_are_whole_steps_with_the_rates_of_a_rule),
        cmocka_unit_test(a_law_of_the_callers_makes_a_schedule),
        cmocka_unit_test(the_rate_rises_after_each_expansion_and_falls_at_the_end),
        cmocka_unit_test(a_run_that_is_killed_anywhere_finds_the_same_schedule),
        cmocka_unit_test(damaged_and_foreign_states_change_nothing),
        cmocka_unit_test(bad_tables_are_refused_by_stage_and_field),
        cmocka_unit_test(without_memory_nothing_is_left),
        cmocka_unit_test(step_times_lie_on_lines_and_say_where_they_come_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
