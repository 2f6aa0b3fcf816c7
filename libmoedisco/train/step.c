/* train/step.c - forward and backward over virtual shards, then the update. Rows are cut into micro_batches equal shards whose
 * gradients are summed pairwise, so the sum does not depend on who computes which shard. */
#include "step.h"

#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"
#include "evaluate.h"
#include "loads.h"
#include "run_directory.h"
#include "schedule.h"
#include "util/clock.h"

moed_status moedi_step_check(const moed_trainer *t)
{
    MOEDI_TRY(moedi_context_check(t->context));
    if (t->broken)
        return moedi_fail(MOED_E_STATE,
                          "an earlier call on this trainer ended half-way: make a new one and resume from its checkpoint");
    return MOED_OK;
}

/* Nothing waits for an update any more: the host's side. */
static void forget(moed_trainer *t)
{
    memset(&t->pending, 0, sizeof t->pending);
    memset(t->loads, 0, moedi_loads_bytes(&t->model->layout->config));
    moedi_selection_biases_release(&t->biases);
}

/* What was accumulated since the last update goes; the error on its way stays. */
static moed_status drop(moed_trainer *t, moed_status status)
{
    moedi_error kept;
    moedi_error_save(&kept);
    if (moedi_selection_biases_restore(&t->biases) != MOED_OK) t->broken = 1;
    forget(t);
    moedi_accumulator_clear(&t->gradients);
    (void)moedi_error_restore(&kept);
    return status;
}

/* ---- batches ---- */

static moed_status next_rows(moed_trainer *t, moed_batch *out)
{
    const moed_train_options *o = &t->options;
    const int64_t first = t->row + t->pending.rows;
    MOEDI_TRY(
        moedi_sampler_rows(t->sampler, first, o->rows, o->length, t->tokens, t->labels, o->document_mask ? t->documents : NULL));
    memset(out, 0, sizeof *out);
    out->tokens = t->tokens, out->labels = t->labels;
    out->documents = o->document_mask ? t->documents : NULL;
    out->rows = o->rows, out->length = o->length;
    return MOED_OK;
}

/* b, or the stream's next rows, checked and brought to the device. */
static moed_status stage(moed_trainer *t, const moed_batch *b)
{
    const moed_train_options *o = &t->options;
    if (t->step >= o->steps) return moedi_fail(MOED_E_STATE, "all %lld steps are done", (long long)o->steps);
    moed_batch next;
    if (!b) MOEDI_TRY(next_rows(t, &next));
    const moed_batch *batch = b ? b : &next;
    int64_t labels = 0;
    double label_weight = 0;
    if (!batch->labels)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "labels", "the batch has no labels: there is nothing to train on");
    MOEDI_TRY(moedi_batch_check(batch, t->model->layout->config.vocabulary, o->rows, o->length, &labels, &label_weight));
    if (!(label_weight > 0))
        return moedi_fail_parameter(MOED_E_ARGUMENT, "labels", "the batch has no label with a weight above 0");
    return moedi_staged_upload(&t->batch, batch, o->rows / o->micro_batches, labels, label_weight);
}

/* ---- what the device does in a step: enqueued, the host waits for nothing ---- */

/* A shard's share of the batch. */
static double part_of(const moedi_staged *b, int64_t shard)
{
    return (double)moedi_staged_shard(b, shard).rows / (double)b->rows;
}

static moed_status enqueue_shard(moed_trainer *t, int64_t shard, const moed_cancel *cancel)
{
    /* The label mean is over the batch: sum / (label_weight * part) * part. The routers' losses are means over shards. */
    const double part = part_of(&t->batch, shard);
    const moedi_objective objective = {.load_balance = t->options.load_balance, .z_loss = t->options.z_loss, .scale = part,
                                       .label_weight = t->batch.label_weight * part};
    moedi_findings_direct(&t->findings, shard);
    MOEDI_TRY(moedi_accumulator_open(&t->gradients));
    MOEDI_TRY(moedi_transformer_forward_shard(t->transformer, &t->batch, shard, &objective, cancel));
    MOEDI_TRY(moedi_transformer_backward(t->transformer, cancel));
    return moedi_accumulator_close(&t->gradients);
}

static int balances_within(const moed_trainer *t)
{
    return t->options.balance_each == MOED_BALANCE_MICRO_BATCH;
}

static moed_status balance_shard(moed_trainer *t, int64_t shard)
{
    return moedi_selection_biases_move(&t->biases, moedi_findings_offsets(&t->findings, shard), part_of(&t->batch, shard),
                                       t->options.balance_band);
}

