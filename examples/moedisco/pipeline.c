/* pipeline.c - a pipeline's settings, its directory, and what it opens. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "budget.h"
#include "expand.h"
#include "output.h"
#include "phases.h"
#include "report.h"
#include "settings.h"
#include "training.h"

static const moed_field WORK_FIELDS[] = {
    FIELD_TEXT_(pipeline, text, "folder, text file or .jsonl file that the run directory's corpus is built from"),
    FIELD_TEXT_(pipeline, corpus, "a corpus that is there already, instead of --text"),
    FIELD_TEXT_(pipeline, name, "the pipeline's folder in DIR, none = its kind"),
    FIELD_NUMBER(pipeline, held_out, 0, 0.0001, 0.9,
                 "share of the documents that no phase sees; all pipelines are compared on it"),
    {sizeof(moed_field), 0, "held_out_seed", "", "draws the held-out documents", MOED_FIELD_U64,
     offsetof(pipeline, held_out_seed), 0, 0, 0},
};
#define STEPS_MOST 1e15 /* also of all stages: what run.json says is read back as a flag */
static const moed_field STEP_FIELDS[] = {
    FIELD_INTEGER(pipeline, start_steps, 0, -1, 1e15,
                  "steps of the common start: one dense model on all data, cloned into every expert; -1 = by the budget"),
    FIELD_INTEGER(pipeline, branch_steps, 0, -1, 1e15, "S-phase: steps of each submodel on its cluster; -1 = by the budget"),
    FIELD_INTEGER(pipeline, steps, 0, -1, STEPS_MOST, "F-phase: steps of the whole model on all data; -1 = by the budget"),
    FIELD_NUMBER(pipeline, start_learning_rate, 0, 0, 100, "learning rate of the start, constant after its warm-up"),
    FIELD_NUMBER(pipeline, branch_learning_rate, 0, 0, 100, "learning rate of the S-phase, constant"),
    FIELD_TEXT_(pipeline, branch_freeze, "S-phase: what stays frozen, as in --freeze"),
    FIELD_SWITCH_(pipeline, scale_experts,
                  "for gates that do not renormalise: scale each expert by its mean routed weight when integrating"),
};
static const moed_field GROWTH_FIELDS[] = {
    FIELD_INTEGER(pipeline, stage_warmup, 0, 0, 1e15, "steps with rising rate at the beginning of every stage"),
};
static const moed_field BUDGET_FIELDS[] = {
    FIELD_NUMBER(pipeline, minutes, 0, 0, 1e7, "steps that take about this long here, 0 = not given"),
    FIELD_NUMBER(pipeline, money, 0, 0, 1e9, "steps that cost this much on the priced devices, 0 = not given"),
    FIELD_TEXT_(pipeline, equal_money_to, "steps that cost as much as those of this pipeline of DIR"),
    FIELD_NUMBER(pipeline, start_share, 0, 0, 1, "share of the budget's money for the start"),
    FIELD_NUMBER(pipeline, branch_share, 0, 0, 1, "share of the budget's money for the S-phase; the F-phase gets the rest"),
};
static const moed_field PRICE_FIELDS[] = {
    FIELD_TEXT_(pipeline, cheap_device, "device that the start and the S-phase are priced on"),
    FIELD_NUMBER(pipeline, cheap_price, 0, 0, 1e6, "its price per hour in dollars"),
    FIELD_NUMBER(pipeline, cheap_flops, 0, 1, 1e20, "its FLOP/s in training; inferred from the paper's hours"),
    FIELD_TEXT_(pipeline, dear_device, "device that the F-phase is priced on"),
    FIELD_NUMBER(pipeline, dear_price, 0, 0, 1e6, "its price per hour in dollars"),
    FIELD_NUMBER(pipeline, dear_flops, 0, 1, 1e20, "its FLOP/s in training; inferred from the paper's hours"),
    FIELD_TEXT_(pipeline, price_date, "date and source of the prices"),
};
static const moed_field RUN_FIELDS[] = {
    FIELD_INTEGER(pipeline, workers, 0, 0, 4096, "S-phase workers at once, 0 = as many as cores"),
};
#define ROWS(table) (table), sizeof(table) / sizeof *(table)

static const char *const KINDS[KIND_COUNT] = {"disco", "full", "upcycle", "emo"};

const char *kind_name(int32_t kind) { return KINDS[kind]; }

int32_t kind_of(const char *name)
{
    for (int32_t i = 0; i < KIND_COUNT; i++)
        if (!strcmp(KINDS[i], name)) return i;
    return -1;
}

