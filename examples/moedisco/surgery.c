/* surgery.c - split and integrate on directories. */
#include <stdlib.h>
#include <string.h>

#include "assignment.h"
#include "output.h"
#include "surgery.h"

int surgery_split(moed_context *c, const char *base_dir, int64_t parts, int64_t part, const char *out_dir)
{
    moed_split_options o;
    moed_model *base = NULL;
    moed_split *s = NULL;
    OPTIONS_INIT(SPLIT_OPTIONS, &o);
    o.parts = (int32_t)parts;
    moed_status status = open_streamed(&base, c, base_dir);
    if (!status) status = moed_split_create(&s, moed_model_layout(base), &o);
    if (!status) status = moed_split_build(NULL, s, (int32_t)part, base, out_dir, app_cancel);
    const int code = status ? fail_status(status) : EXIT_DONE;
    moed_split_destroy(s);
    moed_model_destroy(base);
    return code;
}

double *cluster_tokens(const moed_partition *p, const moed_corpus *d, int64_t *clusters)
{
    moed_partition_info info = {.struct_size = sizeof info};
    moed_status status = moed_partition_get_info(p, &info);
    double *tokens = must(calloc((size_t)info.clusters + 1, sizeof *tokens));
    for (int32_t k = 0; k < info.clusters && !status; k++) {
        moed_corpus *view = NULL;
        moed_corpus_info part = {.struct_size = sizeof part};
        status = moed_partition_view(&view, p, d, k);
        if (!status) status = moed_corpus_get_info(view, &part);
        tokens[k] = (double)part.tokens;
        moed_corpus_destroy(view);
    }
    *clusters = info.clusters;
    if (!status) return tokens;
    fail_status(status);
    free(tokens);
    return NULL;
}

static moed_status give_gate(moed_integration *i, const moed_partition *p)
{
    moed_partition_info info = {.struct_size = sizeof info};
    const moed_status status = moed_partition_get_info(p, &info);
    if (status) return status;
    moed_tensor rows = {.data = (void *)(uintptr_t)info.centroids,
                        .dtype = MOED_DTYPE_F32,
                        .rank = 2,
                        .shape = {info.clusters, info.width},
                        .strides = {info.width, 1}};
    return moed_integration_set_gate(i, -1, &rows);
}

static moed_status give_scale(moed_integration *i, moed_context *c, const char *base_dir, const merger *m)
{
    moed_model *base = NULL;
    moed_layout_info info = {.struct_size = sizeof info};
    moed_status status = moed_model_open(&base, c, base_dir, NULL);
    if (!status) status = moed_layout_get_info(moed_model_layout(base), &info);
    if (!status) {
        const size_t count = (size_t)info.layers * (size_t)info.experts;
        /* (layers, experts) */
        double *usage = must(calloc(count + 1, sizeof *usage)), *weight = must(calloc(count + 1, sizeof *weight));
        status = moed_model_usage(base, m->scale, m->scale_tokens, usage, weight, app_cancel);
        if (!status) status = moed_integration_set_scale(i, weight, (int32_t)info.top_k);
        free(usage);
        free(weight);
    }
    moed_model_destroy(base);
    return status;
}

static int add_submodels(moed_integration *i, moed_context *c, const merger *m)
{
    int code = EXIT_DONE;
    for (int64_t k = 0; k < m->parts && !code; k++) {
        const char *dir = m->submodels[m->clones ? 0 : k];
        moed_model *submodel = NULL;
        if (!dir) continue;
        moed_status status = open_streamed(&submodel, c, dir);
        if (status) code = fail_status(status);
        else if ((status = moed_integration_add(i, (int32_t)k, submodel, m->weights ? m->weights[k] : 1.0)))
            code = fail(exit_code(status), "%s: %s", dir, moed_last_error());
        moed_model_destroy(submodel);
    }
    return code;
}

