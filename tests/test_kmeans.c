/* test_kmeans.c - k-means: starts, Lloyd, balance, the embedding of documents, and what is refused. */
#include "support.h"
#include "fixture.h"

#include "cluster/lloyd.h"

static moed_kmeans_options options(int32_t clusters, int32_t method)
{
    moed_kmeans_options o;
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
    o.clusters = clusters, o.method = method;
    return o;
}
static moed_kmeans *made(moed_context *c, const moed_kmeans_options *o)
{
    moed_kmeans *k = NULL;
    assert_ok(moed_kmeans_create(&k, c, o));
    return k;
}
static moed_kmeans_info info_of(const moed_kmeans *k)
{
    moed_kmeans_info info = {.struct_size = sizeof info};
    assert_ok(moed_kmeans_get_info(k, &info));
    return info;
}
/* `groups` clouds of half-width `spread` around corners 10 apart; row i belongs to group i % groups */
static float *clouds(int64_t count, int64_t width, int64_t groups, float spread)
{
    float *x = malloc((size_t)(count * width) * sizeof *x);
    support_random(x, count * width, 7);
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < width; j++)
            x[i * width + j] = spread * x[i * width + j] + ((i % groups) >> (j % 3) & 1 ? 10.0f : 0.0f);
    return x;
}
static double inertia_by_hand(const float *x, const float *w, const int32_t *labels, const float *c, int64_t count, int64_t width)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        for (int64_t j = 0; j < width; j++) {
            const double away = (double)x[i * width + j] - (double)c[labels[i] * width + j];
            sum += (w ? (double)w[i] : 1.0) * away * away;
        }
    return sum;
}

static void separate_clouds_are_found(void **state)
{
    (void)state;
    enum { N = 800, D = 6, K = 8 };
    float *x = clouds(N, D, K, 1.0f);
    int32_t labels[N], again[N];
    float distances[N];
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D);
    for (int32_t method = 0; method < 2; method++) {
        const moed_kmeans_options o = options(K, method);
        moed_kmeans *k = made(context, &o);
        assert_ok(moed_kmeans_fit(k, &t, NULL, NULL, NULL));
        assert_ok(moed_kmeans_labels(k, labels, N));
        for (int i = 0; i < N; i++) {
            assert_in_range(labels[i], 0, K - 1);
            assert_int_equal(labels[i], labels[i % K]);
        }
        const moed_kmeans_info info = info_of(k);
        for (int j = 0; j < K; j++) assert_int_equal(info.counts[j], N / K);
        assert_float_equal(info.inertia, inertia_by_hand(x, NULL, labels, info.centroids, N, D), 1e-6 * info.inertia);
        assert_ok(moed_kmeans_assign(k, &t, again, distances, NULL));
        assert_memory_equal(labels, again, sizeof labels);
        moed_kmeans_destroy(k);
    }
    free(x);
}

static void given_starts_are_followed_to_the_fixed_point(void **state)
{
    (void)state;
    float x[6] = {0, 1, 2, 10, 11, 12}, starts[2] = {0, 1};
    int32_t labels[6];
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, 6, 1), s = support_tensor(starts, MOED_DTYPE_F32, 2, 1);
    const moed_kmeans_options o = options(2, MOED_KMEANS_PLAIN);
    moed_kmeans *k = made(context, &o);
    assert_ok(moed_kmeans_fit(k, &t, NULL, &s, NULL));
    assert_ok(moed_kmeans_labels(k, labels, 6));
    for (int i = 0; i < 6; i++) assert_int_equal(labels[i], i / 3);
    const moed_kmeans_info info = info_of(k);
    assert_float_equal(info.centroids[0], 1, 0);
    assert_float_equal(info.centroids[1], 11, 0);
    assert_float_equal(info.inertia, 4, 1e-12);
    moed_kmeans_destroy(k);
}

