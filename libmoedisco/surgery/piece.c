/* surgery/piece.c - pieces: checked once, then executed block by block in double. */
#include "surgery/piece.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "util/numbers.h"
#include "util/random.h"

enum {
    BLOCK = 8192,          /* elements worked on at once */
    INNER = 512,           /* of those, that stay in the first cache from loop to loop */
    DIRECT = 4096,         /* elements in one place from which on a read needs no window */
    TASK = MOEDI_PLAN_UNIT /* elements of one parallel task */
};

/* ---- lists of pieces ---- */

void moedi_piece_add(moedi_piece_list *list, const moed_piece *piece)
{
    if (list->count && list->count <= list->capacity) {
        moed_piece *last = &list->pieces[list->count - 1];
        if (last->op == MOED_PIECE_COPY && piece->op == MOED_PIECE_COPY && last->axis == piece->axis &&
            last->source == piece->source && last->source_param == piece->source_param &&
            last->from + last->count == piece->from && last->at + last->count == piece->at &&
            last->scale == piece->scale) {
            last->count += piece->count;
            return;
        }
    }
    if (list->count < list->capacity) list->pieces[list->count] = *piece;
    list->count++;
}

moed_piece moedi_piece_copy(int32_t source, size_t param, int64_t count)
{
    moed_piece p = {
        .op = MOED_PIECE_COPY, .source = source, .source_param = (int64_t)param, .count = count, .scale = 1.0};
    return p;
}

int64_t moedi_piece_whole(const moed_param *p)
{
    return p->rank ? p->shape[0] : 1;
}

/* ---- checks ---- */

moed_status moedi_piece_source_model(const moed_model *m, int64_t param, moedi_piece_source *out)
{
    if (param < 0 || (uint64_t)param >= m->layout->count)
        return moedi_fail(MOED_E_RANGE, "a piece asks for parameter %lld of a model with %zu parameters",
                          (long long)param, m->layout->count);
    const moed_param *p = &m->layout->params[param];
    out->data = m->tensors ? m->tensors[param].data : NULL;
    out->dtype = out->data ? m->tensors[param].dtype : p->dtype;
    out->rank = p->rank, out->shape = p->shape;
    out->device = m->device;
    out->model = m, out->param = (size_t)param;
    return MOED_OK;
}

typedef struct place { char text[192]; } place;

static place place_of(const moedi_plan_request *r, size_t index)
{
    place p;
    if (r->name) snprintf(p.text, sizeof p.text, "piece %zu of tensor \"%.140s\"", index, r->name);
    else snprintf(p.text, sizeof p.text, "piece %zu", index);
    return p;
}

/* What is made on the device is made of what is there. In host memory a model's numbers can be read from anywhere. */
static moed_status check_place(const moedi_plan_request *r, size_t index, moedi_piece_source *s, const char *what)
{
    const moed_context *c = r->context;
    if (s->device && s->model && r->device == MOED_MEMORY_HOST) s->data = NULL, s->device = MOED_MEMORY_HOST;
    if (s->device != r->device)
        return moedi_fail(MOED_E_ARGUMENT, "%s: its %s is in %s memory, the destination in %s memory", place_of(r, index).text,
                          what, s->device ? "device" : "host", r->device ? "device" : "host");
    if (s->device && s->model && (s->model->context->backend != c->backend || s->model->context->device_index != c->device_index))
        return moedi_fail(MOED_E_ARGUMENT, "%s: its %s is in memory of %s, the destination of %s", place_of(r, index).text, what,
                          s->model->context->device, c->device);
    return MOED_OK;
}

