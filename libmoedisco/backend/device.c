/* backend/device.c - listing devices, and making a context on one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/options.h"
#include "loader.h"

/* ---- what backends see of a context ---- */

static moed_status host_alloc(void *self, size_t size, void **out)
{
    return moedi_alloc(self, size, out);
}

static void host_free(void *self, void *memory)
{
    moedi_free(self, memory);
}

static void host_parallel(void *self, int64_t count, moed_task_fn task, void *argument)
{
    moedi_parallel(self, count, task, argument);
}

static void host_log(void *self, int32_t level, const char *line)
{
    moedi_log(self, level, "%s", line);
}

static moed_status host_fail(void *self, moed_status status, const char *sentence)
{
    (void)self;
    return moedi_fail(status, "%s", sentence);
}

/* ---- listing ---- */

/* Device `index` of a backend; zeroed strings first, so that a careless plug-in cannot leave them open. */
static moed_status describe(const moed_backend *table, const moed_host_api *host, int32_t index, moed_device_info *out)
{
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    const moed_status status = table->device(host, index, out);
    out->name[sizeof out->name - 1] = out->backend[sizeof out->backend - 1] = 0;
    out->description[sizeof out->description - 1] = out->reason[sizeof out->reason - 1] = 0;
    snprintf(out->backend, sizeof out->backend, "%s", table->name);
    if (!*out->name) snprintf(out->name, sizeof out->name, "%.48s:%d", table->name, index);
    return status;
}

typedef struct listing {
    moed_device_info *out;
    size_t capacity, count;
} listing;

static void list_one(listing *l, const moed_device_info *info)
{
    if (l->count < l->capacity) {
        l->out[l->count].struct_size = sizeof *info;
        (void)moedi_info_write(MOED_STRUCT_DEVICE_INFO, info, &l->out[l->count]);
    }
    l->count++;
}

static int list_backend(const moed_backend *table, const char *path, const char *reason, void *user)
{
    moed_device_info info;
    if (!table) {
        memset(&info, 0, sizeof info);
        const char *slash = strrchr(path, '/');
        snprintf(info.name, sizeof info.name, "%.60s", slash ? slash + 1 : path);
        snprintf(info.backend, sizeof info.backend, "%.60s", slash ? slash + 1 : path);
        snprintf(info.reason, sizeof info.reason, "%.190s", reason);
        list_one(user, &info);
        return 0;
    }
    for (int32_t i = 0; i < 1024 && describe(table, &moedi_bare_host, i, &info) == MOED_OK; i++) list_one(user, &info);
    return 0;
}

moed_status moed_device_list(moed_device_info *out, size_t capacity, size_t *count, const char *plugin_dir)
{
    moedi_clear_error();
    MOEDI_REQUIRE(count, "count is NULL");
    MOEDI_REQUIRE(out || !capacity, "out is NULL, but capacity is not 0");
    listing l = {.out = out, .capacity = capacity};
    moedi_backends(plugin_dir, 1, list_backend, &l);
    *count = l.count;
    moedi_clear_error();
    return MOED_OK;
}

/* ---- choosing ---- */

typedef struct choice {
    moed_context *context;
    const char *wanted;
    const moed_backend *table;
    int32_t index;
    char reason[sizeof((moed_context *)0)->reason];
    char unusable[256]; /* why the device that was asked for by name cannot be used */
} choice;

static void take(choice *c, const moed_backend *table, int32_t index, const moed_device_info *info, const char *why)
{
    c->table = table;
    c->index = index;
    snprintf(c->context->device, sizeof c->context->device, "%s", info->name);
    c->context->device_memory = info->memory;
    snprintf(c->reason, sizeof c->reason, "%s", why);
}

/* Whether the device opens: a library that its backend needs may be missing, or the kernels asked for be another's. */
static int opens(moed_context *c, const moed_backend *table, int32_t index)
{
    moedi_engine probe;
    c->backend = table, c->device_index = index;
    if (moedi_engine_open(&probe, c) != MOED_OK) return 0;
    moedi_engine_close(&probe);
    return 1;
}

/* "auto" takes the first device of a plug-in that opens, else the CPU, which is visited first. */
static int consider(const moed_backend *table, const char *path, const char *reason, void *user)
{
    choice *c = user;
    const int automatic = !strcmp(c->wanted, "auto");
    if (!table) {
        moedi_log(c->context, MOED_LOG_INFO, "%s is not used: %s", path, reason);
        return 0;
    }
    moed_device_info info;
    for (int32_t i = 0; i < 1024 && describe(table, &c->context->host, i, &info) == MOED_OK; i++) {
        const int named = !strcmp(c->wanted, info.name) || (i == 0 && !strcmp(c->wanted, table->name));
        if (*info.reason) {
            moedi_log(c->context, MOED_LOG_INFO, "%s is not used: %s", info.name, info.reason);
            if (named) snprintf(c->unusable, sizeof c->unusable, "%s", info.reason);
            continue;
        }
        if (named) {
            take(c, table, i, &info, "asked for by name");
            return 1;
        }
        if (automatic && *path) {
            if (opens(c->context, table, i)) {
                take(c, table, i, &info, "the first usable device of a plug-in");
                return 1;
            }
            moedi_log(c->context, MOED_LOG_WARNING, "%s is not used: %s", info.name, moed_last_error());
            snprintf(c->reason, sizeof c->reason, "not %.20s: %.160s", info.name, moed_last_error());
            continue;
        }
        if (automatic) take(c, table, i, &info, "no plug-in has a usable device");
    }
    return 0;
}

