/* tests/conformance.h - runs one operation on the reference in double and on a table under test with 1, 2 and 3 threads, and
 * compares what they wrote. Host and device memory are kept apart: everything goes through upload and download. */
#ifndef MOEDI_CONFORMANCE_H
#define MOEDI_CONFORMANCE_H

#include "support.h"

#include <pthread.h>
#include <stdatomic.h>

#include "backend/cpu/cpu.h"
#include "moedisco/sys/backend.h"

/* ThreadSanitizer makes operations twenty times slower: there the grids of modes are walked in larger steps (3 meets every bit of
 * a mode set and not set), and the fastest kernels stand for all that are made of the same source. */
#if defined(__SANITIZE_THREAD__)
enum { MODE_STEP = 3 };
#define KERNEL_SETS "reference", "auto"
#else
enum { MODE_STEP = 1 };
#define KERNEL_SETS "reference", "v2", "v3", "v4", "neon", "double"
#endif

/* ---- a host of our own ---- */

typedef struct test_host {
    moed_host_api api;
    int threads;
    _Atomic int64_t blocks; /* handed out and not given back */
    char sentence[400];
} test_host;

static inline moed_status host_alloc(void *self, size_t size, void **out)
{
    test_host *h = self;
    *out = aligned_alloc(64, (size + 64) / 64 * 64);
    if (!*out) return MOED_E_MEMORY;
    h->blocks++;
    return MOED_OK;
}

static inline void host_free(void *self, void *memory)
{
    test_host *h = self;
    if (memory) h->blocks--;
    free(memory);
}

typedef struct test_job {
    moed_task_fn task;
    void *argument;
    int64_t count;
    _Atomic int64_t next;
} test_job;

static inline void *host_worker(void *user)
{
    test_job *j = user;
    for (int64_t i; (i = j->next++) < j->count;) j->task(j->argument, i);
    return NULL;
}

static inline void host_parallel(void *self, int64_t count, moed_task_fn task, void *argument)
{
    const int threads = ((test_host *)self)->threads;
    test_job job = {.task = task, .argument = argument, .count = count};
    pthread_t others[8];
    for (int t = 1; t < threads; t++)
        if (pthread_create(&others[t], NULL, host_worker, &job) != 0) fail_msg("no thread");
    host_worker(&job);
    for (int t = 1; t < threads; t++) pthread_join(others[t], NULL);
}

static inline void host_log(void *self, int32_t level, const char *line)
{
    (void)self, (void)level, (void)line;
}

static inline moed_status host_fail(void *self, moed_status status, const char *sentence)
{
    test_host *h = self;
    snprintf(h->sentence, sizeof h->sentence, "%s", sentence);
    return status;
}

static inline void host_init(test_host *h, int threads)
{
    *h = (test_host){.threads = threads};
    h->api = (moed_host_api){sizeof h->api, MOED_BACKEND_ABI, h, host_alloc, host_free, host_parallel, host_log, host_fail};
}

/* ---- sides: the reference, and the table under test on 1, 2 and 3 threads ---- */

enum { SIDES = 4, GUARD = 256, BUFFERS = 32, NONE = -1 };

typedef enum kind { REAL, WIDE, F32, F64, I32, I64, U8 } kind;
typedef enum role {
    IN,  /* must not change */
    OUT, /* overwritten: poisoned before, and where the reference writes nothing it must stay poison */
    SUM  /* added to or changed in place */
} role;

typedef struct side {
    test_host host;
    const moed_backend *table;
    void *self;
    int32_t dtype, wide;
} side;

typedef struct buffer {
    const char *name;
    kind kind;
    role role;
    int64_t count;
    int alone;         /* every element is measured against itself, not against the largest of the buffer */
    double *values;    /* what is uploaded */
    double *reference; /* what the reference made of it */
    void *memory[SIDES];
} buffer;

static side sides[SIDES];
static buffer buffers[BUFFERS];
static int buffer_count;
static double wide_slack = 1; /* of a narrow engine's wide results that are made of reals rounded on the way; until the next
                                 reset */
static uint64_t random_state = 88172645463325252u;

