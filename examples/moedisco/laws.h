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

/* "8,16,32" or "8:2e9,16:1e9" into numbers[count] and, where seconds is not NULL, what stands after each colon (-1 where there is
 * none). An exit code that names the flag. */
int pairs_read(const char *flag_name, const char *text, double *numbers, double *after, size_t room, size_t *count);

#endif
