/* surgery/expand.c - more experts, or fewer, in every layer that has them. */
#include "moedisco/expand.h"

#include <stdlib.h>
#include <string.h>

#include "core/options.h"
#include "surgery/assemble.h"
#include "surgery/clone.h"

struct moed_expansion {
    moed_model *model;       /* that it is of */
    moed_layout *layout;     /* of the result */
    moed_expansion_options options;
    int32_t kept;            /* experts that stay: the first of the result */
    int32_t *origin;         /* (layers, experts of the result): whose numbers each expert has, or is a clone of; -1 = drawn */
    int64_t *from;           /* (parameters of the result): of the model; -1 = drawn */
    moedi_cloner cloner;
};

/* ---- which expert comes from which ---- */

static int32_t origin_of(const moed_expansion *x, int32_t layer, int32_t expert)
{
    return x->origin[(int64_t)layer * x->options.experts + expert];
}

typedef struct ranked {
    double usage;
    int32_t expert;
} ranked;

static int by_usage(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->usage != y->usage) return x->usage > y->usage ? -1 : 1;
    return (x->expert > y->expert) - (x->expert < y->expert);
}

static int by_number(const void *a, const void *b)
{
    const int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* order (experts of the model): the most used first. */
static void rank(ranked *order, int32_t experts, const double *usage)
{
    for (int32_t e = 0; e < experts; e++) order[e] = (ranked){usage ? usage[e] : 0, e};
    qsort(order, (size_t)experts, sizeof *order, by_usage);
}

static moed_status choose_origins(moed_expansion *x, const double *usage)
{
    const moed_layout *l = x->model->layout;
    const int32_t had = (int32_t)l->config.experts, has = x->options.experts;
    ranked *order = NULL;
    MOEDI_TRY(MOEDI_NEW(l->context, (int64_t)l->layers * has, &x->origin));
    MOEDI_TRY(MOEDI_NEW(l->context, had, &order));
    for (int32_t layer = 0; layer < l->layers; layer++) {
        int32_t *const origin = x->origin + (int64_t)layer * has;
        rank(order, had, usage ? usage + (int64_t)layer * had : NULL);
        for (int32_t e = 0; e < x->kept; e++) origin[e] = has < had ? order[e].expert : e;
        qsort(origin, (size_t)x->kept, sizeof *origin, by_number);
        for (int32_t e = x->kept; e < has; e++)
            origin[e] = x->options.method == MOED_EXPAND_CLONE ? order[(e - x->kept) % had].expert : -1;
    }
    moedi_free(l->context, order);
    return MOED_OK;
}

static moed_status map_parameters(moed_expansion *x)
{
    const moed_layout *l = x->layout;
    moedi_layout_map(l, x->model->layout, x->origin, x->from);
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        if (x->from[i] < 0 && !(p->role == MOED_ROLE_EXPERT && origin_of(x, p->layer, p->expert) < 0))
            return moedi_fail(MOED_E_INTERNAL, "tensor \"%s\" has no counterpart", p->name);
    }
    return MOED_OK;
}

/* ---- pieces ---- */

static void draw(const moed_expansion *x, const moed_param *p, int64_t at, int64_t count, double std, moedi_piece_list *list)
{
    const moed_piece piece = {.op = MOED_PIECE_DRAW, .at = at, .count = count, .scale = std,
                              .seed = moedi_cloner_seed(&x->cloner, p, 0)};
    moedi_piece_add(list, &piece);
}

static void copy_row(const moed_expansion *x, size_t param, int64_t row, int32_t origin, moedi_piece_list *list)
{
    moed_piece piece = moedi_piece_copy(0, (size_t)x->from[param], 1);
    piece.from = origin, piece.at = row;
    moedi_piece_add(list, &piece);
}

