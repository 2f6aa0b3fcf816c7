/* tests/guest_support.h - what a process is like at an instant, and a whole flow through the library in between. Include after
 * train_support.h. */
#ifndef MOEDI_GUEST_SUPPORT_H
#define MOEDI_GUEST_SUPPORT_H

#include <dirent.h>
#include <fcntl.h>
#include <fenv.h>
#include <locale.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "train_support.h"

extern char **environ;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define GUEST_SANITIZED 1
#else
#define GUEST_SANITIZED 0
#endif

/* ---- a process at an instant ---- */

enum { GUEST_TEXT = 16384 };

/* Lines are sorted, so that text can be compared. */
typedef struct snapshot {
    char threads[GUEST_TEXT];     /* a name a line */
    char descriptors[GUEST_TEXT]; /* "number cloexec target" */
    char locale[1024], decimal_point[16];
    locale_t thread_locale;
    int rounding;
    unsigned control;             /* rounding, masks, FTZ and DAZ of SSE; 0 elsewhere */
    char **environment;
    char variables[GUEST_TEXT];
    struct sigaction actions[NSIG];
    sigset_t mask;
    cpu_set_t affinity;
    int priority;
    char directory[4096];
    mode_t umask;
    struct itimerval timer;
    struct rlimit limits[RLIMIT_NLIMITS];
} snapshot;

static inline int guest_by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* One line for every entry of a directory below /proc, sorted. */
static inline void guest_list(const char *path, void (*line)(const char *entry, char *out, size_t size), char *out)
{
    char *lines[512];
    size_t count = 0, used = 0;
    DIR *d = opendir(path);
    if (!d) fail_msg("no %s", path);
    for (struct dirent *e; (e = readdir(d)) && count < 512;) {
        if (e->d_name[0] == '.' || atoi(e->d_name) == dirfd(d)) continue;
        lines[count] = malloc(512);
        line(e->d_name, lines[count++], 512);
    }
    closedir(d);
    qsort(lines, count, sizeof *lines, guest_by_text);
    out[0] = 0;
    for (size_t i = 0; i < count; i++) {
        used += (size_t)snprintf(out + used, GUEST_TEXT - used, "%s\n", lines[i]);
        assert_true(used < GUEST_TEXT);
        free(lines[i]);
    }
}

static inline void guest_thread(const char *entry, char *out, size_t size)
{
    char path[300], name[64] = "";
    snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry);
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, name, sizeof name - 1) < 0) name[0] = 0;
    if (fd >= 0) close(fd);
    name[strcspn(name, "\n")] = 0;
    snprintf(out, size, "%s", name);
}

static inline void guest_descriptor(const char *entry, char *out, size_t size)
{
    char path[300], target[256];
    snprintf(path, sizeof path, "/proc/self/fd/%s", entry);
    const ssize_t n = readlink(path, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = 0;
    snprintf(out, size, "%s %d %s", entry, fcntl(atoi(entry), F_GETFD), target);
}

static inline unsigned guest_control(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_stmxcsr() & ~0x3fu; /* without the flags that were raised */
#else
    return 0;
#endif
}

static inline void guest_look(snapshot *s)
{
    memset(s, 0, sizeof *s);
    guest_list("/proc/self/task", guest_thread, s->threads);
    guest_list("/proc/self/fd", guest_descriptor, s->descriptors);
    snprintf(s->locale, sizeof s->locale, "%s", setlocale(LC_ALL, NULL));
    snprintf(s->decimal_point, sizeof s->decimal_point, "%s", localeconv()->decimal_point);
    s->thread_locale = uselocale((locale_t)0);
    s->rounding = fegetround();
    s->control = guest_control();
    s->environment = environ;
    size_t used = 0;
    for (char **e = environ; *e && used < GUEST_TEXT; e++)
        used += (size_t)snprintf(s->variables + used, GUEST_TEXT - used, "%p %s\n", (void *)*e, *e);
    for (int i = 1; i < NSIG; i++) sigaction(i, NULL, &s->actions[i]);
    pthread_sigmask(SIG_SETMASK, NULL, &s->mask);
    sched_getaffinity(0, sizeof s->affinity, &s->affinity);
    s->priority = getpriority(PRIO_PROCESS, 0);
    assert_non_null(getcwd(s->directory, sizeof s->directory));
    s->umask = umask(0);
    umask(s->umask);
    getitimer(ITIMER_REAL, &s->timer);
    for (int i = 0; i < RLIMIT_NLIMITS; i++) getrlimit((__rlimit_resource_t)i, &s->limits[i]);
}

static inline void guest_assert_same(const snapshot *a, const snapshot *b)
{
    assert_string_equal(a->threads, b->threads);
    assert_string_equal(a->descriptors, b->descriptors);
    assert_string_equal(a->locale, b->locale);
    assert_string_equal(a->decimal_point, b->decimal_point);
    assert_ptr_equal(a->thread_locale, b->thread_locale);
    assert_int_equal(a->rounding, b->rounding);
    assert_int_equal(a->control, b->control);
    assert_ptr_equal(a->environment, b->environment);
    assert_string_equal(a->variables, b->variables);
    for (int i = 1; i < NSIG; i++) {
        assert_ptr_equal((void *)(uintptr_t)a->actions[i].sa_handler, (void *)(uintptr_t)b->actions[i].sa_handler);
        assert_int_equal(a->actions[i].sa_flags, b->actions[i].sa_flags);
    }
    assert_memory_equal(&a->mask, &b->mask, sizeof a->mask);
    assert_memory_equal(&a->affinity, &b->affinity, sizeof a->affinity);
    assert_int_equal(a->priority, b->priority);
    assert_string_equal(a->directory, b->directory);
    assert_int_equal(a->umask, b->umask);
    assert_memory_equal(&a->timer, &b->timer, sizeof a->timer);
    assert_memory_equal(a->limits, b->limits, sizeof a->limits);
}

/* ---- a whole flow ---- */

enum { GUEST_VOCABULARY = 257, GUEST_HIDDEN = 16, GUEST_PARTS = 4, GUEST_STEPS = 4 };

/* Every kind of handle at once, made by one flow. */
typedef struct guest {
    moed_context *context;
    moed_corpus *corpus, *train, *held_out, *cluster;
    moed_model *model, *parts[GUEST_PARTS], *whole, *opened;
    moed_kmeans *kmeans;
    moed_partition *partition;
    moed_split *split;
    moed_integration *integration;
    moed_expansion *expansion;
    moed_trainer *trainer;
    moed_law *law;
    moed_growth *growth;
    moed_cancel *cancel;
    float *vectors; /* (documents, GUEST_HIDDEN) */
    int64_t documents;
    double loss;
} guest;

static inline void guest_text(const char *path)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    for (int i = 0; i < 40; i++) {
        fprintf(f, "{\"text\": \"document %d: ", i);
        for (int k = 0; k < 4 + i % 5; k++) fprintf(f, "%s ", (i + k) % 2 ? "a bird sings" : "0.5 + 1.25");
        fprintf(f, "\"}\n");
    }
    fclose(f);
}

