/* bench_cancel.c - how soon a long call returns once another thread asks it to: a request at random instants of each call, many
 * times. bench_cancel [seconds [threads [name]]]: seconds for each call, and only the call of that name. One line a call: median,
 * 99th percentile and longest wait in milliseconds, over `count` requests that found the call at work; and in cpu_ the processor
 * time of all threads meanwhile, which with one thread is the wait on a machine that nobody else uses. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "moedisco.h"

enum { LAYERS = 6, HIDDEN = 384, HEADS = 6, WIDTH = 1024, VOCABULARY = 8192, ROWS = 16, LENGTH = 256, EXPERTS = 4 };
enum { POINTS = 1000000, POINT_WIDTH = 64, CLUSTERS = 64, REQUESTS_MOST = 4096 };

#define CHECK(call)                                                                                          \
    do {                                                                                                     \
        if ((call) != MOED_OK) fprintf(stderr, "bench_cancel: %s: %s\n", #call, moed_last_error()), exit(1); \
    } while (0)

static double clock_seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- what the calls work on ---- */

typedef struct stage {
    moed_context *context;
    moed_layout *layout;
    moed_model *model, *parts[EXPERTS];
    moed_corpus *corpus;
    moed_trainer *trainer;
    moed_split *split;
    moed_integration *integration;
    moed_kmeans *kmeans;
    float *points, *vectors;
    int32_t *labels; /* (POINTS) */
    char text[300], directory[256];
} stage;

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

enum { DOCUMENTS = 100000 };

static void make_text(stage *s)
{
    snprintf(s->text, sizeof s->text, "%s/text.jsonl", s->directory);
    FILE *f = fopen(s->text, "w");
    for (int i = 0; f && i < 300000; i++) {
        fprintf(f, "{\"text\": \"document %d", i);
        for (int k = 0; k < 20; k++) fprintf(f, " word%d", (i * 31 + k * 7919) % 5003);
        fprintf(f, "\"}\n");
    }
    if (!f || fclose(f)) exit(1);
}

static void make_model(stage *s, const char *wanted)
{
    char config[1024];
    snprintf(config, sizeof config,
             "{\"model_type\": \"mixtral\", \"vocab_size\": %d, \"hidden_size\": %d, \"intermediate_size\": %d, "
             "\"num_hidden_layers\": %d, \"num_attention_heads\": %d, \"num_key_value_heads\": %d, \"num_local_experts\": %d, "
             "\"num_experts_per_tok\": 2, \"max_position_embeddings\": %d}",
             VOCABULARY, HIDDEN, WIDTH, LAYERS, HEADS, HEADS, EXPERTS, LENGTH);
    moed_corpus_options corpus;
    moed_train_options o;
    const moed_documents documents = {.struct_size = sizeof documents, .count = DOCUMENTS, .length = length_of, .read = read_of};
    CHECK(moed_layout_from_config(&s->layout, s->context, config, strlen(config)));
    CHECK(moed_model_init(&s->model, s->context, s->layout, NULL));
    CHECK(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &corpus, sizeof corpus));
    corpus.vocabulary = VOCABULARY, corpus.end_token = VOCABULARY - 1;
    CHECK(moed_corpus_wrap(&s->corpus, s->context, &documents, &corpus));
    s->vectors = calloc((size_t)DOCUMENTS * HIDDEN, sizeof *s->vectors);
    if (!strncmp(wanted, "train", 5)) {
        CHECK(moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o));
        o.steps = 1000000, o.rows = ROWS, o.length = LENGTH;
        CHECK(moed_trainer_create(&s->trainer, s->context, s->model, s->corpus, NULL, &o));
    }
    CHECK(moed_split_create(&s->split, s->layout, NULL));
    if (strcmp(wanted, "integrate")) return;
    CHECK(moed_integration_create(&s->integration, s->split, s->model, NULL));
    for (int k = 0; k < EXPERTS; k++) {
        CHECK(moed_split_build(&s->parts[k], s->split, k, s->model, NULL, NULL));
        CHECK(moed_integration_add(s->integration, k, s->parts[k], 1));
    }
}

static moed_tensor points_of(const stage *s)
{
    return (moed_tensor){.data = s->points, .dtype = MOED_DTYPE_F32, .rank = 2, .shape = {POINTS, POINT_WIDTH},
                         .strides = {POINT_WIDTH, 1}};
}
static moed_status call_kmeans(stage *s, const moed_cancel *c)
{
    const moed_tensor x = points_of(s);
    return moed_kmeans_fit(s->kmeans, &x, NULL, NULL, c);
}

