/* More experts, or fewer: what stays, what is drawn, what is cloned, and that nothing else moves. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#define FIXTURE_FOLDER
#include "fixture.h"

#include "tiny.h"

#define SIGMOID(more)                                                                                          \
    TINY_FAMILY("dots1", "\"num_hidden_layers\": 3, \"num_key_value_heads\": 2, \"n_routed_experts\": 4,"      \
                         " \"num_experts_per_tok\": 2, \"n_shared_experts\": 1, \"first_k_dense_replace\": 1," \
                         " \"norm_topk_prob\": true" more)

static moed_expansion_options options(int32_t experts)
{
    moed_expansion_options o;
    assert_ok(moed_options_init(MOED_STRUCT_EXPANSION_OPTIONS, &o, sizeof o));
    o.experts = experts, o.seed = 5;
    return o;
}

static moed_model *expanded(const moed_model *m, const double *usage, const moed_expansion_options *o)
{
    moed_expansion *x = NULL;
    moed_model *out = NULL;
    assert_ok(moed_expansion_create(&x, m, usage, o));
    assert_ok(moed_expansion_build(&out, x, NULL, NULL));
    moed_expansion_destroy(x);
    return out;
}

static const float *numbers(const moed_model *m, moedi_slot slot, int32_t layer, int32_t expert)
{
    const int64_t at = moedi_layout_slot(m->layout, slot, layer, expert);
    return at < 0 ? NULL : m->tensors[at].data;
}
static int64_t count_of(const moed_model *m, moedi_slot slot, int32_t layer, int32_t expert)
{
    const int64_t at = moedi_layout_slot(m->layout, slot, layer, expert);
    return at < 0 ? 0 : moedi_param_elements(&m->layout->params[at]);
}
static double size(const float *x, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / (double)count);
}

static void assert_same_bytes(const moed_model *a, const moed_model *b)
{
    assert_int_equal(a->layout->count, b->layout->count);
    for (size_t i = 0; i < a->layout->count; i++)
        if (memcmp(a->tensors[i].data, b->tensors[i].data, moedi_param_bytes(&a->layout->params[i])) != 0)
            fail_msg("%s differs", a->layout->params[i].name);
}

/* Every family and switch: grown and shrunk again, by a usage that prefers the old ones, the model has the bytes it had. */
static void grown_and_shrunk_again_every_family_is_as_it_was(void **state)
{
    (void)state;
    for (int i = 0; i < TINY_CONFIGS; i++) {
        moed_model *m = tiny_model(context, tiny_configs[i].config, 3);
        if (!m->layout->family->experts_field) { /* a dense one cannot: upcycling makes another family of it */
            moed_expansion *x = NULL;
            moed_expansion_options o = options(4);
            assert_refused(moed_expansion_create(&x, m, NULL, &o), MOED_E_UNSUPPORTED, "is dense: upcycling makes experts of it");
            moed_model_destroy(m);
            continue;
        }
        const int32_t had = (int32_t)m->layout->config.experts;
        for (int32_t method = MOED_EXPAND_DRAW; method <= MOED_EXPAND_CLONE; method++)
            for (int32_t more = 1; more <= 2 * had; more += 2 * had - 1) { /* one, and to three times as many */
                double usage[64];
                moed_expansion_options o = options(had + more);
                o.method = method, o.keep_bias = 1, o.redraw = 0.5;
                moed_model *big = expanded(m, NULL, &o);
                assert_int_equal(big->layout->config.experts, had + more);
                assert_int_equal(big->layout->config.top_k, m->layout->config.top_k);
                assert_true(m->layout->layers * (had + more) <= 64);
                for (int32_t e = 0; e < m->layout->layers * (had + more); e++) usage[e] = e % (had + more) < had ? 2 : 1;
                o.experts = had;
                moed_model *back = expanded(big, usage, &o);
                assert_same_bytes(m, back);
                moed_model_destroy(back);
                moed_model_destroy(big);
            }
        moed_model_destroy(m);
    }
}