/* A law fitted to a few made runs, and the schedule that it gives. */
static inline void guest_schedule(guest *g, moed_context *c)
{
    static const int32_t experts[] = {2, 4};
    moed_run_point runs[16];
    moed_fit_options o;
    moed_growth_options go;
    moed_law *published;
    assert_ok(moed_law_create(&published, c, NULL));
    for (int i = 0; i < 16; i++) {
        runs[i] = (moed_run_point){1e7 * (1 + i % 4), 1 << i % 3, 2e8 * (1 + i % 5), 0};
        assert_ok(moed_law_predict(published, runs[i].active, runs[i].experts, runs[i].tokens, &runs[i].loss));
    }
    moed_law_destroy(published);
    assert_ok(moed_options_init(MOED_STRUCT_FIT_OPTIONS, &o, sizeof o));
    assert_ok(moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &go, sizeof go));
    o.starts = 2, o.bootstrap = 2;
    assert_ok(moed_law_fit(&g->law, c, runs, 16, &o, g->cancel));
    go.tokens = 1000, go.active = 2e7;
    assert_ok(moed_growth_from_law(&g->growth, c, g->law, experts, 2, &go));
}

/* Corpus, embedding, k-means, partition, split, training with checkpoints, integration, evaluation, saving and opening, below
 * dir. progress (nullable) is called between the steps of the first trainer. */
