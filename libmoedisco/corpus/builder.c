/* corpus/builder.c - documents of bytes become a corpus; exact copies are dropped. Memory grows with the number
 * of documents only. */
#include "builder.h"

#include <string.h>

#include "core/options.h"
#include "util/utf8.h"

#define PENDING 65536

moed_status moedi_builder_open(moedi_builder *b, const char *prefix)
{
    MOEDI_TRY(moedi_alloc(b->context, PENDING, (void **)&b->pending));
    MOEDI_TRY(MOEDI_NEW(b->context, PENDING, &b->tokens));
    return moedi_indexed_create(&b->writer, b->context, prefix, 2);
}

void moedi_builder_close(moedi_builder *b)
{
    moedi_indexed_abort(&b->writer);
    moedi_hash_destroy(b->hash);
    moedi_free(b->context, b->pending);
    moedi_free(b->context, b->tokens);
    moedi_free(b->context, b->seen);
}

static moed_status write_pending(moedi_builder *b)
{
    for (int64_t at = 0; at < b->used; at += 64) /* of a fixed count, so that it is made of vectors; what lies past the end is not
                                                    written */
        for (int64_t i = at; i < at + 64; i++) b->tokens[i] = b->pending[i];
    MOEDI_TRY(moedi_indexed_append(&b->writer, b->tokens, b->used));
    b->used = 0;
    return MOED_OK;
}

moed_status moedi_builder_append(moedi_builder *b, const unsigned char *bytes, int64_t count)
{
    b->size += count;
    for (int64_t i = 0; i < count && !b->visible; i++) b->visible = bytes[i] > ' ';
    while (count > 0) {
        const int64_t room = PENDING - b->used, n = count < room ? count : room;
        memcpy(b->pending + b->used, bytes, (size_t)n);
        b->used += n;
        bytes += n;
        count -= n;
        if (b->used < PENDING) break;
        if (!b->hash) MOEDI_TRY(moedi_hash_create(&b->hash, b->context));
        moedi_hash_update(b->hash, b->pending, (size_t)b->used);
        MOEDI_TRY(write_pending(b));
    }
    return MOED_OK;
}

static moedi_digest *find_digest(moedi_digest *table, int64_t room, moedi_digest d)
{
    uint64_t at = d.low & (uint64_t)(room - 1);
    while ((table[at].low | table[at].high) != 0 && (table[at].low != d.low || table[at].high != d.high))
        at = (at + 1) & (uint64_t)(room - 1);
    return &table[at];
}

/* *known = 1 when the digest has been seen before. */
static moed_status remember(moedi_builder *b, moedi_digest d, int *known)
{
    if (b->seen_count * 2 >= b->seen_room) {
        const int64_t room = b->seen_room ? b->seen_room * 2 : 4096;
        moedi_digest *table = NULL;
        MOEDI_TRY(MOEDI_NEW(b->context, room, &table));
        for (int64_t i = 0; i < b->seen_room; i++)
            if ((b->seen[i].low | b->seen[i].high) != 0) *find_digest(table, room, b->seen[i]) = b->seen[i];
        moedi_free(b->context, b->seen);
        b->seen = table;
        b->seen_room = room;
    }
    moedi_digest *place = find_digest(b->seen, b->seen_room, d);
    *known = (place->low | place->high) != 0;
    b->seen_count += !*known;
    *place = d;
    return MOED_OK;
}

/* A document that fits the buffer was never written. */
static moed_status drop(moedi_builder *b) { return b->hash ? moedi_indexed_drop(&b->writer) : MOED_OK; }

static moed_status settle_document(moedi_builder *b)
{
    if (b->size == 0 || !b->visible || b->size < b->options.minimum_bytes) {
        b->report.empty += 1;
        return drop(b);
    }
    moedi_digest d;
    int known = 0;
    if (b->hash) {
        moedi_hash_update(b->hash, b->pending, (size_t)b->used);
        d = moedi_hash_digest(b->hash);
    } else {
        d = moedi_hash_bytes(b->pending, (size_t)b->used);
    }
    MOEDI_TRY(remember(b, d, &known));
    if (known) {
        b->report.duplicates += 1;
        return drop(b);
    }
    MOEDI_TRY(write_pending(b));
    return moedi_indexed_end(&b->writer);
}

moed_status moedi_builder_end(moedi_builder *b)
{
    const moed_status status = settle_document(b);
    moedi_hash_destroy(b->hash);
    b->hash = NULL;
    b->used = b->size = 0;
    b->visible = 0;
    return status;
}
