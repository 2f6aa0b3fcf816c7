/* sys/backend.h - extension API: what a backend plug-in implements. A weaker promise than moedisco.h: the abi number may grow
 * between minor releases. docs/backends.md tells the story.
 *
 * A plug-in is a shared object that exports moed_backend_entry_v1 and links nothing of the library: the host passes its own
 * functions. One `static const moed_backend` table holds everything; slots are only ever appended.
 *
 * Conventions of the operations
 *  - `void *self` is one opened engine: used by one thread at a time, owns its scratch memory and stream;
 *  - pointers in argument structs are device memory of that engine, unless a comment says host;
 *  - `real` is the engine's dtype of weights, activations and their gradients (moed_backend_info.dtype), `wide` that of what must
 *    not be rounded so far: statistics, routing, losses, moments (moed_backend_info.wide). Arrays are of reals where nothing else
 *    is said;
 *  - token and expert ids are int32;
 *  - arrays are row-major; strides are in elements; N = rows * length tokens, T = length, D = hidden width;
 *  - "+=" accumulates, "=" overwrites; no operation returns data to the host: see download;
 *  - work may be queued; synchronize waits;
 *  - results depend on shapes and inputs, never on the number of threads. */
#ifndef MOEDISCO_SYS_BACKEND_H
#define MOEDISCO_SYS_BACKEND_H

#include "../context.h"

