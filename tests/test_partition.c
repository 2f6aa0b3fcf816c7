/* test_partition.c - document -> cluster: files, views, and what does not belong together. */
#include "support.h"

#define FIXTURE_FOLDER
#include "fixture.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "util/json.h"
#include "util/safetensors.h"

static moed_corpus *corpus_of(const char *name, const char *lines)
{
    moed_corpus *d = NULL;
    char path[4200], prefix[4200];
    snprintf(path, sizeof path, "%s/%s.jsonl", dir, name);
    snprintf(prefix, sizeof prefix, "%s/%s", dir, name);
    support_write(path, lines, strlen(lines));
    const char *paths[1] = {path};
    assert_ok(moed_corpus_build(context, paths, 1, prefix, NULL, NULL, NULL));
    assert_ok(moed_corpus_open(&d, context, prefix, NULL));
    return d;
}
static moed_corpus *six(void)
{
    return corpus_of(
        "six", "{\"text\":\"a\"}\n{\"text\":\"b\"}\n{\"text\":\"c\"}\n{\"text\":\"d\"}\n{\"text\":\"e\"}\n{\"text\":\"f\"}\n");
}
static const int32_t six_labels[6] = {0, 2, 0, 2, 2, 0};

static void a_saved_partition_comes_back_whole(void **state)
{
    (void)state;
    moed_corpus *d = six();
    moed_partition *p = NULL, *q = NULL;
    float centroids[6] = {1, 2, 3, 4, 5, 6};
    const moed_tensor t = support_tensor(centroids, MOED_DTYPE_F32, 3, 2);
    moed_corpus_info corpus = {.struct_size = sizeof corpus};
    moed_partition_info info = {.struct_size = sizeof info};
    assert_ok(moed_corpus_get_info(d, &corpus));
    for (int with = 0; with < 2; with++) {
        assert_ok(moed_partition_create(&p, context, six_labels, 6, 3, with ? &t : NULL, with ? d : NULL));
        assert_ok(moed_partition_save(p, support_path(dir, "p.safetensors")));
        assert_ok(moed_partition_open(&q, context, support_path(dir, "p.safetensors")));
        assert_ok(moed_partition_get_info(q, &info));
        assert_int_equal(info.documents, 6);
        assert_int_equal(info.clusters, 3);
        assert_int_equal(info.width, with ? 2 : 0);
        assert_memory_equal(info.labels, six_labels, sizeof six_labels);
        if (with) assert_memory_equal(info.centroids, centroids, sizeof centroids);
        else assert_null(info.centroids);
        assert_string_equal(info.fingerprint, with ? corpus.fingerprint : "");
        moed_partition_destroy(p), moed_partition_destroy(q);
    }
    moed_corpus_destroy(d);
}

static void views_hold_the_documents_of_a_cluster(void **state)
{
    (void)state;
    moed_corpus *d = six(), *v = NULL, *part = NULL;
    moed_partition *p = NULL;
    const int64_t list[3] = {5, 1, 0}, wanted[3] = {0, 2, 5}, wanted_part[2] = {5, 0};
    int64_t source;
    moed_corpus_info info = {.struct_size = sizeof info};
    assert_ok(moed_partition_create(&p, context, six_labels, 6, 3, NULL, d));
    assert_ok(moed_partition_view(&v, p, d, 0));
    assert_ok(moed_corpus_get_info(v, &info));
    assert_int_equal(info.documents, 3);
    for (int i = 0; i < 3; i++) {
        assert_ok(moed_corpus_source_document(v, i, &source));
        assert_int_equal(source, wanted[i]);
    }
    moed_corpus_destroy(v);
    assert_ok(moed_corpus_subset(&part, d, list, 3)); /* labels are by document of the whole corpus */
    assert_ok(moed_partition_view(&v, p, part, 0));
    assert_ok(moed_corpus_get_info(v, &info));
    assert_int_equal(info.documents, 2);
    for (int i = 0; i < 2; i++) {
        assert_ok(moed_corpus_source_document(v, i, &source));
        assert_int_equal(source, wanted_part[i]);
    }
    moed_corpus_destroy(v);
    assert_refused(moed_partition_view(&v, p, d, 1), MOED_E_NOT_FOUND, "cluster 1 has no document");
    assert_refused(moed_partition_view(&v, p, d, 3), MOED_E_RANGE, "cluster 3 of 3");
    moed_partition_destroy(p), moed_corpus_destroy(part), moed_corpus_destroy(d);
}

