/* The trainer: what a step does, what it refuses, and that its bits do not depend on threads. */
#include "train_support.h"

#include <fcntl.h>

#include "model/state.h"
#include "train/trainer.h"

static void loss_falls_on_a_corpus_that_can_be_learned(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(120);
    rig r = rig_open(&o, 2);
    const moed_report first = rig_run(&r, 1), last = rig_run(&r, 0);
    assert_true(first.loss > 3.0 && first.loss < 6.0); /* about log 48 */
    assert_true(last.loss < 0.6 * first.loss);
    assert_int_equal(last.step, 120);
    assert_int_equal(last.tokens, 120 * 4 * TINY_LENGTH);
    assert_int_equal(last.labels, 4 * TINY_LENGTH);
    assert_true(last.max_load >= 1.0 && last.max_load <= 4.0);
    assert_true(last.load_balance >= 0.9 && last.z_loss > 0);
    rig_close(&r);
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(6);
    o.micro_batches = 2;
    for (o.policy = MOED_POLICY_FULL; o.policy <= MOED_POLICY_LEAN; o.policy++) {
        rig one = rig_open(&o, 1);
        rig_run(&one, 0);
        for (int32_t threads = 2; threads <= 3; threads++) {
            rig more = rig_open(&o, threads);
            rig_run(&more, 0);
            assert_same_models(one.model, more.model);
            rig_close(&more);
        }
        rig_close(&one);
    }
}

static double mean_of_last_losses(const moed_train_options *o, int64_t last)
{
    rig r = rig_open(o, 1);
    double sum = 0;
    rig_run(&r, o->steps - last);
    for (int64_t i = 0; i < last; i++) sum += rig_run(&r, 1).loss / (double)last;
    rig_close(&r);
    return sum;
}

static void lean_learns_as_much_as_full(void **state)
{
    (void)state;
    const double slow[2] = {0.95, 0.999}; /* also where the second moment moves by less than a code's step at a time */
    for (int i = 0; i < 2; i++) {
        moed_train_options o = tiny_options(150);
        o.beta2 = slow[i], o.learning_rate = 4e-3, o.schedule = MOED_SCHEDULE_CONSTANT;
        o.policy = MOED_POLICY_FULL;
        const double full = mean_of_last_losses(&o, 30);
        o.policy = MOED_POLICY_LEAN;
        const double lean = mean_of_last_losses(&o, 30);
        print_message("beta2 %g: mean loss of the last 30 of 150 steps: full %.5f, lean %.5f (%+.2f%%)\n", slow[i], full, lean,
                      100 * (lean / full - 1));
        assert_true(fabs(lean / full - 1) < 0.03);
    }
}

/* A limit between what either needs: AUTO comes to lean, and says so beforehand; with room for both, to full. */
static void auto_is_lean_where_full_does_not_fit(void **state)
{
    (void)state;
    moed_context *measured = support_context("auto", 1);
    moed_model *m = tiny_model_of(measured, 64, 2, 4, 512);
    moed_train_options o = tiny_options(2);
    moed_estimate e[3] = {{.struct_size = sizeof e[0]}, {.struct_size = sizeof e[0]}, {.struct_size = sizeof e[0]}};
    for (o.policy = MOED_POLICY_AUTO; o.policy <= MOED_POLICY_LEAN; o.policy++)
        assert_ok(moed_train_estimate(moed_model_layout(m), NULL, &o, &e[o.policy]));
    assert_int_equal(e[0].policy, MOED_POLICY_FULL);
    assert_int_equal(e[0].host_bytes, e[1].host_bytes);
    assert_int_equal(e[2].policy, MOED_POLICY_LEAN);
    assert_true(e[2].moments < 0.26 * (double)e[1].moments && e[2].host_bytes < e[1].host_bytes);
    /* a device that has a sixteenth more than one of them needs */
    moed_device_info d = {.struct_size = sizeof d, .backend = "cuda"};
    for (int32_t policy = MOED_POLICY_FULL; policy <= MOED_POLICY_LEAN; policy++) {
        o.policy = policy;
        assert_ok(moed_train_estimate(moed_model_layout(m), &d, &o, &e[0]));
        moed_device_info small = d;
        small.memory = (e[0].device_bytes + 16) / 15 * 16;
        o.policy = MOED_POLICY_AUTO;
        assert_ok(moed_train_estimate(moed_model_layout(m), &small, &o, &e[0]));
        assert_int_equal(e[0].policy, policy);
    }
    moed_model_destroy(m);
    moed_context_destroy(measured);

    for (int i = 0; i < 2; i++) {
        moed_context_options options;
        moed_context *c = NULL;
        moed_trainer *t = NULL;
        moed_trainer_info info = {.struct_size = sizeof info};
        assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &options, sizeof options));
        options.flags = MOED_CONTEXT_NO_ENV;
        options.host_limit = i ? 2 * e[1].host_bytes : (e[1].host_bytes + e[2].host_bytes) / 2;
        assert_ok(moed_context_create(&c, &options));
        m = tiny_model_of(c, 64, 2, 4, 512);
        moed_corpus *corpus = tiny_corpus(c, NULL);
        o.policy = MOED_POLICY_AUTO;
        assert_ok(moed_train_estimate(moed_model_layout(m), NULL, &o, &e[0]));
        assert_ok(moed_trainer_create(&t, c, m, corpus, NULL, &o));
        assert_ok(moed_trainer_run(t, 0, NULL, NULL));
        assert_ok(moed_trainer_get_info(t, &info));
        assert_int_equal(info.policy, i ? MOED_POLICY_FULL : MOED_POLICY_LEAN);
        assert_int_equal(e[0].policy, info.policy);
        moed_trainer_destroy(t);
        moed_corpus_destroy(corpus);
        moed_model_destroy(m);
        moed_context_destroy(c);
    }
}

