/* util/hash.c - XXH3 from the xxhash header, compiled in: no library to load. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <stdio.h>
#include <string.h>

#include "hash.h"
#include "util/file.h"

struct moedi_hash {
    XXH3_state_t state;
    const moed_context *context;
};

moedi_digest moedi_hash_bytes(const void *data, size_t size)
{
    const XXH128_hash_t h = XXH3_128bits(data, size);
    return (moedi_digest){.low = h.low64, .high = h.high64};
}

moed_status moedi_hash_create(moedi_hash **out, const moed_context *c)
{
    moedi_hash *h;
    MOEDI_TRY(MOEDI_NEW(c, 1, &h));
    h->context = c;
    XXH3_128bits_reset(&h->state);
    *out = h;
    return MOED_OK;
}

void moedi_hash_update(moedi_hash *h, const void *data, size_t size)
{
    XXH3_128bits_update(&h->state, data, size);
}

moedi_digest moedi_hash_digest(const moedi_hash *h)
{
    const XXH128_hash_t d = XXH3_128bits_digest(&h->state);
    return (moedi_digest){.low = d.low64, .high = d.high64};
}

void moedi_hash_destroy(moedi_hash *h)
{
    if (h) moedi_free(h->context, h);
}

moed_status moedi_hash_file(const moed_context *c, const char *path, moedi_digest *out, int64_t *size)
{
    enum { CHUNK = 1 << 20 };
    moedi_file f = {0};
    moedi_hash *h = NULL;
    void *buffer = NULL;
    moed_status status;
    MOEDI_GO(moedi_file_open(&f, c, path));
    MOEDI_GO(moedi_hash_create(&h, c));
    MOEDI_GO(moedi_alloc(c, CHUNK, &buffer));
    for (int64_t at = 0; at < f.size; at += CHUNK) {
        const size_t n = (size_t)(f.size - at < CHUNK ? f.size - at : CHUNK);
        MOEDI_GO(moedi_file_read(&f, at, buffer, n));
        moedi_hash_update(h, buffer, n);
    }
    *out = moedi_hash_digest(h);
    if (size) *size = f.size;
out:
    moedi_free(c, buffer);
    moedi_hash_destroy(h);
    moedi_file_close(&f);
    return status;
}

void moedi_digest_print(moedi_digest d, char out[33])
{
    snprintf(out, 33, "%016llx%016llx", (unsigned long long)d.high, (unsigned long long)d.low);
}
