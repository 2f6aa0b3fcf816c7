/* bench_surgery.c FOLDER [MEGABYTES [THREADS]] - init, split into four and integrate of a bf16 model of that size on the disk
 * that FOLDER is on. Done twice: integrated as split, and after every number of the submodels moved. Beside them the same bytes
 * copied by read, write and fsync, in turns, ours first and the copy first: for split the submodels, for integrate all that it
 * reads, read, and the model, copied. A row is the mean of both turns. FOLDER needs room for nine times the size; what is made
 * below it is removed after. */
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench.h"
#include "core/context.h"
#include "moedisco.h"
#include "util/file.h"

enum { PARTS = 4, BUFFER = 8 << 20 };

#define CHECK(call)                                                                                 \
    do {                                                                                            \
        if ((call) != MOED_OK) return fprintf(stderr, "bench_surgery: %s\n", moed_last_error()), 1; \
    } while (0)

/* Reads a model's tensors and writes them to `to` (nullable), synced; the bytes. */
static double copy(const char *dir, const char *to, char *buffer)
{
    char path[4096];
    ssize_t n;
    double bytes = 0;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    const int in = open(path, O_RDONLY), out = to ? open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
    while (in >= 0 && (n = read(in, buffer, BUFFER)) > 0) {
        if (out >= 0 && write(out, buffer, (size_t)n) != n) exit(1);
        bytes += (double)n;
    }
    if (out >= 0 && (fsync(out) || close(out))) exit(1);
    close(in);
    return bytes;
}

static double peak_mib(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss / 1024;
}

