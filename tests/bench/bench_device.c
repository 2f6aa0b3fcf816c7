/* bench_device.c DEVICE[,KERNELS] [small] [ROW...] - single operations at the sizes of a large GPU, beside their floors: the
 * larger of the bytes at the bandwidth of a copy and the arithmetic at the rate of the largest product, both measured here.
 * Arrays lie on the device before the clock starts; a time is that of many calls between two waits. Rows: product attention
 * grouped loss kmeans update (all). small: sizes that only try the program out. */
#include "backend/lean.h"
#include "bench.h"
#include "core/context.h"
#include "moedisco.h"

enum { BATCHES = 7, ARRAYS = 16 };
#define BATCH_SECONDS 0.02

typedef struct bench {
    moedi_engine e;
    double bandwidth, rate; /* bytes and operations a second */
    void *arrays[ARRAYS];
    int count, small;
} bench;

static void must(moed_status status)
{
    if (status == MOED_OK) return;
    fprintf(stderr, "bench_device: %s\n", moed_last_error());
    exit(1);
}
static void wait_for(const bench *b)
{
    must(b->e.table->synchronize(b->e.self));
}

/* ---- arrays ---- */

static void *array(bench *b, int64_t bytes)
{
    void *memory;
    if (b->count == ARRAYS) exit(1);
    must(b->e.table->alloc(b->e.self, (size_t)bytes, &memory));
    return b->arrays[b->count++] = memory;
}
static void *host_array(bench *b, const void *from, int64_t bytes)
{
    void *memory = array(b, bytes);
    must(b->e.table->upload(b->e.self, memory, from, (size_t)bytes));
    return memory;
}
static void release(bench *b)
{
    wait_for(b);
    while (b->count) b->e.table->free(b->e.self, b->arrays[--b->count]);
}

/* Numbers of `item` bytes of about a normal distribution, times scale: a piece from the host, repeated. */
static void *numbers(bench *b, int64_t count, size_t item, double scale)
{
    enum { PIECE = 1048573 }; /* a prime: no two rows are the same */
    const int64_t piece = count < PIECE ? count : PIECE;
    char *made = malloc((size_t)piece * item);
    uint64_t s = 88172645463325252u + (uint64_t)b->count;
    if (!made) exit(1);
    for (int64_t i = 0; i < piece; i++) {
        s ^= s << 13, s ^= s >> 7, s ^= s << 17;
        const int sum = (int)(s >> 8 & 255) + (int)(s >> 16 & 255) + (int)(s >> 24 & 255) + (int)(s >> 32 & 255);
        const float x = (float)(scale * (sum - 510) / 148.0);
        uint32_t bits;
        memcpy(&bits, &x, sizeof bits);
        const uint16_t high = (uint16_t)(bits >> 16);
        const double wide = (double)x;
        memcpy(made + (size_t)i * item, item == 2 ? (const void *)&high : item == 4 ? (const void *)&x : (const void *)&wide,
               item);
    }
    char *to = array(b, count * (int64_t)item);
    must(b->e.table->upload(b->e.self, to, made, (size_t)piece * item));
    for (int64_t at = piece; at < count; at += piece)
        must(b->e.table->copy(b->e.self, to + (size_t)at * item, to, (size_t)(count - at < piece ? count - at : piece) * item));
    wait_for(b);
    free(made);
    return to;
}
static void *reals(bench *b, int64_t count, double scale)
{
    return numbers(b, count, b->e.item, scale);
}

/* ---- time ---- */

static int compare(const void *x, const void *y)
{
    const double a = *(const double *)x, b = *(const double *)y;
    return (a > b) - (a < b);
}

/* The first calls make plans and grow scratch memory. */
#define TIME(b, call, seconds)                                             \
    do {                                                                   \
        double each_[BATCHES], begin_;                                     \
        int calls_ = 1;                                                    \
        for (int i_ = 0; i_ < 2; i_++) must(call);                         \
        wait_for(b);                                                       \
        begin_ = bench_now();                                              \
        must(call), wait_for(b);                                           \
        calls_ += (int)(BATCH_SECONDS / (bench_now() - begin_));           \
        for (int batch_ = 0; batch_ < BATCHES; batch_++) {                 \
            begin_ = bench_now();                                          \
            for (int i_ = 0; i_ < calls_; i_++) must(call);                \
            wait_for(b);                                                   \
            each_[batch_] = (bench_now() - begin_) / calls_;               \
        }                                                                  \
        qsort(each_, BATCHES, sizeof *each_, compare);                     \
        (seconds) = each_[BATCHES / 2];                                    \
    } while (0)

