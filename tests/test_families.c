/* What any family may have - layers without experts, selection biases, stacks on disk - through surgery, training and files. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#define FIXTURE_FOLDER
#include "fixture.h"
#include "tiny.h"

/* An expert in layers 1 and 3 of five only; sigmoid scores, biases, one head wider than it need be. */
static const char mixed[] =
    TINY_FAMILY("dots1", "\"num_hidden_layers\": 5, \"num_key_value_heads\": 2, \"n_routed_experts\": 4, "
                         "\"num_experts_per_tok\": 2, \"n_shared_experts\": 1, \"norm_topk_prob\": true, "
                         "\"decoder_sparse_step\": 2, \"attention_bias\": true, \"head_dim\": 4, \"torch_dtype\": \"float32\"");
static const char biases[] = "model.layers.%d.mlp.gate.e_score_correction_bias";

static float *numbers(const moed_model *m, const char *name, int64_t *count)
{
    moed_tensor t;
    const int64_t p = moedi_layout_find(moed_model_layout(m), name);
    if (p < 0) fail_msg("no tensor %s", name);
    assert_ok(moed_model_tensor(m, (size_t)p, &t));
    if (count) *count = moedi_shape_elements(t.shape, t.rank);
    return t.data;
}

static void assert_same(const moed_model *a, const moed_model *b)
{
    assert_ok(moedi_layout_equal(a->layout, b->layout, 0));
    for (size_t i = 0; i < a->layout->count; i++) {
        const moed_param *p = &a->layout->params[i];
        const size_t bytes = moedi_param_bytes(p);
        void *x = malloc(bytes), *y = malloc(bytes);
        assert_ok(moedi_model_read(a, i, 0, moedi_param_elements(p), x));
        assert_ok(moedi_model_read(b, i, 0, moedi_param_elements(p), y));
        if (memcmp(x, y, bytes) != 0) fail_msg("tensor %s differs", p->name);
        free(x);
        free(y);
    }
}

static moed_split *split_of(const moed_model *m, int32_t parts)
{
    moed_split *s = NULL;
    moed_split_options o;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.parts = parts;
    assert_ok(moed_split_create(&s, moed_model_layout(m), &o));
    return s;
}

/* Parts on disk, each of which computes; put together again. */
static moed_model *apart_and_together(const moed_model *base, int32_t parts, const char *to)
{
    moed_split *s = split_of(base, parts);
    moed_integration *whole = NULL;
    moed_model *again = NULL;
    tiny_batch b;
    tiny_fill(&b, 2, 8, 5);
    assert_ok(moed_integration_create(&whole, s, base, NULL));
    for (int32_t k = 0; k < parts; k++) {
        char name[64];
        float logits[16 * TINY_VOCABULARY];
        moed_tensor out;
        const int64_t shape[3] = {2, 8, TINY_VOCABULARY};
        const moed_batch plain = {.tokens = b.tokens, .rows = 2, .length = 8};
        moed_model *part = NULL;
        snprintf(name, sizeof name, "%s-%d", to, (int)k);
        assert_ok(moed_split_build(NULL, s, k, base, support_path(dir, name), NULL));
        assert_ok(moed_model_open(&part, context, support_path(dir, name), NULL));
        moedi_tensor_set(&out, logits, MOED_DTYPE_F32, 3, shape);
        assert_ok(moed_model_logits(part, &plain, &out, NULL));
        for (int64_t i = 0; i < 16 * TINY_VOCABULARY; i++) assert_true(isfinite(logits[i]));
        assert_ok(moed_integration_add(whole, k, part, 1));
        moed_model_destroy(part);
    }
    assert_ok(moed_integration_finish(&again, whole, NULL, NULL));
    moed_integration_destroy(whole);
    moed_split_destroy(s);
    return again;
}

static void untrained_parts_of_every_family_give_the_base_back(void **state)
{
    (void)state;
    for (int i = 0; i <= TINY_CONFIGS; i++) {
        char name[16];
        moed_model *m = tiny_model(context, i < TINY_CONFIGS ? tiny_configs[i].config : mixed, 3);
        const int32_t experts = (int32_t)m->layout->config.experts;
        snprintf(name, sizeof name, "part%d", i);
        for (int32_t parts = experts; parts > 0; parts = experts % 2 == 0 && parts == experts && experts > 1 ? experts / 2 : 0) {
            moed_model *again = apart_and_together(m, parts, name);
            assert_same(m, again);
            moed_model_destroy(again);
            snprintf(name, sizeof name, "half%d", i);
        }
        moed_model_destroy(m);
    }
}

/* ---- training ---- */

