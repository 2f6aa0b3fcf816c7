/* train/run.c - a run: steps one after another, with the evaluations and checkpoints that are due. */
#include <string.h>

#include "checkpoint.h"
#include "core/cancel.h"
#include "core/options.h"
#include "evaluate.h"
#include "run_directory.h"
#include "step.h"

moed_status moed_trainer_save(moed_trainer *t)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_TRY(moedi_step_check(t));
    if (!t->options.directory)
        return moedi_fail_parameter(MOED_E_STATE, "directory", "options.directory is NULL: there is nowhere to save to");
    if (t->pending.calls > 0)
        return moedi_fail(MOED_E_STATE, "gradients of %lld calls wait for moed_trainer_update: a checkpoint would lose them",
                          (long long)t->pending.calls);
    MOEDI_TRY(moedi_run_claim(t));
    return moedi_checkpoint_save(t);
}

moed_status moed_trainer_resume(moed_trainer *t)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_TRY(moedi_context_check(t->context));
    if (!t->options.directory)
        return moedi_fail_parameter(MOED_E_STATE, "directory", "options.directory is NULL: there is nothing to resume from");
    if (t->step > 0 || t->pending.calls > 0)
        return moedi_fail(MOED_E_STATE, "the trainer is at step %lld already: only a fresh one can resume", (long long)t->step);
    t->resuming = 1; /* restoring takes the directory */
    const moed_status status = moedi_checkpoint_resume(t);
    t->resuming = status == MOED_OK || status == MOED_E_NOT_FOUND;
    return status;
}

moed_status moed_trainer_evaluate(moed_trainer *t, const moed_corpus *d, int64_t tokens, moed_report *out,
                                  const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_REQUIRE(d, "d is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_info_check(MOED_STRUCT_REPORT, out));
    MOEDI_TRY(moedi_step_check(t));
    if (tokens < 0) return moedi_fail_parameter(MOED_E_RANGE, "tokens", "tokens is %lld, less than 0", (long long)tokens);
    MOEDI_TRY(moedi_evaluate_check(t->model->layout, d, "the corpus"));
    moed_report report;
    MOEDI_TRY(moedi_step_evaluate(t, d, tokens, &report, cancel));
    return moedi_info_write(MOED_STRUCT_REPORT, &report, out);
}

static moed_status evaluate_held_out(moed_trainer *t, const moed_cancel *cancel)
{
    moed_report report;
    MOEDI_TRY(moedi_step_evaluate(t, t->held_out, t->options.evaluate_tokens, &report, cancel));
    if (t->best_held_out == 0 || report.loss < t->best_held_out) t->best_held_out = report.loss;
    t->evaluated = t->step;
    return moedi_metrics_evaluation(&t->metrics, t->step, &report);
}

/* What is due at the number of steps done, unless it was done before: a run that was stopped inside makes up for it later. */
static moed_status do_due(moed_trainer *t, const moed_cancel *cancel)
{
    const moed_train_options *o = &t->options;
    const int last = t->step == o->steps;
    if (t->step == 0) return MOED_OK;
    if (t->held_out && t->evaluated != t->step && (last || (o->evaluate_every > 0 && t->step % o->evaluate_every == 0)))
        MOEDI_TRY(evaluate_held_out(t, cancel));
    if (o->checkpoint_every > 0 && t->saved != t->step && (last || t->step % o->checkpoint_every == 0))
        MOEDI_TRY(moedi_checkpoint_save(t));
    return MOED_OK;
}

static moed_status loop(moed_trainer *t, int64_t steps, moed_report *report, const moed_cancel *cancel)
{
    MOEDI_TRY(do_due(t, cancel));
    for (int64_t i = 0; i < steps; i++) {
        MOEDI_TRY(moedi_cancel_check(cancel));
        MOEDI_TRY(moedi_step_run(t, report, cancel));
        MOEDI_TRY(do_due(t, cancel));
        if (!t->options.progress) continue;
        const int32_t code = t->options.progress(report, t->options.progress_user);
        if (code != 0) return moedi_fail_callback("progress", code);
    }
    return MOED_OK;
}

moed_status moed_trainer_run(moed_trainer *t, int64_t steps, moed_report *last, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    if (last) MOEDI_TRY(moedi_info_check(MOED_STRUCT_REPORT, last));
    MOEDI_TRY(moedi_step_check(t));
    if (steps < 0) return moedi_fail_parameter(MOED_E_RANGE, "steps", "steps is %lld, less than 0", (long long)steps);
    if (t->pending.calls > 0)
        return moedi_fail(MOED_E_STATE, "gradients of %lld calls wait for moed_trainer_update", (long long)t->pending.calls);
    MOEDI_TRY(moedi_run_claim(t));
    const int64_t left = t->options.steps - t->step;
    moed_report report;
    memset(&report, 0, sizeof report);
    report.struct_size = sizeof report;
    report.step = t->step, report.tokens = t->consumed;
    const moed_status status = loop(t, steps == 0 || steps > left ? left : steps, &report, cancel);
    MOEDI_TRY(moedi_step_store(t, status));
    return last ? moedi_info_write(MOED_STRUCT_REPORT, &report, last) : MOED_OK;
}
