/* model/forward.c - the forward pass as calls of the operation table, and what it brings back.
 * The architecture is that of Mixtral (arXiv 2401.04088) and what others added to it: pre-norm blocks of grouped-query
 * attention with rotary positions, its queries and keys perhaps normed, and a top-k mixture of SwiGLU experts, perhaps with a
 * shared one beside them and a sigmoid switch before that, or a plain feed-forward in their place. */
#include <math.h>
#include <string.h>

#include "state.h"

/* ---- layers ---- */

/* out (rows, n) = [addend +] x (rows, k) w (n, k)^T [+ bias] */
static moed_status linear(moedi_transformer *t, void *out, const void *x, const void *w, const void *bias, const void *addend,
                          int64_t n, int64_t k)
{
    MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = out, .a = x, .b = w, .bias = bias, .m = t->tokens_now, .n = n,
             .k = k, .lda = k, .ldb = k, .ldc = n, .transpose_b = 1, .accumulate = addend != NULL, .addend = addend);
    return MOED_OK;
}

moed_status moedi_transformer_norm(moedi_transformer *t, void *out, void *rstd, const void *x, const moedi_group *weight)
{
    MOEDI_OP(t, rmsnorm, moed_op_rmsnorm, .out = out, .rstd = rstd, .x = x, .weight = weight->weight,
             .rows = t->tokens_now, .width = t->config->hidden, .epsilon = t->config->epsilon);
    return MOED_OK;
}

/* q, k and v of every token into qkv, before they are turned. With norms q and k are made apart, and normed on their way:
 * backward needs them as they were. */
static moed_status forward_qkv(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *w = moedi_group_of(t, layer, MOEDI_GROUP_QKV), *bias = moedi_group_of(t, layer, MOEDI_GROUP_QKV_BIAS);
    const int64_t width = moedi_qkv_width(c), normed = moedi_qk_width(c), hidden = c->hidden;
    if (!c->qk_norm) return linear(t, a->qkv, a->normed, w->weight, bias->count ? bias->weight : NULL, NULL, width, hidden);
    MOEDI_TRY(linear(t, a->unnormed, a->normed, w->weight, bias->count ? bias->weight : NULL, NULL, normed, hidden));
    MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = moedi_at(t, a->qkv, normed), .a = a->normed,
             .b = moedi_at(t, w->weight, normed * hidden), .bias = bias->count ? moedi_at(t, bias->weight, normed) : NULL,
             .m = t->tokens_now, .n = width - normed, .k = hidden, .lda = hidden, .ldb = hidden, .ldc = width, .transpose_b = 1);
    for (int key = 0; key < 2; key++) {
        moed_op_rmsnorm norm = moedi_transformer_qk_norm(t, layer, key);
        MOEDI_TRY(t->engine.table->rmsnorm(t->engine.self, &norm));
    }
    return MOED_OK;
}

/* The norm of a layer's queries, or of its keys: from `unnormed` to qkv; backward in place. */
moed_op_rmsnorm moedi_transformer_qk_norm(const moedi_transformer *t, int64_t layer, int key)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *weight = moedi_group_of(t, layer, key ? MOEDI_GROUP_K_NORM : MOEDI_GROUP_Q_NORM);
    const int64_t heads = key ? c->kv_heads : c->heads, parts = c->qk_norm == MOEDI_QK_NORM_HEAD ? heads : 1;
    const int64_t at = key ? c->heads * c->head_dim : 0;
    void *d = t->train ? moedi_at(t, t->d_qkv, at) : NULL;
    return (moed_op_rmsnorm){.out = moedi_at(t, a->qkv, at), .rstd = key ? a->k_rstd : a->q_rstd,
                             .x = moedi_at(t, a->unnormed, at), .weight = weight->weight, .d_x = d, .d_out = d,
                             .d_weight = moedi_group_gradient(t, weight), .rows = t->tokens_now * parts,
                             .width = heads * c->head_dim / parts, .epsilon = c->epsilon, .parts = parts,
                             .stride = moedi_qk_width(c), .out_stride = moedi_qkv_width(c)};
}

