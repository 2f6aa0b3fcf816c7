/* tests/test_core.c - status, options, memory, threads, contexts and plug-ins. */
#include "support.h"

#include <errno.h>
#include <fenv.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "core/cancel.h"
#include "core/context.h"
#include "core/options.h"

/* ---- status and options ---- */

static void every_status_has_a_name_and_a_sentence(void **state)
{
    (void)state;
#define CHECK(name, value, text)                                    \
    assert_string_equal(moed_status_name(value), "MOED_" #name);    \
    assert_string_equal(moed_status_text(value), text);
    MOED_STATUS_LIST(CHECK)
#undef CHECK
    assert_string_equal(moed_status_name(-999), "MOED_E_UNKNOWN");
}

static void an_error_stays_one_line_and_goes_with_the_next_call(void **state)
{
    (void)state;
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.device = "no\nsuch";
    assert_refused(moed_context_create(&c, &o), MOED_E_BACKEND, "no?such");
    assert_null(strchr(moed_last_error(), '\n'));
    moed_error_info info = {.struct_size = sizeof info};
    assert_int_equal(moed_last_error_get(&info), MOED_OK);
    assert_int_equal(info.status, MOED_E_BACKEND);
    assert_string_equal(info.parameter, "device");
    assert_int_equal(info.retryable, 0);
    moed_context_destroy(NULL); /* never touches the error */
    assert_true(strlen(moed_last_error()) > 0);
    c = support_context("reference", 1);
    assert_string_equal(moed_last_error(), "");
    moed_context_destroy(c);
}

static void a_path_that_cannot_be_written_is_not_worth_another_try(void **state)
{
    (void)state;
    static const struct {
        int number, retryable;
        moed_status status;
    } reasons[] = {
        {EIO, 1, MOED_E_IO},    {ENOSPC, 1, MOED_E_SPACE},    {ENOMEM, 1, MOED_E_MEMORY},    {EMFILE, 1, MOED_E_IO},
        {EACCES, 0, MOED_E_IO}, {EPERM, 0, MOED_E_IO},        {EROFS, 0, MOED_E_IO},         {EISDIR, 0, MOED_E_IO},
        {ELOOP, 0, MOED_E_IO},  {ENAMETOOLONG, 0, MOED_E_IO}, {ENOENT, 0, MOED_E_NOT_FOUND}, {ENOTDIR, 0, MOED_E_NOT_FOUND},
    };
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        moed_error_info info = {.struct_size = sizeof info};
        errno = reasons[i].number;
        assert_int_equal(moedi_fail_errno("some/place", "write"), reasons[i].status);
        assert_int_equal(moed_last_error_get(&info), MOED_OK);
        if (info.retryable != reasons[i].retryable) fail_msg("retryable is %d: %s", info.retryable, info.message);
        assert_non_null(strstr(info.message, "some/place: cannot write: "));
    }
}

