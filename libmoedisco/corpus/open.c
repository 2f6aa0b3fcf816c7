/* corpus/open.c - token files of any known kind. */
#include "core/options.h"
#include "indexed.h"
#include "shard.h"

moed_status moed_corpus_open(moed_corpus **out, moed_context *c, const char *prefix,
                             const moed_corpus_options *o)
{
    moed_corpus_options options;
    int taken = 0;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(prefix && prefix[0], "prefix is NULL or empty");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_CORPUS_OPTIONS, o, &options));
    MOEDI_TRY(moedi_shard_open(out, c, prefix, &options, &taken));
    return taken ? MOED_OK : moedi_indexed_open(out, c, prefix, &options);
}