static void another_corpus_is_refused_with_both_fingerprints(void **state)
{
    (void)state;
    moed_corpus *d = six();
    moed_corpus *other = corpus_of("other", "{\"text\":\"1\"}\n{\"text\":\"2\"}\n{\"text\":\"3\"}\n"
                                    "{\"text\":\"4\"}\n{\"text\":\"5\"}\n{\"text\":\"6\"}\n");
    moed_corpus *few = corpus_of("few", "{\"text\":\"1\"}\n"), *v = NULL;
    moed_partition *p = NULL, *loose = NULL;
    moed_corpus_info a = {.struct_size = sizeof a}, b = {.struct_size = sizeof b};
    assert_ok(moed_corpus_get_info(d, &a));
    assert_ok(moed_corpus_get_info(other, &b));
    assert_ok(moed_partition_create(&p, context, six_labels, 6, 3, NULL, d));
    assert_refused(moed_partition_view(&v, p, other, 0), MOED_E_MISMATCH, a.fingerprint);
    assert_refused(moed_partition_view(&v, p, other, 0), MOED_E_MISMATCH, b.fingerprint);
    assert_ok(moed_partition_create(&loose, context, six_labels, 6, 3, NULL, NULL));
    assert_refused(moed_partition_view(&v, loose, few, 0), MOED_E_MISMATCH, "6 documents, the corpus has 1");
    moed_partition_destroy(p);
    assert_refused(moed_partition_create(&p, context, six_labels, 6, 3, NULL, few), MOED_E_MISMATCH,
                   "6 labels for a corpus of 1");
    moed_partition_destroy(loose);
    moed_corpus_destroy(d), moed_corpus_destroy(other), moed_corpus_destroy(few);
}

static void bad_arguments_are_refused(void **state)
{
    (void)state;
    moed_partition *p = NULL;
    const int32_t labels[3] = {0, 3, 1}, negative[3] = {0, -1, 1};
    float centroids[2] = {1, NAN};
    const moed_tensor t = support_tensor(centroids, MOED_DTYPE_F32, 2, 1);
    assert_refused(moed_partition_create(&p, context, labels, 3, 3, NULL, NULL), MOED_E_RANGE, "document 1 is in cluster 3 of 3");
    assert_refused(moed_partition_create(&p, context, negative, 3, 3, NULL, NULL), MOED_E_RANGE, "document 1 is in cluster -1");
    assert_refused(moed_partition_create(&p, context, labels, 0, 3, NULL, NULL), MOED_E_ARGUMENT, "0 documents");
    assert_refused(moed_partition_create(&p, context, labels, 3, 0, NULL, NULL), MOED_E_RANGE, "clusters is 0");
    assert_refused(moed_partition_create(&p, context, labels, 3, 4, &t, NULL), MOED_E_ARGUMENT, "(4, width)");
    assert_refused(moed_partition_create(&p, context, labels, 1, 2, &t, NULL), MOED_E_NUMERIC, "centroid of cluster 1");
    assert_refused(moed_partition_open(&p, context, support_path(dir, "none")), MOED_E_NOT_FOUND, "none");
    assert_null(p);
}

/* a partition file as this library would not write it */
static void write_file(const char *clusters, const char *corpus, const char *format, const char *version, const char *name,
                       int32_t dtype, int32_t label)
{
    moedi_safetensors_writer w;
    const int32_t labels[4] = {0, 1, label, 0};
    const moedi_safetensors_entry e = {.name = name, .dtype = dtype, .rank = 1, .shape = {dtype == MOED_DTYPE_I32 ? 4 : 2}};
    json_t *metadata = json_pack("{s:s, s:s, s:s, s:s}", "format", format, "version", version, "clusters", clusters, "corpus",
                                 corpus);
    assert_ok(moedi_safetensors_create(&w, context, support_path(dir, "p"), &e, 1, metadata));
    assert_ok(moedi_safetensors_write(&w, 0, 0, labels, 16));
    assert_ok(moedi_safetensors_commit(&w));
    json_decref(metadata);
}