static void every_options_field_starts_at_its_stated_default_and_is_checked(void **state)
{
    (void)state;
    static const int32_t ids[] = {MOED_STRUCT_CONTEXT_OPTIONS,     MOED_STRUCT_MODEL_OPTIONS, MOED_STRUCT_CORPUS_OPTIONS,
                                  MOED_STRUCT_KMEANS_OPTIONS,      MOED_STRUCT_EMBED_OPTIONS, MOED_STRUCT_SPLIT_OPTIONS,
                                  MOED_STRUCT_INTEGRATION_OPTIONS, MOED_STRUCT_TRAIN_OPTIONS};
    int fields = 0;
    for (size_t i = 0; i < sizeof ids / sizeof *ids; i++) {
        _Alignas(8) char given[512], out[512];
        const size_t size = moed_struct_size(ids[i]);
        assert_ok(moed_options_init(ids[i], given, size));
        assert_ok(moedi_options_read(ids[i], given, out));
        assert_memory_equal(given, out, size);
        moed_field f = {.struct_size = sizeof f};
        for (size_t k = 0; moed_options_field(ids[i], k, &f) == MOED_OK; k++, fields++) {
            assert_true(strlen(f.sentence) > 5 && f.offset + 4 <= size);
            void *at = given + f.offset;
            if (f.type == MOED_FIELD_F64) {
                assert_true(*(double *)at == f.initial && f.initial >= f.minimum && f.initial <= f.maximum);
                *(double *)at = NAN;
            } else if (f.type == MOED_FIELD_I64) {
                assert_true((double)*(int64_t *)at == f.initial);
                *(int64_t *)at = (int64_t)f.minimum - 1;
            } else if (f.type == MOED_FIELD_I32 || f.type == MOED_FIELD_CHOICE || f.type == MOED_FIELD_SWITCH) {
                assert_true(*(int32_t *)at == f.initial);
                *(int32_t *)at = (int32_t)f.maximum + 1;
            } else {
                continue;
            }
            assert_refused(moedi_options_read(ids[i], given, out), MOED_E_RANGE, f.name);
            assert_ok(moed_options_init(ids[i], given, size));
        }
        ((uint32_t *)(void *)given)[1] = 0x40000000;
        assert_refused(moedi_options_read(ids[i], given, out), MOED_E_STRUCT, "flags holds 0x40000000");
    }
    assert_true(fields > 60);
}

static void a_struct_of_another_size_is_taken_only_when_nothing_is_lost(void **state)
{
    (void)state;
    struct {
        moed_kmeans_options o;
        uint64_t newer;
    } big;
    moed_kmeans_options out;
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &big, sizeof big));
    assert_int_equal(big.o.struct_size, sizeof big);
    assert_ok(moedi_options_read(MOED_STRUCT_KMEANS_OPTIONS, &big, &out));
    big.newer = 1;
    assert_refused(moedi_options_read(MOED_STRUCT_KMEANS_OPTIONS, &big, &out), MOED_E_STRUCT, "older than the caller");
    big.o.struct_size = 0;
    assert_refused(moedi_options_read(MOED_STRUCT_KMEANS_OPTIONS, &big, &out), MOED_E_STRUCT, "moed_options_init");
    assert_refused(moed_options_init(9999, &big, sizeof big), MOED_E_ARGUMENT, "9999");

    /* an older caller: imbalance is 0, as before there was one, not its default; what lies behind the struct is not read */
    const size_t older = offsetof(moed_kmeans_options, imbalance);
    memset(&big, 0xFF, sizeof big);
    assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &big, older));
    assert_int_equal(big.newer, UINT64_MAX);
    assert_ok(moedi_options_read(MOED_STRUCT_KMEANS_OPTIONS, &big, &out));
    assert_true(out.imbalance == 0 && out.tolerance == 1e-4 && out.struct_size == sizeof out);
    big.o.struct_size = (uint32_t)older + 4;
    assert_refused(moedi_options_read(MOED_STRUCT_KMEANS_OPTIONS, &big, &out), MOED_E_STRUCT, "imbalance in two");
    assert_int_equal(moed_struct_size(MOED_STRUCT_TENSOR), sizeof(moed_tensor));
    assert_int_equal(moed_struct_size(9999), 0);
    moed_field f;
    memset(&f, 0xff, sizeof f); /* memory that nobody set is not cleared up to its "size" */
    assert_refused(moed_options_field(MOED_STRUCT_KMEANS_OPTIONS, 0, &f), MOED_E_STRUCT, "struct_size is 4294967295");
}

/* ---- memory ---- */

typedef struct counter {
    atomic_long held, calls;
} counter;
static void *counted_alloc(size_t size, size_t alignment, void *user)
{
    counter *n = user;
    atomic_fetch_add(&n->held, (long)size), atomic_fetch_add(&n->calls, 1);
    return aligned_alloc(alignment, size);
}
static void counted_free(void *memory, size_t size, void *user)
{
    atomic_fetch_sub(&((counter *)user)->held, (long)size);
    free(memory);
}

