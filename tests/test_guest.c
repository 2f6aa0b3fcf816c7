/* tests/test_guest.c - the library as a guest in somebody's process: everything of that process is as before once the last
 * context is gone. */
#include "guest_support.h"
#include "guest_calls.h"

#include "core/context.h"
#include "core/limits.h"

/* ---- these stand before the C library's ---- */

/* Twenty flows with checkpoints would wait for the disk most of the time, which is not what is tested here. */
int fsync(int fd)
{
    (void)fd;
    return 0;
}
int fdatasync(int fd)
{
    (void)fd;
    return 0;
}

/* ---- the environment ---- */

static int watching;
static char asked_for[1024]; /* "NAME " */

static char *look_up(const char *name)
{
    const size_t size = strlen(name);
    for (char **e = environ; *e; e++)
        if (!strncmp(*e, name, size) && (*e)[size] == '=') return *e + size + 1;
    return NULL;
}
static void note(const char *name)
{
    char entry[80];
    snprintf(entry, sizeof entry, "%.70s ", name);
    if (watching && !strstr(asked_for, entry)) strncat(asked_for, entry, sizeof asked_for - strlen(asked_for) - 1);
}
char *getenv(const char *name)
{
    note(name);
    return look_up(name);
}
char *secure_getenv(const char *name)
{
    note(name);
    return look_up(name);
}

static void visit_with_flags(uint32_t flags)
{
    guest g;
    moed_context *c;
    moed_context_options o;
    char *dir = support_directory();
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = flags;
    asked_for[0] = 0, watching = 1;
    assert_ok(moed_context_create(&c, &o));
    guest_flow(&g, c, dir, NULL, NULL);
    guest_close(&g);
    moed_context_destroy(c);
    watching = 0;
    support_remove(dir);
}

static void only_three_environment_variables_are_read_and_none_when_not_allowed(void **state)
{
    (void)state;
    visit_with_flags(0);
    assert_non_null(strstr(asked_for, "MOED_THREADS "));
    assert_non_null(strstr(asked_for, "MOED_KERNELS "));
    assert_non_null(strstr(asked_for, "MOED_BACKEND_PATH "));
    assert_int_equal(strlen(asked_for), strlen("MOED_THREADS MOED_KERNELS MOED_BACKEND_PATH "));
    visit_with_flags(MOED_CONTEXT_NO_ENV);
    assert_string_equal(asked_for, "");
}

/* ---- before and after ---- */

typedef struct silence {
    int pipe[2], kept[2];
} silence;

/* Standard output and standard error go to a pipe. */
static void hush(silence *s)
{
    fflush(NULL);
    assert_int_equal(pipe2(s->pipe, O_CLOEXEC | O_NONBLOCK), 0);
    for (int i = 0; i < 2; i++) {
        s->kept[i] = fcntl(i + 1, F_DUPFD_CLOEXEC, 3);
        dup2(s->pipe[1], i + 1);
    }
}
/* Bytes that were written meanwhile. */
static ssize_t unhush(silence *s)
{
    char text[256];
    fflush(NULL);
    for (int i = 0; i < 2; i++) {
        dup2(s->kept[i], i + 1);
        close(s->kept[i]);
    }
    close(s->pipe[1]);
    const ssize_t n = read(s->pipe[0], text, sizeof text);
    close(s->pipe[0]);
    return n > 0 ? n : 0;
}

static void a_whole_flow_leaves_the_process_as_it_was_and_says_nothing(void **state)
{
    (void)state;
    static snapshot before, after;
    silence s;
    guest_visit("auto", 3, NULL, NULL); /* what the C library makes once and keeps is there from now on */
    guest_look(&before);
    hush(&s);
    guest_visit("auto", 3, NULL, NULL);
    assert_int_equal(unhush(&s), 0);
    guest_look(&after);
    guest_assert_same(&before, &after);
    assert_null(strstr(after.threads, "moed-"));
}

