/* surgery/upcycle.c - a dense model's feed-forward becomes every expert of a model. */
#include "moedisco/upcycle.h"

#include <math.h>
#include <string.h>

#include "core/options.h"
#include "surgery/assemble.h"
#include "util/hash.h"
#include "util/random.h"

/* Sums of squares of a dense tensor by intermediate unit. */
typedef struct unit_sums {
    int64_t param;                   /* of the dense model; -1 = none yet */
    double *squares;                 /* (width) */
} unit_sums;

typedef struct upcycling {
    const moed_model *dense;
    const moed_layout *layout;       /* of the result */
    moed_upcycle_options options;
    int64_t *from;                   /* (parameters): the dense model's; -1 = drawn */
    int64_t width;                   /* intermediate units of an expert */
    unit_sums sums[3];               /* of the latest: experts' gates and ups take turns */
    int latest;
    int64_t *order;                  /* (width) */
    uint8_t *drawn;                  /* (width): units of the expert at hand that are drawn anew */
    unsigned char *bytes;            /* of a stretch of a tensor, and the same as numbers */
    double *numbers;
} upcycling;

enum { STRETCH = 1 << 14 };

/* Along which axis of an expert's tensor its units lie. */
static int32_t unit_axis(const moed_param *p)
{
    return p->flags & MOED_PARAM_EXPERT_OUTPUT ? 1 : 0;
}

/* ---- sizes of what is replaced ---- */

static moed_status sum_units(upcycling *u, int64_t param, unit_sums *s)
{
    const moed_param *p = &u->dense->layout->params[param];
    const int64_t columns = p->shape[1], all = moedi_param_elements(p);
    const int32_t dtype = u->dense->tensors && u->dense->tensors[param].data ? u->dense->tensors[param].dtype : p->dtype;
    const int by_column = unit_axis(p);
    memset(s->squares, 0, (size_t)u->width * sizeof *s->squares);
    s->param = -1;
    for (int64_t at = 0; at < all; at += STRETCH) {
        const int64_t count = all - at < STRETCH ? all - at : STRETCH;
        MOEDI_TRY(moedi_model_read(u->dense, (size_t)param, at, count, u->bytes));
        moedi_to_double(u->numbers, u->bytes, dtype, count);
        for (int64_t i = 0; i < count; i++)
            s->squares[by_column ? (at + i) % columns : (at + i) / columns] += u->numbers[i] * u->numbers[i];
    }
    s->param = param;
    return MOED_OK;
}

static moed_status sums_of(upcycling *u, int64_t param, const double **out)
{
    for (int i = 0; i < 3; i++)
        if (u->sums[i].param == param) {
            *out = u->sums[i].squares;
            return MOED_OK;
        }
    unit_sums *s = &u->sums[u->latest++ % 3];
    *out = s->squares;
    return sum_units(u, param, s);
}

/* Root mean square of the numbers of some units (those drawn anew), or of all. */
static moed_status size_of(upcycling *u, size_t param, int of_drawn, double *out)
{
    const moed_param *p = &u->layout->params[param];
    const double *squares = NULL;
    double sum = 0;
    int64_t units = 0;
    MOEDI_TRY(sums_of(u, u->from[param], &squares));
    for (int64_t i = 0; i < u->width; i++)
        if (!of_drawn || u->drawn[i]) sum += squares[i], units++;
    *out = units ? sqrt(sum / (double)(units * (moedi_param_elements(p) / u->width))) : 0;
    if (isfinite(*out)) return MOED_OK;
    return moedi_fail_parameter(MOED_E_NUMERIC, p->name, "tensor \"%s\" of the dense model holds a NaN or an infinite number",
                                u->dense->layout->params[u->from[param]].name);
}

/* ---- pieces ---- */

static uint64_t seed_of(const upcycling *u, const moed_param *p, uint64_t use)
{
    return moedi_random(u->options.seed, MOEDI_RANDOM_UPCYCLE, moedi_hash_bytes(p->name, strlen(p->name)).low, use);
}

