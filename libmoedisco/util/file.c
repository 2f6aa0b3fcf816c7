/* util/file.c - files and directories that are whole or not there. */
#include "file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "temporary.h"

enum {
    BUFFER = 1 << 18,
    PUSH = 8 << 20 /* bytes after which the disk is set to work, so that the sync at the end finds little to wait for */
};

/* ---- reading ---- */

moed_status moedi_file_open(moedi_file *out, const moed_context *c, const char *path)
{
    struct stat s;
    char *copy = NULL;
    /* not blocking, so that a named pipe cannot hang the caller before it is seen to be one */
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return moedi_fail_errno(path, "open");
    moed_status status = MOED_OK;
    if (fstat(fd, &s) != 0)
        status = moedi_fail_errno(path, "look at");
    else if (!S_ISREG(s.st_mode))
        status = moedi_fail_file(MOED_E_FORMAT, path, -1, "is not a regular file");
    if (status == MOED_OK) status = moedi_strdup(c, path, &copy);
    if (status != MOED_OK) {
        close(fd);
        return status;
    }
    *out = (moedi_file){.fd = fd, .size = s.st_size, .path = copy, .context = c};
    return MOED_OK;
}

moed_status moedi_file_read(const moedi_file *f, int64_t offset, void *out, size_t size)
{
    char *to = out;
    while (size > 0) {
        const ssize_t n = pread(f->fd, to, size, (off_t)offset);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return moedi_fail_errno(f->path, "read");
        if (n == 0) return moedi_fail_file(MOED_E_FORMAT, f->path, offset, "ends before %zu more bytes that belong there", size);
        to += n, offset += n, size -= (size_t)n;
    }
    return MOED_OK;
}

void moedi_file_ahead(const moedi_file *f, int64_t offset, int64_t size)
{
    (void)posix_fadvise(f->fd, (off_t)offset, (off_t)size, POSIX_FADV_WILLNEED);
}

void moedi_file_close(moedi_file *f)
{
    if (!f->path) return;
    close(f->fd);
    moedi_free(f->context, (void *)(uintptr_t)f->path);
    memset(f, 0, sizeof *f);
}

moed_status moedi_file_text(const moed_context *c, const char *path, int64_t most, char **out, size_t *size)
{
    moedi_file f = {0};
    void *text = NULL;
    moed_status status;
    MOEDI_GO(moedi_file_open(&f, c, path));
    if (f.size > most) {
        status = moedi_fail_file(MOED_E_LIMIT, path, -1, "has %lld bytes; at most %lld are read", (long long)f.size,
                                 (long long)most);
        goto out;
    }
    MOEDI_GO(moedi_alloc(c, (size_t)f.size + 1, &text));
    MOEDI_GO(moedi_file_read(&f, 0, text, (size_t)f.size));
    ((char *)text)[f.size] = 0;
    *out = text;
    if (size) *size = (size_t)f.size;
    text = NULL;
out:
    moedi_free(c, text);
    moedi_file_close(&f);
    return status;
}

/* ---- writing ---- */

static void writer_release(moedi_writer *w)
{
    const moed_context *c = w->context;
    moedi_free(c, w->path);
    moedi_free(c, w->temporary);
    moedi_free(c, w->buffer);
    memset(w, 0, sizeof *w);
    w->fd = -1;
}

moed_status moedi_writer_open(moedi_writer *out, const moed_context *c, const char *path)
{
    moedi_writer w = {.fd = -1, .context = c};
    void *buffer = NULL;
    moed_status status;
    MOEDI_GO(moedi_strdup(c, path, &w.path));
    MOEDI_GO(moedi_alloc(c, BUFFER, &buffer));
    w.buffer = buffer;
    MOEDI_GO(moedi_temporary_make(c, path, 0, &w.temporary, &w.fd));
out:
    if (status != MOED_OK)
        writer_release(&w);
    else
        *out = w;
    return status;
}