static int32_t look_at_descriptors(const moed_report *r, void *user)
{
    (void)r;
    static char list[GUEST_TEXT];
    int *open_ended = user;
    guest_list("/proc/self/fd", guest_descriptor, list);
    for (char *line = strtok(list, "\n"); line; line = strtok(NULL, "\n")) {
        int number, flags;
        assert_int_equal(sscanf(line, "%d %d", &number, &flags), 2);
        if (strstr(line, "moedisco-test") && !(flags & FD_CLOEXEC)) ++*open_ended;
        if (strstr(line, "metrics.jsonl")) open_ended[1]++;
    }
    return 0;
}

static void files_that_are_open_between_calls_do_not_go_to_programs_that_the_host_starts(void **state)
{
    (void)state;
    int seen[2] = {0, 0};
    guest_visit("auto", 2, look_at_descriptors, seen);
    assert_int_equal(seen[0], 0);
    assert_true(seen[1] > 0); /* it was looked at while files were open */
}

static void what_is_open_at_exit_prints_nothing_and_keeps_the_code(void **state)
{
    (void)state;
    silence s;
    int code = 0;
    char *dir = support_directory();
    hush(&s);
    const pid_t child = fork();
    if (child == 0) {
        static guest g;
#if GUEST_SANITIZED
        _exit(7);
#endif
        guest_flow(&g, support_context("auto", 3), dir, NULL, NULL);
        exit(7); /* handles and threads are there still */
    }
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_int_equal(unhush(&s), 0);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 7);
    support_remove(dir);
}

/* ---- locale ---- */

/* A locale with decimal commas, made below dir where none is installed; NULL when this machine cannot. */
static const char *comma_locale(const char *dir)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "de_DE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (setlocale(LC_NUMERIC, names[i])) return setlocale(LC_NUMERIC, "C"), names[i];
    char command[4400];
    snprintf(command, sizeof command, "localedef -i de_DE -f UTF-8 '%s/de_DE.UTF-8' >/dev/null 2>&1", dir);
    if (system(command) != 0) return NULL;
    setenv("LOCPATH", dir, 1);
    const char *there = setlocale(LC_NUMERIC, "de_DE.UTF-8");
    setlocale(LC_NUMERIC, "C");
    return there ? "de_DE.UTF-8" : NULL;
}

static void *set_locale(void *name)
{
    setlocale(LC_ALL, name);
    return NULL;
}
/* Another thread of the host's changes the locale in the middle of a run. */
static int32_t change_locale(const moed_report *r, void *user)
{
    pthread_t thread;
    pthread_create(&thread, NULL, set_locale, r->step % 2 ? user : (void *)(uintptr_t)"C");
    pthread_join(thread, NULL);
    return 0;
}

/* Sizes and bytes of the files that hold decimals, after a flow. */
static char *decimals_of(const char *locale, moed_progress_fn progress, double *loss)
{
    static const char *const names[] = {"saved/config.json", "part-1/config.json", "run/checkpoints/step-4/state.json"};
    char *dir = support_directory(), *text = calloc(1, 1 << 16);
    guest g;
    setlocale(LC_ALL, locale);
    moed_context *c = support_context("auto", 2);
    guest_flow(&g, c, dir, progress, (void *)(uintptr_t)locale);
    *loss = g.loss;
    guest_close(&g);
    support_close(c);
    setlocale(LC_ALL, "C");
    size_t used = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        FILE *f = fopen(support_path(dir, names[i]), "re");
        if (!f) fail_msg("no %s", names[i]);
        used += fread(text + used, 1, (1 << 15) - used / 2, f);
        fclose(f);
    }
    FILE *f = fopen(support_path(dir, "run/metrics.jsonl"), "re");
    char line[2048];
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        const char *rate = strstr(line, "\"learning_rate\":");
        if (rate) used += (size_t)snprintf(text + used, (1 << 16) - used, "%.24s\n", rate);
    }
    fclose(f);
    support_remove(dir);
    return text;
}

