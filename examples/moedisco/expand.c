/* expand.c - a model with more experts, or with fewer. */
#include <stdlib.h>

#include "app.h"
#include "expand.h"
#include "output.h"

typedef struct expand_settings {
    const char *corpus;
    int64_t usage_tokens;
} expand_settings;

static const moed_field EXPAND_FIELDS[] = {
    FIELD_TEXT_(expand_settings, corpus, "text that says how much each expert is used: the most used are cloned first, and stay "
                                         "where there are to be fewer"),
    FIELD_INTEGER(expand_settings, usage_tokens, 100000, 1, 1e15, "tokens of it that are looked at"),
};

/* usage [out]: (layers, experts), NULL without a corpus. */
static moed_status measure_usage(const expand_settings *s, moed_context *c, const moed_model *m, const moed_layout_info *info,
                                 double **usage)
{
    moed_corpus *d = NULL;
    *usage = NULL;
    if (!s->corpus) return MOED_OK;
    moed_status status = open_corpus(&d, c, s->corpus);
    if (!status) {
        *usage = must(calloc((size_t)(info->layers * info->experts), sizeof **usage));
        status = moed_model_usage(m, d, s->usage_tokens, *usage, NULL, app_cancel);
    }
    moed_corpus_destroy(d);
    return status;
}

void expand_tell_unheeded(const flags *f, const moed_expansion_options *o, const char *prefix)
{
    char names[64];
    const int draws = o->method == MOED_EXPAND_DRAW;
    snprintf(names, sizeof names, draws ? "%snoise,%sredraw" : "%sstd", prefix, prefix);
    flags_tell_unheeded(f, names, draws ? "new experts are drawn, not clones" : "new experts are clones, not drawn");
}

static int expand(moed_context *c, const char *from_dir, const char *to_dir, const expand_settings *s,
                  const moed_expansion_options *o)
{
    moed_model *from = NULL, *whole = NULL;
    moed_expansion *x = NULL;
    double *usage = NULL;
    moed_layout_info had = {.struct_size = sizeof had}, has = {.struct_size = sizeof has};
    moed_status status = open_streamed(&from, c, from_dir);
    if (!status) status = moed_layout_get_info(moed_model_layout(from), &had);
    if (!status && o->experts < had.experts && !s->corpus) {
        moed_model_destroy(from);
        return fail(EXIT_INPUT, "--experts %d of the %lld that are there: give --corpus, to tell which are used most and stay",
                    (int)o->experts, (long long)had.experts);
    }
    if (!status) status = measure_usage(s, c, from, &had, &usage);
    if (!status) status = moed_expansion_create(&x, from, usage, o);
    if (!status) status = moed_expansion_build(&whole, x, to_dir, app_cancel);
    if (!status) status = moed_layout_get_info(moed_model_layout(whole), &has);
    const int code = status ? fail_status(status) : EXIT_DONE;
    if (!code) {
        say("%s: %lld experts, top-%lld, in place of %lld; %lld parameters, %lld of them active", to_dir, (long long)has.experts,
            (long long)has.top_k, (long long)had.experts, (long long)has.total, (long long)has.active);
        emit(json_pack("{s:s, s:s, s:I, s:I}", "event", "expanded", "path", utf8(to_dir), "experts", (json_int_t)has.experts,
                       "parameters", (json_int_t)has.total));
    }
    moed_model_destroy(whole);
    moed_expansion_destroy(x);
    moed_model_destroy(from);
    free(usage);
    return code;
}

int verb_expand(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    expand_settings s = {.usage_tokens = 100000};
    moed_expansion_options o;
    moed_context *context = NULL;
    OPTIONS_INIT(EXPANSION_OPTIONS, &o);
    flags_struct(&f, "expand", MOED_STRUCT_EXPANSION_OPTIONS, &o, NULL);
    flags_table(&f, "expand", EXPAND_FIELDS, sizeof EXPAND_FIELDS / sizeof *EXPAND_FIELDS, &s);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    code = refuse_same(f.positionals[0], f.positionals[1]);
    if (!code) expand_tell_unheeded(&f, &o, "");
    if (!code) code = expand(context, f.positionals[0], f.positionals[1], &s, &o);
    moed_context_destroy(context);
    return code;
}
