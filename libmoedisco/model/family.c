/* model/family.c - the supported families, one row each, and what their rows say about tensors. */
#include "family.h"

#include <stdio.h>
#include <string.h>

#define LAYER(rest) ("model.layers.%l." rest)
#define ATTENTION_SLOTS                                                        \
    [MOEDI_SLOT_EMBEDDING] = "model.embed_tokens.weight",                      \
    [MOEDI_SLOT_ATTENTION_NORM] = LAYER("input_layernorm.weight"),             \
    [MOEDI_SLOT_Q] = LAYER("self_attn.q_proj.weight"),                         \
    [MOEDI_SLOT_K] = LAYER("self_attn.k_proj.weight"),                         \
    [MOEDI_SLOT_V] = LAYER("self_attn.v_proj.weight"),                         \
    [MOEDI_SLOT_O] = LAYER("self_attn.o_proj.weight"),                         \
    [MOEDI_SLOT_FFN_NORM] = LAYER("post_attention_layernorm.weight"),          \
    [MOEDI_SLOT_FINAL_NORM] = "model.norm.weight",                             \
    [MOEDI_SLOT_HEAD] = "lm_head.weight"
#define QKV_BIAS_SLOTS                                                         \
    [MOEDI_SLOT_Q_BIAS] = LAYER("self_attn.q_proj.bias"),                      \
    [MOEDI_SLOT_K_BIAS] = LAYER("self_attn.k_proj.bias"),                      \
    [MOEDI_SLOT_V_BIAS] = LAYER("self_attn.v_proj.bias")
#define QK_NORM_SLOTS                                                          \
    [MOEDI_SLOT_Q_NORM] = LAYER("self_attn.q_norm.weight"),                    \
    [MOEDI_SLOT_K_NORM] = LAYER("self_attn.k_norm.weight")
#define EXPERT_SLOTS                                                           \
    [MOEDI_SLOT_ROUTER] = LAYER("mlp.gate.weight"),                            \
    [MOEDI_SLOT_EXPERT_GATE] = LAYER("mlp.experts.%e.gate_proj.weight"),       \
    [MOEDI_SLOT_EXPERT_UP] = LAYER("mlp.experts.%e.up_proj.weight"),           \
    [MOEDI_SLOT_EXPERT_DOWN] = LAYER("mlp.experts.%e.down_proj.weight")
#define ONLY_EXPERT_SLOTS                                                      \
    [MOEDI_SLOT_EXPERT_GATE] = LAYER("mlp.gate_proj.weight"),                  \
    [MOEDI_SLOT_EXPERT_UP] = LAYER("mlp.up_proj.weight"),                      \
    [MOEDI_SLOT_EXPERT_DOWN] = LAYER("mlp.down_proj.weight")
/* What Transformers 5 has in memory, and writes with save_original_format=False. */
#define STACKED                                                                \
    .stacked = {                                                               \
        [MOEDI_SLOT_ROUTER] = LAYER("mlp.gate.weight"),                        \
        [MOEDI_SLOT_EXPERT_GATE] = LAYER("mlp.experts.gate_up_proj"),          \
        [MOEDI_SLOT_EXPERT_DOWN] = LAYER("mlp.experts.down_proj"),             \
    }
#define DENSE_SLOTS                                                            \
    [MOEDI_SLOT_DENSE_GATE] = LAYER("mlp.gate_proj.weight"),                   \
    [MOEDI_SLOT_DENSE_UP] = LAYER("mlp.up_proj.weight"),                       \
    [MOEDI_SLOT_DENSE_DOWN] = LAYER("mlp.down_proj.weight")

