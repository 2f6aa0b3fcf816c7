/* Every call that writes and every allocation - the context's and jansson's - fails in turn, in everything the library does: a
 * status of the right kind, no leak, no leftover, the old files or the new ones; and without faults the same call succeeds
 * afterwards. */
#include "support.h"

#include <dirent.h>

#include <jansson.h>

#include "faults/faults.c"
#include "train_support.h"

static int64_t outstanding; /* jansson's blocks */
static int full;            /* every fault; else some, for a few seconds */

static void *json_memory(size_t size)
{
    void *block = memory("jansson") ? NULL : malloc(size);
    outstanding += block != NULL;
    return block;
}
static void json_free(void *block)
{
    outstanding -= block != NULL;
    free(block);
}
static void *context_memory(size_t size, size_t alignment, void *user)
{
    (void)user;
    return memory("context") ? NULL : aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
static void context_free(void *block, size_t size, void *user)
{
    (void)size, (void)user;
    free(block);
}

/* ---- what is done ---- */

typedef struct bench {
    moed_context *context;
    moed_corpus *corpus, *view[2]; /* 20 documents; two parts of it */
    moed_model *model[2], *part[2];
    moed_split *split;
    char *dir;
} bench;

static const char *at(const bench *b, const char *name) { return support_path(b->dir, name); }

/* `variant` 0 makes what lies there, 1 what replaces it. */
typedef moed_status (*flow)(bench *b, int variant);

static moed_status build_corpus(bench *b, int variant)
{
    const char *paths[] = {at(b, "text"), at(b, "more")};
    return moed_corpus_build(b->context, paths, variant ? 2 : 1, at(b, "out/c"), NULL, NULL, NULL);
}
static moed_status save_corpus(bench *b, int variant) { return moed_corpus_save(b->view[variant], at(b, "out/c"), NULL); }
static moed_status save_partition(bench *b, int variant)
{
    int32_t labels[64] = {0};
    moed_corpus_info info = {.struct_size = sizeof info};
    moed_partition *p = NULL;
    for (int i = 0; i < 64; i++) labels[i] = (i + variant) % 2;
    assert_ok(moed_corpus_get_info(b->corpus, &info));
    moed_status status = moed_partition_create(&p, b->context, labels, info.documents, 2, NULL, b->corpus);
    if (status == MOED_OK) status = moed_partition_save(p, at(b, "out/p"));
    moed_partition_destroy(p);
    return status;
}
static moed_status save_model(bench *b, int variant) { return moed_model_save(b->model[variant], at(b, "out/m"), NULL); }
static moed_status build_part(bench *b, int variant)
{
    moed_model *part = NULL;
    const moed_status status = moed_split_build(variant ? &part : NULL, b->split, 0, b->model[variant], at(b, "out/m"), NULL);
    moed_model_destroy(part);
    return status;
}
static moed_status finish_integration(bench *b, int variant)
{
    moed_integration *i = NULL;
    moed_integration_options o;
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &o, sizeof o));
    moed_status status = moed_integration_create(&i, b->split, b->model[0], &o);
    for (int32_t k = 0; k < 2 && status == MOED_OK; k++) status = moed_integration_add(i, k, b->part[k], 1.0 + variant * k);
    if (status == MOED_OK) status = moed_integration_finish(NULL, i, at(b, "out/m"), NULL);
    moed_integration_destroy(i);
    return status;
}

/* From a directory with a tokenizer; variant 1 in several files. */
static moed_status copy_model(bench *b, int variant)
{
    moed_model *m = NULL;
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = MOED_MODEL_STREAM;
    moed_status status = moed_model_open(&m, b->context, at(b, "m"), &o);
    o.flags = 0, o.shard_bytes = variant ? 8000 : 0;
    if (status == MOED_OK) status = moed_model_save(m, at(b, "out/m"), &o);
    moed_model_destroy(m);
    return status;
}
static moed_status upcycle(bench *b, int variant)
{
    moed_upcycle_options o;
    assert_ok(moed_options_init(MOED_STRUCT_UPCYCLE_OPTIONS, &o, sizeof o));
    o.experts = 3, o.redraw = 0.5, o.noise = 0.1, o.seed = (uint64_t)variant;
    return moed_model_upcycle(NULL, b->part[0], at(b, "out/m"), &o, NULL);
}

