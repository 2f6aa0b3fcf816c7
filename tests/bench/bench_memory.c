/* bench_memory.c - what moed_train_estimate says against what a run takes, over a grid of shapes. bench_memory [threads [first
 * [count]]]. Each shape trains two steps with an evaluation and a checkpoint in a process of its own; one line each: the
 * estimate, the context's peak, and what the whole process had more than before the model (VmHWM), in MB, with the policy full,
 * then lean. Then again under a limit just above and just below the estimate. Ends with the worst of all and exit code 1 where
 * one is off by more than 10% and 64 MiB, or a limit was not kept. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "moedisco.h"

#define CHECK(call)                                                                                          \
    do {                                                                                                     \
        if ((call) != MOED_OK) fprintf(stderr, "bench_memory: %s: %s\n", #call, moed_last_error()), _exit(2); \
    } while (0)

typedef struct shape {
    int layers, hidden, experts, top_k, width, vocabulary, rows, length, micro_batches, mixtral;
    const char *train, *kernels;
} shape;

/* A middle, and from it one thing at a time; then corners. */
static const shape shapes[] = {
    {4, 256, 8, 2, 512, 4096, 8, 128, 1, 0, NULL, "auto"},
    {1, 256, 8, 2, 512, 4096, 8, 128, 1, 0, NULL, "auto"},
    {12, 256, 8, 2, 512, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 64, 8, 2, 128, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 768, 4, 2, 1024, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 1, 1, 512, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 64, 2, 128, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 64, 8, 128, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 8, 8, 512, 4096, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 257, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 32768, 8, 128, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 1, 128, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 32, 128, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 16, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 4, 512, 1, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 2, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 8, 0, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 1, 1, NULL, "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 1, 0, "shared", "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 1, 0, "expert", "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 4, 0, "router", "auto"},
    {4, 256, 8, 2, 512, 4096, 8, 128, 1, 0, "*layers.3.*", "auto"},
    {2, 64, 4, 2, 128, 257, 4, 64, 1, 0, NULL, "auto"},
    {1, 64, 1, 1, 64, 257, 1, 16, 1, 1, NULL, "auto"},
    {2, 64, 4, 2, 128, 32768, 16, 64, 4, 0, NULL, "auto"},
    {2, 768, 2, 1, 1024, 32768, 2, 64, 1, 1, NULL, "auto"},
    {12, 64, 16, 4, 128, 257, 16, 128, 2, 0, NULL, "auto"},
    {6, 384, 4, 2, 1024, 8192, 4, 256, 1, 1, NULL, "auto"},
    {2, 128, 4, 2, 256, 1024, 4, 64, 1, 0, NULL, "v3"},
    {2, 128, 4, 2, 256, 1024, 4, 64, 1, 0, NULL, "v2"},
    {2, 128, 4, 2, 256, 1024, 4, 64, 1, 0, NULL, "reference"},
    {2, 128, 4, 2, 256, 1024, 4, 64, 1, 0, NULL, "double"},
};
enum { SHAPES = sizeof shapes / sizeof *shapes, DOCUMENTS = 400 };
static const double LIMIT_SHARE = 0.10, LIMIT_BYTES = 64 << 20;

static int32_t length_of(int64_t document, int64_t *tokens, void *user)
{
    (void)user;
    *tokens = 100 + document % 100;
    return 0;
}
static int32_t read_of(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    const int vocabulary = *(const int *)user;
    for (int64_t i = 0; i < count; i++)
        tokens[i] = (int32_t)((uint64_t)(document * 1000003 + offset + i) * 2654435761u % (uint64_t)(vocabulary - 1));
    return 0;
}

/* The most this process has had in memory, in bytes. */
static double process_peak(void)
{
    char line[256];
    long kilobytes = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld", &kilobytes) == 1) break;
    if (f) fclose(f);
    return 1024.0 * (double)kilobytes;
}

static void write_config(const shape *s, char *out, size_t size)
{
    const int heads = s->hidden / 32;
    if (s->mixtral)
        snprintf(out, size,
                 "{\"model_type\": \"mixtral\", \"vocab_size\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, "
                 "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"num_local_experts\": "
                 "%d, \"num_experts_per_tok\": %d, \"max_position_embeddings\": 1024}",
                 s->vocabulary, s->hidden, s->width, s->layers, heads, heads, s->experts, s->top_k);
    else
        snprintf(out, size,
                 "{\"model_type\": \"qwen2_moe\", \"vocab_size\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, "
                 "\"moe_intermediate_size\": %d, \"shared_expert_intermediate_size\": %d, \"num_hidden_layers\": %d, "
                 "\"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"num_experts\": %d, \"num_experts_per_tok\": %d, "
                 "\"max_position_embeddings\": 1024, \"tie_word_embeddings\": false}",
                 s->vocabulary, s->hidden, s->width, s->width, s->width, s->layers, heads, heads / 2, s->experts, s->top_k);
}

typedef struct figures {
    double estimate, peak, process;
    int refused;
} figures;

/* Two steps, an evaluation and a checkpoint. limit 0: none. A refusal is only right at create. */
static figures measure(const shape *s, int32_t policy, int threads, int64_t limit, const char *directory)
{
    char config[1024];
    figures f = {0};
    moed_context *c = NULL;
    moed_layout *l = NULL;
    moed_model *m = NULL;
    moed_corpus *d = NULL, *held_out = NULL, *train = NULL;
    moed_trainer *t = NULL;
    moed_context_options co;
    moed_corpus_options data;
    moed_train_options o;
    moed_estimate e = {.struct_size = sizeof e};
    moed_context_info info = {.struct_size = sizeof info};
    const moed_documents documents = {.struct_size = sizeof documents, .count = DOCUMENTS, .length = length_of, .read = read_of,
                                      .user = (void *)(uintptr_t)&s->vocabulary};
    write_config(s, config, sizeof config);
    CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &co, sizeof co));
    co.threads = threads, co.host_limit = limit, co.kernels = s->kernels;
    CHECK(moed_context_create(&c, &co));
    CHECK(moed_layout_from_config(&l, c, config, strlen(config)));
    CHECK(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &data, sizeof data));
    data.vocabulary = s->vocabulary, data.end_token = s->vocabulary - 1;
    CHECK(moed_corpus_wrap(&d, c, &documents, &data));
    CHECK(moed_corpus_divide(&train, &held_out, d, 0.05, 1));
    CHECK(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
    o.steps = 2, o.rows = s->rows, o.length = s->length, o.micro_batches = s->micro_batches, o.train = s->train;
    o.directory = directory, o.checkpoint_every = 2, o.held_out = held_out, o.policy = policy;
    CHECK(moed_train_estimate(l, NULL, &o, &e));
    f.estimate = (double)e.host_bytes;
    const double before = process_peak();
    moed_status status = moed_model_init(&m, c, l, NULL);
    if (status == MOED_OK) status = moed_trainer_create(&t, c, m, train, NULL, &o);
    if (status == MOED_E_LIMIT) f.refused = 1;
    else {
        CHECK(status);
        CHECK(moed_trainer_run(t, 0, NULL, NULL));
    }
    CHECK(moed_context_get_info(c, &info));
    f.peak = (double)info.host_peak, f.process = process_peak() - before;
    moed_trainer_destroy(t), moed_model_destroy(m), moed_corpus_destroy(held_out), moed_corpus_destroy(train),
        moed_corpus_destroy(d);
    moed_layout_destroy(l), moed_context_destroy(c);
    return f;
}