/* Field names, tensor names and defaults as in Transformers' configuration and modelling files of each family. */
static const moedi_family families[] = {
    {
        .name = "qwen2_moe",
        .architecture = "Qwen2MoeForCausalLM",
        .slots = {
            ATTENTION_SLOTS, QKV_BIAS_SLOTS, EXPERT_SLOTS, DENSE_SLOTS,
            [MOEDI_SLOT_SHARED_GATE] = LAYER("mlp.shared_expert.gate_proj.weight"),
            [MOEDI_SLOT_SHARED_UP] = LAYER("mlp.shared_expert.up_proj.weight"),
            [MOEDI_SLOT_SHARED_DOWN] = LAYER("mlp.shared_expert.down_proj.weight"),
            [MOEDI_SLOT_SHARED_SWITCH] = LAYER("mlp.shared_expert_gate.weight"),
        },
        STACKED,
        .experts_field = "num_experts", .experts_alias = "num_local_experts", .top_k_field = "num_experts_per_tok",
        .expert_width_field = "moe_intermediate_size",
        .shared_width_field = "shared_expert_intermediate_size",
        .bias_field = "qkv_bias", .bias = 1,
        .normalise_top_k = -1,
        .kv_heads = 16,
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 32768,
    },
    {
        .name = "mixtral",
        .architecture = "MixtralForCausalLM",
        .slots = {
            ATTENTION_SLOTS,
            [MOEDI_SLOT_ROUTER] = LAYER("block_sparse_moe.gate.weight"),
            [MOEDI_SLOT_EXPERT_GATE] = LAYER("block_sparse_moe.experts.%e.w1.weight"),
            [MOEDI_SLOT_EXPERT_UP] = LAYER("block_sparse_moe.experts.%e.w3.weight"),
            [MOEDI_SLOT_EXPERT_DOWN] = LAYER("block_sparse_moe.experts.%e.w2.weight"),
        },
        STACKED,
        .experts_field = "num_local_experts", .experts_alias = "num_experts", .top_k_field = "num_experts_per_tok",
        .expert_width_field = "intermediate_size",
        .dense = "mistral",
        .normalise_top_k = 1,
        .sliding_window = 1,
        .kv_heads = 8,
        .epsilon = 1e-5,
        .rope_theta = 1000000.0,
        .context_length = 131072,
    },
    {
        .name = "olmoe",
        .architecture = "OlmoeForCausalLM",
        .slots = {
            ATTENTION_SLOTS, QKV_BIAS_SLOTS, QK_NORM_SLOTS, EXPERT_SLOTS,
            [MOEDI_SLOT_O_BIAS] = LAYER("self_attn.o_proj.bias"),
        },
        STACKED,
        .experts_field = "num_experts", .experts_alias = "num_local_experts", .top_k_field = "num_experts_per_tok",
        .expert_width_field = "intermediate_size",
        .bias_field = "attention_bias",
        .normalise_top_k = -1,
        .qk_norm = MOEDI_QK_NORM_WHOLE,
        .sliding_window = 1,
        .epsilon = 1e-5,
        .rope_theta = 10000.0,
        .context_length = 4096,
    },
    {
        .name = "qwen3_moe",
        .architecture = "Qwen3MoeForCausalLM",
        .slots = {
            ATTENTION_SLOTS, QKV_BIAS_SLOTS, QK_NORM_SLOTS, EXPERT_SLOTS, DENSE_SLOTS,
            [MOEDI_SLOT_O_BIAS] = LAYER("self_attn.o_proj.bias"),
        },
        STACKED,
        .experts_field = "num_experts", .experts_alias = "num_local_experts", .top_k_field = "num_experts_per_tok",
        .expert_width_field = "moe_intermediate_size",
        .bias_field = "attention_bias",
        .dense = "qwen3",
        .normalise_top_k = -1,
        .qk_norm = MOEDI_QK_NORM_HEAD,
        .kv_heads = 4,
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 32768,
    },
    {
        .name = "dots1",
        .architecture = "Dots1ForCausalLM",
        .slots = {
            ATTENTION_SLOTS, QKV_BIAS_SLOTS, QK_NORM_SLOTS, EXPERT_SLOTS, DENSE_SLOTS,
            [MOEDI_SLOT_O_BIAS] = LAYER("self_attn.o_proj.bias"),
            [MOEDI_SLOT_ROUTER_BIAS] = LAYER("mlp.gate.e_score_correction_bias"),
            [MOEDI_SLOT_SHARED_GATE] = LAYER("mlp.shared_experts.gate_proj.weight"),
            [MOEDI_SLOT_SHARED_UP] = LAYER("mlp.shared_experts.up_proj.weight"),
            [MOEDI_SLOT_SHARED_DOWN] = LAYER("mlp.shared_experts.down_proj.weight"),
        },
        STACKED,
        .experts_field = "n_routed_experts", .experts_alias = "num_local_experts", .top_k_field = "num_experts_per_tok",
        .expert_width_field = "moe_intermediate_size",
        .shared_count_field = "n_shared_experts",
        .bias_field = "attention_bias", .weight_scale_field = "routed_scaling_factor",
        .normalise_top_k = -1,
        .qk_norm = MOEDI_QK_NORM_HEAD,
        .score = MOED_SCORE_SIGMOID,
        .sliding_window = 2, .window = 4096,
        .kv_heads = 32,
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 2048,
    },
    {   /* LLaMA-MoE v1 (arXiv 2406.16554): the neurons of LLaMA's feed-forward in equal parts; code beside the checkpoint */
        .name = "llama_moe",
        .architecture = "LlamaMoEForCausalLM",
        .slots = {
            ATTENTION_SLOTS,
            [MOEDI_SLOT_ROUTER] = LAYER("mlp.gate.gate_network.weight"),
            [MOEDI_SLOT_ROUTER_IN] = LAYER("mlp.gate.gate_network.0.weight"),
            [MOEDI_SLOT_ROUTER_OUT] = LAYER("mlp.gate.gate_network.2.weight"),
            [MOEDI_SLOT_ROUTER_NOISE] = LAYER("mlp.gate.weight_noise.weight"),
            [MOEDI_SLOT_EXPERT_GATE] = LAYER("mlp.calculator.experts.weight_gate.%e"),
            [MOEDI_SLOT_EXPERT_UP] = LAYER("mlp.calculator.experts.weight_up.%e"),
            [MOEDI_SLOT_EXPERT_DOWN] = LAYER("mlp.calculator.experts.weight_down.%e"),
        },
        .experts_field = "num_experts", .experts_alias = "num_experts", .top_k_field = "num_selects",
        .expert_width_field = "intermediate_size", .expert_sizes_field = "size_experts",
        .weight_scale_field = "score_scale_factor", .noise_field = "gate_add_noise",
        .router_field = "gate_network",
        .router_hidden_field = "gate_hidden_size", /* ours: a part has fewer experts, and all hidden units */
        .needed = {{"gate_type", "\"TopKBalancedNoisyGate\""}, {"gate_use_softmax", "true"},
                   {"calculator_type", "\"UniversalCalculator\""}, {"multiply_gate_scores", "true"},
                   {"add_weight_norm", "false"}},
        .normalise_top_k = 1,
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 2048,
    },
    {
        .name = "mistral",
        .architecture = "MistralForCausalLM",
        .slots = {ATTENTION_SLOTS, ONLY_EXPERT_SLOTS},
        .expert_width_field = "intermediate_size",
        .moe = "mixtral",
        .sliding_window = 1, .window = 4096,
        .kv_heads = 8,
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 131072,
    },
    {
        .name = "llama",
        .architecture = "LlamaForCausalLM",
        .slots = {
            ATTENTION_SLOTS, QKV_BIAS_SLOTS, ONLY_EXPERT_SLOTS,
            [MOEDI_SLOT_O_BIAS] = LAYER("self_attn.o_proj.bias"),
        },
        .expert_width_field = "intermediate_size",
        .bias_field = "attention_bias",
        .moe = "mixtral",
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 2048,
    },
    {
        .name = "qwen3",
        .architecture = "Qwen3ForCausalLM",
        .slots = {
            ATTENTION_SLOTS, QKV_BIAS_SLOTS, QK_NORM_SLOTS, ONLY_EXPERT_SLOTS,
            [MOEDI_SLOT_O_BIAS] = LAYER("self_attn.o_proj.bias"),
        },
        .expert_width_field = "intermediate_size",
        .bias_field = "attention_bias",
        .moe = "qwen3_moe",
        .qk_norm = MOEDI_QK_NORM_HEAD,
        .kv_heads = 32, .head_dim = 128,
        .epsilon = 1e-6,
        .rope_theta = 10000.0,
        .context_length = 32768,
    },
};