static void files_have_decimal_points_whatever_the_locale_even_when_it_changes_meanwhile(void **state)
{
    (void)state;
    char *dir = support_directory();
    const char *comma = comma_locale(dir);
    double plain_loss, comma_loss, changed_loss;
    if (!comma) {
        support_remove(dir);
        print_message("no locale with decimal commas here\n");
        skip();
    }
    char *plain = decimals_of("C", NULL, &plain_loss);
    assert_non_null(strstr(plain, "0.1"));
    char *with_comma = decimals_of(comma, NULL, &comma_loss), *changed = decimals_of(comma, change_locale, &changed_loss);
    assert_string_equal(plain, with_comma);
    assert_string_equal(plain, changed);
    assert_true(plain_loss == comma_loss && plain_loss == changed_loss);
    free(plain), free(with_comma), free(changed);
    unsetenv("LOCPATH");
    support_remove(dir);
}

/* ---- floating point ---- */

static const char *const kernel_names[] = {"auto", "v3", "v2", "neon", "reference"};

static int kernels_run_here(const char *name)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.kernels = name;
    const moed_status status = moed_context_create(&c, &o);
    moed_context_destroy(c);
    return status == MOED_OK;
}

/* The host traps what a sound computation never raises: a trap in any thread would end this process. */
static void finite_numbers_raise_no_trap_in_any_thread_and_modes_stay(void **state)
{
    (void)state;
    const int trapped = FE_DIVBYZERO | FE_INVALID | FE_OVERFLOW;
    for (size_t i = 0; i < sizeof kernel_names / sizeof *kernel_names; i++) {
        if (!kernels_run_here(kernel_names[i])) continue;
        feclearexcept(FE_ALL_EXCEPT);
        feenableexcept(trapped);
        guest_visit(kernel_names[i], 3, NULL, NULL);
        const int raised = fetestexcept(trapped), enabled = fegetexcept();
        fedisableexcept(FE_ALL_EXCEPT);
        assert_int_equal(raised, 0);
        assert_int_equal(enabled, trapped);
    }
}

static void rounding_and_flush_modes_of_the_host_stay(void **state)
{
    (void)state;
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO, FE_TONEAREST};
    static snapshot before, after;
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        fesetround(modes[i]);
#if defined(__x86_64__)
        const unsigned kept = __builtin_ia32_stmxcsr();
        __builtin_ia32_ldmxcsr(kept | (i % 2 ? 0x8040u : 0)); /* flush to zero, denormals are zero */
#endif
        guest_look(&before);
        guest_visit("auto", 3, NULL, NULL);
        guest_look(&after);
        fesetround(FE_TONEAREST);
#if defined(__x86_64__)
        __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() & ~0x8040u);
#endif
        guest_assert_same(&before, &after);
    }
}

/* ---- signals, affinity ---- */

static int count_unmasked; /* threads of the library that a signal could run on */
static int count_workers;

static int32_t look_at_masks(const moed_report *r, void *user)
{
    (void)r, (void)user;
    DIR *d = opendir("/proc/self/task");
    for (struct dirent *e; (e = readdir(d));) {
        char path[300], line[256], name[64] = "";
        unsigned long long blocked = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/status", e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(path, "re");
        while (f && fgets(line, sizeof line, f)) {
            sscanf(line, "Name: %63s", name);
            sscanf(line, "SigBlk: %llx", &blocked);
        }
        if (f) fclose(f);
        if (strncmp(name, "moed-", 5)) continue;
        count_workers++;
        for (int s = 1; s < 32; s++)
            if (s != SIGKILL && s != SIGSTOP && !(blocked >> (s - 1) & 1)) count_unmasked++;
    }
    closedir(d);
    return 0;
}

static void signals_of_the_host_never_run_on_threads_of_the_library(void **state)
{
    (void)state;
    guest_visit("auto", 3, look_at_masks, NULL);
    assert_true(count_workers > 0);
    assert_int_equal(count_unmasked, 0);
}

