/* size.c - the sizes of a model as flags, and the config.json they make. */
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "size.h"

enum { PRESET_DEMO, PRESET_TINY, PRESET_SMALL, PRESET_COUNT };
enum { FAMILY_MIXTRAL, FAMILY_QWEN2_MOE, FAMILY_DOTS1 };

typedef struct preset {
    int64_t hidden, layers, heads, experts, top_k, expert_width, context_length;
} preset;

/* demo: minutes on two cores; tiny: tests; small: the pilot study's shape, an hour on a GPU. */
static const preset PRESETS[PRESET_COUNT] = {
    {96, 3, 3, 4, 2, 192, 256},
    {32, 2, 2, 4, 2, 64, 64},
    {384, 6, 6, 4, 2, 1024, 512},
};

static const moed_field FIELDS[] = {
    FIELD_TEXT_(sizes, config, "a config.json to take instead of the sizes here"),
    FIELD_CHOICE_(sizes, preset, "demo|tiny|small", "sizes for all that are not given"),
    FIELD_CHOICE_(sizes, family, "mixtral|qwen2_moe|dots1",
                  "architecture; qwen2_moe has a shared expert and Q, K, V biases, dots1 too and sigmoid scores with a selection "
                  "bias (EMO)"),
    FIELD_INTEGER(sizes, hidden, 0, 1, 1 << 20, "width of the residual stream"),
    FIELD_INTEGER(sizes, layers, 0, 1, 4096, "transformer layers"),
    FIELD_INTEGER(sizes, heads, 0, 1, 4096, "attention heads"),
    FIELD_INTEGER(sizes, kv_heads, 0, 0, 4096, "key and value heads, 0 = as many as heads"),
    FIELD_INTEGER(sizes, experts, 0, 1, 65536, "routed experts in each layer; `run disco` trains one submodel for each"),
    FIELD_INTEGER(sizes, top_k, 0, 1, 65536, "experts that each token visits"),
    FIELD_INTEGER(sizes, expert_width, 0, 1, 1 << 24, "hidden width of an expert"),
    FIELD_INTEGER(sizes, shared_width, 0, 0, 1 << 24, "hidden width of the shared expert (qwen2_moe), 0 = as an expert's"),
    FIELD_INTEGER(sizes, context_length, 0, 1, 1 << 24, "longest row of tokens"),
    FIELD_INTEGER(sizes, vocabulary, 0, 0, 1 << 28, "tokens known, 0 = the corpus' (257 for bytes)"),
    FIELD_NUMBER(sizes, rope_theta, 0, 1, 1e12, "base of the rotary position angles"),
};

void sizes_flags(flags *f, sizes *s)
{
    const preset *p = &PRESETS[PRESET_DEMO];
    memset(s, 0, sizeof *s);
    s->hidden = p->hidden;
    s->layers = p->layers;
    s->heads = p->heads;
    s->experts = p->experts;
    s->top_k = p->top_k;
    s->expert_width = p->expert_width;
    s->context_length = p->context_length;
    s->rope_theta = 10000;
    OPTIONS_INIT(MODEL_OPTIONS, &s->init);
    flags_table(f, "model", FIELDS, sizeof FIELDS / sizeof *FIELDS, s);
    flags_struct(f, "model", MOED_STRUCT_MODEL_OPTIONS, &s->init, "dtype,shard_bytes");
}

