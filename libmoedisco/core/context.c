/* core/context.c - references, memory, parallel work and the log of a context. How one is made: backend/device.c. */
#include "context.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "options.h"

moed_context *moedi_context_retain(const moed_context *c)
{
    moed_context *context = (moed_context *)(uintptr_t)c;
    atomic_fetch_add(&context->references, 1);
    return context;
}

void moedi_context_release(moed_context *c)
{
    if (!c || atomic_fetch_sub(&c->references, 1) != 1) return;
    if (c->process == getpid() && c->engine) moedi_engine_close(c->engine);
    moedi_free(c, c->engine);
    if (c->process == getpid())
        moedi_executor_destroy(c->executor);
    else
        moedi_executor_abandon(c->executor); /* its threads stayed in the parent */
    free((void *)(uintptr_t)c->options.device);
    free((void *)(uintptr_t)c->options.kernels);
    free((void *)(uintptr_t)c->options.plugin_dir);
    pthread_mutex_destroy(&c->engine_lock);
    free(c);
}

void moed_context_destroy(moed_context *context)
{
    moedi_context_release(context);
}

moed_status moedi_context_check(const moed_context *c)
{
    if (c->process != getpid())
        return moedi_fail(MOED_E_FORKED, "this handle was made by process %lld before fork(): make a new context in the child",
                          (long long)c->process);
    return MOED_OK;
}

moed_status moed_context_get_info(const moed_context *context, moed_context_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(context, "the context is NULL");
    MOEDI_TRY(moedi_context_check(context));
    moed_context_info info = {
        .threads = context->options.threads,
        .dtype = context->backend_info.wide,
        .host_limit = context->options.host_limit,
        .host_in_use = atomic_load(&context->in_use),
        .host_peak = atomic_load(&context->peak),
        .device_memory = context->backend_info.host_memory ? 0 : context->device_memory,
    };
    snprintf(info.device, sizeof info.device, "%s", context->device);
    snprintf(info.kernels, sizeof info.kernels, "%s", context->backend_info.kernels);
    snprintf(info.reason, sizeof info.reason, "%s", context->reason);
    return moedi_info_write(MOED_STRUCT_CONTEXT_INFO, &info, out);
}

/* ---- memory ---- */

enum { ALIGNMENT = 64, LARGE_PAGE = 1 << 21 };
typedef struct block {
    size_t total; /* as allocated */
    size_t size;  /* as asked for */
} block; /* lies ALIGNMENT bytes before the memory handed out */

static block *block_of(void *memory)
{
    return (block *)((char *)memory - ALIGNMENT);
}

static moed_status count_bytes(moed_context *c, int64_t size)
{
    const int64_t limit = c->options.host_limit;
    int64_t now = atomic_load(&c->in_use);
    do {
        if (limit && size > limit - now)
            return moedi_fail(MOED_E_LIMIT, "%lld bytes do not fit: %lld of the host limit of %lld bytes are in use",
                              (long long)size, (long long)now, (long long)limit);
    } while (!atomic_compare_exchange_weak(&c->in_use, &now, now + size));
    int64_t peak = atomic_load(&c->peak);
    while (now + size > peak && !atomic_compare_exchange_weak(&c->peak, &peak, now + size)) {}
    return MOED_OK;
}

/* Matrices are read along both axes: with pages of 4 KiB most steps down a column miss the table of pages. What lies whole in
 * large pages may be held in them; where the system has none, nothing happens. */
static void *alloc_default(size_t total)
{
    void *memory = aligned_alloc(ALIGNMENT, total);
    if (!memory || total < 2 * LARGE_PAGE) return memory;
    const uintptr_t from = ((uintptr_t)memory + LARGE_PAGE - 1) & ~(uintptr_t)(LARGE_PAGE - 1);
    const uintptr_t end = ((uintptr_t)memory + total) & ~(uintptr_t)(LARGE_PAGE - 1);
    const int before = errno;
    madvise((void *)from, end - from, MADV_HUGEPAGE);
    errno = before;
    return memory;
}

