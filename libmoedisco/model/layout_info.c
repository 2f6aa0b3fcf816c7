/* model/layout_info.c - what a layout comes to: numbers, bytes, arithmetic. */
#include <string.h>

#include "core/options.h"
#include "transformer.h"

moed_status moed_layout_get_info(const moed_layout *l, moed_layout_info *out)
{
    moed_layout_info info = {0};
    moedi_clear_error();
    MOEDI_REQUIRE(l, "the layout is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    info.struct_size = sizeof info;
    info.params = (int64_t)l->count;
    info.layers = l->layers;
    info.experts = l->most_experts;
    info.total = l->elements;
    int64_t of_experts = 0; /* in routed experts */
    for (size_t i = 0; i < l->count; i++) {
        const int64_t elements = moedi_param_elements(&l->params[i]);
        if (l->params[i].role == MOED_ROLE_SHARED) info.shared += elements;
        if (l->params[i].role == MOED_ROLE_EXPERT) of_experts += elements;
        info.bytes += (int64_t)moedi_param_bytes(&l->params[i]);
    }
    if (l->family) {
        const moedi_config *c = &l->config;
        memcpy(info.family, l->family->name, strlen(l->family->name) + 1);
        info.top_k = c->top_k, info.hidden = c->hidden, info.vocabulary = c->vocabulary, info.context_length = c->context_length;
        info.active = l->elements - of_experts / c->experts * (c->experts - c->top_k); /* as many in every layer that has some */
        info.forward_flops = moedi_transformer_flops(l, c->context_length);
    }
    return moedi_info_write(MOED_STRUCT_LAYOUT_INFO, &info, out);
}
