/* corpus/indexed.c - reading an indexed dataset from strangers: every field is held against the file sizes
 * before it is believed. */
#include "indexed.h"

#include <string.h>

typedef struct indexed {
    moedi_file bin;
    int64_t item; /* bytes per token */
    int64_t sequences;
    int64_t *pointers; /* (sequences) bytes in bin */
    int64_t *starts;   /* (sequences + 1) tokens before each sequence */
    int64_t *first;    /* (documents + 1) first sequence of each document */
} indexed;

/* The sequence of a document that holds token `at` of the corpus, counted through all sequences. Empty ones never hold any. */
static int64_t find_sequence(const indexed *x, int64_t document, int64_t at)
{
    int64_t low = x->first[document], high = x->first[document + 1];
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (x->starts[middle] <= at) low = middle;
        else high = middle;
    }
    return low;
}

moed_status moedi_indexed_tokens(const moedi_file *f, int64_t byte, int64_t item, int32_t *tokens, int64_t count)
{
    enum { AT_ONCE = 4096 };
    uint16_t narrow[AT_ONCE];
    if (item == 4) return moedi_file_read(f, byte, tokens, (size_t)count * 4);
    for (int64_t done = 0; done < count; done += AT_ONCE) {
        const int64_t n = count - done < AT_ONCE ? count - done : AT_ONCE;
        MOEDI_TRY(moedi_file_read(f, byte + done * 2, narrow, (size_t)n * 2));
        for (int64_t i = 0; i < n; i++) tokens[done + i] = narrow[i];
    }
    return MOED_OK;
}

static moed_status indexed_read(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                                int64_t count)
{
    const indexed *x = d->state;
    int64_t at = x->starts[x->first[document]] + offset;
    for (int64_t done = 0; done < count;) {
        const int64_t s = find_sequence(x, document, at), left = x->starts[s + 1] - at,
                      n = left < count - done ? left : count - done;
        MOEDI_TRY(moedi_indexed_tokens(&x->bin, x->pointers[s] + (at - x->starts[s]) * x->item, x->item,
                                       tokens + done, n));
        done += n;
        at += n;
    }
    return MOED_OK;
}

static void indexed_free(const moed_context *c, indexed *x)
{
    if (!x) return;
    moedi_file_close(&x->bin);
    moedi_free(c, x->pointers);
    moedi_free(c, x->starts);
    moedi_free(c, x->first);
    moedi_free(c, x);
}

static void indexed_close(moed_corpus *d) { indexed_free(d->context, d->state); }

static const moedi_corpus_source indexed_source = {indexed_read, indexed_close};

/* The fixed part; *bounds = documents + 1. */
static moed_status read_header(indexed *x, const moedi_file *idx, int64_t *bounds)
{
    unsigned char h[MOEDI_INDEXED_HEADER];
    uint64_t version, sequences, documents;
    if (idx->size < MOEDI_INDEXED_HEADER)
        return moedi_fail_file(MOED_E_FORMAT, idx->path, -1,
                               "%lld bytes are too few for an index: its header has %d", (long long)idx->size,
                               MOEDI_INDEXED_HEADER);
    MOEDI_TRY(moedi_file_read(idx, 0, h, sizeof h));
    memcpy(&version, h + 9, 8);
    memcpy(&sequences, h + 18, 8);
    memcpy(&documents, h + 26, 8);
    if (memcmp(h, MOEDI_INDEXED_MAGIC, 9) != 0)
        return moedi_fail_file(MOED_E_FORMAT, idx->path, 0, "does not begin with MMIDIDX: no indexed dataset");
    if (version != 1)
        return moedi_fail_file(MOED_E_UNSUPPORTED, idx->path, 9,
                               "version %llu of the index is not known, only 1", (unsigned long long)version);
    if (h[17] != MOEDI_INDEXED_INT32 && h[17] != MOEDI_INDEXED_UINT16)
        return moedi_fail_file(MOED_E_UNSUPPORTED, idx->path, 17,
                               "token type %d is neither 4 (int32) nor 8 (uint16)", h[17]);
    const uint64_t room = (uint64_t)(idx->size - MOEDI_INDEXED_HEADER);
    if (sequences > room / 12 || documents > (room - sequences * 12) / 8 ||
        sequences * 12 + documents * 8 != room)
        return moedi_fail_file(MOED_E_FORMAT, idx->path, 18,
                               "%llu sequences and %llu document bounds do not make a file of %lld bytes: it "
                               "is cut short or damaged",
                               (unsigned long long)sequences, (unsigned long long)documents,
                               (long long)idx->size);
    if (documents < 2 || sequences < 1)
        return moedi_fail_file(MOED_E_FORMAT, idx->path, 18, "the index holds no documents");
    x->item = h[17] == MOEDI_INDEXED_UINT16 ? 2 : 4;
    x->sequences = (int64_t)sequences;
    *bounds = (int64_t)documents;
    return MOED_OK;
}

