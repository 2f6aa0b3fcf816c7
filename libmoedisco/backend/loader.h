/* backend/loader.h - finding backends: the built-in one and plug-ins in a fixed list of folders. */
#ifndef MOEDI_LOADER_H
#define MOEDI_LOADER_H

#include "core/context.h"

/* Called for the built-in backend, then for each plug-in file found, folder by folder, in name order. table NULL: `reason` says
 * why the file at `path` is no backend for this library. Return non-zero to stop. */
typedef int (*moedi_backend_visitor)(const moed_backend *table, const char *path, const char *reason, void *user);

/* explicit_dir (nullable) is searched first, then the folders of MOED_BACKEND_PATH unless use_environment is 0, then
 * "moedisco-backends" beside the loaded library, then LIBDIR/moedisco-backends: files libmoedisco-*.so. Never the current
 * directory. Plug-ins stay loaded. */
void moedi_backends(const char *explicit_dir, int use_environment, moedi_backend_visitor visit, void *user);

/* The first of them that is called `name`, or NULL. */
const moed_backend *moedi_backend_named(const char *explicit_dir, int use_environment, const char *name);

/* What a backend sees where there is no context: enough to describe its devices. All of it is there. */
extern const moed_host_api moedi_bare_host;

#endif
