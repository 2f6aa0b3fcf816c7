/* Models: fresh, borrowed, saved and opened; hostile directories. */
#include "support.h"

#define FIXTURE_THREADS 2
#include "fixture.h"

#include <jansson.h>

#include "model/model.h"
#include "util/file.h"

static const char QWEN[] =
    "{\"model_type\":\"qwen2_moe\",\"architectures\":[\"Qwen2MoeForCausalLM\"],\"vocab_size\":50,"
    "\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"num_experts\":3,\"num_experts_per_tok\":2,\"moe_intermediate_size\":6,"
    "\"shared_expert_intermediate_size\":10,\"max_position_embeddings\":64,\"torch_dtype\":\"bfloat16\",\"mine\":1}";
static const char TIED[] =
    "{\"model_type\":\"mixtral\",\"vocab_size\":50,\"hidden_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"num_local_experts\":2,\"num_experts_per_tok\":1,\"intermediate_size\":6,"
    "\"tie_word_embeddings\":true}";

static moed_model_options options_of(uint64_t seed)
{
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.seed = seed;
    return o;
}

static moed_model *fresh(moed_context *c, const char *text, uint64_t seed)
{
    return support_fresh(c, text, seed, -1); /* the model keeps its layout alive */
}

static void assert_same_numbers(const moed_model *a, const moed_model *b)
{
    const moed_layout *l = moed_model_layout(a);
    assert_int_equal(l->count, moed_model_layout(b)->count);
    for (size_t i = 0; i < l->count; i++) {
        moed_tensor x, y;
        assert_ok(moed_model_tensor(a, i, &x));
        assert_ok(moed_model_tensor(b, i, &y));
        assert_memory_equal(x.data, y.data, moedi_param_bytes(&l->params[i]));
    }
}

static const float *numbers(const moed_model *m, const char *name)
{
    moed_tensor t;
    assert_ok(moed_model_tensor(m, (size_t)moedi_layout_find(moed_model_layout(m), name), &t));
    return t.data;
}

static char *paths[8]; /* paths that live as long as their test */
static int path_count;

static const char *keep(const char *dir, const char *name)
{
    assert_true(path_count < 8);
    return paths[path_count++] = strdup(support_path(dir, name));
}

/* ---- fresh ---- */

static void a_fresh_model_has_normal_weights_unit_norms_and_zero_biases(void **state)
{
    moed_model *m = fresh(*state, QWEN, 7);
    const float *embedding = numbers(m, "model.embed_tokens.weight"), *norm = numbers(m, "model.norm.weight");
    const float *bias = numbers(m, "model.layers.1.self_attn.q_proj.bias");
    double sum = 0, squares = 0;
    for (int i = 0; i < 800; i++) sum += embedding[i], squares += (double)embedding[i] * embedding[i];
    assert_true(fabs(sum / 800) < 0.003);
    assert_true(fabs(sqrt(squares / 800) - 0.02) < 0.002);
    for (int i = 0; i < 16; i++) assert_true(norm[i] == 1.0f && bias[i] == 0.0f);
    assert_int_equal(moed_model_layout(m)->params[0].dtype, MOED_DTYPE_F32); /* what is in memory */
    assert_non_null(strstr(moed_layout_config(moed_model_layout(m)), "\"float32\""));
    moed_model_destroy(m);

    moed_model_options o = options_of(7);
    moed_layout *l = support_layout(*state, QWEN);
    o.init_std = 0;
    assert_ok(moed_model_init(&m, *state, l, &o));
    assert_true(numbers(m, "lm_head.weight")[3] == 0.0f);
    moed_model_destroy(m);
    moed_layout_destroy(l);
}

