/* corpus/builder.c - documents of bytes become a corpus; exact copies are dropped. Memory grows with the number
 * of documents only. */
#include "builder.h"

#include <string.h>

#include "core/options.h"
#include "util/utf8.h"

#define PENDING 65536
#define BYTE_VOCABULARY 257
#define BYTE_END 256

static moed_status write_pending(moedi_builder *b)
{
    for (int64_t at = 0; at < b->used; at += 64) /* of a fixed count, so that it is made of vectors; what lies past the end is not
                                                    written */
        for (int64_t i = at; i < at + 64; i++) b->tokens[i] = b->pending[i];
    MOEDI_TRY(moedi_indexed_append(&b->writer, b->tokens, b->used));
    b->used = 0;
    return MOED_OK;
}

moed_status moedi_builder_append(moedi_builder *b, const unsigned char *bytes, int64_t count)
{
    b->size += count;
    for (int64_t i = 0; i < count && !b->visible; i++) b->visible = bytes[i] > ' ';
    while (count > 0) {
        const int64_t room = PENDING - b->used, n = count < room ? count : room;
        memcpy(b->pending + b->used, bytes, (size_t)n);
        b->used += n;
        bytes += n;
        count -= n;
        if (b->used < PENDING) break;
        if (!b->hash) MOEDI_TRY(moedi_hash_create(&b->hash, b->context));
        moedi_hash_update(b->hash, b->pending, (size_t)b->used);
        MOEDI_TRY(write_pending(b));
    }
    return MOED_OK;
}

static moedi_digest *find_digest(moedi_digest *table, int64_t room, moedi_digest d)
{
    uint64_t at = d.low & (uint64_t)(room - 1);
    while ((table[at].low | table[at].high) != 0 && (table[at].low != d.low || table[at].high != d.high))
        at = (at + 1) & (uint64_t)(room - 1);
    return &table[at];
}

/* *known = 1 when the digest has been seen before. */
static moed_status remember(moedi_builder *b, moedi_digest d, int *known)
{
    if (b->seen_count * 2 >= b->seen_room) {
        const int64_t room = b->seen_room ? b->seen_room * 2 : 4096;
        moedi_digest *table = NULL;
        MOEDI_TRY(MOEDI_NEW(b->context, room, &table));
        for (int64_t i = 0; i < b->seen_room; i++)
            if ((b->seen[i].low | b->seen[i].high) != 0) *find_digest(table, room, b->seen[i]) = b->seen[i];
        moedi_free(b->context, b->seen);
        b->seen = table;
        b->seen_room = room;
    }
    moedi_digest *place = find_digest(b->seen, b->seen_room, d);
    *known = (place->low | place->high) != 0;
    b->seen_count += !*known;
    *place = d;
    return MOED_OK;
}

/* A document that fits the buffer was never written. */
static moed_status drop(moedi_builder *b) { return b->hash ? moedi_indexed_drop(&b->writer) : MOED_OK; }

static moed_status settle_document(moedi_builder *b)
{
    if (b->size == 0 || !b->visible || b->size < b->options.minimum_bytes) {
        b->report.empty += 1;
        return drop(b);
    }
    moedi_digest d;
    int known = 0;
    if (b->hash) {
        moedi_hash_update(b->hash, b->pending, (size_t)b->used);
        d = moedi_hash_digest(b->hash);
    } else {
        d = moedi_hash_bytes(b->pending, (size_t)b->used);
    }
    MOEDI_TRY(remember(b, d, &known));
    if (known) {
        b->report.duplicates += 1;
        return drop(b);
    }
    MOEDI_TRY(write_pending(b));
    return moedi_indexed_end(&b->writer);
}

moed_status moedi_builder_end(moedi_builder *b)
{
    const moed_status status = settle_document(b);
    moedi_hash_destroy(b->hash);
    b->hash = NULL;
    b->used = b->size = 0;
    b->visible = 0;
    return status;
}

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
    MOEDI_GO(moedi_alloc(b->context, PENDING, (void **)&b->pending));
    MOEDI_GO(MOEDI_NEW(b->context, PENDING, &b->tokens));
    MOEDI_GO(moedi_indexed_create(&b->writer, b->context, prefix, 2));
    own_file(b, b->writer.bin_path);
    own_file(b, b->writer.idx_path);
    own_file(b, b->writer.json_path);
    own_file(b, b->writer.bin.temporary);
    for (size_t i = 0; i < count; i++) MOEDI_GO(moedi_builder_path(b, paths[i]));
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
    moedi_indexed_abort(&b->writer);
    moedi_hash_destroy(b->hash);
    moedi_free(b->context, b->pending);
    moedi_free(b->context, b->tokens);
    moedi_free(b->context, b->seen);
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
