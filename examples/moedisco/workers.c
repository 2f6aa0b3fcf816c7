/* workers.c - the K workers of the S-phase as processes side by side. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "json_file.h"
#include "output.h"
#include "phases.h"
#include "workers.h"

enum { WAITING, RUNNING, DONE, FAILED };

typedef struct worker {
    int state, tries, code;
    pid_t process;
    int pipe;                /* its JSON lines */
    char line[1024];
    size_t used;
    int64_t step, steps;
    double loss;
} worker;

typedef struct crew {
    pipeline *p;
    const flags *f;
    worker *workers;         /* (count) */
    int64_t count, at_once;
    int32_t threads;
    int told_to_stop, told_failure;
    progress progress;
} crew;

enum { ARGUMENTS_MAX = 48 };

/* The command line of worker k; every second half of a flag is allocated. */
static size_t arguments(const crew *c, int64_t k, char *out[ARGUMENTS_MAX])
{
    size_t n = 0;
    char value[512];
    out[n++] = must(strdup("moedisco"));
    out[n++] = must(strdup("work"));
    out[n++] = must(strdup("--json"));
    out[n++] = text_format("--threads=%d", (int)c->threads);
    for (size_t i = 0; i < c->f->count && n + 4 < ARGUMENTS_MAX; i++) {
        const flag *item = &c->f->items[i];
        if (strcmp(item->group, "device") != 0 || !item->given || !strcmp(item->name, "threads")) continue;
        flags_value_text(item, value, sizeof value);
        out[n++] = text_format("--%s=%s", item->name, value);
    }
    out[n++] = must(strdup("--"));
    out[n++] = must(strdup(c->p->dir));
    out[n++] = text_format("%lld", (long long)k);
    out[n] = NULL;
    return n;
}

static int start(crew *c, int64_t k)
{
    worker *w = &c->workers[k];
    char *argv[ARGUMENTS_MAX], *log = submodel_path(c->p, k, "worker.log");
    int ends[2];
    const pid_t parent = getpid();
    const int error_file = open_again(log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC);
    if (error_file < 0) {
        const int code = fail_errno(log, "cannot be made", errno);
        free(log);
        return code;
    }
    free(log);
    if (pipe2(ends, O_CLOEXEC)) {
        close(error_file);
        return fail(EXIT_OTHER, "worker %lld cannot be started: %s", (long long)k, strerror(errno));
    }
    const size_t n = arguments(c, k, argv);
    const pid_t child = fork();
    if (child == 0) { /* only async-signal-safe calls until exec */
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(EXIT_OTHER);
        dup2(ends[1], STDOUT_FILENO);
        dup2(error_file, STDERR_FILENO);
        execv("/proc/self/exe", argv);
        _exit(EXIT_OTHER);
    }
    const int reason = errno;
    for (size_t i = 0; i < n; i++) free(argv[i]);
    close(error_file);
    close(ends[1]);
    if (child < 0) {
        close(ends[0]);
        return fail(EXIT_OTHER, "worker %lld cannot be started: %s", (long long)k, strerror(reason));
    }
    w->process = child;
    w->pipe = ends[0];
    w->used = 0;
    w->state = RUNNING;
    w->tries++;
    return EXIT_DONE;
}

static void tell_progress(crew *c)
{
    char text[512];
    size_t at = (size_t)snprintf(text, sizeof text, "S-phase, step and loss:");
    for (int64_t k = 0; k < c->count && at + 64 < sizeof text; k++) {
        const worker *w = &c->workers[k];
        if (w->state == DONE) at += (size_t)snprintf(text + at, sizeof text - at, "  %lld: done", (long long)k);
        else if (w->steps)
            at += (size_t)snprintf(text + at, sizeof text - at, "  %lld: %lld/%lld %.3f", (long long)k, (long long)w->step,
                                   (long long)w->steps, w->loss);
        else
            at += (size_t)snprintf(text + at, sizeof text - at, "  %lld: %s", (long long)k,
                                   w->state == RUNNING ? "starts" : "waits");
    }
    progress_text(&c->progress, 0, text);
}

static void take_line(crew *c, int64_t k, const char *line)
{
    worker *w = &c->workers[k];
    json_t *o = parse_json(line, strlen(line), NULL);
    const char *event = json_string_value(json_object_get(o, "event"));
    if (event && !strcmp(event, "step")) {
        w->step = json_integer_value(json_object_get(o, "step"));
        w->steps = json_integer_value(json_object_get(o, "steps"));
        w->loss = json_number_value(json_object_get(o, "loss"));
    }
    if (event) emit(json_incref(o));
    json_decref(o);
}

/* Reads what worker k printed; 0 at the end. */
static int take(crew *c, int64_t k)
{
    worker *w = &c->workers[k];
    const ssize_t got = read(w->pipe, w->line + w->used, sizeof w->line - 1 - w->used);
    if (got < 0) return errno == EINTR || errno == EAGAIN;
    if (got == 0) return 0;
    w->used += (size_t)got;
    w->line[w->used] = 0;
    for (char *end; (end = strchr(w->line, '\n')) != NULL;) {
        *end = 0;
        take_line(c, k, w->line);
        w->used -= (size_t)(end + 1 - w->line);
        memmove(w->line, end + 1, w->used + 1);
    }
    if (w->used == sizeof w->line - 1) w->used = 0; /* longer than any line of ours */
    tell_progress(c);
    return 1;
}