static void weights_depend_on_seed_and_name_alone(void **state)
{
    moed_context *three = support_context("reference", 3), *exact = support_context("double", 2);
    moed_model *a = fresh(*state, QWEN, 7), *b = fresh(three, QWEN, 7), *other = fresh(*state, QWEN, 8),
               *d = fresh(exact, QWEN, 7);
    moed_layout *l = support_layout(*state, QWEN), *one = NULL;
    moed_model *sub = NULL;
    const char *expert = "model.layers.1.mlp.experts.0.up_proj.weight";
    assert_same_numbers(a, b); /* any number of threads */
    assert_true(numbers(a, expert)[0] != numbers(other, expert)[0]);
    const moed_model_options o = options_of(7);
    assert_ok(moedi_layout_with_experts(&one, l, 1, 0, NULL));
    assert_ok(moed_model_init(&sub, *state, one, &o));
    assert_memory_equal(numbers(a, expert), numbers(sub, expert), 96 * sizeof(float));
    assert_true(numbers(a, expert)[0] != numbers(a, "model.layers.1.mlp.experts.1.up_proj.weight")[0]);
    moed_tensor wide; /* double arithmetic starts from the same floats */
    assert_ok(moed_model_tensor(d, 0, &wide));
    assert_int_equal(wide.dtype, MOED_DTYPE_F64);
    for (int i = 0; i < 800; i++) assert_true(((double *)wide.data)[i] == (double)numbers(a, "model.embed_tokens.weight")[i]);
    moed_model_destroy(a), moed_model_destroy(b), moed_model_destroy(other), moed_model_destroy(d), moed_model_destroy(sub);
    moed_layout_destroy(l), moed_layout_destroy(one);
    moed_context_destroy(three), moed_context_destroy(exact);
}

static void groups_of_weights_are_one_matrix(void **state)
{
    moed_model *m = fresh(*state, QWEN, 1);
    const moed_layout *l = moed_model_layout(m);
    assert_int_equal((uintptr_t)m->tensors[0].data % 64, 0);
    for (size_t i = 1; i < l->count; i++)
        assert_ptr_equal(m->tensors[i].data, (char *)m->tensors[i - 1].data + moedi_param_bytes(&l->params[i - 1]));
    moed_tensor t;
    assert_refused(moed_model_tensor(m, l->count, &t), MOED_E_RANGE, "parameter 49 of a model of 49");
    moed_model_destroy(m);
}

static void a_memory_limit_is_kept(void **state)
{
    moed_context_options o;
    moed_context *c = NULL;
    moed_model *m = NULL;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.kernels = "reference", o.threads = 1, o.host_limit = 48 << 10;
    assert_ok(moed_context_create(&c, &o));
    moed_layout *l = support_layout(c, TIED);
    assert_ok(moed_model_init(&m, c, l, NULL));
    moed_model_destroy(m);
    moed_layout_destroy(l);
    char *big = strdup(TIED);
    memcpy(strstr(big, "\"hidden_size\":16"), "\"hidden_size\":64", 16);
    l = support_layout(c, big);
    m = NULL;
    assert_int_equal(moed_model_init(&m, c, l, NULL), MOED_E_LIMIT);
    assert_null(m);
    moed_layout_destroy(l);
    free(big);
    support_close(c);
    (void)state;
}

/* ---- saved and opened ---- */

static void a_saved_model_opens_as_it_was(void **state)
{
    char *dir = support_directory();
    const char *path = keep(dir, "model/");
    moed_model *m = fresh(*state, QWEN, 3), *again = NULL, *streamed = NULL;
    assert_ok(moed_model_save(m, path, NULL));
    assert_ok(moed_model_open(&again, *state, path, NULL));
    assert_ok(moedi_layout_equal(moed_model_layout(m), moed_model_layout(again), 0));
    assert_string_equal(moed_layout_config(moed_model_layout(m)), moed_layout_config(moed_model_layout(again)));
    assert_non_null(strstr(moed_layout_config(moed_model_layout(again)), "\"mine\": 1"));
    assert_same_numbers(m, again);

    moed_model_options o = options_of(0);
    o.flags = MOED_MODEL_STREAM;
    assert_ok(moed_model_open(&streamed, *state, path, &o));
    moed_tensor t;
    assert_refused(moed_model_tensor(streamed, 0, &t), MOED_E_STATE, "on disk");
    assert_int_equal(moedi_model_check_resident(streamed), MOED_E_STATE);
    float part[5];
    assert_ok(moedi_model_read(streamed, 2, 11, 5, part));
    assert_memory_equal(part, (float *)m->tensors[2].data + 11, sizeof part);
    assert_ok(moed_model_save(streamed, path, NULL)); /* over the very files it reads */
    moed_model_destroy(again);
    again = NULL;
    assert_ok(moed_model_open(&again, *state, path, NULL));
    assert_same_numbers(m, again);
    moed_model_destroy(m), moed_model_destroy(again), moed_model_destroy(streamed);
    support_remove(dir);
}

