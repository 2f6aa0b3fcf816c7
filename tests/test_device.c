/* tests/test_device.c - training, evaluation, checkpoints and embedding on a device whose memory the host cannot touch (the fake
 * plug-in): the same bits as on the CPU, so nothing in model/, train/ and cluster/ reaches across the border. */
#include "train_support.h"

#include "device_pieces.h"
#include "train/trainer.h"

static moed_context_options fake_options(void)
{
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.device = "fake:0", o.plugin_dir = MOEDI_TEST_OUT "/tests/plugins/fake";
    return o;
}
static moed_context *fake_context(void)
{
    moed_context *c;
    const moed_context_options o = fake_options();
    assert_ok(moed_context_create(&c, &o));
    return c;
}

/* Three steps, a checkpoint, a fourth step in a trainer that resumes from it: the model's numbers. biases 1: the model has
 * selection biases, 2: they move within the steps. */
static float *train(moed_context *c, int32_t policy, int biases, double *held_out, size_t *count)
{
    char *dir = support_directory();
    moed_train_options o = tiny_options(4);
    o.directory = dir, o.micro_batches = 2, o.freeze = "router", o.policy = policy;
    o.balance_each = biases == 2 ? MOED_BALANCE_MICRO_BATCH : MOED_BALANCE_STEP;
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_report r = empty_report();
    for (int part = 0; part < 2; part++) {
        moed_model *m = biases ? tiny_biased_model(c) : tiny_model(c);
        moed_trainer *t;
        assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
        if (part) assert_ok(moed_trainer_resume(t));
        assert_ok(moed_trainer_run(t, part ? 0 : 3, NULL, NULL));
        if (!part) assert_ok(moed_trainer_save(t));
        assert_ok(moed_trainer_evaluate(t, d, 0, &r, NULL));
        moed_trainer_destroy(t);
        if (part) {
            *held_out = r.loss;
            float *numbers = model_numbers(m, count);
            moed_model_destroy(m);
            moed_corpus_destroy(d);
            support_remove(dir);
            return numbers;
        }
        moed_model_destroy(m);
    }
    return NULL;
}

static void training_on_a_device_gives_the_bits_of_the_cpu(void **state)
{
    (void)state;
    moed_context *cpu = support_context("reference", 2), *fake = fake_context();
    double a_loss, b_loss;
    size_t a_count, b_count;
    for (int mode = 0; mode < 6; mode++) {
        const int32_t policy = mode % 2 ? MOED_POLICY_LEAN : MOED_POLICY_FULL;
        float *a = train(cpu, policy, mode / 2, &a_loss, &a_count), *b = train(fake, policy, mode / 2, &b_loss, &b_count);
        assert_int_equal(a_count, b_count);
        assert_memory_equal(a, b, a_count * sizeof *a);
        assert_true(a_loss == b_loss && a_loss > 0);
        free(a);
        free(b);
    }
    moed_context_destroy(cpu);
    moed_context_destroy(fake);
}

static void weights_of_a_device_may_come_to_the_model_at_the_end_alone(void **state)
{
    (void)state;
    size_t count;
    float *numbers[4];
    for (int late = 0; late < 2; late++) {
        moed_context *c = fake_context();
        moed_model *m = tiny_model(c);
        moed_corpus *d = tiny_corpus(c, NULL);
        moed_train_options o = tiny_options(4);
        moed_trainer *t;
        o.store_late = late;
        float *before = model_numbers(m, &count);
        assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
        assert_ok(moed_trainer_run(t, 1, NULL, NULL));
        assert_ok(moed_trainer_forward_backward(t, NULL, NULL));
        assert_ok(moed_trainer_update(t, 1, NULL));
        numbers[late] = model_numbers(m, &count);
        assert_true((memcmp(before, numbers[late], count * sizeof *before) == 0) == late);
        moed_trainer_destroy(t);
        numbers[2 + late] = model_numbers(m, &count);
        free(before);
        moed_corpus_destroy(d);
        moed_model_destroy(m);
        moed_context_destroy(c);
    }
    assert_memory_equal(numbers[0], numbers[2], count * sizeof **numbers);
    assert_memory_equal(numbers[0], numbers[3], count * sizeof **numbers);
    for (int i = 0; i < 4; i++) free(numbers[i]);
}

