/* Where a gate comes from: rows that submodels carry, rows by ridge regression on what routers see. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#include "fixture.h"

#include "tiny.h"

static const char config[] = TINY_QWEN("\"num_hidden_layers\": 2, \"num_key_value_heads\": 2, \"num_experts\": 4,"
                                       " \"num_experts_per_tok\": 2");
enum { LAYERS = 2, EXPERTS = 4, HIDDEN = 8, CLUSTERS = 4, DOCUMENTS = 24 };

/* ---- a corpus of four kinds of documents ---- */

static int32_t length_of(int64_t document, int64_t *tokens, void *user)
{
    *tokens = user ? 31 : 3 + document % 29; /* a row with its end token, or shorter and across rows */
    return 0;
}

static int32_t read_tokens(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((document * 7 + (offset + i) * (1 + document % CLUSTERS)) % (TINY_VOCABULARY - 1));
    return 0;
}

static moed_corpus *kinds(int64_t end_token, int whole_rows)
{
    static int something;
    const moed_documents documents = {.count = DOCUMENTS, .length = length_of, .read = read_tokens,
                                      .user = whole_rows ? &something : NULL};
    return support_corpus(context, documents, TINY_VOCABULARY, end_token);
}

static moed_partition *by_kind(const moed_corpus *d)
{
    int32_t labels[DOCUMENTS];
    moed_partition *p = NULL;
    for (int i = 0; i < DOCUMENTS; i++) labels[i] = i % CLUSTERS;
    assert_ok(moed_partition_create(&p, context, labels, DOCUMENTS, CLUSTERS, NULL, d));
    return p;
}

/* ---- ridge regression ---- */

typedef struct seen {
    double squares[LAYERS][HIDDEN][HIDDEN], totals[LAYERS][CLUSTERS][HIDDEN];
    int cluster;
    int64_t tokens;
} seen;

static moed_status look(moedi_transformer *t, int64_t layer, const void *h, void *user)
{
    seen *s = user;
    const float *x = h; /* the CPU's device memory is the host's */
    (void)t;
    for (int64_t n = 0; n < s->tokens; n++)
        for (int i = 0; i < HIDDEN; i++) {
            s->totals[layer][s->cluster][i] += (double)x[n * HIDDEN + i];
            for (int j = 0; j < HIDDEN; j++) s->squares[layer][i][j] += (double)x[n * HIDDEN + i] * (double)x[n * HIDDEN + j];
        }
    return MOED_OK;
}

/* Each document by itself, as attention sees it: after the end token before it, which is no part of it. */
static void see_documents(const moed_model *m, const moed_corpus *d, int32_t end_token, seen *s)
{
    moedi_transformer *t = NULL;
    assert_ok(moedi_transformer_create(&t, m, 1, 32, 0, NULL));
    moedi_transformer_tap(t, look, s);
    for (int64_t i = 0; i < DOCUMENTS; i++) {
        int32_t tokens[33], ends[33];
        int64_t count;
        assert_ok(moed_corpus_read(d, i, 0, tokens + 1, 32, &count));
        tokens[0] = end_token;
        for (int n = 0; n < 33; n++) ends[n] = n > 0;
        const moed_batch b = {.tokens = tokens, .documents = ends, .rows = 1, .length = count + 1};
        s->cluster = (int)(i % CLUSTERS), s->tokens = count + 1;
        assert_ok(moedi_transformer_forward(t, &b, NULL, NULL));
    }
    moedi_transformer_destroy(t);
}

/* The rows make the gradient of the regression's loss zero. */
static void check_normal_equations(const seen *s, const float *rows, double ridge)
{
    for (int l = 0; l < LAYERS; l++) {
        double mean = 0;
        for (int i = 0; i < HIDDEN; i++) mean += s->squares[l][i][i] / HIDDEN;
        for (int k = 0; k < CLUSTERS; k++)
            for (int i = 0; i < HIDDEN; i++) {
                const float *w = rows + (l * CLUSTERS + k) * HIDDEN;
                double left = ridge * mean * (double)w[i], right = s->totals[l][k][i];
                for (int j = 0; j < HIDDEN; j++) left += s->squares[l][i][j] * (double)w[j];
                for (int c = 0; c < CLUSTERS; c++) right -= s->totals[l][c][i] / CLUSTERS;
                if (fabs(left - right) > 1e-3 * mean)
                    fail_msg("layer %d, row %d, column %d: %g, and the regression's is %g", l, k, i, left, right);
            }
    }
}

static void a_gate_by_ridge_regression_is_its_minimum(void **state)
{
    moed_model *m = tiny_model(context, config, 3);
    moed_corpus *d = kinds(TINY_VOCABULARY - 1, 1);
    moed_partition *p = by_kind(d);
    float rows[LAYERS * CLUSTERS * HIDDEN];
    seen *s = calloc(1, sizeof *s);
    (void)state;
    see_documents(m, d, TINY_VOCABULARY - 1, s);
    for (double ridge = 1e-4; ridge < 10; ridge *= 100) {
        assert_ok(moed_model_fit_gate(m, d, p, 0, ridge, rows, NULL));
        check_normal_equations(s, rows, ridge);
    }
    free(s);
    moed_partition_destroy(p);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
}