static void half_precision_is_written_and_read(void **state)
{
    char *dir = support_directory();
    const char *path = keep(dir, "half");
    moed_model *m = fresh(*state, QWEN, 3), *again = NULL, *streamed = NULL;
    moed_model_options o = options_of(0);
    o.dtype = MOED_DTYPE_BF16;
    assert_ok(moed_model_save(m, path, &o));
    assert_ok(moed_model_open(&again, *state, path, NULL));
    const float *x = numbers(m, "lm_head.weight"), *y = numbers(again, "lm_head.weight");
    int rounded = 0;
    for (int i = 0; i < 800; i++) {
        assert_true(fabsf(x[i] - y[i]) <= fabsf(x[i]) / 256);
        rounded += x[i] != y[i];
    }
    assert_true(rounded > 700);
    o.flags = MOED_MODEL_STREAM;
    assert_ok(moed_model_open(&streamed, *state, path, &o));
    assert_int_equal(moed_model_layout(streamed)->params[5].dtype, MOED_DTYPE_BF16);
    assert_non_null(strstr(moed_layout_config(moed_model_layout(streamed)), "\"torch_dtype\": \"bfloat16\""));
    o.flags = 0, o.dtype = MOED_DTYPE_I32;
    assert_refused(moed_model_save(m, path, &o), MOED_E_RANGE, "dtype is 5");
    moed_model_destroy(m), moed_model_destroy(again), moed_model_destroy(streamed);
    support_remove(dir);
}

static void only_a_models_directory_is_replaced(void **state)
{
    char *dir = support_directory();
    const char *path = keep(dir, "m");
    moed_model *m = fresh(*state, TIED, 3), *again = NULL;
    assert_int_equal(mkdir(path, 0700), 0);
    assert_ok(moed_model_save(m, path, NULL)); /* an empty directory */
    assert_ok(moed_model_save(m, path, NULL)); /* a model */
    support_write(support_path(path, "notes.txt"), "mine", 4);
    assert_refused(moed_model_save(m, path, NULL), MOED_E_EXISTS, "notes.txt");
    assert_int_equal(access(support_path(path, "notes.txt"), F_OK), 0);
    unlink(support_path(path, "notes.txt"));
    unlink(support_path(path, "config.json"));
    assert_refused(moed_model_save(m, path, NULL), MOED_E_EXISTS, "no config.json");
    const char *file = keep(dir, "file");
    support_write(file, "x", 1);
    assert_refused(moed_model_save(m, file, NULL), MOED_E_EXISTS, "file");
    char **names = NULL;
    size_t count = 0;
    assert_ok(moedi_directory_list(*state, dir, &names, &count));
    assert_int_equal(count, 2); /* no temporary left behind */
    for (size_t i = 0; i < count; i++) moedi_free(*state, names[i]);
    moedi_free(*state, names);
    assert_int_equal(moed_model_open(&again, *state, support_path(dir, "none"), NULL), MOED_E_NOT_FOUND);
    moed_model_destroy(m);
    support_remove(dir);
}

static moed_status stop_at_third(void *user, size_t param, int64_t first, int64_t count, void *out)
{
    (void)first, (void)count, (void)out, (void)user;
    memset(out, 0, (size_t)count * 4);
    return param == 2 ? moedi_fail(MOED_E_NUMERIC, "stopped") : MOED_OK;
}

static void a_save_that_stops_leaves_the_old_model(void **state)
{
    char *dir = support_directory();
    const char *path = keep(dir, "m");
    moed_model *m = fresh(*state, TIED, 3), *again = NULL;
    moed_cancel *cancel = NULL;
    assert_ok(moed_model_save(m, path, NULL));
    const moedi_producer stopping = {.produce = stop_at_third, .serial = 1};
    const moedi_saving there = {.dir = path};
    assert_refused(moedi_model_save_from(*state, m->layout, &there, &stopping, NULL), MOED_E_NUMERIC, "stopped");
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_int_equal(moedi_model_save_from(*state, m->layout, &there, &stopping, cancel), MOED_E_CANCELLED);
    moed_cancel_destroy(cancel);
    assert_ok(moed_model_open(&again, *state, path, NULL));
    assert_same_numbers(m, again);
    moed_model_destroy(m), moed_model_destroy(again);
    support_remove(dir);
}

/* ---- shards and strangers ---- */

