/* tests/test_mutation.c - files from strangers: every reader meets damaged copies of a good file. Each is taken or refused with
 * a sentence, nothing stays behind in memory, and what is taken can be used. More with `test_mutation COUNT SEED`. */
#include "train_support.h"

#include "util/hash.h"

static int per_file = 100;
static uint64_t random_state = 88172645463325252u;

static uint32_t draw(uint32_t below)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (uint32_t)((random_state >> 33) % below);
}

typedef struct blob {
    char *data;
    size_t size;
} blob;

static blob blob_read(const char *path)
{
    blob b = {0};
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    b.size = (size_t)ftell(f);
    rewind(f);
    b.data = malloc(b.size + 1);
    if (fread(b.data, 1, b.size, f) != b.size) fail_msg("cannot read %s", path);
    fclose(f);
    return b;
}

static void blob_splice(blob *b, size_t at, size_t gone, const char *text, size_t size)
{
    char *data = malloc(b->size - gone + size + 1);
    memcpy(data, b->data, at);
    if (size) memcpy(data + at, text, size);
    memcpy(data + at + size, b->data + at + gone, b->size - at - gone);
    free(b->data);
    b->data = data;
    b->size += size - gone;
}

/* One damage to the first `head` bytes: where the structure is. */
static void damage(blob *b, size_t head)
{
    static const char *const words[] = {"0", "-1", "1", "9223372036854775807", "-9223372036854775808", "1e308", "1e-320", "65536", "2147483648", "null", "true", "[]",
                                        "{}", "\"\"", "[[[[[[", "\\u0000", "\xff", "{\"a\":1}", "4294967295", "18446744073709551615", "NaN", ",", "\n", "../"};
    if (head > b->size) head = b->size;
    if (head == 0) return;
    const size_t at = draw((uint32_t)head), left = b->size - at;
    size_t n = 1 + draw(8);
    if (n > left) n = left;
    switch (draw(9)) {
    case 0: b->data[at] = (char)(b->data[at] ^ 1 << draw(8)); break;
    case 1: b->data[at] = (char)draw(256); break;
    case 2: memset(b->data + at, draw(2) ? 0xff : 0, n); break;
    case 3: blob_splice(b, at, n, NULL, 0); break;
    case 4: b->size = at; break;
    case 5: blob_splice(b, at, 0, b->data + draw((uint32_t)head), n < b->size - head + 1 ? n : 1); break;
    case 6: { /* a number or word becomes another */
        size_t from = at, to;
        while (from < head && !strchr("0123456789-", b->data[from])) from++;
        for (to = from; to < head && strchr("0123456789.eE+-", b->data[to]); to++) {}
        const char *word = words[draw(sizeof words / sizeof *words)];
        blob_splice(b, from, to - from, word, strlen(word));
        break;
    }
    case 7: { /* text becomes something else */
        char *first = memchr(b->data + at, '"', head - at), *last = first ? memchr(first + 1, '"', (size_t)(b->data + head - first - 1)) : NULL;
        const char *word = words[draw(sizeof words / sizeof *words)];
        if (last) blob_splice(b, (size_t)(first - b->data), (size_t)(last - first + 1), word, strlen(word));
        break;
    }
    default: { /* a field goes */
        char *first = memchr(b->data + at, ',', head - at), *last = first ? memchr(first + 1, ',', (size_t)(b->data + head - first - 1)) : NULL;
        if (last) blob_splice(b, (size_t)(first - b->data), (size_t)(last - first), NULL, 0);
    }
    }
}

typedef struct target {
    moed_context *context;
    const char *dir, *file;
    moed_trainer *trainer;
    moed_model *model;
    moed_corpus *corpus;
    int taken, refused;
    char says[1024]; /* of a refusal after which other calls were made */
} target;

static int64_t held(const moed_context *c)
{
    moed_context_info info = {.struct_size = sizeof info};
    assert_ok(moed_context_get_info(c, &info));
    return info.host_in_use;
}

static void check_refusal(moed_status status, const char *says, const char *file)
{
    if (status == MOED_E_INTERNAL || status == MOED_E_ARGUMENT || status == MOED_E_MEMORY)
        fail_msg("%s: %s: %s", file, moed_status_name(status), says);
    if (strlen(says) < 15 || strchr(says, '\n')) fail_msg("%s: \"%s\" is no sentence", file, says);
}

