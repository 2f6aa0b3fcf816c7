/* The same numbers as Hugging Face Transformers: fixtures of tests/peers/transformers_fixture.py. */
#include "support.h"

#include "core/context.h"
#include "model/transformer.h"

static const char *const fixtures[] = {
    "qwen2_moe-a",     "qwen2_moe-b",       "qwen2_moe-c", "qwen2_moe-d", "mixtral-a",   "mixtral-b", "mixtral-c", "olmoe-a",
    "olmoe-b",         "olmoe-c",           "qwen3_moe-a", "qwen3_moe-b", "qwen3_moe-c", "dots1-a",   "dots1-b",   "dots1-c",
    "mixtral-stacked", "qwen3_moe-stacked", "llama_moe-a", "llama_moe-b", "llama_moe-c", "mistral-a", "llama-a",   "qwen3-a"};
enum { FIXTURES = sizeof fixtures / sizeof fixtures[0] };

/* What a fixture expects. */
typedef struct fixture {
    moed_context *context;
    moed_model *model;
    moedi_safetensors expected;
    int32_t *tokens, *labels;      /* (steps, rows, length) */
    int64_t steps, rows, length, vocabulary;
} fixture;

static void *read_expected(const fixture *f, const char *name, int64_t *count)
{
    const moedi_safetensors_entry *e = moedi_safetensors_find(&f->expected, name);
    if (!e) fail_msg("the fixture lacks %s", name);
    void *out = malloc((size_t)e->bytes);
    assert_ok(moedi_safetensors_read(&f->expected, e, 0, out, (size_t)e->bytes));
    if (count) *count = e->elements;
    return out;
}

static void open_fixture(fixture *f, const char *name, const char *kernels)
{
    char dir[4096];
    snprintf(dir, sizeof dir, "%s/tests/fixtures/transformers/%s", MOEDI_TEST_SOURCE, name);
    *f = (fixture){.context = support_context(kernels, 1)};
    assert_ok(moed_model_open(&f->model, f->context, dir, NULL));
    assert_ok(moedi_safetensors_open(&f->expected, f->context, support_path(dir, "expected.safetensors")));
    f->tokens = read_expected(f, "tokens", NULL);
    f->labels = read_expected(f, "labels", NULL);
    const int64_t *shape = moedi_safetensors_find(&f->expected, "logits")->shape;
    f->rows = shape[0], f->length = shape[1], f->vocabulary = shape[2];
    f->steps = moedi_safetensors_find(&f->expected, "losses")->elements;
}

static void close_fixture(fixture *f)
{
    free(f->tokens);
    free(f->labels);
    moedi_safetensors_close(&f->expected);
    moed_model_destroy(f->model);
    moed_context_destroy(f->context);
}

static moed_batch fixture_batch(const fixture *f, int64_t step, int labels)
{
    const int64_t at = step * f->rows * f->length;
    return (moed_batch){.tokens = f->tokens + at,
                        .labels = labels ? f->labels + at : NULL,
                        .rows = f->rows,
                        .length = f->length};
}

/* Largest absolute difference of logits on batch 0. */
static double logits_error(const fixture *f, const char *name)
{
    const int64_t shape[3] = {f->rows, f->length, f->vocabulary}, count = f->rows * f->length * f->vocabulary;
    const moed_batch b = fixture_batch(f, 0, 0);
    float *expected = read_expected(f, name, NULL), *found = malloc((size_t)count * sizeof *found);
    moed_tensor out;
    double worst = 0;
    moedi_tensor_set(&out, found, MOED_DTYPE_F32, 3, shape);
    assert_ok(moed_model_logits(f->model, &b, &out, NULL));
    for (int64_t i = 0; i < count; i++) worst = fmax(worst, fabs((double)found[i] - (double)expected[i]));
    free(expected);
    free(found);
    return worst;
}

/* Difference by norm, relative. A gradient that is zero but for rounding (the router's of a single expert)
 * must be so here too. */
static double relative_error(const float *found, const float *expected, int64_t count)
{
    double difference = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        difference += ((double)found[i] - (double)expected[i]) * ((double)found[i] - (double)expected[i]);
        size += (double)expected[i] * (double)expected[i];
    }
    if (size < 1e-12) return sqrt(difference) < 1e-6 ? 0 : INFINITY;
    return sqrt(difference / size);
}

/* Worst relative error by norm over all parameters. */
static double gradients_error(const fixture *f)
{
    const moed_layout *l = moed_model_layout(f->model);
    const moed_batch b = fixture_batch(f, 0, 1);
    const moedi_objective o = {.scale = 1};
    moedi_transformer *t = NULL;
    double worst = 0;
    assert_ok(moedi_transformer_create(&t, f->model, f->rows, f->length, MOEDI_TRANSFORMER_TRAIN, NULL));
    assert_ok(moedi_transformer_forward(t, &b, &o, NULL));
    assert_ok(moedi_transformer_backward(t, NULL));
    for (size_t p = 0; p < l->count; p++) {
        char name[300];
        int64_t count;
        if (l->params[p].flags & MOED_PARAM_FIXED) {
            assert_null(moedi_transformer_gradient(t, p)); /* which PyTorch has no gradient of either */
            continue;
        }
        snprintf(name, sizeof name, "gradient.%s", l->params[p].name);
        float *expected = read_expected(f, name, &count);
        const double error = relative_error(moedi_transformer_gradient(t, p), expected, count);
        if (!(error < 1e-3)) fail_msg("%s is off by %g of its norm", name, error);
        worst = fmax(worst, error);
        free(expected);
    }
    moedi_transformer_destroy(t);
    return worst;
}

