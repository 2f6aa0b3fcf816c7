/* 04: one MoE model into four submodels and back. Each could be trained by anybody, anywhere; here "training" is a nudge. */
#include <moedisco.h>

#include <stdio.h>
#include <string.h>

static const char config[] =
    "{\"model_type\": \"mixtral\", \"vocab_size\": 257, \"hidden_size\": 32, \"num_hidden_layers\": 2,"
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"intermediate_size\": 64, \"num_local_experts\": 4,"
    " \"num_experts_per_tok\": 2, \"max_position_embeddings\": 64}";

/* Adds a little to every number of the model. */
static moed_status pretend_training(moed_model *m, float step)
{
    moed_layout_info info = {.struct_size = sizeof info};
    moed_status status = moed_layout_get_info(moed_model_layout(m), &info);
    for (int64_t i = 0; i < info.params && status == MOED_OK; i++) {
        moed_tensor t;
        if ((status = moed_model_tensor(m, (size_t)i, &t)) != MOED_OK) break;
        int64_t count = 1;
        for (int32_t a = 0; a < t.rank; a++) count *= t.shape[a];
        for (int64_t n = 0; n < count; n++) ((float *)t.data)[n] += step;
    }
    return status;
}

int main(void)
{
    moed_context *context = NULL;
    moed_layout *layout = NULL;
    moed_model *base = NULL, *whole = NULL;
    moed_split *split = NULL;
    moed_integration *integration = NULL;
    moed_integration_info info = {.struct_size = sizeof info};
    moed_status status = MOED_OK;

#define TRY(call) if ((status = (call)) != MOED_OK) goto out
    TRY(moed_context_create(&context, NULL));
    TRY(moed_layout_from_config(&layout, context, config, strlen(config)));
    TRY(moed_model_init(&base, context, layout, NULL));
    TRY(moed_split_create(&split, moed_model_layout(base), NULL));
    TRY(moed_integration_create(&integration, split, base, NULL));
    for (int32_t k = 0; k < 4; k++) {
        moed_model *part = NULL;
        TRY(moed_split_build(&part, split, k, base, NULL, NULL)); /* a path instead of NULL: a Hugging Face directory */
        status = pretend_training(part, 0.001f * (float)(k + 1));
        if (status == MOED_OK) status = moed_integration_add(integration, k, part, 1.0);
        moed_model_destroy(part); /* the integration keeps what it needs */
        if (status != MOED_OK) goto out;
    }
    TRY(moed_integration_finish(&whole, integration, NULL, NULL));
    TRY(moed_integration_get_info(integration, &info));
    printf("%d submodels integrated; their shared parts had drifted by %.2f%%\n", info.present, 100.0 * info.drift);
out:
    if (status != MOED_OK) fprintf(stderr, "%s: %s\n", moed_status_name(status), moed_last_error());
    moed_model_destroy(whole);
    moed_integration_destroy(integration);
    moed_split_destroy(split);
    moed_model_destroy(base);
    moed_layout_destroy(layout);
    moed_context_destroy(context);
    return status == MOED_OK ? 0 : 1;
}
