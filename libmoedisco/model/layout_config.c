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

/* Every field that says how many experts there are, and how many see a token (0: as many as before, of so many). */
static moed_status set_experts(json_t *o, const moed_layout *l, int32_t experts, int32_t top_k)
{
    const moedi_family *f = l->family;
    const int64_t before = top_k ? top_k : l->config.top_k;
    if (f->experts_field) {
        MOEDI_TRY(set_config(o, moedi_config_experts_field(f, o), json_integer(experts)));
        MOEDI_TRY(set_config(o, f->top_k_field, json_integer(before < experts ? before : experts)));
    }
    if (l->config.router_hidden) MOEDI_TRY(set_config(o, f->router_hidden_field, json_integer(l->config.router_hidden)));
    if (!f->expert_sizes_field) return MOED_OK;
    MOEDI_TRY(set_config(o, f->expert_width_field, json_integer(experts * l->config.expert_width)));
    return json_object_get(o, f->expert_sizes_field) ? set_config(o, f->expert_sizes_field, json_null()) : MOED_OK;
}

moed_status moedi_layout_with_experts(moed_layout **out, const moed_layout *l, int32_t experts, int32_t top_k,
                                      json_t *provenance)
{
    json_t *o = NULL;
    moed_status status;

    if (!l->family)
        return moedi_fail(MOED_E_UNSUPPORTED, "a layout made by hand has no config.json to change the number of experts in");
    if (experts < 1) return moedi_fail(MOED_E_RANGE, "%d experts asked for: at least 1", (int)experts);
    if (!l->family->experts_field && experts != 1)
        return moedi_fail(MOED_E_UNSUPPORTED, "a %s model is dense: it has no %d experts", l->family->name, (int)experts);
    MOEDI_TRY(load_config(l, &o));
    MOEDI_GO(set_experts(o, l, experts, top_k));
    if (provenance) MOEDI_GO(set_config(o, "moedisco", json_incref(provenance)));
    else json_object_del(o, "moedisco"); /* what it was split from has other experts */
    MOEDI_GO(moedi_layout_from_json(out, l->context, o, "config.json"));
    (*out)->stacked = l->stacked;
out:
    json_decref(o);
    return status;
}

moed_status moedi_layout_one_layer(moed_layout **out, const moed_layout *l, int dense)
{
    static const char *const by_layer[] = {"decoder_sparse_step", "first_k_dense_replace", "layer_types", "moedisco"};
    json_t *o = NULL;
    moed_status status;
    MOEDI_TRY(load_config(l, &o));
    for (size_t i = 0; i < sizeof by_layer / sizeof *by_layer; i++) json_object_del(o, by_layer[i]);
    if (l->config.dense_width) MOEDI_GO(set_config(o, "mlp_only_layers", dense ? json_pack("[i]", 0) : json_array()));
    MOEDI_GO(set_config(o, "num_hidden_layers", json_integer(1)));
    MOEDI_GO(set_config(o, "vocab_size", json_integer(1)));
    MOEDI_GO(set_config(o, "tie_word_embeddings", json_true()));
    MOEDI_GO(moedi_layout_from_json(out, l->context, o, "config.json"));
out:
    json_decref(o);
    return status;
}

/* The configuration as one of another family: what that family would take another default for is said. */
static moed_status become(json_t *o, const moed_layout *l, const moedi_family *f)
{
    const moedi_config *c = &l->config;
    const json_t *rope = json_object_get(o, "rope_parameters");
    MOEDI_TRY(set_config(o, "model_type", json_string(f->name)));
    MOEDI_TRY(set_config(o, "architectures", json_pack("[s]", f->architecture)));
    MOEDI_TRY(set_config(o, "head_dim", json_integer(c->head_dim)));
    MOEDI_TRY(set_config(o, "num_key_value_heads", json_integer(c->kv_heads)));
    MOEDI_TRY(set_config(o, "rms_norm_eps", json_real(c->epsilon)));
    MOEDI_TRY(set_config(o, "max_position_embeddings", json_integer(c->context_length)));
    if (!json_object_get(o, "sliding_window")) MOEDI_TRY(set_config(o, "sliding_window", json_null()));
    if (json_is_number(json_object_get(o, "rope_theta")) || json_is_number(json_object_get(rope, "rope_theta"))) return MOED_OK;
    return set_config(o, "rope_theta", json_real(c->rope.theta));
}

static int same_rope(const moedi_rope *a, const moedi_rope *b)
{
    return a->kind == b->kind && a->whole == b->whole && a->theta == b->theta && a->factor == b->factor &&
           a->original == b->original && a->low == b->low && a->high == b->high && a->magnitude == b->magnitude;
}

