/* 02_corpus.c - a folder of text becomes a corpus: 02_corpus FOLDER PREFIX writes PREFIX.bin, PREFIX.idx and PREFIX.json. */
#include <inttypes.h>
#include <stdio.h>

#include <moedisco.h>

static int build(moed_context *c, const char *folder, const char *prefix)
{
    moed_corpus_report report = {.struct_size = sizeof report};
    moed_corpus_info info = {.struct_size = sizeof info};
    moed_corpus *corpus = NULL;
    int32_t tokens[60];
    int64_t count = 0;
    if (moed_corpus_build(c, &folder, 1, prefix, NULL, &report, NULL) != MOED_OK) return 2;
    printf("%" PRId64 " text files read, %" PRId64 " binary files left out, %" PRId64 " copies dropped\n", report.files,
           report.binary_files, report.duplicates);

    if (moed_corpus_open(&corpus, c, prefix, NULL) != MOED_OK) return 2;
    int code = 2;
    if (moed_corpus_get_info(corpus, &info) == MOED_OK && moed_corpus_read(corpus, 0, 0, tokens, 60, &count) == MOED_OK) {
        printf("%" PRId64 " documents, %" PRId64 " tokens, the longest document %" PRId64
               "\nfingerprint %s\nthe first document begins: ",
               info.documents, info.tokens, info.longest, info.fingerprint);
        for (int64_t i = 0; i < count; i++) putchar(tokens[i] < ' ' ? ' ' : (int)tokens[i]);
        putchar('\n');
        code = 0;
    }
    moed_corpus_destroy(corpus);
    return code;
}

int main(int argc, char **argv)
{
    moed_context *c = NULL;
    if (argc != 3) {
        fprintf(stderr, "usage: %s FOLDER PREFIX\n", argv[0]);
        return 2;
    }
    int code = moed_context_create(&c, NULL) == MOED_OK ? build(c, argv[1], argv[2]) : 2;
    if (code) fprintf(stderr, "%s\n", moed_last_error());
    moed_context_destroy(c);
    return code;
}
