/* A streamed model, a layer at a time, makes what the same model makes in memory: every family's fixtures. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#include "fixture.h"

#include <dirent.h>

#include "model/model.h"

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
    const moed_documents all = {.struct_size = sizeof all, .count = 20, .length = length_of, .read = read_tokens};
    moed_corpus_options o;
    moed_corpus *d = NULL;
    assert_ok(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &o, sizeof o));
    o.vocabulary = 29, o.end_token = 28;
    assert_ok(moed_corpus_wrap(&d, context, &all, &o));
    return d;
}

static moed_model *opened(const char *folder, uint32_t flags)
{
    moed_model *m = NULL;
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = flags;
    assert_ok(moed_model_open(&m, context, folder, &o));
    return m;
}

static void check_folder(const char *folder, const moed_corpus *d)
{
    moed_model *whole = opened(folder, 0), *streamed = opened(folder, MOED_MODEL_STREAM);
    const int64_t count = whole->layout->config.layers * whole->layout->config.experts;
    double *x = calloc(4 * (size_t)count, sizeof *x), *y = x + count, *v = y + count, *w = v + count;
    const int64_t some[] = {0, 60};
    for (int i = 0; i < 2; i++) {
        assert_ok(moed_model_usage(whole, d, some[i], x, v, NULL));
        assert_ok(moed_model_usage(streamed, d, some[i], y, w, NULL));
        for (int64_t n = 0; n < count; n++)
            if (fabs(x[n] - y[n]) > 1e-9 || fabs(v[n] - w[n]) > 1e-5)
                fail_msg("%s, number %d: %g and %g in memory, %g and %g streamed", folder, (int)n, x[n], v[n], y[n], w[n]);
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

static void it_is_cancelled_and_leaves_nothing(void **state)
{
    char folder[2000];
    double usage[64];
    moed_corpus *d = documents();
    moed_cancel *cancel = NULL;
    (void)state;
    snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers/mixtral-a", MOEDI_TEST_SOURCE);
    moed_model *m = opened(folder, MOED_MODEL_STREAM);
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_model_usage(m, d, 0, usage, NULL, cancel), MOED_E_CANCELLED, "");
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
    moed_model *m = opened(folder, 0);
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
    moed_status status = MOED_E_MEMORY;
    (void)state;
    context = support_scarce_context(&allowed);
    snprintf(folder, sizeof folder, "%s/tests/fixtures/transformers/qwen2_moe-d", MOEDI_TEST_SOURCE); /* layers of both kinds */
    moed_model *m = opened(folder, MOED_MODEL_STREAM);
    moed_corpus *d = documents();
    const int64_t held = support_held(context);
    for (int64_t n = 0; status != MOED_OK; n++) {
        allowed = n;
        status = moed_model_usage(m, d, 0, usage, NULL, NULL);
        if (status != MOED_OK) assert_int_equal(status, MOED_E_MEMORY);
        assert_int_equal(support_held(context), held);
        assert_true(n < 5000);
    }
    allowed = INT64_MAX;
    moed_model_destroy(m);
    moed_corpus_destroy(d);
    support_close(context);
    context = fixture;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(usage_of_a_streamed_model_is_that_of_one_in_memory),
        T(it_is_cancelled_and_leaves_nothing),
        T(a_router_of_nan_is_refused),
        T(no_failed_allocation_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
