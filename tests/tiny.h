/* tests/tiny.h - models of a few thousand numbers and batches for them, for tests of the transformer. Include
 * after support.h. */
#ifndef MOEDI_TEST_TINY_H
#define MOEDI_TEST_TINY_H

#include "model/transformer.h"

#define TINY_QWEN(more)                                                                                                        \
    "{\"model_type\": \"qwen2_moe\", \"architectures\": [\"Qwen2MoeForCausalLM\"], \"vocab_size\": 19, \"hidden_size\": 8,"    \
    " \"intermediate_size\": 8, \"num_attention_heads\": 4, \"moe_intermediate_size\": 5, \"max_position_embeddings\": 32,"    \
    " \"shared_expert_intermediate_size\": 6, \"rms_norm_eps\": 1e-6, \"hidden_act\": \"silu\", " more "}"
#define TINY_MIXTRAL(more)                                                                                                     \
    "{\"model_type\": \"mixtral\", \"architectures\": [\"MixtralForCausalLM\"], \"vocab_size\": 19, \"hidden_size\": 8,"       \
    " \"intermediate_size\": 5, \"num_attention_heads\": 4, \"max_position_embeddings\": 32, \"rms_norm_eps\": 1e-5,"          \
    " \"hidden_act\": \"silu\", " more "}"

#define TINY_FAMILY(type, more)                                                                        \
    "{\"model_type\": \"" type "\", \"vocab_size\": 19, \"hidden_size\": 8, \"intermediate_size\": 6," \
    " \"num_attention_heads\": 4, \"moe_intermediate_size\": 5, \"max_position_embeddings\": 32,"      \
    " \"hidden_act\": \"silu\", " more "}"

/* Configurations that go through the switches: tied, grouped queries, biases, norms of queries and keys, normalised weights, one
 * expert, layers without experts, sigmoid scores with a selection bias, stretched positions. */
static const struct {
    const char *name, *config;
} tiny_configs[] = {
    {"qwen2_moe, untied, biases, grouped queries",
     TINY_QWEN("\"num_hidden_layers\": 2, \"num_key_value_heads\": 2, \"num_experts\": 4, "
               "\"num_experts_per_tok\": 2,"
               " \"norm_topk_prob\": false, \"tie_word_embeddings\": false")},
    {"qwen2_moe, tied, normalised", TINY_QWEN("\"num_hidden_layers\": 1, \"num_key_value_heads\": 4, "
                                              "\"num_experts\": 5, \"num_experts_per_tok\": 3,"
                                              " \"norm_topk_prob\": true, \"tie_word_embeddings\": true")},
    {"qwen2_moe, one expert", TINY_QWEN("\"num_hidden_layers\": 2, \"num_key_value_heads\": 1, "
                                        "\"num_experts\": 1, \"num_experts_per_tok\": 1,"
                                        " \"norm_topk_prob\": false, \"tie_word_embeddings\": false")},
    {"mixtral, untied, grouped queries", TINY_MIXTRAL("\"num_hidden_layers\": 2, \"num_key_value_heads\": 2, "
                                                      "\"num_local_experts\": 4, \"num_experts_per_tok\": 2,"
                                                      " \"tie_word_embeddings\": false")},
    {"mixtral, tied, one choice", TINY_MIXTRAL("\"num_hidden_layers\": 1, \"num_key_value_heads\": 1, "
                                               "\"num_local_experts\": 3, \"num_experts_per_tok\": 1,"
                                               " \"tie_word_embeddings\": true")},
    {"qwen2_moe, experts in every second layer", TINY_QWEN("\"num_hidden_layers\": 3, \"num_key_value_heads\": 2, "
                                                           "\"num_experts\": 3, \"num_experts_per_tok\": 2, "
                                                           "\"decoder_sparse_step\": 2")},
    {"olmoe, norms of whole rows, biases, yarn",
     TINY_FAMILY("olmoe", "\"num_hidden_layers\": 2, \"num_key_value_heads\": 2, \"num_experts\": 3, \"num_experts_per_tok\": 2,"
                          " \"attention_bias\": true, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4,"
                          " \"original_max_position_embeddings\": 8}")},
    {"qwen3_moe, norms of heads, a dense layer between", TINY_FAMILY("qwen3_moe", "\"num_hidden_layers\": 3, "
                                                                     "\"num_key_value_heads\": 2, \"head_dim\": 4, "
                                                                     "\"num_experts\": 3, \"num_experts_per_tok\": 2, "
                                                                     "\"norm_topk_prob\": true, \"mlp_only_layers\": [1]")},
    {"dots1, scaled and normalised, a dense first layer",
     TINY_FAMILY("dots1", "\"num_hidden_layers\": 2, \"num_key_value_heads\": 2, \"n_routed_experts\": 4, "
                          "\"num_experts_per_tok\": 2, \"n_shared_experts\": 2, \"first_k_dense_replace\": 1, "
                          "\"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5, \"attention_bias\": true")},
    {"llama_moe, scaled", TINY_FAMILY("llama_moe", "\"num_hidden_layers\": 2, \"num_experts\": 3, \"num_selects\": 2, "
                                      "\"gate_network\": \"linear\", \"score_scale_factor\": [1.5, 1.5]")},
    {"llama_moe, a router of two layers", TINY_FAMILY("llama_moe", "\"num_hidden_layers\": 2, \"num_experts\": 3, "
                                                      "\"num_selects\": 2, \"score_scale_factor\": 4.0")},
    {"dots1, one expert, which is routed", TINY_FAMILY("dots1", "\"num_hidden_layers\": 1, \"num_key_value_heads\": 1,"
                                                       " \"n_routed_experts\": 1, \"num_experts_per_tok\": 1, "
                                                       "\"n_shared_experts\": 1")},
    {"qwen3, dense", TINY_FAMILY("qwen3", "\"num_hidden_layers\": 2, \"num_key_value_heads\": 2, \"head_dim\": 4")},
};
enum { TINY_CONFIGS = sizeof tiny_configs / sizeof tiny_configs[0], TINY_VOCABULARY = 19 };

