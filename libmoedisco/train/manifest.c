/* train/manifest.c - written last, so a directory that has one is complete. */
#include "manifest.h"

#include <string.h>

#include "util/file.h"
#include "util/hash.h"
#include "util/json.h"

enum { MANIFEST_FORMAT = 1 };

static moed_status measure(const moed_context *c, const char *dir, const char *file, char digest[33], int64_t *size)
{
    char *path = NULL;
    moedi_digest d;
    MOEDI_TRY(moedi_path_join(c, dir, file, &path));
    const moed_status status = moedi_hash_file(c, path, &d, size);
    moedi_free(c, path);
    if (status == MOED_OK) moedi_digest_print(d, digest);
    return status;
}

moed_status moedi_manifest_write(const moed_context *c, const char *dir, const char *const *files, size_t count)
{
    moed_status status = MOED_OK;
    char *path = NULL;
    json_t *list = json_object(), *manifest = json_pack("{s:i}", "format", MANIFEST_FORMAT);
    if (json_object_set_new(manifest, "files", list) != 0) {
        json_decref(manifest);
        return moedi_fail(MOED_E_MEMORY, "out of memory for the manifest of %s", dir);
    }
    for (size_t i = 0; i < count; i++) {
        char digest[33];
        int64_t size;
        MOEDI_GO(measure(c, dir, files[i], digest, &size));
        if (json_object_set_new(list, files[i], json_pack("{s:I, s:s}", "bytes", (json_int_t)size, "xxh3_128", digest)) != 0) {
            status = moedi_fail(MOED_E_MEMORY, "out of memory for the manifest of %s", dir);
            goto out;
        }
    }
    MOEDI_GO(moedi_path_join(c, dir, "manifest.json", &path));
    MOEDI_GO(moedi_json_write(c, manifest, path));
out:
    moedi_free(c, path);
    json_decref(manifest);
    return status;
}

static moed_status verify_file(const moed_context *c, const char *dir, const char *file, const json_t *entry, const char *path)
{
    int64_t listed = 0, size = 0;
    const char *expected = NULL;
    char digest[33];
    if (!json_is_object(entry)) return moedi_fail_file(MOED_E_FORMAT, path, -1, "does not list %s", file);
    MOEDI_TRY(moedi_json_integer(entry, path, "bytes", 1, 0, INT64_MAX, &listed));
    MOEDI_TRY(moedi_json_text(entry, path, "xxh3_128", 1, &expected));
    MOEDI_TRY(measure(c, dir, file, digest, &size));
    if (size != listed)
        return moedi_fail_file(MOED_E_CHECKSUM, dir, -1, "%s has %lld bytes, the manifest says %lld", file, (long long)size,
                               (long long)listed);
    if (strcmp(digest, expected) != 0)
        return moedi_fail_file(MOED_E_CHECKSUM, dir, -1, "%s has checksum %s, the manifest says %.64s", file, digest, expected);
    return MOED_OK;
}

moed_status moedi_manifest_verify(const moed_context *c, const char *dir, const char *const *files, size_t count)
{
    moed_status status = MOED_OK;
    char *path = NULL;
    json_t *manifest = NULL;
    MOEDI_GO(moedi_path_join(c, dir, "manifest.json", &path));
    MOEDI_GO(moedi_json_open(&manifest, c, path));
    MOEDI_GO(moedi_json_format(manifest, path, MANIFEST_FORMAT));
    const json_t *list = json_object_get(manifest, "files");
    for (size_t i = 0; i < count; i++) MOEDI_GO(verify_file(c, dir, files[i], json_object_get(list, files[i]), path));
out:
    json_decref(manifest);
    moedi_free(c, path);
    return status;
}