static void no_more_threads_than_the_affinity_of_the_caller_allows(void **state)
{
    (void)state;
    cpu_set_t before, one, after;
    moed_context_info info = {.struct_size = sizeof info};
    CPU_ZERO(&one);
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    for (int i = 0; i < CPU_SETSIZE && !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    moed_context *c = support_context("auto", 0);
    assert_ok(moed_context_get_info(c, &info));
    assert_int_equal(info.threads, 1);
    support_close(c);
    guest_visit("auto", 3, NULL, NULL); /* more than the one CPU, as asked for: still no CPU set of its own */
    assert_int_equal(sched_getaffinity(0, sizeof after, &after), 0);
    assert_true(CPU_EQUAL(&one, &after));
    sched_setaffinity(0, sizeof before, &before);
}

/* ---- control groups ---- */

static void record(const char *root, const char *path, const char *text)
{
    char command[8500];
    char full[4300];
    snprintf(full, sizeof full, "%s/%s", root, path);
    snprintf(command, sizeof command, "mkdir -p \"$(dirname '%s')\"", full);
    assert_int_equal(system(command), 0);
    support_write(full, text, strlen(text));
}

static void control_groups_of_both_versions_limit_cpus_and_memory(void **state)
{
    (void)state;
    static const struct {
        const char *what, *files[8][2];
        int32_t cpus;
        int64_t memory;
    } machines[] = {
        {"no groups", {{NULL}}, 0, 0},
        {"version 2, no limits", {{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "max 100000\n"},
                                  {"sys/fs/cgroup/memory.max", "max\n"}}, 0, 0},
        {"version 2 in a container", {{"proc/self/cgroup", "0::/\n"}, {"sys/fs/cgroup/cpu.max", "150000 100000\n"},
                                      {"sys/fs/cgroup/memory.max", "1073741824\n"}}, 2, 1 << 30},
        {"version 2, the parent is tighter", {{"proc/self/cgroup", "0::/a/b\n"}, {"sys/fs/cgroup/a/b/cpu.max", "800000 100000\n"},
          {"sys/fs/cgroup/a/cpu.max", "300000 100000\n"}, {"sys/fs/cgroup/a/b/memory.max", "4096000\n"},
          {"sys/fs/cgroup/a/memory.max", "max\n"}}, 3, 4096000},
        {"version 2, a group that is not in sight", {{"proc/self/cgroup", "0::/../other\n"},
                                                     {"sys/fs/cgroup/cpu.max", "50000 100000\n"}}, 1, 0},
        {"version 1", {{"proc/self/cgroup", "5:memory:/job\n4:cpu,cpuacct:/job\n1:name=systemd:/x\n"},
                       {"sys/fs/cgroup/cpu/job/cpu.cfs_quota_us", "400000\n"},
          {"sys/fs/cgroup/cpu/job/cpu.cfs_period_us", "100000\n"}, {"sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"},
          {"sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"},
          {"sys/fs/cgroup/memory/job/memory.limit_in_bytes", "2097152\n"},
          {"sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"}}, 4, 2097152},
        {"nonsense", {{"proc/self/cgroup", "::\nx\n0::\n"}, {"sys/fs/cgroup/cpu.max", "-5 x\n"},
                      {"sys/fs/cgroup/memory.max", "\n"}}, 0, 0},
    };
    for (size_t i = 0; i < sizeof machines / sizeof *machines; i++) {
        char *root = support_directory();
        for (int k = 0; k < 8 && machines[i].files[k][0]; k++) record(root, machines[i].files[k][0], machines[i].files[k][1]);
        if (moedi_limits_cpus(root) != machines[i].cpus || moedi_limits_memory(root) != machines[i].memory)
            fail_msg("%s: %d CPUs, %lld bytes", machines[i].what, (int)moedi_limits_cpus(root),
                     (long long)moedi_limits_memory(root));
        support_remove(root);
    }
}

static void the_cpu_has_no_more_memory_than_the_group_allows(void **state)
{
    (void)state;
    moed_device_info info = {.struct_size = sizeof info};
    size_t count;
    assert_ok(moed_device_list(&info, 1, &count, NULL));
    const int64_t allowed = moedi_limits_memory("");
    assert_true(info.memory > 0 && (!allowed || info.memory <= allowed));
}

/* ---- fork ---- */

static void after_fork_every_call_refuses_old_handles_and_they_can_be_destroyed(void **state)
{
    (void)state;
    guest g;
    char *dir = support_directory(), *other = support_directory(), told[sizeof unrefused + 64] = "";
    int pipes[2], code = 0;
    moed_context *c = support_context("auto", 3);
    guest_flow(&g, c, dir, NULL, NULL);
    assert_int_equal(pipe(pipes), 0);
    const pid_t child = fork();
    if (child == 0) {
        call_data(&g);
        call_models(&g);
        call_surgery_and_training(&g);
        call_growth(&g);
        call_laws(&g);
        int n = snprintf(told, sizeof told, "%d %s", refused, unrefused);
        if (write(pipes[1], told, (size_t)n) != n) _exit(3);
        guest_close(&g);
        moed_context_destroy(c);
#if !defined(__SANITIZE_THREAD__) /* which has no threads in the child of a process with threads */
        guest fresh;
        moed_context *mine = support_context("auto", 2);
        guest_flow(&fresh, mine, other, NULL, NULL);
        guest_close(&fresh);
        moed_context_destroy(mine);
        if (fresh.loss != g.loss) _exit(2);
#endif
        _exit(0);
    }
    close(pipes[1]);
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_true(read(pipes[0], told, sizeof told - 1) > 0);
    close(pipes[0]);
    char expected[32];
    snprintf(expected, sizeof expected, "%d ", calls_with_handles());
    assert_string_equal(told, expected); /* all of them, and no name behind the number */
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) == 0);
    moed_report r = empty_report();
    assert_ok(moed_trainer_evaluate(g.trainer, g.held_out, 0, &r, NULL)); /* the parent goes on */
    assert_ok(moed_trainer_save(g.trainer));
    guest_close(&g);
    support_close(c);
    support_remove(dir);
    support_remove(other);
}

