/* test_conformance.c - every operation of every kernel set of this machine, or of a plug-in (--plugin PATH.so [--kernels NAME]
 * [--device INDEX]), against the reference in double: values within a stated tolerance, nothing written outside, inputs left
 * alone, the same bits for 1, 2 and 3 threads. */
#include "conformance.h"

#include <dlfcn.h>

#include "util/dtype.h"

/* ---- linear ---- */

static void gemm_case(int64_t m, int64_t n, int64_t k, int64_t gap, int transpose_a, int transpose_b, int accumulate,
                      int with_bias, int wide_c)
{
    const int64_t lda = (transpose_a ? m : k) + gap, ldb = (transpose_b ? k : n) + gap, ldc = n + gap;
    const int a = real_in("a", (transpose_a ? k : m) * lda), b = real_in("b", (transpose_b ? n : k) * ldb);
    const int c = buffer_new("c", wide_c ? WIDE : REAL, accumulate ? SUM : OUT, m * ldc),
              bias = with_bias ? real_in("bias", n) : NONE;
    RUN(gemm, gemm, 5e-6, .c = AT(c), .a = AT(a), .b = AT(b), .bias = AT(bias), .m = m, .n = n, .k = k, .lda = lda, .ldb = ldb,
        .ldc = ldc, .transpose_a = transpose_a, .transpose_b = transpose_b, .accumulate = accumulate, .wide_c = wide_c);
    reset();
}

/* c from an addend, or from itself by its other name; without `accumulate` neither counts. */
static void addend_case(int64_t m, int64_t n, int64_t k, int64_t gap, int accumulate, int itself, int wide_c)
{
    const int64_t lda = k + gap, ldb = k + gap, ldc = n + gap;
    const kind number = wide_c ? WIDE : REAL;
    const int a = real_in("a", m * lda), b = real_in("b", n * ldb), bias = wide_c ? NONE : real_in("bias", n);
    const int c = buffer_new("c", number, itself ? SUM : OUT, m * ldc),
              addend = itself ? c : buffer_new("addend", number, IN, m * ldc);
    RUN(gemm, gemm, 5e-6, .c = AT(c), .a = AT(a), .b = AT(b), .bias = AT(bias), .m = m, .n = n, .k = k, .lda = lda, .ldb = ldb,
        .ldc = ldc, .transpose_b = 1, .accumulate = accumulate, .wide_c = wide_c, .addend = AT(addend));
    reset();
}

static void test_gemm_from_an_addend(void **state)
{
    static const int64_t shapes[][4] = {{1, 1, 1, 0}, {7, 5, 0, 2}, {31, 65, 40, 5}, {64, 128, 96, 0}, {300, 70, 520, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int mode = 0; mode < 8; mode += MODE_STEP)
            addend_case(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], mode & 1, mode >> 1 & 1, mode >> 2);
}

static void test_gemm(void **state)
{
    static const int64_t shapes[][4] = {{1, 1, 1, 0},   {1, 17, 33, 0}, {7, 1, 5, 3},    {5, 16, 1, 0},
                                        {16, 16, 16, 0}, {31, 65, 40, 5}, {66, 130, 97, 0}, {13, 48, 300, 1}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int mode = 0; mode < 16; mode += MODE_STEP)
            gemm_case(shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], mode & 1, mode >> 1 & 1, mode >> 2 & 1, mode >> 3,
                      0);
    for (int mode = 0; mode < 8; mode += MODE_STEP) gemm_case(37, 60, 48, 0, mode & 1, mode >> 1 & 1, mode >> 2, 0, 1);
    gemm_case(150, 530, 600, 0, 0, 1, 0, 1, 0);
    gemm_case(300, 70, 520, 0, 1, 0, 1, 0, 0);
    gemm_case(260, 300, 150, 0, 0, 0, 0, 0, 0);
    gemm_case(4300, 21, 9, 0, 0, 1, 1, 0, 0); /* past any reasonable blocking, one way after the other */
    gemm_case(19, 4200, 7, 0, 1, 0, 0, 1, 0);
    gemm_case(11, 13, 5000, 0, 0, 1, 0, 0, 0);
    gemm_case(1360, 1030, 5, 0, 0, 1, 0, 0, 0);
}

static void grouped_case(int64_t groups, const int64_t *offsets, int64_t x, int64_t y, int64_t gap, int reduce, int transpose_b,
                         int accumulate)
{
    const int64_t total = offsets[groups], lda = x + gap, ldc = y + gap;
    const int64_t b_rows = reduce ? total : transpose_b ? y : x, ldb = (!reduce && transpose_b ? x : y) + gap;
    const int64_t stride_b = reduce ? 0 : b_rows * ldb + gap, stride_c = reduce ? x * ldc + gap : 0;
    const int64_t c_count = reduce ? groups * stride_c : total * ldc;
    const int a = real_in("a", total * lda), b = real_in("b", reduce ? total * ldb : groups * stride_b);
    const int c = accumulate ? real_sum("c", c_count) : real_out("c", c_count), o = offsets_of(groups + 1, offsets);
    RUN(grouped_gemm, grouped_gemm, 5e-6, .c = AT(c), .a = AT(a), .b = AT(b), .offsets = AT(o), .groups = groups,
        .m = reduce ? x : total, .n = y, .k = reduce ? total : x, .lda = lda, .ldb = ldb, .ldc = ldc, .stride_b = stride_b,
        .stride_c = stride_c, .reduce = reduce, .transpose_b = transpose_b, .accumulate = accumulate);
    reset();
}

static void test_grouped_gemm(void **state)
{
    (void)state;
    for (int mode = 0; mode < 8; mode++) {
        const int reduce = mode & 1, transpose_b = mode >> 1 & 1, accumulate = mode >> 2;
        if (reduce && transpose_b) continue;
        grouped_case(1, (const int64_t[]){0, 1}, 1, 1, 0, reduce, transpose_b, accumulate);
        grouped_case(1, (const int64_t[]){0, 9}, 17, 5, 2, reduce, transpose_b, accumulate);
        grouped_case(4, (const int64_t[]){0, 0, 5, 5, 12}, 24, 19, 0, reduce, transpose_b, accumulate); /* empty: first, middle */
        grouped_case(4, (const int64_t[]){0, 1, 34, 40, 40}, 33, 16, 3, reduce, transpose_b, accumulate); /* empty: last */
        grouped_case(6, (const int64_t[]){0, 300, 310, 311, 420, 420, 600}, 130, 100, 0, reduce, transpose_b, accumulate);
        /* multiples of 8 throughout: what a tensor engine takes */
        grouped_case(6, (const int64_t[]){0, 300, 310, 311, 420, 420, 600}, 72, 136, 8, reduce, transpose_b, accumulate);
    }
}

static void test_bias_backward(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {5, 17, 17}, {64, 33, 40}, {700, 96, 96}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t m = shapes[i][0], n = shapes[i][1], ld = shapes[i][2];
        const int d_bias = real_sum("d_bias", n), d_out = real_in("d_out", m * ld);
        RUN(bias_backward, bias_backward, 5e-6, .d_bias = AT(d_bias), .d_out = AT(d_out), .m = m, .n = n, .ld = ld);
        reset();
    }
}

