/* Checkpoints in and out: files of a bounded size, what goes along with a model, experts assigned by usage and as submodels say.
 * */
#include "support.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#define FIXTURE_FOLDER
#include "fixture.h"

#include <jansson.h>

#include "model/model.h"
#include "util/file.h"

static const char qwen[] =
    "{\"model_type\": \"qwen2_moe\", \"vocab_size\": 61, \"hidden_size\": 16, \"num_hidden_layers\": 3, "
    "\"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts\": 6, \"num_experts_per_tok\": 2, "
    "\"moe_intermediate_size\": 12, \"shared_expert_intermediate_size\": 20, \"max_position_embeddings\": 64, \"torch_dtype\": "
    "\"bfloat16\"}";
enum { LAYERS = 3, EXPERTS = 6 };

static moed_model *fresh(uint64_t seed)
{
    return support_fresh(context, qwen, seed, -1);
}

static void assert_same(const moed_model *a, const moed_model *b)
{
    assert_ok(moedi_layout_equal(a->layout, b->layout, 0));
    for (size_t i = 0; i < a->layout->count; i++) {
        const moed_param *p = &a->layout->params[i];
        void *x = malloc(moedi_param_bytes(p)), *y = malloc(moedi_param_bytes(p));
        assert_ok(moedi_model_read(a, i, 0, moedi_param_elements(p), x));
        assert_ok(moedi_model_read(b, i, 0, moedi_param_elements(p), y));
        if (memcmp(x, y, moedi_param_bytes(p)) != 0) fail_msg("tensor %s differs", p->name);
        free(x);
        free(y);
    }
}

/* dir/name, for as long as its buffer */
typedef char place[2000];
static const char *in_dir(place out, const char *name)
{
    snprintf(out, sizeof(place), "%s/%s", dir, name);
    return out;
}

static int is_there(const char *folder, const char *name)
{
    return access(support_path(folder, name), F_OK) == 0;
}

/* ---- files of a bounded size ---- */

enum { LIMIT = 1500 }; /* less than the embedding's 61 x 16 x 2 bytes, more than any other tensor's */

/* Files of the index, each within the limit or of one tensor; every tensor is in one. */
static size_t check_index(const char *folder, const moed_layout *l)
{
    json_t *root = NULL, *sizes = json_object();
    const char *file, *name;
    json_t *value;
    int64_t total = 0;
    assert_ok(moedi_json_open(&root, context, support_path(folder, "model.safetensors.index.json")));
    json_object_foreach(json_object_get(root, "weight_map"), name, value) {
        const int64_t at = moedi_layout_find(l, name), bytes = (int64_t)moedi_param_bytes(&l->params[at]);
        json_t *before = json_object_get(sizes, json_string_value(value));
        total += bytes;
        if (before && json_integer_value(before) + bytes > LIMIT)
            fail_msg("%s is larger than asked for", json_string_value(value));
        json_object_set_new(sizes, json_string_value(value), json_integer(json_integer_value(before) + bytes));
    }
    assert_int_equal(json_object_size(json_object_get(root, "weight_map")), l->count);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(root, "metadata"), "total_size")), total);
    const size_t files = json_object_size(sizes);
    json_object_foreach(sizes, file, value) {
        char expected[64];
        int number = 0;
        assert_int_equal(sscanf(file, "model-%5d-of-", &number), 1);
        snprintf(expected, sizeof expected, "model-%05d-of-%05zu.safetensors", number, files);
        assert_string_equal(file, expected);
        assert_true(is_there(folder, file));
    }
    json_decref(sizes);
    json_decref(root);
    return files;
}