/* A safetensors file with the model's parameters first..last, `skip` left out, `extra` added (2 zeros), one misshapen if
 * asked. */
static void write_part(moed_context *c, const char *path, const moed_model *m, size_t first, size_t last, const char *skip,
                       const char *extra, const char *misshapen, const float *head)
{
    const moed_layout *l = moed_model_layout(m);
    moedi_safetensors_entry *e = calloc(l->count + 2, sizeof *e);
    const void **data = calloc(l->count + 2, sizeof *data);
    const float zeros[2] = {0};
    size_t n = 0;
    for (size_t i = first; i < last; i++) {
        const moed_param *p = &l->params[i];
        if (skip && !strcmp(p->name, skip)) continue;
        e[n].name = p->name, e[n].dtype = p->dtype, e[n].rank = p->rank;
        memcpy(e[n].shape, p->shape, sizeof p->shape);
        if (misshapen && !strcmp(p->name, misshapen)) e[n].shape[0] = p->shape[1], e[n].shape[1] = p->shape[0];
        data[n++] = m->tensors[i].data;
    }
    if (extra) e[n].name = extra, e[n].dtype = MOED_DTYPE_F32, e[n].rank = 1, e[n].shape[0] = 2, data[n++] = zeros;
    if (head)
        e[n].name = "lm_head.weight", e[n].dtype = MOED_DTYPE_F32, e[n].rank = 2, e[n].shape[0] = 50, e[n].shape[1] = 16,
        data[n++] = head;
    moedi_safetensors_writer w;
    assert_ok(moedi_safetensors_create(&w, c, path, e, n, NULL));
    for (size_t i = 0; i < n; i++) assert_ok(moedi_safetensors_write(&w, i, 0, data[i], (size_t)w.entries[i].bytes));
    assert_ok(moedi_safetensors_commit(&w));
    free(e);
    free(data);
}

static void write_text(const char *path, const char *text)
{
    support_write(path, text, strlen(text));
}

/* index text for parameters of m: those before `half` in a, the others in b; `odd` lies in `where` */
static void write_index(const char *path, const moed_model *m, size_t half, const char *a, const char *b, const char *odd,
                        const char *where)
{
    json_t *map = json_object(), *o = json_pack("{s:o}", "weight_map", map);
    for (size_t i = 0; i < moed_model_layout(m)->count; i++)
        json_object_set_new(map, moed_model_layout(m)->params[i].name, json_string(i < half ? a : b));
    if (odd) json_object_set_new(map, odd, where ? json_string(where) : json_integer(3));
    assert_int_equal(json_dump_file(o, path, 0), 0);
    json_decref(o);
}

static void shards_open_as_one_model(void **state)
{
    char *dir = support_directory();
    moed_model *m = fresh(*state, QWEN, 3), *again = NULL;
    const size_t count = moed_model_layout(m)->count;
    const char *index = keep(dir, "model.safetensors.index.json");
    write_text(support_path(dir, "config.json"), QWEN);
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_NOT_FOUND, "model.safetensors.index.json");
    write_part(*state, support_path(dir, "model-00001-of-00002.safetensors"), m, 0, 20, NULL, NULL, NULL, NULL);
    write_part(*state, support_path(dir, "model-00002-of-00002.safetensors"), m, 20, count, NULL, NULL, NULL, NULL);
