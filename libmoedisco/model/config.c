/* model/config.c - a Hugging Face config.json, read and checked: what is not supported and matters is refused by name. */
#include "config_field.h"
#include "family.h"

#include <string.h>

enum { SIZE_MAX_HIDDEN = 1 << 20, COUNT_MAX = 1 << 16 };
#define SIZE_MAX_WIDTH ((int64_t)1 << 31)
#define TOKEN_MAX ((int64_t)INT32_MAX)

static moed_status check_switches(const json_t *o, const char *path)
{
    static const char *const off[] = {"use_sliding_window", "mlp_bias"};
    static const char *const zero[] = {"attention_dropout", "router_jitter_noise", "hidden_dropout", "resid_pdrop", "embd_pdrop"};
    static const char *const null[] = {"quantization_config", "clip_qkv"};
    for (size_t i = 0; i < sizeof off / sizeof *off; i++) {
        int32_t on = 0;
        MOEDI_TRY(moedi_json_boolean(o, path, off[i], 0, &on));
        if (on) return moedi_config_unsupported(o, off[i], path, "false");
    }
    for (size_t i = 0; i < sizeof zero / sizeof *zero; i++) {
        double x = 0;
        MOEDI_TRY(moedi_json_number(o, path, zero[i], 0, 0.0, 1.0, &x));
        if (x != 0.0) return moedi_config_unsupported(o, zero[i], path, "0");
    }
    for (size_t i = 0; i < sizeof null / sizeof *null; i++)
        if (!moedi_config_absent(o, null[i])) return moedi_config_unsupported(o, null[i], path, "null");
    return MOED_OK;
}

/* What a family's own fields must say. */
static moed_status check_needed(const moedi_family *f, const json_t *o, const char *path)
{
    for (size_t i = 0; i < sizeof f->needed / sizeof *f->needed && f->needed[i].field; i++) {
        char value[80];
        const char *field = f->needed[i].field, *only = f->needed[i].only;
        if (moedi_config_absent(o, field)) continue;
        moedi_config_describe(json_object_get(o, field), value, sizeof value);
        if (strcmp(value, only) != 0) return moedi_config_unsupported(o, field, path, only);
    }
    return MOED_OK;
}

/* A window as long as any row is none. */
static moed_status check_window(const moedi_family *f, const moedi_config *config, const json_t *o, const char *path)
{
    int64_t window = f->window && !json_object_get(o, "sliding_window") ? f->window : INT64_MAX, full = 62;
    if (!f->sliding_window) return MOED_OK;
    MOEDI_TRY(moedi_json_integer(o, path, "sliding_window", 0, 1, INT64_MAX, &window));
    if (window >= config->context_length) return MOED_OK;
    if (f->sliding_window == 1)
        return moedi_config_unsupported(o, "sliding_window", path, "null or a window as long as max_position_embeddings");
    if (!moedi_config_absent(o, "layer_types")) return MOED_OK; /* which say it, and were looked at */
    MOEDI_TRY(moedi_json_integer(o, path, "max_window_layers", 0, 0, INT64_MAX, &full));
    if (full >= config->layers) return MOED_OK;
    return moedi_config_unsupported(o, "max_window_layers", path, "num_hidden_layers or more (attention to all in every layer)");
}

/* Everything that would make another computation than the one transformer's. */
static moed_status check_supported(const moedi_family *f, const moedi_config *config, const json_t *o, const char *path)
{
    const char *activation = "silu";
    int64_t groups = 1;
    MOEDI_TRY(check_switches(o, path));
    MOEDI_TRY(check_needed(f, o, path));
    MOEDI_TRY(moedi_json_text(o, path, "hidden_act", 0, &activation));
    if (strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return moedi_config_unsupported(o, "hidden_act", path, "\"silu\"");
    MOEDI_TRY(moedi_json_integer(o, path, "n_group", 0, 1, COUNT_MAX, &groups));
    if (groups != 1) return moedi_config_unsupported(o, "n_group", path, "1 (experts chosen among all)");
    if (!f->bias_field || strcmp(f->bias_field, "attention_bias") != 0) {
        int32_t on = 0;
        MOEDI_TRY(moedi_json_boolean(o, path, "attention_bias", 0, &on));
        if (on) return moedi_config_unsupported(o, "attention_bias", path, "false");
    }
    if (!moedi_config_absent(o, "layer_types")) {
        const json_t *list = json_object_get(o, "layer_types");
        if (!json_is_array(list)) return moedi_config_unsupported(o, "layer_types", path, "a list");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const char *type = json_string_value(json_array_get(list, i));
            if (!type || strcmp(type, "full_attention") != 0)
                return moedi_config_unsupported(o, "layer_types", path, "\"full_attention\"");
        }
    }
    return check_window(f, config, o, path);
}

