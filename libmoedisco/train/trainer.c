/* train/trainer.c - the handle: made, given another policy or model, asked. */
#include "trainer.h"

#include <stdlib.h>
#include <string.h>

#include "core/options.h"
#include "estimate.h"
#include "evaluate.h"
#include "selection.h"
#include "settings.h"
#include "util/dtype.h"

static moed_status copy_options(moed_trainer *t, const moed_train_options *o)
{
    char *train = NULL, *freeze = NULL, *directory = NULL;
    t->options = *o;
    t->options.train = t->options.freeze = t->options.directory = NULL;
    if (o->train) {
        MOEDI_TRY(moedi_strdup(t->context, o->train, &train));
        t->options.train = train;
    }
    if (o->freeze) {
        MOEDI_TRY(moedi_strdup(t->context, o->freeze, &freeze));
        t->options.freeze = freeze;
    }
    if (o->directory) {
        MOEDI_TRY(moedi_strdup(t->context, o->directory, &directory));
        t->options.directory = directory;
    }
    return MOED_OK;
}

typedef struct extent {
    uintptr_t start, end;
    size_t param;
} extent;

static int by_start(const void *a, const void *b)
{
    const extent *x = a, *y = b;
    return x->start < y->start ? -1 : x->start > y->start;
}

/* Borrowed arrays may share memory to be read; training one of them would change the other, in an order left to chance. */
static moed_status check_apart(const moed_trainer *t)
{
    const moed_model *m = t->model;
    const size_t count = m->layout->count;
    extent *list = NULL;
    moed_status status = MOED_OK;
    if (!m->borrowed) return MOED_OK;
    MOEDI_TRY(MOEDI_NEW(t->context, count, &list));
    for (size_t i = 0; i < count; i++) {
        const moed_param *p = &m->layout->params[i];
        const uintptr_t start = (uintptr_t)m->tensors[i].data;
        list[i] = (extent){start, start + (size_t)moedi_shape_elements(p->shape, p->rank) * moedi_dtype_size(p->dtype), i};
    }
    qsort(list, count, sizeof *list, by_start);
    for (size_t i = 1, last = 0; i < count && status == MOED_OK; i++) { /* last: the one that ends last of those before */
        const char *a = m->layout->params[list[last].param].name, *b = m->layout->params[list[i].param].name;
        if (list[i].start < list[last].end && (t->trained[list[i].param] || t->trained[list[last].param]))
            status = moedi_fail_parameter(MOED_E_ARGUMENT, b,
                                          "the borrowed arrays of %.100s and %.100s overlap: training needs each apart", a, b);
        if (list[i].end > list[last].end) last = i;
    }
    moedi_free(t->context, list);
    return status;
}

/* Weights that the engine cannot use where they are take memory a second time. */
static int weights_in_place(const moed_model *m, const moed_context *c)
{
    for (size_t i = 0; i < m->layout->count; i++)
        if (m->tensors[i].dtype != c->backend_info.dtype) return 0;
    return c->backend_info.host_memory;
}

static int64_t bytes_in_use(const moed_context *c)
{
    return atomic_load(&((moed_context *)(uintptr_t)c)->in_use);
}

/* What can be done about memory that does not suffice. */
static const char *way_to_fit(const moed_trainer *t)
{
    if (t->resuming && t->step == 0) return "as its checkpoint was made: allow more"; /* its settings are the checkpoint's */
    return t->policy == MOED_POLICY_FULL ? "less with fewer rows, a smaller length or more micro_batches, or policy lean"
                                         : "less with fewer rows, a smaller length or more micro_batches";
}

