/* train/step.c - forward and backward over virtual shards, then the update. Rows are cut into micro_batches equal shards whose
 * gradients are summed pairwise, so the sum does not depend on who computes which shard. */
#include "step.h"

#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"
#include "evaluate.h"
#include "loads.h"
#include "schedule.h"
#include "util/clock.h"

#define LARGEST_RATE 100.0 /* of the option learning_rate too: beyond it weights leave the range of float */

moed_status moedi_step_check(const moed_trainer *t)
{
    MOEDI_TRY(moedi_context_check(t->context));
    if (t->broken)
        return moedi_fail(MOED_E_STATE,
                          "an earlier call on this trainer ended half-way: make a new one and resume from its checkpoint");
    return MOED_OK;
}

/* What was accumulated since the last update goes; the error on its way stays. */
static moed_status drop(moed_trainer *t, moed_status status)
{
    moedi_error kept;
    moedi_error_save(&kept);
    memset(&t->pending, 0, sizeof t->pending);
    memset(t->loads, 0, (size_t)(t->model->layout->config.layers * t->model->layout->config.experts) * sizeof *t->loads);
    if (moedi_accumulator_clear(&t->gradients) != MOED_OK) t->broken = 1;
    if (status == MOED_OK) return MOED_OK;
    return moedi_error_restore(&kept);
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

static moed_batch cut_rows(const moed_batch *b, int64_t first, int64_t rows)
{
    moed_batch part = *b;
    const int64_t at = first * b->length;
    part.tokens += at, part.labels += at, part.rows = rows;
    if (part.weights) part.weights += at;
    if (part.documents) part.documents += at;
    return part;
}

/* ---- forward and backward ---- */

/* The shard's part of the step's means goes to found. label_weight is the whole batch's. */
static moed_status run_shard(moed_trainer *t, const moed_batch *b, double part, double label_weight, moedi_losses *found,
                             const moed_cancel *cancel)
{
    /* The label mean is over the batch: sum / (label_weight * part) * part. The routers' losses are means over shards. */
    const moedi_objective objective = {.load_balance = t->options.load_balance, .z_loss = t->options.z_loss, .scale = part,
                                       .label_weight = label_weight * part};
    moedi_losses losses;
    MOEDI_TRY(moedi_accumulator_open(&t->gradients));
    MOEDI_TRY(moedi_transformer_forward(t->transformer, b, &objective, cancel));
    MOEDI_TRY(moedi_transformer_backward(t->transformer, cancel));
    MOEDI_TRY(moedi_accumulator_close(&t->gradients));
    MOEDI_TRY(moedi_transformer_losses(t->transformer, &losses));
    found->loss += part * losses.loss;
    found->load_balance += part * losses.load_balance;
    found->z_loss += part * losses.z_loss;
    if (!isfinite(losses.loss) || !isfinite(losses.load_balance) || !isfinite(losses.z_loss))
        return moedi_fail(MOED_E_NUMERIC,
                          "step %lld: the loss is %g (load balance %g, z-loss %g); nothing of this step was applied",
                          (long long)t->step + 1, losses.loss, losses.load_balance, losses.z_loss);
    moedi_loads_add(t->transformer, t->loads);
    return MOED_OK;
}

static moed_status run_shards(moed_trainer *t, const moed_batch *b, double label_weight, moedi_losses *found,
                              const moed_cancel *cancel)
{
    const int64_t shard = t->options.rows / t->options.micro_batches;
    moedi_accumulator_begin(&t->gradients);
    for (int64_t first = 0; first < b->rows; first += shard) {
        const int64_t rows = b->rows - first < shard ? b->rows - first : shard;
        const moed_batch part = cut_rows(b, first, rows);
        MOEDI_TRY(moedi_cancel_check(cancel));
        MOEDI_TRY(run_shard(t, &part, (double)rows / (double)b->rows, label_weight, found, cancel));
    }
    MOEDI_TRY(moedi_accumulator_finish(&t->gradients));
    return moedi_cancel_check(cancel); /* the update that follows is not cut */
}

moed_status moedi_step_accumulate(moed_trainer *t, const moed_batch *b, moed_report *out, const moed_cancel *cancel)
{
    const double start = moedi_clock_seconds();
    if (t->step >= t->options.steps)
        return moedi_fail(MOED_E_STATE, "all %lld steps are done", (long long)t->options.steps);
    moed_batch next;
    if (!b) MOEDI_TRY(next_rows(t, &next));
    const moed_batch *batch = b ? b : &next;
    int64_t labels = 0;
    double label_weight = 0;
    if (!batch->labels)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "labels", "the batch has no labels: there is nothing to train on");
    MOEDI_TRY(moedi_batch_check(batch, t->model->layout->config.vocabulary, t->options.rows, t->options.length, &labels,
                                &label_weight));
    if (!(label_weight > 0))
        return moedi_fail_parameter(MOED_E_ARGUMENT, "labels", "the batch has no label with a weight above 0");

    moedi_losses found;
    memset(&found, 0, sizeof found);
    const moed_status status = run_shards(t, batch, label_weight, &found, cancel);
    if (status != MOED_OK) return drop(t, status);

    moedi_pending *p = &t->pending;
    const double seconds = moedi_clock_seconds() - start;
    p->calls++;
    if (!b) p->rows += batch->rows;
    p->tokens += batch->rows * batch->length;
    p->labels += labels;
    p->loss += found.loss, p->load_balance += found.load_balance, p->z_loss += found.z_loss;
    p->seconds += seconds;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    out->step = t->step, out->tokens = t->consumed, out->labels = labels;
    out->loss = found.loss, out->load_balance = found.load_balance, out->z_loss = found.z_loss;
    out->max_load = moedi_loads_most(&t->model->layout->config, t->loads);
    out->seconds = seconds;
    out->tokens_per_second = seconds > 0 ? (double)(batch->rows * batch->length) / seconds : 0;
    return MOED_OK;
}