static void mutate(target *t, moed_status (*attempt)(target *), size_t head)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", t->dir, t->file);
    const blob good = blob_read(path);
    const int64_t before = held(t->context);
    assert_ok(attempt(t));
    assert_int_equal(held(t->context), before);
    for (int i = 0; i < per_file; i++) {
        blob b = {.data = malloc(good.size + 1), .size = good.size};
        memcpy(b.data, good.data, good.size);
        for (uint32_t n = 1 + draw(3); n > 0; n--) damage(&b, head);
        support_write(path, b.data, b.size);
        free(b.data);
        t->says[0] = 0;
        const moed_status status = attempt(t);
        if (status == MOED_OK) t->taken++;
        else check_refusal(status, t->says[0] ? t->says : moed_last_error(), t->file), t->refused++;
        if (held(t->context) != before) fail_msg("%s, damage %d: %lld bytes stay held", t->file, i, (long long)(held(t->context) - before));
    }
    support_write(path, good.data, good.size);
    free(good.data);
    assert_true(t->refused > 0);
}

static moed_context *limited_context(void)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.host_limit = 64 << 20;
    assert_ok(moed_context_create(&c, &o));
    return c;
}

/* ---- models ---- */

static moed_status open_model(target *t)
{
    moed_model *m = NULL, *streamed = NULL;
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = MOED_MODEL_STREAM;
    const moed_status alone = moed_model_open(&streamed, t->context, t->dir, &o);
    moed_model_destroy(streamed);
    const moed_status status = moed_model_open(&m, t->context, t->dir, NULL);
    if (status != MOED_OK) return status;
    if (alone != MOED_OK) fail_msg("opens, but not as a stream: %s", moed_status_name(alone));
    moed_layout_info info = {.struct_size = sizeof info};
    assert_ok(moed_layout_get_info(moed_model_layout(m), &info));
    const int32_t tokens[4] = {0};
    const moed_batch batch = {.tokens = tokens, .rows = 1, .length = info.context_length < 4 ? info.context_length : 4};
    float *logits = malloc(sizeof *logits * 4 * (size_t)info.vocabulary);
    moed_tensor out = {.data = logits, .dtype = MOED_DTYPE_F32, .rank = 3, .shape = {1, batch.length, info.vocabulary},
                       .strides = {batch.length * info.vocabulary, info.vocabulary, 1}};
    const moed_status used = moed_model_logits(m, &batch, &out, NULL);
    if (used != MOED_OK && used != MOED_E_LIMIT && used != MOED_E_NUMERIC) fail_msg("an opened model: %s: %s", moed_status_name(used), moed_last_error());
    free(logits);
    moed_model_destroy(m);
    return MOED_OK;
}

static void damaged_models_are_refused(void **state)
{
    (void)state;
    char *dir = support_directory();
    target t = {.context = limited_context(), .dir = support_path(dir, "model")};
    char model[4200];
    snprintf(model, sizeof model, "%s/model", dir);
    t.dir = model;
    moed_model *m = tiny_model_of(t.context, 4, 1, 2, 8);
    assert_ok(moed_model_save(m, model, NULL));
    moed_model_destroy(m);
    t.file = "config.json";
    mutate(&t, open_model, 4000);
    t.file = "model.safetensors";
    mutate(&t, open_model, 2400);
    moed_context_destroy(t.context);
    support_remove(dir);
}

/* ---- corpora ---- */

static moed_status open_corpus(target *t)
{
    moed_corpus *d = NULL;
    char prefix[4200];
    snprintf(prefix, sizeof prefix, "%s/c", t->dir);
    if (strcmp(t->file, "shard.bin") == 0) snprintf(prefix, sizeof prefix, "%s/shard.bin", t->dir);
    const moed_status status = moed_corpus_open(&d, t->context, prefix, NULL);
    if (status != MOED_OK) return status;
    moed_corpus_info info = {.struct_size = sizeof info};
    assert_ok(moed_corpus_get_info(d, &info));
    int32_t tokens[64], labels[64], documents[64];
    for (int64_t i = 0, n; i < info.documents; i++) {
        const moed_status s = moed_corpus_read(d, i, 0, tokens, 64, &n);
        if (s != MOED_OK) check_refusal(s, moed_last_error(), t->file);
    }
    const moed_status s = moed_corpus_sample(d, 1, 0, 2, 32, tokens, labels, documents);
    if (s != MOED_OK) check_refusal(s, moed_last_error(), t->file);
    moed_corpus_destroy(d);
    return MOED_OK;
}