static void weights_pull_the_centroid(void **state)
{
    (void)state;
    float x[4] = {0, 4, 100, 104}, w[4] = {3, 1, 1, 0};
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, 4, 1);
    const moed_kmeans_options o = options(2, MOED_KMEANS_PLAIN);
    moed_kmeans *k = made(context, &o);
    assert_ok(moed_kmeans_fit(k, &t, w, NULL, NULL));
    const moed_kmeans_info info = info_of(k);
    const int first = info.centroids[0] > 50;
    assert_float_equal(info.centroids[first], 1, 1e-6);
    assert_float_equal(info.centroids[!first], 100, 0);
    assert_float_equal(info.weights[first], 4, 0);
    assert_int_equal(info.counts[!first], 2);
    assert_float_equal(info.inertia, 12, 1e-6);
    moed_kmeans_destroy(k);
}

static void more_restarts_are_never_worse(void **state)
{
    (void)state;
    enum { N = 600, D = 4 };
    float *x = clouds(N, D, 8, 6.0f);
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D);
    double before = INFINITY;
    for (int32_t restarts = 1; restarts <= 8; restarts *= 2) {
        moed_kmeans_options o = options(12, MOED_KMEANS_PLAIN);
        o.restarts = restarts, o.seed = 3;
        moed_kmeans *k = made(context, &o);
        assert_ok(moed_kmeans_fit(k, &t, NULL, NULL, NULL));
        assert_true(info_of(k).inertia <= before);
        before = info_of(k).inertia;
        moed_kmeans_destroy(k);
    }
    free(x);
}

static void same_bits_for_any_number_of_threads(void **state)
{
    (void)state;
    enum { N = 5000, D = 9, K = 7 };
    float *x = clouds(N, D, 8, 5.0f), *w = malloc(N * sizeof *w), first_centroids[K * D] = {0};
    int32_t *labels = malloc(N * sizeof *labels), *first = malloc(N * sizeof *first);
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D);
    for (int i = 0; i < N; i++) w[i] = (float)(1 + i * 7919 % 100);
    for (int32_t method = 0; method < 2; method++)
        for (int32_t threads = 1; threads <= 3; threads++) {
            moed_context *c = support_context("auto", threads);
            const moed_kmeans_options o = options(K, method);
            moed_kmeans *k = made(c, &o);
            assert_ok(moed_kmeans_fit(k, &t, w, NULL, NULL));
            assert_ok(moed_kmeans_labels(k, labels, N));
            const moed_kmeans_info info = info_of(k);
            if (threads == 1) {
                memcpy(first, labels, N * sizeof *labels);
                memcpy(first_centroids, info.centroids, sizeof first_centroids);
            }
            assert_memory_equal(first, labels, N * sizeof *labels);
            assert_memory_equal(first_centroids, info.centroids, sizeof first_centroids);
            moed_kmeans_destroy(k);
            moed_context_destroy(c);
        }
    free(x), free(w), free(labels), free(first);
}

static void empty_clusters_are_filled(void **state)
{
    (void)state;
    enum { N = 40, K = 5 };
    float x[N], starts[K] = {0, 1000, 2000, 3000, 4000};
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, 1), s = support_tensor(starts, MOED_DTYPE_F32, K, 1);
    for (int same = 0; same < 2; same++) /* spread rows, then identical ones: no cluster stays without a vector */
        for (int32_t method = 0; method < 2; method++)
            for (int given = 0; given < 2; given++) {
                for (int i = 0; i < N; i++) x[i] = same ? 3.0f : (float)(i * i);
                const moed_kmeans_options o = options(K, method);
                moed_kmeans *k = made(context, &o);
                assert_ok(moed_kmeans_fit(k, &t, NULL, given ? &s : NULL, NULL));
                const moed_kmeans_info info = info_of(k);
                for (int j = 0; j < K; j++) {
                    assert_true(info.counts[j] > 0);
                    assert_true(isfinite(info.centroids[j]));
                    if (method == MOED_KMEANS_BALANCED) assert_in_range(info.counts[j], N / K - 1, N / K + 1);
                }
                moed_kmeans_destroy(k);
            }
}

