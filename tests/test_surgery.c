/* Split and integrate: families and hand-made layouts, in memory and through directories. */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#include "fixture.h"

#include "model/model.h"

static const char qwen[] =
    "{\"model_type\": \"qwen2_moe\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 3, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts\": 4, \"num_experts_per_tok\": 2, "
    "\"moe_intermediate_size\": 12, \"shared_expert_intermediate_size\": 20, \"max_position_embeddings\": 64, \"torch_dtype\": "
    "\"bfloat16\", \"strange\": [1, 2]}";
static const char mixtral[] =
    "{\"model_type\": \"mixtral\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 2, \"num_attention_heads\": 4,"
    " \"num_key_value_heads\": 2, \"num_local_experts\": 6, \"num_experts_per_tok\": 2, \"intermediate_size\": 12,"
    " \"max_position_embeddings\": 64, \"tie_word_embeddings\": true}";

/* ---- models ---- */

static moed_model *family_model(const char *config, uint64_t seed)
{
    return support_fresh(context, config, seed, -1);
}

enum { R = MOED_ROLE_ROUTER, RB = MOED_ROLE_ROUTER_BIAS, E = MOED_ROLE_EXPERT, S = MOED_ROLE_SHARED, O = MOED_ROLE_OPAQUE };

/* Made up: fused QKV, experts stacked along the first and along the last axis, experts with tensors of their own and names that
 * say nothing, several types, integer tables, 4, 8 and 4 experts. */
static moed_layout *hand_layout(void)
{
    static const char *const own[4] = {"zweiter", "d/e/r \"dritte\"", "\xc3\xbc" "ber", "0"};
    moed_param p[32] = {
        {.name = "embed", .role = S, .layer = -1, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_BF16, .rank = 2,
         .shape = {37, 8}},
        {.name = "qkv", .role = S, .layer = 0, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_BF16, .rank = 3,
         .shape = {3, 8, 8}},
        {.name = "temperature", .role = S, .layer = 0, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_F32, .rank = 0},
        {.name = "table", .role = O, .layer = -1, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_I32, .rank = 1,
         .shape = {9}},
        {.name = "mask", .role = O, .layer = 2, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_BOOL, .rank = 2,
         .shape = {3, 5}},
        {.name = "r0", .role = R, .layer = 0, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_F32, .rank = 2,
         .shape = {4, 8}},
        {.name = "b0", .role = RB, .layer = 0, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_F32, .rank = 1, .shape = {4}},
        {.name = "w0", .role = E, .layer = 0, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_BF16, .rank = 3,
         .shape = {4, 6, 8}, .flags = MOED_PARAM_EXPERT_OUTPUT},
        {.name = "r1", .role = R, .layer = 1, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_F16, .rank = 2,
         .shape = {8, 8}},
        {.name = "w1", .role = E, .layer = 1, .expert = -1, .expert_axis = 2, .dtype = MOED_DTYPE_F64, .rank = 3,
         .shape = {5, 7, 8}},
        {.name = "r2", .role = R, .layer = 2, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_F32, .rank = 2,
         .shape = {4, 8}}};
    moed_layout *l = NULL;
    size_t count = 11;
    for (int32_t e = 0; e < 4; e++) {
        moed_param q = {.name = own[e], .role = E, .layer = 2, .expert = e, .expert_axis = -1, .dtype = MOED_DTYPE_F16, .rank = 2,
                        .shape = {8, 9}, .flags = MOED_PARAM_EXPERT_OUTPUT};
        p[count++] = q;
    }
    assert_ok(moed_layout_create(&l, context, p, count));
    return l;
}

static void fill(moed_model *m, uint64_t seed)
{
    for (size_t i = 0; i < m->layout->count; i++) {
        const moed_param *p = &m->layout->params[i];
        int64_t count = moedi_param_elements(p);
        float *x = malloc((size_t)count * sizeof *x);
        support_random(x, count, seed + i);
        if (moedi_dtype_is_float(p->dtype)) moedi_convert(m->tensors[i].data, p->dtype, x, MOED_DTYPE_F32, count);
        else memset(m->tensors[i].data, (int)(i + seed) & 1, moedi_param_bytes(p));
        free(x);
    }
}

static moed_model *hand_model(void)
{
    moed_layout *l = hand_layout();
    moed_model *m = NULL;
    assert_ok(moedi_model_create(&m, context, l));
    fill(m, 5);
    moed_layout_destroy(l);
    return m;
}

static void assert_same(const moed_model *a, const moed_model *b)
{
    assert_ok(moedi_layout_equal(a->layout, b->layout, 0));
    for (size_t i = 0; i < a->layout->count; i++) {
        const moed_param *p = &a->layout->params[i];
        int64_t count = moedi_param_elements(p);
        void *x = malloc(moedi_param_bytes(p)), *y = malloc(moedi_param_bytes(p));
        assert_ok(moedi_model_read(a, i, 0, count, x));
        assert_ok(moedi_model_read(b, i, 0, count, y));
        if (memcmp(x, y, moedi_param_bytes(p)) != 0) fail_msg("tensor %s differs", p->name);
        free(x);
        free(y);
    }
}

/* Numbers of a parameter as doubles; free(). */
static double *numbers(const moed_model *m, const char *name)
{
    int64_t i = moedi_layout_find(m->layout, name);
    if (i < 0) fail_msg("no tensor %s", name);
    const moed_param *p = &m->layout->params[i];
    int64_t count = moedi_param_elements(p);
    double *x = malloc((size_t)count * sizeof *x);
    void *bytes = malloc(moedi_param_bytes(p));
    assert_ok(moedi_model_read(m, (size_t)i, 0, count, bytes));
    moedi_to_double(x, bytes, p->dtype, count);
    free(bytes);
    return x;
}

