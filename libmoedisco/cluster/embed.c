/* cluster/embed.c - a document's vector: the mean of a model's embedding rows over its tokens (MoE-DisCo, step
 * 1). */
#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"
#include "corpus/corpus.h"
#include "model/model.h"
#include "moedisco/cluster.h"

/* Documents are embedded in pieces of at most PIECE tokens, several of them at a time. */
enum { PIECE = 1 << 16, BATCH_TOKENS = 1 << 16, BATCH_PIECES = 4096, ROWS_UNASKED = 4096 };

/* Whether to stop, asked once in a while on the way over the documents' vectors. */
static moed_status ask(const moed_cancel *cancel, int64_t row)
{
    return row % ROWS_UNASKED ? MOED_OK : moedi_cancel_check(cancel);
}

typedef struct embedder {
    const moed_corpus *corpus;
    moedi_engine engine;
    int64_t width;
    void *table; /* device: (vocabulary, width) real */
    void *d_tokens, *d_offsets, *d_out;
    int32_t *tokens; /* (BATCH_TOKENS) */
    int64_t offsets[BATCH_PIECES + 1];
    int64_t documents[BATCH_PIECES]; /* of each piece */
    int64_t pieces;
    float *means; /* (BATCH_PIECES, width) */
    double *sum;  /* (width) of a document of several pieces */
    float *out;   /* (documents, width) */
} embedder;

static moed_status find_table(const moed_model *m, size_t *param)
{
    for (size_t i = 0; i < m->layout->count; i++)
        if (m->layout->params[i].flags & MOED_PARAM_EMBEDDING) {
            if (m->layout->params[i].rank != 2 || !moedi_dtype_is_float(m->layout->params[i].dtype))
                return moedi_fail_parameter(MOED_E_ARGUMENT, m->layout->params[i].name,
                                            "%s: no matrix of floating numbers, so no embedding table",
                                            m->layout->params[i].name);
            *param = i;
            return MOED_OK;
        }
    return moedi_fail(MOED_E_ARGUMENT, "no parameter of the model is marked as its token embedding");
}

static moed_status load_table(embedder *e, const moed_model *m, size_t param)
{
    const moed_param *p = &m->layout->params[param];
    const moed_context *c = e->engine.context;
    const int64_t rows = p->shape[0], step = 65536 / e->width + 1;
    const moed_backend *t = e->engine.table;
    char *raw = NULL, *real = NULL;
    moed_status status;
    MOEDI_GO(moedi_alloc_array(c, step * e->width, moedi_dtype_size(p->dtype), (void **)&raw));
    MOEDI_GO(moedi_alloc_array(c, step * e->width, e->engine.item, (void **)&real));
    MOEDI_GO(t->alloc(e->engine.self, (size_t)(rows * e->width) * e->engine.item, &e->table));
    for (int64_t row = 0; row < rows; row += step) {
        const int64_t n = (rows - row < step ? rows - row : step) * e->width;
        MOEDI_GO(moedi_model_read(m, param, row * e->width, n, raw));
        moedi_convert(real, e->engine.info.dtype, raw, p->dtype, n);
        MOEDI_GO(t->upload(e->engine.self, (char *)e->table + (size_t)(row * e->width) * e->engine.item, real,
                           (size_t)n * e->engine.item));
    }
out:
    moedi_free(c, raw);
    moedi_free(c, real);
    return status;
}

static moed_status embedder_open(embedder *e, const moed_model *m, size_t param)
{
    moed_context *c = m->context;
    MOEDI_TRY(moedi_engine_open(&e->engine, c));
    const moed_backend *t = e->engine.table;
    MOEDI_TRY(load_table(e, m, param));
    MOEDI_TRY(t->alloc(e->engine.self, BATCH_TOKENS * sizeof(int32_t), &e->d_tokens));
    MOEDI_TRY(t->alloc(e->engine.self, sizeof e->offsets, &e->d_offsets));
    MOEDI_TRY(t->alloc(e->engine.self, BATCH_PIECES * (size_t)e->width * sizeof(float), &e->d_out));
    MOEDI_TRY(MOEDI_NEW(c, BATCH_TOKENS, &e->tokens));
    MOEDI_TRY(MOEDI_NEW(c, BATCH_PIECES * e->width, &e->means));
    return MOEDI_NEW(c, e->width, &e->sum);
}

