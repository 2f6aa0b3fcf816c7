/* model/flops.c - what a forward pass computes per token: the figure behind every cost and time in the reports. */
#include "transformer.h"

double moedi_transformer_flops(const moed_layout *l, int64_t length)
{
    if (!l->family) return 0.0;
    const moedi_config *c = &l->config;
    const double hidden = (double)c->hidden, query = (double)(c->heads * c->head_dim), key = (double)(c->kv_heads * c->head_dim);
    const double projections = hidden * (2.0 * query + 2.0 * key);
    const double inner = (double)c->router_hidden;
    const double router = inner > 0 ? inner * (hidden + (double)c->experts) : (double)c->experts * hidden;
    const double experts = router + 3.0 * hidden * (double)(c->expert_width * c->top_k);
    const double shared = 3.0 * hidden * (double)c->shared_width + (c->shared_switch ? hidden : 0.0);
    const double dense = 3.0 * hidden * (double)c->dense_width, layers = (double)c->layers, routed = (double)c->routed_layers;
    /* q k^T and its product with v over (length + 1) / 2 earlier tokens on average */
    const double attention = 2.0 * query * (double)(length + 1);
    const double matmul = layers * projections + routed * (experts + shared) + (layers - routed) * dense;
    return 2.0 * matmul + layers * attention + 2.0 * hidden * (double)c->vocabulary;
}
