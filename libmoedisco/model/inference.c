/* model/inference.c - logits, likelihoods and routing of a model, for any number of rows in bounded memory. */
#include "core/context.h"
#include "transformer.h"

/* Tokens that go through the model at a time, whole rows. */
enum { TOKENS_AT_ONCE = 4096 };

/* Called after the forward pass of each stretch of rows; first: the stretch's first token. */
typedef moed_status (*visit_fn)(moedi_transformer *t, int64_t first, int64_t tokens, void *user);

static moed_status visit_rows(const moed_model *m, const moed_batch *b, visit_fn visit, void *user,
                              const moed_cancel *cancel)
{
    moedi_transformer *t = NULL;
    moed_status status;
    int64_t labels;
    double label_weight;
    MOEDI_TRY(moedi_batch_check(b, m->layout->config.vocabulary, b->rows, b->length, &labels, &label_weight));
    const int64_t fitting = b->length > 0 && b->length < TOKENS_AT_ONCE ? TOKENS_AT_ONCE / b->length : 1;
    const int64_t rows = b->rows < fitting ? b->rows : fitting;
    MOEDI_TRY(moedi_transformer_create(&t, m, rows, b->length, 0, NULL));
    for (int64_t row = 0; row < b->rows; row += rows) {
        const int64_t first = row * b->length;
        moed_batch part = {.tokens = b->tokens + first,
                           .rows = b->rows - row < rows ? b->rows - row : rows,
                           .length = b->length};
        if (b->documents) part.documents = b->documents + first;
        if (b->labels) part.labels = b->labels + first;
        if (b->weights) part.weights = b->weights + first;
        MOEDI_GO(moedi_transformer_forward(t, &part, NULL, cancel));
        MOEDI_GO(visit(t, first, part.rows * part.length, user));
    }
    status = MOED_OK;
out:
    moedi_transformer_destroy(t);
    return status;
}

static moed_status check_model_and_batch(const moed_model *m, const moed_batch *b)
{
    MOEDI_TRY(moedi_context_check(m->context));
    if (!m->layout->family) {
        return moedi_fail(MOED_E_UNSUPPORTED,
                          "a layout made by hand has no forward pass: only a family's layout has");
    }
    if (!b->tokens) return moedi_fail(MOED_E_ARGUMENT, "the batch has no tokens");
    if (b->rows < 1 || b->length < 1 || b->rows > INT32_MAX || b->length > INT32_MAX) {
        return moedi_fail(MOED_E_RANGE,
                          "a batch of %lld rows of %lld tokens: both must be from 1 to 2^31 - 1",
                          (long long)b->rows, (long long)b->length);
    }
    return MOED_OK;
}

typedef struct logits_job {
    char *out;
    int64_t vocabulary;
} logits_job;

static moed_status visit_logits(moedi_transformer *t, int64_t first, int64_t tokens, void *user)
{
    const logits_job *job = user;
    (void)tokens;
    return moedi_transformer_logits(t, job->out + (size_t)(first * job->vocabulary) *
                                                      moedi_transformer_engine(t)->wide_item);
}

moed_status moed_model_logits(const moed_model *m, const moed_batch *b, moed_tensor *out,
                              const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(m && b && out && out->data, "model, batch and out must be given");
    MOEDI_TRY(check_model_and_batch(m, b));
    const int64_t shape[3] = {b->rows, b->length, m->layout->config.vocabulary};
    const int64_t strides[3] = {shape[1] * shape[2], shape[2], 1};
    if (out->rank != 3) {
        return moedi_fail(MOED_E_ARGUMENT,
                          "logits go to an array of rank 3 (rows, length, vocabulary), not %d",
                          (int)out->rank);
    }
    for (int i = 2; i >= 0; i--) {
        if (out->shape[i] == shape[i] && (out->strides[i] == strides[i] || shape[i] == 1)) continue;
        return moedi_fail(MOED_E_MISMATCH,
                          "axis %d of the array for logits has size %lld and stride %lld, not %lld and %lld",
                          i, (long long)out->shape[i], (long long)out->strides[i], (long long)shape[i],
                          (long long)strides[i]);
    }
    if (out->dtype != m->context->backend_info.wide || out->device) {
        return moedi_fail(MOED_E_MISMATCH, "logits are %s in host memory, not %s on device %d",
                          moed_dtype_name(m->context->backend_info.wide), moed_dtype_name(out->dtype),
                          (int)out->device);
    }
    logits_job job = {.out = out->data, .vocabulary = shape[2]};
    return visit_rows(m, b, visit_logits, &job, cancel);
}