/* token counts as documents have them: many small, few large */
static void balanced_clusters_have_equal_weight(void **state)
{
    (void)state;
    enum { N = 3000, D = 5, K = 6 };
    float *x = clouds(N, D, 4, 4.0f), *w = malloc(N * sizeof *w);
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D);
    double total = 0, most = 0;
    for (int i = 0; i < N; i++) w[i] = (float)(20 + i * 7919 % 500 + (i % 97 == 0 ? 5000 : 0));
    for (int i = 0; i < N; i++) total += (double)w[i], most = fmax(most, (double)w[i]);
    double inertia[2];
    for (int32_t method = 0; method < 2; method++) {
        const moed_kmeans_options o = options(K, method);
        moed_kmeans *k = made(context, &o);
        assert_ok(moed_kmeans_fit(k, &t, w, NULL, NULL));
        const moed_kmeans_info info = info_of(k);
        inertia[method] = info.inertia;
        for (int j = 0; j < K && method; j++)
            if (fabs(info.weights[j] - total / K) > 0.01 * total / K)
                fail_msg("cluster %d has %g of %g", j, info.weights[j], total / K);
        moed_kmeans_destroy(k);
    }
    assert_true(inertia[1] >= inertia[0] * 0.98);
    assert_true(inertia[1] < inertia[0] * 1.6);
    free(x), free(w);
}

static void balancing_what_is_balanced_costs_nothing(void **state)
{
    (void)state;
    enum { N = 1600, D = 6, K = 8 };
    float *x = clouds(N, D, K, 3.0f);
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D);
    double inertia[2];
    for (int32_t method = 0; method < 2; method++) {
        const moed_kmeans_options o = options(K, method);
        moed_kmeans *k = made(context, &o);
        assert_ok(moed_kmeans_fit(k, &t, NULL, NULL, NULL));
        inertia[method] = info_of(k).inertia;
        moed_kmeans_destroy(k);
    }
    assert_true(inertia[1] < inertia[0] * 1.001);
    free(x);
}

static void one_document_larger_than_a_share_does_not_spoil_the_others(void **state)
{
    (void)state;
    enum { N = 50, K = 4 };
    float x[N], w[N];
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, 1);
    for (int i = 0; i < N; i++) x[i] = (float)i, w[i] = 1;
    w[10] = 1000;
    const moed_kmeans_options o = options(K, MOED_KMEANS_BALANCED);
    moed_kmeans *k = made(context, &o);
    assert_ok(moed_kmeans_fit(k, &t, w, NULL, NULL));
    const moed_kmeans_info info = info_of(k);
    for (int j = 0; j < K; j++) {
        assert_true(info.counts[j] > 0);
        assert_true(info.weights[j] <= 1049.0 / K + 1000);
    }
    moed_kmeans_destroy(k);
    for (int i = 0; i < N; i++) x[i] = 1; /* and with nothing to tell vectors apart */
    moed_kmeans *same = made(context, &o);
    assert_ok(moed_kmeans_fit(same, &t, w, NULL, NULL));
    for (int j = 0; j < K; j++) assert_true(info_of(same).counts[j] > 0);
    moed_kmeans_destroy(same);
}

