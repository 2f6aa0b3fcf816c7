/* bench_kmeans.c [THREADS [COUNT WIDTH CLUSTERS]], bench_kmeans.c stream GIGABYTES - seconds per iteration of Lloyd's k-means on
 * made vectors, as JSON lines, beside its floors (processor_seconds: of all threads together, steadier where the machine does
 * other work too): one reading of the vectors at the memory bandwidth measured here, and the products at the matrix product's
 * measured rate. Uniform vectors: bounds spare least there. With `stream`: two iterations over so many bytes of vectors that are
 * never in memory together, and the process' peak memory. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "core/context.h"
#include "moedisco.h"

enum { FEW = 2, MANY = 12 }; /* iterations: the difference leaves out what a fit does once */

static double clock_of(clockid_t which)
{
    struct timespec t;
    clock_gettime(which, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static double now(void)
{
    return clock_of(CLOCK_MONOTONIC);
}

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, moed_last_error());
    return 1;
}

static void fill(float *x, int64_t count)
{
    uint64_t s = 88172645463325252u;
    for (int64_t i = 0; i < count; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        x[i] = (float)((double)(s >> 40) / 8388608.0 - 1.0);
    }
}

typedef struct reading {
    const float *x;
    int64_t count, parts;
    double sums[64];
} reading;
static void read_part(void *argument, int64_t part)
{
    reading *r = argument;
    const float *x = r->x + r->count / r->parts * part;
    float lanes[64] = {0};
    for (int64_t i = 0; i + 64 <= r->count / r->parts; i += 64)
        for (int l = 0; l < 64; l++) lanes[l] += x[i + l];
    for (int l = 0; l < 64; l++) r->sums[part] += (double)lanes[l];
}
/* bytes per second */
static double bandwidth(const moed_context *c, const float *x, int64_t count)
{
    double best = 0;
    for (int i = 0; i < 5; i++) {
        reading r = {.x = x, .count = count, .parts = 64};
        const double began = now();
        moedi_parallel(c, r.parts, read_part, &r);
        const double rate = (double)count * sizeof *x / (now() - began);
        if (rate > best && r.sums[0] < 1e30) best = rate;
    }
    return best;
}
/* floating-point operations per second of a large matrix product */
static double peak(moed_context *c)
{
    enum { N = 1536 };
    moedi_engine e;
    double best = 0;
    float *a = malloc(N * N * sizeof *a), *b = malloc(N * N * sizeof *b), *d = malloc(N * N * sizeof *d);
    if (a && b && d && moedi_engine_open(&e, c) == MOED_OK) {
        const moed_op_gemm op = {.c = d, .a = a, .b = b, .m = N, .n = N, .k = N, .lda = N, .ldb = N, .ldc = N, .transpose_b = 1};
        fill(a, N * N), fill(b, N * N);
        for (int i = 0; i < 6; i++) {
            const double began = now();
            if (e.table->gemm(e.self, &op) != MOED_OK) break;
            const double rate = 2.0 * N * N * N / (now() - began);
            if (rate > best) best = rate;
        }
        moedi_engine_close(&e);
    }
    free(a), free(b), free(d);
    return best;
}

static int fit(moed_context *c, const moed_tensor *x, const moed_tensor *starts, int32_t iterations, double seconds[2])
{
    moed_kmeans_options o;
    moed_kmeans *k = NULL;
    if (moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o) != MOED_OK) return failed("options");
    o.clusters = (int32_t)starts->shape[0], o.iterations = iterations, o.tolerance = 0;
    if (moed_kmeans_create(&k, c, &o) != MOED_OK) return failed("create");
    const double began = now(), spent = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    const moed_status status = moed_kmeans_fit(k, x, NULL, starts, NULL);
    seconds[0] = now() - began;
    seconds[1] = clock_of(CLOCK_PROCESS_CPUTIME_ID) - spent;
    moed_kmeans_destroy(k);
    return status == MOED_OK ? 0 : failed("fit");
}

static moed_tensor matrix(float *data, int64_t rows, int64_t width)
{
    moed_tensor t;
    memset(&t, 0, sizeof t);
    t.data = data, t.dtype = MOED_DTYPE_F32, t.rank = 2;
    t.shape[0] = rows, t.shape[1] = t.strides[0] = width, t.strides[1] = 1;
    return t;
}

