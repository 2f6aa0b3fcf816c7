/* model/config.c - a Hugging Face config.json, read and checked: what is not supported and matters is refused by name. */
#include "family.h"

#include <stdio.h>
#include <string.h>

enum { SIZE_MAX_HIDDEN = 1 << 20, COUNT_MAX = 1 << 16 };
#define SIZE_MAX_WIDTH ((int64_t)1 << 31)
#define TOKEN_MAX ((int64_t)INT32_MAX)

/* The value of a field for a sentence, cut short. */
static void describe(const json_t *value, char *out, size_t size)
{
    const size_t n = moedi_json_line(value, out, size - 1, JSON_COMPACT | JSON_ENCODE_ANY);
    if (n == 0)
        snprintf(out, size, "a value");
    else if (n < size)
        out[n] = '\0';
    else
        memcpy(out + size - 4, "...", 4);
}

static moed_status unsupported(const json_t *o, const char *field, const char *path, const char *only)
{
    char value[80];
    describe(json_object_get(o, field), value, sizeof value);
    return moedi_fail_parameter(MOED_E_UNSUPPORTED, field, "%s: field %s is %s, and only %s is supported", path, field, value,
                                only);
}

static int absent(const json_t *o, const char *field)
{
    const json_t *v = json_object_get(o, field);
    return !v || json_is_null(v);
}

/* Position encoding: plain rotary of one base. Transformers 5 has it in rope_parameters, earlier ones in rope_theta and
 * rope_scaling. */
static moed_status read_rope(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    static const char *const places[] = {"rope_parameters", "rope_scaling"};
    out->rope_theta = f->rope_theta;
    MOEDI_TRY(moedi_json_number(o, path, "rope_theta", 0, 1.0, 1e15, &out->rope_theta));
    for (size_t i = 0; i < 2; i++) {
        const json_t *rope = json_object_get(o, places[i]);
        if (!rope || json_is_null(rope)) continue;
        if (!json_is_object(rope)) return unsupported(o, places[i], path, "an object or null");
        const json_t *type = json_object_get(rope, "rope_type");
        if (!type) type = json_object_get(rope, "type");
        if (type && (!json_is_string(type) || strcmp(json_string_value(type), "default") != 0))
            return unsupported(o, places[i], path, "rope_type \"default\"");
        const char *key;
        json_t *value;
        json_object_foreach((json_t *)rope, key, value)
            if (json_is_object(value) || (!strcmp(key, "partial_rotary_factor") && json_number_value(value) != 1.0))
                return unsupported(o, places[i], path, "one base over the whole head");
        MOEDI_TRY(moedi_json_number(rope, path, "rope_theta", 0, 1.0, 1e15, &out->rope_theta));
    }
    return MOED_OK;
}

static moed_status check_switches(const json_t *o, const char *path)
{
    static const char *const off[] = {"use_sliding_window", "attention_bias", "mlp_bias"};
    static const char *const zero[] = {"attention_dropout", "router_jitter_noise", "hidden_dropout", "resid_pdrop", "embd_pdrop"};
    static const char *const null[] = {"quantization_config", "clip_qkv"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        int32_t on = 0;
        MOEDI_TRY(moedi_json_boolean(o, path, off[i], 0, &on));
        if (on) return unsupported(o, off[i], path, "false");
    }
    for (size_t i = 0; i < sizeof zero / sizeof *zero; i++) {
        double x = 0;
        MOEDI_TRY(moedi_json_number(o, path, zero[i], 0, 0.0, 1.0, &x));
        if (x != 0.0) return unsupported(o, zero[i], path, "0");
    }
    for (size_t i = 0; i < sizeof null / sizeof *null; i++)
        if (!absent(o, null[i])) return unsupported(o, null[i], path, "null");
    return MOED_OK;
}

