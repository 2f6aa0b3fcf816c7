/* bench_surgery.c FOLDER [MEGABYTES [THREADS]] - init, split into four and integrate of a bf16 model of that size on the disk that FOLDER is on.
 * Integrated twice: as split, and after every number of the submodels moved. Beside them the same bytes copied by read, write and fsync:
 * for split the submodels, for integrate all that it reads, read, and the model, copied. Everything below FOLDER is removed after. */
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
             "{\"model_type\": \"qwen2_moe\", \"vocab_size\": 512, \"hidden_size\": 1024, \"intermediate_size\": 1408, \"num_hidden_layers\": %d, "
             "\"num_attention_heads\": 16, \"num_key_value_heads\": 16, \"num_experts\": %d, \"num_experts_per_tok\": 2, "
             "\"moe_intermediate_size\": 384, \"shared_expert_intermediate_size\": 1408, \"norm_topk_prob\": false, "
             "\"max_position_embeddings\": 512, \"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\"}",
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

static int time_integration(moed_context *c, moed_split *s, const moed_model *base, char part_dir[PARTS][4000], const char *to, double *seconds)
{
    moed_integration *i = NULL;
    moed_model *part = NULL;
    const double t = bench_now();
    CHECK(moed_integration_create(&i, s, base, NULL));
    for (int k = 0; k < PARTS; k++) {
        if (open_stream(&part, c, part_dir[k])) return 1;
        CHECK(moed_integration_add(i, k, part, 1.0));
        moed_model_destroy(part);
    }
    CHECK(moed_integration_finish(NULL, i, to, NULL));
    moed_integration_destroy(i);
    *seconds = bench_now() - t;
    return 0;
}

static int bench(moed_context *c, const char *folder, double megabytes, char *buffer)
{
    char base_dir[4000], whole_dir[4000], copied[4000], part_dir[PARTS][4000], note[96];
    moed_model *base = NULL;
    moed_split *s = NULL;
    moed_split_options o;
    double bytes = 0, read = 0, t;
    snprintf(base_dir, sizeof base_dir, "%s/base", folder);
    snprintf(whole_dir, sizeof whole_dir, "%s/whole", folder);
    snprintf(copied, sizeof copied, "%s/copy", folder);
    for (int k = 0; k < PARTS; k++) snprintf(part_dir[k], sizeof part_dir[k], "%s/%d", folder, k);

    t = bench_now();
    if (make_model(c, base_dir, megabytes)) return 1;
    const double init = bench_now() - t;
    const double size = copy(base_dir, NULL, buffer);
    snprintf(note, sizeof note, "%.0f MB, %.1f M numbers/s", size * 1e-6, size / 2 / init * 1e-6);
    bench_row("init of bf16 on disk", init, 0, 0, note);

    t = bench_now();
    if (open_stream(&base, c, base_dir)) return 1;
    CHECK(moed_options_init(MOED_STRUCT_SPLIT_OPTIONS, &o, sizeof o));
    o.parts = PARTS;
    CHECK(moed_split_create(&s, moed_model_layout(base), &o));
    for (int k = 0; k < PARTS; k++) CHECK(moed_split_build(NULL, s, k, base, part_dir[k], NULL));
    const double split = bench_now() - t;
    t = bench_now();
    for (int k = 0; k < PARTS; k++) bytes += copy(part_dir[k], copied, buffer);
    const double copy_split = bench_now() - t;
    snprintf(note, sizeof note, "%.0f MB written, %.0f MB/s; peak %.0f MiB", bytes * 1e-6, bytes / split * 1e-6, peak_mib());
    bench_row("split into 4 (peer: synced copy)", split, 0, copy_split, note);

    double integrate[2];
    if (time_integration(c, s, base, part_dir, whole_dir, &integrate[0])) return 1;
    for (int k = 0; k < PARTS; k++) move_numbers(part_dir[k], buffer);
    if (time_integration(c, s, base, part_dir, whole_dir, &integrate[1])) return 1;
    t = bench_now();
    for (int k = 0; k < PARTS; k++) read += copy(part_dir[k], NULL, buffer);
    read += copy(base_dir, copied, buffer);
    const double copy_integrate = bench_now() - t;
    snprintf(note, sizeof note, "%.0f MB read, %.0f MB written; peak %.0f MiB", read * 1e-6, size * 1e-6, peak_mib());
    bench_row("integrate 4 as split (peer: reading, copy)", integrate[0], 0, copy_integrate, note);
    bench_row("integrate 4, every number moved", integrate[1], 0, copy_integrate, "");
    bench_row("split + integrate, every number moved", split + integrate[1], 0, copy_split + copy_integrate, "");
    moed_split_destroy(s), moed_model_destroy(base);
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
