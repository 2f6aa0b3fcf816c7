/* tests/test_threads.c - one process, many threads: contexts side by side, trainers and fits that share a context, const calls
 * that share a handle. Whatever ran beside it, a result has the bits it has alone. `make tsan` looks for races here. */
#include <pthread.h>

#include "train_support.h"

enum { CROWD = 4, STEPS = 3, VECTORS = 700, WIDTH = 8, CLUSTERS = 5 };

/* What one thread makes: numbers of the model it trained, labels of the vectors it clustered. */
typedef struct job {
    moed_context *context; /* NULL = one of its own */
    float *numbers;
    size_t count;
    int32_t labels[VECTORS];
    float vectors[VECTORS * WIDTH];
    int32_t method;
} job;

static void train_job(job *w, moed_context *c)
{
    const moed_train_options o = tiny_options(STEPS);
    moed_model *m = tiny_model(c);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_trainer *t = NULL;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    moed_corpus_destroy(d); /* the trainer keeps what it needs alive */
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    moed_trainer_destroy(t);
    w->numbers = model_numbers(m, &w->count);
    moed_model_destroy(m);
}

static void cluster_job(job *w, moed_context *c)
{
    moed_kmeans_options o;
    moed_kmeans *k = NULL;
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
    o.clusters = CLUSTERS, o.method = w->method, o.iterations = 10;
    support_random(w->vectors, VECTORS * WIDTH, 3);
    const moed_tensor x = support_tensor(w->vectors, MOED_DTYPE_F32, VECTORS, WIDTH);
    assert_ok(moed_kmeans_create(&k, c, &o));
    assert_ok(moed_kmeans_fit(k, &x, NULL, NULL, NULL));
    assert_ok(moed_kmeans_labels(k, w->labels, VECTORS));
    moed_kmeans_destroy(k);
}

static void *do_job(void *argument)
{
    job *w = argument;
    moed_context *c = w->context ? w->context : support_context("auto", 2);
    train_job(w, c);
    cluster_job(w, c);
    if (!w->context) support_close(c);
    return NULL;
}

static void assert_same_job(const job *a, const job *b)
{
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->numbers, b->numbers, a->count * sizeof *a->numbers);
    assert_memory_equal(a->labels, b->labels, sizeof a->labels);
}

/* The crowd's results are those of one that was alone before. */
static void crowd(moed_context *shared)
{
    job *jobs = calloc(CROWD + 1, sizeof *jobs);
    pthread_t threads[CROWD];
    for (int i = 0; i <= CROWD; i++) jobs[i].context = shared;
    do_job(&jobs[CROWD]);
    for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_create(&threads[i], NULL, do_job, &jobs[i]), 0);
    for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < CROWD; i++) assert_same_job(&jobs[i], &jobs[CROWD]);
    for (int i = 0; i <= CROWD; i++) free(jobs[i].numbers);
    free(jobs);
}

static void contexts_in_several_threads_do_not_meet(void **state)
{
    (void)state;
    crowd(NULL);
}

static void trainers_and_fits_share_a_context(void **state)
{
    (void)state;
    moed_context *c = support_context("auto", 3);
    crowd(c);
    support_close(c);
}

/* ---- const calls ---- */

typedef struct shared {
    const moed_model *model;
    const moed_corpus *corpus;
    const moed_kmeans *kmeans;
    const char *dir;
    pthread_mutex_t lock;
    int next;
} shared;

typedef struct reading {
    int32_t tokens[4 * TINY_LENGTH], labels[4 * TINY_LENGTH], nearest[WIDTH];
    float logits[TINY_LENGTH * TINY_VOCABULARY], vectors[WIDTH * WIDTH];
    moed_report report;
} reading;

static void read_all(shared *s, reading *r)
{
    moed_batch b = {.tokens = r->tokens, .rows = 1, .length = TINY_LENGTH};
    moed_tensor out = {.data = r->logits, .dtype = MOED_DTYPE_F32, .rank = 3, .shape = {1, TINY_LENGTH, TINY_VOCABULARY},
                       .strides = {TINY_LENGTH * TINY_VOCABULARY, TINY_VOCABULARY, 1}};
    support_random(r->vectors, WIDTH * WIDTH, 9);
    const moed_tensor x = support_tensor(r->vectors, MOED_DTYPE_F32, WIDTH, WIDTH);
    r->report = empty_report();
    assert_ok(moed_corpus_sample(s->corpus, 5, 0, 4, TINY_LENGTH, r->tokens, r->labels, NULL));
    assert_ok(moed_model_logits(s->model, &b, &out, NULL));
    assert_ok(moed_model_evaluate(s->model, s->corpus, 200, 2, TINY_LENGTH, 1, &r->report, NULL));
    assert_ok(moed_kmeans_assign(s->kmeans, &x, r->nearest, NULL, NULL));
    r->report.seconds = r->report.tokens_per_second = 0;
}

