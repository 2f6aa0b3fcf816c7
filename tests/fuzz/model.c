/* tests/fuzz/model.c - a model directory from a stranger: model.safetensors.index.json, config.json and one of two shards (the
 * library's own where a part is empty). What opens opens as a stream too, and computes; an inspection finds a fault in what does
 * not. */
#include "fuzz.h"

#include "util/safetensors.h"

static char model_dir[2048];
static fuzz_part good_index, good_config, good_shard;

static const char *model_file(const char *name)
{
    return support_path(model_dir, name);
}

/* Tensors of a one-file model, every other one, as one shard of two. */
static void write_shard(const moedi_safetensors *from, const char *path, size_t odd, json_t *map, const char *name)
{
    moedi_safetensors_entry entries[64] = {0};
    moedi_safetensors_writer w;
    size_t count = 0;
    for (size_t i = odd; i < from->count; i += 2) {
        entries[count++] = from->entries[i];
        json_object_set_new(map, from->entries[i].name, json_string(name));
    }
    assert_ok(moedi_safetensors_create(&w, fuzz_context, path, entries, count, NULL));
    for (size_t i = 0; i < count; i++) {
        char *numbers = malloc((size_t)entries[i].bytes);
        assert_ok(moedi_safetensors_read(from, &entries[i], 0, numbers, (size_t)entries[i].bytes));
        assert_ok(moedi_safetensors_write(&w, i, 0, numbers, (size_t)entries[i].bytes));
        free(numbers);
    }
    assert_ok(moedi_safetensors_commit(&w));
}

static void make_model(void)
{
    snprintf(model_dir, sizeof model_dir, "%s/model", fuzz_dir);
    moed_model *m = tiny_model_of(fuzz_context, 4, 1, 2, 8);
    assert_ok(moed_model_save(m, model_dir, NULL));
    moed_model_destroy(m);
    moedi_safetensors whole;
    json_t *map = json_object(), *index = json_pack("{s:{}, s:o}", "metadata", "weight_map", map);
    assert_ok(moedi_safetensors_open(&whole, fuzz_context, model_file("model.safetensors")));
    assert_true(whole.count <= 64);
    write_shard(&whole, model_file("a.safetensors"), 0, map, "a.safetensors");
    write_shard(&whole, model_file("b.safetensors"), 1, map, "b.safetensors");
    moedi_safetensors_close(&whole);
    assert_int_equal(remove(model_file("model.safetensors")), 0);
    assert_ok(moedi_json_write(fuzz_context, index, model_file("model.safetensors.index.json")));
    json_decref(index);
    good_index = fuzz_read(model_file("model.safetensors.index.json"));
    good_config = fuzz_read(model_file("config.json"));
    good_shard = fuzz_read(model_file("a.safetensors"));
}

static void compute(const moed_model *m)
{
    moed_layout_info info = {.struct_size = sizeof info};
    assert_ok(moed_layout_get_info(moed_model_layout(m), &info));
    const int32_t tokens[4] = {0};
    const moed_batch batch = {.tokens = tokens, .rows = 1, .length = info.context_length < 4 ? info.context_length : 4};
    float *logits = malloc(sizeof *logits * 4 * (size_t)info.vocabulary);
    moed_tensor out = {.data = logits, .dtype = MOED_DTYPE_F32, .rank = 3, .shape = {1, batch.length, info.vocabulary},
                       .strides = {batch.length * info.vocabulary, info.vocabulary, 1}};
    const moed_status s = moed_model_logits(m, &batch, &out, NULL);
    if (s != MOED_OK && s != MOED_E_LIMIT && s != MOED_E_NUMERIC)
        fail_msg("an opened model: %s: %s", moed_status_name(s), moed_last_error());
    free(logits);
}

FUZZ_TARGET(model)
{
    fuzz_begin();
    if (!good_index.data) make_model();
    fuzz_part shard = {data, size};
    const fuzz_part index = fuzz_take(&shard), config = fuzz_take(&shard);
    static int changed[3];
    fuzz_write(model_file("model.safetensors.index.json"), index, good_index, &changed[0]);
    fuzz_write(model_file("config.json"), config, good_config, &changed[1]);
    fuzz_write(model_file("a.safetensors"), shard, good_shard, &changed[2]);
    moed_model *m = NULL, *streamed = NULL;
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = MOED_MODEL_STREAM;
    int64_t findings = 0;
    const moed_status looked = moed_model_inspect(fuzz_context, model_dir, &o, NULL, NULL, &findings, NULL);
    const moed_status alone = moed_model_open(&streamed, fuzz_context, model_dir, &o);
    moed_model_destroy(streamed);
    if (looked == MOED_OK && !findings != (alone == MOED_OK))
        fail_msg("opens as a stream: %s, and an inspection finds %d faults", moed_status_name(alone), (int)findings);
    if (looked != MOED_OK && looked != alone)
        fail_msg("opens as a stream: %s, and an inspection ends with %s", moed_status_name(alone), moed_status_name(looked));
    const moed_status status = moed_model_open(&m, fuzz_context, model_dir, NULL);
    if (status != MOED_OK) return fuzz_end(status, NULL);
    if (alone != MOED_OK) fail_msg("opens, but not as a stream: %s", moed_status_name(alone));
    compute(m);
    moed_model_destroy(m);
    return fuzz_end(MOED_OK, NULL);
}
