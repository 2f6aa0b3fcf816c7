/* phases.c - the phases of a pipeline. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "cost.h"
#include "json_file.h"
#include "output.h"
#include "phases.h"
#include "report.h"
#include "settings.h"
#include "surgery.h"
#include "training.h"
#include "workers.h"

char *submodel_path(const pipeline *p, int64_t index, const char *what)
{
    return text_format("%s/submodels/%lld/%s", p->dir, (long long)index, what);
}

/* ---- pieces of phases ---- */

static void tell_phase(const char *name, const char *what)
{
    say("-- %s: %s", name, what);
    emit(json_pack("{s:s, s:s, s:s}", "event", "phase", "phase", name, "what", what));
}

/* Trains the model of from_dir on a corpus; the result in work_dir/model, checkpoints and metrics beside it. */
static int train_into(pipeline *p, const char *label, const char *from_dir, const moed_corpus *d, const char *work_dir,
                      moed_train_options o)
{
    training t = {.label = label, .context = p->context, .corpus = d, .options = o, .watch = &p->watch};
    char *out = path_join(work_dir, "model");
    int code = EXIT_DONE;
    if (!path_exists(out)) {
        moed_status status = moed_model_open(&t.model, p->context, from_dir, NULL);
        t.options.directory = work_dir;
        t.options.held_out = o.evaluate_every ? p->held_view : NULL;
        if (status) code = fail_status(status);
        else code = training_run(&t);
        if (!code && (status = moed_model_save(t.model, out, NULL))) code = fail_status(status);
        moed_model_destroy(t.model);
    }
    free(out);
    return code;
}

/* run.json may have been edited since the base was made. */
static int same_sizes(const pipeline *p, const char *base)
{
    moed_model *m = NULL;
    moed_layout_info wanted = {.struct_size = sizeof wanted}, there = {.struct_size = sizeof there};
    const moed_status status = open_streamed(&m, p->context, base);
    if (status) return fail_status(status);
    moed_layout_get_info(moed_model_layout(m), &there);
    moed_layout_get_info(p->layout, &wanted);
    moed_model_destroy(m);
    if (there.total == wanted.total && there.hidden == wanted.hidden && there.layers == wanted.layers &&
        there.experts == wanted.experts && there.top_k == wanted.top_k && there.vocabulary == wanted.vocabulary)
        return EXIT_DONE;
    return fail(EXIT_INPUT, "%s: %lld layers, hidden %lld, %lld experts, %lld parameters: not the model that run.json describes",
                base, (long long)there.layers, (long long)there.hidden, (long long)there.experts, (long long)there.total);
}

static int phase_base(pipeline *p, const char *base)
{
    moed_model *m = NULL;
    if (path_exists(base)) return same_sizes(p, base);
    moed_status status = moed_model_init(&m, p->context, p->layout, &p->size.init);
    if (!status) status = moed_model_save(m, base, NULL);
    moed_model_destroy(m);
    return status ? fail_status(status) : EXIT_DONE;
}

/* One dense model - part 0 of the base - on all data, then cloned into every expert. */
static int phase_start(pipeline *p, const char *base, const char *started)
{
    if (path_exists(started)) return EXIT_DONE;
    char *work = path_join(p->dir, "start"), *initial = path_join(work, "initial"), *trained = path_join(work, "model");
    const char *const submodels[] = {trained};
    merger m = {.parts = pipeline_parts(p), .submodels = submodels, .clones = 1};
    OPTIONS_INIT(INTEGRATION_OPTIONS, &m.options);
    m.options.flags = MOED_INTEGRATION_CLONES;
    tell_phase("start", "one dense model on all data, cloned into every expert");
    stopwatch_start(&p->watch, p->dir, "start");
    int code = make_folder(work);
    if (!code && !path_exists(initial)) code = surgery_split(p->context, base, m.parts, 0, initial);
    if (!code) code = train_into(p, "start", initial, p->train_view, work, start_options(p));
    code = stopwatch_stop(&p->watch, code);
    if (!code) code = surgery_integrate(p->context, base, &m, started, NULL);
    free(work);
    free(initial);
    free(trained);
    return code;
}

static int phase_cluster(pipeline *p, const char *base, const char *path)
{
    moed_model *m = NULL;
    moed_partition *partition = NULL;
    if (path_exists(path)) return EXIT_DONE;
    tell_phase("cluster", "training documents by their mean token embedding");
    moed_status status = moed_model_open(&m, p->context, base, NULL);
    int code = status ? fail_status(status)
                      : clusters_make(p->context, p->whole, p->train_view, p->held_view, m, &p->clusters, &partition);
    if (!code && (status = moed_partition_save(partition, path))) code = fail_status(status);
    moed_partition_destroy(partition);
    moed_model_destroy(m);
    return code;
}

