/* fast/cluster.c - k-means: nearest centroids, sums by label, both in one reading of the vectors, and all distances.
 *
 * With o the centroids' mean, x' = x - o and c' = c - o: ||x - c||^2 = ||x'||^2 + (||c'||^2 - 2 x'.c'). The products are a matrix
 * product in float whose left rows are only copied (to a fixed stride), not packed: packing would cost as much as the product
 * with 16 centroids. Taking o away keeps rounding errors in proportion to the spread of the data instead of its place. Where only
 * one centroid is within the rounding error of the lowest cost it is the nearest; otherwise exact distances in double decide
 * among those, penalties added. So near ties come out as in the definition. */
#include "fast.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum {
    CHUNK = 512,                /* of the width, copied at a time */
    STRIDE = CHUNK + VECTOR,    /* no power of two: the rows would share cache sets */
    BATCH = 8 * ROWS,           /* rows that are labelled, then added up while in cache */
    FEW = 8,                    /* clusters at most whose products are taken along the rows */
    BLOCKS = 32                 /* of sums that are added up in the end */
};

typedef struct nearest {
    const float *x, *centroids;
    const double *penalty;
    int64_t width, clusters, padded;
    bool few;      /* clusters: in panels they would leave most lanes empty */
    float *origin; /* (width) */
    float *bias;   /* (padded): ||c'||^2 + penalty, infinity past the clusters */
    float *panels; /* -2 c': panels of COLUMNS clusters, (width, COLUMNS) each; few: (clusters, width) */
    float margin;  /* largest of |bias|, and of norms */
    float rounding;
} nearest;

/* ---- small parts ---- */

static double squared_distance(const float *x, const float *c, int64_t width)
{
    double lanes[8] = {0}, total = 0;
    int64_t d = 0;
    for (; d + 8 <= width; d += 8)
        for (int l = 0; l < 8; l++) {
            const double difference = (double)x[d + l] - (double)c[d + l];
            lanes[l] += difference * difference;
        }
    for (; d < width; d++) total += ((double)x[d] - (double)c[d]) * ((double)x[d] - (double)c[d]);
    for (int l = 0; l < 8; l++) total += lanes[l];
    return total;
}

/* The squared length of a - b in float: exact enough where differences are small if the distance is. out (nullable) = a - b */
INLINE float subtract(float *out, const float *a, const float *b, int64_t n)
{
    vfloat sum[2] = {{0}, {0}};
    int64_t d = 0;
    for (; d + 2 * VECTOR <= n; d += 2 * VECTOR)
        for (int v = 0; v < 2; v++) {
            const vfloat away = load(a + d + v * VECTOR) - load(b + d + v * VECTOR);
            if (out) store(out + d + v * VECTOR, away);
            sum[v] += away * away;
        }
    for (; d < n; d += VECTOR) {
        const vfloat away = get(a + d, n - d) - get(b + d, n - d);
        if (out) put(out + d, away, n - d);
        sum[0] += away * away;
    }
    return lanes_sum(sum[0] + sum[1]);
}
INLINE float near_distance(const float *x, const float *c, int64_t width)
{
    return subtract(NULL, x, c, width);
}

/* ---- centroids, made ready ---- */

static int64_t nearest_floats(int64_t clusters, int64_t width)
{
    return round_up(width, 16) + round_up(clusters, COLUMNS) * (width + 1);
}