/* Lengths and pointers: sequences lie in the token file one after another. The lengths come as int32 and become
 * token counts. */
static moed_status read_sequences(indexed *x, const moed_context *c, const moedi_file *idx)
{
    int32_t *lengths = NULL;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(c, x->sequences, &lengths));
    MOEDI_GO(MOEDI_NEW(c, x->sequences, &x->pointers));
    MOEDI_GO(MOEDI_NEW(c, x->sequences + 1, &x->starts));
    MOEDI_GO(moedi_file_read(idx, MOEDI_INDEXED_HEADER, lengths, (size_t)x->sequences * 4));
    MOEDI_GO(
        moedi_file_read(idx, MOEDI_INDEXED_HEADER + x->sequences * 4, x->pointers, (size_t)x->sequences * 8));
    int64_t end = 0;
    for (int64_t i = 0; i < x->sequences; i++) {
        const int64_t pointer = x->pointers[i];
        if (lengths[i] < 0) {
            status =
                moedi_fail_file(MOED_E_FORMAT, idx->path, MOEDI_INDEXED_HEADER + i * 4,
                                "sequence %lld has a length of %ld tokens", (long long)i, (long)lengths[i]);
            goto out;
        }
        if (pointer < end || pointer % x->item != 0 || pointer > x->bin.size ||
            lengths[i] > (x->bin.size - pointer) / x->item) {
            status = moedi_fail_file(MOED_E_FORMAT, idx->path, MOEDI_INDEXED_HEADER + x->sequences * 4 + i * 8,
                                     "sequence %lld, %ld tokens of %lld bytes at byte %lld, overlaps the one "
                                     "before or lies outside %s (%lld bytes)",
                                     (long long)i, (long)lengths[i], (long long)x->item, (long long)pointer,
                                     x->bin.path, (long long)x->bin.size);
            goto out;
        }
        end = pointer + lengths[i] * x->item;
        x->starts[i + 1] = x->starts[i] + lengths[i];
    }
out:
    moedi_free(c, lengths);
    return status;
}

static moed_status read_documents(indexed *x, const moed_context *c, const moedi_file *idx, int64_t bounds)
{
    const int64_t place = MOEDI_INDEXED_HEADER + x->sequences * 12;
    MOEDI_TRY(MOEDI_NEW(c, bounds, &x->first));
    MOEDI_TRY(moedi_file_read(idx, place, x->first, (size_t)bounds * 8));
    for (int64_t i = 0; i < bounds; i++) {
        const int64_t least = i ? x->first[i - 1] : 0, most = i ? x->sequences : 0;
        if (x->first[i] < least || x->first[i] > most)
            return moedi_fail_file(MOED_E_FORMAT, idx->path, place + i * 8,
                                   "document bound %lld is sequence %lld, outside %lld to %lld", (long long)i,
                                   (long long)x->first[i], (long long)least, (long long)most);
    }
    if (x->first[bounds - 1] != x->sequences)
        return moedi_fail_file(MOED_E_FORMAT, idx->path, place + (bounds - 1) * 8,
                               "the last document bound is sequence %lld of %lld",
                               (long long)x->first[bounds - 1], (long long)x->sequences);
    return MOED_OK;
}

