/* surgery/enqueue.c - executes checked pieces on a device: along the pieces' axis the tensor is cut where any piece begins or
 * ends, and each stretch is one operation of the backend, over what a shard has of it. */
#include <stdlib.h>

#include "surgery/piece.h"
#include "util/normal.h"
#include "util/random.h"

/* How the elements at hand lie in the whole tensor, as (blocks, rows, columns). Rows are those of the pieces' axis, (length,
 * inner) elements each, or stretches of its indices where the shard cuts these. */
typedef struct window {
    int64_t blocks, rows;          /* rows in a block; per_index: for every index of a stretch */
    int64_t block, row;            /* strides of what is at hand */
    int64_t first, end;            /* columns at hand, of a row of the whole */
    int per_index;
} window;

static window window_of(const moedi_plan *p)
{
    const int64_t row = p->length * p->inner;
    window w = {.blocks = p->elements / p->part.count};
    if (p->part.whole < row) { /* the shard lies within one index: its rows are (blocks, length, inner / whole) */
        const int64_t each = p->inner / p->part.whole;
        w.per_index = 1;
        w.blocks = p->elements / (p->length * each * p->part.count);
        w.rows = each, w.row = p->part.count, w.block = p->length * each * p->part.count;
        w.first = p->part.start, w.end = p->part.start + p->part.count;
    } else if (p->part.whole == row) { /* along the pieces' axis, or whole */
        w.rows = w.blocks, w.blocks = 1, w.row = p->part.count;
        w.first = p->part.start, w.end = p->part.start + p->part.count;
    } else { /* whole rows */
        w.rows = p->part.count / row, w.row = row, w.block = p->part.count;
        w.end = row;
    }
    return w;
}

/* A stretch of indices along the axis, as it is made. */
typedef struct stretch {
    const moedi_plan *plan;
    window window;
    int64_t first;                 /* element of a row of the whole that is made first; per_index: of the whole index */
    moed_op_term *terms;
} stretch;

/* Where an array that has `indices` along the axis holds what a piece takes from index `from` on for index `at`. */
static void place(const stretch *s, int64_t indices, int64_t from, int64_t at, int64_t *first, int64_t *block, int64_t *row)
{
    const moedi_plan *p = s->plan;
    const int64_t wide = indices * p->inner, whole_row = p->length * p->inner;
    *first = (from - at) * p->inner + s->first;
    if (s->window.per_index) {
        *first += p->part.start;
        *row = p->part.whole, *block = wide;
    } else {
        *row = wide, *block = p->part.whole / whole_row * wide;
        if (p->part.whole > whole_row) *first += p->part.start / whole_row * wide;
    }
}

static const void *element(const moedi_piece_source *s, int64_t index)
{
    return (const char *)s->data + index * (int64_t)moedi_dtype_size(s->dtype);
}

static int64_t indices_of(const moedi_piece_source *s, const moed_piece *p)
{
    return s->rank ? s->shape[p->axis] : 1;
}

static moed_op_term term_of(const stretch *s, const moedi_plan_piece *p)
{
    const moed_piece *q = &p->piece;
    moed_op_term t = {.op = q->op, .scale = q->scale};
    int64_t first;
    if (q->op == MOED_PIECE_DRAW) {
        place(s, s->plan->length, q->at, q->at, &first, &t.block, &t.row);
        t.key = moedi_philox_key(q->seed, MOEDI_RANDOM_PIECE);
        t.index = (uint64_t)first;
        return t;
    }
    place(s, indices_of(&p->source, q), q->from, q->at, &first, &t.block, &t.row);
    t.dtype = p->source.dtype;
    t.source = element(&p->source, first);
    if (q->op == MOED_PIECE_COPY) return t;
    place(s, indices_of(&p->reference, q), q->reference_from, q->at, &first, &t.reference_block, &t.reference_row);
    t.reference_dtype = p->reference.dtype;
    t.reference = element(&p->reference, first);
    return t;
}

/* Whether the rows of all arrays follow each other without gaps. */
static int rows_adjoin(const moed_op_blend *a)
{
    int adjoin = a->row == a->width;
    for (int64_t i = 0; i < a->count && adjoin; i++) {
        const moed_op_term *t = &a->terms[i];
        adjoin = t->row == a->width && (t->op != MOED_PIECE_DELTA || t->reference_row == a->width);
    }
    return adjoin;
}

