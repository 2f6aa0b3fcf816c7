/* Checkpoints: killed at any instant and resumed, a run ends with the bits of one that never was; damage falls back, strangers
 * are refused. */
#include "train_support.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "train/manifest.h"

enum { STEPS = 7, EVERY = 2 };

/* ---- a context whose allocations can be counted, and which can kill the process at one of them ---- */

static int64_t countdown = -1; /* allocations left to live; negative: immortal */
static int64_t shortage = -1;  /* allocations until one fails; negative: none does */

static void *counted_alloc(size_t size, size_t alignment, void *user)
{
    (void)user;
    if (countdown > 0 && --countdown == 0) raise(SIGKILL);
    if (shortage >= 0 && shortage-- == 0) return NULL;
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
static void counted_free(void *memory, size_t size, void *user)
{
    (void)size, (void)user;
    free(memory);
}

static char logged[8192];
static void keep_log(int32_t level, const char *line, void *user)
{
    (void)level, (void)user;
    const size_t used = strlen(logged);
    snprintf(logged + used, sizeof logged - used, "%s\n", line);
}

static moed_context *context_of(const char *kernels)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.kernels = kernels;
    o.alloc = counted_alloc, o.free = counted_free;
    o.log = keep_log, o.log_level = MOED_LOG_WARNING;
    assert_ok(moed_context_create(&c, &o));
    logged[0] = 0;
    return c;
}

/* ---- a run in a directory ---- */

static moed_train_options run_options(const char *dir, const moed_corpus *held_out)
{
    moed_train_options o = tiny_options(STEPS);
    o.micro_batches = 2;
    o.directory = dir;
    o.checkpoint_every = EVERY;
    o.keep = 3;
    o.held_out = held_out;
    o.evaluate_every = 3;
    o.evaluate_tokens = 100;
    return o;
}

typedef struct job {
    moed_context *context;
    moed_model *model;
    moed_corpus *corpus, *held_out;
    moed_trainer *trainer;
    moed_train_options options;
} job;

static job job_open(const char *dir, const char *kernels)
{
    static int64_t shift = 5;
    job j = {.context = context_of(kernels)};
    j.model = tiny_model(j.context);
    j.corpus = tiny_corpus(j.context, NULL);
    j.held_out = tiny_corpus(j.context, &shift);
    j.options = run_options(dir, j.held_out);
    return j;
}
static void job_create(job *j)
{
    assert_ok(moed_trainer_create(&j->trainer, j->context, j->model, j->corpus, NULL, &j->options));
}
static job job_start(const char *dir)
{
    job j = job_open(dir, "auto");
    job_create(&j);
    return j;
}
static void job_close(job *j)
{
    moed_trainer_destroy(j->trainer);
    moed_corpus_destroy(j->held_out);
    moed_corpus_destroy(j->corpus);
    moed_model_destroy(j->model);
    moed_context_destroy(j->context);
}
static moed_trainer_info job_info(const job *j)
{
    moed_trainer_info info = {.struct_size = sizeof info};
    assert_ok(moed_trainer_get_info(j->trainer, &info));
    return info;
}

static char *read_text(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    char *text = calloc(1, 1 << 20);
    const size_t n = fread(text, 1, (1 << 20) - 1, f);
    fclose(f);
    text[n] = 0;
    return text;
}

/* metrics.jsonl without what a clock measured; free() it */
static char *metrics_of(const char *dir)
{
    char *text = read_text(support_path(dir, "metrics.jsonl"));
    for (char *at = text; (at = strstr(at, "seconds\":"));) {
        char *value = at + 9;
        const size_t n = strcspn(value, ",}");
        memmove(value, value + n, strlen(value + n) + 1);
        at = value;
    }
    for (char *at = text; (at = strstr(at, "tokens_per_second\":"));) {
        char *value = at + 19;
        const size_t n = strcspn(value, ",}");
        memmove(value, value + n, strlen(value + n) + 1);
        at = value;
    }
    return text;
}
static int count_lines(const char *text)
{
    int lines = 0;
    for (; *text; text++) lines += *text == '\n';
    return lines;
}

static void assert_same_file(const char *a, const char *b, const char *name)
{
    char path[2][4300];
    size_t size[2];
    char *data[2];
    for (int i = 0; i < 2; i++) {
        snprintf(path[i], sizeof path[i], "%s/%s", i ? b : a, name);
        FILE *f = fopen(path[i], "rb");
        if (!f) fail_msg("cannot open %s", path[i]);
        data[i] = malloc(4 << 20);
        size[i] = fread(data[i], 1, 4 << 20, f);
        fclose(f);
    }
    if (size[0] != size[1] || memcmp(data[0], data[1], size[0]) != 0) fail_msg("%s and %s differ", path[0], path[1]);
    free(data[0]);
    free(data[1]);
}

