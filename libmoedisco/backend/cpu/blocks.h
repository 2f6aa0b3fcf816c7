/* backend/cpu/blocks.h - the sizes of the pieces that the fast operations work in. The kernels of every set go by it, and so does
 * the estimate of what a run takes. */
#ifndef MOEDI_BLOCKS_H
#define MOEDI_BLOCKS_H

#include <stddef.h>
#include <stdint.h>

enum { /* of a matrix product */
    MOEDI_GEMM_DEPTH = 384,                        /* of the reduction in one pass: a right panel stays in the first-level
                                                      cache */
    MOEDI_GEMM_TILE_ROWS = 168,                    /* of a task: a multiple of 14, 12 and 6; with DEPTH in the second-level
                                                      cache */
    MOEDI_GEMM_TILE_COLUMNS = 256,
    MOEDI_GEMM_BLOCK_ROWS = 25 * MOEDI_GEMM_TILE_ROWS, /* packed at a time */
    MOEDI_GEMM_BLOCK_COLUMNS = 16 * MOEDI_GEMM_TILE_COLUMNS,
    MOEDI_GEMM_GROUPS = 32                             /* of a grouped product, done together at most */
};

enum { /* of the output head's loss */
    MOEDI_LOSS_LOGITS = 1 << 23,                   /* held at a time, about */
    MOEDI_LOSS_ROWS_MOST = 1008,
    MOEDI_LOSS_ROWS_LEAST = 84
};

enum { /* of attention: whole panels of every kernel set */
    MOEDI_ATTENTION_QUERIES = 84,
    MOEDI_ATTENTION_KEYS = 96,
    MOEDI_PANEL_ROWS = 14, /* of a panel, at most in any set */
    MOEDI_PANEL_COLUMNS = 32
};

static inline int64_t moedi_blocks_least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t moedi_blocks_round_up(int64_t n, int64_t to)
{
    return (n + to - 1) / to * to;
}

/* Bytes of both operands' packed panels in a product (m, n, k), filled up to register tiles of rows x columns. */
static inline size_t moedi_gemm_bytes(int64_t m, int64_t n, int64_t k, int64_t tile_rows, int64_t tile_columns)
{
    const int64_t rows = moedi_blocks_round_up(moedi_blocks_least(m, MOEDI_GEMM_BLOCK_ROWS), tile_rows);
    const int64_t columns = moedi_blocks_round_up(moedi_blocks_least(n, MOEDI_GEMM_BLOCK_COLUMNS), tile_columns);
    const int64_t depth = moedi_blocks_least(k, MOEDI_GEMM_DEPTH);
    return (size_t)(moedi_blocks_round_up(rows * depth, 16) + columns * depth) * sizeof(float);
}

/* Groups of a grouped product whose right panels, n columns each, exist at a time. */
static inline int64_t moedi_gemm_together(int64_t groups, int64_t n)
{
    const int64_t fitting = moedi_blocks_least(MOEDI_GEMM_GROUPS, 2 * MOEDI_GEMM_BLOCK_COLUMNS / (n > 0 ? n : 1));
    return moedi_blocks_least(fitting > 1 ? fitting : 1, groups > 1 ? groups : 1);
}

/* Tiles of rows that are packed at a time in a grouped product of m rows, or of `times` matrices of m rows: one for each
 * thread. */
static inline int64_t moedi_gemm_slices(int64_t m, int64_t times)
{
    return moedi_blocks_least((m + MOEDI_GEMM_TILE_ROWS - 1) / MOEDI_GEMM_TILE_ROWS * times, 64);
}

/* Numbers of one of them: `largest` rows of a group at most. */
static inline int64_t moedi_gemm_slice(int64_t largest, int64_t depth, int64_t tile_rows)
{
    return moedi_blocks_round_up(moedi_blocks_round_up(moedi_blocks_least(largest, MOEDI_GEMM_TILE_ROWS), tile_rows) * depth, 16);
}

/* Bytes of panels of a grouped product: `largest` rows of a group; m rows of all, or of every group where it reduces. */
static inline size_t moedi_grouped_bytes(int64_t groups, int64_t largest, int64_t m, int64_t n, int64_t k, int reduce,
                                         int64_t tile_rows, int64_t tile_columns)
{
    const int64_t together = moedi_gemm_together(groups, n), depth = moedi_blocks_least(k, MOEDI_GEMM_DEPTH);
    if (together == 1) return moedi_gemm_bytes(largest, n, k, tile_rows, tile_columns);
    const int64_t left = moedi_gemm_slices(m, reduce ? together : 1) * moedi_gemm_slice(largest, depth, tile_rows);
    return (size_t)(left + together * moedi_blocks_round_up(n, tile_columns) * depth) * sizeof(float);
}

/* Rows of logits that the loss of `rows` tokens is computed in at a time. */
static inline int64_t moedi_loss_rows(int64_t rows, int64_t vocabulary)
{
    const int64_t fitting = moedi_blocks_least(MOEDI_LOSS_LOGITS / (vocabulary > 0 ? vocabulary : 1), MOEDI_LOSS_ROWS_MOST);
    return moedi_blocks_least(fitting < MOEDI_LOSS_ROWS_LEAST ? MOEDI_LOSS_ROWS_LEAST : fitting, rows);
}

/* Bytes of those logits. */
static inline size_t moedi_loss_logit_bytes(int64_t rows, int64_t vocabulary)
{
    return (size_t)moedi_blocks_round_up(moedi_loss_rows(rows, vocabulary) * vocabulary, 16) * sizeof(float);
}

/* Bytes of the panels of its three products: the logits, and from their gradients those of h and of the head. */
static inline size_t moedi_loss_panel_bytes(int64_t rows, int64_t vocabulary, int64_t width, int64_t tile_rows,
                                            int64_t tile_columns)
{
    const int64_t chunk = moedi_loss_rows(rows, vocabulary);
    size_t most = moedi_gemm_bytes(chunk, vocabulary, width, tile_rows, tile_columns);
    const size_t to_h = moedi_gemm_bytes(chunk, width, vocabulary, tile_rows, tile_columns);
    const size_t to_head = moedi_gemm_bytes(vocabulary, width, chunk, tile_rows, tile_columns);
    if (to_h > most) most = to_h;
    return to_head > most ? to_head : most;
}

/* Bytes of a task of attention, at most; group: query heads of a key head. */
static inline size_t moedi_attention_bytes(int64_t head_dim, int64_t group)
{
    const int64_t Q = MOEDI_ATTENTION_QUERIES, K = MOEDI_ATTENTION_KEYS;
    const int64_t wide = moedi_blocks_round_up(head_dim, MOEDI_PANEL_COLUMNS);
    return (size_t)(K * (head_dim + wide) + 2 * Q * K + group * Q * (head_dim + 2)) * sizeof(float);
}

/* The same of its backward, over rows of `length`. */
static inline size_t moedi_attention_backward_bytes(int64_t head_dim, int64_t group, int64_t length)
{
    const int64_t Q = MOEDI_ATTENTION_QUERIES, K = MOEDI_ATTENTION_KEYS;
    const int64_t wide = moedi_blocks_round_up(head_dim, MOEDI_PANEL_COLUMNS);
    return (size_t)(2 * (K + Q) * head_dim + (K + 2 * Q) * wide + 2 * Q * K + (K + MOEDI_PANEL_ROWS) * Q + group * length) *
           sizeof(float);
}

#endif
