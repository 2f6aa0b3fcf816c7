/* tests/bench/plugins/timed.c - a backend plug-in that stands before another one (TIMED_PLUGIN names its file) and waits for
 * every operation, so that each has a time of its own. When an engine closes it says on standard error what its operations took,
 * by operation and shape. The waiting costs some microseconds a call and hides what overlaps: the sum is above a real step's
 * time.
 *
 * With TIMED_COUNT set nothing is waited for and graphs are let through: it says how often the host brought something up or down,
 * waited, or launched a graph. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "moedisco/sys/backend.h"

enum { KINDS = 512 };

typedef struct kind {
    const char *operation;
    int64_t shape[4];
    int64_t calls;
    double seconds, first;
} kind;
enum { UPLOADS, DOWNLOADS, WAITS, LAUNCHES, ALLOCATIONS, CALLS, COUNTERS };
typedef struct timed {
    const moed_backend *table;
    void *self;
    int64_t counts[COUNTERS];
    kind kinds[KINDS];
    int count;
} timed;

static const moed_backend *inner, table_of_this;
static moed_backend counting; /* the same, and graphs where the other one has them */
static int only_count;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The first call of a kind is kept apart: it may set something up. */
static void note(timed *t, const char *operation, int64_t a, int64_t b, int64_t c, int64_t d, double seconds)
{
    const int64_t shape[4] = {a, b, c, d};
    int i = 0;
    while (i < t->count && (strcmp(t->kinds[i].operation, operation) != 0 || memcmp(t->kinds[i].shape, shape, sizeof shape) != 0))
        i++;
    if (i == KINDS) return;
    kind *k = &t->kinds[i];
    if (i == t->count) {
        *k = (kind){.operation = operation, .first = seconds};
        memcpy(k->shape, shape, sizeof shape);
        t->count++;
        return;
    }
    k->calls++, k->seconds += seconds;
}

#define OPERATIONS(X)                                                                                                            \
    X(embedding, embedding, a->count, a->width, 0, 0) X(embedding_backward, embedding, a->count, a->width, 0, 0)                 \
    X(rmsnorm, rmsnorm, a->rows, a->width, 0, 0) X(rmsnorm_backward, rmsnorm, a->rows, a->width, 0, 0)                           \
    X(gemm, gemm, a->m, a->n, a->k, a->transpose_a * 4 + a->transpose_b * 2 + a->accumulate)                                     \
    X(grouped_gemm, grouped_gemm, a->m, a->n, a->k, a->reduce * 4 + a->transpose_b * 2 + a->accumulate)                          \
    X(bias_backward, bias_backward, a->m, a->n, 0, 0) X(rope, rope, a->count, a->heads, a->head_dim, 0)                          \
    X(attention, attention, a->rows, a->length, a->heads, a->head_dim)                                                           \
    X(attention_backward, attention, a->rows, a->length, a->heads, a->head_dim)                                                  \
    X(swiglu, swiglu, a->rows, a->width, 0, 0) X(swiglu_backward, swiglu, a->rows, a->width, 0, 0)                               \
    X(router, router, a->rows, a->experts, a->top_k, 0) X(router_backward, router, a->rows, a->experts, a->top_k, 0)             \
    X(dispatch, dispatch, a->rows, a->experts, a->top_k, 0) X(gather, gather, a->rows, a->top_k, a->width, 0)                    \
    X(gather_backward, gather, a->rows, a->top_k, a->width, 0) X(combine, combine, a->rows, a->top_k, a->width, 0)               \
    X(combine_backward, combine, a->rows, a->top_k, a->width, 0) X(sigmoid_gate, sigmoid_gate, a->rows, a->width, 0, 0)          \
    X(sigmoid_gate_backward, sigmoid_gate, a->rows, a->width, 0, 0)                                                              \
    X(cross_entropy, cross_entropy, a->rows, a->width, a->vocabulary, a->d_h != NULL) X(gradient_norm, update, a->count, 0, 0, 0)\
    X(adamw, update, a->count, 0, 0, 0) X(sum, sum, a->count, 0, 0, 0) X(add, add, a->count, 0, 0, 0)                            \
    X(embed_mean, embed_mean, a->documents, a->width, 0, 0) X(kmeans_assign, kmeans_assign, a->count, a->width, a->clusters, 0)  \
    X(kmeans_accumulate, kmeans_accumulate, a->count, a->width, a->clusters, 0) X(balance, balance, a->experts, 0, 0, 0)

