/* tests/gpu/test_lost.c - a device that is lost in the middle of a run: told in a sentence, the last checkpoint is whole, and
 * another process goes on from it to the same bits. Lost by what a caller can do: a tensor that lies nowhere. Each process is a
 * child of one that never touches the device. MOED_TEST_DEVICE names it (cuda:0). Run by `make check-gpu`. */
#include <sys/wait.h>

#include "train_support.h"

enum { STEPS = 6, STRUCK = 3, EVERY = 2 };

static const char *gpu(void)
{
    const char *named = getenv("MOED_TEST_DEVICE");
    return named ? named : "cuda:0";
}
static moed_status open_device(moed_context **out)
{
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.device = gpu(), o.kernels = "bf16";
    return moed_context_create(out, &o);
}
static rig rig_in(moed_context *c, const char *dir)
{
    rig r = {.context = c, .model = tiny_model_of(c, 64, 3, 4, TINY_VOCABULARY), .corpus = tiny_corpus(c, NULL)};
    moed_train_options o = tiny_options(STEPS);
    o.directory = dir, o.checkpoint_every = EVERY;
    assert_ok(moed_trainer_create(&r.trainer, c, r.model, r.corpus, NULL, &o));
    return r;
}
static rig rig_on_device(const char *dir)
{
    moed_context *c;
    assert_ok(open_device(&c));
    return rig_in(c, dir);
}

/* ---- what the processes do ---- */

static void run_whole(const char *dir)
{
    rig r = rig_on_device(dir);
    rig_run(&r, 0);
    assert_ok(moed_trainer_save(r.trainer));
    rig_close(&r);
}

/* Numbers are converted from and to addresses at which no device has memory. */
static moed_status strike(moed_context *c)
{
    moed_tensor from = support_tensor((void *)(uintptr_t)0x10000, MOED_DTYPE_F32, 4, 1024),
                to = support_tensor((void *)(uintptr_t)0x90000, MOED_DTYPE_BF16, 4, 1024);
    const moed_tensor *const sources[] = {&from};
    const moed_piece copy = {.op = MOED_PIECE_COPY, .count = 4, .scale = 1.0};
    from.device = to.device = MOED_MEMORY_DEVICE;
    return moed_piece_apply(c, &copy, 1, sources, &to, NULL);
}

static void run_struck(const char *dir)
{
    rig r = rig_on_device(dir);
    moed_context *another = NULL;
    rig_run(&r, STRUCK);
    assert_int_equal(strike(r.context), MOED_E_DEVICE);
    print_message("struck: %s\n", moed_last_error());
    assert_non_null(strstr(moed_last_error(), "lost to this process: a new one can resume from the last checkpoint"));
    assert_int_equal(moed_trainer_run(r.trainer, 1, NULL, NULL), MOED_E_DEVICE);
    print_message("the next step: %s\n", moed_last_error());
    assert_true(moed_trainer_run(r.trainer, 1, NULL, NULL) != MOED_OK);
    assert_true(moed_trainer_save(r.trainer) != MOED_OK);
    print_message("saving: %s\n", moed_last_error());
    assert_true(open_device(&another) != MOED_OK);
    print_message("opening it anew: %s\n", moed_last_error());
    assert_null(another);
    rig_close(&r);
}

static void run_resumed(const char *dir)
{
    rig r = rig_on_device(dir);
    assert_ok(moed_trainer_resume(r.trainer));
    assert_int_equal(rig_run(&r, 1).step, STRUCK / EVERY * EVERY + 1);
    rig_run(&r, 0);
    assert_ok(moed_trainer_save(r.trainer));
    rig_close(&r);
}

/* ---- processes ---- */

/* A child that fails an assertion goes on as a test that failed, and ends as a failed program. */
static void in_a_process(void (*work)(const char *), const char *dir)
{
    int status = -1;
    fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        work(dir);
        fflush(NULL);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

/* The weights that a checkpoint of the last step holds, read by the CPU. */
static float *numbers_of(const char *dir, size_t *count)
{
    rig r = rig_in(support_context("auto", 1), dir);
    assert_ok(moed_trainer_resume(r.trainer));
    float *numbers = model_numbers(r.model, count);
    rig_close(&r);
    return numbers;
}

static void a_lost_device_costs_the_steps_since_the_last_checkpoint(void **state)
{
    char *whole = support_directory(), *struck = support_directory();
    size_t count = 0, other = 1;
    (void)state;
    in_a_process(run_whole, whole);
    in_a_process(run_struck, struck);
    in_a_process(run_resumed, struck);
    float *a = numbers_of(whole, &count), *b = numbers_of(struck, &other);
    assert_int_equal(count, other);
    assert_memory_equal(a, b, count * sizeof *a);
    free(a), free(b);
    support_remove(whole), support_remove(struck);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_lost_device_costs_the_steps_since_the_last_checkpoint)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