/* ---- a thousand of everything ---- */

enum { ROUNDS = GUEST_SANITIZED ? 50 : 1000, WARM = ROUNDS / 10 };

static void nothing(void *argument, int64_t index)
{
    (void)argument, (void)index;
}

/* Bytes that the C library has handed out. */
static size_t bytes_out(void)
{
    const struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

/* From WARM rounds to all of them nothing grows. */
static void repeat(void (*round)(void *), void *user)
{
    static snapshot early, late;
    size_t bytes = 0;
    for (int i = 0; i < ROUNDS; i++) {
        if (i == WARM) {
            guest_look(&early);
            bytes = bytes_out();
        }
        round(user);
    }
    const size_t last = bytes_out();
    guest_look(&late);
    assert_string_equal(early.threads, late.threads);
    assert_string_equal(early.descriptors, late.descriptors);
    if (!GUEST_SANITIZED && last > bytes + 8192) fail_msg("%zu bytes more after %d rounds", last - bytes, ROUNDS - WARM);
}

static void one_context(void *user)
{
    (void)user;
    moed_context *c = support_context("auto", 3);
    moedi_parallel(c, 64, nothing, NULL);
    moed_model *m = tiny_model_of(c, 8, 1, 2, 32);
    moed_model_destroy(m);
    support_close(c);
}

static void a_thousand_contexts_with_work_leave_no_memory_threads_or_descriptors(void **state)
{
    (void)state;
    repeat(one_context, NULL);
}

/* One of each handle but the context. */
static void one_of_each(void *user)
{
    const guest *g = user;
    moed_kmeans *k;
    moed_partition *p;
    moed_split *s;
    moed_integration *i;
    moed_trainer *t;
    moed_model *m;
    moed_corpus *d, *view, *rest;
    moed_layout *l;
    moed_cancel *cancel;
    moed_law *law;
    moed_growth *growth;
    moed_kmeans_options ko;
    moed_growth_options go;
    const int32_t labels[2] = {0, 1}, experts[2] = {2, 4};
    const char *config = moed_layout_config(moed_model_layout(g->parts[1]));
    const moed_train_options o = tiny_options(2);
    moed_tensor x = support_tensor(g->vectors, MOED_DTYPE_F32, g->documents, GUEST_HIDDEN);
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &ko, sizeof ko));
    ko.clusters = 2, ko.restarts = 1, ko.iterations = 2;
    assert_ok(moed_cancel_create(&cancel));
    d = tiny_corpus(g->context, NULL);
    assert_ok(moed_corpus_divide(&view, &rest, d, 0.5, 1));
    assert_ok(moed_kmeans_create(&k, g->context, &ko));
    assert_ok(moed_kmeans_fit(k, &x, NULL, NULL, cancel));
    assert_ok(moed_partition_create(&p, g->context, labels, 2, 2, NULL, NULL));
    assert_ok(moed_layout_from_config(&l, g->context, config, strlen(config)));
    assert_ok(moed_split_create(&s, moed_model_layout(g->model), NULL));
    assert_ok(moed_split_build(&m, s, 1, g->model, NULL, NULL));
    assert_ok(moed_integration_create(&i, s, g->model, NULL));
    assert_ok(moed_integration_add(i, 1, m, 1));
    assert_ok(moed_trainer_create(&t, g->context, m, view, NULL, &o));
    assert_ok(moed_trainer_run(t, 1, NULL, cancel));
    assert_ok(moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &go, sizeof go));
    go.tokens = 1000, go.active = 2e7;
    assert_ok(moed_law_create(&law, g->context, NULL));
    assert_ok(moed_growth_from_law(&growth, g->context, law, experts, 2, &go));
    assert_refused(moed_model_open(&(moed_model *){NULL}, g->context, "/nowhere", NULL), MOED_E_NOT_FOUND, "/nowhere");
    moed_growth_destroy(growth), moed_law_destroy(law);
    moed_trainer_destroy(t), moed_integration_destroy(i), moed_split_destroy(s), moed_layout_destroy(l),
        moed_partition_destroy(p);
    moed_kmeans_destroy(k), moed_corpus_destroy(rest), moed_corpus_destroy(view), moed_corpus_destroy(d), moed_model_destroy(m);
    moed_cancel_destroy(cancel);
}