static void logits_routing_embedding_and_kmeans_work_on_a_device(void **state)
{
    (void)state;
    enum { ROWS = 2, LENGTH = 8, CHOICES = 2 * ROWS * LENGTH * 2 };
    float *logits[2], *vectors[2];
    int32_t routes[2][CHOICES], labels[2][TINY_DOCUMENTS];
    for (int i = 0; i < 2; i++) {
        moed_context *c = i ? fake_context() : support_context("reference", 1);
        moed_model *m = tiny_model(c);
        moed_corpus *d = tiny_corpus(c, NULL);
        int32_t tokens[ROWS * LENGTH];
        for (int k = 0; k < ROWS * LENGTH; k++) tokens[k] = k * 5 % TINY_VOCABULARY;
        const moed_batch b = {.tokens = tokens, .rows = ROWS, .length = LENGTH};
        logits[i] = calloc(ROWS * LENGTH * TINY_VOCABULARY, sizeof(float));
        moed_tensor out = {.data = logits[i], .dtype = MOED_DTYPE_F32, .rank = 3, .shape = {ROWS, LENGTH, TINY_VOCABULARY},
                           .strides = {LENGTH * TINY_VOCABULARY, TINY_VOCABULARY, 1}};
        assert_ok(moed_model_logits(m, &b, &out, NULL));
        assert_ok(moed_model_routing(m, &b, routes[i], NULL, NULL));
        vectors[i] = calloc(TINY_DOCUMENTS * 16, sizeof(float));
        moed_tensor x = support_tensor(vectors[i], MOED_DTYPE_F32, TINY_DOCUMENTS, 16);
        assert_ok(moed_corpus_embed(d, m, &x, NULL, NULL));
        moed_kmeans *k;
        moed_kmeans_options o;
        assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
        o.clusters = 3, o.method = MOED_KMEANS_BALANCED;
        assert_ok(moed_kmeans_create(&k, c, &o));
        assert_ok(moed_kmeans_fit(k, &x, NULL, NULL, NULL));
        assert_ok(moed_kmeans_labels(k, labels[i], TINY_DOCUMENTS));
        moed_kmeans_destroy(k);
        moed_corpus_destroy(d);
        moed_model_destroy(m);
        moed_context_destroy(c);
    }
    assert_memory_equal(logits[0], logits[1], ROWS * LENGTH * TINY_VOCABULARY * sizeof(float));
    assert_memory_equal(routes[0], routes[1], sizeof routes[0]);
    assert_memory_equal(vectors[0], vectors[1], TINY_DOCUMENTS * 16 * sizeof(float));
    assert_memory_equal(labels[0], labels[1], sizeof labels[0]);
    for (int i = 0; i < 2; i++) free(logits[i]), free(vectors[i]);
}

/* Three starts that are one vector: two clusters are empty after the first step, and filled on the host. */
static void clusters_that_empty_on_a_device_are_filled(void **state)
{
    (void)state;
    enum { ROWS = 300, WIDTH = 5, CLUSTERS = 6 };
    float x[ROWS * WIDTH], starts[CLUSTERS * WIDTH], centroids[2][CLUSTERS * WIDTH];
    int32_t labels[2][ROWS];
    moed_kmeans_info info[2];
    for (int i = 0; i < ROWS * WIDTH; i++) x[i] = (float)((i * 7919 + i / WIDTH % 6 * 40000) % 104729) * 1e-3f;
    for (int i = 0; i < CLUSTERS * WIDTH; i++) starts[i] = x[i < 3 * WIDTH ? i % WIDTH : i];
    const moed_tensor vectors = support_tensor(x, MOED_DTYPE_F32, ROWS, WIDTH),
                      first = support_tensor(starts, MOED_DTYPE_F32, CLUSTERS, WIDTH);
    for (int i = 0; i < 2; i++) {
        moed_context *c = i ? fake_context() : support_context("reference", 1);
        moed_kmeans *k;
        moed_kmeans_options o;
        assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
        o.clusters = CLUSTERS, o.tolerance = 0;
        assert_ok(moed_kmeans_create(&k, c, &o));
        assert_ok(moed_kmeans_fit(k, &vectors, NULL, &first, NULL));
        assert_ok(moed_kmeans_labels(k, labels[i], ROWS));
        info[i] = (moed_kmeans_info){.struct_size = sizeof info[i]};
        assert_ok(moed_kmeans_get_info(k, &info[i]));
        memcpy(centroids[i], info[i].centroids, sizeof centroids[i]);
        for (int n = 0; n < CLUSTERS; n++) assert_true(info[i].counts[n] > 0);
        moed_kmeans_destroy(k);
        moed_context_destroy(c);
    }
    assert_true(info[0].iterations > 2 && info[0].iterations == info[1].iterations && info[0].inertia == info[1].inertia);
    assert_memory_equal(labels[0], labels[1], sizeof labels[0]);
    assert_memory_equal(centroids[0], centroids[1], sizeof centroids[0]);
}

