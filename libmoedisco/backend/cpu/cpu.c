/* backend/cpu/cpu.c - the CPU as a device: engines, their memory, and the choice of kernel set. */
#include "backend/cpu/cpu.h"
#include "backend/cpu/blocks.h"
#include "core/limits.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

enum { ALIGNMENT = 64 };

/* ---- kernel sets ---- */

typedef struct kernel_set {
    const char *name;
    const moed_backend *table;
    int (*runs_here)(void);
    const char *needs; /* for the sentence that says why not */
} kernel_set;

static int always(void)
{
    return 1;
}

#if defined(__x86_64__)
/* __builtin_cpu_supports also asks whether the operating system keeps the wide registers. */
static int has_v2(void)
{
    return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
}

static int has_v3(void)
{
    unsigned a, b, basic, extended, d;
    if (!has_v2() || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2"))
        return 0;
    /* lzcnt runs as another instruction where it is missing, so the rest of the level is asked for too */
    return __get_cpuid(1, &a, &b, &basic, &d) && (basic & bit_F16C) && (basic & bit_MOVBE) &&
           __get_cpuid(0x80000001u, &a, &b, &extended, &d) && (extended & bit_LZCNT);
}

static int has_v4(void)
{
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* Best first; "auto" takes the first that runs here, "double" is only ever asked for by name. */
static const kernel_set kernel_sets[] = {
#if defined(__x86_64__)
    {"v4", &moedi_fast_v4, has_v4, "a CPU with AVX-512"},
    {"v3", &moedi_fast_v3, has_v3, "a CPU with AVX2 and FMA"},
    {"v2", &moedi_fast_v2, has_v2, "a CPU with SSE4.2"},
#elif defined(__aarch64__)
    {"neon", &moedi_fast_neon, always, "NEON"},
#endif
    {"reference", &moedi_reference_f32, always, ""},
    {"double", &moedi_reference_f64, always, ""},
};
enum { KERNEL_SETS = sizeof kernel_sets / sizeof *kernel_sets };

static int is_automatic(const char *asked)
{
    return !asked || !*asked || strcmp(asked, "auto") == 0;
}

/* The kernel set that was asked for and runs here, or NULL. */
static const kernel_set *choose_kernels(const char *asked)
{
    for (size_t i = 0; i < KERNEL_SETS; i++)
        if ((is_automatic(asked) || strcmp(asked, kernel_sets[i].name) == 0) && kernel_sets[i].runs_here())
            return &kernel_sets[i];
    return NULL;
}

static moed_status refuse_kernels(const moed_host_api *host, const char *asked)
{
    char sentence[320], names[80] = "auto";
    const kernel_set *known = NULL;
    for (size_t i = 0; i < KERNEL_SETS; i++) {
        const size_t used = strlen(names);
        if (strcmp(asked, kernel_sets[i].name) == 0) known = &kernel_sets[i];
        if (kernel_sets[i].runs_here()) snprintf(names + used, sizeof names - used, ", %s", kernel_sets[i].name);
    }
    if (known)
        snprintf(sentence, sizeof sentence, "kernel set \"%s\" needs %s, which this machine lacks; there is %s", asked,
                 known->needs, names);
    else
        snprintf(sentence, sizeof sentence, "no kernel set is called \"%.40s\"; there is %s", asked, names);
    return host->fail(host->self, MOED_E_BACKEND, sentence);
}

/* ---- device ---- */

/* The maker's name of the CPU, where the kernel tells it. */
static void describe(char *out, size_t size)
{
    char line[256];
    FILE *f = fopen("/proc/cpuinfo", "re");
    snprintf(out, size, "%s", "CPU");
    while (f && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) != 0 || !value) continue;
        value += 1 + strspn(value + 1, " \t");
        snprintf(out, size, "%.*s", (int)strcspn(value, "\n"), value);
        break;
    }
    if (f) fclose(f);
}

moed_status moedi_cpu_device(const moed_host_api *host, int32_t index, moed_device_info *out)
{
    (void)host;
    if (index != 0) return MOED_E_RANGE;
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    *out = (moed_device_info){.struct_size = sizeof *out, .name = "cpu", .backend = "cpu"};
    describe(out->description, sizeof out->description);
    if (pages > 0 && page > 0) out->memory = (int64_t)pages * page;
    const int64_t allowed = moedi_limits_memory("");
    if (allowed && (!out->memory || allowed < out->memory)) out->memory = allowed;
    return MOED_OK;
}

