/* core/executor.c - a pool that hands out indices of one job at a time. Which thread runs which index is left to chance: callers
 * partition work by shape, so that chance never shows in results. */
#include "executor.h"

#include <fenv.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cancel.h"
#include "limits.h"

typedef struct job {
    moed_task_fn task;
    void *argument;
    int64_t count;
    _Atomic int64_t next;
    const moed_cancel *watched; /* once requested, what is left of the job is skipped */
    fenv_t rounding; /* of the thread that calls: where a task runs must not show in its bits */
} job;

struct moedi_executor {
    moed_executor_fn own; /* the caller's; then nothing below is used */
    void *user;
    int32_t threads; /* as asked for; several callers read it at once */
    int32_t running; /* workers that were made */
    int started, stopping;
    pthread_t *workers; /* (threads - 1) */
    pthread_mutex_t turn; /* one parallel call at a time */
    pthread_mutex_t lock;
    pthread_cond_t wake, idle;
    job *current;
    _Atomic uint64_t generation;
    _Atomic int32_t busy;
};

/* A step makes hundreds of parallel calls, most a fraction of a millisecond apart: waking a sleeper costs more than watching for
 * this long. Then it sleeps, so that an idle context costs nothing. */
enum { WATCH_NANOSECONDS = 50000, LOOKS = 64 };

static int64_t nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}
static void watch_for_job(moedi_executor *e, uint64_t seen)
{
    const int64_t end = nanoseconds() + WATCH_NANOSECONDS;
    do
        for (int i = 0; i < LOOKS; i++, relax())
            if (atomic_load_explicit(&e->generation, memory_order_relaxed) != seen) return;
    while (nanoseconds() < end);
}
static void watch_for_idle(moedi_executor *e)
{
    const int64_t end = nanoseconds() + WATCH_NANOSECONDS;
    do
        for (int i = 0; i < LOOKS; i++, relax())
            if (atomic_load_explicit(&e->busy, memory_order_relaxed) == 0) return;
    while (nanoseconds() < end);
}

/* A task that itself calls parallel gets its inner tasks run in line: no deadlock, no surprise. */
static _Thread_local int inside_task;
/* Of parallel calls that this thread makes. */
static _Thread_local const moed_cancel *watched;

static void drain(job *j)
{
    inside_task++;
    for (;;) {
        const int64_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->count || moedi_cancel_seen(j->watched)) break;
        j->task(j->argument, i);
    }
    inside_task--;
}

static void *work(void *argument)
{
    moedi_executor *e = argument;
    uint64_t seen = 0;
    pthread_mutex_lock(&e->lock);
    for (;;) {
        while (!e->stopping && (e->generation == seen || !e->current)) {
            if (e->generation != seen) seen = e->generation; /* that job ended before this thread woke */
            pthread_cond_wait(&e->wake, &e->lock);
        }
        if (e->stopping) break;
        seen = e->generation;
        job *j = e->current;
        e->busy++;
        pthread_mutex_unlock(&e->lock);
        fesetenv(&j->rounding);
        drain(j);
        pthread_mutex_lock(&e->lock);
        if (--e->busy == 0) pthread_cond_signal(&e->idle);
        if (e->stopping || e->generation != seen) continue;
        pthread_mutex_unlock(&e->lock);
        watch_for_job(e, seen);
        pthread_mutex_lock(&e->lock);
    }
    pthread_mutex_unlock(&e->lock);
    return NULL;
}

/* Workers take no signals: the host's handlers run on the host's threads. Fewer threads than asked for is no error. */
static void start(moedi_executor *e)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int32_t made = 0;
    while (made < e->threads - 1 && pthread_create(&e->workers[made], NULL, work, e) == 0) {
        char name[32];
        snprintf(name, sizeof name, "moed-%d", made + 1);
        pthread_setname_np(e->workers[made], name);
        made++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    e->running = made;
    e->started = 1;
}

/* One index on a thread of the caller's pool, which gets its own rounding back and sees no parallel call from inside a task. */
static void visit(void *argument, int64_t index)
{
    const job *j = argument;
    fenv_t before;
    if (moedi_cancel_seen(j->watched)) return;
    fegetenv(&before);
    fesetenv(&j->rounding);
    inside_task++;
    j->task(j->argument, index);
    inside_task--;
    fesetenv(&before);
}

const moed_cancel *moedi_executor_watch(const moed_cancel *cancel)
{
    const moed_cancel *before = watched;
    watched = cancel;
    return before;
}

