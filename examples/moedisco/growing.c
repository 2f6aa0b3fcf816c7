/* growing.c - EMO's schedule as flags. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "growing.h"
#include "laws.h"

static const moed_field FIELDS[] = {
    FIELD_TEXT_(growing, grow, "pool sizes in turn, 8,16,32: a rule gives their tokens; or each with its tokens, 8:2e9,16:1e9"),
    FIELD_CHOICE_(growing, rule, "law|power", "what gives the tokens: a scaling law, or --exponent"),
    FIELD_TEXT_(growing, law,
                "law rule: a published law (ludziejewski-2025, abnar-2025, krajewski-2024), or a file of `law fit --out`"),
    FIELD_NUMBER(growing, active, 0, 0, 1e30, "law rule: active parameters, 0 = the model's"),
    FIELD_NUMBER(growing, all_tokens, 0, 0, 1e18, "tokens of all stages together, for a rule"),
};

enum { FIELD_COUNT = sizeof FIELDS / sizeof *FIELDS, RUN_FIELD_COUNT = FIELD_COUNT - 1 /* without the tokens */ };

/* Rates, warm-up and decay are those of the training. */
static void add_flags(flags *f, growing *g, size_t fields)
{
    memset(g, 0, sizeof *g);
    g->law = "ludziejewski-2025";
    OPTIONS_INIT(GROWTH_OPTIONS, &g->options);
    flags_table(f, "growth", FIELDS, fields, g);
    flags_struct(f, "growth", MOED_STRUCT_GROWTH_OPTIONS, &g->options,
                 "step_tokens,tokens,active,top_k,learning_rate,warmup,decay,final_rate,decay_shape");
}

void growing_flags(flags *f, growing *g) { add_flags(f, g, FIELD_COUNT); }

void growing_run_flags(flags *f, growing *g) { add_flags(f, g, RUN_FIELD_COUNT); }

void growing_tell_unheeded(const flags *f, const growing *g)
{
    static const char all[] =
        "rule,law,active,exponent,expert-rate,stage-warmup,new-experts,new-std,new-noise,new-redraw,keep-bias";
    if (!g->grow) flags_tell_unheeded(f, all, "there is no --grow");
    else if (growing_has_tokens(g)) flags_tell_unheeded(f, "rule,law,active,exponent", "--grow gives each stage's tokens");
    else if (g->rule == GROWING_POWER) flags_tell_unheeded(f, "law,active", "--rule power goes by --exponent alone");
    else flags_tell_unheeded(f, "exponent", "--rule is law, not power");
}

static int parse(const growing *g, int32_t *experts, double *tokens, size_t *count)
{
    double numbers[STAGES_MOST];
    if (!g->grow) return fail(EXIT_INPUT, "--grow is missing: pool sizes in turn, as in --grow 8,16,32");
    const int code = pairs_read("grow", g->grow, numbers, tokens, STAGES_MOST, count);
    for (size_t i = 0; i < *count && !code; i++) {
        if (!(numbers[i] >= 1 && numbers[i] <= 65536) || numbers[i] != (int32_t)numbers[i])
            return fail(EXIT_INPUT, "--grow %s: %g is no number of experts", g->grow, numbers[i]);
        if ((tokens[i] >= 0) != (tokens[0] >= 0) || tokens[i] > 1e18)
            return fail(EXIT_INPUT, "--grow %s: give tokens for each stage, up to 1e18, or for none", g->grow);
        experts[i] = (int32_t)numbers[i];
    }
    return code;
}

int growing_experts(const growing *g, int32_t *experts, size_t *count)
{
    double tokens[STAGES_MOST];
    return parse(g, experts, tokens, count);
}

int growing_has_tokens(const growing *g) { return g->grow && strchr(g->grow, ':'); }

int64_t growing_steps(const growing *g, int64_t step_tokens)
{
    int32_t experts[STAGES_MOST];
    double tokens[STAGES_MOST];
    size_t count = 0;
    double steps = 0;
    if (parse(g, experts, tokens, &count)) return 0;
    for (size_t i = 0; i < count; i++) steps += floor(tokens[i] / (double)step_tokens + 0.5);
    return steps < 1e18 ? (int64_t)steps : (int64_t)1e18; /* refused when the schedule is made */
}

char *growing_stages(const moed_growth *g)
{
    moed_growth_info info = {.struct_size = sizeof info};
    char *text = must(strdup(""));
    moed_growth_get_info(g, &info);
    for (size_t i = 0; i < (size_t)info.stages; i++) {
        moed_stage s = {.struct_size = sizeof s};
        moed_growth_stage(g, i, &s);
        char *longer = text_format("%s%s%d:%lld", text, i ? "," : "", (int)s.experts, (long long)s.tokens);
        free(text);
        text = longer;
    }
    return text;
}

int growing_make(moed_growth **out, moed_context *c, const growing *g, int64_t step_tokens, int64_t active, int64_t top_k)
{
    int32_t experts[STAGES_MOST] = {0};
    double tokens[STAGES_MOST] = {0};
    int64_t whole[STAGES_MOST];
    size_t count = 0;
    moed_law *l = NULL;
    moed_growth_options o = g->options;
    int code = parse(g, experts, tokens, &count);
    if (code) return code;
    o.step_tokens = step_tokens;
    o.tokens = (int64_t)g->all_tokens;
    o.active = g->active > 0 ? g->active : (double)active;
    o.top_k = (int32_t)top_k;
    if (tokens[0] < 0 && o.tokens < 1)
        return fail(EXIT_INPUT, "--all-tokens is missing: tokens that the rule divides among the stages");
    if (tokens[0] >= 0 && o.tokens)
        return fail(EXIT_INPUT, "--all-tokens: --grow %s gives the tokens of each stage already", g->grow);
    for (size_t i = 0; i < count; i++)
        if (tokens[i] >= 0 && tokens[i] < 0.5 * (double)step_tokens)
            return fail(EXIT_INPUT, "--grow %s: %g tokens for %d experts are less than half a step of %lld", g->grow, tokens[i],
                        (int)experts[i], (long long)step_tokens);
    moed_status status;
    for (size_t i = 0; i < count; i++) whole[i] = (int64_t)(tokens[i] + 0.5);
    if (tokens[0] >= 0) status = moed_growth_from_tokens(out, c, experts, whole, count, &o);
    else if (g->rule == GROWING_POWER) status = moed_growth_from_power(out, c, experts, count, &o);
    else if ((code = law_open(&l, c, g->law, top_k))) return code;
    else status = moed_growth_from_law(out, c, l, experts, count, &o);
    moed_law_destroy(l);
    return status ? fail_status(status) : EXIT_DONE;
}