/* A run that goes on from where the one before was stopped. */
static moed_status train(bench *b, int variant)
{
    moed_trainer *t = NULL;
    moed_model *m = NULL;
    moed_train_options o = tiny_options(variant ? 4 : 2);
    char dir[4200];
    snprintf(dir, sizeof dir, "%s", at(b, "out"));
    o.directory = dir, o.checkpoint_every = 1, o.keep = 2, o.evaluate_every = 2, o.held_out = b->view[1], o.steps = 4;
    moed_status status = moed_split_build(&m, b->split, 0, b->model[0], NULL, NULL);
    if (status == MOED_OK) status = moed_trainer_create(&t, b->context, m, b->view[0], NULL, &o);
    if (status == MOED_OK) status = moed_trainer_resume(t);
    if (status == MOED_E_NOT_FOUND) status = MOED_OK;
    if (status == MOED_OK) status = moed_trainer_run(t, variant ? 0 : 2, NULL, NULL);
    if (status == MOED_OK) status = moed_trainer_save(t);
    moed_trainer_destroy(t);
    moed_model_destroy(m);
    return status;
}

/* What writes nothing. */
static moed_status read_all(bench *b, int variant)
{
    moed_model *m = NULL;
    moed_corpus *c = NULL, *train_view = NULL, *held = NULL, *cluster = NULL;
    moed_kmeans *k = NULL;
    moed_partition *p = NULL;
    moed_kmeans_options o;
    float x[64 * 16];
    int32_t labels[64] = {0};
    moed_report r = empty_report();
    moed_corpus_info info = {.struct_size = sizeof info};
    (void)variant;
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
    o.clusters = 2;
    int64_t findings = 0;
    moed_status status = moed_model_inspect(b->context, at(b, "m"), NULL, NULL, NULL, &findings, NULL);
    if (status == MOED_OK) assert_int_equal(findings, 0);
    if (status == MOED_OK) status = moed_model_open(&m, b->context, at(b, "m"), NULL);
    if (status == MOED_OK) status = moed_corpus_open(&c, b->context, at(b, "c"), NULL);
    if (status == MOED_OK) status = moed_corpus_divide(&train_view, &held, c, 0.2, 1);
    if (status == MOED_OK) status = moed_corpus_get_info(train_view, &info);
    moed_tensor t = support_tensor(x, MOED_DTYPE_F32, info.documents, 16);
    if (status == MOED_OK) status = moed_corpus_embed(train_view, m, &t, NULL, NULL);
    if (status == MOED_OK) status = moed_kmeans_create(&k, b->context, &o);
    if (status == MOED_OK) status = moed_kmeans_fit(k, &t, NULL, NULL, NULL);
    if (status == MOED_OK) status = moed_kmeans_assign(k, &t, labels, NULL, NULL);
    if (status == MOED_OK) status = moed_partition_open(&p, b->context, at(b, "p"));
    if (status == MOED_OK) status = moed_partition_view(&cluster, p, train_view, 1);
    if (status == MOED_OK) status = moed_model_evaluate(m, cluster, 40, 2, 8, 0, &r, NULL);
    moed_partition_destroy(p);
    moed_kmeans_destroy(k);
    moed_corpus_destroy(cluster);
    moed_corpus_destroy(held);
    moed_corpus_destroy(train_view);
    moed_corpus_destroy(c);
    moed_model_destroy(m);
    return status;
}

/* ---- what lies there ---- */

static int is_content(const struct dirent *e) { return strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0; }

/* Names and contents below path; *leftovers counts temporaries, which do not belong to it. */
static uint64_t digest(const char *path, int *leftovers)
{
    struct dirent **names = NULL;
    uint64_t h = 14695981039346656037u;
    const int count = scandir(path, &names, is_content, alphasort);
    if (count < 0) {
        FILE *f = fopen(path, "rb");
        for (int c; f && (c = getc(f)) != EOF;) h = (h ^ (uint64_t)c) * 1099511628211u;
        if (f) fclose(f);
        return h;
    }
    for (int i = 0; i < count; i++) {
        char child[4400];
        snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name);
        const int temporary = strstr(names[i]->d_name, ".tmp-") || strstr(names[i]->d_name, ".old-");
        *leftovers += temporary;
        for (const char *c = names[i]->d_name; *c && !temporary; c++) h = (h ^ (uint64_t)*c) * 1099511628211u;
        if (!temporary) h = (h ^ digest(child, leftovers)) * 1099511628211u;
        free(names[i]);
    }
    free(names);
    return h;
}

