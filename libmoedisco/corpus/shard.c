/* corpus/shard.c - llm.c token shards: 256 int32 of header (magic, version, tokens), then tokens; the
 * end-of-text token parts documents. 20240520 version 1: uint16, GPT-2 (50256); 20240801 version 7: uint32,
 * Llama 3 (128000). */
#include "shard.h"

#include <string.h>
#include <sys/stat.h>

#include "indexed.h"

#define HEADER 1024

typedef struct shard {
    moedi_file file;
    int64_t item;   /* bytes per token */
    int64_t tokens; /* in the file, end tokens included */
    int64_t *first; /* (documents) first token of each */
} shard;

static const struct kind {
    int32_t magic, version;
    int64_t item, end_token;
} kinds[] = {{20240520, 1, 2, 50256}, {20240801, 7, 4, 128000}};

/* As in the file; a uint32 too large for a token comes out negative and is refused by whoever asked. */
static moed_status read_tokens(const shard *x, int64_t at, int32_t *tokens, int64_t count)
{
    return moedi_indexed_tokens(&x->file, HEADER + at * x->item, x->item, tokens, count);
}

static moed_status shard_read(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                              int64_t count)
{
    const shard *x = d->state;
    return read_tokens(x, x->first[document] + offset, tokens, count);
}

static void shard_free(const moed_context *c, shard *x)
{
    if (!x) return;
    moedi_file_close(&x->file);
    moedi_free(c, x->first);
    moedi_free(c, x);
}

static void shard_close(moed_corpus *d) { shard_free(d->context, d->state); }

static const moedi_corpus_source shard_source = {shard_read, shard_close};

/* Documents between end tokens: bounds (2 per document: first token, token after the last). Nothing between two
 * end tokens is no document. */
static moed_status cut(const shard *x, const moed_context *c, int64_t end_token, int64_t **bounds,
                       int64_t *documents, int32_t *largest)
{
    int32_t *chunk = NULL;
    int64_t capacity = 0, count = 0, from = 0;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(c, MOEDI_CORPUS_CHUNK, &chunk));
    for (int64_t at = 0; at <= x->tokens; at++) {
        const int64_t in = at % MOEDI_CORPUS_CHUNK, left = x->tokens - at;
        if (in == 0 && left > 0)
            MOEDI_GO(read_tokens(x, at, chunk, left < MOEDI_CORPUS_CHUNK ? left : MOEDI_CORPUS_CHUNK));
        if (left > 0 && chunk[in] < 0) {
            status = moedi_fail_file(MOED_E_FORMAT, x->file.path, HEADER + at * x->item,
                                     "token %lld is %lu, too large for any vocabulary", (long long)at,
                                     (unsigned long)(uint32_t)chunk[in]);
            goto out;
        }
        if (left > 0 && chunk[in] > *largest) *largest = chunk[in];
        if (left > 0 && chunk[in] != end_token) continue;
        if (at > from) {
            if (count == capacity) {
                capacity = capacity ? capacity * 2 : 1024;
                MOEDI_GO(moedi_realloc_array(c, capacity * 2, sizeof **bounds, (void **)bounds));
            }
            (*bounds)[count * 2] = from, (*bounds)[count * 2 + 1] = at;
            count++;
        }
        from = at + 1;
    }
    *documents = count;
out:
    moedi_free(c, chunk);
    return status;
}

static moed_status build(moed_corpus **out, moed_context *c, shard *x, const moed_corpus_options *o,
                         int64_t end_token)
{
    int64_t *bounds = NULL, documents = 0;
    int32_t largest = 0;
    moed_corpus *d = NULL;
    moed_status status;
    if (o->end_token >= 0) end_token = o->end_token;
    MOEDI_GO(cut(x, c, end_token, &bounds, &documents, &largest));
    if (documents == 0) {
        status = moedi_fail_file(MOED_E_FORMAT, x->file.path, -1, "the shard holds no documents");
        goto out;
    }
    MOEDI_GO(MOEDI_NEW(c, documents, &x->first));
    MOEDI_GO(moedi_corpus_new(&d, c, documents));
    for (int64_t i = 0; i < documents; i++) {
        x->first[i] = bounds[i * 2];
        d->lengths[i] = bounds[i * 2 + 1] - bounds[i * 2];
    }
    MOEDI_GO(moedi_indexed_fingerprint(c, NULL, &x->file, d->info.fingerprint));
    MOEDI_GO(moedi_corpus_describe(d, x->file.path, o, (largest > end_token ? largest : end_token) + 1,
                                   end_token, NULL));
    d->source = &shard_source;
    d->state = x;
    *out = d;
    d = NULL;
out:
    moed_corpus_destroy(d);
    moedi_free(c, bounds);
    return status;
}

moed_status moedi_shard_open(moed_corpus **out, moed_context *c, const char *path, const moed_corpus_options *o,
                             int *taken)
{
    struct stat s;
    int32_t header[3];
    const struct kind *kind = NULL;
    shard *x = NULL;
    moed_status status;
    *taken = 0;
    if (stat(path, &s) != 0 || !S_ISREG(s.st_mode) || s.st_size < (off_t)sizeof header) return MOED_OK;
    MOEDI_TRY(MOEDI_NEW(c, 1, &x));
    x->file.fd = -1;
    MOEDI_GO(moedi_file_open(&x->file, c, path));
    MOEDI_GO(moedi_file_read(&x->file, 0, header, sizeof header));
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (header[0] == kinds[i].magic) kind = &kinds[i];
    if (!kind) goto out;
    if (header[1] != kind->version) {
        status = moedi_fail_file(MOED_E_UNSUPPORTED, path, 4, "version %ld of the shard is not known, only %ld",
                                 (long)header[1], (long)kind->version);
        goto out;
    }
    x->item = kind->item;
    x->tokens = header[2];
    if (x->tokens < 0 || x->file.size != HEADER + x->tokens * x->item) {
        status = moedi_fail_file(
            MOED_E_FORMAT, path, 8,
            "%lld tokens of %lld bytes do not make a file of %lld bytes: it is cut short or damaged",
            (long long)x->tokens, (long long)x->item, (long long)x->file.size);
        goto out;
    }
    MOEDI_GO(build(out, c, x, o, kind->end_token));
    *taken = 1;
    return MOED_OK;
out:
    shard_free(c, x);
    return status;
}