enum { STEPS = 6, LENGTH = 8, ROWS = 4 };
static int32_t length_of(int64_t document, int64_t *length, void *user)
{
    (void)user;
    *length = 5 + document % 4 * 3;
    return 0;
}
static int32_t read_tokens(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((document * 3 + (offset + i) * (1 + document % 2)) % TINY_VOCABULARY);
    return 0;
}
static moed_corpus *corpus(void)
{
    return support_corpus(context, (moed_documents){.count = 40, .length = length_of, .read = read_tokens}, TINY_VOCABULARY, -1);
}

static moed_train_options options(const char *directory)
{
    moed_train_options o;
    assert_ok(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
    o.steps = STEPS, o.rows = ROWS, o.length = LENGTH, o.micro_batches = 2, o.learning_rate = 1e-2;
    o.load_balance = 0.01, o.z_loss = 1e-3;
    o.directory = directory, o.checkpoint_every = directory ? 3 : 0;
    return o;
}

static moed_report train(moed_model *m, moed_corpus *d, const char *directory, int64_t steps, int resume)
{
    moed_train_options o = options(directory);
    moed_report r = {.struct_size = sizeof r};
    moed_trainer *t = NULL;
    assert_ok(moed_trainer_create(&t, context, m, d, NULL, &o));
    if (resume) assert_ok(moed_trainer_resume(t));
    assert_ok(moed_trainer_run(t, steps, &r, NULL));
    moed_trainer_destroy(t);
    return r;
}

static void layers_without_experts_train_are_counted_and_resumed_as_any(void **state)
{
    moed_model *straight = tiny_model(context, mixed, 7), *stopped = tiny_model(context, mixed, 7),
               *before = tiny_model(context, mixed, 7);
    moed_corpus *d = corpus();
    const moed_report r = train(straight, d, NULL, STEPS, 0);
    (void)state;
    assert_true(isfinite(r.loss) && r.load_balance > 0.5 && r.load_balance < 4);
    assert_true(r.max_load >= 1 && r.max_load <= 2); /* of four experts, where two are chosen */
    train(stopped, d, support_path(dir, "run"), STEPS / 2, 0);
    moed_model_destroy(stopped);
    stopped = tiny_model(context, mixed, 9); /* what the checkpoint holds replaces it */
    train(stopped, d, support_path(dir, "run"), STEPS - STEPS / 2, 1);
    assert_same(straight, stopped);
    /* dense layers have trained; selection biases went by steps of the balance rate, no gradient has moved them */
    for (int layer = 1; layer < 5; layer += 2) {
        char name[96];
        int64_t count;
        snprintf(name, sizeof name, biases, layer);
        const float *bias = numbers(straight, name, &count);
        assert_int_equal(count, 4);
        const float *was = numbers(before, name, NULL);
        for (int e = 0; e < 4; e++) {
            const double steps = ((double)bias[e] - (double)was[e]) / 1e-3;
            assert_true(fabs(steps) <= STEPS + 0.01 && fabs(steps - floor(steps + 0.5)) < 0.01);
        }
    }
    assert_true(numbers(straight, "model.layers.2.mlp.up_proj.weight", NULL)[3] !=
                numbers(before, "model.layers.2.mlp.up_proj.weight", NULL)[3]);
    moed_model_destroy(straight), moed_model_destroy(stopped), moed_model_destroy(before);
    moed_corpus_destroy(d);
}

static void a_selection_bias_cannot_be_what_trains(void **state)
{
    moed_model *m = tiny_model(context, mixed, 7);
    moed_corpus *d = corpus();
    moed_train_options o = options(NULL);
    moed_trainer *t = NULL;
    (void)state;
    o.train = "bias";
    assert_refused(moed_trainer_create(&t, context, m, d, NULL, &o), MOED_E_ARGUMENT, "leaves no parameter to train");
    moed_model_destroy(m);
    moed_corpus_destroy(d);
}

static void usage_and_routing_of_layers_without_experts_are_none(void **state)
{
    enum { LAYERS = 5, EXPERTS = 4, TOP = 2, TOKENS = 16 };
    moed_model *m = tiny_model(context, mixed, 7);
    moed_corpus *d = corpus();
    double usage[LAYERS * EXPERTS], weight[LAYERS * EXPERTS];
    int32_t experts[LAYERS * TOKENS * TOP];
    float weights[LAYERS * TOKENS * TOP];
    tiny_batch b;
    (void)state;
    tiny_fill(&b, 2, 8, 5);
    assert_ok(moed_model_usage(m, d, 0, usage, weight, NULL));
    assert_ok(moed_model_routing(m, &b.batch, experts, weights, NULL));
    for (int l = 0; l < LAYERS; l++) {
        const int routed = l % 2 == 1;
        double sum = 0;
        for (int e = 0; e < EXPERTS; e++) sum += usage[l * EXPERTS + e];
        assert_true(fabs(sum - routed) < 1e-9);
        for (int i = l * TOKENS * TOP; i < (l + 1) * TOKENS * TOP; i++) {
            assert_true(routed ? experts[i] >= 0 && experts[i] < EXPERTS : experts[i] == -1);
            assert_true(routed ? weights[i] > 0 && weights[i] < 1 : weights[i] == 0);
        }
    }
    moed_model_destroy(m);
    moed_corpus_destroy(d);
}

/* ---- files ---- */

static moedi_safetensors tensors_of(const char *model)
{
    moedi_safetensors s;
    assert_ok(moedi_safetensors_open(&s, context, support_path(model, "model.safetensors")));
    return s;
}

static void a_selection_bias_is_not_narrowed_with_the_rest(void **state)
{
    moed_model *m = tiny_model(context, mixed, 7), *again = NULL;
    moed_model_options o;
    char name[96];
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.dtype = MOED_DTYPE_BF16;
    assert_ok(moed_model_save(m, support_path(dir, "narrow"), &o));
    moedi_safetensors s = tensors_of(support_path(dir, "narrow"));
    snprintf(name, sizeof name, biases, 3);
    assert_int_equal(moedi_safetensors_find(&s, name)->dtype, MOED_DTYPE_F32);
    assert_int_equal(moedi_safetensors_find(&s, "model.norm.weight")->dtype, MOED_DTYPE_BF16);
    moedi_safetensors_close(&s);
    assert_ok(moed_model_open(&again, context, support_path(dir, "narrow"), NULL));
    assert_memory_equal(numbers(m, name, NULL), numbers(again, name, NULL), 4 * sizeof(float));
    moed_model_destroy(m), moed_model_destroy(again);
}

static char *fixture_path(const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/tests/fixtures/transformers/%s", MOEDI_TEST_SOURCE, name);
    return path;
}

/* The same tensors with the same bytes. */
static void assert_same_files(const char *a, const char *b)
{
    moedi_safetensors x = tensors_of(a), y = tensors_of(b);
    assert_int_equal(x.count, y.count);
    for (size_t i = 0; i < x.count; i++) {
        const moedi_safetensors_entry *e = &x.entries[i], *f = moedi_safetensors_find(&y, e->name);
        if (!f || e->rank != f->rank || e->bytes != f->bytes) fail_msg("tensor %s is not the same in both", e->name);
        for (int32_t r = 0; r < e->rank; r++) assert_int_equal(e->shape[r], f->shape[r]);
        char *p = malloc((size_t)e->bytes), *q = malloc((size_t)e->bytes);
        assert_ok(moedi_safetensors_read(&x, e, 0, p, (size_t)e->bytes));
        assert_ok(moedi_safetensors_read(&y, f, 0, q, (size_t)e->bytes));
        if (memcmp(p, q, (size_t)e->bytes) != 0) fail_msg("tensor %s has other numbers", e->name);
        free(p);
        free(q);
    }
    moedi_safetensors_close(&x);
    moedi_safetensors_close(&y);
}

static void stacks_are_written_as_they_came(void **state)
{
    static const char *const names[] = {"mixtral-stacked", "qwen3_moe-stacked", "qwen3_moe-a", "dots1-a"};
    (void)state;
    for (int i = 0; i < 4; i++)
        for (uint32_t flags = 0; flags <= MOED_MODEL_STREAM; flags += MOED_MODEL_STREAM) {
            const char *to = support_path(dir, names[i]);
            moed_model_options o;
            moed_model *m = NULL;
            assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
            o.flags = flags;
            assert_ok(moed_model_open(&m, context, fixture_path(names[i]), &o));
            assert_ok(moed_model_save(m, to, NULL));
            assert_same_files(fixture_path(names[i]), to);
            moed_model_destroy(m);
        }
}

/* Parts have shorter stacks; put together they are the file that was. */
static void parts_of_a_stacked_checkpoint_are_stacked(void **state)
{
    moed_model_options o;
    moed_model *m = NULL, *part = NULL;
    moed_integration *whole = NULL;
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = MOED_MODEL_STREAM;
    assert_ok(moed_model_open(&m, context, fixture_path("mixtral-stacked"), &o));
    moed_split *s = split_of(m, 3);
    assert_ok(moed_integration_create(&whole, s, m, NULL));
    for (int32_t k = 0; k < 3; k++) {
        char name[32];
        snprintf(name, sizeof name, "stack%d", (int)k);
        assert_ok(moed_split_build(NULL, s, k, m, support_path(dir, name), NULL));
        moedi_safetensors f = tensors_of(support_path(dir, name));
        const moedi_safetensors_entry *e = moedi_safetensors_find(&f, "model.layers.1.mlp.experts.gate_up_proj");
        assert_non_null(e);
        assert_int_equal(e->shape[0], 1);
        assert_int_equal(e->shape[1], 2 * 6);
        moedi_safetensors_close(&f);
        assert_ok(moed_model_open(&part, context, support_path(dir, name), &o));
        assert_ok(moed_integration_add(whole, k, part, 1));
        moed_model_destroy(part);
    }
    assert_ok(moed_integration_finish(NULL, whole, support_path(dir, "together"), NULL));
    assert_same_files(fixture_path("mixtral-stacked"), support_path(dir, "together"));
    moed_integration_destroy(whole);
    moed_split_destroy(s);
    moed_model_destroy(m);
}

/* A file of the fixture's tensors but one, which has another name or shape. */
static void write_changed(const char *to, const char *victim, const char *name, int64_t rows)
{
    char path[4200];
    moedi_safetensors x = tensors_of(fixture_path("mixtral-stacked"));
    moedi_safetensors_entry entries[64];
    moedi_safetensors_writer w;
    memcpy(entries, x.entries, x.count * sizeof *entries);
    for (size_t i = 0; i < x.count; i++)
        if (!strcmp(entries[i].name, victim)) {
            if (name) entries[i].name = name;
            if (rows) entries[i].shape[0] = rows;
        }
    snprintf(path, sizeof path, "mkdir -p %s && cp %s/config.json %s", to, fixture_path("mixtral-stacked"), to);
    assert_int_equal(system(path), 0);
    assert_ok(moedi_safetensors_create(&w, context, support_path(to, "model.safetensors"), entries, x.count, NULL));
    for (size_t i = 0; i < x.count; i++) {
        char *bytes = calloc(1, (size_t)w.entries[i].bytes);
        assert_ok(moedi_safetensors_write(&w, i, 0, bytes, (size_t)w.entries[i].bytes));
        free(bytes);
    }
    assert_ok(moedi_safetensors_commit(&w));
    moedi_safetensors_close(&x);
}

static void a_stack_that_does_not_fit_is_refused_by_name(void **state)
{
    static const char victim[] = "model.layers.1.mlp.experts.gate_up_proj";
    static const struct { const char *name; int64_t rows; const char *words; } cases[] = {
        {NULL, 2, "tensor model.layers.1.mlp.experts.gate_up_proj has shape (2, 12, 8), and the model's is (3, 12, 8)"},
        {"model.layers.2.mlp.experts.gate_up_proj", 0, "model.layers.2.mlp.experts.gate_up_proj is no parameter"},
        {"model.layers.01.mlp.experts.gate_up_proj", 0, "model.layers.01.mlp.experts.gate_up_proj is no parameter"},
        {"model.layers.99999999999999999999.mlp.experts.gate_up_proj", 0, "is no parameter"},
        {"model.layers.1.mlp.experts.gate_up_proj.weight", 0, "is no parameter"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moed_model *m = NULL;
        const char *to = support_path(dir, "changed");
        write_changed(to, victim, cases[i].name, cases[i].rows);
        assert_refused(moed_model_open(&m, context, to, NULL), MOED_E_MISMATCH, cases[i].words);
        assert_null(m);
    }
}

/* Opening, computing with and saving of a stacked checkpoint, and of one with all the switches, wherever memory ends. */
static void every_allocation_may_be_refused(void **state)
{
    static const char *const names[] = {"qwen3_moe-stacked", "dots1-a"};
    int64_t allowed;
    moed_context *c = support_scarce_context(&allowed);
    (void)state;
    for (int i = 0; i < 2; i++) {
        const char *to = support_path(dir, names[i]);
        const int64_t held = support_held(c);
        int64_t n = 0;
        for (moed_status status = MOED_E_MEMORY; support_scarce(c, &allowed, n, held, status); n += 1 + n / 16) {
            int32_t experts[3 * 2 * 2];
            const moed_batch b = {.tokens = (const int32_t[]){1, 2}, .rows = 1, .length = 2};
            moed_model *m = NULL;
            status = moed_model_open(&m, c, fixture_path(names[i]), NULL);
            if (status == MOED_OK) status = moed_model_routing(m, &b, experts, NULL, NULL);
            if (status == MOED_OK) status = moed_model_save(m, to, NULL);
            moed_model_destroy(m);
        }
        assert_int_equal(support_held(c), held);
        assert_true(n > 30);
        assert_same_files(fixture_path(names[i]), to);
    }
    moed_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(untrained_parts_of_every_family_give_the_base_back),
        T(layers_without_experts_train_are_counted_and_resumed_as_any),
        T(a_selection_bias_cannot_be_what_trains),
        T(usage_and_routing_of_layers_without_experts_are_none),
        T(a_selection_bias_is_not_narrowed_with_the_rest),
        T(stacks_are_written_as_they_came),
        T(parts_of_a_stacked_checkpoint_are_stacked),
        T(a_stack_that_does_not_fit_is_refused_by_name),
        T(every_allocation_may_be_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
