/* train/gate.c - a router without training: ridge regression from the hidden states it sees to the cluster their document is
 * of. */
#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "evaluate.h"
#include "rows.h"

/* Sums over tokens, layer by layer. */
typedef struct sums {
    const moed_layout *layout;
    int64_t clusters, cluster;       /* of the tokens that pass */
    int64_t hidden, layers;
    double *squares;                 /* (layers, hidden, hidden): h h' */
    double *totals;                  /* (layers, clusters, hidden): h */
    void *ones, *batch_squares, *batch_totals; /* device: (tokens), (hidden, hidden) and (hidden) wide */
    double *numbers;                 /* host: (hidden, hidden) of a batch */
    void *raw;                       /* the same as the engine has them */
    int64_t tokens;                  /* of the batch */
} sums;

static moed_status add_numbers(moedi_engine *e, sums *s, const void *device, int64_t count, double *to)
{
    MOEDI_TRY(e->table->download(e->self, s->raw, device, (size_t)count * e->wide_item));
    MOEDI_TRY(e->table->synchronize(e->self));
    moedi_to_double(s->numbers, s->raw, e->info.wide, count);
    for (int64_t i = 0; i < count; i++) to[i] += s->numbers[i];
    return MOED_OK;
}

/* One layer of a batch: its products are the engine's, its sums are in double. */
static moed_status add_batch(moedi_transformer *t, int64_t layer, const void *h, void *user)
{
    sums *s = user;
    moedi_engine *e = moedi_transformer_engine(t);
    const int64_t d = s->hidden;
    if (!s->layout->experts[layer]) return MOED_OK;
    const moed_op_gemm squares = {.c = s->batch_squares, .a = h, .b = h, .m = d, .n = d, .k = s->tokens,
                                  .lda = d, .ldb = d, .ldc = d, .transpose_a = 1, .wide_c = 1};
    const moed_op_gemm totals = {.c = s->batch_totals, .a = s->ones, .b = h, .m = 1, .n = d, .k = s->tokens,
                                 .lda = s->tokens, .ldb = d, .ldc = d, .wide_c = 1};
    MOEDI_TRY(e->table->gemm(e->self, &squares));
    MOEDI_TRY(e->table->gemm(e->self, &totals));
    MOEDI_TRY(add_numbers(e, s, s->batch_squares, d * d, s->squares + layer * d * d));
    return add_numbers(e, s, s->batch_totals, d, s->totals + (layer * s->clusters + s->cluster) * d);
}

static moed_status sums_open(sums *s, moedi_transformer *t, const moed_layout *l, int64_t clusters, int64_t tokens)
{
    moedi_engine *e = moedi_transformer_engine(t);
    *s = (sums){.layout = l, .clusters = clusters, .hidden = l->config.hidden, .layers = l->layers};
    const int64_t d = s->hidden, square = d * d;
    MOEDI_TRY(MOEDI_NEW(e->context, s->layers * square, &s->squares));
    MOEDI_TRY(MOEDI_NEW(e->context, s->layers * clusters * d, &s->totals));
    MOEDI_TRY(MOEDI_NEW(e->context, square > tokens ? square : tokens, &s->numbers));
    MOEDI_TRY(moedi_alloc_array(e->context, square > tokens ? square : tokens, e->wide_item, &s->raw));
    MOEDI_TRY(e->table->alloc(e->self, (size_t)tokens * e->item, &s->ones));
    MOEDI_TRY(e->table->alloc(e->self, (size_t)square * e->wide_item, &s->batch_squares));
    MOEDI_TRY(e->table->alloc(e->self, (size_t)d * e->wide_item, &s->batch_totals));
    for (int64_t i = 0; i < tokens; i++) s->numbers[i] = 1;
    moedi_from_double(s->raw, e->info.dtype, s->numbers, tokens);
    return e->table->upload(e->self, s->ones, s->raw, (size_t)tokens * e->item);
}