static moed_status choose(moed_context *c)
{
    choice found = {.context = c, .wanted = c->options.device};
    moedi_backends(c->options.plugin_dir, !(c->options.flags & MOED_CONTEXT_NO_ENV), consider, &found);
    moedi_clear_error();
    if (!found.table && *found.unusable)
        return moedi_fail_parameter(MOED_E_BACKEND, "device", "the device \"%s\" cannot be used: %s", c->options.device,
                                    found.unusable);
    if (!found.table)
        return moedi_fail_parameter(MOED_E_BACKEND, "device",
                                    "there is no device \"%.64s\"; moed_device_list and `moedisco info` list what there is",
                                    c->options.device);
    c->backend = found.table;
    c->device_index = found.index;
    if ((c->options.stream || c->options.device_alloc) && !moedi_backend_has_streams(c->backend))
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, c->options.stream ? "stream" : "device_alloc",
                                    "the device %s has no streams and no memory of its own: stream and device_alloc are for "
                                    "those that do",
                                    c->device);
    moedi_engine probe;
    MOEDI_TRY(moedi_engine_open(&probe, c));
    c->backend_info = probe.info;
    moedi_engine_close(&probe);
    snprintf(c->reason, sizeof c->reason, "%.90s; kernels %.16s: %.70s", found.reason, c->backend_info.kernels,
             c->backend_info.reason);
    moedi_log(c, MOED_LOG_INFO, "device %s: %s", c->device, c->reason);
    return MOED_OK;
}

/* ---- the context ---- */

static moed_status own_text(const char **out, const char *text, const char *fallback)
{
    if (!text || !*text) text = fallback;
    if (!text) return MOED_OK;
    *out = strdup(text);
    return *out ? MOED_OK : moedi_fail(MOED_E_MEMORY, "no memory for a context");
}

/* Fills o's strings and thread count from the caller's; environment values stand in only for fields at their defaults. */
static moed_status resolve_options(moed_context_options *o, const moed_context_options *given)
{
    const int environment = !(given->flags & MOED_CONTEXT_NO_ENV);
    const char *kernels = given->kernels;
    const char *threads = environment && !given->threads ? secure_getenv("MOED_THREADS") : NULL;
    if (threads && *threads) {
        char *end;
        const long n = strtol(threads, &end, 10);
        if (*end || n < 1 || n > 4096)
            return moedi_fail(MOED_E_RANGE, "the environment's MOED_THREADS is \"%.40s\"; it must be from 1 to 4096", threads);
        o->threads = (int32_t)n;
    }
    if (!o->threads) o->threads = o->executor ? 1 : moedi_executor_available();
    if (environment && (!kernels || !strcmp(kernels, "auto"))) kernels = secure_getenv("MOED_KERNELS");
    MOEDI_TRY(own_text(&o->device, given->device, "auto"));
    MOEDI_TRY(own_text(&o->kernels, kernels, "auto"));
    return own_text(&o->plugin_dir, given->plugin_dir, NULL);
}

moed_status moed_context_create(moed_context **out, const moed_context_options *o)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    moed_context_options options;
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_CONTEXT_OPTIONS, o, &options));
    if (!options.alloc != !options.free) return moedi_fail(MOED_E_ARGUMENT, "alloc and free must be given together");
    if (!options.device_alloc != !options.device_free)
        return moedi_fail(MOED_E_ARGUMENT, "device_alloc and device_free must be given together");
    moed_context *c = calloc(1, sizeof *c); /* the one block outside its own allocator, with the executor's */
    if (!c) return moedi_fail(MOED_E_MEMORY, "no memory for a context");
    atomic_init(&c->references, 1);
    pthread_mutex_init(&c->engine_lock, NULL);
    c->process = getpid();
    c->options = options;
    c->options.device = c->options.kernels = c->options.plugin_dir = NULL; /* until they are copies of our own */
    c->host = (moed_host_api){.struct_size = sizeof c->host,
                              .abi = MOED_BACKEND_ABI,
                              .self = c,
                              .alloc = host_alloc,
                              .free = host_free,
                              .parallel = host_parallel,
                              .log = host_log,
                              .fail = host_fail};
    moed_status status;
    MOEDI_GO(resolve_options(&c->options, &options));
    MOEDI_GO(moedi_executor_create(&c->executor, c->options.threads, c->options.executor, c->options.executor_user));
    MOEDI_GO(choose(c));
    *out = c;
    return MOED_OK;
out:
    moedi_context_release(c);
    return status;
}