static void defaults(pipeline *p, int32_t kind)
{
    memset(p, 0, sizeof *p);
    p->kind = kind;
    p->began = now_seconds();
    p->lock = -1;
    p->held_out = 0.05;
    p->start_steps = p->branch_steps = p->steps = -1;
    p->start_learning_rate = 1.5e-3;
    p->branch_learning_rate = 1e-3;
    p->start_share = kind == KIND_UPCYCLE ? 0.5 : 0;
    p->branch_share = kind == KIND_DISCO ? 0.45 : 0;
    p->cheap_device = "RTX 4090";
    p->cheap_price = 0.35;
    p->cheap_flops = 99e12;
    p->dear_device = "A100-80GB";
    p->dear_price = 2.28;
    p->dear_flops = 117e12;
    p->price_date = "2026-01, MoE-DisCo paper";
    OPTIONS_INIT(CORPUS_OPTIONS, &p->build);
    OPTIONS_INIT(INTEGRATION_OPTIONS, &p->integration);
    training_defaults(&p->train);
    p->stage_warmup = 20;
}

void pipeline_flags(flags *f, pipeline *p, int32_t kind)
{
    defaults(p, kind);
    flags_table(f, "data", ROWS(WORK_FIELDS), p);
    flags_find(f, "text")->passing = 1; /* the corpus is what counts, and it is kept */
    flags_struct(f, "data", MOED_STRUCT_CORPUS_OPTIONS, &p->build, "vocabulary,end_token,tokenizer");
    flags_table(f, "budget: give steps, or minutes, or money, or equal-money-to", ROWS(BUDGET_FIELDS), p);
    flags_table(f, "steps", ROWS(STEP_FIELDS), p);
    sizes_flags(f, &p->size);
    flags_struct(f, "training", MOED_STRUCT_TRAIN_OPTIONS, &p->train, "steps,directory,held_out,progress,progress_user");
    clustering_flags(f, &p->clusters, "clusters");
    p->clusters.kmeans.method = MOED_KMEANS_BALANCED;
    snprintf(flags_find(f, "method")->initial, sizeof f->items[0].initial, "balanced");
    flags_struct(f, "integration", MOED_STRUCT_INTEGRATION_OPTIONS, &p->integration, "dtype,shard_bytes");
    growing_run_flags(f, &p->growing);
    OPTIONS_INIT(EXPANSION_OPTIONS, &p->expansion);
    flags_table(f, "growth", ROWS(GROWTH_FIELDS), p);
    flags_struct_as(f, "growth", MOED_STRUCT_EXPANSION_OPTIONS, &p->expansion,
                    "method=new_experts,std=new_std,noise=new_noise,redraw=new_redraw,keep_bias=keep_bias");
    flags_table(f, "prices, of 2026-01 as in the MoE-DisCo paper", ROWS(PRICE_FIELDS), p);
    const size_t from = f->count;
    flags_table(f, "how it is run", ROWS(RUN_FIELDS), p);
    flags_passing(f, from);
    common_flags(f, &p->common);
}

int64_t pipeline_parts(const pipeline *p)
{
    moed_layout_info info = {.struct_size = sizeof info};
    moed_layout_get_info(p->layout, &info);
    return info.experts;
}

const moed_layout *pipeline_grown(const pipeline *p) { return p->grown ? p->grown : p->layout; }

/* ---- options of the phases ---- */

static moed_train_options dense_options(const pipeline *p, int64_t steps, double rate)
{
    moed_train_options o = p->train;
    o.steps = steps > 0 ? steps : 1;
    o.schedule = MOED_SCHEDULE_CONSTANT;
    o.learning_rate = rate;
    o.load_balance = o.z_loss = 0; /* one expert has nothing to balance */
    o.train = o.freeze = NULL;
    return o;
}

moed_train_options start_options(const pipeline *p) { return dense_options(p, p->start_steps, p->start_learning_rate); }

moed_train_options branch_options(const pipeline *p)
{
    moed_train_options o = dense_options(p, p->branch_steps, p->branch_learning_rate);
    if (p->start_steps > 0) o.warmup = 0;
    o.freeze = p->branch_freeze;
    return o;
}

moed_train_options final_options(const pipeline *p)
{
    moed_train_options o = p->train;
    o.steps = p->steps > 0 ? p->steps : 1;
    return o;
}

