/* train/checkpoint.c - a run's state as a directory that is there whole or not at all. The manifest has every file's size and
 * checksum; a checkpoint whose files do not match it is passed over for the one before. */
#include "checkpoint.h"

#include <string.h>

#include "checkpoint_size.h"
#include "manifest.h"
#include "run_directory.h"
#include "state.h"
#include "util/file.h"
#include "util/safetensors.h"
#include "util/temporary.h"

static const char *const parts[] = {"model/config.json", "model/model.safetensors", "optimizer.safetensors", "state.json"};
enum { PARTS = sizeof parts / sizeof parts[0] };

/* ---- writing ---- */

static moed_status produce_weight(void *user, size_t param, int64_t first, int64_t count, void *out)
{
    const moed_trainer *t = user;
    return moedi_transformer_read(t->transformer, param, first, count, out);
}

/* The layout of the numbers as they are trained: a checkpoint loses no bit, whatever dtype the model came in. */
static moed_status exact_layout(const moed_trainer *t, moed_layout **out)
{
    return moedi_layout_with_dtype(out, t->model->layout, t->context->backend_info.wide);
}

static moed_status write_model(moed_trainer *t, const char *dir)
{
    moed_layout *exact = NULL;
    char *path = NULL;
    moed_status status = MOED_OK;
    MOEDI_GO(moedi_path_join(t->context, dir, "model", &path));
    MOEDI_GO(moedi_directory_make(path));
    MOEDI_GO(exact_layout(t, &exact));
    MOEDI_GO(moedi_model_write(t->context, exact, path, MOED_DTYPE_NONE, produce_weight, t, NULL));
    MOEDI_GO(moedi_directory_sync(path));
out:
    moed_layout_destroy(exact);
    moedi_free(t->context, path);
    return status;
}

/* Every part of every slice, in the order of the file. */
typedef struct moment_list {
    size_t count;
    moedi_moment *moments;
    moedi_safetensors_entry *entries;
    char *names;                    /* m.NAME, v.NAME and so on, in one block */
} moment_list;

static void list_free(const moed_trainer *t, moment_list *list)
{
    moedi_free(t->context, list->moments);
    moedi_free(t->context, list->entries);
    moedi_free(t->context, list->names);
}

/* Of the trainer's slices as a policy keeps them. */
static moed_status list_make(const moed_trainer *t, int32_t policy, moment_list *out)
{
    const moed_context *c = t->context;
    const moed_layout *l = t->model->layout;
    const moedi_optimizer *o = &t->optimizer;
    const size_t each = (size_t)moedi_optimizer_parts(policy);
    moed_status status = MOED_OK;
    moment_list list = {.count = each * o->count};
    size_t bytes = 0;
    MOEDI_GO(MOEDI_NEW(c, list.count, &list.moments));
    MOEDI_GO(MOEDI_NEW(c, list.count, &list.entries));
    for (size_t i = 0; i < list.count; i++) {
        list.moments[i] = moedi_optimizer_part(o, policy, i / each, (int)(i % each));
        bytes += strlen(list.moments[i].name) + strlen(l->params[o->params[i / each]].name) + 2;
    }
    MOEDI_GO(MOEDI_NEW(c, bytes, &list.names));
    char *at = list.names;
    for (size_t i = 0; i < list.count; i++) {
        const moed_param *p = &l->params[o->params[i / each]];
        const moedi_moment *m = &list.moments[i];
        moedi_safetensors_entry *e = &list.entries[i];
        e->name = at;
        e->dtype = m->dtype;
        e->rank = 1, e->shape[0] = m->count;
        if (i % each < 2) {
            e->rank = p->rank;
            memcpy(e->shape, p->shape, sizeof e->shape);
        }
        at += snprintf(at, bytes - (size_t)(at - list.names), "%s.%s", m->name, p->name) + 1;
    }
    *out = list;
    return MOED_OK;
out:
    list_free(t, &list);
    return status;
}

