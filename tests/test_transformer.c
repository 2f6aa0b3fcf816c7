/* The transformer's contracts beside its numbers: threads, memory, masks, frozen parameters, borrowed arrays,
 * refusals. */
#include "support.h"

#include "core/context.h"
#include "tiny.h"

enum { ROWS = 3, LENGTH = 11 };

static const moedi_objective objective = {.load_balance = 0.1, .z_loss = 0.05, .scale = 1};

static moedi_transformer *transformer(const moed_model *m, uint32_t flags, const uint8_t *trained)
{
    moedi_transformer *t = NULL;
    assert_ok(moedi_transformer_create(&t, m, ROWS, LENGTH, flags, trained));
    return t;
}

static void logits_of(const moed_model *m, const moed_batch *b, float *out)
{
    const int64_t shape[3] = {b->rows, b->length, TINY_VOCABULARY};
    moed_tensor x;
    moedi_tensor_set(&x, out, MOED_DTYPE_F32, 3, shape);
    assert_ok(moed_model_logits(m, b, &x, NULL));
}

/* ---- determinism ---- */

/* The losses and all gradients of a forward and backward pass. */
static double *run_once(const char *config, int32_t threads, int64_t *count)
{
    moed_context *c = support_context("auto", threads);
    moed_model *m = tiny_model(c, config, 2);
    moedi_transformer *t = transformer(m, MOEDI_TRANSFORMER_TRAIN, NULL);
    moedi_losses l;
    tiny_batch b;
    tiny_fill(&b, ROWS, LENGTH, 9);
    assert_ok(moedi_transformer_forward(t, &b.batch, &objective, NULL));
    assert_ok(moedi_transformer_backward(t, NULL));
    assert_ok(moedi_transformer_losses(t, &l));
    const float *block = moedi_transformer_gradients(t, count);
    double *out = malloc((size_t)(*count + 3) * sizeof *out);
    out[0] = l.loss, out[1] = l.load_balance, out[2] = l.z_loss;
    for (int64_t i = 0; i < *count; i++) out[3 + i] = (double)block[i];
    *count += 3;
    moedi_transformer_destroy(t);
    moed_model_destroy(m);
    moed_context_destroy(c);
    return out;
}

static void bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    for (int i = 0; i < TINY_CONFIGS; i++) {
        int64_t count, other;
        double *one = run_once(tiny_configs[i].config, 1, &count);
        for (int32_t threads = 2; threads <= 3; threads++) {
            double *more = run_once(tiny_configs[i].config, threads, &other);
            assert_int_equal(count, other);
            assert_memory_equal(one, more, (size_t)count * sizeof *one);
            free(more);
        }
        free(one);
    }
}

/* Wide enough that the fast kernels cut the work into many tasks. */
static void bits_do_not_depend_on_threads_in_wide_layers(void **state)
{
    static const char config[] = "{\"model_type\": \"mixtral\", \"vocab_size\": 19, \"hidden_size\": 64, "
                                 "\"intermediate_size\": 200, \"num_attention_heads\": 4,"
                                 " \"num_key_value_heads\": 2, \"num_hidden_layers\": 1, "
                                 "\"num_local_experts\": 4, \"num_experts_per_tok\": 2,"
                                 " \"max_position_embeddings\": 32}";
    int64_t count, other;
    (void)state;
    double *one = run_once(config, 1, &count);
    for (int32_t threads = 2; threads <= 3; threads++) {
        double *more = run_once(config, threads, &other);
        assert_memory_equal(one, more, (size_t)count * sizeof *one);
        free(more);
    }
    free(one);
}

/* ---- with a model at hand ---- */

typedef struct fixture {
    moed_context *context;
    moed_model *model;
    tiny_batch b;
} fixture;