void moedi_executor_run(moedi_executor *e, int64_t count, moed_task_fn task, void *argument)
{
    job j = {.task = task, .argument = argument, .count = count, .watched = watched};
    if (count <= 0) return;
    if (inside_task || count == 1 || (!e->own && e->threads == 1)) {
        drain(&j);
        return;
    }
    fegetenv(&j.rounding);
    if (e->own) {
        e->own(count, visit, &j, e->user);
        return;
    }
    pthread_mutex_lock(&e->turn);
    if (!e->started) start(e);
    pthread_mutex_lock(&e->lock);
    e->current = &j;
    pthread_cond_broadcast(&e->wake);
    e->generation++; /* last: who watches it takes the lock at once */
    pthread_mutex_unlock(&e->lock);
    drain(&j);
    watch_for_idle(e);
    pthread_mutex_lock(&e->lock);
    e->current = NULL; /* late sleepers find nothing to do */
    while (e->busy > 0) pthread_cond_wait(&e->idle, &e->lock);
    pthread_mutex_unlock(&e->lock);
    pthread_mutex_unlock(&e->turn);
}

moed_status moedi_executor_create(moedi_executor **out, int32_t threads, moed_executor_fn own, void *user)
{
    moedi_executor *e = calloc(1, sizeof *e);
    if (e) e->workers = calloc((size_t)threads, sizeof *e->workers);
    if (!e || !e->workers) {
        free(e);
        return moedi_fail(MOED_E_MEMORY, "no memory for %d threads", threads);
    }
    e->own = own;
    e->user = user;
    e->threads = threads;
    pthread_mutex_init(&e->turn, NULL);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->wake, NULL);
    pthread_cond_init(&e->idle, NULL);
    *out = e;
    return MOED_OK;
}

void moedi_executor_abandon(moedi_executor *e)
{
    if (!e) return;
    free(e->workers);
    free(e);
}

void moedi_executor_destroy(moedi_executor *e)
{
    if (!e) return;
    if (e->started) {
        pthread_mutex_lock(&e->lock);
        e->stopping = 1;
        pthread_cond_broadcast(&e->wake);
        pthread_mutex_unlock(&e->lock);
        for (int32_t i = 0; i < e->running; i++) pthread_join(e->workers[i], NULL);
    }
    pthread_mutex_destroy(&e->turn);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->wake);
    pthread_cond_destroy(&e->idle);
    moedi_executor_abandon(e);
}

/* The lowest number in the list of hardware threads that share a core with this one ("0,64" or "0-1"); its own where none is
 * told. */
static int first_of_core(int cpu)
{
    char path[96], text[64] = "";
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpu);
    FILE *f = fopen(path, "re");
    if (!f) return cpu;
    const int told = fgets(text, sizeof text, f) != NULL && text[0] >= '0' && text[0] <= '9';
    fclose(f);
    return told ? (int)strtol(text, NULL, 10) : cpu;
}

/* Cores that have a CPU of the set: matrix products fill a core's units from one thread, a second one only shares its caches. */
static int32_t count_cores(const cpu_set_t *set, int size)
{
    const size_t bytes = CPU_ALLOC_SIZE((size_t)size);
    int32_t cores = 0;
    cpu_set_t *seen = CPU_ALLOC((size_t)size);
    if (!seen) return CPU_COUNT_S(bytes, set);
    CPU_ZERO_S(bytes, seen);
    for (int cpu = 0; cpu < size; cpu++) {
        if (!CPU_ISSET_S((size_t)cpu, bytes, set)) continue;
        const int first = first_of_core(cpu), known = first >= 0 && first < size;
        if (known && CPU_ISSET_S((size_t)first, bytes, seen)) continue;
        if (known) CPU_SET_S((size_t)first, bytes, seen);
        cores++;
    }
    CPU_FREE(seen);
    return cores;
}

int32_t moedi_executor_available(void)
{
    cpu_set_t *set = NULL;
    int32_t cpus = 1;
    for (int size = 1024; size <= 65536 && !set; size *= 4) { /* machines with more CPUs than cpu_set_t holds */
        set = CPU_ALLOC((size_t)size);
        if (!set) break;
        if (sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)size), set) == 0) {
            cpus = count_cores(set, size);
        } else {
            CPU_FREE(set);
            set = NULL;
        }
    }
    if (set) CPU_FREE(set);
    const int32_t quota = moedi_limits_cpus("");
    if (quota && quota < cpus) cpus = quota;
    return cpus < 1 ? 1 : cpus;
}