static void set_all(moed_model *m, const char *name, double value)
{
    int64_t i = moedi_layout_find(m->layout, name);
    if (i < 0) fail_msg("no tensor %s", name);
    const moed_param *p = &m->layout->params[i];
    for (int64_t n = 0; n < moedi_param_elements(p); n++)
        moedi_from_double((char *)m->tensors[i].data + (size_t)n * moedi_dtype_size(p->dtype), p->dtype, &value, 1);
}

static moed_split *make_split(const moed_layout *l, int32_t parts)
{
    moed_split *s = NULL;
    moed_split_options o;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.parts = parts;
    assert_ok(moed_split_create(&s, l, &o));
    return s;
}

static moed_integration_options defaults(void)
{
    moed_integration_options o;
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &o, sizeof o));
    return o;
}

/* ---- nothing trained, nothing changed ---- */

static void round_trip(const moed_model *base, moed_split *s, int through_directories)
{
    char *dir = support_directory();
    moed_integration *i = NULL;
    moed_model *out = NULL;
    moed_integration_info info = {.struct_size = sizeof info};
    int32_t parts;
    assert_ok(moed_integration_create(&i, s, base, NULL));
    assert_ok(moed_integration_get_info(i, &info));
    parts = info.parts;
    for (int32_t k = parts; k-- > 0;) {
        moed_model *m = NULL;
        char name[32];
        snprintf(name, sizeof name, "part-%d", k);
        assert_ok(moed_split_build(&m, s, k, base, through_directories ? support_path(dir, name) : NULL, NULL));
        assert_ok(moedi_layout_equal(m->layout, moed_split_layout(s, k), 1));
        assert_ok(moed_integration_add(i, k, m, 3.0));
        moed_model_destroy(m);
    }
    assert_ok(moed_integration_finish(&out, i, through_directories ? support_path(dir, "whole") : NULL, NULL));
    assert_same(base, out);
    assert_ok(moed_integration_get_info(i, &info));
    assert_int_equal(info.present, parts);
    assert_true(info.drift == 0.0);
    moed_model_destroy(out);
    moed_integration_destroy(i);
    support_remove(dir);
}

static void untrained_submodels_give_the_base_back(void **state)
{
    (void)state;
    moed_model *models[3] = {family_model(qwen, 1), family_model(mixtral, 2), hand_model()};
    for (int n = 0; n < 3; n++)
        for (int way = 0; way < 2; way++) {
            moed_split *s = make_split(models[n]->layout, n == 1 ? 6 : 4);
            round_trip(models[n], s, way);
            moed_split_destroy(s);
        }
    for (int n = 0; n < 3; n++) moed_model_destroy(models[n]);
}

static void one_part_or_several_experts_each_do_as_well(void **state)
{
    (void)state;
    moed_model *models[2] = {family_model(mixtral, 2), hand_model()};
    for (int n = 0; n < 2; n++)
        for (int32_t parts = 1; parts <= 2; parts++) {
            moed_split *s = make_split(models[n]->layout, parts);
            round_trip(models[n], s, 1);
            moed_split_destroy(s);
        }
    for (int n = 0; n < 2; n++) moed_model_destroy(models[n]);
}

static void assignments_may_differ_by_layer(void **state)
{
    (void)state;
    moed_model *base = hand_model();
    moed_split *s = make_split(base->layout, 2);
    const int32_t a[2] = {3, 0}, b[2] = {1, 2}, c[3] = {7, 0, 5}, d[3] = {6, 1, 2}; /* experts 3 and 4 of layer 1 are nobody's */
    assert_ok(moed_split_assign(s, 0, -1, a, 2));
    assert_ok(moed_split_assign(s, 1, -1, b, 2));
    assert_ok(moed_split_assign(s, 0, 1, c, 3));
    assert_ok(moed_split_assign(s, 1, 1, d, 3));
    int32_t list[4] = {0}, count = 0;
    assert_ok(moed_split_experts(s, 1, 1, list, 4, &count));
    assert_int_equal(count, 3);
    assert_memory_equal(list, d, sizeof d);
    round_trip(base, s, 0);
    moed_model *m = NULL;
    assert_ok(moed_split_build(&m, s, 0, base, NULL, NULL));
    double *whole = numbers(base, "w1"), *part = numbers(m, "w1"), *rows = numbers(m, "r0"), *all = numbers(base, "r0");
    for (int n = 0; n < 35; n++)
        for (int j = 0; j < 3; j++) assert_true(part[3 * n + j] == whole[8 * n + c[j]]);
    for (int n = 0; n < 8; n++) assert_true(rows[n] == all[24 + n] && rows[8 + n] == all[n]);
    assert_int_equal(moedi_layout_find(m->layout, "zweiter") >= 0, 1);      /* expert 0 of layer 2 */
    assert_int_equal(moedi_layout_find(m->layout, "\xc3\xbc" "ber") >= 0, 0); /* expert 2 is part 1's */
    free(whole);
    free(part);
    free(rows);
    free(all);
    moed_model_destroy(m);
    moed_split_destroy(s);
    moed_model_destroy(base);
}