static void micro_batches_give_nearly_the_same_update(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(10);
    o.load_balance = 0; /* the routers' losses are means over shards: not the same function of the whole */
    o.clip = 0;
    rig one = rig_open(&o, 1);
    const moed_report whole = rig_run(&one, 1);
    for (o.micro_batches = 2; o.micro_batches <= 4; o.micro_batches *= 2) {
        rig more = rig_open(&o, 1);
        const moed_report r = rig_run(&more, 1);
        assert_true(fabs(r.loss - whole.loss) < 1e-5);
        assert_true(fabs(r.gradient_norm - whole.gradient_norm) < 1e-4 * whole.gradient_norm);
        assert_true(fabs(r.load_balance - whole.load_balance) < 0.5);
        rig_close(&more);
    }
    rig_close(&one);
}

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

static void frozen_parameters_keep_their_bits_and_have_no_state(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(3);
    rig all = rig_open(&o, 1);
    moed_context_info before = {.struct_size = sizeof before}, after = before;
    moed_trainer_info info = {.struct_size = sizeof info};
    assert_ok(moed_context_get_info(all.context, &before));
    o.train = "router, model.norm.weight";
    rig r = rig_open(&o, 1);
    assert_ok(moed_context_get_info(r.context, &after));
    assert_true(after.host_in_use < before.host_in_use);
    assert_ok(moed_trainer_get_info(r.trainer, &info));
    assert_int_equal(info.trained, 2 * 4 * 16 + 16);
    rig_run(&r, 0);
    moed_model *fresh = tiny_model(r.context);
    for (size_t i = 0; i < model_params(fresh); i++) {
        const moed_tensor x = model_tensor(r.model, i), y = model_tensor(fresh, i);
        moed_param p;
        moed_tensor gradient;
        assert_ok(moed_layout_param(moed_model_layout(fresh), i, &p));
        const int trains = p.role == MOED_ROLE_ROUTER || strcmp(p.name, "model.norm.weight") == 0;
        if ((memcmp(x.data, y.data, tensor_bytes(&x)) != 0) != trains)
            fail_msg("%s %s", p.name, trains ? "did not move" : "moved");
        assert_ok(moed_trainer_gradient(r.trainer, i, &gradient));
        assert_true((gradient.data != NULL) == trains);
    }
    moed_model_destroy(fresh);
    rig_close(&r);
    rig_close(&all);
}