/* Which units of an expert are drawn anew: the same in its three tensors. */
static void choose_units(upcycling *u, const moed_param *p)
{
    const int64_t count = (int64_t)floor(u->options.redraw * (double)u->width + 0.5);
    const uint64_t expert = (uint64_t)p->layer << 32 | (uint32_t)p->expert;
    memset(u->drawn, 0, (size_t)u->width);
    if (count == 0) return;
    moedi_random_permutation(u->options.seed, MOEDI_RANDOM_UPCYCLE, expert, u->order, u->width);
    for (int64_t i = 0; i < count; i++) u->drawn[u->order[i]] = 1;
}

static moed_status expert_pieces(upcycling *u, size_t param, moedi_piece_list *list)
{
    const moed_param *p = &u->layout->params[param];
    moed_piece piece = moedi_piece_copy(0, (size_t)u->from[param], 0);
    double drawn = 0, whole = 0;
    choose_units(u, p);
    piece.axis = unit_axis(p);
    if (u->options.redraw > 0) MOEDI_TRY(size_of(u, param, 1, &drawn));
    for (int64_t first = 0, next; first < u->width; first = next) {
        for (next = first + 1; next < u->width && u->drawn[next] == u->drawn[first];) next++;
        piece.op = u->drawn[first] ? MOED_PIECE_DRAW : MOED_PIECE_COPY;
        piece.scale = u->drawn[first] ? drawn : 1;
        piece.seed = seed_of(u, p, 0);
        piece.from = piece.at = first, piece.count = next - first;
        moedi_piece_add(list, &piece);
    }
    if (u->options.noise <= 0) return MOED_OK;
    MOEDI_TRY(size_of(u, param, 0, &whole));
    const moed_piece noise = {.op = MOED_PIECE_NOISE, .axis = piece.axis, .count = u->width, .scale = u->options.noise * whole,
                              .seed = seed_of(u, p, 1)};
    moedi_piece_add(list, &noise);
    return MOED_OK;
}

static moed_status list_pieces(void *user, size_t param, moedi_piece_list *list)
{
    upcycling *u = user;
    const moed_param *p = &u->layout->params[param];
    if (p->role == MOED_ROLE_EXPERT) return expert_pieces(u, param, list);
    moed_piece piece = moedi_piece_copy(0, (size_t)u->from[param], moedi_piece_whole(p));
    if (u->from[param] < 0) {
        piece.op = MOED_PIECE_DRAW, piece.source_param = 0, piece.seed = seed_of(u, p, 0);
        piece.scale = p->role == MOED_ROLE_ROUTER ? u->options.router_std : 0;
    }
    moedi_piece_add(list, &piece);
    return MOED_OK;
}

static moed_status resolve(void *user, int32_t source, int64_t param, moedi_piece_source *out)
{
    (void)source;
    return moedi_piece_source_model(((const upcycling *)user)->dense, param, out);
}

/* ---- the call ---- */

/* Routers are drawn anew even where the dense model, one of one expert, has one. */
static void map_slot(upcycling *u, moedi_slot slot, int32_t layer, int32_t experts)
{
    for (int32_t e = experts ? 0 : -1; e < experts; e++) {
        const int64_t to = moedi_layout_slot(u->layout, slot, layer, e);
        if (to < 0) continue;
        const int32_t role = u->layout->params[to].role;
        if (role == MOED_ROLE_ROUTER || role == MOED_ROLE_ROUTER_BIAS) continue;
        u->from[to] = moedi_layout_slot(u->dense->layout, slot, layer, e < 0 ? -1 : 0);
    }
}

static moed_status map_parameters(upcycling *u)
{
    const moed_layout *l = u->layout;
    for (size_t i = 0; i < l->count; i++) u->from[i] = -1;
    for (int slot = 0; slot < MOEDI_SLOT_COUNT; slot++) {
        const int of_expert = slot >= MOEDI_SLOT_EXPERT_GATE && slot <= MOEDI_SLOT_EXPERT_DOWN;
        const int of_layer = slot >= MOEDI_SLOT_ATTENTION_NORM && slot < MOEDI_SLOT_FINAL_NORM;
        for (int32_t layer = of_layer ? 0 : -1; layer < (of_layer ? l->layers : 0); layer++)
            map_slot(u, (moedi_slot)slot, layer, of_expert ? (int32_t)l->config.experts : 0);
    }
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        if (u->from[i] < 0 && p->role != MOED_ROLE_ROUTER && p->role != MOED_ROLE_ROUTER_BIAS)
            return moedi_fail(MOED_E_INTERNAL, "tensor \"%s\" has no counterpart in the dense model", p->name);
    }
    return MOED_OK;
}