static int phase_split(pipeline *p, const char *base)
{
    const int64_t parts = pipeline_parts(p);
    int code = EXIT_DONE, told = 0;
    for (int64_t k = 0; k < parts && !code; k++) {
        char *folder = submodel_path(p, k, ""), *initial = submodel_path(p, k, "initial");
        if (!path_exists(initial)) {
            if (!told++) tell_phase("split", "the shared part and one expert each");
            if (!(code = make_folder(folder))) code = surgery_split(p->context, base, parts, k, initial);
        }
        free(folder);
        free(initial);
    }
    return code;
}

static int phase_branches(pipeline *p, const flags *f)
{
    const int64_t parts = pipeline_parts(p);
    int64_t missing = 0;
    for (int64_t k = 0; k < parts; k++) missing += !worker_done(p, k);
    if (!missing) return EXIT_DONE;
    tell_phase("S-phase", "submodels on their clusters, nothing exchanged");
    stopwatch_start(&p->watch, p->dir, "S-phase");
    return stopwatch_stop(&p->watch, workers_run(p, f, parts));
}

static int phase_integrate(pipeline *p, const char *base, const char *partition_path, const char *out)
{
    const int64_t parts = pipeline_parts(p);
    moed_partition *partition = NULL;
    int64_t clusters = 0;
    double *weights = NULL, drift = 0;
    if (path_exists(out)) return EXIT_DONE;
    tell_phase("integrate", "submodels into one model");
    char **submodels = must(calloc((size_t)parts, sizeof *submodels));
    for (int64_t k = 0; k < parts; k++) submodels[k] = submodel_path(p, k, "model");
    const moed_status status = moed_partition_open(&partition, p->context, partition_path);
    int code = status ? fail_status(status) : EXIT_DONE;
    if (!code && !(weights = cluster_tokens(partition, p->train_view, &clusters))) code = EXIT_INPUT;
    if (!code && clusters != parts)
        code = fail(EXIT_INPUT, "%s: has %lld clusters for %lld submodels", partition_path, (long long)clusters,
                    (long long)parts);
    merger m = {.options = p->integration, .parts = parts, .weights = weights, .submodels = (const char *const *)submodels,
                .partition = partition, .documents = p->train_view, .gate_tokens = 20000, .ridge = 0.01,
                .scale = p->scale_experts ? p->train_view : NULL, .scale_tokens = 100000};
    if (!code) code = surgery_integrate(p->context, base, &m, out, &drift);
    if (!code) {
        say("their shared parts had moved by %.2g of the base's size", drift);
        emit(json_pack("{s:s, s:f}", "event", "integrated", "drift", drift));
    }
    for (int64_t k = 0; k < parts; k++) free(submodels[k]);
    free(submodels);
    free(weights);
    moed_partition_destroy(partition);
    return code;
}

static int phase_result(pipeline *p)
{
    char *path = path_join(p->dir, "result.json"), *dir = path_join(p->dir, "model");
    moed_model *m = NULL;
    moed_report r = {.struct_size = sizeof r};
    moed_phase phases[PHASE_COUNT];
    moed_cost cost;
    moed_context_info here = {.struct_size = sizeof here};
    size_t count = 0;
    int code = EXIT_DONE;
    json_t *there = path_exists(path) ? read_json(path) : NULL; /* a damaged one is told of, and made anew */
    if (!there) {
        const double seconds[PHASE_COUNT] = {stopwatch_total(p->dir, "start"), stopwatch_total(p->dir, "S-phase"),
                                               stopwatch_total(p->dir, "F-phase")};
        const moed_status status = moed_model_open(&m, p->context, dir, NULL);
        const moed_train_options o = final_options(p);
        code = status ? fail_status(status) : training_evaluate(m, p->held_view, &o, &r);
        if (!code && !(code = cost_phases(p, seconds, phases, &count))) code = cost_of(phases, count, &cost);
        if (!code) {
            moed_context_get_info(p->context, &here);
            json_t *result = must(json_pack("{s:s, s:s, s:f, s:o, s:I, s:o, s:o, s:s, s:s, s:s}", "name",
                                            p->name ? p->name : kind_name(p->kind), "kind", kind_name(p->kind), "held_out_loss",
                                            r.loss, "perplexity", finite_or_null(exp(r.loss)), "held_out_tokens",
                                            (json_int_t)r.labels, "cost", cost_json(&cost), "phases", phases_json(phases, count),
                                            "measured_on", here.device, "kernels", here.kernels, "prices", p->price_date));
            code = write_json(path, result);
        }
        moed_model_destroy(m);
    }
    json_decref(there);
    free(path);
    free(dir);
    return code;
}