/* Experts that no other part has, as many as those have: for a lost part, whose experts come from the base. */
static moed_status assign_rest(moed_split *s, const merger *m, const moed_layout_info *info, int32_t part)
{
    const size_t most = (size_t)info->experts + 1;
    int32_t *list = must(calloc(most, sizeof *list));
    char *taken = must(calloc(most, 1));
    moed_status status = MOED_OK;
    for (int32_t l = 0; l < info->layers && !status; l++) {
        int32_t each = 0, count = 0, found = 0;
        memset(taken, 0, most);
        for (int64_t k = 0; k < m->parts && !status; k++) {
            if (k == part || (k > part && !m->submodels[k])) continue;
            status = moed_split_experts(s, (int32_t)k, l, list, (int32_t)info->experts, &found);
            for (int32_t j = 0; j < found; j++) taken[list[j]] = 1;
            if (m->submodels[k]) each = found;
        }
        for (int32_t e = 0; e < info->experts && count < each; e++)
            if (!taken[e]) list[count++] = e;
        if (!status && count) status = moed_split_assign(s, part, l, list, count);
    }
    free(list);
    free(taken);
    return status;
}

/* Submodels of another family than the base's are its dense siblings, or will be refused. */
static int of_another_family(moed_context *c, const merger *m, const moed_model *base, moed_split_options *o)
{
    moed_model *submodel = NULL;
    moed_layout_info a = {.struct_size = sizeof a}, b = {.struct_size = sizeof b};
    const char *dir = NULL;
    for (int64_t k = 0; k < m->parts && !dir; k++) dir = m->submodels[k];
    if (!dir) return EXIT_DONE;
    moed_status status = open_streamed(&submodel, c, dir);
    if (!status) status = moed_layout_get_info(moed_model_layout(submodel), &a);
    if (!status) status = moed_layout_get_info(moed_model_layout(base), &b);
    if (!status && strcmp(a.family, b.family) != 0) o->flags |= MOED_SPLIT_DENSE;
    moed_model_destroy(submodel);
    return status ? fail_status(status) : EXIT_DONE;
}

/* The assignment as the submodels tell it, unless a table does. */
static int take_assignment(moed_split *s, const moed_model *base, moed_context *c, const merger *m)
{
    moed_layout_info info = {.struct_size = sizeof info};
    int code = EXIT_DONE, told = 0;
    if (m->clones) return EXIT_DONE;
    if (m->experts) return assignment_read(s, moed_model_layout(base), m->parts, m->experts);
    moed_layout_get_info(moed_model_layout(base), &info);
    for (int64_t k = 0; k < m->parts && !code; k++) {
        moed_model *submodel = NULL;
        if (!m->submodels[k]) continue;
        moed_status status = open_streamed(&submodel, c, m->submodels[k]);
        if (status) code = fail_status(status);
        else if (!(status = moed_split_assign_from(s, (int32_t)k, moed_model_layout(submodel)))) told++;
        else if (status != MOED_E_NOT_FOUND) code = fail(exit_code(status), "%s: %s", m->submodels[k], moed_last_error());
        moed_model_destroy(submodel);
    }
    for (int64_t k = 0; k < m->parts && !code && told; k++)
        if (!m->submodels[k]) {
            const moed_status status = assign_rest(s, m, &info, (int32_t)k);
            if (status) code = fail_status(status);
        }
    return code;
}

/* Rows by ridge regression on the hidden states of the model as it comes with the base's gate, which is made in memory for it. */
static moed_status fit_gate(moed_integration *i, moed_integration *draft, const merger *m)
{
    moed_model *whole = NULL;
    moed_layout_info info = {.struct_size = sizeof info};
    moed_partition_info clusters = {.struct_size = sizeof clusters};
    float *rows = NULL; /* (layers, clusters, hidden) */
    moed_status status = moed_integration_finish(&whole, draft, NULL, app_cancel);
    if (!status) status = moed_layout_get_info(moed_model_layout(whole), &info);
    if (!status) status = moed_partition_get_info(m->partition, &clusters);
    if (!status) {
        const int64_t count = clusters.clusters * info.hidden;
        rows = must(calloc((size_t)(info.layers * count), sizeof *rows));
        status = moed_model_fit_gate(whole, m->documents, m->partition, m->gate_tokens, m->ridge, rows, app_cancel);
        for (int32_t l = 0; l < info.layers && !status; l++) {
            const moed_tensor t = {.data = rows + l * count, .dtype = MOED_DTYPE_F32, .rank = 2,
                                   .shape = {clusters.clusters, info.hidden}, .strides = {info.hidden, 1}};
            int32_t experts = 0;
            status = moed_split_experts(m->split, 0, l, NULL, 0, &experts);
            if (!status && experts) status = moed_integration_set_gate(i, l, &t);
        }
    }
    free(rows);
    moed_model_destroy(whole);
    return status;
}