static void a_flipped_bit_of_labels_or_centroids_is_told(void **state)
{
    (void)state;
    moed_partition *p = NULL;
    const int32_t labels[4] = {0, 1, 1, 0};
    float numbers[2] = {1, 2};
    const moed_tensor centroids = support_tensor(numbers, MOED_DTYPE_F32, 2, 1);
    for (long back = 1; back <= 24; back += 4) { /* of every number, from the end of the file on */
        assert_ok(moed_partition_create(&p, context, labels, 4, 2, &centroids, NULL));
        assert_ok(moed_partition_save(p, support_path(dir, "p")));
        moed_partition_destroy(p);
        p = NULL;
        FILE *f = fopen(support_path(dir, "p"), "r+b");
        assert_non_null(f);
        /* a centroid's exponent, a label's lowest byte */
        assert_int_equal(fseek(f, back <= 8 ? -back : -back + 1 - 4, SEEK_END), 0);
        const int byte = fgetc(f);
        assert_int_equal(fseek(f, -1, SEEK_CUR), 0);
        assert_int_not_equal(fputc(byte ^ 1, f), EOF);
        assert_int_equal(fclose(f), 0);
        assert_refused(moed_partition_open(&p, context, support_path(dir, "p")), MOED_E_CHECKSUM, "is damaged");
        assert_null(p);
    }
}

static void damaged_files_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *clusters, *corpus, *format, *version, *name;
        int32_t dtype, label;
        const char *words;
    } cases[] = {
        {"2", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, 2, "document 2 is in cluster 2 of 2"},
        {"2", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, -7, "document 2 is in cluster -7 of 2"},
        {"0", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, 0, "clusters: \"0\""},
        {"2x", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, 0, "clusters: \"2x\""},
        {"99999999999999999999", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, 0, "clusters"},
        {"2", "zz", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, 0, "corpus: \"zz\""},
        {"2", "", "other", "1", "assignments", MOED_DTYPE_I32, 0, "format: \"other\""},
        {"2", "", "moedisco-partition", "9", "assignments", MOED_DTYPE_I32, 0, "version: \"9\""},
        {"2", "", "moedisco-partition", "1", "labels", MOED_DTYPE_I32, 0, "no tensor \"assignments\""},
        {"2", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I64, 0, "assignments: I64"},
    };
    moed_partition *p = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(cases[i].clusters, cases[i].corpus, cases[i].format, cases[i].version, cases[i].name, cases[i].dtype,
                   cases[i].label);
        const moed_status status = moed_partition_open(&p, context, support_path(dir, "p"));
        assert_true(status == MOED_E_FORMAT || status == MOED_E_UNSUPPORTED);
        if (!strstr(moed_last_error(), cases[i].words)) fail_msg("%s lacks %s", moed_last_error(), cases[i].words);
    }
    write_file("2", "", "moedisco-partition", "1", "assignments", MOED_DTYPE_I32, 1);
    assert_ok(moed_partition_open(&p, context, support_path(dir, "p")));
    moed_partition_destroy(p);
    p = NULL;
    support_write(support_path(dir, "p"), "not safetensors at all", 22);
    assert_refused(moed_partition_open(&p, context, support_path(dir, "p")), MOED_E_FORMAT, "/p");
    assert_null(p);
}

static void a_full_disk_leaves_nothing(void **state)
{
    (void)state;
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit r = {100, 100};
        static int32_t labels[1000];
        moed_partition *p = NULL;
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &r);
        moed_context *own = support_context("reference", 1);
        if (moed_partition_create(&p, own, labels, 1000, 1, NULL, NULL) != MOED_OK) _exit(2);
        _exit(moed_partition_save(p, support_path(dir, "p.safetensors")) != MOED_OK && strstr(moed_last_error(), "p.safetensors")
                  ? 0
                  : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    assert_int_equal(status, 0);
    assert_int_equal(rmdir(dir), 0); /* empty: neither the file nor a temporary one */
    assert_int_equal(mkdir(dir, 0700), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_saved_partition_comes_back_whole),
        T(views_hold_the_documents_of_a_cluster),
        T(another_corpus_is_refused_with_both_fingerprints),
        T(bad_arguments_are_refused),
        T(damaged_files_are_named),
        T(a_flipped_bit_of_labels_or_centroids_is_told),
        T(a_full_disk_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