/* A stage is a run of its own on the rows that come next. */
moed_train_options stage_options(const pipeline *p, const moed_stage *s)
{
    moed_train_options o = p->train;
    const double tokens = (double)s->tokens;
    o.steps = s->tokens / (o.rows * o.length);
    o.first_row += s->start / o.length;
    o.learning_rate = s->learning_rate;
    o.schedule = s->decay > 0 ? MOED_SCHEDULE_WSD : MOED_SCHEDULE_CONSTANT;
    o.warmup = (double)s->warmup / tokens;
    o.decay = (double)s->decay / tokens;
    return o;
}

/* ---- opening ---- */

/* The layout of the last stage: the base's with more experts. */
static int grown_layout(pipeline *p, int32_t experts)
{
    moed_model_options stream;
    moed_model *m = NULL;
    moed_expansion *x = NULL;
    moed_expansion_options o = p->expansion;
    OPTIONS_INIT(MODEL_OPTIONS, &stream);
    stream.flags = MOED_MODEL_STREAM; /* no numbers are needed */
    o.experts = experts;
    moed_status status = moed_model_init(&m, p->context, p->layout, &stream);
    if (!status) status = moed_expansion_create(&x, m, NULL, &o);
    if (!status) {
        const char *config = moed_layout_config(moed_expansion_layout(x));
        status = moed_layout_from_config(&p->grown, p->context, config, strlen(config));
    }
    moed_expansion_destroy(x);
    moed_model_destroy(m);
    return status ? fail_status(status) : EXIT_DONE;
}

/* --grow names the base's experts first. */
static int take_growth(pipeline *p)
{
    int32_t experts[STAGES_MOST];
    size_t count;
    moed_layout_info info = {.struct_size = sizeof info};
    if (!p->growing.grow) return EXIT_DONE;
    const int code = growing_experts(&p->growing, experts, &count);
    if (code) return code;
    moed_layout_get_info(p->layout, &info);
    if (info.experts != experts[0])
        return fail(EXIT_INPUT, "--grow %s: begins with %d experts, and the model has %lld", p->growing.grow, (int)experts[0],
                    (long long)info.experts);
    for (size_t i = 1; i < count; i++)
        if (experts[i] < experts[i - 1])
            return fail(EXIT_INPUT, "--grow %s: %d experts after %d: a pool does not shrink", p->growing.grow, (int)experts[i],
                        (int)experts[i - 1]);
    return grown_layout(p, experts[count - 1]);
}

/* The schedule of the F-phase's steps, once they are known. */
int pipeline_growth(pipeline *p)
{
    moed_layout_info info = {.struct_size = sizeof info};
    growing g = p->growing;
    if (!g.grow || p->growth) return EXIT_DONE;
    if (p->stages) g.grow = p->stages; /* whatever has become of the law's file */
    moed_layout_get_info(p->layout, &info);
    const int64_t step = p->train.rows * p->train.length;
    if (!growing_has_tokens(&g) && p->steps < 1)
        return fail(EXIT_INPUT, "--grow %s: there are no steps for its stages: give --steps, or a larger budget", g.grow);
    g.all_tokens = growing_has_tokens(&g) ? 0 : (double)(p->steps * step);
    g.options.learning_rate = p->train.learning_rate;
    g.options.warmup = p->stage_warmup;
    g.options.decay = p->train.decay;
    g.options.final_rate = p->train.final_rate;
    g.options.decay_shape = MOED_DECAY_LINEAR;
    return growing_make(&p->growth, p->context, &g, step, info.active, info.top_k);
}

int pipeline_layouts(pipeline *p, int64_t vocabulary)
{
    moed_split_options o;
    moed_layout_info info = {.struct_size = sizeof info};
    int code = sizes_layout(&p->size, p->context, vocabulary, &p->layout);
    if (!code) code = take_growth(p);
    if (code) return code;
    moed_layout_get_info(p->layout, &info);
    OPTIONS_INIT(SPLIT_OPTIONS, &o);
    const moed_status status = moed_split_create(&p->split, p->layout, &o);
    if (status) return fail_status(status);
    p->dense = moed_split_layout(p->split, 0);
    moed_error_info why = {.struct_size = sizeof why};
    if (!p->dense) return moed_last_error_get(&why), fail_status(why.status);
    p->clusters.kmeans.clusters = (int32_t)info.experts;
    if (p->train.length > info.context_length)
        return fail(EXIT_INPUT, "--length %lld: longer than the model's context of %lld", (long long)p->train.length,
                    (long long)info.context_length);
    return EXIT_DONE;
}