static int begin_integration(moed_integration **out, moed_context *c, const merger *m, const moed_model *base,
                             const moed_integration_options *o)
{
    const moed_status status = moed_integration_create(out, m->split, base, o);
    return status ? fail_status(status) : add_submodels(*out, c, m);
}

static int give_rows(moed_integration *i, moed_context *c, const merger *m, const moed_model *base)
{
    moed_status status = MOED_OK;
    if (m->options.gate == MOED_GATE_CENTROIDS && m->partition) status = give_gate(i, m->partition);
    if (m->options.gate != MOED_GATE_RIDGE) return status ? fail_status(status) : EXIT_DONE;
    moed_integration *draft = NULL;
    moed_integration_options o = m->options;
    o.gate = MOED_GATE_BASE, o.dtype = 0;
    const int code = begin_integration(&draft, c, m, base, &o);
    if (!code) status = fit_gate(i, draft, m);
    moed_integration_destroy(draft);
    return code ? code : status ? fail_status(status) : EXIT_DONE;
}

int surgery_integrate(moed_context *c, const char *base_dir, const merger *given, const char *out_dir, double *drift)
{
    merger own = *given, *m = &own;
    moed_split_options split_options;
    moed_model *base = NULL;
    moed_integration *i = NULL;
    OPTIONS_INIT(SPLIT_OPTIONS, &split_options);
    split_options.parts = (int32_t)m->parts;
    moed_status status = open_streamed(&base, c, base_dir);
    int code = status ? fail_status(status) : of_another_family(c, m, base, &split_options);
    if (!code && (status = moed_split_create(&m->split, moed_model_layout(base), &split_options))) code = fail_status(status);
    if (!code) code = take_assignment(m->split, base, c, m);
    if (!code) code = begin_integration(&i, c, m, base, &m->options);
    if (!code) code = give_rows(i, c, m, base);
    if (!code && m->scale) status = give_scale(i, c, base_dir, m);
    if (!code && !status) status = moed_integration_finish(NULL, i, out_dir, app_cancel);
    if (!code && !status && drift) {
        moed_integration_info info = {.struct_size = sizeof info};
        moed_integration_get_info(i, &info);
        *drift = info.drift;
    }
    if (!code && status) code = fail_status(status);
    moed_integration_destroy(i);
    moed_split_destroy(m->split);
    moed_model_destroy(base);
    return code;
}

/* ---- verbs ---- */

typedef struct split_settings {
    moed_split_options options;
    assignment assignment;
    int64_t part;
    int32_t dense;
} split_settings;

static const moed_field SPLIT_FIELDS[] = {
    FIELD_INTEGER(split_settings, part, -1, -1, 65535, "only this submodel, -1 = all"),
    FIELD_SWITCH_(
        split_settings, dense,
        "submodels of one expert as models of the dense family that computes the same (mixtral: mistral, qwen3_moe: qwen3)"),
};

static int build_parts(moed_split *s, const moed_model *base, int64_t from, int64_t to, const char *out)
{
    int code = EXIT_DONE;
    for (int64_t k = from; k < to && !code; k++) {
        char *name = text_format("%s/%lld", out, (long long)k);
        const moed_status status = moed_split_build(NULL, s, (int32_t)k, base, name, app_cancel);
        if (status) code = fail_status(status);
        else {
            say("submodel %lld: %s", (long long)k, name);
            emit(json_pack("{s:s, s:I, s:s}", "event", "submodel", "part", (json_int_t)k, "path", utf8(name)));
        }
        free(name);
    }
    return code;
}

