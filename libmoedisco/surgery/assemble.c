/* surgery/assemble.c - executes a surgery over a whole model. */
#include "surgery/assemble.h"

#include <string.h>

#include "core/cancel.h"

enum { SLICE = 1 << 22 }; /* elements between two looks at the cancel token */

static moed_status plan_parameter(moedi_plan *out, const moedi_surgery *s, size_t param, int32_t dtype, int32_t device)
{
    const moed_param *p = &s->layout->params[param];
    const moed_context *c = s->context;
    moed_status status = MOED_OK;
    moedi_piece_list list = {0};
    MOEDI_TRY(s->pieces(s->user, param, &list));
    list.capacity = list.count;
    MOEDI_TRY(MOEDI_NEW(c, list.capacity, &list.pieces));
    list.count = 0;
    MOEDI_GO(s->pieces(s->user, param, &list));
    moedi_plan_request request = {.context = c,
                                  .pieces = list.pieces,
                                  .count = list.count,
                                  .name = p->name,
                                  .dtype = dtype,
                                  .rank = p->rank,
                                  .device = device,
                                  .shape = p->shape,
                                  .resolve = s->resolve,
                                  .user = s->user,
                                  .measure = s->measure && p->role == MOED_ROLE_SHARED};
    status = moedi_plan_create(out, &request);
out:
    moedi_free(c, list.pieces);
    return status;
}

static void close_plan(moedi_surgery *s, moedi_plan *plan)
{
    s->moved += plan->moved, s->original += plan->original;
    moedi_plan_destroy(plan);
}

static moed_status fill_slices(moedi_plan *plan, const moed_tensor *t, const moed_cancel *cancel)
{
    for (int64_t at = 0; at < plan->elements; at += SLICE) {
        const int64_t count = plan->elements - at < SLICE ? plan->elements - at : SLICE;
        MOEDI_TRY(moedi_cancel_check(cancel));
        MOEDI_TRY(moedi_plan_fill(plan, at, count, (char *)t->data + (size_t)at * moedi_dtype_size(t->dtype)));
    }
    return MOED_OK;
}

static moed_status enqueue(moedi_plan *plan, const moed_tensor *t, const moed_cancel *cancel)
{
    MOEDI_TRY(moedi_cancel_check(cancel));
    return moedi_plan_enqueue(plan, t->data);
}

static moed_status assemble_memory(moed_model **out, moedi_surgery *s, const moed_cancel *cancel)
{
    moed_status status = MOED_OK;
    moed_model *m = NULL;
    MOEDI_TRY(s->device ? moedi_model_create_device(&m, s->context, s->layout) : moedi_model_create(&m, s->context, s->layout));
    if (s->origin) MOEDI_GO(moedi_strdup(s->context, s->origin, &m->origin));
    for (size_t i = 0; i < s->layout->count; i++) {
        const moed_tensor *t = &m->tensors[i];
        moedi_plan plan = {0};
        MOEDI_GO(plan_parameter(&plan, s, i, t->dtype, t->device));
        status = t->device ? enqueue(&plan, t, cancel) : fill_slices(&plan, t, cancel);
        close_plan(s, &plan);
        if (status != MOED_OK) goto out;
    }
    *out = m;
    return MOED_OK;
out:
    moed_model_destroy(m);
    return status;
}

/* The plan of a parameter while it is written. */
typedef struct open_plan {
    moedi_plan plan;
    size_t param;
    double *squares;               /* (units, 2): added up in order, whichever thread made them */
    int64_t units;
} open_plan;

/* Two plans: of the parameter that is made, and of the one after it, whose bytes are asked for early. */
typedef struct stream {
    moedi_surgery *surgery;
    open_plan plans[2];
    int latest;
} stream;

static void close_open_plan(stream *s, open_plan *o)
{
    if (!o->units) return;
    for (int64_t i = 0; i < o->units; i++) o->plan.moved += o->squares[2 * i], o->plan.original += o->squares[2 * i + 1];
    moedi_free(s->surgery->context, o->squares);
    close_plan(s->surgery, &o->plan);
    memset(o, 0, sizeof *o);
}

static moed_status open_next_plan(stream *s, size_t param)
{
    const moed_param *p = &s->surgery->layout->params[param];
    const moed_context *c = s->surgery->context;
    open_plan next = {.param = param};
    moed_status status;
    next.units = (moedi_param_elements(p) + MOEDI_PLAN_UNIT - 1) / MOEDI_PLAN_UNIT;
    MOEDI_TRY(MOEDI_NEW(c, 2 * next.units, &next.squares));
    MOEDI_GO(plan_parameter(&next.plan, s->surgery, param, p->dtype, MOED_MEMORY_HOST));
    s->latest = !s->latest;
    close_open_plan(s, &s->plans[s->latest]);
    s->plans[s->latest] = next;
    return MOED_OK;
out:
    moedi_free(c, next.squares);
    return status;
}

static int is_open(const open_plan *o, size_t param)
{
    return o->units && o->param == param;
}

/* The plan of a parameter, which one of the two is. */
static open_plan *plan_of(stream *s, size_t param)
{
    return &s->plans[is_open(&s->plans[1], param)];
}

static moed_status stream_prepare(void *user, size_t param, int64_t first, int64_t count)
{
    stream *s = user;
    if (!is_open(plan_of(s, param), param)) MOEDI_TRY(open_next_plan(s, param));
    moedi_plan_ahead(&plan_of(s, param)->plan, first, count);
    return MOED_OK;
}

static moed_status stream_produce(void *user, size_t param, int64_t first, int64_t count, void *out)
{
    const open_plan *o = plan_of(user, param);
    return moedi_plan_make(&o->plan, first, count, out, o->squares + 2 * (first / MOEDI_PLAN_UNIT));
}

static moed_status assemble_directory(moedi_surgery *s, const char *dir, const moed_cancel *cancel)
{
    stream state = {.surgery = s};
    const moedi_producer producer = {.prepare = stream_prepare, .produce = stream_produce, .user = &state};
    const moedi_saving saving = {.dir = dir, .shard_bytes = s->shard_bytes, .origin = s->origin};
    const moed_status status = moedi_model_save_from(s->context, s->layout, &saving, &producer, cancel);
    close_open_plan(&state, &state.plans[!state.latest]); /* the older first */
    close_open_plan(&state, &state.plans[state.latest]);
    return status;
}

moed_status moedi_assemble(moed_model **out, moedi_surgery *s, const char *dir, const moed_cancel *cancel)
{
    s->moved = s->original = 0.0;
    MOEDI_TRY(moedi_cancel_check(cancel));
    if (!dir) return assemble_memory(out, s, cancel);
    MOEDI_TRY(assemble_directory(s, dir, cancel));
    return out ? moedi_model_open_as(out, s->context, s->layout, dir, 1) : MOED_OK;
}