/* bytes: read and written once; flops: multiplications and additions */
static void row(const bench *b, const char *what, double seconds, double bytes, double flops)
{
    const double by_bytes = bytes / b->bandwidth, by_flops = flops / b->rate;
    char note[64];
    snprintf(note, sizeof note, "%.0f TFLOP/s, %.0f GB/s", flops / seconds * 1e-12, bytes / seconds * 1e-9);
    bench_row(what, seconds, by_bytes > by_flops ? by_bytes : by_flops, 0, note);
}

/* ---- rows ---- */

static double product(bench *b, int64_t m, int64_t n, int64_t k)
{
    const moed_op_gemm a = {.c = reals(b, m * n, 1), .a = reals(b, m * k, 1), .b = reals(b, n * k, 1), .m = m, .n = n, .k = k,
                            .lda = k, .ldb = k, .ldc = n, .transpose_b = 1};
    double seconds;
    TIME(b, b->e.table->gemm(b->e.self, &a), seconds);
    release(b);
    return seconds;
}
static void tell_product(bench *b, int64_t m, int64_t n, int64_t k)
{
    char what[64];
    snprintf(what, sizeof what, "product %lld x %lld x %lld", (long long)m, (long long)n, (long long)k);
    row(b, what, product(b, m, n, k), (double)b->e.item * (double)(m * k + n * k + m * n),
        2.0 * (double)m * (double)n * (double)k);
}
static void products(bench *b)
{
    if (b->small) {
        tell_product(b, 512, 512, 512);
        return;
    }
    tell_product(b, 8192, 8192, 8192);
    tell_product(b, 16384, 5632, 2048);
}

static void attention(bench *b)
{
    const int64_t rows = b->small ? 1 : 8, length = b->small ? 128 : 1024, heads = b->small ? 4 : 16, dim = b->small ? 64 : 128;
    const int64_t width = heads * dim, N = rows * length, item = (int64_t)b->e.item;
    const double bytes = (double)(4 * N * width * item), flops = 2.0 * (double)(N * (length + 1) * width);
    int32_t *start = malloc((size_t)N * sizeof *start);
    if (!start) exit(1);
    for (int64_t i = 0; i < N; i++) start[i] = (int32_t)(i / length * length);
    char *qkv = reals(b, 3 * N * width, 1), *d_qkv = array(b, 3 * N * width * item);
    const moed_op_attention a = {.out = array(b, N * width * item), .lse = array(b, heads * N * (int64_t)b->e.wide_item),
                                 .q = qkv, .k = qkv + width * item, .v = qkv + 2 * width * item, .d_q = d_qkv,
                                 .d_k = d_qkv + width * item, .d_v = d_qkv + 2 * width * item, .d_out = reals(b, N * width, 1),
                                 .start = host_array(b, start, N * (int64_t)sizeof *start), .rows = rows, .length = length,
                                 .heads = heads, .kv_heads = heads, .head_dim = dim, .stride = 3 * width, .scale = 0.09,
                                 .whole = 1};
    double seconds;
    TIME(b, b->e.table->attention(b->e.self, &a), seconds);
    row(b, "attention forward", seconds, bytes, flops);
    TIME(b, b->e.table->attention_backward(b->e.self, &a), seconds);
    row(b, "attention backward", seconds, 2 * bytes, 2.5 * flops);
    release(b);
    free(start);
}

static void grouped(bench *b)
{
    enum { MOST = 64 };
    const int64_t groups = b->small ? 4 : MOST, rows = b->small ? 512 : 131072, n = b->small ? 64 : 1408,
                  k = b->small ? 128 : 2048;
    int64_t ends[MOST + 1];
    for (int64_t g = 0; g <= groups; g++) ends[g] = rows / groups * g;
    const int64_t item = (int64_t)b->e.item;
    void *x = reals(b, rows * k, 1), *d_y = reals(b, rows * n, 1), *weight = reals(b, groups * n * k, 1);
    const int64_t *offsets = host_array(b, ends, (groups + 1) * (int64_t)sizeof *ends);
    const moed_op_grouped_gemm forward = {.c = array(b, rows * n * item), .a = x, .b = weight, .offsets = offsets,
                                          .groups = groups, .m = rows, .n = n, .k = k, .lda = k, .ldb = k, .ldc = n,
                                          .stride_b = n * k, .transpose_b = 1};
    const moed_op_grouped_gemm to_x = {.c = array(b, rows * k * item), .a = d_y, .b = weight, .offsets = offsets,
                                       .groups = groups, .m = rows, .n = k, .k = n, .lda = n, .ldb = k, .ldc = k,
                                       .stride_b = n * k};
    const moed_op_grouped_gemm to_weight = {.c = array(b, groups * n * k * item), .a = d_y, .b = x, .offsets = offsets,
                                            .groups = groups, .m = n, .n = k, .k = rows, .lda = n, .ldb = k, .ldc = k,
                                            .stride_c = n * k, .reduce = 1};
    const double bytes = (double)item * (double)(rows * (n + k) + groups * n * k), flops = 2.0 * (double)rows * (double)(n * k);
    double seconds;
    TIME(b, b->e.table->grouped_gemm(b->e.self, &forward), seconds);
    row(b, "grouped forward", seconds, bytes, flops);
    TIME(b, b->e.table->grouped_gemm(b->e.self, &to_x), seconds);
    row(b, "grouped d_x", seconds, bytes, flops);
    TIME(b, b->e.table->grouped_gemm(b->e.self, &to_weight), seconds);
    row(b, "grouped d_w", seconds, bytes, flops);
    release(b);
}

