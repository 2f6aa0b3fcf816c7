/* tests/train_support.h - a tiny model and a tiny corpus for the trainer's tests. Include after support.h. */
#ifndef MOEDI_TRAIN_SUPPORT_H
#define MOEDI_TRAIN_SUPPORT_H

#include "support.h"

enum { TINY_DOCUMENTS = 24, TINY_VOCABULARY = 48, TINY_LENGTH = 16 };

/* Documents that count up in strides of their own: a next token can be learned. */
static inline int32_t tiny_length(int64_t document, int64_t *tokens, void *user)
{
    (void)user;
    *tokens = 20 + document % 7;
    return 0;
}
static inline int32_t tiny_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    const int64_t shift = user ? *(const int64_t *)user : 0;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((document * 3 + shift + (offset + i) * (1 + document % 2)) % (TINY_VOCABULARY - 1));
    return 0;
}
static inline moed_corpus *tiny_corpus(moed_context *c, int64_t *shift)
{
    const moed_documents documents = {.count = TINY_DOCUMENTS, .length = tiny_length, .read = tiny_read, .user = shift};
    return support_corpus(c, documents, TINY_VOCABULARY, TINY_VOCABULARY - 1);
}
static inline moed_model *tiny_model_of(moed_context *c, int hidden, int layers, int experts, int vocabulary)
{
    char config[1024];
    snprintf(config, sizeof config,
             "{\"model_type\": \"qwen2_moe\", \"vocab_size\": %d, \"hidden_size\": %d, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"num_experts\": %d, \"num_experts_per_tok\": 2, "
             "\"moe_intermediate_size\": %d, \"shared_expert_intermediate_size\": %d, \"intermediate_size\": %d, "
             "\"max_position_embeddings\": 256, \"rms_norm_eps\": 1e-6, \"initializer_range\": 0.1, \"tie_word_embeddings\": "
             "false, \"torch_dtype\": \"float32\"}",
             vocabulary, hidden, layers, experts, hidden, hidden, hidden);
    return support_fresh(c, config, 7, -1);
}
static inline moed_model *tiny_model(moed_context *c)
{
    return tiny_model_of(c, 16, 2, 4, TINY_VOCABULARY);
}
/* A model of a dense layer, norms of heads, biases, and selection biases that decide. */
static inline moed_model *tiny_biased_model(moed_context *c)
{
    static const char config[] =
        "{\"model_type\": \"dots1\", \"vocab_size\": 48, \"hidden_size\": 16, \"num_hidden_layers\": 3, "
        "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"n_routed_experts\": 4, \"num_experts_per_tok\": 2, "
        "\"n_shared_experts\": 1, \"moe_intermediate_size\": 12, \"intermediate_size\": 20, \"first_k_dense_replace\": 1, "
        "\"attention_bias\": true, \"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5, \"initializer_range\": 0.1}";
    return support_biased(support_fresh(c, config, 0, -1), 0.02f);
}
/* A corpus in which one document has a token that is nowhere else, and a model to whom that token is no number: the step that
 * meets it has a loss that is not finite, all others are as ever. */