/* mid = x + o(attention(rope(qkv(norm(x))))) */
static moed_status forward_attention(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *bias = moedi_group_of(t, layer, MOEDI_GROUP_O_BIAS);
    const int64_t width = moedi_qkv_width(c), heads = c->heads * c->head_dim;
    MOEDI_TRY(
        moedi_transformer_norm(t, a->normed, a->attention_rstd, a->x, moedi_group_of(t, layer, MOEDI_GROUP_ATTENTION_NORM)));
    MOEDI_TRY(forward_qkv(t, layer));
    MOEDI_OP(t, rope, moed_op_rope, .x = a->qkv, .cosine = t->cosine, .sine = t->sine,
             .positions = t->now.positions, .count = t->tokens_now, .heads = c->heads + c->kv_heads,
             .head_dim = c->head_dim, .stride = width);
    MOEDI_LONG_OP(t, attention, moed_op_attention, .out = a->attended, .lse = a->attention_lse, .q = a->qkv,
             .k = moedi_at(t, a->qkv, heads), .v = moedi_at(t, a->qkv, heads + c->kv_heads * c->head_dim),
             .start = t->now.start, .rows = t->last_rows, .length = t->last_length, .heads = c->heads,
             .kv_heads = c->kv_heads, .head_dim = c->head_dim, .stride = width,
             .scale = 1.0 / sqrt((double)c->head_dim), .whole = t->whole);
    return linear(t, a->mid, a->attended, moedi_group_of(t, layer, MOEDI_GROUP_O)->weight, bias->count ? bias->weight : NULL,
                  a->x, c->hidden, heads);
}

/* Logits of h, or of tanh(w h) where the router has two layers. */
static moed_status forward_router_logits(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t width = c->router_hidden ? c->router_hidden : c->hidden;
    if (c->router_hidden) {
        const moedi_group *in = moedi_group_of(t, layer, MOEDI_GROUP_ROUTER_IN);
        MOEDI_TRY(linear(t, a->router_hidden, a->h, in->weight, NULL, NULL, width, c->hidden));
        MOEDI_OP(t, squash, moed_op_squash, .out = a->router_hidden, .x = a->router_hidden, .count = t->tokens_now * width);
    }
    MOEDI_OP(t, gemm, moed_op_gemm, .c = a->router_logits, .a = c->router_hidden ? a->router_hidden : a->h,
             .b = moedi_group_of(t, layer, MOEDI_GROUP_ROUTER)->weight, .m = t->tokens_now, .n = c->experts,
             .k = width, .lda = width, .ldb = width, .ldc = c->experts, .transpose_b = 1, .wide_c = 1);
    return MOED_OK;
}

/* Which experts see which tokens, and the two router losses (means over layers). */
static moed_status forward_router(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    MOEDI_TRY(forward_router_logits(t, layer));
    MOEDI_OP(t, router, moed_op_router, .probabilities = a->probabilities, .weights = a->weights,
             .lse = a->router_lse, .ids = a->ids, .logits = a->router_logits,
             .losses = moedi_at_wide(t, t->results, 1), .rows = t->tokens_now, .experts = c->experts,
             .top_k = c->top_k, .normalise = c->normalise_top_k, .replay = t->replay,
             .loss_scale = 1.0 / (double)c->routed_layers, .bias = moedi_transformer_selection_bias(t, layer),
             .weight_scale = c->weight_scale, .score = c->score);
    MOEDI_OP(t, dispatch, moed_op_dispatch, .ids = a->ids, .offsets = a->offsets, .slot = a->slot,
             .source = a->source, .rows = t->tokens_now, .experts = c->experts, .top_k = c->top_k);
    return MOED_OK;
}

/* out (P, n) = in (P, k) w^T of each place's expert. The places of an expert are adjacent: one grouped gemm does all experts, or
 * as many as have their weights there at a time, and no number depends on how many these are. */
static moed_status multiply_experts(moedi_transformer *t, int64_t layer, int kind, void *out, const void *in, int64_t n,
                                    int64_t k)
{
    const moedi_config *c = t->config;
    const moedi_group *g = moedi_group_of(t, layer, kind);
    const int64_t window = moedi_layout_window(t->layout);
    for (int64_t first = 0; first < c->experts; first += window) {
        const int64_t count = c->experts - first < window ? c->experts - first : window;
        if (t->bring) {
            MOEDI_TRY(moedi_cancel_check(t->cancel));
            MOEDI_TRY(t->bring(first, count, kind == MOEDI_GROUP_DOWN, t->bring_user));
            MOEDI_TRY(moedi_transformer_load_group(t, g));
        }
        MOEDI_LONG_OP(t, grouped_gemm, moed_op_grouped_gemm, .c = out, .a = in, .b = g->weight,
                 .offsets = t->layers[layer].offsets + first, .groups = count, .m = t->tokens_now * c->top_k, .n = n, .k = k,
                 .lda = k, .ldb = k, .ldc = n, .stride_b = n * k, .transpose_b = 1);
    }
    return MOED_OK;
}