moed_status moedi_step_update(moed_trainer *t, double factor, moed_report *out)
{
    const double start = moedi_clock_seconds();
    moedi_pending *p = &t->pending;
    const double rate = moedi_schedule_rate(&t->options, t->step + 1) * factor, calls = (double)p->calls;
    double norm = 0;
    moed_status status = moedi_optimizer_measure(&t->optimizer, &t->options, t->step + 1, rate, 1.0 / calls, &norm);
    if (status == MOED_OK && !isfinite(norm))
        status = moedi_fail(MOED_E_NUMERIC, "step %lld: the gradient's norm is %g; nothing of this step was applied",
                            (long long)t->step + 1, norm);
    if (status != MOED_OK) return drop(t, status);
    status = moedi_optimizer_apply(&t->optimizer, &t->options);
    if (status != MOED_OK) {
        t->broken = 1;
        return status;
    }
    t->step++;
    t->consumed += p->tokens;
    t->row += p->rows;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    out->step = t->step, out->tokens = t->consumed, out->labels = p->labels;
    out->loss = p->loss / calls, out->load_balance = p->load_balance / calls, out->z_loss = p->z_loss / calls;
    out->gradient_norm = norm, out->learning_rate = rate;
    out->max_load = moedi_loads_most(&t->model->layout->config, t->loads);
    out->seconds = p->seconds + moedi_clock_seconds() - start;
    out->tokens_per_second = out->seconds > 0 ? (double)p->tokens / out->seconds : 0;
    MOEDI_TRY(drop(t, MOED_OK));
    return moedi_metrics_step(&t->metrics, out);
}

moed_status moedi_step_store(moed_trainer *t, moed_status status)
{
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

moed_status moed_trainer_forward_backward(moed_trainer *t, const moed_batch *b, moed_report *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    if (out) MOEDI_TRY(moedi_info_check(MOED_STRUCT_REPORT, out));
    MOEDI_TRY(moedi_step_check(t));
    MOEDI_TRY(moedi_trainer_claim(t));
    moed_report report;
    MOEDI_TRY(moedi_step_accumulate(t, b, &report, NULL));
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
    if (rate > LARGEST_RATE)
        return moedi_fail_parameter(MOED_E_RANGE, "factor", "factor %g makes a learning rate of %g; %g is the most", factor, rate,
                                    LARGEST_RATE);
    if (t->pending.calls == 0) return moedi_fail(MOED_E_STATE, "no gradient waits: call moed_trainer_forward_backward first");
    moed_report report;
    MOEDI_TRY(moedi_step_store(t, moedi_step_update(t, factor, &report)));
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