static void memory_comes_from_the_callers_allocator_is_counted_and_limited(void **state)
{
    (void)state;
    counter n = {0};
    moed_context *c;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.alloc = counted_alloc, o.free = counted_free, o.alloc_user = &n, o.host_limit = 1 << 20;
    assert_ok(moed_context_create(&c, &o));
    void *a = NULL, *b = NULL;
    assert_ok(moedi_alloc(c, 500000, &a));
    assert_int_equal((uintptr_t)a % 64, 0);
    assert_true(n.held >= 500000);
    assert_refused(moedi_alloc(c, 600000, &b), MOED_E_LIMIT, "1048576");
    assert_refused(moedi_alloc_array(c, INT64_MAX / 2, 16, &b), MOED_E_MEMORY, "more than a machine holds");
    moed_context_info info = {.struct_size = sizeof info};
    assert_ok(moed_context_get_info(c, &info));
    assert_true(info.host_in_use == n.held && info.host_peak >= info.host_in_use);
    int32_t *list = NULL;
    assert_ok(moedi_realloc_array(c, 3, sizeof *list, (void **)&list));
    list[2] = 7;
    assert_ok(moedi_realloc_array(c, 100, sizeof *list, (void **)&list));
    assert_true(list[2] == 7 && list[3] == 0 && list[99] == 0);
    moedi_free(c, list);
    moedi_free(c, a);
    moed_context_destroy(c);
    assert_int_equal(n.held, 0);
    assert_true(n.calls >= 3);
    o.free = NULL;
    assert_refused(moed_context_create(&c, &o), MOED_E_ARGUMENT, "together");
}

/* ---- threads ---- */

static void mark(void *argument, int64_t i)
{
    atomic_fetch_add(&((atomic_int *)argument)[i], 1);
}

static moed_status odd_fails(void *argument, int64_t i)
{
    (void)argument;
    return i % 2 ? moedi_fail(MOED_E_FORMAT, "item %lld", (long long)i) : MOED_OK;
}

static void parallel_runs_every_index_once_and_carries_the_first_error(void **state)
{
    (void)state;
    for (int32_t threads = 1; threads <= 5; threads++) {
        moed_context *c = support_context("reference", threads);
        static atomic_int marks[1000];
        for (int round = 1; round <= 200; round++) {
            moedi_parallel(c, 1 + round % 3 * 499, mark, marks);
        }
        for (int i = 1; i < 500; i++) assert_int_equal(marks[i], marks[1]);
        assert_int_equal(marks[0] - marks[1], 66);
        memset((void *)marks, 0, sizeof marks);
        assert_refused(moedi_parallel_try(c, 500, odd_fails, NULL), MOED_E_FORMAT, "item 1");
        moed_context_destroy(c);
    }
}

typedef struct nest {
    moed_context *context;
    atomic_int *marks;
} nest;
static void inner(void *argument, int64_t i)
{
    nest *n = argument;
    (void)i;
    moedi_parallel(n->context, 10, mark, n->marks);
}
static void *from_thread(void *argument)
{
    nest *n = argument;
    for (int i = 0; i < 50; i++) moedi_parallel(n->context, 8, inner, n);
    return NULL;
}

static void nested_and_concurrent_parallel_calls_finish(void **state)
{
    (void)state;
    atomic_int marks[10] = {0};
    nest n = {support_context("reference", 3), marks};
    pthread_t t[3];
    for (int i = 0; i < 3; i++) assert_int_equal(pthread_create(&t[i], NULL, from_thread, &n), 0);
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    for (int i = 0; i < 10; i++) assert_int_equal(marks[i], 3 * 50 * 8);
    moed_context_destroy(n.context);
}

static void backwards(int64_t count, moed_task_fn task, void *argument, void *user)
{
    ++*(int *)user;
    while (count-- > 0) task(argument, count);
}

