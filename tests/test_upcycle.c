/* Dense models: split into and put back from, and made into models with experts. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#define FIXTURE_FOLDER
#include "fixture.h"

#include "model/model.h"

#define SIZES                                                                                                                   \
    "\"vocab_size\": 31, \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_attention_heads\": 4, \"num_key_value_heads\": 2," \
    " \"max_position_embeddings\": 64"
static const char mistral[] = "{\"model_type\": \"mistral\", " SIZES ", \"intermediate_size\": 24, \"sliding_window\": null,"
                              " \"rope_theta\": null}";
static const char qwen3[] = "{\"model_type\": \"qwen3\", " SIZES ", \"intermediate_size\": 24, \"head_dim\": 8}";
static const char mixtral[] = "{\"model_type\": \"mixtral\", " SIZES ", \"intermediate_size\": 12, \"num_local_experts\": 4,"
                              " \"num_experts_per_tok\": 2, \"rope_theta\": 500.0}";
static const char qwen[] = "{\"model_type\": \"qwen2_moe\", " SIZES ", \"moe_intermediate_size\": 24, \"num_experts\": 1,"
                           " \"num_experts_per_tok\": 1, \"shared_expert_intermediate_size\": 8, \"norm_topk_prob\": false}";
enum { VOCABULARY = 31, LAYERS = 2, WIDTH = 24, HIDDEN = 16, ROWS = 2, LENGTH = 9 };

static moed_model *fresh(const char *config, uint64_t seed)
{
    return support_fresh(context, config, seed, 0.3);
}

static void logits(const moed_model *m, float *out)
{
    int32_t tokens[ROWS * LENGTH];
    const int64_t shape[3] = {ROWS, LENGTH, VOCABULARY};
    moed_tensor t;
    for (int i = 0; i < ROWS * LENGTH; i++) tokens[i] = i * 7 % VOCABULARY;
    const moed_batch b = {.tokens = tokens, .rows = ROWS, .length = LENGTH};
    moedi_tensor_set(&t, out, MOED_DTYPE_F32, 3, shape);
    assert_ok(moed_model_logits(m, &b, &t, NULL));
}

static void assert_same_logits(const moed_model *a, const moed_model *b)
{
    float x[ROWS * LENGTH * VOCABULARY], y[ROWS * LENGTH * VOCABULARY];
    double worst = 0;
    logits(a, x), logits(b, y);
    for (int i = 0; i < ROWS * LENGTH * VOCABULARY; i++) worst = fmax(worst, fabs((double)x[i] - (double)y[i]));
    if (!(worst < 2e-5)) fail_msg("logits differ by %g", worst);
}

static const float *tensor(const moed_model *m, moedi_slot slot, int layer, int expert)
{
    return m->tensors[moedi_layout_slot(m->layout, slot, layer, expert)].data;
}

/* ---- split and integrate ---- */

static moed_split *dense_split(const moed_model *base, int32_t parts)
{
    moed_split_options o;
    moed_split *s = NULL;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.flags = MOED_SPLIT_DENSE, o.parts = parts;
    assert_ok(moed_split_create(&s, base->layout, &o));
    return s;
}

static void dense_submodels_compute_the_same_and_come_back(void **state)
{
    moed_model *base = fresh(mixtral, 1), *whole = NULL;
    moed_split *dense = dense_split(base, 4), *own = NULL;
    moed_integration *i = NULL;
    (void)state;
    assert_ok(moed_split_create(&own, base->layout, NULL));
    assert_ok(moed_integration_create(&i, dense, base, NULL));
    for (int32_t k = 0; k < 4; k++) {
        char name[16];
        moed_model *a = NULL, *b = NULL, *again = NULL;
        snprintf(name, sizeof name, "%d", k);
        assert_ok(moed_split_build(&a, own, k, base, NULL, NULL));
        assert_ok(moed_split_build(&b, dense, k, base, NULL, NULL));
        assert_string_equal(b->layout->family->name, "mistral");
        assert_true(moedi_layout_slot(b->layout, MOEDI_SLOT_ROUTER, 0, -1) < 0);
        assert_same_logits(a, b);
        assert_ok(moed_split_build(NULL, dense, k, base, support_path(dir, name), NULL));
        assert_ok(moed_model_open(&again, context, support_path(dir, name), NULL));
        assert_ok(moed_integration_add(i, k, again, 1));
        moed_model_destroy(a);
        moed_model_destroy(b);
        moed_model_destroy(again);
    }
    assert_ok(moed_integration_finish(&whole, i, NULL, NULL));
    for (size_t p = 0; p < base->layout->count; p++)
        assert_memory_equal(base->tensors[p].data, whole->tensors[p].data, moedi_param_bytes(&base->layout->params[p]));
    moed_model_destroy(whole);
    moed_integration_destroy(i);
    moed_split_destroy(own);
    moed_split_destroy(dense);
    moed_model_destroy(base);
}