static moed_status check_source(const moedi_plan_request *r, size_t index, moedi_piece_source *s, int64_t from, const char *what)
{
    const moed_piece *p = &r->pieces[index];
    MOEDI_TRY(check_place(r, index, s, what));
    if (s->rank != r->rank)
        return moedi_fail(MOED_E_ARGUMENT, "%s: its %s has rank %d, the destination %d",
                          place_of(r, index).text, what, s->rank, r->rank);
    for (int32_t a = 0; a < s->rank; a++)
        if (a != p->axis && s->shape[a] != r->shape[a])
            return moedi_fail(MOED_E_ARGUMENT, "%s: its %s has %lld along axis %d, the destination %lld",
                              place_of(r, index).text, what, (long long)s->shape[a], a, (long long)r->shape[a]);
    if (moedi_shape_elements(s->shape, s->rank) < 0)
        return moedi_fail(MOED_E_ARGUMENT, "%s: its %s has a negative or too large shape",
                          place_of(r, index).text, what);
    int64_t length = s->rank ? s->shape[p->axis] : 1;
    if (from < 0 || p->count > length || from > length - p->count)
        return moedi_fail(MOED_E_RANGE, "%s: takes [%lld, +%lld) of a %s that has %lld along axis %d",
                          place_of(r, index).text, (long long)from, (long long)p->count, what,
                          (long long)length, p->axis);
    return MOED_OK;
}

static moed_status check_floats(const moedi_plan_request *r, size_t index, moed_dtype dtype, const char *what)
{
    if (moedi_dtype_is_float(dtype)) return MOED_OK;
    return moedi_fail(MOED_E_ARGUMENT, "%s: arithmetic on the %s's type %s; it takes F64, F32, F16 or BF16",
                      place_of(r, index).text, what, moed_dtype_name(dtype));
}

static moed_status check_copy(const moedi_plan_request *r, size_t index, moedi_plan_piece *out)
{
    const moed_piece *p = &r->pieces[index];
    MOEDI_TRY(r->resolve(r->user, p->source, p->source_param, &out->source));
    MOEDI_TRY(check_source(r, index, &out->source, p->from, "source"));
    out->exact = p->scale == 1.0 && out->source.dtype == r->dtype;
    if (out->exact) return MOED_OK;
    MOEDI_TRY(check_floats(r, index, out->source.dtype, "source"));
    return check_floats(r, index, r->dtype, "destination");
}

static moed_status check_delta(const moedi_plan_request *r, size_t index, moedi_plan_piece *out)
{
    const moed_piece *p = &r->pieces[index];
    MOEDI_TRY(r->resolve(r->user, p->source, p->source_param, &out->source));
    MOEDI_TRY(check_source(r, index, &out->source, p->from, "source"));
    MOEDI_TRY(r->resolve(r->user, p->reference, p->reference_param, &out->reference));
    MOEDI_TRY(check_source(r, index, &out->reference, p->reference_from, "reference"));
    MOEDI_TRY(check_floats(r, index, out->source.dtype, "source"));
    MOEDI_TRY(check_floats(r, index, out->reference.dtype, "reference"));
    return check_floats(r, index, r->dtype, "destination");
}

static moed_status check_piece(const moedi_plan_request *r, size_t index, int64_t length, moedi_plan_piece *out)
{
    const moed_piece *p = &r->pieces[index];
    if (p->axis != r->pieces[0].axis)
        return moedi_fail(MOED_E_ARGUMENT, "%s: lies along axis %d, the first piece along %d",
                          place_of(r, index).text, p->axis, r->pieces[0].axis);
    if (p->at < 0 || p->count < 0 || p->count > length || p->at > length - p->count)
        return moedi_fail(MOED_E_RANGE, "%s: makes [%lld, +%lld) of a destination that has %lld along axis %d",
                          place_of(r, index).text, (long long)p->at, (long long)p->count, (long long)length,
                          p->axis);
    if (!isfinite(p->scale))
        return moedi_fail(MOED_E_ARGUMENT, "%s: scale %g is not finite", place_of(r, index).text, p->scale);
    out->piece = *p; /* without what the operation does not use: nothing is computed from it */
    if (p->op != MOED_PIECE_DELTA) out->piece.reference_from = 0;
    if (p->op == MOED_PIECE_DRAW || p->op == MOED_PIECE_NOISE) out->piece.from = 0;
    switch (p->op) {
    case MOED_PIECE_COPY: return check_copy(r, index, out);
    case MOED_PIECE_DELTA: return check_delta(r, index, out);
    case MOED_PIECE_NOISE:
        if (r->device)
            return moedi_fail(MOED_E_UNSUPPORTED, "%s: noise is made in host memory alone", place_of(r, index).text);
        return check_floats(r, index, r->dtype, "destination");
    case MOED_PIECE_DRAW: return check_floats(r, index, r->dtype, "destination");
    default: return moedi_fail(MOED_E_ARGUMENT, "%s: there is no operation %d", place_of(r, index).text, p->op);
    }
}

