/* Loss-free balancing: biases that experts are chosen by follow the loads, exactly, and nothing of it is lost over a
 * checkpoint. */
#include <math.h>

#include "train_support.h"

#include "train/loads.h"
#include "train/trainer.h"

enum { EXPERTS = 4, LAYERS = 2, ROUTED = 1 /* the second layer */ };

static const char biased[] =
    "{\"model_type\": \"dots1\", \"vocab_size\": 48, \"hidden_size\": 16, \"intermediate_size\": 16, \"num_hidden_layers\": 2, "
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"n_routed_experts\": 4, \"num_experts_per_tok\": 1, "
    "\"n_shared_experts\": 1, \"first_k_dense_replace\": 1, \"moe_intermediate_size\": 16, \"max_position_embeddings\": 256, "
    "\"initializer_range\": 0.1, \"torch_dtype\": \"float32\"}";
static const char bias_name[] = "model.layers.1.mlp.gate.e_score_correction_bias";

static rig rig_of(const char *config, const moed_train_options *o)
{
    rig r = {.context = support_context("auto", 1)};
    r.model = support_fresh(r.context, config, 7, -1);
    r.corpus = tiny_corpus(r.context, NULL);
    assert_ok(moed_trainer_create(&r.trainer, r.context, r.model, r.corpus, NULL, o));
    return r;
}

static rig biased_rig(const moed_train_options *o)
{
    return rig_of(biased, o);
}

static const float *biases_of(const rig *r)
{
    return model_tensor(r->model, model_find(r->model, bias_name)).data;
}

static void a_step_moves_every_bias_by_the_rate_towards_equal_loads(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(6);
    o.balance_rate = 0.125, o.load_balance = 0, o.micro_batches = 2;
    rig r = biased_rig(&o);
    float before[EXPERTS];
    for (int step = 0; step < 6; step++) {
        int64_t loads[LAYERS * EXPERTS], total = 0;
        memcpy(before, biases_of(&r), sizeof before);
        rig_run(&r, 1);
        assert_ok(moed_trainer_loads(r.trainer, loads, LAYERS * EXPERTS));
        for (int e = 0; e < EXPERTS; e++) {
            assert_int_equal(loads[e], 0); /* a layer without experts */
            total += loads[ROUTED * EXPERTS + e];
        }
        assert_int_equal(total, 4 * TINY_LENGTH); /* of all rows, whatever shard they were in */
        for (int e = 0; e < EXPERTS; e++) {
            const int64_t own = loads[ROUTED * EXPERTS + e] * EXPERTS;
            const float moved = own < total ? 0.125f : own > total ? -0.125f : 0;
            assert_true(biases_of(&r)[e] == before[e] + moved);
        }
    }
    int64_t few[1];
    assert_refused(moed_trainer_loads(r.trainer, few, 1), MOED_E_RANGE, "8 experts in all");
    rig_close(&r);
}

/* The largest share of an expert, times experts, in the mean of the last steps. One is preferred to all others at first. */
static double load_after(double rate)
{
    moed_train_options o = tiny_options(220);
    double sum = 0;
    o.rows = 16;
    o.balance_rate = rate, o.load_balance = 0;
    rig r = biased_rig(&o);
    ((float *)model_tensor(r.model, model_find(r.model, bias_name)).data)[1] = 1;
    rig_run(&r, 200);
    for (int i = 0; i < 20; i++) sum += rig_run(&r, 1).max_load / 20;
    rig_close(&r);
    return sum;
}
static void loads_even_out_without_a_loss_for_it(void **state)
{
    (void)state;
    const double resting = load_after(0), moving = load_after(0.01);
    assert_true(resting > EXPERTS - 0.01 && moving < 1.5);
}

