/* bench_gemm.c - speed of the matrix products of every kernel set that runs here, beside what its vector units can do at most. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "core/context.h"
#include "moedisco.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { CHAINS = 12, ROUNDS = 1000000 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Multiply-adds in independent chains; one number back, so that none is left out. */
#define DEFINE_PEAK(vector, set, multiply_add, first)                 \
    {                                                                       \
        vector a[CHAINS];                                                   \
        const vector x = set(0.5f), y = set(0.25f);                         \
        for (int i = 0; i < CHAINS; i++) a[i] = set((float)i);              \
        for (int r = 0; r < ROUNDS; r++) {                                  \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) a[i] = multiply_add(a[i], x, y); \
        }                                                                   \
        float total = 0;                                                    \
        for (int i = 0; i < CHAINS; i++) total += first(a[i]);              \
        return total;                                                       \
    }
#if defined(__x86_64__)
#define SSE_MULTIPLY_ADD(a, x, y) _mm_add_ps(_mm_mul_ps(a, x), y)
static __attribute__((target("avx512f"))) float peak_v4(void)
DEFINE_PEAK(__m512, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_cvtss_f32)
static __attribute__((target("avx2,fma"))) float peak_v3(void)
DEFINE_PEAK(__m256, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_cvtss_f32)
static float peak_v2(void)
DEFINE_PEAK(__m128, _mm_set1_ps, SSE_MULTIPLY_ADD, _mm_cvtss_f32)
#elif defined(__aarch64__)
#define NEON_MULTIPLY_ADD(a, x, y) vfmaq_f32(y, a, x)
#define NEON_FIRST(a) vgetq_lane_f32(a, 0)
static float peak_neon(void)
DEFINE_PEAK(float32x4_t, vdupq_n_f32, NEON_MULTIPLY_ADD, NEON_FIRST)
#endif

typedef struct kernel_set {
    const char *name;
    int lanes;
    float (*peak)(void);
} kernel_set;
static const kernel_set sets[] = {
#if defined(__x86_64__)
    {"v4", 16, peak_v4}, {"v3", 8, peak_v3}, {"v2", 4, peak_v2},
#elif defined(__aarch64__)
    {"neon", 4, peak_neon},
#endif
    {NULL, 0, NULL}};

typedef struct shape {
    int64_t m, n, k;
    int32_t transpose_a, transpose_b, accumulate;
} shape;
static const shape shapes[] = {
    {4096, 384, 1024, 0, 1, 0}, {4096, 2048, 384, 0, 1, 0}, {4096, 8192, 384, 0, 1, 0}, {4096, 384, 8192, 0, 0, 0},
    {4096, 384, 2048, 0, 0, 0}, {384, 1024, 4096, 1, 0, 1}, {8192, 384, 4096, 1, 0, 1}, {64, 64, 64, 0, 1, 0},
    {96, 512, 384, 0, 1, 0},
};

/* The best of at least three runs and a fifth of a second, in 10^9 operations per second. */
static double measure(const moedi_engine *e, const shape *s, float *a, float *b, float *c)
{
    const moed_op_gemm op = {.c = c, .a = a, .b = b, .m = s->m, .n = s->n, .k = s->k, .lda = s->transpose_a ? s->m : s->k,
                             .ldb = s->transpose_b ? s->k : s->n, .ldc = s->n, .transpose_a = s->transpose_a,
                             .transpose_b = s->transpose_b, .accumulate = s->accumulate};
    const double work = 2.0 * (double)s->m * (double)s->n * (double)s->k, begin = now();
    const int calls = work < 1e8 ? 20 : 1;
    double best = 0;
    for (int r = 0; r < 3 || now() - begin < 0.2; r++) {
        const double t = now();
        for (int i = 0; i < calls; i++)
            if (e->table->gemm(e->self, &op) != MOED_OK) return 0;
        const double rate = work * calls / (now() - t) * 1e-9;
        if (rate > best) best = rate;
    }
    return best;
}
static double measure_peak(const kernel_set *set)
{
    volatile float sink = 0;
    double best = 0;
    for (int r = 0; r < 10; r++) {
        const double t = now();
        sink += set->peak();
        const double rate = 2.0 * CHAINS * ROUNDS * set->lanes / (now() - t) * 1e-9;
        if (rate > best) best = rate;
    }
    return best;
}

static void bench_set(const kernel_set *set, int32_t threads, float *a, float *b, float *c)
{
    moed_context *context = NULL;
    moed_context_options options;
    moedi_engine engine;
    if (moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &options, sizeof options) != MOED_OK) return;
    options.kernels = set->name;
    options.threads = threads;
    if (moed_context_create(&context, &options) != MOED_OK || moedi_engine_open(&engine, context) != MOED_OK) {
        printf("%s: %s\n", set->name, moed_last_error());
        moed_context_destroy(context);
        return;
    }
    const double peak = measure_peak(set);
    printf("%s, %d thread%s; multiply-adds of one core at most %.1f GFLOP/s\n", set->name, threads, threads > 1 ? "s" : "", peak);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = shapes + i;
        const double rate = measure(&engine, s, a, b, c);
        printf("  %5lld x %5lld x %5lld %c%c  %7.1f GFLOP/s  %5.1f%%\n", (long long)s->m, (long long)s->n, (long long)s->k,
               s->transpose_a ? 'T' : 'N', s->transpose_b ? 'T' : 'N', rate, 100 * rate / (peak * threads));
    }
    moedi_engine_close(&engine);
    moed_context_destroy(context);
}

int main(int count, char **arguments)
{
    const int32_t threads = count > 1 ? atoi(arguments[1]) : 1;
    const size_t most = (size_t)4096 * 8192;
    float *a = malloc(most * sizeof *a), *b = malloc(most * sizeof *b), *c = calloc(most, sizeof *c);
    for (size_t i = 0; a && b && c && i < most; i++) a[i] = (float)(i % 7) - 3, b[i] = (float)(i % 5) - 2;
    for (const kernel_set *set = sets; a && b && c && set->name; set++) bench_set(set, threads > 0 ? threads : 1, a, b, c);
    free(a), free(b), free(c);
    return 0;
}
