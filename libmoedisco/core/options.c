/* core/options.c - one table of fields per options struct: its defaults, ranges and sentences in one place. */
#include "options.h"

#include <math.h>
#include <string.h>

#include "moedisco.h"

typedef struct field {
    const char *name, *choices, *sentence;
    uint32_t offset, size;
    int32_t type;
    double initial, minimum, maximum;
    const char *text; /* default of a text field */
} field;

#define MAX_I64 4611686018427387904.0 /* 2^62 */
#define MAX_U64 18446744073709549568.0

/* Each row names its struct's member: size and offset are the compiler's. The _Generic check refuses a row whose type is not the
 * member's. */
#define MEMBER(s, f) (((s *)0)->f)
#define ROW(s, f, t, ctype, init, lo, hi, ch, says)                                                           \
    {.name = #f, .choices = (ch), .sentence = (says), .offset = offsetof(s, f),                               \
     .size = sizeof(MEMBER(s, f)) / (_Generic(MEMBER(s, f), ctype: 1)), \
     .type = (t), .initial = (init), .minimum = (lo), .maximum = (hi)}
#define I32(s, f, init, lo, hi, says) ROW(s, f, MOED_FIELD_I32, int32_t, init, lo, hi, "", says)
#define I64(s, f, init, lo, hi, says) ROW(s, f, MOED_FIELD_I64, int64_t, init, lo, hi, "", says)
#define U64(s, f, init, says) ROW(s, f, MOED_FIELD_U64, uint64_t, init, 0, MAX_U64, "", says)
#define F64(s, f, init, lo, hi, says) ROW(s, f, MOED_FIELD_F64, double, init, lo, hi, "", says)
#define SWITCH(s, f, init, says) ROW(s, f, MOED_FIELD_SWITCH, int32_t, init, 0, 1, "", says)
#define CHOICE(s, f, init, last, ch, says) ROW(s, f, MOED_FIELD_CHOICE, int32_t, init, 0, last, ch, says)
#define TEXT(s, f, init, says)                                                                                     \
    {.name = #f, .choices = "", .sentence = (says), .offset = offsetof(s, f), .size = sizeof(MEMBER(s, f)),        \
     .type = MOED_FIELD_TEXT, .text = (init)}
#define POINTER(s, f, says)                                                                                        \
    {.name = #f, .choices = "", .sentence = (says), .offset = offsetof(s, f), .size = sizeof(MEMBER(s, f)),     \
     .type = MOED_FIELD_POINTER}

