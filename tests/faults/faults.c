/* tests/faults/faults.c - the functions that stand in for the C library's. They go to the kernel (and malloc to glibc's own
 * names) directly, so that nothing has to be looked up. Only what writes files is counted: regular files, directories, their
 * names. */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static fault_state own;
fault_state *fault_now = &own;

/* 1 when this call is to fail; errno says how. A kill takes the whole process group, like a job's end. */
static int due(int what, const char *name)
{
    fault_state *f = fault_now;
    if (f->what != what) return 0;
    const int64_t n = __atomic_add_fetch(&f->seen, 1, __ATOMIC_SEQ_CST);
    if (!f->at || (f->sticky ? n < f->at : n != f->at)) return 0;
    __atomic_store_n(&f->hit, 1, __ATOMIC_SEQ_CST);
    snprintf(f->last, sizeof f->last, "%s", name);
    if (f->kind == FAULT_KILL) kill(0, SIGKILL);
    errno = f->kind == FAULT_ENOSPC ? ENOSPC : f->kind == FAULT_EINTR ? EINTR : f->kind == FAULT_NOMEM ? ENOMEM : EIO;
    return 1;
}

static int calls(const char *name)
{
    return due(FAULT_CALLS, name) && fault_now->kind != FAULT_SHORT; /* short writes are for write alone */
}

/* The same for calls that are done or not, and never interrupted. */
static int names(const char *name) { return calls(name) && fault_now->kind != FAULT_EINTR; }

static int is_written(int fd)
{
    struct stat s;
    const int flags = (int)syscall(SYS_fcntl, fd, F_GETFL), saved = errno;
    const int is = flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fstat(fd, &s) == 0 && S_ISREG(s.st_mode);
    errno = saved;
    return is;
}

/* What a short write leaves to be written. */
static size_t some(size_t size) { return size > 1 ? size / 2 : size; }

ssize_t write(int fd, const void *data, size_t size)
{
    if (is_written(fd) && due(FAULT_CALLS, "write")) {
        if (fault_now->kind != FAULT_SHORT) return -1;
        size = some(size);
    }
    return syscall(SYS_write, fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    if (is_written(fd) && due(FAULT_CALLS, "pwrite")) {
        if (fault_now->kind != FAULT_SHORT) return -1;
        size = some(size);
    }
    return syscall(SYS_pwrite64, fd, data, size, at);
}

int fsync(int fd) { return calls("fsync") ? -1 : (int)syscall(SYS_fsync, fd); }
int fdatasync(int fd) { return calls("fdatasync") ? -1 : (int)syscall(SYS_fdatasync, fd); }
int ftruncate(int fd, off_t size) { return calls("ftruncate") ? -1 : (int)syscall(SYS_ftruncate, fd, size); }

/* A close that fails has closed all the same. */
int close(int fd)
{
    const int fails = is_written(fd) && calls("close"), error = errno;
    const int result = (int)syscall(SYS_close, fd);
    if (!fails) return result;
    errno = error;
    return -1;
}

int openat(int dir, const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
        if (calls("open")) return -1;
    }
    return (int)syscall(SYS_openat, dir, path, flags, mode);
}

int open(const char *path, int flags, ...)
{
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list list;
        va_start(list, flags);
        mode = va_arg(list, mode_t);
        va_end(list);
    }
    return openat(AT_FDCWD, path, flags, mode);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    return names("rename") ? -1 : (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) { return renameat2(from_dir, from, to_dir, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int mkdir(const char *path, mode_t mode) { return names("mkdir") ? -1 : (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode); }
int unlinkat(int dir, const char *path, int flags) { return names("unlink") ? -1 : (int)syscall(SYS_unlinkat, dir, path, flags); }
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

static inline int memory(const char *name) { return due(FAULT_MEMORY, name); }

/* ---- as a preloaded library ---- */
#ifdef FAULTS_PRELOADED

__attribute__((constructor)) static void attach(void)
{
    const char *path = getenv("FAULT_STATE");
    const int fd = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *shared = mmap(NULL, sizeof(fault_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared != MAP_FAILED) fault_now = shared;
}

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
void *malloc(size_t size) { return memory("malloc") ? NULL : __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return memory("calloc") ? NULL : __libc_calloc(count, size); }
void *realloc(void *old, size_t size) { return memory("realloc") ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t alignment, size_t size) { return memory("aligned_alloc") ? NULL : __libc_memalign(alignment, size); }
int posix_memalign(void **out, size_t alignment, size_t size)
{
    *out = memory("posix_memalign") ? NULL : __libc_memalign(alignment, size);
    return *out ? 0 : ENOMEM;
}

#endif
