/* corpus/build.c - a corpus from text: the paths that the caller named, read into a builder. */
#include <string.h>

#include "core/options.h"
#include "text.h"
#include "util/utf8.h"

#define BYTE_VOCABULARY 257
#define BYTE_END 256

static moed_status describe_sources(json_t *description, const char *const *paths, size_t count)
{
    json_t *sources = json_array();
    if (json_object_set_new(description, "source", sources) != 0) /* takes sources, whatever comes of it */
        return moedi_fail(MOED_E_MEMORY, "no memory for the description of the corpus");
    for (size_t i = 0; i < count; i++) {
        if (!moedi_utf8_text(paths[i], (int64_t)strlen(paths[i]))) continue; /* JSON cannot hold it: it stays out of the record */
        if (json_array_append_new(sources, json_string(paths[i])) != 0)
            return moedi_fail(MOED_E_MEMORY, "no memory for the description of the corpus");
    }
    return MOED_OK;
}

static void own_file(moedi_builder *b, const char *path)
{
    if (stat(path, &b->own[b->owns]) == 0) b->owns++;
}

static moed_status build(moedi_builder *b, const char *const *paths, size_t count, const char *prefix)
{
    json_t *description = NULL;
    moed_status status;
    MOEDI_GO(moedi_builder_open(b, prefix));
    own_file(b, b->writer.bin_path);
    own_file(b, b->writer.idx_path);
    own_file(b, b->writer.json_path);
    own_file(b, b->writer.bin.temporary);
    for (size_t i = 0; i < count; i++) MOEDI_GO(moedi_text_read(b, paths[i]));
    b->report.documents = b->writer.documents;
    b->report.tokens = b->writer.tokens;
    if (b->writer.documents == 0) {
        status = moedi_fail(MOED_E_FORMAT,
                            "no text for a corpus in %s%s: %lld text files read, %lld binary (or not UTF-8) files left out, "
                            "%lld documents empty or below %lld bytes",
                            paths[0], count > 1 ? " and the other paths" : "", (long long)b->report.files,
                            (long long)b->report.binary_files, (long long)b->report.empty,
                            (long long)b->options.minimum_bytes);
        goto out;
    }
    description = moedi_corpus_description("bytes", BYTE_VOCABULARY, BYTE_END);
    MOEDI_GO(describe_sources(description, paths, count));
    status = moedi_indexed_commit(&b->writer, description);
out:
    json_decref(description);
    moedi_builder_close(b);
    return status;
}

moed_status moed_corpus_build(moed_context *c, const char *const *paths, size_t count, const char *prefix,
                              const moed_corpus_options *o, moed_corpus_report *report,
                              const moed_cancel *cancel)
{
    moedi_builder b;
    moedi_clear_error();
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(paths && count > 0, "paths is NULL or empty");
    MOEDI_REQUIRE(prefix && prefix[0], "prefix is NULL or empty");
    for (size_t i = 0; i < count; i++) MOEDI_REQUIRE(paths[i] && paths[i][0], "a path is NULL or empty");
    MOEDI_TRY(moedi_context_check(c));
    memset(&b, 0, sizeof b);
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_CORPUS_OPTIONS, o, &b.options));
    if (b.options.tokenizer && b.options.tokenizer[0] && strcmp(b.options.tokenizer, "bytes") != 0)
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, "tokenizer",
                                    "tokenizer: only \"bytes\" is built in, not \"%s\"", b.options.tokenizer);
    if (report) MOEDI_TRY(moedi_info_check(MOED_STRUCT_CORPUS_REPORT, report));
    if (!b.options.field || !b.options.field[0]) b.options.field = "text";
    b.context = c;
    b.cancel = cancel;
    b.report.struct_size = sizeof b.report;
    MOEDI_TRY(build(&b, paths, count, prefix));
    return report ? moedi_info_write(MOED_STRUCT_CORPUS_REPORT, &b.report, report) : MOED_OK;
}