static void freeze_takes_away_from_train(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(1);
    o.freeze = "*.layers.0.*,expert";
    rig r = rig_open(&o, 1);
    rig_run(&r, 0);
    moed_model *fresh = tiny_model(r.context);
    static const struct { const char *name; int trains; } cases[] = {
        {"model.embed_tokens.weight", 1}, {"model.layers.0.mlp.gate.weight", 0}, {"model.layers.1.mlp.gate.weight", 1},
        {"model.layers.1.mlp.experts.2.down_proj.weight", 0}, {"model.layers.1.self_attn.q_proj.weight", 1},
        {"lm_head.weight", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const size_t p = model_find(fresh, cases[i].name);
        const moed_tensor x = model_tensor(r.model, p), y = model_tensor(fresh, p);
        if ((memcmp(x.data, y.data, tensor_bytes(&x)) != 0) != cases[i].trains) fail_msg("%s", cases[i].name);
    }
    moed_model_destroy(fresh);
    rig_close(&r);
}

/* Some members of groups that are computed as one train, others do not. */
static void a_frozen_member_of_a_group_that_trains_keeps_its_bits_and_has_no_moments(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(3);
    moed_estimate some = {.struct_size = sizeof some}, all = some;
    moed_trainer_info info = {.struct_size = sizeof info};
    o.train = "*.q_proj.weight, *.k_proj.bias, *.experts.2.up_proj.weight, *.experts.1.down_proj.weight";
    rig r = rig_open(&o, 1);
    moed_model *fresh = tiny_model(r.context);
    int64_t numbers = 0;
    rig_run(&r, 2);
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    for (size_t i = 0; i < model_params(fresh); i++) {
        const moed_tensor x = model_tensor(r.model, i), y = model_tensor(fresh, i);
        moed_param p;
        moed_tensor gradient;
        assert_ok(moed_layout_param(moed_model_layout(fresh), i, &p));
        const int trains = strstr(p.name, "q_proj.weight") || strstr(p.name, "k_proj.bias") ||
                           strstr(p.name, "experts.2.up_proj") || strstr(p.name, "experts.1.down_proj");
        if (trains) numbers += (int64_t)(tensor_bytes(&x) / 4);
        if ((memcmp(x.data, y.data, tensor_bytes(&x)) != 0) != trains)
            fail_msg("%s %s", p.name, trains ? "did not move" : "moved");
        assert_ok(moed_trainer_gradient(r.trainer, i, &gradient));
        assert_true((gradient.data != NULL) == trains);
    }
    assert_ok(moed_trainer_get_info(r.trainer, &info));
    assert_int_equal(info.trained, numbers);
    assert_ok(moed_train_estimate(moed_model_layout(r.model), NULL, &o, &some));
    o.train = "*.q_proj.weight, *.k_proj.weight, *.v_proj.weight, *_proj.bias, *.experts.*";
    assert_ok(moed_train_estimate(moed_model_layout(r.model), NULL, &o, &all));
    assert_int_equal(some.gradients, all.gradients); /* whole groups */
    assert_true(some.moments < all.moments);
    moed_model_destroy(fresh);
    rig_close(&r);
}

/* The same numbers in bfloat16, in arrays of the test's own: weights that no engine uses in place. free(*memory) after the
 * model. */
static moed_model *narrow_model(moed_context *c, const moed_model *m, char **memory)
{
    moed_layout *l = NULL;
    moed_model *narrow = NULL;
    moed_tensor tensors[128];
    size_t bytes = 0;
    assert_ok(moedi_layout_with_dtype(&l, m->layout, MOED_DTYPE_BF16));
    assert_true(l->count <= 128);
    for (size_t i = 0; i < l->count; i++) bytes += moedi_param_bytes(&l->params[i]);
    char *at = *memory = malloc(bytes);
    for (size_t i = 0; i < l->count; i++) {
        const int64_t count = moedi_param_elements(&l->params[i]);
        moedi_tensor_set(&tensors[i], at, MOED_DTYPE_BF16, l->params[i].rank, l->params[i].shape);
        moedi_convert(at, MOED_DTYPE_BF16, m->tensors[i].data, m->tensors[i].dtype, count);
        at += moedi_param_bytes(&l->params[i]);
    }
    assert_ok(moed_model_borrow(&narrow, c, l, tensors, l->count, NULL, NULL));
    moed_layout_destroy(l);
    return narrow;
}

static void a_step_whose_line_cannot_be_written_is_in_the_model_nevertheless(void **state)
{
    (void)state;
    char *dir = support_directory(), *memory = NULL;
    moed_context *c = support_context("auto", 1);
    moed_model *wide = tiny_model(c), *m = narrow_model(c, wide, &memory);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_train_options o = tiny_options(3);
    moed_trainer *t = NULL;
    o.directory = dir;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    assert_ok(moed_trainer_forward_backward(t, NULL, NULL));
    const int full = open("/dev/full", O_WRONLY);
    assert_true(full >= 0 && dup2(full, t->metrics.fd) >= 0);
    const moed_tensor embedding = model_tensor(m, 0);
    char before[64];
    memcpy(before, embedding.data, sizeof before);
    assert_refused(moed_trainer_update(t, 1.0, NULL), MOED_E_SPACE, "metrics.jsonl");
    assert_memory_not_equal(embedding.data, before, sizeof before);
    close(full);
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_model_destroy(wide);
    moed_context_destroy(c);
    free(memory);
    support_remove(dir);
}

static void a_corpus_may_be_of_another_context_and_a_model_may_not(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(2);
    rig same = rig_open(&o, 1);
    moed_context *c = support_context("auto", 1), *other = support_context("auto", 1);
    moed_model *m = tiny_model(c), *foreign = tiny_model(other);
    moed_corpus *d = tiny_corpus(other, NULL);
    moed_trainer *t = NULL;
    assert_refused(moed_trainer_create(&t, c, foreign, d, NULL, &o), MOED_E_MISMATCH, "another context");
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    moed_model_destroy(foreign);
    moed_corpus_destroy(d);
    moed_context_destroy(other);
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    rig_run(&same, 0);
    assert_same_models(same.model, m);
    moed_trainer_destroy(t);
    moed_model_destroy(m);
    moed_context_destroy(c);
    rig_close(&same);
}

static void a_foreign_loop_gives_the_bits_of_run(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(5);
    o.micro_batches = 4;
    rig own = rig_open(&o, 1), foreign = rig_open(&o, 1);
    moed_report a = rig_run(&own, 0), b = empty_report(), part = empty_report();
    for (int i = 0; i < 5; i++) {
        assert_ok(moed_trainer_forward_backward(foreign.trainer, NULL, &part));
        assert_ok(moed_trainer_update(foreign.trainer, 1.0, &b));
        assert_true(part.loss == b.loss && part.step == i && b.step == i + 1);
    }
    assert_true(a.loss == b.loss && a.gradient_norm == b.gradient_norm && a.tokens == b.tokens && a.max_load == b.max_load);
    assert_same_models(own.model, foreign.model);
    assert_refused(moed_trainer_forward_backward(foreign.trainer, NULL, &part), MOED_E_STATE, "all 5 steps");
    rig_close(&own);
    rig_close(&foreign);
}

static void several_calls_before_an_update_average(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(5);
    o.load_balance = 0, o.z_loss = 0, o.clip = 0;
    int32_t tokens[4 * TINY_LENGTH], labels[4 * TINY_LENGTH];
    rig whole = rig_open(&o, 1), parts = rig_open(&o, 1);
    assert_ok(moed_corpus_sample(whole.corpus, 3, 0, 4, TINY_LENGTH, tokens, labels, NULL));
    moed_batch b = {.tokens = tokens, .labels = labels, .rows = 4, .length = TINY_LENGTH};
    moed_report a = empty_report(), c = empty_report();
    assert_ok(moed_trainer_forward_backward(whole.trainer, &b, NULL));
    b.rows = 2;
    assert_ok(moed_trainer_forward_backward(parts.trainer, &b, NULL));
    b.tokens += 2 * TINY_LENGTH, b.labels += 2 * TINY_LENGTH;
    assert_ok(moed_trainer_forward_backward(parts.trainer, &b, NULL));
    assert_ok(moed_trainer_update(whole.trainer, 1.0, &a));
    assert_ok(moed_trainer_update(parts.trainer, 1.0, &c));
    assert_true(fabs(a.loss - c.loss) < 1e-5 && fabs(a.gradient_norm - c.gradient_norm) < 1e-4 * a.gradient_norm);
    assert_int_equal(a.tokens, c.tokens);
    assert_int_equal(a.labels, c.labels);
    rig_close(&whole);
    rig_close(&parts);
}

static void a_run_takes_the_stream_up_where_the_one_before_left_it(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(3);
    int32_t tokens[4 * TINY_LENGTH], labels[4 * TINY_LENGTH], documents[4 * TINY_LENGTH];
    rig by_hand = rig_open(&o, 1);
    o.first_row = 8;
    rig later = rig_open(&o, 1);
    assert_ok(moed_corpus_sample(by_hand.corpus, o.seed, 8, 4, TINY_LENGTH, tokens, labels, documents));
    const moed_batch b = {.tokens = tokens, .labels = labels, .documents = documents, .rows = 4, .length = TINY_LENGTH};
    moed_report a = empty_report(), c = empty_report();
    assert_ok(moed_trainer_forward_backward(by_hand.trainer, &b, &a));
    assert_ok(moed_trainer_forward_backward(later.trainer, NULL, &c));
    assert_true(a.loss == c.loss);
    rig_close(&by_hand);
    rig_close(&later);
}

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
    rig_run(&r, 0), rig_run(&same, 0);
    assert_same_models(same.model, r.model);
    rig_close(&r);
    rig_close(&same);
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

static void gradient_is_there_after_a_call_and_zero_after_the_update(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(5);
    rig r = rig_open(&o, 1);
    moed_tensor g;
    const size_t head = model_find(r.model, "lm_head.weight");
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    assert_ok(moed_trainer_gradient(r.trainer, head, &g));
    double sum = 0;
    for (size_t i = 0; i < tensor_bytes(&g) / 4; i++) sum += fabs((double)((float *)g.data)[i]);
    assert_true(sum > 0);
    assert_ok(moed_trainer_update(r.trainer, 0.0, NULL));
    assert_ok(moed_trainer_gradient(r.trainer, head, &g));
    for (size_t i = 0; i < tensor_bytes(&g) / 4; i++) assert_true(((float *)g.data)[i] == 0);
    moed_model *fresh = tiny_model(r.context);
    assert_same_models(r.model, fresh); /* factor 0: a rate of 0 */
    assert_refused(moed_trainer_gradient(r.trainer, 100000, &g), MOED_E_RANGE, "100000");
    moed_model_destroy(fresh);
    rig_close(&r);
}

static void bad_batches_are_refused_by_name(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(5);
    rig r = rig_open(&o, 1);
    int32_t tokens[5 * TINY_LENGTH] = {0}, labels[5 * TINY_LENGTH] = {0};
    float weights[5 * TINY_LENGTH] = {0};
    moed_batch b = {.tokens = tokens, .labels = labels, .rows = 5, .length = TINY_LENGTH};
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_RANGE, "5 rows");
    b.rows = 2, b.length = TINY_LENGTH + 1;
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_RANGE, "17 tokens");
    b.length = TINY_LENGTH, tokens[20] = TINY_VOCABULARY;
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_RANGE, "token 48 at 4");
    tokens[20] = 0, labels[3] = -2;
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_RANGE, "label -2");
    labels[3] = 0, b.weights = weights;
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_ARGUMENT, "no label");
    weights[1] = NAN;
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_NUMERIC, "weight nan");
    b.labels = NULL;
    assert_refused(moed_trainer_forward_backward(r.trainer, &b, NULL), MOED_E_ARGUMENT, "no labels");
    assert_refused(moed_trainer_update(r.trainer, 1.0, NULL), MOED_E_STATE, "no gradient waits");
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    assert_refused(moed_trainer_update(r.trainer, NAN, NULL), MOED_E_RANGE, "factor");
    assert_refused(moed_trainer_run(r.trainer, 0, NULL, NULL), MOED_E_STATE, "wait for moed_trainer_update");
    rig_close(&r);
}