static void embedder_close(embedder *e)
{
    if (!e->engine.table) return;
    void *const memory[] = {e->table, e->d_tokens, e->d_offsets, e->d_out};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (memory[i]) e->engine.table->free(e->engine.self, memory[i]);
    moedi_free(e->engine.context, e->tokens);
    moedi_free(e->engine.context, e->means);
    moedi_free(e->engine.context, e->sum);
    moedi_engine_close(&e->engine);
}

/* Pieces of one document follow each other; its vector is complete when its last token is in. */
static moed_status embed_batch(embedder *e, int64_t *seen, const moed_cancel *cancel)
{
    const moed_backend *t = e->engine.table;
    void *self = e->engine.self;
    const size_t pieces = (size_t)e->pieces;
    if (e->pieces == 0) return MOED_OK;
    MOEDI_TRY(t->upload(self, e->d_tokens, e->tokens, (size_t)e->offsets[pieces] * sizeof *e->tokens));
    MOEDI_TRY(t->upload(self, e->d_offsets, e->offsets, (pieces + 1) * sizeof *e->offsets));
    const moed_op_embed_mean a = {.out = e->d_out,
                                  .table = e->table,
                                  .tokens = e->d_tokens,
                                  .offsets = e->d_offsets,
                                  .documents = e->pieces,
                                  .width = e->width};
    const moed_cancel *before = moedi_executor_watch(cancel);
    const moed_status done = t->embed_mean(self, &a);
    moedi_executor_watch(before);
    MOEDI_TRY(done);
    MOEDI_TRY(moedi_cancel_check(cancel));
    MOEDI_TRY(t->download(self, e->means, e->d_out, pieces * (size_t)e->width * sizeof *e->means));
    MOEDI_TRY(t->synchronize(self));
    for (int64_t p = 0; p < e->pieces; p++) {
        const int64_t document = e->documents[p], n = e->offsets[p + 1] - e->offsets[p],
                      all = e->corpus->lengths[document];
        float *out = e->out + document * e->width;
        const float *mean = e->means + p * e->width;
        if (*seen == 0)
            for (int64_t j = 0; j < e->width; j++) e->sum[j] = 0;
        *seen += n;
        for (int64_t j = 0; j < e->width; j++) e->sum[j] += (double)n * (double)mean[j];
        if (*seen < all) continue;
        for (int64_t j = 0; j < e->width; j++) {
            out[j] = n == all ? mean[j] : (float)(e->sum[j] / (double)all);
            if (!isfinite(out[j]))
                return moedi_fail(
                    MOED_E_NUMERIC,
                    "the vector of document %lld is NaN or infinite: the model's embedding table is damaged",
                    (long long)document);
        }
        *seen = 0;
    }
    e->pieces = 0;
    return MOED_OK;
}

static moed_status embed_documents(embedder *e, const moed_cancel *cancel)
{
    int64_t seen = 0;
    e->offsets[0] = 0;
    for (int64_t i = 0; i < e->corpus->documents; i++)
        for (int64_t at = 0; at < e->corpus->lengths[i];) {
            const int64_t left = e->corpus->lengths[i] - at, n = left < PIECE ? left : PIECE;
            if (e->pieces == BATCH_PIECES || e->offsets[e->pieces] + n > BATCH_TOKENS) {
                MOEDI_TRY(embed_batch(e, &seen, cancel));
            }
            const int64_t place = e->offsets[e->pieces];
            MOEDI_TRY(moedi_corpus_tokens(e->corpus, i, at, e->tokens + place, n));
            e->documents[e->pieces] = i;
            e->offsets[++e->pieces] = place + n;
            at += n;
        }
    return embed_batch(e, &seen, cancel);
}

