/* bench_operations.c [THREADS [SECONDS]] - each operation of the table at the shape of bench_step, beside its floor: the larger
 * of its bytes at the bandwidth of a sum of two arrays and its arithmetic at the rate of the matrix product, both measured
 * here. */
#include "bench.h"
#include "core/context.h"
#include "moedisco.h"

enum { ROWS = 16, LENGTH = 256, N = ROWS * LENGTH, D = 384, HEADS = 6, HEAD = D / HEADS, WIDTH = 1024, EXPERTS = 4, TOP = 2,
      V = 8192,
       PLACES = N * TOP, CLUSTERS = 64, ARRAYS = 8 };

/* The best time of a call in `seconds` of trying, at least three. */
#define TIME(seconds, call, best)                                                     \
    do {                                                                              \
        (best) = 1e30;                                                                \
        const double begin_ = bench_now();                                            \
        for (int i_ = 0; i_ < 3 || bench_now() - begin_ < (seconds); i_++) {          \
            const double t_ = bench_now();                                            \
            if ((call) != MOED_OK) return fprintf(stderr, "%s\n", moed_last_error()), 1; \
            if (bench_now() - t_ < (best)) (best) = bench_now() - t_;                 \
        }                                                                             \
    } while (0)

/* bytes: floats read and written once; flops: multiplications and additions */
#define OPERATION(slot, type, floats, flops, ...)                                                       \
    do {                                                                                                \
        const type a_ = {__VA_ARGS__};                                                                  \
        double best_;                                                                                   \
        char note_[64];                                                                                 \
        const double by_bytes_ = 4.0 * (double)(floats) / bandwidth, by_flops_ = (double)(flops) / rate; \
        TIME(seconds, e.table->slot(e.self, &a_), best_);                                               \
        if (by_bytes_ > by_flops_) snprintf(note_, sizeof note_, "%.1f GB/s", 4e-9 * (double)(floats) / best_); \
        else snprintf(note_, sizeof note_, "%.1f GFLOP/s", 1e-9 * (double)(flops) / best_);             \
        bench_row(#slot, best_, by_bytes_ > by_flops_ ? by_bytes_ : by_flops_, 0, note_);               \
    } while (0)

int main(int count, char **arguments)
{
    static const size_t most = (size_t)N * 2 * WIDTH * TOP; /* floats of the largest array */
    const double seconds = count > 2 ? atof(arguments[2]) : 0.15;
    moed_context *c = NULL;
    moed_context_options o;
    moedi_engine e;
    float *f[ARRAYS];
    if (moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o) != MOED_OK) return 1;
    o.threads = count > 1 ? atoi(arguments[1]) : 0;
    if (moed_context_create(&c, &o) != MOED_OK || moedi_engine_open(&e, c) != MOED_OK)
        return fprintf(stderr, "%s\n", moed_last_error()), 1;
    for (int i = 0; i < ARRAYS; i++) {
        if (!(f[i] = malloc(most * sizeof(float)))) return 1;
        for (size_t j = 0; j < most; j++) f[i][j] = (float)((j * 2654435761u >> 8) % 2001) * 1e-5f - 0.01f;
    }
    int32_t *tokens = malloc(N * sizeof *tokens), *positions = malloc(N * sizeof *positions), *start = malloc(N * sizeof *start);
    int32_t *ids = malloc(PLACES * sizeof *ids), *slot = malloc(PLACES * sizeof *slot), *source = malloc(PLACES * sizeof *source);
    int32_t *labels = malloc(most / 64 * sizeof *labels);
    int64_t offsets[EXPERTS + 1], documents[N / 64 + 1], counts[CLUSTERS];
    double *sums = malloc((size_t)CLUSTERS * D * sizeof *sums), totals[CLUSTERS];
    if (!tokens || !positions || !start || !ids || !slot || !source || !labels || !sums) return 1;
    for (int i = 0; i < N; i++)
        tokens[i] = (int32_t)((uint32_t)i * 2654435761u % V), positions[i] = i % LENGTH, start[i] = i / LENGTH * LENGTH;
    for (int i = 0; i <= N / 64; i++) documents[i] = i * 64;

    double best, bandwidth, rate;
    const moed_op_add sum = {.out = f[0], .a = f[1], .b = f[2], .count = (int64_t)most};
    TIME(seconds, e.table->add(e.self, &sum), best);
    bandwidth = 12.0 * (double)most / best;
    const moed_op_gemm product = {
        .c = f[0], .a = f[1], .b = f[2], .m = N, .n = 2 * WIDTH, .k = D, .lda = D, .ldb = D, .ldc = 2 * WIDTH, .transpose_b = 1};
    TIME(seconds, e.table->gemm(e.self, &product), best);
    rate = 2.0 * N * 2 * WIDTH * D / best;
    fprintf(stderr,
            "operations: %d tokens, d %d, %d experts of %d, top-%d; floors from %.1f GB/s and %.1f GFLOP/s measured here\n", N, D,
            EXPERTS, WIDTH, TOP, bandwidth * 1e-9, rate * 1e-9);

    OPERATION(embedding, moed_op_embedding, 2.0 * N * D, 0, .out = f[0], .table = f[1], .tokens = tokens, .count = N, .width = D,
              .vocabulary = V);
    OPERATION(embedding_backward, moed_op_embedding, 3.0 * N * D, 0, .d_table = f[0], .d_out = f[1], .tokens = tokens, .count = N,
              .width = D, .vocabulary = V);
    OPERATION(rmsnorm, moed_op_rmsnorm, 2.0 * N * D, 0, .out = f[0], .rstd = f[7], .x = f[1], .weight = f[2], .rows = N,
              .width = D, .epsilon = 1e-6);
    OPERATION(rmsnorm_backward, moed_op_rmsnorm, 4.0 * N * D, 0, .rstd = f[7], .x = f[1], .weight = f[2], .d_x = f[3],
              .d_weight = f[4], .d_out = f[5], .rows = N, .width = D, .epsilon = 1e-6);
    OPERATION(gemm, moed_op_gemm, N * D + 3.0 * D * D + 3.0 * N * D, 2.0 * N * 3 * D * D, .c = f[0], .a = f[1], .b = f[2], .m = N,
              .n = 3 * D, .k = D, .lda = D, .ldb = D, .ldc = 3 * D, .transpose_b = 1);
    OPERATION(bias_backward, moed_op_bias_backward, 3.0 * N * D, 0, .d_bias = f[0], .d_out = f[1], .m = N, .n = 3 * D,
              .ld = 3 * D);
    OPERATION(rope, moed_op_rope, 2.0 * N * D, 0, .x = f[0], .cosine = f[1], .sine = f[2], .positions = positions, .count = N,
              .heads = HEADS, .head_dim = HEAD, .stride = 3 * D);
    memcpy(f[0], f[1], most * sizeof(float));
    OPERATION(attention, moed_op_attention, 4.0 * N * D, 2.0 * N * (LENGTH + 1) * D, .out = f[3], .lse = f[7], .q = f[0],
              .k = f[0] + D, .v = f[0] + 2 * D, .start = start, .rows = ROWS, .length = LENGTH, .heads = HEADS, .kv_heads = HEADS,
              .head_dim = HEAD, .stride = 3 * D, .scale = 0.125);
    OPERATION(attention_backward, moed_op_attention, 8.0 * N * D, 5.0 * N * (LENGTH + 1) * D, .out = f[3], .lse = f[7], .q = f[0],
              .k = f[0] + D, .v = f[0] + 2 * D, .d_q = f[4], .d_k = f[4] + D, .d_v = f[4] + 2 * D, .d_out = f[5], .start = start,
              .rows = ROWS, .length = LENGTH, .heads = HEADS, .kv_heads = HEADS, .head_dim = HEAD, .stride = 3 * D,
              .scale = 0.125);
    OPERATION(router, moed_op_router, 2.0 * N * EXPERTS, 0, .probabilities = f[3], .weights = f[4], .lse = f[5], .ids = ids,
              .logits = f[1], .losses = f[6], .rows = N, .experts = EXPERTS, .top_k = TOP, .normalise = 1, .loss_scale = 1);
    OPERATION(router_backward, moed_op_router, 3.0 * N * EXPERTS, 0, .probabilities = f[3], .weights = f[4], .lse = f[5],
              .ids = ids, .logits = f[1], .d_logits = f[6], .d_weights = f[2], .rows = N, .experts = EXPERTS, .top_k = TOP,
              .normalise = 1, .load_balance = 0.01, .loss_scale = 1);
    OPERATION(dispatch, moed_op_dispatch, 3.0 * PLACES, 0, .ids = ids, .offsets = offsets, .slot = slot, .source = source,
              .rows = N, .experts = EXPERTS, .top_k = TOP);
    OPERATION(gather, moed_op_gather, 1.5 * PLACES * D, 0, .out = f[0], .x = f[1], .source = source, .slot = slot, .rows = N,
              .top_k = TOP, .width = D);
    OPERATION(gather_backward, moed_op_gather, 2.0 * PLACES * D, 0, .d_x = f[0], .d_out = f[1], .source = source, .slot = slot,
              .rows = N, .top_k = TOP, .width = D);
    OPERATION(grouped_gemm, moed_op_grouped_gemm, PLACES * D + 2.0 * PLACES * WIDTH, 4.0 * PLACES * WIDTH * D, .c = f[0],
              .a = f[1], .b = f[2], .offsets = offsets, .groups = EXPERTS, .m = PLACES, .n = 2 * WIDTH, .k = D, .lda = D,
              .ldb = D, .ldc = 2 * WIDTH, .stride_b = 2 * WIDTH * D, .transpose_b = 1);
    OPERATION(swiglu, moed_op_swiglu, 3.0 * PLACES * WIDTH, 0, .out = f[0], .gate_up = f[1], .rows = PLACES, .width = WIDTH);
    OPERATION(swiglu_backward, moed_op_swiglu, 5.0 * PLACES * WIDTH, 0, .gate_up = f[1], .d_gate_up = f[0], .d_out = f[2],
              .rows = PLACES, .width = WIDTH);
    OPERATION(combine, moed_op_combine, 2.0 * N * D + 1.0 * PLACES * D, 0, .out = f[0], .y = f[1], .weights = f[2], .slot = slot,
              .rows = N, .top_k = TOP, .width = D);
    OPERATION(combine_backward, moed_op_combine, 1.0 * N * D + 2.0 * PLACES * D, 0, .y = f[1], .weights = f[2], .d_y = f[3],
              .d_weights = f[4], .d_out = f[5], .slot = slot, .rows = N, .top_k = TOP, .width = D);
    OPERATION(sigmoid_gate, moed_op_sigmoid_gate, 3.0 * N * D, 0, .out = f[0], .x = f[1], .gate = f[2], .rows = N, .width = D);
    OPERATION(sigmoid_gate_backward, moed_op_sigmoid_gate, 3.0 * N * D, 0, .x = f[1], .gate = f[2], .d_x = f[3], .d_gate = f[4],
              .d_out = f[5], .rows = N, .width = D);
    OPERATION(cross_entropy, moed_op_cross_entropy, 2.0 * N * D + 3.0 * V * D, 6.0 * N * V * D, .losses = f[7], .h = f[1],
              .head = f[2], .labels = tokens, .d_h = f[3], .d_head = f[4], .rows = N, .width = D, .vocabulary = V,
              .scale = 1.0 / N);
    const moed_op_slice slice = {f[0], f[1], f[2], f[3], (int64_t)most, 0.01, NULL, NULL, NULL, 0};
    moed_step_scalars scalars = {.learning_rate = 1e-6, .beta1_correction = 0.1, .beta2_correction = 0.05, .gradient_scale = 1};
    memset(f[3], 0, most * sizeof(float));
    OPERATION(gradient_norm, moed_op_update, 1.0 * (double)most, 0, .slices = &slice, .count = 1, .scalars = &scalars, .clip = 1);
    OPERATION(adamw, moed_op_update, 7.0 * (double)most, 0, .slices = &slice, .count = 1, .scalars = &scalars, .beta1 = 0.9,
              .beta2 = 0.95, .epsilon = 1e-8, .clip = 1);
    OPERATION(sum, moed_op_sum, 1.0 * (double)most, 0, .out = f[0], .x = f[1], .count = (int64_t)most, .scale = 1);
    OPERATION(add, moed_op_add, 3.0 * (double)most, 0, .out = f[0], .a = f[1], .b = f[2], .count = (int64_t)most);
    OPERATION(embed_mean, moed_op_embed_mean, 1.0 * N * D, 0, .out = f[0], .table = f[1], .tokens = tokens, .offsets = documents,
              .documents = N / 64, .width = D);
    const int64_t points = (int64_t)most / D;
    OPERATION(kmeans_assign, moed_op_kmeans_assign, (double)points * D, 2.0 * (double)points * D * CLUSTERS, .labels = labels,
              .x = f[1], .centroids = f[2], .count = points, .width = D, .clusters = CLUSTERS);
    OPERATION(kmeans_accumulate, moed_op_kmeans_accumulate, (double)points * D, 0, .sums = sums, .totals = totals,
              .counts = counts, .x = f[1], .labels = labels, .count = points, .width = D, .clusters = CLUSTERS);

    for (int i = 0; i < ARRAYS; i++) free(f[i]);
    free(tokens), free(positions), free(start), free(ids), free(slot), free(source), free(labels), free(sums);
    moedi_engine_close(&e);
    moed_context_destroy(c);
    return 0;
}
