/* util/hash.h - 128-bit XXH3, for checksums, fingerprints and exact duplicates. Not cryptographic. */
#ifndef MOEDI_HASH_H
#define MOEDI_HASH_H

#include "core/context.h"

typedef struct moedi_hash moedi_hash; /* a running hash */
typedef struct moedi_digest { uint64_t low, high; } moedi_digest;

moedi_digest moedi_hash_bytes(const void *data, size_t size);
moed_status moedi_hash_create(moedi_hash **out, const moed_context *c);
void moedi_hash_update(moedi_hash *h, const void *data, size_t size);
moedi_digest moedi_hash_digest(const moedi_hash *h);
void moedi_hash_destroy(moedi_hash *h);
moed_status moedi_hash_file(const moed_context *c, const char *path, moedi_digest *out, int64_t *size);
void moedi_digest_print(moedi_digest d, char out[33]); /* 32 hex digits */

#endif