static void bad_vectors_are_refused_by_number(void **state)
{
    (void)state;
    float x[8] = {0, 1, 2, 3, 4, 5, 6, 7}, w[4] = {1, 1, 1, 1};
    moed_tensor t = support_tensor(x, MOED_DTYPE_F32, 4, 2);
    int32_t labels[4];
    const moed_kmeans_options o = options(3, MOED_KMEANS_PLAIN), five = options(5, MOED_KMEANS_PLAIN);
    moed_kmeans *k = made(context, &o), *many = made(context, &five);
    moed_kmeans_info none = {.struct_size = sizeof none};
    assert_refused(moed_kmeans_get_info(k, &none), MOED_E_STATE, "moed_kmeans_fit");
    assert_refused(moed_kmeans_labels(k, labels, 4), MOED_E_STATE, "moed_kmeans_fit");
    assert_refused(moed_kmeans_assign(k, &t, labels, NULL, NULL), MOED_E_STATE, "moed_kmeans_fit");
    assert_refused(moed_kmeans_fit(many, &t, NULL, NULL, NULL), MOED_E_ARGUMENT, "5 clusters of 4 vectors");
    x[5] = NAN;
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, NULL), MOED_E_NUMERIC, "row 2 holds NaN");
    x[5] = INFINITY;
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, NULL), MOED_E_NUMERIC, "row 2");
    x[5] = 3e38f;
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, NULL), MOED_E_NUMERIC, "row 2 is too long");
    x[5] = 5;
    w[1] = NAN;
    assert_refused(moed_kmeans_fit(k, &t, w, NULL, NULL), MOED_E_NUMERIC, "weights: number 1");
    w[1] = -1;
    assert_refused(moed_kmeans_fit(k, &t, w, NULL, NULL), MOED_E_RANGE, "weights: number 1 is -1");
    w[1] = w[2] = 0;
    assert_refused(moed_kmeans_fit(k, &t, w, NULL, NULL), MOED_E_ARGUMENT, "3 clusters of 2 vectors with a weight above 0");
    t.dtype = MOED_DTYPE_F64;
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, NULL), MOED_E_ARGUMENT, "x: dtype is F64");
    t.dtype = MOED_DTYPE_F32, t.strides[0] = 3;
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, NULL), MOED_E_ARGUMENT, "not contiguous");
    t.strides[0] = 2;
    assert_ok(moed_kmeans_fit(k, &t, NULL, NULL, NULL));
    x[0] = NAN;
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, NULL), MOED_E_NUMERIC, "row 0"); /* and the fit before stays */
    assert_ok(moed_kmeans_labels(k, labels, 4));
    assert_refused(moed_kmeans_labels(k, labels, 3), MOED_E_ARGUMENT, "3 labels");
    moed_kmeans_destroy(k), moed_kmeans_destroy(many);
}

/* ---- documents ---- */

static int32_t own_length(int64_t document, int64_t *tokens, void *user)
{
    *tokens = ((const int64_t *)user)[document];
    return 0;
}
static int32_t own_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)((offset + i + document) % 4);
    return 0;
}

static void documents_are_the_means_of_their_embeddings_on(moed_context *c)
{
    int64_t lengths[4] = {2, 0, 1, 300000}; /* the last is larger than what is embedded at a time */
    float table[8] = {0, 1, 2, 3, 4, 5, 6, 7}, out[8] = {9, 9, 9, 9, 9, 9, 9, 9}, weights[4];
    const moed_documents own = {sizeof own, 0, 4, own_length, own_read, lengths};
    const moed_param params[2] = {
        {.name = "first", .layer = -1, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_F32, .rank = 1, .shape = {3}},
        {.name = "embed", .layer = -1, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_F32, .rank = 2,
         .flags = MOED_PARAM_EMBEDDING, .shape = {4, 2}},
    };
    const moed_tensor tensors[2] = {support_tensor(weights, MOED_DTYPE_F32, 3, 0), support_tensor(table, MOED_DTYPE_F32, 4, 2)};
    moed_tensor t = support_tensor(out, MOED_DTYPE_F32, 4, 2);
    moed_embed_options o;
    moed_corpus *d = NULL;
    moed_layout *l = NULL;
    moed_model *m = NULL;
    assert_ok(moed_options_init(MOED_STRUCT_EMBED_OPTIONS, &o, sizeof o));
    assert_ok(moed_corpus_wrap(&d, c, &own, NULL));
    assert_ok(moed_layout_create(&l, c, params, 2));
    assert_ok(moed_model_borrow(&m, c, l, tensors, 2, NULL, NULL));
    o.centre = o.normalise = 0;
    assert_ok(moed_corpus_embed(d, m, &t, &o, NULL));
    const float expected[8] = {1, 2, 0, 0, 4, 5, 3, 4};
    for (int i = 0; i < 8; i++) assert_float_equal(out[i], expected[i], 1e-5);
    o.centre = o.normalise = 1;
    assert_ok(moed_corpus_embed(d, m, &t, &o, NULL));
    assert_float_equal(out[2], 0, 0), assert_float_equal(out[3], 0, 0);
    const float away = 1 - 8.0f / 3, up = 2 - 11.0f / 3, norm = sqrtf(away * away + up * up);
    assert_float_equal(out[0], away / norm, 1e-5), assert_float_equal(out[1], up / norm, 1e-5);
    assert_ok(moed_corpus_weights(d, weights));
    assert_float_equal(weights[3], 300000, 0);
    t.shape[0] = 3;
    assert_refused(moed_corpus_embed(d, m, &t, &o, NULL), MOED_E_ARGUMENT, "shape (4, 2)");
    t.shape[0] = 4, table[3] = NAN;
    assert_refused(moed_corpus_embed(d, m, &t, &o, NULL), MOED_E_NUMERIC, "document 0");
    moed_corpus_destroy(d);
    d = NULL;
    moed_corpus_options big;
    assert_ok(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &big, sizeof big));
    big.vocabulary = 5;
    assert_ok(moed_corpus_wrap(&d, c, &own, &big));
    assert_refused(moed_corpus_embed(d, m, &t, &o, NULL), MOED_E_MISMATCH, "vocabulary of 5");
    moed_model_destroy(m), moed_layout_destroy(l), moed_corpus_destroy(d);
}

