/* growth/growth.c - the table of stages: from a rule or from the caller, asked at a token, kept as bytes. Source: EMO (arXiv
 * 2605.13247); the law rule is inferred from its published shares. */
#include <math.h>
#include <string.h>

#include "core/context.h"
#include "core/options.h"
#include "moedisco/growth.h"
#include "util/hash.h"

enum { STAGES_MOST = 4096 };

struct moed_growth {
    moed_context *context;
    moed_growth_info info;
    moed_stage *stages; /* (info.stages) */
};

/* ---- the table ---- */

static moed_status bad(size_t index, const char *field, const char *what, double value)
{
    return moedi_fail_parameter(MOED_E_RANGE, field, "stage %zu: %s is %g; %s", index, field, moedi_told(value), what);
}

static moed_status check_stage(const moed_stage *s, size_t index, int32_t experts_before)
{
    if (s->flags) return bad(index, "flags", "this library knows none", s->flags);
    if (s->reserved) return bad(index, "reserved", "it must be 0", s->reserved);
    if (s->experts < 1 || s->experts > 1 << 24) return bad(index, "experts", "it must be from 1 to 2^24", s->experts);
    if (s->experts < experts_before) return bad(index, "experts", "a pool does not shrink", s->experts);
    if (s->top_k < 0 || s->top_k > s->experts) return bad(index, "top_k", "it must be from 0 to the stage's experts", s->top_k);
    if (s->tokens < 1 || s->tokens > (int64_t)1 << 60)
        return bad(index, "tokens", "it must be from 1 to 2^60", (double)s->tokens);
    if (!(s->learning_rate >= 0 && s->learning_rate <= MOEDI_LARGEST_RATE))
        return moedi_fail_parameter(MOED_E_RANGE, "learning_rate", "stage %zu: learning_rate is %g; it must be from 0 to %g",
                                    index, moedi_told(s->learning_rate), MOEDI_LARGEST_RATE);
    if (s->warmup < 0 || s->warmup > s->tokens)
        return bad(index, "warmup", "it must be from 0 to the stage's tokens", (double)s->warmup);
    if (s->decay < 0 || s->decay > s->tokens - s->warmup)
        return bad(index, "decay", "warmup and decay are more than the stage's tokens together", (double)s->decay);
    if (!(s->final_rate >= 0 && s->final_rate <= 1)) return bad(index, "final_rate", "it must be from 0 to 1", s->final_rate);
    if (s->decay_shape < MOED_DECAY_NONE || s->decay_shape > MOED_DECAY_COSINE)
        return bad(index, "decay_shape", "it must be 0 (none), 1 (linear) or 2 (cosine)", s->decay_shape);
    return MOED_OK;
}

static moed_status check_count(size_t count)
{
    return count >= 1 && count <= STAGES_MOST
               ? MOED_OK
               : moedi_fail_parameter(MOED_E_RANGE, "count", "%zu stages; there must be from 1 to %d", count, STAGES_MOST);
}

/* A growth of these stages; `start` is filled in. */
static moed_status make(moed_growth **out, moed_context *c, const moed_stage *stages, size_t count, int64_t step_tokens)
{
    moed_growth *g = NULL;
    MOEDI_TRY(check_count(count));
    for (size_t i = 0; i < count; i++) {
        if (stages[i].struct_size != sizeof *stages)
            return moedi_fail(MOED_E_STRUCT, "stage %zu: struct_size is %u, this library's moed_stage has %zu bytes", i,
                              (unsigned)stages[i].struct_size, sizeof *stages);
        MOEDI_TRY(check_stage(&stages[i], i, i ? stages[i - 1].experts : 1));
    }
    MOEDI_TRY(MOEDI_NEW(c, 1, &g));
    const moed_status status = MOEDI_NEW(c, count, &g->stages);
    if (status) {
        moedi_free(c, g);
        return status;
    }
    g->context = moedi_context_retain(c);
    memcpy(g->stages, stages, count * sizeof *stages);
    g->info = (moed_growth_info){.struct_size = sizeof g->info, .stages = (int32_t)count, .step_tokens = step_tokens};
    for (size_t i = 0; i < count; i++) {
        g->stages[i].start = g->info.tokens;
        if (g->stages[i].tokens > ((int64_t)1 << 61) - g->info.tokens) {
            moed_growth_destroy(g);
            return bad(i, "tokens", "all stages together are more than 2^61", (double)stages[i].tokens);
        }
        g->info.tokens += g->stages[i].tokens;
    }
    *out = g;
    return MOED_OK;
}

