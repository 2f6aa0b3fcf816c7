/* training.c - one training run to its end. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "training.h"

void training_defaults(moed_train_options *o)
{
    OPTIONS_INIT(TRAIN_OPTIONS, o);
    o->rows = 8;
    o->length = 128;
    o->learning_rate = 1.5e-3;
    o->checkpoint_every = 100;
    o->keep = 1;
}

/* Checkpoints need a place to be counted for; nothing is written. Pipelines plan before there are held-out documents. */
static moed_status estimate(const moed_layout *l, const moed_train_options *o, moed_estimate *out)
{
    moed_train_options somewhere = *o;
    if (!somewhere.directory) somewhere.directory = ".";
    if (!somewhere.held_out) somewhere.evaluate_every = 0;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    return moed_train_estimate(l, NULL, &somewhere, out);
}

int training_estimate(const moed_layout *l, const moed_train_options *o, moed_estimate *out)
{
    const moed_status status = estimate(l, o, out);
    return status ? fail_status(status) : EXIT_DONE;
}

int64_t training_memory(const moed_estimate *e) { return e->device_bytes > 0 ? e->device_bytes : e->host_bytes; }

void training_place(const moed_context *c, char out[128])
{
    moed_context_info info = {.struct_size = sizeof info};
    moed_context_get_info(c, &info);
    snprintf(out, 128, "of %s, kernels %s", info.device, info.kernels);
}

memory_room training_room(const moed_context *c, const moed_corpus *d, int64_t loaded)
{
    enum { ORDER_BYTES = 32 }; /* of a document */
    moed_corpus_info corpus = {.struct_size = sizeof corpus};
    moed_context_info info = {.struct_size = sizeof info};
    moed_device_info cpu = {.struct_size = sizeof cpu};
    memory_room room = {INT64_MAX, INT64_MAX};
    size_t count;
    if (moed_context_get_info(c, &info) || moed_corpus_get_info(d, &corpus)) return (memory_room){0, 0};
    if (info.device_memory > 0) room.device = info.device_memory;
    int64_t limit = info.host_limit;
    if (limit <= 0 && moed_device_list(&cpu, 1, &count, NULL) == MOED_OK) limit = cpu.memory;
    if (limit > 0) room.host = limit - info.host_in_use + loaded - ORDER_BYTES * corpus.documents;
    return room;
}

int training_within(const moed_estimate *e, const memory_room *room)
{
    return e->host_bytes <= room->host && e->device_bytes <= room->device;
}

char *training_lacks(const moed_context *c, const moed_estimate *e, const memory_room *room)
{
    char needs[32], allowed[32];
    moed_context_info info = {.struct_size = sizeof info};
    if (training_within(e, room)) return NULL;
    if (e->host_bytes > room->host)
        return text_format("training needs %s of memory and %s are allowed", human_bytes(e->host_bytes, needs),
                           human_bytes(room->host, allowed));
    moed_context_get_info(c, &info);
    return text_format("training needs %s of memory of %s, which has %s", human_bytes(e->device_bytes, needs), info.device,
                       human_bytes(room->device, allowed));
}

/* The least change that fits: more micro-batches keep the result's meaning and need less memory; shorter rows come after that. */
static void nearest_that_fits(const moed_layout *l, moed_train_options o, const memory_room *room, char *out, size_t size)
{
    moed_estimate e;
    char needs[32], shorter[48] = "";
    const int64_t whole = o.length, first = o.micro_batches;
    for (; o.length >= 8 || o.length == whole; o.length /= 2) {
        for (int64_t n = first; n <= o.rows; n++) {
            o.micro_batches = n;
            if (o.rows % n || estimate(l, &o, &e) || !training_within(&e, room)) continue;
            if (o.length < whole) snprintf(shorter, sizeof shorter, " --length %lld", (long long)o.length);
            snprintf(out, size, "--micro-batches %lld%s would fit, with %s", (long long)n, shorter,
                     human_bytes(training_memory(&e), needs));
            return;
        }
        if (o.length == 1) break;
    }
    snprintf(out, size, "no setting of rows or length makes this model fit: choose a smaller one");
}

