/* model/rope.c - rotary positions and the ways to stretch them (arXiv 2104.09864, 2309.00071; Llama 3.1), as Transformers
 * computes them from config.json alone. */
#include "rope.h"

#include <math.h>
#include <string.h>

#include "config_field.h"

#define MOST 1e15 /* of any number here */
static const double TURN = 6.283185307179586476925286766559;

/* The object that says it. rope_scaling goes before rope_parameters where a config has both, as in Transformers; an empty one
 * says nothing. */
static const char *place_of(const json_t *o)
{
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *rope = json_object_get(o, places[i]);
        if (rope && !json_is_null(rope) && !(json_is_object(rope) && json_object_size(rope) == 0)) return places[i];
    }
    return NULL;
}

static double magnitude_of(double factor, double scale)
{
    return factor <= 1 ? 1.0 : 0.1 * scale * log(factor) + 1.0;
}

/* A number that may be null, or 0, and is then `initial`. */
static moed_status read_or(const json_t *rope, const char *path, const char *field, double initial, double *out)
{
    *out = 0;
    MOEDI_TRY(moedi_json_number(rope, path, field, 0, 0.0, MOST, out));
    if (*out == 0) *out = initial;
    return MOED_OK;
}

static moed_status read_yarn(moedi_rope *out, int64_t context_length, const json_t *rope, const char *path)
{
    double scale, scale_all;
    out->factor = (double)context_length / out->original;
    MOEDI_TRY(moedi_json_number(rope, path, "factor", 0, 1e-3, MOST, &out->factor));
    MOEDI_TRY(read_or(rope, path, "beta_fast", 32, &out->high));
    MOEDI_TRY(read_or(rope, path, "beta_slow", 1, &out->low));
    MOEDI_TRY(read_or(rope, path, "mscale", 0, &scale));
    MOEDI_TRY(read_or(rope, path, "mscale_all_dim", 0, &scale_all));
    out->whole = 1;
    MOEDI_TRY(moedi_json_boolean(rope, path, "truncate", 0, &out->whole));
    out->magnitude = magnitude_of(out->factor, 1);
    if (scale > 0 && scale_all > 0) out->magnitude = magnitude_of(out->factor, scale) / magnitude_of(out->factor, scale_all);
    return moedi_json_number(rope, path, "attention_factor", 0, 0.0, MOST, &out->magnitude);
}

static moed_status read_llama3(moedi_rope *out, const json_t *rope, const char *path)
{
    MOEDI_TRY(moedi_json_number(rope, path, "factor", 1, 1e-3, MOST, &out->factor));
    MOEDI_TRY(moedi_json_number(rope, path, "low_freq_factor", 1, 1e-3, MOST, &out->low));
    MOEDI_TRY(moedi_json_number(rope, path, "high_freq_factor", 1, 1e-3, MOST, &out->high));
    if (out->high > out->low) return MOED_OK;
    return moedi_fail_parameter(MOED_E_RANGE, "high_freq_factor", "%s: high_freq_factor %g is not above low_freq_factor %g", path,
                                out->high, out->low);
}

moed_status moedi_rope_read(moedi_rope *out, double theta, int64_t context_length, const json_t *o, const char *path)
{
    static const char known[] = "rope_type \"default\", \"linear\", \"dynamic\", \"llama3\" or \"yarn\" over the whole head";
    const char *place = place_of(o), *type = "default", *key;
    json_t *value;
    *out = (moedi_rope){.theta = theta, .factor = 1, .magnitude = 1, .original = (double)context_length};
    double part = 1;
    MOEDI_TRY(moedi_json_number(o, path, "partial_rotary_factor", 0, 0.0, 1.0, &part));
    if (part != 1.0) return moedi_config_unsupported(o, "partial_rotary_factor", path, "1 (positions over the whole head)");
    MOEDI_TRY(moedi_json_number(o, path, "rope_theta", 0, 1.0, MOST, &out->theta));
    if (!place) return MOED_OK;
    const json_t *rope = json_object_get(o, place);
    if (!json_is_object(rope)) return moedi_config_unsupported(o, place, path, "an object or null");
    json_object_foreach((json_t *)(uintptr_t)rope, key, value)
        if (json_is_object(value) || json_is_array(value) ||
            (!strcmp(key, "partial_rotary_factor") && json_number_value(value) != 1.0))
            return moedi_config_unsupported(o, place, path, known);
    MOEDI_TRY(moedi_json_text(rope, path, "type", 0, &type));
    MOEDI_TRY(moedi_json_text(rope, path, "rope_type", 0, &type));
    MOEDI_TRY(moedi_json_number(rope, path, "rope_theta", 0, 1.0, MOST, &out->theta));
    MOEDI_TRY(moedi_json_number(rope, path, "original_max_position_embeddings", 0, 1.0, MOST, &out->original));
    MOEDI_TRY(moedi_json_number(o, path, "original_max_position_embeddings", 0, 1.0, MOST, &out->original));
    if (!strcmp(type, "default")) return MOED_OK;
    if (!strcmp(type, "dynamic")) return moedi_json_number(rope, path, "factor", 1, 1e-3, MOST, &out->factor);
    if (!strcmp(type, "linear")) {
        out->kind = MOEDI_ROPE_LINEAR;
        return moedi_json_number(rope, path, "factor", 1, 1e-3, MOST, &out->factor);
    }
    if (!strcmp(type, "llama3")) {
        out->kind = MOEDI_ROPE_LLAMA3;
        return read_llama3(out, rope, path);
    }
    if (strcmp(type, "yarn") != 0) return moedi_config_unsupported(o, place, path, known);
    out->kind = MOEDI_ROPE_YARN;
    return read_yarn(out, context_length, rope, path);
}

/* Between `plain` and plain / factor. */
static double llama3_frequency(const moedi_rope *r, double plain)
{
    const double turns = r->original * plain / TURN;
    if (turns > r->high) return plain;
    if (turns < r->low) return plain / r->factor;
    const double smooth = (turns - r->low) / (r->high - r->low);
    return (1 - smooth) * plain / r->factor + smooth * plain;
}

/* The pair, not a whole one, that turns `turns` times in the original context. */
static double pair_of(const moedi_rope *r, double head_dim, double turns)
{
    return head_dim * log(r->original / (turns * TURN)) / (2 * log(r->theta));
}

static double yarn_frequency(const moedi_rope *r, double plain, double head_dim, double i)
{
    double from = pair_of(r, head_dim, r->high), to = pair_of(r, head_dim, r->low);
    if (r->whole) from = floor(from), to = ceil(to);
    from = fmax(from, 0), to = fmin(to, head_dim - 1);
    if (from == to) to += 0.001;
    const double stretched = fmin(fmax((i - from) / (to - from), 0), 1);
    return plain / r->factor * stretched + plain * (1 - stretched);
}

double moedi_rope_frequency(const moedi_rope *r, int64_t head_dim, int64_t i)
{
    const double plain = pow(r->theta, -2.0 * (double)i / (double)head_dim);
    switch (r->kind) {
    case MOEDI_ROPE_LINEAR: return plain / r->factor;
    case MOEDI_ROPE_LLAMA3: return llama3_frequency(r, plain);
    case MOEDI_ROPE_YARN: return yarn_frequency(r, plain, (double)head_dim, (double)i);
    default: return plain;
    }
}