/* Decides on the policy and refuses what the limits do not allow. released: bytes in use that go before anything is allocated. */
static moed_status check_fits(moed_trainer *t, int64_t released)
{
    const moed_context *c = t->context;
    const int64_t used = bytes_in_use(c) - released, most = c->options.host_limit;
    moedi_room room = moedi_room_of(c, NULL, used);
    moedi_budget b;
    const char *reason;
    room.in_place = weights_in_place(t->model, c);
    MOEDI_TRY(moedi_policy_choose(t->model->layout, &c->backend_info, &t->options, t->trained, t->corpus->documents, &room,
                                  &t->policy, &b, &reason));
    const moedi_room needs = moedi_budget_place(&b, &room);
    moedi_log(c, MOED_LOG_INFO, "policy %s: %s; %lld bytes of host memory, %lld of the device", moedi_policy_name(t->policy),
              reason, (long long)needs.host, (long long)needs.device);
    if (most > 0 && needs.host > room.host)
        return moedi_fail(MOED_E_LIMIT, "training needs %lld bytes beside the %lld in use, the limit is %lld: gradients %lld, "
                          "moments %lld, activations %lld (%s)",
                          (long long)needs.host, (long long)used, (long long)most, (long long)b.gradients,
                          (long long)b.moments, (long long)b.activations, way_to_fit(t));
    const int64_t limit = c->options.device_limit, whole = room.device_whole;
    const int over = limit > 0 && needs.device > limit, beyond = whole > 0 && needs.device > whole;
    if (over || beyond)
        return moedi_fail(over ? MOED_E_LIMIT : MOED_E_MEMORY,
                          "training needs %lld bytes on the device, %s is %lld: weights %lld, gradients %lld, moments %lld, "
                          "activations %lld (%s)",
                          (long long)needs.device, over ? "the limit" : "its memory", (long long)(over ? limit : whole),
                          (long long)b.weights, (long long)b.gradients, (long long)b.moments,
                          (long long)(b.activations + b.workspace), way_to_fit(t));
    t->workspace = b.workspace;
    return MOED_OK;
}

/* What depends on the policy. */
static moed_status build(moed_trainer *t)
{
    const moed_train_options *o = &t->options;
    const int64_t before = bytes_in_use(t->context);
    const uint32_t flags = MOEDI_TRANSFORMER_TRAIN | (t->policy == MOED_POLICY_FULL ? MOEDI_TRANSFORMER_MASTERS : 0);
    MOEDI_TRY(moedi_transformer_create(&t->transformer, t->model, o->rows / o->micro_batches, o->length, flags, t->trained));
    MOEDI_TRY(moedi_accumulator_create(&t->gradients, t->transformer, o->micro_batches));
    MOEDI_TRY(moedi_findings_create(&t->findings, t->transformer, o->micro_batches));
    MOEDI_TRY(moedi_optimizer_create(&t->optimizer, t->transformer, t->model->layout, t->trained, o->weight_decay, t->policy,
                                     moedi_findings_scalars(&t->findings)));
    MOEDI_TRY(moedi_selection_biases_create(&t->biases, t->transformer, moedi_findings_scalars(&t->findings), o->balance_rate));
    MOEDI_TRY(moedi_staged_create(&t->batch, moedi_transformer_engine(t->transformer), o->rows * o->length));
    t->built = bytes_in_use(t->context) - before;
    return MOED_OK;
}

static void demolish(moed_trainer *t)
{
    for (int i = 0; t->transformer && i < 2; i++)
        moedi_recording_destroy(&t->recordings[i], moedi_transformer_engine(t->transformer));
    moedi_staged_destroy(&t->batch);
    moedi_selection_biases_destroy(&t->biases);
    moedi_optimizer_destroy(&t->optimizer);
    moedi_findings_destroy(&t->findings);
    moedi_accumulator_destroy(&t->gradients);
    moedi_transformer_destroy(t->transformer);
    t->transformer = NULL;
}

/* Whether it fits with a policy that is not the one asked for. */
static moed_status check_fits_with(moed_trainer *t, int32_t policy, int64_t released)
{
    const int32_t asked = t->options.policy;
    t->options.policy = policy;
    const moed_status status = check_fits(t, released);
    t->options.policy = asked;
    return status;
}

