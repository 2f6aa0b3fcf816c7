/* The rates of each step, and what phases cost. */
#include "support.h"

#include "train/schedule.h"

static moed_train_options options(int32_t schedule)
{
    moed_train_options o;
    assert_ok(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
    o.steps = 100;
    o.schedule = schedule;
    o.learning_rate = 2.0;
    o.final_rate = 0.1;
    o.warmup = 0.1;
    o.decay = 0.2;
    return o;
}

static void check(double found, double expected)
{
    if (fabs(found - expected) > 1e-12) fail_msg("%.15g, not %.15g", found, expected);
}

static void warmup_rises_from_the_first_step_to_the_peak(void **state)
{
    (void)state;
    for (int32_t s = MOED_SCHEDULE_CONSTANT; s <= MOED_SCHEDULE_WSD; s++) {
        const moed_train_options o = options(s);
        check(moedi_schedule_rate(&o, 1), 0.2);
        check(moedi_schedule_rate(&o, 5), 1.0);
        check(moedi_schedule_rate(&o, 10), 2.0);
    }
}

static void constant_stays(void **state)
{
    (void)state;
    const moed_train_options o = options(MOED_SCHEDULE_CONSTANT);
    check(moedi_schedule_rate(&o, 11), 2.0);
    check(moedi_schedule_rate(&o, 100), 2.0);
}

static void cosine_passes_the_middle_and_ends_at_the_final_rate(void **state)
{
    (void)state;
    const moed_train_options o = options(MOED_SCHEDULE_COSINE);
    check(moedi_schedule_rate(&o, 55), 1.1); /* half-way between 2 and 0.2 */
    check(moedi_schedule_rate(&o, 100), 0.2);
    check(moedi_schedule_rate(&o, 1000), 0.2);
    for (int64_t s = 11; s <= 100; s++) assert_true(moedi_schedule_rate(&o, s) < moedi_schedule_rate(&o, s - 1));
}

static void wsd_is_flat_then_linear_to_the_final_rate(void **state)
{
    (void)state;
    const moed_train_options o = options(MOED_SCHEDULE_WSD);
    check(moedi_schedule_rate(&o, 11), 2.0);
    check(moedi_schedule_rate(&o, 80), 2.0);
    check(moedi_schedule_rate(&o, 90), 1.1);
    check(moedi_schedule_rate(&o, 100), 0.2);
}

static void one_step_and_extreme_shares_stay_in_range(void **state)
{
    (void)state;
    for (int32_t s = MOED_SCHEDULE_CONSTANT; s <= MOED_SCHEDULE_WSD; s++) {
        moed_train_options o = options(s);
        for (int i = 0; i < 3; i++) {
            o.steps = i == 0 ? 1 : 3;
            o.warmup = i == 1 ? 1.0 : 0.0;
            o.decay = i == 2 ? 1.0 : 0.0;
            for (int64_t step = 1; step <= o.steps; step++) {
                const double rate = moedi_schedule_rate(&o, step);
                assert_true(rate >= 0.2 - 1e-12 && rate <= 2.0);
            }
        }
    }
}

static void cost_sums_phases_and_pays_all_devices_until_the_last_is_done(void **state)
{
    (void)state;
    const moed_phase phases[2] = {
        {.struct_size = sizeof phases[0], .name = "S", .flops = 3600e12, .device_flops = 1e12, .price = 0.5, .devices = 4,
         .seconds = 7},
        {.struct_size = sizeof phases[0], .name = "F", .flops = 7200e12, .device_flops = 2e12, .price = 8, .devices = 1,
         .seconds = 0},
    };
    moed_cost cost = {.struct_size = sizeof cost};
    assert_ok(moed_train_cost(phases, 2, &cost));
    check(cost.hours, 2);
    check(cost.device_hours, 5);
    check(cost.money, 10);
    check(cost.flops / 1e12, 4 * 3600 + 7200);
    check(cost.seconds, 7);
    assert_ok(moed_train_cost(NULL, 0, &cost));
    check(cost.money, 0);
}

/* 0 is what the struct of a caller lacks who was built before the field was there. */
static void the_balance_rate_falls_from_its_boost_and_0_is_none(void **state)
{
    (void)state;
    moed_train_options o = options(MOED_SCHEDULE_WSD);
    o.balance_rate = 0.5, o.balance_boost = 1024;
    check(moedi_schedule_balance(&o, 1), 512);
    check(moedi_schedule_balance(&o, 6), 16);
    check(moedi_schedule_balance(&o, 11), 0.5);
    for (o.balance_boost = 0; o.balance_boost <= 1; o.balance_boost++)
        for (int64_t step = 1; step <= 100; step++) check(moedi_schedule_balance(&o, step), 0.5);
}

static void cost_refuses_bad_phases_by_name(void **state)
{
    (void)state;
    moed_cost cost = {.struct_size = sizeof cost};
    moed_phase p = {.struct_size = sizeof p, .name = "S", .flops = 1, .device_flops = 0, .price = 1, .devices = 1};
    assert_refused(moed_train_cost(&p, 1, &cost), MOED_E_RANGE, "device_flops is 0");
    p.device_flops = 1, p.devices = 0;
    assert_refused(moed_train_cost(&p, 1, &cost), MOED_E_RANGE, "devices is 0");
    p.devices = 1, p.price = NAN;
    assert_refused(moed_train_cost(&p, 1, &cost), MOED_E_RANGE, "price");
    p.price = 1, p.struct_size = 8;
    assert_refused(moed_train_cost(&p, 1, &cost), MOED_E_STRUCT, "struct_size");
    assert_refused(moed_train_cost(NULL, 1, &cost), MOED_E_ARGUMENT, "phases");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warmup_rises_from_the_first_step_to_the_peak),
        cmocka_unit_test(constant_stays),
        cmocka_unit_test(cosine_passes_the_middle_and_ends_at_the_final_rate),
        cmocka_unit_test(wsd_is_flat_then_linear_to_the_final_rate),
        cmocka_unit_test(the_balance_rate_falls_from_its_boost_and_0_is_none),
        cmocka_unit_test(one_step_and_extreme_shares_stay_in_range),
        cmocka_unit_test(cost_sums_phases_and_pays_all_devices_until_the_last_is_done),
        cmocka_unit_test(cost_refuses_bad_phases_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
