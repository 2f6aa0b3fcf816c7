/* train/estimate.c - memory, arithmetic and time of a run, from the layout alone. */
#include "estimate.h"

#include <string.h>

#include "accumulate.h"
#include "backend/loader.h"
#include "checkpoint_size.h"
#include "core/options.h"
#include "corpus/corpus.h"
#include "findings.h"
#include "optimizer.h"
#include "selection.h"
#include "selection_bias.h"
#include "settings.h"

/* Bytes that an engine of the backend keeps for the operations of a step. */
static int64_t workspace_of(const moed_backend *backend, const moed_layout *l, const moed_backend_info *numbers,
                            const moed_train_options *o, const uint8_t *trained)
{
    const moedi_config *c = &l->config;
    moed_workload w = {
        .struct_size = sizeof w, .dtype = numbers->dtype, .wide = numbers->wide, .masked = o->document_mask,
        .rows = o->rows / o->micro_batches, .length = o->length, .hidden = c->hidden, .vocabulary = c->vocabulary,
        .heads = c->heads, .kv_heads = c->kv_heads, .head_dim = c->head_dim, .experts = c->experts, .top_k = c->top_k,
        .expert_width = c->expert_width, .shared_width = c->shared_width > c->dense_width ? c->shared_width : c->dense_width,
    };
    if (w.experts == 1 && moedi_config_routes(c)) w.experts = 2; /* a bound: it is routed like more than one */
    if (!backend || !MOED_BACKEND_HAS(backend, workspace)) return 0;
    for (size_t i = 0; i < l->count; i++)
        if (trained[i]) w.slices++, w.numbers += moedi_param_elements(&l->params[i]);
    const int64_t bytes = backend->workspace(&w);
    return bytes > 0 ? bytes : 0;
}

static moed_status compute(const moed_layout *l, const moed_backend_info *numbers, const moed_train_options *o,
                           const uint8_t *trained, int64_t documents, const moed_backend *backend, int on_host,
                           int32_t policy, moedi_budget *out)
{
    moedi_budget b;
    memset(&b, 0, sizeof b);
    const int64_t shard = o->rows / o->micro_batches;
    const uint32_t flags = MOEDI_TRANSFORMER_TRAIN | (policy == MOED_POLICY_FULL ? MOEDI_TRANSFORMER_MASTERS : 0);
    MOEDI_TRY(moedi_transformer_bytes(l, numbers, shard, o->length, flags, trained, &b.weights, &b.gradients, &b.activations));
    const int64_t staged = moedi_staged_bytes(o->rows * o->length);
    const int64_t found = moedi_findings_bytes(&l->config, numbers, o->micro_batches);
    const int64_t biases = moedi_selection_biases_bytes(&l->config, numbers, o->balance_rate);
    b.activations += staged + found + biases;
    b.workspace = workspace_of(backend, l, numbers, o, trained);
    b.gradients *= 1 + moedi_accumulator_extra(numbers, o->micro_batches);
    b.moments = moedi_optimizer_bytes(l, numbers, trained, policy);
    int64_t slices = 0, largest = 0;
    for (size_t i = 0; i < l->count; i++) {
        const int64_t count = moedi_param_elements(&l->params[i]);
        slices += trained[i] != 0;
        if (trained[i] && count > largest) largest = count;
    }
    const int64_t shown = on_host ? 0 : largest * (int64_t)moedi_dtype_size(numbers->dtype); /* a gradient, when asked for */
    const int64_t batch = 3 * o->rows * o->length * (int64_t)sizeof(int32_t);
    /* two tables of loads; a layer's loads in order for the metrics */
    const int64_t loads = l->config.experts * (int64_t)((2 * l->config.layers + 1) * sizeof(int64_t));
    const int64_t lists = (int64_t)l->count + slices * (int64_t)(sizeof(moed_op_slice) + sizeof(size_t));
    enum { HANDLE = 4096 }; /* the trainer itself, and the texts of its options */
    b.rest = HANDLE + staged + found + moedi_staged_bytes(shard * o->length) + batch + loads + biases + lists + shown +
             moedi_transformer_host_bytes(l, numbers) + moedi_sampler_bytes(documents, o->length);
    /* An evaluation has a sampler and rows of its own, a checkpoint pieces of tensors: not at the same time. */
    int64_t passing =
        o->held_out ? moedi_sampler_bytes(o->held_out->documents, o->length) + 3 * shard * o->length * (int64_t)sizeof(int32_t)
                    : 0;
    const int64_t saving = o->directory ? moedi_checkpoint_bytes(l, numbers, trained, policy) : 0;
    if (passing < saving) passing = saving;
    b.rest += passing;
    *out = b;
    return MOED_OK;
}

/* Of the device: the context's own, or one that is only asked about. */
static const moed_backend *backend_of(const moed_context *c, const moed_device_info *device)
{
    if (!device || strcmp(device->backend, c->backend->name) == 0) return c->backend;
    return moedi_backend_named(c->options.plugin_dir, !(c->options.flags & MOED_CONTEXT_NO_ENV), device->backend);
}

moedi_room moedi_room_of(const moed_context *c, const moed_device_info *device, int64_t used)
{
    moedi_room r = {.host = INT64_MAX, .device = INT64_MAX};
    const int64_t whole = device ? device->memory : c->device_memory, memory = whole / 16 * 15, limit = c->options.device_limit;
    r.backend = backend_of(c, device);
    r.on_host = device ? strcmp(device->backend, "cpu") == 0 : c->backend_info.host_memory;
    r.device_whole = r.on_host ? 0 : whole;
    if (c->options.host_limit > 0) r.host = c->options.host_limit - used;
    if (!r.on_host && memory > 0) r.device = memory;
    if (!r.on_host && limit > 0 && limit < r.device) r.device = limit;
    return r;
}