moed_status moedi_trainer_adopt(moed_trainer *t, int32_t policy)
{
    if (t->options.policy != MOED_POLICY_AUTO || (t->transformer && t->policy == policy)) return MOED_OK;
    t->broken = 1;
    demolish(t);
    moed_status status = check_fits_with(t, policy, 0);
    if (status == MOED_OK) status = build(t);
    if (status == MOED_OK) t->broken = 0;
    return status;
}

/* What depends on the model beside that. */
static moed_status size_up(moed_trainer *t)
{
    const moed_layout *l = t->model->layout;
    MOEDI_TRY(MOEDI_NEW(t->context, l->config.layers * l->config.experts, &t->loads));
    MOEDI_TRY(MOEDI_NEW(t->context, l->config.layers * l->config.experts, &t->last_loads));
    MOEDI_TRY(MOEDI_NEW(t->context, l->config.experts, &t->scratch));
    if (t->context->backend_info.host_memory) return MOED_OK;
    int64_t most = 0;
    for (size_t i = 0; i < t->optimizer.count; i++)
        if (t->optimizer.slices[i].count > most) most = t->optimizer.slices[i].count;
    return moedi_alloc(t->context, (size_t)most * moedi_transformer_engine(t->transformer)->item, &t->staging);
}

static void size_down(moed_trainer *t)
{
    void **const owned[] = {(void **)&t->loads, (void **)&t->last_loads, (void **)&t->scratch, &t->staging};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) {
        moedi_free(t->context, *owned[i]);
        *owned[i] = NULL;
    }
}

static moed_status allocate(moed_trainer *t)
{
    const moed_train_options *o = &t->options;
    const int64_t batch = o->rows * o->length;
    MOEDI_TRY(moedi_sampler_create(&t->sampler, t->corpus, o->seed));
    MOEDI_TRY(build(t));
    MOEDI_TRY(MOEDI_NEW(t->context, batch, &t->tokens));
    MOEDI_TRY(MOEDI_NEW(t->context, batch, &t->labels));
    MOEDI_TRY(MOEDI_NEW(t->context, batch, &t->documents));
    return size_up(t);
}

/* The trainer's parts that change with the model, exchanged for those of another. */
static void exchange(moed_trainer *t, moed_model **m, uint8_t **trained)
{
    moed_model *const model = t->model;
    uint8_t *const of_it = t->trained;
    t->model = *m, t->trained = *trained;
    *m = model, *trained = of_it;
}

moed_status moedi_trainer_take_model(moed_trainer *t, moed_model *m)
{
    const moed_context *c = t->context;
    uint8_t *trained = NULL;
    moed_status status = MOED_OK;
    moed_model *other = moedi_model_retain(m);
    MOEDI_GO(MOEDI_NEW(t->context, m->layout->count, &trained));
    MOEDI_GO(moedi_selection(m->layout, t->options.train, t->options.freeze, trained));
    /* before anything goes that a run could go on with */
    MOEDI_GO(moedi_selection_biases_check(&m->layout->config, moedi_transformer_engine(t->transformer), t->options.balance_rate));
    exchange(t, &other, &trained);
    status = check_fits_with(t, t->policy, t->built + (t->step > 0 && c->backend_info.host_memory ? t->workspace : 0));
    exchange(t, &other, &trained);
    MOEDI_GO(status);
    t->broken = 1;
    const moed_status kept = moedi_transformer_store(t->transformer); /* the model that goes is as the last step left it */
    demolish(t);
    size_down(t);
    exchange(t, &other, &trained);
    MOEDI_GO(kept);
    MOEDI_GO(build(t));
    MOEDI_GO(size_up(t));
    t->behind = 0;
    t->saved = -1;
    t->broken = 0;
out:
    moedi_free(t->context, trained);
    moed_model_destroy(other);
    return status;
}