enum { POISON = TINY_VOCABULARY - 2 };
static inline int32_t poisoned_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    const int32_t status = tiny_read(document, offset, tokens, count, user);
    for (int64_t i = 0; i < count; i++) tokens[i] = document == 3 && offset + i == 4 ? POISON : tokens[i] % POISON;
    return status;
}
static inline moed_corpus *poisoned_corpus(moed_context *c)
{
    const moed_documents documents = {.count = TINY_DOCUMENTS, .length = tiny_length, .read = poisoned_read};
    return support_corpus(c, documents, TINY_VOCABULARY, TINY_VOCABULARY - 1);
}
static inline moed_model *poisoned(moed_model *m)
{
    moed_tensor t;
    assert_ok(moed_model_tensor(m, 0, &t)); /* the embedding */
    assert_true(t.rank == 2 && t.shape[0] == TINY_VOCABULARY);
    for (int64_t i = 0; i < t.shape[1]; i++) ((float *)t.data)[POISON * t.shape[1] + i] = INFINITY;
    return m;
}
static inline moed_train_options tiny_options(int64_t steps)
{
    moed_train_options o;
    assert_ok(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
    o.steps = steps, o.rows = 4, o.length = TINY_LENGTH;
    o.learning_rate = 1e-2;
    o.z_loss = 1e-3;
    return o;
}
static inline moed_report empty_report(void)
{
    moed_report r = {.struct_size = sizeof r};
    return r;
}

/* Everything a trainer stands on; made from one seed, so two of them are alike. */
typedef struct rig {
    moed_context *context;
    moed_model *model;
    moed_corpus *corpus;
    moed_trainer *trainer;
} rig;
static inline rig rig_open(const moed_train_options *o, int32_t threads)
{
    rig r = {.context = support_context("auto", threads)};
    r.model = tiny_model(r.context);
    r.corpus = tiny_corpus(r.context, NULL);
    assert_ok(moed_trainer_create(&r.trainer, r.context, r.model, r.corpus, NULL, o));
    return r;
}
static inline void rig_close(rig *r)
{
    moed_trainer_destroy(r->trainer);
    moed_corpus_destroy(r->corpus);
    moed_model_destroy(r->model);
    moed_context_destroy(r->context);
}
static inline moed_report rig_run(rig *r, int64_t steps)
{
    moed_report report = empty_report();
    assert_ok(moed_trainer_run(r->trainer, steps, &report, NULL));
    return report;
}

static inline moed_tensor model_tensor(const moed_model *m, size_t param)
{
    moed_tensor t;
    assert_ok(moed_model_tensor(m, param, &t));
    return t;
}
static inline size_t tensor_bytes(const moed_tensor *t)
{
    size_t n = (size_t)moed_dtype_bits(t->dtype) / 8;
    for (int32_t i = 0; i < t->rank; i++) n *= (size_t)t->shape[i];
    return n;
}
/* All numbers of a model in one array; free() it. */
static inline float *model_numbers(const moed_model *m, size_t *count)
{
    size_t bytes = 0;
    char *all = NULL;
    for (size_t i = 0; i < model_params(m); i++) {
        const moed_tensor t = model_tensor(m, i);
        all = realloc(all, bytes + tensor_bytes(&t));
        memcpy(all + bytes, t.data, tensor_bytes(&t));
        bytes += tensor_bytes(&t);
    }
    *count = bytes / 4;
    return (float *)(void *)all;
}
static inline void assert_same_models(const moed_model *a, const moed_model *b)
{
    for (size_t i = 0; i < model_params(a); i++) {
        const moed_tensor x = model_tensor(a, i), y = model_tensor(b, i);
        moed_param p;
        assert_ok(moed_layout_param(moed_model_layout(a), i, &p));
        if (memcmp(x.data, y.data, tensor_bytes(&x)) != 0) fail_msg("%s differs", p.name);
    }
}
/* Both go on to the end, and are the same there. */
static inline void rigs_end_alike(rig *a, rig *b)
{
    rig_run(a, 0);
    rig_run(b, 0);
    assert_same_models(a->model, b->model);
    rig_close(a);
    rig_close(b);
}
/* Index of a parameter. */
static inline size_t model_find(const moed_model *m, const char *name)
{
    for (size_t i = 0; i < model_params(m); i++) {
        moed_param p = {0};
        assert_ok(moed_layout_param(moed_model_layout(m), i, &p));
        if (strcmp(p.name, name) == 0) return i;
    }
    fail_msg("no parameter %s", name);
    return 0;
}

enum { POISONED_STEPS = 8, POISONED_CASES = 12 };
/* All of micro-batches and document masks, each with a seed of its own, which meets the poison at another step; the later half of
 * a model whose selection biases move within steps. */
static inline moed_train_options poisoned_options(int number)
{
    moed_train_options o = tiny_options(POISONED_STEPS + 2);
    o.micro_batches = 1 << number % 3, o.document_mask = number / 3 % 2, o.seed = (uint64_t)number;
    o.balance_each = number / 6 ? MOED_BALANCE_MICRO_BATCH : MOED_BALANCE_STEP;
    return o;
}
/* Steps one by one until one is refused, or all: their losses, and how many there were. A refused one is refused again, and a
 * foreign loop gets past it. The model's numbers then; free() them. */
static inline float *poisoned_steps(moed_context *c, const moed_train_options *o, double *losses, int *done, size_t *count)
{
    moed_model *m = poisoned(o->balance_each == MOED_BALANCE_MICRO_BATCH ? tiny_biased_model(c) : tiny_model(c));
    moed_corpus *d = poisoned_corpus(c);
    moed_trainer *t;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, o));
    for (*done = 0; *done < POISONED_STEPS; ++*done) {
        moed_report r = empty_report();
        const moed_status status = moed_trainer_run(t, 1, &r, NULL);
        if (status == MOED_E_NUMERIC) break;
        assert_ok(status);
        losses[*done] = r.loss;
    }
    if (*done < POISONED_STEPS) {
        char words[32];
        int32_t tokens[4 * TINY_LENGTH];
        for (int i = 0; i < 4 * TINY_LENGTH; i++) tokens[i] = i % 40;
        const moed_batch b = {.tokens = tokens, .labels = tokens, .rows = 3, .length = TINY_LENGTH};
        snprintf(words, sizeof words, "step %d: the loss is", *done + 1);
        assert_refused(moed_trainer_run(t, 1, NULL, NULL), MOED_E_NUMERIC, words);
        assert_ok(moed_trainer_forward_backward(t, &b, NULL));
        assert_ok(moed_trainer_update(t, 1, NULL));
    }
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    float *numbers = model_numbers(m, count);
    moed_model_destroy(m);
    return numbers;
}

#endif