static void files_are_as_large_as_asked_for_and_open_as_one_model(void **state)
{
    place a_place, another;
    const char *whole = in_dir(a_place, "whole"), *shards = in_dir(another, "shards");
    moed_model *m = fresh(1);
    moed_model_options o;
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    for (moed_dtype dtype = MOED_DTYPE_F32; dtype <= MOED_DTYPE_BF16; dtype++) {
        o.dtype = dtype, o.shard_bytes = 0;
        assert_ok(moed_model_save(m, whole, &o));
        o.shard_bytes = LIMIT;
        assert_ok(moed_model_save(m, shards, &o));
        assert_false(is_there(shards, "model.safetensors"));
        moed_model *a = support_open(context, whole, MOED_MODEL_STREAM), *b = support_open(context, shards, MOED_MODEL_STREAM);
        assert_true(check_index(shards, b->layout) > 10);
        assert_same(a, b);
        moed_model_destroy(a);
        moed_model_destroy(b);
    }
    o.shard_bytes = INT64_MAX / 4; /* one file is no shard */
    assert_ok(moed_model_save(m, shards, &o));
    assert_true(is_there(shards, "model.safetensors"));
    assert_false(is_there(shards, "model.safetensors.index.json"));
    moed_model_destroy(m);
}

static void split_and_integrate_write_files_of_that_size_too(void **state)
{
    place a_place, result;
    const char *base = in_dir(a_place, "base");
    moed_model *m = fresh(2), *b, *whole = NULL;
    moed_split *s = NULL;
    moed_integration *i = NULL;
    moed_split_options so;
    moed_integration_options io;
    moed_model_options mo;
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &mo, sizeof mo));
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &so, sizeof so));
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &io, sizeof io));
    mo.dtype = MOED_DTYPE_BF16, mo.shard_bytes = so.shard_bytes = io.shard_bytes = LIMIT;
    so.parts = 3;
    assert_ok(moed_model_save(m, base, &mo));
    b = support_open(context, base, MOED_MODEL_STREAM);
    assert_ok(moed_split_create(&s, b->layout, &so));
    assert_ok(moed_integration_create(&i, s, b, &io));
    for (int32_t k = 0; k < 3; k++) {
        char name[16];
        moed_model *part = NULL;
        place folder;
        snprintf(name, sizeof name, "part%d", k);
        assert_ok(moed_split_build(&part, s, k, b, in_dir(folder, name), NULL));
        assert_true(check_index(folder, part->layout) > 5);
        assert_ok(moed_integration_add(i, k, part, 1));
        moed_model_destroy(part);
    }
    assert_ok(moed_integration_finish(&whole, i, in_dir(result, "integrated"), NULL));
    assert_true(check_index(result, whole->layout) > 10);
    assert_same(b, whole);
    moed_model_destroy(whole);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(b);
    moed_model_destroy(m);
}

/* ---- what goes along ---- */

static void put_text(const char *folder, const char *name, const char *text)
{
    support_write(support_path(folder, name), text, strlen(text));
}

static void assert_text(const char *folder, const char *name, const char *text)
{
    char *found = NULL;
    assert_ok(moedi_file_text(context, support_path(folder, name), 1000, &found, NULL));
    assert_string_equal(found, text);
    moedi_free(context, found);
}

