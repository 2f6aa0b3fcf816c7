/* model/companion.c - which files of a Hugging Face directory belong to the model without being numbers or configuration. */
#include "companion.h"

#include <fnmatch.h>

#include "util/file.h"

static const char *const patterns[] = {
    "generation_config.json",
    "tokenizer*.json", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "*.tiktoken", "tokenizer.model*", "spiece.model", "sentencepiece*.model", "chat_template*",
    "configuration_*.py", "modeling_*.py", "tokenization_*.py", /* what config.json's auto_map names */
};

int moedi_is_companion(const char *name)
{
    for (size_t i = 0; i < sizeof patterns / sizeof *patterns; i++)
        if (fnmatch(patterns[i], name, FNM_PERIOD) == 0) return 1;
    return 0;
}

enum { BLOCK = 1 << 20 };

static moed_status copy_file(const moed_context *c, const char *from, const char *to, char *block)
{
    moedi_file in = {.fd = -1};
    moedi_writer out = {.fd = -1};
    moed_status status;
    MOEDI_TRY(moedi_file_open(&in, c, from));
    MOEDI_GO(moedi_writer_open(&out, c, to));
    for (int64_t at = 0; at < in.size; at += BLOCK) {
        const size_t count = in.size - at < BLOCK ? (size_t)(in.size - at) : BLOCK;
        MOEDI_GO(moedi_file_read(&in, at, block, count));
        MOEDI_GO(moedi_writer_write(&out, block, count));
    }
    MOEDI_GO(moedi_writer_commit(&out));
out:
    moedi_writer_abort(&out);
    moedi_file_close(&in);
    return status;
}

static moed_status copy_named(const moed_context *c, const char *from, const char *to, const char *name, char *block)
{
    char *source = NULL, *target = NULL;
    moed_status status;
    MOEDI_GO(moedi_path_join(c, from, name, &source));
    MOEDI_GO(moedi_path_join(c, to, name, &target));
    if (!moedi_path_is_directory(source)) MOEDI_GO(copy_file(c, source, target, block));
out:
    moedi_free(c, source);
    moedi_free(c, target);
    return status;
}

moed_status moedi_companions_copy(const moed_context *c, const char *from, const char *to)
{
    char **names = NULL, *block = NULL;
    size_t count = 0;
    moed_status status;
    if (!from || !moedi_path_is_directory(from)) return MOED_OK;
    MOEDI_TRY(moedi_directory_list(c, from, &names, &count));
    MOEDI_GO(moedi_alloc(c, BLOCK, (void **)&block));
    for (size_t i = 0; i < count; i++)
        if (moedi_is_companion(names[i])) MOEDI_GO(copy_named(c, from, to, names[i], block));
out:
    for (size_t i = 0; i < count; i++) moedi_free(c, names[i]);
    moedi_free(c, names);
    moedi_free(c, block);
    return status;
}