static void what_has_no_dense_sibling_is_refused(void **state)
{
    moed_model *base = fresh(mixtral, 1), *shared = fresh(qwen, 1), *part = NULL;
    moed_split *two = dense_split(base, 2), *four = dense_split(base, 4), *q = dense_split(shared, 1);
    moed_integration *i = NULL;
    moed_integration_options o;
    size_t count;
    (void)state;
    assert_refused(moed_split_build(&part, two, 0, base, NULL, NULL), MOED_E_UNSUPPORTED, "holds 2 experts");
    assert_refused(moed_split_build(&part, q, 0, shared, NULL, NULL), MOED_E_UNSUPPORTED, "qwen2_moe");
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &o, sizeof o));
    o.gate = MOED_GATE_SUBMODELS, o.allow_missing = 1;
    assert_ok(moed_integration_create(&i, four, base, &o));
    assert_ok(moed_split_build(&part, four, 0, base, NULL, NULL));
    assert_ok(moed_integration_add(i, 0, part, 1));
    assert_refused(moed_integration_pieces(i, (size_t)moedi_layout_slot(base->layout, MOEDI_SLOT_ROUTER, 0, -1), NULL, 0, &count),
                   MOED_E_STATE, "carry no rows");
    moed_model_destroy(part);
    moed_integration_destroy(i);
    moed_split_destroy(two);
    moed_split_destroy(four);
    moed_split_destroy(q);
    moed_model_destroy(base);
    moed_model_destroy(shared);
}

/* ---- upcycling ---- */

static moed_upcycle_options options(double noise, double redraw)
{
    moed_upcycle_options o;
    assert_ok(moed_options_init(MOED_STRUCT_UPCYCLE_OPTIONS, &o, sizeof o));
    o.experts = 4, o.noise = noise, o.redraw = redraw, o.seed = 3;
    return o;
}

static void clones_compute_what_the_dense_model_does(void **state)
{
    const char *const configs[] = {mistral, qwen3, qwen};
    const char *const families[] = {"mixtral", "qwen3_moe", "qwen2_moe"};
    const moed_upcycle_options o = options(0, 0);
    (void)state;
    for (int k = 0; k < 3; k++) {
        moed_model *dense = fresh(configs[k], 5), *whole = NULL;
        assert_ok(moed_model_upcycle(&whole, dense, NULL, &o, NULL));
        assert_string_equal(whole->layout->family->name, families[k]);
        assert_int_equal(whole->layout->config.experts, 4);
        assert_int_equal(whole->layout->config.top_k, 2);
        assert_same_logits(dense, whole);
        const float *rows = tensor(whole, MOEDI_SLOT_ROUTER, 0, -1), *others = tensor(whole, MOEDI_SLOT_ROUTER, 1, -1);
        assert_true(rows[0] != rows[HIDDEN] && rows[0] != others[0]);
        moed_model_destroy(whole);
        moed_model_destroy(dense);
    }
}

static double rms(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)count);
}

