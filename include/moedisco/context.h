/* context.h - a device, its threads, memory and limits, and the host's callbacks.
 *
 * A guest in the host's process: threads start with the first work and are gone with the last handle; they take no signals and
 * inherit the affinity of the thread that started them. Locale, directory, umask, signals and environment are never changed,
 * nothing is printed, descriptors close on exec. Floating point: every thread computes in the rounding, flush and trap modes of
 * the one that calls, and these stay; finite numbers raise FE_INEXACT and FE_UNDERFLOW at most, so a host may trap the others.
 * After fork() the child's calls on old handles return MOED_E_FORKED; they may be destroyed there, and new ones made. */
#ifndef MOEDISCO_CONTEXT_H
#define MOEDISCO_CONTEXT_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct moed_context moed_context;

/* Returns memory of `size` bytes aligned to `alignment` (a power of two), or NULL. Any thread. */
typedef void *(*moed_alloc_fn)(size_t size, size_t alignment, void *user);
typedef void (*moed_free_fn)(void *memory, size_t size, void *user);

/* The caller's thread pool: run task(argument, i) for every i in [0, count), in any order and on any
 * threads, and return when all are done. Never called from inside a task. */
typedef void (*moed_task_fn)(void *argument, int64_t index);
typedef void (*moed_executor_fn)(int64_t count, moed_task_fn task, void *argument, void *user);

/* Device memory of `size` bytes, aligned to 256, for work on `stream` (moed_context_options.stream, or
 * where that is NULL one of the library's, which ends with its handle); NULL when there is none. Any thread. */
typedef void *(*moed_device_alloc_fn)(size_t size, void *stream, void *user);
/* Its counterpart. Work that was enqueued on the stream before may still use the memory: give it to others only in the stream's
 * order (cudaFreeAsync, an allocator that caches by stream), or wait for the stream first. */
typedef void (*moed_device_free_fn)(void *memory, size_t size, void *stream, void *user);

enum { MOED_LOG_ERROR = 1, MOED_LOG_WARNING = 2, MOED_LOG_INFO = 3, MOED_LOG_DEBUG = 4 };
/* One line without a newline. May come from any thread of the library. */
typedef void (*moed_log_fn)(int32_t level, const char *line, void *user);

enum {
    MOED_CONTEXT_NO_ENV = 1 /* flags: read no environment variable */
};

/* Environment read at create unless MOED_CONTEXT_NO_ENV (secure_getenv): MOED_THREADS, MOED_KERNELS,
 * MOED_BACKEND_PATH (absolute folders, with : between); each only where the field is at its default. */
typedef struct moed_context_options {
    uint32_t struct_size;
    uint32_t flags;
    const char *device;     /* "auto", "cpu", "NAME:INDEX" of a plug-in's device; NULL = "auto" */
    const char *kernels;    /* CPU kernel set: "auto", "v2", "v3", "v4", "neon", "reference", "double" */
    const char *plugin_dir; /* where backends are looked for first, or NULL */
    int32_t threads;        /* 0 = as many cores as affinity and cgroup allow */
    int32_t log_level;      /* highest level passed to log */
    int64_t host_limit;     /* bytes the library may hold in host memory; 0 = no limit */
    int64_t device_limit;   /* bytes on the device; 0 = no limit */
    moed_alloc_fn alloc;    /* both or neither; NULL = the C library's */
    moed_free_fn free;
    void *alloc_user;
    moed_executor_fn executor; /* NULL = threads of the library's own */
    void *executor_user;
    moed_log_fn log;        /* NULL = silent */
    void *log_user;
    void *stream;           /* the device stream all work is enqueued on (CUDA: a cudaStream_t; the default one is
                               cudaStreamLegacy); the caller's to destroy, once the context and its handles are gone.
                               NULL = streams of the library's own, and calls return when their work is done */
    moed_device_alloc_fn device_alloc; /* both or neither; NULL = the device's */
    moed_device_free_fn device_free;
    void *device_alloc_user;
} moed_context_options;

typedef struct moed_context_info {
    uint32_t struct_size;
    uint32_t flags;
    char device[64];       /* "cpu" */
    char kernels[32];      /* the kernel set in use */
    char reason[192];      /* why this device and kernel set */
    int32_t threads;       /* that work on one call, the caller's included */
    int32_t dtype;         /* of the numbers that go in and out: MOED_DTYPE_F32, or F64 for the "double" kernels */
    int64_t host_limit;
    int64_t host_in_use;   /* bytes held now through this context */
    int64_t host_peak;
    int64_t device_memory; /* bytes of a device's own memory; 0 = it is the host's, or not known */
} moed_context_info;

typedef struct moed_device_info {
    uint32_t struct_size;
    uint32_t flags;
    char name[64];         /* what moed_context_options.device takes */
    char backend[64];
    char description[128]; /* the maker's name of it */
    char reason[192];      /* "" when usable, else why not */
    int64_t memory;        /* bytes (the CPU's: the machine's, or what control groups allow of it), 0 = not known */
    double flops;          /* effective FLOP/s in training, 0 = not known (moed_train_estimate needs it for time) */
    int32_t dtype;         /* for moed_train_estimate: MOED_DTYPE_BF16 or F32, what a device that is not here computes with;
                              0 = what the layout's context does */
    int32_t reserved;
} moed_device_info;

/* Lists devices of the built-in CPU backend and of every plug-in found. A plug-in that does not load
 * is listed with the reason.
 * out [out, nullable when capacity is 0] (capacity); count [out] how many there are.
 * Returns MOED_E_ARGUMENT, MOED_E_MEMORY. Threads: any. Since: 0.1. */
MOED_API moed_status moed_device_list(moed_device_info *out, size_t capacity, size_t *count, const char *plugin_dir);

/* Opens a device. o nullable. Starts its threads only when work first needs them.
 * Returns MOED_E_BACKEND (no such device or kernel set), MOED_E_MEMORY, MOED_E_RANGE.
 * Ownership: the caller's; handles made from it keep it alive.
 * Threads: immutable after create, may be shared; calls that share it run side by side. Since: 0.1. */
MOED_API moed_status moed_context_create(moed_context **out, const moed_context_options *o);
MOED_API void moed_context_destroy(moed_context *context);

/* Fills out (struct_size set by the caller). Threads: any. Since: 0.1. */
MOED_API moed_status moed_context_get_info(const moed_context *context, moed_context_info *out);

/* The caller's events, for a device that has streams (CUDA: cudaEvent_t of the same device). Work that calls enqueue from now on
 * starts after `event` is complete; record: `event` is complete when all that was enqueued so far is. With a stream of the
 * caller's both are enqueued there, and neither waits. Without one calls are complete when they return: wait_event waits, and a
 * recorded event is complete at once. Returns MOED_E_UNSUPPORTED where the device has no streams, MOED_E_DEVICE. Threads: any.
 * Since: 0.1. */
MOED_API moed_status moed_context_wait_event(moed_context *context, void *event);
MOED_API moed_status moed_context_record_event(moed_context *context, void *event);

#ifdef __cplusplus
}
#endif
#endif
