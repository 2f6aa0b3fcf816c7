/* clusters.c - corpora and their clusters. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clusters.h"
#include "output.h"
#include "size.h"

static const moed_field CHOICE_FIELDS[] = {
    FIELD_TEXT_(choice, partition, "partition file that names the clusters"),
    FIELD_INTEGER(choice, cluster, -1, -1, 1 << 20, "only documents of this cluster, -1 = of all"),
    FIELD_CHOICE_(choice, part, "all|train|held-out", "which of the documents; train is all but those held out"),
    FIELD_NUMBER(choice, held_out, 0.05, 0, 0.9, "share of the documents that is held out"),
    {sizeof(moed_field), 0, "held_out_seed", "", "draws the held-out documents", MOED_FIELD_U64, offsetof(choice, held_out_seed),
     0, 0, 0},
};

void choice_flags(flags *f, choice *c, int32_t part)
{
    memset(c, 0, sizeof *c);
    c->cluster = -1;
    c->part = part;
    c->held_out = 0.05;
    flags_table(f, "documents", CHOICE_FIELDS, sizeof CHOICE_FIELDS / sizeof *CHOICE_FIELDS, c);
}

int choice_view(const choice *pick, moed_context *c, const moed_corpus *d, moed_corpus **view, moed_corpus **held_out)
{
    moed_corpus *train = NULL, *held = NULL;
    moed_partition *p = NULL;
    moed_status status = MOED_OK;
    *view = NULL;
    if (held_out) *held_out = NULL;
    if ((pick->cluster >= 0) != (pick->partition != NULL))
        return fail(EXIT_INPUT, "--cluster and --partition belong together: give both");
    const moed_corpus *chosen = d;
    if (pick->part != PART_ALL) {
        status = moed_corpus_divide(&train, &held, d, pick->held_out, pick->held_out_seed);
        if (status) return fail_status(status);
        chosen = pick->part == PART_TRAIN ? train : held;
    }
    if (pick->partition) {
        status = moed_partition_open(&p, c, pick->partition);
        if (!status) status = moed_partition_view(view, p, chosen, (int32_t)pick->cluster);
        moed_partition_destroy(p);
    } else if (pick->part == PART_TRAIN) {
        *view = train;
        train = NULL;
    } else if (pick->part == PART_HELD_OUT && !held_out) {
        *view = held;
        held = NULL;
    } else {
        moed_corpus_info info = {.struct_size = sizeof info};
        moed_corpus_get_info(chosen, &info);
        int64_t *all = must(malloc((size_t)(info.documents + 1) * sizeof *all));
        for (int64_t i = 0; i < info.documents; i++) all[i] = i;
        status = moed_corpus_subset(view, chosen, all, info.documents);
        free(all);
    }
    if (!status && held_out) {
        *held_out = held;
        held = NULL;
    }
    const int code = status ? fail_status(status) : EXIT_DONE;
    moed_corpus_destroy(train);
    moed_corpus_destroy(held);
    return code;
}

void clustering_flags(flags *f, clustering *k, const char *except)
{
    OPTIONS_INIT(EMBED_OPTIONS, &k->embed);
    OPTIONS_INIT(KMEANS_OPTIONS, &k->kmeans);
    flags_struct(f, "clusters", MOED_STRUCT_KMEANS_OPTIONS, &k->kmeans, except);
    flags_struct(f, "clusters", MOED_STRUCT_EMBED_OPTIONS, &k->embed, NULL);
}

/* ---- showing ---- */

enum { TYPICAL = 3, SHOWN = 60 };

/* First printable characters of a document, byte tokens taken as text and others as numbers. */
static void beginning(const moed_corpus *d, int64_t document, int64_t vocabulary, char out[SHOWN + 1])
{
    int32_t tokens[4 * SHOWN];
    int64_t count = 0;
    char bytes[4 * SHOWN];
    size_t used = 0;
    out[0] = 0;
    if (moed_corpus_read(d, document, 0, tokens, 4 * SHOWN, &count)) return;
    if (vocabulary > 257) {
        for (int64_t i = 0; i < count && used + 8 < SHOWN; i++)
            used += (size_t)snprintf(out + used, SHOWN - used, "%s%d", i ? " " : "", (int)tokens[i]);
        return;
    }
    for (int64_t i = 0; i < count; i++) {
        const int blank = tokens[i] == ' ' || tokens[i] == '\n' || tokens[i] == '\t' || tokens[i] == '\r';
        if (blank && (!used || bytes[used - 1] == ' ')) continue; /* runs of blanks say nothing */
        bytes[used++] = blank ? ' ' : (char)tokens[i];
    }
    put_printable(out, SHOWN + 1, bytes, used, 0);
}