static void check_forward_and_gradients(const char *kernels)
{
    double worst_logits = 0, worst_gradients = 0;
    for (int i = 0; i < FIXTURES; i++) {
        fixture f;
        open_fixture(&f, fixtures[i], kernels);
        const double logits = logits_error(&f, "logits"), gradients = gradients_error(&f);
        if (!(logits < 2e-4)) fail_msg("%s: logits are off by %g", fixtures[i], logits);
        worst_logits = fmax(worst_logits, logits), worst_gradients = fmax(worst_gradients, gradients);
        close_fixture(&f);
    }
    print_message("transformers (%s kernels): logits within %.1e, gradients within %.1e of their norm\n",
                  kernels, worst_logits, worst_gradients);
}

static void reference_kernels_agree_with_transformers(void **state)
{
    (void)state;
    check_forward_and_gradients("reference");
}

static void best_kernels_agree_with_transformers(void **state)
{
    (void)state;
    check_forward_and_gradients("auto");
}

/* Documents and rows of the fixtures come from here: the trainer needs a corpus though it is given batches.
 */
static int32_t corpus_length(int64_t document, int64_t *tokens, void *user)
{
    (void)document, (void)user;
    *tokens = 64;
    return 0;
}
static int32_t corpus_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)((document + offset + i) % 29);
    return 0;
}

static void train_options(moed_train_options *o, const fixture *f)
{
    assert_ok(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, o, sizeof *o));
    o->balance_rate = 0; /* PyTorch moves no selection bias */
    o->steps = f->steps, o->rows = f->rows, o->length = f->length, o->micro_batches = 1;
    o->schedule = MOED_SCHEDULE_CONSTANT, o->warmup = 0;
    o->learning_rate = 1e-3, o->beta1 = 0.9, o->beta2 = 0.95, o->epsilon = 1e-8, o->weight_decay = 0.01;
    o->clip = 0, o->load_balance = 0, o->z_loss = 0;
}

/* Ten AdamW steps through the public trainer; the worst difference of a step's loss. */
static double steps_error(const fixture *f)
{
    const moed_documents documents = {.count = 4, .length = corpus_length, .read = corpus_read};
    moed_train_options o;
    moed_corpus *d = support_corpus(f->context, documents, f->vocabulary, -1);
    moed_trainer *t = NULL;
    float *expected = read_expected(f, "losses", NULL);
    double worst = 0;
    train_options(&o, f);
    assert_ok(moed_trainer_create(&t, f->context, f->model, d, NULL, &o));
    for (int64_t s = 0; s < f->steps; s++) {
        const moed_batch b = fixture_batch(f, s, 1);
        moed_report r = {.struct_size = sizeof r};
        assert_ok(moed_trainer_forward_backward(t, &b, &r));
        worst = fmax(worst, fabs(r.loss - (double)expected[s]));
        assert_ok(moed_trainer_update(t, 1.0, &r));
    }
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    free(expected);
    return worst;
}

/* Worst relative difference of a weight's norm. */
static double norms_error(const fixture *f)
{
    const moed_layout *l = moed_model_layout(f->model);
    double worst = 0;
    for (size_t p = 0; p < l->count; p++) {
        char name[300];
        moed_tensor x;
        double sum = 0;
        snprintf(name, sizeof name, "norms.%s", l->params[p].name);
        float *expected = read_expected(f, name, NULL);
        assert_ok(moed_model_tensor(f->model, p, &x));
        for (int64_t i = 0; i < moedi_shape_elements(x.shape, x.rank); i++)
            sum += (double)((float *)x.data)[i] * (double)((float *)x.data)[i];
        worst = fmax(worst, fabs(sqrt(sum) / (double)expected[0] - 1));
        free(expected);
    }
    return worst;
}

static void ten_adamw_steps_agree_with_pytorch(void **state)
{
    double worst_loss = 0, worst_logits = 0, worst_norm = 0;
    (void)state;
    for (int i = 0; i < FIXTURES; i++) {
        fixture f;
        open_fixture(&f, fixtures[i], "auto");
        const double loss = steps_error(&f), logits = logits_error(&f, "final_logits"),
                     norm = norms_error(&f);
        if (!(loss < 1e-4)) fail_msg("%s: a step's loss is off by %g", fixtures[i], loss);
        if (!(logits < 1e-3)) fail_msg("%s: logits after ten steps are off by %g", fixtures[i], logits);
        if (!(norm < 1e-4))
            fail_msg("%s: a weight's norm after ten steps is off by %g of it", fixtures[i], norm);
        worst_loss = fmax(worst_loss, loss), worst_logits = fmax(worst_logits, logits),
        worst_norm = fmax(worst_norm, norm);
        close_fixture(&f);
    }
    print_message(
        "ten AdamW steps: losses within %.1e, logits after them within %.1e, norms of weights within %.1e\n",
        worst_loss, worst_logits, worst_norm);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reference_kernels_agree_with_transformers),
        cmocka_unit_test(best_kernels_agree_with_transformers),
        cmocka_unit_test(ten_adamw_steps_agree_with_pytorch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