static void test_sum(void **state)
{
    static const int64_t counts[] = {0, 1, 15, 1000, 70001};
    (void)state;
    for (int i = 0; i < 10; i++) {
        const int accumulate = i & 1;
        const int64_t count = counts[i / 2];
        const int x = wide_in("x", count), out = accumulate ? wide_sum("out", 1) : wide_out("out", 1);
        buffers[x].values[0] = 3; /* keeps the sum away from 0 */
        RUN(sum, sum, 2e-6, .out = AT(out), .x = AT(x), .count = count, .scale = 0.75, .accumulate = accumulate);
        reset();
    }
}

static void test_add(void **state)
{
    static const int64_t counts[] = {1, 15, 1000, 70001};
    (void)state;
    for (int i = 0; i < 4; i++) {
        const int64_t count = counts[i];
        int a = real_in("a", count), b = real_in("b", count), out = real_out("out", count);
        RUN(add, add, 1e-7, .out = AT(out), .a = AT(a), .b = AT(b), .count = count);
        reset();
        out = real_sum("out, a", count), b = real_in("b", count);
        RUN(add, add, 1e-7, .out = AT(out), .a = AT(out), .b = AT(b), .count = count);
        reset();
        out = real_sum("out, b", count), a = real_in("a", count);
        RUN(add, add, 1e-7, .out = AT(out), .a = AT(a), .b = AT(out), .count = count);
        reset();
    }
}

/* ---- embedding, norm, positions ---- */

static void test_embedding(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 24, 7}, {40, 17, 5}, {600, 64, 300}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t count = shapes[i][0], width = shapes[i][1], vocabulary = shapes[i][2];
        const int tokens = ints("tokens", count, vocabulary), table = real_in("table", vocabulary * width);
        const int out = real_out("out", count * width);
        RUN(embedding, embedding, 0, .out = AT(out), .table = AT(table), .tokens = AT(tokens), .count = count, .width = width,
            .vocabulary = vocabulary);
        settle(out);
        const int d_table = real_sum("d_table", vocabulary * width);
        RUN(embedding_backward, embedding, 2e-6, .d_table = AT(d_table), .d_out = AT(out), .tokens = AT(tokens), .count = count,
            .width = width, .vocabulary = vocabulary);
        reset();
    }
}

static void test_embed_mean(void **state)
{
    static const int64_t offsets[] = {0, 3, 3, 4, 40, 300};
    const int64_t widths[] = {1, 17, 64};
    (void)state;
    for (int i = 0; i < 3; i++) {
        const int64_t width = widths[i];
        const int out = buffer_new("out", F32, OUT, 5 * width), table = real_in("table", 50 * width);
        const int tokens = ints("tokens", 300, 50), o = offsets_of(6, offsets);
        RUN(embed_mean, embed_mean, 1e-6, .out = AT(out), .table = AT(table), .tokens = AT(tokens), .offsets = AT(o),
            .documents = 5, .width = width);
        reset();
    }
}

static void test_rmsnorm(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {1, 40}, {9, 17}, {64, 128}, {301, 50}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t rows = shapes[i][0], width = shapes[i][1];
        const int x = real_in("x", rows * width), weight = real_in("weight", width);
        const int out = real_out("out", rows * width), rstd = wide_out("rstd", rows);
        RUN(rmsnorm, rmsnorm, 2e-6, .out = AT(out), .rstd = AT(rstd), .x = AT(x), .weight = AT(weight), .rows = rows,
            .width = width, .epsilon = 1e-5);
        settle(rstd);
        settle(out);
        const int d_x = real_sum("d_x", rows * width), d_weight = real_sum("d_weight", width),
                  d_out = real_in("d_out", rows * width);
        for (int with_weight = 0; with_weight < 2; with_weight++)
            RUN(rmsnorm_backward, rmsnorm, 5e-6, .rstd = AT(rstd), .x = AT(x), .weight = AT(weight), .d_x = AT(d_x),
                .d_weight = AT(with_weight ? d_weight : NONE), .d_out = AT(d_out), .rows = rows, .width = width, .epsilon = 1e-5);
        reset();
    }
}

/* Heads of queries beside those of keys: rows are parts of longer ones, and the gradient is made in place. */
static void test_rmsnorm_of_parts(void **state)
{
    static const int64_t shapes[][5] = {
        {1, 1, 2, 0, 0}, {5, 3, 6, 4, 1}, {40, 4, 32, 64, 32}, {301, 2, 128, 8, 256}, {2, 7, 160, 0, 8}};
    (void)state; /* tokens, parts, width, what lies between rows in x and elsewhere */
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t *h = shapes[i], parts = h[1], width = h[2], rows = h[0] * parts, stride = parts * width + h[3];
        const int64_t out_stride = parts * width + h[4];
        const int x = real_in("x", h[0] * stride), weight = real_in("weight", width), out = real_sum("out", h[0] * out_stride);
        const int rstd = wide_out("rstd", rows);
        RUN(rmsnorm, rmsnorm, 2e-6, .out = AT(out), .rstd = AT(rstd), .x = AT(x), .weight = AT(weight), .rows = rows,
            .width = width, .epsilon = 1e-5, .parts = parts, .stride = stride, .out_stride = out_stride);
        settle(rstd);
        const int d_x = real_sum("d_x", h[0] * out_stride), d_weight = real_sum("d_weight", width);
        for (int with_weight = 0; with_weight < 2; with_weight++)
            RUN(rmsnorm_backward, rmsnorm, 5e-6, .rstd = AT(rstd), .x = AT(x), .weight = AT(weight), .d_x = AT(d_x),
                .d_weight = AT(with_weight ? d_weight : NONE), .d_out = AT(d_x), .rows = rows, .width = width, .epsilon = 1e-5,
                .parts = parts, .stride = stride, .out_stride = out_stride);
        reset();
    }
}

static void test_rope(void **state)
{
    /* count, heads, head_dim, gap */
    static const int64_t shapes[][4] = {{1, 1, 2, 0}, {5, 3, 6, 4}, {40, 4, 32, 0}, {260, 2, 20, 7}};
    (void)state;
    for (int i = 0; i < 8; i++) {
        const int64_t *h = shapes[i / 2], count = h[0], heads = h[1], dim = h[2], stride = heads * dim + h[3], known = 50;
        const int x = real_sum("x", count * stride), positions = ints("positions", count, known);
        const int cosine = wide_in("cosine", known * dim / 2), sine = wide_in("sine", known * dim / 2);
        RUN(rope, rope, 1e-6, .x = AT(x), .cosine = AT(cosine), .sine = AT(sine), .positions = AT(positions), .count = count,
            .heads = heads, .head_dim = dim, .stride = stride, .inverse = i & 1);
        reset();
    }
}

/* ---- attention ---- */

