/* corpus/corpus.h - token documents behind one small interface, private side. */
#ifndef MOEDI_CORPUS_H
#define MOEDI_CORPUS_H

#include "core/context.h"
#include "moedisco/corpus.h"

struct moed_corpus {
    atomic_int references;
    moed_context *context;
    moed_corpus *parent;                      /* of a view: the whole corpus, retained */
    const struct moedi_corpus_source *source; /* of a whole corpus: how tokens are read */
    void *state;                              /* the source's */
    int64_t documents;
    int64_t *lengths; /* (documents) tokens */
    int64_t *numbers; /* of a view: (documents) document of the parent; NULL for a whole corpus */
    moed_corpus_info info;
};

/* How a kind of file or callback yields tokens. */
typedef struct moedi_corpus_source {
    moed_status (*read)(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens, int64_t count);
    void (*close)(moed_corpus *d);
} moedi_corpus_source;

/* Tokens that are read at a time where a whole document may be large. */
#define MOEDI_CORPUS_CHUNK 16384

moed_corpus *moedi_corpus_retain(const moed_corpus *d);

/* A handle with one reference and room for `documents` lengths; the source is still to be set. */
moed_status moedi_corpus_new(moed_corpus **out, moed_context *c, int64_t documents);
/* Fills in what follows from lengths, source and options; vocabulary 0, end_token -1 and tokenizer NULL: the
 * files do not say. name is what errors call the corpus. */
moed_status moedi_corpus_describe(moed_corpus *d, const char *name, const moed_corpus_options *o,
                                  int64_t vocabulary, int64_t end_token, const char *tokenizer);
/* Exactly `count` tokens; every one is in [0, vocabulary). No range checks of document and offset. */
moed_status moedi_corpus_tokens(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                                int64_t count);
/* Number of a document in the whole corpus. */
int64_t moedi_corpus_number(const moed_corpus *d, int64_t document);
/* The whole corpus: itself or a view's parent. */
const moed_corpus *moedi_corpus_whole(const moed_corpus *d);

/* A sampler caches the order of the epochs it is in. */
typedef struct moedi_sampler moedi_sampler;
moed_status moedi_sampler_create(moedi_sampler **out, const moed_corpus *d, uint64_t seed);
void moedi_sampler_destroy(moedi_sampler *s);
/* Bytes that a sampler of so many documents comes to hold for rows of `length`. */
int64_t moedi_sampler_bytes(int64_t documents, int64_t length);
/* As moed_corpus_sample. */
moed_status moedi_sampler_rows(moedi_sampler *s, int64_t first_row, int64_t rows, int64_t length,
                               int32_t *tokens, int32_t *labels, int32_t *documents);
/* Rows for evaluation: documents in order, every token (with end tokens) once as a label; the first token's
 * input is the end token (without one it is no label); the last row is filled up with labels of -1. Row r of
 * ceil(stream / length). */
int64_t moedi_sampler_evaluation_rows(const moedi_sampler *s, int64_t length);
moed_status moedi_sampler_evaluation(moedi_sampler *s, int64_t first_row, int64_t rows, int64_t length,
                                     int32_t *tokens, int32_t *labels, int32_t *documents);

#endif
