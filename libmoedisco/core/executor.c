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
    uint64_t generation;
    int32_t busy;
};

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
    e->generation++;
    pthread_cond_broadcast(&e->wake);
    pthread_mutex_unlock(&e->lock);
    drain(&j);
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

int32_t moedi_executor_available(void)
{
    cpu_set_t *set = NULL;
    int32_t cpus = 1;
    for (int size = 1024; size <= 65536 && !set; size *= 4) { /* machines with more CPUs than cpu_set_t holds */
        set = CPU_ALLOC((size_t)size);
        if (!set) break;
        if (sched_getaffinity(0, CPU_ALLOC_SIZE((size_t)size), set) == 0) {
            cpus = CPU_COUNT_S(CPU_ALLOC_SIZE((size_t)size), set);
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
