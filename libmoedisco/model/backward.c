/* model/backward.c - gradients: the forward pass of forward.c in reverse, as calls of the operation table.
 * d_x carries the gradient of the residual stream from top to bottom; every branch adds its part to it. */
#include <math.h>

#include "state.h"

/* Of y (rows, n) = x (rows, k) w^T: d_w += d_y^T x where w is trained, or = where d_w counts for nothing yet. */
static moed_status linear_weights(moedi_transformer *t, const moedi_group *w, const void *x, const void *d_y, int64_t n,
                                  int64_t k)
{
    void *d_w = moedi_group_gradient(t, w);
    if (!d_w) return MOED_OK;
    MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = d_w, .a = d_y, .b = x, .m = n, .n = k, .k = t->tokens_now,
             .lda = n, .ldb = k, .ldc = k, .transpose_a = 1, .accumulate = !t->fresh);
    return MOED_OK;
}

/* and d_x [+]= d_y w. */
static moed_status linear_input(moedi_transformer *t, void *d_x, int accumulate, const moedi_group *w, const void *d_y, int64_t n,
                                int64_t k)
{
    MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = d_x, .a = d_y, .b = w->weight, .m = t->tokens_now, .n = k, .k = n,
             .lda = n, .ldb = k, .ldc = k, .accumulate = accumulate);
    return MOED_OK;
}

static moed_status linear_backward(moedi_transformer *t, void *d_x, int accumulate, const moedi_group *w,
                                   const void *x, const void *d_y, int64_t n, int64_t k)
{
    MOEDI_TRY(linear_weights(t, w, x, d_y, n, k));
    return linear_input(t, d_x, accumulate, w, d_y, n, k);
}

/* The same two for all experts: places of expert e use matrix e of w. */
static moed_status grouped_weights(moedi_transformer *t, int64_t layer, const moedi_group *w, const void *x, const void *d_y,
                                   int64_t n, int64_t k)
{
    const moedi_config *c = t->config;
    void *d_w = moedi_group_gradient(t, w);
    if (!d_w) return MOED_OK;
    MOEDI_LONG_OP(t, grouped_gemm, moed_op_grouped_gemm, .c = d_w, .a = d_y, .b = x, .offsets = t->layers[layer].offsets,
             .groups = c->experts, .m = n, .n = k, .k = t->tokens_now * c->top_k, .lda = n, .ldb = k, .ldc = k,
             .stride_c = n * k, .reduce = 1, .accumulate = !t->fresh);
    return MOED_OK;
}

static moed_status grouped_input(moedi_transformer *t, int64_t layer, void *d_x, const moedi_group *w, const void *d_y, int64_t n,
                                 int64_t k)
{
    const moedi_config *c = t->config;
    MOEDI_LONG_OP(t, grouped_gemm, moed_op_grouped_gemm, .c = d_x, .a = d_y, .b = w->weight, .offsets = t->layers[layer].offsets,
             .groups = c->experts, .m = t->tokens_now * c->top_k, .n = k, .k = n, .lda = n, .ldb = k, .ldc = k,
             .stride_b = n * k);
    return MOED_OK;
}

/* d_x += through the norm of x with gradient d_h of its output */
static moed_status norm_backward(moedi_transformer *t, const moedi_group *weight, void *rstd, const void *x)
{
    MOEDI_OP(t, rmsnorm_backward, moed_op_rmsnorm, .rstd = rstd, .x = x, .weight = weight->weight,
             .d_x = t->d_x, .d_weight = moedi_group_gradient(t, weight), .d_out = t->d_h,
             .rows = t->tokens_now, .width = t->config->hidden, .epsilon = t->config->epsilon);
    return MOED_OK;
}

/* Router: d_h = from the weights it gave, and from its own two losses. */
static moed_status backward_router(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    MOEDI_OP(t, router_backward, moed_op_router, .probabilities = a->probabilities, .weights = a->weights,
             .lse = a->router_lse, .ids = a->ids, .logits = a->router_logits, .d_logits = t->d_router_logits,
             .d_weights = t->d_weights, .rows = t->tokens_now, .experts = c->experts, .top_k = c->top_k,
             .normalise = c->normalise_top_k, .load_balance = t->objective.load_balance,
             .z_loss = t->objective.z_loss, .loss_scale = t->objective.scale / (double)c->routed_layers,
             .offsets = a->offsets, .weight_scale = c->weight_scale, .score = c->score);
    const moedi_group *router = moedi_group_of(t, layer, MOEDI_GROUP_ROUTER);
    const int64_t width = c->router_hidden;
    if (!width) return linear_backward(t, t->d_h, 0, router, a->h, t->d_router_logits, c->experts, c->hidden);
    MOEDI_TRY(linear_backward(t, t->d_router_hidden, 0, router, a->router_hidden, t->d_router_logits, c->experts, width));
    MOEDI_OP(t, squash_backward, moed_op_squash, .out = a->router_hidden, .d_x = t->d_router_hidden, .d_out = t->d_router_hidden,
             .count = t->tokens_now * width);
    return linear_backward(t, t->d_h, 0, moedi_group_of(t, layer, MOEDI_GROUP_ROUTER_IN), a->h, t->d_router_hidden, width,
                           c->hidden);
}