const moedi_family *moedi_family_find(const char *model_type)
{
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (!strcmp(families[i].name, model_type)) return &families[i];
    return NULL;
}

void moedi_family_list(char *out, size_t size)
{
    size_t used = 0;
    out[0] = '\0';
    for (size_t i = 0; i < sizeof families / sizeof *families && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? ", " : "", families[i].name);
}

size_t moedi_family_tensor(const moedi_family *f, moedi_slot slot, int32_t layer, int32_t expert, char *out, size_t size)
{
    return f->slots[slot] ? moedi_pattern_fill(f->slots[slot], layer, expert, out, size) : 0;
}

size_t moedi_pattern_fill(const char *pattern, int32_t layer, int32_t expert, char *out, size_t size)
{
    size_t used = 0;
    for (const char *p = pattern; *p && used + 1 < size; p++) {
        if (*p != '%') {
            out[used++] = *p;
            continue;
        }
        p++;
        used += (size_t)snprintf(out + used, size - used, "%d", (int)(*p == 'l' ? layer : expert));
    }
    if (used >= size) used = size - 1;
    out[used] = '\0';
    return used;
}

/* Rank and shape; 0 when the configuration has no such tensor. */
static int slot_shape(const moedi_config *c, moedi_slot slot, int64_t shape[2])
{
    const int64_t query = c->heads * c->head_dim, key = c->kv_heads * c->head_dim;
#define VECTOR(n) (shape[0] = (n), 1)
#define MATRIX(m, n) (shape[0] = (m), shape[1] = (n), 2)
    switch (slot) {
    case MOEDI_SLOT_EMBEDDING: return MATRIX(c->vocabulary, c->hidden);
    case MOEDI_SLOT_ATTENTION_NORM:
    case MOEDI_SLOT_FFN_NORM:
    case MOEDI_SLOT_FINAL_NORM: return VECTOR(c->hidden);
    case MOEDI_SLOT_Q: return MATRIX(query, c->hidden);
    case MOEDI_SLOT_K:
    case MOEDI_SLOT_V: return MATRIX(key, c->hidden);
    case MOEDI_SLOT_Q_BIAS: return c->qkv_bias ? VECTOR(query) : 0;
    case MOEDI_SLOT_K_BIAS:
    case MOEDI_SLOT_V_BIAS: return c->qkv_bias ? VECTOR(key) : 0;
    case MOEDI_SLOT_Q_NORM:
    case MOEDI_SLOT_K_NORM:
        if (!c->qk_norm) return 0;
        return VECTOR(c->qk_norm == MOEDI_QK_NORM_HEAD ? c->head_dim : slot == MOEDI_SLOT_Q_NORM ? query : key);
    case MOEDI_SLOT_O: return MATRIX(c->hidden, query);
    case MOEDI_SLOT_O_BIAS: return c->o_bias ? VECTOR(c->hidden) : 0;
    case MOEDI_SLOT_ROUTER: return c->router_hidden ? 0 : MATRIX(c->experts, c->hidden);
    case MOEDI_SLOT_ROUTER_IN: return c->router_hidden ? MATRIX(c->router_hidden, c->hidden) : 0;
    case MOEDI_SLOT_ROUTER_OUT: return c->router_hidden ? MATRIX(c->experts, c->router_hidden) : 0;
    case MOEDI_SLOT_ROUTER_BIAS: return c->selection_bias ? VECTOR(c->experts) : 0;
    case MOEDI_SLOT_ROUTER_NOISE: return c->router_noise ? MATRIX(c->experts, c->hidden) : 0;
    case MOEDI_SLOT_EXPERT_GATE:
    case MOEDI_SLOT_EXPERT_UP: return MATRIX(c->expert_width, c->hidden);
    case MOEDI_SLOT_EXPERT_DOWN: return MATRIX(c->hidden, c->expert_width);
    case MOEDI_SLOT_SHARED_GATE:
    case MOEDI_SLOT_SHARED_UP: return c->shared_width ? MATRIX(c->shared_width, c->hidden) : 0;
    case MOEDI_SLOT_SHARED_DOWN: return c->shared_width ? MATRIX(c->hidden, c->shared_width) : 0;
    case MOEDI_SLOT_SHARED_SWITCH: return c->shared_switch ? MATRIX(1, c->hidden) : 0;
    case MOEDI_SLOT_DENSE_GATE:
    case MOEDI_SLOT_DENSE_UP: return c->dense_width ? MATRIX(c->dense_width, c->hidden) : 0;
    case MOEDI_SLOT_DENSE_DOWN: return c->dense_width ? MATRIX(c->hidden, c->dense_width) : 0;
    case MOEDI_SLOT_HEAD: return c->tied ? 0 : MATRIX(c->vocabulary, c->hidden);
    case MOEDI_SLOT_COUNT: break;
    }
    return 0;
#undef VECTOR
#undef MATRIX
}

