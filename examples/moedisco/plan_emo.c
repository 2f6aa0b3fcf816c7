/* plan_emo.c - the verb plan emo: what a growing pool takes beside a fixed one, before anything is spent. */
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "growing.h"
#include "laws.h"
#include "output.h"
#include "training.h"

typedef struct emo_plan {
    sizes size;
    growing growing;
    moed_train_options train;   /* rows, length, peak rate and memory policy */
    const char *corpus, *step_times;
    double measure;             /* seconds for each pool size */
    const char *priced_device;
    double price, flops;
    common common;

    moed_context *context;
    moed_corpus *data;
    moed_growth *growth;
    moed_layout *layouts[STAGES_MOST];
    int32_t experts[STAGES_MOST];
    moed_estimate estimates[STAGES_MOST];
    size_t stages;
    moed_step_time times[STAGES_MOST];
    size_t time_count;
} emo_plan;

static const moed_field FIELDS[] = {
    FIELD_TEXT_(emo_plan, corpus, "corpus whose vocabulary the model gets, and that --measure trains on"),
    FIELD_TEXT_(emo_plan, step_times, "seconds per token at numbers of experts, 8:2e-6,64:3e-6; others lie on the line between"),
    FIELD_NUMBER(emo_plan, measure, 0, 0, 3600, "measure step times here: seconds of training for each pool size, 0 = not"),
};
static const moed_field PRICE_FIELDS[] = {
    FIELD_TEXT_(emo_plan, priced_device, "device that is priced"),
    FIELD_NUMBER(emo_plan, price, 0, 0, 1e6, "its price per hour in dollars"),
    FIELD_NUMBER(emo_plan, flops, 0, 1, 1e20, "its FLOP/s in training, where there are no step times"),
};

enum { TURNS = 5 };

static int64_t step_tokens(const emo_plan *p) { return p->train.rows * p->train.length; }

/* ---- the model at each pool size ---- */

static int take_layouts(emo_plan *p, const flags *f)
{
    moed_corpus_info info = {.struct_size = sizeof info, .vocabulary = 257};
    moed_train_options one = p->train;
    int code = growing_experts(&p->growing, p->experts, &p->stages);
    if (!code && p->size.top_k > p->experts[0] && !flags_given(f, "top-k")) p->size.top_k = p->experts[0]; /* as run emo does */
    one.steps = 1;
    if (!code && p->corpus) {
        moed_status status = open_corpus(&p->data, p->context, p->corpus);
        if (!status) status = moed_corpus_get_info(p->data, &info);
        if (status) return fail_status(status);
    }
    for (size_t i = 0; i < p->stages && !code; i++) {
        p->size.experts = p->experts[i];
        code = sizes_layout(&p->size, p->context, info.vocabulary, &p->layouts[i]);
        if (!code) code = training_estimate(p->layouts[i], &one, &p->estimates[i]);
    }
    return code;
}

/* In turns, and the fastest turn of each: what else the machine does meanwhile would otherwise pass for a difference of pools. */
static int measure_times(emo_plan *p)
{
    for (int turn = 0; turn < TURNS; turn++) {
        p->time_count = 0;
        for (size_t i = 0; i < p->stages; i++) {
            double step = 0;
            if (i && p->experts[i] == p->experts[i - 1]) continue;
            const int code = training_measure(p->context, p->layouts[i], p->data, &p->train, p->measure / TURNS, &step);
            if (code) return code;
            moed_step_time *t = &p->times[p->time_count++];
            const double seconds = step / (double)step_tokens(p);
            if (turn == 0 || seconds < t->seconds) *t = (moed_step_time){p->experts[i], seconds};
        }
    }
    return EXIT_DONE;
}

static int take_times(emo_plan *p)
{
    double experts[STAGES_MOST], seconds[STAGES_MOST];
    if (p->step_times && p->measure > 0) return fail(EXIT_INPUT, "--measure and --step-times: give one of them");
    if (p->measure > 0 && !p->data) return fail(EXIT_INPUT, "--measure trains for a moment: give --corpus to train on");
    if (p->step_times) {
        const int code = pairs_read("step-times", p->step_times, experts, seconds, STAGES_MOST, &p->time_count);
        for (size_t i = 0; i < p->time_count && !code; i++) {
            if (seconds[i] < 0)
                return fail(EXIT_INPUT, "--step-times %s: %g experts lack their seconds per token", p->step_times, experts[i]);
            p->times[i] = (moed_step_time){experts[i], seconds[i]};
        }
        return code;
    }
    return p->measure > 0 ? measure_times(p) : EXIT_DONE;
}

