/* fast/gemm.c - matrix products: operands packed into panels, a register tile of ROWS x COLUMNS over them (Goto and van de Geijn,
 * "Anatomy of High-Performance Matrix Multiplication", 2008).
 *
 * A product is done in blocks of DEPTH of the reduction: first both operands' panels of the block are packed into scratch, then
 * the tiles of c are computed, each phase in tasks. Every element of c is one chain of multiply-adds over k in order, cut at the
 * blocks: its bits depend on k alone, not on where the element lies or who computes it. */
#include "fast.h"

enum {
    DEPTH = MOEDI_GEMM_DEPTH,
    TILE_ROWS = MOEDI_GEMM_TILE_ROWS,
    TILE_COLUMNS = MOEDI_GEMM_TILE_COLUMNS,
    BLOCK_ROWS = MOEDI_GEMM_BLOCK_ROWS,
    BLOCK_COLUMNS = MOEDI_GEMM_BLOCK_COLUMNS,
    SPAN = 6 * TILE_COLUMNS,      /* of columns that a task goes over with the rows it packed, at most */
    MANY_TILES = 6,
    AHEAD = 16,                   /* steps of the reduction that right panels are fetched ahead of their use */
    SMALL = 1 << 18               /* multiply-adds below which no thread is woken */
};

/* ---- packing ---- */

INLINE void pack_part(float *out, const float *source, int64_t si, int64_t sk, int64_t count, int64_t k, const int panel)
{
    for (int64_t p = 0; p < k; p++)
        for (int i = 0; i < panel; i++) out[p * panel + i] = i < count ? source[i * si + p * sk] : 0.0f;
}

/* Four columns of a whole panel whose rows are si apart. */
INLINE void pack_turned(float *out, const float *source, int64_t si, const int panel, bool last)
{
    vfloat turned[4];
    if (panel < VECTOR) { /* the lanes past the panel lie where its next four columns will */
        turn_four(turned, source, si, panel);
        for (int c = 0; c < 4; c++) {
            if (!last) store(out + c * panel, turned[c]);
            else __builtin_memcpy(out + c * panel, &turned[c], (size_t)least_of(panel, VECTOR) * sizeof(float));
        }
        return;
    }
    for (int i = 0; i < panel; i += VECTOR) {
        const int at = i + VECTOR <= panel ? i : panel - VECTOR; /* the last may overlap the one before */
        turn_four(turned, source + at * si, si, VECTOR);
        for (int c = 0; c < 4; c++) store(out + c * panel + at, turned[c]);
    }
}

INLINE void pack(float *out, const float *source, int64_t si, int64_t sk, int64_t count, int64_t k, const int panel)
{
    const int64_t whole = count / panel;
    if (si == 1) { /* along k outside, so that the source is read in long runs */
        for (int64_t p = 0; p < k; p++)
            for (int64_t j = 0; j < whole; j++)
                __builtin_memcpy(out + (j * k + p) * panel, source + p * sk + j * panel, (size_t)panel * sizeof(float));
    } else {
        for (int64_t j = 0; j < whole; j++) {
            float *to = out + j * panel * k;
            const float *from = source + j * panel * si;
            const int64_t squares = sk == 1 ? k / 4 * 4 : 0;
            for (int64_t p = 0; p < squares; p += 4) pack_turned(to + p * panel, from + p, si, panel, p + 4 == squares);
            pack_part(to + squares * panel, from + squares * sk, si, sk, panel, k - squares, panel);
        }
    }
    if (whole * panel < count)
        pack_part(out + whole * panel * k, source + whole * panel * si, si, sk, count - whole * panel, k, panel);
}

void moedi_pack_left(float *out, const float *source, int64_t si, int64_t sk, int64_t count, int64_t k)
{
    pack(out, source, si, sk, count, k, ROWS);
}
void moedi_pack_right(float *out, const float *source, int64_t si, int64_t sk, int64_t count, int64_t k)
{
    pack(out, source, si, sk, count, k, COLUMNS);
}

/* ---- the micro-kernel ---- */

/* Rows that will be packed next, to be fetched meanwhile: two vectors of each. */
typedef struct coming {
    const float *at; /* nullable */
    int64_t row;
} coming;