/* ---- a step as a graph ---- */

static void count_launches(int32_t level, const char *line, void *user)
{
    (void)level;
    *(int *)user += strcmp(line, "a graph is launched") == 0;
}

static void a_step_as_a_graph_gives_the_bits_of_an_ordinary_one(void **state)
{
    (void)state;
    int long_runs = 0, launches = 0;
    moed_context *contexts[3] = {support_context("reference", 1), fake_context(), NULL};
    moed_context_options logged = fake_options();
    logged.log = count_launches, logged.log_user = &launches, logged.log_level = MOED_LOG_DEBUG;
    assert_ok(moed_context_create(&contexts[2], &logged));
    for (int i = 0; i < POISONED_CASES; i++) {
        moed_train_options o = poisoned_options(i);
        float *numbers[3];
        double losses[3][POISONED_STEPS];
        int done[3];
        size_t count[3];
        for (int k = 0; k < 3; k++) {
            o.graph = k != 1;
            launches = 0;
            numbers[k] = poisoned_steps(contexts[k], &o, losses[k], &done[k], &count[k]);
            assert_int_equal(done[k], done[0]);
            assert_memory_equal(losses[k], losses[0], (size_t)done[0] * sizeof(double));
            assert_memory_equal(numbers[k], numbers[0], count[0] * sizeof(float));
        }
        for (int k = 0; k < 3; k++) free(numbers[k]);
        if (!o.document_mask && done[0] < POISONED_STEPS) assert_int_equal(launches, done[0] + 1);
        long_runs += done[0] >= 3 && done[0] < POISONED_STEPS; /* the refused step was a graph */
    }
    assert_true(long_runs >= 3);
    for (int k = 0; k < 3; k++) moed_context_destroy(contexts[k]);
}

/* A device that cannot record one of the last calls of a step. */
static const moed_backend *ordinary;
static int recorded, recording_refused;
static moed_status note_begin(void *self)
{
    recorded = 1;
    return ordinary->graph_begin(self);
}
static moed_status note_end(void *self, void **graph)
{
    recorded = 0;
    return ordinary->graph_end(self, graph);
}
static moed_status unrecordable(void *self, const moed_op_update *u)
{
    recording_refused += recorded;
    return recorded ? MOED_E_BACKEND : ordinary->gradient_norm(self, u);
}

static void a_recording_that_ends_early_leaves_no_gradient(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(6);
    moed_context *contexts[2] = {support_context("reference", 1), fake_context()};
    moed_model *models[2];
    for (int k = 0; k < 2; k++) {
        moed_trainer *t;
        moed_corpus *d = tiny_corpus(contexts[k], NULL);
        models[k] = tiny_model(contexts[k]);
        assert_ok(moed_trainer_create(&t, contexts[k], models[k], d, NULL, &o));
        moedi_engine *e = moedi_transformer_engine(t->transformer);
        ordinary = e->table;
        moed_backend table = *ordinary;
        table.graph_begin = note_begin, table.graph_end = note_end, table.gradient_norm = unrecordable;
        if (k == 1) e->table = &table;
        assert_ok(moed_trainer_run(t, 0, NULL, NULL));
        e->table = ordinary;
        moed_trainer_destroy(t);
        moed_corpus_destroy(d);
    }
    assert_int_equal(recording_refused, 1);
    assert_same_models(models[0], models[1]);
    for (int k = 0; k < 2; k++) moed_model_destroy(models[k]), moed_context_destroy(contexts[k]);
}