/* Whether two configurations are the same but for their experts. */
static int same_but_for_experts(const moedi_config *a, const moedi_config *b)
{
    return a->vocabulary == b->vocabulary && a->hidden == b->hidden && a->layers == b->layers && a->heads == b->heads &&
           a->kv_heads == b->kv_heads && a->head_dim == b->head_dim && a->epsilon == b->epsilon && a->qk_norm == b->qk_norm &&
           a->qkv_bias == b->qkv_bias && a->o_bias == b->o_bias && a->tied == b->tied && a->dtype == b->dtype &&
           a->expert_width == b->expert_width && same_rope(&a->rope, &b->rope);
}

/* The layout of a changed configuration, if it still describes the same model but for its experts. */
static moed_status read_changed(moed_layout **out, const moed_layout *l, const json_t *o)
{
    moed_layout *made = NULL;
    MOEDI_TRY(moedi_layout_from_json(&made, l->context, o, "config.json"));
    if (same_but_for_experts(&made->config, &l->config)) {
        *out = made;
        return MOED_OK;
    }
    const char *name = made->family->name;
    moed_layout_destroy(made);
    return moedi_fail(MOED_E_UNSUPPORTED, "a %s model would not compute what this %s model does", name, l->family->name);
}

static void drop_fields(json_t *o)
{
    static const char *const of_experts[] = {"num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
                                             "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers", "router_aux_loss_coef",
                                             "router_jitter_noise", "output_router_logits"};
    for (size_t i = 0; i < sizeof of_experts / sizeof *of_experts; i++) json_object_del(o, of_experts[i]); /* absent is fine */
}

moed_status moedi_layout_dense(moed_layout **out, const moed_layout *l, json_t *provenance)
{
    json_t *o = NULL;
    moed_status status;
    const moedi_family *dense = l->family && l->family->dense ? moedi_family_find(l->family->dense) : NULL;
    if (!dense)
        return moedi_fail(
            MOED_E_UNSUPPORTED,
            "%s%s has no dense family that computes the same: its submodels are of the family itself, with one expert",
            l->family ? "the family " : "a layout made by hand", l->family ? l->family->name : "");
    if (l->config.routed_layers != l->config.layers)
        return moedi_fail(MOED_E_UNSUPPORTED, "%lld of %lld layers have a feed-forward of their own, which a %s model cannot say",
                          (long long)(l->config.layers - l->config.routed_layers), (long long)l->config.layers, dense->name);
    MOEDI_TRY(load_config(l, &o));
    drop_fields(o);
    MOEDI_GO(become(o, l, dense));
    MOEDI_GO(set_config(o, dense->expert_width_field, json_integer(l->config.expert_width)));
    if (provenance) MOEDI_GO(set_config(o, "moedisco", json_incref(provenance)));
    MOEDI_GO(read_changed(out, l, o));
out:
    json_decref(o);
    return status;
}

moed_status moedi_layout_upcycled(moed_layout **out, const moed_layout *l, int32_t experts, int32_t top_k)
{
    json_t *o = NULL;
    moed_status status;
    const moedi_family *moe = l->family && l->family->moe ? moedi_family_find(l->family->moe) : NULL;
    if (!moe && l->family && l->family->experts_field && l->config.experts == 1) moe = l->family;
    if (!moe)
        return moedi_fail(
            MOED_E_UNSUPPORTED,
            "%s%s: neither a dense family that has one with experts (llama, mistral, qwen3) nor one expert in every layer",
            l->family ? "the family " : "a layout made by hand", l->family ? l->family->name : "");
    MOEDI_TRY(load_config(l, &o));
    if (moe != l->family) MOEDI_GO(become(o, l, moe));
    MOEDI_GO(set_config(o, moedi_config_experts_field(moe, o), json_integer(experts)));
    MOEDI_GO(set_config(o, moe->top_k_field, json_integer(top_k)));
    const int64_t widths = moe->expert_sizes_field ? experts : 1; /* the field is of all experts together */
    MOEDI_GO(set_config(o, moe->expert_width_field, json_integer(l->config.expert_width * widths)));
    if (moe->expert_sizes_field) json_object_del(o, moe->expert_sizes_field);
    /* weights that add up to 1: clones compute what the dense model does */
    if (moe->normalise_top_k < 0) MOEDI_GO(set_config(o, "norm_topk_prob", json_true()));
    json_object_del(o, "moedisco");
    MOEDI_GO(read_changed(out, l, o));
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

moed_status moedi_layout_take_dtype(moed_layout **l, moed_dtype dtype)
{
    moed_layout *typed = NULL;
    MOEDI_TRY(moedi_layout_with_dtype(&typed, *l, dtype));
    moed_layout_destroy(*l);
    *l = typed;
    return MOED_OK;
}