/* Experts and router: d_h =. The gradient of x = mid + sum w y passes to all choices of a token as it is; what multiplies y
 * multiplies what y is made of: so neither y nor act need be kept, and the gradient of w comes from act and its gradient.
 * The block of places holds in turn d_y, the inputs again, and their gradients. */
static moed_status backward_experts(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *gate_up = moedi_group_of(t, layer, MOEDI_GROUP_GATE_UP),
                      *down = moedi_group_of(t, layer, MOEDI_GROUP_DOWN);
    const int64_t places = t->tokens_now * c->top_k, width = c->expert_width, hidden = c->hidden;
    MOEDI_OP(t, gather, moed_op_gather, .out = t->places, .x = t->d_x, .source = a->source, .slot = a->slot,
             .rows = t->tokens_now, .top_k = c->top_k, .width = hidden);
    MOEDI_TRY(grouped_input(t, layer, t->act, down, t->places, hidden, width));
    MOEDI_OP(t, swiglu_backward, moed_op_swiglu, .out = t->act, .gate_up = a->gate_up, .d_gate_up = a->gate_up, .d_out = t->act,
             .rows = places, .width = width, .weights = a->weights, .d_weights = t->d_weights, .slot = a->slot);
    MOEDI_TRY(grouped_weights(t, layer, down, t->act, t->places, hidden, width));
    MOEDI_TRY(backward_router(t, layer));
    MOEDI_OP(t, gather, moed_op_gather, .out = t->places, .x = a->h, .source = a->source, .slot = a->slot,
             .rows = t->tokens_now, .top_k = c->top_k, .width = hidden);
    MOEDI_TRY(grouped_weights(t, layer, gate_up, t->places, a->gate_up, 2 * width, hidden));
    MOEDI_TRY(grouped_input(t, layer, t->places, gate_up, a->gate_up, 2 * width, hidden));
    MOEDI_OP(t, gather_backward, moed_op_gather, .d_x = t->d_h, .d_out = t->places, .source = a->source,
             .slot = a->slot, .rows = t->tokens_now, .top_k = c->top_k, .width = hidden);
    return MOED_OK;
}

/* A dense feed-forward block with gradient d_y of its output: d_h [+]=. act is made again where its gradient was. */
static moed_status backward_ffn(moedi_transformer *t, const moedi_group *up, const moedi_group *down, const void *h,
                                void *gate_up, void *act, const void *d_y, int64_t width, int accumulate)
{
    const int64_t hidden = t->config->hidden;
    MOEDI_TRY(linear_input(t, act, 0, down, d_y, hidden, width));
    MOEDI_OP(t, swiglu_backward, moed_op_swiglu, .out = act, .gate_up = gate_up, .d_gate_up = gate_up, .d_out = act,
             .rows = t->tokens_now, .width = width);
    MOEDI_TRY(linear_weights(t, down, act, d_y, hidden, width));
    return linear_backward(t, t->d_h, accumulate, up, h, gate_up, 2 * width, hidden);
}

/* The only expert: d_h = */
static moed_status backward_only_expert(moedi_transformer *t, int64_t layer)
{
    const moedi_activations *a = &t->layers[layer];
    return backward_ffn(t, moedi_group_of(t, layer, MOEDI_GROUP_GATE_UP), moedi_group_of(t, layer, MOEDI_GROUP_DOWN), a->h,
                        a->gate_up, t->act, t->d_x, t->config->expert_width, 0);
}

/* What every token passes: d_h [+]= */
static moed_status backward_plain(moedi_transformer *t, int64_t layer, int accumulate)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *gate = moedi_group_of(t, layer, MOEDI_GROUP_SHARED_SWITCH);
    const void *d_y = t->d_x;
    if (gate->count) {
        MOEDI_OP(t, sigmoid_gate_backward, moed_op_sigmoid_gate, .x = a->shared_y, .gate = a->shared_switch,
                 .d_x = t->d_shared_y, .d_gate = t->d_shared_switch, .d_out = t->d_x, .rows = t->tokens_now,
                 .width = c->hidden);
        MOEDI_TRY(linear_backward(t, t->d_h, accumulate, gate, a->h, t->d_shared_switch, 1, c->hidden));
        d_y = t->d_shared_y, accumulate = 1;
    }
    return backward_ffn(t, moedi_group_of(t, layer, MOEDI_GROUP_PLAIN_GATE_UP), moedi_group_of(t, layer, MOEDI_GROUP_PLAIN_DOWN),
                        a->h, a->plain_gate_up, t->plain_act, d_y, moedi_plain_width(c, layer), accumulate);
}

/* d_bias (n) += of d_out (rows, n), where there is a bias that trains. */
static moed_status bias_backward(moedi_transformer *t, const moedi_group *bias, const void *d_out, int64_t n)
{
    void *d_bias = moedi_group_gradient(t, bias);
    if (!d_bias) return MOED_OK;
    MOEDI_OP(t, bias_backward, moed_op_bias_backward, .d_bias = d_bias, .d_out = d_out, .m = t->tokens_now, .n = n, .ld = n);
    return MOED_OK;
}