static int split_into(moed_context *c, split_settings *s, const char *base_dir, const char *out)
{
    moed_model *base = NULL;
    moed_split *split = NULL;
    moed_layout_info info = {.struct_size = sizeof info};
    double *usage = NULL;
    char *made = NULL, *table = path_join(out, "split.json");
    int64_t parts = 0;
    moed_status status = open_streamed(&base, c, base_dir);
    if (!status) status = moed_layout_get_info(moed_model_layout(base), &info);
    int code = status ? fail_status(status) : assignment_parts(&s->assignment, c, &parts);
    if (!code && parts && s->options.parts && parts != s->options.parts)
        code = fail(EXIT_INPUT, "--parts %d: the experts are assigned to %lld parts", s->options.parts, (long long)parts);
    if (!code && parts) s->options.parts = (int32_t)parts;
    if (s->dense) s->options.flags |= MOED_SPLIT_DENSE;
    if (!code && (status = moed_split_create(&split, moed_model_layout(base), &s->options))) code = fail_status(status);
    if (!parts) parts = s->options.parts ? s->options.parts : info.experts;
    if (!code) code = assignment_make(&s->assignment, c, base, split, parts, &usage);
    if (!code) code = make_folder_for(out, &made);
    if (!code) code = build_parts(split, base, s->part < 0 ? 0 : s->part, s->part < 0 ? parts : s->part + 1, out);
    if (!code && s->part < 0) code = assignment_write(split, moed_model_layout(base), parts, usage, table);
    unmake_folder(code, out, made);
    free(table);
    free(usage);
    moed_split_destroy(split);
    moed_model_destroy(base);
    return code;
}

int verb_split(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    split_settings s = {.part = -1};
    moed_context *context = NULL;
    OPTIONS_INIT(SPLIT_OPTIONS, &s.options);
    flags_struct(&f, "split", MOED_STRUCT_SPLIT_OPTIONS, &s.options, NULL);
    flags_table(&f, "split", SPLIT_FIELDS, sizeof SPLIT_FIELDS / sizeof *SPLIT_FIELDS, &s);
    assignment_flags(&f, &s.assignment);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    code = split_into(context, &s, f.positionals[0], f.positionals[1]);
    moed_context_destroy(context);
    return code;
}

typedef struct integrate_settings {
    const char *weights, *partition, *corpus, *experts;
    int64_t scale_tokens, gate_tokens;
    double ridge;
    int32_t scale_experts;
} integrate_settings;

static const moed_field INTEGRATE_FIELDS[] = {
    FIELD_TEXT_(integrate_settings, weights, "comma-separated weight of each submodel, for merge weighted and explicit"),
    FIELD_TEXT_(
        integrate_settings, partition,
        "partition file: its centroids or clusters make the gate (centroids, ridge), its tokens the weights (merge weighted)"),
    FIELD_TEXT_(integrate_settings, experts,
                "table of experts, the split.json of split, for submodels whose config.json lost what it said of them"),
    FIELD_TEXT_(integrate_settings, corpus,
                "corpus of the partition: counts tokens, fits the gate (gate ridge) and measures the scale of experts"),
    FIELD_SWITCH_(integrate_settings, scale_experts,
                  "for gates that do not renormalise: scale each expert by its mean routed weight on --corpus"),
    FIELD_INTEGER(integrate_settings, gate_tokens, 20000, 0, 1e15, "gate ridge: tokens of each cluster looked at, 0 = all"),
    FIELD_NUMBER(integrate_settings, ridge, 0.01, 1e-12, 1e12,
                 "gate ridge: penalty, as a share of the mean square of a hidden state"),
    FIELD_INTEGER(integrate_settings, scale_tokens, 100000, 0, 1e15, "tokens looked at to scale experts, 0 = all"),
};

static double *read_weights(const char *text, int64_t parts)
{
    double *w = must(calloc((size_t)parts, sizeof *w));
    size_t count = 0;
    const int code = pairs_read("weights", text, w, NULL, (size_t)parts, &count);
    if (!code && count == (size_t)parts) return w;
    if (!code) fail(EXIT_INPUT, "--weights %s: must be %lld numbers with commas between", text, (long long)parts);
    free(w);
    return NULL;
}

static int fail_clusters(const integrate_settings *s, int64_t clusters, int64_t parts)
{
    return fail(EXIT_INPUT, "%s: has %lld clusters for %lld submodels", s->partition, (long long)clusters, (long long)parts);
}