static void within_the_band_biases_move_in_proportion(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(8);
    int64_t loads[LAYERS * EXPERTS], total = 0;
    int near = 0, far = 0;
    o.balance_rate = 0.125, o.balance_band = 0.5;
    rig r = biased_rig(&o);
    for (int step = 0; step < 8; step++) {
        float before[EXPERTS];
        memcpy(before, biases_of(&r), sizeof before);
        rig_run(&r, 1);
        assert_ok(moed_trainer_loads(r.trainer, loads, LAYERS * EXPERTS));
        total = 0;
        for (int e = 0; e < EXPERTS; e++) total += loads[ROUTED * EXPERTS + e];
        for (int e = 0; e < EXPERTS; e++) {
            const double away = 1 - (double)(loads[ROUTED * EXPERTS + e] * EXPERTS) / (double)total;
            const double expected = 0.125 * (away > 0.5 ? 1 : away < -0.5 ? -1 : away / 0.5);
            assert_true(fabs(biases_of(&r)[e] - before[e] - expected) < 1e-6);
            near += fabs(away) < 0.5, far += fabs(away) > 0.5;
        }
    }
    assert_true(near > 0 && far > 0);
    rig_close(&r);
}

static void biases_move_faster_while_the_rate_rises(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(10);
    o.warmup = 0.2, o.balance_rate = 0.125, o.balance_boost = 4;
    rig r = biased_rig(&o);
    for (int step = 1; step <= 4; step++) {
        float before[EXPERTS];
        memcpy(before, biases_of(&r), sizeof before);
        rig_run(&r, 1);
        for (int e = 0; e < EXPERTS; e++) {
            const float moved = fabsf(biases_of(&r)[e] - before[e]);
            assert_true(moved == 0 || moved == (step == 1 ? 0.5f : step == 2 ? 0.25f : 0.125f));
        }
    }
    rig_close(&r);
}

static void biases_rest_at_rate_zero_and_where_a_step_is_dropped(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(3);
    o.balance_rate = 0;
    rig r = biased_rig(&o);
    rig_run(&r, 0);
    for (int e = 0; e < EXPERTS; e++) assert_true(biases_of(&r)[e] == 0);
    rig_close(&r);
    o.balance_rate = 0.5, o.learning_rate = 1e-2;
    r = biased_rig(&o);
    float *embedding = model_tensor(r.model, model_find(r.model, "model.norm.weight")).data;
    embedding[0] = NAN;
    assert_int_equal(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_NUMERIC);
    for (int e = 0; e < EXPERTS; e++) assert_true(biases_of(&r)[e] == 0);
    rig_close(&r);
}

static void within_a_step_biases_move_by_each_micro_batch(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(6);
    int within = 0;
    o.rows = 8, o.micro_batches = 4, o.balance_rate = 0.125, o.load_balance = 0;
    o.balance_each = MOED_BALANCE_MICRO_BATCH;
    rig r = biased_rig(&o);
    for (int step = 0; step < 6; step++) {
        float before[EXPERTS];
        memcpy(before, biases_of(&r), sizeof before);
        rig_run(&r, 1);
        for (int e = 0; e < EXPERTS; e++) {
            const double parts = (double)(biases_of(&r)[e] - before[e]) / (0.125 / 4); /* each shard's: a quarter of the rate */
            assert_true(fabs(parts - round(parts)) < 1e-4 && fabs(parts) < 4.5);
            within += fabs(parts) < 3.5; /* shards differed */
        }
    }
    assert_true(within > 0);
    rig_close(&r);
}

static void one_micro_batch_is_a_step(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(5);
    o.balance_rate = 0.125, o.balance_band = 0.5;
    rig by_step = biased_rig(&o);
    rig_run(&by_step, 0);
    o.balance_each = MOED_BALANCE_MICRO_BATCH;
    rig by_micro_batch = biased_rig(&o);
    rig_run(&by_micro_batch, 0);
    assert_same_models(by_step.model, by_micro_batch.model);
    rig_close(&by_step);
    rig_close(&by_micro_batch);
}

/* Loads of the few steps after one expert was preferred to all others. */
static double load_soon(int32_t each)
{
    moed_train_options o = tiny_options(40);
    double sum = 0;
    o.rows = 16, o.micro_batches = 8, o.balance_rate = 0.1, o.balance_boost = 1, o.load_balance = 0;
    o.balance_each = each;
    rig r = biased_rig(&o);
    ((float *)model_tensor(r.model, model_find(r.model, bias_name)).data)[1] = 1;
    for (int i = 0; i < 12; i++) sum += rig_run(&r, 1).max_load / 12;
    rig_close(&r);
    return sum;
}
static void micro_batches_put_right_what_a_step_finds_wrong(void **state)
{
    (void)state;
    const double step = load_soon(MOED_BALANCE_STEP), micro_batch = load_soon(MOED_BALANCE_MICRO_BATCH);
    assert_true(micro_batch < step - 0.1);
}

