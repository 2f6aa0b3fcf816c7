/* util/temporary.c - names, locks and the sweeping of what is not whole yet. No function here but make, aside and exchange
 * allocates. */
#include "temporary.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TRIES = 10000, LONGEST = 4096 };
static const char NEW[] = ".tmp-", OLD[] = ".old-";

/* ---- names ---- */

/* PATH + kind + "PID-N": beside the final name, so that a rename stays in one file system; unlike any other writer's. */
static moed_status make_name(const moed_context *c, const char *path, const char *kind, char **out)
{
    static atomic_int counter;
    const size_t size = strlen(path) + 48;
    void *name;
    MOEDI_TRY(moedi_alloc(c, size, &name));
    snprintf(name, size, "%s%s%ld-%d", path, kind, (long)getpid(), atomic_fetch_add(&counter, 1));
    *out = name;
    return MOED_OK;
}

static const char *skip_digits(const char *at)
{
    while (*at >= '0' && *at <= '9') at++;
    return at;
}

/* Where a name ends in kind + "PID-N", NULL if it does not. */
static const char *tail_of(const char *name, const char *kind)
{
    const char *found = NULL;
    for (const char *at = name; (at = strstr(at, kind)); at++) found = at;
    if (!found) return NULL;
    const char *first = found + strlen(kind), *middle = skip_digits(first);
    if (middle == first || *middle != '-') return NULL;
    const char *end = skip_digits(middle + 1);
    return end > middle + 1 && !*end ? found : NULL;
}

/* ---- removing ---- */

static int remove_content(int fd)
{
    DIR *d = fdopendir(fd); /* owns fd */
    int result = 0;
    if (!d) {
        close(fd);
        return -1;
    }
    errno = 0;
    for (const struct dirent *e; result == 0 && (e = readdir(d)); errno = 0)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) result = moedi_remove_at(dirfd(d), e->d_name);
    if (errno) result = -1;
    const int error = errno;
    closedir(d);
    errno = error;
    return result;
}

int moedi_remove_at(int dir, const char *name)
{
    if (unlinkat(dir, name, 0) == 0 || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1; /* POSIX has EPERM for directories */
    const int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOTDIR) errno = EPERM; /* a file that may not be removed */
    if (fd < 0) return errno == ENOENT ? 0 : -1;
    if (remove_content(fd) != 0) return -1;
    return unlinkat(dir, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -1;
}

/* ---- locks ---- */

/* 1 when the lock was taken, 0 when somebody has it or there are no locks. */
static int lock(int fd, int wait)
{
    int result;
    do result = flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB));
    while (result != 0 && errno == EINTR);
    return result == 0;
}

/* Locks what was just made. 0 when a sweeper was quicker and it is gone. */
static int hold(const char *name, int fd)
{
    struct stat held, there;
    (void)lock(fd, 1);
    return fstat(fd, &held) == 0 && lstat(name, &there) == 0 && held.st_ino == there.st_ino;
}

/* ---- sweeping ---- */

