/* tests/fuzz/corpus.h - what is done with a corpus from a stranger once it is open. */
#ifndef MOEDI_FUZZ_CORPUS_H
#define MOEDI_FUZZ_CORPUS_H

#include "fuzz.h"

/* It can be read and sampled; a token outside what the file promised is refused there. */
static inline void fuzz_use_corpus(const moed_corpus *d)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    assert_ok(moed_corpus_get_info(d, &info));
    int32_t tokens[64], labels[64], documents[64];
    int64_t seen = 0;
    for (int64_t i = 0; i < info.documents; i++)
        for (int64_t at = 0, n = 1; n > 0; at += n) {
            const moed_status s = moed_corpus_read(d, i, at, tokens, 64, &n);
            if (s != MOED_OK) {
                fuzz_refused(s, moed_last_error());
                break;
            }
            seen += n;
        }
    assert_true(seen <= info.tokens);
    const moed_status s = moed_corpus_sample(d, 1, 0, 2, 32, tokens, labels, documents);
    if (s != MOED_OK) fuzz_refused(s, moed_last_error());
    else
        for (int i = 0; i < 64; i++) assert_true(tokens[i] >= 0 && tokens[i] < info.vocabulary && labels[i] < info.vocabulary);
}

#endif