/* Empty documents have no part in the mean and stay zeros. */
static moed_status centre(const moed_corpus *d, float *out, int64_t width, const moed_cancel *cancel)
{
    double *mean = NULL;
    int64_t count = 0;
    moed_status status;
    MOEDI_TRY(MOEDI_NEW(d->context, width, &mean));
    for (int64_t i = 0; i < d->documents; i++) {
        MOEDI_GO(ask(cancel, i));
        if (d->lengths[i] == 0) continue;
        for (int64_t j = 0; j < width; j++) mean[j] += (double)out[i * width + j];
        count++;
    }
    for (int64_t i = 0; i < d->documents && count; i++) {
        MOEDI_GO(ask(cancel, i));
        for (int64_t j = 0; j < width && d->lengths[i]; j++)
            out[i * width + j] = (float)((double)out[i * width + j] - mean[j] / (double)count);
    }
    status = MOED_OK;
out:
    moedi_free(d->context, mean);
    return status;
}

static moed_status normalise(float *out, int64_t rows, int64_t width, const moed_cancel *cancel)
{
    for (int64_t i = 0; i < rows; i++) {
        double square = 0;
        MOEDI_TRY(ask(cancel, i));
        for (int64_t j = 0; j < width; j++) square += (double)out[i * width + j] * (double)out[i * width + j];
        const double length = sqrt(square);
        for (int64_t j = 0; j < width && length > 0; j++)
            out[i * width + j] = (float)((double)out[i * width + j] / length);
    }
    return MOED_OK;
}

static moed_status check_out(const moed_tensor *t, int64_t documents, int64_t width)
{
    if (!t->data || t->dtype != MOED_DTYPE_F32 || t->device != 0 || t->rank != 2 || t->shape[0] != documents ||
        t->shape[1] != width || t->strides[0] != width || t->strides[1] != 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "out",
                                    "out: not a contiguous F32 host array of shape (%lld, %lld)",
                                    (long long)documents, (long long)width);
    return MOED_OK;
}

moed_status moed_corpus_embed(const moed_corpus *d, const moed_model *m, moed_tensor *out,
                              const moed_embed_options *o, const moed_cancel *cancel)
{
    moed_embed_options options;
    embedder *e = NULL;
    size_t param = 0;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(m, "the model is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(m->context));
    MOEDI_TRY(moedi_context_check(d->context));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_EMBED_OPTIONS, o, &options));
    MOEDI_TRY(find_table(m, &param));
    const moed_param *p = &m->layout->params[param];
    if (d->info.vocabulary > p->shape[0])
        return moedi_fail(MOED_E_MISMATCH,
                          "the corpus has a vocabulary of %lld tokens, the model's %s only %lld",
                          (long long)d->info.vocabulary, p->name, (long long)p->shape[0]);
    MOEDI_TRY(check_out(out, d->documents, p->shape[1]));
    MOEDI_TRY(MOEDI_NEW(m->context, 1, &e));
    e->corpus = d;
    e->width = p->shape[1];
    e->out = out->data;
    MOEDI_GO(embedder_open(e, m, param));
    memset(out->data, 0, (size_t)(d->documents * e->width) * sizeof(float));
    MOEDI_GO(embed_documents(e, cancel));
    if (options.centre) MOEDI_GO(centre(d, out->data, e->width, cancel));
    if (options.normalise) MOEDI_GO(normalise(out->data, d->documents, e->width, cancel));
out:
    embedder_close(e);
    moedi_free(m->context, e);
    return status;
}

moed_status moed_corpus_weights(const moed_corpus *d, float *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    for (int64_t i = 0; i < d->documents; i++) out[i] = (float)d->lengths[i];
    return MOED_OK;
}
