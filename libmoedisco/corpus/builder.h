/* corpus/builder.h - bytes become documents of a corpus. */
#ifndef MOEDI_BUILDER_H
#define MOEDI_BUILDER_H

#include <sys/stat.h>

#include "indexed.h"

typedef struct moedi_builder {
    moed_context *context;
    const moed_cancel *cancel;
    moed_corpus_options options;
    moed_corpus_report report;
    moedi_indexed_writer writer;
    unsigned char *pending; /* bytes of the document at hand that are not written yet */
    uint16_t *tokens;       /* the same as tokens */
    int64_t used;
    int64_t size;       /* bytes of the document at hand */
    int visible;        /* it has more than white space */
    moedi_hash *hash;   /* of what has been written of it; NULL = nothing yet */
    moedi_digest *seen; /* (seen_room) digests of documents kept, by open addressing; zero = free */
    int64_t seen_room, seen_count;
    struct stat own[4]; /* files of the corpus being built, or built here before: never its text */
    int owns;
} moedi_builder;

/* context, cancel and options are given; close takes one that open has not finished, and leaves nothing at PREFIX before a
 * commit of the writer. */
moed_status moedi_builder_open(moedi_builder *b, const char *prefix);
void moedi_builder_close(moedi_builder *b);
/* Bytes of the document at hand, then its end: an empty, short or known document leaves nothing. */
moed_status moedi_builder_append(moedi_builder *b, const unsigned char *bytes, int64_t count);
moed_status moedi_builder_end(moedi_builder *b);

#endif