static int by_at(const void *a, const void *b)
{
    int64_t x = ((const moedi_plan_piece *)a)->piece.at, y = ((const moedi_plan_piece *)b)->piece.at;
    return (x > y) - (x < y);
}

static moed_status check_tiling(const moedi_plan *plan, const char *name)
{
    int64_t end = 0;
    const char *before = name ? name : "the tensor";
    for (size_t i = 0; i < plan->base_count; i++) {
        const moed_piece *p = &plan->bases[i].piece;
        if (p->at != end)
            return moedi_fail(MOED_E_ARGUMENT, "%s: pieces make index %lld %s", before,
                              (long long)(p->at < end ? p->at : end), p->at < end ? "twice" : "not at all");
        end = p->at + p->count;
    }
    if (end == plan->length) return MOED_OK;
    return moedi_fail(MOED_E_ARGUMENT, "%s: pieces make %lld indices of %lld", before, (long long)end,
                      (long long)plan->length);
}

/* Whether the numbers under a DELTA are its reference, as they are where a model is added to its base. */
static int lies_on_reference(const moedi_plan *plan, const moedi_plan_piece *delta)
{
    const moed_piece *d = &delta->piece;
    size_t low = 0, high = plan->base_count; /* the last base that does not begin after it */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (plan->bases[middle].piece.at <= d->at) low = middle;
        else high = middle;
    }
    const moedi_piece_source *s = &plan->bases[low].source, *r = &delta->reference;
    const moed_piece *b = &plan->bases[low].piece;
    return b->op == MOED_PIECE_COPY && b->scale == 1.0 && s->data == r->data && s->model == r->model && s->param == r->param &&
           s->dtype == r->dtype && (s->rank == 0 || s->shape[d->axis] == r->shape[d->axis]) &&
           b->from - b->at == d->reference_from - d->at && d->at + d->count <= b->at + b->count;
}

/* The shard as a stretch of every row of the whole tensor: (outer, whole) elements, of which count from start. */
static moed_status set_part(moedi_plan *plan, const moedi_plan_request *r)
{
    int64_t elements = moedi_shape_elements(r->shape, r->rank);
    const moed_shard *s = r->shard;
    plan->part.count = plan->part.whole = plan->elements = elements;
    if (!s) return MOED_OK;
    if (r->rank == 0 || s->axis < 0 || s->axis >= r->rank)
        return moedi_fail(MOED_E_ARGUMENT, "the shard lies along axis %d of a tensor of rank %d", s->axis,
                          r->rank);
    int64_t length = r->shape[s->axis], inner = 1, outer = 1;
    if (s->start < 0 || s->count < 0 || s->count > length || s->start > length - s->count)
        return moedi_fail(MOED_E_RANGE, "the shard is [%lld, +%lld) of %lld along axis %d", (long long)s->start,
                          (long long)s->count, (long long)length, s->axis);
    for (int32_t a = 0; a < r->rank; a++) {
        if (a < s->axis) outer *= r->shape[a];
        if (a > s->axis) inner *= r->shape[a];
    }
    plan->part.start = s->start * inner, plan->part.count = s->count * inner, plan->part.whole = length * inner;
    plan->elements = outer * plan->part.count;
    return MOED_OK;
}

