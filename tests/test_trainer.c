/* The trainer: what a step does, what it refuses, and that its bits do not depend on threads. */
#include "train_support.h"

#include <fcntl.h>

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
    assert_refused(moed_trainer_run(r.trainer, 0, NULL, NULL), MOED_E_NUMERIC, "step 4: the loss is nan");
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
    rigs_end_alike(&r, &whole);
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
        cmocka_unit_test(frozen_parameters_keep_their_bits_and_have_no_state),
        cmocka_unit_test(a_frozen_member_of_a_group_that_trains_keeps_its_bits_and_has_no_moments),
        cmocka_unit_test(a_step_whose_line_cannot_be_written_is_in_the_model_nevertheless),
        cmocka_unit_test(a_corpus_may_be_of_another_context_and_a_model_may_not),
        cmocka_unit_test(freeze_takes_away_from_train),
        cmocka_unit_test(a_foreign_loop_gives_the_bits_of_run),
        cmocka_unit_test(several_calls_before_an_update_average),
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