static void noise_is_a_share_of_each_tensor(void **state)
{
    static const moedi_slot slots[] = {MOEDI_SLOT_EXPERT_GATE, MOEDI_SLOT_EXPERT_UP, MOEDI_SLOT_EXPERT_DOWN};
    moed_model *dense = fresh(mistral, 6), *whole = NULL;
    const moed_upcycle_options o = options(0.1, 0);
    float first[WIDTH * HIDDEN], difference[WIDTH * HIDDEN];
    (void)state;
    assert_ok(moed_model_upcycle(&whole, dense, NULL, &o, NULL));
    for (int s = 0; s < 3; s++)
        for (int e = 0; e < 4; e++) {
            const float *x = tensor(dense, slots[s], 1, 0), *y = tensor(whole, slots[s], 1, e);
            for (int i = 0; i < WIDTH * HIDDEN; i++) difference[i] = y[i] - x[i];
            const double share = rms(difference, WIDTH * HIDDEN) / rms(x, WIDTH * HIDDEN);
            if (share < 0.09 || share > 0.11) fail_msg("noise of %g, not of 0.1", share);
            if (e) assert_memory_not_equal(first, difference, sizeof first); /* each expert's own */
            memcpy(first, difference, sizeof first);
        }
    assert_memory_equal(tensor(dense, MOEDI_SLOT_O, 1, -1), tensor(whole, MOEDI_SLOT_O, 1, -1), HIDDEN * HIDDEN * sizeof(float));
    moed_model_destroy(whole);
    moed_model_destroy(dense);
}

/* Whether a unit of an expert is the dense model's in a tensor: 1, 0, or -1 where some of its numbers are. */
static int kept(const moed_model *dense, const moed_model *whole, moedi_slot slot, int layer, int expert, int unit)
{
    const float *x = tensor(dense, slot, layer, 0), *y = tensor(whole, slot, layer, expert);
    int same = 0;
    for (int i = 0; i < HIDDEN; i++) {
        const int at = slot == MOEDI_SLOT_EXPERT_DOWN ? i * WIDTH + unit : unit * HIDDEN + i;
        same += x[at] == y[at];
    }
    return same == HIDDEN ? 1 : same ? -1 : 0;
}

static void a_share_of_every_experts_units_is_drawn_anew(void **state)
{
    moed_model *dense = fresh(mistral, 7), *whole = NULL;
    const moed_upcycle_options o = options(0, 0.5);
    char units[2][4][WIDTH + 1] = {{{0}}};
    (void)state;
    float *gate = (float *)(uintptr_t)tensor(dense, MOEDI_SLOT_EXPERT_GATE, 0, 0);
    for (int i = 0; i < WIDTH * HIDDEN; i++) gate[i] *= 3; /* each tensor has a size of its own */
    assert_ok(moed_model_upcycle(&whole, dense, NULL, &o, NULL));
    for (int l = 0; l < LAYERS; l++)
        for (int e = 0; e < 4; e++) {
            int drawn = 0;
            double before = 0, after = 0;
            for (int u = 0; u < WIDTH; u++) {
                const int a = kept(dense, whole, MOEDI_SLOT_EXPERT_GATE, l, e, u),
                          b = kept(dense, whole, MOEDI_SLOT_EXPERT_UP, l, e, u),
                          c = kept(dense, whole, MOEDI_SLOT_EXPERT_DOWN, l, e, u);
                assert_true(a >= 0 && a == b && b == c);
                units[l][e][u] = (char)('0' + a);
                drawn += !a;
                if (a || l) continue;
                before += pow(rms(gate + u * HIDDEN, HIDDEN), 2);
                after += pow(rms(tensor(whole, MOEDI_SLOT_EXPERT_GATE, l, e) + u * HIDDEN, HIDDEN), 2);
            }
            assert_int_equal(drawn, WIDTH / 2);
            if (!l && fabs(sqrt(after / before) - 1) > 0.2) fail_msg("drawn with %g times the size", sqrt(after / before));
            if (e) assert_string_not_equal(units[l][e], units[l][e - 1]); /* each expert others */
        }
    moed_model_destroy(whole);
    moed_model_destroy(dense);
}

