/* tests/fuzz/seeds.h - where fuzzing begins: whole inputs of every format, made by the library's own writers. */
#ifndef MOEDI_FUZZ_SEEDS_H
#define MOEDI_FUZZ_SEEDS_H

#include "fuzz.h"

#include "util/safetensors.h"

static const char *seeds_root;

/* parts (count) in one input: all but the last after their lengths */
static void seed(const char *target, const char *name, const fuzz_part *parts, int count)
{
    char path[4600];
    snprintf(path, sizeof path, "%s/%s", seeds_root, target);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%s/%s/seed-%s", seeds_root, target, name);
    FILE *f = fopen(path, "wb");
    if (!f) fail_msg("cannot write %s", path);
    for (int i = 0; i < count; i++) {
        assert_true(parts[i].size < 65536);
        if (i + 1 < count) fputc((int)(parts[i].size & 255), f), fputc((int)(parts[i].size >> 8), f);
        if (parts[i].size) fwrite(parts[i].data, 1, parts[i].size, f);
    }
    assert_int_equal(fclose(f), 0);
}
static void seed_file(const char *target, const char *name, const char *file)
{
    const fuzz_part whole = fuzz_read(support_path(fuzz_dir, file));
    seed(target, name, &whole, 1);
    fuzz_free(whole);
}
static void seed_text(const char *target, const char *name, const char *text)
{
    const fuzz_part whole = {(const uint8_t *)text, strlen(text)};
    seed(target, name, &whole, 1);
}

static void seed_safetensors(void)
{
    static const moedi_safetensors_entry entries[] = {
        {.name = "a", .dtype = MOED_DTYPE_F64, .rank = 0},
        {.name = "b.c", .dtype = MOED_DTYPE_BF16, .rank = 3, .shape = {2, 1, 3}},
        {.name = "\xc3\xa9", .dtype = MOED_DTYPE_I32, .rank = 2, .shape = {0, 7}},
        {.name = "d", .dtype = MOED_DTYPE_F16, .rank = 1, .shape = {5}},
    };
    static const char zeros[64];
    moedi_safetensors_writer w;
    json_t *metadata = json_pack("{s:s, s:s}", "format", "pt", "by", "\xe2\x82\xac");
    for (int n = 0; n <= 4; n += 4) {
        assert_ok(
            moedi_safetensors_create(&w, fuzz_context, support_path(fuzz_dir, "s"), entries, (size_t)n, n ? metadata : NULL));
        for (int i = 0; i < n; i++) assert_ok(moedi_safetensors_write(&w, (size_t)i, 0, zeros, (size_t)w.entries[i].bytes));
        assert_ok(moedi_safetensors_commit(&w));
        seed_file("safetensors", n ? "types" : "empty", "s");
    }
    json_decref(metadata);
}