moed_status moedi_cpu_open(const moed_host_api *host, const moed_backend_config *config, void **self, const moed_backend **table)
{
    if (config->device != 0) {
        char sentence[80];
        snprintf(sentence, sizeof sentence, "there is one CPU device, cpu:0, and no cpu:%d", (int)config->device);
        return host->fail(host->self, MOED_E_RANGE, sentence);
    }
    const kernel_set *set = choose_kernels(config->kernels);
    if (!set) return refuse_kernels(host, config->kernels);

    void *memory;
    const moed_status status = host->alloc(host->self, sizeof(moedi_cpu), &memory);
    if (status != MOED_OK) return status;
    moedi_cpu *e = memory;
    *e = (moedi_cpu){.host = host, .limit = config->memory_limit, .kernels = set->name};
    e->reason = is_automatic(config->kernels) ? "the best kernel set that this CPU runs" : "the kernel set asked for";
    *self = e;
    *table = set->table;
    return MOED_OK;
}

void moedi_cpu_close(void *self)
{
    moedi_cpu *e = self;
    if (!e) return;
    moedi_cpu_free(e, e->scratch);
    e->host->free(e->host->self, e);
}

static moed_status fill_info(const moedi_cpu *e, int32_t dtype, moed_backend_info *out)
{
    *out = (moed_backend_info){.struct_size = sizeof *out, .dtype = dtype, .host_memory = 1};
    snprintf(out->kernels, sizeof out->kernels, "%s", e->kernels);
    snprintf(out->reason, sizeof out->reason, "%s", e->reason);
    return MOED_OK;
}

moed_status moedi_cpu_info_f32(void *self, moed_backend_info *out)
{
    return fill_info(self, MOED_DTYPE_F32, out);
}

moed_status moedi_cpu_info_f64(void *self, moed_backend_info *out)
{
    return fill_info(self, MOED_DTYPE_F64, out);
}

/* ---- memory ---- */

/* Every block begins with its size, so that what is in use can be held to the limit. */
moed_status moedi_cpu_alloc(void *self, size_t size, void **out)
{
    moedi_cpu *e = self;
    char sentence[160];
    if (size > PTRDIFF_MAX - ALIGNMENT) {
        snprintf(sentence, sizeof sentence, "%zu bytes are more than any machine has", size);
        return e->host->fail(e->host->self, MOED_E_MEMORY, sentence);
    }
    if (e->limit > 0 && (e->in_use > e->limit || (int64_t)size > e->limit - e->in_use)) {
        snprintf(sentence, sizeof sentence, "%zu bytes on the device on top of %lld do not fit in the limit of %lld", size,
                 (long long)e->in_use, (long long)e->limit);
        return e->host->fail(e->host->self, MOED_E_LIMIT, sentence);
    }
    void *block;
    const moed_status status = e->host->alloc(e->host->self, size + ALIGNMENT, &block);
    if (status != MOED_OK) return status;
    memcpy(block, &size, sizeof size);
    e->in_use += (int64_t)size;
    *out = (char *)block + ALIGNMENT;
    return MOED_OK;
}

void moedi_cpu_free(void *self, void *memory)
{
    moedi_cpu *e = self;
    size_t size;
    if (!memory) return;
    char *block = (char *)memory - ALIGNMENT;
    memcpy(&size, block, sizeof size);
    e->in_use -= (int64_t)size;
    e->host->free(e->host->self, block);
}

moed_status moedi_cpu_scratch(moedi_cpu *e, size_t size, void **out)
{
    if (size > e->scratch_size || !e->scratch) {
        moedi_cpu_free(e, e->scratch); /* first: its content is nobody's, and both at once would double the peak */
        e->scratch = NULL;
        e->scratch_size = 0;
        const moed_status status = moedi_cpu_alloc(e, size, &e->scratch);
        if (status != MOED_OK) return status;
        e->scratch_size = size;
    }
    *out = e->scratch;
    return MOED_OK;
}