static int make_model(moed_context *c, const char *dir, double megabytes)
{
    char config[1024];
    moed_layout *l = NULL;
    moed_model *m = NULL;
    moed_model_options o;
    /* 23 MB a layer in bf16, shaped as Qwen1.5-MoE: of it a third shared feed-forward, a third four experts */
    const int layers = megabytes > 46 ? (int)(megabytes / 23.1) : 2;
    snprintf(config, sizeof config,
             "{\"model_type\": \"qwen2_moe\", \"vocab_size\": 512, \"hidden_size\": 1024, \"intermediate_size\": 1408, "
             "\"num_hidden_layers\": %d, \"num_attention_heads\": 16, \"num_key_value_heads\": 16, \"num_experts\": %d, "
             "\"num_experts_per_tok\": 2, \"moe_intermediate_size\": 384, \"shared_expert_intermediate_size\": 1408, "
             "\"norm_topk_prob\": false, \"max_position_embeddings\": 512, \"tie_word_embeddings\": false, \"torch_dtype\": "
             "\"bfloat16\"}",
             layers, PARTS);
    CHECK(moed_layout_from_config(&l, c, config, strlen(config)));
    CHECK(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = MOED_MODEL_STREAM;
    CHECK(moed_model_init(&m, c, l, &o));
    CHECK(moed_model_save(m, dir, NULL));
    moed_model_destroy(m), moed_layout_destroy(l);
    return 0;
}

static int open_stream(moed_model **out, moed_context *c, const char *dir)
{
    moed_model_options o;
    CHECK(moed_options_init(MOED_STRUCT_MODEL_OPTIONS, &o, sizeof o));
    o.flags = MOED_MODEL_STREAM;
    CHECK(moed_model_open(out, c, dir, &o));
    return 0;
}

/* The lowest bit of every bf16 number the other way round, in place. */
static void move_numbers(const char *dir, char *buffer)
{
    char path[4096];
    uint64_t header;
    ssize_t n;
    snprintf(path, sizeof path, "%.4000s/model.safetensors", dir);
    const int f = open(path, O_RDWR);
    if (f < 0 || pread(f, &header, sizeof header, 0) != sizeof header) exit(1);
    for (off_t at = (off_t)(sizeof header + header); (n = pread(f, buffer, BUFFER, at)) > 0; at += n) {
        for (ssize_t i = 0; i < n; i += 2) buffer[i] ^= 1;
        if (pwrite(f, buffer, (size_t)n, at) != n) exit(1);
    }
    if (fsync(f) || close(f)) exit(1);
}

typedef struct folders {
    char base[4000], part[PARTS][4000], whole[4000], copied[PARTS + 1][4000];
} folders;

/* Seconds of one pass over each task, ours and the copy of the same bytes; bytes read and written by each. */
typedef struct figures {
    double split, split_copy, integrate, integrate_copy, split_bytes, read_bytes, whole_bytes;
} figures;

static int split(moed_split **out, moed_context *c, const folders *f, double *seconds)
{
    moed_model *base = NULL;
    moed_split_options o;
    const double t = bench_now();
    if (open_stream(&base, c, f->base)) return 1;
    CHECK(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.parts = PARTS;
    CHECK(moed_split_create(out, moed_model_layout(base), &o));
    for (int k = 0; k < PARTS; k++) CHECK(moed_split_build(NULL, *out, k, base, f->part[k], NULL));
    moed_model_destroy(base);
    *seconds += bench_now() - t;
    return 0;
}

static int integrate(moed_context *c, moed_split *s, const folders *f, double *seconds)
{
    moed_integration *i = NULL;
    moed_model *base = NULL, *part = NULL;
    const double t = bench_now();
    if (open_stream(&base, c, f->base)) return 1;
    CHECK(moed_integration_create(&i, s, base, NULL));
    for (int k = 0; k < PARTS; k++) {
        if (open_stream(&part, c, f->part[k])) return 1;
        CHECK(moed_integration_add(i, k, part, 1.0));
        moed_model_destroy(part);
    }
    CHECK(moed_integration_finish(NULL, i, f->whole, NULL));
    moed_integration_destroy(i), moed_model_destroy(base);
    *seconds += bench_now() - t;
    return 0;
}

static void copy_parts(const folders *f, figures *at, char *buffer)
{
    const double t = bench_now();
    for (int k = 0; k < PARTS; k++) at->split_bytes += copy(f->part[k], f->copied[k], buffer);
    at->split_copy += bench_now() - t;
}

static void copy_whole(const folders *f, figures *at, char *buffer)
{
    const double t = bench_now();
    for (int k = 0; k < PARTS; k++) at->read_bytes += copy(f->part[k], NULL, buffer);
    at->whole_bytes += copy(f->base, f->copied[PARTS], buffer);
    at->integrate_copy += bench_now() - t;
}

/* Once ours first and once the copy first: a virtual disk may write blocks that it has never held far slower than others. */
static int measure(moed_context *c, const folders *f, int copy_first, int moved, figures *at, char *buffer)
{
    moed_split *s = NULL;
    double untimed = 0;
    if (copy_first) { /* the copy reads the submodels, so they are made, untimed, and removed with what was copied */
        if (split(&s, c, f, &untimed)) return 1;
        copy_parts(f, at, buffer);
        for (int k = 0; k < PARTS; k++) CHECK(moedi_directory_remove(f->part[k]));
        moed_split_destroy(s);
    }
    if (split(&s, c, f, &at->split)) return 1;
    if (!copy_first) copy_parts(f, at, buffer);
    for (int k = 0; moved && k < PARTS; k++) move_numbers(f->part[k], buffer);
    if (copy_first) copy_whole(f, at, buffer);
    if (integrate(c, s, f, &at->integrate)) return 1;
    if (!copy_first) copy_whole(f, at, buffer);
    moed_split_destroy(s);
    for (int k = 0; k < PARTS; k++) CHECK(moedi_directory_remove(f->part[k]));
    CHECK(moedi_directory_remove(f->whole));
    for (int k = 0; k <= PARTS; k++) unlink(f->copied[k]);
    return 0;
}

static int bench(moed_context *c, const char *folder, double megabytes, char *buffer)
{
    folders f;
    char note[96];
    snprintf(f.base, sizeof f.base, "%s/base", folder);
    snprintf(f.whole, sizeof f.whole, "%s/whole", folder);
    for (int k = 0; k < PARTS; k++) snprintf(f.part[k], sizeof f.part[k], "%s/%d", folder, k);
    for (int k = 0; k <= PARTS; k++) snprintf(f.copied[k], sizeof f.copied[k], "%s/copy%d", folder, k);

    const double t = bench_now();
    if (make_model(c, f.base, megabytes)) return 1;
    const double init = bench_now() - t, size = copy(f.base, NULL, buffer);
    snprintf(note, sizeof note, "%.0f MB, %.1f M numbers/s", size * 1e-6, size / 2 / init * 1e-6);
    bench_row("init of bf16 on disk", init, 0, 0, note);

    for (int moved = 0; moved < 2; moved++) {
        figures at = {0};
        for (int copy_first = 0; copy_first < 2; copy_first++)
            if (measure(c, &f, copy_first, moved, &at, buffer)) return 1;
        snprintf(note, sizeof note, "%.0f MB written, %.0f MB/s; peak %.0f MiB", at.split_bytes / 2e6,
                 at.split_bytes * 1e-6 / at.split, peak_mib());
        bench_row("split into 4 (peer: synced copy)", at.split / 2, 0, at.split_copy / 2, note);
        snprintf(note, sizeof note, "%.0f MB read, %.0f MB written; peak %.0f MiB", (at.read_bytes + at.whole_bytes) / 2e6,
                 at.whole_bytes / 2e6, peak_mib());
        bench_row(moved ? "integrate 4, every number moved" : "integrate 4 as split (peer: reading, copy)", at.integrate / 2, 0,
                  at.integrate_copy / 2, note);
        bench_row("split + integrate", (at.split + at.integrate) / 2, 0, (at.split_copy + at.integrate_copy) / 2, "");
    }
    return 0;
}

int main(int count, char **arguments)
{
    moed_context *c = NULL;
    moed_context_options o;
    char *buffer = malloc(BUFFER), folder[3900];
    if (count < 2 || !buffer) return fprintf(stderr, "bench_surgery FOLDER [MEGABYTES [THREADS]]\n"), 2;
    snprintf(folder, sizeof folder, "%.3800s/bench-surgery-%ld", arguments[1], (long)getpid());
    CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.threads = count > 3 ? atoi(arguments[3]) : 0;
    CHECK(moed_context_create(&c, &o));
    CHECK(moedi_directory_make(folder));
    const int failed = bench(c, folder, count > 2 ? atof(arguments[2]) : 300, buffer);
    CHECK(moedi_directory_remove(folder));
    moed_context_destroy(c);
    free(buffer);
    return failed;
}