INLINE void micro(float *c, int64_t ldc, const float *left, const float *right, const float *bias, int64_t k, bool accumulate,
                  coming ahead)
{
    vfloat sum[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = (vfloat){0};
    const float *row = c;
    for (int at = 0; at < ROWS; at++) {
        /* The rows of c are fetched one by one along the way: all at once they would keep the panels waiting. */
        __builtin_prefetch(row, 1);
        __builtin_prefetch(row + COLUMNS - 1, 1);
        row += ldc;
        if (ahead.at) {
            __builtin_prefetch(ahead.at, 0, 2);
            __builtin_prefetch(ahead.at + COLUMNS - 1, 0, 2);
            ahead.at += ahead.row;
        }
        for (int64_t p = k / ROWS + (at < k % ROWS); p > 0; p--) {
            const vfloat b0 = load(right), b1 = load(right + VECTOR);
            __builtin_prefetch(right + AHEAD * COLUMNS);
            __builtin_prefetch(right + AHEAD * COLUMNS + COLUMNS - 1);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++) {
                const vfloat a = splat(left[r]);
                sum[r][0] += a * b0;
                sum[r][1] += a * b1;
            }
            left += ROWS, right += COLUMNS;
        }
    }
    vfloat first = {0}, second = {0};
    if (bias) first = load(bias), second = load(bias + VECTOR);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++, c += ldc) {
        vfloat s0 = sum[r][0], s1 = sum[r][1];
        if (accumulate) s0 += load(c), s1 += load(c + VECTOR);
        if (bias) s0 += first, s1 += second;
        store(c, s0);
        store(c + VECTOR, s1);
    }
}

/* A tile at the edge of c goes through a whole one beside it. */
static __attribute__((noinline)) void micro_edge(float *c, int64_t ldc, const float *left, const float *right, const float *bias,
                                                 int64_t m, int64_t n, int64_t k, bool accumulate)
{
    float tile[ROWS * COLUMNS];
    micro(tile, COLUMNS, left, right, NULL, k, false, (coming){0});
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            float s = tile[i * COLUMNS + j];
            if (accumulate) s += c[i * ldc + j];
            if (bias) s += bias[j];
            c[i * ldc + j] = s;
        }
}

/* ahead: rows of k numbers */
INLINE void multiply_panels(float *c, int64_t ldc, const float *left, const float *right, const float *bias, int64_t m, int64_t n,
                            int64_t k, bool accumulate, coming ahead)
{
    for (int64_t j = 0; j < n; j += COLUMNS)
        for (int64_t i = 0; i < m; i += ROWS) {
            const coming part = {ahead.at && j < k ? ahead.at + j : NULL, ahead.row};
            const float *l = left + i * k, *r = right + j * k, *b = bias ? bias + j : NULL;
            if (i + ROWS <= m && j + COLUMNS <= n) micro(c + i * ldc + j, ldc, l, r, b, k, accumulate, part);
            else micro_edge(c + i * ldc + j, ldc, l, r, b, least_of(ROWS, m - i), least_of(COLUMNS, n - j), k, accumulate);
        }
}
void moedi_multiply_packed(float *c, int64_t ldc, const float *left, const float *right, const float *bias, int64_t m, int64_t n,
                           int64_t k, bool accumulate)
{
    multiply_panels(c, ldc, left, right, bias, m, n, k, accumulate, (coming){0});
}

/* ---- the whole product ---- */

/* One pass: rows x columns of c over `depth` of the reduction. */
typedef struct pass {
    float *c;
    const float *a, *b, *bias;
    float *left, *right;
    int64_t a_row, a_depth, b_column, b_depth, ldc;
    int64_t rows, columns, depth;
    int64_t row_tiles, column_tiles, span, spans;
    moedi_slices slices; /* of left: a tile each */
    bool accumulate;
} pass;

static void pack_left_rows(const pass *p, float *out, int64_t at, int64_t rows)
{
    moedi_pack_left(out, p->a + at * p->a_row, p->a_row, p->a_depth, rows, p->depth);
}
static void pack_right_task(void *argument, int64_t index)
{
    const pass *p = argument;
    const int64_t at = index * TILE_COLUMNS;
    moedi_pack_right(p->right + at * p->depth, p->b + at * p->b_column, p->b_column, p->b_depth,
                     least_of(TILE_COLUMNS, p->columns - at), p->depth);
}