#define S moed_context_options
static const field context_fields[] = {
    TEXT(S, device, NULL, "device to compute on: auto, cpu, or NAME:INDEX of a plug-in's"),
    TEXT(S, kernels, NULL, "CPU kernel set: auto, v2, v3, v4, neon, reference or double"),
    TEXT(S, plugin_dir, NULL, "folder searched first for backend plug-ins"),
    I32(S, threads, 0, 0, 4096, "threads; 0 = as many cores as affinity and cgroup allow"),
    I32(S, log_level, MOED_LOG_INFO, 0, MOED_LOG_DEBUG,
        "highest level that is logged: 1 errors, 2 warnings, 3 information, 4 all"),
    I64(S, host_limit, 0, 0, MAX_I64, "bytes of host memory the library may hold; 0 = no limit"),
    I64(S, device_limit, 0, 0, MAX_I64, "bytes of device memory the library may hold; 0 = no limit"),
    POINTER(S, alloc, "host allocator"),
    POINTER(S, free, "host allocator's counterpart"),
    POINTER(S, alloc_user, "passed to both"),
    POINTER(S, executor, "the caller's thread pool"),
    POINTER(S, executor_user, "passed to it"),
    POINTER(S, log, "receives log lines"),
    POINTER(S, log_user, "passed to it"),
    POINTER(S, stream, "device stream of the caller's"),
    POINTER(S, device_alloc, "device allocator"),
    POINTER(S, device_free, "device allocator's counterpart"),
    POINTER(S, device_alloc_user, "passed to both"),
};
#undef S
#define S moed_model_options
static const field model_fields[] = {
    CHOICE(S, dtype, 0, 4, "as-is|f32|f16|bf16|f64", "data type of floating parameters in a saved model"),
    U64(S, seed, 0, "seed of fresh weights"),
    F64(S, init_std, -1, -1, 100, "standard deviation of fresh weights; negative = the config's initializer_range"),
    I64(S, shard_bytes, 0, 0, MAX_I64, "bytes of tensors in one file of a saved model at most; 0 = one file"),
};
#undef S
#define S moed_corpus_options
static const field corpus_fields[] = {
    TEXT(S, field, "text", "JSON-lines field that holds the text"),
    TEXT(S, tokenizer, NULL, "name or hash of the tokenizer, kept for the record"),
    I64(S, vocabulary, 0, 0, 2147483647, "tokens of the vocabulary; 0 = corpus.json's, else largest token + 1"),
    I64(S, end_token, -1, -1, 2147483646, "token that ends a document; -1 = corpus.json's, else none"),
    I64(S, document_bytes, 4096, 0, MAX_I64,
        "longer files are cut at blank lines into documents of about this many bytes; 0 = never"),
    I64(S, minimum_bytes, 1, 1, MAX_I64, "shorter documents are dropped"),
};
#undef S
#define S moed_embed_options
static const field embed_fields[] = {
    SWITCH(S, normalise, 1, "scale each document vector to length 1"),
    SWITCH(S, centre, 1, "subtract the mean vector first"),
};
#undef S
#define S moed_kmeans_options
static const field kmeans_fields[] = {
    I32(S, clusters, 4, 1, 1 << 24, "clusters"),
    CHOICE(S, method, MOED_KMEANS_PLAIN, 1, "plain|balanced", "plain, or balanced: equal weight per cluster"),
    I32(S, iterations, 100, 1, 1000000, "Lloyd iterations at most"),
    I32(S, restarts, 1, 1, 10000, "k-means++ starts, of which the best is kept"),
    U64(S, seed, 0, "seed of the starts"),
    F64(S, tolerance, 1e-4, 0, 1, "stop when the centroids' squared movement falls below this times the mean variance"),
    F64(S, imbalance, 0.01, 0, 1e6, "balanced: share by which a cluster's weight may exceed the mean"),
    CHOICE(S, start, MOED_START_PLUSPLUS, 1, "plusplus|parallel",
           "how the starts are drawn; k-means|| takes few passes for many clusters"),
    I32(S, batch, 0, 0, 1 << 24, "vectors of a mini-batch; 0 = all vectors in every iteration"),
};
#undef S
#define S moed_split_options
static const field split_fields[] = {
    I32(S, parts, 0, 0, 1 << 24, "submodels; 0 = one per expert"),
    CHOICE(S, dtype, 0, 4, "as-is|f32|f16|bf16|f64", "data type of floating parameters in the submodels; as-is = the base's"),
    I64(S, shard_bytes, 0, 0, MAX_I64, "bytes of tensors in one file of a saved model at most; 0 = one file"),
};
#undef S
#define S moed_integration_options
static const field integration_fields[] = {
    CHOICE(S, merge, MOED_MERGE_UNIFORM, 2, "uniform|weighted|explicit", "how shared parameters of the submodels are weighted"),
    CHOICE(S, gate, MOED_GATE_BASE, MOED_GATE_SUBMODELS, "base|random|centroids|ridge|submodels",
           "where the router's rows come from"),
    SWITCH(S, allow_missing, 0, "finish without a lost submodel: its experts come from the base"),
    CHOICE(S, dtype, 0, 4, "as-is|f32|f16|bf16|f64", "data type of floating parameters in the result; as-is = the base's"),
    U64(S, seed, 0, "seed of a random gate"),
    F64(S, gate_std, -1, -1, 100, "scale of random, centroid or ridge gate rows; negative = that of the base's rows"),
    I64(S, shard_bytes, 0, 0, MAX_I64, "bytes of tensors in one file of a saved model at most; 0 = one file"),
};
#undef S
#define S moed_upcycle_options
static const field upcycle_fields[] = {
    I32(S, experts, 8, 1, 1 << 16, "experts of every layer"),
    I32(S, top_k, 2, 1, 1 << 16, "experts that see a token"),
    CHOICE(S, dtype, 0, 4, "as-is|f32|f16|bf16|f64", "data type of floating parameters in the result; as-is = the dense model's"),
    U64(S, seed, 0, "seed of router rows, noise and units drawn anew"),
    F64(S, noise, 0, 0, 100, "noise on the experts, as a share of each tensor's root mean square; 0 = clones"),
    F64(S, redraw, 0, 0, 1, "share of the intermediate units of every expert that are drawn anew (Drop-Upcycling: 0.5)"),
    F64(S, router_std, -1, -1, 100, "standard deviation of router rows; negative = the config's initializer_range"),
    I64(S, shard_bytes, 0, 0, MAX_I64, "bytes of tensors in one file of a saved model at most; 0 = one file"),
};
#undef S
#define S moed_expansion_options
static const field expansion_fields[] = {
    I32(S, experts, 16, 1, 1 << 16, "experts of every layer that has experts, afterwards"),
    I32(S, top_k, 0, 0, 1 << 16, "experts that see a token; 0 = as before"),
    CHOICE(S, method, MOED_EXPAND_DRAW, 1, "draw|clone", "new experts: drawn, or clones of the others in turn"),
    SWITCH(S, keep_bias, 0, "old experts keep their selection biases; off: all are 0"),
    CHOICE(S, dtype, 0, 4, "as-is|f32|f16|bf16|f64", "data type of floating parameters in the result; as-is = the model's"),
    U64(S, seed, 0, "seed of what is drawn"),
    F64(S, std, -1, -1, 100,
        "draw: standard deviation of new experts and router rows; negative = the config's initializer_range"),
    F64(S, noise, 0.01, 0, 100, "clone: noise on new experts, as a share of each tensor's root mean square"),
    F64(S, redraw, 0, 0, 1, "clone: share of the intermediate units of new experts that are drawn anew (Drop-Upcycling: 0.5)"),
    I64(S, shard_bytes, 0, 0, MAX_I64, "bytes of tensors in one file of a saved model at most; 0 = one file"),
};
#undef S
#define S moed_train_options
static const field train_fields[] = {
    I64(S, steps, 1000, 1, MAX_I64, "optimizer steps of the whole run"),
    I64(S, rows, 16, 1, 1 << 24, "rows per step"),
    I64(S, length, 256, 1, 1 << 24, "tokens per row"),
    I64(S, micro_batches, 1, 1, 1 << 16, "forward and backward passes a step's rows are divided into"),
    CHOICE(S, schedule, MOED_SCHEDULE_COSINE, 2, "constant|cosine|wsd", "learning-rate schedule"),
    SWITCH(S, document_mask, 1, "attention stays inside a document"),
    F64(S, learning_rate, 1e-3, 0, MOEDI_LARGEST_RATE, "peak learning rate"),
    F64(S, final_rate, 0.05, 0, 1, "end of cosine and of wsd's decay, as a share of the peak"),
    F64(S, warmup, 0.03, 0, 1, "share of steps with rising rate"),
    F64(S, decay, 0.1, 0, 1, "wsd: share of steps with falling rate"),
    F64(S, beta1, 0.9, 0, 0.999999999, "AdamW: decay of the first moment"),
    F64(S, beta2, 0.95, 0, 0.999999999, "AdamW: decay of the second moment"),
    F64(S, epsilon, 1e-8, 1e-30, 1, "AdamW: added to the root of the second moment"),
    F64(S, weight_decay, 0.01, 0, 10, "AdamW: decoupled decay, on matrices"),
    F64(S, clip, 1, 0, 1e30, "largest global gradient norm; 0 = no clipping"),
    F64(S, load_balance, 0.01, 0, 100, "coefficient of the load-balance loss"),
    F64(S, z_loss, 0, 0, 100, "coefficient of the router z-loss"),
    U64(S, seed, 0, "seed of the data order"),
    TEXT(S, train, NULL,
         "what trains: roles (shared, expert, router, bias) or name patterns with *, comma-separated; none = all"),
    TEXT(S, freeze, NULL, "what stays frozen, in the same way"),
    TEXT(S, directory, NULL, "folder of checkpoints and metrics"),
    I64(S, checkpoint_every, 0, 0, MAX_I64, "steps between checkpoints; 0 = none by itself"),
    I64(S, keep, 2, 1, 1 << 20, "newest checkpoints kept"),
    I64(S, evaluate_every, 0, 0, MAX_I64, "steps between evaluations; 0 = none by itself"),
    I64(S, evaluate_tokens, 0, 0, MAX_I64, "held-out tokens of an evaluation at most; 0 = all"),
    POINTER(S, held_out, "corpus to evaluate on"),
    POINTER(S, progress, "called between steps"),
    POINTER(S, progress_user, "passed to it"),
    CHOICE(S, policy, MOED_POLICY_AUTO, 2, "auto|full|lean",
           "what the optimizer keeps: full = 32-bit numbers and moments, lean = 8-bit moments and no copies; auto = full if it "
           "fits"),
    SWITCH(S, graph, 1, "record a step's work once and launch it as a whole, where the device can"),
    SWITCH(S, store_late, 0, "of a device: the host's copy of the weights follows at the end of the run alone"),
    CHOICE(S, balance_each, MOED_BALANCE_STEP, 1, "step|micro-batch",
           "when selection biases move: after a step by its loads, or after each micro-batch by its own and a share of the rate"),
    F64(S, balance_rate, 1e-3, 0, 100,
        "by how much a step moves selection biases, frozen or not, towards equal loads; 0 = they rest"),
    I64(S, first_row, 0, 0, MAX_I64 / 2, "rows of the data order that runs before this one took"),
    F64(S, balance_boost, 10, 0, 1e6,
        "balance_rate begins so many times as large, and falls to itself while the learning rate rises; 0 = as 1"),
    F64(S, balance_band, 0, 0, 1e6,
        "share of the mean load within which a selection bias moves in proportion; 0 = always by the whole rate"),
};
#undef S

