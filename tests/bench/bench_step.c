/* bench_step.c - training steps per second of the whole, as a user gets them: an MoE and its one-expert submodel, through the
 * public ABI. bench_step [THREADS [STEPS [DEVICE[,KERNELS] [POLICY] [MODEL...]]]]; 0 threads: all. POLICY: auto, full or lean.
 * One line a model: tokens/s (the best and the median step), model FLOP/s, memory of the host as it was, of the device as
 * estimated. Models: moe, dense (small ones, the default); qwen-dense, qwen-4, qwen-64 (Qwen1.5-MoE's sizes, for a large GPU).
 * "graph" and "ordinary" say how the steps of the models behind them are done. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moedisco.h"

typedef struct shape {
    const char *name;
    int layers, hidden, heads, width, shared, experts, top_k, vocabulary;
    int rows, length, micro_batches;
} shape;
static const shape shapes[] = {
    {"moe", 6, 384, 6, 1024, 0, 4, 2, 8192, 16, 256, 1},
    {"dense", 6, 384, 6, 1024, 0, 1, 1, 8192, 16, 256, 1},
    {"qwen-dense", 24, 2048, 16, 1408, 5632, 1, 1, 151936, 16, 1024, 2},
    {"qwen-4", 24, 2048, 16, 1408, 5632, 4, 2, 151936, 16, 1024, 2},
    {"qwen-64", 8, 2048, 16, 1408, 5632, 64, 8, 151936, 16, 1024, 2},
};
static const char *const policies[] = {"auto", "full", "lean"};
enum { SHAPES = sizeof shapes / sizeof *shapes, VOCABULARY = 8192 /* of the tokens: what all of them know */ };

/* Documents of tokens that follow no rule: speed does not depend on what is learned. */
static int32_t length_of(int64_t document, int64_t *tokens, void *user)
{
    (void)user;
    *tokens = 200 + document * 7919 % 900;
    return 0;
}
static int32_t read_of(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((uint64_t)(document * 1000003 + offset + i) * 2654435761u % (VOCABULARY - 1));
    return 0;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

#define CHECK(call)                                                                                  \
    do {                                                                                             \
        if ((call) != MOED_OK) return fprintf(stderr, "bench_step: %s\n", moed_last_error()), 1;     \
    } while (0)

static int bench(moed_context *c, const moed_corpus *d, const shape *h, int32_t policy, int graph, int steps)
{
    char config[1024], shared[256] = "";
    moed_layout *l = NULL;
    moed_model *m = NULL;
    moed_trainer *t = NULL;
    moed_train_options o;
    moed_estimate e = {.struct_size = sizeof e};
    moed_report r = {.struct_size = sizeof r};
    moed_context_info info = {.struct_size = sizeof info};
    if (h->shared)
        snprintf(shared, sizeof shared, "\"num_experts\": %d, \"moe_intermediate_size\": %d, "
                 "\"shared_expert_intermediate_size\": %d, \"norm_topk_prob\": false, ", h->experts, h->width, h->shared);
    snprintf(config, sizeof config,
             "{\"model_type\": \"%s\", \"vocab_size\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, "
             "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, %s\"num_local_experts\": %d, "
             "\"num_experts_per_tok\": %d, \"tie_word_embeddings\": false, \"max_position_embeddings\": %d}",
             h->shared ? "qwen2_moe" : "mixtral", h->vocabulary, h->hidden, h->shared ? h->shared : h->width, h->layers, h->heads,
             h->heads, shared, h->experts, h->top_k, h->length);
    CHECK(moed_layout_from_config(&l, c, config, strlen(config)));
    CHECK(moed_model_init(&m, c, l, NULL));
    CHECK(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
    o.steps = steps + 2, o.rows = h->rows, o.length = h->length, o.micro_batches = h->micro_batches, o.document_mask = 0;
    o.learning_rate = 1e-4, o.policy = policy, o.graph = graph, o.store_late = 1;
    CHECK(moed_train_estimate(l, NULL, &o, &e));
    CHECK(moed_trainer_create(&t, c, m, d, NULL, &o));
    double *seconds = calloc((size_t)steps, sizeof *seconds);
    if (!seconds) return 1;
    CHECK(moed_trainer_run(t, 2, &r, NULL)); /* warm */
    for (int i = 0; i < steps; i++) {
        CHECK(moed_trainer_run(t, 1, &r, NULL));
        seconds[i] = r.seconds;
    }
    qsort(seconds, (size_t)steps, sizeof *seconds, compare);
    CHECK(moed_context_get_info(c, &info));
    const double tokens = (double)h->rows * h->length, best = tokens / seconds[0], median = tokens / seconds[steps / 2];
    printf("{\"bench\": \"step\", \"model\": \"%s\", \"policy\": \"%s\", \"graph\": %d, \"tokens_per_second\": %.0f, "
           "\"median\": %.0f, \"gflops\": %.1f, \"peak_mb\": %.0f, \"device_gib\": %.2f, \"loss\": %.4f}\n",
           h->name, policies[e.policy], graph, best, median, median * e.flops_per_token * 1e-9, (double)info.host_peak * 1e-6,
           (double)e.device_bytes / 1073741824.0, r.loss);
    fflush(stdout);
    free(seconds);
    moed_trainer_destroy(t), moed_model_destroy(m), moed_layout_destroy(l);
    return 0;
}

int main(int count, char **arguments)
{
    moed_context *c = NULL;
    moed_corpus *d = NULL;
    moed_context_options o;
    moed_corpus_options corpus;
    const moed_documents documents = {.struct_size = sizeof documents, .count = 3000, .length = length_of, .read = read_of};
    const int steps = count > 2 && atoi(arguments[2]) > 0 ? atoi(arguments[2]) : 5;
    CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.threads = count > 1 ? atoi(arguments[1]) : 0;
    char *comma = count > 3 ? strchr(arguments[3], ',') : NULL;
    if (comma) *comma = 0, o.kernels = comma + 1;
    o.device = count > 3 ? arguments[3] : "cpu";
    CHECK(moed_context_create(&c, &o));
    CHECK(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &corpus, sizeof corpus));
    corpus.vocabulary = VOCABULARY, corpus.end_token = VOCABULARY - 1;
    CHECK(moed_corpus_wrap(&d, c, &documents, &corpus));
    int32_t policy = MOED_POLICY_AUTO;
    int first = 4; /* of the models */
    for (int32_t i = 0; first == 4 && count > 4 && i < 3; i++)
        if (strcmp(arguments[4], policies[i]) == 0) policy = i, first = 5;
    for (int i = 0; count <= first && i < SHAPES; i++)
        if (!shapes[i].shared && bench(c, d, &shapes[i], policy, 1, steps)) return 1;
    for (int k = first, graph = 1; k < count; k++) {
        if (strcmp(arguments[k], "graph") == 0) graph = 1;
        if (strcmp(arguments[k], "ordinary") == 0) graph = 0;
        for (int i = 0; i < SHAPES; i++)
            if (strcmp(arguments[k], shapes[i].name) == 0 && bench(c, d, &shapes[i], policy, graph, steps)) return 1;
    }
    moed_corpus_destroy(d), moed_context_destroy(c);
    return 0;
}