static void a_dropped_step_takes_back_what_its_micro_batches_moved(void **state)
{
    (void)state;
    moed_train_options o = tiny_options(4);
    float before[EXPERTS];
    o.micro_batches = 4, o.balance_rate = 0.125, o.balance_each = MOED_BALANCE_MICRO_BATCH;
    rig r = biased_rig(&o);
    rig_run(&r, 2);
    memcpy(before, biases_of(&r), sizeof before);
    float *norm = model_tensor(r.model, model_find(r.model, "model.norm.weight")).data;
    const float kept = norm[0];
    norm[0] = NAN;
    assert_int_equal(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_NUMERIC);
    assert_memory_equal(biases_of(&r), before, sizeof before);
    norm[0] = kept;
    moed_report report = {.struct_size = sizeof report};
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, &report)); /* of a foreign loop: all of its calls */
    assert_true(memcmp(biases_of(&r), before, sizeof before) != 0);
    norm[0] = NAN;
    assert_int_equal(moed_trainer_forward_backward(r.trainer, NULL, &report), MOED_E_NUMERIC);
    assert_memory_equal(biases_of(&r), before, sizeof before);
    norm[0] = kept;
    rig_run(&r, 1);
    assert_true(memcmp(biases_of(&r), before, sizeof before) != 0);
    rig_close(&r);
}

/* ---- what stops a step that has moved biases already ---- */

static struct {
    moed_backend table;
    moed_status (*wait)(void *self);
    moed_status (*balance)(void *self, const moed_op_balance *a);
    moed_status (*copy)(void *self, void *to, const void *from, size_t size);
    int64_t waits, moves, at; /* the one of all that something happens in, counted from 1 */
    moed_cancel *cancel;      /* that is what happens; NULL: the device says that memory is out */
} stop;

static moed_status stopping(moed_status status)
{
    if (stop.waits + stop.moves != stop.at) return status;
    if (!stop.cancel) return moedi_fail(MOED_E_MEMORY, "out of memory, says the test");
    moed_cancel_request(stop.cancel);
    return status;
}
static moed_status stopping_wait(void *self)
{
    const moed_status status = stop.wait(self);
    stop.waits++;
    return stopping(status);
}
static moed_status stopping_balance(void *self, const moed_op_balance *a)
{
    const moed_status status = stop.balance(self, a);
    stop.moves++;
    return stopping(status);
}

/* The trainer's waits and moves are counted from here on: in a step a move for each micro-batch, then a wait. */
static void stop_at(const rig *r, int64_t at, moed_cancel *cancel)
{
    moedi_engine *e = moedi_transformer_engine(r->trainer->transformer);
    if (e->table != &stop.table) {
        stop.table = *e->table, stop.wait = e->table->synchronize, stop.balance = e->table->balance;
        stop.table.synchronize = stopping_wait, stop.table.balance = stopping_balance;
        e->table = &stop.table;
    }
    stop.waits = 0, stop.moves = 0, stop.at = at, stop.cancel = cancel;
}

static moed_train_options within_options(int64_t steps)
{
    moed_train_options o = tiny_options(steps);
    o.micro_batches = 4, o.balance_rate = 0.125, o.balance_each = MOED_BALANCE_MICRO_BATCH;
    return o;
}

static void a_step_stopped_after_any_micro_batch_leaves_biases_where_they_were(void **state)
{
    (void)state;
    const moed_train_options o = within_options(3);
    rig r = biased_rig(&o), whole = biased_rig(&o);
    float before[EXPERTS];
    rig_run(&r, 1);
    memcpy(before, biases_of(&r), sizeof before);
    for (int move = 1; move <= 4; move++) {
        moed_cancel *cancel = NULL;
        assert_ok(moed_cancel_create(&cancel));
        stop_at(&r, move, cancel);
        assert_int_equal(moed_trainer_run(r.trainer, 1, NULL, cancel), MOED_E_CANCELLED);
        assert_memory_equal(biases_of(&r), before, sizeof before);
        stop_at(&r, move, NULL);
        assert_refused(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_MEMORY, "says the test");
        assert_memory_equal(biases_of(&r), before, sizeof before);
        moed_cancel_destroy(cancel);
    }
    stop_at(&r, 0, NULL);
    rigs_end_alike(&r, &whole);
}