static void a_submodel_is_a_model_of_its_family_and_its_own_memory(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_model *base = family_model(qwen, 1), *m = NULL, *opened = NULL;
    moed_split *s = make_split(base->layout, 0);
    moed_layout_info info = {.struct_size = sizeof info};
    assert_ok(moed_split_build(&m, s, 2, base, support_path(dir, "k"), NULL));
    assert_ok(moed_model_open(&opened, context, support_path(dir, "k"), NULL));
    assert_ok(moed_layout_get_info(moed_model_layout(opened), &info));
    assert_string_equal(info.family, "qwen2_moe");
    assert_int_equal(info.experts, 1);
    assert_non_null(strstr(moed_layout_config(opened->layout), "strange")); /* what the config says beside is kept */
    double *x = numbers(base, "model.layers.1.mlp.experts.2.down_proj.weight");
    double *y = numbers(opened, "model.layers.1.mlp.experts.0.down_proj.weight");
    for (int n = 0; n < 16 * 12; n++) assert_true(x[n] == y[n]);
    free(x);
    free(y);
    moed_model_destroy(m);
    assert_ok(moed_split_build(&m, s, 2, base, NULL, NULL));
    moed_model *before = NULL;
    assert_ok(moed_split_build(&before, s, 0, base, NULL, NULL));
    set_all(m, "model.norm.weight", 7.0); /* training it leaves the base and its brothers alone */
    x = numbers(base, "model.norm.weight");
    assert_true(x[0] == 1.0);
    free(x);
    moed_model_destroy(before);
    moed_model_destroy(m);
    moed_model_destroy(opened);
    moed_split_destroy(s);
    moed_model_destroy(base);
    support_remove(dir);
}

/* ---- trained submodels ---- */

static void train_like(moed_model *m, int32_t k)
{
    set_all(m, "model.embed_tokens.weight", 10.0 + k);
    set_all(m, "model.layers.1.block_sparse_moe.experts.0.w2.weight", 20.0 + k);
    set_all(m, "model.layers.1.block_sparse_moe.gate.weight", 30.0 + k);
}

static void trained_numbers_end_where_they_belong(void **state)
{
    (void)state;
    for (int merge = 0; merge < 3; merge++) {
        moed_model *base = family_model(mixtral, 3), *out = NULL;
        moed_split *s = make_split(base->layout, 6);
        moed_integration *i = NULL;
        moed_integration_options o = defaults();
        moed_integration_info info = {.struct_size = sizeof info};
        double gamma[6], sum = 0.0, expected = 0.0;
        const double weights[6] = {1, 2, 3, 4, 0, 6};
        o.merge = merge;
        set_all(base, "model.embed_tokens.weight", 4.0);
        assert_ok(moed_integration_create(&i, s, base, &o));
        for (int32_t k = 0; k < 6; k++) {
            moed_model *m = NULL;
            assert_ok(moed_split_build(&m, s, k, base, NULL, NULL));
            train_like(m, k);
            assert_ok(moed_integration_add(i, k, m, merge == MOED_MERGE_EXPLICIT ? weights[k] / 64 : weights[k]));
            moed_model_destroy(m);
        }
        assert_ok(moed_integration_weights(i, gamma));
        for (int k = 0; k < 6; k++) sum += gamma[k], expected += gamma[k] * (6.0 + k);
        assert_true(fabs(sum - (merge == MOED_MERGE_EXPLICIT ? 0.25 : 1.0)) < 1e-15);
        if (merge == MOED_MERGE_WEIGHTED) assert_true(gamma[5] == 6.0 / 16.0);
        assert_ok(moed_integration_finish(&out, i, NULL, NULL));
        double *x = numbers(out, "model.embed_tokens.weight");
        assert_true(fabs(x[5] - (4.0 + expected)) < 1e-6);
        free(x);
        for (int k = 0; k < 6; k++) {
            char name[64];
            snprintf(name, sizeof name, "model.layers.1.block_sparse_moe.experts.%d.w2.weight", k);
            x = numbers(out, name);
            assert_true(x[3] == 20.0 + k);
            free(x);
        }
        double *gate = numbers(out, "model.layers.1.block_sparse_moe.gate.weight");
        double *was = numbers(base, "model.layers.1.block_sparse_moe.gate.weight");
        assert_memory_equal(gate, was, 6 * 16 * sizeof *gate); /* trained rows are ignored with the gate of the base */
        free(gate);
        free(was);
        assert_ok(moed_integration_get_info(i, &info));
        assert_true(info.drift > 0.5 && info.drift < 3.0);
        moed_model_destroy(out);
        moed_integration_destroy(i);
        moed_split_destroy(s);
        moed_model_destroy(base);
    }
}

static void a_lost_part_is_named_and_may_be_done_without(void **state)
{
    (void)state;
    moed_model *base = family_model(mixtral, 3), *out = NULL;
    moed_split *s = make_split(base->layout, 6);
    moed_integration_options o = defaults();
    for (int allowed = 0; allowed < 2; allowed++) {
        moed_integration *i = NULL;
        double gamma[6];
        o.allow_missing = allowed;
        assert_ok(moed_integration_create(&i, s, base, &o));
        assert_refused(moed_integration_finish(&out, i, NULL, NULL), MOED_E_STATE, "part 0");
        for (int32_t k = 0; k < 6; k++) {
            moed_model *m = NULL;
            if (k == 4) continue;
            assert_ok(moed_split_build(&m, s, k, base, NULL, NULL));
            train_like(m, k);
            assert_ok(moed_integration_add(i, k, m, 1.0));
            moed_model_destroy(m);
        }
        assert_ok(moed_integration_weights(i, gamma));
        assert_true(gamma[4] == 0.0 && gamma[0] == 0.2);
        size_t count;
        if (!allowed) {
            assert_refused(moed_integration_pieces(i, 0, NULL, 0, &count), MOED_E_STATE, "part 4 of 6 is missing");
            assert_refused(moed_integration_finish(&out, i, NULL, NULL), MOED_E_STATE, "part 4 of 6 is missing");
        } else {
            assert_ok(moed_integration_finish(&out, i, NULL, NULL));
            double *x = numbers(out, "model.layers.1.block_sparse_moe.experts.4.w2.weight");
            double *y = numbers(base, "model.layers.1.block_sparse_moe.experts.4.w2.weight");
            assert_memory_equal(x, y, 16 * 12 * sizeof *x);
            free(x);
            free(y);
            moed_model_destroy(out);
        }
        moed_integration_destroy(i);
    }
    moed_split_destroy(s);
    moed_model_destroy(base);
}