/* Two commands in one pipeline would overwrite each other. */
static int take_lock(pipeline *p)
{
    char *path = path_join(p->dir, ".lock");
    p->lock = open_again(path, O_RDWR | O_CREAT | O_CLOEXEC);
    int code = EXIT_DONE;
    if (p->lock < 0) code = fail_errno(path, "cannot be made", errno);
    int busy = !code && flock(p->lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    for (int i = 0; busy && i < 30; i++) { /* one that was just killed is still letting go */
        nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
        busy = flock(p->lock, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK;
    }
    if (busy)
        code = fail(EXIT_INPUT, "%s: another moedisco is at work there; wait for it or stop it first", p->dir);
    free(path);
    return code;
}

/* So that the same command builds it anew, once there is (more) text. */
static void remove_corpus(const pipeline *p)
{
    static const char *const FILES[] = {"text.bin", "text.idx", "text.json", "source.json"};
    char *folder = path_join(p->root, "corpus");
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char *path = path_join(folder, FILES[i]);
        unlink(path);
        free(path);
    }
    rmdir(folder);
    free(folder);
}

/* The run directory's own corpus, built now unless it is there; source.json says what of. */
static int corpus_at_hand(pipeline *p)
{
    char *folder = path_join(p->root, "corpus"), *index = path_join(folder, "text.idx"),
         *source = path_join(folder, "source.json");
    p->corpus_prefix = path_join(folder, "text");
    int code = EXIT_DONE;
    if (path_exists(index)) {
        code = p->text ? settings_same_source(source, p->text) : EXIT_DONE;
    } else if (!p->text) {
        code = fail(EXIT_INPUT, "%s: has no corpus yet; give --text FOLDER or --corpus PREFIX", p->root);
    } else if (!(code = make_folder(folder)) && !(code = settings_write_source(source, p->text))) {
        code = corpus_build(p->context, &p->text, 1, p->corpus_prefix, &p->build);
        if (code) remove_corpus(p);
    }
    free(folder);
    free(index);
    free(source);
    return code;
}

/* Two pipelines of one run directory may begin at once: the second waits for the first one's corpus. */
static int shared_corpus(pipeline *p)
{
    const int lock = open(p->root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    while (lock >= 0 && flock(lock, LOCK_EX) && errno == EINTR && !app_stopped()) {}
    const int code = app_stopped() ? fail(EXIT_STOPPED, "stopped; the same command starts again") : corpus_at_hand(p);
    if (lock >= 0) close(lock);
    return code;
}

/* Phases that are done would not see that the rest goes on with other text. */
static int same_corpus(const pipeline *p)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    moed_corpus_get_info(p->whole, &info);
    if (!p->fingerprint || !strcmp(p->fingerprint, info.fingerprint)) return EXIT_DONE;
    return fail(EXIT_INPUT,
                "%s: is not the corpus that the run was started with: %s in place of %s; put that one back, or choose another "
                "--name", p->corpus_prefix, info.fingerprint, p->fingerprint);
}

static int open_data(pipeline *p)
{
    if (!p->corpus_prefix) p->corpus_prefix = path_from(p->dir, p->corpus);
    moed_status status = open_corpus(&p->whole, p->context, p->corpus_prefix);
    if (!status && same_corpus(p)) return EXIT_INPUT;
    if (!status && p->pick_sizes && budget_check_text(p)) {
        if (!p->corpus) remove_corpus(p);
        return EXIT_INPUT;
    }
    if (!status) status = moed_corpus_divide(&p->train_view, &p->held_view, p->whole, p->held_out, p->held_out_seed);
    const int code = status ? fail_status(status) : EXIT_DONE;
    if (status == MOED_E_ARGUMENT && p->whole && !p->corpus) remove_corpus(p); /* of one document */
    return code;
}

static int open_layouts(pipeline *p)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    if (p->size.config) { /* the base has it: what was given may be gone since, or be named from another folder */
        p->base_config = path_join(p->dir, "base/config.json");
        if (path_exists(p->base_config)) p->size.config = p->base_config;
    }
    const moed_status status = moed_corpus_get_info(p->whole, &info);
    return status ? fail_status(status) : pipeline_layouts(p, info.vocabulary);
}

/* What would stop a later phase, told of before anything is kept. */
static int can_be_done(const pipeline *p)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    const moed_train_options last = final_options(p); /* of the largest model */
    moed_corpus_get_info(p->train_view, &info);
    if (p->kind == KIND_DISCO && p->branch_steps != 0 && info.documents < pipeline_parts(p))
        return fail(EXIT_INPUT,
                    "%lld training documents cannot make %lld clusters, one for each expert: take fewer --experts or more text",
                    (long long)info.documents, (long long)pipeline_parts(p));
    return training_fits(p->context, pipeline_grown(p), p->train_view, &last, 0);
}

