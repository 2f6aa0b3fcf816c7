/* law.c - the verbs law fit and law predict. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "laws.h"
#include "output.h"

/* ---- law fit ---- */

typedef struct fit_settings {
    const char *out;
    moed_fit_options options;
} fit_settings;

static const moed_field FIT_FIELDS[] = {
    FIELD_TEXT_(fit_settings, out, "file that the law is written to, for --law of other verbs"),
};

static void tell_law(const moed_law *l, double seconds)
{
    moed_law_info i = {.struct_size = sizeof i};
    json_t *o = must(json_object()), *list = must(json_object());
    moed_law_get_info(l, &i);
    for (int32_t k = 0; k < i.coefficients; k++) {
        moed_coefficient one = {.struct_size = sizeof one};
        moed_law_coefficient(l, (size_t)k, &one);
        if (i.bootstrap) say("  %-8s %12.6g   %12.6g to %.6g", one.name, one.value, one.low, one.high);
        else say("  %-8s %12.6g", one.name, one.value);
        put(list, one.name, i.bootstrap ? json_pack("[fff]", one.value, one.low, one.high) : json_real(one.value));
    }
    say("%s in %.2f s: RMSE of log loss %.5f over the %lld fitted, %.5f over the %lld held out", i.source, seconds,
        i.trained_rmse, (long long)i.trained_runs, i.held_out_rmse, (long long)i.held_out_runs);
    put(o, "event", json_string("law"));
    put(o, "trained_runs", json_integer(i.trained_runs));
    put(o, "held_out_runs", json_integer(i.held_out_runs));
    put(o, "trained_rmse", json_real(i.trained_rmse));
    put(o, "held_out_rmse", json_real(i.held_out_rmse));
    put(o, "seconds", json_real(seconds));
    put(o, "coefficients", list);
    emit(o);
}

int verb_law_fit(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    fit_settings s = {0};
    moed_context *context = NULL;
    moed_law *l = NULL;
    moed_run_point *points = NULL;
    size_t count = 0;
    OPTIONS_INIT(FIT_OPTIONS, &s.options);
    flags_table(&f, "law", FIT_FIELDS, sizeof FIT_FIELDS / sizeof *FIT_FIELDS, &s);
    flags_struct(&f, "fit", MOED_STRUCT_FIT_OPTIONS, &s.options, NULL);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 1, 1);
    if (code >= 0) return code;
    code = common_open(&c, &context);
    if (!code && s.out && same_folder(f.positionals[0], s.out))
        code = fail(EXIT_INPUT, "--out %s: is the file of the runs, which the law would replace; choose another", s.out);
    if (!code) code = runs_read(f.positionals[0], &points, &count);
    if (!code) {
        const double begun = now_seconds();
        const moed_status status = moed_law_fit(&l, context, points, count, &s.options, app_cancel);
        if (status)
            code = status == MOED_E_CANCELLED ? fail_status(status)
                                              : fail(exit_code(status), "%s: %s", f.positionals[0], moed_last_error());
        else tell_law(l, now_seconds() - begun);
    }
    if (!code && s.out) code = law_save(s.out, l);
    moed_law_destroy(l);
    moed_context_destroy(context);
    free(points);
    flags_free(&f);
    return code;
}

/* ---- law predict ---- */

enum { EXPERTS_MOST = 64 };

typedef struct predict_settings {
    const char *law, *experts;
    double active, tokens, flops;
    int64_t top_k;
} predict_settings;

static const moed_field PREDICT_FIELDS[] = {
    FIELD_TEXT_(predict_settings, law,
                "a published law (ludziejewski-2025, abnar-2025, krajewski-2024), or a file of `law fit --out`"),
    FIELD_TEXT_(predict_settings, experts, "experts in the pool, a number or several with commas between"),
    FIELD_INTEGER(predict_settings, top_k, 0, 0, 65536,
                  "experts that each token visits, 0 = the law's own (1 for a published one)"),
    FIELD_NUMBER(predict_settings, active, 0, 0, 1e30, "active parameters, embeddings included"),
    FIELD_NUMBER(predict_settings, tokens, 0, 0, 1e30, "tokens trained on"),
    FIELD_NUMBER(predict_settings, flops, 0, 0, 1e60,
                 "budget: gives the best active parameters and tokens for it (6 FLOP a parameter and token)"),
};

static int predict_one(const moed_law *l, const predict_settings *s, double experts)
{
    moed_law_terms t = {.struct_size = sizeof t};
    double n = s->active, d = s->tokens, loss = 0;
    char active[32], tokens[32];
    moed_status status = moed_law_get_terms(l, experts, &t);
    if (!status && s->flops > 0) status = moed_law_optimum(l, s->flops, experts, &n, &d);
    if (!status && n > 0 && d > 0) status = moed_law_predict(l, n, experts, d, &loss);
    if (status) return fail_status(status);
    json_t *o = must(json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f}", "event", "law", "experts", experts, "m", t.m, "mu", -t.p,
                               "n", t.n, "nu", -t.v, "c", t.c));
    if (t.m2 > 0) {
        put(o, "m2", json_real(t.m2));
        put(o, "mu2", json_real(-t.p2));
    }
    if (n > 0 && d > 0) {
        put(o, "active", json_real(n));
        put(o, "tokens", json_real(d));
        put(o, "loss", json_real(loss));
        say("%8g experts: loss %.4f with %s active parameters and %s tokens%s", experts, loss, human_count(n, active),
            human_count(d, tokens), s->flops > 0 ? ", the best of this budget" : "");
    }
    if (t.m2 > 0)
        say("%8g experts: L = %.6g N^%.4f + %.6g N^%.4f + %.6g D^%.4f + %.6g", experts, t.m, -t.p, t.m2, -t.p2, t.n, -t.v, t.c);
    else say("%8g experts: L = %.6g N^%.4f + %.6g D^%.4f + %.6g", experts, t.m, -t.p, t.n, -t.v, t.c);
    emit(o);
    return EXIT_DONE;
}

int verb_law_predict(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    predict_settings s = {.law = "ludziejewski-2025", .experts = "8"};
    moed_context *context = NULL;
    moed_law *l = NULL;
    double experts[EXPERTS_MOST];
    size_t count = 0;
    flags_table(&f, "law", PREDICT_FIELDS, sizeof PREDICT_FIELDS / sizeof *PREDICT_FIELDS, &s);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 0, 0);
    if (code >= 0) return code;
    if (s.flops > 0 && (s.active > 0 || s.tokens > 0))
        return fail(EXIT_INPUT, "--flops finds --active and --tokens: give one or the other");
    if ((s.active > 0) != (s.tokens > 0)) return fail(EXIT_INPUT, "--active and --tokens belong together; --flops finds both");
    code = pairs_read("experts", s.experts, experts, NULL, EXPERTS_MOST, &count);
    if (!code) code = common_open(&c, &context);
    if (!code) code = law_open(&l, context, s.law, s.top_k);
    for (size_t i = 0; i < count && !code; i++) code = predict_one(l, &s, experts[i]);
    moed_law_destroy(l);
    moed_context_destroy(context);
    flags_free(&f);
    return code;
}