static void seed_configs(void)
{
    static const char mixtral[] =
        "{\"model_type\": \"mixtral\", \"architectures\": [\"MixtralForCausalLM\"], \"vocab_size\": 19, \"hidden_size\": 8, "
        "\"intermediate_size\": 5, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"max_position_embeddings\": 32, "
        "\"rms_norm_eps\": 1e-5, \"hidden_act\": \"silu\", \"num_hidden_layers\": 2, \"num_local_experts\": 4, "
        "\"num_experts_per_tok\": 2, \"tie_word_embeddings\": true, \"rope_theta\": 1e6, \"sliding_window\": null, "
        "\"attention_dropout\": 0.0, \"initializer_range\": 0.02, \"router_aux_loss_coef\": 0.02, \"output_router_logits\": "
        "false, \"torch_dtype\": \"bfloat16\", \"bos_token_id\": 1, \"eos_token_id\": 2, \"use_cache\": true}";
    static const char qwen[] =
        "{\"model_type\": \"qwen2_moe\", \"architectures\": [\"Qwen2MoeForCausalLM\"], \"vocab_size\": 19, \"hidden_size\": 8, "
        "\"intermediate_size\": 8, \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"moe_intermediate_size\": 5, "
        "\"shared_expert_intermediate_size\": 6, \"max_position_embeddings\": 32, \"rms_norm_eps\": 1e-6, \"hidden_act\": "
        "\"silu\", \"num_hidden_layers\": 2, \"num_experts\": 5, \"num_experts_per_tok\": 3, \"norm_topk_prob\": true, "
        "\"tie_word_embeddings\": false, \"decoder_sparse_step\": 1, \"mlp_only_layers\": [], \"use_sliding_window\": false, "
        "\"rope_theta\": 10000.0, \"torch_dtype\": \"float32\"}";
#define SEED_FAMILY(type, more)                                                                                                  \
    "{\"model_type\": \"" type "\", \"vocab_size\": 19, \"hidden_size\": 8, \"intermediate_size\": 9, \"num_hidden_layers\": 3," \
    " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"max_position_embeddings\": 32, " more "}"
    static const char olmoe[] = SEED_FAMILY("olmoe", "\"num_experts\": 3, \"num_experts_per_tok\": 2, \"attention_bias\": true, "
                                                     "\"clip_qkv\": null, \"rope_scaling\": {\"rope_type\": \"yarn\", "
                                                     "\"factor\": 4.0, \"beta_fast\": 8, \"mscale\": 1.0, \"mscale_all_dim\": "
                                                     "0.5, \"truncate\": false, \"original_max_position_embeddings\": 8}");
    static const char qwen3[] = SEED_FAMILY("qwen3_moe",
                                            "\"num_local_experts\": 3, \"num_experts_per_tok\": 2, "
                                            "\"moe_intermediate_size\": 5, \"head_dim\": 6, "
                                            "\"decoder_sparse_step\": 2, \"mlp_only_layers\": [0], "
                                            "\"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
                                            "\"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, \"rope_theta\": 500000.0}");
    static const char dots[] = SEED_FAMILY("dots1",
                                           "\"n_routed_experts\": 3, \"num_experts_per_tok\": 2, "
                                           "\"moe_intermediate_size\": 5, \"n_shared_experts\": 2, "
                                           "\"first_k_dense_replace\": 1, \"n_group\": 1, \"topk_group\": 1, "
                                           "\"routed_scaling_factor\": 2.5, \"norm_topk_prob\": true, \"sliding_window\": 4096, "
                                           "\"max_window_layers\": 62, \"dtype\": \"bfloat16\"");
    static const char llama[] = SEED_FAMILY(
        "llama_moe", "\"num_experts\": 3, \"num_selects\": 2, \"size_experts\": [[3, 3, 3], "
                     "[3, 3, 3], [3, 3, 3]], \"gate_network\": \"mlp\", \"gate_type\": "
                     "\"TopKBalancedNoisyGate\", \"gate_add_noise\": true, "
                     "\"calculator_type\": \"UniversalCalculator\", \"multiply_gate_scores\": true, \"score_scale_factor\": "
                     "[4.0, 4.0, 4.0], \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}");
    seed_text("config", "mixtral", mixtral);
    seed_text("config", "olmoe", olmoe);
    seed_text("config", "qwen3_moe", qwen3);
    seed_text("config", "dots1", dots);
    seed_text("config", "llama_moe", llama);
    seed_text("config", "qwen2_moe", qwen);
    moed_model *m = tiny_model_of(fuzz_context, 4, 1, 2, 8);
    moed_split *split = NULL;
    assert_ok(moed_split_create(&split, moed_model_layout(m), NULL));
    seed_text("config", "saved", moed_layout_config(moed_model_layout(m)));
    seed_text("config", "submodel", moed_layout_config(moed_split_layout(split, 1)));
    moed_split_destroy(split);
    moed_model_destroy(m);
}