static void make_points(stage *s, const char *wanted)
{
    moed_kmeans_options o;
    s->points = malloc((size_t)POINTS * POINT_WIDTH * sizeof *s->points);
    s->labels = malloc(POINTS * sizeof *s->labels);
    if (!s->points || !s->labels) exit(1);
    uint64_t r = 88172645463325252u;
    for (int64_t i = 0; i < (int64_t)POINTS * POINT_WIDTH; i++) {
        r ^= r << 13, r ^= r >> 7, r ^= r << 17;
        s->points[i] = (float)((double)(r >> 40) / 8388608.0 - 1.0) + (float)(i / POINT_WIDTH % 50) * 0.1f;
    }
    CHECK(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
    o.clusters = CLUSTERS, o.iterations = 100, o.tolerance = 0;
    if (strcmp(wanted, "kmeans")) o.start = MOED_START_PARALLEL;
    if (!strcmp(wanted, "kmeans-balanced")) o.method = MOED_KMEANS_BALANCED, o.iterations = 2;
    if (!strcmp(wanted, "kmeans-assign")) o.iterations = 1;
    CHECK(moed_kmeans_create(&s->kmeans, s->context, &o));
    if (!strcmp(wanted, "kmeans-assign")) CHECK(call_kmeans(s, NULL));
}

/* ---- the calls ---- */

static moed_status call_train(stage *s, const moed_cancel *c)
{
    return moed_trainer_run(s->trainer, 4, NULL, c);
}
static moed_status call_evaluate(stage *s, const moed_cancel *c)
{
    moed_report r = {.struct_size = sizeof r};
    return moed_model_evaluate(s->model, s->corpus, 200000, ROWS, LENGTH, 1, &r, c);
}
static moed_status call_usage(stage *s, const moed_cancel *c)
{
    double usage[LAYERS * EXPERTS];
    return moed_model_usage(s->model, s->corpus, 200000, usage, NULL, c);
}
static moed_status call_embed(stage *s, const moed_cancel *c)
{
    moed_tensor out = {
        .data = s->vectors, .dtype = MOED_DTYPE_F32, .rank = 2, .shape = {DOCUMENTS, HIDDEN}, .strides = {HIDDEN, 1}};
    return moed_corpus_embed(s->corpus, s->model, &out, NULL, c);
}
static moed_status call_assign(stage *s, const moed_cancel *c)
{
    const moed_tensor x = points_of(s);
    return moed_kmeans_assign(s->kmeans, &x, s->labels, NULL, c);
}
static int32_t read_points(int64_t first, int64_t count, float *out, void *user)
{
    memcpy(out, (const float *)user + first * POINT_WIDTH, (size_t)(count * POINT_WIDTH) * sizeof *out);
    return 0;
}
static moed_status call_stream(stage *s, const moed_cancel *c)
{
    const moed_vectors x = {sizeof x, 0, POINTS, POINT_WIDTH, read_points, s->points};
    return moed_kmeans_fit_stream(s->kmeans, &x, NULL, NULL, c);
}
static moed_status call_build(stage *s, const moed_cancel *c)
{
    char prefix[300];
    const char *paths[] = {s->text};
    snprintf(prefix, sizeof prefix, "%s/corpus", s->directory);
    return moed_corpus_build(s->context, paths, 1, prefix, NULL, NULL, c);
}
static moed_status call_split(stage *s, const moed_cancel *c)
{
    char dir[300];
    snprintf(dir, sizeof dir, "%s/part", s->directory);
    return moed_split_build(NULL, s->split, 0, s->model, dir, c);
}
static moed_status call_integrate(stage *s, const moed_cancel *c)
{
    char dir[300];
    snprintf(dir, sizeof dir, "%s/whole", s->directory);
    return moed_integration_finish(NULL, s->integration, dir, c);
}
static moed_status call_corpus_save(stage *s, const moed_cancel *c)
{
    char prefix[300];
    snprintf(prefix, sizeof prefix, "%s/saved", s->directory);
    return moed_corpus_save(s->corpus, prefix, c);
}

static const struct call {
    const char *name;
    moed_status (*run)(stage *s, const moed_cancel *c);
    double most; /* seconds after which to ask, at most */
} calls[] = {
    {"train", call_train, 3},          {"evaluate", call_evaluate, 3},       {"usage", call_usage, 3},
    {"embed", call_embed, 1},          {"kmeans", call_kmeans, 3},           {"kmeans-parallel", call_kmeans, 3},
    {"kmeans-balanced", call_kmeans, 6}, {"kmeans-assign", call_assign, 0.2}, {"kmeans-stream", call_stream, 3},
    {"corpus-build", call_build, 0.5}, {"corpus-save", call_corpus_save, 1}, {"split", call_split, 0.3},
    {"integrate", call_integrate, 1},
};

/* ---- measuring ---- */

typedef struct asker {
    moed_cancel *cancel;
    double after, asked, asked_cpu;
} asker;

static void *ask(void *argument)
{
    asker *a = argument;
    const struct timespec wait = {(time_t)a->after, (long)((a->after - (double)(time_t)a->after) * 1e9)};
    nanosleep(&wait, NULL);
    a->asked = clock_seconds(CLOCK_MONOTONIC);
    a->asked_cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
    moed_cancel_request(a->cancel);
    return NULL;
}

static int compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void bench(stage *s, const struct call *call, double seconds)
{
    double *waits = calloc(REQUESTS_MOST, sizeof *waits), *work = calloc(REQUESTS_MOST, sizeof *work), most = call->most;
    int count = 0, missed = 0;
    uint64_t r = 42;
    const double start = clock_seconds(CLOCK_MONOTONIC);
    while (clock_seconds(CLOCK_MONOTONIC) - start < seconds && count < REQUESTS_MOST) {
        asker a = {0};
        pthread_t thread;
        r = r * 6364136223846793005u + 1442695040888963407u;
        a.after = most * (double)(r >> 11) / 9007199254740992.0;
        CHECK(moed_cancel_create(&a.cancel));
        pthread_create(&thread, NULL, ask, &a);
        const moed_status status = call->run(s, a.cancel);
        const double end = clock_seconds(CLOCK_MONOTONIC), end_cpu = clock_seconds(CLOCK_PROCESS_CPUTIME_ID);
        pthread_join(thread, NULL);
        moed_cancel_destroy(a.cancel);
        if (status == MOED_E_CANCELLED) work[count] = end_cpu - a.asked_cpu, waits[count++] = end - a.asked;
        else if (status == MOED_OK) missed++, most *= 0.9; /* it was done before: ask earlier */
        else CHECK(status);
    }
    qsort(waits, (size_t)count, sizeof *waits, compare);
    qsort(work, (size_t)count, sizeof *work, compare);
    printf("{\"bench\": \"cancel\", \"call\": \"%s\", \"count\": %d, \"done_before\": %d", call->name, count, missed);
    const struct { const char *name; const double *sorted; } rows[] = {{"", waits}, {"cpu_", work}};
    for (int i = 0; i < 2 && count; i++)
        printf(", \"%sp50_ms\": %.1f, \"%sp99_ms\": %.1f, \"%smax_ms\": %.1f", rows[i].name, 1e3 * rows[i].sorted[count / 2],
               rows[i].name, 1e3 * rows[i].sorted[(count * 99 - 1) / 100], rows[i].name, 1e3 * rows[i].sorted[count - 1]);
    printf("}\n");
    fflush(stdout);
    free(waits), free(work);
}

static void close_stage(stage *s)
{
    moed_trainer_destroy(s->trainer), moed_integration_destroy(s->integration), moed_split_destroy(s->split);
    for (int k = 0; k < EXPERTS; k++) moed_model_destroy(s->parts[k]);
    moed_kmeans_destroy(s->kmeans), moed_corpus_destroy(s->corpus), moed_model_destroy(s->model), moed_layout_destroy(s->layout);
    moed_context_destroy(s->context);
    free(s->points), free(s->labels), free(s->vectors);
}

int main(int count, char **arguments)
{
    const double seconds = count > 1 ? atof(arguments[1]) : 5;
    const char *base = getenv("TMPDIR");
    char directory[256], command[300];
    snprintf(directory, sizeof directory, "%s/moedisco-cancel-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(directory)) return 1;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (count > 3 && strcmp(arguments[3], calls[i].name)) continue;
        stage s = {0};
        moed_context_options o;
        snprintf(s.directory, sizeof s.directory, "%s", directory);
        CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
        o.threads = count > 2 ? atoi(arguments[2]) : 0;
        CHECK(moed_context_create(&s.context, &o));
        if (!strncmp(calls[i].name, "kmeans", 6)) make_points(&s, calls[i].name);
        else if (!strcmp(calls[i].name, "corpus-build")) make_text(&s);
        else make_model(&s, calls[i].name);
        bench(&s, &calls[i], seconds);
        close_stage(&s);
    }
    snprintf(command, sizeof command, "rm -rf '%s'", directory);
    return system(command) != 0;
}