static int bench(moed_context *c, int64_t count, int64_t width, int64_t clusters, int32_t threads, double flops)
{
    float *x = malloc((size_t)(count * width) * sizeof *x);
    double few[2], many[2];
    int code = 1;
    if (!x) return fprintf(stderr, "no memory\n"), 1;
    fill(x, count * width);
    const moed_tensor t = matrix(x, count, width), starts = matrix(x, clusters, width);
    const double bytes = bandwidth(c, x, count * width), work = 2.0 * (double)count * (double)width * (double)clusters;
    if (fit(c, &t, &starts, FEW, few) || fit(c, &t, &starts, MANY, many)) goto out;
    const double each = (many[0] - few[0]) / (MANY - FEW), spent = (many[1] - few[1]) / (MANY - FEW),
                 read = (double)count * (double)width * sizeof *x / bytes;
    printf(
        "{\"count\": %lld, \"width\": %lld, \"clusters\": %lld, \"threads\": %d, \"seconds_per_iteration\": %.5f, "
        "\"processor_seconds\": %.5f, \"once_processor_seconds\": %.4f, "
        "\"gflops\": %.1f, \"floor_read\": %.5f, \"floor_products\": %.5f, \"bandwidth_gb\": %.1f, \"peak_gflops\": %.1f}\n",
        (long long)count, (long long)width, (long long)clusters, threads, each, spent, few[1] - FEW * spent, work / each * 1e-9,
        read, work / flops, bytes * 1e-9, flops * 1e-9);
    fflush(stdout);
    code = 0;
out:
    free(x);
    return code;
}

/* Rows out of a table, each scaled by a number of its own. */
enum { STREAM_WIDTH = 64, TABLE_ROWS = 4096 };
static int32_t read_made(int64_t first, int64_t count, float *out, void *user)
{
    const float *table = user;
    for (int64_t i = 0; i < count; i++) {
        const int64_t row = (first + i) * 31 % TABLE_ROWS;
        const float scale = 1.0f + (float)((first + i) / TABLE_ROWS % 1000) * 1e-3f;
        for (int64_t d = 0; d < STREAM_WIDTH; d++) out[i * STREAM_WIDTH + d] = scale * table[row * STREAM_WIDTH + d];
    }
    return 0;
}
static int bench_stream(moed_context *c, double gigabytes)
{
    static float table[TABLE_ROWS * STREAM_WIDTH];
    moed_kmeans_options o;
    moed_kmeans *k = NULL;
    moed_kmeans_info info = {.struct_size = sizeof info};
    struct rusage used;
    const moed_vectors v = {sizeof v,     0,         (int64_t)(gigabytes * 1e9 / sizeof(float) / STREAM_WIDTH),
                            STREAM_WIDTH, read_made, table};
    fill(table, TABLE_ROWS * STREAM_WIDTH);
    if (moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o) != MOED_OK) return failed("options");
    o.clusters = 16, o.iterations = 2, o.tolerance = 0;
    if (moed_kmeans_create(&k, c, &o) != MOED_OK) return failed("create");
    const double began = now(), spent = clock_of(CLOCK_PROCESS_CPUTIME_ID);
    moed_status status = moed_kmeans_fit_stream(k, &v, NULL, NULL, NULL);
    if (status == MOED_OK) status = moed_kmeans_get_info(k, &info);
    if (status != MOED_OK) failed("stream");
    getrusage(RUSAGE_SELF, &used);
    printf("{\"stream\": %.1f, \"count\": %lld, \"width\": %d, \"clusters\": 16, \"iterations\": %lld, \"seconds\": %.1f, "
           "\"processor_seconds\": %.1f, \"peak_mib\": %.0f}\n", gigabytes, (long long)v.count, STREAM_WIDTH,
           (long long)info.iterations, now() - began, clock_of(CLOCK_PROCESS_CPUTIME_ID) - spent, (double)used.ru_maxrss / 1024);
    moed_kmeans_destroy(k);
    return status != MOED_OK;
}

int main(int arguments, char **argument)
{
    const int streamed = arguments == 3 && !strcmp(argument[1], "stream");
    static const int64_t shapes[2][2] = {{100000, 384}, {1000000, 64}}, clusters[4] = {4, 16, 64, 256};
    moed_context *c = NULL;
    moed_context_options o;
    int code = 0;
    if (moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o) != MOED_OK) return failed("options");
    o.threads = arguments > 1 && !streamed ? atoi(argument[1]) : 2;
    if (moed_context_create(&c, &o) != MOED_OK) return failed("context");
    if (streamed) {
        code = bench_stream(c, atof(argument[2]));
        moed_context_destroy(c);
        return code;
    }
    const double flops = peak(c);
    if (arguments == 5) code = bench(c, atoll(argument[2]), atoll(argument[3]), atoll(argument[4]), o.threads, flops);
    for (int s = 0; arguments < 5 && s < 2; s++)
        for (int k = 0; k < 4 && !code; k++) code = bench(c, shapes[s][0], shapes[s][1], clusters[k], o.threads, flops);
    moed_context_destroy(c);
    return code;
}
