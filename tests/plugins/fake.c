/* tests/plugins/fake.c - a backend plug-in whose device memory no host code can touch: every pointer it hands out carries a tag
 * that makes it an invalid address, and every operation takes the tag off before it calls the CPU's reference. What runs on it
 * respects the border between host and device, without a device. It also refuses host pointers where device pointers belong.
 *
 * It has streams of a kind: any address is one. An event is two pointers: the stream of the last wait, and of the last record.
 * What the caller's device allocator gives is only held, as a real device's memory cannot be touched. A graph is the list of
 * calls. */
#include <stdlib.h>
#include <string.h>

#include "backend/cpu/cpu.h"

#define TAG UINT64_C(0x5A5) /* upper 12 bits; no address, count or sensible double has them */

static int is_tagged(uint64_t word)
{
    return word >> 52 == TAG;
}

static void *tag(void *memory)
{
    return (void *)(uintptr_t)((uint64_t)(uintptr_t)memory | TAG << 52);
}

static void *untag(const void *memory)
{
    return (void *)(uintptr_t)((uint64_t)(uintptr_t)memory & ((UINT64_C(1) << 52) - 1));
}

/* A call that was recorded: the arguments are bare, and its own. */
typedef struct call {
    moed_status (*run)(void *cpu, void *arguments);
    void *arguments;
} call;
typedef struct graph {
    call *calls;
    int64_t count, capacity;
} graph;

/* A block of the caller's allocator, held beside the memory that stands for it. */
typedef struct held {
    struct held *next;
    void *memory, *block;
    size_t size;
} held;

typedef struct fake {
    moedi_cpu *cpu;
    moed_backend_config config;
    held *blocks;
    graph *recording; /* NULL: calls are done */
} fake;

static moed_status fail(void *self, const char *sentence)
{
    const moed_host_api *host = ((fake *)self)->cpu->host;
    return host->fail(host->self, MOED_E_DEVICE, sentence);
}

/* Does a call, or records it: size bytes of arguments, copied. */
static moed_status submit(void *self, moed_status (*run)(void *, void *), const void *arguments, size_t size)
{
    fake *f = self;
    graph *g = f->recording;
    void *copy = malloc(size);
    memcpy(copy, arguments, size);
    if (!g) {
        const moed_status status = run(f->cpu, copy);
        free(copy);
        return status;
    }
    if (g->count == g->capacity) g->calls = realloc(g->calls, (size_t)(g->capacity = 2 * g->capacity + 64) * sizeof *g->calls);
    g->calls[g->count++] = (call){run, copy};
    return MOED_OK;
}

#define WHILE_NOT_RECORDING(self, what) \
    if (((fake *)(self))->recording) return fail(self, what " while a graph is recorded")

/* Takes the tags off all pointers of an argument struct; a bare host address among them is a fault of the caller. */
static int untag_arguments(void *arguments, size_t size)
{
    for (size_t at = 0; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, (char *)arguments + at, 8);
        if (is_tagged(word)) {
            word &= (UINT64_C(1) << 52) - 1;
            memcpy((char *)arguments + at, &word, 8);
        } else if (word >> 32 >= 0x5000 && word >> 32 < 0x8000) {
            return 0;
        }
    }
    return 1;
}

#define OPERATIONS(X)                                                                                                       \
    X(embedding, embedding) X(embedding_backward, embedding) X(rmsnorm, rmsnorm) X(rmsnorm_backward, rmsnorm) X(gemm, gemm)   \
    X(grouped_gemm, grouped_gemm) X(bias_backward, bias_backward) X(rope, rope) X(attention, attention)                       \
    X(attention_backward, attention) X(swiglu, swiglu) X(swiglu_backward, swiglu) X(router, router) X(router_backward, router) \
    X(dispatch, dispatch) X(gather, gather) X(gather_backward, gather) X(combine, combine) X(combine_backward, combine)       \
    X(sigmoid_gate, sigmoid_gate) X(sigmoid_gate_backward, sigmoid_gate) X(cross_entropy, cross_entropy) X(sum, sum) X(add, add) \
    X(embed_mean, embed_mean) X(kmeans_assign, kmeans_assign) X(kmeans_accumulate, kmeans_accumulate) \
    X(kmeans_move, kmeans_move) X(squash, squash) X(squash_backward, squash) X(balance, balance)

