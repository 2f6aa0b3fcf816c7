/* assignment.c - tables of experts and of their usage: {"parts": K, "experts": [part][layer][...], "usage":
 * [part][layer][expert]}. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "assignment.h"
#include "json_file.h"
#include "output.h"

static const moed_field FIELDS[] = {
    FIELD_TEXT_(assignment, experts, "file with a table of experts, as split.json: for each part a list, or one for each layer"),
    FIELD_TEXT_(assignment, usage, 
                "file with a table of usage, as split.json: (parts, layers, experts); experts go where they are used most"),
    FIELD_TEXT_(assignment, partition, "partition file: experts go to the cluster that uses them most, measured on --corpus"),
    FIELD_TEXT_(assignment, corpus, "corpus of the partition"),
    FIELD_INTEGER(assignment, usage_tokens, 100000, 0, 1e15, "tokens of each cluster looked at, 0 = all"),
};

void assignment_flags(flags *f, assignment *a)
{
    *a = (assignment){.usage_tokens = 100000};
    flags_table(f, "which experts: by index, or", FIELDS, sizeof FIELDS / sizeof *FIELDS, a);
}

static int table_of(const char *path, const char *name, json_t **root, json_t **table)
{
    if (!(*root = read_json(path))) return EXIT_INPUT;
    *table = json_object_get(*root, name);
    if (json_is_array(*table) && json_array_size(*table) > 0) return EXIT_DONE;
    json_decref(*root);
    *root = NULL;
    return fail(EXIT_INPUT, "%s: there is no list \"%s\", one entry for each part", path, name);
}

int assignment_parts(const assignment *a, moed_context *c, int64_t *parts)
{
    const int ways = !!a->experts + !!a->usage + !!a->partition;
    *parts = 0;
    if (ways > 1) return fail(EXIT_INPUT, "--experts, --usage and --partition are three ways of assigning experts: give one");
    if (a->partition && !a->corpus) return fail(EXIT_INPUT, "--partition needs --corpus, on which usage is measured");
    if (a->partition) {
        moed_partition *p = NULL;
        moed_partition_info info = {.struct_size = sizeof info};
        moed_status status = moed_partition_open(&p, c, a->partition);
        if (!status) status = moed_partition_get_info(p, &info);
        *parts = info.clusters;
        moed_partition_destroy(p);
        return status ? fail_status(status) : EXIT_DONE;
    }
    if (ways) {
        json_t *root, *table;
        const int code = table_of(a->experts ? a->experts : a->usage, a->experts ? "experts" : "usage", &root, &table);
        if (code) return code;
        *parts = (int64_t)json_array_size(table);
        json_decref(root);
    }
    return EXIT_DONE;
}

/* ---- experts ---- */

static int assign_list(moed_split *s, int64_t part, int64_t layer, const json_t *list, const char *path)
{
    const size_t count = json_array_size(list);
    int32_t *experts = must(calloc(count + 1, sizeof *experts));
    int code = EXIT_DONE;
    for (size_t j = 0; j < count && !code; j++) {
        const json_t *e = json_array_get(list, j);
        if (!json_is_integer(e) || json_integer_value(e) < 0 || json_integer_value(e) > INT32_MAX)
            code = fail(EXIT_INPUT, "%s: part %lld, layer %lld: entry %zu is no number of an expert", path, (long long)part,
                        (long long)layer, j);
        else
            experts[j] = (int32_t)json_integer_value(e);
    }
    if (!code) {
        const moed_status status = moed_split_assign(s, (int32_t)part, (int32_t)layer, experts, (int32_t)count);
        if (status) code = fail(exit_code(status), "%s: %s", path, moed_last_error());
    }
    free(experts);
    return code;
}