/* Everything that would make another computation than the one transformer's. */
static moed_status check_supported(const moedi_family *f, const moedi_config *config, const json_t *o, const char *path)
{
    const char *activation = "silu";
    int64_t step = 1;
    MOEDI_TRY(check_switches(o, path));
    MOEDI_TRY(moedi_json_text(o, path, "hidden_act", 0, &activation));
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return unsupported(o, "hidden_act", path, "\"silu\"");
    MOEDI_TRY(moedi_json_integer(o, path, "decoder_sparse_step", 0, 0, TOKEN_MAX, &step));
    if (step != 1) return unsupported(o, "decoder_sparse_step", path, "1 (experts in every layer)");
    if (!absent(o, "mlp_only_layers")) {
        const json_t *list = json_object_get(o, "mlp_only_layers");
        if (!json_is_array(list) || json_array_size(list) != 0) return unsupported(o, "mlp_only_layers", path, "an empty list");
    }
    if (!absent(o, "layer_types")) {
        const json_t *list = json_object_get(o, "layer_types");
        if (!json_is_array(list)) return unsupported(o, "layer_types", path, "a list");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const char *type = json_string_value(json_array_get(list, i));
            if (!type || strcmp(type, "full_attention") != 0) return unsupported(o, "layer_types", path, "\"full_attention\"");
        }
    }
    if (f->sliding_window && !absent(o, "sliding_window")) {
        int64_t window = 0;
        MOEDI_TRY(moedi_json_integer(o, path, "sliding_window", 1, 1, INT64_MAX, &window));
        if (window < config->context_length)
            return unsupported(o, "sliding_window", path, "null or a window as long as max_position_embeddings");
    }
    return MOED_OK;
}

static moed_status read_dtype(moedi_config *out, const json_t *o, const char *path)
{
    static const struct { const char *name; int32_t dtype; } known[] = {
        {"float32", MOED_DTYPE_F32}, {"float16", MOED_DTYPE_F16}, {"bfloat16", MOED_DTYPE_BF16}, {"float64", MOED_DTYPE_F64}};
    const char *field = absent(o, "dtype") ? "torch_dtype" : "dtype", *name = "float32";
    MOEDI_TRY(moedi_json_text(o, path, field, 0, &name));
    if (!strncmp(name, "torch.", 6)) name += 6;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return out->dtype = known[i].dtype, MOED_OK;
    return unsupported(o, field, path, "\"float32\", \"float16\", \"bfloat16\" or \"float64\"");
}

const char *moedi_config_dtype_name(moed_dtype dtype)
{
    return dtype == MOED_DTYPE_F16    ? "float16"
           : dtype == MOED_DTYPE_BF16 ? "bfloat16"
           : dtype == MOED_DTYPE_F64  ? "float64"
                                      : "float32";
}

static moed_status read_heads(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    MOEDI_TRY(moedi_json_integer(o, path, "num_attention_heads", 1, 1, COUNT_MAX, &out->heads));
    out->kv_heads = json_object_get(o, "num_key_value_heads") ? out->heads : f->kv_heads; /* null means as many as heads */
    MOEDI_TRY(moedi_json_integer(o, path, "num_key_value_heads", 0, 1, COUNT_MAX, &out->kv_heads));
    if (out->heads % out->kv_heads != 0)
        return moedi_fail_parameter(MOED_E_RANGE, "num_key_value_heads",
                                    "%s: num_attention_heads %lld is not a multiple of num_key_value_heads %lld%s", path,
                                    (long long)out->heads, (long long)out->kv_heads,
                                    json_object_get(o, "num_key_value_heads") ? "" : " (the family's default)");
    if (absent(o, "head_dim")) {
        if (out->hidden % out->heads != 0)
            return moedi_fail_parameter(MOED_E_RANGE, "hidden_size",
                                        "%s: hidden_size %lld is not a multiple of num_attention_heads %lld", path,
                                        (long long)out->hidden, (long long)out->heads);
        out->head_dim = out->hidden / out->heads;
    }
    MOEDI_TRY(moedi_json_integer(o, path, "head_dim", 0, 1, COUNT_MAX, &out->head_dim));
    if (out->head_dim % 2 != 0)
        return moedi_fail_parameter(MOED_E_RANGE, "head_dim", "%s: head_dim %lld is odd: rotary positions turn pairs", path,
                                    (long long)out->head_dim);
    return MOED_OK;
}

static moed_status read_experts(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    MOEDI_TRY(moedi_json_integer(o, path, f->experts_field, 1, 1, COUNT_MAX, &out->experts));
    MOEDI_TRY(moedi_json_integer(o, path, "num_experts_per_tok", 1, 1, COUNT_MAX, &out->top_k));
    if (out->top_k > out->experts)
        return moedi_fail_parameter(MOED_E_RANGE, "num_experts_per_tok", "%s: num_experts_per_tok %lld is more than %s %lld",
                                    path, (long long)out->top_k, f->experts_field, (long long)out->experts);
    MOEDI_TRY(moedi_json_integer(o, path, f->expert_width_field, 1, 1, SIZE_MAX_WIDTH, &out->expert_width));
    if (f->shared_width_field)
        MOEDI_TRY(moedi_json_integer(o, path, f->shared_width_field, 1, 1, SIZE_MAX_WIDTH, &out->shared_width));
    out->normalise_top_k = f->normalise_top_k > 0;
    if (f->normalise_top_k < 0) MOEDI_TRY(moedi_json_boolean(o, path, "norm_topk_prob", 0, &out->normalise_top_k));
    return MOED_OK;
}