moedi_room moedi_budget_place(const moedi_budget *b, const moedi_room *room)
{
    const int64_t work = b->gradients + b->moments + b->activations + b->workspace + (room->in_place ? 0 : b->weights);
    if (room->on_host) return (moedi_room){.host = b->rest + work, .on_host = 1};
    return (moedi_room){.host = b->rest, .device = work};
}

static int fits(const moedi_budget *b, const moedi_room *room)
{
    const moedi_room needs = moedi_budget_place(b, room);
    return needs.host <= room->host && needs.device <= room->device;
}

moed_status moedi_policy_choose(const moed_layout *l, const moed_backend_info *numbers, const moed_train_options *o,
                                const uint8_t *trained, int64_t documents, const moedi_room *room, int32_t *policy,
                                moedi_budget *out, const char **reason)
{
    *policy = o->policy == MOED_POLICY_AUTO ? MOED_POLICY_FULL : o->policy;
    *reason = o->policy == MOED_POLICY_AUTO ? "it fits" : "asked for";
    MOEDI_TRY(compute(l, numbers, o, trained, documents, room->backend, room->on_host, *policy, out));
    if (o->policy != MOED_POLICY_AUTO || fits(out, room)) return MOED_OK;
    *policy = MOED_POLICY_LEAN;
    *reason = "full does not fit";
    return compute(l, numbers, o, trained, documents, room->backend, room->on_host, *policy, out);
}

/* Of the model where it lies. */
static int64_t model_bytes(const moed_layout *l)
{
    int64_t bytes = 0;
    for (size_t i = 0; i < l->count; i++) bytes += (int64_t)moedi_param_bytes(&l->params[i]);
    return bytes;
}

/* Everything a directory may hold at once: the checkpoints kept, and the next one before the oldest goes. */
static int64_t disk_bytes(const moed_layout *l, const moed_train_options *o, const moedi_budget *b)
{
    if (!o->directory) return 0;
    int64_t count = o->keep < INT32_MAX ? o->keep + 1 : INT32_MAX;
    if (o->checkpoint_every > 0) {
        const int64_t written = (o->steps + o->checkpoint_every - 1) / o->checkpoint_every;
        if (written < count) count = written;
    }
    int64_t each = b->moments;
    for (size_t i = 0; i < l->count; i++)
        each += moedi_param_elements(&l->params[i]) * (int64_t)moedi_dtype_size(l->context->backend_info.wide);
    return each > INT64_MAX / count ? INT64_MAX : count * each;
}

/* The numbers that device d (nullable) computes with; own: what is known of it, of an older caller's struct too. */
static moed_status numbers_of(const moed_layout *l, const moed_device_info *d, moed_device_info *own, moed_backend_info *out)
{
    *out = l->context->backend_info;
    if (!d) return MOED_OK;
    MOEDI_TRY(moedi_info_check(MOED_STRUCT_DEVICE_INFO, d));
    memcpy(own, d, d->struct_size < sizeof *own ? d->struct_size : sizeof *own);
    if (!own->dtype) return MOED_OK;
    if (own->dtype != MOED_DTYPE_BF16 && own->dtype != MOED_DTYPE_F32)
        return moedi_fail_parameter(MOED_E_RANGE, "dtype", "dtype of the device is %s: it must be BF16 or F32, or 0",
                                    moed_dtype_name(own->dtype));
    out->dtype = own->dtype, out->wide = MOED_DTYPE_F32;
    return MOED_OK;
}

moed_status moed_train_estimate(const moed_layout *l, const moed_device_info *given, const moed_train_options *o,
                                moed_estimate *out)
{
    moed_device_info own = {0};
    const moed_device_info *d = given ? &own : NULL;
    moed_backend_info numbers;
    moedi_clear_error();
    MOEDI_REQUIRE(l, "l is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    MOEDI_TRY(numbers_of(l, given, &own, &numbers));
    moed_train_options options;
    MOEDI_TRY(moedi_settings_read(l, o, &options));
    moed_status status = MOED_OK;
    uint8_t *trained = NULL;
    moedi_budget b;
    MOEDI_GO(MOEDI_NEW(l->context, l->count, &trained));
    MOEDI_GO(moedi_selection(l, options.train, options.freeze, trained));
    const moedi_room room = moedi_room_of(l->context, d, 0);
    int32_t policy;
    const char *reason;
    MOEDI_GO(moedi_policy_choose(l, &numbers, &options, trained, 0, &room, &policy, &b, &reason));

    const moedi_room needs = moedi_budget_place(&b, &room);
    moed_estimate e;
    memset(&e, 0, sizeof e);
    e.struct_size = sizeof e;
    e.weights = b.weights, e.gradients = b.gradients, e.moments = b.moments, e.activations = b.activations + b.workspace;
    e.host_bytes = needs.host + (room.on_host ? 0 : model_bytes(l));
    e.device_bytes = needs.device;
    e.disk_bytes = disk_bytes(l, &options, &b);
    e.policy = policy;
    e.flops_per_token = 3.0 * moedi_transformer_flops(l, options.length);
    e.flops = e.flops_per_token * (double)options.rows * (double)options.length * (double)options.steps;
    e.seconds = d && d->flops > 0 ? e.flops / d->flops : 0.0;
    status = moedi_info_write(MOED_STRUCT_ESTIMATE, &e, out);
out:
    moedi_free(l->context, trained);
    return status;
}