static void a_step_that_ends_half_way_ends_the_trainer(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(3);
    for (int at = 1; at <= 2; at++) { /* the wait: was the update done? And the move after it */
        rig r = biased_rig(&o);
        rig_run(&r, 1);
        stop_at(&r, at, NULL);
        assert_refused(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_MEMORY, "says the test");
        assert_int_equal(stop.moves, at - 1);
        assert_refused(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_STATE, "ended half-way");
        rig_close(&r);
    }
}

static moed_status copy_until_moved(void *self, void *to, const void *from, size_t size)
{
    return stop.moves > 0 ? moedi_fail(MOED_E_DEVICE, "no copy") : stop.copy(self, to, from, size);
}

static void biases_that_cannot_be_brought_back_end_the_trainer(void **state)
{
    (void)state;
    const moed_train_options o = within_options(3);
    rig r = biased_rig(&o);
    rig_run(&r, 1);
    stop_at(&r, 2, NULL);
    stop.copy = stop.table.copy, stop.table.copy = copy_until_moved;
    assert_refused(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_MEMORY, "says the test"); /* what came first is told */
    assert_refused(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_STATE, "ended half-way");
    rig_close(&r);
}

static void biases_that_move_are_not_waited_for(void **state)
{
    (void)state;
    int64_t waits[2], moves[2];
    for (int moving = 0; moving < 2; moving++) {
        moed_train_options o = within_options(3);
        o.balance_rate = moving ? 0.125 : 0;
        rig r = biased_rig(&o);
        rig_run(&r, 1);
        stop_at(&r, 0, NULL);
        rig_run(&r, 1);
        waits[moving] = stop.waits, moves[moving] = stop.moves;
        rig_close(&r);
    }
    assert_int_equal(waits[1], waits[0]);
    assert_true(moves[0] == 0 && moves[1] == 4);
}

static void the_last_of_several_calls_takes_back_what_all_have_moved(void **state)
{
    (void)state;
    const moed_train_options o = within_options(2);
    rig r = biased_rig(&o), whole = biased_rig(&o);
    moed_report a = empty_report(), b = empty_report();
    float before[EXPERTS];
    rig_run(&r, 1);
    rig_run(&whole, 1);
    memcpy(before, biases_of(&r), sizeof before);
    for (int at = 1; at <= 5; at++) { /* the fifth: where losses are asked for */
        for (int call = 0; call < 2; call++) assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
        assert_ok(moed_trainer_evaluate(r.trainer, r.corpus, 50, &a, NULL)); /* between them changes nothing */
        assert_true(memcmp(biases_of(&r), before, sizeof before) != 0);
        stop_at(&r, at, NULL);
        assert_refused(moed_trainer_forward_backward(r.trainer, NULL, NULL), MOED_E_MEMORY, "says the test");
        assert_memory_equal(biases_of(&r), before, sizeof before);
        assert_refused(moed_trainer_update(r.trainer, 1, NULL), MOED_E_STATE, "no gradient waits");
    }
    stop_at(&r, 0, NULL);
    for (int call = 0; call < 2; call++) {
        assert_ok(moed_trainer_forward_backward(r.trainer, NULL, &a));
        assert_ok(moed_trainer_forward_backward(whole.trainer, NULL, &b));
        assert_true(a.loss == b.loss && a.max_load == b.max_load);
    }
    assert_ok(moed_trainer_update(r.trainer, 1, NULL));
    assert_ok(moed_trainer_update(whole.trainer, 1, NULL));
    assert_same_models(r.model, whole.model);
    rig_close(&whole);
    rig_close(&r);
}