static moed_status write_moment(const moed_trainer *t, moedi_safetensors_writer *w, size_t entry, const moedi_moment *m,
                                void *buffer)
{
    const moedi_engine *e = moedi_transformer_engine(t->transformer);
    const size_t item = moedi_dtype_size(m->dtype);
    for (int64_t at = 0; at < m->count; at += MOEDI_CHECKPOINT_CHUNK) {
        const size_t bytes = (size_t)(m->count - at < MOEDI_CHECKPOINT_CHUNK ? m->count - at : MOEDI_CHECKPOINT_CHUNK) * item;
        MOEDI_TRY(e->table->download(e->self, buffer, (const char *)m->memory + (size_t)at * item, bytes));
        MOEDI_TRY(e->table->synchronize(e->self));
        MOEDI_TRY(moedi_safetensors_write(w, entry, at * (int64_t)item, buffer, bytes));
    }
    return MOED_OK;
}

static moed_status write_optimizer(const moed_trainer *t, const char *dir)
{
    const moed_context *c = t->context;
    moed_status status = MOED_OK;
    moment_list list;
    char *path = NULL;
    void *buffer = NULL;
    moedi_safetensors_writer w;
    memset(&w, 0, sizeof w);
    MOEDI_TRY(list_make(t, t->policy, &list));
    MOEDI_GO(moedi_path_join(c, dir, "optimizer.safetensors", &path));
    MOEDI_GO(moedi_alloc(c, MOEDI_CHECKPOINT_CHUNK * moedi_transformer_engine(t->transformer)->wide_item, &buffer));
    MOEDI_GO(moedi_safetensors_create(&w, c, path, list.entries, list.count, NULL));
    for (size_t i = 0; i < list.count; i++) MOEDI_GO(write_moment(t, &w, i, &list.moments[i], buffer));
    MOEDI_GO(moedi_safetensors_commit(&w));
out:
    moedi_safetensors_abort(&w);
    moedi_free(c, buffer);
    moedi_free(c, path);
    list_free(t, &list);
    return status;
}

static moed_status write_state(const moed_trainer *t, const char *dir)
{
    char *path = NULL;
    json_t *state = moedi_state_make(t);
    if (!state) return moedi_fail(MOED_E_MEMORY, "out of memory for the state of step %lld", (long long)t->step);
    moed_status status = moedi_path_join(t->context, dir, "state.json", &path);
    if (status == MOED_OK) status = moedi_json_write(t->context, state, path);
    json_decref(state);
    moedi_free(t->context, path);
    return status;
}

/* Under another name first: a checkpoint that is there is whole, even where a kill cuts its removal short. */
static moed_status remove_step(const moed_trainer *t, const char *root, int64_t step)
{
    char *path = NULL, *aside = NULL;
    moed_status status;
    MOEDI_TRY(moedi_run_step_path(t, root, step, &path));
    status = moedi_temporary_aside(t->context, path, &aside);
    if (status == MOED_OK && aside) status = moedi_directory_remove(aside);
    moedi_free(t->context, aside);
    moedi_free(t->context, path);
    return status;
}

/* Once the newest is durable: what killed saves left goes, others beyond `keep`, and with `later` those of later steps, left by a
 * run that was since resumed from before. What cannot be removed may stay until the next time. */
static void tidy(const moed_trainer *t, const char *root, int later)
{
    moed_status status = MOED_OK;
    int64_t *steps = NULL, kept = 0;
    size_t count = 0;
    moedi_temporary_sweep(root, "step-");
    MOEDI_GO(moedi_run_steps(t, root, &steps, &count));
    for (size_t i = 0; i < count; i++)
        if (steps[i] > t->step ? later : kept++ >= t->options.keep) MOEDI_GO(remove_step(t, root, steps[i]));
out:
    moedi_free(t->context, steps);
    if (status == MOED_OK) return;
    moedi_log(t->context, MOED_LOG_WARNING, "an old checkpoint was not removed: %s", moed_last_error());
    moedi_clear_error();
}