/* ---- what it takes ---- */

/* `tokens` with the pool of stage i, as a phase to be priced. */
static int phase_of(const emo_plan *p, size_t i, int64_t tokens, moed_phase *out, int32_t *how)
{
    double seconds = 0;
    *how = -1;
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    out->name = "stage";
    out->flops = p->estimates[i].flops_per_token * (double)tokens;
    out->device_flops = p->flops;
    out->price = p->price;
    out->devices = 1;
    if (!p->time_count) return EXIT_DONE;
    const moed_status status = moed_step_time_at(p->times, p->time_count, p->experts[i], &seconds, how);
    if (status) return fail_status(status);
    if (!(seconds > 0))
        return fail(EXIT_INPUT, "--step-times: the line through them gives no time at %d experts; give one there",
                    (int)p->experts[i]);
    out->device_flops = p->estimates[i].flops_per_token / seconds;
    return EXIT_DONE;
}

static const char *how_text(const emo_plan *p, int32_t how)
{
    switch (how) {
    case MOED_TIME_GIVEN: return p->measure > 0 ? "measured" : "given";
    case MOED_TIME_BETWEEN: return "between";
    case MOED_TIME_BEYOND: return "beyond";
    case MOED_TIME_SINGLE: return "of one E";
    default: return "by FLOPs";
    }
}

static int show_stage(const emo_plan *p, size_t i, const moed_stage *s, moed_phase *phase)
{
    moed_growth_info info = {.struct_size = sizeof info};
    moed_cost c;
    int32_t how;
    char tokens[32], memory[32], money[32];
    int code = phase_of(p, i, s->tokens, phase, &how);
    if (!code) code = cost_of(phase, 1, &c);
    if (code) return code;
    moed_growth_get_info(p->growth, &info);
    const double share = (double)s->tokens / (double)info.tokens;
    say("  %7d %9s tokens %5.1f%% %9lld steps  rate %-8.3g %10.4g s/step %-8s  memory %9s %10.4g h %10s", (int)s->experts,
        human_count((double)s->tokens, tokens), 100 * share, (long long)(s->tokens / step_tokens(p)), s->learning_rate,
        phase->flops / phase->device_flops / (double)s->tokens * (double)step_tokens(p), how_text(p, how),
        human_bytes(training_memory(&p->estimates[i]), memory), c.hours, human_money(c.money, money));
    json_t *o = cost_ahead(&c);
    put(o, "event", json_string("stage"));
    put(o, "experts", json_integer(s->experts));
    put(o, "tokens", json_integer(s->tokens));
    put(o, "share", json_real(share));
    put(o, "steps", json_integer(s->tokens / step_tokens(p)));
    put(o, "learning_rate", json_real(s->learning_rate));
    put(o, "seconds_per_token", json_real(phase->flops / phase->device_flops / (double)s->tokens));
    put(o, "time", json_string(how_text(p, how)));
    put(o, "memory", json_integer(training_memory(&p->estimates[i])));
    emit(o);
    return EXIT_DONE;
}

static int show_total(const emo_plan *p, const moed_phase *phases, const moed_growth_info *info)
{
    moed_phase whole;
    moed_cost grown, fixed;
    int32_t how;
    char a[32], b[32];
    const size_t last = p->stages - 1;
    int code = phase_of(p, last, info->tokens, &whole, &how);
    if (!code) code = cost_of(phases, p->stages, &grown);
    if (!code) code = cost_of(&whole, 1, &fixed);
    if (code) return code;
    const double saved = 1 - grown.hours / fixed.hours;
    say("  together %.4g hours, %s; %d experts throughout: %.4g hours, %s; %.1f%% saved", grown.hours,
        human_money(grown.money, a), (int)p->experts[last], fixed.hours, human_money(fixed.money, b), 100 * saved);
    if (!p->time_count)
        say_wrapped("  without step times a token costs its FLOPs alone, nearly the same for every pool: what growth saves "
                    "(optimizer, memory traffic, small products) does not show. Give --step-times, or --measure with --corpus.");
    else if (p->measure > 0)
        say_wrapped("  step times were measured here, in turns, the fastest of %d: the hours are this machine's, the price is "
                    "yours to set.", TURNS);
    else
        say_wrapped("  between and beyond given times: on a line in the number of experts (a part that does not depend on it, "
                    "and one in proportion).");
    json_t *o = cost_ahead(&grown);
    put(o, "event", json_string("plan"));
    put(o, "kind", json_string("emo"));
    put(o, "tokens", json_integer(info->tokens));
    put(o, "fixed_experts", json_integer(p->experts[last]));
    put(o, "fixed_hours", json_real(fixed.hours));
    put(o, "fixed_money", json_real(fixed.money));
    put(o, "saved", json_real(saved));
    put(o, "timed", json_boolean(p->time_count > 0));
    emit(o);
    return EXIT_DONE;
}

