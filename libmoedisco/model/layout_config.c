/* model/layout_config.c - layouts of the families: from config.json to parameters, and back to a config.json of a changed
 * model. */
#include <string.h>

#include "layout.h"

/* Walks the parameters in memory order: per layer all slots between the embedding and the final norm; experts one after another,
 * gate and up of one together, then all down projections. */
typedef struct walk {
    const moedi_family *family;
    const moedi_config *config;
    moed_param *params;   /* NULL: count only */
    char (*names)[128];
    size_t count;
} walk;

static void visit(walk *w, moedi_slot slot, int32_t layer, int32_t expert)
{
    moed_param p;
    if (!moedi_family_param(w->family, w->config, slot, &p)) return;
    if (w->params) {
        moedi_family_tensor(w->family, slot, layer, expert, w->names[w->count], sizeof w->names[0]);
        p.layer = layer, p.expert = expert;
        p.name = w->names[w->count];
        w->params[w->count] = p;
    }
    w->count++;
}

/* Slots from..to of a layer, for each expert or (experts 0) none's. */
static void visit_slots(walk *w, moedi_slot from, moedi_slot to, int32_t layer, int32_t experts)
{
    for (int32_t e = experts ? 0 : -1; e < experts; e++)
        for (int slot = (int)from; slot <= (int)to; slot++) visit(w, (moedi_slot)slot, layer, e);
}

static void walk_params(walk *w)
{
    const int32_t experts = (int32_t)w->config->experts;
    w->count = 0;
    visit(w, MOEDI_SLOT_EMBEDDING, -1, -1);
    for (int32_t layer = 0; layer < (int32_t)w->config->layers; layer++) {
        visit_slots(w, MOEDI_SLOT_ATTENTION_NORM, MOEDI_SLOT_FFN_NORM, layer, 0);
        if (moedi_config_dense(w->config, layer)) {
            visit_slots(w, MOEDI_SLOT_DENSE_GATE, MOEDI_SLOT_DENSE_DOWN, layer, 0);
            continue;
        }
        visit_slots(w, MOEDI_SLOT_ROUTER, MOEDI_SLOT_ROUTER_NOISE, layer, 0);
        visit_slots(w, MOEDI_SLOT_EXPERT_GATE, MOEDI_SLOT_EXPERT_UP, layer, experts);
        visit_slots(w, MOEDI_SLOT_EXPERT_DOWN, MOEDI_SLOT_EXPERT_DOWN, layer, experts);
        visit_slots(w, MOEDI_SLOT_SHARED_GATE, MOEDI_SLOT_SHARED_SWITCH, layer, 0);
    }
    visit(w, MOEDI_SLOT_FINAL_NORM, -1, -1);
    visit(w, MOEDI_SLOT_HEAD, -1, -1);
}

moed_status moedi_layout_from_json(moed_layout **out, moed_context *c, const json_t *o, const char *path)
{
    moedi_config config;
    walk w = {.config = &config};
    moed_layout *l = NULL;
    char *text = NULL;
    size_t size = 0;
    moed_status status;

    MOEDI_TRY(moedi_config_read(&config, &w.family, o, path));
    walk_params(&w);
    MOEDI_TRY(MOEDI_NEW(c, w.count, &w.params));
    MOEDI_GO(moedi_alloc_array(c, (int64_t)w.count, sizeof w.names[0], (void **)&w.names));
    walk_params(&w);
    MOEDI_GO(moedi_json_print(c, o, &text, &size));
    MOEDI_GO(moedi_layout_build(&l, c, w.params, w.count));
    moedi_free(c, l->config_text);
    l->config_text = text;
    text = NULL;
    l->family = w.family;
    l->config = config;
    *out = l;
out:
    moedi_free(c, text);
    moedi_free(c, w.names);
    moedi_free(c, w.params);
    return status;
}