static void pack_task(void *argument, int64_t index)
{
    const pass *p = argument;
    if (index < p->row_tiles) {
        const int64_t at = index * TILE_ROWS;
        pack_left_rows(p, p->left + at * p->depth, at, least_of(TILE_ROWS, p->rows - at));
    }
    else pack_right_task(argument, index - p->row_tiles);
}
static void multiply(const pass *p, const float *left, int64_t i, int64_t rows, int64_t j, int64_t columns, coming ahead)
{
    multiply_panels(p->c + i * p->ldc + j, p->ldc, left, p->right + j * p->depth, p->bias ? p->bias + j : NULL, rows,
                    least_of(columns, p->columns - j), p->depth, p->accumulate, ahead);
}
static void tile_task(void *argument, int64_t index)
{
    const pass *p = argument;
    const int64_t i = index / p->column_tiles * TILE_ROWS, j = index % p->column_tiles * TILE_COLUMNS;
    multiply(p, p->left + i * p->depth, i, least_of(TILE_ROWS, p->rows - i), j, TILE_COLUMNS, (coming){0});
}
/* Rows enough for a task to pack its own and use them while they are in its cache: panel by panel, each fetched during the
 * product of the one before. Where a is transposed, all at once: a panel takes less than a cache line of each of its rows. */
static void rows_of(pass *p, moedi_slices *slices, int64_t index)
{
    const int64_t first = index / p->spans * TILE_ROWS, end = least_of(first + TILE_ROWS, p->rows);
    const int64_t j = index % p->spans * p->span;
    const int64_t together = p->a_depth == 1 ? ROWS : TILE_ROWS;
    float *left = moedi_slices_claim(slices);
    for (int64_t i = first; i < end; i += together) {
        const int64_t rows = least_of(together, end - i), next = i + together;
        pack_left_rows(p, left, i, rows);
        multiply(p, left, i, rows, j, p->span, (coming){next + ROWS <= end ? p->a + next * p->a_row : NULL, p->a_row});
    }
    moedi_slices_release(slices, left);
}
static void rows_task(void *argument, int64_t index)
{
    pass *p = argument;
    rows_of(p, &p->slices, index);
}

/* n in equal blocks of at most `most`, each a multiple of `step` */
static int64_t block_of(int64_t n, int64_t most, int64_t step)
{
    const int64_t blocks = (n + most - 1) / most;
    return blocks > 0 ? least_of(most, round_up((n + blocks - 1) / blocks, step)) : step;
}
static void tile(pass *p)
{
    p->row_tiles = (p->rows + TILE_ROWS - 1) / TILE_ROWS;
    p->column_tiles = (p->columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
    p->span = block_of(p->columns, SPAN, TILE_COLUMNS);
    p->spans = (p->columns + p->span - 1) / p->span;
}
static moedi_slices slices_of(void *base, int64_t count, int64_t rows, int64_t depth)
{
    const int64_t size = moedi_gemm_slice(rows, depth, ROWS) * (int64_t)sizeof(float);
    return (moedi_slices){.base = base, .slices = least_of(count, 64), .size = size};
}
static void run_pass(moedi_cpu *e, pass *p)
{
    tile(p);
    const int64_t packs = p->row_tiles + p->column_tiles, tiles = p->row_tiles * p->column_tiles;
    if (p->rows * p->columns * p->depth <= SMALL) {
        for (int64_t i = 0; i < packs; i++) pack_task(p, i);
        for (int64_t i = 0; i < tiles; i++) tile_task(p, i);
    } else if (p->row_tiles >= MANY_TILES) {
        p->slices = slices_of(p->left, p->row_tiles - 1, TILE_ROWS, p->depth);
        run(e, p->column_tiles, pack_right_task, p);
        run(e, p->row_tiles * p->spans, rows_task, p);
    } else {
        run(e, packs, pack_task, p);
        run(e, tiles, tile_task, p);
    }
}

/* A product over nothing. */
static void fill(float *c, int64_t m, int64_t n, int64_t ldc, const float *bias, bool accumulate)
{
    if (accumulate && !bias) return;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) c[i * ldc + j] = (accumulate ? c[i * ldc + j] : 0.0f) + (bias ? bias[j] : 0.0f);
}