static int plan(emo_plan *p, const flags *f)
{
    moed_phase phases[STAGES_MOST];
    moed_layout_info layout = {.struct_size = sizeof layout};
    moed_growth_info info = {.struct_size = sizeof info};
    char active[32], tokens[32], step[32], place[128];
    if (p->size.config) return fail(EXIT_INPUT, "--config: a config.json has one number of experts; give the sizes as flags");
    if (flags_given(f, "experts")) return fail(EXIT_INPUT, "--experts: --grow names the pool sizes");
    int code = common_open(&p->common, &p->context);
    if (code) return code;
    sizes_settle(&p->size, f);
    if (!flags_given(f, "length") && p->train.length > p->size.context_length) p->train.length = p->size.context_length;
    if ((code = take_layouts(p, f))) return code;
    growing_tell_unheeded(f, &p->growing);
    moed_layout_get_info(p->layouts[p->stages - 1], &layout);
    p->growing.options.learning_rate = p->train.learning_rate;
    code = growing_make(&p->growth, p->context, &p->growing, step_tokens(p), layout.active, p->size.top_k);
    if (code || (code = take_times(p))) return code;
    moed_growth_get_info(p->growth, &info);
    training_place(p->context, place);
    say("plan for a growing pool: %s tokens in steps of %s, %s active parameters, top-%lld; on one %s at $%.4g/h; "
        "memory %s:",
        human_count((double)info.tokens, tokens), human_count((double)step_tokens(p), step),
        human_count((double)layout.active, active), (long long)p->size.top_k, p->priced_device, p->price, place);
    for (size_t i = 0; i < p->stages && !code; i++) {
        moed_stage s = {.struct_size = sizeof s};
        moed_growth_stage(p->growth, i, &s);
        code = show_stage(p, i, &s, &phases[i]);
    }
    return code ? code : show_total(p, phases, &info);
}

/* What changes neither memory nor time, or is the schedule's. */
static const char NOT_PLANNED[] = "steps,schedule,final_rate,warmup,decay,beta1,beta2,epsilon,weight_decay,clip,"
                                  "load_balance,z_loss,seed,train,freeze,directory,checkpoint_every,keep,evaluate_every,"
                                  "evaluate_tokens,held_out,progress,progress_user,graph,store_late,first_row,"
                                  "balance_rate,balance_boost,balance_band";

int verb_plan_emo(const verb *v, int argc, char **argv)
{
    flags f = {0};
    emo_plan *p = must(calloc(1, sizeof *p));
    p->priced_device = "A100-80GB";
    p->price = 2.28;
    p->flops = 117e12;
    growing_flags(&f, &p->growing);
    flags_table(&f, "step times", FIELDS, sizeof FIELDS / sizeof *FIELDS, p);
    flags_table(&f, "price, of 2026-01 as in the MoE-DisCo paper", PRICE_FIELDS, sizeof PRICE_FIELDS / sizeof *PRICE_FIELDS, p);
    sizes_flags(&f, &p->size);
    training_defaults(&p->train);
    flags_struct(&f, "training", MOED_STRUCT_TRAIN_OPTIONS, &p->train, NOT_PLANNED);
    common_flags(&f, &p->common);
    int code = flags_parse(&f, v, argc, argv, 0, 0);
    if (code < 0) {
        code = plan(p, &f);
        moed_growth_destroy(p->growth);
        for (size_t i = 0; i < p->stages; i++) moed_layout_destroy(p->layouts[i]);
        moed_corpus_destroy(p->data);
        moed_context_destroy(p->context);
    }
    flags_free(&f);
    free(p);
    return code;
}