/* corpus.json, when it is there: what the token files do not say, and whose they are. */
static moed_status read_description(moed_corpus *d, const moed_corpus_options *o, const char *bin,
                                    const char *path)
{
    json_t *j = NULL;
    const char *format = NULL, *fingerprint = NULL, *tokenizer = NULL;
    int64_t version = 0, vocabulary = 0, end_token = -1;
    moed_status status;
    if (!moedi_path_exists(path)) return moedi_corpus_describe(d, bin, o, 0, -1, NULL);
    MOEDI_TRY(moedi_json_open(&j, d->context, path));
    MOEDI_GO(moedi_json_text(j, path, "format", 1, &format));
    if (strcmp(format, MOEDI_CORPUS_FORMAT) != 0) {
        status = moedi_fail_file(MOED_E_FORMAT, path, -1, "format: \"%s\" is not " MOEDI_CORPUS_FORMAT, format);
        goto out;
    }
    MOEDI_GO(moedi_json_integer(j, path, "version", 1, 1, MOEDI_CORPUS_VERSION, &version));
    MOEDI_GO(moedi_json_integer(j, path, "vocabulary", 0, 1, (int64_t)INT32_MAX + 1, &vocabulary));
    MOEDI_GO(moedi_json_integer(j, path, "end_token", 0, -1, INT32_MAX, &end_token));
    MOEDI_GO(moedi_json_text(j, path, "tokenizer", 0, &tokenizer));
    MOEDI_GO(moedi_json_text(j, path, "fingerprint", 0, &fingerprint));
    if (fingerprint && strcmp(fingerprint, d->info.fingerprint) != 0) {
        status = moedi_fail_file(MOED_E_CHECKSUM, path, -1,
                                 "it describes the corpus %s, but the token files beside it are %s: one of "
                                 "them was replaced or damaged",
                                 fingerprint, d->info.fingerprint);
        goto out;
    }
    status = moedi_corpus_describe(d, bin, o, vocabulary, end_token, tokenizer);
out:
    json_decref(j);
    return status;
}

moed_status moedi_indexed_open(moed_corpus **out, moed_context *c, const char *prefix, const moed_corpus_options *o)
{
    char *paths[3] = {NULL, NULL, NULL};
    const char *const suffixes[3] = {".idx", ".bin", ".json"};
    moedi_file idx;
    indexed *x = NULL;
    moed_corpus *d = NULL;
    int64_t bounds = 0;
    int opened = 0;
    moed_status status = MOED_OK;
    for (int i = 0; i < 3; i++) MOEDI_GO(moedi_path_suffix(c, prefix, suffixes[i], &paths[i]));
    MOEDI_GO(moedi_file_open(&idx, c, paths[0]));
    opened = 1;
    MOEDI_GO(MOEDI_NEW(c, 1, &x));
    x->bin.fd = -1;
    MOEDI_GO(moedi_file_open(&x->bin, c, paths[1]));
    MOEDI_GO(read_header(x, &idx, &bounds));
    MOEDI_GO(read_sequences(x, c, &idx));
    MOEDI_GO(read_documents(x, c, &idx, bounds));
    MOEDI_GO(moedi_corpus_new(&d, c, bounds - 1));
    d->source = &indexed_source;
    d->state = x;
    for (int64_t i = 0; i < d->documents; i++)
        d->lengths[i] = x->starts[x->first[i + 1]] - x->starts[x->first[i]];
    MOEDI_GO(moedi_indexed_fingerprint(c, &idx, &x->bin, d->info.fingerprint));
    MOEDI_GO(read_description(d, o, paths[1], paths[2]));
    *out = d;
out:
    if (status != MOED_OK) {
        if (d) moed_corpus_destroy(d);
        else indexed_free(c, x);
    }
    if (opened) moedi_file_close(&idx);
    for (int i = 0; i < 3; i++) moedi_free(c, paths[i]);
    return status;
}