static int setup(void **state)
{
    fixture *f = calloc(1, sizeof *f);
    f->context = support_context("auto", 1);
    f->model = tiny_model(f->context, tiny_configs[0].config, 4);
    tiny_fill(&f->b, ROWS, LENGTH, 5);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    fixture *f = *state;
    moed_model_destroy(f->model);
    support_close(f->context);
    free(f);
    return 0;
}

static void smaller_batches_give_the_same_logits(void **state)
{
    const fixture *f = *state;
    float whole[ROWS * LENGTH * TINY_VOCABULARY], part[LENGTH * TINY_VOCABULARY];
    moedi_transformer *t = transformer(f->model, 0, NULL);
    logits_of(f->model, &f->b.batch, whole);
    for (int64_t row = 0; row < ROWS; row++) {
        const int64_t at = row * LENGTH, length = LENGTH - 4;
        const moed_batch b = {
            .tokens = f->b.tokens + at, .documents = f->b.documents + at, .rows = 1, .length = length};
        assert_ok(moedi_transformer_forward(t, &b, NULL, NULL));
        assert_ok(moedi_transformer_logits(t, part));
        for (int64_t i = 0; i < length * TINY_VOCABULARY; i++)
            assert_float_equal(part[i], whole[at * TINY_VOCABULARY + i], 1e-5);
    }
    moedi_transformer_destroy(t);
}

static void attention_stays_inside_documents(void **state)
{
    fixture *f = *state;
    float before[ROWS * LENGTH * TINY_VOCABULARY], after[ROWS * LENGTH * TINY_VOCABULARY];
    logits_of(f->model, &f->b.batch, before);
    f->b.tokens[2] = (f->b.tokens[2] + 1) % TINY_VOCABULARY; /* of document 0, tokens 0 to 4 */
    logits_of(f->model, &f->b.batch, after);
    for (int64_t i = 0; i < ROWS * LENGTH; i++) {
        double difference = 0;
        for (int64_t v = i * TINY_VOCABULARY; v < (i + 1) * TINY_VOCABULARY; v++)
            difference += fabs((double)before[v] - (double)after[v]);
        if (i >= 2 && i <= 4) assert_true(difference > 1e-4);
        else assert_true(difference < 1e-5);
    }
    f->b.batch.documents = NULL;
    logits_of(f->model, &f->b.batch, before);
    assert_true(fabs((double)before[5 * TINY_VOCABULARY] - (double)after[5 * TINY_VOCABULARY]) > 1e-5);
}

static void likelihoods_are_the_logits_own(void **state)
{
    fixture *f = *state;
    float logits[ROWS * LENGTH * TINY_VOCABULARY], each[ROWS * LENGTH];
    double rows[ROWS];
    logits_of(f->model, &f->b.batch, logits);
    assert_ok(moed_model_likelihood(f->model, &f->b.batch, rows, each, NULL));
    for (int64_t r = 0; r < ROWS; r++) {
        double sum = 0;
        for (int64_t i = r * LENGTH; i < (r + 1) * LENGTH; i++) {
            const float *x = logits + i * TINY_VOCABULARY;
            double total = 0, own = 0;
            for (int64_t v = 0; v < TINY_VOCABULARY; v++) total += exp((double)x[v]);
            if (f->b.labels[i] >= 0) own = (double)f->b.weights[i] * ((double)x[f->b.labels[i]] - log(total));
            assert_float_equal(each[i], own, 1e-5);
            sum += own;
        }
        assert_float_equal(rows[r], sum, 1e-5);
    }
    f->b.batch.labels = NULL;
    assert_refused(moed_model_likelihood(f->model, &f->b.batch, rows, NULL, NULL), MOED_E_ARGUMENT, "no labels");
}