static void seed_corpora(void)
{
    static int32_t shard16[256 + 16] = {20240520, 1, 32}, shard32[256 + 8] = {20240801, 7, 8, [258] = 128000, 7, 6, 5};
    static const char *const names[] = {"c.idx", "c.json", "c.bin"};
    for (int64_t wide = 0; wide < 2; wide++) {
        fuzz_part parts[3];
        int64_t shift = wide * TINY_VOCABULARY;
        const int64_t documents[3] = {0, 5, 9}, vocabulary = wide ? 100000 : TINY_VOCABULARY;
        const moed_documents callbacks = {.count = 12, .length = tiny_length, .read = tiny_read, .user = &shift};
        moed_corpus *d = support_corpus(fuzz_context, callbacks, vocabulary, vocabulary - 1), *small = NULL;
        assert_ok(moed_corpus_subset(&small, d, documents, 3));
        assert_ok(moed_corpus_save(small, support_path(fuzz_dir, "c"), NULL));
        for (int i = 0; i < 3; i++) parts[i] = fuzz_read(support_path(fuzz_dir, names[i]));
        seed("indexed", wide ? "int32" : "uint16", parts, 3);
        parts[1].size = 0;
        seed("indexed", wide ? "int32-alone" : "uint16-alone", parts, 3);
        for (int i = 0; i < 3; i++) fuzz_free(parts[i]);
        moed_corpus_destroy(small);
        moed_corpus_destroy(d);
    }
    uint16_t *tokens = (uint16_t *)(void *)(shard16 + 256);
    for (int i = 0; i < 32; i++) tokens[i] = i % 5 ? (uint16_t)i : 50256;
    const fuzz_part a = {(const uint8_t *)shard16, 1024 + 64}, b = {(const uint8_t *)shard32, 1024 + 32};
    seed("shard", "gpt2", &a, 1);
    seed("shard", "llama3", &b, 1);
    seed_text("jsonl", "lines",
              "{\"text\": \"one\", \"id\": 1}\n{\"text\": \"tw\\u00f6 \\ud83d\\ude00\", \"meta\": {\"a\": [1, 2.5, null]}}\n\n"
              "{\"id\": 3, \"text\": \"three\\n\"}\r\n{\"text\": \"one\"}\n{\"text\": \"  \"}");
}

static void seed_partitions(void)
{
    moed_partition *p = NULL;
    const int32_t labels[6] = {0, 1, 2, 0, 1, 2};
    float rows[6] = {1, 2, 3, 4, 5, 6};
    const moed_tensor centroids = support_tensor(rows, MOED_DTYPE_F32, 3, 2);
    for (int with = 0; with < 2; with++) {
        assert_ok(moed_partition_create(&p, fuzz_context, labels, 6, 3, with ? &centroids : NULL, NULL));
        assert_ok(moed_partition_save(p, support_path(fuzz_dir, "p")));
        seed_file("partition", with ? "centroids" : "labels", "p");
        seed_file("safetensors", with ? "partition" : "labels", "p");
        moed_partition_destroy(p);
    }
}

/* The targets lay their own good files out at their first input; a seed for each part. */
static void seed_directories(void)
{
    const fuzz_part none = {0};
    fuzz_model((const uint8_t *)"", 0);
    seed("model", "index", (const fuzz_part[]){good_index, none, none}, 3);
    seed("model", "config", (const fuzz_part[]){none, good_config, none}, 3);
    seed("model", "shard", (const fuzz_part[]){none, none, good_shard}, 3);
    fuzz_checkpoint((const uint8_t *)"", 0);
    const fuzz_part manifest = fuzz_read(step_file("manifest.json"));
    seed("checkpoint", "manifest", (const fuzz_part[]){manifest, none, none, none, none, none}, 6);
    seed("checkpoint", "state", (const fuzz_part[]){none, good_metrics, good[0], none, none, none}, 6);
    seed("checkpoint", "config", (const fuzz_part[]){none, none, none, good[1], none, none}, 6);
    seed("checkpoint", "weights", (const fuzz_part[]){none, none, none, none, good[2], none}, 6);
    seed("checkpoint", "optimizer", (const fuzz_part[]){none, none, none, none, none, good[3]}, 6);
    fuzz_free(manifest);
}

static void seed_growth(void)
{
    static const int32_t experts[] = {2, 4, 8};
    moed_growth_options o;
    moed_growth *g = NULL;
    uint8_t state[1024];
    fuzz_part whole = {state, 0};
    assert_ok(moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &o, sizeof o));
    o.tokens = 100000, o.step_tokens = 128, o.top_k = 2;
    assert_ok(moed_growth_from_power(&g, fuzz_context, experts, 3, &o));
    assert_ok(moed_growth_enter(g, 1, 30000));
    assert_ok(moed_growth_get_state(g, state, sizeof state, &whole.size));
    seed("growth", "state", &whole, 1);
    moed_growth_destroy(g);
}

static void write_seeds(const char *root)
{
    seeds_root = root;
    fuzz_begin();
    seed_safetensors();
    seed_configs();
    seed_corpora();
    seed_partitions();
    seed_growth();
    seed_directories();
}

#endif
