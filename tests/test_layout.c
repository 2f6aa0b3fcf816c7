/* Layouts: by hand and from config.json; what is refused, what is counted, what is compared. */
#include "support.h"
#include "fixture.h"

#include <jansson.h>

#include "model/layout.h"

static const char QWEN[] =
    "{\"model_type\":\"qwen2_moe\",\"architectures\":[\"Qwen2MoeForCausalLM\"],\"vocab_size\":50,"
    "\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,"
    "\"num_experts\":3,\"num_experts_per_tok\":2,\"moe_intermediate_size\":6,"
    "\"shared_expert_intermediate_size\":10,\"max_position_embeddings\":64,\"custom_field\":[1,{\"a\":\"b\"}]}";
static const char OLMOE[] =
    "{\"model_type\":\"olmoe\",\"vocab_size\":50,\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_experts\":3,\"num_experts_per_tok\":2,\"intermediate_size\":6}";
static const char DOTS[] =
    "{\"model_type\":\"dots1\",\"vocab_size\":50,\"hidden_size\":16,\"num_hidden_layers\":3,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"n_routed_experts\":3,\"n_shared_experts\":2,\"num_experts_per_tok\":2,"
    "\"moe_intermediate_size\":6,\"intermediate_size\":14,\"first_k_dense_replace\":1,\"torch_dtype\":\"bfloat16\"}";
static const char LLAMA[] =
    "{\"model_type\":\"llama_moe\",\"vocab_size\":50,\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_experts\":3,\"num_selects\":2,\"intermediate_size\":18,\"gate_network\":\"linear\","
    "\"size_experts\":[[6,6,6],[6,6,6]]}";
static const char MIXTRAL[] =
    "{\"model_type\":\"mixtral\",\"vocab_size\":50,\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
    "\"num_key_value_heads\":2,\"num_local_experts\":3,\"num_experts_per_tok\":2,\"intermediate_size\":6,"
    "\"max_position_embeddings\":64}";

/* base with the fields of `change` ({"field": value}) set; a field set to "<drop>" is taken away */
static char *changed(const char *base, const char *change)
{
    json_t *o = json_loads(base, 0, NULL), *with = json_loads(change, 0, NULL);
    const char *key;
    json_t *value;
    assert_non_null(o);
    if (!with) fail_msg("%s is no JSON", change);
    json_object_foreach(with, key, value)
    {
        if (json_is_string(value) && !strcmp(json_string_value(value), "<drop>"))
            json_object_del(o, key);
        else
            json_object_set(o, key, value);
    }
    char *text = json_dumps(o, 0);
    json_decref(o);
    json_decref(with);
    return text;
}

static moed_layout_info info_of(const moed_layout *l)
{
    moed_layout_info info = {.struct_size = sizeof info};
    assert_ok(moed_layout_get_info(l, &info));
    return info;
}

static void family_parameters_lie_in_slot_order(void **state)
{
    static const char *const want[] = {
        "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight",
        "model.layers.0.self_attn.q_proj.bias", "model.layers.0.self_attn.k_proj.bias", "model.layers.0.self_attn.v_proj.bias",
        "model.layers.0.self_attn.o_proj.weight", "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate.weight", "model.layers.0.mlp.experts.0.gate_proj.weight",
        "model.layers.0.mlp.experts.0.up_proj.weight", "model.layers.0.mlp.experts.1.gate_proj.weight",
        "model.layers.0.mlp.experts.1.up_proj.weight", "model.layers.0.mlp.experts.2.gate_proj.weight",
        "model.layers.0.mlp.experts.2.up_proj.weight", "model.layers.0.mlp.experts.0.down_proj.weight",
        "model.layers.0.mlp.experts.1.down_proj.weight", "model.layers.0.mlp.experts.2.down_proj.weight",
        "model.layers.0.mlp.shared_expert.gate_proj.weight", "model.layers.0.mlp.shared_expert.up_proj.weight",
        "model.layers.0.mlp.shared_expert.down_proj.weight", "model.layers.0.mlp.shared_expert_gate.weight",
        "model.layers.1.input_layernorm.weight"};
    moed_context *c = *state;
    moed_layout *l = support_layout(c, QWEN);
    moed_param p;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_ok(moed_layout_param(l, i, &p));
        assert_string_equal(p.name, want[i]);
    }
    assert_ok(moed_layout_param(l, l->count - 1, &p));
    assert_string_equal(p.name, "lm_head.weight");
    assert_int_equal(p.flags, MOED_PARAM_EMBEDDING);
    assert_refused(moed_layout_param(l, l->count, &p), MOED_E_RANGE, "parameter 49 of a layout of 49");
    assert_int_equal(moedi_layout_slot(l, MOEDI_SLOT_EXPERT_DOWN, 1, 2), 24 + 18);
    assert_int_equal(moedi_layout_slot(l, MOEDI_SLOT_EXPERT_DOWN, 1, 3), -1);
    for (size_t i = 0; i < l->count; i++) assert_int_equal(moedi_layout_find(l, l->params[i].name), i);
    moed_layout_destroy(l);
}