typedef struct likelihood_job {
    double *rows;    /* (rows) */
    float *tokens;   /* (rows, length), nullable */
    double *numbers; /* a stretch's losses */
    void *raw;       /* as the engine has them */
    int64_t length;
} likelihood_job;

static moed_status visit_likelihoods(moedi_transformer *t, int64_t first, int64_t tokens, void *user)
{
    const likelihood_job *job = user;
    MOEDI_TRY(moedi_transformer_token_losses(t, job->raw));
    moedi_to_double(job->numbers, job->raw, moedi_transformer_engine(t)->info.wide, tokens);
    for (int64_t i = 0; i < tokens; i++) {
        if (i % job->length == 0) job->rows[(first + i) / job->length] = 0;
        job->rows[(first + i) / job->length] -= job->numbers[i];
        if (job->tokens) job->tokens[first + i] = (float)(0 - job->numbers[i]);
    }
    return MOED_OK;
}

/* Tokens of a stretch of rows: a row at least. */
static int64_t stretch_of(const moed_batch *b)
{
    return b->length > TOKENS_AT_ONCE ? b->length : TOKENS_AT_ONCE;
}

moed_status moed_model_likelihood(const moed_model *m, const moed_batch *b, double *rows, float *tokens,
                                  const moed_cancel *cancel)
{
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(m && b && rows, "model, batch and rows must be given");
    MOEDI_REQUIRE(b->labels, "the batch has no labels, whose likelihoods are asked for");
    MOEDI_TRY(check_model_and_batch(m, b));
    likelihood_job job = {.rows = rows, .tokens = tokens, .length = b->length};
    MOEDI_GO(MOEDI_NEW(m->context, stretch_of(b), &job.numbers));
    MOEDI_GO(moedi_alloc_array(m->context, stretch_of(b), sizeof(double), &job.raw));
    MOEDI_GO(visit_rows(m, b, visit_likelihoods, &job, cancel));
out:
    moedi_free(m->context, job.numbers);
    moedi_free(m->context, job.raw);
    return status;
}

typedef struct routing_job {
    int32_t *experts;
    float *weights;  /* nullable */
    void *raw;       /* a stretch's weights as the engine has them */
    const moedi_config *config;
    int64_t tokens;  /* of the whole batch */
} routing_job;

static moed_status visit_routing(moedi_transformer *t, int64_t first, int64_t tokens, void *user)
{
    const routing_job *job = user;
    const int64_t top_k = job->config->top_k;
    for (int32_t l = 0; l < job->config->layers; l++) {
        const int64_t at = (l * job->tokens + first) * top_k;
        MOEDI_TRY(moedi_transformer_routing(t, l, job->experts + at, job->raw));
        if (job->weights) {
            moedi_convert(job->weights + at, MOED_DTYPE_F32, job->raw,
                          moedi_transformer_engine(t)->info.wide, tokens * top_k);
        }
    }
    return MOED_OK;
}

moed_status moed_model_routing(const moed_model *m, const moed_batch *b, int32_t *experts, float *weights,
                               const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(m && b && experts, "model, batch and experts must be given");
    MOEDI_TRY(check_model_and_batch(m, b));
    routing_job job = {
        .experts = experts, .weights = weights, .config = &m->layout->config, .tokens = b->rows * b->length};
    if (weights) MOEDI_TRY(moedi_alloc_array(m->context, stretch_of(b) * job.config->top_k, sizeof(double), &job.raw));
    const moed_status status = visit_rows(m, b, visit_routing, &job, cancel);
    moedi_free(m->context, job.raw);
    return status;
}