#define WRAP(slot, arguments, s0, s1, s2, s3)                                   \
    static moed_status slot(void *self, const moed_op_##arguments *a)           \
    {                                                                           \
        timed *t = self;                                                        \
        t->counts[CALLS]++;                                                     \
        if (only_count) return t->table->slot(t->self, a);                      \
        const double start = now();                                             \
        moed_status status = t->table->slot(t->self, a);                        \
        if (status == MOED_OK) status = t->table->synchronize(t->self);         \
        note(t, #slot, s0, s1, s2, s3, now() - start);                          \
        return status;                                                          \
    }
OPERATIONS(WRAP)

static moed_status allocate(void *self, size_t size, void **out)
{
    ((timed *)self)->counts[ALLOCATIONS]++;
    return ((timed *)self)->table->alloc(((timed *)self)->self, size, out);
}
static void release(void *self, void *memory)
{
    ((timed *)self)->table->free(((timed *)self)->self, memory);
}
static moed_status upload(void *self, void *device, const void *host, size_t size)
{
    ((timed *)self)->counts[UPLOADS]++;
    return ((timed *)self)->table->upload(((timed *)self)->self, device, host, size);
}
static moed_status download(void *self, void *host, const void *device, size_t size)
{
    ((timed *)self)->counts[DOWNLOADS]++;
    return ((timed *)self)->table->download(((timed *)self)->self, host, device, size);
}
static moed_status copy(void *self, void *to, const void *from, size_t size)
{
    timed *t = self;
    if (only_count) return t->table->copy(t->self, to, from, size);
    const double start = now();
    moed_status status = t->table->copy(t->self, to, from, size);
    if (status == MOED_OK) status = t->table->synchronize(t->self);
    note(t, "copy", (int64_t)size, 0, 0, 0, now() - start);
    return status;
}
static moed_status zero(void *self, void *device, size_t size)
{
    timed *t = self;
    if (only_count) return t->table->zero(t->self, device, size);
    const double start = now();
    moed_status status = t->table->zero(t->self, device, size);
    if (status == MOED_OK) status = t->table->synchronize(t->self);
    note(t, "zero", (int64_t)size, 0, 0, 0, now() - start);
    return status;
}
static moed_status synchronize(void *self)
{
    ((timed *)self)->counts[WAITS]++;
    return ((timed *)self)->table->synchronize(((timed *)self)->self);
}

static moed_status graph_begin(void *self)
{
    return ((timed *)self)->table->graph_begin(((timed *)self)->self);
}
static moed_status graph_end(void *self, void **graph)
{
    return ((timed *)self)->table->graph_end(((timed *)self)->self, graph);
}
static moed_status graph_launch(void *self, void *graph)
{
    ((timed *)self)->counts[LAUNCHES]++;
    return ((timed *)self)->table->graph_launch(((timed *)self)->self, graph);
}
static void graph_free(void *self, void *graph)
{
    ((timed *)self)->table->graph_free(((timed *)self)->self, graph);
}

static int by_seconds(const void *a, const void *b)
{
    const kind *x = a, *y = b;
    return (x->seconds < y->seconds) - (x->seconds > y->seconds);
}
static void close_engine(void *self)
{
    timed *t = self;
    double total = 0;
    if (only_count)
        fprintf(stderr,
                "%lld operations, %lld uploads, %lld downloads, %lld waits, %lld graphs launched, %lld blocks of memory\n",
                (long long)t->counts[CALLS], (long long)t->counts[UPLOADS], (long long)t->counts[DOWNLOADS],
                (long long)t->counts[WAITS], (long long)t->counts[LAUNCHES], (long long)t->counts[ALLOCATIONS]);
    qsort(t->kinds, (size_t)t->count, sizeof *t->kinds, by_seconds);
    for (int i = 0; i < t->count; i++) total += t->kinds[i].seconds;
    for (int i = 0; i < t->count && t->kinds[i].calls; i++) {
        const kind *k = &t->kinds[i];
        fprintf(stderr, "%5.1f%% %10.3f ms  %7lld x %9.1f us  %-22s %lld %lld %lld %lld\n", 100 * k->seconds / total,
                1e3 * k->seconds, (long long)k->calls, 1e6 * k->seconds / (double)k->calls, k->operation, (long long)k->shape[0],
                (long long)k->shape[1], (long long)k->shape[2], (long long)k->shape[3]);
    }
    t->table->close(t->self);
    free(t);
}

static moed_status device(const moed_host_api *host, int32_t index, moed_device_info *out)
{
    const moed_status status = inner->device(host, index, out);
    if (status == MOED_OK) snprintf(out->name, sizeof out->name, "timed:%d", (int)index);
    return status;
}
static moed_status open_engine(const moed_host_api *host, const moed_backend_config *config, void **self,
                               const moed_backend **table)
{
    timed *t = calloc(1, sizeof *t);
    if (!t) return host->fail(host->self, MOED_E_MEMORY, "out of memory");
    const moed_status status = inner->open(host, config, &t->self, &t->table);
    if (status != MOED_OK) {
        free(t);
        return status;
    }
    *self = t, *table = only_count ? &counting : &table_of_this;
    return MOED_OK;
}
static moed_status info(void *self, moed_backend_info *out)
{
    return ((timed *)self)->table->info(((timed *)self)->self, out);
}
static int64_t workspace(const moed_workload *w)
{
    return MOED_BACKEND_HAS(inner, workspace) ? inner->workspace(w) : 0;
}

#define FILL(slot, ...) .slot = slot,
static const moed_backend table_of_this = {.struct_size = sizeof table_of_this, .abi = MOED_BACKEND_ABI, .name = "timed",
                                           .device = device,
    .open = open_engine, .close = close_engine, .info = info, .alloc = allocate, .free = release, .upload = upload,
    .download = download, .copy = copy, .zero = zero, .synchronize = synchronize, .workspace = workspace, OPERATIONS(FILL)};

MOED_API const moed_backend *moed_backend_entry_v1(const moed_host_api *host);
const moed_backend *moed_backend_entry_v1(const moed_host_api *host)
{
    const char *file = getenv("TIMED_PLUGIN");
    void *library = file ? dlopen(file, RTLD_NOW | RTLD_LOCAL) : NULL;
    moed_backend_entry_fn entry = NULL;
    if (library) *(void **)&entry = dlsym(library, MOED_BACKEND_ENTRY);
    inner = entry ? entry(host) : NULL;
    only_count = getenv("TIMED_COUNT") != NULL;
    counting = table_of_this;
    if (inner && MOED_BACKEND_HAS(inner, graph_free)) {
        counting.graph_begin = graph_begin, counting.graph_end = graph_end;
        counting.graph_launch = graph_launch, counting.graph_free = graph_free;
    }
    return inner ? only_count ? &counting : &table_of_this : NULL;
}