static void panel_task(void *argument, int64_t index)
{
    nearest *n = argument;
    const int64_t first = index * COLUMNS;
    float *panel = n->panels + first * n->width;
    for (int64_t j = 0; j < COLUMNS; j++) {
        const int64_t k = first + j;
        if (k >= n->clusters) {
            for (int64_t d = 0; !n->few && d < n->width; d++) panel[d * COLUMNS + j] = 0;
            n->bias[k] = INFINITY;
            continue;
        }
        float *to = panel + (n->few ? j * n->width : j);
        float norm = 0;
        for (int64_t from = 0; from < n->width; from += CHUNK) {
            float part[CHUNK];
            const int64_t depth = least_of(CHUNK, n->width - from);
            norm += subtract(part, n->centroids + k * n->width + from, n->origin + from, depth);
            for (int64_t d = 0; d < depth; d++) to[(from + d) * (n->few ? 1 : COLUMNS)] = -2.0f * part[d];
        }
        n->bias[k] = norm + (float)(n->penalty ? n->penalty[k] : 0.0);
    }
}

/* `memory`: nearest_floats */
static void nearest_open(nearest *n, moedi_cpu *e, float *memory)
{
    n->padded = round_up(n->clusters, VECTOR);
    n->few = n->clusters <= FEW && n->clusters * (n->width / VECTOR + 9) < n->width; /* vector operations of a row, either way */
    n->origin = memory;
    n->bias = memory + round_up(n->width, 16);
    n->panels = n->bias + round_up(n->clusters, COLUMNS);
    n->rounding = (float)((8.0 + sqrt((double)n->width)) * 0x1p-22);
    memset(n->origin, 0, (size_t)n->width * sizeof *n->origin);
    const float share = 1.0f / (float)n->clusters;
    for (int64_t k = 0; k < n->clusters; k++) axpy(n->origin, share, n->centroids + k * n->width, n->width);
    run(e, round_up(n->clusters, COLUMNS) / COLUMNS, panel_task, n);
    for (int64_t k = 0; k < n->clusters; k++) {
        const float penalty = (float)(n->penalty ? fabs(n->penalty[k]) : 0.0), size = fabsf(n->bias[k]) + 2 * penalty;
        if (size > n->margin) n->margin = size;
    }
}

/* ---- costs of a few rows ---- */

/* costs (ROWS, stride) [+]= x (ROWS, depth; row stride STRIDE) times a panel, `vectors` of it, [+ bias] */
INLINE void tile(float *costs, int64_t stride, const float *x, const float *panel, const float *bias, int64_t depth, bool more,
                 const int vectors)
{
    vfloat sum[ROWS][2];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = (vfloat){0};
    for (int64_t p = 0; p < depth; p++) {
        const vfloat b0 = load(panel), b1 = vectors > 1 ? load(panel + VECTOR) : b0;
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            const vfloat a = splat(x[r * STRIDE + p]);
            sum[r][0] += a * b0;
            if (vectors > 1) sum[r][1] += a * b1;
        }
        panel += COLUMNS;
    }
    for (int v = 0; v < vectors; v++) {
        const vfloat last = bias ? load(bias + v * VECTOR) : (vfloat){0};
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            float *to = costs + r * stride + v * VECTOR;
            store(to, (more ? sum[r][v] + load(to) : sum[r][v]) + last);
        }
    }
}
static __attribute__((noinline)) void whole_tile(float *costs, int64_t stride, const float *x, const float *panel,
                                                 const float *bias, int64_t depth, bool more)
{
    tile(costs, stride, x, panel, bias, depth, more, 2);
}
static __attribute__((noinline)) void half_tile(float *costs, int64_t stride, const float *x, const float *panel,
                                                const float *bias, int64_t depth, bool more)
{
    tile(costs, stride, x, panel, bias, depth, more, 1);
}

/* A row that is soon read: rows come in bursts, between which the processor's own foresight rests. */
INLINE void ask_for(const float *x, int64_t width)
{
    for (int64_t d = 0; d < width; d += 16) __builtin_prefetch(x + d);
}

INLINE void put_quad(float *to, quad q)
{
    __builtin_memcpy(to, &q, sizeof q);
}
/* The same numbers of VECTOR rows, each in four parts, added up: a lane a row. */
INLINE vfloat add_quads(const float *quads, int64_t stride)
{
    vfloat part[4];
    turn_four(part, quads, stride, VECTOR);
    return (part[0] + part[2]) + (part[1] + part[3]);
}

