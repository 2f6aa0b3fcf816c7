/* tests/crash/crash.c - kills the command at random instants and at every call that writes, and fails those calls and allocations
 * in turn; then the same command again must come to the files of a run that was left alone, and nothing else may lie there.
 *
 *     crash COMMAND FAULTS.SO kills SCENARIO COUNT SEED        at instants spread over the scenario's length
 *     crash COMMAND FAULTS.SO KIND SCENARIO FROM STEP [MOST]   KIND: kill, enospc, eio, short, eintr, nomem; the FROM-th, FROM +
 * STEP-th, ...     crash COMMAND FAULTS.SO full|brief                       all of it, or a few seconds of it
 *     crash COMMAND FAULTS.SO count                            calls and allocations of each scenario */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "faults/faults.h"

enum { WORDS = 48, PATH_ROOM = 4096 };

/* Each runs in a copy of the prepared directory. `whole`: one output, which must be the old one or the new one after a failure.
 * `once`: the command refuses to do again what is done. */
typedef struct scenario {
    const char *name, *line;
    int whole, once;
} scenario;

#define SMALL " --hidden 8 --layers 1 --heads 2 --experts 2 --expert-width 8 --context-length 32"
#define ROWS " --length 16 --rows 4 --held-out 0.2"
static const scenario scenarios[] = {
    {"run", "run disco run --text text --start-steps 2 --branch-steps 3 --steps 4 --checkpoint-every 1 --workers 2" ROWS SMALL, 0,
     0},
    {"train", "train m c/text out --steps 4 --checkpoint-every 1 --keep 2 --evaluate-every 2" ROWS, 0, 0},
    {"corpus", "corpus build c/text text more", 1, 0},
    {"export", "corpus export c/text c/out --partition p --cluster 1", 1, 0},
    {"cluster", "cluster c/text p --clusters 2 --hidden 8 --seed 5", 1, 0},
    {"split", "split m parts", 0, 1},
    {"integrate", "integrate m merged subs/0 subs/1", 1, 1},
    {"init", "init fresh" SMALL, 1, 1},
};
enum { SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

static const char *const kinds[FAULT_KINDS] = {"count", "enospc", "eio", "short", "eintr", "nomem", "kill"};

static const char *command, *library;
static char work[PATH_ROOM / 4];
static fault_state *state;
static char state_path[PATH_ROOM];
static int wrong;

static void complain(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    printf("WRONG: ");
    vprintf(format, list);
    va_end(list);
    putchar('\n');
    fflush(stdout);
    wrong++;
}

static void must(int good, const char *what)
{
    if (good) return;
    printf("crash: %s: %s\n", what, strerror(errno));
    exit(2);
}

static const char *in(const char *dir, const char *name)
{
    static char buffers[8][PATH_ROOM];
    static unsigned next;
    char *b = buffers[next++ % 8];
    snprintf(b, PATH_ROOM, "%s/%s", dir, name);
    return b;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void shell(const char *format, ...)
{
    char line[2 * PATH_ROOM];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    must(system(line) == 0, line);
}

/* ---- running ---- */

static void become(const char *dir, const char *line, int faults)
{
    char copy[2048];
    const char *words[WORDS];
    int count = 0;
    snprintf(copy, sizeof copy, "%s", line);
    words[count++] = "moedisco";
    for (char *w = strtok(copy, " "); w && count < WORDS - 4; w = strtok(NULL, " ")) words[count++] = w;
    words[count++] = "--device=cpu"; /* what a plug-in found here does without memory is not what is tested */
    words[count++] = "--threads=1";
    words[count++] = "--kernels=reference";
    words[count] = NULL;
    setpgid(0, 0);
    if (chdir(dir) != 0) _exit(99);
    const int out = open("../out", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666),
              err = open("../err", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    dup2(out, 1), dup2(err, 2);
    if (faults) setenv("LD_PRELOAD", library, 1), setenv("FAULT_STATE", state_path, 1);
    execv(command, (char *const *)(uintptr_t)words);
    _exit(99);
}

/* Exit code, or -signal. after >= 0: the process group is killed so many seconds from now, if it lives so long. */
static int run_in(const char *dir, const char *line, int faults, double after)
{
    const double began = now();
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    must(child >= 0, "fork");
    if (child == 0) become(dir, line, faults);
    setpgid(child, child);
    for (;;) {
        const pid_t done = waitpid(child, &status, after >= 0 ? WNOHANG : 0);
        if (done == child) break;
        if (after >= 0 && now() - began >= after) kill(-child, SIGKILL), after = -1;
        else if (after >= 0) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void run_well(const char *dir, const char *line)
{
    const int code = run_in(dir, line, 0, -1);
    if (code == 0) return;
    printf("crash: exit %d of: moedisco %s\n", code, line);
    shell("cat %s/err", work);
    exit(2);
}

/* ---- comparing ---- */

static char *slurp(const char *path, size_t *size)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    char *text = malloc(*size + 1);
    must(fread(text, 1, *size, f) == *size, path);
    text[*size] = 0;
    fclose(f);
    return text;
}

/* JSON without what a clock says. */
static char *timeless(const char *text)
{
    static const char *const clocks[] = {"seconds", "tokens_per_second", "evaluation_seconds", "cost", "phases"};
    char *all = calloc(1, 2 * strlen(text) + 64), *copy = strdup(text);
    json_t *whole = json_loads(text, 0, NULL);
    for (char *line = whole ? copy : strtok(copy, "\n"); line; line = whole ? NULL : strtok(NULL, "\n")) {
        json_t *o = whole ? json_incref(whole) : json_loads(line, 0, NULL);
        for (size_t i = 0; i < sizeof clocks / sizeof clocks[0]; i++) json_object_del(o, clocks[i]);
        char *dumped = o ? json_dumps(o, JSON_SORT_KEYS) : strdup("no JSON");
        strcat(all, dumped), strcat(all, "\n");
        free(dumped);
        json_decref(o);
    }
    json_decref(whole);
    free(copy);
    return all;
}

static int same_file(const char *a, const char *b)
{
    size_t n = 0, m = 0;
    char *x = slurp(a, &n), *y = slurp(b, &m);
    const char *name = strrchr(a, '/') + 1;
    int same = x && y;
    if (same && (!strcmp(name, "metrics.jsonl") || !strcmp(name, "result.json"))) {
        char *p = timeless(x), *q = timeless(y);
        same = !strcmp(p, q);
        free(p), free(q);
    } else if (same) {
        same = n == m && !memcmp(x, y, n);
    }
    free(x), free(y);
    return same;
}

/* Locks and wall-clock lines say nothing about the result. */
static int matters(const struct dirent *e)
{
    static const char *const not_these[] = {".", "..", ".lock", "seconds.jsonl"};
    for (size_t i = 0; i < 4; i++)
        if (!strcmp(e->d_name, not_these[i])) return 0;
    return 1;
}

static int is_folder(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

/* What a call that removes or moves away leaves behind when it fails: the next save, if there is one, tries again. */
enum { MAY_STAY_TEMPORARIES = 1, MAY_STAY_CHECKPOINTS = 2 };

static int may_stay(const char *name, int leftovers)
{
    if (!strncmp(name, "step-", 5) && !strchr(name, '.')) return leftovers & MAY_STAY_CHECKPOINTS;
    return (leftovers & MAY_STAY_TEMPORARIES) && (strstr(name, ".tmp") || strstr(name, ".old-") || !strcmp(name, "worker.log"));
}

/* The first difference in `out`; 1 when there is none. */
static int same_tree(const char *a, const char *b, int leftovers, char *out)
{
    struct dirent **x = NULL, **y = NULL;
    const int n = scandir(a, &x, matters, alphasort), m = scandir(b, &y, matters, alphasort);
    int i = 0, j = 0, same = n >= 0 && m >= 0;
    if (!same) snprintf(out, PATH_ROOM, "%s or %s is no folder", a, b);
    while (same && (i < n || j < m)) {
        const int order = i == n ? 1 : j == m ? -1 : strcmp(x[i]->d_name, y[j]->d_name);
        char p[PATH_ROOM / 2], q[PATH_ROOM / 2];
        if (order > 0 && may_stay(y[j]->d_name, leftovers)) {
            j++;
            continue;
        }
        if (order) {
            snprintf(out, PATH_ROOM, "%s/%s is %s", b, order < 0 ? x[i]->d_name : y[j]->d_name, order < 0 ? "missing" : "there");
            same = 0;
            break;
        }
        snprintf(p, sizeof p, "%s/%s", a, x[i++]->d_name);
        snprintf(q, sizeof q, "%s/%s", b, y[j++]->d_name);
        if (is_folder(p) && is_folder(q)) same = same_tree(p, q, leftovers, out);
        else if (!(same = same_file(p, q))) snprintf(out, PATH_ROOM, "%s differs", q);
    }
    for (int k = 0; k < n; k++) free(x[k]);
    for (int k = 0; k < m; k++) free(y[k]);
    free(x), free(y);
    return same;
}

/* ---- a trial ---- */

static const char *fresh_copy(void)
{
    shell("rm -rf %s/trial && cp -r %s/base %s/trial", work, work, work);
    return in(work, "trial");
}

static const char *reference(const scenario *s)
{
    const char *dir = in(work, s->name);
    if (is_folder(dir)) return dir;
    shell("cp -r %s/base %s", work, dir);
    run_well(dir, s->line);
    return dir;
}

/* What the command said; "" for nothing. */
static const char *said(void)
{
    static char text[2048];
    size_t size = 0;
    char *all = slurp(in(work, "err"), &size);
    snprintf(text, sizeof text, "%s", all ? all : "");
    free(all);
    return text;
}

/* The same command once more, undisturbed, and the files it must come to. */
static void must_recover(const scenario *s, const char *dir, int leftovers, const char *what)
{
    char difference[PATH_ROOM] = "";
    const char *wanted = reference(s);
    const int code = run_in(dir, s->line, 0, -1);
    if (code != 0 && !(s->once && code == 2 && same_tree(wanted, dir, leftovers, difference)))
        complain("%s, %s: the same command again: exit %d: %s", s->name, what, code, said());
    else if (!same_tree(wanted, dir, leftovers, difference)) complain("%s, %s: %s", s->name, what, difference);
}

static double uniform(uint64_t *seed)
{
    *seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
    return (double)(*seed >> 11) / 9007199254740992.0;
}

static double length_of(const scenario *s)
{
    const char *dir = fresh_copy();
    const double began = now();
    run_well(dir, s->line);
    return now() - began;
}

static int kills(const scenario *s, int count, uint64_t seed)
{
    const int before = wrong;
    double length = length_of(s);
    int killed = 0;
    seed = seed * 2654435769u + 88172645463325252u;
    for (int late = 0; killed < count && late < 20 * count;) {
        char what[128];
        const char *dir = fresh_copy();
        const double after = uniform(&seed) * length;
        if (run_in(dir, s->line, 0, after) != -SIGKILL) {
            late++; /* it was done before */
            length *= 0.98;
            continue;
        }
        killed++;
        snprintf(what, sizeof what, "killed after %.1f of %.1f ms", 1e3 * after, 1e3 * length);
        must_recover(s, dir, 0, what);
    }
    printf("%-9s %4d killed at random instants of %.2f s, %d wrong\n", s->name, killed, length, wrong - before);
    fflush(stdout);
    return killed;
}

/* After a fault that was told: the exit code and the sentence. */
static void check_refusal(const scenario *s, int kind, int code, const char *what)
{
    const int expected = kind == FAULT_ENOSPC ? 2 : kind == FAULT_NOMEM ? 3 : 1;
    const char *text = said();
    int lines = 0;
    if (kind == FAULT_SHORT || kind == FAULT_EINTR) complain("%s, %s: exit %d: %s", s->name, what, code, text);
    else if (code != expected) complain("%s, %s: exit %d, not %d: %s", s->name, what, code, expected, text);
    for (const char *at = text; (at = strstr(at, "moedisco: ")) && (at == text || at[-1] == '\n'); at++) lines++;
    if (lines != 1) complain("%s, %s: %d lines begin with moedisco: %s", s->name, what, lines, text);
    if (kind != FAULT_NOMEM && !strstr(text, ": cannot ")) complain("%s, %s: no file is named: %s", s->name, what, text);
}

/* 0 when the scenario has fewer calls than n. */
static int one_fault(const scenario *s, int kind, int64_t n)
{
    char what[128], difference[PATH_ROOM] = "";
    const char *dir = fresh_copy();
    const char *wanted = reference(s);
    fault_now = state;
    fault_arm(kind == FAULT_NOMEM ? FAULT_MEMORY : FAULT_CALLS, kind, n);
    const int code = run_in(dir, s->line, 1, -1);
    if (!state->hit) return 0;
    const int told = strstr(said(), "was not removed") != NULL; /* for lack of memory: a warning that names it */
    const int unlinked = !strcmp(state->last, "unlink") || told, moved = !strcmp(state->last, "rename") || kind == FAULT_NOMEM;
    const int unremoved = kind == FAULT_KILL ? 0
                          : unlinked         ? MAY_STAY_TEMPORARIES | MAY_STAY_CHECKPOINTS
                          : moved            ? MAY_STAY_CHECKPOINTS
                                             : 0;
    snprintf(what, sizeof what, "%s at call %lld, %s", kinds[kind], (long long)n, state->last);
    if (code < 0 && kind != FAULT_KILL) complain("%s, %s: ended by signal %d", s->name, what, -code);
    if (code > 0) check_refusal(s, kind, code, what);
    if (code == 0 && !same_tree(wanted, dir, unremoved, difference))
        complain("%s, %s: exit 0, but %s", s->name, what, difference);
    if (code > 0 && s->whole && !same_tree(in(work, "base"), dir, unremoved, difference) &&
        !same_tree(wanted, dir, unremoved, difference))
        complain("%s, %s: half-written: %s", s->name, what, difference);
    if (code != 0) must_recover(s, dir, unremoved, what);
    return 1;
}

static int64_t faults(const scenario *s, int kind, int64_t from, int64_t step, int64_t most)
{
    const int before = wrong;
    int64_t done = 0, n = from;
    while (done < most && one_fault(s, kind, n)) done++, n += step;
    printf("%-9s %4lld times %s, the last at call %lld, %d wrong\n", s->name, (long long)done, kinds[kind], (long long)(n - step),
           wrong - before);
    fflush(stdout);
    return done;
}

/* ---- the whole ---- */

static void prepare(void)
{
    static const char *const lines[] = {
        "corpus build c/text text", "init m" SMALL, "cluster c/text p --clusters 2 --hidden 8", "split m subs",
    };
    char path[PATH_ROOM];
    const char *base = getenv("TMPDIR");
    snprintf(work, sizeof work, "%s/moedisco-crash-XXXXXX", base ? base : "/tmp");
    must(mkdtemp(work) != NULL, work);
    shell("mkdir -p %s/base/text %s/base/more", work, work);
    for (int i = 0; i < 24; i++) {
        snprintf(path, sizeof path, "%s/base/%s/%d.txt", work, i < 20 ? "text" : "more", i);
        FILE *f = fopen(path, "w");
        must(f != NULL, path);
        for (int n = 0; n < 4; n++) fprintf(f, i % 2 ? "%d: the %d sheep of farm %d sleep\n" : "f%d(%d, %d);\n", n, i, i * n);
        fclose(f);
    }
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) run_well(in(work, "base"), lines[i]);
    snprintf(state_path, sizeof state_path, "%s/state", work);
    const int fd = open(state_path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    must(fd >= 0 && ftruncate(fd, sizeof *state) == 0, state_path);
    state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(state != MAP_FAILED, "mmap");
    close(fd);
}

fault_state *fault_now;

static const scenario *scenario_of(const char *name)
{
    for (size_t i = 0; i < SCENARIOS; i++)
        if (!strcmp(scenarios[i].name, name)) return &scenarios[i];
    printf("crash: no scenario is named %s\n", name);
    exit(2);
}

static int kind_of(const char *name)
{
    for (int k = 1; k < FAULT_KINDS; k++)
        if (!strcmp(kinds[k], name)) return k;
    printf("crash: no kind is named %s\n", name);
    exit(2);
}

static void count_all(void)
{
    for (size_t i = 0; i < SCENARIOS; i++) {
        long long seen[2];
        for (int k = 0; k < 2; k++) {
            const char *dir = fresh_copy();
            fault_now = state;
            fault_arm(k ? FAULT_MEMORY : FAULT_CALLS, FAULT_COUNT, 0);
            must(run_in(dir, scenarios[i].line, 1, -1) == 0, scenarios[i].line);
            seen[k] = state->seen;
        }
        printf("%-9s %6lld calls %8lld allocations\n", scenarios[i].name, seen[0], seen[1]);
    }
}

/* A prime step reaches every phase; the full tier goes through every call. */
static void all_of_it(int brief)
{
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
    const int preload = 0; /* a sanitizer wants to be loaded first */
#else
    const int preload = 1;
#endif
    for (size_t i = 0; i < SCENARIOS; i++) kills(&scenarios[i], brief ? 1 : i ? 10 : 200, i + 1);
    for (size_t i = 0; i < SCENARIOS && preload; i++) {
        for (int kind = FAULT_ENOSPC; kind < FAULT_KINDS; kind++) {
            const int64_t many = kind == FAULT_NOMEM ? (i ? 97 : 9973) : i ? 5 : 97;
            faults(&scenarios[i], kind, brief ? 1 + (int64_t)i : 1,
                   brief                 ? many
                   : kind == FAULT_NOMEM ? (i ? 1 : 53)
                                         : 1,
                   brief ? 2 : INT64_MAX);
        }
    }
}

int main(int argc, char **argv)
{
    if (argc < 4) return printf("usage: crash COMMAND FAULTS.SO full|brief|count|kills SCENARIO COUNT SEED|KIND SCENARIO FROM "
                                "STEP [MOST]\n"), 2;
    command = argv[1], library = argv[2];
    const char *mode = argv[3];
    prepare();
    if (!strcmp(mode, "full") || !strcmp(mode, "brief")) all_of_it(mode[0] == 'b');
    else if (!strcmp(mode, "count")) count_all();
    else if (argc > 6 && !strcmp(mode, "kills")) kills(scenario_of(argv[4]), atoi(argv[5]), (uint64_t)atoll(argv[6]));
    else if (argc > 6)
        faults(scenario_of(argv[4]), kind_of(mode), atoll(argv[5]), atoll(argv[6]), argc > 7 ? atoll(argv[7]) : INT64_MAX);
    if (wrong) printf("%d wrong; the last trial is kept in %s\n", wrong, work);
    else shell("rm -rf %s", work);
    return wrong != 0;
}
