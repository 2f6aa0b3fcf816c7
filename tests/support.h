/* tests/support.h - what several test programs need. Include first. */
#ifndef MOEDI_TEST_SUPPORT_H
#define MOEDI_TEST_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "moedisco.h"

#define assert_ok(call)                                                                          \
    do {                                                                                         \
        moed_status s_ = (call);                                                                 \
        if (s_ != MOED_OK) fail_msg("%s: %s: %s", #call, moed_status_name(s_), moed_last_error()); \
    } while (0)

/* The call is refused with this status, and the sentence contains `words`. */
#define assert_refused(call, status, words)                                                                      \
    do {                                                                                                         \
        moed_status s_ = (call);                                                                                 \
        if (s_ != (status)) fail_msg("%s: %s, not %s (%s)", #call, moed_status_name(s_), #status, moed_last_error()); \
        if (!strstr(moed_last_error(), (words))) fail_msg("%s: \"%s\" lacks \"%s\"", #call, moed_last_error(), (words)); \
    } while (0)

/* A fresh directory below TMPDIR; free() the path. support_remove takes it away with its content. */
static inline char *support_directory(void)
{
    const char *base = getenv("TMPDIR");
    char *path = malloc(4096);
    snprintf(path, 4096, "%s/moedisco-test-XXXXXX", base ? base : "/tmp");
    if (!mkdtemp(path)) fail_msg("mkdtemp %s", path);
    return path;
}
static inline void support_remove(char *path)
{
    char command[4200];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    if (system(command) != 0) fail_msg("%s", command);
    free(path);
}
/* "dir/name", in one of four rotating buffers */
static inline const char *support_path(const char *dir, const char *name)
{
    static char buffers[4][4200];
    static unsigned next;
    char *b = buffers[next++ % 4];
    snprintf(b, sizeof buffers[0], "%s/%s", dir, name);
    return b;
}
static inline void support_write(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) fail_msg("cannot write %s", path);
}
static inline moed_context *support_context(const char *kernels, int32_t threads)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV;
    o.kernels = kernels;
    o.threads = threads;
    assert_ok(moed_context_create(&c, &o));
    return c;
}
/* Bytes that handles of a context hold. */
static inline int64_t support_held(const moed_context *c)
{
    moed_context_info info = {.struct_size = sizeof info};
    assert_ok(moed_context_get_info(c, &info));
    return info.host_in_use;
}
/* The end of a test's context: nothing of the test may be held any more. */
static inline void support_close(moed_context *c)
{
    assert_int_equal(support_held(c), 0);
    moed_context_destroy(c);
}

/* The layout of a config.json's text. */
static inline moed_layout *support_layout(moed_context *c, const char *config)
{
    moed_layout *l = NULL;
    assert_ok(moed_layout_from_config(&l, c, config, strlen(config)));
    return l;
}

/* A model with drawn weights (init_std below 0: the config's), and one from a directory. */
static inline moed_model *support_fresh(moed_context *c, const char *config, uint64_t seed, double init_std)
{
    moed_layout *l = support_layout(c, config);
    moed_model *m = NULL;
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.seed = seed, o.init_std = init_std;
    assert_ok(moed_model_init(&m, c, l, &o));
    moed_layout_destroy(l);
    return m;
}
static inline size_t model_params(const moed_model *m)
{
    moed_layout_info info = {.struct_size = sizeof info};
    assert_ok(moed_layout_get_info(moed_model_layout(m), &info));
    return (size_t)info.params;
}
/* Selection biases are drawn as zeros: instead numbers that decide, `apart` from each other. Returns m. */
static inline moed_model *support_biased(moed_model *m, float apart)
{
    for (size_t p = 0; p < model_params(m); p++) {
        moed_param param;
        moed_tensor t;
        assert_ok(moed_layout_param(moed_model_layout(m), p, &param));
        if (param.role != MOED_ROLE_ROUTER_BIAS) continue;
        assert_ok(moed_model_tensor(m, p, &t));
        for (int64_t e = 0; e < t.shape[0]; e++) ((float *)t.data)[e] = apart * (float)(e % 3);
    }
    return m;
}
static inline moed_model *support_open(moed_context *c, const char *folder, uint32_t flags)
{
    moed_model *m = NULL;
    moed_model_options o;
    assert_ok(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = flags;
    assert_ok(moed_model_open(&m, c, folder, &o));
    return m;
}

/* A corpus of documents that callbacks give (struct_size is set here); vocabulary 0 and end_token -1: as without options. */
static inline moed_corpus *support_corpus(moed_context *c, moed_documents documents, int64_t vocabulary, int64_t end_token)
{
    moed_corpus *d = NULL;
    moed_corpus_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &o, sizeof o));
    o.vocabulary = vocabulary, o.end_token = end_token;
    documents.struct_size = sizeof documents;
    assert_ok(moed_corpus_wrap(&d, c, &documents, &o));
    return d;
}

/* Memory that runs out: once *allowed allocations of its context were made, there is no more. */
static inline void *support_scarce_alloc(size_t size, size_t alignment, void *user)
{
    int64_t *allowed = user;
    return (*allowed)-- > 0 ? aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment) : NULL;
}
static inline void support_scarce_free(void *memory, size_t size, void *user)
{
    (void)size, (void)user;
    free(memory);
}
static inline moed_context *support_scarce_context(int64_t *allowed)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.flags = MOED_CONTEXT_NO_ENV, o.kernels = "reference", o.threads = 1;
    o.alloc = support_scarce_alloc, o.free = support_scarce_free, o.alloc_user = allowed;
    *allowed = INT64_MAX;
    assert_ok(moed_context_create(&c, &o));
    return c;
}

/* One more try, of what the one before came to, with `allowed` allocations: what failed lacked memory, and left no more than
 * `held`. 0 when it succeeded; then nothing is scarce any more. The first status is MOED_E_MEMORY:
 *   for (int64_t n = 0; support_scarce(c, &allowed, n, held, status); n++) status = ...; */
static inline int support_scarce(const moed_context *c, int64_t *allowed, int64_t n, int64_t held, moed_status status)
{
    *allowed = status == MOED_OK ? INT64_MAX : n;
    if (status == MOED_OK) return 0;
    if (status != MOED_E_MEMORY) fail_msg("fewer than %d allocations: %s", (int)n, moed_last_error());
    if (support_held(c) != held) fail_msg("fewer than %d allocations: memory is still held", (int)n);
    assert_true(n < 5000);
    return 1;
}

/* uniform in [-1, 1), by a small generator of its own */
static inline void support_random(float *x, int64_t count, uint64_t seed)
{
    uint64_t s = seed * 2654435769u + 88172645463325252u;
    for (int64_t i = 0; i < count; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        x[i] = (float)((double)(s >> 40) / 8388608.0 - 1.0);
    }
}
static inline moed_tensor support_tensor(void *data, moed_dtype dtype, int64_t a, int64_t b)
{
    moed_tensor t = {0};
    t.data = data, t.dtype = dtype, t.rank = b ? 2 : 1;
    t.shape[0] = a, t.shape[1] = b ? b : 0;
    t.strides[0] = b ? b : 1, t.strides[1] = b ? 1 : 0;
    return t;
}

#endif