static void what_does_not_belong_is_refused_by_name(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_model *base = family_model(mixtral, 3), *other = family_model(mixtral, 4), *wide = family_model(qwen, 3);
    moed_model *one = NULL, *stranger = NULL, *odd = NULL;
    moed_split *s = make_split(base->layout, 6), *three = make_split(base->layout, 3), *q = make_split(wide->layout, 4);
    moed_integration *i = NULL;
    assert_refused(moed_integration_create(&i, s, wide, NULL), MOED_E_MISMATCH, "q_proj.bias");
    assert_ok(moed_integration_create(&i, s, base, NULL));
    assert_ok(moed_split_build(&one, s, 1, base, NULL, NULL));
    assert_refused(moed_integration_add(i, 2, one, 1.0), MOED_E_MISMATCH, "part is 1, not 2");
    assert_ok(moed_split_build(&stranger, s, 2, other, support_path(dir, "2"), NULL));
    assert_refused(moed_integration_add(i, 2, stranger, 1.0), MOED_E_MISMATCH, "another base");
    moed_model_destroy(stranger);
    /* the same through a directory that was opened again, in another type */
    assert_ok(moed_model_open(&stranger, context, support_path(dir, "2"), NULL));
    assert_refused(moed_integration_add(i, 2, stranger, 1.0), MOED_E_MISMATCH, "another base");
    assert_ok(moed_split_build(&odd, three, 2, base, NULL, NULL));
    assert_refused(moed_integration_add(i, 2, odd, 1.0), MOED_E_MISMATCH, "parts is 3, not 6");
    moed_model_destroy(odd);
    assert_ok(moed_split_build(&odd, q, 2, wide, NULL, NULL));
    assert_refused(moed_integration_add(i, 2, odd, 1.0), MOED_E_MISMATCH, "");
    assert_refused(moed_integration_add(i, 2, base, 1.0), MOED_E_MISMATCH, "gate.weight");
    assert_refused(moed_integration_add(i, 6, one, 1.0), MOED_E_RANGE, "part 6 of 6");
    assert_refused(moed_integration_add(i, 1, one, NAN), MOED_E_ARGUMENT, "weight nan");
    assert_refused(moed_integration_add(i, 1, one, -1.0), MOED_E_ARGUMENT, "weight -1");
    assert_ok(moed_integration_add(i, 1, one, 1.0));
    assert_refused(moed_integration_add(i, 1, one, 1.0), MOED_E_EXISTS, "part 1");
    /* another assignment of the same base */
    moed_split *turned = make_split(base->layout, 6);
    for (int32_t k = 0; k < 6; k++) assert_ok(moed_split_assign(turned, k, 0, (int32_t[]){(k + 1) % 6}, 1));
    moed_model *swapped = NULL;
    assert_ok(moed_split_build(&swapped, turned, 0, base, NULL, NULL));
    assert_refused(moed_integration_add(i, 0, swapped, 1.0), MOED_E_MISMATCH, "other experts");
    moed_model_destroy(swapped);
    moed_split_destroy(turned);
    assert_refused(moed_split_build(&swapped, s, 0, wide, NULL, NULL), MOED_E_MISMATCH, "q_proj.bias");
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_split_destroy(three);
    moed_split_destroy(q);
    moed_model_destroy(one);
    moed_model_destroy(stranger);
    moed_model_destroy(odd);
    moed_model_destroy(base);
    moed_model_destroy(other);
    moed_model_destroy(wide);
    support_remove(dir);
}

static void a_dense_model_is_cloned_into_every_expert(void **state)
{
    (void)state;
    moed_model *base = family_model(mixtral, 3), *dense = NULL, *out = NULL;
    moed_split *s = make_split(base->layout, 6);
    moed_integration *i = NULL;
    moed_integration_options o = defaults();
    o.flags = MOED_INTEGRATION_CLONES;
    assert_ok(moed_split_build(&dense, s, 0, base, NULL, NULL));
    fill(dense, 77);
    assert_ok(moed_integration_create(&i, s, base, &o));
    for (int32_t k = 0; k < 6; k++) assert_ok(moed_integration_add(i, k, dense, 1.0));
    assert_ok(moed_integration_finish(&out, i, NULL, NULL));
    double *x = numbers(dense, "model.layers.0.block_sparse_moe.experts.0.w1.weight"),
           *e = numbers(dense, "model.embed_tokens.weight");
    for (int k = 0; k < 6; k++) {
        char name[64];
        snprintf(name, sizeof name, "model.layers.0.block_sparse_moe.experts.%d.w1.weight", k);
        double *y = numbers(out, name);
        assert_memory_equal(x, y, 16 * 12 * sizeof *x);
        free(y);
    }
    double *f = numbers(out, "model.embed_tokens.weight");
    assert_memory_equal(e, f, 61 * 16 * sizeof *e);
    free(x);
    free(e);
    free(f);
    o.flags = 2;
    moed_integration *no = NULL;
    assert_refused(moed_integration_create(&no, s, base, &o), MOED_E_STRUCT, "flags");
    moed_model_destroy(out);
    moed_model_destroy(dense);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(base);
}

/* ---- gates and scales ---- */

static moed_integration *ready(moed_split *s, const moed_model *base, int32_t parts, const moed_integration_options *o)
{
    moed_integration *i = NULL;
    assert_ok(moed_integration_create(&i, s, base, o));
    for (int32_t k = 0; k < parts; k++) {
        moed_model *m = NULL;
        assert_ok(moed_split_build(&m, s, k, base, NULL, NULL));
        assert_ok(moed_integration_add(i, k, m, 1.0));
        moed_model_destroy(m);
    }
    return i;
}

static double rms(const double *x, int64_t count)
{
    double sum = 0.0;
    for (int64_t n = 0; n < count; n++) sum += x[n] * x[n];
    return sqrt(sum / (double)count);
}