static moed_status backward_attention(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t width = moedi_qkv_width(c), heads = c->heads * c->head_dim,
                  value = heads + c->kv_heads * c->head_dim;
    MOEDI_TRY(bias_backward(t, moedi_group_of(t, layer, MOEDI_GROUP_O_BIAS), t->d_x, c->hidden));
    MOEDI_TRY(linear_backward(t, t->d_attended, 0, moedi_group_of(t, layer, MOEDI_GROUP_O), a->attended,
                              t->d_x, c->hidden, heads));
    MOEDI_LONG_OP(t, attention_backward, moed_op_attention, .out = a->attended, .lse = a->attention_lse,
             .q = a->qkv, .k = moedi_at(t, a->qkv, heads), .v = moedi_at(t, a->qkv, value), .d_q = t->d_qkv,
             .d_k = moedi_at(t, t->d_qkv, heads), .d_v = moedi_at(t, t->d_qkv, value), .d_out = t->d_attended,
             .start = t->now.start, .rows = t->last_rows, .length = t->last_length, .heads = c->heads,
             .kv_heads = c->kv_heads, .head_dim = c->head_dim, .stride = width,
             .scale = 1.0 / sqrt((double)c->head_dim), .whole = t->whole);
    MOEDI_OP(t, rope, moed_op_rope, .x = t->d_qkv, .cosine = t->cosine, .sine = t->sine,
             .positions = t->now.positions, .count = t->tokens_now, .heads = c->heads + c->kv_heads,
             .head_dim = c->head_dim, .stride = width, .inverse = 1);
    for (int key = 0; key < 2 && c->qk_norm; key++) {
        moed_op_rmsnorm norm = moedi_transformer_qk_norm(t, layer, key);
        MOEDI_TRY(t->engine.table->rmsnorm_backward(t->engine.self, &norm));
    }
    MOEDI_TRY(bias_backward(t, moedi_group_of(t, layer, MOEDI_GROUP_QKV_BIAS), t->d_qkv, width));
    const moedi_group *weight = moedi_group_of(t, layer, MOEDI_GROUP_ATTENTION_NORM);
    if (t->renorm) MOEDI_TRY(moedi_transformer_norm(t, a->normed, a->attention_rstd, a->x, weight));
    MOEDI_TRY(linear_backward(t, t->d_h, 0, moedi_group_of(t, layer, MOEDI_GROUP_QKV), a->normed, t->d_qkv,
                              width, c->hidden));
    return norm_backward(t, weight, a->attention_rstd, a->x);
}

static moed_status backward_layer(moedi_transformer *t, int64_t layer)
{
    const moedi_activations *a = &t->layers[layer];
    const moedi_group *weight = moedi_group_of(t, layer, MOEDI_GROUP_FFN_NORM);
    if (t->renorm) MOEDI_TRY(moedi_transformer_norm(t, a->h, a->ffn_rstd, a->mid, weight));
    const int dense = moedi_config_dense(t->config, layer);
    if (!dense) MOEDI_TRY(moedi_config_routes(t->config) ? backward_experts(t, layer) : backward_only_expert(t, layer));
    if (moedi_plain_width(t->config, layer)) MOEDI_TRY(backward_plain(t, layer, !dense));
    MOEDI_TRY(norm_backward(t, weight, a->ffn_rstd, a->mid));
    return backward_attention(t, layer);
}

static moed_status backward_all(moedi_transformer *t)
{
    const moedi_config *c = t->config;
    MOEDI_TRY(t->engine.table->zero(t->engine.self, t->d_x, (size_t)(t->tokens_now * c->hidden) * t->item));
    MOEDI_TRY(norm_backward(t, moedi_group_final_norm(t), t->final_rstd, t->final_x));
    /* Below the lowest trained layer nobody asks for gradients. */
    for (int64_t l = c->layers - 1; l >= 0 && l >= t->lowest; l--) {
        MOEDI_TRY(moedi_cancel_check(t->cancel));
        MOEDI_TRY(backward_layer(t, l));
    }
    void *d_table = moedi_group_gradient(t, moedi_group_embedding(t));
    if (!d_table) return MOED_OK;
    MOEDI_OP(t, embedding_backward, moed_op_embedding, .d_table = d_table, .d_out = t->d_x,
             .tokens = t->now.tokens, .count = t->tokens_now, .width = c->hidden, .vocabulary = c->vocabulary);
    return MOED_OK;
}

moed_status moedi_transformer_backward(moedi_transformer *t, const moed_cancel *cancel)
{
    if (!t->ready) {
        return moedi_fail(MOED_E_STATE,
                          "backward needs a forward pass with labels and an objective just before it");
    }
    t->ready = 0;
    t->cancel = cancel;
    const moed_status status = backward_all(t);
    t->cancel = NULL, t->fresh = 0;
    return status;
}