moed_status moedi_checkpoint_save(moed_trainer *t)
{
    if (t->saved == t->step) return MOED_OK; /* nothing has changed since */
    moed_status status = MOED_OK;
    char *root = NULL, *path = NULL;
    moedi_fresh_directory fresh;
    memset(&fresh, 0, sizeof fresh);
    MOEDI_GO(moedi_run_root(t, &root));
    MOEDI_GO(moedi_directory_make(root));
    moedi_temporary_sweep(root, "step-"); /* before, for their space may be needed */
    MOEDI_GO(moedi_run_step_path(t, root, t->step, &path));
    MOEDI_GO(moedi_metrics_sync(&t->metrics));
    MOEDI_GO(moedi_fresh_directory_begin(&fresh, t->context, path));
    MOEDI_GO(write_model(t, fresh.temporary));
    MOEDI_GO(write_optimizer(t, fresh.temporary));
    MOEDI_GO(write_state(t, fresh.temporary));
    MOEDI_GO(moedi_manifest_write(t->context, fresh.temporary, parts, PARTS));
    MOEDI_GO(moedi_fresh_directory_commit(&fresh));
    t->saved = t->step;
    moedi_log(t->context, MOED_LOG_INFO, "%s: saved", path);
    tidy(t, root, 1);
out:
    moedi_fresh_directory_abort(&fresh);
    moedi_free(t->context, path);
    moedi_free(t->context, root);
    return status;
}

/* ---- reading ---- */

/* Without a buffer the tensors are only checked. */
static moed_status read_model(moed_trainer *t, const char *dir, void *buffer)
{
    const moed_context *c = t->context;
    moed_status status = MOED_OK;
    moed_layout *exact = NULL;
    moed_model *saved = NULL;
    char *path = NULL;
    MOEDI_GO(moedi_path_join(c, dir, "model", &path));
    MOEDI_GO(exact_layout(t, &exact));
    MOEDI_GO(moedi_model_open_as(&saved, t->context, exact, path, 1));
    for (size_t i = 0; buffer && i < exact->count; i++) {
        const int64_t count = moedi_param_elements(&exact->params[i]);
        for (int64_t at = 0; at < count; at += MOEDI_CHECKPOINT_CHUNK) {
            const int64_t n = count - at < MOEDI_CHECKPOINT_CHUNK ? count - at : MOEDI_CHECKPOINT_CHUNK;
            MOEDI_GO(moedi_model_read(saved, i, at, n, buffer));
            MOEDI_GO(moedi_transformer_write(t->transformer, i, at, n, buffer));
        }
    }
    if (buffer) MOEDI_GO(moedi_transformer_store(t->transformer));
out:
    moed_model_destroy(saved);
    moed_layout_destroy(exact);
    moedi_free(c, path);
    return status;
}

/* Without a buffer the entry is only checked. */
static moed_status read_moment(moed_trainer *t, const moedi_safetensors *s, const char *name, const moedi_moment *m, void *buffer)
{
    const moedi_engine *e = moedi_transformer_engine(t->transformer);
    const moedi_safetensors_entry *found = moedi_safetensors_find(s, name);
    const size_t item = moedi_dtype_size(m->dtype);
    if (!found) return moedi_fail_file(MOED_E_MISMATCH, s->file.path, -1, "lacks %s", name);
    if (found->dtype != m->dtype || found->elements != m->count)
        return moedi_fail_file(MOED_E_MISMATCH, s->file.path, found->offset, "%s has %lld numbers of %s, not %lld of %s", name,
                               (long long)found->elements, moed_dtype_name(found->dtype), (long long)m->count,
                               moed_dtype_name(m->dtype));
    for (int64_t at = 0; buffer && at < m->count; at += MOEDI_CHECKPOINT_CHUNK) {
        const size_t bytes = (size_t)(m->count - at < MOEDI_CHECKPOINT_CHUNK ? m->count - at : MOEDI_CHECKPOINT_CHUNK) * item;
        MOEDI_TRY(moedi_safetensors_read(s, found, at * (int64_t)item, buffer, bytes));
        MOEDI_TRY(e->table->upload(e->self, (char *)m->memory + (size_t)at * item, buffer, bytes));
        MOEDI_TRY(e->table->synchronize(e->self));
    }
    return MOED_OK;
}

/* As a policy keeps it; without a buffer it is only checked. */
static moed_status read_optimizer(moed_trainer *t, int32_t policy, const char *dir, void *buffer)
{
    const moed_context *c = t->context;
    moed_status status = MOED_OK;
    moment_list list;
    char *path = NULL;
    int opened = 0;
    moedi_safetensors s;
    MOEDI_TRY(list_make(t, policy, &list));
    MOEDI_GO(moedi_path_join(c, dir, "optimizer.safetensors", &path));
    MOEDI_GO(moedi_safetensors_open(&s, c, path));
    opened = 1;
    for (size_t i = 0; i < list.count; i++) MOEDI_GO(read_moment(t, &s, list.entries[i].name, &list.moments[i], buffer));
out:
    if (opened) moedi_safetensors_close(&s);
    moedi_free(c, path);
    list_free(t, &list);
    return status;
}