static void *read_beside(void *argument)
{
    shared *s = argument;
    reading *r = calloc(2, sizeof *r);
    char path[4200];
    pthread_mutex_lock(&s->lock);
    snprintf(path, sizeof path, "%s/%d", s->dir, s->next++);
    pthread_mutex_unlock(&s->lock);
    read_all(s, &r[0]);
    assert_ok(moed_model_save(s->model, path, NULL));
    read_all(s, &r[1]);
    assert_memory_equal(&r[0], &r[1], sizeof *r);
    free(r);
    return NULL;
}

static void const_calls_on_one_handle_run_side_by_side(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_context *c = support_context("auto", 3);
    moed_model *m = tiny_model(c), *saved[2] = {NULL, NULL};
    moed_corpus *wrapped = tiny_corpus(c, NULL), *d = NULL;
    moed_kmeans *k = NULL;
    moed_kmeans_options o;
    float vectors[VECTORS * WIDTH];
    pthread_t threads[CROWD];
    support_random(vectors, VECTORS * WIDTH, 3);
    const moed_tensor x = support_tensor(vectors, MOED_DTYPE_F32, VECTORS, WIDTH);
    assert_ok(moed_corpus_save(wrapped, support_path(dir, "corpus"), NULL));
    assert_ok(moed_corpus_open(&d, c, support_path(dir, "corpus"), NULL));
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
    o.clusters = CLUSTERS, o.iterations = 5;
    assert_ok(moed_kmeans_create(&k, c, &o));
    assert_ok(moed_kmeans_fit(k, &x, NULL, NULL, NULL));
    shared s = {.model = m, .corpus = d, .kmeans = k, .dir = dir, .lock = PTHREAD_MUTEX_INITIALIZER};
    for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_create(&threads[i], NULL, read_beside, &s), 0);
    for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    assert_ok(moed_model_open(&saved[0], c, support_path(dir, "0"), NULL));
    assert_ok(moed_model_open(&saved[1], c, support_path(dir, "3"), NULL));
    assert_same_models(saved[0], m);
    assert_same_models(saved[1], m);
    moed_model_destroy(saved[0]), moed_model_destroy(saved[1]);
    moed_kmeans_destroy(k);
    moed_corpus_destroy(d), moed_corpus_destroy(wrapped);
    moed_model_destroy(m);
    support_close(c);
    support_remove(dir);
}

/* ---- cancel, errors, the last handle ---- */

static void *cancel_soon(void *argument)
{
    usleep(20000);
    moed_cancel_request(argument);
    return NULL;
}

static void a_run_is_cancelled_from_another_thread(void **state)
{
    (void)state;
    const moed_train_options o = tiny_options(1000000);
    moed_cancel *cancel = NULL;
    pthread_t thread;
    rig r = rig_open(&o, 2);
    assert_ok(moed_cancel_create(&cancel));
    assert_int_equal(pthread_create(&thread, NULL, cancel_soon, cancel), 0);
    assert_refused(moed_trainer_run(r.trainer, 0, NULL, cancel), MOED_E_CANCELLED, "");
    assert_int_equal(pthread_join(thread, NULL), 0);
    moed_cancel_destroy(cancel);
    rig_close(&r);
}

static void *fail_often(void *argument)
{
    const int number = *(const int *)argument;
    char json[64], word[16];
    moed_context *c = support_context("reference", 1);
    snprintf(word, sizeof word, "parrot%d", number);
    snprintf(json, sizeof json, "{\"model_type\": \"%s\"}", word);
    for (int i = 0; i < 200; i++) {
        moed_layout *l = NULL;
        assert_refused(moed_layout_from_config(&l, c, json, strlen(json)), MOED_E_UNSUPPORTED, word);
    }
    support_close(c);
    return NULL;
}

static void an_error_is_its_threads_own(void **state)
{
    (void)state;
    pthread_t threads[CROWD];
    int numbers[CROWD];
    for (int i = 0; i < CROWD; i++) {
        numbers[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, fail_often, &numbers[i]), 0);
    }
    for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
}

static void *drop_model(void *model)
{
    moed_model_destroy(model);
    return NULL;
}

/* The context goes with whichever handle goes last, on whatever thread that is. */
static void handles_are_dropped_on_any_thread(void **state)
{
    (void)state;
    for (int round = 0; round < 10; round++) {
        pthread_t threads[CROWD];
        moed_context *c = support_context("auto", 2);
        moed_model *models[CROWD];
        for (int i = 0; i < CROWD; i++) models[i] = tiny_model_of(c, 4, 1, 2, 8);
        for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_create(&threads[i], NULL, drop_model, models[i]), 0);
        moed_context_destroy(c);
        for (int i = 0; i < CROWD; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(contexts_in_several_threads_do_not_meet), cmocka_unit_test(trainers_and_fits_share_a_context),
        cmocka_unit_test(const_calls_on_one_handle_run_side_by_side), cmocka_unit_test(a_run_is_cancelled_from_another_thread),
        cmocka_unit_test(an_error_is_its_threads_own), cmocka_unit_test(handles_are_dropped_on_any_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