static void loss(bench *b)
{
    const int64_t rows = b->small ? 512 : 16384, width = b->small ? 64 : 2048, vocabulary = b->small ? 1000 : 151936;
    int32_t *labels = malloc((size_t)rows * sizeof *labels);
    if (!labels) exit(1);
    for (int64_t i = 0; i < rows; i++) labels[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)vocabulary);
    moed_op_cross_entropy a = {.losses = array(b, rows * (int64_t)b->e.wide_item), .h = reals(b, rows * width, 1),
                               .head = reals(b, vocabulary * width, 0.02),
                               .labels = host_array(b, labels, rows * (int64_t)sizeof *labels), .d_h = reals(b, rows * width, 1),
                               .d_head = reals(b, vocabulary * width, 0), .rows = rows, .width = width, .vocabulary = vocabulary,
                               .scale = 1.0 / (double)rows};
    double seconds;
    TIME(b, b->e.table->cross_entropy(b->e.self, &a), seconds);
    row(b, "loss head", seconds, (double)b->e.item * (double)(2 * rows * width + 3 * vocabulary * width),
        6.0 * (double)rows * (double)width * (double)vocabulary);
    release(b);
    free(labels);
}

/* An iteration as a fit does it from its second on: labels, sums, centroids; to the host come totals, counts and how far each has
 * moved. The floor's products are of 16 bits, as the engine's are; a peer in TF32 has half that rate. */
static moed_status kmeans_iteration(const bench *b, const moed_op_kmeans_step *a, void *host)
{
    const moed_op_kmeans_move move = {(float *)a->centroids, (float *)a->moved, a->sums, a->totals, a->width, a->clusters};
    const size_t k = (size_t)a->clusters;
    MOEDI_TRY(b->e.table->kmeans_step(b->e.self, a));
    MOEDI_TRY(b->e.table->download(b->e.self, host, a->totals, k * 8));
    MOEDI_TRY(b->e.table->download(b->e.self, host, a->counts, k * 8));
    MOEDI_TRY(b->e.table->synchronize(b->e.self));
    MOEDI_TRY(b->e.table->kmeans_move(b->e.self, &move));
    MOEDI_TRY(b->e.table->download(b->e.self, host, a->moved, k * 4));
    return b->e.table->synchronize(b->e.self);
}
static void kmeans(bench *b)
{
    static const int64_t sizes[] = {64, 1024};
    const int64_t count = b->small ? 4096 : 1000000, width = b->small ? 64 : 2048;
    if (!MOED_BACKEND_HAS(b->e.table, kmeans_step) || !MOED_BACKEND_HAS(b->e.table, kmeans_move)) return;
    float *x = numbers(b, count * width, sizeof *x, 1);
    for (int i = b->small ? 1 : 0; i < 2; i++) {
        const int64_t K = b->small ? 16 : sizes[i];
        const int kept = b->count;
        char what[64];
        double seconds, host[1024];
        moed_op_kmeans_step a = {.labels = array(b, count * 4), .sums = array(b, K * width * 8), .totals = array(b, K * 8),
                                 .counts = array(b, K * 8), .lower = array(b, count * 4), .x = x, .count = count, .width = width,
                                 .clusters = K};
        float *centroids = array(b, K * width * 4);
        must(b->e.table->copy(b->e.self, centroids, x, (size_t)(K * width) * sizeof *x));
        a.centroids = centroids;
        must(b->e.table->kmeans_step(b->e.self, &a));
        a.moved = array(b, K * 4);
        must(b->e.table->zero(b->e.self, (void *)a.moved, (size_t)K * 4));
        snprintf(what, sizeof what, "k-means iteration, K %lld", (long long)K);
        TIME(b, kmeans_iteration(b, &a, host), seconds);
        row(b, what, seconds, 4.0 * (double)count * (double)width, 2.0 * (double)count * (double)width * (double)K);
        wait_for(b);
        while (b->count > kept) b->e.table->free(b->e.self, b->arrays[--b->count]);
    }
    release(b);
}

