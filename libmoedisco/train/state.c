/* train/state.c - position and settings of a run as JSON. The options table says which fields there are, so none is forgotten. */
#include "state.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "settings.h"
#include "util/hash.h"

/* Counted up when the same numbers come to mean something else. 2: `row` counts rows of an epoch in their drawn order. */
enum { STATE_FORMAT = 2 };

/* Fields that may change between a run and its continuation: they say what is written, watched and how, not what is computed. */
static int may_differ(const char *name)
{
    static const char *const names[] = {"directory", "checkpoint_every", "keep", "evaluate_every", "evaluate_tokens", "held_out",
                                        "progress", "progress_user", "graph", "store_late",
                                        "policy" /* what it came to stands apart */};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i]) == 0) return 1;
    return 0;
}

/* Next field of the options that must agree; 0 past the last. */
static int next_field(size_t *index, moed_field *f)
{
    for (;;) {
        f->struct_size = sizeof *f;
        if (moed_options_field(MOED_STRUCT_TRAIN_OPTIONS, (*index)++, f) != MOED_OK) {
            moedi_clear_error();
            return 0;
        }
        if (f->type != MOED_FIELD_POINTER && !may_differ(f->name)) return 1;
    }
}

static json_t *field_value(const moed_train_options *o, const moed_field *f)
{
    const char *at = (const char *)o + f->offset;
    char text[32];
    switch (f->type) {
    case MOED_FIELD_I64: return json_integer((json_int_t)*(const int64_t *)(const void *)at);
    case MOED_FIELD_F64: return json_real(*(const double *)(const void *)at);
    case MOED_FIELD_U64: /* may not fit a JSON integer */
        snprintf(text, sizeof text, "%" PRIu64, *(const uint64_t *)(const void *)at);
        return json_string(text);
    case MOED_FIELD_TEXT: {
        const char *const given = *(const char *const *)(const void *)at;
        return json_string(given ? given : "");
    }
    default: return json_integer(*(const int32_t *)(const void *)at);
    }
}

/* "whole", or a digest of the documents a view shows. */
static void view_digest(const moed_corpus *d, char out[33])
{
    if (!d->numbers) snprintf(out, 33, "whole");
    else moedi_digest_print(moedi_hash_bytes(d->numbers, (size_t)d->documents * sizeof *d->numbers), out);
}

static json_t *make_options(const moed_train_options *o)
{
    json_t *options = json_object();
    moed_field f;
    for (size_t i = 0; options && next_field(&i, &f);)
        if (json_object_set_new(options, f.name, field_value(o, &f)) != 0) {
            json_decref(options);
            return NULL;
        }
    return options;
}

json_t *moedi_state_make(const moed_trainer *t)
{
    char layout[33], view[33];
    moedi_layout_fingerprint(t->model->layout, layout);
    view_digest(t->corpus, view);
    const uint32_t version = moed_version();
    char text[32];
    snprintf(text, sizeof text, "%u.%u.%u", version / 1000000, version / 1000 % 1000, version % 1000);
    json_t *options = make_options(&t->options);
    if (!options) return NULL;
    json_t *state =
        json_pack("{s:i, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:f, s:I, s:s, s:{s:s, s:s, s:I, s:I}}", "format", STATE_FORMAT,
                  "library", text, "kernels", t->context->backend_info.kernels, "policy", moedi_policy_name(t->policy), "step",
                  (json_int_t)t->step, "tokens", (json_int_t)t->consumed, "row", (json_int_t)t->row, "evaluated",
                  (json_int_t)t->evaluated, "best_held_out", t->best_held_out, "moments_since", (json_int_t)t->optimizer.since,
                  "layout", layout, "corpus", "fingerprint", t->corpus->info.fingerprint, "view", view, "documents",
                  (json_int_t)t->corpus->documents, "tokens", (json_int_t)t->corpus->info.tokens);
    if (json_object_set_new(state, "options", options) == 0) return state;
    json_decref(state);
    return NULL;
}

/* By as few digits as read back the same: 0.4, not 0.40000000000000002. */
static void print_real(double x, char *out, size_t size)
{
    int digits = 15;
    do snprintf(out, size, "%.*g", digits, x);
    while (digits++ < 17 && strtod(out, NULL) != x);
}

