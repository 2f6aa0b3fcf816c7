/* The gradients of a step: the tree in which shards are summed, and that nothing is read of what no sum is in. */
#include "train_support.h"

#include "model/state.h"
#include "train/trainer.h"

static void extra_blocks_are_the_logarithm_of_the_shards(void **state)
{
    const moed_backend_info plain = {.dtype = MOED_DTYPE_F32, .wide = MOED_DTYPE_F32},
                            narrow = {.dtype = MOED_DTYPE_BF16, .wide = MOED_DTYPE_F32};
    (void)state;
    assert_int_equal(moedi_accumulator_extra(&narrow, 64), 0);
    assert_int_equal(moedi_accumulator_extra(&plain, 1), 0);
    assert_int_equal(moedi_accumulator_extra(&plain, 2), 1);
    assert_int_equal(moedi_accumulator_extra(&plain, 3), 1);
    assert_int_equal(moedi_accumulator_extra(&plain, 4), 2);
    assert_int_equal(moedi_accumulator_extra(&plain, 64), 6);
}

/* Sets every number of the open shard's gradients to `value`, as a backward would. */
static void put_shard(moedi_accumulator *a, moedi_transformer *t, float value)
{
    int64_t count;
    assert_ok(moedi_accumulator_open(a));
    float *block = moedi_transformer_gradients(t, &count);
    for (int64_t i = 0; i < count; i++) block[i] = (t->fresh && i >= t->added_count ? 0 : block[i]) + value;
    assert_ok(moedi_accumulator_close(a));
}

static void gradients_of_shards_are_summed_in_a_pairwise_tree(void **state)
{
    (void)state;
    const float big = 16777216.0f; /* 2^24: 1 added to it is lost, 2 is not */
    const float values[7] = {big, 0, 1, 1, 1, 1, -big};
    const float expected = ((big + 0.0f) + (1.0f + 1.0f)) + ((1.0f + 1.0f) + -big);
    moed_context *c = support_context("auto", 1);
    moed_model *m = tiny_model(c);
    moedi_transformer *t = NULL;
    moedi_accumulator a;
    assert_ok(moedi_transformer_create(&t, m, 1, 8, MOEDI_TRANSFORMER_TRAIN, NULL));
    assert_ok(moedi_accumulator_create(&a, t, 7));
    for (int round = 0; round < 2; round++) {
        moedi_accumulator_begin(&a);
        for (int i = 0; i < 7; i++) put_shard(&a, t, values[i]);
        assert_ok(moedi_accumulator_finish(&a));
        int64_t count;
        const float *total = moedi_transformer_gradients(t, &count);
        assert_true(total[0] == expected && total[count - 1] == expected);
        assert_true(total == a.blocks[0]);
        moedi_accumulator_clear(&a);
    }
    moedi_accumulator_destroy(&a);
    moedi_transformer_destroy(t);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

/* One call of a trainer; which `4` is a batch with a loss that is not finite. */
static moed_status some_call(moed_trainer *t, int which)
{
    float weights[6 * TINY_LENGTH];
    int32_t tokens[6 * TINY_LENGTH];
    for (int i = 0; i < 6 * TINY_LENGTH; i++) tokens[i] = (i * 7 + which) % TINY_VOCABULARY;
    for (int i = 0; i < 6 * TINY_LENGTH; i++) weights[i] = which == 4 && i % 5 == 0 ? 3e38f : 1;
    const moed_batch b = {.tokens = tokens, .labels = tokens, .weights = weights, .rows = which == 2 ? 5 : 6,
                          .length = TINY_LENGTH};
    moed_expansion_options grown;
    switch (which) {
    case 0: return moed_trainer_run(t, 1, NULL, NULL);
    case 1: return moed_trainer_update(t, 1, NULL);
    case 5:
        assert_ok(moed_options_init(MOED_STRUCT_EXPANSION_OPTIONS, &grown, sizeof grown));
        grown.experts = 7;
        return moed_trainer_expand(t, NULL, &grown, 1);
    default: return moed_trainer_forward_backward(t, &b, NULL);
    }
}

/* Blocks that hold no sum are NaN throughout in one of two trainers, and 0 in the other. */
static void what_gradients_hold_between_sums_is_not_read(void **state)
{
    static const int CALLS[] = {0, 2, 3, 1, 0, 2, 4, 3, 1, 5, 0, 3, 2, 1, 4, 0};
    (void)state;
    for (int64_t shards = 1; shards <= 6; shards += shards == 3 ? 3 : 1) {
        moed_train_options o = tiny_options(20);
        o.rows = 6, o.micro_batches = shards, o.load_balance = 1e-2;
        rig rigs[2] = {rig_open(&o, 1), rig_open(&o, 1)};
        int refused = 0;
        for (size_t i = 0; i < sizeof CALLS / sizeof *CALLS; i++) {
            moed_status status[2];
            for (int k = 0; k < 2; k++) {
                moedi_accumulator *const a = &rigs[k].trainer->gradients;
                for (int32_t block = !a->empty; block < a->block_count; block++)
                    memset(a->blocks[block], k ? 0xff : 0, (size_t)a->reals * sizeof(float));
                status[k] = some_call(rigs[k].trainer, CALLS[i]);
            }
            assert_int_equal(status[0], status[1]);
            refused += status[0] != MOED_OK;
            assert_same_models(moed_trainer_model(rigs[0].trainer), moed_trainer_model(rigs[1].trainer));
        }
        assert_int_equal(refused, 2); /* the batches that are not finite */
        rig_close(&rigs[0]), rig_close(&rigs[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(extra_blocks_are_the_logarithm_of_the_shards),
        cmocka_unit_test(gradients_of_shards_are_summed_in_a_pairwise_tree),
        cmocka_unit_test(what_gradients_hold_between_sums_is_not_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