/* x = mid + sum of the chosen experts, weighted. */
static moed_status forward_experts(moedi_transformer *t, int64_t layer, void *x)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t places = t->tokens_now * c->top_k, width = c->expert_width, hidden = c->hidden;
    MOEDI_OP(t, gather, moed_op_gather, .out = t->places, .x = a->h, .source = a->source, .slot = a->slot,
             .rows = t->tokens_now, .top_k = c->top_k, .width = hidden);
    MOEDI_TRY(multiply_experts(t, layer, MOEDI_GROUP_GATE_UP, a->gate_up, t->places, 2 * width, hidden));
    MOEDI_OP(t, swiglu, moed_op_swiglu, .out = t->act, .gate_up = a->gate_up, .rows = places, .width = width);
    MOEDI_TRY(multiply_experts(t, layer, MOEDI_GROUP_DOWN, t->places, t->act, hidden, width));
    MOEDI_OP(t, combine, moed_op_combine, .out = x, .y = t->places, .weights = a->weights, .slot = a->slot,
             .rows = t->tokens_now, .top_k = c->top_k, .width = hidden, .addend = a->mid);
    return MOED_OK;
}

/* x = mid + the only expert. It sees every token with weight 1: nothing is routed, and its router has no part in the output. */
static moed_status forward_only_expert(moedi_transformer *t, int64_t layer, void *x)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t width = c->expert_width;
    MOEDI_TRY(linear(t, a->gate_up, a->h, moedi_group_of(t, layer, MOEDI_GROUP_GATE_UP)->weight, NULL, NULL, 2 * width,
                     c->hidden));
    MOEDI_OP(t, swiglu, moed_op_swiglu, .out = t->act, .gate_up = a->gate_up, .rows = t->tokens_now,
             .width = width);
    return linear(t, x, t->act, moedi_group_of(t, layer, MOEDI_GROUP_DOWN)->weight, NULL, a->mid, c->hidden, width);
}

/* What every token passes: x = base + plain(h), or with a switch x (which is base) += sigmoid(switch(h)) * plain(h). */
static moed_status forward_plain(moedi_transformer *t, int64_t layer, void *x, const void *base)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *down = moedi_group_of(t, layer, MOEDI_GROUP_PLAIN_DOWN);
    const moedi_group *gate = moedi_group_of(t, layer, MOEDI_GROUP_SHARED_SWITCH);
    const int64_t width = moedi_plain_width(c, layer);
    MOEDI_TRY(linear(t, a->plain_gate_up, a->h, moedi_group_of(t, layer, MOEDI_GROUP_PLAIN_GATE_UP)->weight,
                     NULL, NULL, 2 * width, c->hidden));
    MOEDI_OP(t, swiglu, moed_op_swiglu, .out = t->plain_act, .gate_up = a->plain_gate_up,
             .rows = t->tokens_now, .width = width);
    if (!gate->count) return linear(t, x, t->plain_act, down->weight, NULL, base, c->hidden, width);
    MOEDI_TRY(linear(t, a->shared_y, t->plain_act, down->weight, NULL, NULL, c->hidden, width));
    MOEDI_TRY(linear(t, a->shared_switch, a->h, gate->weight, NULL, NULL, 1, c->hidden));
    MOEDI_OP(t, sigmoid_gate, moed_op_sigmoid_gate, .out = x, .x = a->shared_y, .gate = a->shared_switch,
             .rows = t->tokens_now, .width = c->hidden);
    return MOED_OK;
}

static moed_status forward_layer(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    void *next = layer + 1 < c->layers ? t->layers[layer + 1].x : t->final_x;
    MOEDI_TRY(forward_attention(t, layer));
    MOEDI_TRY(moedi_transformer_norm(t, a->h, a->ffn_rstd, a->mid, moedi_group_of(t, layer, MOEDI_GROUP_FFN_NORM)));
    if (moedi_config_dense(c, layer)) return forward_plain(t, layer, next, a->mid);
    if (t->tap) MOEDI_TRY(t->tap(t, layer, a->h, t->tap_user));
    if (moedi_config_routes(c)) MOEDI_TRY(forward_router(t, layer));
    MOEDI_TRY(moedi_config_routes(c) ? forward_experts(t, layer, next) : forward_only_expert(t, layer, next));
    return c->shared_width ? forward_plain(t, layer, next, next) : MOED_OK;
}

/* The mean loss and, when backward will follow, the gradient of the final norm's output in d_h and of the
 * head. */