static moed_status enqueue_shards(moed_trainer *t, const moed_cancel *cancel)
{
    moedi_accumulator_begin(&t->gradients);
    for (int64_t shard = 0; shard < moedi_staged_shards(&t->batch); shard++) {
        MOEDI_TRY(moedi_cancel_check(cancel));
        MOEDI_TRY(enqueue_shard(t, shard, cancel));
        if (balances_within(t)) MOEDI_TRY(balance_shard(t, shard));
    }
    MOEDI_TRY(moedi_accumulator_finish(&t->gradients));
    return moedi_cancel_check(cancel); /* the update that follows is not cut */
}

/* The gradient of the batch that is staged is added to what there is. */
static moed_status enqueue_gradient(moed_trainer *t, const moed_cancel *cancel)
{
    const moed_status status = enqueue_shards(t, cancel);
    moedi_findings_direct(&t->findings, -1);
    return status;
}

/* Norm, clipping, AdamW, and no gradients any more. The device drops the step where a loss or the norm is not finite. begun
 * [out]: weights may have changed. */
static moed_status enqueue_update(moed_trainer *t, int *begun)
{
    *begun = 0;
    const int64_t losses = MOEDI_RESULTS * moedi_staged_shards(&t->batch);
    MOEDI_TRY(moedi_optimizer_measure(&t->optimizer, &t->options, moedi_findings_losses(&t->findings), losses));
    *begun = 1;
    MOEDI_TRY(moedi_optimizer_apply(&t->optimizer, &t->options));
    moedi_accumulator_clear(&t->gradients);
    return MOED_OK;
}

typedef struct step_work {
    moed_trainer *trainer;
    const moed_cancel *cancel;
    int begun;
} step_work;

static moed_status enqueue_step(void *user)
{
    step_work *w = user;
    w->begun = 0;
    moedi_accumulator_clear(&w->trainer->gradients); /* a recording that ended early has begun a sum, and computed nothing */
    MOEDI_TRY(enqueue_gradient(w->trainer, w->cancel));
    return enqueue_update(w->trainer, &w->begun);
}

/* The same work every step: what differs lies in the batch and the scalars that were brought up. A graph holds the label weight
 * and whether rows are one document each. */
static moed_status run_step(moed_trainer *t, const moed_cancel *cancel)
{
    const moedi_engine *e = moedi_transformer_engine(t->transformer);
    step_work w = {.trainer = t, .cancel = cancel, .begun = 1};
    const moed_status status =
        t->options.graph && moedi_recording_possible(e)
            ? moedi_recording_run(&t->recordings[t->batch.whole], e, t->batch.label_weight, enqueue_step, &w)
            : enqueue_step(&w);
    if (status != MOED_OK && w.begun) t->broken = 1;
    return status;
}

static double rate_of_next(const moed_trainer *t, double factor)
{
    return moedi_schedule_rate(&t->options, t->step + 1) * factor;
}

/* ---- what it found ---- */

/* The batch's losses and loads go to pending, or the first shard's that are not finite are told. */
static moed_status read_losses(moed_trainer *t, moedi_losses *found)
{
    const moedi_staged *b = &t->batch;
    memset(found, 0, sizeof *found);
    for (int64_t shard = 0; shard < moedi_staged_shards(b); shard++) {
        const double part = part_of(b, shard);
        const int64_t *offsets;
        moedi_losses losses;
        moedi_findings_read(&t->findings, shard, moedi_staged_shard(b, shard).rows * b->length, &losses, &offsets);
        found->loss += part * losses.loss;
        found->load_balance += part * losses.load_balance;
        found->z_loss += part * losses.z_loss;
        if (!isfinite(losses.loss) || !isfinite(losses.load_balance) || !isfinite(losses.z_loss))
            return moedi_fail(MOED_E_NUMERIC,
                              "step %lld: the loss is %g (load balance %g, z-loss %g); nothing of this step was applied",
                              (long long)t->step + 1, moedi_told(losses.loss), moedi_told(losses.load_balance),
                              moedi_told(losses.z_loss));
        moedi_loads_add(&t->model->layout->config, offsets, t->loads);
    }
    return MOED_OK;
}

static void note_losses(moed_trainer *t, const moedi_losses *found, int own_rows, double seconds)
{
    moedi_pending *p = &t->pending;
    const moedi_staged *b = &t->batch;
    p->calls++;
    if (own_rows) p->rows += b->rows;
    p->tokens += b->rows * b->length;
    p->labels += b->labels;
    p->loss += found->loss, p->load_balance += found->load_balance, p->z_loss += found->z_loss;
    p->seconds += seconds;
}