moed_status moed_growth_create(moed_growth **out, moed_context *c, const moed_stage *stages, size_t count,
                               const moed_growth_options *o)
{
    moed_growth_options options;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(stages, "stages is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_GROWTH_OPTIONS, o, &options));
    return make(out, c, stages, count, options.step_tokens);
}

void moed_growth_destroy(moed_growth *g)
{
    if (!g) return;
    moed_context *c = g->context;
    moedi_free(c, g->stages);
    moedi_free(c, g);
    moedi_context_release(c);
}

/* ---- rules: where each stage ends, as a share of all tokens ---- */

typedef struct rule {
    const moed_law *law; /* NULL: the power rule */
    const int32_t *experts;
    size_t count;
    moed_growth_options options;
} rule;

static moed_status rule_ends(const rule *r, double *ends)
{
    for (size_t i = 0; i < r->count; i++) {
        if (i && r->experts[i] <= r->experts[i - 1])
            return moedi_fail_parameter(MOED_E_RANGE, "experts", "experts %d after %d: a rule needs rising numbers",
                                        (int)r->experts[i], (int)r->experts[i - 1]);
        if (r->experts[i] < 1) return bad(i, "experts", "it must be from 1 to 2^24", r->experts[i]);
        if (r->law) MOEDI_TRY(moed_law_optimal_tokens(r->law, r->options.active, r->experts[i], &ends[i]));
        else ends[i] = pow((double)r->experts[i] / r->experts[r->count - 1], r->options.exponent);
    }
    const double last = ends[r->count - 1];
    for (size_t i = 0; i < r->count; i++) ends[i] /= last;
    return MOED_OK;
}

/* What the options say of stages whose experts and tokens are there: warm-ups, peaks, and the end. */
static void set_rates(moed_stage *stages, size_t count, const moed_growth_options *o)
{
    double all = 0; /* steps: more than there are whole numbers for, before the stages are checked */
    for (size_t i = 0; i < count; i++) {
        moed_stage *s = &stages[i];
        const int64_t steps = s->tokens / o->step_tokens;
        s->struct_size = sizeof *s;
        s->top_k = o->top_k;
        s->warmup = (steps < o->warmup ? steps : o->warmup) * o->step_tokens;
        s->learning_rate = o->learning_rate * pow((double)s->experts / stages[0].experts, o->expert_rate);
        all += (double)steps;
    }
    moed_stage *last = &stages[count - 1];
    const double decay = o->decay_shape == MOED_DECAY_NONE ? 0 : floor(o->decay * all + 0.5);
    const int64_t room = last->tokens - last->warmup, steps = room / o->step_tokens;
    last->decay = decay < (double)steps ? (int64_t)decay * o->step_tokens : room;
    last->final_rate = o->final_rate;
    last->decay_shape = o->decay_shape;
}

/* Whole steps in all and up to each end; every stage has one at least. */
static moed_status rule_stages(const rule *r, const double *ends, moed_stage *stages)
{
    const moed_growth_options *o = &r->options;
    const int64_t step = o->step_tokens, steps = o->tokens / step + (o->tokens % step != 0);
    int64_t before = 0;
    for (size_t i = 0; i < r->count; i++) {
        moed_stage *s = &stages[i];
        const int64_t end = i + 1 < r->count && ends[i] < 1 ? (int64_t)(ends[i] * (double)steps + 0.5) : steps;
        if (end <= before)
            return moedi_fail_parameter(MOED_E_RANGE, "experts", "stage %zu with %d experts would get no step of the %lld: %s", i,
                                        (int)r->experts[i], (long long)steps,
                                        ends[i] > (i ? ends[i - 1] : 0)
                                            ? "more tokens are needed, or fewer stages"
                                            : "the rule gives it no more tokens than the stage before");
        *s = (moed_stage){.experts = r->experts[i], .tokens = (end - before) * step};
        before = end;
    }
    set_rates(stages, r->count, o);
    return MOED_OK;
}

static moed_status from_rule(moed_growth **out, moed_context *c, const rule *r)
{
    double *ends = NULL;
    moed_stage *stages = NULL;
    moed_status status = MOED_OK;
    MOEDI_TRY(check_count(r->count));
    if (r->options.tokens < 1 || r->options.step_tokens > (int64_t)1 << 60 || r->options.tokens > (int64_t)1 << 60)
        return moedi_fail_parameter(MOED_E_RANGE, "tokens", "tokens is %lld; a rule divides from 1 to 2^60 among its stages",
                                    (long long)r->options.tokens);
    MOEDI_GO(MOEDI_NEW(c, r->count, &ends));
    MOEDI_GO(MOEDI_NEW(c, r->count, &stages));
    MOEDI_GO(rule_ends(r, ends));
    MOEDI_GO(rule_stages(r, ends, stages));
    MOEDI_GO(make(out, c, stages, r->count, r->options.step_tokens));
out:
    moedi_free(c, ends);
    moedi_free(c, stages);
    return status;
}

moed_status moed_growth_from_law(moed_growth **out, moed_context *c, const moed_law *law, const int32_t *experts, size_t count,
                                 const moed_growth_options *o)
{
    rule r = {.law = law, .experts = experts, .count = count};
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(law, "the law is NULL");
    MOEDI_REQUIRE(experts, "experts is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_GROWTH_OPTIONS, o, &r.options));
    return from_rule(out, c, &r);
}

moed_status moed_growth_from_power(moed_growth **out, moed_context *c, const int32_t *experts, size_t count,
                                   const moed_growth_options *o)
{
    rule r = {.experts = experts, .count = count};
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(experts, "experts is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_GROWTH_OPTIONS, o, &r.options));
    return from_rule(out, c, &r);
}

static moed_status stage_of_tokens(moed_stage *out, size_t i, int32_t experts, int64_t tokens, int64_t step)
{
    const int64_t half = step / 2;
    if (experts < 1) return bad(i, "experts", "it must be from 1 to 2^24", experts);
    if (tokens < step - half || tokens > (int64_t)1 << 60)
        return bad(i, "tokens", "it must be from half a step to 2^60", (double)tokens);
    *out = (moed_stage){.experts = experts, .tokens = (tokens + half) / step * step};
    return MOED_OK;
}

moed_status moed_growth_from_tokens(moed_growth **out, moed_context *c, const int32_t *experts, const int64_t *tokens,
                                    size_t count, const moed_growth_options *options)
{
    moed_growth_options o;
    moed_stage *stages = NULL;
    moed_status status = MOED_OK;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(experts, "experts is NULL");
    MOEDI_REQUIRE(tokens, "tokens is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_GROWTH_OPTIONS, options, &o));
    MOEDI_TRY(check_count(count));
    MOEDI_TRY(MOEDI_NEW(c, count, &stages));
    for (size_t i = 0; i < count; i++) MOEDI_GO(stage_of_tokens(&stages[i], i, experts[i], tokens[i], o.step_tokens));
    set_rates(stages, count, &o);
    MOEDI_GO(make(out, c, stages, count, o.step_tokens));
out:
    moedi_free(c, stages);
    return status;
}

/* ---- asking ---- */

moed_status moed_growth_get_info(const moed_growth *g, moed_growth_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(g, "the growth is NULL");
    MOEDI_TRY(moedi_context_check(g->context));
    return moedi_info_write(MOED_STRUCT_GROWTH_INFO, &g->info, out);
}

moed_status moed_growth_stage(const moed_growth *g, size_t index, moed_stage *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(g, "the growth is NULL");
    MOEDI_TRY(moedi_context_check(g->context));
    if (index >= (size_t)g->info.stages)
        return moedi_fail(MOED_E_RANGE, "the growth has %d stages, no stage %zu", (int)g->info.stages, index);
    return moedi_info_write(MOED_STRUCT_STAGE, &g->stages[index], out);
}

/* Of a step that ends `into` tokens after the stage's start: the first one rises, the last one has the final rate exactly. */
static double rate_at(const moed_stage *s, int64_t into)
{
    const double pi = 3.14159265358979323846;
    if (into < s->warmup) return s->learning_rate * ((double)into / (double)s->warmup);
    const int64_t falling = into - (s->tokens - s->decay);
    if (falling <= 0 || s->decay_shape == MOED_DECAY_NONE) return s->learning_rate;
    const double part = falling < s->decay ? (double)falling / (double)s->decay : 1;
    const double fallen = s->decay_shape == MOED_DECAY_LINEAR ? part : 0.5 * (1 - cos(pi * part));
    return s->learning_rate * (1 - (1 - s->final_rate) * fallen);
}

static int32_t stage_at(const moed_growth *g, int64_t tokens)
{
    int32_t low = 0, high = g->info.stages - 1;
    while (low < high) {
        const int32_t middle = low + (high - low + 1) / 2;
        if (g->stages[middle].start <= tokens) low = middle;
        else high = middle - 1;
    }
    return low;
}

static int32_t top_k_at(const moed_growth *g, int32_t stage)
{
    while (stage > 0 && g->stages[stage].top_k == 0) stage--;
    return g->stages[stage].top_k;
}

moed_status moed_growth_at(const moed_growth *g, int64_t tokens, moed_growth_point *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(g, "the growth is NULL");
    MOEDI_TRY(moedi_context_check(g->context));
    if (tokens < 0) return moedi_fail_parameter(MOED_E_RANGE, "tokens", "tokens is %lld, below 0", (long long)tokens);
    const int32_t at = stage_at(g, tokens), now = g->info.entered;
    const moed_stage *s = &g->stages[at];
    const int64_t left = s->start + s->tokens - tokens, step = g->info.step_tokens;
    moed_growth_point p = {.struct_size = sizeof p,
                           .stage = at,
                           .experts = s->experts,
                           .top_k = top_k_at(g, at),
                           .start = s->start,
                           .end = s->start + s->tokens,
                           .experts_now = g->stages[now].experts};
    if (at > now && (s->experts != p.experts_now || p.top_k != top_k_at(g, now))) p.due |= MOED_GROWTH_EXPAND;
    if (tokens >= g->info.tokens) p.due |= MOED_GROWTH_END;
    p.learning_rate = rate_at(s, left > step ? tokens - s->start + step : s->tokens);
    return moedi_info_write(MOED_STRUCT_GROWTH_POINT, &p, out);
}

moed_status moed_growth_enter(moed_growth *g, int32_t stage, int64_t tokens)
{
    moedi_clear_error();
    MOEDI_REQUIRE(g, "the growth is NULL");
    MOEDI_TRY(moedi_context_check(g->context));
    if (stage < 0 || stage >= g->info.stages)
        return moedi_fail_parameter(MOED_E_RANGE, "stage", "the growth has %d stages, no stage %d", (int)g->info.stages,
                                    (int)stage);
    if (tokens < g->info.entered_at || tokens > INT64_MAX / 2)
        return moedi_fail_parameter(MOED_E_RANGE, "tokens", "tokens is %lld; stage %d was entered at %lld", (long long)tokens,
                                    (int)g->info.entered, (long long)g->info.entered_at);
    if (stage < g->info.entered)
        return moedi_fail(MOED_E_STATE, "stage %d: the trainer is in stage %d already", (int)stage, (int)g->info.entered);
    g->info.entered = stage;
    g->info.entered_at = tokens;
    return MOED_OK;
}

/* ---- as bytes: little-endian words of 64 bits; the head, each stage, a checksum of all that ---- */

enum { HEAD_WORDS = 6, STAGE_WORDS = 9, SUM_WORDS = 2, STATE_VERSION = 1 };
static const uint64_t MAGIC = 0x776f726764656f6d; /* "moedgrow" */

static void put_word(unsigned char *to, uint64_t word)
{
    for (int i = 0; i < 8; i++) to[i] = (unsigned char)(word >> 8 * i);
}
static uint64_t get_word(const unsigned char *from)
{
    uint64_t word = 0;
    for (int i = 0; i < 8; i++) word |= (uint64_t)from[i] << 8 * i;
    return word;
}
static uint64_t real_word(double x)
{
    uint64_t word;
    memcpy(&word, &x, sizeof word);
    return word;
}
static double word_real(uint64_t word)
{
    double x;
    memcpy(&x, &word, sizeof x);
    return x;
}

static size_t state_size(int32_t stages) { return 8u * (HEAD_WORDS + (size_t)stages * STAGE_WORDS + SUM_WORDS); }

static const char *const STAGE_FIELDS[STAGE_WORDS] = {"experts", "top_k",      "tokens",      "learning_rate", "warmup",
                                                      "decay",   "final_rate", "decay_shape", "start"};

static void stage_words(const moed_stage *s, uint64_t out[STAGE_WORDS])
{
    const uint64_t words[STAGE_WORDS] = {(uint64_t)s->experts, (uint64_t)s->top_k,    (uint64_t)s->tokens,
                                         real_word(s->learning_rate), (uint64_t)s->warmup, (uint64_t)s->decay,
                                         real_word(s->final_rate), (uint64_t)s->decay_shape, (uint64_t)s->start};
    memcpy(out, words, sizeof words);
}

static void words_stage(const unsigned char *from, moed_stage *s)
{
    uint64_t w[STAGE_WORDS];
    for (int i = 0; i < STAGE_WORDS; i++) w[i] = get_word(from + 8 * i);
    *s = (moed_stage){.struct_size = sizeof *s, .experts = (int32_t)w[0], .top_k = (int32_t)w[1], .tokens = (int64_t)w[2],
                      .learning_rate = word_real(w[3]), .warmup = (int64_t)w[4], .decay = (int64_t)w[5],
                      .final_rate = word_real(w[6]), .decay_shape = (int32_t)w[7], .start = (int64_t)w[8]};
}

moed_status moed_growth_get_state(const moed_growth *g, void *state, size_t capacity, size_t *size)
{
    moedi_clear_error();
    MOEDI_REQUIRE(g, "the growth is NULL");
    MOEDI_REQUIRE(size, "size is NULL");
    MOEDI_REQUIRE(state || capacity == 0, "state is NULL");
    MOEDI_TRY(moedi_context_check(g->context));
    *size = state_size(g->info.stages);
    if (!state) return MOED_OK;
    if (capacity < *size)
        return moedi_fail_parameter(MOED_E_RANGE, "capacity", "the state takes %zu bytes, there is room for %zu", *size,
                                    capacity);
    unsigned char *to = state;
    put_word(to, MAGIC);
    put_word(to + 8, STATE_VERSION);
    put_word(to + 16, (uint64_t)g->info.stages);
    put_word(to + 24, (uint64_t)g->info.step_tokens);
    put_word(to + 32, (uint64_t)g->info.entered);
    put_word(to + 40, (uint64_t)g->info.entered_at);
    to += 8 * HEAD_WORDS;
    for (int32_t i = 0; i < g->info.stages; i++) {
        uint64_t words[STAGE_WORDS];
        stage_words(&g->stages[i], words);
        for (int k = 0; k < STAGE_WORDS; k++, to += 8) put_word(to, words[k]);
    }
    const moedi_digest sum = moedi_hash_bytes(state, *size - 8 * SUM_WORDS);
    put_word(to, sum.low);
    put_word(to + 8, sum.high);
    return MOED_OK;
}

typedef struct head {
    int32_t stages, entered;
    int64_t step_tokens, entered_at;
} head;

static moed_status read_head(const unsigned char *from, size_t size, head *out)
{
    if (size < state_size(1) || get_word(from) != MAGIC)
        return moedi_fail_parameter(MOED_E_FORMAT, "state", "%zu bytes that are not a growth's state", size);
    if (get_word(from + 8) != STATE_VERSION)
        return moedi_fail_parameter(MOED_E_FORMAT, "state", "a growth's state of version %llu; this library knows version %d",
                                    (unsigned long long)get_word(from + 8), STATE_VERSION);
    const uint64_t stages = get_word(from + 16), entered = get_word(from + 32);
    if (stages < 1 || stages > STAGES_MOST || size != state_size((int32_t)stages))
        return moedi_fail_parameter(MOED_E_FORMAT, "state", "a growth's state of %llu stages in %zu bytes",
                                    (unsigned long long)stages, size);
    const moedi_digest sum = moedi_hash_bytes(from, size - 8 * SUM_WORDS);
    const unsigned char *kept = from + size - 8 * SUM_WORDS;
    if (get_word(kept) != sum.low || get_word(kept + 8) != sum.high)
        return moedi_fail_parameter(MOED_E_CHECKSUM, "state", "a growth's state whose checksum does not match: it is damaged");
    *out = (head){(int32_t)stages, (int32_t)entered, (int64_t)get_word(from + 24), (int64_t)get_word(from + 40)};
    if (entered >= stages || out->step_tokens < 1 || out->entered_at < 0)
        return moedi_fail_parameter(
            MOED_E_FORMAT, "state", "a growth's state with stage %llu of %llu, %lld tokens a step, entered at %lld",
            (unsigned long long)entered, (unsigned long long)stages, (long long)out->step_tokens, (long long)out->entered_at);
    return MOED_OK;
}

moed_status moed_growth_set_state(moed_growth *g, const void *state, size_t size)
{
    const unsigned char *from = state;
    head h;
    moedi_clear_error();
    MOEDI_REQUIRE(g, "the growth is NULL");
    MOEDI_REQUIRE(state, "state is NULL");
    MOEDI_TRY(moedi_context_check(g->context));
    MOEDI_TRY(read_head(from, size, &h));
    if (h.stages != g->info.stages)
        return moedi_fail_parameter(MOED_E_MISMATCH, "stages", "the state is of a growth of %d stages, this one has %d",
                                    (int)h.stages, (int)g->info.stages);
    if (h.step_tokens != g->info.step_tokens)
        return moedi_fail_parameter(MOED_E_MISMATCH, "step_tokens", "the state is of steps of %lld tokens, here they have %lld",
                                    (long long)h.step_tokens, (long long)g->info.step_tokens);
    from += 8 * HEAD_WORDS;
    for (int32_t i = 0; i < h.stages; i++) {
        uint64_t words[STAGE_WORDS];
        stage_words(&g->stages[i], words);
        for (int k = 0; k < STAGE_WORDS; k++, from += 8)
            if (get_word(from) != words[k])
                return moedi_fail_parameter(MOED_E_MISMATCH, STAGE_FIELDS[k], "stage %d: %s is not the state's", (int)i,
                                            STAGE_FIELDS[k]);
    }
    g->info.entered = h.entered;
    g->info.entered_at = h.entered_at;
    return MOED_OK;
}

moed_status moed_growth_from_state(moed_growth **out, moed_context *c, const void *state, size_t size)
{
    moed_stage *stages = NULL;
    moed_growth *g = NULL;
    head h;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(state, "state is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(read_head(state, size, &h));
    MOEDI_TRY(MOEDI_NEW(c, h.stages, &stages));
    for (int32_t i = 0; i < h.stages; i++)
        words_stage((const unsigned char *)state + 8 * (HEAD_WORDS + (size_t)i * STAGE_WORDS), &stages[i]);
    moed_status status = make(&g, c, stages, (size_t)h.stages, h.step_tokens);
    moedi_free(c, stages);
    if (!status) status = moed_growth_set_state(g, state, size); /* refuses words that say more than the table they made */
    if (status) moed_growth_destroy(g);
    else *out = g;
    return status;
}