#define A "model-00001-of-00002.safetensors"
#define B "model-00002-of-00002.safetensors"
    write_index(index, m, 20, A, B, NULL, NULL);
    assert_ok(moed_model_open(&again, *state, dir, NULL));
    assert_same_numbers(m, again);
    moed_model_destroy(again);
    moed_model_options o = options_of(0);
    o.flags = MOED_MODEL_STREAM;
    assert_ok(moed_model_open(&again, *state, dir, &o));
    float x;
    assert_ok(moedi_model_read(again, count - 1, 799, 1, &x));
    assert_true(x == ((float *)m->tensors[count - 1].data)[799]);
    moed_model_destroy(again);
    again = NULL;

    const struct { size_t half; const char *odd, *where; moed_status status; const char *words; } bad[] = {
        {20, "lm_head.weight", "../x.safetensors", MOED_E_FORMAT, "\"../x.safetensors\""},
        {20, "lm_head.weight", "/etc/passwd", MOED_E_FORMAT, "\"/etc/passwd\""},
        {20, "lm_head.weight", "..", MOED_E_FORMAT, "\"..\""},
        {20, "lm_head.weight", "", MOED_E_FORMAT, "no plain file name"},
        {20, "lm_head.weight", NULL, MOED_E_FORMAT, "lm_head.weight is not a text"},
        {20, "lm_head.weight", "model-00003-of-00002.safetensors", MOED_E_NOT_FOUND, "model-00003-of-00002.safetensors"},
        {21, NULL, NULL, MOED_E_MISMATCH, "tensor model.layers.0.mlp.shared_expert.gate_proj.weight"},
        {20, "stranger", B, MOED_E_MISMATCH, "tensor stranger"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_index(index, m, bad[i].half, A, B, bad[i].odd, bad[i].where);
        assert_refused(moed_model_open(&again, *state, dir, NULL), bad[i].status, bad[i].words);
        assert_null(again);
    }
    write_text(index, "{\"weight_map\": []}");
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_FORMAT, "weight_map");
    write_text(index, "{\"weight_map\": {}}");
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_FORMAT, "weight_map");
    write_index(index, m, 20, A, B, NULL, NULL);
    write_part(*state, support_path(dir, A), m, 0, 20, NULL, "unlisted", NULL, NULL);
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_MISMATCH, "tensor unlisted");
    moed_model_destroy(m);
    support_remove(dir);
}

static void strange_tensors_are_refused_by_name(void **state)
{
    char *dir = support_directory();
    moed_model *m = fresh(*state, QWEN, 3), *again = NULL;
    const size_t count = moed_model_layout(m)->count;
    char *file = strdup(support_path(dir, "model.safetensors"));
    const char *router = "model.layers.1.mlp.gate.weight";
    write_text(support_path(dir, "config.json"), QWEN);
    write_part(*state, file, m, 0, count, router, NULL, NULL, NULL);
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_MISMATCH,
                   "tensor model.layers.1.mlp.gate.weight is missing");
    write_part(*state, file, m, 0, count, NULL, "stranger", NULL, NULL);
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_MISMATCH, "tensor stranger is no parameter");
    write_part(*state, file, m, 0, count, NULL, NULL, router, NULL);
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_MISMATCH, "has shape (16, 3), and the model's is (3, 16)");
    write_part(*state, file, m, 0, count, NULL, NULL, NULL, NULL);
    assert_ok(moed_model_open(&again, *state, dir, NULL));
    moed_model_destroy(again);
    again = NULL;
    struct stat st;
    assert_int_equal(stat(file, &st), 0);
    for (int i = 0; i < 20; i++) { /* cut short, more and more */
        assert_int_equal(truncate(file, st.st_size * (19 - i) / 20), 0);
        assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_FORMAT, "model.safetensors");
    }
    write_text(support_path(dir, "config.json"), "{\"model_type\": \"unknown\"}");
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_UNSUPPORTED, "config.json");
    unlink(support_path(dir, "config.json"));
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_NOT_FOUND, "config.json");
    assert_refused(moed_model_open(&again, *state, file, NULL), MOED_E_FORMAT, "is a file; a model is a directory");
    assert_null(again);
    free(file);
    moed_model_destroy(m);
    support_remove(dir);
}

/* ---- inspection ---- */

typedef struct told {
    char lines[4000]; /* "kind tensor count;" each */
    int32_t stop;
} told;

static int32_t note(const moed_finding *f, void *user)
{
    told *t = user;
    const size_t at = strlen(t->lines);
    assert_int_equal(f->struct_size, sizeof *f);
    assert_non_null(strstr(f->text, f->file));
    assert_non_null(strstr(f->text, f->tensor));
    snprintf(t->lines + at, sizeof t->lines - at, "%d %s %lld;", (int)f->kind, f->tensor, (long long)f->count);
    return t->stop;
}

static const char *inspected(moed_context *c, const char *dir, uint32_t flags, int64_t count)
{
    static told t;
    moed_model_options o = options_of(0);
    int64_t findings = -1;
    o.flags = flags;
    t = (told){0};
    assert_ok(moed_model_inspect(c, dir, &o, note, &t, &findings, NULL));
    assert_int_equal(findings, count);
    return t.lines;
}