static void a_random_gate_has_the_asked_or_the_old_size(void **state)
{
    (void)state;
    moed_model *base = hand_model(), *out = NULL, *again = NULL;
    moed_split *s = make_split(base->layout, 4);
    moed_integration_options o = defaults();
    o.gate = MOED_GATE_RANDOM, o.seed = 42;
    for (int own = 0; own < 2; own++) {
        o.gate_std = own ? -1.0 : 100.0;
        moed_integration *i = ready(s, base, 4, &o);
        assert_ok(moed_integration_finish(&out, i, NULL, NULL));
        assert_ok(moed_integration_finish(&again, i, NULL, NULL));
        assert_same(out, again);
        double *x = numbers(out, "r0"), *y = numbers(base, "r0"), *z = numbers(out, "r2"), *b = numbers(out, "b0"),
               *w = numbers(out, "embed");
        double ratio = rms(x, 32) / (own ? rms(y, 32) : 100.0);
        assert_true(ratio > 0.6 && ratio < 1.6);
        assert_true(x[0] != y[0] && x[0] != z[0] && x[0] != x[8]); /* layers and rows have numbers of their own */
        for (int e = 0; e < 4; e++) assert_true(b[e] == 0.0);
        free(x);
        free(y);
        free(z);
        free(b);
        free(w);
        moed_model_destroy(out);
        moed_model_destroy(again);
        moed_integration_destroy(i);
    }
    moed_split_destroy(s);
    moed_model_destroy(base);
}

static void centroids_become_centred_scaled_rows(void **state)
{
    (void)state;
    moed_model *base = hand_model(), *out = NULL;
    moed_split *s = make_split(base->layout, 4), *one = make_split(base->layout, 1);
    moed_integration_options o = defaults();
    float rows[4 * 8], bad[4 * 8];
    moed_tensor t = support_tensor(rows, MOED_DTYPE_F32, 4, 8), u = support_tensor(bad, MOED_DTYPE_F32, 4, 8);
    support_random(rows, 32, 5);
    o.gate = MOED_GATE_CENTROIDS, o.gate_std = 0.5;
    moed_integration *i = ready(s, base, 4, &o), *lone = ready(one, base, 1, &o);
    assert_refused(moed_integration_finish(&out, i, NULL, NULL), MOED_E_STATE, "layer 0 has no rows");
    memcpy(bad, rows, sizeof bad);
    bad[9] = NAN;
    assert_refused(moed_integration_set_gate(i, -1, &u), MOED_E_NUMERIC, "row 1");
    u.shape[0] = 3;
    assert_refused(moed_integration_set_gate(i, -1, &u), MOED_E_ARGUMENT, "(4, width)");
    u = support_tensor(bad, MOED_DTYPE_F32, 4, 4);
    assert_refused(moed_integration_set_gate(i, -1, &u), MOED_E_MISMATCH, "4 columns");
    u = support_tensor(rows, MOED_DTYPE_F32, 1, 8);
    assert_refused(moed_integration_set_gate(lone, -1, &u), MOED_E_ARGUMENT, "nothing of it is left");
    assert_ok(moed_integration_set_gate(i, -1, &t));
    memset(bad, 0, sizeof bad);
    for (int k = 0; k < 4; k++) bad[8 * k + k] = 1.0f;
    u = support_tensor(bad, MOED_DTYPE_F32, 4, 8);
    assert_ok(moed_integration_set_gate(i, 2, &u)); /* rows of its own for a layer */
    assert_ok(moed_integration_finish(&out, i, NULL, NULL));
    double *x = numbers(out, "r0"), *y = numbers(out, "r1"), *z = numbers(out, "r2"), *b = numbers(out, "b0"),
           *old = numbers(base, "r1");
    for (int k = 0; k < 4; k++) {
        double centred[8];
        for (int d = 0; d < 8; d++) {
            double mean = 0.0;
            for (int j = 0; j < 4; j++) mean += (double)rows[8 * j + d] / 4;
            centred[d] = (double)rows[8 * k + d] - mean;
        }
        double scale = 0.5 / rms(centred, 8);
        for (int d = 0; d < 8; d++) {
            assert_true(fabs(x[8 * k + d] - scale * centred[d]) < 1e-6);
            for (int e = k; e < 8; e += 4) /* both experts of a part, which the base's rows tell apart; f16 */
                assert_true(fabs(y[8 * e + d] - old[8 * e + d] - scale * centred[d]) < 2e-3);
        }
        assert_true(z[8 * k + k] > 0.0 && z[8 * k + (k + 1) % 4] < 0.0 && fabs(rms(z + 8 * k, 8) - 0.5) < 1e-6);
        assert_true(b[k] == 0.0);
    }
    free(x);
    free(y);
    free(z);
    free(b);
    free(old);
    moed_model_destroy(out);
    moed_integration_destroy(i);
    moed_integration_destroy(lone);
    o.gate = MOED_GATE_BASE;
    i = ready(s, base, 4, &o);
    assert_refused(moed_integration_set_gate(i, -1, &t), MOED_E_STATE, "CENTROIDS");
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_split_destroy(one);
    moed_model_destroy(base);
}