/* ---- the caller's stream, allocator and events ---- */

typedef struct device_memory {
    int64_t blocks, bytes, calls;
    void *stream;
} device_memory;

static void *take(size_t size, void *stream, void *user)
{
    device_memory *m = user;
    m->blocks++, m->calls++, m->bytes += (int64_t)size;
    assert_ptr_equal(stream, m->stream);
    return malloc(size);
}
static void give_back(void *memory, size_t size, void *stream, void *user)
{
    device_memory *m = user;
    m->blocks--, m->bytes -= (int64_t)size;
    assert_ptr_equal(stream, m->stream);
    free(memory);
}

static void device_memory_is_the_callers_and_all_of_it_comes_back(void **state)
{
    (void)state;
    int stream;
    device_memory memory = {.stream = &stream};
    moed_context *c = NULL;
    moed_context_options o = fake_options();
    o.stream = &stream, o.device_alloc = take, o.device_free = give_back, o.device_alloc_user = &memory;
    assert_ok(moed_context_create(&c, &o));
    const moed_train_options train = tiny_options(4);
    moed_model *m = tiny_model(c);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_trainer *t;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &train));
    const int64_t calls = memory.calls;
    assert_true(memory.blocks > 0 && memory.bytes > 0);
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    assert_int_equal(memory.calls, calls); /* steps take none */
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
    assert_true(memory.blocks == 0 && memory.bytes == 0);
}

/* ---- what a run takes there ---- */

static moed_context *limited_context(int64_t limit)
{
    moed_context *c = NULL;
    moed_context_options o = fake_options();
    o.device_limit = limit;
    assert_ok(moed_context_create(&c, &o));
    return c;
}
static moed_model *model_to_plan(moed_context *c)
{
    return tiny_model_of(c, 32, 2, 4, 512);
}
static moed_estimate estimate_on(moed_context *c, const moed_device_info *d, const moed_train_options *o)
{
    moed_estimate e = {.struct_size = sizeof e};
    moed_model *m = model_to_plan(c);
    assert_ok(moed_train_estimate(moed_model_layout(m), d, o, &e));
    moed_model_destroy(m);
    return e;
}

/* Whole steps, an evaluation and all, under a limit that the engine keeps: it refuses what goes beyond. The policy that was
 * taken, 0 where the start was refused. */
static int32_t run_under(int64_t limit, const moed_train_options *options)
{
    moed_context *c = limited_context(limit);
    moed_model *m = model_to_plan(c);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_train_options o = *options;
    moed_trainer_info info = {.struct_size = sizeof info};
    moed_report r = empty_report();
    moed_trainer *t = NULL;
    char figure[64];
    snprintf(figure, sizeof figure, "on the device, the limit is %lld", (long long)limit);
    const int32_t planned = estimate_on(c, NULL, &o).policy;
    const moed_status status = moed_trainer_create(&t, c, m, d, NULL, &o);
    if (status == MOED_OK) {
        assert_ok(moed_trainer_run(t, 0, NULL, NULL));
        assert_ok(moed_trainer_evaluate(t, d, 0, &r, NULL));
        assert_ok(moed_trainer_get_info(t, &info));
        assert_int_equal(info.policy, planned);
    } else {
        assert_int_equal(status, MOED_E_LIMIT);
        assert_non_null(strstr(moed_last_error(), figure));
    }
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
    return info.policy;
}