/* costs (clusters) and squared lengths (of x') of count <= VECTOR rows, a lane a row: vectors along the rows, then across
 * them. */
INLINE void few_costs(vfloat *costs, vfloat *lengths, const nearest *n, const int64_t *rows, int count, const int clusters)
{
    enum { ROW = 4 * (FEW + 1) };
    float quads[VECTOR * ROW];
    memset(quads + count * ROW, 0, (size_t)((VECTOR - count) * ROW) * sizeof *quads);
    for (int r = 0; r < count; r++) {
        const float *x = n->x + rows[r] * n->width;
        vfloat sum[FEW], square = {0};
        ask_for(x + 2 * VECTOR * n->width, n->width);
        int64_t d = 0;
        for (int k = 0; k < clusters; k++) sum[k] = (vfloat){0};
        for (; d + VECTOR <= n->width; d += VECTOR) {
            const vfloat away = load(x + d) - load(n->origin + d);
            square += away * away;
            for (int k = 0; k < clusters; k++) sum[k] += away * load(n->panels + k * n->width + d);
        }
        if (d < n->width) {
            const int64_t left = n->width - d;
            const vfloat away = load_part(x + d, left) - load_part(n->origin + d, left);
            square += away * away;
            for (int k = 0; k < clusters; k++) sum[k] += away * load_part(n->panels + k * n->width + d, left);
        }
        for (int k = 0; k < clusters; k++) put_quad(quads + r * ROW + 4 * k, fold(sum[k]));
        put_quad(quads + r * ROW + 4 * FEW, fold(square));
    }
    for (int k = 0; k < clusters; k++) costs[k] = add_quads(quads + 4 * k, ROW) + splat(n->bias[k]);
    *lengths = add_quads(quads + 4 * FEW, ROW);
}
static void costs_of_few(vfloat *costs, vfloat *lengths, const nearest *n, const int64_t *rows, int count)
{
    switch (n->clusters) {
    case 1: few_costs(costs, lengths, n, rows, count, 1); return;
    case 2: few_costs(costs, lengths, n, rows, count, 2); return;
    case 3: few_costs(costs, lengths, n, rows, count, 3); return;
    case 4: few_costs(costs, lengths, n, rows, count, 4); return;
    case 5: few_costs(costs, lengths, n, rows, count, 5); return;
    case 6: few_costs(costs, lengths, n, rows, count, 6); return;
    case 7: few_costs(costs, lengths, n, rows, count, 7); return;
    default: few_costs(costs, lengths, n, rows, count, FEW); return;
    }
}

/* Scratch of a task: rows (ROWS, STRIDE), then costs (ROWS, padded). */
static int64_t group_floats(int64_t clusters)
{
    return (int64_t)ROWS * (STRIDE + round_up(clusters, COLUMNS));
}

/* costs and squared lengths (of x') of the rows with these numbers, count <= ROWS */
static void group_costs(const nearest *n, const int64_t *rows, int64_t count, float *scratch, float *lengths)
{
    float *costs = scratch + ROWS * STRIDE;
    if (n->few) {
        for (int64_t from = 0; from < count; from += VECTOR) {
            vfloat of[FEW], length;
            const int some = (int)least_of(VECTOR, count - from);
            costs_of_few(of, &length, n, rows + from, some);
            for (int r = 0; r < some; r++) {
                lengths[from + r] = length[r];
                for (int64_t k = 0; k < n->clusters; k++) costs[(from + r) * n->padded + k] = of[k][r];
            }
        }
        return;
    }
    memset(lengths, 0, ROWS * sizeof *lengths);
    if (count < ROWS) memset(scratch + count * STRIDE, 0, (size_t)((ROWS - count) * STRIDE) * sizeof *scratch);
    for (int64_t from = 0; from < n->width; from += CHUNK) {
        const int64_t depth = least_of(CHUNK, n->width - from);
        const bool last = from + depth == n->width;
        for (int64_t r = 0; r < count; r++)
            lengths[r] += subtract(scratch + r * STRIDE, n->x + rows[r] * n->width + from, n->origin + from, depth);
        for (int64_t j = 0; j < n->padded; j += COLUMNS) {
            const float *panel = n->panels + j * n->width + from * COLUMNS, *bias = last ? n->bias + j : NULL;
            if (n->padded - j > VECTOR) whole_tile(costs + j, n->padded, scratch, panel, bias, depth, from > 0);
            else half_tile(costs + j, n->padded, scratch, panel, bias, depth, from > 0);
        }
    }
}

