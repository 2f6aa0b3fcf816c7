/* test_reference.c - the reference's backward operations against central differences in double, and the CPU engine: the choice of
 * kernel set, its limits, its memory. */
#include "conformance.h"
#include "backend/lean.h"

/* ---- central differences ---- */

/* A forward operation as a function of its inputs: loss = sum of d_out * out. */
typedef struct problem {
    void (*forward)(void *arguments);
    void *arguments;
    const double *out, *d_out;
    int64_t count;
} problem;

static double loss_of(const problem *p)
{
    double sum = 0;
    p->forward(p->arguments);
    for (int64_t i = 0; i < p->count; i++) sum += p->d_out[i] * p->out[i];
    return sum;
}

/* By norm, over all elements of x. */
static void assert_gradient(const char *what, const problem *p, double *x, int64_t count, const double *gradient)
{
    double error = 0, size = 0;
    for (int64_t i = 0; i < count; i++) {
        const double kept = x[i], h = 1e-5;
        x[i] = kept + h;
        const double above = loss_of(p);
        x[i] = kept - h;
        const double below = loss_of(p);
        x[i] = kept;
        const double measured = (above - below) / (2 * h);
        error += (measured - gradient[i]) * (measured - gradient[i]);
        size += measured * measured;
    }
    p->forward(p->arguments);
    if (!(size > 0)) fail_msg("%s: the measured gradient is 0", what);
    if (!(sqrt(error / size) < 1e-7)) fail_msg("%s: off by %g of its norm", what, sqrt(error / size));
}

static side engine;
#define CALL(operation, arguments) side_ok(&engine, engine.table->operation(engine.self, (arguments)), #operation)

static double *draw(double *x, int64_t count)
{
    for (int64_t i = 0; i < count; i++) x[i] = uniform();
    return x;
}
#define DRAW(array) draw((array), (int64_t)(sizeof(array) / sizeof(double)))
#define SIZE(array) ((int64_t)(sizeof(array) / sizeof(double)))

/* ---- one forward per operation ---- */

static void rmsnorm_forward(void *a) { CALL(rmsnorm, a); }
static void attention_forward(void *a) { CALL(attention, a); }
static void swiglu_forward(void *a) { CALL(swiglu, a); }
static void cross_entropy_forward(void *a) { CALL(cross_entropy, a); }
static void rope_forward(void *arguments) /* out of place: x is copied behind itself first */
{
    moed_op_rope *a = arguments;
    const size_t count = (size_t)(a->count * a->stride);
    memcpy(a->x, (double *)a->x + count, count * sizeof(double));
    CALL(rope, a);
}
static void sigmoid_gate_forward(void *arguments)
{
    moed_op_sigmoid_gate *a = arguments;
    memset(a->out, 0, (size_t)(a->rows * a->width) * sizeof(double));
    CALL(sigmoid_gate, a);
}
static void combine_forward(void *arguments)
{
    moed_op_combine *a = arguments;
    memset(a->out, 0, (size_t)(a->rows * a->width) * sizeof(double));
    CALL(combine, a);
}
static void router_forward(void *arguments) /* losses lie behind the weights */
{
    moed_op_router *a = arguments;
    memset(a->losses, 0, 2 * sizeof(double));
    CALL(router, a);
}

static void test_rmsnorm_gradient(void **state)
{
    double x[3 * 7], w[7], out[21], rstd[3], d_out[21], d_x[21] = {0}, d_w[7] = {0};
    (void)state;
    DRAW(x), DRAW(w), DRAW(d_out);
    moed_op_rmsnorm a = {.out = out, .rstd = rstd, .x = x, .weight = w, .d_x = d_x, .d_weight = d_w, .d_out = d_out, .rows = 3,
                         .width = 7, .epsilon = 1e-3};
    const problem p = {rmsnorm_forward, &a, out, d_out, 21};
    CALL(rmsnorm, &a);
    CALL(rmsnorm_backward, &a);
    assert_gradient("d_x", &p, x, SIZE(x), d_x);
    assert_gradient("d_weight", &p, w, SIZE(w), d_w);
}