static moed_status write_all(moedi_writer *w, const char *data, size_t size)
{
    w->handed += (int64_t)size;
    while (size > 0) {
        const ssize_t n = write(w->fd, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO; /* or this would never end */
        if (n <= 0) return moedi_fail_errno(w->path, "write");
        data += n, size -= (size_t)n;
    }
    if (w->handed - w->pushed >= PUSH) {
        /* starts the writing and waits for none of it; an error comes to light in fsync. All that is dirty: a file may be written
         * out of order */
        (void)sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        w->pushed = w->handed;
    }
    return MOED_OK;
}

static moed_status flush(moedi_writer *w)
{
    const size_t used = w->used;
    w->used = 0;
    return write_all(w, w->buffer, used);
}

moed_status moedi_writer_write(moedi_writer *w, const void *data, size_t size)
{
    w->written += (int64_t)size;
    if (size > BUFFER - w->used) MOEDI_TRY(flush(w));
    if (size >= BUFFER) return write_all(w, data, size);
    memcpy(w->buffer + w->used, data, size);
    w->used += size;
    return MOED_OK;
}

moed_status moedi_writer_seek(moedi_writer *w, int64_t offset)
{
    MOEDI_TRY(flush(w));
    if (lseek(w->fd, (off_t)offset, SEEK_SET) < 0) return moedi_fail_errno(w->path, "seek in");
    return MOED_OK;
}

/* The directory part of a path, passed to `act`. Without memory of its own: after a rename only the disk may still fail. */
static moed_status with_parent(const char *path, moed_status (*act)(const char *))
{
    char parent[4096];
    size_t n = strlen(path);
    if (n >= sizeof parent) return moedi_fail(MOED_E_ARGUMENT, "a path of %zu bytes is longer than any that can be opened", n);
    memcpy(parent, path, n + 1);
    while (n > 1 && parent[n - 1] == '/') parent[--n] = 0;
    char *slash = strrchr(parent, '/');
    if (slash) slash[slash == parent] = 0;
    return act(slash ? parent : ".");
}

static moed_status sync_parent(const char *path)
{
    return with_parent(path, moedi_directory_sync);
}

static int retry_sync(int fd)
{
    int result;
    do result = fsync(fd);
    while (result != 0 && errno == EINTR);
    return result;
}

moed_status moedi_writer_settle(moedi_writer *w, int64_t size)
{
    MOEDI_TRY(moedi_writer_seek(w, size));
    int result;
    do result = ftruncate(w->fd, (off_t)size);
    while (result != 0 && errno == EINTR);
    if (result != 0) return moedi_fail_errno(w->path, "set the size of");
    return retry_sync(w->fd) == 0 ? MOED_OK : moedi_fail_errno(w->path, "sync");
}

moed_status moedi_writer_commit(moedi_writer *w)
{
    moed_status status;
    MOEDI_GO(flush(w));
    if (retry_sync(w->fd) != 0) {
        status = moedi_fail_errno(w->path, "sync");
        goto out;
    }
    const int closed = close(w->fd);
    w->fd = -1;
    if (closed != 0 && errno != EINTR) /* then it is closed, and it was synced */
        status = moedi_fail_errno(w->path, "close");
    else if (rename(w->temporary, w->path) != 0)
        status = moedi_fail_errno(w->path, "rename to");
    else
        status = sync_parent(w->path);
    if (status == MOED_OK) {
        writer_release(w);
        return MOED_OK;
    }
out:
    moedi_writer_abort(w);
    return status;
}

void moedi_writer_abort(moedi_writer *w)
{
    if (!w->path) return;
    if (w->fd >= 0) close(w->fd);
    unlink(w->temporary);
    writer_release(w);
}

moed_status moedi_file_write(const moed_context *c, const char *path, const void *data, size_t size)
{
    moedi_writer w = {0};
    MOEDI_TRY(moedi_writer_open(&w, c, path));
    const moed_status status = moedi_writer_write(&w, data, size);
    if (status == MOED_OK) return moedi_writer_commit(&w);
    moedi_writer_abort(&w);
    return status;
}

/* ---- paths and directories ---- */

moed_status moedi_path_join(const moed_context *c, const char *a, const char *b, char **out)
{
    const size_t size = strlen(a) + strlen(b) + 2;
    void *path;
    MOEDI_TRY(moedi_alloc(c, size, &path));
    const int slash = *a && a[strlen(a) - 1] != '/';
    snprintf(path, size, "%s%s%s", a, slash ? "/" : "", b);
    *out = path;
    return MOED_OK;
}

int moedi_path_exists(const char *path)
{
    struct stat s;
    return lstat(path, &s) == 0;
}

int moedi_path_is_directory(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

moed_status moedi_directory_make(const char *path)
{
    char part[4096];
    const size_t size = strlen(path);
    if (size == 0 || size >= sizeof part)
        return moedi_fail(MOED_E_ARGUMENT, "a directory name of %zu bytes cannot be made", size);
    memcpy(part, path, size + 1);
    for (size_t i = 1; i <= size; i++) {
        if (part[i] != '/' && part[i] != 0) continue;
        const char kept = part[i];
        part[i] = 0;
        if (mkdir(part, 0777) != 0 && errno != EEXIST) return moedi_fail_errno(part, "make directory");
        part[i] = kept;
    }
    if (!moedi_path_is_directory(path)) return moedi_fail_file(MOED_E_EXISTS, path, -1, "is there and is not a directory");
    return MOED_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void free_names(const moed_context *c, char **names, size_t count)
{
    for (size_t i = 0; i < count; i++) moedi_free(c, names[i]);
    moedi_free(c, names);
}

moed_status moedi_directory_list(const moed_context *c, const char *path, char ***out, size_t *out_count)
{
    char **names = NULL;
    size_t count = 0, room = 0;
    moed_status status = MOED_OK;
    DIR *d = opendir(path);
    if (!d) return moedi_fail_errno(path, "open directory");
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e && errno) status = moedi_fail_errno(path, "read directory");
        if (!e) break;
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        if (count == room) {
            room = room ? 2 * room : 32;
            MOEDI_GO(moedi_realloc_array(c, (int64_t)room, sizeof *names, (void **)&names));
        }
        MOEDI_GO(moedi_strdup(c, e->d_name, &names[count]));
        count++;
    }
    if (status == MOED_OK && !names) status = moedi_alloc_array(c, 0, sizeof *names, (void **)&names);
out:
    closedir(d);
    if (status != MOED_OK) {
        free_names(c, names, count);
        return status;
    }
    qsort(names, count, sizeof *names, compare_names);
    *out = names;
    *out_count = count;
    return MOED_OK;
}

moed_status moedi_directory_remove(const char *path)
{
    return moedi_remove_at(AT_FDCWD, path) == 0 ? MOED_OK : moedi_fail_errno(path, "remove");
}

moed_status moedi_directory_sync(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return moedi_fail_errno(path, "open directory");
    moed_status status = MOED_OK;
    /* some file systems have no notion of syncing a directory */
    if (retry_sync(fd) != 0 && errno != EINVAL && errno != EROFS) status = moedi_fail_errno(path, "sync directory");
    close(fd);
    return status;
}

/* ---- a directory that appears whole ---- */

static void fresh_release(moedi_fresh_directory *d)
{
    moedi_free(d->context, d->path);
    moedi_free(d->context, d->temporary);
    if (d->lock >= 0) close(d->lock);
    memset(d, 0, sizeof *d);
    d->lock = -1;
}

moed_status moedi_fresh_directory_begin(moedi_fresh_directory *out, const moed_context *c, const char *path)
{
    moedi_fresh_directory d = {.context = c, .lock = -1};
    moed_status status;
    char *real = moedi_path_is_directory(path) ? realpath(path, NULL) : NULL; /* behind a link it is the link's target that is
                                                                                 replaced */
    status = moedi_strdup(c, real ? real : path, &d.path);
    free(real);
    if (status != MOED_OK) goto out;
    for (size_t n = strlen(d.path); n > 1 && d.path[n - 1] == '/'; n--) d.path[n - 1] = 0;
    MOEDI_GO(with_parent(d.path, moedi_directory_make));
    MOEDI_GO(moedi_temporary_make(c, d.path, 1, &d.temporary, &d.lock));
out:
    if (status != MOED_OK)
        fresh_release(&d);
    else
        *out = d;
    return status;
}

moed_status moedi_fresh_directory_commit(moedi_fresh_directory *d)
{
    moed_status status;
    int replaced = 0;
    MOEDI_GO(moedi_directory_sync(d->temporary));
    if (moedi_path_exists(d->path)) {
        MOEDI_GO(moedi_temporary_exchange(d->context, d->temporary, d->path));
        replaced = 1;
    } else if (rename(d->temporary, d->path) != 0) {
        status = moedi_fail_errno(d->path, "rename to");
        goto out;
    }
    MOEDI_GO(sync_parent(d->path));
    if (replaced && moedi_directory_remove(d->temporary) != MOED_OK) { /* the new one is in place and durable all the same */
        moedi_log(d->context, MOED_LOG_WARNING, "what was replaced stays until the next time: %s", moed_last_error());
        moedi_clear_error();
    }
    fresh_release(d);
    return MOED_OK;
out:
    moedi_fresh_directory_abort(d);
    return status;
}

void moedi_fresh_directory_abort(moedi_fresh_directory *d)
{
    if (!d->path) return;
    moedi_error error;
    moedi_error_save(&error); /* the caller's reason, not the clean-up's */
    (void)moedi_directory_remove(d->temporary);
    moedi_error_restore(&error);
    fresh_release(d);
}
