/* A streamed model, a layer and an expert at a time, makes what the same model makes in memory: every family's fixtures. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#include "fixture.h"

#include <dirent.h>

#include "model/layerwise.h"
#include "train/evaluate.h"

static int32_t length_of(int64_t document, int64_t *tokens, void *user)
{
    (void)user;
    *tokens = 5 + document % 31;
    return 0;
}

static int32_t read_tokens(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)((document * 7 + (offset + i) * (1 + document % 5)) % 28);
    return 0;
}

static moed_corpus *documents(void)
{
    return support_corpus(context, (moed_documents){.count = 20, .length = length_of, .read = read_tokens}, 29, 28);
}

/* Bytes of experts' weights for `count` of them. */
static int64_t room_for(const moed_model *m, int64_t count)
{
    const moedi_config *c = &m->layout->config;
    return 3 * count * c->expert_width * c->hidden * (int64_t)sizeof(float);
}

static void check_folder(const char *folder, const moed_corpus *d)
{
    moed_model *whole = support_open(context, folder, 0), *streamed = support_open(context, folder, MOED_MODEL_STREAM);
    const int64_t count = whole->layout->config.layers * whole->layout->config.experts;
    double *x = calloc(4 * (size_t)count, sizeof *x), *y = x + count, *v = y + count, *w = v + count;
    const int64_t some[] = {0, 60};
    for (int i = 0; i < 2; i++) {
        assert_ok(moed_model_usage(whole, d, some[i], x, v, NULL));
        assert_ok(moed_model_usage(streamed, d, some[i], y, w, NULL));
        for (int64_t n = 0; n < count; n++)
            if (fabs(x[n] - y[n]) > 1e-9 || fabs(v[n] - w[n]) > 1e-5)
                fail_msg("%s, number %d: %g and %g in memory, %g and %g streamed", folder, (int)n, x[n], v[n], y[n], w[n]);
        for (int64_t held = 0; held < 4; held++) { /* experts in memory; 0: room for less than one */
            double *less = calloc(2 * (size_t)count, sizeof *less);
            assert_ok(moedi_evaluate_usage(streamed, d, some[i], room_for(streamed, held), less, less + count, NULL));
            assert_memory_equal(less, y, (size_t)count * sizeof *y);
            assert_memory_equal(less + count, w, (size_t)count * sizeof *w);
            free(less);
        }
    }
    free(x);
    moed_model_destroy(whole);
    moed_model_destroy(streamed);
}

static void usage_of_a_streamed_model_is_that_of_one_in_memory(void **state)
{
    char folder[2000], fixture[4000];
    int seen = 0;
    moed_corpus *d = documents();
    (void)state;
    snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers", MOEDI_TEST_SOURCE);
    DIR *list = opendir(folder);
    assert_non_null(list);
    for (const struct dirent *e; (e = readdir(list));) {
        if (e->d_name[0] == '.') continue;
        snprintf(fixture, sizeof fixture, "%s/%s", folder, e->d_name);
        check_folder(fixture, d);
        seen++;
    }
    closedir(list);
    assert_true(seen >= 12);
    moed_corpus_destroy(d);
}

enum { ROWS = 3, LENGTH = 11 };

/* States that left the last layer, of as many experts in memory at a time. */
static void pass(const moed_model *m, int64_t held, float *states)
{
    const int64_t hidden = m->layout->config.hidden;
    int32_t tokens[ROWS * LENGTH], documents[ROWS * LENGTH];
    moedi_layerwise *w = NULL;
    for (int i = 0; i < ROWS * LENGTH; i++) tokens[i] = i * 5 % 29, documents[i] = i / 4;
    const moed_batch b = {.documents = documents, .rows = ROWS, .length = LENGTH};
    assert_ok(moedi_layerwise_create(&w, m, ROWS, LENGTH, room_for(m, held)));
    assert_ok(moedi_layerwise_embed(w, tokens, ROWS * LENGTH, states));
    for (int32_t layer = 0; layer < m->layout->config.layers; layer++) {
        assert_ok(moedi_layerwise_load(w, layer, NULL));
        assert_ok(moedi_layerwise_pass(w, &b, states, NULL));
    }
    for (int64_t i = 0; i < ROWS * LENGTH * hidden; i++) assert_true(isfinite(states[i]));
    moedi_layerwise_destroy(w);
}

static void bits_do_not_depend_on_how_many_experts_are_in_memory(void **state)
{
    static const char *const names[] = {"qwen2_moe-d", "mixtral-a", "llama_moe-b", "dots1-a"};
    char folder[2000];
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers/%s", MOEDI_TEST_SOURCE, names[i]);
        moed_model *m = support_open(context, folder, MOED_MODEL_STREAM);
        const size_t bytes = (size_t)(ROWS * LENGTH * m->layout->config.hidden) * sizeof(float);
        float *all = malloc(2 * bytes), *some = all + bytes / sizeof *all;
        pass(m, 1000, all);
        for (int64_t held = 1; held < m->layout->config.experts; held++) {
            pass(m, held, some);
            assert_memory_equal(some, all, bytes);
        }
        free(all);
        moed_model_destroy(m);
    }
}

