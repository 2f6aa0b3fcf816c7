/* info.c - the verb info: what a file, directory or this machine is. */
#include <stdlib.h>
#include <string.h>

#include "clusters.h"
#include "damage.h"
#include "info.h"
#include "needs.h"
#include "output.h"
#include "report.h"
#include "size.h"

typedef struct info_settings {
    int32_t numbers;
    needs needs;
} info_settings;

static const moed_field INFO_FIELDS[] = {
    FIELD_SWITCH_(info_settings, numbers, "of a model: read every number, for those that are NaN, infinite or all zero"),
};

void layout_tell(const char *name, const moed_layout *l)
{
    moed_layout_info i = {.struct_size = sizeof i};
    char total[32], active[32], shared[32], bytes[32], work[32];
    if (moed_layout_get_info(l, &i)) return;
    say("model %s: %s, %lld layers, hidden %lld, %lld experts (top-%lld), vocabulary %lld, context %lld", name,
        i.family[0] ? i.family : "by hand", (long long)i.layers, (long long)i.hidden, (long long)i.experts, (long long)i.top_k,
        (long long)i.vocabulary, (long long)i.context_length);
    say("  %lld parameters (%s), %lld used per token (%s), %s shared; %s; %s per token forward", (long long)i.total,
        human_count((double)i.total, total), (long long)i.active, human_count((double)i.active, active),
        human_count((double)i.shared, shared), human_bytes(i.bytes, bytes), human_flops(i.forward_flops, work));
    emit(json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f}", "event", "model", "path", utf8(name),
                   "family", i.family, "layers", (json_int_t)i.layers, "hidden", (json_int_t)i.hidden, "experts",
                   (json_int_t)i.experts, "top_k", (json_int_t)i.top_k, "vocabulary", (json_int_t)i.vocabulary, "context_length",
                   (json_int_t)i.context_length, "parameters", (json_int_t)i.total, "active", (json_int_t)i.active, "shared",
                   (json_int_t)i.shared, "bytes", (json_int_t)i.bytes, "forward_flops", i.forward_flops));
}

/* Devices are looked for where the context looked. */
static int tell_machine(moed_context *context, const char *plugin_dir)
{
    moed_context_info i = {.struct_size = sizeof i};
    size_t count = 0;
    moed_status status = moed_context_get_info(context, &i);
    if (status) return fail_status(status);
    say("%s", moed_build_info());
    say("here: device %s, kernels %s, %d threads; %s", i.device, i.kernels, i.threads, i.reason);
    status = moed_device_list(NULL, 0, &count, plugin_dir);
    if (status) return fail_status(status);
    moed_device_info *devices = must(calloc(count + 1, sizeof *devices));
    for (size_t k = 0; k < count; k++) devices[k].struct_size = sizeof *devices;
    status = moed_device_list(devices, count, &count, plugin_dir);
    for (size_t k = 0; k < count && !status; k++) {
        const moed_device_info *d = &devices[k];
        char memory[32];
        say("device %s (%s): %s, %s%s%s", d->name, d->backend, d->description,
            d->memory ? human_bytes(d->memory, memory) : "memory not known", d->reason[0] ? "; not usable: " : "", d->reason);
        emit(json_pack("{s:s, s:s, s:s, s:s, s:I, s:s}", "event", "device", "name", d->name, "backend", d->backend, "description",
                       d->description, "memory", (json_int_t)d->memory, "reason", d->reason));
    }
    free(devices);
    return status ? fail_status(status) : EXIT_DONE;
}

static int tell_partition(moed_context *c, const char *path)
{
    moed_partition *p = NULL;
    moed_partition_info i = {.struct_size = sizeof i};
    moed_status status = moed_partition_open(&p, c, path);
    if (!status) status = moed_partition_get_info(p, &i);
    if (status) return fail_status(status);
    say("partition %s: %lld documents in %lld clusters, centroids of %lld numbers, of corpus %s", path, (long long)i.documents,
        (long long)i.clusters, (long long)i.width, i.fingerprint[0] ? i.fingerprint : "(none in particular)");
    int64_t *documents = must(calloc((size_t)i.clusters + 1, sizeof *documents));
    for (int64_t d = 0; d < i.documents; d++) documents[i.labels[d]]++;
    json_t *counts = json_array();
    for (int64_t k = 0; k < i.clusters; k++) {
        say("  cluster %lld: %lld documents", (long long)k, (long long)documents[k]);
        put_last(counts, json_integer(documents[k]));
    }
    emit(json_pack("{s:s, s:s, s:I, s:I, s:s, s:o}", "event", "partition", "path", utf8(path), "documents",
                   (json_int_t)i.documents, "clusters", (json_int_t)i.clusters, "corpus", i.fingerprint, "counts", counts));
    free(documents);
    moed_partition_destroy(p);
    return EXIT_DONE;
}