/* q, k and v side by side in one block, as a fused projection leaves them; documents of `document` tokens, 0 = whole rows. */
static void attention_case(int64_t rows, int64_t length, int64_t heads, int64_t kv_heads, int64_t dim, int64_t gap,
                           int64_t document)
{
    const int64_t tokens = rows * length, k_at = heads * dim, v_at = k_at + kv_heads * dim, stride = v_at + kv_heads * dim + gap;
    const double scale = 1 / sqrt((double)dim);
    const int qkv = real_in("qkv", tokens * stride), start = ints("start", tokens, 1);
    const int out = real_out("out", tokens * k_at), lse = wide_out("lse", heads * tokens);
    for (int64_t i = 0; i < tokens * stride; i++) buffers[qkv].values[i] *= 3;
    for (int64_t i = 0; i < tokens; i++)
        buffers[start].values[i] = (double)(i / length * length + (document ? i % length / document * document : 0));
    RUN(attention, attention, 5e-6, .out = AT(out), .lse = AT(lse), .q = AT(qkv), .k = AT_OFFSET(qkv, k_at),
        .v = AT_OFFSET(qkv, v_at), .start = AT(start), .rows = rows, .length = length, .heads = heads, .kv_heads = kv_heads,
        .head_dim = dim, .stride = stride, .scale = scale, .whole = !document);
    settle(out);
    settle(lse);
    const int d_qkv = real_out("d_qkv", tokens * stride), d_out = real_in("d_out", tokens * k_at);
    RUN(attention_backward, attention, 2e-5, .out = AT(out), .lse = AT(lse), .q = AT(qkv), .k = AT_OFFSET(qkv, k_at),
        .v = AT_OFFSET(qkv, v_at), .d_q = AT(d_qkv), .d_k = AT_OFFSET(d_qkv, k_at), .d_v = AT_OFFSET(d_qkv, v_at),
        .d_out = AT(d_out), .start = AT(start), .rows = rows, .length = length, .heads = heads, .kv_heads = kv_heads,
        .head_dim = dim, .stride = stride, .scale = scale, .whole = !document);
    reset();
}

static void test_attention(void **state)
{
    (void)state;
    attention_case(1, 1, 1, 1, 2, 0, 0);
    attention_case(1, 1, 4, 2, 16, 0, 0);
    attention_case(2, 7, 1, 1, 10, 3, 0);
    attention_case(3, 20, 6, 2, 16, 0, 0);
    attention_case(2, 33, 4, 4, 24, 0, 5);
    attention_case(1, 70, 4, 1, 64, 1, 0);
    attention_case(2, 130, 2, 1, 20, 0, 64);
    attention_case(1, 300, 2, 2, 32, 0, 0);
    attention_case(1, 40, 3, 3, 8, 0, 1); /* every token alone */
    attention_case(2, 256, 2, 2, 64, 0, 0);
    attention_case(2, 129, 4, 2, 64, 0, 50);
    attention_case(3, 200, 4, 1, 128, 0, 70);
}

/* ---- feed-forward ---- */

static void test_swiglu(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {1, 40}, {9, 17}, {150, 100}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t rows = shapes[i][0], width = shapes[i][1];
        const int gate_up = real_in("gate_up", rows * 2 * width);
        int out = real_out("out", rows * width);
        for (int64_t e = 0; e < rows * 2 * width; e++) buffers[gate_up].values[e] *= 12;
        buffers[gate_up].values[0] = -200; /* neither exp may overflow */
        buffers[gate_up].values[(rows * 2 - 1) * width - 1] = rows > 1 ? 200 : -150;
        RUN(swiglu, swiglu, 2e-6, .out = AT(out), .gate_up = AT(gate_up), .rows = rows, .width = width);
        settle(out);
        const int d_gate_up = real_out("d_gate_up", rows * 2 * width), d_out = real_in("d_out", rows * width);
        RUN(swiglu_backward, swiglu, 2e-6, .gate_up = AT(gate_up), .d_gate_up = AT(d_gate_up), .d_out = AT(d_out), .rows = rows,
            .width = width);
        reset();
    }
}

/* Rows that were weighted in another order, and outputs where inputs were. */
static void weighted_swiglu_case(int64_t rows, int64_t width, int with_weights, int with_slot, int in_place)
{
    const int gate_up = in_place ? real_sum("gate_up", rows * 2 * width) : real_in("gate_up", rows * 2 * width);
    const int d_gate_up = in_place ? gate_up : real_out("d_gate_up", rows * 2 * width);
    const int d_out = in_place ? real_sum("d_out", rows * width) : real_in("d_out", rows * width);
    const int out = in_place ? d_out : real_out("out", rows * width);
    const int weights = wide_in("weights", rows), d_weights = wide_out("d_weights", rows), slot = ints("slot", rows, 1);
    for (int64_t i = 0; i < rows; i++) buffers[slot].values[i] = (double)(rows - 1 - (i + rows / 3) % rows);
    buffers[weights].values[0] = 0;
    for (int64_t e = 0; e < rows * 2 * width; e++) buffers[gate_up].values[e] *= 3;
    RUN(swiglu_backward, swiglu, 5e-6, .out = AT(out), .gate_up = AT(gate_up), .d_gate_up = AT(d_gate_up), .d_out = AT(d_out),
        .rows = rows, .width = width, .weights = AT(with_weights ? weights : NONE), .d_weights = AT(d_weights),
        .slot = AT(with_slot ? slot : NONE));
    reset();
}

static void test_swiglu_backward_of_weighted_rows(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {9, 17}, {150, 100}, {5, 1408}, {3, 2568}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int mode = 0; mode < 8; mode += MODE_STEP)
            weighted_swiglu_case(shapes[i][0], shapes[i][1], mode & 1, mode >> 1 & 1, mode >> 2);
}

static void test_sigmoid_gate(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {1, 40}, {9, 17}, {300, 64}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int64_t rows = shapes[i][0], width = shapes[i][1];
        const int out = real_sum("out", rows * width), x = real_in("x", rows * width), gate = real_in("gate", rows);
        RUN(sigmoid_gate, sigmoid_gate, 2e-6, .out = AT(out), .x = AT(x), .gate = AT(gate), .rows = rows, .width = width);
        settle(out);
        const int d_x = real_out("d_x", rows * width), d_gate = real_out("d_gate", rows), d_out = real_in("d_out", rows * width);
        RUN(sigmoid_gate_backward, sigmoid_gate, 5e-6, .x = AT(x), .gate = AT(gate), .d_x = AT(d_x), .d_gate = AT(d_gate),
            .d_out = AT(d_out), .rows = rows, .width = width);
        reset();
    }
}

static void test_squash(void **state)
{
    static const int64_t counts[] = {1, 7, 64, 5001};
    (void)state;
    for (int s = 0; s < 2; s++)
        if (!MOED_BACKEND_HAS(sides[s].table, squash)) skip();
    for (int i = 0; i < 8; i++) {
        const int64_t count = counts[i / 2];
        const int in_place = i % 2, x = real_sum("x", count), out = in_place ? x : real_out("out", count);
        for (int64_t k = 0; k < count; k++) buffers[x].values[k] *= 4;
        RUN(squash, squash, 2e-6, .out = AT(out), .x = AT(x), .count = count);
        settle(out);
        const int d_out = real_sum("d_out", count), d_x = in_place ? d_out : real_out("d_x", count);
        RUN(squash_backward, squash, 2e-6, .out = AT(out), .d_x = AT(d_x), .d_out = AT(d_out), .count = count);
        reset();
    }
}

/* ---- routing ---- */