/* The estimate itself is enough; a byte less is refused before the start, or is a reason to be lean. */
static void a_device_limit_is_held_against_the_estimate(void **state)
{
    (void)state;
    moed_context *c = fake_context();
    moed_train_options o = tiny_options(3);
    int64_t needs[3];
    o.micro_batches = 2;
    for (o.policy = MOED_POLICY_AUTO; o.policy <= MOED_POLICY_LEAN; o.policy++)
        needs[o.policy] = estimate_on(c, NULL, &o).device_bytes;
    moed_context_destroy(c);
    assert_true(needs[MOED_POLICY_AUTO] == needs[MOED_POLICY_FULL] && needs[MOED_POLICY_LEAN] < needs[MOED_POLICY_FULL]);
    for (o.policy = MOED_POLICY_FULL; o.policy <= MOED_POLICY_LEAN; o.policy++) {
        assert_int_equal(run_under(needs[o.policy], &o), o.policy);
        assert_int_equal(run_under(needs[o.policy] - 1, &o), 0);
    }
    o.policy = MOED_POLICY_AUTO;
    assert_int_equal(run_under(needs[MOED_POLICY_FULL], &o), MOED_POLICY_FULL);
    assert_int_equal(run_under(needs[MOED_POLICY_FULL] - 1, &o), MOED_POLICY_LEAN);
    assert_int_equal(run_under(needs[MOED_POLICY_LEAN], &o), MOED_POLICY_LEAN);
    assert_int_equal(run_under(needs[MOED_POLICY_LEAN] - 1, &o), 0);
}

