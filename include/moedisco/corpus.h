/* corpus.h - token documents: Megatron-LM .bin/.idx pairs, llm.c shards, the caller's own, and views. */
#ifndef MOEDISCO_CORPUS_H
#define MOEDISCO_CORPUS_H

#include "context.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_corpus moed_corpus;

typedef struct moed_corpus_options {
    uint32_t struct_size;
    uint32_t flags;
    const char *field;       /* build: the JSON-lines field that holds the text */
    const char *tokenizer;   /* open, wrap: name or hash of the tokenizer, kept for the record; build: "bytes" */
    int64_t vocabulary;      /* open, wrap: 0 = corpus.json's, else largest token + 1 */
    int64_t end_token;       /* open, wrap: document end; -1 = corpus.json's, else none (llm.c shards: 50256, or 128000 in
                                uint32) */
    int64_t document_bytes;  /* build: files above twice this are cut at blank lines into documents of about this size; 0 =
                                never */
    int64_t minimum_bytes;   /* build: shorter documents are dropped */
} moed_corpus_options;

typedef struct moed_corpus_info {
    uint32_t struct_size;
    uint32_t flags;
    int64_t documents;
    int64_t tokens;         /* without the end tokens that the sampler adds */
    int64_t longest;        /* tokens of the longest document */
    int64_t vocabulary;
    int64_t end_token;      /* -1 = none */
    char fingerprint[40];   /* 32 hex digits: the token files' identity; a view has its parent's */
    char tokenizer[64];
} moed_corpus_info;

/* What moed_corpus_build did. */
typedef struct moed_corpus_report {
    uint32_t struct_size;
    uint32_t flags;
    int64_t files;
    int64_t binary_files;   /* left out of folders because they are not text */
    int64_t documents;
    int64_t tokens;
    int64_t duplicates;     /* exact copies of an earlier document, dropped */
    int64_t empty;          /* empty or below minimum_bytes, dropped */
} moed_corpus_report;

/* The caller's token documents, read at random. Callbacks return 0, or non-zero to stop
 * (MOED_E_CALLBACK); they run on the thread that calls the library. */
typedef struct moed_documents {
    uint32_t struct_size;
    uint32_t flags;
    int64_t count;
    int32_t (*length)(int64_t document, int64_t *tokens, void *user);
    int32_t (*read)(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user);
    void *user;
} moed_documents;

/* Builds PREFIX.bin, PREFIX.idx and PREFIX.json from text: paths (count) are folders, text files, or JSON lines (.jsonl,
 * .ndjson: one document a line). Folders are walked in name order; hidden entries, symbolic links and binary files (a NUL
 * byte, or not UTF-8) in them are left out; a byte-order mark at a file's beginning too. Bytes are the tokens (0..255); 256
 * ends a document, but is not stored: the sampler adds it, and PREFIX.json says so (end_token_stored). Text files above twice
 * document_bytes are cut after blank lines; documents of white space only are dropped, exact duplicates too. Memory grows with
 * the number of documents, not with the text. All or nothing: killed at any instant, PREFIX is a whole corpus or does not
 * open. report nullable.
 * Returns MOED_E_NOT_FOUND, MOED_E_FORMAT (a named file is binary, a bad JSON line: file and line; nothing left),
 * MOED_E_SPACE, MOED_E_EXISTS (PREFIX.bin, .idx or .json is there and is no corpus': only a corpus is replaced). Since: 0.1. */
MOED_API moed_status moed_corpus_build(moed_context *c, const char *const *paths, size_t count, const char *prefix,
                                       const moed_corpus_options *o, moed_corpus_report *report, const moed_cancel *cancel);

/* Opens PREFIX.bin/.idx (uint16 or int32 tokens; PREFIX.json if there), or an llm.c shard when prefix
 * names a file that begins with its magic number (documents lie between its end tokens). All tokens are read once where
 * neither o nor PREFIX.json gives the vocabulary. Returns MOED_E_NOT_FOUND, MOED_E_FORMAT naming file and fault,
 * MOED_E_UNSUPPORTED (another version or token type), MOED_E_CHECKSUM (PREFIX.json describes other token files). Since: 0.1. */
MOED_API moed_status moed_corpus_open(moed_corpus **out, moed_context *c, const char *prefix, const moed_corpus_options *o);
/* documents is copied; user must outlive the corpus and its views. Lengths are asked for once, here; all tokens are read
 * once where o gives no vocabulary. Since: 0.1. */
MOED_API moed_status moed_corpus_wrap(moed_corpus **out, moed_context *c, const moed_documents *documents,
                                      const moed_corpus_options *o);
MOED_API moed_status moed_corpus_get_info(const moed_corpus *d, moed_corpus_info *out);
MOED_API void moed_corpus_destroy(moed_corpus *d);

/* Tokens of a document from offset on: at most capacity; count [out] how many there were. Threads: const readers
 * run in parallel. Since: 0.1. */
MOED_API moed_status moed_corpus_read(const moed_corpus *d, int64_t document, int64_t offset, int32_t *tokens,
                                      int64_t capacity, int64_t *count);
/* Number of the document in the whole corpus that the view, or the view it is a view of, was made from (itself for a whole
 * corpus). Since: 0.1. */
MOED_API moed_status moed_corpus_source_document(const moed_corpus *d, int64_t document, int64_t *source);

/* A view of the listed documents (count), in that order. Since: 0.1. */
MOED_API moed_status moed_corpus_subset(moed_corpus **out, const moed_corpus *d, const int64_t *documents, int64_t count);
/* Two views: about `fraction` (between 0 and 1) of the documents held out, at least one in each. Each document is drawn by seed
 * and its number in the whole corpus. MOED_E_ARGUMENT for fewer than 2 documents. Since: 0.1. */
MOED_API moed_status moed_corpus_divide(moed_corpus **train, moed_corpus **held_out, const moed_corpus *d,
                                        double fraction, uint64_t seed);
/* Writes a corpus or view as PREFIX.bin/.idx/.json for another trainer. All or nothing; replaces what moed_corpus_build does.
 * Since: 0.1. */
MOED_API moed_status moed_corpus_save(const moed_corpus *d, const char *prefix, const moed_cancel *cancel);

/* Fills rows of `length` tokens and their labels as the trainer's sampler does: documents in an order drawn
 * per epoch, each followed by the end token, packed without gaps into one stream; the stream, which past its end begins
 * again, is cut into ceil(stream / length) pieces, and these become the epoch's rows in a drawn order. A corpus shorter than a
 * row is repeated. A pure function of (seed, row). documents nullable: 0 for the first document of a row, one more after each end
 * of a document. Arrays (rows, length). Since: 0.1. */
MOED_API moed_status moed_corpus_sample(const moed_corpus *d, uint64_t seed, int64_t first_row, int64_t rows, int64_t length,
                                        int32_t *tokens, int32_t *labels, int32_t *documents);

#ifdef __cplusplus
}
#endif
#endif