static void the_callers_executor_does_the_work(void **state)
{
    (void)state;
    int calls = 0;
    atomic_int marks[50] = {0};
    moed_context *c;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.executor = backwards, o.executor_user = &calls;
    assert_ok(moed_context_create(&c, &o));
    moedi_parallel(c, 50, mark, marks);
    assert_int_equal(calls, 1);
    for (int i = 0; i < 50; i++) assert_int_equal(marks[i], 1);
    nest n = {c, marks};
    moedi_parallel(c, 8, inner, &n);
    assert_int_equal(calls, 2); /* never called from inside a task */
    for (int i = 0; i < 10; i++) assert_int_equal(marks[i], 9);
    moed_context_destroy(c);
}

typedef struct roundings {
    moed_context *context;
    atomic_int modes[64];
} roundings;
static void note_rounding(void *argument, int64_t i)
{
    roundings *r = argument;
    atomic_store(&r->modes[i], fegetround());
    if (i < 8) usleep(1000); /* so that every thread gets some */
}
static void note_nested(void *argument, int64_t i)
{
    roundings *r = argument;
    atomic_int marks[4] = {0};
    moedi_parallel(r->context, 4, mark, marks);
    atomic_store(&r->modes[i], marks[3]);
}
static void elsewhere(int64_t count, moed_task_fn task, void *argument, void *user)
{
    const int before = fegetround();
    ++*(int *)user;
    fesetround(FE_TONEAREST);
    while (count-- > 0) task(argument, count);
    if (fegetround() != FE_TONEAREST) *(int *)user = -1000;
    fesetround(before);
}

static void every_thread_rounds_as_the_one_that_calls(void **state)
{
    (void)state;
    static const int modes[] = {FE_TONEAREST, FE_TOWARDZERO, FE_UPWARD};
    int calls = 0;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV;
    for (int own = 0; own < 2; own++) {
        roundings r = {0};
        o.threads = 3;
        if (own) o.executor = elsewhere, o.executor_user = &calls;
        assert_ok(moed_context_create(&r.context, &o));
        for (size_t m = 0; m < sizeof modes / sizeof *modes; m++) {
            fesetround(modes[m]);
            moedi_parallel(r.context, 64, note_rounding, &r);
            const int after = fegetround();
            fesetround(FE_TONEAREST);
            assert_int_equal(after, modes[m]);
            for (int i = 0; i < 64; i++) assert_int_equal(r.modes[i], modes[m]);
        }
        if (own) assert_int_equal(calls, 3);
        moedi_parallel(r.context, 8, note_nested, &r);
        if (own) assert_int_equal(calls, 4); /* never called from inside a task */
        moed_context_destroy(r.context);
    }
}

static int thread_count(void)
{
    int n = 0;
    FILE *f = fopen("/proc/self/status", "r");
    char line[256];
    while (fgets(line, sizeof line, f)) sscanf(line, "Threads: %d", &n);
    fclose(f);
    return n;
}

/* A thread that has been joined is counted by the kernel until it has gone quite: not for long. */
static int thread_count_settles_at(int expected)
{
    for (int i = 0; i < 1000 && thread_count() != expected; i++) usleep(1000);
    return thread_count();
}

static void threads_start_with_work_and_end_with_the_context(void **state)
{
    (void)state;
    static atomic_int marks[100];
    const int before = thread_count();
    moed_context *c = support_context("reference", 4);
    assert_int_equal(thread_count(), before);
    moedi_parallel(c, 100, mark, marks);
    assert_int_equal(thread_count(), before + 3);
    moed_context_destroy(c);
    assert_int_equal(thread_count_settles_at(before), before);
}

