/* cluster/partition.c - document -> cluster, as a safetensors file that names its corpus. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/options.h"
#include "corpus/corpus.h"
#include "moedisco/cluster.h"
#include "util/dtype.h"
#include "util/hash.h"
#include "util/safetensors.h"

#define FORMAT "moedisco-partition"
#define VERSION "1"

struct moed_partition {
    moed_context *context;
    int32_t *labels;  /* (documents) */
    float *centroids; /* (clusters, width), NULL = none */
    moed_partition_info info;
};

void moed_partition_destroy(moed_partition *p)
{
    if (!p) return;
    moed_context *c = p->context;
    moedi_free(c, p->labels);
    moedi_free(c, p->centroids);
    moedi_free(c, p);
    moedi_context_release(c);
}

static moed_status partition_new(moed_partition **out, moed_context *c, int64_t documents, int64_t clusters,
                                 int64_t width)
{
    moed_partition *p = NULL;
    moed_status status;
    MOEDI_TRY(MOEDI_NEW(c, 1, &p));
    p->context = moedi_context_retain(c);
    p->info = (moed_partition_info){
        .struct_size = sizeof p->info, .documents = documents, .clusters = clusters, .width = width};
    MOEDI_GO(MOEDI_NEW(c, documents, &p->labels));
    if (width > 0)
        MOEDI_GO(moedi_alloc_array(c, clusters, (size_t)width * sizeof *p->centroids, (void **)&p->centroids));
    p->info.labels = p->labels;
    p->info.centroids = p->centroids;
    *out = p;
    return MOED_OK;
out:
    moed_partition_destroy(p);
    return status;
}

/* path NULL: from the caller's arrays. */
static moed_status check_content(const moed_partition *p, const char *path)
{
    const char *name = path ? path : "moed_partition_create";
    for (int64_t i = 0; i < p->info.documents; i++)
        if (p->labels[i] < 0 || p->labels[i] >= p->info.clusters)
            return moedi_fail_file(path ? MOED_E_FORMAT : MOED_E_RANGE, name, -1,
                                   "document %lld is in cluster %ld of %lld", (long long)i, (long)p->labels[i],
                                   (long long)p->info.clusters);
    for (int64_t i = 0; p->centroids && i < p->info.clusters * p->info.width; i++)
        if (!isfinite(p->centroids[i]))
            return moedi_fail_file(MOED_E_NUMERIC, name, -1,
                                   "the centroid of cluster %lld holds NaN or infinity",
                                   (long long)(i / p->info.width));
    return MOED_OK;
}

static moed_status check_centroids(const moed_tensor *t, int64_t clusters)
{
    if (!t->data || t->dtype != MOED_DTYPE_F32 || t->device != 0 || t->rank != 2 || t->shape[0] != clusters ||
        t->shape[1] < 1 || t->strides[0] != t->shape[1] || t->strides[1] != 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "centroids",
                                    "centroids: not a contiguous F32 host array of shape (%lld, width)",
                                    (long long)clusters);
    return MOED_OK;
}

moed_status moed_partition_create(moed_partition **out, moed_context *c, const int32_t *labels, int64_t count,
                                  int64_t clusters, const moed_tensor *centroids, const moed_corpus *corpus)
{
    moed_partition *p = NULL;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(labels, "labels is NULL");
    MOEDI_TRY(moedi_context_check(c));
    if (count < 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "count", "count: a partition of %lld documents",
                                    (long long)count);
    if (clusters < 1 || clusters > INT32_MAX)
        return moedi_fail_parameter(MOED_E_RANGE, "clusters", "clusters is %lld; it must be from 1 to %d", (long long)clusters,
                                    INT32_MAX);
    if (centroids) MOEDI_TRY(check_centroids(centroids, clusters));
    if (corpus && moedi_corpus_whole(corpus)->documents != count)
        return moedi_fail_parameter(
            MOED_E_MISMATCH, "count",
            "count: %lld labels for a corpus of %lld documents (all of them, not a view's, get one)",
            (long long)count, (long long)moedi_corpus_whole(corpus)->documents);
    MOEDI_TRY(partition_new(&p, c, count, clusters, centroids ? centroids->shape[1] : 0));
    memcpy(p->labels, labels, (size_t)count * sizeof *labels);
    if (centroids) memcpy(p->centroids, centroids->data, (size_t)(clusters * p->info.width) * sizeof(float));
    if (corpus) memcpy(p->info.fingerprint, corpus->info.fingerprint, sizeof p->info.fingerprint);
    MOEDI_GO(check_content(p, NULL));
    *out = p;
    return MOED_OK;
out:
    moed_partition_destroy(p);
    return status;
}