static moed_status no_norm(void *self, const moed_op_update *a)
{
    (void)self, (void)a;
    return moedi_fail(MOED_E_MEMORY, "out of memory, says the test");
}

static void an_update_that_does_not_begin_takes_back_what_its_calls_have_moved(void **state)
{
    (void)state;
    const moed_train_options o = within_options(2);
    rig r = biased_rig(&o), whole = biased_rig(&o);
    float before[EXPERTS];
    rig_run(&r, 1);
    memcpy(before, biases_of(&r), sizeof before);
    assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
    assert_true(memcmp(biases_of(&r), before, sizeof before) != 0);
    stop_at(&r, 0, NULL);
    moed_status (*const norm)(void *, const moed_op_update *) = stop.table.gradient_norm;
    stop.table.gradient_norm = no_norm;
    assert_refused(moed_trainer_update(r.trainer, 1, NULL), MOED_E_MEMORY, "says the test");
    assert_memory_equal(biases_of(&r), before, sizeof before);
    stop.table.gradient_norm = norm;
    rigs_end_alike(&r, &whole);
}

static void a_trainer_that_goes_takes_back_a_step_that_waits_for_its_update(void **state)
{
    (void)state;
    for (int late = 0; late < 2; late++) {
        moed_train_options o = within_options(3);
        o.store_late = late;
        rig r = biased_rig(&o);
        float before[EXPERTS];
        rig_run(&r, 1);
        memcpy(before, biases_of(&r), sizeof before);
        assert_ok(moed_trainer_forward_backward(r.trainer, NULL, NULL));
        moed_trainer_destroy(r.trainer);
        r.trainer = NULL;
        assert_memory_equal(biases_of(&r), before, sizeof before);
        rig_close(&r);
    }
}

/* ---- a backend that cannot move them: a plug-in of before there was the operation ---- */

static struct {
    moed_backend outer, inner;
    const moed_backend *whole;
} narrow;

static moed_status open_narrow(const moed_host_api *host, const moed_backend_config *config, void **self,
                               const moed_backend **out)
{
    const moed_status status = narrow.whole->open(host, config, self, out);
    if (status != MOED_OK) return status;
    narrow.inner = **out;
    narrow.inner.struct_size = offsetof(moed_backend, balance);
    *out = &narrow.inner;
    return MOED_OK;
}

static void a_device_that_cannot_move_biases_trains_with_biases_that_rest(void **state)
{
    (void)state;
    char dense[sizeof biased];
    memcpy(dense, biased, sizeof dense);
    memcpy(strstr(dense, "replace\": 1") + 10, "2", 1); /* no layer has experts, and none biases */
    for (int with = 0; with < 6; with++) {
        const char *config = with / 2 == 0 ? biased : with / 2 == 1 ? dense : NULL; /* the last has no selection biases */
        moed_train_options o = tiny_options(2);
        o.balance_rate = with % 2 ? 0.125 : 0, o.balance_each = MOED_BALANCE_MICRO_BATCH;
        moed_context *c = support_context("auto", 1);
        moed_model *m = config ? support_fresh(c, config, 7, -1) : tiny_model(c);
        moed_corpus *d = tiny_corpus(c, NULL);
        moed_trainer *t = NULL;
        narrow.whole = c->backend, narrow.outer = *c->backend;
        narrow.outer.struct_size = offsetof(moed_backend, balance), narrow.outer.open = open_narrow;
        c->backend = &narrow.outer;
        const int64_t held = support_held(c);
        if (with == 1) {
            assert_refused(moed_trainer_create(&t, c, m, d, NULL, &o), MOED_E_UNSUPPORTED, "at 0 they rest");
            assert_null(t);
        } else {
            assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
            assert_ok(moed_trainer_run(t, 0, NULL, NULL));
        }
        moed_trainer_destroy(t);
        assert_int_equal(support_held(c), held);
        moed_corpus_destroy(d);
        moed_model_destroy(m);
        support_close(c);
    }
}

