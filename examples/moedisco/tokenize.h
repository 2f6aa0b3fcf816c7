/* tokenize.h - texts into a model's tokens: bytes, or what a program makes of them. */
#ifndef TOKENIZE_H
#define TOKENIZE_H

#include "app.h"

enum { BYTES_VOCABULARY = 257 }; /* bytes, and the end of a document */

typedef struct tokenizer {
    const char *file;    /* tokenizer.json; NULL = bytes */
    const char *program; /* called as PROGRAM FILE; NULL = moedisco-tokenize beside this command */
    int64_t vocabulary;  /* of the model */
} tokenizer;

typedef struct token_list {
    int32_t *ids;
    size_t count;
} token_list;

/* Texts (count) to out (count), to be freed by tokens_free. An exit code. */
int tokenize(const tokenizer *t, char *const *texts, size_t count, token_list **out);
void tokens_free(token_list *lists, size_t count);

#endif