moed_status moedi_plan_create(moedi_plan *out, const moedi_plan_request *r)
{
    moed_status status = MOED_OK;
    moedi_plan plan = {.context = r->context, .dtype = r->dtype, .measure = r->measure, .inner = 1, .length = 1};
    const char *name = r->name ? r->name : "the tensor";
    if (r->count == 0) return moedi_fail(MOED_E_ARGUMENT, "%s: there are no pieces", name);
    if (r->rank < 0 || r->rank > MOED_RANK_MAX || moedi_shape_elements(r->shape, r->rank) < 0)
        return moedi_fail(MOED_E_ARGUMENT, "%s: rank %d, or a negative or too large shape", name, r->rank);
    if (moedi_dtype_size(r->dtype) == 0)
        return moedi_fail(MOED_E_UNSUPPORTED, "%s: elements of type %s have no bytes of their own", name,
                          moed_dtype_name(r->dtype));
    int32_t axis = r->pieces[0].axis;
    if (axis < 0 || axis >= (r->rank ? r->rank : 1))
        return moedi_fail(MOED_E_ARGUMENT, "%s: lies along axis %d of a tensor of rank %d", place_of(r, 0).text,
                          axis, r->rank);
    if (r->rank) plan.length = r->shape[axis];
    for (int32_t a = axis + 1; a < r->rank; a++) plan.inner *= r->shape[a];
    MOEDI_TRY(set_part(&plan, r));
    MOEDI_GO(MOEDI_NEW(r->context, r->count, &plan.bases));
    MOEDI_GO(MOEDI_NEW(r->context, r->count, &plan.deltas));
    for (size_t i = 0; i < r->count; i++) {
        moedi_plan_piece checked = {0};
        MOEDI_GO(check_piece(r, i, plan.length, &checked));
        if (checked.piece.count == 0) continue;
        if (checked.piece.op == MOED_PIECE_DELTA || checked.piece.op == MOED_PIECE_NOISE)
            plan.deltas[plan.delta_count++] = checked;
        else plan.bases[plan.base_count++] = checked;
    }
    qsort(plan.bases, plan.base_count, sizeof *plan.bases, by_at);
    plan.bytes = plan.delta_count == 0;
    for (size_t i = 0; i < plan.base_count; i++) plan.bytes &= plan.bases[i].exact;
    MOEDI_GO(check_tiling(&plan, r->name));
    for (size_t i = 0; i < plan.delta_count; i++)
        plan.deltas[i].on_reference = plan.deltas[i].piece.op == MOED_PIECE_DELTA && lies_on_reference(&plan, &plan.deltas[i]);
    *out = plan;
    return MOED_OK;
out:
    moedi_plan_destroy(&plan);
    return status;
}

void moedi_plan_destroy(moedi_plan *plan)
{
    moedi_free(plan->context, plan->bases);
    moedi_free(plan->context, plan->deltas);
    plan->bases = plan->deltas = NULL;
}

/* ---- execution ---- */

/* Elements of a source that were read from disk: short stretches of one source come in ascending order, so that
 * one read serves many of them. */
typedef struct window {
    unsigned char *memory;         /* (BLOCK) elements */
    const moed_model *model;       /* whose parameter it holds: one base serves all DELTAs of a block */
    size_t param;
    int64_t first, count;
} window;

typedef struct scratch {
    double *value, *sum;           /* (BLOCK); sum: of all DELTAs, not set before the first that moves anything */
    int moving;                    /* 1: sum is set */
    window windows[2];             /* of DELTAs' sources; of COPYs' sources and references, which are the same base */
    const moedi_numbers *numbers;
    double moved[MOEDI_LANES], original[MOEDI_LANES];
} scratch;

enum { ELEMENT_MOST = 16 }; /* bytes of the widest type, with room */

static moed_status scratch_create(const moed_context *c, scratch *s)
{
    unsigned char *memory = NULL;
    size_t doubles = BLOCK * sizeof(double), raw = (size_t)BLOCK * ELEMENT_MOST;
    memset(s, 0, sizeof *s);
    MOEDI_TRY(moedi_alloc(c, 2 * doubles + 2 * raw, (void **)&memory));
    s->value = (double *)memory;
    s->sum = s->value + BLOCK;
    s->windows[0].memory = memory + 2 * doubles;
    s->windows[1].memory = s->windows[0].memory + raw;
    s->numbers = moedi_numbers_best();
    return MOED_OK;
}

/* The bytes of elements [first, first + count) of a source, count <= BLOCK. `last` is one past the last element
 * that this sweep over the source will ask for. */
static moed_status source_bytes(const moedi_piece_source *s, window *w, int64_t first, int64_t count,
                                int64_t last, const void **out)
{
    size_t size = moedi_dtype_size(s->dtype);
    if (s->data) {
        *out = (const unsigned char *)s->data + (size_t)first * size;
        return MOED_OK;
    }
    if (w->model != s->model || w->param != s->param || first < w->first || first + count > w->first + w->count) {
        int64_t ahead = last - first < BLOCK ? last - first : BLOCK;
        w->count = 0;
        MOEDI_TRY(moedi_model_read(s->model, s->param, first, ahead, w->memory));
        w->model = s->model, w->param = s->param;
        w->first = first, w->count = ahead;
    }
    *out = w->memory + (size_t)(first - w->first) * size;
    return MOED_OK;
}