int training_fits(const moed_context *c, const moed_layout *l, const moed_corpus *d, const moed_train_options *o, int64_t loaded)
{
    char nearest[160];
    moed_estimate e;
    const memory_room room = training_room(c, d, loaded);
    const int code = training_estimate(l, o, &e);
    char *lacks = code ? NULL : training_lacks(c, &e, &room);
    if (!lacks) return code;
    nearest_that_fits(l, *o, &room, nearest, sizeof nearest);
    const int failed = fail(EXIT_FIT, "%s; %s", lacks, nearest);
    free(lacks);
    return failed;
}

/* What loads move instead of gradients is fixed. */
static int has_selection_biases(const moed_layout *l)
{
    moed_param p;
    for (size_t i = 0; moed_layout_param(l, i, &p) == MOED_OK; i++)
        if (p.flags & MOED_PARAM_FIXED) return 1;
    return 0;
}

void training_tell_unheeded(const flags *f, const moed_layout *l)
{
    if (!has_selection_biases(l))
        flags_tell_unheeded(f, "balance-rate,balance-boost,balance-band,balance-each",
                            "the router has no selection bias, as family dots1 has; --load-balance balances it");
}

static int stopped_or_failed(training *t, moed_trainer *trainer, moed_status status)
{
    char text[512];
    const int code = exit_code(status);
    snprintf(text, sizeof text, "%s", moed_last_error());
    moed_trainer_info info = {.struct_size = sizeof info};
    moed_trainer_get_info(trainer, &info);
    if ((status == MOED_E_CANCELLED || status == MOED_E_CALLBACK) && app_stopped()) {
        const moed_status saved = moed_trainer_save(trainer);
        if (saved) return fail(exit_code(saved), "%s: stopped, but not saved: %s", t->label, moed_last_error());
        return fail(EXIT_STOPPED, "%s: stopped at step %lld of %lld and saved in %s; the same command goes on from there",
                    t->label, (long long)info.step, (long long)info.steps, t->options.directory);
    }
    char *kept = path_join(t->options.directory, "checkpoints");
    const int there = path_is_folder(kept);
    free(kept);
    if (status == MOED_E_NUMERIC && there)
        return fail(EXIT_OTHER, "%s: %s; the last good checkpoint is kept in %s/checkpoints", t->label, text,
                    t->options.directory);
    if (status == MOED_E_NUMERIC) return fail(EXIT_OTHER, "%s: %s; there was no checkpoint yet", t->label, text);
    return fail(code, "%s: %s", t->label, text);
}

/* What to do about a checkpoint of other settings, to end the sentence that names the first. */
static void way_on(moed_status status, char *out, size_t size)
{
    moed_error_info e = {.struct_size = sizeof e};
    moed_field field = {.struct_size = sizeof field};
    char name[48];
    out[0] = 0;
    if (status != MOED_E_MISMATCH || moed_last_error_get(&e) != MOED_OK) return;
    snprintf(name, sizeof name, "%s", e.parameter);
    if (!strcmp(name, "layout")) snprintf(out, size, "; the model as it was goes on from there, another folder starts anew");
    if (!strncmp(name, "corpus ", 7))
        snprintf(out, size, "; the corpus and the documents of it as they were (--held-out, --part, --cluster) go on from there, "
                 "another folder starts anew");
    for (size_t i = 0; moed_options_field(MOED_STRUCT_TRAIN_OPTIONS, i, &field) == MOED_OK; i++)
        if (!strcmp(field.name, name)) {
            for (char *c = name; *c; c++)
                if (*c == '_') *c = '-';
            snprintf(out, size, "; --%s as it was goes on from there, another folder starts anew", name);
            return;
        }
}

typedef struct passing {
    progress progress;
    stopwatch *watch;
} passing;