static void outputs_of_experts_are_scaled_one_by_one(void **state)
{
    (void)state;
    moed_model *base = hand_model(), *out = NULL;
    moed_split *s = make_split(base->layout, 4);
    moed_integration *i = ready(s, base, 4, NULL);
    double weight[3 * 8] = {0.25, 0.5, 0.0, 0.125};
    weight[16] = 0.125;
    assert_ok(moed_integration_set_scale(i, weight, 2));
    assert_ok(moed_integration_finish(&out, i, NULL, NULL));
    double *x = numbers(out, "w0"), *y = numbers(base, "w0"), *u = numbers(out, "w1"), *v = numbers(base, "w1");
    double *p = numbers(out, "zweiter"), *q = numbers(base, "zweiter"), *r = numbers(out, "0"), *t = numbers(base, "0");
    const double factor[4] = {2.0, 1.0, 1.0, 4.0};
    for (int n = 0; n < 4 * 48; n++) assert_true(x[n] == factor[n / 48] * y[n]);
    assert_memory_equal(u, v, 5 * 7 * 8 * sizeof *u); /* no output tensor */
    for (int n = 0; n < 72; n++) assert_true(p[n] == 4.0 * q[n] && r[n] == t[n]);
    weight[1] = -0.5;
    assert_refused(moed_integration_set_scale(i, weight, 2), MOED_E_ARGUMENT, "layer 0, expert 1");
    weight[1] = NAN;
    assert_refused(moed_integration_set_scale(i, weight, 2), MOED_E_ARGUMENT, "layer 0, expert 1");
    assert_refused(moed_integration_set_scale(i, weight, 0), MOED_E_RANGE, "top_k 0");
    free(x), free(y), free(u), free(v), free(p), free(q), free(r), free(t);
    moed_model_destroy(out);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(base);
}

/* ---- a foreign trainer ---- */

static void foreign_shards_get_the_bits_of_finish(void **state)
{
    (void)state;
    moed_model *base = hand_model(), *parts[4] = {0}, *out = NULL;
    moed_split *s = make_split(base->layout, 4);
    moed_integration *i = NULL;
    moed_integration_options o = defaults();
    const moed_tensor *sources[6];
    moed_tensor rows[3];
    float centroids[4 * 8];
    support_random(centroids, 32, 3);
    for (int l = 0; l < 3; l++) rows[l] = support_tensor(centroids, MOED_DTYPE_F32, 4, 8);
    o.gate = MOED_GATE_CENTROIDS;
    assert_ok(moed_integration_create(&i, s, base, &o));
    sources[0] = base->tensors, sources[5] = rows;
    for (int32_t k = 0; k < 4; k++) {
        assert_ok(moed_split_build(&parts[k], s, k, base, NULL, NULL));
        fill(parts[k], 100 * (uint64_t)k);
        sources[1 + k] = parts[k]->tensors;
        assert_ok(moed_integration_add(i, k, parts[k], 1.0));
    }
    assert_ok(moed_integration_set_gate(i, -1, rows));
    assert_ok(moed_integration_finish(&out, i, NULL, NULL));
    for (size_t n = 0; n < base->layout->count; n++) {
        const moed_param *p = &base->layout->params[n];
        moed_piece pieces[64];
        size_t count = 0, none = 0;
        assert_ok(moed_integration_pieces(i, n, NULL, 0, &none));
        assert_ok(moed_integration_pieces(i, n, pieces, 64, &count));
        assert_int_equal(none, count);
        assert_true(count <= 64);
        int64_t length = p->rank ? p->shape[p->rank - 1] : 1, half = length / 2;
        for (int part = 0; p->rank && part < 2; part++) {
            moed_shard shard = {
                .axis = p->rank - 1, .start = part ? half : 0, .count = part ? length - half : half, .whole = length};
            int64_t shape[MOED_RANK_MAX], outer = moedi_param_elements(p) / length;
            memcpy(shape, p->shape, sizeof shape);
            shape[shard.axis] = shard.count;
            moed_tensor t;
            size_t size = moedi_dtype_size(p->dtype);
            moedi_tensor_set(&t, calloc((size_t)(outer * shard.count) + 1, size), p->dtype, p->rank, shape);
            assert_ok(moed_piece_apply(context, pieces, count, sources, &t, &shard));
            for (int64_t r = 0; r < outer; r++)
                assert_memory_equal((char *)t.data + (size_t)(r * shard.count) * size,
                                    (char *)out->tensors[n].data + (size_t)(r * length + shard.start) * size,
                                    (size_t)shard.count * size);
            free(t.data);
        }
    }
    for (int k = 0; k < 4; k++) moed_model_destroy(parts[k]);
    moed_model_destroy(out);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(base);
}

static void streamed_and_resident_models_mix(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_model *base = family_model(mixtral, 3), *narrow = NULL, *out = NULL, *want = NULL;
    moed_model_options save;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &save, sizeof save));
    save.dtype = MOED_DTYPE_BF16;
    assert_ok(moed_model_save(base, support_path(dir, "base"), &save));
    save.flags = MOED_MODEL_STREAM, save.dtype = 0;
    assert_ok(moed_model_open(&narrow, context, support_path(dir, "base"), &save));
    moed_split *s = make_split(base->layout, 6);
    moed_integration *a = ready(s, narrow, 6, NULL), *b = NULL;
    assert_ok(moed_integration_create(&b, s, narrow, NULL));
    for (int32_t k = 0; k < 6; k++) { /* trained in f32, as this library does */
        moed_model *m = NULL;
        char name[16];
        snprintf(name, sizeof name, "%d", k);
        assert_ok(moed_split_build(NULL, s, k, narrow, support_path(dir, name), NULL));
        assert_ok(moed_model_open(&m, context, support_path(dir, name), NULL));
        assert_ok(moed_integration_add(b, k, m, 1.0));
        moed_model_destroy(m);
    }
    assert_ok(moed_integration_finish(&want, a, NULL, NULL));
    assert_ok(moed_integration_finish(&out, b, support_path(dir, "out"), NULL));
    assert_same(narrow, out);
    assert_same(want, out);
    moed_model_destroy(want);
    moed_model_destroy(out);
    moed_model_destroy(narrow);
    moed_integration_destroy(a);
    moed_integration_destroy(b);
    moed_split_destroy(s);
    moed_model_destroy(base);
    support_remove(dir);
}

/* ---- what is refused, and what is left ---- */