moed_status moed_trainer_create(moed_trainer **out, moed_context *c, moed_model *m, const moed_corpus *d, moed_comm *comm,
                                const moed_train_options *o)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "c is NULL");
    MOEDI_REQUIRE(m, "m is NULL");
    MOEDI_REQUIRE(d, "d is NULL");
    MOEDI_TRY(moedi_context_check(c));
    if (comm) return moedi_fail_parameter(MOED_E_UNSUPPORTED, "comm", "comm: this version trains in one process only");
    if (m->context != c) /* its arithmetic, device and limits would be another's */
        return moedi_fail(MOED_E_MISMATCH, "the model was made in another context than the trainer is to be");
    MOEDI_TRY(moedi_model_check_resident(m));
    moed_train_options options;
    MOEDI_TRY(moedi_settings_read(m->layout, o, &options));
    MOEDI_TRY(moedi_evaluate_check(m->layout, d, "the corpus"));
    if (options.held_out) MOEDI_TRY(moedi_evaluate_check(m->layout, options.held_out, "held_out"));

    moed_status status = MOED_OK;
    moed_trainer *t = NULL;
    MOEDI_TRY(MOEDI_NEW(c, 1, &t));
    t->context = moedi_context_retain(c);
    t->model = moedi_model_retain(m);
    t->corpus = moedi_corpus_retain(d);
    t->metrics.fd = -1;
    t->saved = -1;
    t->row = options.first_row;
    MOEDI_GO(copy_options(t, &options));
    if (options.held_out) t->held_out = moedi_corpus_retain(options.held_out);
    MOEDI_GO(MOEDI_NEW(c, m->layout->count, &t->trained));
    MOEDI_GO(moedi_selection(m->layout, options.train, options.freeze, t->trained));
    MOEDI_GO(check_apart(t));
    MOEDI_GO(check_fits(t, 0));
    MOEDI_GO(allocate(t));
    *out = t;
    return MOED_OK;
out:
    moed_trainer_destroy(t);
    return status;
}

void moed_trainer_destroy(moed_trainer *t)
{
    if (!t) return;
    moedi_error kept;
    moedi_error_save(&kept);
    moed_context *c = t->context;
    moedi_metrics_close(&t->metrics);
    if (!t->broken && moedi_context_check(c) == MOED_OK) {
        /* a step that waited for its update goes, and what it moved with it */
        const moed_status status = moedi_selection_biases_restore(&t->biases);
        if (status == MOED_OK && t->behind) (void)moedi_transformer_store(t->transformer);
    }
    demolish(t);
    moedi_sampler_destroy(t->sampler);
    size_down(t);
    void *owned[] = {t->tokens, t->labels, t->documents, t->trained};
    for (size_t i = 0; i < sizeof owned / sizeof owned[0]; i++) moedi_free(c, owned[i]);
    moedi_free(c, (char *)(uintptr_t)t->options.train);
    moedi_free(c, (char *)(uintptr_t)t->options.freeze);
    moedi_free(c, (char *)(uintptr_t)t->options.directory);
    moed_corpus_destroy(t->held_out);
    moed_corpus_destroy(t->corpus);
    moed_model_destroy(t->model);
    moedi_free(c, t);
    moedi_context_release(c);
    moedi_error_restore(&kept);
}

moed_status moed_trainer_get_info(const moed_trainer *t, moed_trainer_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(t->context));
    moed_trainer_info info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    info.step = t->step, info.steps = t->options.steps, info.tokens = t->consumed;
    info.trained = t->optimizer.numbers;
    for (size_t i = 0; i < t->model->layout->count; i++) {
        const moed_param *p = &t->model->layout->params[i];
        if (!t->trained[i]) info.frozen += moedi_shape_elements(p->shape, p->rank);
    }
    info.best_held_out = t->best_held_out;
    info.policy = t->policy;
    snprintf(info.resumed_from, sizeof info.resumed_from, "%s", t->resumed_from);
    return moedi_info_write(MOED_STRUCT_TRAINER_INFO, &info, out);
}