/* Two tokens of three heads, with numbers of others beside them; the gradient takes the place of that of the output. */
static void test_rmsnorm_gradient_of_parts_in_place(void **state)
{
    enum { WIDTH = 4, PARTS = 3, TOKENS = 2, STRIDE = PARTS * WIDTH + 2, TO = PARTS * WIDTH + 3, ROWS = TOKENS * PARTS };
    double x[TOKENS * STRIDE], w[WIDTH], out[TOKENS * TO] = {0}, rstd[ROWS], d_out[TOKENS * TO], d_w[WIDTH] = {0},
                                                      d_x[TOKENS * STRIDE] = {0};
    double in_place[TOKENS * TO];
    (void)state;
    DRAW(x), DRAW(w), DRAW(d_out);
    memcpy(in_place, d_out, sizeof d_out);
    moed_op_rmsnorm a = {.out = out, .rstd = rstd, .x = x, .weight = w, .d_x = in_place, .d_weight = d_w, .d_out = in_place,
                         .rows = ROWS, .width = WIDTH, .epsilon = 1e-3, .parts = PARTS, .stride = STRIDE, .out_stride = TO};
    const problem p = {rmsnorm_forward, &a, out, d_out, TOKENS * TO};
    CALL(rmsnorm, &a);
    CALL(rmsnorm_backward, &a);
    for (int i = 0; i < TOKENS; i++) {
        memcpy(d_x + i * STRIDE, in_place + i * TO, PARTS * WIDTH * sizeof(double));
        for (int rest = PARTS * WIDTH; rest < TO; rest++) assert_true(in_place[i * TO + rest] == d_out[i * TO + rest]);
    }
    assert_gradient("d_x", &p, x, SIZE(x), d_x);
    assert_gradient("d_weight", &p, w, SIZE(w), d_w);
}

static void test_rope_gradient(void **state)
{
    enum { COUNT = 3 * 2 * 6 };
    double x[2 * COUNT], d_out[COUNT], d_x[COUNT], cosine[5 * 3], sine[5 * 3];
    const int32_t positions[3] = {0, 4, 2};
    (void)state;
    DRAW(x), DRAW(d_out);
    for (int i = 0; i < 15; i++) cosine[i] = cos(i), sine[i] = sin(i);
    moed_op_rope a = {
        .x = x, .cosine = cosine, .sine = sine, .positions = positions, .count = 3, .heads = 2, .head_dim = 6, .stride = 12};
    moed_op_rope back = a;
    memcpy(d_x, d_out, sizeof d_x);
    back.x = d_x, back.inverse = 1;
    CALL(rope, &back);
    assert_gradient("x", &(problem){rope_forward, &a, x, d_out, COUNT}, x + COUNT, COUNT, d_x);
}

/* Two rows, documents, and two query heads for each of two heads of keys. */
static void test_attention_gradient(void **state)
{
    enum { ROWS = 2, LENGTH = 5, HEADS = 4, KV = 2, DIM = 3, STRIDE = (HEADS + 2 * KV) * DIM, TOKENS = ROWS * LENGTH };
    double qkv[TOKENS * STRIDE], d_qkv[TOKENS * STRIDE], out[TOKENS * HEADS * DIM], d_out[TOKENS * HEADS * DIM],
        lse[HEADS * TOKENS];
    const int32_t start[TOKENS] = {0, 0, 0, 3, 3, 5, 6, 6, 6, 6};
    (void)state;
    DRAW(qkv), DRAW(d_out);
    moed_op_attention a = {.out = out, .lse = lse, .q = qkv, .k = qkv + HEADS * DIM, .v = qkv + (HEADS + KV) * DIM, .d_q = d_qkv,
                           .d_k = d_qkv + HEADS * DIM, .d_v = d_qkv + (HEADS + KV) * DIM, .d_out = d_out, .start = start,
                           .rows = ROWS, .length = LENGTH, .heads = HEADS, .kv_heads = KV, .head_dim = DIM, .stride = STRIDE,
                           .scale = 0.8};
    CALL(attention, &a);
    CALL(attention_backward, &a);
    assert_gradient("d_qkv", &(problem){attention_forward, &a, out, d_out, SIZE(out)}, qkv, SIZE(qkv), d_qkv);
}

static void test_swiglu_gradient(void **state)
{
    double gate_up[3 * 10], out[15], d_out[15], d_gate_up[30];
    (void)state;
    DRAW(gate_up), DRAW(d_out);
    moed_op_swiglu a = {.out = out, .gate_up = gate_up, .d_gate_up = d_gate_up, .d_out = d_out, .rows = 3, .width = 5};
    CALL(swiglu_backward, &a);
    assert_gradient("d_gate_up", &(problem){swiglu_forward, &a, out, d_out, 15}, gate_up, 30, d_gate_up);
}

static void weighted_swiglu_forward(void *arguments)
{
    moed_op_swiglu *a = arguments;
    CALL(swiglu, a);
    for (int64_t i = 0; i < a->rows; i++)
        for (int64_t d = 0; d < a->width; d++) ((double *)a->out)[a->slot[i] * a->width + d] *= ((const double *)a->weights)[i];
}