static int assign_part(moed_split *s, const moed_layout_info *info, int64_t part, const json_t *lists, const char *path)
{
    if (json_is_integer(json_array_get(lists, 0))) return assign_list(s, part, -1, lists, path);
    if (json_array_size(lists) != (size_t)info->layers)
        return fail(EXIT_INPUT, "%s: part %lld has lists for %zu layers, and the model has %lld", path, (long long)part,
                    json_array_size(lists), (long long)info->layers);
    int code = EXIT_DONE;
    for (int64_t l = 0; l < info->layers && !code; l++) {
        const json_t *list = json_array_get(lists, (size_t)l);
        int32_t held = 0; /* by index as yet: 0 in a dense layer, of which the list is empty */
        moed_split_experts(s, (int32_t)part, (int32_t)l, NULL, 0, &held);
        if (!json_is_array(list) || (held && !json_array_size(list)))
            code = fail(EXIT_INPUT, "%s: part %lld, layer %lld: is no list of experts", path, (long long)part, (long long)l);
        else if (json_array_size(list)) code = assign_list(s, part, l, list, path);
    }
    return code;
}

int assignment_read(moed_split *s, const moed_layout *base, int64_t parts, const char *path)
{
    moed_layout_info info = {.struct_size = sizeof info};
    json_t *root, *table;
    moed_layout_get_info(base, &info);
    int code = table_of(path, "experts", &root, &table);
    if (code) return code;
    if (json_array_size(table) != (size_t)parts)
        code = fail(EXIT_INPUT, "%s: has experts of %zu parts, not of %lld", path, json_array_size(table), (long long)parts);
    for (int64_t k = 0; k < parts && !code; k++) code = assign_part(s, &info, k, json_array_get(table, (size_t)k), path);
    json_decref(root);
    return code;
}

/* ---- usage ---- */

static size_t usage_size(const moed_layout_info *info, int64_t parts)
{
    return (size_t)parts * (size_t)info->layers * (size_t)info->experts;
}

/* usage [out]: (parts, layers, experts), the caller's. */
static int read_usage(const char *path, const moed_layout_info *info, int64_t parts, double **usage)
{
    json_t *root, *table;
    const int code = table_of(path, "usage", &root, &table);
    if (code) return code;
    double *next = *usage = must(calloc(usage_size(info, parts) + 1, sizeof **usage));
    int right = json_array_size(table) == (size_t)parts;
    for (size_t k = 0; right && k < (size_t)parts; k++) {
        const json_t *part = json_array_get(table, k);
        right = json_array_size(part) == (size_t)info->layers;
        for (size_t l = 0; right && l < (size_t)info->layers; l++) {
            const json_t *row = json_array_get(part, l);
            right = json_array_size(row) == (size_t)info->experts;
            for (size_t e = 0; right && e < (size_t)info->experts; e++) {
                right = json_is_number(json_array_get(row, e));
                *next++ = json_number_value(json_array_get(row, e));
            }
        }
    }
    json_decref(root);
    if (right) return EXIT_DONE;
    free(*usage);
    *usage = NULL;
    return fail(EXIT_INPUT, "%s: \"usage\" must be numbers of (%lld parts, %lld layers, %lld experts)", path, (long long)parts,
                (long long)info->layers, (long long)info->experts);
}

static int measure_usage(const assignment *a, moed_context *c, const moed_model *base, const moed_layout_info *info,
                         int64_t parts, double **usage)
{
    moed_partition *p = NULL;
    moed_corpus *d = NULL;
    *usage = must(calloc(usage_size(info, parts) + 1, sizeof **usage));
    moed_status status = moed_partition_open(&p, c, a->partition);
    if (!status) status = open_corpus(&d, c, a->corpus);
    for (int64_t k = 0; k < parts && !status; k++) {
        moed_corpus *view = NULL;
        status = moed_partition_view(&view, p, d, (int32_t)k);
        if (!status)
            status = moed_model_usage(base, view, a->usage_tokens, *usage + (size_t)k * usage_size(info, 1), NULL, app_cancel);
        moed_corpus_destroy(view);
    }
    moed_corpus_destroy(d);
    moed_partition_destroy(p);
    if (!status) return EXIT_DONE;
    free(*usage);
    *usage = NULL;
    return fail_status(status);
}