static void an_inspection_tells_all_that_is_wrong_by_name(void **state)
{
    char *dir = support_directory();
    moed_model *m = fresh(*state, QWEN, 3);
    const size_t count = moed_model_layout(m)->count;
    const char *index = keep(dir, "model.safetensors.index.json"), *a = keep(dir, A), *b = keep(dir, B);
    const char *router = "model.layers.1.mlp.gate.weight", *norm = "model.layers.1.input_layernorm.weight";
    write_text(support_path(dir, "config.json"), QWEN);
    inspected(*state, dir, 0, 1 + (int64_t)count); /* no file, and so no tensor */
    write_part(*state, a, m, 0, 20, NULL, NULL, NULL, NULL);
    write_part(*state, b, m, 20, count, NULL, NULL, NULL, NULL);
    write_index(index, m, 20, A, B, NULL, NULL);
    assert_string_equal(inspected(*state, dir, 0, 0), ""); /* its biases are zero */

    const int64_t at = moedi_layout_find(moed_model_layout(m), norm);
    float *numbers = m->tensors[at].data;
    const float one = numbers[2];
    numbers[2] = NAN, numbers[5] = -INFINITY;
    memset(m->tensors[0].data, 0, sizeof(float) * (size_t)moedi_param_elements(&moed_model_layout(m)->params[0]));
    write_part(*state, a, m, 0, 20, NULL, "stranger", NULL, NULL);
    write_part(*state, b, m, 20, count, moed_model_layout(m)->params[count - 1].name, NULL, router, NULL);
    assert_string_equal(inspected(*state, dir, MOED_MODEL_STREAM, 5),
                        "2 lm_head.weight 0;2 stranger 0;4 stranger 0;5 model.layers.1.mlp.gate.weight 0;3 lm_head.weight 0;");
    const char *all = inspected(*state, dir, 0, 8);
    assert_non_null(strstr(all, "9 model.embed_tokens.weight 800;"));
    assert_non_null(strstr(all, "9 stranger 2;"));
    assert_non_null(strstr(all, "8 model.layers.1.input_layernorm.weight 2;"));
    numbers[2] = numbers[5] = one;

    struct stat st; /* a shard that ends early: what lies behind the end, and nothing else; then the other one is no shard */
    write_part(*state, a, m, 0, 20, NULL, NULL, NULL, NULL);
    write_part(*state, b, m, 20, count, NULL, NULL, NULL, NULL);
    assert_int_equal(stat(b, &st), 0);
    assert_int_equal(truncate(b, st.st_size - 1), 0);
    assert_string_equal(inspected(*state, dir, 0, 2), "6 lm_head.weight 0;9 model.embed_tokens.weight 800;");
    write_text(a, "no shard");
    all = inspected(*state, dir, 0, 22);
    assert_int_equal(strncmp(all, "1  0;6 lm_head.weight 0;3 model.embed_tokens.weight 0;", 54), 0);

    told t = {.stop = 7};
    int64_t findings = -1;
    moed_error_info e = {.struct_size = sizeof e};
    assert_int_equal(moed_model_inspect(*state, dir, NULL, note, &t, &findings, NULL), MOED_E_CALLBACK);
    assert_ok(moed_last_error_get(&e));
    assert_int_equal(e.callback_code, 7);
    moed_cancel *cancel = NULL;
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_int_equal(moed_model_inspect(*state, dir, NULL, NULL, NULL, &findings, cancel), MOED_E_CANCELLED);
    moed_cancel_destroy(cancel);
    assert_int_equal(findings, -1);
    assert_refused(moed_model_inspect(*state, a, NULL, NULL, NULL, &findings, NULL), MOED_E_FORMAT, "is a file");
    moed_model_destroy(m);
    support_remove(dir);
}

static void a_tied_models_stored_head_must_be_its_embedding(void **state)
{
    char *dir = support_directory();
    moed_model *m = fresh(*state, TIED, 3), *again = NULL;
    float head[800];
    memcpy(head, m->tensors[0].data, sizeof head);
    write_text(support_path(dir, "config.json"), TIED);
    write_part(*state, support_path(dir, "model.safetensors"), m, 0, moed_model_layout(m)->count, NULL, NULL, NULL, head);
    assert_ok(moed_model_open(&again, *state, dir, NULL));
    assert_same_numbers(m, again);
    moed_model_destroy(again);
    again = NULL;
    head[799] += 1;
    write_part(*state, support_path(dir, "model.safetensors"), m, 0, moed_model_layout(m)->count, NULL, NULL, NULL, head);
    assert_refused(moed_model_open(&again, *state, dir, NULL), MOED_E_MISMATCH, "lm_head.weight is not the embedding");
    assert_string_equal(inspected(*state, dir, 0, 1), "7 lm_head.weight 0;");
    moed_model_destroy(m);
    support_remove(dir);
}