static void test_weighted_swiglu_gradient(void **state)
{
    static const int32_t slot[3] = {2, 0, 1};
    double gate_up[3 * 10], weights[3], out[15], made[15], d_out[15], d_gate_up[30], d_weights[3];
    (void)state;
    DRAW(gate_up), DRAW(d_out), DRAW(weights);
    moed_op_swiglu a = {.out = made, .gate_up = gate_up, .d_gate_up = d_gate_up, .d_out = d_out, .rows = 3, .width = 5,
                        .weights = weights, .d_weights = d_weights, .slot = slot};
    CALL(swiglu_backward, &a);
    a.out = out;
    const problem p = {weighted_swiglu_forward, &a, out, d_out, 15};
    weighted_swiglu_forward(&a);
    for (int i = 0; i < 15; i++) assert_true(fabs(made[i] - out[i]) < 1e-14);
    assert_gradient("d_gate_up", &p, gate_up, 30, d_gate_up);
    assert_gradient("d_weights", &p, weights, 3, d_weights);
}

static void test_sigmoid_gate_gradient(void **state)
{
    double x[15], gate[3], out[15], d_out[15], d_x[15], d_gate[3];
    (void)state;
    DRAW(x), DRAW(gate), DRAW(d_out);
    moed_op_sigmoid_gate a = {
        .out = out, .x = x, .gate = gate, .d_x = d_x, .d_gate = d_gate, .d_out = d_out, .rows = 3, .width = 5};
    const problem p = {sigmoid_gate_forward, &a, out, d_out, 15};
    CALL(sigmoid_gate_backward, &a);
    assert_gradient("d_x", &p, x, 15, d_x);
    assert_gradient("d_gate", &p, gate, 3, d_gate);
}

static void squash_forward(void *a) { CALL(squash, a); }
static void test_squash_gradient(void **state)
{
    double x[9], out[9], d_out[9], d_x[9];
    (void)state;
    DRAW(x), DRAW(d_out);
    moed_op_squash a = {.out = out, .x = x, .d_x = d_x, .d_out = d_out, .count = 9};
    const problem p = {squash_forward, &a, out, d_out, 9};
    CALL(squash, &a);
    CALL(squash_backward, &a);
    assert_gradient("d_x", &p, x, 9, d_x);
}

/* The choices are held fixed by replay; the shares f_e of the balance loss are constants of the definition. */
static void test_router_gradient(void **state)
{
    enum { ROWS = 6, EXPERTS = 5, TOP = 2 };
    (void)state;
    for (int mode = 0; mode < 8; mode++) {
        const int normalise = mode & 1;
        const double bias[EXPERTS] = {0.1, -0.2, 0, 0.3, -0.1};
        double logits[ROWS * EXPERTS], p[ROWS * EXPERTS], lse[ROWS], d_logits[ROWS * EXPERTS];
        double out[ROWS * TOP + 2], d_out[ROWS * TOP + 2]; /* weights, then the two losses */
        int32_t ids[ROWS * TOP];
        DRAW(logits), DRAW(d_out);
        moed_op_router a = {.probabilities = p, .weights = out, .lse = lse, .ids = ids, .logits = logits,
                            .losses = out + ROWS * TOP, .d_logits = d_logits, .d_weights = d_out, .rows = ROWS,
                            .experts = EXPERTS, .top_k = TOP, .normalise = normalise, .load_balance = 0.7, .z_loss = 0.3,
                            .loss_scale = 0.5, .bias = mode & 2 ? bias : NULL, .weight_scale = mode & 2 ? 2.5 : 0,
                            .score = mode & 4 ? MOED_SCORE_SIGMOID : MOED_SCORE_SOFTMAX};
        d_out[ROWS * TOP] = a.load_balance, d_out[ROWS * TOP + 1] = a.z_loss;
        router_forward(&a);
        a.replay = 1;
        CALL(router_backward, &a);
        assert_gradient("d_logits", &(problem){router_forward, &a, out, d_out, SIZE(out)}, logits, SIZE(logits), d_logits);
    }
}

static void test_combine_gradient(void **state)
{
    const int32_t slot[6] = {4, 0, 2, 1, 5, 3};
    double y[6 * 4], weights[6], out[3 * 4], d_out[3 * 4], d_y[6 * 4], d_weights[6];
    (void)state;
    DRAW(y), DRAW(weights), DRAW(d_out);
    moed_op_combine a = {.out = out, .y = y, .weights = weights, .d_y = d_y, .d_weights = d_weights, .d_out = d_out, .slot = slot,
                         .rows = 3, .top_k = 2, .width = 4};
    const problem p = {combine_forward, &a, out, d_out, 12};
    CALL(combine_backward, &a);
    assert_gradient("d_y", &p, y, SIZE(y), d_y);
    assert_gradient("d_weights", &p, weights, SIZE(weights), d_weights);
}