static moed_status read_dtype(moedi_config *out, const json_t *o, const char *path)
{
    static const struct { const char *name; int32_t dtype; } known[] = {
        {"float32", MOED_DTYPE_F32}, {"float16", MOED_DTYPE_F16}, {"bfloat16", MOED_DTYPE_BF16}, {"float64", MOED_DTYPE_F64}};
    const char *field = moedi_config_absent(o, "dtype") ? "torch_dtype" : "dtype", *name = "float32";
    MOEDI_TRY(moedi_json_text(o, path, field, 0, &name));
    if (!strncmp(name, "torch.", 6)) name += 6;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (!strcmp(name, known[i].name)) return out->dtype = known[i].dtype, MOED_OK;
    return moedi_config_unsupported(o, field, path, "\"float32\", \"float16\", \"bfloat16\" or \"float64\"");
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
    /* null means as many as heads */
    out->kv_heads = json_object_get(o, "num_key_value_heads") || !f->kv_heads ? out->heads : f->kv_heads;
    MOEDI_TRY(moedi_json_integer(o, path, "num_key_value_heads", 0, 1, COUNT_MAX, &out->kv_heads));
    if (out->heads % out->kv_heads != 0)
        return moedi_fail_parameter(MOED_E_RANGE, "num_key_value_heads",
                                    "%s: num_attention_heads %lld is not a multiple of num_key_value_heads %lld%s", path,
                                    (long long)out->heads, (long long)out->kv_heads,
                                    json_object_get(o, "num_key_value_heads") ? "" : " (the family's default)");
    if (f->head_dim && !json_object_get(o, "head_dim")) {
        out->head_dim = f->head_dim;
    } else if (moedi_config_absent(o, "head_dim")) {
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

const char *moedi_config_experts_field(const moedi_family *f, const json_t *o)
{
    const int other = moedi_config_absent(o, f->experts_field) && !moedi_config_absent(o, f->experts_alias);
    return other ? f->experts_alias : f->experts_field;
}

static moed_status read_shared(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    int64_t count = 0;
    if (f->shared_width_field)
        MOEDI_TRY(moedi_json_integer(o, path, f->shared_width_field, 1, 1, SIZE_MAX_WIDTH, &out->shared_width));
    if (f->shared_count_field) MOEDI_TRY(moedi_json_integer(o, path, f->shared_count_field, 1, 1, COUNT_MAX, &count));
    out->shared_width += count * out->expert_width;
    out->shared_switch = f->slots[MOEDI_SLOT_SHARED_SWITCH] != NULL;
    return MOED_OK;
}

/* Whether all numbers in a value, which may be lists of lists, are the same; expected [in, out]: that number, or below 0: any. */
static int all_are(const json_t *value, double *expected)
{
    if (!json_is_array(value)) {
        if (!json_is_number(value)) return 0;
        if (*expected < 0) *expected = json_number_value(value);
        return json_number_value(value) == *expected;
    }
    for (size_t i = 0; i < json_array_size(value); i++)
        if (!all_are(json_array_get(value, i), expected)) return 0;
    return 1;
}

/* expert_width was read as that of all experts. */
static moed_status divide_width(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    if (out->expert_width % out->experts != 0)
        return moedi_fail_parameter(MOED_E_RANGE, f->expert_width_field, "%s: %s %lld is not a multiple of %s %lld", path,
                                    f->expert_width_field, (long long)out->expert_width, f->experts_field,
                                    (long long)out->experts);
    out->expert_width /= out->experts;
    double each = (double)out->expert_width;
    const json_t *sizes = json_object_get(o, f->expert_sizes_field);
    if (!sizes || json_is_null(sizes) || all_are(sizes, &each)) return MOED_OK;
    return moedi_config_unsupported(o, f->expert_sizes_field, path, "experts of the same size in all layers");
}

/* A number, or a list of the same number for each layer. */
static moed_status read_scale(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    const json_t *value = json_object_get(o, f->weight_scale_field);
    double all = -1;
    if (!json_is_array(value)) return moedi_json_number(o, path, f->weight_scale_field, 0, 1e-6, 1e6, &out->weight_scale);
    if (!all_are(value, &all) || !(all >= 1e-6 && all <= 1e6))
        return moedi_config_unsupported(o, f->weight_scale_field, path, "one positive number for all layers");
    out->weight_scale = all;
    return MOED_OK;
}

static moed_status read_router(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    const char *kind = "mlp";
    MOEDI_TRY(moedi_json_text(o, path, f->router_field, 0, &kind));
    if (!strcmp(kind, "linear")) return MOED_OK;
    if (strcmp(kind, "mlp") != 0) return moedi_config_unsupported(o, f->router_field, path, "\"linear\" or \"mlp\"");
    out->router_hidden = out->experts;
    return moedi_json_integer(o, path, f->router_hidden_field, 0, 1, COUNT_MAX, &out->router_hidden);
}

static moed_status read_experts(moedi_config *out, const moedi_family *f, const json_t *o, const char *path)
{
    out->weight_scale = 1;
    if (!f->experts_field) {
        out->experts = out->top_k = out->normalise_top_k = 1;
        return moedi_json_integer(o, path, f->expert_width_field, 1, 1, SIZE_MAX_WIDTH, &out->expert_width);
    }
    const char *field = moedi_config_experts_field(f, o);
    MOEDI_TRY(moedi_json_integer(o, path, field, 1, 1, COUNT_MAX, &out->experts));
    MOEDI_TRY(moedi_json_integer(o, path, f->top_k_field, 1, 1, COUNT_MAX, &out->top_k));
    if (out->top_k > out->experts)
        return moedi_fail_parameter(MOED_E_RANGE, f->top_k_field, "%s: %s %lld is more than %s %lld", path, f->top_k_field,
                                    (long long)out->top_k, field, (long long)out->experts);
    MOEDI_TRY(moedi_json_integer(o, path, f->expert_width_field, 1, 1, SIZE_MAX_WIDTH, &out->expert_width));
    if (f->expert_sizes_field) MOEDI_TRY(divide_width(out, f, o, path));
    MOEDI_TRY(read_shared(out, f, o, path));
    out->normalise_top_k = f->normalise_top_k > 0;
    if (f->normalise_top_k < 0) MOEDI_TRY(moedi_json_boolean(o, path, "norm_topk_prob", 0, &out->normalise_top_k));
    out->score = f->score, out->selection_bias = f->slots[MOEDI_SLOT_ROUTER_BIAS] != NULL;
    if (f->router_field) MOEDI_TRY(read_router(out, f, o, path));
    if (f->noise_field) {
        out->router_noise = 1;
        MOEDI_TRY(moedi_json_boolean(o, path, f->noise_field, 0, &out->router_noise));
    }
    return f->weight_scale_field ? read_scale(out, f, o, path) : MOED_OK;
}

static moed_status make_dense(moedi_config *c, const moedi_family *f, const json_t *o, int64_t layer, const char *field,
                              const char *path)
{
    if (!f->slots[MOEDI_SLOT_DENSE_GATE]) return moedi_config_unsupported(o, field, path, "what leaves experts in every layer");
    if (layer >= MOEDI_DENSE_LAYERS_MAX)
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, field,
                                    "%s: field %s leaves layer %lld without experts, and only layers below %d can be", path,
                                    field, (long long)layer, (int)MOEDI_DENSE_LAYERS_MAX);
    c->dense[layer / 64] |= (uint64_t)1 << (layer % 64);
    return MOED_OK;
}

/* Which layers have a feed-forward of intermediate_size in the place of experts: a field says so in each of three ways. */
static moed_status read_dense(moedi_config *c, const moedi_family *f, const json_t *o, const char *path)
{
    int64_t step = 1, first = 0;
    MOEDI_TRY(moedi_json_integer(o, path, "decoder_sparse_step", 0, 1, TOKEN_MAX, &step));
    for (int64_t l = 0; l < c->layers; l++)
        if ((l + 1) % step != 0) MOEDI_TRY(make_dense(c, f, o, l, "decoder_sparse_step", path));
    MOEDI_TRY(moedi_json_integer(o, path, "first_k_dense_replace", 0, 0, TOKEN_MAX, &first));
    for (int64_t l = 0; l < c->layers && l < first; l++) MOEDI_TRY(make_dense(c, f, o, l, "first_k_dense_replace", path));
    if (!moedi_config_absent(o, "mlp_only_layers")) {
        const json_t *list = json_object_get(o, "mlp_only_layers");
        if (!json_is_array(list)) return moedi_config_unsupported(o, "mlp_only_layers", path, "a list of layers");
        for (size_t i = 0; i < json_array_size(list); i++) {
            const json_t *value = json_array_get(list, i);
            if (!json_is_integer(value)) return moedi_config_unsupported(o, "mlp_only_layers", path, "a list of layers");
            const int64_t layer = json_integer_value(value);
            if (layer >= 0 && layer < c->layers) MOEDI_TRY(make_dense(c, f, o, layer, "mlp_only_layers", path));
        }
    }
    c->routed_layers = c->layers;
    for (int64_t l = 0; l < c->layers; l++) c->routed_layers -= moedi_config_dense(c, l);
    if (c->routed_layers == c->layers) return MOED_OK;
    return moedi_json_integer(o, path, "intermediate_size", 1, 1, SIZE_MAX_WIDTH, &c->dense_width);
}

static moed_status read_biases(moedi_config *c, const moedi_family *f, const json_t *o, const char *path)
{
    c->qkv_bias = f->bias;
    if (f->bias_field) MOEDI_TRY(moedi_json_boolean(o, path, f->bias_field, 0, &c->qkv_bias));
    c->o_bias = c->qkv_bias && f->slots[MOEDI_SLOT_O_BIAS];
    return MOED_OK;
}

/* No tensor and no model above 2^48 numbers, nor more than 2^22 tensors: sums and products below cannot overflow. */
static moed_status check_totals(const moedi_config *c, const moedi_family *f, const char *path)
{
    const double most = 281474976710656.0, hidden = (double)c->hidden;
    const char *experts_field = f->experts_field ? f->experts_field : f->expert_width_field;
    const struct { const char *field; double numbers; } parts[] = {
        {"vocab_size", (double)c->vocabulary * hidden},
        {"num_attention_heads", (double)c->heads * (double)c->head_dim * hidden},
        {f->shared_width_field   ? f->shared_width_field
         : f->shared_count_field ? f->shared_count_field
                                 : f->expert_width_field,
         (double)c->shared_width * hidden},
        {"intermediate_size", (double)c->dense_width * hidden},
        {f->expert_width_field, (double)c->expert_width * hidden},
        {experts_field, 3.0 * (double)c->expert_width * hidden * (double)c->experts},
        {"num_hidden_layers", (double)c->layers * hidden *
                                  (3.0 * (double)c->expert_width * (double)c->experts +
                                   3.0 * (double)(c->shared_width + c->dense_width) +
                                   4.0 * (double)c->heads * (double)c->head_dim)},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].numbers > most)
            return moedi_fail_parameter(MOED_E_RANGE, parts[i].field,
                                        "%s: field %s makes tensors of %.3g numbers, and 2^48 is the most", path, parts[i].field,
                                        parts[i].numbers);
    if (c->layers * c->experts > 1 << 20)
        return moedi_fail_parameter(MOED_E_RANGE, experts_field,
                                    "%s: num_hidden_layers %lld times %s %lld is more than 1048576 experts", path,
                                    (long long)c->layers, experts_field, (long long)c->experts);
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
    config.context_length = f->context_length, config.epsilon = f->epsilon, config.init_std = 0.02, config.qk_norm = f->qk_norm;
    MOEDI_TRY(moedi_json_integer(o, path, "vocab_size", 1, 1, TOKEN_MAX, &config.vocabulary));
    MOEDI_TRY(moedi_json_integer(o, path, "hidden_size", 1, 1, SIZE_MAX_HIDDEN, &config.hidden));
    MOEDI_TRY(moedi_json_integer(o, path, "num_hidden_layers", 1, 1, COUNT_MAX, &config.layers));
    MOEDI_TRY(read_heads(&config, f, o, path));
    MOEDI_TRY(read_experts(&config, f, o, path));
    MOEDI_TRY(moedi_json_integer(o, path, "max_position_embeddings", 0, 1, TOKEN_MAX, &config.context_length));
    MOEDI_TRY(moedi_json_number(o, path, "rms_norm_eps", 0, 0.0, 1.0, &config.epsilon));
    MOEDI_TRY(moedi_json_number(o, path, "initializer_range", 0, 0.0, 1000.0, &config.init_std));
    MOEDI_TRY(moedi_json_boolean(o, path, "tie_word_embeddings", 0, &config.tied));
    MOEDI_TRY(read_biases(&config, f, o, path));
    MOEDI_TRY(read_dense(&config, f, o, path));
    MOEDI_TRY(moedi_rope_read(&config.rope, f->rope_theta, config.context_length, o, path));
    MOEDI_TRY(read_dtype(&config, o, path));
    MOEDI_TRY(check_supported(f, &config, o, path));
    MOEDI_TRY(check_totals(&config, f, path));
    *out = config;
    *family = f;
    return MOED_OK;
}