static void sums_close(sums *s, moedi_transformer *t)
{
    if (!s->layout) return;
    moedi_engine *e = moedi_transformer_engine(t);
    e->table->free(e->self, s->ones);
    e->table->free(e->self, s->batch_squares);
    e->table->free(e->self, s->batch_totals);
    moedi_free(e->context, s->squares);
    moedi_free(e->context, s->totals);
    moedi_free(e->context, s->numbers);
    moedi_free(e->context, s->raw);
}

/* ---- tokens ---- */

static moed_status pass_some(moedi_transformer *t, const moed_batch *b, int64_t first, int64_t rows, int64_t length, sums *s,
                             const moed_cancel *cancel)
{
    const int64_t at = first * b->length;
    const moed_batch some = {.tokens = b->tokens + at, .documents = b->documents + at, .rows = rows, .length = length};
    s->tokens = rows * length;
    return s->tokens ? moedi_transformer_forward(t, &some, NULL, cancel) : MOED_OK;
}

/* Whole rows together, then the last as far as it goes: what it is filled up with has no part in the sums. */
static moed_status pass_batch(moedi_transformer *t, const moed_batch *b, sums *s, const moed_cancel *cancel)
{
    int64_t whole = 0, rest = 0;
    while (whole < b->rows && b->labels[(whole + 1) * b->length - 1] >= 0) whole++;
    for (int64_t i = 0; whole < b->rows && i < b->length; i++)
        if (b->labels[whole * b->length + i] >= 0) rest = i + 1;
    MOEDI_TRY(pass_some(t, b, 0, whole, b->length, s, cancel));
    return pass_some(t, b, whole, 1, rest, s, cancel);
}

/* Every token of a view once, at most so many of them. */
static moed_status pass_view(moedi_transformer *t, const moed_corpus *view, int64_t tokens, sums *s, const moed_cancel *cancel)
{
    moedi_rows r = {0};
    moed_batch b;
    moed_status status;
    int64_t rows, length, labels;
    moedi_evaluate_shape(&s->layout->config, 8, &rows, &length);
    MOEDI_GO(moedi_rows_open(&r, view, tokens, rows, length));
    for (;;) {
        MOEDI_GO(moedi_rows_next(&r, &b, &labels));
        if (!labels) break;
        MOEDI_GO(pass_batch(t, &b, s, cancel));
    }
out:
    moedi_rows_close(&r);
    return status;
}

static moed_status pass_clusters(moedi_transformer *t, const moed_corpus *d, const moed_partition *p, int64_t tokens, sums *s,
                                 const moed_cancel *cancel)
{
    moedi_transformer_tap(t, add_batch, s);
    for (s->cluster = 0; s->cluster < s->clusters; s->cluster++) {
        moed_corpus *view = NULL;
        MOEDI_TRY(moed_partition_view(&view, p, d, (int32_t)s->cluster));
        const moed_status status = pass_view(t, view, tokens, s, cancel);
        moed_corpus_destroy(view);
        if (status != MOED_OK) return status;
    }
    return MOED_OK;
}

/* ---- the regression ---- */

enum { LANES = 8 };

/* Sum of products in a fixed order that vectors can follow. */
static double dot(const double *x, const double *y, int64_t count)
{
    double lanes[LANES] = {0}, sum = 0;
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += x[i + l] * y[i + l];
    for (; i < count; i++) sum += x[i] * y[i];
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

/* The lower triangle of a symmetric matrix becomes its Cholesky factor; 0 where it is not positive definite. */
static int factorise(double *a, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) a[i * n + j] = (a[i * n + j] - dot(a + i * n, a + j * n, j)) / a[j * n + j];
        const double rest = a[i * n + i] - dot(a + i * n, a + i * n, i);
        if (!(rest > 0) || !isfinite(rest)) return 0;
        a[i * n + i] = sqrt(rest);
    }
    return 1;
}