static void documents_are_the_means_of_their_embeddings(void **state)
{
    (void)state;
    moed_context *c = support_context("double", 1);
    documents_are_the_means_of_their_embeddings_on(context);
    documents_are_the_means_of_their_embeddings_on(c);
    moed_context_destroy(c);
}

static void a_cancelled_fit_keeps_the_one_before(void **state)
{
    (void)state;
    enum { N = 100 };
    float *x = clouds(N, 2, 4, 1.0f);
    int32_t labels[N];
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, 2);
    const moed_kmeans_options o = options(4, MOED_KMEANS_BALANCED);
    moed_kmeans *k = made(context, &o);
    moed_cancel *cancel = NULL;
    assert_ok(moed_cancel_create(&cancel));
    assert_ok(moed_kmeans_fit(k, &t, NULL, NULL, cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_kmeans_fit(k, &t, NULL, NULL, cancel), MOED_E_CANCELLED, "");
    assert_ok(moed_kmeans_labels(k, labels, N));
    assert_int_equal(info_of(k).counts[0], N / 4);
    moed_cancel_destroy(cancel);
    moed_kmeans_destroy(k);
    free(x);
}

/* ---- steps ---- */

/* Rows enough for several blocks of sums; widths past what is copied at a time. */
static void a_bounded_step_is_the_step_without_bounds(void **state)
{
    (void)state;
    static const int64_t shapes[3][3] = {{6000, 7, 24}, {5000, 33, 40}, {700, 600, 30}};
#if defined(__x86_64__)
    static const char *const kernels[] = {"auto", "v3", "v2"};
#else
    static const char *const kernels[] = {"auto"};
#endif
    for (size_t s = 0; s < 3 * (sizeof kernels / sizeof *kernels); s++) {
        const int64_t n = shapes[s % 3][0], d = shapes[s % 3][1], k = shapes[s % 3][2], cells = k * d;
        float *x = clouds(n, d, 8, 3.0f), *c = malloc((size_t)cells * sizeof *c), *moved = malloc((size_t)k * sizeof *moved);
        double *sums = malloc((size_t)(2 * cells + 2 * k) * sizeof *sums), *plain = sums + cells, *totals = plain + cells;
        int64_t *counts = malloc((size_t)(2 * k) * sizeof *counts);
        int32_t *labels = malloc((size_t)(2 * n) * sizeof *labels);
        moed_context *own = support_context(kernels[s / 3], 3);
        moedi_lloyd l, without;
        assert_ok(moedi_lloyd_open(&l, own, x, NULL, n, d, k, 1));
        assert_ok(moedi_lloyd_open(&without, own, x, NULL, n, d, k, 0));
        memcpy(c, x, (size_t)cells * sizeof *c);
        for (int step = 0; step < 8; step++) {
            assert_ok(moedi_lloyd_step(&l, c, step ? moved : NULL, sums, totals, counts));
            assert_ok(moedi_lloyd_labels(&l, labels));
            assert_ok(moedi_lloyd_assign(&without, c, k, NULL, labels + n, NULL));
            assert_memory_equal(labels, labels + n, (size_t)n * sizeof *labels);
            assert_ok(moedi_lloyd_accumulate(&without, labels, plain, totals + k, counts + k));
            assert_memory_equal(sums, plain, (size_t)cells * sizeof *sums);
            assert_memory_equal(counts, counts + k, (size_t)k * sizeof *counts);
            for (int64_t j = 0; j < k; j++) {
                double square = 0;
                for (int64_t i = 0; i < d && totals[j] > 0; i++) {
                    const float next = (float)(sums[j * d + i] / totals[j]);
                    square += ((double)next - (double)c[j * d + i]) * ((double)next - (double)c[j * d + i]);
                    c[j * d + i] = next;
                }
                moved[j] = (float)(sqrt(square) * 1.00001);
            }
        }
        moedi_lloyd_close(&l), moedi_lloyd_close(&without);
        support_close(own);
        free(x), free(c), free(moved), free(sums), free(counts), free(labels);
    }
}