/* What stands behind a row's last label changes nothing of it; more rows than one pass takes are scored like few. */
static void a_rows_likelihood_is_its_own(void **state)
{
    const fixture *f = *state;
    enum { MANY = 500, SHORT = 6 }; /* tokens: more than 4,096 */
    static int32_t tokens[MANY * LENGTH], labels[MANY * LENGTH];
    static double rows[MANY], once;
    for (int64_t i = 0; i < MANY * LENGTH; i++) {
        const int64_t at = i % LENGTH;
        tokens[i] = at < SHORT ? f->b.tokens[at] : (int32_t)(i % TINY_VOCABULARY);
        labels[i] = at > 1 && at < SHORT ? f->b.tokens[at + 1] : -1;
    }
    moed_batch b = {.tokens = tokens, .labels = labels, .rows = 1, .length = SHORT};
    assert_ok(moed_model_likelihood(f->model, &b, &once, NULL, NULL));
    assert_true(once < -1);
    b.rows = MANY, b.length = LENGTH;
    assert_ok(moed_model_likelihood(f->model, &b, rows, NULL, NULL));
    for (int r = 0; r < MANY; r++) assert_float_equal(rows[r], once, 1e-5);
    labels[MANY * LENGTH - 1] = TINY_VOCABULARY;
    assert_refused(moed_model_likelihood(f->model, &b, rows, NULL, NULL), MOED_E_RANGE, "row 499 of the batch: label 19");
}

static void routing_is_the_transformers(void **state)
{
    const fixture *f = *state;
    enum { LAYERS = 2, TOP_K = 2, EACH = ROWS * LENGTH * TOP_K };
    int32_t all[LAYERS * EACH], ids[EACH];
    float weights[LAYERS * EACH], some[EACH];
    moedi_losses l;
    moedi_transformer *t = transformer(f->model, 0, NULL);
    assert_ok(moed_model_routing(f->model, &f->b.batch, all, weights, NULL));
    assert_ok(moedi_transformer_forward(t, &f->b.batch, NULL, NULL));
    assert_ok(moedi_transformer_losses(t, &l));
    for (int32_t layer = 0; layer < LAYERS; layer++) {
        int64_t counts[4] = {0};
        assert_ok(moedi_transformer_routing(t, layer, ids, some));
        assert_memory_equal(ids, all + layer * EACH, sizeof ids);
        assert_memory_equal(some, weights + layer * EACH, sizeof some);
        for (int i = 0; i < EACH; i++) counts[ids[i]]++;
        for (int e = 0; e < 4; e++) {
            const int64_t *offsets = moedi_transformer_offsets(t, layer);
            assert_int_equal(offsets[e + 1] - offsets[e], counts[e]);
        }
        for (int i = 0; i < EACH; i += TOP_K)
            assert_true(some[i] >= some[i + 1] && some[i] + some[i + 1] <= 1.00001f);
    }
    moedi_transformer_destroy(t);
}

static void frozen_parameters_have_no_gradient_and_change_no_other(void **state)
{
    fixture *f = *state;
    const moed_layout *l = moed_model_layout(f->model);
    uint8_t trained[256] = {0};
    int64_t few, all;
    assert_true(l->count <= sizeof trained);
    for (size_t p = 0; p < l->count; p++)
        trained[p] = l->params[p].layer == 1 && l->params[p].role == MOED_ROLE_EXPERT;
    moedi_transformer *whole = transformer(f->model, MOEDI_TRANSFORMER_TRAIN, NULL);
    moedi_transformer *part = transformer(f->model, MOEDI_TRANSFORMER_TRAIN, trained);
    moedi_transformer *both[2] = {whole, part};
    for (int i = 0; i < 2; i++) {
        assert_ok(moedi_transformer_forward(both[i], &f->b.batch, &objective, NULL));
        assert_ok(moedi_transformer_backward(both[i], NULL));
    }
    moedi_transformer_gradients(whole, &all);
    moedi_transformer_gradients(part, &few);
    assert_true(few < all / 3);
    for (size_t p = 0; p < l->count; p++) {
        const void *gradient = moedi_transformer_gradient(part, p);
        assert_true((gradient != NULL) == (trained[p] != 0));
        if (!gradient) continue;
        const int64_t count = moedi_shape_elements(l->params[p].shape, l->params[p].rank);
        assert_memory_equal(gradient, moedi_transformer_gradient(whole, p), (size_t)count * sizeof(float));
    }
    moedi_transformer_destroy(whole);
    moedi_transformer_destroy(part);
}