/* The plainest shape of the same work: rows that adjoin are one, and strides that lead nowhere are those of one row and block. */
static void simplify(moed_op_blend *a, moed_op_term *terms)
{
    const int one_row = a->rows == 1 || rows_adjoin(a);
    if (one_row) a->width *= a->rows, a->rows = 1, a->row = a->width;
    if (a->blocks == 1) a->block = 0;
    for (int64_t i = 0; i < a->count; i++) {
        if (one_row) terms[i].row = terms[i].reference_row = a->width;
        if (a->blocks == 1) terms[i].block = terms[i].reference_block = 0;
    }
}

/* One stretch between two cuts, made of one base and the deltas that cover it. */
static moed_status make_stretch(stretch *s, const moedi_engine *e, const moedi_plan_piece *base, int64_t from, int64_t to,
                                void *out)
{
    const moedi_plan *p = s->plan;
    const window *w = &s->window;
    moed_op_blend a = {.terms = s->terms, .dtype = p->dtype, .blocks = w->blocks, .rows = w->rows, .block = w->block,
                       .row = w->row};
    int64_t at, end = to * p->inner;
    s->first = from * p->inner;
    if (w->per_index) {
        a.rows *= to - from, a.width = p->part.count;
        at = from * w->rows * w->row;
    } else {
        if (s->first < w->first) s->first = w->first;
        if (end > w->end) end = w->end;
        if (s->first >= end) return MOED_OK;
        a.width = end - s->first;
        at = s->first - w->first;
    }
    s->terms[a.count++] = term_of(s, base);
    for (size_t i = 0; i < p->delta_count; i++) {
        const moed_piece *d = &p->deltas[i].piece;
        if (d->at <= from && to <= d->at + d->count) s->terms[a.count++] = term_of(s, &p->deltas[i]);
    }
    a.out = (char *)out + at * (int64_t)moedi_dtype_size(p->dtype);
    simplify(&a, s->terms);
    return e->table->blend(e->self, &a);
}

static int by_number(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static moed_status make_all(stretch *s, const moedi_engine *e, int64_t *cuts, void *out)
{
    const moedi_plan *p = s->plan;
    size_t count = 0, base = 0;
    for (size_t i = 0; i < p->base_count; i++) cuts[count++] = p->bases[i].piece.at;
    for (size_t i = 0; i < p->delta_count; i++) {
        cuts[count++] = p->deltas[i].piece.at;
        cuts[count++] = p->deltas[i].piece.at + p->deltas[i].piece.count;
    }
    cuts[count++] = p->length;
    qsort(cuts, count, sizeof *cuts, by_number);
    for (size_t i = 0; i + 1 < count; i++) {
        if (cuts[i] == cuts[i + 1]) continue;
        while (p->bases[base].piece.at + p->bases[base].piece.count <= cuts[i]) base++;
        MOEDI_TRY(make_stretch(s, e, &p->bases[base], cuts[i], cuts[i + 1], out));
    }
    return moedi_engine_settle(e);
}

moed_status moedi_plan_enqueue(const moedi_plan *p, void *out)
{
    const moed_context *c = p->context;
    moed_status status = MOED_OK;
    moedi_engine *e;
    int64_t *cuts = NULL;
    stretch s = {.plan = p};
    if (p->elements == 0) return MOED_OK;
    s.window = window_of(p);
    MOEDI_GO(MOEDI_NEW(c, p->base_count + 2 * p->delta_count + 1, &cuts));
    MOEDI_GO(MOEDI_NEW(c, p->delta_count + 1, &s.terms));
    MOEDI_GO(moedi_context_engine_borrow(c, &e));
    status = MOED_BACKEND_HAS(e->table, blend)
                 ? make_all(&s, e, cuts, out)
                 : moedi_fail(MOED_E_UNSUPPORTED, "the backend %s makes no tensors of others in its memory", c->backend->name);
    moedi_context_engine_return(c);
out:
    moedi_free(c, cuts);
    moedi_free(c, s.terms);
    return status;
}