static void an_expansion_to_biases_that_cannot_move_is_refused_first(void **state)
{
    (void)state;
    static const char one[] =
        "{\"model_type\": \"dots1\", \"vocab_size\": 48, \"hidden_size\": 16, \"intermediate_size\": 16, "
        "\"num_hidden_layers\": 2, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"n_routed_experts\": 1, "
        "\"num_experts_per_tok\": 1, \"n_shared_experts\": 1, \"first_k_dense_replace\": 1, \"moe_intermediate_size\": 16, "
        "\"norm_topk_prob\": true, \"initializer_range\": 0.1}";
    const moed_train_options o = tiny_options(3);
    moed_expansion_options grown;
    moed_error_info told = {.struct_size = sizeof told};
    assert_ok(moed_options_init(MOED_STRUCT_EXPANSION_OPTIONS, &grown, sizeof grown));
    grown.experts = 2;
    for (int lacks = 1; lacks >= 0; lacks--) {
        rig r = rig_of(one, &o);
        moedi_engine *e = moedi_transformer_engine(r.trainer->transformer);
        moed_backend table = *e->table;
        if (lacks) table.struct_size = offsetof(moed_backend, balance); /* as one that was built before there was the slot */
        e->table = &table;
        rig_run(&r, 1); /* an only expert has no bias that would move */
        if (lacks) {
            assert_refused(moed_trainer_expand(r.trainer, NULL, &grown, 0), MOED_E_UNSUPPORTED, "the operation that moves");
            assert_ok(moed_last_error_get(&told));
            assert_string_equal(told.parameter, "balance_rate");
        } else {
            assert_ok(moed_trainer_expand(r.trainer, NULL, &grown, 0));
        }
        rig_run(&r, 1);
        rig_close(&r);
    }
}

typedef struct memory {
    int64_t taken, counted;
} memory;

static memory memory_of(const char *config, const char *kernels, double rate)
{
    moed_context *c = support_context(kernels, 1), *other = support_context("auto", 1);
    moed_model *m = support_fresh(c, config, 7, -1);
    moed_corpus *d = tiny_corpus(other, NULL);
    moed_train_options o = within_options(2);
    moed_estimate e = {.struct_size = sizeof e};
    moed_context_info before = {.struct_size = sizeof before}, after = before;
    moed_trainer *t = NULL;
    o.balance_rate = rate;
    assert_ok(moed_train_estimate(moed_model_layout(m), NULL, &o, &e));
    assert_ok(moed_context_get_info(c, &before));
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    assert_ok(moed_context_get_info(c, &after));
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(other);
    moed_context_destroy(c);
    return (memory){.taken = after.host_in_use - before.host_in_use, .counted = e.host_bytes - e.weights};
}

/* Of a model of little but experts with kernels that need no room of their own, and of one whose attention needs the most. The
 * estimate is a bound: what biases that move add to it is looked at alone. */
static void taken_within_the_estimate(const char *config, const char *kernels)
{
    const memory moving = memory_of(config, kernels, 0.125), resting = memory_of(config, kernels, 0);
    const int64_t taken = moving.taken - resting.taken, counted = moving.counted - resting.counted;
    if (moving.taken > moving.counted)
        fail_msg("%lld bytes are taken, %lld were counted", (long long)moving.taken, (long long)moving.counted);
    enum { HEADERS = 1024 }; /* of three blocks */
    if (taken > counted + HEADERS) fail_msg("biases take %lld bytes, %lld were counted", (long long)taken, (long long)counted);
}

static void what_a_step_keeps_is_within_the_estimate(void **state)
{
    (void)state;
    static const char many[] =
        "{\"model_type\": \"dots1\", \"vocab_size\": 48, \"hidden_size\": 4, \"intermediate_size\": 4, \"num_hidden_layers\": 4, "
        "\"num_attention_heads\": 1, \"num_key_value_heads\": 1, \"n_routed_experts\": 512, \"num_experts_per_tok\": 1, "
        "\"n_shared_experts\": 1, \"first_k_dense_replace\": 0, \"moe_intermediate_size\": 1, \"max_position_embeddings\": "
        "256, \"initializer_range\": 0.1, \"torch_dtype\": \"float32\"}";
    taken_within_the_estimate(many, "reference");
    taken_within_the_estimate(biased, "auto");
}

