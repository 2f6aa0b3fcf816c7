/* core/context.h - the context, private side: memory, threads, references. */
#ifndef MOEDI_CONTEXT_H
#define MOEDI_CONTEXT_H

#include <pthread.h>
#include <stdatomic.h>

#include "executor.h"
#include "moedisco/context.h"
#include "moedisco/sys/backend.h"
#include "status.h"

struct moed_context {
    atomic_int references;
    int64_t process;                  /* getpid() at create: handles do not survive fork() */
    moed_context_options options;     /* effective; strings owned */
    moedi_executor *executor;
    const moed_backend *backend;      /* the device's */
    int32_t device_index;
    moed_host_api host;               /* what backends see of this context */
    moed_backend_info backend_info;   /* of an engine opened here */
    char device[64];
    int64_t device_memory;            /* what the device tells; 0 = nothing */
    char reason[192];
    _Atomic int64_t in_use, peak;     /* host bytes */
    pthread_mutex_t engine_lock;      /* of what follows: contexts are shared by threads, an engine is not */
    struct moedi_engine *engine;      /* for work on device memory that belongs to no trainer; NULL until first borrowed */
};

moed_context *moedi_context_retain(const moed_context *c);
void moedi_context_release(moed_context *c);

/* MOED_E_FORKED in a child process. Public calls that take a handle check it first. */
moed_status moedi_context_check(const moed_context *c);

/* Memory of the context: counted, limited, aligned to 64 bytes. size 0 gives a valid pointer. Every pointer goes
 * back through moedi_free with the same context (free(NULL) is fine). */
moed_status moedi_alloc(const moed_context *c, size_t size, void **out);
moed_status moedi_alloc_array(const moed_context *c, int64_t count, size_t item, void **out); /* zeroed; overflow checked */
/* keeps content, new part zeroed */
moed_status moedi_realloc_array(const moed_context *c, int64_t count, size_t item, void **memory);
moed_status moedi_strdup(const moed_context *c, const char *text, char **out);
/* `count` copies of data, or none; *out: an array of them. Every copy and the array go back through moedi_free. */
moed_status moedi_copies(const moed_context *c, const void *data, size_t size, int64_t count, void ***out);
void moedi_free(const moed_context *c, void *memory);
#define MOEDI_NEW(c, count, out) moedi_alloc_array((c), (int64_t)(count), sizeof **(out), (void **)(out))

/* Runs task(argument, i) for i in [0, count). Serial inside another task. */
void moedi_parallel(const moed_context *c, int64_t count, moed_task_fn task, void *argument);

/* The same for tasks that can fail: the error of the lowest failing index is carried to the caller. */
typedef moed_status (*moedi_task_fn)(void *argument, int64_t index);
moed_status moedi_parallel_try(const moed_context *c, int64_t count, moedi_task_fn task, void *argument);

void moedi_log(const moed_context *c, int32_t level, const char *format, ...) MOEDI_PRINTF(3, 4);

/* NULL where `memory` (moed_tensor.device) is one that the context's device works on; else what memory it has, to end a
 * sentence. */
const char *moedi_context_lacks_memory(const moed_context *c, int32_t memory);

static inline int moedi_backend_has_streams(const moed_backend *b)
{
    return MOED_BACKEND_HAS(b, wait_event) && MOED_BACKEND_HAS(b, record_event);
}

/* An engine: one opened backend, for one handle; calls go table->operation(self, &arguments). */
typedef struct moedi_engine {
    moed_context *context;
    const moed_backend *table;
    void *self;
    moed_backend_info info;
    size_t item, wide_item;           /* bytes of a `real`; of a `wide` */
} moedi_engine;
moed_status moedi_engine_open(moedi_engine *out, moed_context *c);
/* At the end of a call that brings nothing back to the host: the caller's stream keeps the order by itself, without one the work
 * is waited for. */
moed_status moedi_engine_settle(const moedi_engine *e);
void moedi_engine_close(moedi_engine *e);

/* The context's own engine, opened when first asked for and kept until the context goes: for work on device memory that belongs
 * to no trainer. Locked until it is returned. */
moed_status moedi_context_engine_borrow(const moed_context *c, moedi_engine **out);
void moedi_context_engine_return(const moed_context *c);
/* Device memory of the context's device, and out of it to the host: done when they return. free(NULL) does nothing. */
moed_status moedi_device_alloc(const moed_context *c, size_t size, void **out);
void moedi_device_free(const moed_context *c, void *memory);
moed_status moedi_device_read(const moed_context *c, void *host, const void *device, size_t size);

#endif