/* The documents of cluster k nearest to its centroid; how many were found. */
static int typical(const float *x, const float *centroid, int64_t width, const int32_t *labels, int64_t count, int32_t k,
                   int64_t out[TYPICAL])
{
    double best[TYPICAL];
    int found = 0;
    for (int64_t i = 0; i < count; i++) {
        if (labels[i] != k) continue;
        double d = 0;
        for (int64_t j = 0; j < width; j++)
            d += ((double)x[i * width + j] - centroid[j]) * ((double)x[i * width + j] - centroid[j]);
        int at = found < TYPICAL ? found++ : TYPICAL;
        while (at > 0 && best[at - 1] > d) {
            if (at < TYPICAL) {
                best[at] = best[at - 1];
                out[at] = out[at - 1];
            }
            at--;
        }
        if (at < TYPICAL) {
            best[at] = d;
            out[at] = i;
        }
    }
    return found;
}

static void show(const moed_corpus *d, const float *x, const float *weights, const int32_t *labels, int64_t count,
                 const moed_kmeans_info *info)
{
    moed_corpus_info corpus = {.struct_size = sizeof corpus};
    moed_corpus_get_info(d, &corpus);
    say("%lld clusters of %lld documents after %lld iterations:", (long long)info->clusters, (long long)count,
        (long long)info->iterations);
    for (int32_t k = 0; k < info->clusters; k++) {
        int64_t documents = 0, nearest_documents[TYPICAL];
        double tokens = 0;
        char size[32], text[SHOWN + 1];
        for (int64_t i = 0; i < count; i++)
            if (labels[i] == k) {
                documents++;
                tokens += weights[i];
            }
        say("  cluster %d: %lld documents, %s tokens; most typical:", k, (long long)documents, human_count(tokens, size));
        json_t *texts = json_array();
        const int found = typical(x, info->centroids + (size_t)k * (size_t)info->width, info->width, labels, count, k,
                                  nearest_documents);
        for (int i = 0; i < found; i++) {
            beginning(d, nearest_documents[i], corpus.vocabulary, text);
            say("    %s", text);
            put_last(texts, json_string(text));
        }
        emit(json_pack("{s:s, s:i, s:I, s:f, s:o}", "event", "cluster", "cluster", k, "documents", (json_int_t)documents,
                       "tokens", tokens, "typical", texts));
    }
}

/* ---- making ---- */

static void matrix(moed_tensor *t, float *data, int64_t rows, int64_t width)
{
    memset(t, 0, sizeof *t);
    t->data = data;
    t->dtype = MOED_DTYPE_F32;
    t->rank = 2;
    t->shape[0] = rows;
    t->shape[1] = width;
    t->strides[0] = width;
    t->strides[1] = 1;
}

static moed_status label_others(const moed_corpus *others, const moed_model *m, const moed_kmeans *k, const moed_embed_options *o,
                                int64_t width, int32_t *all)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    moed_tensor x;
    moed_status status = moed_corpus_get_info(others, &info);
    if (status || !info.documents) return status;
    float *vectors = must(calloc((size_t)info.documents, (size_t)width * sizeof *vectors));
    int32_t *labels = must(calloc((size_t)info.documents, sizeof *labels));
    matrix(&x, vectors, info.documents, width);
    status = moed_corpus_embed(others, m, &x, o, app_cancel);
    if (!status) status = moed_kmeans_assign(k, &x, labels, NULL, app_cancel);
    for (int64_t i = 0, source = 0; i < info.documents && !status; i++) {
        status = moed_corpus_source_document(others, i, &source);
        if (!status) all[source] = labels[i];
    }
    free(vectors);
    free(labels);
    return status;
}

int clusters_make(moed_context *c, const moed_corpus *d, const moed_corpus *train, const moed_corpus *held_out,
                  const moed_model *m, const clustering *k, moed_partition **out)
{
    moed_corpus_info whole = {.struct_size = sizeof whole}, part = {.struct_size = sizeof part};
    moed_layout_info layout = {.struct_size = sizeof layout};
    moed_kmeans *kmeans = NULL;
    moed_kmeans_info info = {.struct_size = sizeof info};
    moed_tensor x, centroids;
    moed_corpus_get_info(d, &whole);
    moed_corpus_get_info(train, &part);
    moed_layout_get_info(moed_model_layout(m), &layout);
    float *vectors = must(calloc((size_t)part.documents + 1, (size_t)layout.hidden * sizeof *vectors)); /* (documents, hidden) */
    float *weights = must(calloc((size_t)part.documents + 1, sizeof *weights));
    int32_t *labels = must(calloc((size_t)part.documents + 1, sizeof *labels));
    int32_t *all = must(calloc((size_t)whole.documents + 1, sizeof *all));
    matrix(&x, vectors, part.documents, layout.hidden);
    moed_status status = moed_corpus_embed(train, m, &x, &k->embed, app_cancel);
    if (!status) status = moed_corpus_weights(train, weights);
    if (!status) status = moed_kmeans_create(&kmeans, c, &k->kmeans);
    if (!status)
        status = moed_kmeans_fit(kmeans, &x, k->kmeans.method == MOED_KMEANS_BALANCED ? weights : NULL, NULL, app_cancel);
    if (!status) status = moed_kmeans_labels(kmeans, labels, part.documents);
    if (!status) status = moed_kmeans_get_info(kmeans, &info);
    for (int64_t i = 0, source = 0; i < part.documents && !status; i++) {
        status = moed_corpus_source_document(train, i, &source);
        if (!status) all[source] = labels[i];
    }
    if (!status && held_out) status = label_others(held_out, m, kmeans, &k->embed, layout.hidden, all);
    if (!status) {
        float *copy = must(malloc((size_t)info.clusters * (size_t)info.width * sizeof *copy));
        memcpy(copy, info.centroids, (size_t)info.clusters * (size_t)info.width * sizeof *copy);
        matrix(&centroids, copy, info.clusters, info.width);
        status = moed_partition_create(out, c, all, whole.documents, info.clusters, &centroids, d);
        free(copy);
    }
    const int code = status ? fail_status(status) : EXIT_DONE;
    if (!status) show(train, vectors, weights, labels, part.documents, &info);
    free(vectors);
    free(weights);
    free(labels);
    free(all);
    moed_kmeans_destroy(kmeans);
    return code;
}