static void tokenizer_and_generation_files_go_along(void **state)
{
    place base, part, whole, copy;
    moed_model *m = fresh(3), *b, *p = NULL;
    moed_split *s = NULL;
    moed_integration *i = NULL;
    moed_split_options so;
    (void)state;
    in_dir(base, "base"), in_dir(part, "part"), in_dir(whole, "whole"), in_dir(copy, "copy");
    assert_ok(moed_model_save(m, base, NULL));
    put_text(base, "tokenizer.json", "{}"), put_text(base, "generation_config.json", "{\"a\": 1}");
    put_text(base, "merges.txt", "a b"), put_text(base, "vocab.json", "{}"), put_text(base, "chat_template.jinja", "{{x}}");
    put_text(base, "modeling_mine.py", "pass"), put_text(base, "README.md", "mine"), put_text(base, "optimizer.pt", "x");
    assert_int_equal(mkdir(support_path(base, "tokenizer_files.json"), 0700), 0);
    b = support_open(context, base, 0);
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &so, sizeof so));
    so.parts = 1;
    assert_ok(moed_split_create(&s, b->layout, &so));
    assert_ok(moed_integration_create(&i, s, b, NULL));
    assert_ok(moed_split_build(&p, s, 0, b, NULL, NULL)); /* in memory, saved later */
    assert_ok(moed_model_save(p, part, NULL));
    assert_ok(moed_integration_add(i, 0, p, 1));
    assert_ok(moed_integration_finish(NULL, i, whole, NULL));
    assert_ok(moed_model_save(b, copy, NULL));
    const char *const places[] = {part, whole, copy};
    for (int k = 0; k < 3; k++) {
        assert_text(places[k], "tokenizer.json", "{}");
        assert_text(places[k], "generation_config.json", "{\"a\": 1}");
        assert_text(places[k], "chat_template.jinja", "{{x}}");
        assert_text(places[k], "modeling_mine.py", "pass");
        assert_true(is_there(places[k], "merges.txt") && is_there(places[k], "vocab.json"));
        assert_false(is_there(places[k], "README.md") || is_there(places[k], "optimizer.pt"));
        assert_false(is_there(places[k], "tokenizer_files.json"));
    }
    /* what goes along is replaced with its model; what would be lost keeps the old directory */
    assert_ok(moed_model_save(b, copy, NULL));
    assert_refused(moed_model_save(m, copy, NULL), MOED_E_EXISTS, "chat_template.jinja");
    put_text(copy, "added_tokens.json", "{}");
    assert_refused(moed_model_save(b, copy, NULL), MOED_E_EXISTS, "added_tokens.json");
    assert_text(copy, "added_tokens.json", "{}");
    moed_model *same = support_open(context, copy, 0); /* over itself, with all it has */
    assert_ok(moed_model_save(same, copy, NULL));
    assert_text(copy, "added_tokens.json", "{}");
    assert_text(copy, "tokenizer.json", "{}");
    moed_model_destroy(same);
    moed_integration_destroy(i);
    moed_split_destroy(s);
    moed_model_destroy(p);
    moed_model_destroy(b);
    moed_model_destroy(m);
}

static void nothing_is_left_where_a_file_cannot_go_along(void **state)
{
    place a_place;
    moed_model *m = fresh(3), *b;
    const char *base = in_dir(a_place, "base");
    (void)state;
    assert_ok(moed_model_save(m, base, NULL));
    b = support_open(context, base, 0);
    assert_int_equal(symlink("nowhere", support_path(base, "tokenizer.json")), 0);
    assert_refused(moed_model_save(b, support_path(dir, "out"), NULL), MOED_E_NOT_FOUND, "tokenizer.json");
    assert_false(is_there(dir, "out"));
    unlink(support_path(base, "tokenizer.json"));
    assert_int_equal(rename(base, support_path(dir, "elsewhere")), 0); /* the model is in memory: it goes without */
    assert_ok(moed_model_save(b, support_path(dir, "out"), NULL));
    moed_model_destroy(b);
    moed_model_destroy(m);
}

/* ---- experts by usage ---- */

static double captured(const moed_split *s, const double *usage, int32_t parts, int32_t layer)
{
    double sum = 0;
    for (int32_t k = 0; k < parts; k++) {
        int32_t experts[EXPERTS], count = 0;
        assert_ok(moed_split_experts(s, k, layer, experts, EXPERTS, &count));
        assert_int_equal(count, EXPERTS / parts);
        for (int32_t j = 0; j < count; j++) {
            if (j) assert_true(experts[j] > experts[j - 1]);
            sum += usage[(k * LAYERS + layer) * EXPERTS + experts[j]];
        }
    }
    return sum;
}

/* The largest sum of all ways, by trying them: expert e on goes to a part with room, or to none. */
static double best_of_all(const double *usage, int32_t parts, int32_t layer, int32_t e, const int32_t *room)
{
    double best = -1;
    int32_t left = 0;
    for (int32_t k = 0; k < parts; k++) left += room[k];
    if (e == EXPERTS) return left ? -1 : 0;
    for (int32_t k = 0; k <= parts; k++) {
        int32_t after[EXPERTS];
        if (k < parts && !room[k]) continue;
        memcpy(after, room, (size_t)parts * sizeof *room);
        if (k < parts) after[k]--;
        const double rest = best_of_all(usage, parts, layer, e + 1, after);
        if (rest < 0) continue;
        const double sum = rest + (k < parts ? usage[(k * LAYERS + layer) * EXPERTS + e] : 0);
        if (sum > best) best = sum;
    }
    return best;
}