static int integrate_with(const integrate_settings *s, moed_context *c, merger *m, const char *base, const char *out)
{
    moed_partition *p = NULL;
    moed_corpus *d = NULL;
    double *weights = NULL, drift = 0;
    int64_t clusters = 0;
    moed_status status = s->partition ? moed_partition_open(&p, c, s->partition) : MOED_OK;
    if (!status && s->corpus) status = open_corpus(&d, c, s->corpus);
    int code = status ? fail_status(status) : EXIT_DONE;
    if (!code && s->weights) code = (weights = read_weights(s->weights, m->parts)) ? EXIT_DONE : EXIT_INPUT;
    if (!code && !weights && m->options.merge == MOED_MERGE_WEIGHTED) {
        if (!p || !d) code = fail(EXIT_INPUT, "--merge weighted needs --weights, or --partition and --corpus to count tokens");
        else if (!(weights = cluster_tokens(p, d, &clusters))) code = EXIT_INPUT;
        else if (clusters != m->parts) code = fail_clusters(s, clusters, m->parts);
    }
    if (!code && m->options.merge == MOED_MERGE_EXPLICIT && !weights) code = fail(EXIT_INPUT, "--merge explicit needs --weights");
    if (!code && m->options.gate == MOED_GATE_CENTROIDS && !p) code = fail(EXIT_INPUT, "--gate centroids needs --partition");
    if (!code && m->options.gate == MOED_GATE_RIDGE && (!p || !d))
        code = fail(EXIT_INPUT, "--gate ridge needs --partition and --corpus");
    if (!code && (m->options.gate == MOED_GATE_CENTROIDS || m->options.gate == MOED_GATE_RIDGE)) {
        moed_partition_info info = {.struct_size = sizeof info};
        moed_partition_get_info(p, &info);
        clusters = info.clusters;
        if (clusters != m->parts) code = fail_clusters(s, clusters, m->parts);
    }
    if (!code && s->scale_experts && !d) code = fail(EXIT_INPUT, "--scale-experts needs --corpus");
    m->weights = weights;
    m->experts = s->experts;
    m->partition = p;
    m->scale = s->scale_experts ? d : NULL;
    m->scale_tokens = s->scale_tokens;
    m->documents = d, m->gate_tokens = s->gate_tokens, m->ridge = s->ridge;
    if (!code) code = surgery_integrate(c, base, m, out, &drift);
    if (!code) {
        say("integrated %lld submodels: %s; their shared parts moved by %.2g of the base's size", (long long)m->parts, out,
            drift);
        emit(json_pack("{s:s, s:s, s:f}", "event", "integrated", "path", utf8(out), "drift", drift));
    }
    free(weights);
    moed_corpus_destroy(d);
    moed_partition_destroy(p);
    return code;
}

int verb_integrate(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    merger m = {0};
    integrate_settings s = {.scale_tokens = 100000, .gate_tokens = 20000, .ridge = 0.01};
    moed_context *context = NULL;
    const char *submodels[POSITIONALS_MAX];
    OPTIONS_INIT(INTEGRATION_OPTIONS, &m.options);
    flags_struct(&f, "integrate", MOED_STRUCT_INTEGRATION_OPTIONS, &m.options, NULL);
    flags_table(&f, "integrate", INTEGRATE_FIELDS, sizeof INTEGRATE_FIELDS / sizeof *INTEGRATE_FIELDS, &s);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 3, POSITIONALS_MAX);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    m.parts = (int64_t)f.positional_count - 2;
    for (int64_t k = 0; k < m.parts; k++) submodels[k] = strcmp(f.positionals[k + 2], "lost") ? f.positionals[k + 2] : NULL;
    m.submodels = submodels;
    for (size_t k = 0; k < f.positional_count && !code; k++) /* the result would take the place of what it is made from */
        if (k != 1) code = refuse_same(f.positionals[k], f.positionals[1]);
    if (!code) code = integrate_with(&s, context, &m, f.positionals[0], f.positionals[1]);
    moed_context_destroy(context);
    return code;
}