/* A scalar as a reader would write it. */
static void print_value(const json_t *v, char *out, size_t size)
{
    if (json_is_string(v)) snprintf(out, size, "\"%s\"", json_string_value(v));
    else if (json_is_integer(v)) snprintf(out, size, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
    else if (json_is_real(v)) print_real(json_real_value(v), out, size);
    else snprintf(out, size, "nothing");
}

static moed_status compare_value(const char *path, const char *field, const json_t *had, const json_t *have)
{
    if (json_equal(had, have)) return MOED_OK;
    if (json_is_number(had) && json_is_number(have) && json_number_value(had) == json_number_value(have)) return MOED_OK;
    char a[160], b[160];
    print_value(had, a, sizeof a);
    print_value(have, b, sizeof b);
    return moedi_fail_parameter(MOED_E_MISMATCH, field, "%s: the checkpoint was made with %s %s, this trainer has %s", path,
                                field, a, b);
}

moed_status moedi_state_policy(const moed_trainer *t, const json_t *state, const char *path, int32_t *policy)
{
    const json_t *recorded = json_object_get(state, "policy"); /* not there: made before there was a choice */
    const char *name = recorded ? json_string_value(recorded) : moedi_policy_name(MOED_POLICY_FULL);
    const int lean = name && strcmp(name, moedi_policy_name(MOED_POLICY_LEAN)) == 0;
    if (!lean && !(name && strcmp(name, moedi_policy_name(MOED_POLICY_FULL)) == 0))
        return moedi_fail_file(MOED_E_FORMAT, path, -1, "policy is neither full nor lean");
    *policy = lean ? MOED_POLICY_LEAN : MOED_POLICY_FULL;
    if (t->options.policy == MOED_POLICY_AUTO || t->options.policy == *policy) return MOED_OK;
    return moedi_fail_parameter(MOED_E_MISMATCH, "policy", "%s: the checkpoint was made with policy %s, this trainer has %s: "
                                "their moments are kept differently", path, name, moedi_policy_name(t->options.policy));
}

/* An option that the checkpoint's maker did not know had 0, which is as before there was one. */
static moed_status compare_options(const char *path, const json_t *had, const json_t *have)
{
    const moed_train_options before = {0};
    moed_field f;
    moed_status status = MOED_OK;
    json_t *unknown = make_options(&before);
    if (!unknown) return moedi_fail(MOED_E_MEMORY, "out of memory for %s", path);
    for (size_t i = 0; status == MOED_OK && next_field(&i, &f);) {
        const json_t *value = json_object_get(had, f.name);
        status = compare_value(path, f.name, value ? value : json_object_get(unknown, f.name), json_object_get(have, f.name));
    }
    json_decref(unknown);
    return status;
}

moed_status moedi_state_compare(const moed_trainer *t, const json_t *state, const char *path)
{
    MOEDI_TRY(moedi_json_format(state, path, STATE_FORMAT));
    json_t *mine = moedi_state_make(t);
    if (!mine) return moedi_fail(MOED_E_MEMORY, "out of memory for %s", path);
    static const char *const corpus[] = {"fingerprint", "view", "documents", "tokens"};
    moed_status status = compare_value(path, "layout", json_object_get(state, "layout"), json_object_get(mine, "layout"));
    for (size_t i = 0; status == MOED_OK && i < 4; i++) {
        char field[32];
        snprintf(field, sizeof field, "corpus %s", corpus[i]);
        status = compare_value(path, field, json_object_get(json_object_get(state, "corpus"), corpus[i]),
                               json_object_get(json_object_get(mine, "corpus"), corpus[i]));
    }
    if (status == MOED_OK) status = compare_options(path, json_object_get(state, "options"), json_object_get(mine, "options"));
    const char *kernels = json_string_value(json_object_get(state, "kernels"));
    if (status == MOED_OK && kernels && strcmp(kernels, t->context->backend_info.kernels) != 0)
        moedi_log(t->context, MOED_LOG_WARNING, "%s: made with kernels %s, going on with %s: the last bits will differ", path,
                  kernels, t->context->backend_info.kernels);
    json_decref(mine);
    return status;
}

moed_status moedi_state_read(moedi_state *out, const moed_trainer *t, const json_t *state, const char *path)
{
    const int64_t most = INT64_MAX / 2; /* counting goes on from here */
    moedi_state s = {0};
    MOEDI_TRY(moedi_json_integer(state, path, "step", 1, 0, t->options.steps, &s.step));
    MOEDI_TRY(moedi_json_integer(state, path, "tokens", 1, 0, most, &s.tokens));
    MOEDI_TRY(moedi_json_integer(state, path, "row", 1, 0, most, &s.row));
    MOEDI_TRY(moedi_json_integer(state, path, "evaluated", 1, 0, most, &s.evaluated));
    MOEDI_TRY(moedi_json_number(state, path, "best_held_out", 1, 0, 1e300, &s.best_held_out));
    MOEDI_TRY(moedi_json_integer(state, path, "moments_since", 0, 0, s.step, &s.moments_since));
    *out = s;
    return MOED_OK;
}