void sizes_settle(sizes *s, const flags *f)
{
    const preset *p = &PRESETS[s->preset];
    const struct { const char *name; int64_t *value; int64_t preset_value; } rows[] = {
        {"hidden", &s->hidden, p->hidden},   {"layers", &s->layers, p->layers},
        {"heads", &s->heads, p->heads},      {"experts", &s->experts, p->experts},
        {"top-k", &s->top_k, p->top_k},      {"expert-width", &s->expert_width, p->expert_width},
        {"context-length", &s->context_length, p->context_length},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (!flags_given(f, rows[i].name)) *rows[i].value = rows[i].preset_value;
    if (s->top_k > s->experts && !flags_given(f, "top-k")) s->top_k = s->experts;
}

static json_t *config_object(const sizes *s, int64_t vocabulary)
{
    const int64_t kv_heads = s->kv_heads ? s->kv_heads : s->heads;
    json_t *o = must(json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:b, s:s, s:s}", "vocab_size", (json_int_t)vocabulary, "hidden_size",
        (json_int_t)s->hidden, "num_hidden_layers", (json_int_t)s->layers, "num_attention_heads", (json_int_t)s->heads,
        "num_key_value_heads", (json_int_t)kv_heads, "max_position_embeddings", (json_int_t)s->context_length,
        "num_experts_per_tok", (json_int_t)s->top_k, "rms_norm_eps", 1e-6, "rope_theta", s->rope_theta, "initializer_range", 0.02,
        "tie_word_embeddings", 0, "hidden_act", "silu", "torch_dtype", "float32"));
    if (s->family == FAMILY_MIXTRAL) {
        put(o, "model_type", json_string("mixtral"));
        put(o, "architectures", json_pack("[s]", "MixtralForCausalLM"));
        put(o, "num_local_experts", json_integer(s->experts));
        put(o, "intermediate_size", json_integer(s->expert_width));
    } else if (s->family == FAMILY_DOTS1) {
        put(o, "model_type", json_string("dots1"));
        put(o, "architectures", json_pack("[s]", "Dots1ForCausalLM"));
        put(o, "n_routed_experts", json_integer(s->experts));
        put(o, "n_shared_experts", json_integer(s->shared_width ? s->shared_width / s->expert_width : 1));
        put(o, "moe_intermediate_size", json_integer(s->expert_width));
        put(o, "intermediate_size", json_integer(s->expert_width));
        put(o, "first_k_dense_replace", json_integer(0));
        put(o, "norm_topk_prob", json_true());
        put(o, "routed_scaling_factor", json_real(1));
        put(o, "n_group", json_integer(1));
        put(o, "topk_group", json_integer(1));
    } else {
        const int64_t shared = s->shared_width ? s->shared_width : s->expert_width;
        put(o, "model_type", json_string("qwen2_moe"));
        put(o, "architectures", json_pack("[s]", "Qwen2MoeForCausalLM"));
        put(o, "num_experts", json_integer(s->experts));
        put(o, "moe_intermediate_size", json_integer(s->expert_width));
        put(o, "shared_expert_intermediate_size", json_integer(shared));
        put(o, "intermediate_size", json_integer(shared));
        put(o, "norm_topk_prob", json_false());
        put(o, "decoder_sparse_step", json_integer(1));
        put(o, "mlp_only_layers", json_array());
    }
    return o;
}

int sizes_layout(const sizes *s, moed_context *c, int64_t vocabulary, moed_layout **out)
{
    char *text;
    size_t size;
    if (s->config) {
        if (!(text = read_text(s->config, &size))) return EXIT_INPUT;
    } else {
        if (s->heads && s->hidden % s->heads) {
            return fail(EXIT_INPUT, "--hidden %lld is not a multiple of --heads %lld", (long long)s->hidden, (long long)s->heads);
        }
        if (s->heads && s->hidden / s->heads % 2)
            return fail(EXIT_INPUT, "--hidden %lld in --heads %lld: %lld numbers a head are odd, and positions turn pairs",
                        (long long)s->hidden, (long long)s->heads, (long long)(s->hidden / s->heads));
        if (s->top_k > s->experts)
            return fail(EXIT_INPUT, "--top-k %lld: there are only --experts %lld", (long long)s->top_k, (long long)s->experts);
        if (s->family == FAMILY_MIXTRAL && s->shared_width)
            return fail(EXIT_INPUT, "--shared-width %lld: mixtral has no shared expert", (long long)s->shared_width);
        if (s->family == FAMILY_DOTS1 && s->shared_width % s->expert_width)
            return fail(EXIT_INPUT,
                        "--shared-width %lld: dots1 has whole experts as shared ones, multiples of --expert-width %lld",
                        (long long)s->shared_width, (long long)s->expert_width);
        json_t *o = config_object(s, s->vocabulary ? s->vocabulary : vocabulary);
        text = json_line(o, JSON_INDENT(2));
        size = strlen(text);
        json_decref(o);
    }
    const moed_status status = moed_layout_from_config(out, c, text, size);
    free(text);
    if (!status) return EXIT_DONE;
    if (s->config) return fail(exit_code(status), "%s: %s", s->config, moed_last_error());
    return fail_status(status);
}
