/* surgery/assemble.c - executes a surgery over a whole model. */
#include "surgery/assemble.h"

#include "core/cancel.h"

enum { SLICE = 1 << 22 }; /* elements between two looks at the cancel token */

static moed_status plan_parameter(moedi_plan *out, const moedi_surgery *s, size_t param, int32_t dtype)
{
    const moed_param *p = &s->layout->params[param];
    const moed_context *c = s->layout->context;
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

static moed_status assemble_memory(moed_model **out, moedi_surgery *s, const moed_cancel *cancel)
{
    moed_status status = MOED_OK;
    moed_model *m = NULL;
    MOEDI_TRY(moedi_model_create(&m, s->layout->context, s->layout));
    for (size_t i = 0; i < s->layout->count; i++) {
        const moed_tensor *t = &m->tensors[i];
        moedi_plan plan = {0};
        MOEDI_GO(plan_parameter(&plan, s, i, t->dtype));
        for (int64_t at = 0; at < plan.elements && status == MOED_OK; at += SLICE) {
            int64_t count = plan.elements - at < SLICE ? plan.elements - at : SLICE;
            status = moedi_cancel_check(cancel);
            if (status == MOED_OK)
                status = moedi_plan_fill(&plan, at, count,
                                         (char *)t->data + (size_t)at * moedi_dtype_size(t->dtype));
        }
        close_plan(s, &plan);
        if (status != MOED_OK) goto out;
    }
    *out = m;
    return MOED_OK;
out:
    moed_model_destroy(m);
    return status;
}

/* The plan of the parameter that is being written. */
typedef struct stream {
    moedi_surgery *surgery;
    moedi_plan plan;
    size_t param;
    int open;
} stream;

static void stream_close(stream *s)
{
    if (s->open) close_plan(s->surgery, &s->plan);
    s->open = 0;
}

static moed_status stream_produce(void *user, size_t param, int64_t first, int64_t count, void *out)
{
    stream *s = user;
    if (!s->open || s->param != param) {
        stream_close(s);
        MOEDI_TRY(plan_parameter(&s->plan, s->surgery, param, s->surgery->layout->params[param].dtype));
        s->param = param, s->open = 1;
    }
    return moedi_plan_fill(&s->plan, first, count, out);
}

static moed_status assemble_directory(moedi_surgery *s, const char *dir, const moed_cancel *cancel)
{
    stream state = {.surgery = s};
    moed_status status = moedi_model_save_at(s->layout->context, s->layout, dir, MOED_DTYPE_NONE,
                                             stream_produce, &state, cancel);
    stream_close(&state);
    return status;
}

moed_status moedi_assemble(moed_model **out, moedi_surgery *s, const char *dir, const moed_cancel *cancel)
{
    s->moved = s->original = 0.0;
    MOEDI_TRY(moedi_cancel_check(cancel));
    if (!dir) return assemble_memory(out, s, cancel);
    MOEDI_TRY(assemble_directory(s, dir, cancel));
    return out ? moedi_model_open_as(out, s->layout->context, s->layout, dir, 1) : MOED_OK;
}
