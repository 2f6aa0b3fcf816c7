/* util/file.h - files and directories that are whole or not there. All errors name the path. */
#ifndef MOEDI_FILE_H
#define MOEDI_FILE_H

#include "core/context.h"

typedef struct moedi_file {
    int fd;
    int64_t size;      /* at open */
    const char *path;  /* owned */
    const moed_context *context;
} moedi_file;

moed_status moedi_file_open(moedi_file *out, const moed_context *c, const char *path);   /* read only, a regular file */
moed_status moedi_file_read(const moedi_file *f, int64_t offset, void *out, size_t size); /* all or MOED_E_FORMAT (too short) /
                                                                                             MOED_E_IO */
/* A hint that these bytes will be read soon: the system fetches them meanwhile. */
void moedi_file_ahead(const moedi_file *f, int64_t offset, int64_t size);
void moedi_file_close(moedi_file *f);

/* A whole small file, zero-terminated; MOED_E_LIMIT above `most` bytes. Free with moedi_free. */
moed_status moedi_file_text(const moed_context *c, const char *path, int64_t most, char **out, size_t *size);

/* A file being written beside its final name ("path.tmp-PID-N"): commit syncs and renames it, abort removes it. Buffered. */
typedef struct moedi_writer {
    int fd;
    char *path, *temporary, *buffer;
    size_t used;
    int64_t written;   /* position of the next byte */
    int64_t handed, pushed; /* bytes given to the system so far, and of those on their way to the disk */
    const moed_context *context;
} moedi_writer;
moed_status moedi_writer_open(moedi_writer *out, const moed_context *c, const char *path);
moed_status moedi_writer_write(moedi_writer *w, const void *data, size_t size);
moed_status moedi_writer_seek(moedi_writer *w, int64_t offset);   /* flushes; for formats whose parts are made out of order */
moed_status moedi_writer_settle(moedi_writer *w, int64_t size);   /* cut to size and synced, so that commit needs no more space */
/* Closes in every case. After an error the old file is there, or - when only the directory could not be synced - the new one,
 * whole. */
moed_status moedi_writer_commit(moedi_writer *w);
void moedi_writer_abort(moedi_writer *w);                         /* safe after commit and on a zeroed writer */
/* text as a whole file */
moed_status moedi_file_write(const moed_context *c, const char *path, const void *data, size_t size);

/* "a/b" from "a" and "b"; free with moedi_free. */
moed_status moedi_path_join(const moed_context *c, const char *a, const char *b, char **out);
int moedi_path_exists(const char *path);
int moedi_path_is_directory(const char *path);
moed_status moedi_directory_make(const char *path);                    /* and its parents; there already is fine */
moed_status moedi_directory_remove(const char *path);                  /* with all it holds; absent is fine */
moed_status moedi_directory_sync(const char *path);                    /* entries */
/* Names in a directory in strcmp order, without . and ..; free each and the array with moedi_free. */
moed_status moedi_directory_list(const moed_context *c, const char *path, char ***out, size_t *out_count);

/* A directory that appears whole: fill `temporary`, then commit exchanges it with what is at `path`, syncs files' directory and
 * parent, and removes the old one. Abort removes the new one. After an error of commit either of them is there, whole. */
typedef struct moedi_fresh_directory {
    char *path, *temporary;
    int lock;          /* of temporary */
    const moed_context *context;
} moedi_fresh_directory;
moed_status moedi_fresh_directory_begin(moedi_fresh_directory *out, const moed_context *c, const char *path);
moed_status moedi_fresh_directory_commit(moedi_fresh_directory *d);
void moedi_fresh_directory_abort(moedi_fresh_directory *d);

#endif