static moed_status guess(moedi_transformer *t, int64_t layer, const void *h, void *user)
{
    double *right = ((double **)user)[0];
    const float *rows = ((const float **)user)[1], *x = h;
    const seen *s = ((const seen **)user)[2];
    (void)t;
    for (int64_t n = 0; n < s->tokens; n++) {
        int best = 0;
        double most = -INFINITY;
        for (int k = 0; k < CLUSTERS; k++) {
            double sum = 0;
            for (int i = 0; i < HIDDEN; i++) sum += (double)rows[(layer * CLUSTERS + k) * HIDDEN + i] * (double)x[n * HIDDEN + i];
            if (sum > most) most = sum, best = k;
        }
        right[0] += best == s->cluster, right[1]++;
    }
    return MOED_OK;
}

/* Share of tokens whose own cluster's row answers most, over all layers. */
static double found(const moed_model *m, const moed_corpus *d, const float *rows)
{
    double right[2] = {0};
    seen s = {.tokens = 0};
    const void *user[3] = {right, rows, &s};
    moedi_transformer *t = NULL;
    assert_ok(moedi_transformer_create(&t, m, 1, 32, 0, NULL));
    moedi_transformer_tap(t, guess, user);
    for (int64_t i = 0; i < DOCUMENTS; i++) {
        int32_t tokens[32];
        int64_t count;
        assert_ok(moed_corpus_read(d, i, 0, tokens, 32, &count));
        const moed_batch b = {.tokens = tokens, .rows = 1, .length = count};
        s.cluster = (int)(i % CLUSTERS), s.tokens = count;
        assert_ok(moedi_transformer_forward(t, &b, NULL, NULL));
    }
    moedi_transformer_destroy(t);
    return right[0] / right[1];
}

static void it_finds_the_cluster_of_a_token_more_often_than_chance(void **state)
{
    moed_model *m = tiny_model(context, config, 4);
    moed_corpus *d = kinds(-1, 0); /* without end tokens too */
    moed_partition *p = by_kind(d);
    float rows[LAYERS * CLUSTERS * HIDDEN];
    (void)state;
    assert_ok(moed_model_fit_gate(m, d, p, 0, 0.01, rows, NULL));
    const double share = found(m, d, rows);
    if (share < 1.3 / CLUSTERS) fail_msg("%.3f of the tokens find their cluster", share);
    assert_ok(moed_model_fit_gate(m, d, p, 10, 0.01, rows, NULL)); /* of a few tokens */
    assert_refused(moed_model_fit_gate(m, d, p, 0, 0, rows, NULL), MOED_E_ARGUMENT, "ridge");
    assert_refused(moed_model_fit_gate(m, d, p, -1, 1, rows, NULL), MOED_E_ARGUMENT, "tokens");
    moed_cancel *cancel = NULL;
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_model_fit_gate(m, d, p, 0, 0.01, rows, cancel), MOED_E_CANCELLED, "");
    moed_cancel_destroy(cancel);
    moed_partition_destroy(p);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
}

static void no_failed_allocation_of_a_fit_leaks(void **state)
{
    moed_context *fixture = context;
    int64_t allowed;
    (void)state;
    context = support_scarce_context(&allowed);
    moed_model *m = tiny_model(context, config, 4);
    moed_corpus *d = kinds(-1, 0);
    moed_partition *p = by_kind(d);
    float rows[LAYERS * CLUSTERS * HIDDEN];
    const int64_t held = support_held(context);
    moed_status status = MOED_E_MEMORY;
    for (int64_t n = 0; support_scarce(context, &allowed, n, held, status); n++)
        status = moed_model_fit_gate(m, d, p, 0, 0.01, rows, NULL);
    assert_int_equal(support_held(context), held);
    moed_partition_destroy(p);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    support_close(context);
    context = fixture;
}

/* ---- rows in a model ---- */

/* The base, its parts (trained: every number moved, by something of their own) and an integration that has them all. */
typedef struct parts {
    moed_model *base, *part[EXPERTS];
    moed_split *split;
    moed_integration *integration;
} parts;

static void make_parts(parts *x, int32_t count, int32_t gate)
{
    moed_split_options so;
    moed_integration_options io;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &so, sizeof so));
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &io, sizeof io));
    so.parts = count, io.gate = gate;
    *x = (parts){.base = tiny_model(context, config, 5)};
    assert_ok(moed_split_create(&x->split, x->base->layout, &so));
    assert_ok(moed_integration_create(&x->integration, x->split, x->base, &io));
    for (int32_t k = 0; k < count; k++) {
        assert_ok(moed_split_build(&x->part[k], x->split, k, x->base, NULL, NULL));
        for (size_t i = 0; i < x->part[k]->layout->count; i++)
            ((float *)x->part[k]->tensors[i].data)[0] += 1.0f + (float)k;
        assert_ok(moed_integration_add(x->integration, k, x->part[k], 1));
    }
}