/* One stretch of a block that a piece makes: [lo, hi) of the block, from element `source` (and `reference`) on.
 */
typedef struct stretch {
    int64_t lo, hi, source, reference, source_last, reference_last;
} stretch;

typedef moed_status (*stretch_fn)(const moedi_plan *plan, const moedi_plan_piece *p, const stretch *at,
                                  int64_t first, scratch *s, unsigned char *out);

/* Calls f for every stretch that piece p has in the block [first, first + count) of the whole tensor. */
static moed_status sweep(const moedi_plan *plan, const moedi_plan_piece *p, int64_t first, int64_t count,
                         scratch *s, unsigned char *out, stretch_fn f)
{
    const moed_piece *q = &p->piece;
    int64_t row = plan->length * plan->inner, width = q->count * plan->inner;
    int64_t row_last = (first + count - 1) / row;
    int64_t source_row = p->source.rank ? p->source.shape[q->axis] * plan->inner : 1;
    int64_t reference_row = p->reference.rank ? p->reference.shape[q->axis] * plan->inner : 1;
    for (int64_t r = first / row; r <= row_last; r++) {
        int64_t begin = r * row + q->at * plan->inner, end = begin + width;
        int64_t lo = begin > first ? begin : first, hi = end < first + count ? end : first + count;
        if (lo >= hi) continue;
        stretch at = {.lo = lo - first, .hi = hi - first};
        at.source = r * source_row + q->from * plan->inner + (lo - begin);
        at.reference = r * reference_row + q->reference_from * plan->inner + (lo - begin);
        at.source_last = row_last * source_row + q->from * plan->inner + width;
        at.reference_last = row_last * reference_row + q->reference_from * plan->inner + width;
        MOEDI_TRY(f(plan, p, &at, first, s, out));
    }
    return MOED_OK;
}

static moed_status run_copy(const moedi_plan *plan, const moedi_plan_piece *p, const stretch *at, int64_t first,
                            scratch *s, unsigned char *out)
{
    (void)first;
    int64_t count = at->hi - at->lo;
    size_t size = moedi_dtype_size(plan->dtype);
    const void *bytes = NULL;
    double *value = plan->bytes ? NULL : s->value + at->lo;
    if (p->piece.scale == 0.0) {
        memset(value, 0, (size_t)count * sizeof *value);
        memset(out + (size_t)at->lo * size, 0, (size_t)count * size);
        return MOED_OK;
    }
    if (p->exact && !plan->delta_count && !p->source.data && count >= DIRECT)
        return moedi_model_read(p->source.model, p->source.param, at->source, count, out + (size_t)at->lo * size);
    MOEDI_TRY(source_bytes(&p->source, &s->windows[1], at->source, count, at->source_last, &bytes));
    if (!p->exact || plan->delta_count) {
        moedi_to_double(value, bytes, p->source.dtype, count);
        if (p->piece.scale != 1.0)
            for (int64_t i = 0; i < count; i++) value[i] *= p->piece.scale;
    }
    if (p->exact) memcpy(out + (size_t)at->lo * size, bytes, (size_t)count * size);
    else moedi_from_double(out + (size_t)at->lo * size, plan->dtype, value, count);
    return MOED_OK;
}

static moed_status run_draw(const moedi_plan *plan, const moedi_plan_piece *p, const stretch *at, int64_t first,
                            scratch *s, unsigned char *out)
{
    int64_t count = at->hi - at->lo;
    double *value = s->value + at->lo;
    if (p->piece.scale != 0.0)
        moedi_random_normals(value, p->piece.seed, MOEDI_RANDOM_PIECE, 0, (uint64_t)(first + at->lo), count);
    for (int64_t i = 0; i < count; i++) value[i] = p->piece.scale == 0.0 ? 0.0 : p->piece.scale * value[i];
    moedi_from_double(out + (size_t)at->lo * moedi_dtype_size(plan->dtype), plan->dtype, value, count);
    return MOED_OK;
}