int pipeline_settle(pipeline *p, const flags *f)
{
    int32_t experts[STAGES_MOST];
    size_t count;
    if (!p->growing.grow && p->kind == KIND_EMO) /* a run that goes on has it in run.json */
        return fail(EXIT_INPUT, "--grow is missing: pool sizes in turn, as in --grow 2,4,8,16");
    if (!p->growing.grow) return EXIT_DONE;
    if (flags_given(f, "schedule") && p->train.schedule != MOED_SCHEDULE_WSD)
        return fail(EXIT_INPUT,
                    "--schedule: a growing pool's stages are constant, and the last falls over --decay: leave it out");
    if (flags_given(f, "warmup"))
        return fail(EXIT_INPUT, "--warmup: each stage of a growing pool has its own: give --stage-warmup, in steps");
    const int code = growing_experts(&p->growing, experts, &count);
    if (code) return code;
    if (!p->size.config && !flags_given(f, "experts")) p->size.experts = experts[0];
    if (p->size.top_k > p->size.experts && !flags_given(f, "top-k")) p->size.top_k = p->size.experts;
    if (!growing_has_tokens(&p->growing)) return EXIT_DONE;
    if (p->steps >= 0 || p->minutes > 0 || p->money > 0 || p->equal_money_to)
        return fail(EXIT_INPUT, "--grow %s: gives the tokens of each stage, which leaves nothing to --steps or a budget",
                    p->growing.grow);
    p->steps = growing_steps(&p->growing, p->train.rows * p->train.length);
    if ((double)p->steps > STEPS_MOST)
        return fail(EXIT_INPUT, "--grow %s: takes more than %g steps of %lld tokens: give fewer tokens, or more --rows",
                    p->growing.grow, STEPS_MOST, (long long)(p->train.rows * p->train.length));
    return EXIT_DONE;
}

static int start_fresh(pipeline *p, flags *f)
{
    sizes_settle(&p->size, f);
    if (!flags_given(f, "length") && p->train.length > p->size.context_length) p->train.length = p->size.context_length;
    int code = pipeline_settle(p, f);
    if (code) return code;
    if (p->corpus) p->corpus_prefix = must(strdup(p->corpus));
    else if ((code = shared_corpus(p))) return code;
    if (!(code = open_data(p)) && p->pick_sizes) code = budget_pick_sizes(p, f);
    if (!code) code = open_layouts(p);
    if (!code) code = can_be_done(p);
    if (!code) code = pipeline_budget(p);
    if (!code) code = pipeline_growth(p);
    if (code) return code;
    training_tell_unheeded(f, p->layout);
    growing_tell_unheeded(f, &p->growing);
    if (p->growing.grow) expand_tell_unheeded(f, &p->expansion, "new-");
    char *relative = path_relative(p->dir, p->corpus_prefix);
    flag *corpus = flags_find(f, "corpus");
    corpus->owned = relative;
    p->corpus = relative;
    return settings_write(p, f);
}

/* A started run whose last phase has less memory than it needs says so before the others are spent. */
static int still_fits(const pipeline *p)
{
    char *model = path_join(p->dir, "model");
    const int trained = path_exists(model);
    const moed_train_options last = final_options(p);
    moed_estimate e;
    free(model);
    const int code = trained ? EXIT_DONE : training_estimate(pipeline_grown(p), &last, &e);
    if (trained || code) return code;
    const memory_room room = training_room(p->context, p->train_view, 0);
    char *lacks = training_lacks(p->context, &e, &room);
    if (!lacks) return EXIT_DONE;
    const int failed =
        fail(EXIT_FIT, "%s; a started run keeps its settings: allow more, or start another with --name", lacks);
    free(lacks);
    return failed;
}

static int go_on(pipeline *p, flags *f)
{
    flag *corpus = flags_find(f, "corpus");
    if (corpus->given) {
        corpus->owned = path_relative(p->dir, p->corpus);
        p->corpus = corpus->owned;
    }
    int code = settings_read(p, f);
    if (code) return code;
    if (p->text && !strncmp(p->corpus, "../corpus/", 10) && (code = shared_corpus(p))) return code;
    if ((code = open_data(p)) || (code = open_layouts(p)) || (code = pipeline_growth(p))) return code;
    return still_fits(p);
}