static void experts_go_where_they_are_used_most(void **state)
{
    moed_layout *l = support_layout(context, qwen);
    (void)state;
    for (int32_t parts = 1; parts <= EXPERTS; parts++)
        for (uint64_t seed = 0; seed < 8; seed++) {
            double usage[EXPERTS * LAYERS * EXPERTS];
            float random[EXPERTS * LAYERS * EXPERTS];
            moed_split *s = NULL;
            moed_split_options o;
            assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
            o.parts = parts;
            support_random(random, EXPERTS * LAYERS * EXPERTS, seed);
            for (int i = 0; i < EXPERTS * LAYERS * EXPERTS; i++)
                /* ties, and all the same */
                usage[i] = seed == 7 ? 0.25 : floor(((double)random[i] + 1) * 8) / (seed < 4 ? 8 : 1);
            assert_ok(moed_split_create(&s, l, &o));
            assert_ok(moed_split_assign_usage(s, usage, NULL));
            for (int32_t layer = 0; layer < LAYERS; layer++) {
                int32_t room[EXPERTS];
                for (int32_t k = 0; k < parts; k++) room[k] = EXPERTS / parts;
                const double best = best_of_all(usage, parts, layer, 0, room);
                const double found = captured(s, usage, parts, layer);
                if (fabs(found - best) > 1e-9)
                    fail_msg("%d parts, seed %d: %g, and %g can be had", parts, (int)seed, found, best);
            }
            assert_non_null(moed_split_layout(s, 0));
            moed_split_destroy(s);
        }
    moed_layout_destroy(l);
}

static void usage_that_is_none_is_refused_by_name(void **state)
{
    double usage[2 * LAYERS * EXPERTS] = {0};
    moed_layout *l = support_layout(context, qwen);
    moed_split *s = NULL;
    moed_split_options o;
    moed_cancel *cancel = NULL;
    int32_t experts[EXPERTS], count = 0;
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.parts = 2;
    assert_ok(moed_split_create(&s, l, &o));
    usage[(1 * LAYERS + 2) * EXPERTS + 4] = NAN;
    assert_refused(moed_split_assign_usage(s, usage, NULL), MOED_E_ARGUMENT, "part 1, layer 2, expert 4");
    usage[(1 * LAYERS + 2) * EXPERTS + 4] = -1;
    assert_refused(moed_split_assign_usage(s, usage, NULL), MOED_E_ARGUMENT, "part 1, layer 2, expert 4");
    usage[(1 * LAYERS + 2) * EXPERTS + 4] = 0;
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    assert_refused(moed_split_assign_usage(s, usage, cancel), MOED_E_CANCELLED, "");
    assert_ok(moed_split_experts(s, 1, 0, experts, EXPERTS, &count)); /* the assignment by index is still there */
    assert_int_equal(count, 3);
    assert_int_equal(experts[1], 3);
    moed_cancel_destroy(cancel);
    moed_split_destroy(s);
    moed_layout_destroy(l);
}

/* ---- experts as submodels say ---- */

static void a_submodel_tells_which_experts_it_holds(void **state)
{
    const int32_t lists[2][LAYERS][2] = {{{4, 1}, {0, 5}, {2, 3}}, {{0, 3}, {2, 1}, {5, 4}}};
    moed_model *m = fresh(5), *parts[2] = {NULL}, *whole = NULL;
    moed_split *first = NULL, *second = NULL, *three = NULL;
    moed_integration *i = NULL;
    moed_split_options o;
    moed_layout *foreign = support_layout(context, qwen);
    (void)state;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.parts = 2;
    assert_ok(moed_split_create(&first, m->layout, &o));
    assert_ok(moed_split_create(&second, m->layout, &o));
    for (int32_t k = 0; k < 2; k++)
        for (int32_t layer = 0; layer < LAYERS; layer++) assert_ok(moed_split_assign(first, k, layer, lists[k][layer], 2));
    for (int32_t k = 0; k < 2; k++) {
        assert_ok(moed_split_build(&parts[k], first, k, m, NULL, NULL));
        assert_ok(moed_split_assign_from(second, k, parts[k]->layout));
    }
    assert_ok(moed_integration_create(&i, second, m, NULL));
    for (int32_t k = 0; k < 2; k++) assert_ok(moed_integration_add(i, k, parts[k], 1));
    assert_ok(moed_integration_finish(&whole, i, NULL, NULL));
    assert_same(m, whole);
    o.parts = 3;
    assert_ok(moed_split_create(&three, m->layout, &o));
    assert_refused(moed_split_assign_from(three, 0, parts[0]->layout), MOED_E_MISMATCH, "one of 2");
    assert_refused(moed_split_assign_from(three, 0, foreign), MOED_E_NOT_FOUND, "says nothing");
    assert_refused(moed_split_assign_from(three, 3, foreign), MOED_E_RANGE, "part 3 of 3");
    moed_model_destroy(whole);
    moed_integration_destroy(i);
    moed_split_destroy(first);
    moed_split_destroy(second);
    moed_split_destroy(three);
    moed_model_destroy(parts[0]);
    moed_model_destroy(parts[1]);
    moed_model_destroy(m);
    moed_layout_destroy(foreign);
}