static void assert_same_end(const char *a, const char *b)
{
    static const char *const files[] = {"model/config.json", "model/model.safetensors", "optimizer.safetensors", "state.json",
                                        "manifest.json"};
    char name[64];
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        snprintf(name, sizeof name, "checkpoints/step-%d/%s", STEPS, files[i]);
        assert_same_file(a, b, name);
    }
    char *x = metrics_of(a), *y = metrics_of(b);
    assert_string_equal(x, y);
    free(x);
    free(y);
}

/* The whole run in this process, by the command that also resumes. */
static void run_to_the_end(const char *dir)
{
    job j = job_start(dir);
    const moed_status status = moed_trainer_resume(j.trainer);
    if (status != MOED_E_NOT_FOUND) assert_ok(status);
    assert_ok(moed_trainer_run(j.trainer, 0, NULL, NULL));
    job_close(&j);
}

/* The same in a child that dies at the `allocations`-th allocation after `step` steps. 1 when it did. */
static int64_t arm_step, arm_allocations;
static int32_t arm(const moed_report *report, void *user)
{
    (void)user;
    if (report->step == arm_step) countdown = arm_allocations;
    if (report->step == arm_step && arm_allocations == 0) raise(SIGKILL);
    return 0;
}
static int run_and_die(const char *dir, int64_t step, int64_t allocations)
{
    const pid_t child = fork();
    if (child < 0) fail_msg("fork");
    if (child == 0) {
        arm_step = step, arm_allocations = allocations;
        moed_trainer *t = NULL;
        job j = job_open(dir, "auto");
        j.options.progress = arm;
        if (step == 0) countdown = allocations;
        if (moed_trainer_create(&t, j.context, j.model, j.corpus, NULL, &j.options) != MOED_OK) _exit(2);
        const moed_status status = moed_trainer_resume(t);
        if (status != MOED_OK && status != MOED_E_NOT_FOUND) _exit(3);
        _exit(moed_trainer_run(t, 0, NULL, NULL) == MOED_OK ? 0 : 4);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    if (WIFEXITED(status)) assert_int_equal(WEXITSTATUS(status), 0);
    else assert_int_equal(WTERMSIG(status), SIGKILL);
    return WIFSIGNALED(status);
}

/* ---- tests ---- */

/* A save that was under way leaves its unfinished directory. */
static int has_leftovers(const char *dir)
{
    char command[4300];
    snprintf(command, sizeof command, "ls '%s/checkpoints' 2>/dev/null | grep -q tmp", dir);
    return system(command) == 0;
}

static void killed_at_any_instant_and_resumed_ends_with_the_same_bits(void **state)
{
    (void)state;
    /* Allocations after step 3, whose next step saves: they are made all the way through a save. */
    static const int64_t moments[] = {0, 25, 50, 75, 100, 125, 150};
    char *whole = support_directory();
    int in_save = 0;
    run_to_the_end(whole);
    for (size_t i = 0; i < sizeof moments / sizeof moments[0]; i++) {
        char *dir = support_directory();
        if (run_and_die(dir, 3, moments[i])) in_save += has_leftovers(dir);
        run_to_the_end(dir);
        assert_same_end(whole, dir);
        support_remove(dir);
    }
    assert_true(in_save >= 3);
    support_remove(whole);
}

static void killed_again_and_again_it_still_gets_there(void **state)
{
    (void)state;
    char *whole = support_directory(), *dir = support_directory();
    run_to_the_end(whole);
    for (int64_t step = 1; step < STEPS; step += 2) run_and_die(dir, step, 60);
    run_and_die(dir, 6, 0);
    run_to_the_end(dir);
    assert_same_end(whole, dir);
    support_remove(dir);
    support_remove(whole);
}

static void flip(const char *dir, const char *name, long at)
{
    FILE *f = fopen(support_path(dir, name), "r+b");
    if (!f) fail_msg("cannot open %s", name);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    const int byte = fgetc(f);
    fseek(f, at, at < 0 ? SEEK_END : SEEK_SET);
    fputc(byte ^ 1, f);
    fclose(f);
}

static void a_damaged_newest_checkpoint_falls_back_to_the_one_before(void **state)
{
    (void)state;
    static const char *const damage[] = {
        "optimizer.safetensors", "model/model.safetensors", "state.json", "manifest.json", "cut", "gone"};
    char *whole = support_directory();
    run_to_the_end(whole);
    char *killed = support_directory();
    run_and_die(killed, 6, 0);
    for (size_t i = 0; i < sizeof damage / sizeof damage[0]; i++) {
        char *dir = support_directory(), newest[256], command[8600];
        snprintf(command, sizeof command, "cp -r '%s/.' '%s'", killed, dir);
        assert_int_equal(system(command), 0);
        if (snprintf(newest, sizeof newest, "%s/checkpoints/step-6", dir) >= (int)sizeof newest) fail_msg("TMPDIR is too long");
        if (strcmp(damage[i], "cut") == 0) assert_int_equal(truncate(support_path(newest, "optimizer.safetensors"), 1000), 0);
        else if (strcmp(damage[i], "gone") == 0) assert_int_equal(unlink(support_path(newest, "manifest.json")), 0);
        else flip(newest, damage[i], -40);
        job j = job_start(dir);
        assert_ok(moed_trainer_resume(j.trainer));
        const moed_trainer_info info = job_info(&j);
        assert_int_equal(info.step, 4);
        assert_non_null(strstr(info.resumed_from, "checkpoints/step-4"));
        assert_non_null(strstr(logged, "step-6"));
        char *metrics = metrics_of(dir);
        assert_null(strstr(metrics, "{\"step\":5,"));
        free(metrics);
        assert_ok(moed_trainer_run(j.trainer, 0, NULL, NULL));
        job_close(&j);
        assert_same_end(whole, dir);
        support_remove(dir);
    }
    support_remove(killed);
    support_remove(whole);
}

static void resume_finds_nothing_and_leaves_the_trainer_fresh(void **state)
{
    (void)state;
    char *dir = support_directory();
    job j = job_start(dir);
    assert_refused(moed_trainer_resume(j.trainer), MOED_E_NOT_FOUND, "there is no checkpoint");
    assert_ok(moed_trainer_run(j.trainer, 1, NULL, NULL));
    assert_string_equal(job_info(&j).resumed_from, "");
    assert_refused(moed_trainer_resume(j.trainer), MOED_E_STATE, "step 1 already");
    job_close(&j);
    support_remove(dir);
}

static void a_run_whose_checkpoints_are_all_damaged_is_not_started_over(void **state)
{
    (void)state;
    char *dir = support_directory();
    run_and_die(dir, 6, 0);
    for (int step = 1; step <= 6; step++) {
        char checkpoint[64];
        snprintf(checkpoint, sizeof checkpoint, "checkpoints/step-%d", step);
        if (access(support_path(dir, checkpoint), F_OK) == 0) flip(support_path(dir, checkpoint), "state.json", -40);
    }
    char *before = metrics_of(dir);
    job j = job_start(dir);
    assert_refused(moed_trainer_resume(j.trainer), MOED_E_CHECKSUM, "checkpoints is whole");
    assert_int_equal(moed_trainer_run(j.trainer, 1, NULL, NULL), MOED_E_EXISTS);
    job_close(&j);
    char *after = metrics_of(dir);
    assert_string_equal(before, after);
    free(before);
    free(after);
    support_remove(dir);
}

static void a_run_whose_checkpoints_are_out_of_reach_is_not_started_over(void **state)
{
    (void)state;
    char *dir = support_directory(), kept[4096], away[4096];
    run_and_die(dir, 6, 0);
    snprintf(kept, sizeof kept, "%s", support_path(dir, "checkpoints"));
    snprintf(away, sizeof away, "%s", support_path(dir, "away"));
    assert_int_equal(rename(kept, away), 0);
    assert_int_equal(symlink("nowhere", kept), 0);
    char *before = metrics_of(dir);
    job j = job_start(dir);
    assert_refused(moed_trainer_resume(j.trainer), MOED_E_IO, "none that can be reached");
    assert_int_equal(moed_trainer_run(j.trainer, 1, NULL, NULL), MOED_E_EXISTS);
    char *after = metrics_of(dir);
    assert_string_equal(before, after);
    assert_int_equal(unlink(kept), 0);
    assert_int_equal(symlink("away", kept), 0); /* it is back */
    assert_ok(moed_trainer_resume(j.trainer));
    job_close(&j);
    free(before);
    free(after);
    support_remove(dir);
}

static void another_runs_checkpoint_is_refused_by_name(void **state)
{
    (void)state;
    char *dir = support_directory();
    run_to_the_end(dir);
#define OTHER(words, ...)                                                              \
    do {                                                                               \
        job j = job_open(dir, "auto");                                                 \
        __VA_ARGS__;                                                                   \
        job_create(&j);                                                                \
        assert_refused(moed_trainer_resume(j.trainer), MOED_E_MISMATCH, words);        \
        assert_int_equal(job_info(&j).step, 0);                                        \
        moed_model *fresh = tiny_model(j.context);                                     \
        if (model_params(fresh) == model_params(j.model)) assert_same_models(j.model, fresh); \
        moed_model_destroy(fresh);                                                     \
        job_close(&j);                                                                 \
    } while (0)
    OTHER("learning_rate 0.01, this trainer has 0.02", j.options.learning_rate = 0.02);
    OTHER("seed \"0\", this trainer has \"9\"", j.options.seed = 9);
    OTHER("steps 7, this trainer has 8", j.options.steps = 8);
    OTHER("rows 4, this trainer has 2", j.options.rows = 2);
    OTHER("length 16, this trainer has 8", j.options.length = 8);
    OTHER("micro_batches 2, this trainer has 4", j.options.micro_batches = 4);
    OTHER("schedule 1, this trainer has 0", j.options.schedule = MOED_SCHEDULE_CONSTANT);
    OTHER("freeze \"\", this trainer has \"router\"", j.options.freeze = "router");
    OTHER("layout", moed_model_destroy(j.model), j.model = tiny_model_of(j.context, 16, 1, 4, TINY_VOCABULARY));
    static const int64_t some[] = {0, 1, 2, 3};
    OTHER("corpus view \"whole\"", moed_corpus *view = NULL; assert_ok(moed_corpus_subset(&view, j.corpus, some, 4));
          moed_corpus_destroy(j.corpus); j.corpus = view);
    static int64_t shift = 1;
    OTHER("corpus fingerprint", moed_corpus_destroy(j.corpus), j.corpus = tiny_corpus(j.context, &shift));
#undef OTHER
    char *text = read_text(support_path(dir, "metrics.jsonl"));
    assert_int_equal(count_lines(text), STEPS + 3); /* nothing was cut: steps, and evaluations at 3, 6 and 7 */
    free(text);
    support_remove(dir);
}

/* `steps` steps under a policy, after what is in dir where there is something; saved, and the numbers then. */
static float *go_on(const char *dir, int32_t policy, int64_t steps, int32_t *came_to, size_t *count)
{
    job j = job_open(dir, "auto");
    j.options.policy = policy;
    job_create(&j);
    const moed_status status = moed_trainer_resume(j.trainer);
    if (status != MOED_E_NOT_FOUND) assert_ok(status);
    assert_ok(moed_trainer_run(j.trainer, steps, NULL, NULL));
    assert_ok(moed_trainer_save(j.trainer));
    *came_to = job_info(&j).policy;
    float *numbers = model_numbers(j.model, count);
    job_close(&j);
    return numbers;
}

static void a_checkpoint_says_its_policy_and_goes_on_under_it_alone(void **state)
{
    (void)state;
    static const char *const words[3] = {NULL, "policy full, this trainer has lean", "policy lean, this trainer has full"};
    for (int32_t policy = MOED_POLICY_FULL; policy <= MOED_POLICY_LEAN; policy++) {
        char *dir = support_directory(), *whole = support_directory();
        int32_t came_to;
        size_t count;
        free(go_on(dir, policy, 4, &came_to, &count));
        assert_int_equal(came_to, policy);
        job other = job_open(dir, "auto");
        other.options.policy = MOED_POLICY_FULL + MOED_POLICY_LEAN - policy;
        job_create(&other);
        assert_refused(moed_trainer_resume(other.trainer), MOED_E_MISMATCH, words[policy]);
        assert_int_equal(job_info(&other).step, 0);
        job_close(&other);
        float *resumed = go_on(dir, MOED_POLICY_AUTO, 0, &came_to, &count), *at_once;
        assert_int_equal(came_to, policy); /* AUTO takes the checkpoint's */
        at_once = go_on(whole, policy, 0, &came_to, &count);
        assert_memory_equal(resumed, at_once, count * sizeof *resumed);
        free(resumed), free(at_once);
        support_remove(dir), support_remove(whole);
    }
}

/* The checkpoint's parts as its manifest lists them. */
static void write_manifest(const char *checkpoint)
{
    static const char *const listed[] = {"model/config.json", "model/model.safetensors", "optimizer.safetensors", "state.json"};
    moed_context *c = support_context("reference", 1);
    assert_ok(moedi_manifest_write(c, checkpoint, listed, 4));
    support_close(c);
}

/* Not even the policy that AUTO came to. */
static void a_checkpoint_that_lacks_something_changes_nothing(void **state)
{
    (void)state;
    static const char *const files[] = {"checkpoints/step-4/optimizer.safetensors", "checkpoints/step-4/model/model.safetensors"};
    static const char *const words[] = {"lacks m.", "is missing"};
    static const char empty[] = "\2\0\0\0\0\0\0\0{}";
    for (int i = 0; i < 2; i++) {
        char *dir = support_directory();
        int32_t came_to;
        size_t count;
        free(go_on(dir, MOED_POLICY_LEAN, 4, &came_to, &count));
        support_write(support_path(dir, files[i]), empty, sizeof empty - 1);
        write_manifest(support_path(dir, "checkpoints/step-4"));
        job j = job_open(dir, "auto");
        job_create(&j);
        float *before = model_numbers(j.model, &count);
        assert_refused(moed_trainer_resume(j.trainer), MOED_E_MISMATCH, words[i]);
        assert_int_equal(job_info(&j).policy, MOED_POLICY_FULL);
        assert_int_equal(job_info(&j).step, 0);
        float *after = model_numbers(j.model, &count);
        assert_memory_equal(before, after, count * sizeof *before);
        moed_report r = empty_report();
        assert_ok(moed_trainer_evaluate(j.trainer, j.corpus, 0, &r, NULL)); /* and the trainer can be used */
        free(before), free(after);
        job_close(&j);
        support_remove(dir);
    }
}

/* Writes `digit` as the format of a checkpoint's file, and a manifest that agrees unless it is the manifest's own. */
static void set_format(const char *checkpoint, const char *file, char digit)
{
    char command[4600];
    snprintf(command, sizeof command, "sed -i 's/\"format\": [0-9]/\"format\": %c/' '%s/%s'", digit, checkpoint, file);
    assert_int_equal(system(command), 0);
    if (strcmp(file, "manifest.json") != 0) write_manifest(checkpoint);
}

static void a_checkpoint_of_another_version_is_refused_and_kept(void **state)
{
    (void)state;
    static const struct {
        const char *file;
        char digit;
        const char *words;
    } other[] = {
        {"state.json", '1', "state.json: format 1 is of another version of the library; this one reads format 2"},
        {"state.json", '9', "format 9 is of another version"},
        {"manifest.json", '9', "manifest.json: format 9 is of another version"},
    };
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        char *dir = support_directory();
        run_and_die(dir, 6, 0);
        char newest[4200];
        snprintf(newest, sizeof newest, "%s", support_path(dir, "checkpoints/step-6"));
        set_format(newest, other[i].file, other[i].digit);
        job j = job_start(dir);
        assert_refused(moed_trainer_resume(j.trainer), MOED_E_UNSUPPORTED, other[i].words);
        assert_int_equal(job_info(&j).step, 0);
        assert_int_equal(moed_trainer_run(j.trainer, 1, NULL, NULL), MOED_E_EXISTS); /* nor is it written over */
        assert_int_equal(access(newest, F_OK), 0);
        job_close(&j);
        support_remove(dir);
    }
}