int pipeline_open(pipeline *p, flags *f, const char *dir)
{
    p->dir = must(strdup(dir));
    p->root = path_join(dir, "..");
    int code = settings_read(p, f);
    if (code || (code = common_open(&p->common, &p->context))) return code;
    if ((code = open_data(p))) return code;
    return open_layouts(p);
}

int pipeline_check(const pipeline *p)
{
    if (p->text && p->corpus) return fail(EXIT_INPUT, "--text and --corpus: give one of them");
    if ((p->minutes > 0) + (p->money > 0) + (p->equal_money_to != NULL) > 1)
        return fail(EXIT_INPUT, "--minutes, --money and --equal-money-to: give one of them");
    if ((p->minutes > 0 || p->money > 0 || p->equal_money_to) && (p->cheap_price <= 0 || p->dear_price <= 0))
        return fail(EXIT_INPUT, "--%s-price 0: a budget is shared out by prices; give steps instead",
                    p->cheap_price <= 0 ? "cheap" : "dear");
    if (p->start_share + p->branch_share >= 1)
        return fail(EXIT_INPUT, "--start-share %g and --branch-share %g leave nothing to the F-phase", p->start_share,
                    p->branch_share);
    if (p->integration.merge == MOED_MERGE_EXPLICIT)
        return fail(EXIT_INPUT,
                    "--merge explicit: a pipeline has no weights to take; use uniform, weighted, or the verb integrate");
    if (p->kind == KIND_EMO && (p->start_steps > 0 || p->branch_steps > 0))
        return fail(EXIT_INPUT, "run emo has neither a start nor branches: leave --start-steps and --branch-steps out, or take "
                                "run disco with --grow");
    if (p->kind == KIND_FULL && (p->start_steps > 0 || p->branch_steps > 0))
        return fail(EXIT_INPUT, "run full has neither a start nor branches: leave --start-steps and --branch-steps out");
    if (p->kind == KIND_UPCYCLE && p->branch_steps > 0)
        return fail(EXIT_INPUT, "run upcycle has no branches: leave --branch-steps out");
    if (p->name && (strchr(p->name, '/') || p->name[0] == '.' || !p->name[0] || !strcmp(p->name, "corpus")))
        return fail(EXIT_INPUT, "--name %s: must be a plain folder name other than corpus", p->name);
    return EXIT_DONE;
}

/* Leaves no trace of a start that was refused before run.json was written. */
static void remove_unstarted(const pipeline *p)
{
    char *run = path_join(p->dir, "run.json"), *lock = path_join(p->dir, ".lock");
    if (!path_exists(run) && !unlink(lock) && !rmdir(p->dir)) rmdir(p->root);
    free(run);
    free(lock);
}

int pipeline_run(pipeline *p, flags *f, const char *root)
{
    int code = pipeline_check(p);
    if (code) return code;
    p->root = must(strdup(root));
    if (!p->name) p->name = kind_name(p->kind);
    p->dir = path_join(root, p->name);
    char *run = path_join(p->dir, "run.json");
    const int started = path_exists(run);
    free(run);
    if ((code = common_open(&p->common, &p->context))) return code;
    if ((code = make_folder(p->dir)) || (code = take_lock(p))) return code;
    code = started ? go_on(p, f) : start_fresh(p, f);
    if (!code) code = phases_run(p, f);
    if (!code) report_table(root); /* a damaged neighbour is told of, and is not this run's fault */
    if (code && !started) remove_unstarted(p);
    return code;
}

void pipeline_close(pipeline *p)
{
    moed_split_destroy(p->split);
    moed_growth_destroy(p->growth);
    moed_layout_destroy(p->grown);
    moed_layout_destroy(p->layout);
    moed_corpus_destroy(p->held_view);
    moed_corpus_destroy(p->train_view);
    moed_corpus_destroy(p->whole);
    moed_context_destroy(p->context);
    free(p->corpus_prefix);
    free(p->dir);
    free(p->root);
    free(p->fingerprint);
    free(p->stages);
    free(p->base_config);
    if (p->lock >= 0) close(p->lock);
}

int verb_run(const verb *v, int argc, char **argv)
{
    flags f = {0};
    pipeline p;
    pipeline_flags(&f, &p, kind_of(v->name + 4));
    int code = flags_parse(&f, v, argc, argv, 1, 1);
    if (code >= 0) return code;
    code = pipeline_run(&p, &f, f.positionals[0]);
    pipeline_close(&p);
    flags_free(&f);
    return code;
}