/* x (n) becomes the solution of L L' y = x. */
static void substitute(const double *l, int64_t n, double *x)
{
    for (int64_t i = 0; i < n; i++) x[i] = (x[i] - dot(l + i * n, x, i)) / l[i * n + i];
    for (int64_t i = n; i-- > 0;) {
        x[i] /= l[i * n + i];
        for (int64_t j = 0; j < i; j++) x[j] -= l[i * n + j] * x[i];
    }
}

typedef struct solving {
    sums *sums;
    double ridge;
    float *rows;
    const moed_cancel *cancel;
} solving;

/* Right sides: sum over tokens of h y, y = [of the cluster] - 1 / clusters. */
static void centre(double *totals, int64_t clusters, int64_t hidden)
{
    for (int64_t i = 0; i < hidden; i++) {
        double mean = 0;
        for (int64_t k = 0; k < clusters; k++) mean += totals[k * hidden + i];
        for (int64_t k = 0; k < clusters; k++) totals[k * hidden + i] -= mean / (double)clusters;
    }
}

static moed_status solve_layer(void *argument, int64_t layer)
{
    const solving *w = argument;
    const sums *s = w->sums;
    const int64_t d = s->hidden, k = s->clusters;
    double *a = s->squares + layer * d * d, *totals = s->totals + layer * k * d, mean = 0;
    MOEDI_TRY(moedi_cancel_check(w->cancel));
    memset(w->rows + layer * k * d, 0, (size_t)(k * d) * sizeof *w->rows);
    if (!s->layout->experts[layer]) return MOED_OK;
    for (int64_t i = 0; i < d; i++) mean += a[i * d + i];
    for (int64_t i = 0; i < d; i++) a[i * d + i] += w->ridge * mean / (double)d;
    centre(totals, k, d);
    if (!factorise(a, d))
        return moedi_fail(MOED_E_NUMERIC,
                          "layer %lld: no regression on its hidden states: they are zero, NaN or infinite, or ridge is too small",
                          (long long)layer);
    for (int64_t c = 0; c < k; c++) {
        substitute(a, d, totals + c * d);
        for (int64_t i = 0; i < d; i++) w->rows[(layer * k + c) * d + i] = (float)totals[c * d + i];
    }
    return MOED_OK;
}

moed_status moed_model_fit_gate(const moed_model *m, const moed_corpus *d, const moed_partition *p, int64_t tokens, double ridge,
                                float *rows_out, const moed_cancel *cancel)
{
    moedi_transformer *t = NULL;
    sums s = {0};
    moed_partition_info info = {.struct_size = sizeof info};
    moed_status status;
    int64_t rows, length;
    moedi_clear_error();
    MOEDI_REQUIRE(m && d && p && rows_out, "model, corpus, partition and rows must be given");
    MOEDI_REQUIRE(tokens >= 0, "tokens must not be negative");
    MOEDI_TRY(moedi_evaluate_check_pair(m, d));
    MOEDI_TRY(moed_partition_get_info(p, &info));
    if (!(ridge > 0) || !isfinite(ridge))
        return moedi_fail_parameter(MOED_E_ARGUMENT, "ridge", "ridge is %g: it must be a finite number above 0", ridge);
    const moedi_config *c = &m->layout->config;
    moedi_evaluate_shape(c, 8, &rows, &length);
    MOEDI_GO(moedi_transformer_create(&t, m, rows, length, 0, NULL));
    MOEDI_GO(sums_open(&s, t, m->layout, info.clusters, rows * length));
    MOEDI_GO(pass_clusters(t, d, p, tokens, &s, cancel));
    solving w = {&s, ridge, rows_out, cancel};
    MOEDI_GO(moedi_parallel_try(m->context, c->layers, solve_layer, &w));
out:
    if (t) sums_close(&s, t);
    moedi_transformer_destroy(t);
    return status;
}