static void a_device_that_has_too_little_is_told_before_the_start(void **state)
{
    (void)state;
    moed_context *c = fake_context();
    moed_train_options o = tiny_options(3);
    o.policy = MOED_POLICY_FULL;
    const int64_t needs = estimate_on(c, NULL, &o).device_bytes;
    char figures[96];
    moed_model *m = model_to_plan(c);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_trainer *t = NULL;
    c->device_memory = needs - 1;
    snprintf(figures, sizeof figures, "needs %lld bytes on the device, its memory is %lld", (long long)needs,
             (long long)c->device_memory);
    assert_refused(moed_trainer_create(&t, c, m, d, NULL, &o), MOED_E_MEMORY, figures);
    assert_null(t);
    c->device_memory = needs;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    moed_trainer_destroy(t);
    c->device_memory = 0; /* it does not tell */
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

/* A device is planned for from anywhere: its backend says what its operations keep, and one that nobody knows keeps nothing. */
static void operations_room_is_the_devices_to_tell(void **state)
{
    (void)state;
    moed_context *fake = fake_context(), *c = NULL;
    moed_context_options options = fake_options();
    options.device = "cpu", options.kernels = "reference";
    assert_ok(moed_context_create(&c, &options));
    const moed_train_options o = tiny_options(3);
    moed_device_info d = {.struct_size = sizeof d, .backend = "fake"};
    const moed_estimate own = estimate_on(fake, NULL, &o), planned = estimate_on(c, &d, &o), here = estimate_on(c, NULL, &o);
    strcpy(d.backend, "nobody's");
    const moed_estimate unknown = estimate_on(c, &d, &o);
    assert_int_equal(own.device_bytes, own.weights + own.gradients + own.moments + own.activations);
    assert_int_equal(planned.device_bytes, own.device_bytes);
    assert_int_equal(planned.activations, here.activations); /* the fake one's operations are the CPU's */
    assert_true(unknown.activations < own.activations);
    assert_int_equal(own.activations - unknown.activations, own.device_bytes - unknown.device_bytes);
    moed_context_destroy(fake);
    moed_context_destroy(c);
}

static void events_are_waited_for_and_recorded_on_the_callers_stream(void **state)
{
    (void)state;
    int stream;
    void *event[2] = {NULL, NULL};
    moed_context *c = NULL, *cpu = support_context("reference", 1);
    moed_context_options o = fake_options();
    o.stream = &stream;
    assert_ok(moed_context_create(&c, &o));
    assert_ok(moed_context_wait_event(c, event));
    assert_true(event[0] == &stream && !event[1]);
    assert_ok(moed_context_record_event(c, event));
    assert_ptr_equal(event[1], &stream);
    assert_refused(moed_context_wait_event(c, NULL), MOED_E_ARGUMENT, "event");
    assert_refused(moed_context_wait_event(NULL, event), MOED_E_ARGUMENT, "context");
    assert_refused(moed_context_wait_event(cpu, event), MOED_E_UNSUPPORTED, "cpu has no streams");
    assert_refused(moed_context_record_event(cpu, event), MOED_E_UNSUPPORTED, "cpu has no streams");
    moed_context_destroy(c);
    moed_context_destroy(cpu);
}

static void a_stream_for_a_device_that_has_none_is_refused(void **state)
{
    (void)state;
    int stream;
    moed_context *c = NULL;
    moed_context_options o = fake_options();
    o.device = "cpu", o.stream = &stream;
    assert_refused(moed_context_create(&c, &o), MOED_E_UNSUPPORTED, "cpu has no streams");
    o = fake_options();
    o.device_alloc = take;
    assert_refused(moed_context_create(&c, &o), MOED_E_ARGUMENT, "together");
}

/* ---- surgery ---- */

static void surgery_in_device_memory_gives_the_bits_of_the_host(void **state)
{
    (void)state;
    moed_context *fake = fake_context();
    check_device_surgery(fake);
    moed_context_destroy(fake);
}

static void a_model_in_device_memory_is_for_surgery(void **state)
{
    (void)state;
    moed_context *fake = fake_context();
    moed_model *m = tiny_model_of(fake, 16, 1, 2, TINY_VOCABULARY);
    float numbers[2 * TINY_VOCABULARY];
    const moed_batch b = {.tokens = (const int32_t[]){1, 2}, .rows = 1, .length = 2};
    moed_tensor out = {.data = numbers, .dtype = MOED_DTYPE_F32, .rank = 3, .shape = {1, 2, TINY_VOCABULARY},
                       .strides = {2 * TINY_VOCABULARY, TINY_VOCABULARY, 1}};
    check_computing(fake, m, &b, &out);
    moed_model_destroy(m);
    moed_context_destroy(fake);
}

/* Of a step that waits for its update nothing comes to the host, neither then nor when the trainer goes. */
static void a_trainer_that_goes_leaves_the_last_whole_step(void **state)
{
    (void)state;
    moed_context *fake = fake_context();
    float *numbers[3];
    size_t count = 0;
    for (int way = 0; way < 3; way++) { /* one step; and half of another, the weights stored at once, or late */
        moed_train_options o = tiny_options(4);
        o.micro_batches = 2, o.balance_rate = 0.125, o.balance_each = MOED_BALANCE_MICRO_BATCH, o.store_late = way == 2;
        moed_model *m = tiny_biased_model(fake);
        moed_corpus *d = tiny_corpus(fake, NULL);
        moed_trainer *t;
        assert_ok(moed_trainer_create(&t, fake, m, d, NULL, &o));
        assert_ok(moed_trainer_run(t, 1, NULL, NULL));
        if (way) assert_ok(moed_trainer_forward_backward(t, NULL, NULL));
        moed_trainer_destroy(t);
        numbers[way] = model_numbers(m, &count);
        moed_corpus_destroy(d);
        moed_model_destroy(m);
    }
    for (int way = 1; way < 3; way++) assert_memory_equal(numbers[0], numbers[way], count * sizeof(float));
    for (int way = 0; way < 3; way++) free(numbers[way]);
    moed_context_destroy(fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_trainer_that_goes_leaves_the_last_whole_step),
        cmocka_unit_test(training_on_a_device_gives_the_bits_of_the_cpu),
        cmocka_unit_test(weights_of_a_device_may_come_to_the_model_at_the_end_alone),
        cmocka_unit_test(logits_routing_embedding_and_kmeans_work_on_a_device),
        cmocka_unit_test(clusters_that_empty_on_a_device_are_filled),
        cmocka_unit_test(a_step_as_a_graph_gives_the_bits_of_an_ordinary_one),
        cmocka_unit_test(a_recording_that_ends_early_leaves_no_gradient),
        cmocka_unit_test(surgery_in_device_memory_gives_the_bits_of_the_host),
        cmocka_unit_test(a_model_in_device_memory_is_for_surgery),
        cmocka_unit_test(device_memory_is_the_callers_and_all_of_it_comes_back),
        cmocka_unit_test(a_device_limit_is_held_against_the_estimate),
        cmocka_unit_test(a_device_that_has_too_little_is_told_before_the_start),
        cmocka_unit_test(operations_room_is_the_devices_to_tell),
        cmocka_unit_test(events_are_waited_for_and_recorded_on_the_callers_stream),
        cmocka_unit_test(a_stream_for_a_device_that_has_none_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