/* No tensor and no model above 2^48 numbers, nor more than 2^22 tensors: sums and products below cannot overflow. */
static moed_status check_totals(const moedi_config *c, const moedi_family *f, const char *path)
{
    const double most = 281474976710656.0, hidden = (double)c->hidden;
    const struct { const char *field; double numbers; } parts[] = {
        {"vocab_size", (double)c->vocabulary * hidden},
        {"num_attention_heads", (double)c->heads * (double)c->head_dim * hidden},
        {f->shared_width_field ? f->shared_width_field : f->expert_width_field, (double)c->shared_width * hidden},
        {f->expert_width_field, (double)c->expert_width * hidden},
        {f->experts_field, 3.0 * (double)c->expert_width * hidden * (double)c->experts},
        {"num_hidden_layers", (double)c->layers * hidden *
                                  (3.0 * (double)c->expert_width * (double)c->experts + 3.0 * (double)c->shared_width +
                                   4.0 * (double)c->heads * (double)c->head_dim)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].numbers > most)
            return moedi_fail_parameter(MOED_E_RANGE, parts[i].field,
                                        "%s: field %s makes tensors of %.3g numbers, and 2^48 is the most", path, parts[i].field,
                                        parts[i].numbers);
    if (c->layers * c->experts > 1 << 20)
        return moedi_fail_parameter(MOED_E_RANGE, f->experts_field,
                                    "%s: num_hidden_layers %lld times %s %lld is more than 1048576 experts", path,
                                    (long long)c->layers, f->experts_field, (long long)c->experts);
    return MOED_OK;
}

moed_status moedi_config_read(moedi_config *out, const moedi_family **family, const json_t *o, const char *path)
{
    const char *type = NULL;
    moedi_config config = {0};
    MOEDI_TRY(moedi_json_text(o, path, "model_type", 1, &type));
    const moedi_family *f = moedi_family_find(type);
    if (!f) {
        char list[256];
        moedi_family_list(list, sizeof list);
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, "model_type",
                                    "%s: model_type \"%.64s\" is no family this library knows; it knows %s", path, type, list);
    }
    config.context_length = f->context_length, config.epsilon = f->epsilon, config.init_std = 0.02, config.qkv_bias = f->qkv_bias;
    MOEDI_TRY(moedi_json_integer(o, path, "vocab_size", 1, 1, TOKEN_MAX, &config.vocabulary));
    MOEDI_TRY(moedi_json_integer(o, path, "hidden_size", 1, 1, SIZE_MAX_HIDDEN, &config.hidden));
    MOEDI_TRY(moedi_json_integer(o, path, "num_hidden_layers", 1, 1, COUNT_MAX, &config.layers));
    MOEDI_TRY(read_heads(&config, f, o, path));
    MOEDI_TRY(read_experts(&config, f, o, path));
    MOEDI_TRY(moedi_json_integer(o, path, "max_position_embeddings", 0, 1, TOKEN_MAX, &config.context_length));
    MOEDI_TRY(moedi_json_number(o, path, "rms_norm_eps", 0, 0.0, 1.0, &config.epsilon));
    MOEDI_TRY(moedi_json_number(o, path, "initializer_range", 0, 0.0, 1000.0, &config.init_std));
    MOEDI_TRY(moedi_json_boolean(o, path, "tie_word_embeddings", 0, &config.tied));
    if (f->qkv_bias) MOEDI_TRY(moedi_json_boolean(o, path, "qkv_bias", 0, &config.qkv_bias));
    MOEDI_TRY(read_rope(&config, f, o, path));
    MOEDI_TRY(read_dtype(&config, o, path));
    MOEDI_TRY(check_supported(f, &config, o, path));
    MOEDI_TRY(check_totals(&config, f, path));
    *out = config;
    *family = f;
    return MOED_OK;
}
