/* corpus/corpus.c - the corpus handle: references, description, reading, views. */
#include "corpus.h"

#include <string.h>

#include "core/options.h"
#include "util/random.h"

moed_corpus *moedi_corpus_retain(const moed_corpus *d)
{
    moed_corpus *own = (moed_corpus *)d;
    atomic_fetch_add(&own->references, 1);
    return own;
}

void moed_corpus_destroy(moed_corpus *d)
{
    if (!d || atomic_fetch_sub(&d->references, 1) != 1) return;
    moed_context *c = d->context;
    if (d->source && d->source->close) d->source->close(d);
    moed_corpus_destroy(d->parent);
    moedi_free(c, d->lengths);
    moedi_free(c, d->numbers);
    moedi_free(c, d);
    moedi_context_release(c);
}

moed_status moedi_corpus_new(moed_corpus **out, moed_context *c, int64_t documents)
{
    moed_corpus *d = NULL;
    int64_t *lengths = NULL;
    MOEDI_TRY(MOEDI_NEW(c, documents, &lengths));
    moed_status status = MOEDI_NEW(c, 1, &d);
    if (status != MOED_OK) {
        moedi_free(c, lengths);
        return status;
    }
    atomic_init(&d->references, 1);
    d->context = moedi_context_retain(c);
    d->documents = documents;
    d->lengths = lengths;
    d->info.struct_size = sizeof d->info;
    d->info.documents = documents;
    d->info.end_token = -1;
    *out = d;
    return MOED_OK;
}

const moed_corpus *moedi_corpus_whole(const moed_corpus *d) { return d->parent ? d->parent : d; }

int64_t moedi_corpus_number(const moed_corpus *d, int64_t document)
{
    return d->numbers ? d->numbers[document] : document;
}

static void count_tokens(moed_corpus *d)
{
    d->info.tokens = d->info.longest = 0;
    for (int64_t i = 0; i < d->documents; i++) {
        d->info.tokens += d->lengths[i];
        if (d->lengths[i] > d->info.longest) d->info.longest = d->lengths[i];
    }
}

static moed_status largest_token(const moed_corpus *d, int32_t *largest)
{
    int32_t *chunk = NULL, most = -1;
    MOEDI_TRY(MOEDI_NEW(d->context, MOEDI_CORPUS_CHUNK, &chunk));
    moed_status status = MOED_OK;
    for (int64_t i = 0; i < d->documents; i++)
        for (int64_t at = 0; at < d->lengths[i]; at += MOEDI_CORPUS_CHUNK) {
            const int64_t left = d->lengths[i] - at, n = left < MOEDI_CORPUS_CHUNK ? left : MOEDI_CORPUS_CHUNK;
            MOEDI_GO(moedi_corpus_tokens(d, i, at, chunk, n));
            for (int64_t j = 0; j < n; j++) most = chunk[j] > most ? chunk[j] : most;
        }
    *largest = most;
out:
    moedi_free(d->context, chunk);
    return status;
}

moed_status moedi_corpus_describe(moed_corpus *d, const char *name, const moed_corpus_options *o,
                                  int64_t vocabulary, int64_t end_token, const char *tokenizer)
{
    count_tokens(d);
    if (d->info.tokens == 0) return moedi_fail_file(MOED_E_FORMAT, name, -1, "the corpus holds no tokens");
    if (o->vocabulary > 0) vocabulary = o->vocabulary;
    if (o->end_token >= 0) end_token = o->end_token;
    if (o->tokenizer && o->tokenizer[0]) tokenizer = o->tokenizer;
    if (!tokenizer) tokenizer = "";
    if (strlen(tokenizer) >= sizeof d->info.tokenizer)
        return moedi_fail_parameter(MOED_E_RANGE, "tokenizer",
                                    "tokenizer: a name of %zu bytes is longer than %zu", strlen(tokenizer),
                                    sizeof d->info.tokenizer - 1);
    memcpy(d->info.tokenizer, tokenizer, strlen(tokenizer) + 1);
    if (vocabulary > (int64_t)INT32_MAX + 1)
        return moedi_fail_parameter(MOED_E_RANGE, "vocabulary", "vocabulary: %lld is more than 2147483648",
                                    (long long)vocabulary);
    d->info.vocabulary = vocabulary;
    if (vocabulary == 0) {
        int32_t largest = 0;
        d->info.vocabulary = (int64_t)INT32_MAX + 1;
        MOEDI_TRY(largest_token(d, &largest));
        d->info.vocabulary = (largest > end_token ? largest : end_token) + 1;
    }
    if (end_token >= d->info.vocabulary)
        return moedi_fail_parameter(MOED_E_RANGE, "end_token",
                                    "end_token: %lld is not below the vocabulary, %lld", (long long)end_token,
                                    (long long)d->info.vocabulary);
    d->info.end_token = end_token;
    return MOED_OK;
}

moed_status moedi_corpus_tokens(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                                int64_t count)
{
    if (count == 0) return MOED_OK;
    const moed_corpus *whole = moedi_corpus_whole(d);
    const int64_t number = moedi_corpus_number(d, document);
    MOEDI_TRY(whole->source->read(whole, number, offset, tokens, count));
    const uint32_t vocabulary = (uint32_t)whole->info.vocabulary; /* 2^31 at most; a negative token is above it */
    int outside = 0; /* without a branch for each: every row of a training step comes through here */
    for (int64_t i = 0; i < count; i++) outside |= (uint32_t)tokens[i] >= vocabulary;
    for (int64_t i = 0; outside && i < count; i++)
        if ((uint32_t)tokens[i] >= vocabulary)
            return moedi_fail(
                MOED_E_FORMAT, "document %lld of the corpus: token %lld is %ld, outside the vocabulary of %lld",
                (long long)number, (long long)(offset + i), (long)tokens[i], (long long)whole->info.vocabulary);
    return MOED_OK;
}