void moedi_gemm_with(moedi_cpu *e, const moed_op_gemm *a, void *scratch)
{
    if (a->m <= 0 || a->n <= 0) return;
    if (a->k <= 0) {
        fill(a->c, a->m, a->n, a->ldc, a->bias, a->accumulate);
        return;
    }
    const int64_t rows = block_of(a->m, BLOCK_ROWS, TILE_ROWS), columns = block_of(a->n, BLOCK_COLUMNS, TILE_COLUMNS);
    const int64_t depth = block_of(a->k, DEPTH, 1);
    pass p = {.ldc = a->ldc, .left = scratch};
    p.right = p.left + round_up(round_up(least_of(a->m, rows), ROWS) * depth, 16);
    p.a_row = a->transpose_a ? 1 : a->lda, p.a_depth = a->transpose_a ? a->lda : 1;
    p.b_column = a->transpose_b ? a->ldb : 1, p.b_depth = a->transpose_b ? 1 : a->ldb;
    for (int64_t j = 0; j < a->n; j += columns)
        for (int64_t i = 0; i < a->m; i += rows)
            for (int64_t k = 0; k < a->k; k += depth) {
                p.rows = least_of(rows, a->m - i), p.columns = least_of(columns, a->n - j), p.depth = least_of(depth, a->k - k);
                p.c = (float *)a->c + i * a->ldc + j;
                p.a = (const float *)a->a + i * p.a_row + k * p.a_depth;
                p.b = (const float *)a->b + j * p.b_column + k * p.b_depth;
                p.bias = a->bias && k + depth >= a->k ? (const float *)a->bias + j : NULL;
                p.accumulate = a->accumulate || k > 0;
                run_pass(e, &p);
            }
}

typedef struct start_job {
    const moed_op_gemm *a;
    moedi_cut cut;
} start_job;

