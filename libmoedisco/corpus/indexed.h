/* corpus/indexed.h - the Megatron-LM indexed dataset: PREFIX.bin (tokens), PREFIX.idx (where documents lie),
 * and PREFIX.json beside it.
 *
 * PREFIX.idx, little-endian: "MMIDIDX\0\0", uint64 version 1, uint8 dtype (4 int32, 8 uint16), uint64
 * sequences, uint64 bounds, int32 lengths[sequences] in tokens, int64 pointers[sequences] in bytes of
 * PREFIX.bin, int64 documents[bounds]: the first sequence of each document and, last, the number of sequences.
 */
#ifndef MOEDI_INDEXED_H
#define MOEDI_INDEXED_H

#include "corpus.h"
#include "util/file.h"
#include "util/hash.h"
#include "util/json.h"

#define MOEDI_INDEXED_MAGIC "MMIDIDX\0\0"
#define MOEDI_INDEXED_HEADER 34
enum { MOEDI_INDEXED_INT32 = 4, MOEDI_INDEXED_UINT16 = 8 };

#define MOEDI_CORPUS_FORMAT "moedisco-corpus"
#define MOEDI_CORPUS_VERSION 1

/* A pair being written, one document after another. Nothing is at PREFIX before commit. */
typedef struct moedi_indexed_writer {
    const moed_context *context;
    char *bin_path, *idx_path, *json_path;
    moedi_writer bin, idx, json;
    int64_t item;     /* bytes per token: 2 or 4 */
    int32_t *lengths; /* (documents) */
    int64_t documents, capacity;
    int64_t tokens; /* of finished documents */
    int64_t open;   /* of the document at hand */
} moedi_indexed_writer;
moed_status moedi_indexed_create(moedi_indexed_writer *w, const moed_context *c, const char *prefix,
                                 int64_t item);
/* count tokens of `item` bytes, added to the document at hand. */
moed_status moedi_indexed_append(moedi_indexed_writer *w, const void *tokens, int64_t count);
moed_status moedi_indexed_end(moedi_indexed_writer *w);  /* the document at hand is complete */
moed_status moedi_indexed_drop(moedi_indexed_writer *w); /* the document at hand is forgotten */
/* Completes `description` (documents, tokens, fingerprint) and puts the three files in place, PREFIX.idx last:
 * without it nothing opens. */
moed_status moedi_indexed_commit(moedi_indexed_writer *w, json_t *description);
void moedi_indexed_abort(moedi_indexed_writer *w); /* safe after commit and on a zeroed writer */

/* The fields of corpus.json that do not follow from the tokens; NULL when memory is short. */
json_t *moedi_corpus_description(const char *tokenizer, int64_t vocabulary, int64_t end_token);

/* Identity of token files: XXH3-128 over all of PREFIX.idx (nullable), the size of PREFIX.bin and at most 64
 * evenly spaced blocks of 64 KiB of it, so that opening a huge corpus is quick. */
moed_status moedi_indexed_fingerprint(const moed_context *c, const moedi_file *idx, const moedi_file *bin,
                                      char out[33]);

/* `count` tokens of `item` bytes (2 or 4) at a byte of a file, widened to int32; range is for the reader to check. */
moed_status moedi_indexed_tokens(const moedi_file *f, int64_t byte, int64_t item, int32_t *tokens, int64_t count);

/* Opens the pair at PREFIX. */
moed_status moedi_indexed_open(moed_corpus **out, moed_context *c, const char *prefix, const moed_corpus_options *o);

/* "prefix" + "suffix"; free with moedi_free. */
moed_status moedi_path_suffix(const moed_context *c, const char *prefix, const char *suffix, char **out);

#endif
