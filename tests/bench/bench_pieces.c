/* bench_pieces.c [DEVICE [REPEATS]] - integrate, split and draw by pieces in a device's memory (cuda:0), of a bf16 tensor of
 * (151,936, 2,048) and a stack of 64 experts. floor: the bytes read and written at the rate at which the device copies. */
#include "bench.h"
#include "core/context.h"
#include "moedisco.h"

enum { PARTS = 4, EXPERTS = 64 };
static const int64_t ROWS = 151936, WIDTH = 2048;

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != MOED_OK) return fprintf(stderr, "bench_pieces: %s\n", moed_last_error()), 1; \
    } while (0)

/* The best of `repeats` calls, after one that warms up. */
static int time_apply(moed_context *c, const moed_piece *pieces, size_t count, const moed_tensor *const *sources,
                      moed_tensor *dst, int repeats, double *best)
{
    *best = 1e9;
    for (int i = 0; i <= repeats; i++) {
        const double t = bench_now();
        CHECK(moed_piece_apply(c, pieces, count, sources, dst, NULL));
        if (i && bench_now() - t < *best) *best = bench_now() - t;
    }
    return 0;
}

static void report(const char *what, double seconds, double bytes, double copy_rate)
{
    char note[96];
    snprintf(note, sizeof note, "%.0f GB/s, %.0f%% of a copy's %.0f", bytes / seconds * 1e-9, 100 * bytes / seconds / copy_rate,
             copy_rate * 1e-9);
    bench_row(what, seconds, bytes / copy_rate, 0, note);
}

static int bench(moed_context *c, moedi_engine *e, int repeats)
{
    const double bytes = 2.0 * (double)(ROWS * WIDTH);
    moed_tensor t[PARTS + 2]; /* the base, submodels, what is made */
    const moed_tensor *sources[PARTS + 1];
    moed_piece pieces[EXPERTS] = {{.op = MOED_PIECE_DRAW, .count = ROWS, .scale = 0.02}};
    double best, copy = 1e9;
    for (int k = 0; k < PARTS + 2; k++) {
        t[k] = (moed_tensor){.dtype = MOED_DTYPE_BF16, .rank = 2, .shape = {ROWS, WIDTH}, .strides = {WIDTH, 1},
                             .device = e->info.host_memory ? MOED_MEMORY_HOST : MOED_MEMORY_DEVICE};
        CHECK(e->table->alloc(e->self, (size_t)bytes, &t[k].data));
        if (k <= PARTS) sources[k] = &t[k];
        pieces[0].seed = (uint64_t)k;
        if (time_apply(c, pieces, 1, NULL, &t[k], k ? 0 : repeats, &best)) return 1;
        if (k == 0) printf("draw: %.1f billion numbers/s\n", bytes / 2 / best * 1e-9);
    }
    for (int i = 0; i <= repeats; i++) {
        const double start = bench_now();
        CHECK(e->table->copy(e->self, t[PARTS + 1].data, t[0].data, (size_t)bytes));
        CHECK(e->table->synchronize(e->self));
        if (i && bench_now() - start < copy) copy = bench_now() - start;
    }
    const double rate = 2 * bytes / copy;

    pieces[0] = (moed_piece){.op = MOED_PIECE_COPY, .count = ROWS, .scale = 1.0};
    for (int k = 1; k <= PARTS; k++)
        pieces[k] = (moed_piece){.op = MOED_PIECE_DELTA, .source = k, .count = ROWS, .scale = 1.0 / PARTS};
    if (time_apply(c, pieces, 1 + PARTS, sources, &t[PARTS + 1], repeats, &best)) return 1;
    report("integrate 4 by pieces, (151936, 2048) bf16", best, (PARTS + 2) * bytes, rate);

    for (int k = 0; k < PARTS + 2; k++) { /* the same memory as a stack: experts of 2374 x 2048 numbers */
        t[k].rank = 3;
        t[k].shape[0] = EXPERTS, t[k].shape[1] = ROWS / EXPERTS, t[k].shape[2] = WIDTH;
        t[k].strides[0] = ROWS / EXPERTS * WIDTH, t[k].strides[1] = WIDTH, t[k].strides[2] = 1;
    }
    for (int x = 0; x < EXPERTS; x++)
        pieces[x] = (moed_piece){
            .op = MOED_PIECE_COPY, .source = x % PARTS, .from = EXPERTS - 1 - x, .at = x, .count = 1, .scale = 1.0};
    if (time_apply(c, pieces, EXPERTS, sources, &t[PARTS + 1], repeats, &best)) return 1;
    report("gather 64 experts by pieces, of as many", best, 2 * bytes, rate);
    for (int k = 0; k < PARTS + 2; k++) e->table->free(e->self, t[k].data);
    return 0;
}

int main(int count, char **arguments)
{
    moed_context *c = NULL;
    moed_context_options o;
    moedi_engine e;
    CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.device = count > 1 ? arguments[1] : "cuda:0";
    CHECK(moed_context_create(&c, &o));
    CHECK(moedi_engine_open(&e, c));
    const int failed = bench(c, &e, count > 2 ? atoi(arguments[2]) : 10);
    moedi_engine_close(&e);
    moed_context_destroy(c);
    return failed;
}