static void an_option_that_a_checkpoint_does_not_know_was_as_before_there_was_one(void **state)
{
    (void)state;
    char *dir = support_directory(), checkpoint[4200], command[4600];
    run_and_die(dir, 6, 0);
    snprintf(checkpoint, sizeof checkpoint, "%s", support_path(dir, "checkpoints/step-6"));
    snprintf(command, sizeof command, "sed -i '/\"balance_each\"/d; s/\"balance_boost\"/\"from later on\"/' '%s/state.json'",
             checkpoint);
    assert_int_equal(system(command), 0);
    write_manifest(checkpoint);
    job j = job_open(dir, "auto");
    job_create(&j); /* with today's default, which is another */
    assert_refused(moed_trainer_resume(j.trainer), MOED_E_MISMATCH, "made with balance_boost 0, this trainer has 10");
    job_close(&j);
    j = job_open(dir, "auto");
    j.options.balance_boost = 0;
    job_create(&j);
    assert_ok(moed_trainer_resume(j.trainer));
    assert_int_equal(job_info(&j).step, 6);
    job_close(&j);
    support_remove(dir);
}

static void what_is_only_watched_may_change_between_runs(void **state)
{
    (void)state;
    char *dir = support_directory();
    run_and_die(dir, 4, 0);
    job j = job_open(dir, "auto");
    j.options.keep = 1, j.options.checkpoint_every = 1, j.options.evaluate_every = 0, j.options.held_out = NULL;
    job_create(&j);
    assert_ok(moed_trainer_resume(j.trainer));
    assert_ok(moed_trainer_run(j.trainer, 0, NULL, NULL));
    assert_true(access(support_path(dir, "checkpoints/step-7/manifest.json"), F_OK) == 0);
    assert_true(access(support_path(dir, "checkpoints/step-6"), F_OK) != 0);
    job_close(&j);
    support_remove(dir);
}