static void damaged_corpora_are_refused(void **state)
{
    (void)state;
    char *dir = support_directory();
    target t = {.context = limited_context(), .dir = dir};
    moed_corpus *d = tiny_corpus(t.context, NULL);
    assert_ok(moed_corpus_save(d, support_path(dir, "c"), NULL));
    moed_corpus_destroy(d);
    t.file = "c.json";
    mutate(&t, open_corpus, 4000);
    t.file = "c.idx";
    mutate(&t, open_corpus, 100);
    assert_int_equal(remove(support_path(dir, "c.json")), 0); /* nothing else says what the token files are */
    mutate(&t, open_corpus, 1000);
    t.file = "c.bin";
    mutate(&t, open_corpus, 1000);
    int32_t shard[256 + 16] = {20240520, 1, 32};
    uint16_t *tokens = (uint16_t *)(void *)(shard + 256);
    for (int i = 0; i < 32; i++) tokens[i] = i % 5 ? (uint16_t)i : 50256;
    support_write(support_path(dir, "shard.bin"), shard, sizeof shard);
    t.file = "shard.bin";
    mutate(&t, open_corpus, 12);
    moed_context_destroy(t.context);
    support_remove(dir);
}

static moed_status build_corpus(target *t)
{
    char from[4200], to[4200];
    snprintf(from, sizeof from, "%s/%s", t->dir, t->file);
    snprintf(to, sizeof to, "%s/built", t->dir);
    const char *const paths[] = {from};
    return moed_corpus_build(t->context, paths, 1, to, NULL, NULL, NULL);
}

static void damaged_lines_are_refused(void **state)
{
    (void)state;
    static const char lines[] = "{\"text\": \"one\", \"id\": 1}\n{\"text\": \"tw\\u00f6\", \"meta\": {\"a\": [1, 2.5, null]}}\n\n{\"id\": 3, \"text\": \"three\"}\n";
    char *dir = support_directory();
    target t = {.context = limited_context(), .dir = dir, .file = "in.jsonl"};
    support_write(support_path(dir, "in.jsonl"), lines, sizeof lines - 1);
    mutate(&t, build_corpus, sizeof lines);
    moed_context_destroy(t.context);
    support_remove(dir);
}

/* ---- partitions ---- */

static moed_status open_partition(target *t)
{
    moed_partition *p = NULL;
    const moed_status status = moed_partition_open(&p, t->context, support_path(t->dir, t->file));
    if (status != MOED_OK) return status;
    moed_partition_info info = {.struct_size = sizeof info};
    assert_ok(moed_partition_get_info(p, &info));
    for (int64_t i = 0; i < info.documents; i++) assert_true(info.labels[i] >= 0 && info.labels[i] < info.clusters);
    moed_partition_destroy(p);
    return MOED_OK;
}

static void damaged_partitions_are_refused(void **state)
{
    (void)state;
    char *dir = support_directory();
    target t = {.context = limited_context(), .dir = dir, .file = "p.safetensors"};
    moed_partition *p = NULL;
    const int32_t labels[6] = {0, 1, 2, 0, 1, 2};
    float rows[6] = {1, 2, 3, 4, 5, 6};
    const moed_tensor centroids = support_tensor(rows, MOED_DTYPE_F32, 3, 2);
    assert_ok(moed_partition_create(&p, t.context, labels, 6, 3, &centroids, NULL));
    assert_ok(moed_partition_save(p, support_path(dir, t.file)));
    moed_partition_destroy(p);
    mutate(&t, open_partition, 400);
    moed_context_destroy(t.context);
    support_remove(dir);
}

/* ---- checkpoints ---- */