static void test_cross_entropy_gradient(void **state)
{
    enum { ROWS = 5, WIDTH = 4, WORDS = 7 };
    double h[ROWS * WIDTH], head[WORDS * WIDTH], losses[ROWS], ones[ROWS], d_h[ROWS * WIDTH], d_head[WORDS * WIDTH] = {0};
    const int32_t labels[ROWS] = {3, -1, 0, 6, 3};
    const float weights[ROWS] = {1, 1, 0.5f, 0, 2};
    (void)state;
    DRAW(h), DRAW(head);
    for (int i = 0; i < ROWS; i++) ones[i] = 0.25; /* the scale */
    moed_op_cross_entropy a = {.losses = losses, .h = h, .head = head, .labels = labels, .weights = weights, .d_h = d_h,
                               .d_head = d_head, .rows = ROWS, .width = WIDTH, .vocabulary = WORDS, .scale = 0.25};
    CALL(cross_entropy, &a);
    a.d_h = a.d_head = NULL;
    const problem p = {cross_entropy_forward, &a, losses, ones, ROWS};
    assert_gradient("d_h", &p, h, SIZE(h), d_h);
    assert_gradient("d_head", &p, head, SIZE(head), d_head);
}

/* ---- transposes: what is linear is checked by <A x, y> = <x, A' y> ---- */

static double inner(const double *x, const double *y, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += x[i] * y[i];
    return sum;
}

static void test_embedding_and_gather_backward_are_transposes(void **state)
{
    const int32_t tokens[4] = {2, 0, 2, 1}, slot[6] = {4, 0, 2, 1, 5, 3}, source[6] = {0, 1, 1, 2, 0, 2};
    double table[3 * 5], rows[4 * 5], y[4 * 5], d_table[3 * 5] = {0};
    double x[3 * 2], out[6 * 2], z[6 * 2], d_x[3 * 2] = {0};
    (void)state;
    DRAW(table), DRAW(y), DRAW(x), DRAW(z);
    CALL(embedding,
         (&(moed_op_embedding){.out = rows, .table = table, .tokens = tokens, .count = 4, .width = 5, .vocabulary = 3}));
    CALL(embedding_backward,
         (&(moed_op_embedding){.d_table = d_table, .d_out = y, .tokens = tokens, .count = 4, .width = 5, .vocabulary = 3}));
    assert_true(fabs(inner(rows, y, 20) - inner(table, d_table, 15)) < 1e-14);
    CALL(gather, (&(moed_op_gather){.out = out, .x = x, .source = source, .slot = slot, .rows = 3, .top_k = 2, .width = 2}));
    CALL(gather_backward,
         (&(moed_op_gather){.d_x = d_x, .d_out = z, .source = source, .slot = slot, .rows = 3, .top_k = 2, .width = 2}));
    assert_true(fabs(inner(out, z, 12) - inner(x, d_x, 6)) < 1e-14);
}

/* ---- known values ---- */