/* Mean over layers with experts of the share of its cluster's choices that a part's own experts get, against what chance would
 * give. */
static void tell_share(const moed_split *s, const moed_layout_info *info, int64_t part, const double *usage)
{
    double share = 0, chance = 0;
    int64_t layers = 0;
    int32_t *experts = must(calloc((size_t)info->experts + 1, sizeof *experts));
    for (int64_t l = 0; l < info->layers; l++) {
        const double *row = usage + ((size_t)part * (size_t)info->layers + (size_t)l) * (size_t)info->experts;
        double all = 0, own = 0;
        int32_t count = 0;
        moed_split_experts(s, (int32_t)part, (int32_t)l, experts, (int32_t)info->experts, &count);
        for (int64_t e = 0; e < info->experts; e++) all += row[e];
        for (int32_t j = 0; j < count; j++) own += row[experts[j]];
        if (count == 0 || !(all > 0) || !isfinite(all)) continue;
        share += own / all, chance += (double)count / (double)info->experts;
        layers++;
    }
    free(experts);
    if (layers == 0) return;
    say("submodel %lld: its experts have %.1f%% of the choices of its cluster (%.1f%% by chance)", (long long)part,
        100 * share / (double)layers, 100 * chance / (double)layers);
    emit(json_pack("{s:s, s:I, s:f, s:f}", "event", "usage", "part", (json_int_t)part, "share", share / (double)layers, "chance",
                   chance / (double)layers));
}

int assignment_make(const assignment *a, moed_context *c, const moed_model *base, moed_split *s, int64_t parts, double **usage)
{
    moed_layout_info info = {.struct_size = sizeof info};
    *usage = NULL;
    if (a->experts) return assignment_read(s, moed_model_layout(base), parts, a->experts);
    if (!a->usage && !a->partition) return EXIT_DONE;
    moed_status status = moed_layout_get_info(moed_model_layout(base), &info);
    if (status) return fail_status(status);
    const int code = a->usage ? read_usage(a->usage, &info, parts, usage) : measure_usage(a, c, base, &info, parts, usage);
    if (code) return code;
    if ((status = moed_split_assign_usage(s, *usage, app_cancel))) return fail_status(status);
    for (int64_t k = 0; k < parts && *usage; k++) tell_share(s, &info, k, *usage);
    return EXIT_DONE;
}

/* ---- the file ---- */

int assignment_write(const moed_split *s, const moed_layout *base, int64_t parts, const double *usage, const char *path)
{
    moed_layout_info info = {.struct_size = sizeof info};
    moed_layout_get_info(base, &info);
    int32_t *experts = must(calloc((size_t)info.experts + 1, sizeof *experts));
    json_t *root = must(json_object()), *lists = must(json_array()), *tables = must(json_array());
    for (int64_t k = 0; k < parts; k++) {
        json_t *part = must(json_array()), *table = must(json_array());
        for (int64_t l = 0; l < info.layers; l++) {
            json_t *list = must(json_array()), *row = must(json_array());
            int32_t count = 0;
            moed_split_experts(s, (int32_t)k, (int32_t)l, experts, (int32_t)info.experts, &count);
            for (int32_t j = 0; j < count; j++) put_last(list, must(json_integer(experts[j])));
            for (int64_t e = 0; usage && e < info.experts; e++)
                put_last(row, must(json_real(usage[(k * info.layers + l) * info.experts + e])));
            put_last(part, list);
            put_last(table, row);
        }
        put_last(lists, part);
        put_last(tables, table);
    }
    free(experts);
    put(root, "parts", must(json_integer(parts)));
    put(root, "experts", lists);
    if (usage) put(root, "usage", tables);
    else json_decref(tables);
    return write_json(path, root);
}