/* Weights of spread 0.4; norms and biases are moved off their ones and zeros. */
static inline moed_model *tiny_model(moed_context *c, const char *config, uint64_t seed)
{
    moed_model *m = support_fresh(c, config, seed, 0.4);
    const moed_layout *l = m->layout;
    for (size_t p = 0; p < l->count; p++) {
        if (l->params[p].rank != 1) continue;
        float noise[64];
        moed_tensor x;
        assert_ok(moed_model_tensor(m, p, &x));
        assert_true(x.shape[0] <= 64);
        support_random(noise, x.shape[0], seed + p);
        for (int64_t i = 0; i < x.shape[0]; i++) {
            if (x.dtype == MOED_DTYPE_F64) ((double *)x.data)[i] += 0.3 * (double)noise[i];
            else ((float *)x.data)[i] += 0.3f * noise[i];
        }
    }
    return m;
}

enum { TINY_TOKENS = 64 };
typedef struct tiny_batch {
    int32_t tokens[TINY_TOKENS], labels[TINY_TOKENS], documents[TINY_TOKENS];
    float weights[TINY_TOKENS];
    moed_batch batch;
} tiny_batch;

/* Tokens, labels with gaps, label weights, and documents that end inside rows. */
static inline void tiny_fill(tiny_batch *b, int64_t rows, int64_t length, uint64_t seed)
{
    float noise[3 * TINY_TOKENS];
    assert_true(rows * length <= TINY_TOKENS);
    support_random(noise, 3 * TINY_TOKENS, seed);
    for (int64_t i = 0; i < rows * length; i++) {
        b->tokens[i] = (int32_t)((noise[3 * i] + 1) / 2 * TINY_VOCABULARY);
        b->labels[i] = i % 7 == 3 ? -1 : (int32_t)((noise[3 * i + 1] + 1) / 2 * TINY_VOCABULARY);
        b->weights[i] = noise[3 * i + 2] + 1;
        b->documents[i] = (int32_t)(i / 5);
    }
    b->batch = (moed_batch){.tokens = b->tokens,
                            .labels = b->labels,
                            .weights = b->weights,
                            .documents = b->documents,
                            .rows = rows,
                            .length = length};
}

#endif