static int tell_layout(const char *name, const moed_layout *l, const info_settings *s)
{
    layout_tell(name, l);
    return needs_tell(&s->needs, l);
}

/* A config.json, whatever its name. */
static int tell_config(moed_context *c, const char *name, const char *path, const info_settings *s)
{
    sizes z = {.config = path};
    moed_layout *l = NULL;
    int code = sizes_layout(&z, c, 0, &l);
    if (!code) code = tell_layout(name, l, s);
    moed_layout_destroy(l);
    return code;
}

static int tell_model(moed_context *c, const char *dir, const info_settings *s)
{
    moed_model *m = NULL;
    int code;
    if (open_streamed(&m, c, dir) == MOED_OK) { /* its tensors say their dtypes better than the configuration */
        code = tell_layout(dir, moed_model_layout(m), s);
        moed_model_destroy(m);
    } else {
        char *config = path_join(dir, "config.json");
        code = tell_config(c, dir, config, s);
        free(config);
    }
    if (code) return code;
    if (damage_has_tensors(dir)) return damage_tell(c, dir, s->numbers);
    say("it is a configuration alone: there are no tensors");
    return EXIT_DONE;
}

static int holds(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    const int there = path_exists(path);
    free(path);
    return there;
}

static int is_corpus(const char *path)
{
    char *index = text_format("%s.idx", path);
    const int there = path_exists(index);
    free(index);
    return there;
}

static int tell_corpus(moed_context *c, const char *path)
{
    moed_corpus *d = NULL;
    const moed_status status = open_corpus(&d, c, path);
    if (status) return fail_status(status);
    corpus_tell(path, d);
    moed_corpus_destroy(d);
    return EXIT_DONE;
}

static int ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);
    return n >= m && !strcmp(text + n - m, end);
}

static int tell(moed_context *c, const char *path, const info_settings *s)
{
    if (path_is_folder(path)) {
        if (holds(path, "run.json")) return report_pipeline(path);
        if (holds(path, "config.json")) return tell_model(c, path, s);
        if (holds(path, "model/config.json") && !report_holds_pipelines(path)) {
            char *model = path_join(path, "model");
            const int code = tell_model(c, model, s);
            free(model);
            return code;
        }
        if (report_holds_pipelines(path)) return report_table(path);
        return fail(EXIT_INPUT, "%s: a folder, but neither a model (config.json) nor a run directory (run.json)", path);
    }
    if (is_corpus(path)) return tell_corpus(c, path);
    if (!path_exists(path)) return fail(EXIT_INPUT, "%s: there is no such file, folder or corpus", path);
    if (ends_with(path, ".idx") || (ends_with(path, ".bin") && !is_corpus(path))) {
        char *prefix = must(strndup(path, strlen(path) - 4));
        const int code = tell_corpus(c, is_corpus(prefix) ? prefix : path);
        free(prefix);
        return code;
    }
    if (ends_with(path, ".safetensors")) { /* a model's tensors: the config beside them says what they are */
        const char *slash = strrchr(path, '/');
        char *folder = slash ? must(strndup(path, (size_t)(slash - path) + 1)) : must(strdup("."));
        const int code = holds(folder, "config.json") ? tell_model(c, folder, s) : tell_partition(c, path);
        free(folder);
        return code;
    }
    if (ends_with(path, ".json")) return tell_config(c, path, path, s);
    return tell_partition(c, path);
}

int verb_info(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    info_settings s = {.numbers = 1};
    moed_context *context = NULL;
    needs_flags(&f, &s.needs);
    flags_table(&f, "model", INFO_FIELDS, sizeof INFO_FIELDS / sizeof *INFO_FIELDS, &s);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 0, 1);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    code = f.positional_count ? tell(context, f.positionals[0], &s) : tell_machine(context, c.context.plugin_dir);
    moed_context_destroy(context);
    return code;
}