int64_t moedi_cpu_slices(int64_t tasks)
{
    const int64_t processors = sysconf(_SC_NPROCESSORS_ONLN);
    return moedi_blocks_least(moedi_blocks_least(tasks, processors > 1 ? 2 * processors : 2), 64);
}

static size_t attention_bytes(const moed_workload *w)
{
    if (w->kv_heads < 1) return 0;
    const int64_t group = w->heads / w->kv_heads, rows = w->rows * w->kv_heads;
    const int64_t tiles = (w->length + MOEDI_ATTENTION_QUERIES - 1) / MOEDI_ATTENTION_QUERIES;
    const size_t there = (moedi_attention_bytes(w->head_dim, group) + 64) * (size_t)moedi_cpu_slices(rows * tiles);
    const size_t back = (moedi_attention_backward_bytes(w->head_dim, group, w->length) + 64) * (size_t)moedi_cpu_slices(rows);
    return there > back ? there : back;
}

/* The largest need of an operation: a piece of the logits with the panels of its products, the experts' panels, attention's
 * tiles. */
int64_t moedi_cpu_workspace(const moed_workload *w)
{
    enum { R = MOEDI_PANEL_ROWS, C = MOEDI_PANEL_COLUMNS };
    const int64_t tokens = w->rows * w->length;
    const int64_t E = w->experts, H = w->hidden, W = 2 * w->expert_width, places = tokens * w->top_k;
    const size_t needs[] = {
        moedi_loss_logit_bytes(tokens, w->vocabulary) + moedi_loss_panel_bytes(tokens, w->vocabulary, H, R, C),
        /* experts: there, back, and the gradients of their two matrices */
        moedi_grouped_bytes(E, places, places, W, H, 0, R, C), moedi_grouped_bytes(E, places, places, H, W, 0, R, C),
        moedi_grouped_bytes(E, W, W, H, places, 1, R, C), moedi_grouped_bytes(E, H, H, W / 2, places, 1, R, C),
        attention_bytes(w)};
    size_t most = 0;
    for (size_t i = 0; i < sizeof needs / sizeof needs[0]; i++)
        if (needs[i] > most) most = needs[i];
    return (int64_t)most;
}

/* ---- copying and clearing: by all threads, since one of them does not fill the memory's channels ---- */

enum { STRETCH = 1 << 18 }; /* bytes of a task */

typedef struct stretches {
    char *to;
    const char *from; /* nullable: clear */
    size_t size;
} stretches;

static void move_stretch(void *argument, int64_t index)
{
    const stretches *s = argument;
    const size_t at = (size_t)index * STRETCH, size = s->size - at < STRETCH ? s->size - at : STRETCH;
    if (s->from) memcpy(s->to + at, s->from + at, size);
    else memset(s->to + at, 0, size);
}
static void move_all(const moedi_cpu *e, stretches s)
{
    const int64_t tasks = (int64_t)((s.size + STRETCH - 1) / STRETCH);
    if (tasks == 1) move_stretch(&s, 0);
    else if (tasks > 1) e->host->parallel(e->host->self, tasks, move_stretch, &s);
}

/* The two do not overlap. */
moed_status moedi_cpu_copy(void *self, void *to, const void *from, size_t size)
{
    move_all(self, (stretches){.to = to, .from = from, .size = size});
    return MOED_OK;
}

moed_status moedi_cpu_upload(void *self, void *device, const void *host, size_t size)
{
    return moedi_cpu_copy(self, device, host, size);
}

moed_status moedi_cpu_download(void *self, void *host, const void *device, size_t size)
{
    return moedi_cpu_copy(self, host, device, size);
}

moed_status moedi_cpu_zero(void *self, void *device, size_t size)
{
    move_all(self, (stretches){.to = device, .size = size});
    return MOED_OK;
}

moed_status moedi_cpu_synchronize(void *self)
{
    (void)self;
    return MOED_OK;
}

/* What the registry lists: devices, open, and what is asked without an engine. The operations come from the table that open
 * gives. */
const moed_backend moedi_cpu_backend = {
    .struct_size = sizeof(moed_backend),
    .abi = MOED_BACKEND_ABI,
    .name = "cpu",
    .device = moedi_cpu_device,
    .open = moedi_cpu_open,
    .close = moedi_cpu_close,
    .workspace = moedi_cpu_workspace,
};