static inline double uniform(void) /* [-1, 1) */
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (double)(random_state >> 11) / 4503599627370496.0 - 1.0;
}

static inline int32_t kind_dtype(const side *s, kind k)
{
    const int32_t dtypes[] = {s->dtype, s->wide, MOED_DTYPE_F32, MOED_DTYPE_F64, MOED_DTYPE_I32, MOED_DTYPE_I64, MOED_DTYPE_U8};
    return dtypes[k];
}

static inline size_t dtype_size(int32_t dtype)
{
    return dtype == MOED_DTYPE_U8 ? 1 : dtype == MOED_DTYPE_BF16 ? 2 : dtype == MOED_DTYPE_F32 || dtype == MOED_DTYPE_I32 ? 4 : 8;
}

static inline void encode(void *to, int32_t dtype, double value)
{
    const float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if (dtype == MOED_DTYPE_BF16) {
        const uint16_t half = isnan(value) ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
        memcpy(to, &half, 2);
    } else if (dtype == MOED_DTYPE_U8) {
        memcpy(to, &(uint8_t){(uint8_t)value}, 1);
    } else if (dtype == MOED_DTYPE_F32) {
        memcpy(to, &f, 4);
    } else if (dtype == MOED_DTYPE_F64) {
        memcpy(to, &value, 8);
    } else if (dtype == MOED_DTYPE_I32) {
        memcpy(to, &(int32_t){(int32_t)value}, 4);
    } else {
        memcpy(to, &(int64_t){(int64_t)value}, 8);
    }
}

static inline double decode(const void *from, int32_t dtype)
{
    union { uint32_t bits; float f; double d; int32_t i; int64_t l; uint16_t half; uint8_t byte; } u = {0};
    memcpy(&u, from, dtype_size(dtype));
    switch (dtype) {
    case MOED_DTYPE_U8: return (double)u.byte;
    case MOED_DTYPE_BF16: u.bits = (uint32_t)u.half << 16; return (double)u.f;
    case MOED_DTYPE_F32: return (double)u.f;
    case MOED_DTYPE_F64: return u.d;
    case MOED_DTYPE_I32: return (double)u.i;
    default: return (double)u.l;
    }
}

static inline void side_ok(side *s, moed_status status, const char *what)
{
    if (status != MOED_OK) fail_msg("%s: status %d: %s", what, (int)status, s->host.sentence);
}

static inline moed_status side_open(side *s, const moed_backend *backend, const char *kernels, int32_t device, int threads)
{
    host_init(&s->host, threads);
    const moed_backend_config config = {.struct_size = sizeof config, .kernels = kernels, .device = device};
    moed_backend_info info = {.struct_size = sizeof info};
    const moed_status status = backend->open(&s->host.api, &config, &s->self, &s->table);
    if (status != MOED_OK) return status;
    side_ok(s, s->table->info(s->self, &info), "info");
    s->dtype = info.dtype, s->wide = info.wide ? info.wide : info.dtype;
    return MOED_OK;
}

/* ---- buffers ---- */

static inline int buffer_new(const char *name, kind k, role r, int64_t count)
{
    assert_true(buffer_count < BUFFERS);
    buffer *b = &buffers[buffer_count];
    *b = (buffer){.name = name, .kind = k, .role = r, .count = count};
    b->values = malloc((size_t)(count + 1) * sizeof(double));
    b->reference = malloc((size_t)(count + 1) * sizeof(double));
    for (int64_t i = 0; i < count; i++)
        b->values[i] = r != OUT ? uniform() : k == I32 || k == I64 ? -1515870811 : (double)NAN;
    for (int s = 0; s < SIDES; s++) {
        const size_t size = (size_t)count * dtype_size(kind_dtype(&sides[s], k)) + 2 * GUARD;
        side_ok(&sides[s], sides[s].table->alloc(sides[s].self, size, &b->memory[s]), "alloc");
    }
    return buffer_count++;
}