static void new_experts_that_are_never_chosen_leave_every_bit_of_the_logits(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, SIGMOID(", \"routed_scaling_factor\": 2.5"), 4);
    tiny_batch b;
    float before[TINY_TOKENS * TINY_VOCABULARY], after[TINY_TOKENS * TINY_VOCABULARY];
    const int64_t shape[] = {4, 16, TINY_VOCABULARY};
    moed_tensor out;
    tiny_fill(&b, 4, 16, 9);
    moedi_tensor_set(&out, before, MOED_DTYPE_F32, 3, shape);
    assert_ok(moed_model_logits(m, &b.batch, &out, NULL));
    for (int32_t experts = 5; experts <= 12; experts += 7) {
        moed_expansion_options o = options(experts);
        o.keep_bias = 1;
        moed_model *big = expanded(m, NULL, &o);
        moedi_tensor_set(&out, after, MOED_DTYPE_F32, 3, shape);
        assert_ok(moed_model_logits(big, &b.batch, &out, NULL));
        assert_true(memcmp(before, after, sizeof before) != 0); /* they are chosen, now and then */
        for (int32_t layer = 1; layer < 3; layer++)
            for (int32_t e = 4; e < experts; e++)
                ((float *)(uintptr_t)numbers(big, MOEDI_SLOT_ROUTER_BIAS, layer, -1))[e] = -1e30f;
        assert_ok(moed_model_logits(big, &b.batch, &out, NULL));
        assert_memory_equal(before, after, sizeof before);
        moed_model_destroy(big);
    }
    moed_model_destroy(m);
}

static void drawn_experts_are_normal_and_biases_are_reset(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, SIGMOID(""), 4);
    moed_expansion_options o = options(40);
    o.std = 0.05, o.top_k = 3;
    moed_model *big = expanded(m, NULL, &o);
    assert_int_equal(big->layout->config.top_k, 3);
    double squares = 0, numbers_of = 0;
    for (int32_t e = 4; e < 40; e++) {
        const int64_t count = count_of(big, MOEDI_SLOT_EXPERT_UP, 1, e);
        const double s = size(numbers(big, MOEDI_SLOT_EXPERT_UP, 1, e), count);
        squares += s * s * (double)count, numbers_of += (double)count;
        assert_true(e == 4 ||
                    memcmp(numbers(big, MOEDI_SLOT_EXPERT_UP, 1, e), numbers(big, MOEDI_SLOT_EXPERT_UP, 1, e - 1), 16) != 0);
    }
    assert_true(fabs(sqrt(squares / numbers_of) / 0.05 - 1) < 0.06);
    const double rows = size(numbers(big, MOEDI_SLOT_ROUTER, 1, -1) + 4 * 8, 36 * 8);
    assert_true(fabs(rows / 0.05 - 1) < 0.15);
    assert_memory_equal(numbers(big, MOEDI_SLOT_ROUTER, 1, -1), numbers(m, MOEDI_SLOT_ROUTER, 1, -1), 4 * 8 * sizeof(float));
    for (int e = 0; e < 40; e++) assert_true(numbers(big, MOEDI_SLOT_ROUTER_BIAS, 1, -1)[e] == 0);
    assert_true(numbers(m, MOEDI_SLOT_ROUTER_BIAS, 1, -1)[0] != 0);
    moed_model_destroy(big);
    moed_model_destroy(m);
}