static void all_distances_are_those_of_the_definition(void **state)
{
    (void)state;
    enum { N = 300, D = 21, K = 37 };
    static const char *const kernels[] = {"auto", "reference"};
    static float distances[K * N];
    float *x = clouds(N, D, 8, 0.1f);
    for (int64_t i = 0; i < N * D; i++) x[i] += 100.0f; /* far from the origin, some close to each other, some equal */
    memcpy(x + 50 * D, x + 3 * D, D * sizeof *x);
    for (int s = 0; s < 2; s++) {
        moed_context *own = support_context(kernels[s], 2);
        moedi_lloyd l;
        assert_ok(moedi_lloyd_open(&l, own, x, NULL, N, D, K, 0));
        for (int rows = 0; rows < 2; rows++) { /* clusters first, then rows first */
            const int64_t by_row = rows ? K : 1, by_cluster = rows ? 1 : N;
            assert_ok(moedi_lloyd_distances(&l, x, K, distances, by_row, by_cluster));
            for (int k = 0; k < K; k++)
                for (int i = 0; i < N; i++) {
                    double square = 0;
                    for (int j = 0; j < D; j++) square += pow((double)x[i * D + j] - (double)x[k * D + j], 2);
                    assert_float_equal(distances[i * by_row + k * by_cluster], square, 1e-4 * square);
                }
            assert_true(distances[50 * by_row + 3 * by_cluster] == 0);
        }
        moedi_lloyd_close(&l);
        support_close(own);
    }
    free(x);
}

/* ---- other starts, batches, streams ---- */

static void other_starts_and_batches_find_the_clouds(void **state)
{
    (void)state;
    enum { N = 4000, D = 6, K = 8 };
    float *x = clouds(N, D, K, 1.0f);
    int32_t *labels = malloc(2 * N * sizeof *labels);
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D);
    for (int mode = 0; mode < 4; mode++)
        for (int32_t threads = 1; threads <= 3; threads += 2) {
            moed_context *c = support_context("auto", threads);
            moed_kmeans_options o = options(K, mode == 3 ? MOED_KMEANS_BALANCED : MOED_KMEANS_PLAIN);
            o.start = mode ? MOED_START_PARALLEL : MOED_START_PLUSPLUS, o.batch = mode == 1 ? 0 : 500, o.restarts = 2;
            moed_kmeans *k = made(c, &o);
            assert_ok(moed_kmeans_fit(k, &t, NULL, NULL, NULL));
            assert_ok(moed_kmeans_labels(k, labels + (threads > 1) * N, N));
            for (int i = 0; i < N; i++) assert_int_equal(labels[i], labels[i % K]);
            const moed_kmeans_info info = info_of(k);
            for (int j = 0; j < K; j++) assert_int_equal(info.counts[j], N / K);
            if (threads > 1) assert_memory_equal(labels, labels + N, N * sizeof *labels);
            moed_kmeans_destroy(k);
            support_close(c);
        }
    free(x), free(labels);
}