static void sweep_entry(int dir, const char *name)
{
    const int fd = openat(dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return;
    if (lock(fd, 0)) (void)moedi_remove_at(dir, name);
    close(fd);
}

/* An old directory that lost its name in an exchange of two steps, killed between them, gets it back. */
static void put_back(int dir, const char *name, const char *base)
{
    struct stat s;
    if (fstatat(dir, base, &s, AT_SYMLINK_NOFOLLOW) == 0) sweep_entry(dir, name);
    else if (errno == ENOENT) (void)renameat(dir, name, dir, base);
}

/* What was left of everything in `dir` whose name begins with `prefix`, or is `prefix`. Whatever goes wrong is no reason not to
 * write: it stays until the next time. */
static void sweep_directory(const char *dir, const char *prefix, int exact)
{
    DIR *d = opendir(dir);
    if (!d) return;
    const size_t length = strlen(prefix);
    for (const struct dirent *e; (e = readdir(d));) {
        if (strncmp(e->d_name, prefix, length) != 0) continue;
        const char *fresh = tail_of(e->d_name, NEW), *old = tail_of(e->d_name, OLD), *tail = fresh ? fresh : old;
        if (!tail || tail < e->d_name + length || (exact && tail != e->d_name + length)) continue;
        char base[sizeof e->d_name];
        memcpy(base, e->d_name, (size_t)(tail - e->d_name));
        base[tail - e->d_name] = 0;
        if (fresh) sweep_entry(dirfd(d), e->d_name);
        else put_back(dirfd(d), e->d_name, base);
    }
    closedir(d);
}

void moedi_temporary_sweep(const char *dir, const char *prefix)
{
    sweep_directory(dir, prefix, 0);
}

static void sweep(const char *path)
{
    char parent[LONGEST];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const size_t before = slash ? (size_t)(base - path) : 0;
    if (before >= sizeof parent) return;
    memcpy(parent, path, before);
    parent[before] = 0;
    sweep_directory(before ? parent : ".", base, 1);
}

/* ---- making ---- */

/* A descriptor of a new file or directory; -1 and errno. */
static int create(const char *name, int directory)
{
    int fd;
    if (directory && mkdir(name, 0777) != 0) return -1;
    do fd = open(name, directory ? O_RDONLY | O_DIRECTORY | O_CLOEXEC : O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    while (fd < 0 && errno == EINTR);
    if (fd < 0 && directory) {
        const int error = errno;
        rmdir(name);
        errno = error == EEXIST ? EIO : error;
    }
    return fd;
}

moed_status moedi_temporary_make(const moed_context *c, const char *path, int directory, char **out, int *fd)
{
    int error = EEXIST;
    sweep(path);
    for (int tries = 0; tries < TRIES; tries++) {
        char *name = NULL;
        MOEDI_TRY(make_name(c, path, NEW, &name));
        const int made = create(name, directory);
        error = errno;
        if (made >= 0 && hold(name, made)) {
            *out = name;
            *fd = made;
            return MOED_OK;
        }
        moedi_free(c, name);
        if (made >= 0) close(made);
        else if (error != EEXIST) break; /* where it is EEXIST another's lies there: a living one's, or there are no locks */
    }
    errno = error;
    return moedi_fail_errno(path, "create");
}

/* rename without replacing, where the file system can */
static int rename_free(const char *from, const char *to)
{
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE) == 0) return 0;
    return errno == EINVAL || errno == ENOSYS ? rename(from, to) : -1;
}

static moed_status move_aside(const moed_context *c, const char *path, const char *kind, char **name)
{
    for (int tries = 0; tries < TRIES; tries++) {
        MOEDI_TRY(make_name(c, path, kind, name));
        if (rename_free(path, *name) == 0) return MOED_OK;
        const int error = errno;
        moedi_free(c, *name);
        *name = NULL;
        errno = error;
        if (error != EEXIST && error != ENOTEMPTY) break;
    }
    return errno == ENOENT ? MOED_OK : moedi_fail_errno(path, "move away");
}

moed_status moedi_temporary_aside(const moed_context *c, const char *path, char **name)
{
    return move_aside(c, path, NEW, name);
}

moed_status moedi_temporary_exchange(const moed_context *c, const char *temporary, const char *path)
{
    if (renameat2(AT_FDCWD, temporary, AT_FDCWD, path, RENAME_EXCHANGE) == 0) return MOED_OK;
    char *old = NULL;
    const int held = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* so that no sweeper takes it meanwhile */
    if (held >= 0) (void)lock(held, 0);
    moed_status status = move_aside(c, path, OLD, &old);
    if (status == MOED_OK && rename(temporary, path) != 0) {
        status = moedi_fail_errno(path, "rename to");
        if (old && rename(old, path) != 0) status = moedi_fail_file(status, path, -1, "cannot be moved back; it lies in %s", old);
    } else if (status == MOED_OK && old && rename(old, temporary) != 0) {
        moedi_log(c, MOED_LOG_WARNING, "%s: stays until %s is written again", old, path);
    }
    if (held >= 0) close(held);
    moedi_free(c, old);
    return status;
}