#ifdef __cplusplus
extern "C" {
#endif

#define MOED_BACKEND_ABI 3u

/* What the host offers a backend. self is passed back to every function. */
typedef struct moed_host_api {
    uint32_t struct_size;
    uint32_t abi;
    void *self;
    /* Counted against the host limit, aligned to 64 bytes; on failure the error text is set and nothing needs to be added. */
    moed_status (*alloc)(void *self, size_t size, void **out);
    void (*free)(void *self, void *memory);
    /* Runs task(argument, i) for i in [0, count) on the context's threads; returns when all are done. */
    void (*parallel)(void *self, int64_t count, moed_task_fn task, void *argument);
    void (*log)(void *self, int32_t level, const char *line);
    /* Sets the calling thread's error text; returns status. */
    moed_status (*fail)(void *self, moed_status status, const char *sentence);
} moed_host_api;

typedef struct moed_backend_config {
    uint32_t struct_size;
    uint32_t flags;
    int32_t device;           /* index within the backend */
    int32_t reserved;
    int64_t memory_limit;     /* bytes, 0 = none */
    const char *kernels;      /* kernel set asked for, "auto" */
    void *stream;             /* the caller's: all work goes there, and it is the caller's to destroy; NULL = one of the engine's
                                 own */
    moed_device_alloc_fn device_alloc; /* nullable, with its counterpart: all device memory comes from there */
    moed_device_free_fn device_free;
    void *device_alloc_user;
} moed_backend_config;

/* A field that an older host's config lacks. */
#define MOED_CONFIG_HAS(config, field) ((config)->struct_size >= offsetof(moed_backend_config, field) + sizeof((config)->field))

typedef struct moed_backend_info {
    uint32_t struct_size;
    uint32_t flags;
    int32_t dtype;            /* of weights, activations and gradients */
    int32_t host_memory;      /* 1: device memory is host memory; host arrays of dtype may be passed as they are */
    char kernels[32];
    char reason[192];
    int32_t wide;             /* 0 = dtype. BF16 with F32: the optimizer keeps the low halves of the weights
                                 (moed_op_slice.low) */
    int32_t reserved;
} moed_backend_info;

/* Scalars that change by step, in device memory, so that a step can be recorded once and replayed. Grows at its end: a later
 * field is for operations that came with it, and an older host, whose struct is shorter, never calls them. */
typedef struct moed_step_scalars {
    double learning_rate;
    double beta1_correction;  /* 1 - beta1^step */
    double beta2_correction;
    double gradient_scale;    /* applied to gradients before norm and update: 1 / calls accumulated */
    double gradient_norm;     /* out: after gradient_scale, before clipping */
    double clip_factor;       /* out: min(1, clip / norm) */
    uint64_t step;
    uint64_t random;          /* of this run and step alone: what random bits are made of */
    double balance_rate;      /* of moed_op_balance */
} moed_step_scalars;

/* ---- arguments of the operations ---- */

/* out (count, width) = table (vocabulary, width)[tokens]; backward: d_table[tokens] += d_out. */
typedef struct moed_op_embedding {
    void *out;
    const void *table;
    void *d_table;
    const void *d_out;
    const int32_t *tokens;
    int64_t count, width, vocabulary;
} moed_op_embedding;

/* out (rows, width) = x * rstd * weight, rstd (rows, wide) = 1/sqrt(mean(x^2) + epsilon), kept for backward.
 * backward: d_x += ..., d_weight += ... (d_weight may be NULL); where d_x is d_out, d_x = ...
 * Rows lie one after another, or, with parts, as equal parts of longer ones: row r then begins at (r / parts) * stride +
 * (r % parts) * width in x, and likewise by out_stride in out, d_x and d_out. The norms of queries and keys are such. */
typedef struct moed_op_rmsnorm {
    void *out;
    void *rstd;
    const void *x, *weight;
    void *d_x, *d_weight;
    const void *d_out;
    int64_t rows, width;
    double epsilon;
    int64_t parts;            /* rows / parts whole ones; 0: each row is whole, and strides do not count */
    int64_t stride, out_stride;
} moed_op_rmsnorm;

/* c (m, n) = [c +] op(a) (m, k) * op(b) (k, n) [+ bias (n)]. transpose_a: a is stored (k, m); transpose_b: b is stored (n, k).
 * Row strides lda, ldb, ldc; wide_c: c is wide, and there is no bias. accumulate adds c, or addend (shape, stride and type of c)
 * where it is given. A linear layer y = x w^T: transpose_b; its d_x = d_y w: neither; its d_w += d_y^T x: transpose_a. */
typedef struct moed_op_gemm {
    void *c;
    const void *a, *b, *bias;
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    int32_t transpose_a, transpose_b, accumulate, wide_c;
    const void *addend;       /* nullable; may be c, and else does not overlap it */
} moed_op_gemm;

/* A gemm per group g; offsets (groups + 1) int64 on the device, ascending, from 0 unless these are some groups of more.
 *   ragged rows (reduce = 0): rows offsets[g] .. offsets[g+1] of a and c; b + g * stride_b; m is the sum over groups, or more
 *   ragged reduction (reduce = 1): c + g * stride_c (m, n) from rows offsets[g].. of a (k_g, m) and b (k_g, n), transpose_a = 1;
 *   k is the sum over groups. Empty groups leave c alone (accumulate) or zero it. */
typedef struct moed_op_grouped_gemm {
    void *c;
    const void *a, *b;
    const int64_t *offsets;
    int64_t groups;
    int64_t m, n, k;
    int64_t lda, ldb, ldc;
    int64_t stride_b, stride_c;
    int32_t reduce, transpose_b, accumulate, reserved;
} moed_op_grouped_gemm;

/* d_bias (n) += sum over m rows of d_out (m, n; row stride ld). */
typedef struct moed_op_bias_backward {
    void *d_bias;
    const void *d_out;
    int64_t m, n, ld;
} moed_op_bias_backward;

/* In place on x: `heads` heads of head_dim at x + token * stride. Halves are rotated together: (x1, x2) -> (x1 c - x2 s, x2 c +
 * x1 s). cosine, sine wide (positions known, head_dim / 2); inverse = 1 rotates back (backward). */
typedef struct moed_op_rope {
    void *x;
    const void *cosine, *sine;
    const int32_t *positions; /* (count) */
    int64_t count, heads, head_dim, stride;
    int32_t inverse, reserved;
} moed_op_rope;

/* Causal attention with grouped queries. Token i attends to tokens [start[i], i] (start (N): absolute token index; never before
 * its own row's first). q, k, v at base + token * stride, heads consecutive. out (N, heads, head_dim) contiguous, lse (heads, N,
 * wide). backward: d_q, d_k, d_v "=" with the same strides. */
typedef struct moed_op_attention {
    void *out, *lse;
    const void *q, *k, *v;
    void *d_q, *d_k, *d_v;
    const void *d_out;
    const int32_t *start;
    int64_t rows, length;
    int64_t heads, kv_heads, head_dim;
    int64_t stride;           /* of q, k, v and their gradients */
    double scale;
    int32_t whole;            /* 1: every start is its row's first token; 0: it may be, the device knows */
    int32_t reserved;
} moed_op_attention;

/* out (rows, width) = silu(gate) * up, gate_up (rows, 2 * width): gate first. backward: d_gate_up = ...
 * In backward the outputs may have been weighted, as those of experts are: for each i, row slot[i] (slot nullable: i) counts
 * weights[i] times (nullable: 1). d_gate_up takes weights[i] d_out, d_weights[i] (nullable) = d_out . out of before, and out
 * (nullable) = weights[i] times out of before, made again. d_gate_up may be gate_up, and out may be d_out. weights and d_weights
 * are wide. */
typedef struct moed_op_swiglu {
    void *out;
    const void *gate_up;
    void *d_gate_up;
    const void *d_out;
    int64_t rows, width;
    const void *weights;
    void *d_weights;
    const int32_t *slot;      /* (rows) a permutation */
} moed_op_swiglu;

enum { /* moed_op_router.score */
    MOED_SCORE_SOFTMAX = 0,   /* over the experts: probabilities */
    MOED_SCORE_SIGMOID = 1    /* of each logit alone */
};

/* The top_k highest of score + bias are chosen (ties: the lower index; bias (experts, wide) nullable: 0). weights = weight_scale
 * times their scores, without the bias, divided by the sum of the chosen scores when normalise.
 * logits, probabilities (rows, experts; the scores); ids, weights (rows, top_k); lse (rows) of the logits, all wide. replay = 1:
 * ids is an input. losses (2, wide) += { experts * sum_e f_e P_e, mean lse^2 } * loss_scale: f_e share of choices, P_e mean of
 * the scores, each divided by the sum of its row's (nullable). ids are valid and distinct even where logits are not numbers.
 * backward: d_logits (real) = of d_weights (wide), plus load_balance * loss_scale and z_loss * loss_scale times the gradients of
 * those two; ids, f_e and bias are constants: no gradient trains a bias, how often an expert is chosen does. That is
 * offsets[e + 1] - offsets[e], where offsets is what dispatch made of ids (here so that they need not be counted again;
 * nullable). */
typedef struct moed_op_router {
    void *probabilities, *weights, *lse;
    int32_t *ids;
    const void *logits;
    void *losses;
    void *d_logits;
    const void *d_weights;
    int64_t rows, experts, top_k;
    int32_t normalise, replay;
    double load_balance, z_loss, loss_scale;
    const int64_t *offsets;
    const void *bias;
    double weight_scale;      /* 0 = 1 */
    int32_t score, reserved;
} moed_op_router;

/* Optional: training a router with a selection bias at a balance_rate above 0 needs it. bias (experts, wide) +=
 * scalars->balance_rate * share * way: of an expert that was chosen offsets[e + 1] - offsets[e] times (offsets (experts + 1)
 * int64), way is (mean - own) / (band * mean), cut off at -1 and 1, or the sign of mean - own where band is 0; 0 where own is
 * the mean. In double, rounded once: the same bits on every device. scalars: device. Source: arXiv 2408.15664. */
typedef struct moed_op_balance {
    void *bias;
    const int64_t *offsets;
    const moed_step_scalars *scalars;
    int64_t experts;
    double share;             /* of the step's rows that offsets counts */
    double band;
} moed_op_balance;

/* Stable counting sort of the choices by expert: offsets (experts + 1) int64; slot (rows, top_k): place of a choice in the
 * sorted order; source (rows * top_k): row of each place. */
typedef struct moed_op_dispatch {
    const int32_t *ids;
    int64_t *offsets;
    int32_t *slot, *source;
    int64_t rows, experts, top_k;
} moed_op_dispatch;

/* out (rows * top_k, width) = x (rows, width)[source]; backward: d_x[row] += sum over its slots of d_out. */
typedef struct moed_op_gather {
    void *out;
    const void *x;
    void *d_x;
    const void *d_out;
    const int32_t *source, *slot;
    int64_t rows, top_k, width;
} moed_op_gather;

/* out (rows, width) = out, or addend (the same shape) where it is given, + sum_j weights[row][j] * y[slot[row][j]];
 * backward: d_y[slot] = weight * d_out[row], d_weights[row][j] = d_out[row] . y[slot]. weights and d_weights are wide. */
typedef struct moed_op_combine {
    void *out;
    const void *y, *weights;
    void *d_y, *d_weights;
    const void *d_out;
    const int32_t *slot;
    int64_t rows, top_k, width;
    const void *addend;       /* nullable; may be out, and else does not overlap it */
} moed_op_combine;

/* out (rows, width) += sigmoid(gate (rows)) * x; backward: d_x = , d_gate (rows) = . */
typedef struct moed_op_sigmoid_gate {
    void *out;
    const void *x, *gate;
    void *d_x, *d_gate;
    const void *d_out;
    int64_t rows, width;
} moed_op_sigmoid_gate;

/* Loss of the output head without holding all logits: losses (rows, wide) = weights * cross-entropy of h (rows, width) * head^T
 * (vocabulary, width) against labels (-1: 0). When d_h is given: d_h = and d_head += (nullable) of scale * sum of losses. */
typedef struct moed_op_cross_entropy {
    void *losses;
    const void *h, *head;
    const int32_t *labels;
    const float *weights;     /* (rows), nullable */
    void *d_h, *d_head;
    int64_t rows, width, vocabulary;
    double scale;
} moed_op_cross_entropy;

/* One tensor of an optimizer step. m, v (wide), gradient as long as the parameter; the gradient is only read. low (nullable): the
 * parameter's number is the float whose bits are (parameter's bits << 16) + low; what is written is rounded to the nearest BF16,
 * ties up, and what is left goes to low.
 * m_scale, v_scale (both or neither, then without low): m and v are codes of 8 bits (uint8), and each block of 256 numbers, the
 * last one shorter, has a float in either. A number of m is its scale times its code's value: bit 7 is the sign; c, bits 0 to 6,
 * is 0, or the float whose bits are (c + 889) << 20. v is the square of scale times value: a code c is 0, or the float whose bits
 * are (c + 1777) << 19. What is written is rounded to one of the two codes beside it, the nearer the likelier, and so is a BF16
 * parameter; the random bits come from scalars->random, the block's number (the slice's first is `block`, none is another
 * slice's) and the place in it, nothing else. */
typedef struct moed_op_slice {
    void *parameter, *gradient, *m, *v;
    int64_t count;
    double weight_decay;
    int16_t *low;
    float *m_scale, *v_scale;
    int64_t block;
} moed_op_slice;

/* gradient_norm: scalars->gradient_norm and clip_factor from all gradients (times gradient_scale); clip 0 = factor 1. Where one
 * of losses (loss_count, wide; nullable) is NaN or infinite, gradient_norm is NaN.
 * adamw: g = gradient * gradient_scale * clip_factor, m and v its running means, each divided by its correction in the update:
 * parameter -= learning_rate * (m' / (sqrt(v') + epsilon) + weight_decay * parameter). Nothing is written where
 * scalars->gradient_norm is NaN or infinite: a bad step is dropped on the device, without asking the host. slices: host array;
 * scalars: device. */
typedef struct moed_op_update {
    const moed_op_slice *slices;
    int64_t count;
    moed_step_scalars *scalars;
    double beta1, beta2, epsilon, clip;
    const void *losses;
    int64_t loss_count;
} moed_op_update;

/* Optional, and only together. out (count) = tanh(x); backward: d_x = d_out (1 - out^2). out may be x, d_x may be d_out. */
typedef struct moed_op_squash {
    void *out;
    const void *x;
    void *d_x;
    const void *d_out;
    int64_t count;
} moed_op_squash;

/* out (1) = [+=] scale * sum of x (count), both wide, in double inside. */
typedef struct moed_op_sum {
    void *out;
    const void *x;
    int64_t count;
    double scale;
    int32_t accumulate, reserved;
} moed_op_sum;

/* out (count) = a + b (any may alias). */
typedef struct moed_op_add {
    void *out;
    const void *a, *b;
    int64_t count;
} moed_op_add;

/* out (documents, width) f32 = mean of table rows over tokens[offsets[i] .. offsets[i+1]); zeros when empty. */
typedef struct moed_op_embed_mean {
    float *out;
    const void *table;
    const int32_t *tokens;
    const int64_t *offsets;
    int64_t documents, width;
} moed_op_embed_mean;

/* labels (count) = argmin_k ||x - centroid_k||^2 + penalty_k (penalty (clusters) double, nullable; ties: lower k); distances
 * (count, nullable) squared, without the penalty. x (count, width), centroids (clusters, width) f32. */
typedef struct moed_op_kmeans_assign {
    int32_t *labels;
    float *distances;
    const float *x, *centroids;
    const double *penalty;
    int64_t count, width, clusters;
} moed_op_kmeans_assign;

/* sums (clusters, width) double, totals (clusters) double, counts (clusters) int64: all "=", from labels and weights (nullable:
 * 1). */
typedef struct moed_op_kmeans_accumulate {
    double *sums, *totals;
    int64_t *counts;
    const float *x, *weights;
    const int32_t *labels;
    int64_t count, width, clusters;
} moed_op_kmeans_accumulate;

/* Optional. labels as kmeans_assign gives them without a penalty, then sums, totals and counts as kmeans_accumulate gives them
 * from these labels; x is read once. lower (count, nullable) may hold between steps of one fit what spares searches: it is the
 * engine's to write; moved (clusters) is how far each centroid has gone since the step that wrote labels and lower, NULL where
 * neither holds anything yet. The results do not depend on lower. */
typedef struct moed_op_kmeans_step {
    int32_t *labels;
    double *sums, *totals;
    int64_t *counts;
    float *lower;
    const float *x, *weights, *centroids, *moved;
    int64_t count, width, clusters;
} moed_op_kmeans_step;

/* Optional. centroids (clusters, width) = sums / totals where the total is above 0; the others stay. moved (clusters) = how far
 * each has gone, not less. With it sums and centroids need not pass through the host between steps. */
typedef struct moed_op_kmeans_move {
    float *centroids, *moved;
    const double *sums, *totals;
    int64_t width, clusters;
} moed_op_kmeans_move;

/* Optional. distances (clusters, count) = ||x - centroid||^2; 0 for equal vectors. */
typedef struct moed_op_kmeans_distances {
    float *distances;
    const float *x, *centroids;
    int64_t count, width, clusters;
} moed_op_kmeans_distances;

/* What goes into a stretch of numbers, in order: the first term, a COPY or DRAW, sets them, DELTAs add to them (op:
 * MOED_PIECE_COPY, ... of base.h). Element (b, r, c) of source and of reference lies at b * block + r * row + c, in elements; a
 * DRAW's is scale * normal(key, step, index + b * block + r * row + c). */
typedef struct moed_op_term {
    int32_t op;
    int32_t dtype, reference_dtype; /* F64, F32, F16 or BF16; of a lone COPY of scale 1 anything of whole bytes */
    int32_t reserved;
    const void *source, *reference;
    int64_t block, row;
    int64_t reference_block, reference_row;
    double scale;
    uint64_t key, step, index;
} moed_op_term;

/* Optional. out (blocks, rows, width; dtype) = terms, as base.h says of pieces: in double, over all terms of an element in order,
 * rounded once; a sum of zero leaves the first term's bits alone, those of a COPY of scale 1 in out's dtype NaNs included. terms:
 * a host array, read before the call returns. The same bits on every device: no products and sums contracted, and util/normal.h's
 * numbers. */
typedef struct moed_op_blend {
    void *out;
    const moed_op_term *terms;
    int64_t count;            /* of terms, at least 1 */
    int64_t blocks, rows, width;
    int64_t block, row;       /* strides of out */
    int32_t dtype;            /* of out */
    int32_t reserved;
} moed_op_blend;

/* A training step by its sizes, for who asks before there is an engine. */
typedef struct moed_workload {
    uint32_t struct_size;
    int32_t dtype, wide;      /* of the arithmetic, as moed_backend_info has them */
    int32_t masked;           /* 1: rows hold several documents, which do not see each other */
    int64_t rows, length;     /* of a micro-batch */
    int64_t hidden, vocabulary;
    int64_t heads, kv_heads, head_dim;
    int64_t experts, top_k;   /* an only expert is not routed: its products are plain ones */
    int64_t expert_width, shared_width; /* shared: of the widest feed-forward that every token passes, 0 = there is none */
    int64_t slices, numbers;  /* that the optimizer updates: tensors, and numbers in all of them */
} moed_workload;

/* The table. Memory and every operation without "optional" must be there. */
typedef struct moed_backend {
    uint32_t struct_size;
    uint32_t abi;             /* MOED_BACKEND_ABI */
    const char *name;         /* "cpu"; devices are NAME:INDEX */

    /* devices: fills out for device `index`; MOED_E_RANGE past the last */
    moed_status (*device)(const moed_host_api *host, int32_t index, moed_device_info *out);
    /* opens an engine; table: the operations to use with it, often this very table (a kernel set or chip may have its own) */
    moed_status (*open)(const moed_host_api *host, const moed_backend_config *config, void **self,
                        const struct moed_backend **table);
    void (*close)(void *self);
    moed_status (*info)(void *self, moed_backend_info *out);

    /* memory: uninitialised, aligned to 64 bytes at least */
    moed_status (*alloc)(void *self, size_t size, void **out);
    void (*free)(void *self, void *memory);
    /* the host array has been read when upload returns; download has written it after synchronize */
    moed_status (*upload)(void *self, void *device, const void *host, size_t size);
    moed_status (*download)(void *self, void *host, const void *device, size_t size);
    moed_status (*copy)(void *self, void *to, const void *from, size_t size);
    moed_status (*zero)(void *self, void *device, size_t size);
    moed_status (*synchronize)(void *self);

    /* operations */
    moed_status (*embedding)(void *self, const moed_op_embedding *a);
    moed_status (*embedding_backward)(void *self, const moed_op_embedding *a);
    moed_status (*rmsnorm)(void *self, const moed_op_rmsnorm *a);
    moed_status (*rmsnorm_backward)(void *self, const moed_op_rmsnorm *a);
    moed_status (*gemm)(void *self, const moed_op_gemm *a);
    moed_status (*grouped_gemm)(void *self, const moed_op_grouped_gemm *a);
    moed_status (*bias_backward)(void *self, const moed_op_bias_backward *a);
    moed_status (*rope)(void *self, const moed_op_rope *a);
    moed_status (*attention)(void *self, const moed_op_attention *a);
    moed_status (*attention_backward)(void *self, const moed_op_attention *a);
    moed_status (*swiglu)(void *self, const moed_op_swiglu *a);
    moed_status (*swiglu_backward)(void *self, const moed_op_swiglu *a);
    moed_status (*router)(void *self, const moed_op_router *a);
    moed_status (*router_backward)(void *self, const moed_op_router *a);
    moed_status (*dispatch)(void *self, const moed_op_dispatch *a);
    moed_status (*gather)(void *self, const moed_op_gather *a);
    moed_status (*gather_backward)(void *self, const moed_op_gather *a);
    moed_status (*combine)(void *self, const moed_op_combine *a);
    moed_status (*combine_backward)(void *self, const moed_op_combine *a);
    moed_status (*sigmoid_gate)(void *self, const moed_op_sigmoid_gate *a);
    moed_status (*sigmoid_gate_backward)(void *self, const moed_op_sigmoid_gate *a);
    moed_status (*cross_entropy)(void *self, const moed_op_cross_entropy *a);
    moed_status (*gradient_norm)(void *self, const moed_op_update *a);
    moed_status (*adamw)(void *self, const moed_op_update *a);
    moed_status (*sum)(void *self, const moed_op_sum *a);
    moed_status (*add)(void *self, const moed_op_add *a);
    moed_status (*embed_mean)(void *self, const moed_op_embed_mean *a);
    moed_status (*kmeans_assign)(void *self, const moed_op_kmeans_assign *a);
    moed_status (*kmeans_accumulate)(void *self, const moed_op_kmeans_accumulate *a);
    moed_status (*kmeans_step)(void *self, const moed_op_kmeans_step *a);           /* optional */
    moed_status (*kmeans_distances)(void *self, const moed_op_kmeans_distances *a); /* optional */

    /* Optional, and only together: the device has streams. On config's device and stream, without an engine; the stream NULL:
     * wait_event waits, record_event records an event with nothing before it. */
    moed_status (*wait_event)(const moed_host_api *host, const moed_backend_config *config, void *event);
    moed_status (*record_event)(const moed_host_api *host, const moed_backend_config *config, void *event);

    /* Optional, and only together: what operations, copy and zero would do between begin and end is recorded instead, with its
     * addresses and host numbers as they are then, and graph_launch enqueues it all, as often as wanted, on what the addresses
     * then hold. While it is recorded nothing else is asked of the engine, and every operation has run before with the same
     * shapes. begin: MOED_E_UNSUPPORTED where the stream cannot. end: ends the recording in any case. launch: MOED_E_UNSUPPORTED,
     * nothing done, when memory of the engine's own has moved since: record again. */
    moed_status (*graph_begin)(void *self);
    moed_status (*graph_end)(void *self, void **graph);
    moed_status (*graph_launch)(void *self, void *graph);
    void (*graph_free)(void *self, void *graph);

    /* Optional. */
    moed_status (*blend)(void *self, const moed_op_blend *a);
    moed_status (*kmeans_move)(void *self, const moed_op_kmeans_move *a);

    /* Optional. Bytes of device memory, at most, that an engine takes and keeps for the operations of such a step, beside what
     * is had by alloc: they count against its limit. A function of w alone, asked of the table that the entry gives, without an
     * engine; a table that lacks it counts 0. */
    int64_t (*workspace)(const moed_workload *w);

    /* Optional: models whose router has two layers need them. */
    moed_status (*squash)(void *self, const moed_op_squash *a);
    moed_status (*squash_backward)(void *self, const moed_op_squash *a);

    /* Optional: training a router with a selection bias at a balance_rate above 0 needs it. */
    moed_status (*balance)(void *self, const moed_op_balance *a);
} moed_backend;

/* A slot that a newer table has and an older plug-in may lack. */
#define MOED_BACKEND_HAS(table, slot)                                                                       \
    ((table)->struct_size >= offsetof(moed_backend, slot) + sizeof((table)->slot) && (table)->slot != NULL)

/* The plug-in's only export, by this name. NULL when it cannot work with this host. */
typedef const moed_backend *(*moed_backend_entry_fn)(const moed_host_api *host);
#define MOED_BACKEND_ENTRY "moed_backend_entry_v1"

#ifdef __cplusplus
}
#endif
#endif
