/* model/layout.h - what the parameters of a model are, private side. */
#ifndef MOEDI_LAYOUT_H
#define MOEDI_LAYOUT_H

#include "family.h"
#include "moedisco/model.h"

struct moed_layout {
    atomic_int references;
    moed_context *context;
    moed_param *params;             /* (count), names point into `names` */
    char *names;                    /* all names, zero-terminated, one after another */
    size_t count;
    int32_t layers;                 /* 1 + largest layer */
    int32_t *experts;               /* (layers): routed experts of each, 0 = none */
    int32_t most_experts;           /* of any layer */
    const moedi_family *family;     /* NULL by hand */
    moedi_config config;            /* of the family */
    int32_t stacked;                /* on disk experts lie in stacks (storage.h) */
    int32_t window;                 /* so many experts of each layer have parameters, and all take turns in these; 0 = all have */
    char *config_text;              /* config.json, "" by hand */
    size_t *by_name;                /* parameter numbers in strcmp order of names */
    int64_t elements;               /* numbers in all parameters */
};

enum { MOEDI_NAME_MAX = 1024 };     /* bytes of a parameter's name */

moed_layout *moedi_layout_retain(const moed_layout *l);
/* index of a parameter, or -1 */
int64_t moedi_layout_find(const moed_layout *l, const char *name);
/* Same parameters (name, role, layer, shape; dtype too unless any_dtype); MOED_E_MISMATCH naming the first that differs. */
moed_status moedi_layout_equal(const moed_layout *a, const moed_layout *b, int any_dtype);
/* 32 hex digits over names, roles, shapes and dtypes. */
void moedi_layout_fingerprint(const moed_layout *l, char out[33]);
/* The family layout of the same model with `experts` experts in every layer that has some, top_k of which see a token (0: as
 * before; cut to experts). Its config.json says as "moedisco" what `provenance` (object) does, with NULL nothing. Family
 * layouts only; MOED_E_UNSUPPORTED for more than one expert of a dense family. */
moed_status moedi_layout_with_experts(moed_layout **out, const moed_layout *l, int32_t experts, int32_t top_k,
                                      json_t *provenance);
/* The layout of one layer of a family's model, with experts or (dense) without, and a vocabulary of one token. */
moed_status moedi_layout_one_layer(moed_layout **out, const moed_layout *l, int dense);
/* Leaves the parameters of experts out, but for the first `window` of each layer: see moed_layout.window. Not to be compared or
 * saved. */
moed_status moedi_layout_narrow(moed_layout *l, int32_t window);
/* Experts of a layer whose parameters it has. */
static inline int64_t moedi_layout_window(const moed_layout *l)
{
    return l->window ? l->window : l->config.experts;
}
/* The layout of the dense sibling of a model that has one expert a layer left (its only expert's tensors are the feed-forward's;
 * no router), with provenance as above. MOED_E_UNSUPPORTED where the sibling would not compute the same. */
moed_status moedi_layout_dense(moed_layout **out, const moed_layout *l, json_t *provenance);
/* The other way: the layout of the family with experts whose dense sibling a model is. MOED_E_UNSUPPORTED where there is none. */
moed_status moedi_layout_upcycled(moed_layout **out, const moed_layout *l, int32_t experts, int32_t top_k);

/* A checked layout by hand (names copied). */
moed_status moedi_layout_build(moed_layout **out, moed_context *c, const moed_param *params, size_t count);
/* The layout of a family from config.json's object (kept, unknown fields too); path names it in errors. */
moed_status moedi_layout_from_json(moed_layout **out, moed_context *c, const json_t *o, const char *path);
/* The same parameters with every floating one in `dtype`, but a family's selection biases never narrower than F32; config.json
 * says so too. */
moed_status moedi_layout_with_dtype(moed_layout **out, const moed_layout *l, moed_dtype dtype);
/* Puts that layout in the place of l. */
moed_status moedi_layout_take_dtype(moed_layout **l, moed_dtype dtype);
/* The same parameters with dtypes (count) of their own. */
moed_status moedi_layout_with_dtypes(moed_layout **out, const moed_layout *l, const moed_dtype *dtypes);
/* Whose numbers a layout's parameters have: map [out] (to's count) numbers of from's parameters, -1 = nobody's. Family layouts
 * of the same transformer. origins (layers, experts of `to`): the expert of `from` that each is of, -1 = of none; NULL = all
 * of expert 0. */
void moedi_layout_map(const moed_layout *to, const moed_layout *from, const int32_t *origins, int64_t *map);
/* Replaces a layout by one whose parameters have the dtypes that those they come from have in `from`: map as above, or made
 * otherwise; nobody's as from's first. */
moed_status moedi_layout_take_dtypes(moed_layout **l, const moed_layout *from, const int64_t *map);
/* The parameter of a slot (layer, expert: -1 where the slot has none), or -1: not there or a layout by hand. */
int64_t moedi_layout_slot(const moed_layout *l, moedi_slot slot, int32_t layer, int32_t expert);
/* Rows or biases of a router: what has one for each expert beside the experts themselves. */
static inline int moedi_param_is_router(const moed_param *p)
{
    return p->role == MOED_ROLE_ROUTER || p->role == MOED_ROLE_ROUTER_BIAS;
}
/* What a fresh model has zeros in. */
static inline int moedi_param_begins_zero(const moed_param *p)
{
    return (p->flags & MOED_PARAM_BIAS) || p->role == MOED_ROLE_ROUTER_BIAS || p->role == MOED_ROLE_OPAQUE;
}
/* Elements and bytes of a parameter. */
int64_t moedi_param_elements(const moed_param *p);
size_t moedi_param_bytes(const moed_param *p);

#endif