static bench open_bench(void)
{
    bench b = {.dir = support_directory()};
    moed_context_options o;
    moed_split_options s;
    char path[4200];
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.alloc = context_memory, o.free = context_free;
    assert_ok(moed_context_create(&b.context, &o));
    assert_int_equal(mkdir(at(&b, "text"), 0777) | mkdir(at(&b, "more"), 0777) | mkdir(at(&b, "out"), 0777), 0);
    for (int i = 0; i < 22; i++) {
        snprintf(path, sizeof path, "%s/%s/%d.jsonl", b.dir, i < 20 ? "text" : "more", i);
        char line[200];
        snprintf(line, sizeof line, "{\"text\": \"%d \\u00e9 sheep and %d cows on farm %d sleep under the tree\"}\n", i, i * i,
                 i);
        support_write(path, line, strlen(line));
    }
    const char *text = at(&b, "text");
    assert_ok(moed_corpus_build(b.context, &text, 1, at(&b, "c"), NULL, NULL, NULL));
    assert_ok(moed_corpus_open(&b.corpus, b.context, at(&b, "c"), NULL));
    assert_ok(moed_corpus_divide(&b.view[0], &b.view[1], b.corpus, 0.3, 1));
    for (int i = 0; i < 2; i++) b.model[i] = tiny_model_of(b.context, 16, 1, 2, 257);
    moed_tensor x;
    assert_ok(moed_model_tensor(b.model[1], 0, &x));
    ((float *)x.data)[3] += 1;
    assert_ok(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &s, sizeof s));
    assert_ok(moed_split_create(&b.split, moed_model_layout(b.model[0]), &s));
    for (int32_t i = 0; i < 2; i++) assert_ok(moed_split_build(&b.part[i], b.split, i, b.model[0], NULL, NULL));
    assert_ok(moed_model_save(b.model[0], at(&b, "m"), NULL));
    support_write(at(&b, "m/tokenizer.json"), "{}", 2);
    save_partition(&b, 0);
    assert_int_equal(rename(at(&b, "out/p"), at(&b, "p")), 0);
    return b;
}

static void close_bench(bench *b)
{
    for (int i = 0; i < 2; i++) moed_model_destroy(b->model[i]), moed_model_destroy(b->part[i]);
    moed_split_destroy(b->split);
    for (int i = 0; i < 2; i++) moed_corpus_destroy(b->view[i]);
    moed_corpus_destroy(b->corpus);
    support_close(b->context);
    support_remove(b->dir);
}

/* ---- in turn ---- */

static const char *const kind_names[] = {"count", "no space", "an I/O error", "a short write", "an interruption", "no memory"};

static moed_status expected_of(int kind)
{
    return kind == FAULT_NOMEM ? MOED_E_MEMORY : kind == FAULT_ENOSPC ? MOED_E_SPACE : MOED_E_IO;
}

static void empty_out(bench *b)
{
    char command[4300];
    snprintf(command, sizeof command, "rm -rf '%s'/out/*", b->dir);
    assert_int_equal(system(command), 0);
}

/* Which calls fail: all of them, or ever larger steps that begin elsewhere for each kind, so that together they meet more. */
static int64_t first_call(int kind) { return full ? 1 : 1 + kind % 4; }
static int64_t next_call(int64_t n) { return full ? n + 1 : n + 1 + n / 4; }

/* How many faults there were. Writing flows: `out` goes from variant 0 to 1; a run goes on instead, and its end is what
 * counts. */