/* Where a block counts for nothing its numbers are not read: they are made NaN before. */
static void fresh_gradients_are_those_added_to_zeros(void **state)
{
    (void)state;
    for (int i = 0; i < TINY_CONFIGS; i++) {
        moed_context *c = support_context("auto", 2);
        moed_model *m = tiny_model(c, tiny_configs[i].config, 2);
        const moed_layout *l = moed_model_layout(m);
        moedi_transformer *zeroed = transformer(m, MOEDI_TRANSFORMER_TRAIN, NULL),
                          *fresh = transformer(m, MOEDI_TRANSFORMER_TRAIN, NULL);
        tiny_batch b;
        int64_t count;
        tiny_fill(&b, ROWS, LENGTH, 9);
        float *block = moedi_transformer_gradients(fresh, &count);
        for (size_t p = 0; p < l->count; p++) {
            float *const numbers = moedi_transformer_gradient(fresh, p);
            for (int64_t k = 0; numbers && k < moedi_shape_elements(l->params[p].shape, l->params[p].rank); k++) numbers[k] = NAN;
        }
        for (int pass = 0; pass < 2; pass++) { /* the second adds */
            if (pass == 0) assert_ok(moedi_transformer_open_gradients(fresh, block, 1));
            moedi_transformer *both[2] = {zeroed, fresh};
            for (int k = 0; k < 2; k++) {
                assert_ok(moedi_transformer_forward(both[k], &b.batch, &objective, NULL));
                assert_ok(moedi_transformer_backward(both[k], NULL));
            }
            for (size_t p = 0; p < l->count; p++) {
                const float *one = moedi_transformer_gradient(zeroed, p), *other = moedi_transformer_gradient(fresh, p);
                for (int64_t k = 0; one && k < moedi_shape_elements(l->params[p].shape, l->params[p].rank); k++)
                    if (one[k] != other[k])
                        fail_msg("%s, pass %d: %s[%lld] is %g, not %g", tiny_configs[i].name, pass, l->params[p].name,
                                 (long long)k, (double)other[k], (double)one[k]);
            }
        }
        moedi_transformer_destroy(zeroed), moedi_transformer_destroy(fresh);
        moed_model_destroy(m), moed_context_destroy(c);
    }
}

static void evaluation_leaves_gradients_alone(void **state)
{
    fixture *f = *state;
    int64_t count;
    moedi_losses l;
    moedi_transformer *t = transformer(f->model, MOEDI_TRANSFORMER_TRAIN, NULL);
    const float *block = moedi_transformer_gradients(t, &count);
    assert_ok(moedi_transformer_forward(t, &f->b.batch, NULL, NULL));
    assert_ok(moedi_transformer_losses(t, &l));
    assert_true(l.loss > 0.5 && l.label_weight > 0);
    for (int64_t i = 0; i < count; i++) assert_true(block[i] == 0);
    assert_refused(moedi_transformer_backward(t, NULL), MOED_E_STATE, "objective");
    moedi_transformer_destroy(t);
}

static void a_batch_without_labels_that_count_has_no_loss_and_no_gradient(void **state)
{
    fixture *f = *state;
    const moedi_objective plain = {.scale = 1};
    int64_t count;
    moedi_losses l;
    moedi_transformer *t = transformer(f->model, MOEDI_TRANSFORMER_TRAIN, NULL);
    for (int i = 0; i < ROWS * LENGTH; i++) f->b.labels[i] = -1;
    assert_ok(moedi_transformer_forward(t, &f->b.batch, &plain, NULL));
    assert_ok(moedi_transformer_backward(t, NULL));
    assert_ok(moedi_transformer_losses(t, &l));
    assert_true(l.loss == 0 && l.label_weight == 0);
    const float *block = moedi_transformer_gradients(t, &count);
    for (int64_t i = 0; i < count; i++) assert_true(block[i] == 0);
    moedi_transformer_destroy(t);
}

