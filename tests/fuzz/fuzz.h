/* tests/fuzz/fuzz.h - what the fuzz targets share: a context, a folder, and what must hold after any input. A target is one file
 * with one function over bytes; libFuzzer calls it, and so does tests/test_fuzz.c, which includes them all. */
#ifndef MOEDI_FUZZ_H
#define MOEDI_FUZZ_H

#include "train_support.h"

#ifdef FUZZ_REPLAY
#define FUZZ_TARGET(name) static int fuzz_##name(const uint8_t *data, size_t size)
#else
#define FUZZ_TARGET(name)                                       \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size); \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
#endif

static moed_context *fuzz_context; /* one for all inputs: what an input leaves behind shows */
static char *fuzz_dir;
static int64_t fuzz_held;          /* bytes before the input */
static int fuzz_taken;             /* was the last input? */

static inline void fuzz_clean(void)
{
    if (fuzz_dir) support_remove(fuzz_dir);
    fuzz_dir = NULL;
}

/* Before anything else of a target. 64 MB: a file of a few KB has no business with more. */
static inline void fuzz_begin(void)
{
    if (!fuzz_context) {
        moed_context_options o;
        assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
        o.flags = MOED_CONTEXT_NO_ENV, o.threads = 1, o.kernels = "reference", o.host_limit = 64 << 20;
        assert_ok(moed_context_create(&fuzz_context, &o));
        fuzz_dir = support_directory();
        atexit(fuzz_clean);
    }
    fuzz_held = support_held(fuzz_context);
}

/* A refusal blames the file, with one sentence. */
static inline void fuzz_refused(moed_status status, const char *says)
{
    if (status == MOED_E_INTERNAL || status == MOED_E_ARGUMENT || status == MOED_E_MEMORY)
        fail_msg("%s: %s", moed_status_name(status), says);
    if (strlen(says) < 15 || strchr(says, '\n')) fail_msg("\"%s\" is no sentence", says);
}

/* After everything else: the input was taken or refused with a sentence, and holds nothing any more. says: NULL = the last
 * error. */
static inline int fuzz_end(moed_status status, const char *says)
{
    fuzz_taken = status == MOED_OK;
    if (!fuzz_taken) fuzz_refused(status, says ? says : moed_last_error());
    const int64_t held = support_held(fuzz_context);
    if (held != fuzz_held) fail_msg("%lld bytes stay held", (long long)(held - fuzz_held));
    return 0;
}

static inline const char *fuzz_file(const char *name, const void *data, size_t size)
{
    const char *path = support_path(fuzz_dir, name);
    support_write(path, data, size);
    return path;
}

/* Inputs that become several files: each part but the last after its length in two bytes, little end first. */
typedef struct fuzz_part {
    const uint8_t *data;
    size_t size;
} fuzz_part;
static inline fuzz_part fuzz_take(fuzz_part *rest)
{
    fuzz_part part = {rest->data, 0};
    if (rest->size < 2) return part;
    part.data = rest->data + 2;
    part.size = (size_t)rest->data[0] | (size_t)rest->data[1] << 8;
    if (part.size > rest->size - 2) part.size = rest->size - 2;
    rest->data += 2 + part.size, rest->size -= 2 + part.size;
    return part;
}

/* A whole file; fuzz_free, unless it lives as long as the program, to be put back where an input leaves its part empty. */
static inline fuzz_part fuzz_read(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    const size_t size = (size_t)ftell(f);
    rewind(f);
    uint8_t *data = malloc(size + 1);
    if (fread(data, 1, size, f) != size) fail_msg("cannot read %s", path);
    fclose(f);
    return (fuzz_part){data, size};
}
static inline void fuzz_free(fuzz_part p)
{
    free((void *)(uintptr_t)p.data);
}
/* changed: whether the file is not `otherwise` now. */
static inline void fuzz_write(const char *path, fuzz_part given, fuzz_part otherwise, int *changed)
{
    const fuzz_part p = given.size ? given : otherwise;
    if (given.size || *changed) support_write(path, p.data, p.size);
    *changed = given.size > 0;
}

#endif