static void words_of(const crew *c, int64_t k, char *out, size_t size)
{
    char *log = submodel_path(c->p, k, "worker.log");
    FILE *file = fopen(log, "re");
    last_words(file, out, size);
    if (file) fclose(file);
    free(log);
}

static void finish(crew *c, int64_t k)
{
    worker *w = &c->workers[k];
    int status = 0;
    char words[1024];
    close(w->pipe);
    while (waitpid(w->process, &status, 0) < 0 && errno == EINTR) {}
    const int in_time = c->told_to_stop && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM; /* before it could listen for it */
    w->code = WIFEXITED(status) ? WEXITSTATUS(status) : in_time ? EXIT_STOPPED : EXIT_OTHER;
    if (w->code == EXIT_DONE) {
        w->state = worker_done(c->p, k) ? DONE : FAILED;
        return;
    }
    const int again = (w->code == EXIT_OTHER || w->code == EXIT_STOPPED) && w->tries < 2 && !c->told_to_stop && !app_stopped();
    w->state = again ? WAITING : FAILED;
    if (c->told_to_stop && w->code == EXIT_STOPPED) return;
    if (WIFSIGNALED(status)) snprintf(words, sizeof words, "killed by signal %d", WTERMSIG(status));
    else words_of(c, k, words, sizeof words);
    if (again) say("worker %lld stopped (%s); it is started once more", (long long)k, words);
    else if (!c->told_failure++) fail(w->code, "worker %lld: %s", (long long)k, words); /* the others' lines are in their
                                                                                           worker.log */
}

static void stop_all(crew *c)
{
    c->told_to_stop = 1;
    for (int64_t k = 0; k < c->count; k++)
        if (c->workers[k].state == RUNNING) kill(c->workers[k].process, SIGTERM);
}

static int64_t in_state(const crew *c, int state)
{
    int64_t n = 0;
    for (int64_t k = 0; k < c->count; k++) n += c->workers[k].state == state;
    return n;
}

/* Waits until some worker prints or ends, and takes it. */
static void attend(crew *c)
{
    struct pollfd *ends = must(calloc((size_t)c->count, sizeof *ends));
    for (int64_t k = 0; k < c->count; k++) {
        ends[k].fd = c->workers[k].state == RUNNING ? c->workers[k].pipe : -1;
        ends[k].events = POLLIN;
    }
    if (poll(ends, (nfds_t)c->count, 200) > 0)
        for (int64_t k = 0; k < c->count; k++)
            if (ends[k].fd >= 0 && ends[k].revents && !take(c, k)) finish(c, k);
    free(ends);
}

static int outcome(const crew *c)
{
    int code = EXIT_DONE;
    for (int64_t k = 0; k < c->count; k++) {
        const worker *w = &c->workers[k];
        if (w->state == FAILED && w->code != EXIT_STOPPED && (!code || w->code < code)) code = w->code;
    }
    if (code) return code;
    if (in_state(c, DONE) == c->count) return EXIT_DONE;
    return fail(EXIT_STOPPED, "S-phase: stopped and saved in %s; the same command goes on from there", c->p->dir);
}

int worker_done(const pipeline *p, int64_t index)
{
    char *model = submodel_path(p, index, "model"), *log = submodel_path(p, index, "worker.log");
    const int is = path_exists(model);
    if (is) unlink(log); /* of no use then; also where a kill came between the two */
    free(model);
    free(log);
    return is;
}

int workers_run(pipeline *p, const flags *f, int64_t parts)
{
    moed_context_info info = {.struct_size = sizeof info};
    moed_context_get_info(p->context, &info);
    crew c = {.p = p, .f = f, .count = parts, .workers = must(calloc((size_t)parts, sizeof(worker)))};
    for (int64_t k = 0; k < parts; k++) {
        if (worker_done(p, k)) c.workers[k].state = DONE;
    }
    const int64_t wanted = p->workers > 0 ? p->workers : info.threads, left = in_state(&c, WAITING);
    c.at_once = wanted < left ? wanted : left;
    c.threads = c.at_once > 0 && info.threads > c.at_once ? info.threads / (int32_t)c.at_once : 1;
    say("%lld workers, %lld at once with %d threads each", (long long)left, (long long)c.at_once, (int)c.threads);
    progress_begin(&c.progress, "S-phase", 0, p->context);
    while (in_state(&c, RUNNING) || in_state(&c, WAITING)) {
        if (app_stopped() && !c.told_to_stop) stop_all(&c);
        if (in_state(&c, FAILED) && !c.told_to_stop) stop_all(&c); /* the others save what they have */
        if (c.told_to_stop && !in_state(&c, RUNNING)) break;
        for (int64_t k = 0; k < parts && !c.told_to_stop && in_state(&c, RUNNING) < c.at_once; k++)
            if (c.workers[k].state == WAITING && (c.workers[k].code = start(&c, k))) c.workers[k].state = FAILED;
        attend(&c);
        stopwatch_tick(&p->watch);
    }
    progress_end(&c.progress);
    const int code = outcome(&c);
    free(c.workers);
    return code;
}