/* Random distinct experts per row, none from the last third: empty groups. */
static int choices(int64_t rows, int64_t experts, int64_t top_k)
{
    const int ids = ints("ids", rows * top_k, 1);
    const int64_t used = experts - experts / 3 >= top_k ? experts - experts / 3 : experts;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t first = (int64_t)((uniform() + 1) / 2 * (double)used);
        for (int64_t j = 0; j < top_k; j++) buffers[ids].values[i * top_k + j] = (double)((first + j) % used);
    }
    return ids;
}

/* scores: 0 softmax, 1 sigmoid, 2 sigmoid with a selection bias and a scale of the weights, 3 softmax with these */
static void router_case(int64_t rows, int64_t experts, int64_t top_k, int normalise, int replay, int with_losses, int equal,
                        int scores)
{
    const int32_t score = scores == 1 || scores == 2 ? MOED_SCORE_SIGMOID : MOED_SCORE_SOFTMAX;
    const double weight_scale = scores > 1 ? 2.5 : 0;
    const int bias = scores > 1 ? wide_in("bias", experts) : NONE;
    const int logits = wide_in("logits", rows * experts), p = wide_out("probabilities", rows * experts);
    const int weights = wide_out("weights", rows * top_k), lse = wide_out("lse", rows);
    const int ids = replay ? choices(rows, experts, top_k) : buffer_new("ids", I32, OUT, rows * top_k);
    const int losses = wide_sum("losses", 2), d_weights = wide_in("d_weights", rows * top_k);
    for (int64_t i = 0; i < rows * experts; i++)
        buffers[logits].values[i] = equal ? (double)(i % 2) : 4 * buffers[logits].values[i];
    RUN(router, router, 5e-6, .probabilities = AT(p), .weights = AT(weights), .lse = AT(lse), .ids = AT(ids),
        .logits = AT(logits), .losses = AT(with_losses ? losses : NONE), .rows = rows, .experts = experts, .top_k = top_k,
        .normalise = normalise, .replay = replay, .loss_scale = 0.5, .bias = AT(bias), .weight_scale = weight_scale,
        .score = score);
    settle(p), settle(weights), settle(lse), settle(ids), settle(losses);
    const int d_logits = real_out("d_logits", rows * experts), offsets = buffer_new("offsets", I64, IN, experts + 1);
    for (int64_t x = 0; x <= experts; x++) {
        buffers[offsets].values[x] = 0;
        for (int64_t c = 0; c < rows * top_k; c++) buffers[offsets].values[x] += buffers[ids].values[c] < (double)x;
    }
    for (int with = 0; with < 3; with++)
        RUN(router_backward, router, 1e-5, .probabilities = AT(p), .weights = AT(weights), .lse = AT(lse), .ids = AT(ids),
            .logits = AT(logits), .d_logits = AT(d_logits), .d_weights = AT(d_weights), .rows = rows, .experts = experts,
            .top_k = top_k, .normalise = normalise, .load_balance = with ? 0.3 : 0, .z_loss = with ? 0.2 : 0, .loss_scale = 0.5,
            .offsets = AT(with == 2 ? offsets : NONE), .bias = AT(bias), .weight_scale = weight_scale, .score = score);
    reset();
}

static void test_router(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 8, 2}, {5, 5, 5}, {37, 8, 2}, {300, 60, 4}, {20, 3, 1}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int mode = 0; mode < 32; mode += MODE_STEP)
            router_case(shapes[i][0], shapes[i][1], shapes[i][2], mode & 1, mode >> 1 & 1, mode >> 2 & 1, 0, mode >> 3);
    for (int scores = 0; scores < 4; scores += 2) {
        router_case(4501, 33, 3, 1, 0, 1, 0, scores); /* past any reasonable cutting */
        router_case(9, 7, 3, 1, 0, 1, 1, scores); /* ties go to the lower index */
        router_case(9, 16, 8, 0, 0, 1, 1, scores / 2);
    }
}

/* A run that has gone wrong must end in a NaN loss, not outside some array: ids stay valid and distinct. */
static void test_router_ids_are_valid_without_numbers(void **state)
{
    enum { ROWS = 40, EXPERTS = 19, TOP = 6 };
    const int logits = wide_in("logits", ROWS * EXPERTS), p = wide_out("probabilities", ROWS * EXPERTS),
              lse = wide_out("lse", ROWS);
    const int weights = wide_out("weights", ROWS * TOP), ids = buffer_new("ids", I32, OUT, ROWS * TOP);
    const double odd[] = {(double)NAN, (double)INFINITY, -(double)INFINITY};
    (void)state;
    for (int64_t i = 0; i < ROWS * EXPERTS; i++)
        if (i % ROWS < i / EXPERTS) buffers[logits].values[i] = odd[i % 3]; /* more and more of them */
    upload_all();
    for (int s = 1; s < SIDES; s++) {
        int32_t got[ROWS * TOP];
        const moed_op_router a = {.probabilities = address(s, p, 0), .weights = address(s, weights, 0), .lse = address(s, lse, 0),
                                  .ids = address(s, ids, 0), .logits = address(s, logits, 0), .rows = ROWS, .experts = EXPERTS,
                                  .top_k = TOP, .normalise = 1};
        side_ok(&sides[s], sides[s].table->router(sides[s].self, &a), "router");
        side_ok(&sides[s], sides[s].table->download(sides[s].self, got, a.ids, sizeof got), "download");
        side_ok(&sides[s], sides[s].table->synchronize(sides[s].self), "synchronize");
        for (int c = 0; c < ROWS * TOP; c++) {
            if (got[c] < 0 || got[c] >= EXPERTS) fail_msg("row %d chose expert %d of %d", c / TOP, (int)got[c], EXPERTS);
            for (int b = c / TOP * TOP; b < c; b++)
                if (got[b] == got[c]) fail_msg("row %d chose expert %d twice", c / TOP, (int)got[c]);
        }
    }
    reset();
}

/* Of so many experts; whole = 0: none was chosen. */
static void balance_case(int64_t experts, int whole, double band)
{
    moed_step_scalars now = {.balance_rate = 0.25}, *scalars[SIDES];
    int64_t sums[1024] = {0};
    for (int64_t e = 0; e < experts; e++) sums[e + 1] = sums[e] + (whole ? (int64_t)(20 * uniform() + 20) : 0);
    const int bias = wide_sum("bias", experts), offsets = offsets_of(experts + 1, sums);
    for (int s = 0; s < SIDES; s++) {
        side_ok(&sides[s], sides[s].table->alloc(sides[s].self, sizeof now, (void **)&scalars[s]), "alloc");
        side_ok(&sides[s], sides[s].table->upload(sides[s].self, scalars[s], &now, sizeof now), "upload");
    }
    buffers[bias].alone = 1;
    RUN(balance, balance, 0x1p-24 /* rounded once */, .bias = AT(bias), .offsets = AT(offsets), .scalars = scalars[s_],
        .experts = experts, .share = 0.5, .band = band);
    for (int s = 0; s < SIDES; s++) sides[s].table->free(sides[s].self, scalars[s]);
    reset();
}