/* Exact distances among those within the limit. */
static __attribute__((noinline)) int32_t settle(const nearest *n, const float *x, const float *costs, float limit)
{
    double best = INFINITY;
    int64_t label = -1;
    for (int64_t k = 0; k < n->clusters; k++) {
        if (!(costs[k] <= limit)) continue;
        const double cost = squared_distance(x, n->centroids + k * n->width, n->width) + (n->penalty ? n->penalty[k] : 0.0);
        if (label < 0 || cost < best) best = cost, label = k;
    }
    return label < 0 ? 0 : (int32_t)label;
}

/* Smaller lanes; a bit for each lane that is not above the limit: the compiler finds no good code for these two. */
#if defined(__AVX512F__)
INLINE vfloat vmin(vfloat a, vfloat b)
{
    return (vfloat)_mm512_min_ps((__m512)a, (__m512)b);
}
INLINE uint32_t lanes_within(vfloat v, float limit)
{
    return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(limit), _CMP_LE_OQ);
}
#elif defined(__AVX__)
INLINE vfloat vmin(vfloat a, vfloat b)
{
    return (vfloat)_mm256_min_ps((__m256)a, (__m256)b);
}
INLINE uint32_t lanes_within(vfloat v, float limit)
{
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(limit), _CMP_LE_OQ));
}
#elif defined(__x86_64__)
INLINE vfloat vmin(vfloat a, vfloat b)
{
    return (vfloat)_mm_min_ps((__m128)a, (__m128)b);
}
INLINE uint32_t lanes_within(vfloat v, float limit)
{
    return (uint32_t)_mm_movemask_ps(_mm_cmple_ps((__m128)v, _mm_set1_ps(limit)));
}
#else
INLINE vfloat vmin(vfloat a, vfloat b)
{
    return choose(a < b, a, b);
}
INLINE uint32_t lanes_within(vfloat v, float limit)
{
    uint32_t bits = 0;
    for (int l = 0; l < VECTOR; l++) bits |= (uint32_t)(v[l] <= limit) << l;
    return bits;
}
#endif
INLINE float lanes_min(vfloat v)
{
    quad q[VECTOR / 4];
    __builtin_memcpy(q, &v, sizeof v);
    for (int w = VECTOR / 8; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            for (int l = 0; l < 4; l++) q[i][l] = q[i + w][l] < q[i][l] ? q[i + w][l] : q[i][l];
    const float a = q[0][0] < q[0][1] ? q[0][0] : q[0][1], b = q[0][2] < q[0][3] ? q[0][2] : q[0][3];
    return a < b ? a : b;
}

/* What the costs of a row say. */
typedef struct choice {
    int32_t label;
    float lowest, other; /* costs, as they are and of every other cluster */
} choice;

INLINE choice choose_label(const nearest *n, const float *x, const float *costs, float rounding)
{
    vfloat lowest = load(costs), next = splat(INFINITY); /* of each lane */
    vint at = {0};
    for (int64_t k = VECTOR; k < n->padded; k += VECTOR) {
        const vfloat cost = load(costs + k);
        const vint less = cost < lowest;
        next = vmin(next, choose(less, lowest, cost));
        at = (less & (int32_t)k) | (~less & at);
        lowest = vmin(lowest, cost);
    }
    choice c = {.lowest = lanes_min(lowest)};
    const float limit = c.lowest + rounding;
    const uint32_t bits = lanes_within(lowest, limit);
    c.other = lanes_min(choose(lowest <= splat(limit), next, lowest));
    if (bits && !(bits & (bits - 1)) && c.other > limit) {
        const int lane = __builtin_ctz(bits);
        c.label = at[lane] + lane;
    } else {
        c.label = settle(n, x, costs, limit);
        c.other = c.lowest;
    }
    return c;
}

/* ---- labels ---- */

typedef struct bounds {
    float *slack;       /* (count) by how much every other centroid is farther than the own one, from below; NULL = not kept */
    const float *moved; /* (clusters) since it was set, NULL = it is not set */
    float most, second; /* of moved */
    int64_t mover;      /* whose is most */
} bounds;

static float slack_of(const choice *c, float length, float rounding)
{
    const float own = length + c->lowest + rounding, other = length + c->other - rounding;
    return other > own ? sqrtf(other) * 0.999999f - sqrtf(own > 0 ? own : 0) * 1.000001f : 0;
}

/* Whether no centroid but a row's own can be nearest: the bounds of Hamerly ("Making k-means even faster", 2010), of which only
 * the difference is kept. It follows the centroids. */
INLINE bool is_settled(const bounds *b, int64_t i, int32_t label)
{
    const float closer = b->mover == label ? b->second : b->most;
    const float slack = (b->slack[i] - (closer + b->moved[label])) * 0.999999f;
    b->slack[i] = slack;
    return slack > 0;
}

static void label_group(const nearest *n, const bounds *b, const int64_t *rows, int64_t count, int32_t *labels, float *scratch)
{
    float lengths[ROWS];
    const float *costs = scratch + ROWS * STRIDE;
    group_costs(n, rows, count, scratch, lengths);
    for (int64_t r = 0; r < count; r++) {
        const float rounding = (lengths[r] + n->margin) * n->rounding;
        ask_for(n->x + (rows[r] + ROWS) * n->width, n->width);
        const choice c = choose_label(n, n->x + rows[r] * n->width, costs + r * n->padded, rounding);
        labels[rows[r]] = c.label;
        if (b->slack) b->slack[rows[r]] = slack_of(&c, lengths[r], rounding);
    }
}

/* The same for at most VECTOR rows and few clusters, all rows at once. */
static void label_few(const nearest *n, const bounds *b, const int64_t *rows, int count, int32_t *labels)
{
    vfloat costs[FEW], length;
    costs_of_few(costs, &length, n, rows, count);
    vfloat lowest = costs[0], other = splat(INFINITY);
    vint at = {0};
    for (int k = 1; k < (int)n->clusters; k++) {
        const vint less = costs[k] < lowest;
        other = vmin(other, choose(less, lowest, costs[k]));
        at = (less & k) | (~less & at);
        lowest = vmin(lowest, costs[k]);
    }
    const vfloat rounding = (length + n->margin) * n->rounding, limit = lowest + rounding;
    const vint sure = other > limit;
    const vfloat own = length + lowest + rounding, least = length + other - rounding;
    vfloat slack;
    for (int r = 0; r < VECTOR; r++) /* see slack_of */
        slack[r] = least[r] > own[r] ? sqrtf(least[r]) * 0.999999f - sqrtf(own[r] > 0 ? own[r] : 0) * 1.000001f : 0;
    for (int r = 0; r < count; r++) {
        const float *x = n->x + rows[r] * n->width;
        labels[rows[r]] = at[r];
        if (b->slack) b->slack[rows[r]] = sure[r] ? slack[r] : 0;
        if (sure[r]) continue;
        float of_row[FEW];
        for (int64_t k = 0; k < n->clusters; k++) of_row[k] = costs[k][r];
        labels[rows[r]] = settle(n, x, of_row, limit[r]);
    }
}

/* Labels of rows [first, first + count). */
static void label_rows(const nearest *n, const bounds *b, int64_t first, int64_t count, int32_t *labels, float *scratch)
{
    enum { MOST = ROWS > VECTOR ? ROWS : VECTOR };
    const int64_t together = n->few ? VECTOR : ROWS;
    int64_t rows[MOST], waiting = 0;
    for (int64_t i = first; i < first + count; i++) {
        if (!b->moved || !is_settled(b, i, labels[i])) rows[waiting++] = i;
        if (waiting != together && i + 1 < first + count) continue;
        if (n->few && waiting) label_few(n, b, rows, (int)waiting, labels);
        else if (waiting) label_group(n, b, rows, waiting, labels, scratch);
        waiting = 0;
    }
}

/* ---- sums: rows in blocks that depend on the shape, each with sums of its own; these are added in order ---- */

typedef struct sums_job {
    const float *x, *weights;
    const int32_t *labels;
    double *sums, *totals;         /* (blocks, clusters, width), (blocks, clusters); of one block: the results themselves */
    int64_t *counts;
    double *all_sums, *all_totals; /* the results */
    int64_t *all_counts;
    int64_t count, width, clusters, blocks, rows;
} sums_job;

static void sums_cut(sums_job *s)
{
    int64_t blocks = BLOCKS;
    while (blocks > 1 && (s->count / blocks < 4 * s->clusters || s->count / blocks < BATCH ||
                          s->clusters * s->width > ((int64_t)4 << 20) / blocks))
        blocks /= 2;
    s->rows = round_up((s->count + blocks - 1) / blocks, ROWS);
    s->blocks = s->count > 0 ? (s->count + s->rows - 1) / s->rows : 1;
}
static int64_t sums_bytes(const sums_job *s)
{
    return s->blocks > 1 ? s->blocks * s->clusters * (s->width + 2) * 8 : 0;
}
static void sums_open(sums_job *s, void *memory)
{
    if (s->blocks == 1) {
        s->sums = s->all_sums, s->totals = s->all_totals, s->counts = s->all_counts;
        return;
    }
    s->sums = memory;
    s->totals = s->sums + s->blocks * s->clusters * s->width;
    s->counts = (int64_t *)(void *)(s->totals + s->blocks * s->clusters);
}

static void zero_sums(const sums_job *s, int64_t block)
{
    memset(s->sums + block * s->clusters * s->width, 0, (size_t)(s->clusters * s->width) * sizeof *s->sums);
    memset(s->totals + block * s->clusters, 0, (size_t)s->clusters * sizeof *s->totals);
    memset(s->counts + block * s->clusters, 0, (size_t)s->clusters * sizeof *s->counts);
}
static void add_rows(const sums_job *s, int64_t block, int64_t first, int64_t count)
{
    for (int64_t i = first; i < first + count; i++) {
        const int64_t k = block * s->clusters + s->labels[i];
        const float *restrict x = s->x + i * s->width;
        double *restrict sums = s->sums + k * s->width;
        s->counts[k] += 1;
        if (s->weights) {
            const double weight = (double)s->weights[i];
            s->totals[k] += weight;
            for (int64_t d = 0; d < s->width; d++) sums[d] += weight * (double)x[d];
        } else {
            s->totals[k] += 1;
            for (int64_t d = 0; d < s->width; d++) sums[d] += (double)x[d];
        }
    }
}
static void add_task(void *argument, int64_t block)
{
    const sums_job *s = argument;
    zero_sums(s, block);
    add_rows(s, block, block * s->rows, least_of(s->rows, s->count - block * s->rows));
}
static void join_task(void *argument, int64_t k)
{
    const sums_job *s = argument;
    double *restrict sums = s->all_sums + k * s->width;
    memcpy(sums, s->sums + k * s->width, (size_t)s->width * sizeof *sums);
    s->all_totals[k] = s->totals[k];
    s->all_counts[k] = s->counts[k];
    for (int64_t b = 1; b < s->blocks; b++) {
        const int64_t at = b * s->clusters + k;
        const double *restrict from = s->sums + at * s->width;
        for (int64_t d = 0; d < s->width; d++) sums[d] += from[d];
        s->all_totals[k] += s->totals[at];
        s->all_counts[k] += s->counts[at];
    }
}
static void sums_join(sums_job *s, moedi_cpu *e)
{
    if (s->blocks > 1) run(e, s->clusters, join_task, s);
}

moed_status MOEDI_VARIED(kmeans_accumulate)(void *self, const moed_op_kmeans_accumulate *a)
{
    sums_job s = {.x = a->x, .weights = a->weights, .labels = a->labels, .all_sums = a->sums, .all_totals = a->totals,
                  .all_counts = a->counts, .count = a->count, .width = a->width, .clusters = a->clusters};
    void *memory;
    sums_cut(&s);
    const moed_status status = moedi_cpu_scratch(self, (size_t)sums_bytes(&s), &memory);
    if (status != MOED_OK) return status;
    sums_open(&s, memory);
    run(self, s.blocks, add_task, &s);
    sums_join(&s, self);
    return MOED_OK;
}

/* ---- labels, and what is wanted of the rows while they are in cache: distances, sums ---- */

typedef struct label_job {
    nearest near;
    bounds bound;
    moedi_slices slices;
    int32_t *labels;
    float *distances;     /* (count), NULL = not wanted */
    const sums_job *sums; /* NULL = not wanted; a task does a block of theirs */
    int64_t count, rows;  /* of a task */
} label_job;

static void label_task(void *argument, int64_t index)
{
    label_job *job = argument;
    const nearest *n = &job->near;
    const int64_t to = least_of((index + 1) * job->rows, job->count);
    float *scratch = moedi_slices_claim(&job->slices);
    if (job->sums) zero_sums(job->sums, index);
    for (int64_t from = index * job->rows; from < to; from += BATCH) {
        const int64_t count = least_of(BATCH, to - from);
        label_rows(n, &job->bound, from, count, job->labels, scratch);
        if (job->sums) add_rows(job->sums, index, from, count);
        for (int64_t i = from; job->distances && i < from + count; i++)
            job->distances[i] = near_distance(n->x + i * n->width, n->centroids + job->labels[i] * n->width, n->width);
    }
    moedi_slices_release(&job->slices, scratch);
}

/* Runs a job of which near, bound and what is wanted are filled in. sums: memory for them is made ready too. */
static moed_status label_all(label_job *job, moedi_cpu *e, sums_job *sums)
{
    nearest *n = &job->near;
    void *memory;
    job->rows = job->sums ? job->sums->rows : BATCH;
    const int64_t own = round_up(nearest_floats(n->clusters, n->width) * (int64_t)sizeof(float), 64);
    const int64_t tasks = (job->count + job->rows - 1) / job->rows;
    const moed_status status = moedi_slices_open_with(&job->slices, e, tasks, group_floats(n->clusters) * (int64_t)sizeof(float),
                                                      own + (sums ? sums_bytes(sums) : 0), &memory);
    if (status != MOED_OK) return status;
    if (sums) sums_open(sums, (char *)memory + own);
    nearest_open(n, e, memory);
    run(e, tasks, label_task, job);
    return MOED_OK;
}

moed_status MOEDI_VARIED(kmeans_assign)(void *self, const moed_op_kmeans_assign *a)
{
    label_job job = {.near = {.x = a->x, .centroids = a->centroids, .penalty = a->penalty, .width = a->width,
                              .clusters = a->clusters},
                     .labels = a->labels, .distances = a->distances, .count = a->count};
    return label_all(&job, self, NULL);
}

static void find_movers(bounds *b, int64_t clusters)
{
    for (int64_t k = 0; b->moved && k < clusters; k++) {
        if (b->moved[k] > b->most) b->second = b->most, b->most = b->moved[k], b->mover = k;
        else if (b->moved[k] > b->second) b->second = b->moved[k];
    }
}
moed_status MOEDI_VARIED(kmeans_step)(void *self, const moed_op_kmeans_step *a)
{
    sums_job sums = {.x = a->x, .weights = a->weights, .labels = a->labels, .all_sums = a->sums, .all_totals = a->totals,
                     .all_counts = a->counts, .count = a->count, .width = a->width, .clusters = a->clusters};
    sums_cut(&sums);
    const bool together = sums.blocks > BLOCKS / 4; /* few blocks leave threads without work: labels first, then */
    label_job job = {.near = {.x = a->x, .centroids = a->centroids, .width = a->width, .clusters = a->clusters},
                     .bound = {.slack = a->lower, .moved = a->lower ? a->moved : NULL},
                     .labels = a->labels, .sums = together ? &sums : NULL, .count = a->count};
    find_movers(&job.bound, a->clusters);
    const moed_status status = label_all(&job, self, &sums);
    if (status != MOED_OK) return status;
    if (!together) run(self, sums.blocks, add_task, &sums);
    sums_join(&sums, self);
    return MOED_OK;
}

/* ---- all distances ---- */

typedef struct distances_job {
    nearest near;
    moedi_slices slices;
    const moed_op_kmeans_distances *a;
} distances_job;

static void distances_task(void *argument, int64_t index)
{
    distances_job *job = argument;
    const moed_op_kmeans_distances *a = job->a;
    const nearest *n = &job->near;
    const int64_t first = index * BATCH, all = least_of(BATCH, a->count - first);
    float *scratch = moedi_slices_claim(&job->slices), *columns = scratch + group_floats(a->clusters), lengths[ROWS];
    const float *costs = scratch + ROWS * STRIDE;
    for (int64_t at = 0; at < all; at += ROWS) {
        int64_t rows[ROWS];
        const int64_t count = least_of(ROWS, all - at);
        for (int64_t r = 0; r < count; r++) rows[r] = first + at + r;
        group_costs(n, rows, count, scratch, lengths);
        for (int64_t k = 0; k < a->clusters; k++)
            for (int64_t r = 0; r < count; r++) {
                const float square = lengths[r] + costs[r * n->padded + k], *x = a->x + rows[r] * a->width;
                /* what is left of larger numbers has lost its digits */
                const bool exact = square > (lengths[r] + n->bias[k]) * 0x1p-6f;
                columns[k * BATCH + at + r] = exact ? square : near_distance(x, a->centroids + k * a->width, a->width);
            }
    }
    for (int64_t k = 0; k < a->clusters; k++)
        memcpy(a->distances + k * a->count + first, columns + k * BATCH, (size_t)all * sizeof *columns);
    moedi_slices_release(&job->slices, scratch);
}
moed_status MOEDI_VARIED(kmeans_distances)(void *self, const moed_op_kmeans_distances *a)
{
    const int64_t tasks = (a->count + BATCH - 1) / BATCH;
    void *memory;
    distances_job job = {.near = {.x = a->x, .centroids = a->centroids, .width = a->width, .clusters = a->clusters}, .a = a};
    const int64_t floats = group_floats(a->clusters) + BATCH * a->clusters;
    const moed_status status = moedi_slices_open_with(&job.slices, self, tasks, floats * (int64_t)sizeof(float),
                                                      nearest_floats(a->clusters, a->width) * (int64_t)sizeof(float), &memory);
    if (status != MOED_OK) return status;
    nearest_open(&job.near, self, memory);
    run(self, tasks, distances_task, &job);
    return MOED_OK;
}