static moed_status take_dtypes(const upcycling *u, moed_layout **l)
{
    moed_layout *typed = NULL;
    moed_dtype *dtypes = NULL;
    MOEDI_TRY(MOEDI_NEW((*l)->context, (*l)->count, &dtypes));
    for (size_t i = 0; i < (*l)->count; i++)
        dtypes[i] = u->from[i] < 0 ? u->dense->layout->params[0].dtype : u->dense->layout->params[u->from[i]].dtype;
    const moed_status status = moedi_layout_with_dtypes(&typed, *l, dtypes);
    moedi_free((*l)->context, dtypes);
    if (status != MOED_OK) return status;
    moed_layout_destroy(*l);
    *l = typed;
    return u->options.dtype ? moedi_layout_take_dtype(l, u->options.dtype) : MOED_OK;
}

static moed_status make_room(upcycling *u)
{
    const moed_context *c = u->dense->context;
    u->width = u->dense->layout->config.expert_width;
    MOEDI_TRY(MOEDI_NEW(c, u->layout->count, &u->from));
    for (int i = 0; i < 3; i++) {
        u->sums[i].param = -1;
        MOEDI_TRY(MOEDI_NEW(c, u->width, &u->sums[i].squares));
    }
    MOEDI_TRY(MOEDI_NEW(c, u->width, &u->order));
    MOEDI_TRY(MOEDI_NEW(c, u->width, &u->drawn));
    MOEDI_TRY(moedi_alloc_array(c, STRETCH, sizeof(double), (void **)&u->bytes));
    return MOEDI_NEW(c, STRETCH, &u->numbers);
}

static void drop(upcycling *u)
{
    const moed_context *c = u->dense->context;
    for (int i = 0; i < 3; i++) moedi_free(c, u->sums[i].squares);
    moedi_free(c, u->from);
    moedi_free(c, u->order);
    moedi_free(c, u->drawn);
    moedi_free(c, u->bytes);
    moedi_free(c, u->numbers);
}

moed_status moed_model_upcycle(moed_model **out, const moed_model *dense, const char *dir, const moed_upcycle_options *options,
                               const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(dense, "the dense model is NULL");
    MOEDI_REQUIRE(out || dir, "out is NULL and no directory is given");
    MOEDI_REQUIRE(!dir || dir[0], "the directory's name is empty");
    MOEDI_TRY(moedi_context_check(dense->context));
    upcycling u = {.dense = dense};
    moed_layout *layout = NULL;
    moed_status status;
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_UPCYCLE_OPTIONS, options, &u.options));
    if (u.options.top_k > u.options.experts)
        return moedi_fail_parameter(MOED_E_RANGE, "top_k", "top_k %d of %d experts", u.options.top_k, u.options.experts);
    MOEDI_GO(moedi_layout_upcycled(&layout, dense->layout, u.options.experts, u.options.top_k));
    if (u.options.router_std < 0) u.options.router_std = layout->config.init_std;
    u.layout = layout;
    MOEDI_GO(make_room(&u));
    MOEDI_GO(map_parameters(&u));
    MOEDI_GO(take_dtypes(&u, &layout));
    u.layout = layout;
    moedi_surgery surgery = {.context = dense->context,
                             .layout = layout,
                             .device = dense->device,
                             .pieces = list_pieces,
                             .resolve = resolve,
                             .user = &u,
                             .origin = dense->origin,
                             .shard_bytes = u.options.shard_bytes};
    MOEDI_GO(moedi_assemble(out, &surgery, dir, cancel));
out:
    drop(&u);
    moed_layout_destroy(layout);
    return status;
}