static void options_out_of_range_are_refused_by_name(void **state)
{
    (void)state;
    moed_context *c = support_context("auto", 1);
    moed_model *m = tiny_model(c);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_trainer *t = NULL;
    const moed_train_options good = tiny_options(5);
#define REFUSED(status, words, ...)                                              \
    do {                                                                         \
        moed_train_options o = good;                                             \
        __VA_ARGS__;                                                             \
        assert_refused(moed_trainer_create(&t, c, m, d, NULL, &o), status, words); \
        assert_null(t);                                                          \
    } while (0)
    REFUSED(MOED_E_RANGE, "steps", o.steps = 0);
    REFUSED(MOED_E_RANGE, "micro_batches 3", o.micro_batches = 3);
    REFUSED(MOED_E_RANGE, "length 257", o.length = 257);
    REFUSED(MOED_E_RANGE, "beta1", o.beta1 = 1.0);
    REFUSED(MOED_E_RANGE, "learning_rate", o.learning_rate = NAN);
    REFUSED(MOED_E_RANGE, "warmup", o.warmup = 1.5);
    REFUSED(MOED_E_RANGE, "decay", o.schedule = MOED_SCHEDULE_WSD, o.warmup = 0.6, o.decay = 0.5);
    REFUSED(MOED_E_RANGE, "schedule", o.schedule = 3);
    REFUSED(MOED_E_RANGE, "keep", o.keep = 0);
    REFUSED(MOED_E_ARGUMENT, "\"exprt\"", o.train = "shared, exprt");
    REFUSED(MOED_E_ARGUMENT, "no parameter to train", o.train = "router", o.freeze = "*");
    REFUSED(MOED_E_ARGUMENT, "checkpoint_every", o.checkpoint_every = 2);
    REFUSED(MOED_E_ARGUMENT, "evaluate_every", o.evaluate_every = 2);
    REFUSED(MOED_E_STRUCT, "", o.struct_size = 4);
#undef REFUSED
    int other;
    assert_refused(moed_trainer_create(&t, c, m, d, (moed_comm *)(void *)&other, &good), MOED_E_UNSUPPORTED, "comm");
    assert_refused(moed_trainer_create(&t, c, NULL, d, NULL, &good), MOED_E_ARGUMENT, "m is NULL");
    moed_model *small = tiny_model_of(c, 16, 1, 2, 40);
    assert_refused(moed_trainer_create(&t, c, small, d, NULL, &good), MOED_E_MISMATCH, "vocabulary of 48");
    moed_model_destroy(small);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

static void a_nan_stops_with_the_step_named_and_nothing_applied(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(10);
    rig r = rig_open(&o, 2);
    rig_run(&r, 3);
    const moed_tensor norm = model_tensor(r.model, model_find(r.model, "model.norm.weight"));
    const float kept = ((float *)norm.data)[2];
    ((float *)norm.data)[2] = NAN;
    size_t count;
    float *before = model_numbers(r.model, &count), *after;
    assert_refused(moed_trainer_run(r.trainer, 0, NULL, NULL), MOED_E_NUMERIC, "step 4");
    after = model_numbers(r.model, &count);
    assert_memory_equal(before, after, count * 4);
    ((float *)norm.data)[2] = kept; /* what was accumulated is gone: the run goes on as if nothing had been */
    rig_run(&r, 0);
    rig whole = rig_open(&o, 1);
    rig_run(&whole, 0);
    assert_same_models(r.model, whole.model);
    free(before);
    free(after);
    rig_close(&whole);
    rig_close(&r);
}

static int32_t stop_at(const moed_report *report, void *user)
{
    return report->step == *(int64_t *)user ? 42 : 0;
}

static void progress_stops_between_steps_and_the_run_can_go_on(void **state)
{
    (void)state;
    int64_t at = 2;
    moed_train_options o = tiny_options(5);
    rig whole = rig_open(&o, 1);
    o.progress = stop_at, o.progress_user = &at;
    rig r = rig_open(&o, 1);
    moed_error_info error = {.struct_size = sizeof error};
    assert_int_equal(moed_trainer_run(r.trainer, 0, NULL, NULL), MOED_E_CALLBACK);
    assert_ok(moed_last_error_get(&error));
    assert_int_equal(error.callback_code, 42);
    moed_trainer_info info = {.struct_size = sizeof info};
    assert_ok(moed_trainer_get_info(r.trainer, &info));
    assert_int_equal(info.step, 2);
    rig_run(&r, 0);
    rig_run(&whole, 0);
    assert_same_models(r.model, whole.model);
    rig_close(&whole);
    rig_close(&r);
}

static void cancel_leaves_the_last_whole_step(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(5);
    rig r = rig_open(&o, 1), whole = rig_open(&o, 1);
    moed_cancel *cancel = NULL;
    assert_ok(moed_cancel_create(&cancel));
    assert_ok(moed_trainer_run(r.trainer, 2, NULL, cancel));
    moed_cancel_request(cancel);
    assert_int_equal(moed_trainer_run(r.trainer, 0, NULL, cancel), MOED_E_CANCELLED);
    moed_trainer_info info = {.struct_size = sizeof info};
    assert_ok(moed_trainer_get_info(r.trainer, &info));
    assert_int_equal(info.step, 2);
    rig_run(&r, 0);
    rig_run(&whole, 0);
    assert_same_models(r.model, whole.model);
    moed_cancel_destroy(cancel);
    rig_close(&whole);
    rig_close(&r);
}

static void evaluation_changes_nothing_and_agrees_with_the_models_own(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(6);
    rig r = rig_open(&o, 1), plain = rig_open(&o, 1);
    moed_report a = empty_report(), b = empty_report();
    rig_run(&r, 2);
    assert_ok(moed_trainer_evaluate(r.trainer, r.corpus, 0, &a, NULL));
    assert_ok(moed_model_evaluate(r.model, r.corpus, 0, o.rows, o.length, o.document_mask, &b, NULL));
    assert_true(a.loss == b.loss && a.labels == b.labels && a.labels > 0);
    assert_int_equal(a.step, 2);
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    assert_ok(moed_trainer_evaluate(r.trainer, r.corpus, 50, &a, NULL)); /* between the halves of a step too */
    assert_ok(moed_trainer_update(r.trainer, 1.0, NULL));
    rig_run(&r, 0);
    rig_run(&plain, 0);
    assert_same_models(r.model, plain.model);
    assert_refused(moed_trainer_evaluate(r.trainer, r.corpus, -1, &a, NULL), MOED_E_RANGE, "tokens is -1");
    rig_close(&plain);
    rig_close(&r);
}

static void memory_does_not_grow_after_the_first_step(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(20);
    o.micro_batches = 2;
    rig r = rig_open(&o, 1);
    moed_context_info first = {.struct_size = sizeof first}, last = first;
    rig_run(&r, 1);
    assert_ok(moed_context_get_info(r.context, &first));
    rig_run(&r, 0);
    assert_ok(moed_context_get_info(r.context, &last));
    assert_int_equal(first.host_in_use, last.host_in_use);
    assert_int_equal(first.host_peak, last.host_peak);
    rig_close(&r);
}

/* A model's sizes, and how it is trained. */
typedef struct shape {
    const char *kernels;
    int hidden, layers, experts, vocabulary;
    int64_t rows, length, micro_batches;
    const char *train;
    int32_t policy;
} shape;

/* Two steps of a shape, saved in dir (nullable): what was estimated before them (e), and the peak of all of it. */
static int64_t peak_of(const shape *s, const char *dir, moed_estimate *e)
{
    moed_context *c = support_context(s->kernels, 1);
    moed_model *m = tiny_model_of(c, s->hidden, s->layers, s->experts, s->vocabulary);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_train_options o = tiny_options(2);
    o.rows = s->rows, o.length = s->length, o.micro_batches = s->micro_batches, o.train = s->train, o.policy = s->policy;
    o.directory = dir, o.checkpoint_every = dir != NULL;
    moed_context_info info = {.struct_size = sizeof info};
    moed_trainer *t = NULL;
    *e = (moed_estimate){.struct_size = sizeof *e};
    assert_ok(moed_train_estimate(moed_model_layout(m), NULL, &o, e));
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    assert_ok(moed_context_get_info(c, &info));
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
    return info.host_peak;
}

static void the_estimate_is_within_a_tenth_of_the_peak(void **state)
{
    (void)state;
    static const shape shapes[] = {
        {"auto", 32, 2, 4, 512, 4, 64, 1, NULL, 0},
        {"auto", 64, 1, 8, 512, 8, 32, 4, NULL, 0},
        {"auto", 64, 3, 2, 512, 2, 128, 2, "expert", 0},
        {"auto", 32, 1, 2, 512, 16, 16, 1, "router,shared", 0},
        {"auto", 64, 1, 8, 512, 8, 32, 4, NULL, MOED_POLICY_LEAN},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        moed_estimate e;
        const int64_t peak = peak_of(&shapes[i], NULL, &e);
        const double share = (double)e.host_bytes / (double)peak;
        if (share < 0.9 || share > 1.1)
            fail_msg("shape %zu: estimate %lld, peak %lld", i, (long long)e.host_bytes, (long long)peak);
        assert_true(e.device_bytes == 0 && e.seconds == 0 && e.flops_per_token > 0);
    }
}

static void saving_takes_no_more_than_the_estimate_counts(void **state)
{
    (void)state;
    static const shape shapes[] = {
        {"auto", 32, 1, 4, 4096, 1, 8, 1, NULL, 0},
        {"double", 64, 1, 8, 4096, 1, 8, 1, NULL, 0},
        {"auto", 512, 1, 4, 4096, 1, 8, 1, NULL, 0},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        char *dir = support_directory();
        moed_estimate e;
        const int64_t peak = peak_of(&shapes[i], dir, &e);
        if (e.host_bytes < peak || e.host_bytes > peak + peak / 20 + (2 << 20))
            fail_msg("shape %zu: estimate %lld, peak %lld", i, (long long)e.host_bytes, (long long)peak);
        support_remove(dir);
    }
}

static void the_estimate_prices_time_and_other_devices(void **state)
{
    (void)state;
    moed_context *c = support_context("auto", 1);
    moed_model *m = tiny_model(c);
    moed_train_options o = tiny_options(10);
    moed_estimate e = {.struct_size = sizeof e};
    moed_device_info d = {.struct_size = sizeof d, .backend = "cuda", .flops = 1e6};
    assert_ok(moed_train_estimate(moed_model_layout(m), &d, &o, &e));
    assert_true(e.flops == e.flops_per_token * 10 * 4 * TINY_LENGTH);
    assert_true(e.seconds == e.flops / 1e6);
    assert_int_equal(e.device_bytes, e.weights + e.gradients + e.moments + e.activations);
    assert_true(e.host_bytes >= e.weights && e.host_bytes < e.device_bytes + e.weights);
    assert_int_equal(e.disk_bytes, 0);
    o.directory = "somewhere", o.checkpoint_every = 1, o.keep = 3;
    assert_ok(moed_train_estimate(moed_model_layout(m), &d, &o, &e));
    assert_int_equal(e.disk_bytes, 4 * (e.weights + e.moments));
    /* one that computes in bf16, which is not here: low halves are kept with full alone */
    moed_estimate narrow = {.struct_size = sizeof narrow};
    d.dtype = MOED_DTYPE_BF16, o.policy = MOED_POLICY_LEAN;
    assert_ok(moed_train_estimate(moed_model_layout(m), &d, &o, &narrow));
    assert_int_equal(narrow.weights, e.weights / 2);
    assert_true(narrow.gradients < 0.53 * (double)e.gradients); /* each of them begins at 64 bytes */
    o.policy = MOED_POLICY_FULL;
    assert_ok(moed_train_estimate(moed_model_layout(m), &d, &o, &narrow));
    assert_true(narrow.weights >= e.weights && narrow.moments == e.moments);
    d.dtype = MOED_DTYPE_F16;
    assert_refused(moed_train_estimate(moed_model_layout(m), &d, &o, &narrow), MOED_E_RANGE, "F16");
    d.struct_size = (uint32_t)offsetof(moed_device_info, dtype); /* a caller who knows of none */
    assert_ok(moed_train_estimate(moed_model_layout(m), &d, &o, &narrow));
    assert_int_equal(narrow.gradients, e.gradients);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

static void what_does_not_fit_is_refused_with_the_figures(void **state)
{
    (void)state;
    moed_context_options o;
    moed_context *c = NULL;
    moed_trainer *t = NULL;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV;
    o.host_limit = 300000;
    assert_ok(moed_context_create(&c, &o));
    moed_model *m = tiny_model(c);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_context_info before = {.struct_size = sizeof before}, after = before;
    assert_ok(moed_context_get_info(c, &before));
    moed_train_options train = tiny_options(2);
    assert_refused(moed_trainer_create(&t, c, m, d, NULL, &train), MOED_E_LIMIT, "the limit is 300000");
    assert_ok(moed_context_get_info(c, &after));
    assert_int_equal(before.host_in_use, after.host_in_use);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

/* A report of the wrong size is seen before the work, not after it. */
static void a_report_that_cannot_be_filled_in_stops_nothing_half_way(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(4);
    rig r = rig_open(&o, 1);
    moed_report empty = {0};
    moed_trainer_info info = {.struct_size = sizeof info};
    assert_refused(moed_trainer_run(r.trainer, 0, &empty, NULL), MOED_E_STRUCT, "struct_size is 0");
    assert_refused(moed_trainer_forward_backward(r.trainer, NULL, &empty), MOED_E_STRUCT, "struct_size is 0");
    assert_refused(moed_trainer_update(r.trainer, 1, NULL), MOED_E_STATE, "no gradient waits");
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    assert_refused(moed_trainer_update(r.trainer, 1, &empty), MOED_E_STRUCT, "struct_size is 0");
    assert_ok(moed_trainer_get_info(r.trainer, &info));
    assert_int_equal(info.step, 0);
    assert_refused(moed_trainer_update(r.trainer, 1e300, NULL), MOED_E_RANGE, "100 is the most");
    assert_ok(moed_trainer_update(r.trainer, 1, NULL)); /* the gradient still waited */
    rig_close(&r);
}

static void a_run_after_the_last_step_has_none_to_do(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(2);
    rig r = rig_open(&o, 1);
    const moed_report last = rig_run(&r, 0), more = rig_run(&r, 3);
    assert_true(last.loss > 0);
    assert_int_equal(more.step, 2);
    assert_int_equal(more.tokens, last.tokens);
    assert_true(more.loss == 0 && more.labels == 0);
    rig_close(&r);
}

static void borrowed_arrays_that_overlap_are_not_trained(void **state)
{
    (void)state;
    moed_context *c = support_context("auto", 1);
    moed_model *m = tiny_model(c), *twin = NULL;
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_trainer *t = NULL;
    moed_train_options o = tiny_options(2);
    moed_tensor tensors[64];
    const size_t count = model_params(m), k = model_find(m, "model.layers.0.self_attn.k_proj.weight"),
                 v = model_find(m, "model.layers.0.self_attn.v_proj.weight");
    for (size_t i = 0; i < count; i++) tensors[i] = model_tensor(m, i);
    tensors[v].data = tensors[k].data;
    assert_ok(moed_model_borrow(&twin, c, moed_model_layout(m), tensors, count, NULL, NULL));
    assert_refused(moed_trainer_create(&t, c, twin, d, NULL, &o), MOED_E_ARGUMENT, "self_attn.v_proj.weight overlap");
    o.freeze = "*.k_proj.weight,*.v_proj.weight";
    assert_ok(moed_trainer_create(&t, c, twin, d, NULL, &o));
    moed_trainer_destroy(t);
    moed_model_destroy(twin);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(loss_falls_on_a_corpus_that_can_be_learned),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(lean_learns_as_much_as_full),
        cmocka_unit_test(auto_is_lean_where_full_does_not_fit),
        cmocka_unit_test(micro_batches_give_nearly_the_same_update),
        cmocka_unit_test(extra_blocks_are_the_logarithm_of_the_shards),
        cmocka_unit_test(gradients_of_shards_are_summed_in_a_pairwise_tree),
        cmocka_unit_test(what_gradients_hold_between_sums_is_not_read),
        cmocka_unit_test(frozen_parameters_keep_their_bits_and_have_no_state),
        cmocka_unit_test(a_frozen_member_of_a_group_that_trains_keeps_its_bits_and_has_no_moments),
        cmocka_unit_test(a_step_whose_line_cannot_be_written_is_in_the_model_nevertheless),
        cmocka_unit_test(a_corpus_may_be_of_another_context_and_a_model_may_not),
        cmocka_unit_test(freeze_takes_away_from_train),
        cmocka_unit_test(a_foreign_loop_gives_the_bits_of_run),
        cmocka_unit_test(several_calls_before_an_update_average),
        cmocka_unit_test(an_expansion_inside_a_trainer_is_that_of_its_model),
        cmocka_unit_test(carried_moments_go_on_as_they_were),
        cmocka_unit_test(a_checkpoint_of_a_grown_trainer_goes_on_to_its_bits),
        cmocka_unit_test(what_cannot_grow_is_refused_and_trains_on),
        cmocka_unit_test(an_expansion_that_does_not_fit_leaves_the_trainer_as_it_was),
        cmocka_unit_test(a_run_takes_the_stream_up_where_the_one_before_left_it),
        cmocka_unit_test(gradient_is_there_after_a_call_and_zero_after_the_update),
        cmocka_unit_test(bad_batches_are_refused_by_name),
        cmocka_unit_test(options_out_of_range_are_refused_by_name),
        cmocka_unit_test(a_nan_stops_with_the_step_named_and_nothing_applied),
        cmocka_unit_test(progress_stops_between_steps_and_the_run_can_go_on),
        cmocka_unit_test(cancel_leaves_the_last_whole_step),
        cmocka_unit_test(evaluation_changes_nothing_and_agrees_with_the_models_own),
        cmocka_unit_test(memory_does_not_grow_after_the_first_step),
        cmocka_unit_test(the_estimate_is_within_a_tenth_of_the_peak),
        cmocka_unit_test(saving_takes_no_more_than_the_estimate_counts),
        cmocka_unit_test(the_estimate_prices_time_and_other_devices),
        cmocka_unit_test(a_run_after_the_last_step_has_none_to_do),
        cmocka_unit_test(borrowed_arrays_that_overlap_are_not_trained),
        cmocka_unit_test(a_report_that_cannot_be_filled_in_stops_nothing_half_way),
        cmocka_unit_test(what_does_not_fit_is_refused_with_the_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