/* The norm of gradients and AdamW, as a training step has them: numbers with their low halves and moments in float, or 8-bit
 * moments. */
static void update(bench *b)
{
    const int64_t n = b->small ? 1 << 16 : (int64_t)1 << 29, blocks = n / MOEDI_LEAN_BLOCK;
    const moed_step_scalars now = {.learning_rate = 1e-5, .gradient_scale = 1, .clip_factor = 1, .gradient_norm = 1,
                                   .beta1_correction = 0.5, .beta2_correction = 0.5, .random = 7};
    for (int lean = 0; lean < 2; lean++) {
        const int64_t moment = lean ? 1 : (int64_t)sizeof(float);
        moed_op_slice slice = {.parameter = reals(b, n, 1), .gradient = reals(b, n, 1e-3), .m = array(b, n * moment),
                               .v = array(b, n * moment), .count = n};
        must(b->e.table->zero(b->e.self, slice.m, (size_t)(n * moment)));
        must(b->e.table->zero(b->e.self, slice.v, (size_t)(n * moment)));
        if (lean) {
            slice.m_scale = numbers(b, blocks, sizeof(float), 0), slice.v_scale = numbers(b, blocks, sizeof(float), 0);
        } else if (b->e.item == 2) {
            slice.low = array(b, n * 2);
            must(b->e.table->zero(b->e.self, slice.low, (size_t)n * 2));
        }
        const moed_op_update a = {.slices = &slice, .count = 1, .scalars = host_array(b, &now, sizeof now), .beta1 = 0.9,
                                  .beta2 = 0.95, .epsilon = 1e-8, .clip = 1};
        double seconds;
        char what[64];
        if (!lean) {
            TIME(b, b->e.table->gradient_norm(b->e.self, &a), seconds);
            snprintf(what, sizeof what, "norm of %.0f M gradients", (double)n * 1e-6);
            row(b, what, seconds, (double)n * (double)b->e.item, 0);
        }
        TIME(b, b->e.table->adamw(b->e.self, &a), seconds);
        const double each = 3.0 * (double)b->e.item + 4.0 * (double)moment + (slice.low ? 4 : 0) +
                            (lean ? 16.0 / MOEDI_LEAN_BLOCK : 0);
        snprintf(what, sizeof what, "AdamW of %.0f M numbers%s", (double)n * 1e-6, lean ? ", 8-bit moments" : "");
        row(b, what, seconds, (double)n * each, 0);
        release(b);
    }
}

/* ---- the floors ---- */

static void measure(bench *b)
{
    const int64_t bytes = b->small ? 1 << 24 : (int64_t)1 << 31;
    char *from = numbers(b, bytes / 4, 4, 1), *to = array(b, bytes);
    double seconds;
    TIME(b, b->e.table->copy(b->e.self, to, from, (size_t)bytes), seconds);
    release(b);
    b->bandwidth = 2.0 * (double)bytes / seconds;
    const int64_t n = b->small ? 512 : 8192;
    b->rate = 2.0 * (double)n * (double)n * (double)n / product(b, n, n, n);
    fprintf(stderr, "floors: %.0f GB/s by a copy, %.1f TFLOP/s by a product\n", b->bandwidth * 1e-9, b->rate * 1e-12);
}

int main(int count, char **arguments)
{
    static const struct {
        const char *name;
        void (*run)(bench *b);
    } rows[] = {{"product", products}, {"attention", attention}, {"grouped", grouped},
                {"loss", loss},        {"kmeans", kmeans},       {"update", update}};
    enum { ROWS = sizeof rows / sizeof *rows };
    bench b = {.count = 0};
    moed_context *c = NULL;
    moed_context_options o;
    if (count < 2) return fprintf(stderr, "usage: bench_device DEVICE[,KERNELS] [small] [ROW...]\n"), 2;
    char *comma = strchr(arguments[1], ',');
    must(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    if (comma) *comma = 0, o.kernels = comma + 1;
    o.device = arguments[1];
    must(moed_context_create(&c, &o));
    must(moedi_engine_open(&b.e, c));
    b.small = count > 2 && !strcmp(arguments[2], "small");
    measure(&b);
    for (int i = 0; i < ROWS; i++) {
        int wanted = count == 2 + b.small;
        for (int k = 2 + b.small; k < count; k++) wanted |= !strcmp(arguments[k], rows[i].name);
        if (wanted) rows[i].run(&b);
    }
    moedi_engine_close(&b.e);
    moed_context_destroy(c);
    return 0;
}