static void a_thousand_of_each_handle_leave_no_memory_threads_or_descriptors(void **state)
{
    (void)state;
    guest g;
    char *dir = support_directory();
    moed_context *c = support_context("auto", 2);
    guest_flow(&g, c, dir, NULL, NULL);
    const int64_t held = support_held(c);
    repeat(one_of_each, &g);
    assert_int_equal(support_held(c), held);
    guest_close(&g);
    support_close(c);
    support_remove(dir);
}

/* ---- errors and callbacks ---- */

static void *fail_elsewhere(void *context)
{
    moed_model *m = NULL;
    assert_refused(moed_model_open(&m, context, "/somewhere else", NULL), MOED_E_NOT_FOUND, "somewhere else");
    return NULL;
}

static void errors_of_workers_reach_the_caller_and_other_threads_keep_their_own(void **state)
{
    (void)state;
    char *dir = support_directory();
    guest g;
    moed_context *c = support_context("auto", 3);
    moed_model *m = NULL;
    pthread_t thread;
    guest_flow(&g, c, dir, NULL, NULL);
    moed_tensor x;
    assert_ok(moed_model_tensor(g.opened, 3, &x));
    g.vectors[7] = (float)NAN; /* found by a task of k-means */
    moed_tensor vectors = support_tensor(g.vectors, MOED_DTYPE_F32, g.documents, GUEST_HIDDEN);
    assert_refused(moed_kmeans_fit(g.kmeans, &vectors, NULL, NULL, NULL), MOED_E_NUMERIC, "row 0");
    pthread_create(&thread, NULL, fail_elsewhere, c);
    pthread_join(thread, NULL);
    assert_non_null(strstr(moed_last_error(), "row 0"));
    assert_refused(moed_model_open(&m, c, dir, NULL), MOED_E_NOT_FOUND, dir);
    guest_close(&g);
    support_close(c);
    support_remove(dir);
}

