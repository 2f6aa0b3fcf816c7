/* tests/fuzz/shard.c - an llm.c shard from a stranger. */
#include "corpus.h"

FUZZ_TARGET(shard)
{
    fuzz_begin();
    moed_corpus *d = NULL;
    const moed_status status = moed_corpus_open(&d, fuzz_context, fuzz_file("shard.bin", data, size), NULL);
    if (status != MOED_OK) return fuzz_end(status, NULL);
    fuzz_use_corpus(d);
    moed_corpus_destroy(d);
    return fuzz_end(MOED_OK, NULL);
}