static inline int real_in(const char *name, int64_t count) { return buffer_new(name, REAL, IN, count); }
static inline int real_out(const char *name, int64_t count) { return buffer_new(name, REAL, OUT, count); }
static inline int real_sum(const char *name, int64_t count) { return buffer_new(name, REAL, SUM, count); }
static inline int wide_in(const char *name, int64_t count) { return buffer_new(name, WIDE, IN, count); }
static inline int wide_out(const char *name, int64_t count) { return buffer_new(name, WIDE, OUT, count); }
static inline int wide_sum(const char *name, int64_t count) { return buffer_new(name, WIDE, SUM, count); }
static inline int ints(const char *name, int64_t count, int64_t below) /* random in [0, below) */
{
    const int b = buffer_new(name, I32, IN, count);
    for (int64_t i = 0; i < count; i++) buffers[b].values[i] = floor((uniform() + 1) / 2 * (double)below);
    return b;
}
static inline int offsets_of(int64_t count, const int64_t *offsets)
{
    const int b = buffer_new("offsets", I64, IN, count);
    for (int64_t i = 0; i < count; i++) buffers[b].values[i] = (double)offsets[i];
    return b;
}

/* What the reference wrote becomes an input of what follows, the same on all sides. */
static inline void settle(int index)
{
    buffer *b = &buffers[index];
    memcpy(b->values, b->reference, (size_t)b->count * sizeof(double));
    b->role = IN;
}

static inline void reset(void)
{
    for (int i = 0; i < buffer_count; i++) {
        free(buffers[i].values);
        free(buffers[i].reference);
        for (int s = 0; s < SIDES; s++) sides[s].table->free(sides[s].self, buffers[i].memory[s]);
    }
    buffer_count = 0, wide_slack = 1;
}

static inline void *address(int s, int index, int64_t offset)
{
    if (index == NONE) return NULL;
    return (char *)buffers[index].memory[s] + GUARD + offset * (int64_t)dtype_size(kind_dtype(&sides[s], buffers[index].kind));
}

/* The bytes of a buffer as uploaded to a side: guards and values, reals rounded to what the table under test can hold. */
static inline uint8_t *image(const buffer *b, int s, size_t *size)
{
    const int32_t dtype = kind_dtype(&sides[s], b->kind), under_test = kind_dtype(&sides[1], b->kind);
    const size_t item = dtype_size(dtype);
    *size = (size_t)b->count * item + 2 * GUARD;
    uint8_t *bytes = malloc(*size);
    memset(bytes, 0xa5, *size);
    for (int64_t i = 0; i < b->count; i++) {
        uint8_t rounded[8];
        encode(rounded, under_test, b->values[i]);
        encode(bytes + GUARD + (size_t)i * item, dtype, decode(rounded, under_test));
    }
    return bytes;
}

static inline void upload_all(void)
{
    for (int i = 0; i < buffer_count; i++)
        for (int s = 0; s < SIDES; s++) {
            size_t size;
            uint8_t *bytes = image(&buffers[i], s, &size);
            side_ok(&sides[s], sides[s].table->upload(sides[s].self, buffers[i].memory[s], bytes, size), "upload");
            side_ok(&sides[s], sides[s].table->synchronize(sides[s].self), "synchronize");
            free(bytes);
        }
}

/* The tolerance of an operation is stated for float; other types have theirs in proportion. */
static inline double tolerance_for(int32_t dtype, double stated)
{
    if (dtype == MOED_DTYPE_F64) return fmin(stated, 1e-12);
    if (dtype == MOED_DTYPE_BF16) return stated > 0 ? fmax(stated * 4096, 1.0 / 128) : 0;
    return dtype == MOED_DTYPE_F32 ? stated : 0;
}

/* Codes stand for numbers that were rounded: where two arithmetics differ in the last place, a few of them fall to either
 * side. */
static inline void compare_codes(const char *operation, const buffer *b, const uint8_t *after)
{
    int64_t beside = 0;
    for (int64_t i = 0; i < b->count; i++) {
        const double got = (double)after[GUARD + i], want = b->reference[i];
        if (fabs(got - want) > 1)
            fail_msg("%s: code %s[%lld] is %g and should be %g", operation, b->name, (long long)i, got, want);
        beside += got != want;
    }
    if (beside > 1 + b->count / 200)
        fail_msg("%s: %lld of %lld codes of %s are not the reference's", operation, (long long)beside, (long long)b->count,
                 b->name);
}