static int32_t pass_step(const moed_report *r, void *user)
{
    passing *p = user;
    if (p->watch) stopwatch_tick(p->watch);
    return progress_step(r, &p->progress);
}

int training_run(training *t)
{
    passing p = {.watch = t->watch};
    moed_trainer *trainer = NULL;
    moed_estimate e;
    char a[32], b[32], *made = NULL;
    progress_begin(&p.progress, t->label, t->options.steps, t->context);
    t->options.progress = pass_step;
    t->options.progress_user = &p;
    memset(&t->last, 0, sizeof t->last);
    t->last.struct_size = sizeof t->last;
    const moed_layout *l = moed_model_layout(t->model);
    int code = training_estimate(l, &t->options, &e);
    if (code || (code = training_fits(t->context, l, t->corpus, &t->options, e.weights))) return code;
    say("%s: %lld steps, %s, %s of memory", t->label, (long long)t->options.steps, human_flops(e.flops, a),
        human_bytes(training_memory(&e), b));
    if ((code = make_folder_for(t->options.directory, &made))) return code;
    moed_status status = moed_trainer_create(&trainer, t->context, t->model, t->corpus, NULL, &t->options);
    if (status) {
        code = fail_status(status);
        goto out;
    }
    status = moed_trainer_resume(trainer);
    if (!status) {
        moed_trainer_info info = {.struct_size = sizeof info};
        moed_trainer_get_info(trainer, &info);
        say("%s: goes on from step %lld of %lld", t->label, (long long)info.step, (long long)info.steps);
        emit(json_pack("{s:s, s:s, s:I}", "event", "resumed", "phase", t->label, "step", (json_int_t)info.step));
    } else if (status != MOED_E_NOT_FOUND) {
        char text[512], way[160];
        code = exit_code(status);
        snprintf(text, sizeof text, "%s", moed_last_error());
        way_on(status, way, sizeof way);
        fail(code, "%s: %s%s", t->label, text, way);
        goto out;
    }
    status = moed_trainer_run(trainer, 0, &t->last, app_cancel);
    progress_end(&p.progress);
    if (status) code = stopped_or_failed(t, trainer, status);
out:
    moed_trainer_destroy(trainer);
    unmake_folder(code, t->options.directory, made);
    return code;
}

int training_evaluate(const moed_model *m, const moed_corpus *d, const moed_train_options *o, moed_report *out)
{
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    const moed_status status =
        moed_model_evaluate(m, d, 0, o->rows / o->micro_batches, o->length, o->document_mask, out, app_cancel);
    return status ? fail_status(status) : EXIT_DONE;
}

int training_measure(moed_context *c, const moed_layout *l, const moed_corpus *d, const moed_train_options *given, double seconds,
                     double *step)
{
    moed_model *m = NULL;
    moed_trainer *trainer = NULL;
    moed_train_options o = *given;
    o.directory = NULL;
    o.progress = NULL;
    o.held_out = NULL;
    o.evaluate_every = o.checkpoint_every = 0;
    o.steps = 1000000;
    o.store_late = 1; /* else each call would bring the weights of a device to the host */
    const int code = training_fits(c, l, d, given, 0);
    if (code) return code;
    moed_status status = moed_model_init(&m, c, l, NULL);
    if (!status) status = moed_trainer_create(&trainer, c, m, d, NULL, &o);
    /* the first ones are slower: memory is new, a device records its work */
    if (!status) status = moed_trainer_run(trainer, 3, NULL, app_cancel);
    const double start = now_seconds();
    int64_t steps = 0;
    while (!status && (now_seconds() - start < seconds || steps < 2)) {
        status = moed_trainer_run(trainer, 1, NULL, app_cancel);
        steps++;
    }
    if (steps) *step = (now_seconds() - start) / (double)steps;
    moed_trainer_destroy(trainer);
    moed_model_destroy(m);
    return status ? fail_status(status) : EXIT_DONE;
}