static inline void guest_flow(guest *g, moed_context *c, const char *dir, moed_progress_fn progress, void *user)
{
    char paths[8][4200];
    const char *const names[8] = {"text.jsonl", "corpus", "partition.safetensors", "run", "part-1", "whole", "saved", "part-run"};
    for (int i = 0; i < 8; i++) snprintf(paths[i], sizeof paths[i], "%s/%s", dir, names[i]);
    const char *const texts[] = {paths[0]};
    moed_corpus_report built = {.struct_size = sizeof built};
    moed_report r = empty_report();
    memset(g, 0, sizeof *g);
    g->context = c;
    assert_ok(moed_cancel_create(&g->cancel));
    guest_text(paths[0]);
    assert_ok(moed_corpus_build(c, texts, 1, paths[1], NULL, &built, g->cancel));
    assert_ok(moed_corpus_open(&g->corpus, c, paths[1], NULL));
    assert_ok(moed_corpus_divide(&g->train, &g->held_out, g->corpus, 0.2, 3));
    g->model = tiny_model_of(c, GUEST_HIDDEN, 2, GUEST_PARTS, GUEST_VOCABULARY);

    g->documents = built.documents;
    g->vectors = calloc((size_t)(g->documents * GUEST_HIDDEN), sizeof *g->vectors);
    float *weights = calloc((size_t)g->documents, sizeof *weights);
    int32_t *labels = calloc((size_t)g->documents, sizeof *labels);
    moed_tensor x = support_tensor(g->vectors, MOED_DTYPE_F32, g->documents, GUEST_HIDDEN);
    moed_kmeans_options ko;
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &ko, sizeof ko));
    ko.clusters = GUEST_PARTS, ko.method = MOED_KMEANS_BALANCED, ko.imbalance = 0.5;
    assert_ok(moed_corpus_embed(g->corpus, g->model, &x, NULL, g->cancel));
    assert_ok(moed_corpus_weights(g->corpus, weights));
    assert_ok(moed_kmeans_create(&g->kmeans, c, &ko));
    assert_ok(moed_kmeans_fit(g->kmeans, &x, weights, NULL, g->cancel));
    assert_ok(moed_kmeans_labels(g->kmeans, labels, g->documents));
    moed_partition *fresh;
    assert_ok(moed_partition_create(&fresh, c, labels, g->documents, GUEST_PARTS, NULL, g->corpus));
    assert_ok(moed_partition_save(fresh, paths[2]));
    moed_partition_destroy(fresh);
    assert_ok(moed_partition_open(&g->partition, c, paths[2]));
    assert_ok(moed_partition_view(&g->cluster, g->partition, g->corpus, 1));
    free(weights), free(labels);

    assert_ok(moed_expansion_create(&g->expansion, g->model, NULL, NULL));
    assert_ok(moed_split_create(&g->split, moed_model_layout(g->model), NULL));
    assert_ok(moed_integration_create(&g->integration, g->split, g->model, NULL));
    moed_train_options o = tiny_options(GUEST_STEPS);
    o.micro_batches = 2;
    for (int k = 0; k < GUEST_PARTS; k++) {
        moed_trainer *t;
        assert_ok(moed_split_build(&g->parts[k], g->split, k, g->model, NULL, g->cancel));
        o.directory = k ? NULL : paths[7], o.checkpoint_every = k ? 0 : 2;
        o.progress = k ? NULL : progress, o.progress_user = user;
        assert_ok(moed_trainer_create(&t, c, g->parts[k], g->cluster, NULL, &o));
        assert_ok(moed_trainer_run(t, 0, NULL, g->cancel));
        moed_trainer_destroy(t);
        assert_ok(moed_integration_add(g->integration, k, g->parts[k], 1));
    }
    assert_ok(moed_split_build(NULL, g->split, 1, g->model, paths[4], g->cancel));
    assert_ok(moed_integration_finish(&g->whole, g->integration, NULL, g->cancel));
    assert_ok(moed_integration_finish(NULL, g->integration, paths[5], g->cancel));

    o = tiny_options(GUEST_STEPS);
    o.directory = paths[3], o.checkpoint_every = 2, o.evaluate_every = 2, o.held_out = g->held_out;
    o.progress = progress, o.progress_user = user;
    assert_ok(moed_trainer_create(&g->trainer, c, g->whole, g->train, NULL, &o));
    assert_ok(moed_trainer_run(g->trainer, 0, &r, g->cancel));
    assert_ok(moed_trainer_evaluate(g->trainer, g->held_out, 0, &r, g->cancel));
    double usage[2 * GUEST_PARTS];
    assert_ok(moed_model_usage(g->whole, g->held_out, 0, usage, NULL, g->cancel));
    assert_ok(moed_model_save(g->whole, paths[6], NULL));
    assert_ok(moed_model_open(&g->opened, c, paths[6], NULL));
    assert_ok(moed_model_evaluate(g->opened, g->held_out, 0, 2, TINY_LENGTH, 1, &r, g->cancel));
    g->loss = r.loss;
    guest_schedule(g, c);
}

/* Lets go of everything but the context. */
static inline void guest_close(guest *g)
{
    moed_growth_destroy(g->growth), moed_law_destroy(g->law);
    moed_trainer_destroy(g->trainer);
    moed_expansion_destroy(g->expansion);
    moed_integration_destroy(g->integration);
    moed_split_destroy(g->split);
    moed_partition_destroy(g->partition);
    moed_kmeans_destroy(g->kmeans);
    moed_model_destroy(g->opened), moed_model_destroy(g->whole), moed_model_destroy(g->model);
    for (int k = 0; k < GUEST_PARTS; k++) moed_model_destroy(g->parts[k]);
    moed_corpus_destroy(g->cluster), moed_corpus_destroy(g->held_out), moed_corpus_destroy(g->train),
        moed_corpus_destroy(g->corpus);
    moed_cancel_destroy(g->cancel);
    free(g->vectors);
}

/* A flow with a context of its own in a directory of its own; the held-out loss. */
static inline double guest_visit(const char *kernels, int32_t threads, moed_progress_fn progress, void *user)
{
    guest g;
    char *dir = support_directory();
    moed_context *c = support_context(kernels, threads);
    guest_flow(&g, c, dir, progress, user);
    guest_close(&g);
    support_close(c);
    support_remove(dir);
    return g.loss;
}

#endif