moed_status moed_partition_get_info(const moed_partition *p, moed_partition_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(p, "the partition is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(p->context));
    return moedi_info_write(MOED_STRUCT_PARTITION_INFO, &p->info, out);
}

/* ---- the file ---- */

/* 32 hex digits for the labels, 32 more for the centroids where there are any. */
static void print_digest(const moed_partition *p, char out[65])
{
    moedi_digest_print(moedi_hash_bytes(p->labels, (size_t)p->info.documents * sizeof *p->labels), out);
    if (!p->centroids) return;
    const size_t numbers = (size_t)(p->info.clusters * p->info.width);
    moedi_digest_print(moedi_hash_bytes(p->centroids, numbers * sizeof *p->centroids), out + 32);
}

/* Files of other programs have no digest. */
static moed_status check_digest(const moed_partition *p, const json_t *metadata, const char *path)
{
    char own[65];
    const char *told = json_string_value(json_object_get(metadata, "digest"));
    if (!told) return MOED_OK;
    print_digest(p, own);
    if (strcmp(told, own) == 0) return MOED_OK;
    return moedi_fail_file(MOED_E_CHECKSUM, path, -1, "is damaged: its numbers have the digest %s, not %.64s", own, told);
}

static moed_status metadata_text(const json_t *metadata, const char *path, const char *field, const char **out)
{
    const json_t *value = json_object_get(metadata, field);
    if (!json_is_string(value))
        return moedi_fail_file(MOED_E_FORMAT, path, -1,
                               "its metadata has no \"%s\": no partition of this library", field);
    *out = json_string_value(value);
    return MOED_OK;
}

static moed_status read_metadata(const json_t *metadata, const char *path, int64_t *clusters,
                                 char fingerprint[40])
{
    const char *format = "", *version = "", *count = "", *corpus = "";
    char *end = NULL;
    MOEDI_TRY(metadata_text(metadata, path, "format", &format));
    MOEDI_TRY(metadata_text(metadata, path, "version", &version));
    MOEDI_TRY(metadata_text(metadata, path, "clusters", &count));
    MOEDI_TRY(metadata_text(metadata, path, "corpus", &corpus));
    if (strcmp(format, FORMAT) != 0)
        return moedi_fail_file(MOED_E_FORMAT, path, -1, "format: \"%s\" is not " FORMAT, format);
    if (strcmp(version, VERSION) != 0)
        return moedi_fail_file(MOED_E_UNSUPPORTED, path, -1, "version: \"%s\" is not known, only " VERSION,
                               version);
    errno = 0;
    const long long k = strtoll(count, &end, 10);
    if (errno || end == count || *end || k < 1 || k > INT32_MAX)
        return moedi_fail_file(MOED_E_FORMAT, path, -1, "clusters: \"%s\" is no number of clusters", count);
    if (strlen(corpus) != 0 && (strlen(corpus) != 32 || strspn(corpus, "0123456789abcdef") != 32))
        return moedi_fail_file(MOED_E_FORMAT, path, -1, "corpus: \"%.64s\" is no fingerprint of 32 hex digits",
                               corpus);
    memcpy(fingerprint, corpus, strlen(corpus) + 1);
    *clusters = k;
    return MOED_OK;
}

static moed_status check_entries(const moedi_safetensors_entry *labels,
                                 const moedi_safetensors_entry *centroids, int64_t clusters, const char *path)
{
    if (!labels) return moedi_fail_file(MOED_E_FORMAT, path, -1, "there is no tensor \"assignments\"");
    if (labels->dtype != MOED_DTYPE_I32 || labels->rank != 1 || labels->elements < 1)
        return moedi_fail_file(MOED_E_FORMAT, path, -1,
                               "assignments: %s of rank %ld with %lld numbers, not I32 of one dimension",
                               moed_dtype_name(labels->dtype), (long)labels->rank, (long long)labels->elements);
    if (centroids && (centroids->dtype != MOED_DTYPE_F32 || centroids->rank != 2 ||
                      centroids->shape[0] != clusters || centroids->shape[1] < 1))
        return moedi_fail_file(MOED_E_FORMAT, path, -1,
                               "centroids: %s of rank %ld, not F32 of shape (%lld, width)",
                               moed_dtype_name(centroids->dtype), (long)centroids->rank, (long long)clusters);
    return MOED_OK;
}

moed_status moed_partition_open(moed_partition **out, moed_context *c, const char *path)
{
    moedi_safetensors s;
    moed_partition *p = NULL;
    int64_t clusters = 0;
    char fingerprint[40] = "";
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(path, "path is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_safetensors_open(&s, c, path));
    const moedi_safetensors_entry *labels = moedi_safetensors_find(&s, "assignments"),
                                  *centroids = moedi_safetensors_find(&s, "centroids");
    MOEDI_GO(read_metadata(s.metadata, path, &clusters, fingerprint));
    MOEDI_GO(check_entries(labels, centroids, clusters, path));
    MOEDI_GO(partition_new(&p, c, labels->elements, clusters, centroids ? centroids->shape[1] : 0));
    MOEDI_GO(moedi_safetensors_read(&s, labels, 0, p->labels, (size_t)labels->bytes));
    if (centroids) MOEDI_GO(moedi_safetensors_read(&s, centroids, 0, p->centroids, (size_t)centroids->bytes));
    memcpy(p->info.fingerprint, fingerprint, sizeof fingerprint);
    MOEDI_GO(check_content(p, path));
    MOEDI_GO(check_digest(p, s.metadata, path));
    *out = p;
    p = NULL;
out:
    moed_partition_destroy(p);
    moedi_safetensors_close(&s);
    return status;
}

moed_status moed_partition_save(const moed_partition *p, const char *path)
{
    moedi_safetensors_writer w;
    char clusters[32], digest[65];
    moedi_clear_error();
    MOEDI_REQUIRE(p, "the partition is NULL");
    MOEDI_REQUIRE(path && path[0], "path is NULL or empty");
    MOEDI_TRY(moedi_context_check(p->context));
    const moedi_safetensors_entry entries[2] = {
        {.name = "assignments", .dtype = MOED_DTYPE_I32, .rank = 1, .shape = {p->info.documents}},
        {.name = "centroids", .dtype = MOED_DTYPE_F32, .rank = 2, .shape = {p->info.clusters, p->info.width}},
    };
    snprintf(clusters, sizeof clusters, "%lld", (long long)p->info.clusters);
    print_digest(p, digest);
    json_t *metadata = json_pack("{s:s, s:s, s:s, s:s, s:s}", "format", FORMAT, "version", VERSION, "clusters",
                                 clusters, "corpus", p->info.fingerprint, "digest", digest);
    if (!metadata) return moedi_fail(MOED_E_MEMORY, "no memory for the metadata of %s", path);
    moed_status status =
        moedi_safetensors_create(&w, p->context, path, entries, p->centroids ? 2 : 1, metadata);
    json_decref(metadata);
    if (status != MOED_OK) return status;
    MOEDI_GO(moedi_safetensors_write(&w, 0, 0, p->labels, (size_t)p->info.documents * sizeof *p->labels));
    if (p->centroids)
        MOEDI_GO(moedi_safetensors_write(&w, 1, 0, p->centroids,
                                         (size_t)(p->info.clusters * p->info.width) * sizeof *p->centroids));
    return moedi_safetensors_commit(&w);
out:
    moedi_safetensors_abort(&w);
    return status;
}

/* ---- views ---- */

moed_status moed_partition_view(moed_corpus **out, const moed_partition *p, const moed_corpus *d,
                                int32_t cluster)
{
    int64_t *list = NULL, count = 0;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(p, "the partition is NULL");
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    if (cluster < 0 || cluster >= p->info.clusters)
        return moedi_fail_parameter(MOED_E_RANGE, "cluster", "cluster %ld of %lld", (long)cluster,
                                    (long long)p->info.clusters);
    if (p->info.fingerprint[0] && strcmp(p->info.fingerprint, d->info.fingerprint) != 0)
        return moedi_fail(MOED_E_MISMATCH, "the partition is of the corpus %s, not of %s", p->info.fingerprint,
                          d->info.fingerprint);
    if (moedi_corpus_whole(d)->documents != p->info.documents)
        return moedi_fail(MOED_E_MISMATCH, "the partition is of %lld documents, the corpus has %lld",
                          (long long)p->info.documents, (long long)moedi_corpus_whole(d)->documents);
    MOEDI_TRY(MOEDI_NEW(d->context, d->documents, &list));
    for (int64_t i = 0; i < d->documents; i++)
        if (p->labels[moedi_corpus_number(d, i)] == cluster) list[count++] = i;
    status = count ? moed_corpus_subset(out, d, list, count)
                   : moedi_fail(MOED_E_NOT_FOUND, "cluster %ld has no document in this corpus of %lld",
                                (long)cluster, (long long)d->documents);
    moedi_free(d->context, list);
    return status;
}