static void test_balance(void **state)
{
    static const int64_t experts[] = {1, 2, 7, 64, 513};
    (void)state;
    if (!MOED_BACKEND_HAS(sides[0].table, balance) || !MOED_BACKEND_HAS(sides[1].table, balance)) skip();
    for (size_t i = 0; i < sizeof experts / sizeof *experts; i++)
        for (int n = 0; n < 6; n++) balance_case(experts[i], n % 2, n / 2 * 0.5);
}

/* dispatch, then what lies between it and the experts. */
static void dispatch_case(int64_t rows, int64_t experts, int64_t top_k, int64_t width)
{
    const int64_t places = rows * top_k;
    const int ids = choices(rows, experts, top_k), offsets = buffer_new("offsets", I64, OUT, experts + 1);
    const int slot = buffer_new("slot", I32, OUT, places), source = buffer_new("source", I32, OUT, places);
    RUN(dispatch, dispatch, 0, .ids = AT(ids), .offsets = AT(offsets), .slot = AT(slot), .source = AT(source), .rows = rows,
        .experts = experts, .top_k = top_k);
    settle(offsets), settle(slot), settle(source);

    const int x = real_in("x", rows * width), y = real_out("gathered", places * width);
    RUN(gather, gather, 0, .out = AT(y), .x = AT(x), .source = AT(source), .slot = AT(slot), .rows = rows, .top_k = top_k,
        .width = width);
    settle(y);
    const int d_x = real_sum("d_x", rows * width);
    RUN(gather_backward, gather, 2e-6, .d_x = AT(d_x), .d_out = AT(y), .source = AT(source), .slot = AT(slot), .rows = rows,
        .top_k = top_k, .width = width);
    settle(d_x);

    const int out = real_sum("out", rows * width), weights = wide_in("weights", places);
    RUN(combine, combine, 2e-6, .out = AT(out), .y = AT(y), .weights = AT(weights), .slot = AT(slot), .rows = rows,
        .top_k = top_k, .width = width);
    settle(out);
    const int fresh = real_out("out with an addend", rows * width);
    RUN(combine, combine, 2e-6, .out = AT(fresh), .y = AT(y), .weights = AT(weights), .slot = AT(slot), .rows = rows,
        .top_k = top_k, .width = width, .addend = AT(x));
    settle(fresh);
    const int again = real_sum("out, addend", rows * width);
    RUN(combine, combine, 2e-6, .out = AT(again), .y = AT(y), .weights = AT(weights), .slot = AT(slot), .rows = rows,
        .top_k = top_k, .width = width, .addend = AT(again));
    settle(again);
    const int d_y = real_out("d_y", places * width), d_weights = wide_out("d_weights", places);
    RUN(combine_backward, combine, 5e-6, .y = AT(y), .weights = AT(weights), .d_y = AT(d_y), .d_weights = AT(d_weights),
        .d_out = AT(x), .slot = AT(slot), .rows = rows, .top_k = top_k, .width = width);
    reset();
}

static void test_dispatch_gather_combine(void **state)
{
    (void)state;
    dispatch_case(1, 1, 1, 1);
    dispatch_case(1, 8, 2, 40);
    dispatch_case(6, 4, 4, 17);
    dispatch_case(50, 9, 3, 33);
    dispatch_case(400, 60, 4, 64);
    dispatch_case(700, 100, 2, 8);
    dispatch_case(30000, 5, 3, 1); /* past any reasonable cutting */
}

/* ---- loss ---- */

static void cross_entropy_case(int64_t rows, int64_t width, int64_t vocabulary, int with_weights, int with_d_h, int with_d_head)
{
    const int h = real_in("h", rows * width), head = real_in("head", vocabulary * width),
              labels = ints("labels", rows, vocabulary);
    const int weights = with_weights ? buffer_new("weights", F32, IN, rows) : NONE;
    const int losses = wide_out("losses", rows), d_h = with_d_h ? real_out("d_h", rows * width) : NONE;
    const int d_head = with_d_head ? real_sum("d_head", vocabulary * width) : NONE;
    for (int64_t i = 0; i < rows; i++) {
        if (i % 4 == 3) buffers[labels].values[i] = -1;
        if (with_weights) buffers[weights].values[i] = i % 5 == 4 ? 0 : fabs(buffers[weights].values[i]);
    }
    wide_slack = 512; /* logits are reals */
    RUN(cross_entropy, cross_entropy, 2e-5, .losses = AT(losses), .h = AT(h), .head = AT(head), .labels = AT(labels),
        .weights = AT(weights), .d_h = AT(d_h), .d_head = AT(d_head), .rows = rows, .width = width, .vocabulary = vocabulary,
        .scale = 0.125);
    reset();
}

static void test_cross_entropy(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 24, 2}, {9, 17, 257}, {70, 40, 33}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int mode = 0; mode < 6; mode += MODE_STEP)
            cross_entropy_case(shapes[i][0], shapes[i][1], shapes[i][2], mode & 1, mode / 2 > 0, mode / 2 > 1);
    cross_entropy_case(150, 20, 2051, 1, 1, 1);
    cross_entropy_case(1100, 8, 30, 0, 1, 1);
}

/* ---- optimizer ---- */

enum { SLICES = 4 };
static const int64_t slice_counts[SLICES] = {1, 17, 1000, 70003};

static int scalars(role r, double gradient_norm)
{
    enum { FIELDS = sizeof(moed_step_scalars) / sizeof(double) };
    const int b = buffer_new("scalars", F64, r, FIELDS);
    /* `random`, 1.7, is some bits */
    const double values[FIELDS] = {0.01, 0.1, 0.001999, 0.25, gradient_norm, 0.5, 0, 1.7, 0.003};
    memcpy(buffers[b].values, values, sizeof values);
    buffers[b].alone = 1;
    return b;
}

static void test_gradient_norm(void **state)
{
    static const double clips[] = {0, 1e-3, 1e6};
    (void)state;
    for (int i = 0; i < 3; i++) {
        int g[SLICES];
        for (int t = 0; t < SLICES; t++) g[t] = real_in("gradient", slice_counts[t]);
        const int s = scalars(SUM, 0);
        moed_op_slice slices[SIDES][SLICES] = {0};
        for (int side_ = 0; side_ < SIDES; side_++)
            for (int t = 0; t < SLICES; t++) {
                slices[side_][t].gradient = address(side_, g[t], 0);
                slices[side_][t].count = slice_counts[t];
            }
        RUN(gradient_norm, update, 1e-6, .slices = slices[s_], .count = SLICES, .scalars = AT(s), .clip = clips[i]);
        reset();
    }
}

static void adamw_case(double gradient_norm)
{
    moed_op_slice slices[SIDES][SLICES] = {0};
    for (int t = 0; t < SLICES; t++) {
        const int64_t n = slice_counts[t];
        const int p = real_sum("parameter", n), m = wide_sum("m", n), v = wide_sum("v", n), g = real_in("gradient", n);
        for (int64_t i = 0; i < n; i++) buffers[v].values[i] = i % 3 ? fabs(buffers[v].values[i]) : 0;
        for (int s = 0; s < SIDES; s++)
            slices[s][t] = (moed_op_slice){
                address(s, p, 0), address(s, g, 0), address(s, m, 0), address(s, v, 0), n, t % 2 ? 0.1 : 0, NULL, NULL, NULL, 0};
    }
    const int s = scalars(IN, gradient_norm);
    RUN(adamw, update, 2e-6, .slices = slices[s_], .count = SLICES, .scalars = AT(s), .beta1 = 0.9, .beta2 = 0.95,
        .epsilon = 1e-8);
    reset();
}