static moed_status forward_loss(moedi_transformer *t)
{
    const moedi_config *c = t->config;
    const double mean = t->objective.label_weight > 0 ? 1.0 / t->objective.label_weight : 0.0;
    const moedi_group *head = moedi_group_head(t);
    MOEDI_LONG_OP(t, cross_entropy, moed_op_cross_entropy, .losses = t->token_losses, .h = t->final_h,
             .head = head->weight, .labels = t->now.labels, .weights = t->now.weights,
             .d_h = t->ready ? t->d_h : NULL, .d_head = t->ready ? moedi_group_gradient(t, head) : NULL,
             .rows = t->tokens_now, .width = c->hidden, .vocabulary = c->vocabulary,
             .scale = t->objective.scale * mean);
    MOEDI_OP(t, sum, moed_op_sum, .out = t->results, .x = t->token_losses, .count = t->tokens_now,
             .scale = mean);
    return MOED_OK;
}

static moed_status forward_all(moedi_transformer *t)
{
    const moedi_config *c = t->config;
    MOEDI_TRY(t->engine.table->zero(t->engine.self, t->results, MOEDI_RESULTS * t->wide));
    if (t->states) {
        const size_t bytes = (size_t)(t->tokens_now * c->hidden) * t->item;
        MOEDI_TRY(t->engine.table->upload(t->engine.self, t->layers[0].x, t->states, bytes));
    } else {
        MOEDI_OP(t, embedding, moed_op_embedding, .out = t->layers[0].x,
                 .table = moedi_group_embedding(t)->weight, .tokens = t->now.tokens, .count = t->tokens_now,
                 .width = c->hidden, .vocabulary = c->vocabulary);
    }
    for (int64_t l = 0; l < c->layers; l++) {
        MOEDI_TRY(moedi_cancel_check(t->cancel));
        MOEDI_TRY(forward_layer(t, l));
    }
    MOEDI_TRY(moedi_cancel_check(t->cancel));
    MOEDI_TRY(moedi_transformer_norm(t, t->final_h, t->final_rstd, t->final_x, moedi_group_final_norm(t)));
    return t->now.labels ? forward_loss(t) : MOED_OK;
}

moed_status moedi_transformer_forward_shard(moedi_transformer *t, const moedi_staged *batch, int64_t shard,
                                            const moedi_objective *o, const moed_cancel *cancel)
{
    t->now = moedi_staged_shard(batch, shard);
    t->last_rows = t->now.rows, t->last_length = batch->length, t->tokens_now = t->now.rows * batch->length;
    t->whole = batch->whole, t->label_weight = batch->label_weight;
    t->objective = o ? *o : (moedi_objective){.scale = 1}; /* else an evaluation's */
    if (!(t->objective.label_weight > 0)) t->objective.label_weight = batch->label_weight;
    t->ready = t->train && o && t->now.labels;
    t->cancel = cancel;
    const moed_status status = forward_all(t);
    t->cancel = NULL;
    if (status != MOED_OK) t->tokens_now = 0, t->ready = 0;
    return status;
}

moed_status moedi_transformer_forward(moedi_transformer *t, const moed_batch *b, const moedi_objective *o,
                                      const moed_cancel *cancel)
{
    int64_t labels = 0;
    double label_weight = 0;
    MOEDI_TRY(moedi_batch_check(b, t->config->vocabulary, t->rows, t->length, &labels, &label_weight));
    if (t->replay && b->rows * b->length != t->tokens_now) {
        return moedi_fail(MOED_E_STATE,
                          "replayed routing needs a batch as large as the last one: %lld tokens, not %lld",
                          (long long)t->tokens_now, (long long)(b->rows * b->length));
    }
    MOEDI_TRY(moedi_staged_upload(&t->own_batch, b, b->rows, labels, label_weight));
    return moedi_transformer_forward_shard(t, &t->own_batch, 0, o, cancel);
}

moed_status moedi_transformer_pass(moedi_transformer *t, const moed_batch *b, void *states, const moed_cancel *cancel)
{
    t->states = states;
    const moed_status status = moedi_transformer_forward(t, b, NULL, cancel);
    t->states = NULL;
    MOEDI_TRY(status);
    const size_t bytes = (size_t)(t->tokens_now * t->config->hidden) * t->item;
    MOEDI_TRY(t->engine.table->download(t->engine.self, states, t->final_x, bytes));
    return t->engine.table->synchronize(t->engine.self);
}

/* ---- results ---- */

/* Results are there only after a whole pass. */
static moed_status check_forwarded(const moedi_transformer *t)
{
    return t->tokens_now
               ? MOED_OK
               : moedi_fail(MOED_E_STATE, "there was no forward pass yet, or the last one did not end");
}