/* Every array somewhere else: nothing can be used in place. */
static void scattered_arrays_are_copied_and_stored_back(void **state)
{
    fixture *f = *state;
    const moed_layout *l = moed_model_layout(f->model);
    float here[ROWS * LENGTH * TINY_VOCABULARY], there[ROWS * LENGTH * TINY_VOCABULARY];
    moed_tensor *tensors = calloc(l->count, sizeof *tensors);
    moed_model *borrowed = NULL;
    for (size_t p = 0; p < l->count; p++) {
        moed_tensor x;
        assert_ok(moed_model_tensor(f->model, p, &x));
        const size_t bytes = (size_t)moedi_shape_elements(x.shape, x.rank) * sizeof(float);
        tensors[p] = x;
        tensors[p].data = malloc(bytes + 64);
        memcpy(tensors[p].data, x.data, bytes);
    }
    assert_ok(moed_model_borrow(&borrowed, f->context, l, tensors, l->count, NULL, NULL));
    logits_of(f->model, &f->b.batch, here);
    logits_of(borrowed, &f->b.batch, there);
    assert_memory_equal(here, there, sizeof here);

    moedi_transformer *t = transformer(borrowed, MOEDI_TRANSFORMER_TRAIN, NULL);
    const size_t down = (size_t)moedi_layout_find(l, "model.layers.1.mlp.experts.2.down_proj.weight");
    float *weight = moedi_transformer_weight(t, down), *array = tensors[down].data;
    assert_ptr_not_equal(weight, moedi_transformer_weight(t, down - 1));
    weight[3] = 7;
    assert_ok(moedi_transformer_store(t));
    assert_true(array[3] == 7);
    array[3] = 8;
    assert_ok(moedi_transformer_load(t));
    assert_true(((float *)moedi_transformer_weight(t, down))[3] == 8);
    moedi_transformer_destroy(t);
    moed_model_destroy(borrowed);
    for (size_t p = 0; p < l->count; p++) free(tensors[p].data);
    free(tensors);
}

static void memory_is_what_was_foretold(void **state)
{
    fixture *f = *state;
    const moed_backend_info numbers = {.dtype = MOED_DTYPE_F32, .wide = MOED_DTYPE_F32};
    for (uint32_t flags = 0; flags <= MOEDI_TRANSFORMER_TRAIN; flags++) {
        int64_t weights, gradients, activations;
        const int64_t before = support_held(f->context);
        moedi_transformer *t = transformer(f->model, flags, NULL);
        const int64_t taken = support_held(f->context) - before;
        assert_ok(moedi_transformer_bytes(moed_model_layout(f->model), &numbers, ROWS, LENGTH, flags,
                                          NULL, &weights, &gradients, &activations));
        assert_true((gradients != 0) == (flags != 0));
        assert_true(weights > 4000 && activations > 4000);
        /* weights are used in place; the rest is tables of a few bytes per parameter, and the engine */
        assert_in_range(taken, gradients + activations, gradients + activations + 40000);
        const int64_t made = support_held(f->context);
        assert_ok(moedi_transformer_forward(t, &f->b.batch, NULL, NULL));
        if (flags) {
            assert_ok(moedi_transformer_forward(t, &f->b.batch, &objective, NULL));
            assert_ok(moedi_transformer_backward(t, NULL));
        }
        assert_true(support_held(f->context) - made < 4 << 20); /* the engine's own scratch */
        moedi_transformer_destroy(t);
        assert_int_equal(support_held(f->context), before);
    }
}

