/* tests/fuzz/indexed.c - PREFIX.idx, PREFIX.json (none when empty) and PREFIX.bin from a stranger. */
#include "corpus.h"

FUZZ_TARGET(indexed)
{
    fuzz_begin();
    fuzz_part rest = {data, size};
    const fuzz_part idx = fuzz_take(&rest), json = fuzz_take(&rest);
    fuzz_file("c.idx", idx.data, idx.size);
    fuzz_file("c.bin", rest.data, rest.size);
    if (json.size) fuzz_file("c.json", json.data, json.size);
    else remove(support_path(fuzz_dir, "c.json"));
    moed_corpus *d = NULL;
    const moed_status status = moed_corpus_open(&d, fuzz_context, support_path(fuzz_dir, "c"), NULL);
    if (status != MOED_OK) return fuzz_end(status, NULL);
    fuzz_use_corpus(d);
    moed_corpus_destroy(d);
    return fuzz_end(MOED_OK, NULL);
}