static void a_streamed_upcycling_has_the_bits_of_one_in_memory(void **state)
{
    moed_upcycle_options o = options(0.05, 0.25);
    moed_model *dense = fresh(qwen3, 8), *a = NULL, *b = NULL, *c = NULL, *source = NULL, *bf = NULL;
    moed_model_options so;
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &so, sizeof so));
    assert_ok(moed_model_save(dense, support_path(dir, "dense"), NULL));
    so.flags = MOED_MODEL_STREAM;
    assert_ok(moed_model_open(&source, context, support_path(dir, "dense"), &so));
    assert_ok(moed_model_upcycle(&a, dense, NULL, &o, NULL));
    o.shard_bytes = 3000;
    assert_ok(moed_model_upcycle(&b, source, support_path(dir, "moe"), &o, NULL));
    assert_ok(moed_model_open(&c, context, support_path(dir, "moe"), NULL));
    for (size_t p = 0; p < a->layout->count; p++)
        assert_memory_equal(a->tensors[p].data, c->tensors[p].data, moedi_param_bytes(&a->layout->params[p]));
    o.seed++, o.dtype = MOED_DTYPE_BF16;
    assert_ok(moed_model_upcycle(&bf, source, NULL, &o, NULL)); /* another seed, another type */
    assert_int_equal(bf->layout->params[0].dtype, MOED_DTYPE_BF16);
    moed_model_destroy(bf);
    moed_model_destroy(a);
    moed_model_destroy(b);
    moed_model_destroy(c);
    moed_model_destroy(source);
    moed_model_destroy(dense);
}

static void what_cannot_be_upcycled_is_refused(void **state)
{
    moed_model *base = fresh(mixtral, 1), *dense = fresh(mistral, 1), *out = NULL;
    moed_upcycle_options o = options(0, 0);
    moed_cancel *cancel = NULL;
    (void)state;
    assert_refused(moed_model_upcycle(&out, base, NULL, &o, NULL), MOED_E_UNSUPPORTED, "mixtral");
    o.top_k = 5;
    assert_refused(moed_model_upcycle(&out, dense, NULL, &o, NULL), MOED_E_RANGE, "top_k 5 of 4");
    o.top_k = 2, o.redraw = 1.5;
    assert_refused(moed_model_upcycle(&out, dense, NULL, &o, NULL), MOED_E_RANGE, "redraw");
    o.redraw = 0.5;
    ((float *)(uintptr_t)tensor(dense, MOEDI_SLOT_EXPERT_UP, 1, 0))[5] = NAN;
    assert_refused(moed_model_upcycle(&out, dense, support_path(dir, "moe"), &o, NULL), MOED_E_NUMERIC, "up_proj");
    assert_int_equal(access(support_path(dir, "moe"), F_OK), -1);
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_model_upcycle(&out, dense, NULL, &o, cancel), MOED_E_CANCELLED, "");
    moed_cancel_destroy(cancel);
    moed_model_destroy(dense);
    moed_model_destroy(base);
}

static void no_failed_allocation_of_an_upcycling_leaks(void **state)
{
    moed_context *fixture = context;
    int64_t allowed;
    moed_status status = MOED_E_MEMORY;
    const moed_upcycle_options o = options(0.05, 0.25);
    (void)state;
    context = support_scarce_context(&allowed);
    moed_model *dense = fresh(mistral, 8), *whole = NULL;
    const int64_t held = support_held(context);
    for (int64_t n = 0; support_scarce(context, &allowed, n, held, status); n++)
        status = moed_model_upcycle(&whole, dense, NULL, &o, NULL);
    moed_model_destroy(whole);
    moed_model_destroy(dense);
    support_close(context);
    context = fixture;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(dense_submodels_compute_the_same_and_come_back),
        T(what_has_no_dense_sibling_is_refused),
        T(clones_compute_what_the_dense_model_does),
        T(noise_is_a_share_of_each_tensor),
        T(a_share_of_every_experts_units_is_drawn_anew),
        T(a_streamed_upcycling_has_the_bits_of_one_in_memory),
        T(what_cannot_be_upcycled_is_refused),
        T(no_failed_allocation_of_an_upcycling_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
