/* model/backward.c - gradients: the forward pass of forward.c in reverse, as calls of the operation table.
 * d_x carries the gradient of the residual stream from top to bottom; every branch adds its part to it. */
#include <math.h>

#include "state.h"

/* The gradient of y (rows, n) = x (rows, k) w^T: d_x [+]= d_y w, and d_w += d_y^T x where w is
 * trained. */
static moed_status linear_backward(moedi_transformer *t, void *d_x, int accumulate, const moedi_group *w,
                                   const void *x, const void *d_y, int64_t n, int64_t k)
{
    void *d_w = moedi_group_gradient(t, w);
    if (d_w) {
        MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = d_w, .a = d_y, .b = x, .m = n, .n = k, .k = t->tokens_now,
                 .lda = n, .ldb = k, .ldc = k, .transpose_a = 1, .accumulate = 1);
    }
    MOEDI_LONG_OP(t, gemm, moed_op_gemm, .c = d_x, .a = d_y, .b = w->weight, .m = t->tokens_now, .n = k, .k = n,
             .lda = n, .ldb = k, .ldc = k, .accumulate = accumulate);
    return MOED_OK;
}

/* The same for all experts: places of expert e use matrix e of w. d_x =. */
static moed_status grouped_backward(moedi_transformer *t, int64_t layer, void *d_x, const moedi_group *w,
                                    const void *x, const void *d_y, int64_t n, int64_t k)
{
    const moedi_config *c = t->config;
    const int64_t *offsets = t->layers[layer].offsets;
    const int64_t places = t->tokens_now * c->top_k;
    void *d_w = moedi_group_gradient(t, w);
    if (d_w) {
        MOEDI_LONG_OP(t, grouped_gemm, moed_op_grouped_gemm, .c = d_w, .a = d_y, .b = x, .offsets = offsets,
                 .groups = c->experts, .m = n, .n = k, .k = places, .lda = n, .ldb = k, .ldc = k,
                 .stride_c = n * k, .reduce = 1, .accumulate = 1);
    }
    MOEDI_LONG_OP(t, grouped_gemm, moed_op_grouped_gemm, .c = d_x, .a = d_y, .b = w->weight, .offsets = offsets,
             .groups = c->experts, .m = places, .n = k, .k = n, .lda = n, .ldb = k, .ldc = k,
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

/* Experts: d_h += and d_weights of the routing. */
static moed_status backward_experts(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t places = t->tokens_now * c->top_k, width = c->expert_width, hidden = c->hidden;
    void *d_gathered = t->d_y; /* d_y is used up by then */
    MOEDI_TRY(grouped_backward(t, layer, t->d_act, moedi_group_of(t, layer, MOEDI_GROUP_DOWN), a->act, t->d_y,
                               hidden, width));
    MOEDI_OP(t, swiglu_backward, moed_op_swiglu, .gate_up = a->gate_up, .d_gate_up = t->d_gate_up,
             .d_out = t->d_act, .rows = places, .width = width);
    MOEDI_OP(t, gather, moed_op_gather, .out = t->gathered, .x = a->h, .source = a->source, .slot = a->slot,
             .rows = t->tokens_now, .top_k = c->top_k, .width = hidden);
    MOEDI_TRY(grouped_backward(t, layer, d_gathered, moedi_group_of(t, layer, MOEDI_GROUP_GATE_UP),
                               t->gathered, t->d_gate_up, 2 * width, hidden));
    MOEDI_OP(t, gather_backward, moed_op_gather, .d_x = t->d_h, .d_out = d_gathered, .source = a->source,
             .slot = a->slot, .rows = t->tokens_now, .top_k = c->top_k, .width = hidden);
    return MOED_OK;
}

/* The only expert: d_h = */
static moed_status backward_only_expert(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t width = c->expert_width;
    MOEDI_TRY(linear_backward(t, t->d_act, 0, moedi_group_of(t, layer, MOEDI_GROUP_DOWN), a->act, t->d_x,
                              c->hidden, width));
    MOEDI_OP(t, swiglu_backward, moed_op_swiglu, .gate_up = a->gate_up, .d_gate_up = t->d_gate_up,
             .d_out = t->d_act, .rows = t->tokens_now, .width = width);
    return linear_backward(t, t->d_h, 0, moedi_group_of(t, layer, MOEDI_GROUP_GATE_UP), a->h, t->d_gate_up,
                           2 * width, c->hidden);
}

/* Router: d_h = from the weights it gave, and from its own two losses. */
static moed_status backward_router(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    MOEDI_OP(t, combine_backward, moed_op_combine, .y = a->y, .weights = a->weights, .d_y = t->d_y,
             .d_weights = t->d_weights, .d_out = t->d_x, .slot = a->slot, .rows = t->tokens_now,
             .top_k = c->top_k, .width = c->hidden);
    MOEDI_OP(t, router_backward, moed_op_router, .probabilities = a->probabilities, .weights = a->weights,
             .lse = a->router_lse, .ids = a->ids, .logits = a->router_logits, .d_logits = t->d_router_logits,
             .d_weights = t->d_weights, .rows = t->tokens_now, .experts = c->experts, .top_k = c->top_k,
             .normalise = c->normalise_top_k, .load_balance = t->objective.load_balance,
             .z_loss = t->objective.z_loss, .loss_scale = t->objective.scale / (double)c->layers);
    return linear_backward(t, t->d_h, 0, moedi_group_of(t, layer, MOEDI_GROUP_ROUTER), a->h,
                           t->d_router_logits, c->experts, c->hidden);
}

/* Shared expert: d_h += */
static moed_status backward_shared(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t width = c->shared_width;
    MOEDI_OP(t, sigmoid_gate_backward, moed_op_sigmoid_gate, .x = a->shared_y, .gate = a->shared_switch,
             .d_x = t->d_shared_y, .d_gate = t->d_shared_switch, .d_out = t->d_x, .rows = t->tokens_now,
             .width = c->hidden);
    MOEDI_TRY(linear_backward(t, t->d_h, 1, moedi_group_of(t, layer, MOEDI_GROUP_SHARED_SWITCH), a->h,
                              t->d_shared_switch, 1, c->hidden));
    MOEDI_TRY(linear_backward(t, t->d_shared_act, 0, moedi_group_of(t, layer, MOEDI_GROUP_SHARED_DOWN),
                              a->shared_act, t->d_shared_y, c->hidden, width));
    MOEDI_OP(t, swiglu_backward, moed_op_swiglu, .gate_up = a->shared_gate_up,
             .d_gate_up = t->d_shared_gate_up, .d_out = t->d_shared_act, .rows = t->tokens_now,
             .width = width);
    return linear_backward(t, t->d_h, 1, moedi_group_of(t, layer, MOEDI_GROUP_SHARED_GATE_UP), a->h,
                           t->d_shared_gate_up, 2 * width, c->hidden);
}

static moed_status backward_attention(moedi_transformer *t, int64_t layer)
{
    const moedi_config *c = t->config;
    const moedi_activations *a = &t->layers[layer];
    const int64_t width = moedi_qkv_width(c), heads = c->heads * c->head_dim,
                  value = heads + c->kv_heads * c->head_dim;
    void *d_bias = moedi_group_gradient(t, moedi_group_of(t, layer, MOEDI_GROUP_QKV_BIAS));
    MOEDI_TRY(linear_backward(t, t->d_attended, 0, moedi_group_of(t, layer, MOEDI_GROUP_O), a->attended,
                              t->d_x, c->hidden, heads));
    MOEDI_LONG_OP(t, attention_backward, moed_op_attention, .out = a->attended, .lse = a->attention_lse,
             .q = a->qkv, .k = moedi_at(t, a->qkv, heads), .v = moedi_at(t, a->qkv, value), .d_q = t->d_qkv,
             .d_k = moedi_at(t, t->d_qkv, heads), .d_v = moedi_at(t, t->d_qkv, value), .d_out = t->d_attended,
             .start = t->start, .rows = t->last_rows, .length = t->last_length, .heads = c->heads,
             .kv_heads = c->kv_heads, .head_dim = c->head_dim, .stride = width,
             .scale = 1.0 / sqrt((double)c->head_dim), .whole = t->whole);
    MOEDI_OP(t, rope, moed_op_rope, .x = t->d_qkv, .cosine = t->cosine, .sine = t->sine,
             .positions = t->positions, .count = t->tokens_now, .heads = c->heads + c->kv_heads,
             .head_dim = c->head_dim, .stride = width, .inverse = 1);
    if (d_bias) {
        MOEDI_OP(t, bias_backward, moed_op_bias_backward, .d_bias = d_bias, .d_out = t->d_qkv,
                 .m = t->tokens_now, .n = width, .ld = width);
    }
    MOEDI_TRY(linear_backward(t, t->d_h, 0, moedi_group_of(t, layer, MOEDI_GROUP_QKV), a->normed, t->d_qkv,
                              width, c->hidden));
    return norm_backward(t, moedi_group_of(t, layer, MOEDI_GROUP_ATTENTION_NORM), a->attention_rstd, a->x);
}

static moed_status backward_layer(moedi_transformer *t, int64_t layer)
{
    const moedi_activations *a = &t->layers[layer];
    if (t->config->experts > 1) {
        MOEDI_TRY(backward_router(t, layer));
        MOEDI_TRY(backward_experts(t, layer));
    } else {
        MOEDI_TRY(backward_only_expert(t, layer));
    }
    if (t->config->shared_width) MOEDI_TRY(backward_shared(t, layer));
    MOEDI_TRY(norm_backward(t, moedi_group_of(t, layer, MOEDI_GROUP_FFN_NORM), a->ffn_rstd, a->mid));
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
             .tokens = t->tokens, .count = t->tokens_now, .width = c->hidden, .vocabulary = c->vocabulary);
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
    t->cancel = NULL;
    return status;
}