/* The manifest is made to agree again with what was damaged, so that the damage gets past it. */
static void mend_manifest(const char *root)
{
    static const char *const parts[] = {"model/config.json", "model/model.safetensors", "optimizer.safetensors", "state.json"};
    char path[4300], text[2048];
    int n = snprintf(text, sizeof text, "{\"format\": 1, \"files\": {");
    for (int i = 0; i < 4; i++) {
        char digest[33];
        snprintf(path, sizeof path, "%s/%s", root, parts[i]);
        const blob b = blob_read(path);
        moedi_digest_print(moedi_hash_bytes(b.data, b.size), digest);
        n += snprintf(text + n, sizeof text - (size_t)n, "%s\"%s\": {\"bytes\": %zu, \"xxh3_128\": \"%s\"}", i ? "," : "", parts[i], b.size, digest);
        free(b.data);
    }
    n += snprintf(text + n, sizeof text - (size_t)n, "}}");
    snprintf(path, sizeof path, "%s/manifest.json", root);
    support_write(path, text, (size_t)n);
}

static moed_status resume(target *t)
{
    moed_train_options o = tiny_options(4);
    moed_trainer *trainer = NULL;
    char directory[4200];
    snprintf(directory, sizeof directory, "%.*s", (int)(strstr(t->dir, "/checkpoints/") - t->dir), t->dir);
    o.directory = directory, o.rows = 1, o.length = 4;
    if (strcmp(t->file, "manifest.json") != 0) mend_manifest(t->dir);
    assert_ok(moed_trainer_create(&trainer, t->context, t->model, t->corpus, NULL, &o));
    size_t count;
    float *before = model_numbers(t->model, &count), *after;
    const moed_status status = moed_trainer_resume(trainer);
    moed_trainer_info info = {.struct_size = sizeof info};
    if (status != MOED_OK) {
        snprintf(t->says, sizeof t->says, "%s", moed_last_error());
        assert_ok(moed_trainer_get_info(trainer, &info));
        after = model_numbers(t->model, &count);
        if (memcmp(before, after, count * sizeof *after) != 0) fail_msg("a refused resume (%s) changed the model", t->says);
        assert_int_equal(info.step, 0);
        free(after);
    } else {
        const moed_status s = moed_trainer_run(trainer, 1, NULL, NULL);
        if (s != MOED_OK && s != MOED_E_NUMERIC && s != MOED_E_STATE && s != MOED_E_ARGUMENT && s != MOED_E_RANGE)
            fail_msg("after a resume: %s: %s", moed_status_name(s), moed_last_error());
    }
    free(before);
    moed_trainer_destroy(trainer);
    return status;
}

static void damaged_checkpoints_are_refused(void **state)
{
    (void)state;
    char *dir = support_directory(), step[4200];
    target t = {.context = limited_context()};
    t.model = tiny_model_of(t.context, 4, 1, 2, TINY_VOCABULARY);
    t.corpus = tiny_corpus(t.context, NULL);
    moed_trainer *trainer = NULL;
    moed_train_options o = tiny_options(4);
    o.directory = dir, o.rows = 1, o.length = 4;
    assert_ok(moed_trainer_create(&trainer, t.context, t.model, t.corpus, NULL, &o));
    assert_ok(moed_trainer_run(trainer, 1, NULL, NULL));
    assert_ok(moed_trainer_save(trainer));
    moed_trainer_destroy(trainer);
    snprintf(step, sizeof step, "%s/checkpoints/step-1", dir);
    t.dir = step;
    static const char *const files[] = {"manifest.json", "state.json", "optimizer.safetensors", "model/config.json", "model/model.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        t.file = files[i];
        mutate(&t, resume, 2000);
        if (i == 0) mend_manifest(step);
    }
    moed_corpus_destroy(t.corpus);
    moed_model_destroy(t.model);
    moed_context_destroy(t.context);
    support_remove(dir);
}

int main(int argc, char **argv)
{
    if (argc > 1) per_file = atoi(argv[1]);
    if (argc > 2) random_state ^= (uint64_t)atoll(argv[2]) * 2654435769u;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(damaged_models_are_refused),   cmocka_unit_test(damaged_corpora_are_refused),     cmocka_unit_test(damaged_lines_are_refused),
        cmocka_unit_test(damaged_partitions_are_refused), cmocka_unit_test(damaged_checkpoints_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