static void a_run_that_was_stopped_goes_on_to_the_same_bits(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_train_options o = tiny_options(8);
    o.balance_rate = 0.03, o.micro_batches = 2, o.balance_each = MOED_BALANCE_MICRO_BATCH;
    rig whole = biased_rig(&o);
    rig_run(&whole, 0);
    o.directory = dir;
    rig first = biased_rig(&o);
    rig_run(&first, 5);
    assert_ok(moed_trainer_save(first.trainer));
    rig_close(&first);
    rig second = biased_rig(&o);
    assert_ok(moed_trainer_resume(second.trainer));
    rig_run(&second, 0);
    assert_same_models(whole.model, second.model);
    assert_true(biases_of(&second)[0] != 0);
    rig_close(&second);
    rig_close(&whole);
    support_remove(dir);
}

static void evenness_is_that_of_its_formulas(void **state)
{
    (void)state;
    static const int64_t equal[] = {5, 5, 5, 5}, all[] = {0, 12, 0, 0}, some[] = {1, 3, 0, 4}, uneven[] = {4, 2, 1, 3},
                         none[4] = {0};
    int64_t scratch[4];
    moedi_evenness e = moedi_loads_evenness(equal, 4, scratch);
    assert_true(fabs(e.most - 1) < 1e-12 && fabs(e.least - 1) < 1e-12 && fabs(e.entropy - 1) < 1e-12 && fabs(e.gini) < 1e-12);
    e = moedi_loads_evenness(all, 4, scratch);
    assert_true(fabs(e.most - 4) < 1e-12 && e.least == 0 && fabs(e.entropy) < 1e-12 && fabs(e.gini - 0.75) < 1e-12);
    e = moedi_loads_evenness(uneven, 4, scratch);
    assert_true(fabs(e.most - 1.6) < 1e-12 && fabs(e.least - 0.4) < 1e-12);
    e = moedi_loads_evenness(some, 4, scratch); /* by hand: mean absolute difference 2.25 over twice the mean 2; entropy 1.40564
                                                   bits of 2 */
    assert_true(fabs(e.most - 2) < 1e-12 && fabs(e.gini - 0.4375) < 1e-12 && fabs(e.entropy - 0.70282) < 1e-5);
    e = moedi_loads_evenness(none, 4, scratch);
    assert_true(e.most == 0 && e.least == 0 && e.entropy == 0 && e.gini == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_moves_every_bias_by_the_rate_towards_equal_loads),
        cmocka_unit_test(loads_even_out_without_a_loss_for_it),
        cmocka_unit_test(within_the_band_biases_move_in_proportion),
        cmocka_unit_test(biases_move_faster_while_the_rate_rises),
        cmocka_unit_test(biases_rest_at_rate_zero_and_where_a_step_is_dropped),
        cmocka_unit_test(within_a_step_biases_move_by_each_micro_batch),
        cmocka_unit_test(one_micro_batch_is_a_step),
        cmocka_unit_test(micro_batches_put_right_what_a_step_finds_wrong),
        cmocka_unit_test(a_dropped_step_takes_back_what_its_micro_batches_moved),
        cmocka_unit_test(a_step_stopped_after_any_micro_batch_leaves_biases_where_they_were),
        cmocka_unit_test(a_step_that_ends_half_way_ends_the_trainer),
        cmocka_unit_test(biases_that_cannot_be_brought_back_end_the_trainer),
        cmocka_unit_test(biases_that_move_are_not_waited_for),
        cmocka_unit_test(the_last_of_several_calls_takes_back_what_all_have_moved),
        cmocka_unit_test(an_update_that_does_not_begin_takes_back_what_its_calls_have_moved),
        cmocka_unit_test(a_trainer_that_goes_takes_back_a_step_that_waits_for_its_update),
        cmocka_unit_test(a_device_that_cannot_move_biases_trains_with_biases_that_rest),
        cmocka_unit_test(an_expansion_to_biases_that_cannot_move_is_refused_first),
        cmocka_unit_test(what_a_step_keeps_is_within_the_estimate),
        cmocka_unit_test(a_run_that_was_stopped_goes_on_to_the_same_bits),
        cmocka_unit_test(evenness_is_that_of_its_formulas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