static void after_fork_old_handles_return_a_status(void **state)
{
    (void)state;
    static atomic_int marks[100];
    moed_context *c = support_context("reference", 3);
    moedi_parallel(c, 100, mark, marks);
    const pid_t child = fork();
    if (child == 0) {
        const int refused = moedi_context_check(c) == MOED_E_FORKED && strstr(moed_last_error(), "fork");
        moed_context_destroy(c); /* must not wait for threads that are not here */
        _exit(refused ? 0 : 1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_ok(moedi_context_check(c));
    moed_context_destroy(c);
}

static void cancel_is_seen(void **state)
{
    (void)state;
    moed_cancel *k;
    assert_ok(moed_cancel_create(&k));
    assert_ok(moedi_cancel_check(k));
    assert_ok(moedi_cancel_check(NULL));
    moed_cancel_request(k);
    assert_refused(moedi_cancel_check(k), MOED_E_CANCELLED, "cancelled");
    moed_cancel_destroy(k);
}

/* ---- devices ---- */

static moed_device_info *find_device(moed_device_info *list, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (!strcmp(list[i].name, name)) return &list[i];
    return NULL;
}

static void plugins_are_found_and_bad_ones_listed_with_the_reason(void **state)
{
    (void)state;
    moed_device_info list[16];
    size_t count;
    char *dir = support_directory();
    support_write(support_path(dir, "libmoedisco-text.so"), "no object\n", 10);
    assert_ok(moed_device_list(list, 16, &count, dir));
    moed_device_info *d = find_device(list, count, "libmoedisco-text.so");
    assert_true(d && strlen(d->reason) > 0);
    assert_true(find_device(list, count, "cpu") == &list[0] && !*list[0].reason && list[0].memory > 0);
    support_remove(dir);

    assert_ok(moed_device_list(list, 16, &count, MOEDI_TEST_OUT "/tests/plugins/old"));
    d = find_device(list, count, "libmoedisco-test.so");
    assert_true(d && strstr(d->reason, "another version"));

    assert_ok(moed_device_list(list, 16, &count, MOEDI_TEST_OUT "/tests/plugins/fake"));
    assert_true(find_device(list, count, "fake:0") && !*find_device(list, count, "fake:0")->reason);
    assert_string_equal(find_device(list, count, "fake:1")->reason, "it is there to be refused");
    size_t again;
    assert_ok(moed_device_list(NULL, 0, &again, MOEDI_TEST_OUT "/tests/plugins/fake"));
    assert_int_equal(again, count);
    setenv("MOED_BACKEND_PATH", MOEDI_TEST_OUT "/tests/plugins/fake:" MOEDI_TEST_OUT "/tests/plugins/../plugins/fake", 1);
    assert_ok(moed_device_list(NULL, 0, &again, MOEDI_TEST_OUT "/tests/plugins/fake"));
    unsetenv("MOED_BACKEND_PATH");
    assert_int_equal(again, count); /* a folder is searched once, however often it is named */
}

static void collect(int32_t level, const char *line, void *user)
{
    (void)level;
    char *all = user;
    snprintf(all + strlen(all), 4096 - strlen(all), "%s\n", line);
}

static void a_device_is_chosen_by_name_or_automatically_and_the_choice_is_logged(void **state)
{
    (void)state;
    char log[4096] = "";
    moed_context *c;
    moed_context_options o;
    moed_context_info info = {.struct_size = sizeof info};
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV;
    o.plugin_dir = MOEDI_TEST_OUT "/tests/plugins/fake";
    o.log = collect, o.log_user = log;
    assert_ok(moed_context_create(&c, &o));
    assert_ok(moed_context_get_info(c, &info));
    assert_string_equal(info.device, "fake:0");
    assert_non_null(strstr(log, "device fake:0: the first usable device of a plug-in"));
    moed_context_destroy(c);
    o.plugin_dir = MOEDI_TEST_OUT "/tests/plugins/old";
    assert_ok(moed_context_create(&c, &o));
    assert_ok(moed_context_get_info(c, &info));
    assert_string_equal(info.device, "cpu");
    assert_non_null(strstr(log, "is not used: it was built for another version"));
    moed_context_destroy(c);
    o.plugin_dir = MOEDI_TEST_OUT "/tests/plugins/fake";
    o.device = "cpu";
    assert_ok(moed_context_create(&c, &o));
    assert_ok(moed_context_get_info(c, &info));
    assert_string_equal(info.device, "cpu");
    moed_context_destroy(c);
    o.device = "fake:1";
    assert_refused(moed_context_create(&c, &o), MOED_E_BACKEND, "it is there to be refused");
    o.device = "fake:7";
    assert_refused(moed_context_create(&c, &o), MOED_E_BACKEND, "fake:7");
    o.device = "cpu", o.kernels = "v9";
    assert_refused(moed_context_create(&c, &o), MOED_E_BACKEND, "v9");
}

static void a_fake_device_keeps_host_and_device_memory_apart(void **state)
{
    (void)state;
    moed_context *c;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.device = "fake:0", o.plugin_dir = MOEDI_TEST_OUT "/tests/plugins/fake";
    assert_ok(moed_context_create(&c, &o));
    moedi_engine e;
    assert_ok(moedi_engine_open(&e, c));
    float a[4] = {1, 2, 3, 4}, back[4];
    void *x;
    assert_ok(e.table->alloc(e.self, sizeof a, &x));
    assert_ok(e.table->upload(e.self, x, a, sizeof a));
    const moed_op_add good = {.out = x, .a = x, .b = x, .count = 4}, bad = {.out = x, .a = a, .b = x, .count = 4};
    assert_ok(e.table->add(e.self, &good));
    assert_refused(e.table->add(e.self, &bad), MOED_E_DEVICE, "host memory");
    assert_ok(e.table->download(e.self, back, x, sizeof back));
    assert_true(back[3] == 8);
    e.table->free(e.self, x);
    moedi_engine_close(&e);
    moed_context_destroy(c);
}

static void environment_is_read_only_when_allowed(void **state)
{
    (void)state;
    moed_context *c;
    moed_context_options o;
    moed_context_info info = {.struct_size = sizeof info};
    setenv("MOED_THREADS", "3", 1);
    setenv("MOED_KERNELS", "reference", 1);
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    assert_ok(moed_context_create(&c, &o));
    assert_ok(moed_context_get_info(c, &info));
    assert_int_equal(info.threads, 3);
    assert_string_equal(info.kernels, "reference");
    moed_context_destroy(c);
    setenv("MOED_THREADS", "three", 1);
    assert_refused(moed_context_create(&c, &o), MOED_E_RANGE, "MOED_THREADS is \"three\"");
    o.flags = MOED_CONTEXT_NO_ENV;
    assert_ok(moed_context_create(&c, &o));
    moed_context_destroy(c);
    unsetenv("MOED_THREADS");
    unsetenv("MOED_KERNELS");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_a_name_and_a_sentence),
        cmocka_unit_test(an_error_stays_one_line_and_goes_with_the_next_call),
        cmocka_unit_test(a_path_that_cannot_be_written_is_not_worth_another_try),
        cmocka_unit_test(every_options_field_starts_at_its_stated_default_and_is_checked),
        cmocka_unit_test(a_struct_of_another_size_is_taken_only_when_nothing_is_lost),
        cmocka_unit_test(memory_comes_from_the_callers_allocator_is_counted_and_limited),
        cmocka_unit_test(parallel_runs_every_index_once_and_carries_the_first_error),
        cmocka_unit_test(nested_and_concurrent_parallel_calls_finish),
        cmocka_unit_test(the_callers_executor_does_the_work),
        cmocka_unit_test(every_thread_rounds_as_the_one_that_calls),
        cmocka_unit_test(threads_start_with_work_and_end_with_the_context),
        cmocka_unit_test(after_fork_old_handles_return_a_status),
        cmocka_unit_test(cancel_is_seen),
        cmocka_unit_test(plugins_are_found_and_bad_ones_listed_with_the_reason),
        cmocka_unit_test(a_device_is_chosen_by_name_or_automatically_and_the_choice_is_logged),
        cmocka_unit_test(a_fake_device_keeps_host_and_device_memory_apart),
        cmocka_unit_test(environment_is_read_only_when_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
