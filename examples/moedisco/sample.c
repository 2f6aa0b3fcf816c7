/* sample.c - text from a model of byte tokens. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "output.h"
#include "sample.h"

static const moed_field FIELDS[] = {
    FIELD_INTEGER(sampling, bytes, 300, 1, 1 << 20, "bytes to write at most; a document's end stops earlier"),
    FIELD_NUMBER(sampling, temperature, 0.8, 0, 100, "0 = always the likeliest byte"),
    FIELD_OWN(sampling, sample_top_k, MOED_FIELD_I64, "", 0, 0, 1 << 20, "choose among this many likeliest bytes, 0 = all"),
    {sizeof(moed_field), 0, "sample_seed", "", "draws the text", MOED_FIELD_U64, offsetof(sampling, sample_seed), 0, 0, 0},
    FIELD_SWITCH_(sampling, color, "on a terminal: colour every byte by the expert of --layer that it was sent to first"),
    FIELD_INTEGER(sampling, layer, 0, 0, 65535, "layer whose experts colour the text"),
    FIELD_SWITCH_(sampling, raw, "print bytes as they are, even those that no terminal should get"),
};

void sampling_flags(flags *f, sampling *s, int alone)
{
    memset(s, 0, sizeof *s);
    s->bytes = 300;
    s->temperature = 0.8;
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        moed_field field = FIELDS[i];
        if (alone && !strncmp(field.name, "sample_", 7)) field.name += 7;
        flags_table(f, "text", &field, 1, s);
    }
}

/* A number in [0, 1) of a seed and an index (splitmix64). */
static double uniform(uint64_t seed, uint64_t index)
{
    uint64_t z = seed * 0x9E3779B97F4A7C15u + (index + 1) * 0xD1B54A32D192ED03u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

static int larger(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Draws from softmax(logits / temperature) over the top_k largest. logits (n) are used up. */
static int32_t draw(double *logits, int64_t n, const sampling *s, uint64_t index)
{
    int64_t best = 0;
    double sum = 0, floor_logit = -INFINITY;
    for (int64_t i = 1; i < n; i++)
        if (logits[i] > logits[best]) best = i;
    if (s->temperature <= 0) return (int32_t)best;
    if (s->sample_top_k > 0 && s->sample_top_k < n) {
        double *sorted = must(malloc((size_t)n * sizeof *sorted));
        memcpy(sorted, logits, (size_t)n * sizeof *sorted);
        qsort(sorted, (size_t)n, sizeof *sorted, larger);
        floor_logit = sorted[s->sample_top_k - 1];
        free(sorted);
    }
    const double highest = logits[best];
    for (int64_t i = 0; i < n; i++) {
        logits[i] = logits[i] >= floor_logit ? exp((logits[i] - highest) / s->temperature) : 0;
        sum += logits[i];
    }
    double target = uniform(s->sample_seed, index) * sum;
    for (int64_t i = 0; i < n; i++)
        if ((target -= logits[i]) < 0) return (int32_t)i;
    return (int32_t)best;
}

/* Logits after the last of `count` tokens. */
static moed_status last_logits(const moed_model *m, const int32_t *tokens, int64_t count, int64_t vocabulary, int32_t dtype,
                               void *room, double *out)
{
    const moed_batch b = {.tokens = tokens, .rows = 1, .length = count};
    moed_tensor t = {
        .data = room, .dtype = dtype, .rank = 3, .shape = {1, count, vocabulary}, .strides = {count * vocabulary, vocabulary, 1}};
    const moed_status status = moed_model_logits(m, &b, &t, app_cancel);
    for (int64_t i = 0; i < vocabulary && !status; i++) {
        const int64_t at = (count - 1) * vocabulary + i;
        out[i] = dtype == MOED_DTYPE_F64 ? ((const double *)room)[at] : (double)((const float *)room)[at];
    }
    return status;
}

static int32_t arithmetic(const moed_model *m)
{
    moed_tensor t;
    return moed_model_tensor(m, 0, &t) ? MOED_DTYPE_F32 : t.dtype;
}

/* Prints bytes, each in the colour of its expert. */
static moed_status print_coloured(const moed_model *m, const int32_t *tokens, int64_t count, const moed_layout_info *info,
                                  int64_t layer)
{
    const moed_batch b = {.tokens = tokens, .rows = 1, .length = count};
    int32_t *experts = must(calloc((size_t)(info->layers * count * info->top_k), sizeof *experts)); /* (layers, count, top_k) */
    const moed_status status = moed_model_routing(m, &b, experts, NULL, app_cancel);
    for (int64_t i = 0; i < count && !status; i++) {
        char one[2], byte = (char)tokens[i];
        put_printable(one, sizeof one, &byte, 1, 1);
        printf("\033[3%dm%s", 1 + experts[(layer * count + i) * info->top_k] % 6, one);
    }
    if (!status) printf("\033[0m\n");
    free(experts);
    return status;
}

static void print_plain(const int32_t *tokens, int64_t count, const sampling *s)
{
    char *bytes = must(malloc((size_t)count + 1)), *safe = must(malloc((size_t)count + 1));
    for (int64_t i = 0; i < count; i++) bytes[i] = (char)tokens[i];
    put_printable(safe, (size_t)count + 1, bytes, (size_t)count, 1);
    if (output_json()) {
        emit(json_pack("{s:s, s:s}", "event", "sample", "text", safe));
    } else {
        fwrite(s->raw ? bytes : safe, 1, s->raw ? (size_t)count : strlen(safe), stdout);
        putchar('\n');
    }
    free(bytes);
    free(safe);
}

int sample_text(const moed_model *m, const char *prompt, const sampling *s)
{
    moed_layout_info info = {.struct_size = sizeof info};
    moed_status status = moed_layout_get_info(moed_model_layout(m), &info);
    const int64_t start = (int64_t)strlen(prompt);
    if (status) return fail_status(status);
    if (info.vocabulary < 256)
        return fail(EXIT_INPUT, "the model knows %lld tokens: not a model of bytes", (long long)info.vocabulary);
    if (s->layer >= info.layers)
        return fail(EXIT_INPUT, "--layer %lld: the model has %lld layers", (long long)s->layer, (long long)info.layers);
    const int64_t window = info.context_length < 512 ? info.context_length : 512;
    int32_t *tokens = must(malloc((size_t)(start + s->bytes + 2) * sizeof *tokens));
    void *room = must(malloc((size_t)(window * info.vocabulary) * sizeof(double)));
    double *logits = must(malloc((size_t)info.vocabulary * sizeof *logits));
    int64_t count = 0;
    /* An empty prompt begins after a document's end. */
    if (!start) tokens[count++] = info.vocabulary > 256 ? 256 : '\n';
    for (int64_t i = 0; i < start; i++) tokens[count++] = (unsigned char)prompt[i];
    const int64_t skipped = start ? 0 : 1;
    for (int64_t i = 0; i < s->bytes && !status; i++) {
        const int64_t used = count < window ? count : window;
        status = last_logits(m, tokens + count - used, used, info.vocabulary, arithmetic(m), room, logits);
        if (status) break;
        const int32_t next = draw(logits, info.vocabulary, s, (uint64_t)i);
        if (next > 255) break;
        tokens[count++] = next;
    }
    if (!status) {
        const int64_t shown = count - skipped, from = shown > info.context_length ? shown - info.context_length : 0;
        if (s->color && isatty(STDOUT_FILENO) && !output_json())
            status = print_coloured(m, tokens + skipped + from, shown - from, &info, s->layer);
        else print_plain(tokens + skipped, shown, s);
    }
    free(tokens);
    free(room);
    free(logits);
    return status ? fail_status(status) : EXIT_DONE;
}

int verb_sample(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    sampling s;
    moed_context *context = NULL;
    moed_model *m = NULL;
    sampling_flags(&f, &s, 1);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 1, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    const moed_status status = moed_model_open(&m, context, f.positionals[0], NULL);
    code = status ? fail_status(status) : sample_text(m, f.positional_count > 1 ? f.positionals[1] : "", &s);
    moed_model_destroy(m);
    moed_context_destroy(context);
    return code;
}