static int apart(const shape *s, int32_t policy, int threads, int64_t limit, figures *out)
{
    int pipes[2], code = 1;
    const char *base = getenv("TMPDIR");
    char directory[256], command[300];
    snprintf(directory, sizeof directory, "%s/moedisco-memory-XXXXXX", base ? base : "/tmp");
    if (pipe(pipes) || !mkdtemp(directory)) return 0;
    const pid_t child = fork();
    if (child == 0) {
        const figures f = measure(s, policy, threads, limit, directory);
        _exit(write(pipes[1], &f, sizeof f) != sizeof f);
    }
    close(pipes[1]);
    const int whole = read(pipes[0], out, sizeof *out) == sizeof *out;
    close(pipes[0]);
    waitpid(child, &code, 0);
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return whole && code == 0 && system(command) == 0;
}

/* Whether an estimate is as near to the truth as promised. */
static int near_enough(double estimate, double truth)
{
    const double off = fabs(estimate - truth);
    return off <= LIMIT_SHARE * truth || off <= LIMIT_BYTES;
}

typedef struct worst {
    double to_peak, to_process;
    int wrong;
} worst;

static int compare(const shape *s, int32_t policy, int threads, worst *w)
{
    figures f, fits, too_much;
    if (!apart(s, policy, threads, 0, &f)) return 0;
    const int ok = apart(s, policy, threads, (int64_t)(1.02 * f.estimate) + (2 << 20), &fits) &&
                   apart(s, policy, threads, (int64_t)(0.9 * f.estimate), &too_much);
    const int kept = ok && !fits.refused && fits.peak <= 1.02 * f.estimate + (2 << 20) &&
                     (too_much.refused && too_much.peak <= 0.9 * f.estimate);
    const int near = near_enough(f.estimate, f.peak) && near_enough(f.estimate, f.process);
    printf("{\"bench\": \"memory\", \"layers\": %d, \"hidden\": %d, \"experts\": %d, \"top_k\": %d, \"vocabulary\": %d, "
           "\"rows\": %d, \"length\": %d, \"micro_batches\": %d, \"train\": \"%s\", \"kernels\": \"%s\", \"policy\": \"%s\", "
           "\"estimate_mb\": %.1f, \"peak_mb\": %.1f, \"process_mb\": %.1f, \"to_peak\": %.3f, \"to_process\": %.3f, "
           "\"limit_kept\": %s}\n",
           s->layers, s->hidden, s->experts, s->top_k, s->vocabulary, s->rows, s->length, s->micro_batches,
           s->train ? s->train : "", s->kernels, policy == MOED_POLICY_LEAN ? "lean" : "full", 1e-6 * f.estimate, 1e-6 * f.peak,
           1e-6 * f.process, f.estimate / f.peak, f.estimate / f.process, kept ? "true" : "false");
    fflush(stdout);
    w->wrong += !near + !kept;
    if (fabs(f.estimate / f.peak - 1) > w->to_peak) w->to_peak = fabs(f.estimate / f.peak - 1);
    if (fabs(f.estimate / f.process - 1) > w->to_process && f.process > LIMIT_BYTES)
        w->to_process = fabs(f.estimate / f.process - 1);
    return 1;
}

int main(int count, char **arguments)
{
    const int threads = count > 1 ? atoi(arguments[1]) : 2;
    const size_t first = count > 2 ? (size_t)atoi(arguments[2]) : 0, most = count > 3 ? (size_t)atoi(arguments[3]) : SHAPES;
    worst w = {0};
    for (size_t i = first; i < SHAPES && i - first < most; i++)
        if (!compare(&shapes[i], MOED_POLICY_FULL, threads, &w) || !compare(&shapes[i], MOED_POLICY_LEAN, threads, &w))
            return fprintf(stderr, "bench_memory: shape %zu did not run\n", i), 1;
    printf("{\"bench\": \"memory\", \"worst_to_peak\": %.3f, \"worst_to_process_above_64_mib\": %.3f, \"wrong\": %d}\n",
           w.to_peak, w.to_process, w.wrong);
    return w.wrong != 0;
}