typedef struct watch {
    pthread_t caller;
    int inside, depth_wrong, thread_wrong, calls;
} watch;
static __thread int in_task;

static void enter_callback(watch *w)
{
    w->calls++;
    w->depth_wrong += w->inside++ > 0;
    w->thread_wrong += !pthread_equal(w->caller, pthread_self());
}
static int32_t watched_progress(const moed_report *r, void *user)
{
    (void)r;
    enter_callback(user);
    ((watch *)user)->inside--;
    return 0;
}
static int32_t watched_length(int64_t document, int64_t *tokens, void *user)
{
    enter_callback(user);
    ((watch *)user)->inside--;
    return tiny_length(document, tokens, NULL);
}
static int32_t watched_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    enter_callback(user);
    ((watch *)user)->inside--;
    return tiny_read(document, offset, tokens, count, NULL);
}
static void watched_executor(int64_t count, moed_task_fn task, void *argument, void *user)
{
    watch *w = user;
    w->depth_wrong += in_task;
    enter_callback(w);
    w->inside--; /* allocation and reading may come from inside a task, another parallel call may not */
    in_task = 1;
    for (int64_t i = count - 1; i >= 0; i--) task(argument, i);
    in_task = 0;
}

static void callbacks_run_on_the_calling_thread_one_at_a_time_and_never_nest(void **state)
{
    (void)state;
    watch w = {.caller = pthread_self()};
    moed_context *c;
    moed_context_options o;
    moed_trainer *t;
    moed_train_options options = tiny_options(4);
    const moed_documents documents = {.count = TINY_DOCUMENTS, .length = watched_length, .read = watched_read, .user = &w};
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.executor = watched_executor, o.executor_user = &w, o.threads = 4;
    assert_ok(moed_context_create(&c, &o));
    moed_corpus *d = support_corpus(c, documents, 0, TINY_VOCABULARY - 1);
    moed_model *m = tiny_model(c);
    options.progress = watched_progress, options.progress_user = &w, options.held_out = d, options.evaluate_every = 2;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &options));
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    float vectors[TINY_DOCUMENTS * 16];
    moed_tensor x = support_tensor(vectors, MOED_DTYPE_F32, TINY_DOCUMENTS, 16);
    assert_ok(moed_corpus_embed(d, m, &x, NULL, NULL));
    assert_true(w.calls > 100);
    assert_int_equal(w.depth_wrong, 0);
    assert_int_equal(w.thread_wrong, 0);
    moed_trainer_destroy(t), moed_model_destroy(m), moed_corpus_destroy(d), moed_context_destroy(c);
}

/* ---- cancel ---- */

typedef struct stopper {
    moed_cancel *cancel;
    int count;
} stopper;
/* Counts what is run; the request comes with the tenth. */
static void count_and_stop(void *argument, int64_t index)
{
    (void)index;
    stopper *s = argument;
    if (++s->count == 10) moed_cancel_request(s->cancel);
}

static void a_watched_parallel_call_leaves_out_what_has_not_begun(void **state)
{
    (void)state;
    stopper s = {0};
    moed_context *c = support_context("auto", 1);
    assert_ok(moed_cancel_create(&s.cancel));
    assert_null(moedi_executor_watch(s.cancel));
    moedi_parallel(c, 1000, count_and_stop, &s);
    assert_int_equal(s.count, 10);
    assert_ptr_equal(moedi_executor_watch(NULL), s.cancel);
    moedi_parallel(c, 1000, count_and_stop, &s);
    assert_int_equal(s.count, 1010);
    moed_cancel_destroy(s.cancel);
    support_close(c);
}