static int64_t fail_in_turn(bench *b, flow f, int kind, int is_run)
{
    int nothing = 0;
    const int64_t held = support_held(b->context), blocks = outstanding;
    uint64_t old = 0, new = 0;
    fault_arm(0, FAULT_COUNT, 0);
    empty_out(b);
    for (int variant = 0; variant < 2; variant++) {
        assert_ok(f(b, variant));
        *(variant ? &new : &old) = digest(is_run ? at(b, "out/checkpoints/step-4/model") : at(b, "out"), &nothing);
    }
    for (int64_t n = first_call(kind), done = 0;; done++, n = next_call(n)) {
        int leftovers = 0;
        fault_arm(0, FAULT_COUNT, 0);
        if (is_run) empty_out(b);
        assert_ok(f(b, 0));
        fault_arm(kind == FAULT_NOMEM ? FAULT_MEMORY : FAULT_CALLS, kind, n);
        const moed_status status = f(b, 1);
        const int hit = (int)fault_now->hit;
        char said[600];
        snprintf(said, sizeof said, "%s", moed_last_error());
        fault_arm(0, FAULT_COUNT, 0);
        if (!hit) {
            assert_int_equal(status, MOED_OK);
            return done;
        }
        const int swallowed = kind == FAULT_SHORT || kind == FAULT_EINTR;
        if (status != MOED_OK && (swallowed || status != expected_of(kind)))
            fail_msg("%s at call %d (%s): %s: %s", kind_names[kind], (int)n, fault_now->last, moed_status_name(status), said);
        if (support_held(b->context) != held || outstanding != blocks)
            fail_msg("%s at call %d: a leak", kind_names[kind], (int)n);
        const uint64_t now = digest(at(b, "out"), &leftovers);
        if (!is_run && now != new && (status == MOED_OK || now != old))
            fail_msg("%s at call %d: neither the old files nor the new ones, %s: %s", kind_names[kind], (int)n,
                     moed_status_name(status), said);
        assert_ok(f(b, 1));
        assert_int_equal(digest(is_run ? at(b, "out/checkpoints/step-4/model") : at(b, "out"), &nothing), new);
        leftovers = 0;
        digest(at(b, "out"), &leftovers);
        if (leftovers) fail_msg("%s at call %d: a leftover stays", kind_names[kind], (int)n);
    }
}

static const struct {
    const char *name;
    flow run;
    int is_run, writes;
} flows[] = {
    {"corpus_build", build_corpus, 0, 1},     {"corpus_save", save_corpus, 0, 1},
    {"partition_save", save_partition, 0, 1}, {"model_save", save_model, 0, 1},
    {"split_build", build_part, 0, 1},        {"integration_finish", finish_integration, 0, 1},
    {"a copy with its tokenizer", copy_model, 0, 1}, {"upcycle", upcycle, 0, 1},
    {"trainer", train, 1, 1},                 {"reading", read_all, 0, 0},
};

static void every_fault(int kind)
{
    bench b = open_bench();
    for (size_t i = 0; i < sizeof flows / sizeof flows[0]; i++) {
        if (!flows[i].writes && kind != FAULT_NOMEM) continue;
        print_message("%s, %s...\n", flows[i].name, kind_names[kind]);
        const int64_t faults = fail_in_turn(&b, flows[i].run, kind, flows[i].is_run);
        print_message("%s: %d times %s\n", flows[i].name, (int)faults, kind_names[kind]);
        assert_true(faults >= 2);
    }
    close_bench(&b);
}

static void a_full_disk_at_any_call_is_told(void **state) { (void)state, every_fault(FAULT_ENOSPC); }
static void an_io_error_at_any_call_is_told(void **state) { (void)state, every_fault(FAULT_EIO); }
static void short_writes_are_continued(void **state) { (void)state, every_fault(FAULT_SHORT); }
static void interrupted_calls_are_repeated(void **state) { (void)state, every_fault(FAULT_EINTR); }
static void every_allocation_may_be_refused(void **state) { (void)state, every_fault(FAULT_NOMEM); }

/* test_faults [full [PATTERN OF TESTS]] */
int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_disk_at_any_call_is_told), cmocka_unit_test(an_io_error_at_any_call_is_told),
        cmocka_unit_test(short_writes_are_continued),      cmocka_unit_test(interrupted_calls_are_repeated),
        cmocka_unit_test(every_allocation_may_be_refused),
    };
    full = argc > 1 && !strcmp(argv[1], "full");
    if (argc > 2) cmocka_set_test_filter(argv[2]);
    if (access("/dev/shm", W_OK) == 0) setenv("TMPDIR", "/dev/shm", 1); /* what a fault leaves is tested, not the disk */
    json_set_alloc_funcs(json_memory, json_free);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