/* A norm that is not finite leaves parameters and moments as they are, on the reference side too. */
static void test_adamw(void **state)
{
    (void)state;
    adamw_case(2);
    adamw_case(INFINITY);
    adamw_case(NAN);
}

/* Moments as codes, from any codes and scales: a block of zeros, one whose scale is nothing, one that ends early. */
static void codes_case(double gradient_norm, double small)
{
    moed_op_slice slices[SIDES][SLICES] = {0};
    int64_t blocks = 5;
    for (int t = 0; t < SLICES; t++) {
        const int64_t n = slice_counts[t], scales = (n + 255) / 256;
        const int p = real_sum("parameter", n), g = real_in("gradient", n), m = buffer_new("m", U8, SUM, n),
                  v = buffer_new("v", U8, SUM, n);
        const int m_scale = buffer_new("m_scale", F32, SUM, scales), v_scale = buffer_new("v_scale", F32, SUM, scales);
        for (int64_t i = 0; i < n; i++) {
            buffers[m].values[i] = i / 256 % 3 == 1 ? 0 : floor((uniform() + 1) * 128);
            buffers[v].values[i] = i / 256 % 3 == 1 ? 0 : floor((uniform() + 1) * 128);
            buffers[g].values[i] *= i / 256 % 4 == 3 ? 0 : small;
        }
        for (int64_t i = 0; i < scales; i++) {
            buffers[m_scale].values[i] = i % 8 == 7 ? 1e-37 : small * fabs(buffers[m_scale].values[i]);
            buffers[v_scale].values[i] = i % 8 == 7 ? 1e-37 : small * fabs(buffers[v_scale].values[i]);
        }
        for (int s = 0; s < SIDES; s++)
            slices[s][t] = (moed_op_slice){address(s, p, 0), address(s, g, 0), address(s, m, 0), address(s, v, 0), n,
                                           t % 2 ? 0.1 : 0, NULL, address(s, m_scale, 0), address(s, v_scale, 0), blocks};
        blocks += scales;
    }
    const int s = scalars(IN, gradient_norm);
    RUN(adamw, update, 2e-6, .slices = slices[s_], .count = SLICES, .scalars = AT(s), .beta1 = 0.9, .beta2 = 0.95,
        .epsilon = 1e-8);
    reset();
}

static void test_adamw_with_codes(void **state)
{
    (void)state;
    codes_case(2, 1);
    codes_case(2, 1e-6);
    codes_case(NAN, 1);
}