/* ---- borrowed ---- */

static void count_release(void *user)
{
    ++*(int *)user;
}

static void borrowed_arrays_are_released_once_at_the_last_reference(void **state)
{
    moed_param p[2];
    moed_layout *l = NULL;
    moed_model *m = NULL, *kept;
    float a[12], b[4];
    int released = 0;
    memset(p, 0, sizeof p);
    for (int i = 0; i < 2; i++) p[i].layer = p[i].expert = p[i].expert_axis = -1, p[i].dtype = MOED_DTYPE_F32, p[i].rank = 2 - i;
    p[0].name = "a", p[0].shape[0] = 3, p[0].shape[1] = 4;
    p[1].name = "b", p[1].shape[0] = 4;
    assert_ok(moed_layout_create(&l, *state, p, 2));
    moed_tensor t[2] = {support_tensor(a, MOED_DTYPE_F32, 3, 4), support_tensor(b, MOED_DTYPE_F32, 4, 0)};

    const struct { int tensor; const char *words; } bad[] = {
        {0, "tensor a: size 4 of axis 0"}, {0, "tensor a: stride 5 of axis 0"}, {1, "tensor b: dtype"},
        {1, "tensor b: rank 2"}, {1, "tensor b: on device 1"}, {1, "tensor b: its data is not aligned"}};
    for (int i = 0; i < 6; i++) {
        moed_tensor s[2] = {t[0], t[1]};
        moed_tensor *x = &s[bad[i].tensor];
        if (i == 0) x->shape[0] = 4;
        if (i == 1) x->strides[0] = 5;
        if (i == 2) x->dtype = MOED_DTYPE_F64;
        if (i == 3) x->rank = 2;
        if (i == 4) x->device = 1;
        if (i == 5) x->data = (char *)b + 1;
        assert_refused(moed_model_borrow(&m, *state, l, s, 2, count_release, &released), MOED_E_MISMATCH, bad[i].words);
    }
    t[1].data = NULL;
    assert_refused(moed_model_borrow(&m, *state, l, t, 2, count_release, &released), MOED_E_ARGUMENT,
                   "tensor b: its data is NULL");
    t[1].data = b;
    assert_refused(moed_model_borrow(&m, *state, l, t, 1, count_release, &released), MOED_E_MISMATCH,
                   "1 tensors for a layout of 2");
    assert_int_equal(released, 0);
    assert_null(m);

    assert_ok(moed_model_borrow(&m, *state, l, t, 2, count_release, &released));
    moed_layout_destroy(l);
    kept = moedi_model_retain(m);
    moed_model_destroy(m);
    assert_int_equal(released, 0);
    moed_tensor view;
    assert_ok(moed_model_tensor(kept, 0, &view));
    assert_ptr_equal(view.data, a);
    moed_model_destroy(kept);
    assert_int_equal(released, 1);
    moed_model_destroy(NULL);
}

static void a_model_by_hand_is_saved_and_opened_with_its_layout(void **state)
{
    char *dir = support_directory();
    const char *path = keep(dir, "m");
    moed_param p[2];
    moed_layout *l = NULL;
    moed_model *m = NULL, *again = NULL;
    memset(p, 0, sizeof p);
    for (int i = 0; i < 2; i++)
        p[i].layer = p[i].expert = p[i].expert_axis = -1, p[i].dtype = MOED_DTYPE_F32, p[i].rank = 1, p[i].shape[0] = 3;
    p[0].name = "table", p[0].role = MOED_ROLE_OPAQUE, p[0].dtype = MOED_DTYPE_U8;
    p[1].name = "w";
    assert_ok(moed_layout_create(&l, *state, p, 2));
    assert_ok(moed_model_init(&m, *state, l, NULL));
    memcpy(m->tensors[0].data, "abc", 3);
    assert_int_equal((uintptr_t)m->tensors[1].data % 4, 0);
    assert_ok(moed_model_save(m, path, NULL));
    assert_int_equal(moed_model_open(&again, *state, path, NULL), MOED_E_FORMAT);
    for (int stream = 0; stream < 2; stream++) {
        char bytes[3];
        assert_ok(moedi_model_open_as(&again, *state, l, path, stream));
        assert_ok(moedi_model_read(again, 0, 0, 3, bytes));
        assert_memory_equal(bytes, "abc", 3);
        moed_model_destroy(again);
    }
    moed_model_destroy(m);
    moed_layout_destroy(l);
    support_remove(dir);
}