/* ---- an F-phase that grows ---- */

static char *stage_path(const pipeline *p, size_t stage, const char *what)
{
    char *name = text_format("stages/%zu", stage), *folder = path_join(p->dir, name), *path = path_join(folder, what);
    free(name);
    free(folder);
    return path;
}

/* The model that a stage begins with: the one before, with more experts. All or nothing, so that a run that is killed meanwhile
 * makes it again. */
static int grow(pipeline *p, const char *from_dir, int32_t experts, size_t stage, const char *to_dir)
{
    moed_model *from = NULL;
    moed_expansion *x = NULL;
    moed_expansion_options o = p->expansion;
    if (path_exists(to_dir)) return EXIT_DONE;
    o.experts = experts;
    o.seed = p->size.init.seed * STAGES_MOST + stage; /* each expansion draws numbers of its own */
    moed_status status = open_streamed(&from, p->context, from_dir);
    if (!status) status = moed_expansion_create(&x, from, NULL, &o);
    if (!status) status = moed_expansion_build(NULL, x, to_dir, app_cancel);
    moed_expansion_destroy(x);
    moed_model_destroy(from);
    return status ? fail_status(status) : EXIT_DONE;
}

/* One stage, from the model of the one before (or the base) to its own, which takes the place of `*from`. */
static int train_stage(pipeline *p, size_t stage, int last, char **from)
{
    moed_stage s = {.struct_size = sizeof s}, before = {.struct_size = sizeof before};
    moed_growth_stage(p->growth, stage, &s);
    moed_growth_stage(p->growth, stage ? stage - 1 : 0, &before);
    const int grows = s.experts != before.experts; /* another stage with the same pool keeps its selection biases */
    char *folder = stage_path(p, stage, ""), *initial = stage_path(p, stage, "initial"),
         *label = text_format("stage of %d", (int)s.experts);
    const char *work = last ? p->dir : folder;
    int code = make_folder(folder);
    if (!code && grows) code = grow(p, *from, s.experts, stage, initial);
    if (!code) {
        say("-- stage %zu: %d experts, %lld steps from step %lld on", stage + 1, (int)s.experts,
            (long long)(s.tokens / (p->train.rows * p->train.length)), (long long)(s.start / (p->train.rows * p->train.length)));
        emit(json_pack("{s:s, s:I, s:I, s:I, s:I}", "event", "stage", "stage", (json_int_t)stage, "experts",
                       (json_int_t)s.experts, "tokens", (json_int_t)s.tokens, "start", (json_int_t)s.start));
        code = train_into(p, label, grows ? initial : *from, p->train_view, work, stage_options(p, &s));
    }
    free(*from);
    *from = path_join(work, "model");
    free(folder);
    free(initial);
    free(label);
    return code;
}

static int train_stages(pipeline *p, const char *base)
{
    moed_growth_info info = {.struct_size = sizeof info};
    char *from = must(strdup(base));
    moed_growth_get_info(p->growth, &info);
    char *stages = path_join(p->dir, "stages");
    int code = make_folder(stages);
    for (size_t i = 0; i < (size_t)info.stages && !code; i++) code = train_stage(p, i, i + 1 == (size_t)info.stages, &from);
    free(stages);
    free(from);
    return code;
}

static int final_phase(pipeline *p, const char *from)
{
    char *model = path_join(p->dir, "model");
    int code = EXIT_DONE;
    if (!path_exists(model)) {
        stopwatch_start(&p->watch, p->dir, "F-phase");
        tell_phase("F-phase",
                   p->growth ? "the whole model on all data, its experts growing in number" : "the whole model on all data");
        code = p->growth ? train_stages(p, from) : train_into(p, "F-phase", from, p->train_view, p->dir, final_options(p));
        code = stopwatch_stop(&p->watch, code);
    }
    free(model);
    return code;
}