typedef struct own_vectors {
    const float *x;
    int64_t width, stop_at; /* a read of this row fails; -1: none */
} own_vectors;
static int32_t read_own(int64_t first, int64_t count, float *out, void *user)
{
    const own_vectors *o = user;
    if (first <= o->stop_at && o->stop_at < first + count) return 7;
    memcpy(out, o->x + first * o->width, (size_t)(count * o->width) * sizeof *out);
    return 0;
}

static void a_streamed_fit_is_the_fit_in_memory(void **state)
{
    (void)state;
    enum { N = 2500, D = 4096, K = 5 }; /* several batches */
    float *x = clouds(N, D, 8, 2.0f), *w = malloc(N * sizeof *w), *distances = malloc(N * sizeof *distances);
    int32_t labels[N], streamed[N];
    own_vectors own = {x, D, -1};
    const moed_vectors v = {sizeof v, 0, N, D, read_own, &own};
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, D), starts = support_tensor(x, MOED_DTYPE_F32, K, D);
    moed_context *c = support_context("auto", 2);
    moed_kmeans_options o = options(K, MOED_KMEANS_PLAIN);
    o.iterations = 5;
    for (int i = 0; i < N; i++) w[i] = (float)(1 + i % 3);
    moed_kmeans *memory = made(c, &o), *stream = made(c, &o);
    assert_ok(moed_kmeans_fit(memory, &t, w, &starts, NULL));
    assert_ok(moed_kmeans_fit_stream(stream, &v, w, &starts, NULL));
    const moed_kmeans_info a = info_of(memory), b = info_of(stream);
    assert_float_equal(a.inertia, b.inertia, 1e-6 * a.inertia);
    for (int j = 0; j < K; j++) assert_int_equal(a.counts[j], b.counts[j]), assert_true(a.weights[j] == b.weights[j]);
    assert_ok(moed_kmeans_labels(memory, labels, N));
    assert_ok(moed_kmeans_assign_stream(stream, &v, streamed, distances, NULL));
    assert_memory_equal(labels, streamed, sizeof labels);
    assert_ok(moed_kmeans_assign_stream(stream, &v, NULL, distances, NULL));
    assert_refused(moed_kmeans_labels(stream, labels, N), MOED_E_STATE, "moed_kmeans_assign_stream");

    assert_ok(moed_kmeans_fit_stream(stream, &v, NULL, NULL, NULL)); /* starts of its own */
    assert_true(info_of(stream).inertia < 1.3 * a.inertia);
    own.stop_at = 2100;
    const double before = info_of(stream).inertia;
    assert_refused(moed_kmeans_fit_stream(stream, &v, NULL, &starts, NULL), MOED_E_CALLBACK, "moed_vectors.read");
    own.stop_at = -1;
    x[2200 * (int64_t)D] = NAN;
    assert_refused(moed_kmeans_fit_stream(stream, &v, NULL, &starts, NULL), MOED_E_NUMERIC, "row 2200 holds NaN");
    assert_true(info_of(stream).inertia == before);
    moed_kmeans_destroy(memory), moed_kmeans_destroy(stream);
    support_close(c);
    free(x), free(w), free(distances);
}

static void a_stream_fills_its_empty_clusters(void **state)
{
    (void)state;
    enum { N = 60, K = 4 };
    float x[N], starts[K] = {0, 1000, 2000, 3000};
    own_vectors own = {x, 1, -1};
    const moed_vectors v = {sizeof v, 0, N, 1, read_own, &own};
    const moed_tensor s = support_tensor(starts, MOED_DTYPE_F32, K, 1);
    for (int i = 0; i < N; i++) x[i] = (float)(i * i);
    for (int32_t batch = 0; batch <= 20; batch += 20) {
        moed_kmeans_options o = options(K, MOED_KMEANS_PLAIN);
        o.batch = batch;
        moed_kmeans *k = made(context, &o);
        assert_ok(moed_kmeans_fit_stream(k, &v, NULL, &s, NULL));
        for (int j = 0; j < K; j++) assert_true(info_of(k).counts[j] > 0);
        moed_kmeans_destroy(k);
    }
}

