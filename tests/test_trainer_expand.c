/* A pool that grows inside a trainer: that of its model by hand, moments carried or fresh, checkpoints, and what cannot grow. */
#include "train_support.h"

#include "model/model.h"

static moed_expansion_options growing(int32_t experts)
{
    moed_expansion_options o;
    assert_ok(moed_options_init(MOED_STRUCT_EXPANSION_OPTIONS, &o, sizeof o));
    o.experts = experts, o.seed = 3;
    return o;
}

/* In the trainer as by hand: surgery on its model, and a trainer with a fresh optimizer that takes the stream up there. */
static void an_expansion_inside_a_trainer_is_that_of_its_model(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(8);
    const moed_expansion_options grown = growing(7);
    o.schedule = MOED_SCHEDULE_CONSTANT, o.warmup = 0;
    rig inside = rig_open(&o, 1), first = rig_open(&o, 1);
    rig_run(&inside, 5), rig_run(&first, 5);
    assert_ok(moed_trainer_expand(inside.trainer, NULL, &grown, 0));
    assert_same_models(first.model, inside.model); /* the one that went has the last step's numbers */
    moed_expansion *x = NULL;
    moed_model *big = NULL;
    moed_trainer *t = NULL;
    assert_ok(moed_expansion_create(&x, first.model, NULL, &grown));
    assert_ok(moed_expansion_build(&big, x, NULL, NULL));
    assert_same_models(big, moed_trainer_model(inside.trainer));
    o.first_row = 5 * o.rows, o.steps = 3;
    assert_ok(moed_trainer_create(&t, first.context, big, first.corpus, NULL, &o));
    moed_report a = rig_run(&inside, 3), b = empty_report();
    assert_ok(moed_trainer_run(t, 3, &b, NULL));
    assert_true(a.loss == b.loss && a.gradient_norm == b.gradient_norm && a.step == 8);
    assert_same_models(big, moed_trainer_model(inside.trainer));
    moed_trainer_destroy(t);
    moed_expansion_destroy(x);
    moed_model_destroy(big);
    rig_close(&first);
    rig_close(&inside);
}

/* Growing by experts that nobody chooses, moments carried, is as if nothing had been done: what is not of the new experts has the
 * bits of a run that never grew. */
static void carried_moments_go_on_as_they_were(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(8);
    o.clip = 0, o.load_balance = o.z_loss = 0; /* which the number of experts has a part in */
    o.train = "shared,expert"; /* routers: their softmax is over all experts */
    rig plain = rig_open(&o, 1), grown = rig_open(&o, 1), reset = rig_open(&o, 1);
    rig *const both[] = {&grown, &reset};
    moed_expansion_options big = growing(6), small = growing(4);
    const double usage[] = {2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1};
    rig_run(&plain, 0);
    for (int i = 0; i < 2; i++) {
        rig_run(both[i], 4);
        assert_ok(moed_trainer_expand(both[i]->trainer, NULL, &big, i == 0));
        assert_ok(moed_trainer_expand(both[i]->trainer, usage, &small, i == 0));
        rig_run(both[i], 0);
    }
    assert_same_models(plain.model, moed_trainer_model(grown.trainer));
    const moed_tensor a = model_tensor(plain.model, 1), b = model_tensor(moed_trainer_model(reset.trainer), 1);
    assert_memory_not_equal(a.data, b.data, tensor_bytes(&a));
    rig_close(&reset);
    rig_close(&grown);
    rig_close(&plain);
}

static void a_checkpoint_of_a_grown_trainer_goes_on_to_its_bits(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_train_options o = tiny_options(9);
    const moed_expansion_options grown = growing(7);
    o.directory = dir;
    rig r = rig_open(&o, 1);
    moed_trainer *t = NULL;
    rig_run(&r, 3);
    assert_ok(moed_trainer_expand(r.trainer, NULL, &grown, 0));
    rig_run(&r, 2);
    assert_ok(moed_trainer_save(r.trainer));
    moed_model *other = tiny_model_of(r.context, 16, 2, 7, TINY_VOCABULARY), *kept = NULL;
    rig_run(&r, 0);
    kept = moedi_model_retain(moed_trainer_model(r.trainer));
    moed_trainer_destroy(r.trainer);
    r.trainer = NULL;
    assert_ok(moed_trainer_create(&t, r.context, other, r.corpus, NULL, &o));
    assert_ok(moed_trainer_resume(t));
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    assert_same_models(kept, other);
    moed_trainer_destroy(t);
    moed_model_destroy(kept);
    moed_model_destroy(other);
    rig_close(&r);
    support_remove(dir);
}

static void what_cannot_grow_is_refused_and_trains_on(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(6);
    o.policy = MOED_POLICY_LEAN;
    rig same = rig_open(&o, 1), r = rig_open(&o, 1);
    moed_expansion_options few = growing(2), many = growing(8);
    rig_run(&r, 2);
    assert_refused(moed_trainer_expand(r.trainer, NULL, &few, 0), MOED_E_ARGUMENT, "without usage");
    assert_refused(moed_trainer_expand(r.trainer, NULL, &many, 1), MOED_E_UNSUPPORTED, "policy lean");
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    assert_refused(moed_trainer_expand(r.trainer, NULL, &many, 0), MOED_E_STATE, "wait for moed_trainer_update");
    assert_ok(moed_trainer_update(r.trainer, 1, NULL));
    rigs_end_alike(&r, &same);
}

/* Under limits from where the surgery has no room to where all has. */
static void an_expansion_that_does_not_fit_leaves_the_trainer_as_it_was(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(4);
    const moed_expansion_options many = growing(64);
    rig whole = rig_open(&o, 1);
    moed_status status = MOED_E_LIMIT;
    int budgets = 0;
    rig_run(&whole, 0);
    for (int64_t limit = 1000000; status == MOED_E_LIMIT; limit += 100000) {
        moed_context_options c;
        rig r = {0};
        assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &c, sizeof c));
        c.flags = MOED_CONTEXT_NO_ENV, c.threads = 1, c.host_limit = limit;
        assert_ok(moed_context_create(&r.context, &c));
        r.model = tiny_model(r.context), r.corpus = tiny_corpus(r.context, NULL);
        assert_ok(moed_trainer_create(&r.trainer, r.context, r.model, r.corpus, NULL, &o));
        if (moed_trainer_run(r.trainer, 2, NULL, NULL) == MOED_OK) { /* else: operations of many threads had no room */
            status = moed_trainer_expand(r.trainer, NULL, &many, 1);
            budgets += status == MOED_E_LIMIT && strstr(moed_last_error(), "training needs") != NULL;
            if (status == MOED_E_LIMIT) {
                rig_run(&r, 0);
                assert_same_models(whole.model, r.model);
            }
        }
        rig_close(&r);
    }
    assert_ok(status);
    assert_true(budgets > 0);
    rig_close(&whole);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_expansion_inside_a_trainer_is_that_of_its_model),
        cmocka_unit_test(carried_moments_go_on_as_they_were),
        cmocka_unit_test(a_checkpoint_of_a_grown_trainer_goes_on_to_its_bits),
        cmocka_unit_test(what_cannot_grow_is_refused_and_trains_on),
        cmocka_unit_test(an_expansion_that_does_not_fit_leaves_the_trainer_as_it_was),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