static moed_status run_delta(const moedi_plan *plan, const moedi_plan_piece *p, const stretch *at,
                             int64_t first, scratch *s, unsigned char *out)
{
    (void)first, (void)out;
    int64_t count = at->hi - at->lo;
    size_t x_size = moedi_dtype_size(p->source.dtype), y_size = moedi_dtype_size(p->reference.dtype);
    const void *moved = NULL, *still = NULL;
    double x[INNER], y[INNER];
    MOEDI_TRY(source_bytes(&p->source, &s->windows[0], at->source, count, at->source_last, &moved));
    MOEDI_TRY(source_bytes(&p->reference, &s->windows[1], at->reference, count, at->reference_last, &still));
    for (int64_t i = 0; i < count; i += INNER) {
        int64_t n = count - i < INNER ? count - i : INNER;
        const char *x_bytes = (const char *)moved + (size_t)i * x_size, *y_bytes = (const char *)still + (size_t)i * y_size;
        /* the same bytes differ by nothing: what was not trained costs a comparison */
        if (p->source.dtype == p->reference.dtype && !memcmp(x_bytes, y_bytes, (size_t)n * x_size)) continue;
        if (!s->moving) memset(s->sum, 0, BLOCK * sizeof *s->sum);
        s->moving = 1;
        s->numbers->to_double(x, x_bytes, p->source.dtype, n);
        if (!p->on_reference) s->numbers->to_double(y, y_bytes, p->reference.dtype, n);
        s->numbers->add_difference(s->sum + at->lo + i, p->piece.scale, x, p->on_reference ? s->value + at->lo + i : y, n);
        if (plan->measure) s->numbers->add_squares(s->moved, x, n);
    }
    return MOED_OK;
}

static moed_status run_noise(const moedi_plan *plan, const moedi_plan_piece *p, const stretch *at,
                             int64_t first, scratch *s, unsigned char *out)
{
    (void)plan, (void)out;
    double x[INNER];
    if (p->piece.scale == 0.0) return MOED_OK;
    if (!s->moving) memset(s->sum, 0, BLOCK * sizeof *s->sum);
    s->moving = 1;
    for (int64_t i = at->lo; i < at->hi; i += INNER) {
        const int64_t n = at->hi - i < INNER ? at->hi - i : INNER;
        moedi_random_normals(x, p->piece.seed, MOEDI_RANDOM_PIECE, 0, (uint64_t)(first + i), n);
        for (int64_t k = 0; k < n; k++) s->sum[i + k] += p->piece.scale * x[k];
    }
    return MOED_OK;
}

/* The bases of a block that lies in one row: those from *from to *to. Where there are thousands, few of them are in a block. */
static void bases_of_block(const moedi_plan *plan, int64_t first, int64_t count, size_t *from, size_t *to)
{
    const int64_t row = plan->length * plan->inner;
    *from = 0, *to = plan->base_count;
    if (plan->base_count < 8 || first / row != (first + count - 1) / row) return;
    const int64_t lowest = first % row / plan->inner, highest = (first % row + count - 1) / plan->inner;
    size_t low = 0, high = plan->base_count; /* the first that ends behind the lowest index */
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const moed_piece *p = &plan->bases[middle].piece;
        if (p->at + p->count <= lowest) low = middle + 1;
        else high = middle;
    }
    *from = low;
    while (low < plan->base_count && plan->bases[low].piece.at <= highest) low++;
    *to = low;
}

/* Elements [first, first + count) of the whole tensor, count <= BLOCK unless the plan moves nothing but bytes. */
static moed_status run_block(const moedi_plan *plan, int64_t first, int64_t count, scratch *s, unsigned char *out)
{
    size_t from, to;
    bases_of_block(plan, first, count, &from, &to);
    for (size_t i = from; i < to; i++) {
        const moedi_plan_piece *p = &plan->bases[i];
        MOEDI_TRY(sweep(plan, p, first, count, s, out, p->piece.op == MOED_PIECE_DRAW ? run_draw : run_copy));
    }
    if (!plan->delta_count) return MOED_OK;
    s->moving = 0;
    for (size_t i = 0; i < plan->delta_count; i++)
        MOEDI_TRY(sweep(plan, &plan->deltas[i], first, count, s, out,
                        plan->deltas[i].piece.op == MOED_PIECE_NOISE ? run_noise : run_delta));
    if (plan->measure) s->numbers->add_squares(s->original, s->value, count);
    if (s->moving) s->numbers->settle(out, plan->dtype, s->value, s->sum, count);
    return MOED_OK;
}

