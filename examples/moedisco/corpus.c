/* corpus.c - corpus build, export, info. */
#include <stdlib.h>
#include <string.h>

#include "clusters.h"
#include "output.h"

void corpus_tell(const char *name, const moed_corpus *d)
{
    moed_corpus_info i = {.struct_size = sizeof i};
    if (moed_corpus_get_info(d, &i)) return;
    char tokens[32];
    say("corpus %s: %lld documents, %lld tokens (%s), the longest %lld, vocabulary %lld, tokenizer %s, fingerprint %s", name,
        (long long)i.documents, (long long)i.tokens, human_count((double)i.tokens, tokens), (long long)i.longest,
        (long long)i.vocabulary, i.tokenizer[0] ? i.tokenizer : "not known", i.fingerprint);
    emit(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "event", "corpus", "path", utf8(name), "documents",
                   (json_int_t)i.documents, "tokens", (json_int_t)i.tokens, "longest", (json_int_t)i.longest, "vocabulary",
                   (json_int_t)i.vocabulary, "end_token", (json_int_t)i.end_token, "tokenizer", i.tokenizer, "fingerprint",
                   i.fingerprint));
}

int corpus_build(moed_context *c, const char *const *paths, size_t count, const char *prefix, const moed_corpus_options *o)
{
    moed_corpus_report r = {.struct_size = sizeof r};
    const moed_status status = moed_corpus_build(c, paths, count, prefix, o, &r, app_cancel);
    if (status) return fail_status(status);
    say("built %s from %lld files: %lld documents, %lld tokens; left out: %lld copies, %lld empty or short, "
        "%lld binary or not UTF-8", prefix,
        (long long)r.files, (long long)r.documents, (long long)r.tokens, (long long)r.duplicates, (long long)r.empty,
        (long long)r.binary_files);
    emit(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I}", "event", "built", "path", utf8(prefix), "files",
                   (json_int_t)r.files, "documents", (json_int_t)r.documents, "tokens", (json_int_t)r.tokens, "duplicates",
                   (json_int_t)r.duplicates, "empty", (json_int_t)r.empty, "binary_files", (json_int_t)r.binary_files));
    return EXIT_DONE;
}

int verb_corpus_build(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    moed_corpus_options o;
    moed_context *context = NULL;
    OPTIONS_INIT(CORPUS_OPTIONS, &o);
    flags_struct(&f, "corpus", MOED_STRUCT_CORPUS_OPTIONS, &o, "vocabulary,end_token");
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, POSITIONALS_MAX);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    char *folder = NULL, *made = NULL;
    const char *prefix = f.positionals[0], *slash = strrchr(prefix, '/');
    if (slash && slash != prefix) {
        folder = must(strndup(prefix, (size_t)(slash - prefix)));
        code = make_folder_for(folder, &made);
    }
    if (!code) code = corpus_build(context, f.positionals + 1, f.positional_count - 1, prefix, &o);
    if (folder) unmake_folder(code, folder, made);
    free(folder);
    moed_context_destroy(context);
    return code;
}

static int same_corpus(const char *a, const char *b)
{
    char *x = text_format("%s.bin", a), *y = text_format("%s.bin", b);
    const int same = same_folder(x, y);
    free(x);
    free(y);
    return same;
}

int verb_corpus_export(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    choice pick;
    moed_context *context = NULL;
    moed_corpus *d = NULL, *view = NULL;
    choice_flags(&f, &pick, PART_ALL);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    moed_status status = open_corpus(&d, context, f.positionals[0]);
    if (status) code = fail_status(status);
    else if (same_corpus(f.positionals[0], f.positionals[1])) /* what is not chosen would be lost */
        code = fail(EXIT_INPUT, "%s: is the result and the input too; choose another name for OUT", f.positionals[1]);
    else if (!(code = choice_view(&pick, context, d, &view, NULL))) {
        moed_corpus *saved = NULL; /* has another fingerprint than the view */
        status = moed_corpus_save(view, f.positionals[1], app_cancel);
        if (!status) status = open_corpus(&saved, context, f.positionals[1]);
        if (status) code = fail_status(status);
        else corpus_tell(f.positionals[1], saved);
        moed_corpus_destroy(saved);
    }
    moed_corpus_destroy(view);
    moed_corpus_destroy(d);
    moed_context_destroy(context);
    return code;
}

int verb_corpus_info(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    moed_context *context = NULL;
    moed_corpus *d = NULL;
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 1, 1);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    const moed_status status = open_corpus(&d, context, f.positionals[0]);
    if (status) code = fail_status(status);
    else corpus_tell(f.positionals[0], d);
    moed_corpus_destroy(d);
    moed_context_destroy(context);
    return code;
}
