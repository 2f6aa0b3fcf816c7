/* bench_step.c - training steps per second of the whole, as a user gets them: an MoE and its one-expert submodel, through the
 * public ABI. bench_step [threads [steps]]. One line a model: tokens/s (the best and the median step), model FLOP/s, memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moedisco.h"

enum { LAYERS = 6, HIDDEN = 384, HEADS = 6, WIDTH = 1024, VOCABULARY = 8192, ROWS = 16, LENGTH = 256 };

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

static int bench(moed_context *c, const moed_corpus *d, const char *name, int experts, int top_k, int steps)
{
    char config[1024];
    moed_layout *l = NULL;
    moed_model *m = NULL;
    moed_trainer *t = NULL;
    moed_train_options o;
    moed_estimate e = {.struct_size = sizeof e};
    moed_report r = {.struct_size = sizeof r};
    moed_context_info info = {.struct_size = sizeof info};
    snprintf(config, sizeof config,
             "{\"model_type\": \"mixtral\", \"vocab_size\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"num_local_experts\": %d, \"num_experts_per_tok\": %d, "
             "\"max_position_embeddings\": %d}",
             VOCABULARY, HIDDEN, WIDTH, LAYERS, HEADS, HEADS, experts, top_k, LENGTH);
    CHECK(moed_layout_from_config(&l, c, config, strlen(config)));
    CHECK(moed_model_init(&m, c, l, NULL));
    CHECK(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
    o.steps = steps + 2, o.rows = ROWS, o.length = LENGTH, o.document_mask = 0;
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
    const double tokens = ROWS * LENGTH, best = tokens / seconds[0], median = tokens / seconds[steps / 2];
    printf("{\"bench\": \"step\", \"model\": \"%s\", \"tokens_per_second\": %.0f, \"median\": %.0f, \"gflops\": %.1f, \"peak_mb\": %.0f, "
           "\"loss\": %.4f}\n",
           name, best, median, median * e.flops_per_token * 1e-9, (double)info.host_peak * 1e-6, r.loss);
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
    const int steps = count > 2 ? atoi(arguments[2]) : 5;
    CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.threads = count > 1 ? atoi(arguments[1]) : 0;
    CHECK(moed_context_create(&c, &o));
    CHECK(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &corpus, sizeof corpus));
    corpus.vocabulary = VOCABULARY, corpus.end_token = VOCABULARY - 1;
    CHECK(moed_corpus_wrap(&d, c, &documents, &corpus));
    if (bench(c, d, "moe", 4, 2, steps > 0 ? steps : 5) || bench(c, d, "dense", 1, 1, steps > 0 ? steps : 5)) return 1;
    moed_corpus_destroy(d), moed_context_destroy(c);
    return 0;
}