static void roles_flags_and_shapes_of_a_family(void **state)
{
    moed_context *c = *state;
    moed_layout *l = support_layout(c, MIXTRAL);
    const moed_param *router = &l->params[moedi_layout_find(l, "model.layers.1.block_sparse_moe.gate.weight")];
    const moed_param *down = &l->params[moedi_layout_find(l, "model.layers.1.block_sparse_moe.experts.2.w2.weight")];
    const moed_param *key = &l->params[moedi_layout_find(l, "model.layers.0.self_attn.k_proj.weight")];
    assert_int_equal(router->role, MOED_ROLE_ROUTER);
    assert_int_equal(router->expert_axis, 0);
    assert_int_equal(router->shape[0], 3);
    assert_int_equal(down->role, MOED_ROLE_EXPERT);
    assert_int_equal(down->expert, 2);
    assert_int_equal(down->layer, 1);
    assert_int_equal(down->flags, MOED_PARAM_EXPERT_OUTPUT);
    assert_int_equal(down->shape[0], 16);
    assert_int_equal(down->shape[1], 6);
    assert_int_equal(key->shape[0], 2 * 4);
    assert_int_equal(moedi_layout_find(l, "model.layers.0.self_attn.q_proj.bias"), -1);
    assert_int_equal(l->config.normalise_top_k, 1);
    assert_true(l->config.rope.theta == 1e6 && l->config.epsilon == 1e-5);
    moed_layout_destroy(l);

    l = support_layout(c, QWEN);
    assert_int_equal(l->params[moedi_layout_find(l, "model.layers.0.mlp.shared_expert_gate.weight")].role, MOED_ROLE_SHARED);
    assert_int_equal(l->params[moedi_layout_find(l, "model.layers.0.self_attn.q_proj.bias")].flags, MOED_PARAM_BIAS);
    assert_int_equal(l->params[moedi_layout_find(l, "model.norm.weight")].flags, MOED_PARAM_NORM);
    assert_int_equal(l->config.normalise_top_k, 0);
    assert_true(l->config.rope.theta == 1e4);
    moed_layout_destroy(l);
}

