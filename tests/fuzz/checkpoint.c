/* tests/fuzz/checkpoint.c - a checkpoint from a stranger: manifest.json, metrics.jsonl and the files that the manifest lists, the
 * library's own where a part is empty. An empty manifest is made to agree with the rest, so that damage gets past it. A refused
 * resume changes nothing; what is taken trains on. */
#include "fuzz.h"

#include "train/manifest.h"

static char run_dir[2048], step_dir[2100];
static moed_model *run_model;
static moed_corpus *run_corpus;
static moed_trainer *run_trainer; /* at step 0; NULL after one that was resumed */
static const char *const listed[] = {"state.json", "model/config.json", "model/model.safetensors", "optimizer.safetensors"};
enum { LISTED = 4 };
static fuzz_part good[LISTED], good_metrics;

static const char *step_file(const char *name)
{
    return support_path(step_dir, name);
}

static moed_trainer *fresh_trainer(void)
{
    moed_trainer *t = NULL;
    moed_train_options o = tiny_options(4);
    o.directory = run_dir, o.rows = 1, o.length = 4;
    assert_ok(moed_trainer_create(&t, fuzz_context, run_model, run_corpus, NULL, &o));
    return t;
}

static void make_run(void)
{
    snprintf(run_dir, sizeof run_dir, "%s/run", fuzz_dir);
    snprintf(step_dir, sizeof step_dir, "%s/checkpoints/step-1", run_dir);
    assert_int_equal(mkdir(run_dir, 0777), 0);
    run_model = tiny_model_of(fuzz_context, 4, 1, 2, TINY_VOCABULARY);
    run_corpus = tiny_corpus(fuzz_context, NULL);
    moed_trainer *t = fresh_trainer();
    assert_ok(moed_trainer_run(t, 1, NULL, NULL));
    assert_ok(moed_trainer_save(t));
    moed_trainer_destroy(t);
    for (int i = 0; i < LISTED; i++) good[i] = fuzz_read(step_file(listed[i]));
    good_metrics = fuzz_read(support_path(run_dir, "metrics.jsonl"));
}

static void lay_out(fuzz_part rest)
{
    const fuzz_part manifest = fuzz_take(&rest), metrics = fuzz_take(&rest);
    static int changed[LISTED];
    int written = 1; /* by the run before */
    fuzz_write(support_path(run_dir, "metrics.jsonl"), metrics, good_metrics, &written);
    for (int i = 0; i < LISTED; i++)
        fuzz_write(step_file(listed[i]), i + 1 < LISTED ? fuzz_take(&rest) : rest, good[i], &changed[i]);
    if (manifest.size) support_write(step_file("manifest.json"), manifest.data, manifest.size);
    else assert_ok(moedi_manifest_write(fuzz_context, step_dir, listed, LISTED));
}

FUZZ_TARGET(checkpoint)
{
    if (!run_model) {
        fuzz_begin();
        make_run();
    }
    if (!run_trainer) run_trainer = fresh_trainer();
    fuzz_begin();
    lay_out((fuzz_part){data, size});
    size_t count;
    float *before = model_numbers(run_model, &count);
    const moed_status status = moed_trainer_resume(run_trainer);
    if (status == MOED_OK) {
        const moed_status s = moed_trainer_run(run_trainer, 1, NULL, NULL);
        if (s != MOED_OK && s != MOED_E_STATE && s != MOED_E_NUMERIC && s != MOED_E_ARGUMENT && s != MOED_E_RANGE)
            fail_msg("after a resume: %s: %s", moed_status_name(s), moed_last_error());
        moed_trainer_destroy(run_trainer);
        run_trainer = fresh_trainer();
        free(before);
        return fuzz_end(MOED_OK, NULL);
    }
    char says[1024];
    snprintf(says, sizeof says, "%s", moed_last_error());
    float *after = model_numbers(run_model, &count);
    if (memcmp(before, after, count * sizeof *after) != 0) fail_msg("a refused resume (%s) changed the model", says);
    moed_trainer_info info = {.struct_size = sizeof info};
    assert_ok(moed_trainer_get_info(run_trainer, &info));
    assert_int_equal(info.step, 0);
    free(before);
    free(after);
    return fuzz_end(status, says);
}