/* A selection bias moves by steps that 16 bits would swallow: it is never narrower than F32, in Transformers neither. */
static int32_t slot_dtype(const moedi_config *c, moedi_slot slot)
{
    return slot == MOEDI_SLOT_ROUTER_BIAS && moedi_dtype_size(c->dtype) < sizeof(float) ? MOED_DTYPE_F32 : c->dtype;
}

int moedi_family_param(const moedi_family *f, const moedi_config *config, moedi_slot slot, moed_param *out)
{
    memset(out, 0, sizeof *out);
    if (!f->slots[slot]) return 0;
    out->rank = slot_shape(config, slot, out->shape);
    out->role = MOED_ROLE_SHARED;
    out->layer = out->expert = out->expert_axis = -1;
    out->dtype = slot_dtype(config, slot);
    switch (slot) {
    case MOEDI_SLOT_EMBEDDING:
    case MOEDI_SLOT_HEAD: out->flags = MOED_PARAM_EMBEDDING; break;
    case MOEDI_SLOT_ATTENTION_NORM:
    case MOEDI_SLOT_Q_NORM:
    case MOEDI_SLOT_K_NORM:
    case MOEDI_SLOT_FFN_NORM:
    case MOEDI_SLOT_FINAL_NORM: out->flags = MOED_PARAM_NORM; break;
    case MOEDI_SLOT_Q_BIAS:
    case MOEDI_SLOT_K_BIAS:
    case MOEDI_SLOT_V_BIAS:
    case MOEDI_SLOT_O_BIAS: out->flags = MOED_PARAM_BIAS; break;
    case MOEDI_SLOT_ROUTER:
    case MOEDI_SLOT_ROUTER_OUT: out->role = MOED_ROLE_ROUTER, out->expert_axis = 0; break;
    case MOEDI_SLOT_ROUTER_BIAS: out->role = MOED_ROLE_ROUTER_BIAS, out->expert_axis = 0, out->flags = MOED_PARAM_FIXED; break;
    case MOEDI_SLOT_ROUTER_NOISE:
        out->role = MOED_ROLE_ROUTER, out->expert_axis = 0, out->flags = MOED_PARAM_FIXED | MOED_PARAM_BIAS; /* drawn as zeros */
        break;
    case MOEDI_SLOT_EXPERT_DOWN: out->flags = MOED_PARAM_EXPERT_OUTPUT; /* fall through */
    case MOEDI_SLOT_EXPERT_GATE:
    case MOEDI_SLOT_EXPERT_UP: out->role = MOED_ROLE_EXPERT; break;
    default: break;
    }
    return out->rank != 0;
}
