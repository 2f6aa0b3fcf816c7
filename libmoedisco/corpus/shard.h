/* corpus/shard.h - llm.c token shards. */
#ifndef MOEDI_SHARD_H
#define MOEDI_SHARD_H

#include "corpus.h"

/* *taken = 0 (and MOED_OK) when path is no file that begins with a shard's magic number. */
moed_status moedi_shard_open(moed_corpus **out, moed_context *c, const char *path, const moed_corpus_options *o, int *taken);

#endif