static void bad_batches_are_refused(void **state)
{
    fixture *f = *state;
    moedi_transformer *t = transformer(f->model, MOEDI_TRANSFORMER_TRAIN, NULL);
    moed_batch b = f->b.batch;
    b.rows = ROWS + 1;
    assert_refused(moedi_transformer_forward(t, &b, NULL, NULL), MOED_E_RANGE, "room for");
    b = f->b.batch;
    f->b.tokens[LENGTH] = TINY_VOCABULARY;
    assert_refused(moedi_transformer_forward(t, &b, NULL, NULL), MOED_E_RANGE, "row 1 of the batch: token 19 at 0");
    f->b.tokens[LENGTH] = 0, f->b.labels[1] = -100;
    assert_refused(moedi_transformer_forward(t, &b, NULL, NULL), MOED_E_RANGE, "row 0 of the batch: label -100 at 1");
    f->b.labels[1] = 0, f->b.weights[1] = NAN;
    assert_refused(moedi_transformer_forward(t, &b, NULL, NULL), MOED_E_NUMERIC, "label weight");
    b.tokens = NULL;
    assert_refused(moedi_transformer_forward(t, &b, NULL, NULL), MOED_E_ARGUMENT, "no tokens");
    moedi_losses l;
    assert_refused(moedi_transformer_losses(t, &l), MOED_E_STATE, "forward");
    moedi_transformer_destroy(t);
    assert_refused(moedi_transformer_create(&t, f->model, 1, 33, 0, NULL), MOED_E_RANGE,
                   "max_position_embeddings");
    assert_refused(moedi_transformer_create(&t, f->model, 0, 4, 0, NULL), MOED_E_RANGE, "rows is 0");
    assert_refused(moedi_transformer_create(&t, f->model, INT64_MAX / 8, 4, 0, NULL), MOED_E_RANGE,
                   "more than one pass");
}

static void wrong_arrays_for_logits_are_refused(void **state)
{
    fixture *f = *state;
    float out[ROWS * LENGTH * TINY_VOCABULARY];
    const int64_t shape[3] = {ROWS, LENGTH, TINY_VOCABULARY + 1};
    moed_tensor x;
    moedi_tensor_set(&x, out, MOED_DTYPE_F32, 3, shape);
    assert_refused(moed_model_logits(f->model, &f->b.batch, &x, NULL), MOED_E_MISMATCH, "axis 2");
    x.rank = 2;
    assert_refused(moed_model_logits(f->model, &f->b.batch, &x, NULL), MOED_E_ARGUMENT, "rank 3");
    x.rank = 3, x.shape[2] = TINY_VOCABULARY, x.strides[0] = LENGTH * TINY_VOCABULARY,
    x.strides[1] = TINY_VOCABULARY;
    x.dtype = MOED_DTYPE_F64;
    assert_refused(moed_model_logits(f->model, &f->b.batch, &x, NULL), MOED_E_MISMATCH, "F32");
    assert_refused(moed_model_logits(NULL, &f->b.batch, &x, NULL), MOED_E_ARGUMENT, "model");
}

static void cancel_stops_between_layers(void **state)
{
    fixture *f = *state;
    moed_cancel *cancel = NULL;
    moedi_transformer *t = transformer(f->model, MOEDI_TRANSFORMER_TRAIN, NULL);
    assert_ok(moed_cancel_create(&cancel));
    assert_ok(moedi_transformer_forward(t, &f->b.batch, &objective, cancel));
    moed_cancel_request(cancel);
    assert_int_equal(moedi_transformer_backward(t, cancel), MOED_E_CANCELLED);
    assert_int_equal(moedi_transformer_forward(t, &f->b.batch, &objective, cancel), MOED_E_CANCELLED);
    assert_refused(moedi_transformer_backward(t, NULL), MOED_E_STATE, "forward");
    moed_cancel_destroy(cancel);
    moedi_transformer_destroy(t);
}

