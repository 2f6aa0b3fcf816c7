/* tests/test_device.c - training, evaluation, checkpoints and embedding on a device whose memory the host cannot touch (the fake
 * plug-in): the same bits as on the CPU, so nothing in model/, train/ and cluster/ reaches across the border. */
#include "train_support.h"

static moed_context *fake_context(void)
{
    moed_context *c;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.device = "fake:0", o.plugin_dir = MOEDI_TEST_OUT "/tests/plugins/fake";
    assert_ok(moed_context_create(&c, &o));
    return c;
}

/* Three steps, a checkpoint, a fourth step in a trainer that resumes from it: the model's numbers. */
static float *train(moed_context *c, double *held_out, size_t *count)
{
    char *dir = support_directory();
    moed_train_options o = tiny_options(4);
    o.directory = dir, o.micro_batches = 2, o.freeze = "router";
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_report r = empty_report();
    for (int part = 0; part < 2; part++) {
        moed_model *m = tiny_model(c);
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
    float *a = train(cpu, &a_loss, &a_count), *b = train(fake, &b_loss, &b_count);
    assert_int_equal(a_count, b_count);
    assert_memory_equal(a, b, a_count * sizeof *a);
    assert_true(a_loss == b_loss && a_loss > 0);
    free(a);
    free(b);
    moed_context_destroy(cpu);
    moed_context_destroy(fake);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_on_a_device_gives_the_bits_of_the_cpu),
        cmocka_unit_test(logits_routing_embedding_and_kmeans_work_on_a_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