/* The step's place in the run moves on, and the report is made of what waited. */
static moed_status finish_update(moed_trainer *t, double factor, double start, moed_report *out)
{
    const moedi_pending *p = &t->pending;
    const double calls = (double)p->calls, norm = moedi_findings_read_scalars(&t->findings)->gradient_norm;
    if (!isfinite(norm))
        return moedi_fail(MOED_E_NUMERIC, "step %lld: the gradient's norm is %g; nothing of this step was applied",
                          (long long)t->step + 1, moedi_told(norm));
    const moed_status moved =
        balances_within(t) ? MOED_OK : moedi_selection_biases_move_by(&t->biases, t->loads, t->options.balance_band);
    if (moved != MOED_OK) {
        t->broken = 1; /* weights were updated, biases were not all */
        return moved;
    }
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    out->learning_rate = rate_of_next(t, factor);
    t->step++;
    t->consumed += p->tokens;
    t->row += p->rows;
    out->step = t->step, out->tokens = t->consumed, out->labels = p->labels;
    out->loss = p->loss / calls, out->load_balance = p->load_balance / calls, out->z_loss = p->z_loss / calls;
    out->gradient_norm = norm;
    out->max_load = moedi_loads_most(&t->model->layout->config, t->loads);
    out->seconds = p->seconds + moedi_clock_seconds() - start;
    out->tokens_per_second = out->seconds > 0 ? (double)p->tokens / out->seconds : 0;
    memcpy(t->last_loads, t->loads, moedi_loads_bytes(&t->model->layout->config));
    return MOED_OK;
}

static moed_status write_line(moed_trainer *t, const moed_report *r)
{
    return moedi_metrics_step(&t->metrics, r, &t->model->layout->config, t->last_loads, t->scratch);
}

/* ---- a whole step, and its halves ---- */

/* The scalars, and biases that the step may have to bring back: not part of what is recorded. */
static moed_status begin_step(moed_trainer *t)
{
    MOEDI_TRY(moedi_optimizer_prepare(&t->optimizer, &t->options, t->step + 1, rate_of_next(t, 1), 1));
    return balances_within(t) ? moedi_selection_biases_hold(&t->biases) : MOED_OK;
}

moed_status moedi_step_run(moed_trainer *t, moed_report *out, const moed_cancel *cancel)
{
    const double start = moedi_clock_seconds();
    moedi_losses found;
    MOEDI_TRY(stage(t, NULL));
    moed_status status = begin_step(t);
    if (status == MOED_OK) status = run_step(t, cancel);
    if (status != MOED_OK) return drop(t, status);
    status = moedi_findings_download(&t->findings);
    if (status != MOED_OK) t->broken = 1; /* who knows whether it was applied */
    if (status == MOED_OK) status = read_losses(t, &found);
    if (status == MOED_OK) {
        note_losses(t, &found, 1, 0);
        status = finish_update(t, 1, start, out);
    }
    if (status != MOED_OK) return drop(t, status);
    forget(t);
    return write_line(t, out);
}

/* Adds the gradient of b's mean loss (NULL: the stream's next rows). A batch that is refused changes nothing; any later
 * failure drops what was accumulated. */
static moed_status add_gradient(moed_trainer *t, const moed_batch *b, moed_report *out)
{
    const double start = moedi_clock_seconds();
    moedi_losses found;
    MOEDI_TRY(stage(t, b));
    moed_status status = t->pending.calls > 0 ? MOED_OK : begin_step(t);
    if (status == MOED_OK) status = enqueue_gradient(t, NULL);
    if (status == MOED_OK) status = moedi_findings_download(&t->findings);
    if (status == MOED_OK) status = read_losses(t, &found);
    if (status != MOED_OK) return drop(t, status);

    const double seconds = moedi_clock_seconds() - start;
    note_losses(t, &found, !b, seconds);
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    out->step = t->step, out->tokens = t->consumed, out->labels = t->batch.labels;
    out->loss = found.loss, out->load_balance = found.load_balance, out->z_loss = found.z_loss;
    out->max_load = moedi_loads_most(&t->model->layout->config, t->loads);
    out->seconds = seconds;
    out->tokens_per_second = seconds > 0 ? (double)(t->batch.rows * t->batch.length) / seconds : 0;
    return MOED_OK;
}

/* Norm, clipping, AdamW, and the line in the metrics. A norm that is not finite: MOED_E_NUMERIC, nothing applied. */
static moed_status update(moed_trainer *t, double factor, moed_report *out)
{
    const double start = moedi_clock_seconds();
    moed_status status =
        moedi_optimizer_prepare(&t->optimizer, &t->options, t->step + 1, rate_of_next(t, factor), 1.0 / (double)t->pending.calls);
    int begun = 0;
    if (status == MOED_OK) status = enqueue_update(t, &begun);
    if (status != MOED_OK && begun) t->broken = 1;
    if (status != MOED_OK) return drop(t, status);
    status = moedi_findings_download(&t->findings);
    if (status != MOED_OK) t->broken = 1;
    if (status == MOED_OK) status = finish_update(t, factor, start, out);
    if (status != MOED_OK) return drop(t, status);
    forget(t);
    return write_line(t, out);
}

