/* train/estimate.c - memory, arithmetic and time of a run, from the layout alone. */
#include "estimate.h"

#include <string.h>

#include "accumulate.h"
#include "backend/cpu/blocks.h"
#include "checkpoint.h"
#include "core/options.h"
#include "corpus/corpus.h"
#include "optimizer.h"
#include "selection.h"
#include "settings.h"

/* Room that the CPU's operations keep: the largest is a piece of the logits with the panels of its products, or the experts'
 * panels. */
static int64_t workspace_bytes(const moedi_config *c, int64_t tokens)
{
    const size_t loss =
        moedi_loss_logit_bytes(tokens, c->vocabulary) + moedi_loss_panel_bytes(tokens, c->vocabulary, c->hidden, 1, 1);
    const int64_t E = c->experts, H = c->hidden, W = 2 * c->expert_width, places = tokens * c->top_k;
    const size_t products[4] = {
        /* there, back, and the gradients of the experts' two matrices */
        moedi_grouped_bytes(E, places, places, W, H, 0, 1, 1), moedi_grouped_bytes(E, places, places, H, W, 0, 1, 1),
        moedi_grouped_bytes(E, W, W, H, places, 1, 1, 1), moedi_grouped_bytes(E, H, H, W / 2, places, 1, 1, 1)};
    size_t experts = 0;
    for (int i = 0; i < 4; i++)
        if (products[i] > experts) experts = products[i];
    return (int64_t)(loss > experts ? loss : experts);
}

moed_status moedi_budget_compute(const moed_layout *l, const moed_backend_info *numbers, const moed_train_options *o,
                                 const uint8_t *trained, int64_t documents, moedi_budget *out)
{
    moedi_budget b;
    memset(&b, 0, sizeof b);
    const int64_t shard = o->rows / o->micro_batches;
    MOEDI_TRY(moedi_transformer_bytes(l, numbers, shard, o->length, MOEDI_TRANSFORMER_TRAIN, trained, &b.weights, &b.gradients,
                                      &b.activations));
    b.workspace = workspace_bytes(&l->config, shard * o->length);
    b.gradients *= 1 + moedi_accumulator_extra(numbers, o->micro_batches);
    b.moments = moedi_optimizer_bytes(l, numbers, trained);
    int64_t slices = 0;
    for (size_t i = 0; i < l->count; i++) slices += trained[i] != 0;
    const int64_t batch = 3 * o->rows * o->length * (int64_t)sizeof(int32_t);
    const int64_t loads = l->config.layers * l->config.experts * (int64_t)sizeof(int64_t);
    const int64_t lists = (int64_t)l->count + slices * (int64_t)(sizeof(moed_op_slice) + sizeof(size_t));
    b.rest = batch + loads + lists + moedi_sampler_bytes(documents, o->length);
    /* An evaluation has a sampler and rows of its own, a checkpoint pieces of tensors: not at the same time. */
    int64_t passing =
        o->held_out ? moedi_sampler_bytes(o->held_out->documents, o->length) + 3 * shard * o->length * (int64_t)sizeof(int32_t)
                    : 0;
    const int64_t saving = o->directory ? moedi_checkpoint_bytes(l, numbers, trained) : 0;
    if (passing < saving) passing = saving;
    b.rest += passing;
    *out = b;
    return MOED_OK;
}

/* Everything a directory may hold at once: the checkpoints kept, and the next one before the oldest goes. */
static int64_t disk_bytes(const moed_train_options *o, const moedi_budget *b)
{
    if (!o->directory) return 0;
    int64_t count = o->keep < INT32_MAX ? o->keep + 1 : INT32_MAX;
    if (o->checkpoint_every > 0) {
        const int64_t written = (o->steps + o->checkpoint_every - 1) / o->checkpoint_every;
        if (written < count) count = written;
    }
    const int64_t each = b->weights + b->moments;
    return each > INT64_MAX / count ? INT64_MAX : count * each;
}

moed_status moed_train_estimate(const moed_layout *l, const moed_device_info *d, const moed_train_options *o, moed_estimate *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(l, "l is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    moed_train_options options;
    MOEDI_TRY(moedi_settings_read(l, o, &options));
    moed_status status = MOED_OK;
    uint8_t *trained = NULL;
    moedi_budget b;
    MOEDI_GO(MOEDI_NEW(l->context, l->count, &trained));
    MOEDI_GO(moedi_selection(l, options.train, options.freeze, trained));
    MOEDI_GO(moedi_budget_compute(l, &l->context->backend_info, &options, trained, 0, &b));

    const int on_host = !d || strcmp(d->backend, "cpu") == 0;
    if (on_host) b.activations += b.workspace;
    const int64_t work = b.weights + b.gradients + b.moments + b.activations;
    moed_estimate e;
    memset(&e, 0, sizeof e);
    e.struct_size = sizeof e;
    e.weights = b.weights, e.gradients = b.gradients, e.moments = b.moments, e.activations = b.activations;
    e.host_bytes = b.rest + (on_host ? work : b.weights);
    e.device_bytes = on_host ? 0 : work;
    e.disk_bytes = disk_bytes(&options, &b);
    e.flops_per_token = 3.0 * moedi_transformer_flops(l, options.length);
    e.flops = e.flops_per_token * (double)options.rows * (double)options.length * (double)options.steps;
    e.seconds = d && d->flops > 0 ? e.flops / d->flops : 0.0;
    status = moedi_info_write(MOED_STRUCT_ESTIMATE, &e, out);
out:
    moedi_free(l->context, trained);
    return status;
}