static void assignments_that_cannot_be_are_refused(void **state)
{
    (void)state;
    moed_model *base = hand_model(), *m = NULL, *family = family_model(mixtral, 1);
    moed_split *s = NULL;
    moed_split_options o;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    assert_refused(moed_split_create(&s, base->layout, &o), MOED_E_ARGUMENT, "layer 0 has 4 experts, too few for 8 parts");
    o.parts = -1;
    assert_refused(moed_split_create(&s, base->layout, &o), MOED_E_RANGE, "-1");
    s = make_split(base->layout, 3);
    assert_refused(moed_split_build(&m, s, 0, base, NULL, NULL), MOED_E_ARGUMENT,
                   "layer 0: of its 4 experts part 0 holds 2 and part 1 holds 1");
    assert_null(moed_split_layout(s, 0));
    assert_non_null(strstr(moed_last_error(), "same number"));
    assert_refused(moed_split_assign(s, 3, -1, (int32_t[]){0}, 1), MOED_E_RANGE, "part 3 of 3");
    assert_refused(moed_split_assign(s, 0, 3, (int32_t[]){0}, 1), MOED_E_RANGE, "layer 3 of 3");
    assert_refused(moed_split_assign(s, 0, 0, (int32_t[]){4}, 1), MOED_E_RANGE, "expert 4 of 4 asked for in layer 0");
    assert_refused(moed_split_assign(s, 0, -1, (int32_t[]){5}, 1), MOED_E_RANGE, "expert 5 of 4");
    assert_refused(moed_split_assign(s, 0, 1, (int32_t[]){5, 5}, 2), MOED_E_ARGUMENT, "expert 5 is listed twice for layer 1");
    assert_refused(moed_split_assign(s, 0, 1, (int32_t[]){5}, 0), MOED_E_ARGUMENT, "no experts");
    for (int32_t k = 0; k < 3; k++) assert_ok(moed_split_assign(s, k, -1, &k, 1));
    assert_ok(moed_split_assign(s, 2, 1, (int32_t[]){1}, 1));
    assert_refused(moed_split_build(&m, s, 0, base, NULL, NULL), MOED_E_ARGUMENT,
                   "layer 1: expert 1 is given to part 1 and to part 2");
    assert_ok(moed_split_assign(s, 2, 1, (int32_t[]){7}, 1));
    size_t count;
    assert_ok(moed_split_pieces(s, 0, 0, NULL, 0, &count));
    assert_refused(moed_split_pieces(s, 0, 1000, NULL, 0, &count), MOED_E_RANGE, "1000");
    assert_refused(moed_split_assign(s, 0, 0, (int32_t[]){0}, 1), MOED_E_STATE, "in use");
    moed_split_destroy(s);
    s = make_split(family->layout, 2);
    for (int32_t k = 0; k < 2; k++) assert_ok(moed_split_assign(s, k, 1, &k, 1));
    assert_null(moed_split_layout(s, 0));
    assert_non_null(strstr(moed_last_error(), "layer 1: parts hold 1 experts, and 3 of layer 0"));
    moed_split_destroy(s);
    moed_model_destroy(base);
    moed_model_destroy(family);
}

static void nothing_is_left_of_what_was_stopped(void **state)
{
    (void)state;
    char *dir = support_directory();
    moed_model *base = family_model(qwen, 1), *out = NULL;
    moed_split *s = make_split(base->layout, 4);
    moed_integration *i = ready(s, base, 4, NULL);
    moed_cancel *cancel = NULL;
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_split_build(&out, s, 0, base, support_path(dir, "k"), cancel), MOED_E_CANCELLED, "");
    assert_refused(moed_split_build(&out, s, 0, base, NULL, cancel), MOED_E_CANCELLED, "");
    assert_refused(moed_integration_finish(&out, i, support_path(dir, "w"), cancel), MOED_E_CANCELLED, "");
    assert_refused(moed_split_build(NULL, s, 0, base, NULL, NULL), MOED_E_ARGUMENT, "out");
    support_write(support_path(dir, "file"), "x", 1);
    assert_int_not_equal(moed_integration_finish(&out, i, support_path(dir, "file/below"), NULL), MOED_OK);
    assert_null(out);
    assert_int_equal(unlink(support_path(dir, "file")), 0);
    assert_int_equal(rmdir(dir), 0); /* empty */
    free(dir);
    moed_cancel_destroy(cancel);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(base);
}

/* Allocations of a context, of which one is refused. */
typedef struct supply {
    int left; /* until the refusal; negative: never */
    int held;
} supply;

static void *supply_alloc(size_t size, size_t alignment, void *user)
{
    supply *s = user;
    void *memory = NULL;
    if (s->left-- == 0 || posix_memalign(&memory, alignment, size) != 0) return NULL;
    __atomic_add_fetch(&s->held, 1, __ATOMIC_RELAXED);
    return memory;
}
static void supply_free(void *memory, size_t size, void *user)
{
    (void)size;
    __atomic_sub_fetch(&((supply *)user)->held, 1, __ATOMIC_RELAXED);
    free(memory);
}

/* Split and integrate, in memory (dir NULL) or through directories. */
static moed_status everything(const moed_model *base, const char *dir)
{
    moed_split *s = NULL;
    moed_integration *i = NULL;
    moed_split_options so;
    moed_status status = moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &so, sizeof so);
    so.parts = 2;
    if (status == MOED_OK) status = moed_split_create(&s, base->layout, &so);
    if (status == MOED_OK) status = moed_integration_create(&i, s, base, NULL);
    for (int32_t k = 0; k < 2 && status == MOED_OK; k++) {
        moed_model *m = NULL;
        status = moed_split_build(&m, s, k, base, dir ? support_path(dir, "part") : NULL, NULL);
        if (status == MOED_OK) status = moed_integration_add(i, k, m, 1.0);
        moed_model_destroy(m);
    }
    moed_model *out = NULL;
    if (status == MOED_OK) status = moed_integration_finish(&out, i, dir ? support_path(dir, "whole") : NULL, NULL);
    moed_model_destroy(out);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    return status;
}