/* A row for each expert: of the router, or of what it keeps beside it. */
static void row_pieces(const moed_expansion *x, size_t param, int32_t kind, moedi_piece_list *list)
{
    const moed_expansion_options *o = &x->options;
    const moed_param *p = &x->layout->params[param];
    const int32_t bias = p->role == MOED_ROLE_ROUTER_BIAS, fixed = (p->flags & MOED_PARAM_FIXED) != 0;
    const int clones = o->method == MOED_EXPAND_CLONE && kind == MOED_KIND_WEIGHTS && !fixed, fresh = o->experts - x->kept;
    const int keep = bias ? o->keep_bias : 1, end = clones ? o->experts : keep ? x->kept : 0;
    for (int32_t e = 0; e < end; e++) copy_row(x, param, e, origin_of(x, p->layer, e), list);
    if (end < o->experts) draw(x, p, end, o->experts - end, fixed || kind != MOED_KIND_WEIGHTS ? 0 : o->std, list);
    if (!clones || fresh <= 0 || !(o->noise > 0)) return;
    const moed_piece noise = {.op = MOED_PIECE_NOISE, .at = x->kept, .count = fresh, .scale = o->noise * o->std,
                              .seed = moedi_cloner_seed(&x->cloner, p, 1)};
    moedi_piece_add(list, &noise);
}

static moed_status list_pieces(moed_expansion *x, size_t param, int32_t kind, moedi_piece_list *list)
{
    const moed_param *p = &x->layout->params[param];
    const int weights = kind == MOED_KIND_WEIGHTS, fresh = p->role == MOED_ROLE_EXPERT && p->expert >= x->kept;
    if (p->expert_axis == 0 && p->role != MOED_ROLE_EXPERT) row_pieces(x, param, kind, list);
    else if (fresh && weights && x->from[param] >= 0) return moedi_cloner_pieces(&x->cloner, param, list);
    else if (fresh) draw(x, p, 0, moedi_piece_whole(p), weights ? x->options.std : 0, list);
    else {
        const moed_piece piece = moedi_piece_copy(0, (size_t)x->from[param], moedi_piece_whole(p));
        moedi_piece_add(list, &piece);
    }
    return MOED_OK;
}

static moed_status list_weights(void *user, size_t param, moedi_piece_list *list)
{
    return list_pieces(user, param, MOED_KIND_WEIGHTS, list);
}

static moed_status resolve(void *user, int32_t source, int64_t param, moedi_piece_source *out)
{
    (void)source;
    return moedi_piece_source_model(((const moed_expansion *)user)->model, param, out);
}

/* ---- the handle ---- */

static moed_status check(const moed_model *from, const double *usage, const moed_expansion_options *o)
{
    const moedi_config *c = &from->layout->config;
    if (!from->layout->family || c->routed_layers == 0)
        return moedi_fail(MOED_E_UNSUPPORTED, "%s has no layer with experts that could get more or fewer",
                          from->layout->family ? "the model"
                                               : "a layout made by hand says nothing of how its names are counted: it");
    if (!from->layout->family->experts_field)
        return moedi_fail(MOED_E_UNSUPPORTED, "a %s model is dense: upcycling makes experts of it", from->layout->family->name);
    if (o->experts < c->experts && !usage)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "usage",
                                    "%d of %lld experts are to stay, and without usage nothing says which", (int)o->experts,
                                    (long long)c->experts);
    if (o->top_k > o->experts)
        return moedi_fail_parameter(MOED_E_RANGE, "top_k", "top_k %d of %d experts", (int)o->top_k, (int)o->experts);
    if (o->experts > c->experts && o->method == MOED_EXPAND_CLONE && o->redraw == 0 && o->noise == 0)
        moedi_log(from->context, MOED_LOG_WARNING,
                  "clones without noise or redrawn units: they stay alike, for they get the same gradients");
    for (int64_t i = 0; usage && i < c->layers * c->experts; i++)
        if (!(usage[i] >= 0))
            return moedi_fail_parameter(MOED_E_ARGUMENT, "usage",
                                        "usage of expert %lld in layer %lld is %g, not a number from 0 up",
                                        (long long)(i % c->experts), (long long)(i / c->experts), usage[i]);
    return MOED_OK;
}