#define S moed_law_options
static const field law_fields[] = {
    CHOICE(S, preset, MOED_LAW_LUDZIEJEWSKI_2025, 3, "custom|ludziejewski-2025|abnar-2025|krajewski-2024",
           "published coefficients"),
    CHOICE(S, form, MOED_FORM_JOINT, 3, "joint|sparsity|granularity|callback", "formula that one's own coefficients are for"),
    I32(S, top_k, 1, 1, 65536, "experts that each token visits: the law sees experts / top_k"),
    I32(S, coefficient_count, 0, 0, 64, "coefficients given"),
    POINTER(S, coefficients, "coefficients, in the form's order"),
    F64(S, routed_share, 1, 0, 1, "form sparsity: share of the active parameters that lies in routed experts"),
    F64(S, active_min, 0, 0, 1e30, "active parameters from which the law holds; 0 = not known"),
    F64(S, active_max, 0, 0, 1e30, "active parameters to which the law holds; 0 = not known"),
    F64(S, experts_min, 0, 0, 1e30, "experts / top_k from which the law holds; 0 = not known"),
    F64(S, experts_max, 0, 0, 1e30, "experts / top_k to which the law holds; 0 = not known"),
    F64(S, tokens_min, 0, 0, 1e30, "tokens from which the law holds; 0 = not known"),
    F64(S, tokens_max, 0, 0, 1e30, "tokens to which the law holds; 0 = not known"),
    TEXT(S, source, NULL, "where the coefficients come from"),
    POINTER(S, loss, "a law of the caller's own"),
    POINTER(S, loss_user, "passed to it"),
};
#undef S
#define S moed_fit_options
static const field fit_fields[] = {
    I32(S, top_k, 1, 1, 65536, "experts that each token visits, in all runs: the law sees experts / top_k"),
    SWITCH(S, fit_saturation, 1, "fit e_start and e_max too, where runs have four different numbers of experts or more"),
    I32(S, starts, 64, 1, 19683, "starts, the best of the grid's 19683, that L-BFGS goes on from"),
    I32(S, bootstrap, 0, 0, 100000, "resampled fits for intervals of the coefficients; 0 = none"),
    F64(S, held_out, 0.2, 0, 0.9, "share of the runs that the fit does not see"),
    F64(S, huber, 0.01, 1e-9, 1e9, "residual of log loss up to which it counts by its square, beyond by its size"),
    F64(S, low_loss, 1, 0, 100, "a run weighs (lowest loss / its loss)^this; 0 = all alike"),
    F64(S, confidence, 0.95, 0.01, 0.999, "of the intervals"),
    U64(S, seed, 0, "seed of the held-out runs and of resampling"),
};
#undef S
#define S moed_growth_options
static const field growth_fields[] = {
    I64(S, step_tokens, 1, 1, MAX_I64, "tokens of an optimizer step"),
    I64(S, tokens, 0, 0, MAX_I64, "tokens of all stages"),
    F64(S, active, 0, 0, 1e30, "law rule: active parameters"),
    F64(S, exponent, 0.52, 0, 100, "power rule: a stage ends at tokens * (its experts / the last stage's)^this"),
    F64(S, learning_rate, 9e-4, 0, MOEDI_LARGEST_RATE, "peak learning rate of the first stage"),
    F64(S, expert_rate, 0, -10, 10, "a stage's peak is that times (its experts / the first stage's)^this"),
    I64(S, warmup, 500, 0, MAX_I64, "steps with rising rate at the beginning of every stage"),
    F64(S, decay, 0.1, 0, 1, "share of all steps with falling rate, at the end of the last stage"),
    F64(S, final_rate, 0, 0, 1, "end of the decay, as a share of the peak"),
    CHOICE(S, decay_shape, MOED_DECAY_LINEAR, 2, "none|linear|cosine", "how the rate falls there"),
    I32(S, top_k, 0, 0, 65536, "experts that each token visits; 0 = the model's"),
};
#undef S