static double total(const double lanes[MOEDI_LANES])
{
    double sum = 0.0;
    for (int l = 0; l < MOEDI_LANES; l++) sum += lanes[l];
    return sum;
}

moed_status moedi_plan_make(const moedi_plan *plan, int64_t first, int64_t count, void *out, double squares[2])
{
    moed_status status = MOED_OK;
    size_t size = moedi_dtype_size(plan->dtype);
    int64_t at = first, end = first + count, most = plan->bytes ? TASK : BLOCK;
    scratch s;
    MOEDI_TRY(scratch_create(plan->context, &s));
    while (at < end) {
        /* a block lies in one row of the shard, so it is one stretch of the whole tensor */
        int64_t row = at / plan->part.count, within = at % plan->part.count, n = plan->part.count - within;
        if (n > end - at) n = end - at;
        if (n > most) n = most;
        MOEDI_GO(run_block(plan, row * plan->part.whole + plan->part.start + within, n, &s,
                           (unsigned char *)out + (size_t)(at - first) * size));
        at += n;
    }
    squares[0] = total(s.moved), squares[1] = total(s.original);
out:
    moedi_free(plan->context, s.value);
    return status;
}

/* ---- what will be read ---- */

static moed_status tell_ahead(const moedi_plan *plan, const moedi_plan_piece *p, const stretch *at, int64_t first, scratch *s,
                              unsigned char *out)
{
    (void)plan, (void)first, (void)s, (void)out;
    const int64_t count = at->hi - at->lo;
    if (count < DIRECT) return MOED_OK;
    if (!p->source.data) moedi_model_ahead(p->source.model, p->source.param, at->source, count);
    return MOED_OK;
}

void moedi_plan_ahead(const moedi_plan *plan, int64_t first, int64_t count)
{
    if (plan->part.count != plan->part.whole) return;
    for (size_t i = 0; i < plan->base_count; i++)
        if (plan->bases[i].piece.op == MOED_PIECE_COPY && plan->bases[i].piece.scale != 0.0)
            (void)sweep(plan, &plan->bases[i], first, count, NULL, NULL, tell_ahead);
    for (size_t i = 0; i < plan->delta_count; i++)
        if (plan->deltas[i].piece.op == MOED_PIECE_DELTA)
            (void)sweep(plan, &plan->deltas[i], first, count, NULL, NULL, tell_ahead);
}

/* ---- the whole ---- */

typedef struct fill {
    const moedi_plan *plan;
    unsigned char *out;
    int64_t first, count;
    double *squares;               /* (tasks, 2) */
} fill;

static moed_status fill_task(void *argument, int64_t index)
{
    const fill *f = argument;
    int64_t at = index * TASK, count = f->count - at < TASK ? f->count - at : TASK;
    return moedi_plan_make(f->plan, f->first + at, count, f->out + (size_t)at * moedi_dtype_size(f->plan->dtype),
                           f->squares + 2 * index);
}

moed_status moedi_plan_fill(moedi_plan *plan, int64_t first, int64_t count, void *out)
{
    moed_status status = MOED_OK;
    int64_t tasks = (count + TASK - 1) / TASK;
    fill f = {.plan = plan, .out = out, .first = first, .count = count};
    if (count == 0) return MOED_OK;
    MOEDI_TRY(MOEDI_NEW(plan->context, 2 * tasks, &f.squares));
    MOEDI_GO(moedi_parallel_try(plan->context, tasks, fill_task, &f));
    for (int64_t i = 0; i < tasks; i++) plan->moved += f.squares[2 * i], plan->original += f.squares[2 * i + 1];
out:
    moedi_free(plan->context, f.squares);
    return status;
}

/* ---- the public call ---- */

