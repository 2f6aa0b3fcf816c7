/* laws.h - scaling laws of the command: by a preset's name or from a file, and the runs that they are fitted to. */
#ifndef LAWS_H
#define LAWS_H

#include "app.h"

/* A preset ("ludziejewski-2025"), or a file that `law fit` wrote. top_k 0: the file's own, 1 for a preset. An exit code. */
int law_open(moed_law **out, moed_context *c, const char *name, int64_t top_k);
/* A JSON file, whole or not at all. */
int law_save(const char *path, const moed_law *l);

/* Runs of a file: CSV with a line of names, or JSON lines. Columns active (N), experts (E), tokens (D) and loss (L); others are
 * passed over. The caller frees *out. An exit code. */
int runs_read(const char *path, moed_run_point **out, size_t *count);

#endif