/* A model that is never held: what is saved of it is what a model in memory saves in the same dtype, for any number of
 * threads. */
static void a_model_drawn_while_it_is_saved_has_the_numbers_of_one_in_memory(void **state)
{
    char *dir = support_directory();
    moed_context *other = support_context("reference", 3);
    moed_layout *l = support_layout(*state, QWEN), *l3 = support_layout(other, QWEN);
    moed_model_options stream = options_of(7), narrow = options_of(0);
    moed_model *m = fresh(*state, QWEN, 7), *drawn = NULL, *a = NULL, *b = NULL;
    moed_tensor t;
    stream.flags = MOED_MODEL_STREAM;
    narrow.dtype = MOED_DTYPE_BF16;
    char one[512], two[512];
    snprintf(one, sizeof one, "%s/one", dir);
    snprintf(two, sizeof two, "%s/two", dir);
    assert_ok(moed_model_init(&drawn, other, l3, &stream));
    assert_refused(moed_model_tensor(drawn, 0, &t), MOED_E_STATE, "drawn");
    assert_ok(moed_model_save(drawn, one, NULL)); /* bf16, as its config.json says */
    assert_ok(moed_model_save(m, two, &narrow));
    assert_ok(moed_model_open(&a, *state, one, NULL));
    assert_ok(moed_model_open(&b, *state, two, NULL));
    assert_same_numbers(a, b);
    moed_model_destroy(a), moed_model_destroy(b), moed_model_destroy(m), moed_model_destroy(drawn);
    moed_layout_destroy(l), moed_layout_destroy(l3);
    support_close(other);
    support_remove(dir);
}

static void wrong_arguments_are_refused(void **state)
{
    moed_model *m = NULL;
    moed_layout *l = support_layout(*state, TIED);
    moed_model_options o = options_of(0);
    assert_refused(moed_model_init(NULL, *state, l, NULL), MOED_E_ARGUMENT, "out");
    assert_refused(moed_model_init(&m, NULL, l, NULL), MOED_E_ARGUMENT, "context");
    assert_refused(moed_model_init(&m, *state, NULL, NULL), MOED_E_ARGUMENT, "layout");
    assert_refused(moed_model_open(&m, *state, "", NULL), MOED_E_ARGUMENT, "directory");
    assert_refused(moed_model_save(NULL, "x", NULL), MOED_E_ARGUMENT, "model");
    o.flags = MOED_MODEL_STREAM << 1;
    assert_refused(moed_model_init(&m, *state, l, &o), MOED_E_STRUCT, "flags");
    o.flags = 0, o.struct_size = 3;
    assert_int_equal(moed_model_init(&m, *state, l, &o), MOED_E_STRUCT);
    assert_null(m);
    assert_null(moed_model_layout(NULL));
    moed_layout_destroy(l);
}

static int end(void **state)
{
    while (path_count > 0) free(paths[--path_count]);
    return teardown(state);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, end)
    const struct CMUnitTest tests[] = {
        TEST(a_fresh_model_has_normal_weights_unit_norms_and_zero_biases),
        TEST(weights_depend_on_seed_and_name_alone),
        TEST(groups_of_weights_are_one_matrix),
        TEST(a_memory_limit_is_kept),
        TEST(a_saved_model_opens_as_it_was),
        TEST(half_precision_is_written_and_read),
        TEST(only_a_models_directory_is_replaced),
        TEST(a_save_that_stops_leaves_the_old_model),
        TEST(shards_open_as_one_model),
        TEST(strange_tensors_are_refused_by_name),
        TEST(an_inspection_tells_all_that_is_wrong_by_name),
        TEST(a_tied_models_stored_head_must_be_its_embedding),
        TEST(borrowed_arrays_are_released_once_at_the_last_reference),
        TEST(a_model_by_hand_is_saved_and_opened_with_its_layout),
        TEST(a_model_drawn_while_it_is_saved_has_the_numbers_of_one_in_memory),
        TEST(wrong_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