typedef struct structure {
    int32_t id;
    const char *name;
    size_t size;
    const field *fields;
    size_t field_count;
    uint32_t flags; /* bits of `flags` that mean something */
} structure;

enum { LARGEST = 512 }; /* bytes of any public struct */
/* Its size, where the layout is as promised. */
#define SIZE_OF(type)                                                                                         \
    (sizeof(type) + 0 * sizeof(struct {                                                                       \
         _Static_assert(sizeof(type) % 8 == 0 && sizeof(type) <= LARGEST, "layout of " #type);                \
         char member;                                                                                         \
     }))
#define PLAIN(id, type) {MOED_STRUCT_##id, #type, SIZE_OF(type), NULL, 0, 0}
#define OPTIONS(id, type, rows, flags) {MOED_STRUCT_##id, #type, SIZE_OF(type), rows, sizeof(rows) / sizeof *(rows), flags}
static const structure structures[] = {
    PLAIN(ERROR_INFO, moed_error_info),
    PLAIN(TENSOR, moed_tensor),
    PLAIN(PARAM, moed_param),
    PLAIN(PIECE, moed_piece),
    PLAIN(SHARD, moed_shard),
    PLAIN(BATCH, moed_batch),
    PLAIN(FIELD, moed_field),
    OPTIONS(CONTEXT_OPTIONS, moed_context_options, context_fields, MOED_CONTEXT_NO_ENV),
    PLAIN(CONTEXT_INFO, moed_context_info),
    PLAIN(DEVICE_INFO, moed_device_info),
    OPTIONS(MODEL_OPTIONS, moed_model_options, model_fields, MOED_MODEL_STREAM),
    PLAIN(LAYOUT_INFO, moed_layout_info),
    PLAIN(FINDING, moed_finding),
    OPTIONS(CORPUS_OPTIONS, moed_corpus_options, corpus_fields, 0),
    PLAIN(CORPUS_INFO, moed_corpus_info),
    PLAIN(DOCUMENTS, moed_documents),
    PLAIN(CORPUS_REPORT, moed_corpus_report),
    OPTIONS(KMEANS_OPTIONS, moed_kmeans_options, kmeans_fields, 0),
    PLAIN(KMEANS_INFO, moed_kmeans_info),
    PLAIN(VECTORS, moed_vectors),
    PLAIN(PARTITION_INFO, moed_partition_info),
    OPTIONS(EMBED_OPTIONS, moed_embed_options, embed_fields, 0),
    OPTIONS(SPLIT_OPTIONS, moed_split_options, split_fields, MOED_SPLIT_DENSE),
    OPTIONS(INTEGRATION_OPTIONS, moed_integration_options, integration_fields, MOED_INTEGRATION_CLONES),
    PLAIN(INTEGRATION_INFO, moed_integration_info),
    OPTIONS(UPCYCLE_OPTIONS, moed_upcycle_options, upcycle_fields, 0),
    OPTIONS(EXPANSION_OPTIONS, moed_expansion_options, expansion_fields, 0),
    OPTIONS(TRAIN_OPTIONS, moed_train_options, train_fields, 0),
    PLAIN(ESTIMATE, moed_estimate),
    PLAIN(TRAINER_INFO, moed_trainer_info),
    PLAIN(REPORT, moed_report),
    PLAIN(PHASE, moed_phase),
    PLAIN(COST, moed_cost),
    OPTIONS(LAW_OPTIONS, moed_law_options, law_fields, 0),
    PLAIN(LAW_INFO, moed_law_info),
    PLAIN(RUN_POINT, moed_run_point),
    OPTIONS(FIT_OPTIONS, moed_fit_options, fit_fields, 0),
    PLAIN(COEFFICIENT, moed_coefficient),
    PLAIN(LAW_TERMS, moed_law_terms),
    PLAIN(STAGE, moed_stage),
    OPTIONS(GROWTH_OPTIONS, moed_growth_options, growth_fields, 0),
    PLAIN(GROWTH_INFO, moed_growth_info),
    PLAIN(GROWTH_POINT, moed_growth_point),
    PLAIN(STEP_TIME, moed_step_time),
};

static const structure *find(int32_t id)
{
    for (size_t i = 0; i < sizeof structures / sizeof *structures; i++)
        if (structures[i].id == id) return &structures[i];
    return NULL;
}

size_t moed_struct_size(int32_t id)
{
    const structure *s = find(id);
    return s ? s->size : 0;
}

moed_status moed_options_field(int32_t id, size_t index, moed_field *out)
{
    moedi_clear_error();
    const structure *s = find(id);
    if (!s || !s->fields) return moedi_fail(MOED_E_ARGUMENT, "%d is not the id of an options struct", id);
    if (index >= s->field_count)
        return moedi_fail(MOED_E_RANGE, "%s has %zu fields, no field %zu", s->name, s->field_count, index);
    const field *f = &s->fields[index];
    const moed_field full = {.name = f->name,
                             .choices = f->choices,
                             .sentence = f->sentence,
                             .type = f->type,
                             .offset = f->offset,
                             .initial = f->initial,
                             .minimum = f->minimum,
                             .maximum = f->maximum};
    return moedi_info_write(MOED_STRUCT_FIELD, &full, out);
}

static void set_default(const field *f, char *base)
{
    char *at = base + f->offset;
    switch (f->type) {
    case MOED_FIELD_I64: *(int64_t *)(void *)at = (int64_t)f->initial; break;
    case MOED_FIELD_U64: *(uint64_t *)(void *)at = (uint64_t)f->initial; break;
    case MOED_FIELD_F64: *(double *)(void *)at = f->initial; break;
    case MOED_FIELD_TEXT: *(const char **)(void *)at = f->text; break;
    case MOED_FIELD_POINTER: memset(at, 0, sizeof(void *)); break;
    default: *(int32_t *)(void *)at = (int32_t)f->initial; break;
    }
}

static void defaults(const structure *s, void *full)
{
    memset(full, 0, s->size);
    for (size_t i = 0; i < s->field_count; i++) set_default(&s->fields[i], full);
}

moed_status moed_options_init(int32_t id, void *out, size_t size)
{
    moedi_clear_error();
    const structure *s = find(id);
    if (!s || !s->fields) return moedi_fail(MOED_E_ARGUMENT, "%d is not the id of an options struct", id);
    if (!out) return moedi_fail(MOED_E_ARGUMENT, "the %s to fill in is NULL", s->name);
    if (size < 8) return moedi_fail(MOED_E_ARGUMENT, "%s: a size of %zu bytes has no room for its first members", s->name, size);
    _Alignas(8) char full[LARGEST];
    defaults(s, full);
    memset(out, 0, size);
    memcpy(out, full, size < s->size ? size : s->size);
    *(uint32_t *)out = (uint32_t)size;
    return MOED_OK;
}

static moed_status check_number(const structure *s, const field *f, double value)
{
    if (value >= f->minimum && value <= f->maximum) return MOED_OK; /* NaN fails both */
    if (f->type == MOED_FIELD_CHOICE)
        return moedi_fail_parameter(MOED_E_RANGE, f->name, "%s: %s is %g; the choices are %s, numbered from 0", s->name, f->name,
                                    moedi_told(value), f->choices);
    return moedi_fail_parameter(MOED_E_RANGE, f->name, "%s: %s is %.12g; it must be from %.12g to %.12g", s->name, f->name,
                                moedi_told(value), f->minimum, f->maximum);
}

static moed_status check_field(const structure *s, const field *f, const char *base)
{
    const char *at = base + f->offset;
    switch (f->type) {
    case MOED_FIELD_I64: return check_number(s, f, (double)*(const int64_t *)(const void *)at);
    case MOED_FIELD_F64: return check_number(s, f, *(const double *)(const void *)at);
    case MOED_FIELD_U64:
    case MOED_FIELD_TEXT:
    case MOED_FIELD_POINTER: return MOED_OK;
    default: return check_number(s, f, *(const int32_t *)(const void *)at);
    }
}

enum { MOST = 65536 }; /* bytes that a struct may grow to: anything above is memory that nobody set */

/* A larger struct's tail must be zero; a smaller one must end where a field does. */
static moed_status check_size(const structure *s, const char *given)
{
    const uint32_t size = *(const uint32_t *)(const void *)given;
    if (size < 8)
        return moedi_fail(MOED_E_STRUCT, "%s: struct_size is %u; set it to sizeof(%s), for options by moed_options_init", s->name,
                          size, s->name);
    if (size > MOST) return moedi_fail(MOED_E_STRUCT, "%s: struct_size is %u, which no version has", s->name, size);
    for (size_t i = s->size; i < size; i++)
        if (given[i])
            return moedi_fail(MOED_E_STRUCT,
                              "%s: byte %zu is set, but this library knows only %zu bytes: it is older than the caller", s->name,
                              i, s->size);
    for (size_t i = 0; i < s->field_count; i++)
        if (s->fields[i].offset < size && size < s->fields[i].offset + s->fields[i].size)
            return moedi_fail_parameter(MOED_E_STRUCT, s->fields[i].name, "%s: struct_size is %u, which cuts the field %s in two",
                                        s->name, size, s->fields[i].name);
    return MOED_OK;
}

static moed_status check_flags(const structure *s, uint32_t flags)
{
    const uint32_t unknown = flags & ~s->flags;
    if (!unknown) return MOED_OK;
    return moedi_fail_parameter(MOED_E_STRUCT, "flags", "%s: flags holds 0x%x, which this library does not know", s->name,
                                unknown);
}

moed_status moedi_options_read(int32_t id, const void *given, void *out)
{
    const structure *s = find(id);
    if (!s || !s->fields) return moedi_fail(MOED_E_INTERNAL, "no options struct has the id %d", id);
    _Alignas(8) char full[LARGEST];
    defaults(s, full);
    if (given) {
        MOEDI_TRY(check_size(s, given));
        const size_t size = *(const uint32_t *)given;
        /* An older caller's struct ends earlier. What it lacks is 0, not the default: an appended field means "as before" when
         * 0. */
        memset(full, 0, sizeof full);
        memcpy(full, given, size < s->size ? size : s->size);
    }
    *(uint32_t *)(void *)full = (uint32_t)s->size;
    MOEDI_TRY(check_flags(s, ((const uint32_t *)(const void *)full)[1]));
    for (size_t i = 0; i < s->field_count; i++) MOEDI_TRY(check_field(s, &s->fields[i], full));
    memcpy(out, full, s->size);
    return MOED_OK;
}

static moed_status info_structure(int32_t id, const void *out, const structure **found)
{
    const structure *s = find(id);
    if (!s) return moedi_fail(MOED_E_INTERNAL, "no info struct has the id %d", id);
    if (!out) return moedi_fail(MOED_E_ARGUMENT, "the %s to fill in is NULL", s->name);
    const uint32_t size = *(const uint32_t *)out;
    if (size < 8 || size > MOST)
        return moedi_fail(MOED_E_STRUCT, "%s: struct_size is %u; set it to sizeof(%s) before the call", s->name, size, s->name);
    *found = s;
    return MOED_OK;
}

moed_status moedi_info_check(int32_t id, const void *out)
{
    const structure *s = NULL;
    return info_structure(id, out, &s);
}

moed_status moedi_info_write(int32_t id, const void *full, void *out)
{
    const structure *s = NULL;
    MOEDI_TRY(info_structure(id, out, &s));
    const uint32_t size = *(const uint32_t *)out;
    char *to = out;
    memcpy(to, full, size < s->size ? size : s->size);
    if (size > s->size) memset(to + s->size, 0, size - s->size);
    *(uint32_t *)out = size;
    return MOED_OK;
}
