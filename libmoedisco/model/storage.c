/* model/storage.c - stacked experts: gate and up of one expert after another, (experts, 2 width, hidden), and their downs. That
 * is the order in which their parameters lie in a layout: a stack is a run of these, and nothing is ever moved. */
#include "storage.h"

#include <string.h>

/* Where name is the pattern with some layer for %l, the layer; else -1. */
static int32_t layer_of(const char *pattern, const char *name)
{
    const char *at = strstr(pattern, "%l");
    int64_t layer = 0;
    if (!at || strncmp(pattern, name, (size_t)(at - pattern)) != 0) return -1;
    const char *digit = name + (at - pattern);
    if (*digit < '0' || *digit > '9' || (*digit == '0' && digit[1] >= '0' && digit[1] <= '9')) return -1;
    for (; *digit >= '0' && *digit <= '9' && layer < INT32_MAX; digit++) layer = 10 * layer + (*digit - '0');
    return !strcmp(digit, at + 2) && layer < INT32_MAX ? (int32_t)layer : -1;
}

/* The first parameter of what a family stacks under a slot, -1 = none. */
static int64_t first_of(const moed_layout *l, moedi_slot slot, int32_t layer)
{
    const int expert = slot == MOEDI_SLOT_EXPERT_GATE || slot == MOEDI_SLOT_EXPERT_DOWN;
    return moedi_layout_slot(l, slot, layer, expert ? 0 : -1);
}

/* `first` is what first_of gave. */
static void describe(const moed_layout *l, moedi_slot slot, size_t first, moedi_stored *out)
{
    const moed_param *p = &l->params[first];
    *out = (moedi_stored){.first = first, .count = 1, .tensor = *p, .stacked = 1};
    if (slot == MOEDI_SLOT_EXPERT_GATE || slot == MOEDI_SLOT_EXPERT_DOWN) {
        const int64_t each = slot == MOEDI_SLOT_EXPERT_GATE ? 2 : 1;
        out->count = (size_t)(each * l->config.experts);
        out->tensor.rank = 3;
        out->tensor.shape[0] = l->config.experts, out->tensor.shape[1] = each * p->shape[0], out->tensor.shape[2] = p->shape[1];
    }
}

static void name_stack(const moed_layout *l, moedi_slot slot, moedi_stored *out)
{
    moedi_pattern_fill(l->family->stacked[slot], out->tensor.layer, -1, out->name, sizeof out->name);
    out->tensor.name = out->name;
}

static int ends_with(const char *name, const char *end)
{
    const size_t n = strlen(name), k = strlen(end);
    return n >= k && !strcmp(name + n - k, end);
}

const char *moedi_storage_advice(const char *name)
{
    static const struct { const char *prefix, *part, *end, *says; } known[] = {
        {"_orig_mod.", NULL, NULL, ": the model was saved as torch.compile wraps it; save its _orig_mod"},
        {"module.", NULL, NULL, ": the model was saved as a parallel wrapper holds it; save its module"},
        {NULL, "_fsdp_wrapped_module.", NULL,
         ": the model was saved as FSDP wraps it; save the full state dict that FSDP gathers"},
        {NULL, ".lora_", NULL, ": an adapter is in it; merge it first (merge_and_unload in peft)"},
        {"base_model.", NULL, NULL, ": an adapter wraps it; merge it first (merge_and_unload in peft)"},
        {NULL, NULL, ".weight_scale_inv", ": its weights are quantised; save them dequantised, as bfloat16"},
        {NULL, NULL, ".weight_scale", ": its weights are quantised; save them dequantised, as bfloat16"},
        {NULL, NULL, ".qweight", ": its weights are quantised; save them dequantised, as bfloat16"},
        {NULL, NULL, ".weight.absmax", ": its weights are quantised; save them dequantised, as bfloat16"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((!known[i].prefix || !strncmp(name, known[i].prefix, strlen(known[i].prefix))) &&
            (!known[i].part || strstr(name, known[i].part)) && (!known[i].end || ends_with(name, known[i].end)))
            return known[i].says;
    return "";
}

int moedi_storage_ignores(const moed_layout *l, const char *name)
{
    /* earlier Transformers saved this buffer with every family */
    return l->family && layer_of("model.layers.%l.self_attn.rotary_emb.inv_freq", name) >= 0;
}

int moedi_storage_find(const moed_layout *l, const char *name, moedi_stored *out)
{
    const int64_t own = moedi_layout_find(l, name);
    if (own >= 0) {
        *out = (moedi_stored){.first = (size_t)own, .count = 1, .tensor = l->params[own]};
        return 1;
    }
    for (int slot = 0; l->family && slot < MOEDI_SLOT_COUNT; slot++) {
        const char *pattern = l->family->stacked[slot];
        const int32_t layer = pattern ? layer_of(pattern, name) : -1;
        const int64_t first = layer >= 0 ? first_of(l, (moedi_slot)slot, layer) : -1;
        if (first < 0) continue;
        describe(l, (moedi_slot)slot, (size_t)first, out);
        out->tensor.name = name;
        return 1;
    }
    return 0;
}

void moedi_storage_from(const moed_layout *l, size_t param, moedi_stored *out)
{
    *out = (moedi_stored){.first = param, .count = 1, .tensor = l->params[param]};
    for (int slot = 0; l->stacked && l->params[param].layer >= 0 && slot < MOEDI_SLOT_COUNT; slot++) {
        if (!l->family->stacked[slot] || first_of(l, (moedi_slot)slot, l->params[param].layer) != (int64_t)param) continue;
        describe(l, (moedi_slot)slot, param, out);
        name_stack(l, (moedi_slot)slot, out);
        return;
    }
}