static void the_newest_are_kept_and_leftovers_go(void **state)
{
    (void)state;
    char *dir = support_directory();
    assert_int_equal(mkdir(support_path(dir, "checkpoints"), 0777), 0);
    assert_int_equal(mkdir(support_path(dir, "checkpoints/step-2.tmp-1-0"), 0777), 0);
    assert_int_equal(mkdir(support_path(dir, "checkpoints/notes"), 0777), 0);
    job j = job_open(dir, "auto");
    j.options.keep = 2, j.options.checkpoint_every = 1;
    job_create(&j);
    assert_ok(moed_trainer_run(j.trainer, 5, NULL, NULL));
    static const struct { const char *name; int there; } cases[] = {
        {"checkpoints/step-5", 1}, {"checkpoints/step-4", 1}, {"checkpoints/step-3", 0}, {"checkpoints/step-1", 0},
        {"checkpoints/step-2.tmp-1-0", 0}, {"checkpoints/notes", 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        if ((access(support_path(dir, cases[i].name), F_OK) == 0) != cases[i].there) fail_msg("%s", cases[i].name);
    job_close(&j);
    support_remove(dir);
}

static void a_directory_with_a_run_is_refused_unless_resumed(void **state)
{
    (void)state;
    char *dir = support_directory();
    run_to_the_end(dir);
    char *before = read_text(support_path(dir, "metrics.jsonl"));
    job j = job_start(dir);
    assert_refused(moed_trainer_run(j.trainer, 0, NULL, NULL), MOED_E_EXISTS, "resume it, or choose another directory");
    assert_refused(moed_trainer_forward_backward(j.trainer, NULL, NULL), MOED_E_EXISTS, dir);
    assert_refused(moed_trainer_save(j.trainer), MOED_E_EXISTS, dir);
    char *after = read_text(support_path(dir, "metrics.jsonl"));
    assert_string_equal(before, after);
    assert_ok(moed_trainer_resume(j.trainer)); /* a finished run resumes to its end, and has nothing left to do */
    assert_ok(moed_trainer_run(j.trainer, 0, NULL, NULL));
    assert_int_equal(job_info(&j).step, STEPS);
    job_close(&j);
    free(before);
    free(after);
    support_remove(dir);
}

static void two_trainers_cannot_write_to_one_directory(void **state)
{
    (void)state;
    char *dir = support_directory();
    job a = job_start(dir), b = job_start(dir);
    assert_ok(moed_trainer_run(a.trainer, 1, NULL, NULL));
    assert_refused(moed_trainer_run(b.trainer, 1, NULL, NULL), MOED_E_STATE, "another trainer");
    job_close(&a);
    job_close(&b);
    support_remove(dir);
}

static void a_torn_line_of_metrics_goes_on_resume(void **state)
{
    (void)state;
    char *whole = support_directory(), *dir = support_directory();
    run_to_the_end(whole);
    run_and_die(dir, 4, 0);
    FILE *f = fopen(support_path(dir, "metrics.jsonl"), "ab");
    fputs("{\"step\":5,\"loss\":3.", f);
    fclose(f);
    run_to_the_end(dir);
    assert_same_end(whole, dir);
    support_remove(dir);
    support_remove(whole);
}

static void a_damaged_line_of_metrics_costs_no_other_on_resume(void **state)
{
    (void)state;
    char *dir = support_directory();
    job j = job_start(dir);
    assert_ok(moed_trainer_run(j.trainer, 4, NULL, NULL));
    assert_ok(moed_trainer_save(j.trainer));
    job_close(&j);
    char *text = read_text(support_path(dir, "metrics.jsonl")), *second = strchr(text, '\n') + 1;
    const int before = count_lines(text);
    memset(second, 'x', 20);
    support_write(support_path(dir, "metrics.jsonl"), text, strlen(text));
    free(text);
    j = job_start(dir);
    assert_ok(moed_trainer_resume(j.trainer));
    assert_ok(moed_trainer_run(j.trainer, 1, NULL, NULL));
    job_close(&j);
    text = read_text(support_path(dir, "metrics.jsonl"));
    assert_int_equal(count_lines(text), before + 1);
    assert_non_null(strstr(text, "\nxxxxx"));
    free(text);
    support_remove(dir);
}

static void metrics_have_a_line_per_step_and_evaluation(void **state)
{
    (void)state;
    char *dir = support_directory();
    run_to_the_end(dir);
    char *text = read_text(support_path(dir, "metrics.jsonl"));
    static const char *const words[] = {"{\"step\":1,\"tokens\":64,\"loss\":", "\"load_balance\":", "\"z_loss\":",
                                        "\"gradient_norm\":", "\"learning_rate\":", "\"max_load\":", "\"seconds\":",
                                        "\"tokens_per_second\":", "{\"step\":3,\"held_out_loss\":", "\"perplexity\":",
                                        "{\"step\":7,\"held_out_loss\":"};
    for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
        if (!strstr(text, words[i])) fail_msg("no %s in %s", words[i], text);
    assert_int_equal(count_lines(text), STEPS + 3);
    free(text);
    support_remove(dir);
}

static void the_best_held_out_loss_survives_a_resume(void **state)
{
    (void)state;
    char *dir = support_directory();
    job j = job_start(dir);
    assert_ok(moed_trainer_run(j.trainer, 4, NULL, NULL));
    const double best = job_info(&j).best_held_out;
    assert_true(best > 0);
    job_close(&j);
    j = job_start(dir);
    assert_ok(moed_trainer_resume(j.trainer));
    assert_true(job_info(&j).best_held_out == best);
    job_close(&j);
    support_remove(dir);
}

static void an_evaluation_that_was_due_is_made_up_for_after_a_resume(void **state)
{
    (void)state;
    char *dir = support_directory();
    job j = job_open(dir, "auto");
    j.options.held_out = NULL, j.options.evaluate_every = 0;
    job_create(&j);
    assert_ok(moed_trainer_run(j.trainer, 3, NULL, NULL));
    assert_ok(moed_trainer_save(j.trainer));
    job_close(&j);
    run_to_the_end(dir); /* evaluates every 3 steps */
    char *text = read_text(support_path(dir, "metrics.jsonl"));
    const char *evaluated = strstr(text, "{\"step\":3,\"held_out_loss\""), *next = strstr(text, "{\"step\":4,");
    assert_true(evaluated && next && evaluated < next);
    assert_int_equal(count_lines(text), STEPS + 3);
    free(text);
    support_remove(dir);
}

static void a_nan_keeps_the_last_good_checkpoint(void **state)
{
    (void)state;
    char *dir = support_directory(), *whole = support_directory();
    run_to_the_end(whole);
    job j = job_start(dir);
    assert_ok(moed_trainer_run(j.trainer, 5, NULL, NULL));
    moed_tensor norm = model_tensor(j.model, model_find(j.model, "model.layers.0.input_layernorm.weight"));
    ((float *)norm.data)[0] = NAN;
    assert_refused(moed_trainer_run(j.trainer, 0, NULL, NULL), MOED_E_NUMERIC, "step 6");
    assert_true(access(support_path(dir, "checkpoints/step-4/manifest.json"), F_OK) == 0);
    job_close(&j);
    run_to_the_end(dir);
    assert_same_end(whole, dir);
    support_remove(dir);
    support_remove(whole);
}

static void a_checkpoint_is_exact_in_double_too_and_its_model_opens(void **state)
{
    (void)state;
    char *dir = support_directory();
    job a = job_open(dir, "double"), b = job_open(dir, "double");
    job_create(&a);
    assert_ok(moed_trainer_run(a.trainer, 4, NULL, NULL));
    moed_trainer_destroy(a.trainer);
    a.trainer = NULL;
    job_create(&b);
    assert_ok(moed_trainer_resume(b.trainer));
    moed_model *opened = NULL;
    assert_ok(moed_model_open(&opened, b.context, support_path(dir, "checkpoints/step-4/model"), NULL));
    for (size_t i = 0; i < model_params(a.model); i++) {
        const moed_tensor x = model_tensor(a.model, i), y = model_tensor(b.model, i), z = model_tensor(opened, i);
        assert_int_equal(x.dtype, MOED_DTYPE_F64);
        assert_memory_equal(x.data, y.data, tensor_bytes(&x));
        assert_memory_equal(x.data, z.data, tensor_bytes(&x));
    }
    moed_model_destroy(opened);
    job_close(&a);
    job_close(&b);
    support_remove(dir);
}

static void saving_between_the_halves_of_a_step_is_refused(void **state)
{
    (void)state;
    char *dir = support_directory();
    job j = job_start(dir);
    assert_ok(moed_trainer_forward_backward(j.trainer, NULL, NULL));
    assert_refused(moed_trainer_save(j.trainer), MOED_E_STATE, "wait for moed_trainer_update");
    assert_ok(moed_trainer_update(j.trainer, 1.0, NULL));
    assert_ok(moed_trainer_save(j.trainer));
    assert_ok(moed_trainer_save(j.trainer));
    job_close(&j);
    rig r;
    const moed_train_options o = tiny_options(2);
    r = rig_open(&o, 1);
    assert_refused(moed_trainer_save(r.trainer), MOED_E_STATE, "nowhere to save");
    assert_refused(moed_trainer_resume(r.trainer), MOED_E_STATE, "nothing to resume");
    rig_close(&r);
    support_remove(dir);
}

/* A limit on file sizes stands in for a full disk. */
static void a_save_that_cannot_be_written_leaves_nothing_and_the_run_can_be_resumed(void **state)
{
    (void)state;
    char *whole = support_directory(), *dir = support_directory();
    run_to_the_end(whole);
    const pid_t child = fork();
    if (child < 0) fail_msg("fork");
    if (child == 0) {
        const struct rlimit limit = {20000, 20000};
        signal(SIGXFSZ, SIG_IGN);
        job j = job_start(dir);
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0) _exit(2);
        const moed_status status = moed_trainer_run(j.trainer, 0, NULL, NULL);
        if (status != MOED_E_IO && status != MOED_E_SPACE) _exit(3);
        if (!strstr(moed_last_error(), "model.safetensors")) _exit(4);
        if (job_info(&j).step != EVERY) _exit(5);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_false(has_leftovers(dir));
    assert_true(access(support_path(dir, "checkpoints/step-2"), F_OK) != 0);
    run_to_the_end(dir);
    assert_same_end(whole, dir);
    support_remove(dir);
    support_remove(whole);
}

/* Every allocation fails in turn: a status, no crash, no leak, and the trainer can be destroyed. */
static void running_out_of_memory_at_any_allocation_is_a_status(void **state)
{
    (void)state;
    char *made = support_directory();
    run_to_the_end(made);
    job j = job_open(made, "auto");
    moed_context_info before = {.struct_size = sizeof before}, after = before;
    assert_ok(moed_context_get_info(j.context, &before));
    int failures = 0, done = 0;
    for (int64_t at = 0; !done; at += 1 + at / 40) {
        moed_trainer *t = NULL;
        shortage = at;
        moed_status status = moed_trainer_create(&t, j.context, j.model, j.corpus, NULL, &j.options);
        if (status == MOED_OK) status = moed_trainer_resume(t);
        if (status == MOED_OK)
            status = moed_trainer_evaluate(t, j.corpus, 20, &(moed_report){.struct_size = sizeof(moed_report)}, NULL);
        done = shortage >= 0;
        shortage = -1;
        if (status != MOED_OK && status != MOED_E_MEMORY) fail_msg("allocation %d: %s", (int)at, moed_last_error());
        assert_true(!done || status == MOED_OK); /* tidying up may go without */
        failures += status != MOED_OK;
        moed_trainer_destroy(t);
        assert_ok(moed_context_get_info(j.context, &after));
        assert_int_equal(before.host_in_use, after.host_in_use);
    }
    assert_true(failures > 20);
    job_close(&j);
    support_remove(made);
}

/* The same inside a save: the run stops, the checkpoint before is still the newest whole one. */
static void running_out_of_memory_in_a_save_leaves_the_checkpoint_before(void **state)
{
    (void)state;
    char *dir = support_directory();
    job j = job_start(dir);
    assert_ok(moed_trainer_run(j.trainer, 3, NULL, NULL));
    int failures = 0;
    for (int64_t at = 0; at < 10000; at += 3) {
        shortage = at;
        const moed_status status = moed_trainer_save(j.trainer);
        shortage = -1;
        if (status == MOED_OK) break;
        assert_int_equal(status, MOED_E_MEMORY);
        failures++;
        assert_true(access(support_path(dir, "checkpoints/step-3"), F_OK) != 0);
        assert_true(access(support_path(dir, "checkpoints/step-2/manifest.json"), F_OK) == 0);
        assert_false(has_leftovers(dir));
    }
    assert_true(failures > 5);
    assert_true(access(support_path(dir, "checkpoints/step-3/manifest.json"), F_OK) == 0);
    job_close(&j);
    support_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(killed_at_any_instant_and_resumed_ends_with_the_same_bits),
        cmocka_unit_test(killed_again_and_again_it_still_gets_there),
        cmocka_unit_test(a_damaged_newest_checkpoint_falls_back_to_the_one_before),
        cmocka_unit_test(resume_finds_nothing_and_leaves_the_trainer_fresh),
        cmocka_unit_test(a_run_whose_checkpoints_are_all_damaged_is_not_started_over),
        cmocka_unit_test(a_run_whose_checkpoints_are_out_of_reach_is_not_started_over),
        cmocka_unit_test(another_runs_checkpoint_is_refused_by_name),
        cmocka_unit_test(a_checkpoint_says_its_policy_and_goes_on_under_it_alone),
        cmocka_unit_test(a_checkpoint_that_lacks_something_changes_nothing),
        cmocka_unit_test(a_checkpoint_of_another_version_is_refused_and_kept),
        cmocka_unit_test(an_option_that_a_checkpoint_does_not_know_was_as_before_there_was_one),
        cmocka_unit_test(what_is_only_watched_may_change_between_runs),
        cmocka_unit_test(the_newest_are_kept_and_leftovers_go),
        cmocka_unit_test(a_directory_with_a_run_is_refused_unless_resumed),
        cmocka_unit_test(two_trainers_cannot_write_to_one_directory),
        cmocka_unit_test(a_torn_line_of_metrics_goes_on_resume),
        cmocka_unit_test(a_damaged_line_of_metrics_costs_no_other_on_resume),
        cmocka_unit_test(metrics_have_a_line_per_step_and_evaluation),
        cmocka_unit_test(the_best_held_out_loss_survives_a_resume),
        cmocka_unit_test(an_evaluation_that_was_due_is_made_up_for_after_a_resume),
        cmocka_unit_test(a_nan_keeps_the_last_good_checkpoint),
        cmocka_unit_test(a_checkpoint_is_exact_in_double_too_and_its_model_opens),
        cmocka_unit_test(a_save_that_cannot_be_written_leaves_nothing_and_the_run_can_be_resumed),
        cmocka_unit_test(running_out_of_memory_at_any_allocation_is_a_status),
        cmocka_unit_test(running_out_of_memory_in_a_save_leaves_the_checkpoint_before),
        cmocka_unit_test(saving_between_the_halves_of_a_step_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