/* Compares and checks everything first: a checkpoint of another run, or one that lacks something, changes nothing. */
static moed_status restore(moed_trainer *t, const char *dir)
{
    moedi_state at;
    int32_t policy;
    const moed_context *c = t->context;
    moed_status status = MOED_OK;
    char *path = NULL;
    void *buffer = NULL;
    json_t *state = NULL;
    MOEDI_GO(moedi_path_join(c, dir, "state.json", &path));
    MOEDI_GO(moedi_json_open(&state, c, path));
    MOEDI_GO(moedi_state_compare(t, state, path));
    MOEDI_GO(moedi_state_read(&at, t, state, path));
    MOEDI_GO(moedi_state_policy(t, state, path, &policy));
    MOEDI_GO(read_model(t, dir, NULL));
    MOEDI_GO(read_optimizer(t, policy, dir, NULL));
    MOEDI_GO(moedi_trainer_adopt(t, policy));
    MOEDI_GO(moedi_alloc(c, MOEDI_CHECKPOINT_CHUNK * moedi_transformer_engine(t->transformer)->wide_item, &buffer));
    t->broken = 1;
    MOEDI_GO(read_model(t, dir, buffer));
    MOEDI_GO(read_optimizer(t, policy, dir, buffer));
    t->step = at.step, t->consumed = at.tokens, t->row = at.row, t->evaluated = at.evaluated, t->best_held_out = at.best_held_out;
    t->optimizer.since = at.moments_since;
    t->broken = 0;
    t->saved = t->step;
    snprintf(t->resumed_from, sizeof t->resumed_from, "%s", dir);
out:
    json_decref(state);
    moedi_free(c, buffer);
    moedi_free(c, path);
    return status;
}

/* Damage makes a checkpoint invalid; a lack of memory does not, and neither does a format of another version: going on from an
 * older checkpoint would remove it. */
static int damaged(moed_status status)
{
    return status != MOED_OK && status != MOED_E_MEMORY && status != MOED_E_LIMIT && status != MOED_E_UNSUPPORTED;
}

/* dir of the newest checkpoint whose files match its manifest. */
static moed_status find_valid(const moed_trainer *t, const char *root, char **dir)
{
    moed_status status = MOED_OK;
    int64_t *steps = NULL;
    size_t count = 0;
    *dir = NULL;
    MOEDI_TRY(moedi_run_steps(t, root, &steps, &count));
    for (size_t i = 0; i < count; i++) {
        MOEDI_GO(moedi_run_step_path(t, root, steps[i], dir));
        status = moedi_manifest_verify(t->context, *dir, parts, PARTS);
        if (!damaged(status)) goto out;
        moedi_log(t->context, MOED_LOG_WARNING, "passed over: %s", moed_last_error());
        moedi_free(t->context, *dir);
        *dir = NULL;
    }
    if (count)
        status = moedi_fail_file(MOED_E_CHECKSUM, root, -1,
                                 "none of %zu checkpoints is whole: restore one, or remove the folder to start anew", count);
    else
        status = moedi_fail_file(MOED_E_NOT_FOUND, root, -1, "there is no checkpoint");
out:
    moedi_free(t->context, steps);
    if (status != MOED_OK) {
        moedi_free(t->context, *dir);
        *dir = NULL;
    }
    return status;
}

moed_status moedi_checkpoint_resume(moed_trainer *t)
{
    moed_status status = MOED_OK;
    char *root = NULL, *dir = NULL;
    MOEDI_GO(moedi_run_root(t, &root));
    MOEDI_GO(find_valid(t, root, &dir));
    MOEDI_GO(restore(t, dir));
    MOEDI_GO(moedi_run_claim(t));
    tidy(t, root, 0);
out:
    moedi_free(t->context, dir);
    moedi_free(t->context, root);
    return status;
}