static moed_status check_document(const moed_corpus *d, int64_t document)
{
    if (document < 0 || document >= d->documents)
        return moedi_fail_parameter(MOED_E_RANGE, "document", "document %lld of a corpus of %lld",
                                    (long long)document, (long long)d->documents);
    return MOED_OK;
}

moed_status moed_corpus_get_info(const moed_corpus *d, moed_corpus_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    return moedi_info_write(MOED_STRUCT_CORPUS_INFO, &d->info, out);
}

moed_status moed_corpus_read(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                             int64_t capacity, int64_t *count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(count, "count is NULL");
    MOEDI_REQUIRE(tokens || capacity == 0, "tokens is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    MOEDI_TRY(check_document(d, document));
    if (offset < 0 || offset > d->lengths[document])
        return moedi_fail_parameter(MOED_E_RANGE, "offset", "offset %lld in document %lld of %lld tokens",
                                    (long long)offset, (long long)document, (long long)d->lengths[document]);
    if (capacity < 0)
        return moedi_fail_parameter(MOED_E_RANGE, "capacity", "capacity: %lld is below 0", (long long)capacity);
    const int64_t left = d->lengths[document] - offset, n = left < capacity ? left : capacity;
    MOEDI_TRY(moedi_corpus_tokens(d, document, offset, tokens, n));
    *count = n;
    return MOED_OK;
}

moed_status moed_corpus_source_document(const moed_corpus *d, int64_t document, int64_t *source)
{
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(source, "source is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    MOEDI_TRY(check_document(d, document));
    *source = moedi_corpus_number(d, document);
    return MOED_OK;
}

/* A view of a view goes back to the whole corpus, so that reading takes one step however often views are made.
 */
static moed_status subset(moed_corpus **out, const moed_corpus *d, const int64_t *documents, int64_t count)
{
    moed_corpus *v = NULL;
    moed_status status;
    MOEDI_TRY(moedi_corpus_new(&v, d->context, count));
    MOEDI_GO(MOEDI_NEW(d->context, count, &v->numbers));
    for (int64_t i = 0; i < count; i++) {
        MOEDI_GO(check_document(d, documents[i]));
        v->numbers[i] = moedi_corpus_number(d, documents[i]);
        v->lengths[i] = d->lengths[documents[i]];
    }
    v->parent = moedi_corpus_retain(moedi_corpus_whole(d));
    v->info = d->info;
    v->info.documents = count;
    count_tokens(v);
    *out = v;
    return MOED_OK;
out:
    moed_corpus_destroy(v);
    return status;
}

moed_status moed_corpus_subset(moed_corpus **out, const moed_corpus *d, const int64_t *documents, int64_t count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(documents, "documents is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    if (count < 1)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "count", "count: a view of %lld documents",
                                    (long long)count);
    return subset(out, d, documents, count);
}

/* Whether a document is held out depends on its number in the whole corpus alone: views of one corpus divided
 * with one seed agree. */
static int64_t draw_held_out(const moed_corpus *d, double fraction, uint64_t seed, unsigned char *held)
{
    int64_t count = 0, lowest = 0, highest = 0;
    double least = 2, most = -1;
    for (int64_t i = 0; i < d->documents; i++) {
        const double u =
            moedi_random_uniform(seed, MOEDI_RANDOM_DIVIDE, 0, (uint64_t)moedi_corpus_number(d, i));
        held[i] = u < fraction;
        count += held[i];
        if (u < least) least = u, lowest = i;
        if (u > most) most = u, highest = i;
    }
    if (count == 0) held[lowest] = 1, count = 1;
    if (count == d->documents) held[highest] = 0, count--;
    return count;
}

moed_status moed_corpus_divide(moed_corpus **train, moed_corpus **held_out, const moed_corpus *d,
                               double fraction, uint64_t seed)
{
    moedi_clear_error();
    MOEDI_REQUIRE(train && held_out, "train or held_out is NULL");
    MOEDI_REQUIRE(train != held_out, "train and held_out are one variable");
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    if (!(fraction > 0 && fraction < 1))
        return moedi_fail_parameter(MOED_E_RANGE, "fraction", "fraction: %g is not between 0 and 1", fraction);
    if (d->documents < 2)
        return moedi_fail(MOED_E_ARGUMENT,
                          "a corpus of %lld document cannot be divided: held-out data needs at least 2",
                          (long long)d->documents);
    unsigned char *held = NULL;
    int64_t *order = NULL;
    moed_corpus *a = NULL, *b = NULL;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(d->context, d->documents, &held));
    MOEDI_GO(MOEDI_NEW(d->context, d->documents, &order));
    const int64_t count = draw_held_out(d, fraction, seed, held);
    int64_t kept = 0, out_at = d->documents - count;
    for (int64_t i = 0; i < d->documents; i++) order[held[i] ? out_at++ : kept++] = i;
    MOEDI_GO(subset(&a, d, order, kept));
    MOEDI_GO(subset(&b, d, order + kept, count));
    *train = a, *held_out = b;
    a = b = NULL;
out:
    moed_corpus_destroy(a);
    moed_corpus_destroy(b);
    moedi_free(d->context, held);
    moedi_free(d->context, order);
    return status;
}