#define WRAP(slot, arguments)                                                                                   \
    static moed_status run_##slot(void *cpu, void *bare)                                                        \
    {                                                                                                           \
        return moedi_reference_f32.slot(cpu, bare);                                                             \
    }                                                                                                           \
    static moed_status slot(void *self, const moed_op_##arguments *a)                                           \
    {                                                                                                           \
        moed_op_##arguments bare = *a;                                                                          \
        if (!untag_arguments(&bare, sizeof bare)) return fail(self, #slot " was given host memory");            \
        return submit(self, run_##slot, &bare, sizeof bare);                                                    \
    }
OPERATIONS(WRAP)

/* The slices are a host array of device pointers: they travel with the call. */
typedef struct update_call {
    moed_op_update update;
    moed_op_slice slices[];
} update_call;

static moed_status update(void *self, const moed_op_update *a, moed_status (*run)(void *, void *))
{
    const size_t size = sizeof(update_call) + (size_t)a->count * sizeof *a->slices;
    update_call *bare = malloc(size);
    const char *wrong = NULL;
    bare->update = *a;
    bare->update.slices = NULL;
    memcpy(bare->slices, a->slices, (size_t)a->count * sizeof *a->slices);
    for (int64_t i = 0; i < a->count; i++)
        if (!untag_arguments(&bare->slices[i], sizeof bare->slices[i])) wrong = "a slice is host memory";
    if (!is_tagged((uint64_t)(uintptr_t)a->scalars)) wrong = "the step scalars are host memory";
    if (!untag_arguments(&bare->update, sizeof bare->update)) wrong = "the losses are host memory";
    const moed_status status = wrong ? fail(self, wrong) : submit(self, run, bare, size);
    free(bare);
    return status;
}

static moed_status run_gradient_norm(void *cpu, void *arguments)
{
    update_call *u = arguments;
    u->update.slices = u->slices;
    return moedi_reference_f32.gradient_norm(cpu, &u->update);
}

static moed_status run_adamw(void *cpu, void *arguments)
{
    update_call *u = arguments;
    u->update.slices = u->slices;
    return moedi_reference_f32.adamw(cpu, &u->update);
}

static moed_status gradient_norm(void *self, const moed_op_update *a)
{
    return update(self, a, run_gradient_norm);
}

static moed_status adamw(void *self, const moed_op_update *a)
{
    return update(self, a, run_adamw);
}

/* The terms are a host array of device pointers: they travel with the call. */
typedef struct blend_call {
    moed_op_blend blend;
    moed_op_term terms[];
} blend_call;

static moed_status run_blend(void *cpu, void *arguments)
{
    blend_call *b = arguments;
    b->blend.terms = b->terms;
    return moedi_reference_f32.blend(cpu, &b->blend);
}

static int untag_pointer(const void **p)
{
    if (*p && !is_tagged((uint64_t)(uintptr_t)*p)) return 0;
    *p = untag(*p);
    return 1;
}

static moed_status blend(void *self, const moed_op_blend *a)
{
    const size_t size = sizeof(blend_call) + (size_t)a->count * sizeof *a->terms;
    blend_call *bare = malloc(size);
    int device = is_tagged((uint64_t)(uintptr_t)a->out);
    bare->blend = *a;
    bare->blend.out = untag(a->out);
    memcpy(bare->terms, a->terms, (size_t)a->count * sizeof *a->terms);
    for (int64_t i = 0; i < a->count; i++)
        device &= untag_pointer(&bare->terms[i].source) & untag_pointer(&bare->terms[i].reference);
    const moed_status status = device ? submit(self, run_blend, bare, size) : fail(self, "a blend was given host memory");
    free(bare);
    return status;
}

static moed_status alloc(void *self, size_t size, void **out)
{
    fake *f = self;
    void *memory;
    WHILE_NOT_RECORDING(self, "memory was asked for");
    moed_status status = moedi_cpu_alloc(f->cpu, size, &memory);
    if (status == MOED_OK && f->config.device_alloc) {
        held *h = malloc(sizeof *h);
        *h = (held){.next = f->blocks, .memory = memory, .size = size};
        h->block = f->config.device_alloc(size, f->config.stream, f->config.device_alloc_user);
        if (!h->block) {
            moedi_cpu_free(f->cpu, memory);
            free(h);
            return f->cpu->host->fail(f->cpu->host->self, MOED_E_MEMORY, "the caller's allocator has no memory left");
        }
        f->blocks = h;
    }
    if (status == MOED_OK) *out = tag(memory);
    return status;
}

static void release(void *self, void *memory)
{
    fake *f = self;
    void *const bare = memory ? untag(memory) : NULL;
    for (held **at = &f->blocks; bare && *at; at = &(*at)->next) {
        held *h = *at;
        if (h->memory != bare) continue;
        f->config.device_free(h->block, h->size, f->config.stream, f->config.device_alloc_user);
        *at = h->next;
        free(h);
        break;
    }
    moedi_cpu_free(f->cpu, bare);
}

#define DEVICE(p) is_tagged((uint64_t)(uintptr_t)(p))

static moed_status upload(void *self, void *device, const void *host, size_t size)
{
    WHILE_NOT_RECORDING(self, "something went up");
    if (size && (!DEVICE(device) || DEVICE(host))) return fail(self, "upload goes from host to device");
    return moedi_cpu_copy(((fake *)self)->cpu, untag(device), host, size);
}

static moed_status download(void *self, void *host, const void *device, size_t size)
{
    WHILE_NOT_RECORDING(self, "something came down");
    if (size && (DEVICE(host) || !DEVICE(device))) return fail(self, "download goes from device to host");
    return moedi_cpu_copy(((fake *)self)->cpu, host, untag(device), size);
}

typedef struct stretch {
    void *to;
    const void *from; /* NULL: zeros */
    size_t size;
} stretch;

static moed_status run_stretch(void *cpu, void *arguments)
{
    const stretch *s = arguments;
    return s->from ? moedi_cpu_copy(cpu, s->to, s->from, s->size) : moedi_cpu_zero(cpu, s->to, s->size);
}

static moed_status copy(void *self, void *to, const void *from, size_t size)
{
    if (size && (!DEVICE(to) || !DEVICE(from))) return fail(self, "copy goes from device to device");
    const stretch s = {untag(to), untag(from), size};
    return submit(self, run_stretch, &s, sizeof s);
}

static moed_status zero(void *self, void *device, size_t size)
{
    if (size && !DEVICE(device)) return fail(self, "zero works on device memory");
    const stretch s = {untag(device), NULL, size};
    return submit(self, run_stretch, &s, sizeof s);
}

static moed_status synchronize(void *self)
{
    WHILE_NOT_RECORDING(self, "the host waited");
    return MOED_OK;
}

/* ---- graphs ---- */

static moed_status graph_begin(void *self)
{
    fake *f = self;
    WHILE_NOT_RECORDING(self, "another was begun");
    f->recording = calloc(1, sizeof *f->recording);
    return MOED_OK;
}

static moed_status graph_end(void *self, void **out)
{
    fake *f = self;
    *out = f->recording;
    f->recording = NULL;
    return *out ? MOED_OK : fail(self, "a graph ended that was not begun");
}

static moed_status graph_launch(void *self, void *recorded)
{
    const graph *g = recorded;
    const moed_host_api *host = ((fake *)self)->cpu->host;
    WHILE_NOT_RECORDING(self, "another was launched");
    host->log(host->self, MOED_LOG_DEBUG, "a graph is launched");
    for (int64_t i = 0; i < g->count; i++) {
        const moed_status status = g->calls[i].run(((fake *)self)->cpu, g->calls[i].arguments);
        if (status != MOED_OK) return status;
    }
    return MOED_OK;
}

static void graph_free(void *self, void *recorded)
{
    graph *g = recorded;
    (void)self;
    for (int64_t i = 0; g && i < g->count; i++) free(g->calls[i].arguments);
    if (g) free(g->calls);
    free(g);
}

/* ---- events ---- */

static moed_status wait_event(const moed_host_api *host, const moed_backend_config *config, void *event)
{
    (void)host;
    ((void **)event)[0] = config->stream;
    return MOED_OK;
}

static moed_status record_event(const moed_host_api *host, const moed_backend_config *config, void *event)
{
    (void)host;
    ((void **)event)[1] = config->stream;
    return MOED_OK;
}

static moed_status device(const moed_host_api *host, int32_t index, moed_device_info *out)
{
    host->log(host->self, MOED_LOG_DEBUG, "a device is asked about"); /* every function of the host is there, in a listing too */
    if (index > 1) return MOED_E_RANGE;
    strcpy(out->name, index ? "fake:1" : "fake:0");
    strcpy(out->description, "memory that no host code can touch");
    out->memory = INT64_C(1) << 30;
    if (index) strcpy(out->reason, "it is there to be refused");
    return MOED_OK;
}

static const moed_backend table;

static moed_status open_engine(const moed_host_api *host, const moed_backend_config *config, void **self,
                               const moed_backend **chosen)
{
    fake *f = calloc(1, sizeof *f);
    const moed_backend *ignored;
    void *cpu;
    f->config = *config;
    f->config.device = 0;
    f->config.kernels = "reference";
    const moed_status status = moedi_cpu_open(host, &f->config, &cpu, &ignored);
    if (status != MOED_OK) {
        free(f);
        return status;
    }
    f->cpu = cpu;
    *chosen = &table;
    *self = f;
    return MOED_OK;
}

static void close_engine(void *self)
{
    moedi_cpu_close(((fake *)self)->cpu);
    free(self);
}

static moed_status info(void *self, moed_backend_info *out)
{
    const moed_status status = moedi_reference_f32.info(((fake *)self)->cpu, out);
    out->host_memory = 0;
    strcpy(out->kernels, "fake");
    strcpy(out->reason, "the only ones");
    return status;
}

static const moed_backend table = {
    .struct_size = sizeof table,
    .abi = MOED_BACKEND_ABI,
    .name = "fake",
    .device = device,
    .open = open_engine,
    .close = close_engine,
    .info = info,
    .alloc = alloc,
    .free = release,
    .upload = upload,
    .download = download,
    .copy = copy,
    .zero = zero,
    .synchronize = synchronize,
    .wait_event = wait_event,
    .record_event = record_event,
    .graph_begin = graph_begin,
    .graph_end = graph_end,
    .graph_launch = graph_launch,
    .graph_free = graph_free,
    .gradient_norm = gradient_norm,
    .adamw = adamw,
    .blend = blend,
    .workspace = moedi_cpu_workspace,
#define SLOT(slot, arguments) .slot = slot,
    OPERATIONS(SLOT)
};

MOED_API const moed_backend *moed_backend_entry_v1(const moed_host_api *host);
const moed_backend *moed_backend_entry_v1(const moed_host_api *host)
{
    return host->abi == MOED_BACKEND_ABI ? &table : NULL;
}