static inline void compare_values(const char *operation, const buffer *b, const uint8_t *before, const uint8_t *after,
                                  double stated)
{
    const int32_t dtype = kind_dtype(&sides[1], b->kind);
    const size_t item = dtype_size(dtype);
    const int narrow = b->kind == WIDE && sides[1].dtype != sides[1].wide;
    const double tolerance = tolerance_for(b->kind == F64 && b->alone ? sides[1].dtype : dtype, stated) *
                             (narrow ? wide_slack : 1);
    double largest = 0.02; /* inputs are about 1: what cancels to 0 among them may leave their rounding */
    for (int64_t i = 0; i < b->count; i++)
        if (!isnan(b->reference[i])) largest = fmax(largest, fabs(b->reference[i]));
    for (int64_t i = 0; i < b->count; i++) {
        const size_t at = GUARD + (size_t)i * item;
        const double got = decode(after + at, dtype), want = b->reference[i];
        if (isnan(want)) {
            if (memcmp(before + at, after + at, item) != 0)
                fail_msg("%s wrote %g to %s[%lld], which is not its to write", operation, got, b->name, (long long)i);
        } else if (!(fabs(got - want) <= tolerance * (b->alone ? fabs(want) : largest))) {
            fail_msg("%s: %s[%lld] is %.9g and should be %.9g (tolerance %g of %g)", operation, b->name, (long long)i, got, want,
                     tolerance, largest);
        }
    }
}

/* Compares all buffers after an operation, side by side. */
static inline void verify(const char *operation, double stated)
{
    for (int i = 0; i < buffer_count; i++) {
        buffer *b = &buffers[i];
        uint8_t *first = NULL; /* what one thread made */
        for (int s = 0; s < SIDES; s++) {
            size_t size;
            uint8_t *before = image(b, s, &size), *after = malloc(size);
            side_ok(&sides[s], sides[s].table->synchronize(sides[s].self), operation);
            side_ok(&sides[s], sides[s].table->download(sides[s].self, after, b->memory[s], size), "download");
            side_ok(&sides[s], sides[s].table->synchronize(sides[s].self), "download");
            if (memcmp(before, after, GUARD) != 0 || memcmp(before + size - GUARD, after + size - GUARD, GUARD) != 0)
                fail_msg("%s wrote outside %s", operation, b->name);
            if (b->role == IN && memcmp(before, after, size) != 0) fail_msg("%s changed its input %s", operation, b->name);
            if (s == 0) {
                const int32_t dtype = kind_dtype(&sides[0], b->kind);
                for (int64_t e = 0; e < b->count; e++)
                    b->reference[e] = decode(after + GUARD + (size_t)e * dtype_size(dtype), dtype);
            } else if (s == 1) {
                if (b->kind == U8) compare_codes(operation, b, after);
                else if (b->role != IN) compare_values(operation, b, before, after, stated);
            } else if (memcmp(first, after, size) != 0) {
                fail_msg("%s: %s has other bits with %d threads than with 1", operation, b->name, s);
            }
            free(before);
            if (s == 1) first = after;
            else free(after);
        }
        free(first);
    }
}

/* Runs sides[*].table->operation with arguments of moed_op_TYPE (designated; AT(buffer) is a side's pointer) and compares. */
#define AT(index) address(s_, (index), 0)
#define AT_OFFSET(index, offset) address(s_, (index), (offset))
#define RUN(operation, type, tolerance, ...)                                                                  \
    do {                                                                                                      \
        upload_all();                                                                                         \
        for (int s_ = 0; s_ < SIDES; s_++) {                                                                  \
            moed_op_##type a_ = {__VA_ARGS__};                                                                \
            side_ok(&sides[s_], sides[s_].table->operation(sides[s_].self, &a_), #operation);                 \
        }                                                                                                     \
        verify(#operation, (tolerance));                                                                      \
    } while (0)

#endif
