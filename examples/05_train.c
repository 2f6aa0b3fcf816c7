/* 05_train.c - your own training loop: your documents, your learning-rate factor, the library's model, gradients and AdamW.
 * Prints a line every ten steps and the held-out loss at the end. */
#include <stdio.h>
#include <string.h>

#include <moedisco.h>

#define CHECK(call)                                                                   \
    do {                                                                              \
        if ((call) != MOED_OK) return fprintf(stderr, "%s\n", moed_last_error()), 1;  \
    } while (0)

static const char config[] =
    "{\"model_type\": \"mixtral\", \"vocab_size\": 64, \"hidden_size\": 32, \"intermediate_size\": 64, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"num_local_experts\": 4, \"num_experts_per_tok\": 2,"
    " \"max_position_embeddings\": 64, \"initializer_range\": 0.05}";

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

int main(void)
{
    moed_context *context;
    moed_layout *layout;
    moed_model *model;
    moed_corpus *all, *train, *held_out;
    moed_trainer *trainer;
    moed_corpus_options corpus_options;
    moed_train_options options;
    const moed_documents documents = {sizeof documents, 0, 40, length_of, read_tokens, NULL};
    moed_report report = {.struct_size = sizeof report};

    CHECK(moed_context_create(&context, NULL));
    CHECK(moed_layout_from_config(&layout, context, config, strlen(config)));
    CHECK(moed_model_init(&model, context, layout, NULL));
    CHECK(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &corpus_options, sizeof corpus_options));
    corpus_options.vocabulary = 64, corpus_options.end_token = 63;
    CHECK(moed_corpus_wrap(&all, context, &documents, &corpus_options));
    CHECK(moed_corpus_divide(&train, &held_out, all, 0.1, 1));

    CHECK(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &options, sizeof options));
    options.steps = 60, options.rows = 4, options.length = 32, options.learning_rate = 5e-3;
    CHECK(moed_trainer_create(&trainer, context, model, train, NULL, &options));
    for (int64_t step = 0; step < options.steps; step++) {
        for (int part = 0; part < 2; part++) /* twice the rows in the same memory; moed_batch takes rows of your own */
            CHECK(moed_trainer_forward_backward(trainer, NULL, NULL));
        const double factor = step < 10 ? 0.5 : 1.0; /* on top of the schedule */
        CHECK(moed_trainer_update(trainer, factor, &report));
        if (report.step % 10 == 0)
            printf("step %2lld  loss %.3f  gradient norm %.3f\n", (long long)report.step, report.loss, report.gradient_norm);
    }
    CHECK(moed_trainer_evaluate(trainer, held_out, 0, &report, NULL));
    printf("held out: loss %.3f over %lld tokens\n", report.loss, (long long)report.labels);

    moed_trainer_destroy(trainer);
    moed_corpus_destroy(held_out);
    moed_corpus_destroy(train);
    moed_corpus_destroy(all);
    moed_model_destroy(model);
    moed_layout_destroy(layout);
    moed_context_destroy(context);
    return 0;
}