#define assert_doubles(got, ...)                                                                     \
    do {                                                                                             \
        const double want_[] = {__VA_ARGS__};                                                        \
        for (size_t i_ = 0; i_ < sizeof want_ / sizeof *want_; i_++)                                 \
            if (!(fabs((double)(got)[i_] - want_[i_]) < 1e-14))                                              \
                fail_msg("%s[%zu] is %.17g and should be %.17g", #got, i_, (double)(got)[i_], want_[i_]);    \
    } while (0)

static void test_gemm_knows_its_transposes(void **state)
{
    const double a[6] = {1, 2, 3, 4, 5, 6}, b[6] = {1, 0, 2, -1, 3, 1}, bias[2] = {10, 20}; /* a: (2, 3) or (3, 2) stored */
    double c[4] = {100, 100, 100, 100};
    moed_op_gemm o = {.c = c, .a = a, .b = b, .bias = bias, .m = 2, .n = 2, .k = 3, .lda = 3, .ldb = 2, .ldc = 2};
    (void)state;
    CALL(gemm, &o); /* (1 2 3; 4 5 6) (1 0; 2 -1; 3 1) */
    assert_doubles(c, 24, 21, 42, 21);
    o.accumulate = 1, o.bias = NULL;
    CALL(gemm, &o);
    assert_doubles(c, 38, 22, 74, 22);
    o.accumulate = 0, o.transpose_a = 1, o.lda = 2;
    CALL(gemm, &o); /* (1 3 5; 2 4 6) (1 0; 2 -1; 3 1) */
    assert_doubles(c, 22, 2, 28, 2);
    o.transpose_b = 1, o.ldb = 3;
    CALL(gemm, &o); /* (1 3 5; 2 4 6) (1 -1; 0 3; 2 1) */
    assert_doubles(c, 11, 13, 14, 16);
}

static void test_grouped_gemm_is_a_gemm_per_group(void **state)
{
    const double x[6] = {1, 2, 3, 4, 5, 6}, w[12] = {1, 0, 0, 1, 9, 9, 9, 9, 0, 2, 1, 0};
    const int64_t offsets[4] = {0, 1, 1, 3};
    double y[6], d_w[12] = {7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7};
    moed_op_grouped_gemm o = {.c = y, .a = x, .b = w, .offsets = offsets, .groups = 3, .m = 3, .n = 2, .k = 2, .lda = 2, .ldb = 2,
                              .ldc = 2, .stride_b = 4};
    (void)state;
    CALL(grouped_gemm, &o);
    assert_doubles(y, 1, 2, 4, 6, 6, 10);
    o.transpose_b = 1;
    CALL(grouped_gemm, &o);
    assert_doubles(y, 1, 2, 8, 3, 12, 5);
    o = (moed_op_grouped_gemm){.c = d_w, .a = x, .b = x, .offsets = offsets, .groups = 3, .m = 2, .n = 2, .k = 3, .lda = 2,
                               .ldb = 2, .ldc = 2, .stride_c = 4, .reduce = 1};
    CALL(grouped_gemm, &o);
    assert_doubles(d_w, 1, 2, 2, 4, 0, 0, 0, 0, 34, 42, 42, 52);
}

/* Worked by hand: m = .1, v = .005, both corrected to 1 times the gradient's sign, decay .1 * .5. */
static void test_adamw_first_step_moves_by_the_learning_rate(void **state)
{
    double p[2] = {0.5, -1}, g[2] = {1, -4}, m[2] = {0}, v[2] = {0};
    const moed_op_slice slice = {p, g, m, v, 2, 0.1, NULL, NULL, NULL, 0};
    moed_step_scalars s = {.learning_rate = 0.01, .beta1_correction = 0.1, .beta2_correction = 0.05, .gradient_scale = 0.5};
    moed_op_update a = {.slices = &slice, .count = 1, .scalars = &s, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 0, .clip = 1};
    (void)state;
    CALL(gradient_norm, &a);
    assert_true(fabs(s.gradient_norm - sqrt(17) / 2) < 1e-15);
    assert_true(fabs(s.clip_factor - 2 / sqrt(17)) < 1e-15);
    CALL(adamw, &a);
    assert_true(fabs(p[0] - (0.5 - 0.01 * (1 + 0.05))) < 1e-15);
    assert_true(fabs(p[1] - (-1 + 0.01 * (1 + 0.1))) < 1e-15);
}

static void test_adamw_applies_nothing_of_a_step_whose_norm_or_loss_is_not_finite(void **state)
{
    static const double bad[4] = {INFINITY, NAN, 2, 2}, losses[4][3] = {{0}, {0}, {1, 2, INFINITY}, {NAN, 2, 3}};
    (void)state;
    for (int i = 0; i < 4; i++) {
        double p[2] = {0.5, -1}, g[2] = {1, bad[i]}, m[2] = {0.1, 0.2}, v[2] = {0.3, 0.4};
        const moed_op_slice slice = {p, g, m, v, 2, 0.1, NULL, NULL, NULL, 0};
        moed_step_scalars s = {.learning_rate = 0.01, .beta1_correction = 0.1, .beta2_correction = 0.05, .gradient_scale = 0.5};
        const moed_op_update a = {.slices = &slice, .count = 1, .scalars = &s, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8,
                                  .clip = 1, .losses = i < 2 ? NULL : losses[i], .loss_count = 3};
        CALL(gradient_norm, &a);
        assert_false(isfinite(s.gradient_norm));
        CALL(adamw, &a);
        assert_doubles(p, 0.5, -1);
        assert_doubles(m, 0.1, 0.2);
        assert_doubles(v, 0.3, 0.4);
    }
}

/* By the formula of sys/backend.h, for every code: what is decoded and encoded again is the same code, and roundings are right in
 * the mean. */
static void test_codes_are_rounded_without_bias(void **state)
{
    (void)state;
    assert_true(moedi_lean_decode_m(127) == 1 && moedi_lean_decode_m(255) == -1 && moedi_lean_decode_m(0) == 0);
    assert_true(moedi_lean_decode_root(255) == 1 && moedi_lean_decode_root(239) == 0.5f &&
                moedi_lean_decode_root(1) == 1.125f / 65536);
    assert_int_equal(moedi_lean_encode_root(1e-12f, 0), 1); /* what an update divides by is not lost */
    assert_int_equal(moedi_lean_encode_root(0, 65535), 0);
    assert_int_equal(moedi_lean_encode_m(1.0000001f, 255), 127);
    for (uint32_t code = 0; code < 256; code++)
        for (uint32_t random = 0; random < 65536; random += 257) {
            if (code != 128) assert_int_equal(moedi_lean_encode_m(moedi_lean_decode_m(code), random), code);
            assert_int_equal(moedi_lean_encode_root(moedi_lean_decode_root(code), random), code);
        }
    for (float y = 0.9f; y > 1e-4f; y *= 0.83f) {
        double m = 0, root = 0;
        for (uint32_t random = 0; random < 256; random++) {
            m += (double)moedi_lean_decode_m(moedi_lean_encode_m(-y, random)) / 256;
            root += (double)moedi_lean_decode_root(moedi_lean_encode_root(y, random << 8)) / 256;
        }
        assert_true(fabs(m / (double)y + 1) < 1e-3 && fabs(root / (double)y - 1) < 1e-3);
    }
}

static void test_bf16_is_rounded_to_either_side(void **state)
{
    double mean = 0;
    (void)state;
    assert_int_equal(moedi_lean_round(INFINITY, UINT32_MAX), 0x7f80);
    assert_int_equal(moedi_lean_round(-INFINITY, UINT32_MAX), 0xff80);
    assert_true(isnan(moedi_bits_float((uint32_t)moedi_lean_round(moedi_bits_float(0x7fc00001), UINT32_MAX) << 16)));
    assert_int_equal(moedi_lean_round(1, UINT32_MAX), 0x3f80);
    for (uint32_t number = 0; number < 65536; number++) {
        const uint16_t half = moedi_lean_round(-1.003f, moedi_lean_random(moedi_lean_key(7, 3), number));
        assert_true(half == 0xbf80 || half == 0xbf81);
        mean += (double)moedi_bits_float((uint32_t)half << 16) / 65536;
    }
    assert_true(fabs(mean + 1.003) < 1e-4);
}

/* From nothing, a step of numbers and one of codes are the same; so is a second one, but for the codes' rounding. */
static void test_adamw_of_codes_follows_that_of_numbers(void **state)
{
    enum { N = 300 };
    static double p[2][N], g[N], m[N], v[N];
    static uint8_t mc[N], vc[N];
    float scales[2][2] = {{0}};
    const moed_op_slice slices[2] = {{p[0], g, m, v, N, 0.1, NULL, NULL, NULL, 0},
                                     {p[1], g, mc, vc, N, 0.1, NULL, scales[0], scales[1], 0}};
    (void)state;
    for (int i = 0; i < N; i++) g[i] = sin(i + 1) * exp(i % 5), p[0][i] = p[1][i] = cos(i);
    for (int step = 1; step <= 20; step++) {
        moed_step_scalars s = {.learning_rate = 0.01, .beta1_correction = 1 - pow(0.9, step),
                               .beta2_correction = 1 - pow(0.95, step), .gradient_scale = 1, .clip_factor = 1,
                               .random = (uint64_t)step};
        const moed_op_update a = {.slices = slices, .count = 2, .scalars = &s, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8};
        CALL(adamw, &a);
        for (int i = 0; i < N; i++) assert_true(fabs(p[1][i] - p[0][i]) < (step == 1 ? 1e-12 : 0.1 * 0.01 * step));
    }
    for (int i = 0; i < N; i++) {
        assert_true(fabs((double)(moedi_lean_decode_m(mc[i]) * scales[0][i / 256]) - m[i]) < 0.3 * fabs(m[i]));
        assert_true(fabs((double)(moedi_lean_decode_root(vc[i]) * scales[1][i / 256]) - sqrt(v[i])) < 0.3 * sqrt(v[i]));
    }
}

/* Selection by score + bias, weights by the scores alone: e = 2 has the highest score and a bias that keeps it out. */
static void test_router_weighs_by_the_score_alone(void **state)
{
    const double logits[3] = {0, log(3), log(4)}, bias[3] = {0.1, 0.2, -0.5};
    double scores[3], weights[2], lse, losses[2] = {0};
    int32_t ids[2];
    (void)state;
    moed_op_router a = {.probabilities = scores, .weights = weights, .lse = &lse, .ids = ids, .logits = logits, .losses = losses,
                        .rows = 1, .experts = 3, .top_k = 2, .loss_scale = 1, .bias = bias, .score = MOED_SCORE_SIGMOID};
    CALL(router, &a);
    assert_doubles(scores, 0.5, 0.75, 0.8);
    assert_true(ids[0] == 1 && ids[1] == 0);
    assert_doubles(weights, 0.75, 0.5);
    assert_doubles(losses, 3 * 0.5 * (1.25 / 2.05), log(8) * log(8));
    a.normalise = 1, a.weight_scale = 2;
    CALL(router, &a);
    assert_doubles(weights, 1.2, 0.8);
}

/* Equal logits: every probability is 1/3, the lower experts are taken; both losses can be said in advance. */
static void test_router_takes_the_lower_of_equals(void **state)
{
    double logits[6] = {0}, p[6], weights[4], lse[2], losses[2] = {1, 2};
    int32_t ids[4];
    (void)state;
    CALL(router, (&(moed_op_router){.probabilities = p, .weights = weights, .lse = lse, .ids = ids, .logits = logits,
                                    .losses = losses, .rows = 2, .experts = 3, .top_k = 2, .loss_scale = 0.5}));
    for (int i = 0; i < 4; i++) assert_int_equal(ids[i], i % 2);
    assert_doubles(weights, 1.0 / 3, 1.0 / 3, 1.0 / 3, 1.0 / 3);
    assert_doubles(losses, 1.5, 2 + log(3) * log(3) / 2);
}

static void test_dispatch_is_a_stable_sort_by_expert(void **state)
{
    static const int32_t ids[6] = {2, 0, 0, 3, 2, 0}, sorted_place[6] = {3, 0, 1, 5, 4, 2}, row[6] = {0, 1, 2, 0, 2, 1};
    static const int64_t begins[5] = {0, 3, 3, 5, 6};
    int32_t slot[6], source[6];
    int64_t offsets[5];
    (void)state;
    CALL(dispatch, (&(moed_op_dispatch){
                       .ids = ids, .offsets = offsets, .slot = slot, .source = source, .rows = 3, .experts = 4, .top_k = 2}));
    assert_memory_equal(slot, sorted_place, sizeof slot);
    assert_memory_equal(source, row, sizeof source);
    assert_memory_equal(offsets, begins, sizeof offsets);
}

static void test_kmeans_penalty_moves_a_point_and_not_its_distance(void **state)
{
    const float x[4] = {0, 0, 3, 0}, centroids[6] = {1, 0, 3, 1, 1, 0}, weights[2] = {2, 0.5f};
    const double penalty[3] = {20, 0, 30};
    int32_t labels[2];
    float distances[2];
    double sums[6], totals[3];
    int64_t counts[3];
    moed_op_kmeans_assign o = {
        .labels = labels, .distances = distances, .x = x, .centroids = centroids, .count = 2, .width = 2, .clusters = 3};
    (void)state;
    CALL(kmeans_assign, &o);
    assert_int_equal(labels[0], 0); /* not 2, which is as near */
    assert_int_equal(labels[1], 1);
    o.penalty = penalty;
    CALL(kmeans_assign, &o);
    assert_int_equal(labels[0], 1);
    assert_doubles(distances, 10, 1);
    CALL(kmeans_accumulate, (&(moed_op_kmeans_accumulate){.sums = sums, .totals = totals, .counts = counts, .x = x,
                                                          .weights = weights, .labels = labels, .count = 2, .width = 2,
                                                          .clusters = 3}));
    assert_doubles(sums, 0, 0, 1.5, 0, 0, 0);
    assert_doubles(totals, 0, 2.5, 0);
    assert_doubles(counts, 0, 2, 0);
}

static void test_router_chooses_valid_experts_from_logits_that_are_not_numbers(void **state)
{
    double logits[4] = {1, NAN, 2, 3}, p[4], weights[3], lse[1];
    int32_t ids[3] = {-1, -1, -1};
    (void)state;
    CALL(router, (&(moed_op_router){.probabilities = p, .weights = weights, .lse = lse, .ids = ids, .logits = logits, .rows = 1,
                                    .experts = 4, .top_k = 3}));
    for (int i = 0; i < 3; i++) {
        assert_in_range(ids[i], 0, 3);
        for (int j = 0; j < i; j++) assert_int_not_equal(ids[i], ids[j]);
    }
}

/* ---- the engine ---- */

static void test_unknown_kernels_are_refused_by_name(void **state)
{
    static side s;
    (void)state;
    assert_int_equal(side_open(&s, &moedi_cpu_backend, "v9", 0, 1), MOED_E_BACKEND);
    assert_non_null(strstr(s.host.sentence, "\"v9\""));
    assert_non_null(strstr(s.host.sentence, "reference, double"));
    assert_int_equal(s.host.blocks, 0);
    assert_int_equal(side_open(&s, &moedi_cpu_backend, "auto", 3, 1), MOED_E_RANGE);
    assert_non_null(strstr(s.host.sentence, "cpu:3"));
}

static void test_every_choice_of_kernels_names_itself(void **state)
{
    static const char *const asked[] = {"auto", NULL, "reference", "double"};
    (void)state;
    for (int i = 0; i < 4; i++) {
        static side s;
        moed_backend_info info;
        side_ok(&s, side_open(&s, &moedi_cpu_backend, asked[i], 0, 1), "open");
        side_ok(&s, s.table->info(s.self, &info), "info");
        assert_int_equal(info.host_memory, 1);
        assert_true(info.reason[0] != 0);
        if (i >= 2) assert_string_equal(info.kernels, asked[i]);
        assert_int_equal(info.dtype, i == 3 ? MOED_DTYPE_F64 : MOED_DTYPE_F32);
        s.table->close(s.self);
        assert_int_equal(s.host.blocks, 0);
    }
}

static void test_memory_limit_is_kept(void **state)
{
    static test_host h;
    const moed_backend_config config = {.struct_size = sizeof config, .kernels = "reference", .memory_limit = 1000};
    const moed_backend *t;
    void *self, *a, *b = NULL;
    (void)state;
    host_init(&h, 1);
    assert_int_equal(moedi_cpu_backend.open(&h.api, &config, &self, &t), MOED_OK);
    assert_int_equal(t->alloc(self, 900, &a), MOED_OK);
    assert_int_equal(t->alloc(self, 101, &b), MOED_E_LIMIT);
    assert_non_null(strstr(h.sentence, "1000"));
    assert_null(b);
    assert_int_equal(t->alloc(self, SIZE_MAX - 8, &b), MOED_E_MEMORY);
    t->free(self, a);
    assert_int_equal(t->alloc(self, 1000, &a), MOED_OK);
    t->free(self, a);
    t->close(self);
    assert_int_equal(h.blocks, 0);
}

static void test_there_is_one_device(void **state)
{
    moed_device_info d = {.struct_size = sizeof d};
    (void)state;
    assert_int_equal(moedi_cpu_backend.device(&engine.host.api, 0, &d), MOED_OK);
    assert_string_equal(d.name, "cpu");
    assert_true(d.memory > 0);
    assert_true(d.description[0] != 0);
    assert_string_equal(d.reason, "");
    assert_int_equal(moedi_cpu_backend.device(&engine.host.api, 1, &d), MOED_E_RANGE);
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rmsnorm_gradient),
        cmocka_unit_test(test_rmsnorm_gradient_of_parts_in_place),
        cmocka_unit_test(test_rope_gradient),
        cmocka_unit_test(test_attention_gradient),
        cmocka_unit_test(test_swiglu_gradient),
        cmocka_unit_test(test_weighted_swiglu_gradient),
        cmocka_unit_test(test_sigmoid_gate_gradient),
        cmocka_unit_test(test_squash_gradient),
        cmocka_unit_test(test_router_gradient),
        cmocka_unit_test(test_combine_gradient),
        cmocka_unit_test(test_cross_entropy_gradient),
        cmocka_unit_test(test_embedding_and_gather_backward_are_transposes),
        cmocka_unit_test(test_gemm_knows_its_transposes),
        cmocka_unit_test(test_grouped_gemm_is_a_gemm_per_group),
        cmocka_unit_test(test_router_takes_the_lower_of_equals),
        cmocka_unit_test(test_router_weighs_by_the_score_alone),
        cmocka_unit_test(test_dispatch_is_a_stable_sort_by_expert),
        cmocka_unit_test(test_kmeans_penalty_moves_a_point_and_not_its_distance),
        cmocka_unit_test(test_adamw_first_step_moves_by_the_learning_rate),
        cmocka_unit_test(test_codes_are_rounded_without_bias),
        cmocka_unit_test(test_bf16_is_rounded_to_either_side),
        cmocka_unit_test(test_adamw_of_codes_follows_that_of_numbers),
        cmocka_unit_test(test_adamw_applies_nothing_of_a_step_whose_norm_or_loss_is_not_finite),
        cmocka_unit_test(test_router_chooses_valid_experts_from_logits_that_are_not_numbers),
        cmocka_unit_test(test_unknown_kernels_are_refused_by_name),
        cmocka_unit_test(test_every_choice_of_kernels_names_itself),
        cmocka_unit_test(test_memory_limit_is_kept),
        cmocka_unit_test(test_there_is_one_device),
    };
    if (side_open(&engine, &moedi_cpu_backend, "double", 0, 1) != MOED_OK) return 1;
    const int failed = cmocka_run_group_tests(tests, NULL, NULL);
    engine.table->close(engine.self);
    return failed;
}
