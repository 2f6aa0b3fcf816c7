/* budget.c - from minutes, money or another pipeline's money to steps. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "budget.h"
#include "cost.h"
#include "json_file.h"
#include "output.h"
#include "settings.h"
#include "training.h"

/* Part of the minutes that goes into steps; the rest is for clustering, surgery, evaluation and the sample. */
static const double TRAINED_SHARE = 0.8;
static const double MEASURED_SECONDS = 1.0;

typedef struct shares {
    double of[PHASE_COUNT];
} shares;

static shares money_shares(const pipeline *p)
{
    shares s = {{p->start_share, p->branch_share, 1 - p->start_share - p->branch_share}};
    if (p->start_steps == 0) s.of[PHASE_START] = 0;
    if (p->branch_steps == 0) s.of[PHASE_BRANCH] = 0;
    s.of[PHASE_FINAL] = 1 - s.of[PHASE_START] - s.of[PHASE_BRANCH];
    return s;
}

static int64_t steps_for(double money, double one)
{
    const double steps = floor(money / one);
    return steps < 1 ? 1 : steps > 1e15 ? (int64_t)1e15 : (int64_t)steps;
}

static void settle(pipeline *p, double money, const step_cost *one)
{
    const shares s = money_shares(p);
    int64_t *const steps[] = {&p->start_steps, &p->branch_steps, &p->steps};
    for (int k = 0; k < PHASE_COUNT; k++)
        if (*steps[k] < 0) *steps[k] = s.of[k] > 0 ? steps_for(money * s.of[k], one->money[k]) : 0;
}

static int other_money(const pipeline *p, double *money)
{
    char *path = text_format("%s/%s/run.json", p->root, p->equal_money_to);
    json_t *o = path_exists(path) ? read_json(path) : NULL;
    const json_t *value = json_object_get(json_object_get(o, "plan"), "money");
    int code = EXIT_DONE;
    if (!o) code = fail(EXIT_INPUT, "--equal-money-to %s: %s is not there or is damaged", p->equal_money_to, path);
    else if (!json_is_number(value) || json_number_value(value) <= 0)
        code = fail(EXIT_INPUT, "%s: plan.money is missing or not positive", path);
    else *money = json_number_value(value);
    json_decref(o);
    free(path);
    return code;
}

/* Money whose steps take the minutes here: time and money are both in proportion to the steps. */
static int money_for_minutes(const pipeline *p, const step_cost *one, double *money)
{
    double dense = 0, whole = 0, per_dollar = 0;
    const moed_train_options branch = branch_options(p), last = final_options(p);
    const shares s = money_shares(p);
    say("measuring this machine ...");
    int code = training_measure(p->context, pipeline_grown(p), p->train_view, &last, MEASURED_SECONDS, &whole);
    if (!code && s.of[PHASE_FINAL] < 1)
        code = training_measure(p->context, p->dense, p->train_view, &branch, MEASURED_SECONDS, &dense);
    if (code) return code;
    const double seconds[] = {dense, dense * (double)pipeline_parts(p), whole};
    for (int k = 0; k < PHASE_COUNT; k++) per_dollar += s.of[k] / one->money[k] * seconds[k];
    const double left = p->minutes * 60 * TRAINED_SHARE - (now_seconds() - p->began);
    if (left < 2)
        return fail(EXIT_INPUT, "--minutes %g: too short: getting ready took %.0f seconds", p->minutes, now_seconds() - p->began);
    *money = left / per_dollar;
    char speed[32];
    say("this machine trains at %s/s: a step of the whole model takes %.3g s",
        human_flops(one->flops[PHASE_FINAL] / whole, speed), whole);
    return EXIT_DONE;
}