void moedi_transformer_tap(moedi_transformer *t, moedi_tap_fn tap, void *user)
{
    t->tap = tap, t->tap_user = user;
}

void moedi_transformer_bring(moedi_transformer *t, moedi_bring_fn bring, void *user)
{
    t->bring = bring, t->bring_user = user;
}

const int64_t *moedi_transformer_offsets(const moedi_transformer *t, int32_t layer)
{
    return t->host_offsets + layer * (t->config->experts + 1);
}

void moedi_transformer_read_results(const moedi_transformer *t, const void *results, int64_t *offsets, int64_t tokens,
                                    moedi_losses *out)
{
    const moedi_config *c = t->config;
    double numbers[MOEDI_RESULTS];
    moedi_to_double(numbers, results, t->engine.info.wide, MOEDI_RESULTS);
    const int routed = c->routed_layers > 0 && moedi_config_routes(c);
    for (int64_t l = 0; l < c->layers; l++, offsets += c->experts + 1) {
        if (moedi_config_dense(c, l)) memset(offsets, 0, (size_t)(c->experts + 1) * sizeof *offsets);
        else if (!routed) offsets[0] = 0, offsets[1] = tokens;
    }
    *out = (moedi_losses){.loss = numbers[0], .load_balance = routed ? numbers[1] : 1, .z_loss = numbers[2]};
}

moed_status moedi_transformer_losses(moedi_transformer *t, moedi_losses *out)
{
    const moedi_config *c = t->config;
    char raw[MOEDI_RESULTS * sizeof(double)];
    MOEDI_TRY(check_forwarded(t));
    MOEDI_TRY(t->engine.table->download(t->engine.self, raw, t->results, MOEDI_RESULTS * t->wide));
    if (moedi_config_routes(c)) {
        MOEDI_TRY(t->engine.table->download(t->engine.self, t->host_offsets, t->offsets,
                                            (size_t)(c->layers * (c->experts + 1)) * sizeof *t->offsets));
    }
    MOEDI_TRY(t->engine.table->synchronize(t->engine.self));
    moedi_transformer_read_results(t, raw, t->host_offsets, t->tokens_now, out);
    out->label_weight = t->label_weight;
    return MOED_OK;
}

moed_status moedi_transformer_token_losses(moedi_transformer *t, void *out)
{
    MOEDI_TRY(check_forwarded(t));
    MOEDI_TRY(t->engine.table->download(t->engine.self, out, t->token_losses, (size_t)t->tokens_now * t->wide));
    return t->engine.table->synchronize(t->engine.self);
}

moed_status moedi_transformer_logits(moedi_transformer *t, void *out)
{
    const moedi_config *c = t->config;
    MOEDI_TRY(check_forwarded(t));
    for (int64_t first = 0; first < t->tokens_now; first += t->logit_rows) {
        const int64_t rows = t->tokens_now - first < t->logit_rows ? t->tokens_now - first : t->logit_rows;
        MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = t->logits, .a = moedi_at(t, t->final_h, first * c->hidden),
                 .b = moedi_group_head(t)->weight, .m = rows, .n = c->vocabulary, .k = c->hidden,
                 .lda = c->hidden, .ldb = c->hidden, .ldc = c->vocabulary, .transpose_b = 1, .wide_c = 1);
        MOEDI_TRY(t->engine.table->download(t->engine.self, moedi_at_wide(t, out, first * c->vocabulary),
                                            t->logits, (size_t)(rows * c->vocabulary) * t->wide));
    }
    return t->engine.table->synchronize(t->engine.self);
}

moed_status moedi_transformer_routing(moedi_transformer *t, int32_t layer, int32_t *ids, void *weights)
{
    const moedi_activations *a = &t->layers[layer];
    const size_t count = (size_t)(t->tokens_now * t->config->top_k);
    MOEDI_TRY(check_forwarded(t));
    const int dense = moedi_config_dense(t->config, layer);
    if (dense || !moedi_config_routes(t->config)) {
        const double weight = dense ? 0 : 1;
        for (size_t i = 0; i < count; i++) {
            ids[i] = dense ? -1 : 0;
            if (weights) moedi_from_double(moedi_at_wide(t, weights, (int64_t)i), t->engine.info.wide, &weight, 1);
        }
        return MOED_OK;
    }
    MOEDI_TRY(t->engine.table->download(t->engine.self, ids, a->ids, count * sizeof *ids));
    if (weights) MOEDI_TRY(t->engine.table->download(t->engine.self, weights, a->weights, count * t->wide));
    return t->engine.table->synchronize(t->engine.self);
}