/* What is held does not grow with the number of experts, but for their names and router rows. */
static void a_few_experts_are_in_memory(void **state)
{
    char *folder = support_directory(), path[4000];
    int64_t peak[2];
    (void)state;
    for (int i = 0; i < 2; i++) {
        moedi_layerwise *w = NULL;
        char text[1000];
        snprintf(text, sizeof text,
                 "{\"model_type\": \"mixtral\", \"vocab_size\": 29, \"hidden_size\": 16, \"intermediate_size\": 64, "
                 "\"num_hidden_layers\": 1, \"num_attention_heads\": 2, \"num_key_value_heads\": 2, \"num_local_experts\": %d, "
                 "\"num_experts_per_tok\": 2, \"max_position_embeddings\": 64}", i ? 64 : 4);
        snprintf(path, sizeof path, "%s/%d", folder, i);
        moed_model *m = support_fresh(context, text, 0, -1);
        assert_ok(moed_model_save(m, path, NULL));
        moed_model_destroy(m);
        m = support_open(context, path, MOED_MODEL_STREAM);
        const int64_t before = support_held(context);
        assert_ok(moedi_layerwise_create(&w, m, 1, 4, room_for(m, 2)));
        assert_ok(moedi_layerwise_load(w, 0, NULL));
        peak[i] = support_held(context) - before;
        moedi_layerwise_destroy(w);
        moed_model_destroy(m);
    }
    assert_true(peak[1] - peak[0] < 60 * (3 * 64 * 16 * (int64_t)sizeof(float)) / 4);
    support_remove(folder);
}

static void it_is_cancelled_and_leaves_nothing(void **state)
{
    char folder[2000];
    double usage[64];
    moed_corpus *d = documents();
    moed_cancel *cancel = NULL;
    (void)state;
    snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers/mixtral-a", MOEDI_TEST_SOURCE);
    moed_model *m = support_open(context, folder, MOED_MODEL_STREAM);
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_model_usage(m, d, 0, usage, NULL, cancel), MOED_E_CANCELLED, "");
    assert_refused(moedi_evaluate_usage(m, d, 0, 1, usage, NULL, cancel), MOED_E_CANCELLED, "");
    moed_cancel_destroy(cancel);
    moed_model_destroy(m);
    moed_corpus_destroy(d);
}

static void a_router_of_nan_is_refused(void **state)
{
    char folder[2000];
    double usage[64];
    moed_corpus *d = documents();
    (void)state;
    snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers/mixtral-a", MOEDI_TEST_SOURCE);
    moed_model *m = support_open(context, folder, 0);
    const int64_t router = moedi_layout_slot(m->layout, MOEDI_SLOT_ROUTER, 0, -1);
    moed_tensor t;
    assert_ok(moed_model_tensor(m, (size_t)router, &t));
    assert_int_equal(t.dtype, MOED_DTYPE_F32);
    for (int64_t i = 0; i < t.shape[0] * t.shape[1]; i++) ((float *)t.data)[i] = NAN;
    assert_refused(moed_model_usage(m, d, 0, usage, NULL, NULL), MOED_E_NUMERIC, "layer 0");
    moed_model_destroy(m);
    moed_corpus_destroy(d);
}

static void no_failed_allocation_leaks(void **state)
{
    moed_context *fixture = context;
    int64_t allowed;
    char folder[2000];
    double usage[64];
    moed_status status;
    (void)state;
    context = support_scarce_context(&allowed);
    snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers/qwen2_moe-d", MOEDI_TEST_SOURCE); /* layers of both kinds */
    moed_model *m = support_open(context, folder, MOED_MODEL_STREAM);
    moed_corpus *d = documents();
    const int64_t held = support_held(context), rooms[] = {room_for(m, 100), 1};
    for (int i = 0; i < 2; i++) {
        status = MOED_E_MEMORY;
        for (int64_t n = 0; support_scarce(context, &allowed, n, held, status); n++)
            status = moedi_evaluate_usage(m, d, 100, rooms[i], usage, NULL, NULL);
        assert_int_equal(support_held(context), held);
    }
    moed_model_destroy(m);
    moed_corpus_destroy(d);
    support_close(context);
    context = fixture;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(usage_of_a_streamed_model_is_that_of_one_in_memory),
        T(bits_do_not_depend_on_how_many_experts_are_in_memory),
        T(a_few_experts_are_in_memory),
        T(it_is_cancelled_and_leaves_nothing),
        T(a_router_of_nan_is_refused),
        T(no_failed_allocation_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