moed_status moedi_alloc(const moed_context *context, size_t size, void **out)
{
    moed_context *c = (moed_context *)(uintptr_t)context;
    if (size > (size_t)INT64_MAX - 2 * ALIGNMENT)
        return moedi_fail(MOED_E_MEMORY, "%zu bytes are more than a machine holds", size);
    const size_t total = (size + 2 * ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    MOEDI_TRY(count_bytes(c, (int64_t)total));
    char *memory = c->options.alloc ? c->options.alloc(total, ALIGNMENT, c->options.alloc_user) : alloc_default(total);
    if (!memory) {
        atomic_fetch_sub(&c->in_use, (int64_t)total);
        return moedi_fail(MOED_E_MEMORY, "no memory for %zu bytes", size);
    }
    *(block *)memory = (block){.total = total, .size = size};
    *out = memory + ALIGNMENT;
    return MOED_OK;
}

void moedi_free(const moed_context *context, void *memory)
{
    if (!memory) return;
    moed_context *c = (moed_context *)(uintptr_t)context;
    block *b = block_of(memory);
    const size_t total = b->total;
    atomic_fetch_sub(&c->in_use, (int64_t)total);
    if (c->options.free)
        c->options.free(b, total, c->options.alloc_user);
    else
        free(b);
}

moed_status moedi_alloc_array(const moed_context *c, int64_t count, size_t item, void **out)
{
    size_t size;
    if (count < 0 || __builtin_mul_overflow((size_t)count, item, &size))
        return moedi_fail(MOED_E_MEMORY, "%lld items of %zu bytes are more than a machine holds", (long long)count, item);
    void *memory;
    MOEDI_TRY(moedi_alloc(c, size, &memory));
    memset(memory, 0, size);
    *out = memory;
    return MOED_OK;
}

moed_status moedi_realloc_array(const moed_context *c, int64_t count, size_t item, void **memory)
{
    void *grown = NULL;
    MOEDI_TRY(moedi_alloc_array(c, count, item, &grown));
    if (*memory) {
        const size_t old = block_of(*memory)->size, size = (size_t)count * item;
        memcpy(grown, *memory, old < size ? old : size);
        moedi_free(c, *memory);
    }
    *memory = grown;
    return MOED_OK;
}

moed_status moedi_strdup(const moed_context *c, const char *text, char **out)
{
    const size_t size = strlen(text) + 1;
    void *copy;
    MOEDI_TRY(moedi_alloc(c, size, &copy));
    memcpy(copy, text, size);
    *out = copy;
    return MOED_OK;
}

moed_status moedi_copies(const moed_context *c, const void *data, size_t size, int64_t count, void ***out)
{
    void **copies = NULL;
    moed_status status = MOED_OK;
    MOEDI_TRY(MOEDI_NEW(c, count, &copies));
    for (int64_t i = 0; i < count; i++) {
        MOEDI_GO(moedi_alloc(c, size, &copies[i]));
        memcpy(copies[i], data, size);
    }
    *out = copies;
    return MOED_OK;
out:
    for (int64_t i = 0; i < count; i++) moedi_free(c, copies[i]);
    moedi_free(c, copies);
    return status;
}

/* ---- parallel work ---- */

void moedi_parallel(const moed_context *c, int64_t count, moed_task_fn task, void *argument)
{
    moedi_executor_run(c->executor, count, task, argument);
}

typedef struct fallible {
    moedi_task_fn task;
    void *argument;
    atomic_flag lock;
    int64_t failed; /* lowest failing index, INT64_MAX = none */
    moedi_error error;
} fallible;

static void run_fallible(void *argument, int64_t index)
{
    fallible *f = argument;
    if (f->task(f->argument, index) == MOED_OK) return;
    moedi_error error;
    moedi_error_save(&error);
    while (atomic_flag_test_and_set(&f->lock)) {}
    if (index < f->failed) {
        f->failed = index;
        f->error = error;
    }
    atomic_flag_clear(&f->lock);
}

moed_status moedi_parallel_try(const moed_context *c, int64_t count, moedi_task_fn task, void *argument)
{
    fallible f = {.task = task, .argument = argument, .lock = ATOMIC_FLAG_INIT, .failed = INT64_MAX};
    moedi_executor_run(c->executor, count, run_fallible, &f);
    return f.failed == INT64_MAX ? MOED_OK : moedi_error_restore(&f.error);
}

/* ---- log and engines ---- */

void moedi_log(const moed_context *c, int32_t level, const char *format, ...)
{
    if (!c->options.log || level > c->options.log_level) return;
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    c->options.log(level, line, c->options.log_user);
}

static int dtypes_fit(const moed_backend_info *i)
{
    if (i->dtype == MOED_DTYPE_BF16) return i->wide == MOED_DTYPE_F32;
    return i->dtype == i->wide && (i->dtype == MOED_DTYPE_F32 || i->dtype == MOED_DTYPE_F64);
}

static moed_backend_config config_of(const moed_context *c)
{
    return (moed_backend_config){
        .struct_size = sizeof(moed_backend_config),
        .device = c->device_index,
        .memory_limit = c->options.device_limit,
        .kernels = c->options.kernels,
        .stream = c->options.stream,
        .device_alloc = c->options.device_alloc,
        .device_free = c->options.device_free,
        .device_alloc_user = c->options.device_alloc_user,
    };
}

moed_status moedi_engine_open(moedi_engine *out, moed_context *c)
{
    const moed_backend_config config = config_of(c);
    moedi_engine e = {.context = c, .table = c->backend};
    moedi_clear_error();
    moed_status status = c->backend->open(&c->host, &config, &e.self, &e.table);
    if (status != MOED_OK)
        return *moed_last_error()
                   ? status
                   : moedi_fail(status, "the backend %s did not open its device %d", c->backend->name, c->device_index);
    e.info.struct_size = sizeof e.info;
    status = e.table->info(e.self, &e.info);
    if (status == MOED_OK && !e.info.wide) e.info.wide = e.info.dtype;
    if (status == MOED_OK && !dtypes_fit(&e.info))
        status = moedi_fail(MOED_E_UNSUPPORTED,
                            "the backend %s computes in dtypes %d and %d; F32, F64, and BF16 with F32 are supported",
                            c->backend->name, (int)e.info.dtype, (int)e.info.wide);
    if (status != MOED_OK) {
        e.table->close(e.self);
        return status;
    }
    e.item = (size_t)moed_dtype_bits(e.info.dtype) / 8;
    e.wide_item = (size_t)moed_dtype_bits(e.info.wide) / 8;
    *out = e;
    return MOED_OK;
}

moed_status moedi_engine_settle(const moedi_engine *e)
{
    return e->context->options.stream ? MOED_OK : e->table->synchronize(e->self);
}

void moedi_engine_close(moedi_engine *e)
{
    if (e->self) e->table->close(e->self);
    memset(e, 0, sizeof *e);
}

/* ---- events ---- */

static moed_status check_event(const moed_context *c, const void *event)
{
    moedi_clear_error();
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(event, "the event is NULL");
    MOEDI_TRY(moedi_context_check(c));
    if (moedi_backend_has_streams(c->backend)) return MOED_OK;
    return moedi_fail(MOED_E_UNSUPPORTED, "the device %s has no streams, and so no events", c->device);
}

moed_status moed_context_wait_event(moed_context *context, void *event)
{
    MOEDI_TRY(check_event(context, event));
    const moed_backend_config config = config_of(context);
    return context->backend->wait_event(&context->host, &config, event);
}

moed_status moed_context_record_event(moed_context *context, void *event)
{
    MOEDI_TRY(check_event(context, event));
    const moed_backend_config config = config_of(context);
    return context->backend->record_event(&context->host, &config, event);
}

/* ---- device memory, and the context's own engine ---- */

const char *moedi_context_lacks_memory(const moed_context *c, int32_t memory)
{
    const int own = !c->backend_info.host_memory;
    if (memory == MOED_MEMORY_HOST || (memory == MOED_MEMORY_DEVICE && own)) return NULL;
    return own ? "memory 1 alone beside the host's (0)" : "no memory but the host's (0)";
}

static moed_status open_own(moed_context *c)
{
    if (c->engine) return MOED_OK;
    moedi_engine *e = NULL;
    MOEDI_TRY(MOEDI_NEW(c, 1, &e));
    const moed_status status = moedi_engine_open(e, c);
    if (status == MOED_OK) c->engine = e;
    else moedi_free(c, e);
    return status;
}

moed_status moedi_context_engine_borrow(const moed_context *context, moedi_engine **out)
{
    moed_context *c = (moed_context *)(uintptr_t)context;
    pthread_mutex_lock(&c->engine_lock);
    const moed_status status = open_own(c);
    *out = c->engine;
    if (status != MOED_OK) pthread_mutex_unlock(&c->engine_lock);
    return status;
}

void moedi_context_engine_return(const moed_context *context)
{
    pthread_mutex_unlock(&((moed_context *)(uintptr_t)context)->engine_lock);
}

moed_status moedi_device_alloc(const moed_context *c, size_t size, void **out)
{
    moedi_engine *e;
    MOEDI_TRY(moedi_context_engine_borrow(c, &e));
    const moed_status status = e->table->alloc(e->self, size, out);
    moedi_context_engine_return(c);
    return status;
}

void moedi_device_free(const moed_context *c, void *memory)
{
    if (!memory || c->process != getpid()) return;
    moedi_engine *e;
    if (moedi_context_engine_borrow(c, &e) != MOED_OK) return; /* it gave the memory, so it is open */
    e->table->free(e->self, memory);
    moedi_context_engine_return(c);
}

moed_status moedi_device_read(const moed_context *c, void *host, const void *device, size_t size)
{
    moedi_engine *e;
    MOEDI_TRY(moedi_context_engine_borrow(c, &e));
    moed_status status = e->table->download(e->self, host, device, size);
    if (status == MOED_OK) status = e->table->synchronize(e->self);
    moedi_context_engine_return(c);
    return status;
}