moed_status moed_layout_from_config(moed_layout **out, moed_context *c, const char *json, size_t bytes)
{
    json_t *o = NULL;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(json, "the configuration's text is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_json_parse(&o, json, bytes, "config.json"));
    const moed_status status = moedi_layout_from_json(out, c, o, "config.json");
    json_decref(o);
    return status;
}

/* ---- the same model, changed ---- */

/* The configuration's object, to be changed and read again. */
static moed_status load_config(const moed_layout *l, json_t **out)
{
    return moedi_json_parse(out, l->config_text, strlen(l->config_text), "config.json");
}

static moed_status set_config(json_t *o, const char *field, json_t *value)
{
    return json_object_set_new(o, field, value) == 0 ? MOED_OK
                                                     : moedi_fail(MOED_E_MEMORY, "no memory for field %s of config.json", field);
}

/* dtype is what Transformers 5 writes, torch_dtype what all read: whichever the config has is kept true. */
static moed_status set_config_dtype(json_t *o, moed_dtype dtype)
{
    const char *name = moedi_config_dtype_name(dtype);
    if (json_object_get(o, "dtype")) {
        MOEDI_TRY(set_config(o, "dtype", json_string(name)));
        if (!json_object_get(o, "torch_dtype")) return MOED_OK;
    }
    return set_config(o, "torch_dtype", json_string(name));
}

moed_status moedi_layout_with_experts(moed_layout **out, const moed_layout *l, int32_t experts, json_t *provenance)
{
    json_t *o = NULL;
    moed_status status;

    if (!l->family)
        return moedi_fail(MOED_E_UNSUPPORTED, "a layout made by hand has no config.json to change the number of experts in");
    if (experts < 1) return moedi_fail(MOED_E_RANGE, "%d experts asked for: at least 1", (int)experts);
    MOEDI_TRY(load_config(l, &o));
    MOEDI_GO(set_config(o, moedi_config_experts_field(l->family, o), json_integer(experts)));
    MOEDI_GO(set_config(o, l->family->top_k_field, json_integer(l->config.top_k < experts ? l->config.top_k : experts)));
    if (l->config.router_hidden) MOEDI_GO(set_config(o, l->family->router_hidden_field, json_integer(l->config.router_hidden)));
    if (l->family->expert_sizes_field) {
        MOEDI_GO(set_config(o, l->family->expert_width_field, json_integer(experts * l->config.expert_width)));
        const char *sizes = l->family->expert_sizes_field;
        if (json_object_get(o, sizes)) MOEDI_GO(set_config(o, sizes, json_null()));
    }
    if (provenance) MOEDI_GO(set_config(o, "moedisco", json_incref(provenance)));
    MOEDI_GO(moedi_layout_from_json(out, l->context, o, "config.json"));
    (*out)->stacked = l->stacked;
out:
    json_decref(o);
    return status;
}

moed_status moedi_layout_with_dtypes(moed_layout **out, const moed_layout *l, const moed_dtype *dtypes)
{
    moed_layout *made = NULL;
    moed_param *params = NULL;
    json_t *o = NULL;
    moed_status status = MOED_OK;
    int same = 1; /* one dtype for all but selection biases: then config.json names it */

    MOEDI_TRY(MOEDI_NEW(l->context, l->count, &params));
    for (size_t i = 0; i < l->count; i++) {
        params[i] = l->params[i];
        params[i].dtype = dtypes[i];
        if (dtypes[i] != dtypes[0] && l->params[i].role != MOED_ROLE_ROUTER_BIAS) same = 0;
    }
    MOEDI_GO(moedi_layout_build(&made, l->context, params, l->count));
    made->family = l->family;
    made->config = l->config;
    made->stacked = l->stacked;
    if (l->family && same) made->config.dtype = dtypes[0];
    moedi_free(l->context, made->config_text);
    made->config_text = NULL;
    if (l->family && made->config.dtype != l->config.dtype) {
        size_t size;
        MOEDI_GO(load_config(l, &o));
        MOEDI_GO(set_config_dtype(o, made->config.dtype));
        MOEDI_GO(moedi_json_print(l->context, o, &made->config_text, &size));
    } else {
        MOEDI_GO(moedi_strdup(l->context, l->config_text, &made->config_text));
    }
    *out = made;
    made = NULL;
out:
    json_decref(o);
    moedi_free(l->context, params);
    moed_layout_destroy(made);
    return status;
}

moed_status moedi_layout_with_dtype(moed_layout **out, const moed_layout *l, moed_dtype dtype)
{
    moed_dtype *dtypes = NULL;
    MOEDI_TRY(MOEDI_NEW(l->context, l->count, &dtypes));
    for (size_t i = 0; i < l->count; i++) {
        const int bias = l->family && l->params[i].role == MOED_ROLE_ROUTER_BIAS && moedi_dtype_size(dtype) < sizeof(float);
        dtypes[i] = bias ? MOED_DTYPE_F32 : moedi_dtype_is_float(l->params[i].dtype) ? dtype : l->params[i].dtype;
    }
    const moed_status status = moedi_layout_with_dtypes(out, l, dtypes);
    moedi_free(l->context, dtypes);
    return status;
}
