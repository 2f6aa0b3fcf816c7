/* model.c - the verbs init and eval. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choices.h"
#include "clusters.h"
#include "info.h"
#include "output.h"
#include "size.h"

typedef struct init_settings {
    const char *corpus;
    int32_t force;
    int64_t shard_bytes;
} init_settings;

static const moed_field INIT_FIELDS[] = {
    FIELD_TEXT_(init_settings, corpus, "corpus whose vocabulary the model gets; none = bytes"),
    FIELD_SWITCH_(init_settings, force, "replace a model that is there already"),
    FIELD_INTEGER(init_settings, shard_bytes, 0, 0, 1e18, "bytes of tensors in one file at most; 0 = one file"),
};

int verb_init(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    sizes z;
    init_settings s = {0};
    moed_context *context = NULL;
    moed_corpus *d = NULL;
    moed_layout *l = NULL;
    moed_model *m = NULL;
    moed_corpus_info corpus = {.struct_size = sizeof corpus, .vocabulary = 257};
    sizes_flags(&f, &z);
    flags_table(&f, "model", INIT_FIELDS, sizeof INIT_FIELDS / sizeof *INIT_FIELDS, &s);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 1, 1);
    if (code >= 0) return code;
    sizes_settle(&z, &f);
    const char *dir = f.positionals[0];
    char *config = path_join(dir, "config.json");
    if (path_exists(config) && !s.force) code = fail(EXIT_INPUT, "%s: holds a model already; --force replaces it", dir);
    else code = EXIT_DONE;
    free(config);
    if (code || (code = common_open(&c, &context))) return code;
    moed_status status = s.corpus ? open_corpus(&d, context, s.corpus) : MOED_OK;
    if (!status && d) status = moed_corpus_get_info(d, &corpus);
    if (status) code = fail_status(status);
    if (!code) code = sizes_layout(&z, context, corpus.vocabulary, &l);
    if (!code) {
        moed_model_options save = z.init;
        save.shard_bytes = s.shard_bytes;
        z.init.flags |= MOED_MODEL_STREAM; /* saved as it is drawn: a model may be larger than memory */
        status = moed_model_init(&m, context, l, &z.init);
        if (!status) status = moed_model_save(m, dir, &save);
        if (status) code = fail_status(status);
        else layout_tell(dir, l);
    }
    moed_model_destroy(m);
    moed_layout_destroy(l);
    moed_corpus_destroy(d);
    moed_context_destroy(context);
    return code;
}

typedef struct eval_settings {
    int64_t rows, length, tokens;
    int32_t document_mask;
} eval_settings;

static const moed_field EVAL_FIELDS[] = {
    FIELD_INTEGER(eval_settings, rows, 8, 1, 1 << 16, "rows at a time"),
    FIELD_INTEGER(eval_settings, length, 0, 0, 1 << 24, "tokens per row, 0 = the model's context length, 512 at most"),
    FIELD_INTEGER(eval_settings, tokens, 0, 0, 1e15, "tokens to score at most, 0 = all"),
    FIELD_SWITCH_(eval_settings, document_mask, "attention stays inside a document"),
};

static void tell_load(const double *usage, const moed_layout_info *info)
{
    json_t *all = json_array();
    say("load of the experts, share of token-choices (1/%lld when balanced):", (long long)info->experts);
    for (int64_t l = 0; l < info->layers; l++) {
        char text[512];
        size_t at = 0;
        json_t *row = json_array();
        for (int64_t e = 0; e < info->experts; e++) {
            const double share = usage[l * info->experts + e];
            if (at + 8 < sizeof text) at += (size_t)snprintf(text + at, sizeof text - at, " %.3f", share);
            put_last(row, finite_or_null(share));
        }
        say("  layer %lld:%s", (long long)l, text);
        put_last(all, row);
    }
    emit(json_pack("{s:s, s:o}", "event", "load", "usage", all));
}

static int evaluate(const moed_model *m, const moed_corpus *d, const eval_settings *s)
{
    moed_layout_info info = {.struct_size = sizeof info};
    moed_corpus_info corpus = {.struct_size = sizeof corpus};
    moed_report r = {.struct_size = sizeof r};
    moed_layout_get_info(moed_model_layout(m), &info);
    moed_corpus_get_info(d, &corpus);
    int64_t length = s->length ? s->length : info.context_length;
    if (!s->length && length > 512) length = 512;
    moed_status status = moed_model_evaluate(m, d, s->tokens, s->rows, length, s->document_mask, &r, app_cancel);
    if (status) return fail_status(status);
    const int bytes = !strcmp(corpus.tokenizer, "bytes");
    char bits[64] = "";
    if (bytes) snprintf(bits, sizeof bits, ", %.4f bits per byte", r.loss / log(2));
    say("loss %.4f, perplexity %.3f%s over %lld tokens in %lld documents", r.loss, exp(r.loss), bits, (long long)r.labels,
        (long long)corpus.documents);
    emit(json_pack("{s:s, s:f, s:o, s:o, s:I}", "event", "eval", "loss", r.loss, "perplexity", finite_or_null(exp(r.loss)),
                   "bits_per_byte", bytes ? json_real(r.loss / log(2)) : json_null(), "tokens", (json_int_t)r.labels));
    if (info.experts < 1) return EXIT_DONE;
    double *usage = must(calloc((size_t)(info.layers * info.experts), sizeof *usage)); /* (layers, experts) */
    const int64_t looked = s->tokens ? s->tokens : 100000;
    status = moed_model_usage(m, d, looked < corpus.tokens ? looked : 0, usage, NULL, app_cancel);
    if (!status) tell_load(usage, &info);
    free(usage);
    return status ? fail_status(status) : EXIT_DONE;
}

int verb_eval(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    choice pick;
    eval_settings s = {.rows = 8};
    choices_settings task;
    moed_context *context = NULL;
    moed_corpus *d = NULL, *view = NULL;
    moed_model *m = NULL;
    flags_table(&f, "evaluation", EVAL_FIELDS, sizeof EVAL_FIELDS / sizeof *EVAL_FIELDS, &s);
    choice_flags(&f, &pick, PART_ALL);
    choices_flags(&f, &task);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    moed_status status = moed_model_open(&m, context, f.positionals[0], NULL);
    if (!status && !task.task) status = open_corpus(&d, context, f.positionals[1]);
    if (status) code = fail_status(status);
    else if (task.task) code = choices_evaluate(m, f.positionals[0], f.positionals[1], &task);
    else if (!(code = choice_view(&pick, context, d, &view, NULL))) code = evaluate(m, view, &s);
    moed_model_destroy(m);
    moed_corpus_destroy(view);
    moed_corpus_destroy(d);
    moed_context_destroy(context);
    return code;
}