static void drop_parts(parts *x)
{
    for (int k = 0; k < EXPERTS; k++) moed_model_destroy(x->part[k]);
    moed_integration_destroy(x->integration);
    moed_split_destroy(x->split);
    moed_model_destroy(x->base);
}

static const float *router(const moed_model *m, int layer)
{
    return m->tensors[moedi_layout_slot(m->layout, MOEDI_SLOT_ROUTER, layer, -1)].data;
}

static void rows_that_submodels_carry_come_with_their_experts(void **state)
{
    parts x;
    moed_model *whole = NULL;
    (void)state;
    make_parts(&x, 2, MOED_GATE_SUBMODELS);
    assert_ok(moed_integration_finish(&whole, x.integration, NULL, NULL));
    for (int l = 0; l < LAYERS; l++)
        for (int e = 0; e < EXPERTS; e++) /* expert e is number e / 2 of part e % 2 */
            assert_memory_equal(router(whole, l) + e * HIDDEN, router(x.part[e % 2], l) + e / 2 * HIDDEN, HIDDEN * sizeof(float));
    assert_true(router(whole, 0)[0] == router(x.base, 0)[0] + 1.0f);
    moed_model_destroy(whole);
    drop_parts(&x);
}

static double rms_of(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)count);
}

static void ridge_rows_keep_their_sizes_among_each_other(void **state)
{
    float rows[EXPERTS * HIDDEN];
    parts x;
    moed_model *whole = NULL;
    moed_tensor t = support_tensor(rows, MOED_DTYPE_F32, EXPERTS, HIDDEN);
    (void)state;
    support_random(rows, EXPERTS * HIDDEN, 9);
    for (int i = 0; i < HIDDEN; i++) rows[3 * HIDDEN + i] *= 5; /* a row that is larger */
    for (int i = 0; i < HIDDEN; i++) { /* as the regression gives them: their sum is zero */
        float mean = 0;
        for (int e = 0; e < EXPERTS; e++) mean += rows[e * HIDDEN + i] / EXPERTS;
        for (int e = 0; e < EXPERTS; e++) rows[e * HIDDEN + i] -= mean;
    }
    make_parts(&x, EXPERTS, MOED_GATE_RIDGE);
    assert_ok(moed_integration_set_gate(x.integration, -1, &t));
    assert_ok(moed_integration_finish(&whole, x.integration, NULL, NULL));
    for (int l = 0; l < LAYERS; l++) {
        const double factor = rms_of(router(x.base, l), EXPERTS * HIDDEN) / rms_of(rows, EXPERTS * HIDDEN);
        for (int i = 0; i < EXPERTS * HIDDEN; i++)
            assert_true(fabs((double)router(whole, l)[i] - factor * (double)rows[i]) < 1e-5);
    }
    for (int i = 0; i < EXPERTS * HIDDEN; i++) rows[i] = 1;
    assert_refused(moed_integration_set_gate(x.integration, 0, &t), MOED_E_ARGUMENT, "all the same");
    moed_model_destroy(whole);
    drop_parts(&x);
}

static void parts_and_results_have_the_type_that_was_asked_for(void **state)
{
    moed_split_options so;
    moed_integration_options io;
    moed_model *base = tiny_model(context, config, 6), *part = NULL, *whole = NULL;
    moed_split *s = NULL;
    moed_integration *i = NULL;
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &so, sizeof so));
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &io, sizeof io));
    so.parts = 1, so.dtype = MOED_DTYPE_BF16, io.dtype = MOED_DTYPE_F16;
    assert_ok(moed_split_create(&s, base->layout, &so));
    assert_ok(moed_integration_create(&i, s, base, &io));
    assert_ok(moed_split_build(&part, s, 0, base, NULL, NULL));
    assert_ok(moed_integration_add(i, 0, part, 1));
    assert_ok(moed_integration_finish(&whole, i, NULL, NULL));
    for (size_t p = 0; p < base->layout->count; p++) {
        assert_int_equal(part->layout->params[p].dtype, MOED_DTYPE_BF16);
        assert_int_equal(whole->layout->params[p].dtype, MOED_DTYPE_F16);
    }
    assert_non_null(strstr(part->layout->config_text, "bfloat16"));
    assert_non_null(strstr(whole->layout->config_text, "float16"));
    moed_model_destroy(whole);
    moed_model_destroy(part);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_gate_by_ridge_regression_is_its_minimum),
        T(it_finds_the_cluster_of_a_token_more_often_than_chance),
        T(no_failed_allocation_of_a_fit_leaks),
        T(rows_that_submodels_carry_come_with_their_experts),
        T(ridge_rows_keep_their_sizes_among_each_other),
        T(parts_and_results_have_the_type_that_was_asked_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