static moed_cancel *now_or_never;
static int calls_before;
static void stopping_executor(int64_t count, moed_task_fn task, void *argument, void *user)
{
    (void)user;
    for (int64_t i = 0; i < count; i++) {
        if (--calls_before == 0) moed_cancel_request(now_or_never);
        task(argument, i);
    }
}

/* The request comes before any task of a step in turn: the step is dropped as a whole, and the run goes on to the same
 * numbers. */
static void a_step_cancelled_anywhere_is_dropped_whole(void **state)
{
    (void)state;
    moed_context *c;
    moed_context_options o;
    const moed_train_options options = tiny_options(3);
    moed_trainer *t;
    size_t count;
    rig plain = rig_open(&options, 1);
    rig_run(&plain, 0);
    float *expected = model_numbers(plain.model, &count);
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.executor = stopping_executor, o.threads = 2;
    assert_ok(moed_context_create(&c, &o));
    int cancelled = 0;
    for (int at = 1; at < 400; at += 7) {
        moed_model *m = tiny_model(c);
        moed_corpus *d = tiny_corpus(c, NULL);
        size_t same;
        assert_ok(moed_trainer_create(&t, c, m, d, NULL, &options));
        assert_ok(moed_cancel_create(&now_or_never));
        calls_before = at;
        const moed_status status = moed_trainer_run(t, 0, NULL, now_or_never);
        assert_true(status == MOED_OK || status == MOED_E_CANCELLED);
        cancelled += status == MOED_E_CANCELLED;
        calls_before = 0;
        assert_ok(moed_trainer_run(t, 0, NULL, NULL));
        float *numbers = model_numbers(m, &same);
        assert_int_equal(same, count);
        assert_memory_equal(numbers, expected, count * sizeof *numbers);
        free(numbers);
        moed_trainer_destroy(t), moed_corpus_destroy(d), moed_model_destroy(m), moed_cancel_destroy(now_or_never);
    }
    assert_true(cancelled > 10);
    free(expected);
    rig_close(&plain);
    support_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_three_environment_variables_are_read_and_none_when_not_allowed),
        cmocka_unit_test(a_whole_flow_leaves_the_process_as_it_was_and_says_nothing),
        cmocka_unit_test(files_that_are_open_between_calls_do_not_go_to_programs_that_the_host_starts),
        cmocka_unit_test(what_is_open_at_exit_prints_nothing_and_keeps_the_code),
        cmocka_unit_test(files_have_decimal_points_whatever_the_locale_even_when_it_changes_meanwhile),
        cmocka_unit_test(finite_numbers_raise_no_trap_in_any_thread_and_modes_stay),
        cmocka_unit_test(rounding_and_flush_modes_of_the_host_stay),
        cmocka_unit_test(signals_of_the_host_never_run_on_threads_of_the_library),
        cmocka_unit_test(no_more_threads_than_the_affinity_of_the_caller_allows),
        cmocka_unit_test(control_groups_of_both_versions_limit_cpus_and_memory),
        cmocka_unit_test(the_cpu_has_no_more_memory_than_the_group_allows),
        cmocka_unit_test(after_fork_every_call_refuses_old_handles_and_they_can_be_destroyed),
        cmocka_unit_test(a_thousand_contexts_with_work_leave_no_memory_threads_or_descriptors),
        cmocka_unit_test(a_thousand_of_each_handle_leave_no_memory_threads_or_descriptors),
        cmocka_unit_test(errors_of_workers_reach_the_caller_and_other_threads_keep_their_own),
        cmocka_unit_test(callbacks_run_on_the_calling_thread_one_at_a_time_and_never_nest),
        cmocka_unit_test(a_watched_parallel_call_leaves_out_what_has_not_begun),
        cmocka_unit_test(a_step_cancelled_anywhere_is_dropped_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