moed_status moedi_step_store(moed_trainer *t, moed_status status)
{
    if (t->broken) return status; /* half a step is not the last whole one */
    t->behind = t->options.store_late && t->step < t->options.steps;
    if (t->behind) return status;
    moedi_error kept;
    moedi_error_save(&kept);
    const moed_status stored = moedi_transformer_store(t->transformer);
    return status == MOED_OK ? stored : moedi_error_restore(&kept);
}

moed_status moedi_step_evaluate(moed_trainer *t, const moed_corpus *d, int64_t tokens, moed_report *out,
                                const moed_cancel *cancel)
{
    const moed_train_options *o = &t->options;
    MOEDI_TRY(moedi_evaluate(t->transformer, d, tokens, o->rows / o->micro_batches, o->length, o->document_mask, out, cancel));
    out->struct_size = sizeof *out;
    out->step = t->step;
    return MOED_OK;
}

/* ---- the public halves ---- */

moed_status moed_trainer_loads(const moed_trainer *t, int64_t *loads, size_t capacity)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_REQUIRE(loads, "loads is NULL");
    MOEDI_TRY(moedi_step_check(t));
    const size_t bytes = moedi_loads_bytes(&t->model->layout->config), count = bytes / sizeof *loads;
    if (capacity < count)
        return moedi_fail_parameter(MOED_E_RANGE, "capacity", "capacity is %zu, and the layers have %zu experts in all", capacity,
                                    count);
    memcpy(loads, t->last_loads, bytes);
    return MOED_OK;
}

moed_status moed_trainer_forward_backward(moed_trainer *t, const moed_batch *b, moed_report *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    if (out) MOEDI_TRY(moedi_info_check(MOED_STRUCT_REPORT, out));
    MOEDI_TRY(moedi_step_check(t));
    MOEDI_TRY(moedi_run_claim(t));
    moed_report report;
    MOEDI_TRY(add_gradient(t, b, &report));
    return out ? moedi_info_write(MOED_STRUCT_REPORT, &report, out) : MOED_OK;
}

moed_status moed_trainer_update(moed_trainer *t, double factor, moed_report *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    if (out) MOEDI_TRY(moedi_info_check(MOED_STRUCT_REPORT, out));
    MOEDI_TRY(moedi_step_check(t));
    if (!(factor >= 0) || !isfinite(factor))
        return moedi_fail_parameter(MOED_E_RANGE, "factor", "factor is %g, not a number from 0 up", factor);
    const double rate = moedi_schedule_rate(&t->options, t->step + 1) * factor;
    if (rate > MOEDI_LARGEST_RATE)
        return moedi_fail_parameter(MOED_E_RANGE, "factor", "factor %g makes a learning rate of %g; %g is the most", factor, rate,
                                    MOEDI_LARGEST_RATE);
    if (t->pending.calls == 0) return moedi_fail(MOED_E_STATE, "no gradient waits: call moed_trainer_forward_backward first");
    moed_report report;
    MOEDI_TRY(moedi_step_store(t, update(t, factor, &report)));
    return out ? moedi_info_write(MOED_STRUCT_REPORT, &report, out) : MOED_OK;
}

moed_status moed_trainer_gradient(moed_trainer *t, size_t param, moed_tensor *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_step_check(t));
    const moed_layout *l = t->model->layout;
    if (param >= l->count)
        return moedi_fail_parameter(MOED_E_RANGE, "param", "parameter %zu of %zu was asked for", param, l->count);
    const moedi_engine *e = moedi_transformer_engine(t->transformer);
    const moed_param *p = &l->params[param];
    MOEDI_TRY(moedi_accumulator_settle(&t->gradients));
    void *gradient = t->trained[param] ? moedi_transformer_gradient(t->transformer, param) : NULL;
    if (gradient && t->staging) {
        const int64_t count = moedi_shape_elements(p->shape, p->rank);
        MOEDI_TRY(e->table->download(e->self, t->staging, gradient, (size_t)count * e->item));
        gradient = t->staging;
    }
    MOEDI_TRY(e->table->synchronize(e->self));
    moedi_tensor_set(out, gradient, e->info.dtype, p->rank, p->shape);
    return MOED_OK;
}
