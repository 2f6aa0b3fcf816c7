/* 07_both_methods.c - MoE-DisCo, then EMO: two parts of a model are trained alone, put back together, and the whole goes on while
 * its pool grows from 2 to 4 to 8 experts inside one trainer, by a schedule. Prints the loss of each stage. */
#include <stdio.h>
#include <string.h>

#include <moedisco.h>

#define CHECK(call)                                                                   \
    do {                                                                              \
        if ((call) != MOED_OK) return fprintf(stderr, "%s\n", moed_last_error()), 1;  \
    } while (0)

enum { PARTS = 2, ALONE = 20, STEPS = 60, ROWS = 4, LENGTH = 32 };

static const char config[] =
    "{\"model_type\": \"dots1\", \"vocab_size\": 64, \"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 2,"
    " \"moe_intermediate_size\": 64, \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"n_routed_experts\": 2,"
    " \"num_experts_per_tok\": 2, \"n_shared_experts\": 1, \"norm_topk_prob\": true, \"max_position_embeddings\": 64,"
    " \"initializer_range\": 0.05}";

/* Forty documents that need no file: document i counts in steps of 1 + i % 3. */
static int32_t length_of(int64_t document, int64_t *tokens, void *user)
{
    (void)document, (void)user;
    *tokens = 50;
    return 0;
}
static int32_t read_tokens(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)((document + (offset + i) * (1 + document % 3)) % 63);
    return 0;
}

static moed_train_options settings(int64_t steps)
{
    moed_train_options o;
    moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o);
    o.steps = steps, o.rows = ROWS, o.length = LENGTH, o.learning_rate = 5e-3, o.schedule = MOED_SCHEDULE_CONSTANT, o.warmup = 0;
    return o;
}

/* Submodel `part` alone on its documents, here every second one. */
static int train_part(moed_context *c, moed_split *s, moed_integration *i, const moed_model *base, const moed_partition *p,
                      const moed_corpus *all, int part)
{
    moed_model *m;
    moed_corpus *own;
    moed_trainer *t;
    const moed_train_options o = settings(ALONE);
    CHECK(moed_split_build(&m, s, part, base, NULL, NULL));
    CHECK(moed_partition_view(&own, p, all, part));
    CHECK(moed_trainer_create(&t, c, m, own, NULL, &o));
    CHECK(moed_trainer_run(t, 0, NULL, NULL));
    CHECK(moed_integration_add(i, part, m, 1));
    moed_trainer_destroy(t), moed_corpus_destroy(own), moed_model_destroy(m);
    return 0;
}

/* Every step asks the schedule: is there to be an expansion, and what is the rate? */
static int train_growing(moed_context *c, moed_model *whole, const moed_corpus *all, moed_growth *g)
{
    moed_trainer *t;
    moed_expansion_options grown;
    moed_growth_point now = {.struct_size = sizeof now};
    moed_report r = {.struct_size = sizeof r};
    moed_train_options o = settings(STEPS);
    o.balance_rate = 0.02; /* of the selection biases: loads even out without a loss for it */
    CHECK(moed_options_init(MOED_STRUCT_EXPANSION_OPTIONS, &grown, sizeof grown));
    CHECK(moed_trainer_create(&t, c, whole, all, NULL, &o));
    for (int64_t step = 0; step < STEPS; step++) {
        const int64_t tokens = step * ROWS * LENGTH;
        CHECK(moed_growth_at(g, tokens, &now));
        if (now.due & MOED_GROWTH_EXPAND) {
            grown.experts = now.experts;
            CHECK(moed_trainer_expand(t, NULL, &grown, 0));
            CHECK(moed_growth_enter(g, now.stage, tokens));
        }
        CHECK(moed_trainer_forward_backward(t, NULL, NULL));
        CHECK(moed_trainer_update(t, now.learning_rate / o.learning_rate, &r));
        if (tokens + ROWS * LENGTH == now.end)
            printf("%d experts: loss %.3f after step %d\n", (int)now.experts, r.loss, (int)r.step);
    }
    moed_trainer_destroy(t);
    return 0;
}

int main(void)
{
    moed_context *context;
    moed_layout *layout;
    moed_model *base, *whole;
    moed_corpus *all;
    moed_partition *partition;
    moed_split *split;
    moed_integration *integration;
    moed_growth *growth;
    moed_corpus_options corpus_options;
    moed_growth_options schedule;
    int32_t labels[40];
    const int32_t pools[] = {2, 4, 8};
    const moed_documents documents = {sizeof documents, 0, 40, length_of, read_tokens, NULL};

    for (int i = 0; i < 40; i++) labels[i] = i % PARTS;
    CHECK(moed_context_create(&context, NULL));
    CHECK(moed_layout_from_config(&layout, context, config, strlen(config)));
    CHECK(moed_model_init(&base, context, layout, NULL));
    CHECK(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &corpus_options, sizeof corpus_options));
    corpus_options.vocabulary = 64, corpus_options.end_token = 63;
    CHECK(moed_corpus_wrap(&all, context, &documents, &corpus_options));
    CHECK(moed_partition_create(&partition, context, labels, 40, PARTS, NULL, NULL));

    CHECK(moed_split_create(&split, layout, NULL));
    CHECK(moed_integration_create(&integration, split, base, NULL));
    for (int part = 0; part < PARTS; part++)
        if (train_part(context, split, integration, base, partition, all, part)) return 1;
    CHECK(moed_integration_finish(&whole, integration, NULL, NULL));

    CHECK(moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &schedule, sizeof schedule));
    schedule.tokens = STEPS * ROWS * LENGTH, schedule.step_tokens = ROWS * LENGTH;
    schedule.learning_rate = 5e-3, schedule.warmup = 3;
    CHECK(moed_growth_from_power(&growth, context, pools, 3, &schedule));
    if (train_growing(context, whole, all, growth)) return 1;

    moed_growth_destroy(growth), moed_integration_destroy(integration), moed_split_destroy(split);
    moed_partition_destroy(partition), moed_corpus_destroy(all), moed_model_destroy(whole), moed_model_destroy(base);
    moed_layout_destroy(layout), moed_context_destroy(context);
    return 0;
}