/* ---- the verb ---- */

typedef struct cluster_settings {
    const char *model;
    int64_t hidden;
    double held_out;
    uint64_t held_out_seed;
} cluster_settings;

static const moed_field CLUSTER_FIELDS[] = {
    FIELD_TEXT_(cluster_settings, model, "model whose token embeddings are used; none = random ones of --hidden numbers"),
    FIELD_INTEGER(cluster_settings, hidden, 64, 1, 65536, "numbers in a random embedding"),
    FIELD_NUMBER(cluster_settings, held_out, 0, 0, 0.9, "share of the documents left out of the clustering"),
    {sizeof(moed_field), 0, "held_out_seed", "", "draws the held-out documents", MOED_FIELD_U64,
     offsetof(cluster_settings, held_out_seed), 0, 0, 0},
};

static int embedding_model(const cluster_settings *s, moed_context *c, const moed_corpus *d, uint64_t seed, moed_model **out)
{
    if (s->model) {
        const moed_status status = moed_model_open(out, c, s->model, NULL);
        return status ? fail_status(status) : EXIT_DONE;
    }
    moed_corpus_info info = {.struct_size = sizeof info};
    moed_corpus_get_info(d, &info);
    flags unused = {0};
    sizes z;
    moed_layout *l = NULL;
    sizes_flags(&unused, &z);
    z.hidden = s->hidden;
    z.layers = z.heads = z.expert_width = 1;
    z.init.seed = seed;
    if (s->hidden % 2) z.hidden++;
    int code = sizes_layout(&z, c, info.vocabulary, &l);
    if (code) return code;
    const moed_status status = moed_model_init(out, c, l, &z.init);
    if (status) code = fail_status(status);
    moed_layout_destroy(l);
    return code;
}

/* What would stop the saving is told before the work; and only a partition is replaced. */
static int check_place(moed_context *c, const char *path)
{
    moed_partition *p = NULL;
    const char *slash = strrchr(path, '/');
    char *folder = slash ? must(strndup(path, (size_t)(slash - path) + 1)) : must(strdup("."));
    const int reason = access(folder, W_OK) ? errno : 0;
    free(folder);
    if (reason) return fail_errno(path, "cannot be made", reason);
    const moed_status status = path_exists(path) ? moed_partition_open(&p, c, path) : MOED_OK;
    moed_partition_destroy(p);
    if (exit_code(status) != EXIT_INPUT) return status ? fail_status(status) : EXIT_DONE;
    return fail(EXIT_INPUT, "%s: is there and is no partition: it is not replaced; choose another name", path);
}

int verb_cluster(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    clustering k;
    cluster_settings s = {.hidden = 64};
    moed_context *context = NULL;
    moed_corpus *d = NULL, *train = NULL, *held = NULL;
    moed_model *m = NULL;
    moed_partition *p = NULL;
    clustering_flags(&f, &k, NULL);
    flags_table(&f, "documents", CLUSTER_FIELDS, sizeof CLUSTER_FIELDS / sizeof *CLUSTER_FIELDS, &s);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    code = check_place(context, f.positionals[1]);
    moed_status status = code ? MOED_OK : open_corpus(&d, context, f.positionals[0]);
    if (!code && !status && s.held_out > 0) status = moed_corpus_divide(&train, &held, d, s.held_out, s.held_out_seed);
    if (status) code = fail_status(status);
    if (!code) code = embedding_model(&s, context, d, k.kmeans.seed, &m);
    if (!code) code = clusters_make(context, d, train ? train : d, held, m, &k, &p);
    if (!code && (status = moed_partition_save(p, f.positionals[1]))) code = fail_status(status);
    if (!code) say("partition: %s", f.positionals[1]);
    moed_partition_destroy(p);
    moed_model_destroy(m);
    moed_corpus_destroy(held);
    moed_corpus_destroy(train);
    moed_corpus_destroy(d);
    moed_context_destroy(context);
    return code;
}