static void clones_are_of_the_most_used_with_noise_of_the_size_asked_for(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, tiny_configs[0].config, 4); /* two layers of four experts */
    static const double usage[] = {1, 9, 3, 2, 7, 1, 1, 8};
    static const int32_t most[2][2] = {{1, 2}, {3, 0}};
    moed_expansion_options o = options(6);
    o.method = MOED_EXPAND_CLONE, o.noise = 0.1, o.std = 0.5;
    moed_model *big = expanded(m, usage, &o);
    for (int32_t layer = 0; layer < 2; layer++)
        for (int32_t e = 4; e < 6; e++) {
            const int64_t count = count_of(m, MOEDI_SLOT_EXPERT_DOWN, layer, 0);
            const float *old = numbers(m, MOEDI_SLOT_EXPERT_DOWN, layer, most[layer][e - 4]),
                        *new = numbers(big, MOEDI_SLOT_EXPERT_DOWN, layer, e);
            float away[64];
            for (int64_t i = 0; i < count; i++) away[i] = new[i] - old[i];
            assert_true(fabs(size(away, count) / size(old, count) / 0.1 - 1) < 0.35);
            const float *row = numbers(m, MOEDI_SLOT_ROUTER, layer, -1) + most[layer][e - 4] * 8,
                        *clone = numbers(big, MOEDI_SLOT_ROUTER, layer, -1) + e * 8;
            for (int i = 0; i < 8; i++) away[i] = clone[i] - row[i];
            assert_true(size(away, 8) > 0.01 && size(away, 8) < 0.12);
        }
    moed_model_destroy(big);
    moed_model_destroy(m);
}

static void shrinking_keeps_the_most_used_of_each_layer(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, tiny_configs[0].config, 4);
    static const double usage[] = {1, 9, 3, 2, 7, 1, 1, 8};
    static const int32_t stay[2][2] = {{1, 2}, {0, 3}};
    const moed_expansion_options o = options(2);
    moed_model *small = expanded(m, usage, &o);
    for (int32_t layer = 0; layer < 2; layer++)
        for (int32_t e = 0; e < 2; e++) {
            assert_memory_equal(numbers(small, MOEDI_SLOT_EXPERT_GATE, layer, e),
                                numbers(m, MOEDI_SLOT_EXPERT_GATE, layer, stay[layer][e]),
                                (size_t)count_of(m, MOEDI_SLOT_EXPERT_GATE, layer, 0) * sizeof(float));
            assert_memory_equal(numbers(small, MOEDI_SLOT_ROUTER, layer, -1) + e * 8,
                                numbers(m, MOEDI_SLOT_ROUTER, layer, -1) + stay[layer][e] * 8, 8 * sizeof(float));
        }
    moed_model_destroy(small);
    moed_model_destroy(m);
}

/* What a foreign trainer does to its moments: those of the old stay, those of the new are 0. */
static void moments_follow_by_their_own_pieces(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, SIGMOID(""), 4);
    moed_expansion_options o = options(7);
    moed_expansion *x = NULL;
    o.method = MOED_EXPAND_CLONE;
    assert_ok(moed_expansion_create(&x, m, NULL, &o));
    const moed_layout *l = moed_expansion_layout(x);
    for (size_t i = 0; i < l->count; i++) {
        moed_piece pieces[16];
        size_t count = 0;
        float out[1024];
        const moed_param *p = &l->params[i];
        moed_tensor to = {0};
        assert_true(moedi_param_elements(p) <= 1024);
        assert_ok(moed_expansion_pieces(x, i, MOED_KIND_MOMENTS, pieces, 16, &count));
        assert_true(count > 0 && count <= 16);
        const moed_tensor *const sources[] = {m->tensors};
        moedi_tensor_set(&to, out, MOED_DTYPE_F32, p->rank, p->shape);
        assert_ok(moed_piece_apply(context, pieces, count, sources, &to, NULL));
        const int64_t row = p->role == MOED_ROLE_ROUTER ? 8 : 1,
                      old = p->role == MOED_ROLE_EXPERT        ? (p->expert < 4 ? moedi_param_elements(p) : 0)
                            : p->role == MOED_ROLE_ROUTER      ? 4 * row
                            : p->role == MOED_ROLE_ROUTER_BIAS ? 0
                                                               : moedi_param_elements(p);
        const int64_t from = moedi_layout_find(m->layout, p->name);
        if (old) assert_memory_equal(out, m->tensors[from].data, (size_t)old * sizeof *out);
        for (int64_t k = old; k < moedi_param_elements(p); k++) assert_true(out[k] == 0);
    }
    moed_expansion_destroy(x);
    moed_model_destroy(m);
}