int pipeline_budget(pipeline *p)
{
    step_cost one;
    double money = 0;
    int code = cost_steps(p, &one);
    if (code) return code;
    if (p->kind != KIND_DISCO) p->branch_steps = 0;
    if (p->kind == KIND_FULL || p->kind == KIND_EMO) p->start_steps = 0;
    if (p->minutes > 0) code = money_for_minutes(p, &one, &money);
    else if (p->equal_money_to) code = other_money(p, &money);
    else money = p->money;
    if (code) return code;
    if (money > 0) {
        settle(p, money, &one);
        return EXIT_DONE;
    }
    if (p->start_steps < 0) p->start_steps = p->kind == KIND_UPCYCLE ? 800 : 0;
    if (p->branch_steps < 0) p->branch_steps = 400;
    if (p->steps < 0) p->steps = 200;
    return EXIT_DONE;
}

/* ---- sizes for try ---- */

enum { LEAST_TOKENS = 50000, GOOD_TOKENS = 1000000 };

int budget_check_text(const pipeline *p)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    moed_corpus_get_info(p->whole, &info);
    if (info.tokens >= LEAST_TOKENS && info.documents >= 10 * p->size.experts) return EXIT_DONE;
    return fail(EXIT_INPUT,
                "%s: too little text: %lld bytes in %lld documents; at least %d bytes in %lld documents are needed, "
                "a megabyte is better",
                p->text, (long long)info.tokens, (long long)info.documents, LEAST_TOKENS, 10 * (long long)p->size.experts);
}

int budget_pick_sizes(pipeline *p, const flags *f)
{
    static const struct { int64_t hidden, layers, heads, expert_width; } SIZES[] = {
        {48, 2, 2, 96}, {64, 3, 2, 128}, {96, 3, 3, 192}, {128, 4, 4, 256}, {192, 5, 6, 384}, {256, 6, 8, 512}, {384, 6, 6, 1024},
    };
    moed_corpus_info info = {.struct_size = sizeof info};
    char tokens[32];
    moed_corpus_get_info(p->whole, &info);
    if (info.tokens < GOOD_TOKENS)
        say("note: %s bytes are little text: the model will learn them by heart rather than learn to write; a megabyte is better",
            human_count((double)info.tokens, tokens));
    if (flags_given(f, "hidden") || flags_given(f, "layers") || flags_given(f, "preset") || flags_given(f, "config"))
        return EXIT_DONE;
    double whole = 0;
    moed_layout *l = NULL;
    step_cost one;
    int code = pipeline_layouts(p, info.vocabulary);
    if (!code) code = cost_steps(p, &one);
    const moed_train_options o = final_options(p);
    if (!code) code = training_measure(p->context, p->layout, p->train_view, &o, MEASURED_SECONDS, &whole);
    if (code) return code;
    moed_estimate needs;
    const memory_room room = training_room(p->context, p->train_view, 0);
    const double flops = one.flops[PHASE_FINAL] / whole * (p->minutes * 60 * TRAINED_SHARE - (now_seconds() - p->began));
    for (size_t i = 0; i < sizeof SIZES / sizeof *SIZES; i++) {
        moed_layout_info layout = {.struct_size = sizeof layout};
        sizes z = p->size;
        z.hidden = SIZES[i].hidden;
        z.layers = SIZES[i].layers;
        z.heads = SIZES[i].heads;
        z.expert_width = SIZES[i].expert_width;
        if ((code = sizes_layout(&z, p->context, info.vocabulary, &l))) return code;
        moed_layout_get_info(l, &layout);
        code = training_estimate(l, &o, &needs);
        moed_layout_destroy(l);
        if (code) return code;
        /* About 20 tokens for each parameter in use, at 6 FLOP each, are the compute-optimal use of a budget (Hoffmann et al.
         * 2022). */
        const double wanted = 20.0 * (double)layout.active;
        if (i && (6 * wanted * (double)layout.active > flops || wanted > 20.0 * (double)info.tokens ||
                  !training_within(&needs, &room)))
            break;
        p->size = z;
    }
    say("sizes for %g minutes: hidden %lld, %lld layers, %lld experts of width %lld", p->minutes, (long long)p->size.hidden,
        (long long)p->size.layers, (long long)p->size.experts, (long long)p->size.expert_width);
    moed_split_destroy(p->split);
    moed_layout_destroy(p->layout);
    p->split = NULL;
    p->layout = NULL;
    return EXIT_DONE;
}
