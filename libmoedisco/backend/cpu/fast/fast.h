/* fast/fast.h - what the files of the fast operations share. Every external name carries the set (see cpu.h). */
#ifndef MOEDI_FAST_H
#define MOEDI_FAST_H

#include <string.h>

#include "../blocks.h"
#include "../cpu.h"
#include "simd.h"

/* ---- running in tasks: the cut depends on the shape alone ---- */

typedef struct moedi_cut {
    int64_t tasks, size;
} moedi_cut;

/* `count` items that cost about `cost` elements each, in at most 256 tasks worth waking a thread for. */
INLINE moedi_cut cut(int64_t count, int64_t cost)
{
    const int64_t least = 1 + 16384 / (cost > 0 ? cost : 1), share = (count + 255) / 256;
    moedi_cut c;
    c.size = least > share ? least : share;
    c.tasks = (count + c.size - 1) / c.size;
    return c;
}
INLINE void run(moedi_cpu *e, int64_t tasks, moed_task_fn task, void *argument)
{
    if (tasks == 1) task(argument, 0);
    else if (tasks > 1) e->host->parallel(e->host->self, tasks, task, argument);
}
INLINE int64_t least_of(int64_t a, int64_t b)
{
    return a < b ? a : b;
}
INLINE int64_t round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Scratch for tasks: `slices` pieces of one block, claimed for the time of a task. What lies in them never reaches a result,
 * so it does not matter who gets which. */
typedef struct moedi_slices {
    char *base;
    int64_t size;
    int64_t slices;       /* at most 64 */
    uint64_t busy;        /* atomic: a bit for each */
} moedi_slices;
#define moedi_slices_open MOEDI_VARIED(slices_open)
#define moedi_slices_open_with MOEDI_VARIED(slices_open_with)
#define moedi_slices_claim MOEDI_VARIED(slices_claim)
#define moedi_slices_release MOEDI_VARIED(slices_release)
moed_status moedi_slices_open(moedi_slices *s, moedi_cpu *e, int64_t tasks, int64_t size);
/* The same with memory that all tasks share before them. */
moed_status moedi_slices_open_with(moedi_slices *s, moedi_cpu *e, int64_t tasks, int64_t size, int64_t shared_size,
                                   void **shared);
void *moedi_slices_claim(moedi_slices *s);
void moedi_slices_release(moedi_slices *s, void *slice);

/* ---- matrix products ---- */

/* Register tile: ROWS x COLUMNS of c. */
#if defined(__AVX512F__)
#define ROWS 14
#elif defined(__aarch64__)
#define ROWS 12
#else
#define ROWS 6
#endif
#define COLUMNS (2 * VECTOR)

/* Packs item (i, p), i < count, p < k, at source[i * si + p * sk] for the micro-kernel; the last panel is filled with zeros.
 * left: i are rows of c, panels of ROWS; right: i are columns of c, panels of COLUMNS. */
#define moedi_pack_left MOEDI_VARIED(pack_left)
#define moedi_pack_right MOEDI_VARIED(pack_right)
void moedi_pack_left(float *out, const float *source, int64_t si, int64_t sk, int64_t count, int64_t k);
void moedi_pack_right(float *out, const float *source, int64_t si, int64_t sk, int64_t count, int64_t k);

/* c (m, n; row stride ldc) = [c +] left * right [+ bias (n)], both packed. */
#define moedi_multiply_packed MOEDI_VARIED(multiply_packed)
void moedi_multiply_packed(float *c, int64_t ldc, const float *left, const float *right, const float *bias, int64_t m, int64_t n,
                           int64_t k, bool accumulate);

/* The whole product with the engine's threads; scratch of moedi_gemm_bytes(m, n, k, ROWS, COLUMNS). */
#define moedi_gemm_with MOEDI_VARIED(gemm_with)
void moedi_gemm_with(moedi_cpu *e, const moed_op_gemm *a, void *scratch);

/* ---- the operations of the table ---- */

#define MOEDI_FAST_OPERATIONS(X)                                                                                             \
    X(embedding, embedding) X(embedding_backward, embedding) X(rmsnorm, rmsnorm) X(rmsnorm_backward, rmsnorm) X(gemm, gemm)  \
    X(grouped_gemm, grouped_gemm) X(bias_backward, bias_backward) X(rope, rope) X(attention, attention)                      \
    X(attention_backward, attention) X(swiglu, swiglu) X(swiglu_backward, swiglu) X(router, router)                          \
    X(router_backward, router) X(dispatch, dispatch) X(gather, gather) X(gather_backward, gather) X(combine, combine)        \
    X(combine_backward, combine) X(sigmoid_gate, sigmoid_gate) X(sigmoid_gate_backward, sigmoid_gate)                        \
    X(cross_entropy, cross_entropy) X(gradient_norm, update) X(adamw, update) X(sum, sum) X(add, add)                        \
    X(embed_mean, embed_mean) X(kmeans_assign, kmeans_assign) X(kmeans_accumulate, kmeans_accumulate)                \
    X(kmeans_step, kmeans_step) X(kmeans_distances, kmeans_distances) X(squash, squash) X(squash_backward, squash)
#define MOEDI_DECLARE(slot, type) moed_status MOEDI_VARIED(slot)(void *self, const moed_op_##type *a);
MOEDI_FAST_OPERATIONS(MOEDI_DECLARE)
#undef MOEDI_DECLARE

#endif
