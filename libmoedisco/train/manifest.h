/* train/manifest.h - manifest.json: size and checksum of each file of a directory. */
#ifndef MOEDI_MANIFEST_H
#define MOEDI_MANIFEST_H

#include "core/context.h"

/* files (count): paths relative to dir. */
moed_status moedi_manifest_write(const moed_context *c, const char *dir, const char *const *files, size_t count);
/* MOED_E_CHECKSUM, MOED_E_FORMAT or MOED_E_NOT_FOUND naming the file that is not as the manifest says; MOED_E_UNSUPPORTED for a
 * manifest of another format. */
moed_status moedi_manifest_verify(const moed_context *c, const char *dir, const char *const *files, size_t count);

#endif
