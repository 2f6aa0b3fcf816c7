/* surgery/upcycle.c - a dense model's feed-forward becomes every expert of a model. */
#include "moedisco/upcycle.h"

#include <string.h>

#include "core/options.h"
#include "surgery/assemble.h"
#include "surgery/clone.h"

typedef struct upcycling {
    const moed_model *dense;
    const moed_layout *layout;       /* of the result */
    moed_upcycle_options options;
    int64_t *from;                   /* (parameters): the dense model's; -1 = drawn */
    moedi_cloner cloner;
} upcycling;

static moed_status list_pieces(void *user, size_t param, moedi_piece_list *list)
{
    upcycling *u = user;
    const moed_param *p = &u->layout->params[param];
    if (p->role == MOED_ROLE_EXPERT) return moedi_cloner_pieces(&u->cloner, param, list);
    moed_piece piece = moedi_piece_copy(0, (size_t)u->from[param], moedi_piece_whole(p));
    if (u->from[param] < 0) {
        piece.op = MOED_PIECE_DRAW, piece.source_param = 0, piece.seed = moedi_cloner_seed(&u->cloner, p, 0);
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
static moed_status map_parameters(upcycling *u)
{
    const moed_layout *l = u->layout;
    moedi_layout_map(l, u->dense->layout, NULL, u->from);
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        if (moedi_param_is_router(p)) u->from[i] = -1;
        else if (u->from[i] < 0)
            return moedi_fail(MOED_E_INTERNAL, "tensor \"%s\" has no counterpart in the dense model", p->name);
    }
    return MOED_OK;
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
    MOEDI_GO(MOEDI_NEW(dense->context, layout->count, &u.from));
    MOEDI_GO(map_parameters(&u));
    MOEDI_GO(moedi_layout_take_dtypes(&layout, dense->layout, u.from));
    if (u.options.dtype) MOEDI_GO(moedi_layout_take_dtype(&layout, u.options.dtype));
    u.layout = layout;
    u.cloner = (moedi_cloner){.source = dense, .layout = layout, .from = u.from, .seed = u.options.seed, .noise = u.options.noise,
                              .redraw = u.options.redraw};
    MOEDI_GO(moedi_cloner_open(&u.cloner));
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
    if (u.cloner.source) moedi_cloner_close(&u.cloner);
    moedi_free(dense->context, u.from);
    moed_layout_destroy(layout);
    return status;
}