/* Memory that runs out at the countdown's end; negative: never. */
static int64_t countdown = -1;
static void *failing_alloc(size_t size, size_t alignment, void *user)
{
    (void)user;
    if (!countdown) return NULL;
    if (countdown > 0) countdown--;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
static void failing_free(void *memory, size_t size, void *user)
{
    (void)size, (void)user;
    free(memory);
}

static void no_failed_allocation_leaks_or_crashes(void **state)
{
    moed_context_options o;
    moed_context *c = NULL;
    tiny_batch b;
    float out[ROWS * LENGTH * TINY_VOCABULARY];
    double sums[ROWS];
    const int64_t shape[3] = {ROWS, LENGTH, TINY_VOCABULARY};
    moed_tensor x;
    int failures = 0;
    (void)state;
    moedi_tensor_set(&x, out, MOED_DTYPE_F32, 3, shape);
    tiny_fill(&b, ROWS, LENGTH, 5);
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.alloc = failing_alloc, o.free = failing_free;
    assert_ok(moed_context_create(&c, &o));
    moed_model *m = tiny_model(c, tiny_configs[0].config, 4);
    const int64_t before = support_held(c);
    for (int64_t at = 0, done = 0; done < 2; at++) {
        countdown = at;
        const moed_status status =
            done ? moed_model_likelihood(m, &b.batch, sums, NULL, NULL) : moed_model_logits(m, &b.batch, &x, NULL);
        countdown = -1;
        assert_int_equal(support_held(c), before);
        if (status == MOED_OK) {
            done++;
            at = -1;
            continue;
        }
        assert_int_equal(status, MOED_E_MEMORY);
        failures++;
    }
    assert_true(failures > 8);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

static void a_product_that_has_no_memory_writes_nothing(void **state)
{
    enum { SIDE = 48 };
    static float a[SIDE * SIDE], b[SIDE * SIDE], addend[SIDE * SIDE], c[SIDE * SIDE], kept[SIDE * SIDE];
    moed_context_options o;
    moed_context *context = NULL;
    moedi_engine e;
    (void)state;
    support_random(addend, SIDE * SIDE, 1);
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.alloc = failing_alloc, o.free = failing_free;
    assert_ok(moed_context_create(&context, &o));
    assert_ok(moedi_engine_open(&e, context));
    const moed_op_gemm product = {.c = c, .a = a, .b = b, .addend = addend, .m = SIDE, .n = SIDE, .k = SIDE, .lda = SIDE,
                                  .ldb = SIDE, .ldc = SIDE, .accumulate = 1};
    countdown = 0;
    const moed_status status = e.table->gemm(e.self, &product);
    countdown = -1;
    assert_int_equal(status, MOED_E_MEMORY);
    assert_memory_equal(c, kept, sizeof c);
    assert_ok(e.table->gemm(e.self, &product));
    assert_memory_equal(c, addend, sizeof c);
    moedi_engine_close(&e);
    moed_context_destroy(context);
}

static void one_expert_is_a_dense_block(void **state)
{
    fixture *f = *state;
    moed_model *m = tiny_model(f->context, tiny_configs[2].config, 3);
    float weights[2 * ROWS * LENGTH];
    int32_t experts[2 * ROWS * LENGTH];
    assert_ok(moed_model_routing(m, &f->b.batch, experts, weights, NULL));
    for (int i = 0; i < 2 * ROWS * LENGTH; i++) assert_true(experts[i] == 0 && weights[i] == 1);
    moed_model_destroy(m);
}

/* ---- over a corpus ---- */

static int32_t document_length(int64_t document, int64_t *tokens, void *user)
{
    (void)user;
    *tokens = 5 + document * 3;
    return 0;
}
static int32_t document_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((document * 7 + (offset + i) * (offset + i)) % (TINY_VOCABULARY - 1));
    return 0;
}

static moed_corpus *corpus(moed_context *c)
{
    const moed_documents documents = {.count = 6, .length = document_length, .read = document_read};
    return support_corpus(c, documents, TINY_VOCABULARY, TINY_VOCABULARY - 1);
}

static void evaluation_scores_every_token_once_whatever_the_rows(void **state)
{
    fixture *f = *state;
    moed_corpus *d = corpus(f->context);
    moed_report one = {.struct_size = sizeof one}, other = one, cut = one;
    /* rows as long as the stream, so that no token loses its context */
    assert_ok(moed_model_evaluate(f->model, d, 0, 1, 32, 1, &one, NULL));
    assert_ok(moed_model_evaluate(f->model, d, 0, 3, 32, 1, &other, NULL));
    assert_ok(moed_model_evaluate(f->model, d, 20, 3, 32, 1, &cut, NULL));
    assert_int_equal(one.labels, other.labels);
    assert_true(one.labels >= 5 * 6 + 3 * 15 - 1);
    assert_true(fabs(one.loss - other.loss) < 1e-5 && one.loss > 1);
    assert_true(one.max_load == other.max_load && one.max_load >= 1);
    assert_true(one.z_loss > 0 && fabs(one.z_loss - other.z_loss) < 0.2 * one.z_loss);
    assert_int_equal(cut.labels, 20);
    moed_corpus_destroy(d);
}

static void usage_is_a_share_per_layer(void **state)
{
    fixture *f = *state;
    moed_corpus *d = corpus(f->context);
    double usage[2 * 4], weight[2 * 4];
    assert_ok(moed_model_usage(f->model, d, 0, usage, weight, NULL));
    for (int layer = 0; layer < 2; layer++) {
        double sum = 0, mean = 0;
        for (int e = layer * 4; e < layer * 4 + 4; e++) {
            sum += usage[e], mean += usage[e] * weight[e];
            assert_true(weight[e] >= 0 && weight[e] <= 1 && (usage[e] > 0) == (weight[e] > 0));
        }
        assert_true(fabs(sum - 1) < 1e-12);
        /* two choices out of four: between an even and a certain router */
        assert_true(mean > 0.25 && mean <= 0.5);
    }
    assert_refused(moed_model_usage(f->model, d, -1, usage, NULL, NULL), MOED_E_ARGUMENT, "tokens");
    moed_corpus_destroy(d);
}

int main(void)
{
#define WITH_MODEL(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(bits_do_not_depend_on_threads_in_wide_layers),
        WITH_MODEL(smaller_batches_give_the_same_logits),
        WITH_MODEL(attention_stays_inside_documents),
        WITH_MODEL(likelihoods_are_the_logits_own),
        WITH_MODEL(a_rows_likelihood_is_its_own),
        WITH_MODEL(routing_is_the_transformers),
        WITH_MODEL(frozen_parameters_have_no_gradient_and_change_no_other),
        cmocka_unit_test(fresh_gradients_are_those_added_to_zeros),
        WITH_MODEL(evaluation_leaves_gradients_alone),
        WITH_MODEL(a_batch_without_labels_that_count_has_no_loss_and_no_gradient),
        WITH_MODEL(scattered_arrays_are_copied_and_stored_back),
        WITH_MODEL(memory_is_what_was_foretold),
        WITH_MODEL(bad_batches_are_refused),
        WITH_MODEL(wrong_arrays_for_logits_are_refused),
        WITH_MODEL(cancel_stops_between_layers),
        cmocka_unit_test(no_failed_allocation_leaks_or_crashes),
        cmocka_unit_test(a_product_that_has_no_memory_writes_nothing),
        WITH_MODEL(one_expert_is_a_dense_block),
        WITH_MODEL(evaluation_scores_every_token_once_whatever_the_rows),
        WITH_MODEL(usage_is_a_share_per_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