static moed_status check_tensor(const moed_context *c, const moed_tensor *t, const char *what)
{
    int64_t stride = 1;
    const char *has = moedi_context_lacks_memory(c, t->device);
    if (has)
        return moedi_fail(MOED_E_UNSUPPORTED, "%s is on device %d: the context's device %s has %s", what, t->device, c->device,
                          has);
    if (t->rank < 0 || t->rank > MOED_RANK_MAX || moedi_shape_elements(t->shape, t->rank) < 0)
        return moedi_fail(MOED_E_ARGUMENT, "%s: rank %d, or a negative or too large shape", what, t->rank);
    if (!t->data && moedi_shape_elements(t->shape, t->rank) > 0)
        return moedi_fail(MOED_E_ARGUMENT, "%s has no data", what);
    const size_t item = moedi_dtype_size(t->dtype);
    if (t->device != MOED_MEMORY_HOST && item && (uintptr_t)t->data % item != 0) /* a device that reads there is lost */
        return moedi_fail(MOED_E_ARGUMENT, "%s: its data is not aligned to the %zu bytes of its dtype", what, item);
    for (int32_t a = t->rank; a-- > 0;) {
        if (t->shape[a] > 1 && t->strides[a] != stride)
            return moedi_fail(MOED_E_ARGUMENT, "%s: stride %lld along axis %d, and contiguous would be %lld",
                              what, (long long)t->strides[a], a, (long long)stride);
        stride *= t->shape[a];
    }
    return MOED_OK;
}

typedef struct arrays {
    const moed_context *context;
    const moed_tensor *const *sources;
    const moed_tensor *dst;
} arrays;

static moed_status resolve_array(void *user, int32_t source, int64_t param, moedi_piece_source *out)
{
    const arrays *a = user;
    char what[64];
    snprintf(what, sizeof what, "tensor %lld of source %d", (long long)param, source);
    if (source < 0 || param < 0 || !a->sources || !a->sources[source])
        return moedi_fail(MOED_E_ARGUMENT, "%s was not given", what);
    const moed_tensor *t = &a->sources[source][param];
    MOEDI_TRY(check_tensor(a->context, t, what));
    const char *x = t->data, *y = a->dst->data;
    size_t x_size = moedi_dtype_size(t->dtype) * (size_t)moedi_shape_elements(t->shape, t->rank);
    size_t y_size = moedi_dtype_size(a->dst->dtype) * (size_t)moedi_shape_elements(a->dst->shape, a->dst->rank);
    if ((uintptr_t)x < (uintptr_t)y + y_size && (uintptr_t)y < (uintptr_t)x + x_size)
        return moedi_fail(MOED_E_ARGUMENT, "%s overlaps the destination", what);
    out->dtype = t->dtype, out->rank = t->rank, out->shape = t->shape, out->device = t->device;
    /* an empty tensor is never read, and needs no memory to say so */
    out->data = t->data ? t->data : (const void *)t;
    return MOED_OK;
}

moed_status moed_piece_apply(moed_context *c, const moed_piece *pieces, size_t count,
                             const moed_tensor *const *sources, moed_tensor *dst, const moed_shard *shard)
{
    moedi_clear_error();
    MOEDI_REQUIRE(c && dst && (pieces || count == 0), "context, pieces or dst is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(check_tensor(c, dst, "the destination"));
    moedi_plan plan = {0};
    int64_t shape[MOED_RANK_MAX] = {0};
    memcpy(shape, dst->shape, sizeof shape);
    if (shard && shard->axis >= 0 && shard->axis < dst->rank) {
        if (dst->shape[shard->axis] != shard->count)
            return moedi_fail(MOED_E_ARGUMENT, "the shard has %lld indices along axis %d, the destination %lld",
                              (long long)shard->count, shard->axis, (long long)dst->shape[shard->axis]);
        shape[shard->axis] = shard->whole;
    }
    arrays a = {.context = c, .sources = sources, .dst = dst};
    moedi_plan_request request = {.context = c,
                                  .pieces = pieces,
                                  .count = count,
                                  .dtype = dst->dtype,
                                  .rank = dst->rank,
                                  .device = dst->device,
                                  .shape = shape,
                                  .shard = shard,
                                  .resolve = resolve_array,
                                  .user = &a};
    MOEDI_TRY(moedi_plan_create(&plan, &request));
    const moed_status status = dst->device ? moedi_plan_enqueue(&plan, dst->data)
                                           : moedi_plan_fill(&plan, 0, plan.elements, dst->data);
    moedi_plan_destroy(&plan);
    return status;
}