/* Rows of the addend into c, which the product is then added to. */
static void start_task(void *argument, int64_t index)
{
    const start_job *job = argument;
    const moed_op_gemm *a = job->a;
    const int64_t end = least_of(a->m, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        memcpy((float *)a->c + i * a->ldc, (const float *)a->addend + i * a->ldc, (size_t)a->n * sizeof(float));
}

moed_status MOEDI_VARIED(gemm)(void *self, const moed_op_gemm *a)
{
    void *scratch;
    start_job job = {a, cut(a->m, a->n)};
    const moed_status status = moedi_cpu_scratch(self, moedi_gemm_bytes(a->m, a->n, a->k, ROWS, COLUMNS), &scratch);
    if (status != MOED_OK) return status; /* nothing is written then */
    if (a->accumulate && a->addend && a->addend != a->c && a->m > 0 && a->n > 0) run(self, job.cut.tasks, start_task, &job);
    moedi_gemm_with(self, a, scratch);
    return MOED_OK;
}

/* ---- products of groups ---- */

/* Passes of several groups, done together: their tasks are numbered through. */
typedef struct batch {
    pass passes[MOEDI_GEMM_GROUPS];
    int64_t first_pack[MOEDI_GEMM_GROUPS + 1], first_rows[MOEDI_GEMM_GROUPS + 1];
    int64_t count;
    moedi_slices slices;
} batch;

static pass *find_pass(batch *b, const int64_t *first, int64_t *index)
{
    int64_t at = 0;
    while (*index >= first[at + 1]) at++;
    *index -= first[at];
    return b->passes + at;
}
static void batch_pack_task(void *argument, int64_t index)
{
    batch *b = argument;
    pass *p = find_pass(b, b->first_pack, &index);
    pack_right_task(p, index);
}
static void batch_rows_task(void *argument, int64_t index)
{
    batch *b = argument;
    pass *p = find_pass(b, b->first_rows, &index);
    rows_of(p, &b->slices, index);
}

static moed_op_gemm product_of(const moed_op_grouped_gemm *a, int64_t g)
{
    const int64_t from = a->offsets[g], count = a->offsets[g + 1] - from;
    moed_op_gemm one = {.m = a->m, .n = a->n, .k = a->k, .lda = a->lda, .ldb = a->ldb, .ldc = a->ldc};
    one.accumulate = a->accumulate;
    one.a = (const float *)a->a + from * a->lda;
    if (a->reduce) {
        one.k = count, one.transpose_a = 1;
        one.b = (const float *)a->b + from * a->ldb;
        one.c = (float *)a->c + g * a->stride_c;
    } else {
        one.m = count, one.transpose_b = a->transpose_b;
        one.b = (const float *)a->b + g * a->stride_b;
        one.c = (float *)a->c + from * a->ldc;
    }
    return one;
}

/* Block number `step` of the reduction of one product, if it has so many. */
static bool add_pass(batch *b, const moed_op_gemm *a, int64_t step, float *right)
{
    const int64_t depth = block_of(a->k, DEPTH, 1), k = step * depth;
    if (a->m <= 0 || k >= a->k) return false;
    pass *p = b->passes + b->count;
    *p = (pass){.right = right, .ldc = a->ldc, .c = a->c, .rows = a->m, .columns = a->n, .depth = least_of(depth, a->k - k)};
    p->a_row = a->transpose_a ? 1 : a->lda, p->a_depth = a->transpose_a ? a->lda : 1;
    p->b_column = a->transpose_b ? a->ldb : 1, p->b_depth = a->transpose_b ? 1 : a->ldb;
    p->a = (const float *)a->a + k * p->a_depth;
    p->b = (const float *)a->b + k * p->b_depth;
    p->accumulate = a->accumulate || k > 0;
    tile(p);
    b->first_pack[b->count + 1] = b->first_pack[b->count] + p->column_tiles;
    b->first_rows[b->count + 1] = b->first_rows[b->count] + p->row_tiles * p->spans;
    b->count++;
    return true;
}

/* Groups from .. end. The right panels of all lie in scratch at once, behind slices for the rows of tasks. */
static void multiply_groups(moedi_cpu *e, const moed_op_grouped_gemm *a, int64_t from, int64_t end, int64_t largest,
                            float *scratch, int64_t depth)
{
    const int64_t slices = moedi_gemm_slices(a->m, a->reduce ? end - from : 1), each = round_up(a->n, COLUMNS) * depth;
    float *right = scratch + slices * moedi_gemm_slice(largest, depth, ROWS);
    batch b;
    for (int64_t step = 0; step == 0 || b.count > 0; step++) {
        b.count = 0, b.first_pack[0] = b.first_rows[0] = 0;
        for (int64_t g = from; g < end; g++) {
            const moed_op_gemm one = product_of(a, g);
            if (step == 0 && one.k <= 0) fill(one.c, one.m, one.n, one.ldc, NULL, one.accumulate);
            add_pass(&b, &one, step, right + b.count * each);
        }
        b.slices = slices_of(scratch, slices, largest, depth);
        if (b.count == 0) continue;
        run(e, b.first_pack[b.count], batch_pack_task, &b);
        run(e, b.first_rows[b.count], batch_rows_task, &b);
    }
}

moed_status MOEDI_VARIED(grouped_gemm)(void *self, const moed_op_grouped_gemm *a)
{
    if (a->m <= 0 || a->n <= 0 || a->groups <= 0) return MOED_OK;
    /* one group may get all: scratch does not grow with the routing */
    const int64_t largest = a->offsets[a->groups] - a->offsets[0], together = moedi_gemm_together(a->groups, a->n);
    const int64_t k = a->reduce ? largest : a->k, rows = a->reduce ? a->m : largest;
    void *scratch;
    const size_t bytes = moedi_grouped_bytes(a->groups, rows, a->m, a->n, k, a->reduce, ROWS, COLUMNS);
    const moed_status status = moedi_cpu_scratch(self, bytes, &scratch);
    if (status != MOED_OK) return status;
    for (int64_t g = 0; g < a->groups; g += together) {
        const moed_op_gemm one = product_of(a, g);
        if (together == 1) moedi_gemm_with(self, &one, scratch);
        else multiply_groups(self, a, g, least_of(g + together, a->groups), rows, scratch, least_of(k, DEPTH));
    }
    return MOED_OK;
}