static void every_allocation_may_be_refused(void **state)
{
    (void)state;
    supply memory = {.left = -1};
    moed_context *c = NULL, *usual = context;
    moed_context_options o;
    char *dir = support_directory();
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.alloc = supply_alloc, o.free = supply_free, o.alloc_user = &memory;
    assert_ok(moed_context_create(&c, &o));
    context = c;
    moed_model *base = hand_model();
    context = usual;
    const int held = memory.held;
    for (int way = 0; way < 2; way++) {
        int n = 0;
        /* in steps through directories: every one is synced to the disk */
        for (moed_status status = MOED_E_MEMORY; status != MOED_OK; n += way ? 23 : 1) {
            memory.left = n;
            status = everything(base, way ? dir : NULL);
            memory.left = -1;
            if (status != MOED_OK && status != MOED_E_MEMORY) fail_msg("allocation %d: %s", n, moed_last_error());
            if (memory.held != held) fail_msg("allocation %d refused: %d are still held", n, memory.held - held);
        }
        assert_true(n > 100);
    }
    char command[4200];
    snprintf(command, sizeof command, "ls '%s' | grep -v -x -e part -e whole", dir);
    assert_int_not_equal(system(command), 0); /* no temporary directory is left */
    moed_model_destroy(base);
    moed_context_destroy(c);
    support_remove(dir);
}

/* The routers' pieces of hand_layout: what the rows of a gate have come to. */
static void gate_pieces(moed_integration *i, const moed_layout *l, moed_piece out[3][64])
{
    memset(out, 0, 3 * sizeof *out);
    for (int layer = 0; layer < 3; layer++) {
        const char name[] = {'r', (char)('0' + layer), 0};
        size_t param = 0, count = 0;
        while (strcmp(l->params[param].name, name) != 0) param++;
        assert_ok(moed_integration_pieces(i, param, out[layer], 64, &count));
    }
}

static void all_layers_are_set_or_none(void **state)
{
    (void)state;
    int64_t allowed;
    moed_context *usual = context, *c = support_scarce_context(&allowed);
    moed_integration_options o = defaults();
    float rows[2][4 * 8];
    moed_piece before[3][64], after[3][64];
    context = c;
    moed_model *base = hand_model();
    context = usual;
    o.gate = MOED_GATE_CENTROIDS, o.gate_std = 0.5;
    moed_split *s = make_split(base->layout, 4);
    moed_integration *i = ready(s, base, 4, &o);
    for (int k = 0; k < 2; k++) support_random(rows[k], 32, 5 + (uint64_t)k);
    const moed_tensor first = support_tensor(rows[0], MOED_DTYPE_F32, 4, 8),
                      second = support_tensor(rows[1], MOED_DTYPE_F32, 4, 8);
    assert_ok(moed_integration_set_gate(i, -1, &first));
    gate_pieces(i, base->layout, before);
    int n = 0;
    for (allowed = 0; moed_integration_set_gate(i, -1, &second) == MOED_E_MEMORY; allowed = ++n) {
        allowed = INT64_MAX;
        gate_pieces(i, base->layout, after);
        assert_memory_equal(before, after, sizeof before);
    }
    assert_true(n >= 3); /* one for each layer */
    allowed = INT64_MAX;
    gate_pieces(i, base->layout, after);
    for (int layer = 0; layer < 3; layer++) assert_memory_not_equal(before[layer], after[layer], sizeof before[layer]);
    moed_integration_destroy(i);
    moed_split_destroy(s);

    s = make_split(base->layout, 4);
    int32_t list[8], count;
    n = 0;
    for (allowed = 0; moed_split_assign(s, 0, -1, (int32_t[]){2}, 1) == MOED_E_MEMORY; allowed = ++n) {
        for (int32_t layer = 0; layer < 3; layer++) {
            assert_ok(moed_split_experts(s, 0, layer, list, 8, &count));
            assert_int_equal(count, layer == 1 ? 2 : 1);
            assert_int_equal(list[0], 0);
        }
    }
    assert_true(n >= 3);
    for (int32_t layer = 0; layer < 3; layer++) {
        assert_ok(moed_split_experts(s, 0, layer, list, 8, &count));
        assert_int_equal(count, 1);
        assert_int_equal(list[0], 2);
    }
    allowed = INT64_MAX;
    moed_split_destroy(s);
    moed_model_destroy(base);
    support_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(untrained_submodels_give_the_base_back),
        cmocka_unit_test(one_part_or_several_experts_each_do_as_well),
        cmocka_unit_test(assignments_may_differ_by_layer),
        cmocka_unit_test(a_submodel_is_a_model_of_its_family_and_its_own_memory),
        cmocka_unit_test(trained_numbers_end_where_they_belong),
        cmocka_unit_test(a_lost_part_is_named_and_may_be_done_without),
        cmocka_unit_test(what_does_not_belong_is_refused_by_name),
        cmocka_unit_test(a_dense_model_is_cloned_into_every_expert),
        cmocka_unit_test(a_random_gate_has_the_asked_or_the_old_size),
        cmocka_unit_test(centroids_become_centred_scaled_rows),
        cmocka_unit_test(outputs_of_experts_are_scaled_one_by_one),
        cmocka_unit_test(foreign_shards_get_the_bits_of_finish),
        cmocka_unit_test(streamed_and_resident_models_mix),
        cmocka_unit_test(assignments_that_cannot_be_are_refused),
        cmocka_unit_test(nothing_is_left_of_what_was_stopped),
        cmocka_unit_test(every_allocation_may_be_refused),
        cmocka_unit_test(all_layers_are_set_or_none),
    };
    return cmocka_run_group_tests_name("surgery", tests, setup, teardown);
}