static void a_directory_holds_the_bits_of_memory(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, SIGMOID(""), 4), *streamed = NULL, *opened = NULL, *there = NULL;
    moed_expansion *x = NULL;
    moed_model_options stream;
    moed_expansion_options o = options(9);
    o.method = MOED_EXPAND_CLONE, o.redraw = 0.5;
    moed_model *big = expanded(m, NULL, &o);
    assert_ok(moed_model_save(m, support_path(dir, "small"), NULL));
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &stream, sizeof stream));
    stream.flags = MOED_MODEL_STREAM;
    assert_ok(moed_model_open(&streamed, context, support_path(dir, "small"), &stream));
    assert_ok(moed_expansion_create(&x, streamed, NULL, &o));
    assert_ok(moed_expansion_build(&there, x, support_path(dir, "big"), NULL));
    assert_ok(moed_model_open(&opened, context, support_path(dir, "big"), NULL));
    assert_same_bytes(big, opened);
    moed_model_destroy(there);
    moed_model_destroy(opened);
    moed_expansion_destroy(x);
    moed_model_destroy(streamed);
    moed_model_destroy(big);
    moed_model_destroy(m);
}

static void what_cannot_be_is_refused_by_name(void **state)
{
    (void)state;
    moed_model *m = tiny_model(context, tiny_configs[0].config, 4);
    moed_expansion *x = NULL;
    moed_expansion_options o = options(2);
    double usage[8] = {1, 1, 1, 1, 1, 1, 1, -1};
    assert_refused(moed_expansion_create(&x, m, NULL, &o), MOED_E_ARGUMENT, "without usage nothing says which");
    assert_refused(moed_expansion_create(&x, m, usage, &o), MOED_E_ARGUMENT, "expert 3 in layer 1 is -1");
    o.experts = 5, o.top_k = 6;
    assert_refused(moed_expansion_create(&x, m, NULL, &o), MOED_E_RANGE, "top_k 6 of 5");
    o.top_k = 0;
    assert_ok(moed_expansion_create(&x, m, NULL, &o));
    size_t count;
    assert_refused(moed_expansion_pieces(x, 10000, 0, NULL, 0, &count), MOED_E_RANGE, "parameter 10000 of");
    assert_refused(moed_expansion_pieces(x, 0, 2, NULL, 0, &count), MOED_E_RANGE, "neither weights nor moments");
    moed_expansion_destroy(x);
    moed_model_destroy(m);
}

static void no_failed_allocation_leaks(void **state)
{
    moed_context *fixture = context;
    int64_t allowed;
    moed_status status = MOED_E_MEMORY;
    moed_expansion_options o = options(6);
    (void)state;
    o.method = MOED_EXPAND_CLONE, o.redraw = 0.5;
    context = support_scarce_context(&allowed);
    moed_model *m = tiny_model(context, tiny_configs[0].config, 4), *big = NULL;
    const int64_t held = support_held(context);
    for (int64_t n = 0; support_scarce(context, &allowed, n, held, status); n++) {
        moed_expansion *x = NULL;
        status = moed_expansion_create(&x, m, NULL, &o);
        if (status == MOED_OK) status = moed_expansion_build(&big, x, NULL, NULL);
        moed_expansion_destroy(x);
    }
    moed_model_destroy(big);
    moed_model_destroy(m);
    support_close(context);
    context = fixture;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(grown_and_shrunk_again_every_family_is_as_it_was),
        T(new_experts_that_are_never_chosen_leave_every_bit_of_the_logits),
        T(drawn_experts_are_normal_and_biases_are_reset),
        T(clones_are_of_the_most_used_with_noise_of_the_size_asked_for),
        T(shrinking_keeps_the_most_used_of_each_layer),
        T(moments_follow_by_their_own_pieces),
        T(a_directory_holds_the_bits_of_memory),
        T(what_cannot_be_is_refused_by_name),
        T(no_failed_allocation_leaks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