static void config_fields_of_several_generations_are_read(void **state)
{
    static const struct { const char *change; double theta; int32_t dtype; int64_t kv, head_dim; } cases[] = {
        {"{\"rope_theta\": 5000, \"torch_dtype\": \"bfloat16\"}", 5000, MOED_DTYPE_BF16, 2, 4},
        {"{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 7000.0}, \"dtype\": \"float16\"}", 7000,
         MOED_DTYPE_F16, 2, 4},
        {"{\"rope_scaling\": null, \"num_key_value_heads\": null, \"torch_dtype\": \"torch.float64\"}", 1e4, MOED_DTYPE_F64, 4,
         4},
        {"{\"rope_scaling\": {\"type\": \"default\"}, \"head_dim\": 6}", 1e4, MOED_DTYPE_F32, 2, 6},
        {"{\"head_dim\": null, \"sliding_window\": 8, \"mlp_only_layers\": [], \"hidden_act\": \"silu\"}", 1e4, MOED_DTYPE_F32, 2,
         4},
        {"{\"num_attention_heads\": 16, \"head_dim\": 2, \"num_key_value_heads\": \"<drop>\"}", 1e4, MOED_DTYPE_F32, 16, 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = changed(QWEN, cases[i].change);
        moed_layout *l = support_layout(*state, text);
        assert_true(l->config.rope.theta == cases[i].theta);
        assert_int_equal(l->config.dtype, cases[i].dtype);
        assert_int_equal(l->params[0].dtype, cases[i].dtype);
        assert_int_equal(l->config.kv_heads, cases[i].kv);
        assert_int_equal(l->config.head_dim, cases[i].head_dim);
        moed_layout_destroy(l);
        free(text);
    }
}

static void bad_configs_are_refused_by_field(void **state)
{
    static const struct { const char *base, *change; moed_status status; const char *words; } cases[] = {
        {QWEN, "{\"model_type\": \"gpt_oss\"}", MOED_E_UNSUPPORTED, "model_type \"gpt_oss\""},
        {QWEN, "{\"model_type\": \"gpt_oss\"}", MOED_E_UNSUPPORTED, "qwen2_moe, mixtral, olmoe, qwen3_moe, dots1, llama_moe"},
        {QWEN, "{\"model_type\": \"<drop>\"}", MOED_E_FORMAT, "model_type"},
        {QWEN, "{\"model_type\": 3}", MOED_E_FORMAT, "model_type"},
        {QWEN, "{\"num_experts\": 0}", MOED_E_RANGE, "\"num_experts\" is 0"},
        {QWEN, "{\"num_experts\": -3}", MOED_E_RANGE, "\"num_experts\" is -3"},
        {QWEN, "{\"num_experts\": 1000000000000}", MOED_E_RANGE, "num_experts"},
        {QWEN, "{\"num_experts\": 2.5}", MOED_E_FORMAT, "num_experts"},
        {QWEN, "{\"num_experts\": \"3\"}", MOED_E_FORMAT, "num_experts"},
        {QWEN, "{\"num_experts\": \"<drop>\"}", MOED_E_FORMAT, "num_experts"},
        {QWEN, "{\"num_experts\": 65536, \"num_hidden_layers\": 65536}", MOED_E_RANGE, "num_experts"},
        {QWEN, "{\"num_experts_per_tok\": 4}", MOED_E_RANGE, "num_experts_per_tok 4 is more than num_experts 3"},
        {QWEN, "{\"num_experts_per_tok\": 0}", MOED_E_RANGE, "num_experts_per_tok"},
        {QWEN, "{\"vocab_size\": 0}", MOED_E_RANGE, "vocab_size"},
        {QWEN, "{\"vocab_size\": 2147483647, \"hidden_size\": 1048576}", MOED_E_RANGE, "vocab_size"},
        {QWEN, "{\"vocab_size\": 9223372036854775807}", MOED_E_RANGE, "vocab_size"},
        {QWEN, "{\"hidden_size\": -16}", MOED_E_RANGE, "hidden_size"},
        {QWEN, "{\"hidden_size\": 17}", MOED_E_RANGE, "hidden_size 17"},
        {QWEN, "{\"hidden_size\": 12}", MOED_E_RANGE, "head_dim 3 is odd"},
        {QWEN, "{\"head_dim\": 5}", MOED_E_RANGE, "head_dim 5 is odd"},
        {QWEN, "{\"head_dim\": 0}", MOED_E_RANGE, "head_dim"},
        {QWEN, "{\"num_key_value_heads\": 3}", MOED_E_RANGE, "num_key_value_heads 3"},
        {QWEN, "{\"num_key_value_heads\": \"<drop>\"}", MOED_E_RANGE, "num_key_value_heads 16"},
        {QWEN, "{\"num_hidden_layers\": 0}", MOED_E_RANGE, "num_hidden_layers"},
        {QWEN, "{\"moe_intermediate_size\": -1}", MOED_E_RANGE, "moe_intermediate_size"},
        {QWEN, "{\"moe_intermediate_size\": 2147483648, \"hidden_size\": 524288}", MOED_E_RANGE, "moe_intermediate_size"},
        {QWEN, "{\"shared_expert_intermediate_size\": 0}", MOED_E_RANGE, "shared_expert_intermediate_size"},
        {QWEN, "{\"max_position_embeddings\": 0}", MOED_E_RANGE, "max_position_embeddings"},
        {QWEN, "{\"rms_norm_eps\": -1e-6}", MOED_E_RANGE, "rms_norm_eps"},
        {QWEN, "{\"rms_norm_eps\": \"small\"}", MOED_E_FORMAT, "rms_norm_eps"},
        {QWEN, "{\"initializer_range\": -1}", MOED_E_RANGE, "initializer_range"},
        {QWEN, "{\"rope_theta\": 0}", MOED_E_RANGE, "rope_theta"},
        {QWEN, "{\"rope_scaling\": {\"type\": \"longrope\", \"factor\": 4}}", MOED_E_UNSUPPORTED,
         "rope_scaling is {\"type\":\"longrope\""},
        {QWEN, "{\"rope_parameters\": {\"rope_type\": \"linear\"}}", MOED_E_FORMAT, "factor"},
        {QWEN, "{\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 0}}", MOED_E_RANGE, "factor"},
        {QWEN, "{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, \"high_freq_factor\": 4}}",
         MOED_E_RANGE, "high_freq_factor 4 is not above low_freq_factor 4"},
        {QWEN, "{\"rope_scaling\": {\"rope_type\": \"default\", \"mrope_section\": [2, 2]}}", MOED_E_UNSUPPORTED, "rope_scaling"},
        {QWEN, "{\"rope_parameters\": {\"full_attention\": {\"rope_theta\": 1}}}", MOED_E_UNSUPPORTED, "rope_parameters"},
        {QWEN, "{\"rope_parameters\": {\"partial_rotary_factor\": 0.5}}", MOED_E_UNSUPPORTED, "rope_parameters"},
        {QWEN, "{\"partial_rotary_factor\": 0.5}", MOED_E_UNSUPPORTED, "partial_rotary_factor is 0.5"},
        {QWEN, "{\"rope_parameters\": 3}", MOED_E_UNSUPPORTED, "rope_parameters"},
        {QWEN, "{\"hidden_act\": \"gelu\"}", MOED_E_UNSUPPORTED, "hidden_act is \"gelu\""},
        {QWEN, "{\"decoder_sparse_step\": 0}", MOED_E_RANGE, "decoder_sparse_step"},
        {QWEN, "{\"decoder_sparse_step\": 2}", MOED_E_FORMAT, "\"intermediate_size\" is missing"},
        {QWEN, "{\"mlp_only_layers\": [0.5]}", MOED_E_UNSUPPORTED, "mlp_only_layers is [0.5]"},
        {QWEN, "{\"mlp_only_layers\": 1}", MOED_E_UNSUPPORTED, "mlp_only_layers is 1"},
        {QWEN, "{\"mlp_only_layers\": [1024], \"num_hidden_layers\": 1025, \"intermediate_size\": 8}", MOED_E_UNSUPPORTED,
         "layer 1024"},
        {QWEN, "{\"mlp_only_layers\": [1], \"intermediate_size\": 2147483649}", MOED_E_RANGE, "intermediate_size"},
        {QWEN, "{\"attention_bias\": true}", MOED_E_UNSUPPORTED, "attention_bias is true"},
        {MIXTRAL, "{\"decoder_sparse_step\": 2}", MOED_E_UNSUPPORTED, "decoder_sparse_step is 2"},
        {MIXTRAL, "{\"first_k_dense_replace\": 1}", MOED_E_UNSUPPORTED, "first_k_dense_replace is 1"},
        {OLMOE, "{\"clip_qkv\": 8.0}", MOED_E_UNSUPPORTED, "clip_qkv is 8.0"},
        {LLAMA, "{\"gate_network\": \"cosine\"}", MOED_E_UNSUPPORTED, "gate_network is \"cosine\""},
        {LLAMA, "{\"gate_use_softmax\": false}", MOED_E_UNSUPPORTED, "gate_use_softmax is false"},
        {LLAMA, "{\"size_experts\": [[6,6,6],[5,6,7]]}", MOED_E_UNSUPPORTED, "size_experts is [[6,6,6],[5,6,7]]"},
        {LLAMA, "{\"intermediate_size\": 19}", MOED_E_RANGE, "intermediate_size 19 is not a multiple of num_experts 3"},
        {LLAMA, "{\"score_scale_factor\": [2.0, 4.0]}", MOED_E_UNSUPPORTED, "score_scale_factor is [2.0,4.0]"},
        {LLAMA, "{\"num_selects\": 4}", MOED_E_RANGE, "num_selects 4 is more than num_experts 3"},
        {DOTS, "{\"n_group\": 2}", MOED_E_UNSUPPORTED, "n_group is 2"},
        {DOTS, "{\"n_shared_experts\": null}", MOED_E_FORMAT, "n_shared_experts"},
        {DOTS, "{\"routed_scaling_factor\": 0}", MOED_E_RANGE, "routed_scaling_factor"},
        {DOTS, "{\"max_position_embeddings\": 8192, \"max_window_layers\": 1}", MOED_E_UNSUPPORTED, "max_window_layers is 1"},
        {QWEN, "{\"use_sliding_window\": true}", MOED_E_UNSUPPORTED, "use_sliding_window is true"},
        {QWEN, "{\"layer_types\": [\"sliding_attention\", \"full_attention\"]}", MOED_E_UNSUPPORTED, "layer_types"},
        {QWEN, "{\"attention_dropout\": 0.1}", MOED_E_UNSUPPORTED, "attention_dropout"},
        {QWEN, "{\"quantization_config\": {\"bits\": 4}}", MOED_E_UNSUPPORTED, "quantization_config"},
        {QWEN, "{\"torch_dtype\": \"float8_e4m3fn\"}", MOED_E_UNSUPPORTED, "torch_dtype is \"float8_e4m3fn\""},
        {QWEN,
         "{\"torch_dtype\": \"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890\"}",
         MOED_E_UNSUPPORTED, "is \"012345678901234567890123456789012345678901234567890123456789012345678901234..., and only"},
        {QWEN, "{\"tie_word_embeddings\": 1}", MOED_E_FORMAT, "tie_word_embeddings"},
        {MIXTRAL, "{\"sliding_window\": 63}", MOED_E_UNSUPPORTED, "sliding_window is 63"},
        {MIXTRAL, "{\"num_local_experts\": 0}", MOED_E_RANGE, "num_local_experts"},
        {MIXTRAL, "{\"intermediate_size\": 0}", MOED_E_RANGE, "intermediate_size"},
        {MIXTRAL, "{\"router_jitter_noise\": 0.01}", MOED_E_UNSUPPORTED, "router_jitter_noise"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = changed(cases[i].base, cases[i].change);
        moed_layout *l = NULL;
        assert_refused(moed_layout_from_config(&l, *state, text, strlen(text)), cases[i].status, cases[i].words);
        assert_null(l);
        assert_non_null(strstr(moed_last_error(), "config.json"));
        free(text);
    }
    moed_layout *l = NULL;
    assert_refused(moed_layout_from_config(&l, *state, "{", 1), MOED_E_FORMAT, "config.json");
    assert_refused(moed_layout_from_config(&l, *state, "[]", 2), MOED_E_FORMAT, "config.json");
    assert_refused(moed_layout_from_config(&l, *state, NULL, 2), MOED_E_ARGUMENT, "NULL");
    assert_refused(moed_layout_from_config(NULL, *state, "{}", 2), MOED_E_ARGUMENT, "NULL");
    char *text = changed(MIXTRAL, "{\"sliding_window\": 64}"); /* as long as any row: no window */
    moed_layout_destroy(support_layout(*state, text));
    free(text);
}

/* Qwen1.5-MoE-A2.7B, Mixtral 8x7B, OLMoE-1B-7B, by what counts in their published config.json. */
static void sizes_of_published_models_are_exact(void **state)
{
    static const struct { const char *config; int64_t total, active; } cases[] = {
        {"{\"model_type\": \"qwen2_moe\", \"hidden_size\": 2048, \"num_hidden_layers\": 24, \"num_attention_heads\": 16,"
         " \"num_key_value_heads\": 16, \"num_experts\": 60, \"num_experts_per_tok\": 4, \"moe_intermediate_size\": 1408,"
         " \"intermediate_size\": 5632, \"shared_expert_intermediate_size\": 5632, \"max_position_embeddings\": 8192,"
         " \"max_window_layers\": 21, \"use_sliding_window\": false, \"rms_norm_eps\": 1e-6, \"rope_theta\": 1e6,"
         " \"vocab_size\": 151936, \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}", 14315784192, 2689173504},
        {"{\"model_type\": \"mixtral\", \"hidden_size\": 4096, \"num_hidden_layers\": 32, \"num_attention_heads\": 32,"
         " \"num_key_value_heads\": 8, \"num_local_experts\": 8, \"num_experts_per_tok\": 2, \"intermediate_size\": 14336,"
         " \"max_position_embeddings\": 32768, \"sliding_window\": null, \"rms_norm_eps\": 1e-5, \"rope_theta\": 1e6,"
         " \"vocab_size\": 32000, \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}", 46702792704, 12879925248},
        {"{\"model_type\": \"olmoe\", \"hidden_size\": 2048, \"num_hidden_layers\": 16, \"num_attention_heads\": 16,"
         " \"num_key_value_heads\": 16, \"num_experts\": 64, \"num_experts_per_tok\": 8, \"intermediate_size\": 1024,"
         " \"max_position_embeddings\": 4096, \"clip_qkv\": null, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0,"
         " \"vocab_size\": 50304, \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}", 6919161856, 1282017280},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moed_layout *l = support_layout(*state, cases[i].config);
        const moed_layout_info info = info_of(l);
        assert_int_equal(info.total, cases[i].total);
        assert_int_equal(info.active, cases[i].active);
        assert_int_equal(info.bytes, 2 * cases[i].total);
        moed_context_info use = {.struct_size = sizeof use};
        assert_ok(moed_context_get_info(*state, &use));
        assert_true(use.host_peak < 8 << 20);
        moed_layout_destroy(l);
    }
}

/* A first layer without experts, two shared experts that are one, a selection bias that no 16 bits hold. */
static void layers_without_experts_have_a_plain_feed_forward(void **state)
{
    moed_layout *l = support_layout(*state, DOTS), *half = NULL;
    const moed_layout_info info = info_of(l);
    const int64_t attention = 2 * 16 + 2 * 16 * 16 + 2 * 8 * 16 + 2 * 4, expert = 3 * 6 * 16;
    const int64_t routed = 3 * 16 + 3 + 3 * expert + 3 * 12 * 16, dense = 3 * 14 * 16;
    assert_int_equal(info.total, 3 * attention + dense + 2 * routed + 2 * 50 * 16 + 16);
    assert_int_equal(info.active, info.total - 2 * expert);
    assert_int_equal(info.bytes, 2 * info.total + 2 * 2 * 3);
    assert_int_equal(l->experts[0], 0);
    assert_int_equal(l->experts[1], 3);
    assert_int_equal(l->params[moedi_layout_find(l, "model.layers.0.mlp.down_proj.weight")].role, MOED_ROLE_SHARED);
    assert_int_equal(moedi_layout_find(l, "model.layers.0.mlp.gate.weight"), -1);
    assert_int_equal(l->params[moedi_layout_find(l, "model.layers.2.mlp.shared_experts.up_proj.weight")].shape[0], 12);
    const moed_param *bias = &l->params[moedi_layout_find(l, "model.layers.1.mlp.gate.e_score_correction_bias")];
    assert_int_equal(bias->role, MOED_ROLE_ROUTER_BIAS);
    assert_int_equal(bias->dtype, MOED_DTYPE_F32);
    assert_ok(moedi_layout_with_dtype(&half, l, MOED_DTYPE_F16));
    assert_int_equal(half->params[moedi_layout_find(half, bias->name)].dtype, MOED_DTYPE_F32);
    assert_non_null(strstr(moed_layout_config(half), "\"torch_dtype\": \"float16\""));
    moed_layout *again = support_layout(*state, moed_layout_config(half));
    assert_ok(moedi_layout_equal(half, again, 0));
    const double matmul = 3.0 * (attention - 40) + dense + 2.0 * (48 + 2 * expert + 3 * 12 * 16) + 50 * 16;
    assert_true(info.forward_flops == 2.0 * matmul + 3 * 2.0 * 16 * 2049);
    moed_layout_destroy(l), moed_layout_destroy(half), moed_layout_destroy(again);
}

/* Whose width a config gives for all experts together. */
static void parts_of_a_divided_feed_forward_are_as_wide_as_before(void **state)
{
    moed_layout *l = support_layout(*state, LLAMA), *two = NULL;
    assert_int_equal(l->config.expert_width, 6);
    assert_ok(moedi_layout_with_experts(&two, l, 2, 0, NULL));
    assert_int_equal(two->config.expert_width, 6);
    assert_int_equal(two->config.top_k, 2);
    assert_non_null(strstr(moed_layout_config(two), "\"intermediate_size\": 12"));
    assert_non_null(strstr(moed_layout_config(two), "\"num_selects\": 2"));
    const moed_param *noise = &two->params[moedi_layout_find(two, "model.layers.1.mlp.gate.weight_noise.weight")];
    assert_true(noise->role == MOED_ROLE_ROUTER && noise->shape[0] == 2 && noise->flags & MOED_PARAM_FIXED);
    moed_layout_destroy(l), moed_layout_destroy(two);

    char *text = changed(LLAMA, "{\"gate_network\": \"<drop>\"}"); /* of two layers: the second has a row for each expert */
    l = support_layout(*state, text);
    assert_ok(moedi_layout_with_experts(&two, l, 2, 0, NULL));
    assert_int_equal(moedi_layout_find(two, "model.layers.0.mlp.gate.gate_network.weight"), -1);
    const moed_param *in = &two->params[moedi_layout_find(two, "model.layers.0.mlp.gate.gate_network.0.weight")];
    const moed_param *out = &two->params[moedi_layout_find(two, "model.layers.0.mlp.gate.gate_network.2.weight")];
    assert_true(in->role == MOED_ROLE_SHARED && in->shape[0] == 3 && in->shape[1] == 16);
    assert_true(out->role == MOED_ROLE_ROUTER && out->shape[0] == 2 && out->shape[1] == 3);
    moed_layout_destroy(l), moed_layout_destroy(two);
    free(text);
}

/* Transformers writes num_local_experts for what older configs of the same family call num_experts. */
static void the_number_of_experts_has_two_names(void **state)
{
    char *text = changed(QWEN, "{\"num_experts\": \"<drop>\", \"num_local_experts\": 3}");
    moed_layout *l = support_layout(*state, text), *one = NULL;
    assert_ok(moedi_layout_with_experts(&one, l, 1, 0, NULL));
    assert_int_equal(info_of(one).experts, 1);
    assert_non_null(strstr(moed_layout_config(one), "\"num_local_experts\": 1"));
    assert_null(strstr(moed_layout_config(one), "\"num_experts\""));
    moed_layout_destroy(l), moed_layout_destroy(one);
    free(text);
}

static void totals_of_a_small_model_are_those_counted_by_hand(void **state)
{
    moed_layout *l = support_layout(*state, QWEN);
    const moed_layout_info info = info_of(l);
    const int64_t attention = 16 * 16 + 2 * 8 * 16 + (16 + 8 + 8) + 16 * 16, expert = 3 * 6 * 16, shared = 3 * 10 * 16 + 16;
    const int64_t layer = 2 * 16 + attention + 3 * 16 + 3 * expert + shared;
    assert_string_equal(info.family, "qwen2_moe");
    assert_int_equal(info.total, 2 * layer + 2 * 50 * 16 + 16);
    assert_int_equal(info.active, info.total - 2 * expert);
    assert_int_equal(info.shared, info.total - 2 * (3 * expert + 3 * 16));
    assert_int_equal(info.bytes, 4 * info.total);
    assert_int_equal(info.experts, 3);
    assert_int_equal(info.layers, 2);
    const double matmul = 2.0 * (attention - 32 + 3 * 16 + 2 * expert + shared) + 50 * 16;
    assert_true(info.forward_flops == 2.0 * matmul + 2 * 2.0 * 16 * 65);
    moed_layout_destroy(l);

    char *text = changed(QWEN, "{\"tie_word_embeddings\": true}");
    l = support_layout(*state, text);
    assert_int_equal(info_of(l).total, info.total - 50 * 16);
    assert_true(info_of(l).forward_flops == info.forward_flops); /* the head is still computed */
    assert_int_equal(moedi_layout_find(l, "lm_head.weight"), -1);
    moed_layout_destroy(l);
    free(text);
}

static void unknown_fields_of_a_config_are_kept(void **state)
{
    moed_layout *l = support_layout(*state, QWEN), *one = NULL, *half = NULL;
    json_t *given = json_loads(QWEN, 0, NULL), *kept = json_loads(moed_layout_config(l), 0, NULL);
    assert_true(json_equal(given, kept));
    json_decref(kept);

    json_t *provenance = json_pack("{s:i}", "part", 2);
    assert_ok(moedi_layout_with_experts(&one, l, 1, 0, provenance));
    kept = json_loads(moed_layout_config(one), 0, NULL);
    json_object_set_new(given, "num_experts", json_integer(1));
    json_object_set_new(given, "num_experts_per_tok", json_integer(1));
    json_object_set(given, "moedisco", provenance);
    assert_true(json_equal(given, kept));
    assert_int_equal(info_of(one).experts, 1);
    assert_int_equal(info_of(one).top_k, 1);
    moed_layout *again = support_layout(*state, moed_layout_config(one)); /* a valid model of its family */
    assert_ok(moedi_layout_equal(one, again, 0));

    assert_ok(moedi_layout_with_dtype(&half, l, MOED_DTYPE_BF16));
    assert_non_null(strstr(moed_layout_config(half), "\"torch_dtype\": \"bfloat16\""));
    assert_int_equal(half->params[3].dtype, MOED_DTYPE_BF16);
    assert_refused(moedi_layout_with_experts(&again, l, 0, 0, NULL), MOED_E_RANGE, "0 experts");
    json_decref(given), json_decref(kept), json_decref(provenance);
    moed_layout_destroy(l), moed_layout_destroy(one), moed_layout_destroy(half), moed_layout_destroy(again);
}

static void layouts_differ_by_name(void **state)
{
    moed_layout *a = support_layout(*state, QWEN), *b, *same = support_layout(*state, QWEN), *half = NULL;
    char *text = changed(QWEN, "{\"moe_intermediate_size\": 8}"), one[33], two[33];
    b = support_layout(*state, text);
    free(text);
    assert_ok(moedi_layout_equal(a, same, 0));
    assert_refused(moedi_layout_equal(a, b, 1), MOED_E_MISMATCH,
                   "model.layers.0.mlp.experts.0.gate_proj.weight: rows 6 in one layout and 8");
    assert_ok(moedi_layout_with_dtype(&half, a, MOED_DTYPE_F16));
    assert_refused(moedi_layout_equal(a, half, 0), MOED_E_MISMATCH, "model.embed_tokens.weight: dtype F32 in one layout and F16");
    assert_ok(moedi_layout_equal(a, half, 1));
    moedi_layout_fingerprint(a, one);
    moedi_layout_fingerprint(same, two);
    assert_string_equal(one, two);
    assert_int_equal(strlen(one), 32);
    moedi_layout_fingerprint(b, two);
    assert_string_not_equal(one, two);
    moedi_layout_fingerprint(half, two);
    assert_string_not_equal(one, two);
    text = changed(QWEN, "{\"tie_word_embeddings\": true}");
    moed_layout *tied = support_layout(*state, text);
    free(text);
    assert_refused(moedi_layout_equal(a, tied, 0), MOED_E_MISMATCH, "lm_head.weight is in only one");
    moed_layout_destroy(a), moed_layout_destroy(b), moed_layout_destroy(same), moed_layout_destroy(half),
        moed_layout_destroy(tied);
}

/* An architecture of nobody: fused attention, stacked experts, a bias on the router, an integer table. */
static size_t by_hand(moed_param *p)
{
    memset(p, 0, 8 * sizeof *p);
    for (size_t i = 0; i < 8; i++) p[i].layer = p[i].expert = p[i].expert_axis = -1, p[i].dtype = MOED_DTYPE_F32, p[i].rank = 2;
#define SET(i, n, r, l, x, a, b, d)                                                                                        \
    (p[i].name = (n), p[i].role = (r), p[i].layer = (l), p[i].expert_axis = (x), p[i].shape[0] = (a), p[i].shape[1] = (b), \
     p[i].shape[2] = (d), p[i].rank = (d) ? 3 : (b) ? 2 : 1)
    SET(0, "tok", MOED_ROLE_SHARED, -1, -1, 11, 4, 0);
    SET(1, "l0.qkv", MOED_ROLE_SHARED, 0, -1, 12, 4, 0);
    SET(2, "l0.experts.in", MOED_ROLE_EXPERT, 0, 0, 5, 4, 3);
    SET(3, "l0.experts.out", MOED_ROLE_EXPERT, 0, 1, 3, 5, 4);
    SET(4, "l0.router", MOED_ROLE_ROUTER, 0, 0, 5, 4, 0);
    SET(5, "l0.router.bias", MOED_ROLE_ROUTER_BIAS, 0, 0, 5, 0, 0);
    SET(6, "table", MOED_ROLE_OPAQUE, -1, -1, 7, 0, 0);
    p[6].dtype = MOED_DTYPE_I64;
    SET(7, "l1.qkv", MOED_ROLE_SHARED, 1, -1, 12, 4, 0);
    return 8;
}

static void a_layout_by_hand_is_what_was_said(void **state)
{
    moed_param p[8], got;
    const size_t count = by_hand(p);
    char name[] = "tok";
    moed_layout *l = NULL;
    p[0].name = name;
    assert_ok(moed_layout_create(&l, *state, p, count));
    name[0] = 'x'; /* names are copied */
    assert_ok(moed_layout_param(l, 0, &got));
    assert_string_equal(got.name, "tok");
    const moed_layout_info info = info_of(l);
    assert_string_equal(info.family, "");
    assert_string_equal(moed_layout_config(l), "");
    assert_int_equal(info.params, 8);
    assert_int_equal(info.layers, 2);
    assert_int_equal(info.experts, 5);
    assert_int_equal(info.total, 44 + 48 + 60 + 60 + 20 + 5 + 7 + 48);
    assert_int_equal(info.bytes, 4 * (info.total - 7) + 8 * 7);
    assert_int_equal(info.active, 0);
    assert_true(info.forward_flops == 0.0);
    moed_layout_destroy(l);
}

static void bad_layouts_by_hand_are_refused_by_parameter(void **state)
{
    static char long_name[MOEDI_NAME_MAX + 2];
    memset(long_name, 'x', sizeof long_name - 1);
#define FIELD(f) offsetof(moed_param, f)
    static const struct { size_t param, offset; int64_t value; int wide; const char *words; } cases[] = {
        {1, FIELD(role), 5, 0, "l0.qkv: role 5"},
        {1, FIELD(role), -1, 0, "l0.qkv: role -1"},
        {1, FIELD(role), MOED_ROLE_EXPERT, 0, "l0.qkv: expert -1 and expert axis -1"},
        {2, FIELD(expert_axis), 3, 0, "l0.experts.in: expert axis 3"},
        {2, FIELD(expert_axis), -2, 0, "l0.experts.in: expert axis -2"},
        {2, FIELD(expert_axis), 1, 0, "l0.experts"}, /* 4 experts, where others have 5 */
        {2, FIELD(expert), 1, 0, "l0.experts.in: expert 1 and expert axis 0"},
        {2, FIELD(layer), -1, 0, "l0.experts.in: experts and routers belong to a layer"},
        {4, FIELD(expert_axis), 1, 0, "l0.router: expert -1 and expert axis 1"},
        {4, FIELD(expert), 0, 0, "l0.router: expert 0"},
        {0, FIELD(expert), 0, 0, "tok: expert 0"},
        {0, FIELD(layer), -2, 0, "tok: layer -2"},
        {0, FIELD(layer), 1 << 30, 0, "tok: layer 1073741824"},
        {0, FIELD(rank), 7, 0, "tok: rank 7"},
        {0, FIELD(rank), -1, 0, "tok: rank -1"},
        {0, FIELD(shape[1]), 0, 1, "tok: size 0 of axis 1"},
        {0, FIELD(shape[1]), -4, 1, "tok: size -4 of axis 1"},
        {0, FIELD(shape[1]), INT64_MAX, 1, "tok: its shape has more than 2^48"},
        {0, FIELD(dtype), 99, 0, "tok: dtype 99"},
        {0, FIELD(dtype), MOED_DTYPE_F4, 0, "tok: dtype 19"},
        {0, FIELD(dtype), MOED_DTYPE_I32, 0, "tok: dtype I32 is for opaque"},
    };
    moed_param p[8];
    moed_layout *l = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        by_hand(p);
        char *field = (char *)&p[cases[i].param] + cases[i].offset;
        if (cases[i].wide)
            memcpy(field, &cases[i].value, 8);
        else
            *(int32_t *)field = (int32_t)cases[i].value;
        assert_refused(moed_layout_create(&l, *state, p, 8), MOED_E_ARGUMENT, cases[i].words);
    }
    const char *const names[][2] = {{"", "parameter 3 has no name"}, {NULL, "parameter 3 has no name"},
                                    {"tok", "tok is given twice"},   {"\xff\xfe", "parameter 3: its name is not UTF-8"},
                                    {long_name, "longer than 1024"}, {"__metadata__", "reserved"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        by_hand(p);
        p[3].name = names[i][0];
        assert_refused(moed_layout_create(&l, *state, p, 8), MOED_E_ARGUMENT, names[i][1]);
    }
    assert_refused(moed_layout_create(&l, *state, p, 0), MOED_E_ARGUMENT, "no parameters");
    assert_refused(moed_layout_create(&l, NULL, p, 8), MOED_E_ARGUMENT, "context");
    assert_null(l);
}

static void experts_with_tensors_of_their_own_must_be_all_there(void **state)
{
    moed_param p[3];
    moed_layout *l = NULL;
    memset(p, 0, sizeof p);
    const char *const names[] = {"e0", "e1", "e2"};
    for (int i = 0; i < 3; i++) {
        p[i].name = names[i], p[i].role = MOED_ROLE_EXPERT, p[i].expert = i, p[i].expert_axis = -1, p[i].dtype = MOED_DTYPE_F32,
        p[i].rank = 1;
        p[i].shape[0] = 4;
    }
    assert_ok(moed_layout_create(&l, *state, p, 3));
    assert_int_equal(info_of(l).experts, 3);
    moed_layout_destroy(l);
    p[2].expert = 1000000000;
    assert_refused(moed_layout_create(&l, *state, p, 3), MOED_E_ARGUMENT, "1000000001 experts but only 3");
    p[2].expert = INT32_MAX;
    assert_refused(moed_layout_create(&l, *state, p, 3), MOED_E_ARGUMENT, "e2");
    p[2].expert = 2, p[1].expert = 0;
    assert_refused(moed_layout_create(&l, *state, p, 3), MOED_E_ARGUMENT, "expert 1 of 3 has no parameter");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(family_parameters_lie_in_slot_order),
        T(roles_flags_and_shapes_of_a_family),
        T(config_fields_of_several_generations_are_read),
        T(layers_without_experts_have_a_plain_feed_forward),
        T(the_number_of_experts_has_two_names),
        T(parts_of_a_divided_feed_forward_are_as_wide_as_before),
        T(bad_configs_are_refused_by_field),
        T(sizes_of_published_models_are_exact),
        T(totals_of_a_small_model_are_those_counted_by_hand),
        T(unknown_fields_of_a_config_are_kept),
        T(layouts_differ_by_name),
        T(a_layout_by_hand_is_what_was_said),
        T(bad_layouts_by_hand_are_refused_by_parameter),
        T(experts_with_tensors_of_their_own_must_be_all_there),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