static void tell_start(const pipeline *p)
{
    moed_phase phases[PHASE_COUNT];
    moed_cost c;
    size_t count = 0;
    char flops[32], money[32];
    if (cost_phases(p, NULL, phases, &count) || cost_of(phases, count, &c)) return;
    say("== %s in %s: start %lld steps, S-phase %lld x %lld, F-phase %lld; %s, %s on the priced devices", kind_name(p->kind),
        p->dir, (long long)p->start_steps, (long long)(p->branch_steps ? pipeline_parts(p) : 0), (long long)p->branch_steps,
        (long long)p->steps, human_flops(c.flops, flops), human_money(c.money, money));
    json_t *o = cost_json(&c);
    put(o, "event", json_string("pipeline"));
    put(o, "kind", json_string(kind_name(p->kind)));
    put(o, "path", json_string(utf8(p->dir)));
    emit(o);
}

int phases_run(pipeline *p, const flags *f)
{
    char *base = path_join(p->dir, "base"), *started = path_join(p->dir, "started"),
         *integrated = path_join(p->dir, "integrated");
    char *partition = path_join(p->dir, "partition.safetensors");
    const char *from = base;
    tell_start(p);
    int code = phase_base(p, base);
    if (!code && p->start_steps > 0) {
        code = phase_start(p, base, started);
        from = started;
    }
    if (!code && p->branch_steps > 0) {
        code = phase_cluster(p, from, partition);
        if (!code) code = phase_split(p, from);
        if (!code) code = phase_branches(p, f);
        if (!code) code = phase_integrate(p, from, partition, integrated);
        from = integrated;
    }
    if (!code) code = final_phase(p, from);
    if (!code) code = phase_result(p);
    free(base);
    free(started);
    free(integrated);
    free(partition);
    return code;
}

/* ---- one worker ---- */

/* The S-phase of one submodel: a pure function of the pipeline's directory and the index. */
static int phase_work(pipeline *p, int64_t index)
{
    char *work = submodel_path(p, index, ""), *initial = submodel_path(p, index, "initial"),
         *model = submodel_path(p, index, "model");
    char *lock_path = submodel_path(p, index, ".lock"), *partition_path = path_join(p->dir, "partition.safetensors");
    char *label = text_format("submodel %lld", (long long)index);
    moed_partition *partition = NULL;
    moed_corpus *view = NULL;
    int lock = -1, code = EXIT_DONE;
    if (index < 0 || index >= pipeline_parts(p))
        code = fail(EXIT_INPUT, "%s: has submodels 0 to %lld, not %lld", p->dir, (long long)pipeline_parts(p) - 1,
                    (long long)index);
    else if (p->branch_steps <= 0) code = fail(EXIT_INPUT, "%s: a pipeline without an S-phase has no work for workers", p->dir);
    else if (!path_exists(initial) || !path_exists(partition_path))
        code = fail(EXIT_INPUT, "%s: is not there yet; `moedisco run disco` makes it before its workers start",
                    path_exists(initial) ? partition_path : initial);
    else if ((lock = open_again(lock_path, O_RDWR | O_CREAT | O_CLOEXEC)) < 0)
        code = fail_errno(lock_path, "cannot be made", errno);
    /* A worker whose parent was killed may still be saving: wait for it. */
    while (!code && flock(lock, LOCK_EX) && errno == EINTR && !app_stopped()) {}
    if (!code && app_stopped()) code = fail(EXIT_STOPPED, "stopped; the same command starts again");
    if (!code && !path_exists(model)) {
        moed_status status = moed_partition_open(&partition, p->context, partition_path);
        if (!status) status = moed_partition_view(&view, partition, p->train_view, (int32_t)index);
        code = status ? fail_status(status) : train_into(p, label, initial, view, work, branch_options(p));
    }
    if (lock >= 0) close(lock);
    moed_corpus_destroy(view);
    moed_partition_destroy(partition);
    free(work);
    free(initial);
    free(model);
    free(lock_path);
    free(partition_path);
    free(label);
    return code;
}

int verb_work(const verb *v, int argc, char **argv)
{
    flags own = {0}, settings = {0};
    pipeline p;
    pipeline_flags(&settings, &p, KIND_DISCO);
    p.kind = -1; /* whatever run.json says */
    common_flags(&own, &p.common);
    int code = flags_parse(&own, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    char *end;
    const long long index = strtoll(own.positionals[1], &end, 10);
    if (*end) return fail(EXIT_INPUT, "INDEX %s: must be a whole number", own.positionals[1]);
    code = pipeline_open(&p, &settings, own.positionals[0]);
    if (!code) code = phase_work(&p, index);
    if (!code) {
        char *model = submodel_path(&p, index, "model");
        say("submodel %lld: %s", index, model);
        emit(json_pack("{s:s, s:I, s:s}", "event", "submodel", "part", (json_int_t)index, "path", utf8(model)));
        free(model);
    }
    pipeline_close(&p);
    flags_free(&settings);
    return code;
}
