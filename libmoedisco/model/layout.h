/* model/layout.h - what the parameters of a model are, private side. */
#ifndef MOEDI_LAYOUT_H
#define MOEDI_LAYOUT_H

#include "family.h"
#include "moedisco/model.h"

struct moed_layout {
    atomic_int references;
    moed_context *context;
    moed_param *params;             /* (count), names owned */
    size_t count;
    int32_t layers;                 /* 1 + largest layer */
    int32_t *experts;               /* (layers): routed experts of each, 0 = none */
    const moedi_family *family;     /* NULL by hand */
    moedi_config config;            /* of the family */
    char *config_text;              /* config.json, "" by hand */
    size_t *by_name;                /* parameter numbers in strcmp order of names */
};

moed_layout *moedi_layout_retain(const moed_layout *l);
/* index of a parameter, or -1 */
int64_t moedi_layout_find(const moed_layout *l, const char *name);
/* Same parameters (name, role, layer, shape; dtype too unless any_dtype); MOED_E_MISMATCH naming the first that differs. */
moed_status moedi_layout_equal(const moed_layout *a, const moed_layout *b, int any_dtype);
/* 32 hex digits over names, roles, shapes and dtypes. */
void moedi_layout_fingerprint(const moed_layout *l, char out[33]);
/* The family layout of the same model with `experts` routed experts in every layer (top_k cut to it), and `provenance` (object,
 * nullable) kept as "moedisco" in its config.json. Family layouts only. */
moed_status moedi_layout_with_experts(moed_layout **out, const moed_layout *l, int32_t experts, json_t *provenance);

#endif