static moed_status build_up(moed_expansion *x, const double *usage)
{
    const moed_layout *l = x->model->layout;
    moed_expansion_options *o = &x->options;
    x->kept = o->experts < l->config.experts ? o->experts : (int32_t)l->config.experts;
    if (o->std < 0) o->std = l->config.init_std;
    MOEDI_TRY(choose_origins(x, usage));
    MOEDI_TRY(moedi_layout_with_experts(&x->layout, l, o->experts, o->top_k, NULL));
    MOEDI_TRY(MOEDI_NEW(l->context, x->layout->count, &x->from));
    MOEDI_TRY(map_parameters(x));
    MOEDI_TRY(moedi_layout_take_dtypes(&x->layout, l, x->from));
    if (o->dtype) MOEDI_TRY(moedi_layout_take_dtype(&x->layout, o->dtype));
    x->cloner = (moedi_cloner){.source = x->model, .layout = x->layout, .from = x->from, .seed = o->seed, .noise = o->noise,
                               .redraw = o->redraw};
    return moedi_cloner_open(&x->cloner);
}

moed_status moed_expansion_create(moed_expansion **out, const moed_model *from, const double *usage,
                                  const moed_expansion_options *options)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(from, "from is NULL");
    MOEDI_TRY(moedi_context_check(from->context));
    moed_expansion_options o;
    moed_expansion *x = NULL;
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_EXPANSION_OPTIONS, options, &o));
    MOEDI_TRY(check(from, usage, &o));
    MOEDI_TRY(MOEDI_NEW(from->context, 1, &x));
    x->model = moedi_model_retain((moed_model *)(uintptr_t)from);
    x->options = o;
    const moed_status status = build_up(x, usage);
    if (status == MOED_OK) *out = x;
    else moed_expansion_destroy(x);
    return status;
}

void moed_expansion_destroy(moed_expansion *x)
{
    if (!x) return;
    moedi_error kept;
    moedi_error_save(&kept);
    moed_model *const model = x->model;
    const moed_context *c = model->context;
    if (x->cloner.source) moedi_cloner_close(&x->cloner);
    moedi_free(c, x->origin);
    moedi_free(c, x->from);
    moed_layout_destroy(x->layout);
    moedi_free(c, x);
    moed_model_destroy(model);
    moedi_error_restore(&kept);
}

const moed_layout *moed_expansion_layout(const moed_expansion *x)
{
    return x ? x->layout : NULL;
}

moed_status moed_expansion_pieces(moed_expansion *x, size_t param, int32_t kind, moed_piece *pieces, size_t capacity,
                                  size_t *count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_REQUIRE(count, "count is NULL");
    MOEDI_TRY(moedi_context_check(x->model->context));
    if (param >= x->layout->count)
        return moedi_fail_parameter(MOED_E_RANGE, "param", "parameter %zu of %zu was asked for", param, x->layout->count);
    if (kind != MOED_KIND_WEIGHTS && kind != MOED_KIND_MOMENTS)
        return moedi_fail_parameter(MOED_E_RANGE, "kind", "kind is %d, neither weights nor moments", (int)kind);
    moedi_piece_list list = {.pieces = pieces, .capacity = pieces ? capacity : 0};
    MOEDI_TRY(list_pieces(x, param, kind, &list));
    *count = list.count;
    return MOED_OK;
}

moed_status moed_expansion_build(moed_model **out, moed_expansion *x, const char *dir, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(x, "x is NULL");
    MOEDI_REQUIRE(out || dir, "out is NULL and no directory is given");
    MOEDI_REQUIRE(!dir || dir[0], "the directory's name is empty");
    MOEDI_TRY(moedi_context_check(x->model->context));
    moedi_surgery surgery = {.context = x->model->context,
                             .layout = x->layout,
                             .device = x->model->device,
                             .pieces = list_weights,
                             .resolve = resolve,
                             .user = x,
                             .origin = x->model->origin,
                             .shard_bytes = x->options.shard_bytes};
    return moedi_assemble(out, &surgery, dir, cancel);
}
