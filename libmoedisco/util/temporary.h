/* util/temporary.h - what is being written lies beside its final name as "PATH.tmp-PID-N" until it is whole, and is locked
 * (flock) for as long as its writer lives. So whoever writes PATH next can tell what a killed writer left and sweep it: process
 * numbers repeat in containers and say nothing about other hosts. Where a file system has no locks nothing is swept. */
#ifndef MOEDI_TEMPORARY_H
#define MOEDI_TEMPORARY_H

#include "core/context.h"

/* Sweeps what killed writers of `path` left, then makes a new temporary: a file to be written, or a directory. *fd holds its lock
 * until it is closed. *out: its name; free with moedi_free. */
moed_status moedi_temporary_make(const moed_context *c, const char *path, int directory, char **out, int *fd);

/* Renames what lies at `path` to a temporary name, for as long as something new takes its place; *name = NULL when nothing is
 * there. */
moed_status moedi_temporary_aside(const moed_context *c, const char *path, char **name);

/* Puts the new directory `temporary` in the old one's place at `path`, in one step where the file system can; the old one is
 * `temporary` afterwards. */
moed_status moedi_temporary_exchange(const moed_context *c, const char *temporary, const char *path);

/* Sweeps what killed writers left in the directory of everything whose name begins with `prefix`. */
void moedi_temporary_sweep(const char *dir, const char *prefix);

/* Removes the entry `name` of the open directory with all it holds, links not followed; 0, or -1 and errno. Absent is fine. */
int moedi_remove_at(int dir, const char *name);

#endif
