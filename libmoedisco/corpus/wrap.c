/* corpus/wrap.c - a corpus on the caller's own documents. */
#include <string.h>

#include "core/options.h"
#include "corpus.h"
#include "util/hash.h"

static moed_status wrap_read(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                             int64_t count)
{
    const moed_documents *own = d->state;
    const int32_t code = own->read(document, offset, tokens, count, own->user);
    return code ? moedi_fail_callback("moed_documents.read", code) : MOED_OK;
}

static void wrap_close(moed_corpus *d) { moedi_free(d->context, d->state); }

static const moedi_corpus_source wrap_source = {wrap_read, wrap_close};

/* Lengths of all documents and the first tokens of at most 64 evenly spaced ones stand for the whole. */
static moed_status wrap_fingerprint(moed_corpus *d)
{
    const int64_t samples = d->documents < 64 ? d->documents : 64;
    int32_t *chunk = NULL;
    moedi_hash *h = NULL;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(d->context, MOEDI_CORPUS_CHUNK, &chunk));
    MOEDI_GO(moedi_hash_create(&h, d->context));
    moedi_hash_update(h, d->lengths, (size_t)d->documents * sizeof *d->lengths);
    for (int64_t i = 0; i < samples; i++) {
        const int64_t document =
            samples == 1 ? 0 : (int64_t)((double)i * (double)(d->documents - 1) / (double)(samples - 1));
        const int64_t n = d->lengths[document] < MOEDI_CORPUS_CHUNK ? d->lengths[document] : MOEDI_CORPUS_CHUNK;
        MOEDI_GO(moedi_corpus_tokens(d, document, 0, chunk, n));
        moedi_hash_update(h, chunk, (size_t)n * sizeof *chunk);
    }
    moedi_digest_print(moedi_hash_digest(h), d->info.fingerprint);
out:
    moedi_hash_destroy(h);
    moedi_free(d->context, chunk);
    return status;
}

static moed_status wrap_lengths(moed_corpus *d)
{
    const moed_documents *own = d->state;
    int64_t total = 0;
    for (int64_t i = 0; i < d->documents; i++) {
        int64_t n = -1;
        const int32_t code = own->length(i, &n, own->user);
        if (code) return moedi_fail_callback("moed_documents.length", code);
        if (n < 0 || n > INT64_MAX / 8 - total)
            return moedi_fail_parameter(MOED_E_RANGE, "length",
                                        "moed_documents.length: document %lld has %lld tokens", (long long)i,
                                        (long long)n);
        d->lengths[i] = n;
        total += n;
    }
    return MOED_OK;
}

moed_status moed_corpus_wrap(moed_corpus **out, moed_context *c, const moed_documents *documents,
                             const moed_corpus_options *o)
{
    moed_corpus_options options;
    moed_corpus *d = NULL;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(documents, "documents is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_CORPUS_OPTIONS, o, &options));
    if (documents->struct_size < sizeof *documents)
        return moedi_fail(MOED_E_STRUCT, "moed_documents.struct_size is %lu, not %zu",
                          (unsigned long)documents->struct_size, sizeof *documents);
    MOEDI_REQUIRE(documents->length && documents->read, "documents.length or documents.read is NULL");
    if (documents->count < 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "count", "count: a corpus of %lld documents",
                                    (long long)documents->count);
    MOEDI_TRY(moedi_corpus_new(&d, c, documents->count));
    MOEDI_GO(moedi_alloc(c, sizeof *documents, &d->state));
    memcpy(d->state, documents, sizeof *documents);
    d->source = &wrap_source;
    MOEDI_GO(wrap_lengths(d));
    MOEDI_GO(moedi_corpus_describe(d, "moed_corpus_wrap", &options, 0, -1, NULL));
    MOEDI_GO(wrap_fingerprint(d));
    *out = d;
    d = NULL;
out:
    moed_corpus_destroy(d);
    return status;
}