/* A step far below the last place of a BF16 moves one number in so many, and the mean as far as it should. */
static void test_adamw_rounds_stochastically(void **state)
{
    enum { N = 100000, STEPS = 20, BLOCKS = (N + 255) / 256 };
    static uint16_t high[N], g[N];
    static uint8_t codes[N];
    static float scales[BLOCKS];
    side *s = &sides[1];
    void *d[6];
    (void)state;
    if (s->dtype != MOED_DTYPE_BF16) skip();
    const size_t sizes[6] = {sizeof high, sizeof g, sizeof codes, sizeof codes, sizeof scales, sizeof scales};
    const void *from[6] = {high, g, codes, codes, scales, scales};
    for (int i = 0; i < N; i++) encode(&high[i], MOED_DTYPE_BF16, 1.5), encode(&g[i], MOED_DTYPE_BF16, 0.01 + 0.005 * uniform());
    for (int t = 0; t < 6; t++) {
        side_ok(s, s->table->alloc(s->self, sizes[t], &d[t]), "alloc");
        side_ok(s, s->table->upload(s->self, d[t], from[t], sizes[t]), "upload");
    }
    const moed_op_slice slice = {d[0], d[1], d[2], d[3], N, 0, NULL, d[4], d[5], 0};
    moed_step_scalars now = {.learning_rate = 1e-5, .gradient_scale = 1, .gradient_norm = 1, .clip_factor = 1}, *scalars;
    side_ok(s, s->table->alloc(s->self, sizeof now, (void **)&scalars), "alloc");
    const moed_op_update a = {.slices = &slice, .count = 1, .scalars = scalars, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    for (int step = 1; step <= STEPS; step++) {
        now.beta1_correction = 1 - pow(0.9, step), now.beta2_correction = 1 - pow(0.95, step), now.random = (uint64_t)step;
        side_ok(s, s->table->upload(s->self, scalars, &now, sizeof now), "upload");
        side_ok(s, s->table->adamw(s->self, &a), "adamw");
    }
    side_ok(s, s->table->download(s->self, high, d[0], sizeof high), "download");
    side_ok(s, s->table->synchronize(s->self), "synchronize");
    double sum = 0;
    for (int i = 0; i < N; i++) sum += 1.5 - decode(&high[i], MOED_DTYPE_BF16);
    /* Each step moves by about the rate; a number moves by 2^-7 with probability 2^7 times that: the sum's deviation is 1.6% of
     * it. */
    if (fabs(sum / (N * STEPS * 1e-5) - 1) > 0.1) fail_msg("parameters moved by %g, not %g", sum / N, STEPS * 1e-5);
    for (int t = 0; t < 6; t++) s->table->free(s->self, d[t]);
    s->table->free(s->self, scalars);
}

/* Where reals are narrow: many small steps, each far below the parameter's last place, add up as they do in double. */
static void test_adamw_keeps_the_low_halves(void **state)
{
    enum { N = 4099, STEPS = 50 };
    static float exact[N], m[N], v[N];
    static uint16_t high[N], g[N];
    static int16_t low[N];
    side *s = &sides[1];
    void *d[5];
    (void)state;
    if (s->dtype != MOED_DTYPE_BF16) skip();
    const size_t sizes[5] = {sizeof high, sizeof g, sizeof m, sizeof v, sizeof low};
    const void *from[5] = {high, g, m, v, low};
    static double want[N], want_m[N], want_v[N];
    for (int i = 0; i < N; i++) {
        exact[i] = (float)uniform();
        encode(&g[i], MOED_DTYPE_BF16, uniform());
        want[i] = (double)exact[i];
    }
    moedi_halve(high, low, exact, N);
    for (int t = 0; t < 5; t++) {
        side_ok(s, s->table->alloc(s->self, sizes[t], &d[t]), "alloc");
        side_ok(s, s->table->upload(s->self, d[t], from[t], sizes[t]), "upload");
    }
    const moed_op_slice slice = {d[0], d[1], d[2], d[3], N, 0.1, d[4], NULL, NULL, 0};
    moed_step_scalars now = {.learning_rate = 1e-5, .gradient_scale = 1, .gradient_norm = 1, .clip_factor = 1}, *scalars;
    side_ok(s, s->table->alloc(s->self, sizeof now, (void **)&scalars), "alloc");
    const moed_op_update a = {.slices = &slice, .count = 1, .scalars = scalars, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
    for (int step = 1; step <= STEPS; step++) {
        now.beta1_correction = 1 - pow(0.9, step), now.beta2_correction = 1 - pow(0.95, step);
        side_ok(s, s->table->upload(s->self, scalars, &now, sizeof now), "upload");
        side_ok(s, s->table->adamw(s->self, &a), "adamw");
        for (int i = 0; i < N; i++) {
            const double gradient = decode(&g[i], MOED_DTYPE_BF16);
            want_m[i] = 0.9 * want_m[i] + 0.1 * gradient, want_v[i] = 0.95 * want_v[i] + 0.05 * gradient * gradient;
            want[i] -= 1e-5 *
                       (want_m[i] / now.beta1_correction / (sqrt(want_v[i] / now.beta2_correction) + 1e-8) + 0.1 * want[i]);
        }
    }
    side_ok(s, s->table->download(s->self, high, d[0], sizeof high), "download");
    side_ok(s, s->table->download(s->self, low, d[4], sizeof low), "download");
    side_ok(s, s->table->synchronize(s->self), "synchronize");
    moedi_unite(exact, high, low, N);
    for (int i = 0; i < N; i++)
        if (!(fabs((double)exact[i] - want[i]) <= 5e-6))
            fail_msg("parameter %d is %.9g and should be %.9g", i, (double)exact[i], want[i]);
    for (int t = 0; t < 5; t++) s->table->free(s->self, d[t]);
    s->table->free(s->self, scalars);
}

/* ---- clusters ---- */

static void kmeans_case(int64_t count, int64_t width, int64_t clusters, int with_penalty, int with_distances, int whole)
{
    const int x = buffer_new("x", F32, IN, count * width), centroids = buffer_new("centroids", F32, IN, clusters * width);
    const int penalty = with_penalty ? buffer_new("penalty", F64, IN, clusters) : NONE;
    const int labels = buffer_new("labels", I32, OUT, count),
              distances = with_distances ? buffer_new("distances", F32, OUT, count) : NONE;
    if (whole) { /* small integers, every centroid twice: exact ties in any arithmetic */
        for (int64_t i = 0; i < count * width; i++) buffers[x].values[i] = floor(4 * buffers[x].values[i]);
        for (int64_t i = 0; i < clusters * width; i++)
            buffers[centroids].values[i] = i < clusters / 2 * width ? floor(4 * buffers[centroids].values[i])
                                                                    : buffers[centroids].values[i % (clusters / 2 * width)];
    }
    RUN(kmeans_assign, kmeans_assign, 1e-5, .labels = AT(labels), .distances = AT(distances), .x = AT(x),
        .centroids = AT(centroids), .penalty = AT(penalty), .count = count, .width = width, .clusters = clusters);
    settle(labels);
    if (with_distances) settle(distances);

    const int sums = buffer_new("sums", F64, OUT, clusters * width), totals = buffer_new("totals", F64, OUT, clusters);
    const int counts = buffer_new("counts", I64, OUT, clusters), weights = buffer_new("weights", F32, IN, count);
    for (int with_weights = 0; with_weights < 2; with_weights++)
        RUN(kmeans_accumulate, kmeans_accumulate, 1e-12, .sums = AT(sums), .totals = AT(totals), .counts = AT(counts), .x = AT(x),
            .weights = AT(with_weights ? weights : NONE), .labels = AT(labels), .count = count, .width = width,
            .clusters = clusters);
    if (MOED_BACKEND_HAS(sides[0].table, kmeans_move) && MOED_BACKEND_HAS(sides[1].table, kmeans_move)) {
        const int moving = buffer_new("moving", F32, SUM, clusters * width), moved = buffer_new("moved", F32, OUT, clusters);
        settle(sums), settle(totals); /* clusters without rows among them: they stay */
        RUN(kmeans_move, kmeans_move, 1e-6, .centroids = AT(moving), .moved = AT(moved), .sums = AT(sums), .totals = AT(totals),
            .width = width, .clusters = clusters);
    }
    reset();
}

static void test_kmeans(void **state)
{
    static const int64_t shapes[][3] = {{1, 1, 1},      {1, 17, 4},    {100, 16, 1},   {50, 33, 7},    {1200, 40, 12},
                                        {500, 136, 80}, {70, 65, 130}, {700, 68, 300}, {4500, 72, 520}};
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int mode = 0; mode < 4; mode += MODE_STEP)
            kmeans_case(shapes[i][0], shapes[i][1], shapes[i][2], mode & 1, mode >> 1, 0);
    kmeans_case(200, 19, 10, 0, 1, 1);
    kmeans_case(300, 20, 100, 0, 1, 1);
}

/* ---- surgery ---- */

/* A first term and `deltas` after it, over rows with gaps and blocks with gaps; every third on the first's source, some with a
 * scale of 0. */
static void blend_case(int32_t op, double scale, int64_t deltas, int64_t blocks, int64_t rows, int64_t width, int64_t gap)
{
    enum { MOST = 70, SOURCES = 3 };
    const int64_t row = width + gap, block = rows * row + gap;
    int source[SOURCES];
    for (int i = 0; i < SOURCES; i++) source[i] = real_in("source", blocks * block + 8);
    const int out = real_out("out", blocks * block);
    upload_all();
    for (int s_ = 0; s_ < SIDES; s_++) {
        const int32_t real = sides[s_].dtype;
        moed_op_term terms[MOST] = {{.op = op, .dtype = real, .source = op == MOED_PIECE_DRAW ? NULL : AT(source[0]),
                                     .block = block, .row = row, .scale = scale, .key = UINT64_C(0x9E3779B97F4A7C15), .step = 3,
                                     .index = 1000003}};
        assert_true(deltas < MOST);
        for (int64_t i = 1; i <= deltas; i++)
            terms[i] = (moed_op_term){.op = MOED_PIECE_DELTA, .dtype = real, .reference_dtype = real, .block = block, .row = row,
                                      .source = AT_OFFSET(source[1], 4 * (i % 2)),
                                      .reference = AT_OFFSET(source[i % 3 ? 0 : 2], i % 5 ? 0 : 4), .reference_block = block,
                                      .reference_row = row, .scale = i % 4 ? 0.5 / (double)i : 0.0};
        const moed_op_blend a = {.out = AT(out), .terms = terms, .count = deltas + 1, .blocks = blocks, .rows = rows,
                                 .width = width, .block = block, .row = row, .dtype = real};
        side_ok(&sides[s_], sides[s_].table->blend(sides[s_].self, &a), "blend");
    }
    verify("blend", op == MOED_PIECE_COPY && scale == 1.0 && deltas == 0 ? 0 : 1e-6);
    reset();
}

static void test_blend(void **state)
{
    (void)state;
    if (!MOED_BACKEND_HAS(sides[1].table, blend)) skip();
    for (int gap = 0; gap <= 4; gap += 2) {
        blend_case(MOED_PIECE_COPY, 1.0, 0, 3, 5, 8, gap);
        blend_case(MOED_PIECE_COPY, 1.0, 0, 2, 3, 7, gap);
        blend_case(MOED_PIECE_COPY, 1.0, 4, 3, 5, 8, gap);
        blend_case(MOED_PIECE_COPY, -1.75, 3, 2, 3, 7, gap);
        blend_case(MOED_PIECE_COPY, 0.0, 2, 1, 1, 64, gap);
        blend_case(MOED_PIECE_COPY, 1.0, 60, 2, 2, 16, gap);
        blend_case(MOED_PIECE_DRAW, 0.5, 0, 2, 3, 33, gap);
        blend_case(MOED_PIECE_DRAW, 0.5, 30, 2, 3, 8, gap);
    }
    blend_case(MOED_PIECE_COPY, 1.0, 5, 1, 3, 4100, 0);
    blend_case(MOED_PIECE_COPY, 1.0, 2, 0, 3, 8, 0);
}

/* ---- memory, table ---- */

static void test_memory_is_aligned_copied_and_zeroed(void **state)
{
    (void)state;
    for (int s = 1; s < SIDES; s++) {
        const moed_backend *t = sides[s].table;
        uint8_t from[100], to[100];
        void *a, *b, *empty;
        for (int i = 0; i < 100; i++) from[i] = (uint8_t)i;
        side_ok(&sides[s], t->alloc(sides[s].self, 100, &a), "alloc");
        side_ok(&sides[s], t->alloc(sides[s].self, 100, &b), "alloc");
        side_ok(&sides[s], t->alloc(sides[s].self, 0, &empty), "alloc of nothing");
        assert_int_equal((uintptr_t)a % 64, 0);
        assert_int_equal((uintptr_t)b % 64, 0);
        side_ok(&sides[s], t->upload(sides[s].self, a, from, 100), "upload");
        side_ok(&sides[s], t->copy(sides[s].self, b, a, 100), "copy");
        side_ok(&sides[s], t->zero(sides[s].self, b, 10), "zero");
        side_ok(&sides[s], t->download(sides[s].self, to, b, 100), "download");
        side_ok(&sides[s], t->synchronize(sides[s].self), "synchronize");
        for (int i = 0; i < 100; i++) assert_int_equal(to[i], i < 10 ? 0 : i);
        t->free(sides[s].self, a);
        t->free(sides[s].self, b);
        t->free(sides[s].self, empty);
        t->free(sides[s].self, NULL);
    }
}

static void test_table_is_complete(void **state)
{
    const moed_backend *t = sides[1].table;
    const size_t first = offsetof(moed_backend, device), last = offsetof(moed_backend, kmeans_accumulate);
    (void)state;
    assert_int_equal(t->abi, MOED_BACKEND_ABI);
    assert_true(t->struct_size >= last + sizeof t->kmeans_accumulate);
    for (size_t at = first; at <= last; at += sizeof(void (*)(void))) {
        void (*slot)(void);
        memcpy(&slot, (const char *)t + at, sizeof slot);
        if (!slot) fail_msg("slot %zu of the table is empty", (at - first) / sizeof slot);
    }
}

/* ---- the tables of this machine, or a plug-in's ---- */

/* A test that fails leaves its buffers to the next one's start. */
static int start(void **state)
{
    (void)state;
    reset();
    return 0;
}
#define ONE(test) cmocka_unit_test_setup(test, start)

static int run_table(const moed_backend *backend, const char *kernels, int32_t device)
{
    static const struct CMUnitTest tests[] = {
        ONE(test_table_is_complete),
        ONE(test_memory_is_aligned_copied_and_zeroed),
        ONE(test_gemm),
        ONE(test_gemm_from_an_addend),
        ONE(test_grouped_gemm),
        ONE(test_bias_backward),
        ONE(test_sum),
        ONE(test_add),
        ONE(test_embedding),
        ONE(test_embed_mean),
        ONE(test_rmsnorm),
        ONE(test_rmsnorm_of_parts),
        ONE(test_rope),
        ONE(test_attention),
        ONE(test_swiglu),
        ONE(test_swiglu_backward_of_weighted_rows),
        ONE(test_sigmoid_gate),
        ONE(test_squash),
        ONE(test_router),
        ONE(test_router_ids_are_valid_without_numbers),
        ONE(test_balance),
        ONE(test_dispatch_gather_combine),
        ONE(test_cross_entropy),
        ONE(test_gradient_norm),
        ONE(test_adamw),
        ONE(test_adamw_keeps_the_low_halves),
        ONE(test_adamw_with_codes),
        ONE(test_adamw_rounds_stochastically),
        ONE(test_kmeans),
        ONE(test_blend),
    };
    int failed;
    for (int s = 1; s < SIDES; s++)
        if (side_open(&sides[s], backend, kernels, device, s) != MOED_OK) {
            fprintf(stderr, "skipped: %s\n", sides[s].host.sentence);
            return -1;
        }
    if (side_open(&sides[0], &moedi_cpu_backend, "double", 0, 1) != MOED_OK) return 1;
    const int32_t dtype = sides[1].dtype;
    if (dtype != MOED_DTYPE_F32 && dtype != MOED_DTYPE_F64 && dtype != MOED_DTYPE_BF16) {
        fprintf(stderr, "%s computes in a dtype that this program has no numbers for\n", backend->name);
        return 1;
    }
    random_state = 88172645463325252u;
    printf("# %s, kernels %s\n", backend->name, kernels);
    fflush(stdout);
    failed = cmocka_run_group_tests_name(kernels, tests, NULL, NULL);
    reset();
    for (int s = 0; s < SIDES; s++) {
        sides[s].table->close(sides[s].self);
        if (sides[s].host.blocks != 0 && !failed)
            fprintf(stderr, "%s: engine kept %d blocks\n", kernels, (int)sides[s].host.blocks), failed = 1;
    }
    return failed;
}

static int run_plugin(const char *path, const char *kernels, int32_t device)
{
    static test_host host;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    moed_backend_entry_fn entry = NULL;
    host_init(&host, 1);
    if (library) *(void **)&entry = dlsym(library, MOED_BACKEND_ENTRY);
    const moed_backend *backend = entry ? entry(&host.api) : NULL;
    if (!backend) {
        fprintf(stderr, "%s: %s\n", path, library ? "no backend for this host in it" : dlerror());
        return 1;
    }
    return run_table(backend, kernels, device) != 0;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {KERNEL_SETS};
    const char *plugin = NULL, *kernels = NULL;
    int failed = 0, device = 0;
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--plugin") == 0) plugin = value, i++;
        else if (strcmp(argv[i], "--kernels") == 0) kernels = value, i++;
        else if (strcmp(argv[i], "--device") == 0) device = atoi(value), i++;
        else return fprintf(stderr, "usage: %s [--plugin PATH.so] [--kernels NAME] [--device INDEX]\n", argv[0]), 2;
    }
    if (plugin) return run_plugin(plugin, kernels ? kernels : "auto", device);
    if (kernels) return run_table(&moedi_cpu_backend, kernels, device) != 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (run_table(&moedi_cpu_backend, names[i], 0) > 0) failed++;
    /* The test suite's own plug-in: memory that the host cannot touch. */
    const char *fake = MOEDI_TEST_OUT "/tests/plugins/fake/libmoedisco-test.so";
    if (access(fake, R_OK) == 0) failed += run_plugin(fake, "auto", 0);
    else fprintf(stderr, "skipped: %s is not built\n", fake);
    return failed;
}