/* ---- tensors that are no parameters ---- */

/* A model with one tensor more, of that name. */
static void save_with(const moed_model *m, const char *folder, const char *name)
{
    const moed_layout *l = m->layout;
    moedi_safetensors_entry *entries = calloc(l->count + 1, sizeof *entries);
    moedi_safetensors_writer w = {0};
    const float numbers[2] = {1, 2};
    assert_ok(moed_model_save(m, folder, NULL));
    for (size_t i = 0; i < l->count; i++) {
        entries[i].name = l->params[i].name, entries[i].dtype = l->params[i].dtype, entries[i].rank = l->params[i].rank;
        memcpy(entries[i].shape, l->params[i].shape, sizeof entries[i].shape);
    }
    entries[l->count] = (moedi_safetensors_entry){.name = name, .dtype = MOED_DTYPE_F32, .rank = 1, .shape = {2}};
    assert_ok(moedi_safetensors_create(&w, context, support_path(folder, "model.safetensors"), entries, l->count + 1, NULL));
    for (size_t i = 0; i < l->count; i++)
        assert_ok(moedi_safetensors_write(&w, i, 0, m->tensors[i].data, moedi_param_bytes(&l->params[i])));
    assert_ok(moedi_safetensors_write(&w, l->count, 0, numbers, sizeof numbers));
    assert_ok(moedi_safetensors_commit(&w));
    free(entries);
}

static void tensors_too_many_are_passed_over_or_refused_with_what_to_do(void **state)
{
    static const struct { const char *name, *says; } names[] = {
        {"_orig_mod.model.norm.weight", "save its _orig_mod"},
        {"module.model.norm.weight", "save its module"},
        {"model._fsdp_wrapped_module.norm.weight", "full state dict"},
        {"base_model.model.x", "merge it first"},
        {"model.layers.0.self_attn.q_proj.lora_A.weight", "merge it first"},
        {"model.layers.0.self_attn.q_proj.qweight", "dequantised"},
        {"model.strange", "that config.json describes"},
    };
    moed_model *m = fresh(4), *out = NULL;
    place folder;
    (void)state;
    in_dir(folder, "m");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        save_with(m, folder, names[i].name);
        assert_refused(moed_model_open(&out, context, folder, NULL), MOED_E_MISMATCH, names[i].says);
        assert_non_null(strstr(moed_last_error(), names[i].name));
    }
    save_with(m, folder, "model.layers.2.self_attn.rotary_emb.inv_freq"); /* of earlier Transformers */
    assert_ok(moed_model_open(&out, context, folder, NULL));
    moed_model_destroy(out);
    moed_model_destroy(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(files_are_as_large_as_asked_for_and_open_as_one_model),
        T(split_and_integrate_write_files_of_that_size_too),
        T(tokenizer_and_generation_files_go_along),
        T(nothing_is_left_where_a_file_cannot_go_along),
        T(experts_go_where_they_are_used_most),
        T(usage_that_is_none_is_refused_by_name),
        T(a_submodel_tells_which_experts_it_holds),
        T(tensors_too_many_are_passed_over_or_refused_with_what_to_do),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