static void bad_streams_are_refused(void **state)
{
    (void)state;
    float x[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    own_vectors own = {x, 2, -1};
    moed_vectors v = {sizeof v, 0, 4, 2, read_own, &own};
    const moed_kmeans_options o = options(2, MOED_KMEANS_PLAIN), equal = options(2, MOED_KMEANS_BALANCED);
    moed_kmeans *k = made(context, &o), *balanced = made(context, &equal);
    moed_cancel *cancel = NULL;
    assert_refused(moed_kmeans_assign_stream(k, &v, NULL, NULL, NULL), MOED_E_STATE, "moed_kmeans_fit");
    assert_refused(moed_kmeans_fit_stream(balanced, &v, NULL, NULL, NULL), MOED_E_UNSUPPORTED, "balanced");
    v.count = 1;
    assert_refused(moed_kmeans_fit_stream(k, &v, NULL, NULL, NULL), MOED_E_ARGUMENT, "2 clusters of 1 vectors");
    v.count = 0;
    assert_refused(moed_kmeans_fit_stream(k, &v, NULL, NULL, NULL), MOED_E_ARGUMENT, "shape (0, 2)");
    v.count = 4, v.struct_size = 8;
    assert_refused(moed_kmeans_fit_stream(k, &v, NULL, NULL, NULL), MOED_E_STRUCT, "struct_size is 8");
    v.struct_size = sizeof v;
    assert_ok(moed_kmeans_fit_stream(k, &v, NULL, NULL, NULL));
    v.width = 1;
    assert_refused(moed_kmeans_assign_stream(k, &v, NULL, NULL, NULL), MOED_E_ARGUMENT, "width 1 where 2");
    v.width = 2;
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_kmeans_fit_stream(k, &v, NULL, NULL, cancel), MOED_E_CANCELLED, "");
    moed_cancel_destroy(cancel);
    moed_kmeans_destroy(k), moed_kmeans_destroy(balanced);
}

static void running_out_of_memory_anywhere_is_survived(void **state)
{
    (void)state;
    enum { N = 60 };
    int64_t allowed;
    moed_context *c = support_scarce_context(&allowed);
    float *x = clouds(N, 2, 4, 1.0f);
    const moed_tensor t = support_tensor(x, MOED_DTYPE_F32, N, 2);
    own_vectors own = {x, 2, -1};
    const moed_vectors v = {sizeof v, 0, N, 2, read_own, &own};
    int64_t n = 0;
    for (int streamed = 0; streamed < 2; streamed++, n = 0) {
        moed_kmeans_options o = options(4, streamed ? MOED_KMEANS_PLAIN : MOED_KMEANS_BALANCED);
        o.start = MOED_START_PARALLEL, o.batch = 20;
        for (moed_status status = MOED_E_MEMORY; support_scarce(c, &allowed, n, 0, status); n++) {
            moed_kmeans *k = NULL;
            status = moed_kmeans_create(&k, c, &o);
            if (status == MOED_OK)
                status = streamed ? moed_kmeans_fit_stream(k, &v, NULL, NULL, NULL) : moed_kmeans_fit(k, &t, NULL, NULL, NULL);
            moed_kmeans_destroy(k);
        }
        assert_true(n > 20);
    }
    support_close(c);
    free(x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(separate_clouds_are_found),
        T(given_starts_are_followed_to_the_fixed_point),
        T(weights_pull_the_centroid),
        T(more_restarts_are_never_worse),
        T(same_bits_for_any_number_of_threads),
        T(empty_clusters_are_filled),
        T(balanced_clusters_have_equal_weight),
        T(balancing_what_is_balanced_costs_nothing),
        T(one_document_larger_than_a_share_does_not_spoil_the_others),
        T(bad_vectors_are_refused_by_number),
        T(documents_are_the_means_of_their_embeddings),
        T(a_cancelled_fit_keeps_the_one_before),
        T(running_out_of_memory_anywhere_is_survived),
        T(a_bounded_step_is_the_step_without_bounds),
        T(all_distances_are_those_of_the_definition),
        T(other_starts_and_batches_find_the_clouds),
        T(a_streamed_fit_is_the_fit_in_memory),
        T(a_stream_fills_its_empty_clusters),
        T(bad_streams_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
