/* train/trainer_expand.c - a trainer goes on with more experts: its weights, to the last bit, and what its optimizer keeps go
 * through the same surgery as a model's. */
#include <string.h>

#include "core/options.h"
#include "moedisco/expand.h"
#include "selection.h"
#include "step.h"

/* Host memory of the wide dtype: weights, and m and v where they are carried; sources of the surgery. */
typedef struct holdings {
    moed_model *weights, *moments[2];
} holdings;

static void holdings_free(holdings *h)
{
    moed_model_destroy(h->weights);
    for (int k = 0; k < 2; k++) moed_model_destroy(h->moments[k]);
}

static moed_status hold_moments(const moed_trainer *t, holdings *h)
{
    const moedi_engine *e = moedi_transformer_engine(t->transformer);
    for (int k = 0; k < 2; k++) {
        MOEDI_TRY(moedi_model_create(&h->moments[k], t->context, h->weights->layout));
        for (size_t i = 0; i < t->optimizer.count; i++) {
            const moedi_moment m = moedi_optimizer_part(&t->optimizer, t->policy, i, k);
            MOEDI_TRY(e->table->download(e->self, h->moments[k]->tensors[t->optimizer.params[i]].data, m.memory,
                                         (size_t)m.count * moedi_dtype_size(m.dtype)));
        }
    }
    return e->table->synchronize(e->self);
}

static moed_status hold(moed_trainer *t, int carry, holdings *h)
{
    moed_layout *exact = NULL;
    moed_status status = MOED_OK;
    MOEDI_TRY(moedi_layout_with_dtype(&exact, t->model->layout, t->context->backend_info.wide));
    MOEDI_GO(moedi_model_create(&h->weights, t->context, exact));
    for (size_t i = 0; i < exact->count; i++)
        MOEDI_GO(
            moedi_transformer_read(t->transformer, i, 0, moedi_param_elements(&exact->params[i]), h->weights->tensors[i].data));
    if (carry) MOEDI_GO(hold_moments(t, h));
out:
    moed_layout_destroy(exact);
    return status;
}

/* The wide model in the dtype of arithmetic. */
static moed_status narrow(moed_model **out, const moed_model *wide)
{
    const moed_context *c = wide->context;
    moed_layout *l = NULL;
    MOEDI_TRY(moedi_layout_with_dtype(&l, wide->layout, c->backend_info.dtype));
    const moed_status status = moedi_model_create(out, wide->context, l);
    moed_layout_destroy(l);
    if (status != MOED_OK) return status;
    for (size_t i = 0; i < wide->layout->count; i++) {
        const moed_tensor *from = &wide->tensors[i], *to = &(*out)->tensors[i];
        moedi_convert(to->data, to->dtype, from->data, from->dtype, moedi_param_elements(&wide->layout->params[i]));
    }
    return MOED_OK;
}

static moed_status write_weights(moed_trainer *t, const moed_model *wide)
{
    for (size_t i = 0; i < wide->layout->count; i++)
        MOEDI_TRY(
            moedi_transformer_write(t->transformer, i, 0, moedi_param_elements(&wide->layout->params[i]), wide->tensors[i].data));
    return MOED_OK;
}

/* A slice's moment by its own pieces: that of new experts is 0. */
static moed_status write_moment(moed_trainer *t, moed_expansion *x, const moed_model *held, size_t slice, int which)
{
    const moedi_engine *e = moedi_transformer_engine(t->transformer);
    const moedi_moment m = moedi_optimizer_part(&t->optimizer, t->policy, slice, which);
    const size_t param = t->optimizer.params[slice], bytes = (size_t)m.count * moedi_dtype_size(m.dtype);
    const moed_param *p = &t->model->layout->params[param];
    const moed_tensor *const sources[] = {held->tensors};
    moed_piece *pieces = NULL;
    void *memory = NULL;
    size_t count = 0;
    moed_tensor to = {0};
    moed_status status = MOED_OK;
    MOEDI_TRY(moed_expansion_pieces(x, param, MOED_KIND_MOMENTS, NULL, 0, &count));
    MOEDI_GO(MOEDI_NEW(t->context, count, &pieces));
    MOEDI_GO(moed_expansion_pieces(x, param, MOED_KIND_MOMENTS, pieces, count, &count));
    MOEDI_GO(moedi_alloc(t->context, bytes, &memory));
    moedi_tensor_set(&to, memory, m.dtype, p->rank, p->shape);
    MOEDI_GO(moed_piece_apply(t->context, pieces, count, sources, &to, NULL));
    MOEDI_GO(e->table->upload(e->self, m.memory, memory, bytes));
    MOEDI_GO(e->table->synchronize(e->self));
out:
    moedi_free(t->context, memory);
    moedi_free(t->context, pieces);
    return status;
}

static moed_status check(const moed_trainer *t, int32_t carry)
{
    MOEDI_TRY(moedi_step_check(t));
    if (t->pending.calls > 0)
        return moedi_fail(MOED_E_STATE, "gradients of %lld calls wait for moed_trainer_update", (long long)t->pending.calls);
    if (carry && t->policy == MOED_POLICY_LEAN)
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, "carry", "policy lean keeps moments as codes of blocks, which are not "
                                    "cut: expand without carrying them, or train with policy full");
    return MOED_OK;
}

moed_status moed_trainer_expand(moed_trainer *t, const double *usage, const moed_expansion_options *o, int32_t carry)
{
    moedi_clear_error();
    MOEDI_REQUIRE(t, "t is NULL");
    MOEDI_TRY(check(t, carry));
    const int same = t->context->backend_info.dtype == t->context->backend_info.wide;
    holdings held = {0};
    moed_expansion *x = NULL;
    moed_model *wide = NULL, *model = NULL;
    moed_status status = MOED_OK;
    MOEDI_GO(hold(t, carry, &held));
    MOEDI_GO(moed_expansion_create(&x, held.weights, usage, o));
    MOEDI_GO(moed_expansion_build(&wide, x, NULL, NULL));
    if (same) model = moedi_model_retain(wide);
    else MOEDI_GO(narrow(&model, wide));
    MOEDI_GO(moedi_trainer_take_model(t, model)); /* from here on the trainer is another, or broken */
    if (!same) status = write_weights(t, wide);
    for (size_t i = 0; carry && status == MOED_OK && i < t->optimizer.count; i++)
        for (int k = 0; k < 2 && status == MOED_OK; k++) status = write_moment(t, x, held.moments[k], i, k);
    if (!carry) t->optimizer.since = t->step;
    if (status != MOED_OK) t->broken = 1;
    else status = moedi_metrics_expansion(&t->metrics, t->step, &t->model->layout->config);
out:
    moed_model_destroy(model);
    moed_model_destroy(wide);
    moed_expansion_destroy(x);
    holdings_free(&held);
    return status;
}

const moed_model *moed_trainer_model(const moed_trainer *t)
{
    return t ? t->model : NULL;
}
