/* fast/attention.c - rotary positions, and causal attention tile by tile with a running softmax (Milakov and Gimelshein 2018; Dao
 * et al. 2022): no more than QUERIES x KEYS scores of one head exist at a time. Tiles outside every query's document are left
 * out. */
#include "fast.h"

/* ---- rope ---- */

typedef struct rope_job {
    const moed_op_rope *a;
    moedi_cut cut;
} rope_job;

static void rope_task(void *argument, int64_t index)
{
    const rope_job *job = argument;
    const moed_op_rope *a = job->a;
    const int64_t half = a->head_dim / 2, end = least_of(a->count, (index + 1) * job->cut.size);
    const float sign = a->inverse ? -1.0f : 1.0f;
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const float *cosine = (const float *)a->cosine + a->positions[i] * half;
        const float *sine = (const float *)a->sine + a->positions[i] * half;
        for (int64_t h = 0; h < a->heads; h++) {
            float *x = (float *)a->x + i * a->stride + h * a->head_dim, *y = x + half;
            for (int64_t d = 0; d < half; d += VECTOR) {
                const int64_t left = half - d;
                const vfloat c = get(cosine + d, left), s = sign * get(sine + d, left), x1 = get(x + d, left),
                             x2 = get(y + d, left);
                put(x + d, x1 * c - x2 * s, left);
                put(y + d, x2 * c + x1 * s, left);
            }
        }
    }
}
moed_status MOEDI_VARIED(rope)(void *self, const moed_op_rope *a)
{
    rope_job job = {a, cut(a->count, a->heads * a->head_dim)};
    run(self, job.cut.tasks, rope_task, &job);
    return MOED_OK;
}

/* ---- attention ---- */

enum { QUERIES = MOEDI_ATTENTION_QUERIES, KEYS = MOEDI_ATTENTION_KEYS };

typedef struct attention_job {
    const moed_op_attention *a;
    moedi_slices slices;
    int64_t query_tiles;
} attention_job;

/* A tile: queries i0 .. i1 against keys j0 .. j1, absolute tokens. */
typedef struct tile {
    int64_t i0, i1, j0, j1;
} tile;

/* The keys of a tile that query i sees, as columns of the tile. */
INLINE void seen(const moed_op_attention *a, const tile *t, int64_t i, int64_t *low, int64_t *high)
{
    *low = a->start[i] > t->j0 ? a->start[i] - t->j0 : 0;
    *high = least_of(t->j1, i + 1) - t->j0;
}
static int64_t earliest(const moed_op_attention *a, int64_t i0, int64_t i1)
{
    int64_t first = a->start[i0];
    for (int64_t i = i0 + 1; i < i1; i++) first = least_of(first, a->start[i]);
    return first;
}
static void clear(float *x, int64_t from, int64_t to)
{
    if (to > from) memset(x + from, 0, (size_t)(to - from) * sizeof *x);
}

/* One row of scores: its running maximum and sum move on, the row becomes exp(score - maximum), out is brought to the new
 * maximum. */
static void softmax_step(float *scores, int64_t low, int64_t high, int64_t columns, float scale, float *maximum, float *sum,
                         float *out, int64_t width)
{
    if (low >= high) {
        clear(scores, 0, columns);
        return;
    }
    vfloat top = splat(-INFINITY);
    int64_t j = low;
    for (; j + VECTOR <= high; j += VECTOR) {
        const vfloat s = scale * load(scores + j);
        store(scores + j, s);
        top = vmax(s, top);
    }
    float highest = lanes_max(top);
    for (; j < high; j++) {
        scores[j] *= scale;
        highest = scores[j] > highest ? scores[j] : highest;
    }
    if (highest > *maximum) {
        const float shrink = exp1(*maximum - highest);
        *sum *= shrink;
        for (int64_t d = 0; d < width; d += VECTOR) put(out + d, shrink * get(out + d, width - d), width - d);
        *maximum = highest;
    }
    vfloat total = {0};
    for (j = low; j + VECTOR <= high; j += VECTOR) {
        const vfloat weight = vexp(load(scores + j) - *maximum);
        store(scores + j, weight);
        total += weight;
    }
    if (j < high) {
        put(scores + j, vexp(get(scores + j, high - j) - *maximum), high - j);
        total += get(scores + j, high - j);
    }
    *sum += lanes_sum(total);
    clear(scores, 0, low);
    clear(scores, high, columns);
}

/* Slices of a task's scratch, in floats. */
typedef struct forward_room {
    float *keys, *values, *scores, *weights; /* panels; the tile's scores; their panels */
    float *queries;                          /* panels of each head of the group */
    float *maximum, *sum;                    /* (group, QUERIES) */
} forward_room;

static int64_t forward_size(const moed_op_attention *a, forward_room *room, float *base)
{
    const int64_t D = a->head_dim, group = a->heads / a->kv_heads;
    float *at = base;
    room->keys = at, at += KEYS * D;
    room->values = at, at += KEYS * round_up(D, COLUMNS);
    room->scores = at, at += QUERIES * KEYS;
    room->weights = at, at += QUERIES * KEYS;
    room->queries = at, at += group * QUERIES * D;
    room->maximum = at, at += group * QUERIES;
    room->sum = at, at += group * QUERIES;
    return at - base;
}

static void forward_tile(const moed_op_attention *a, const forward_room *room, const tile *t, int64_t kv)
{
    const int64_t D = a->head_dim, group = a->heads / a->kv_heads, m = t->i1 - t->i0, n = t->j1 - t->j0;
    const int64_t wide = a->heads * D;
    moedi_pack_right(room->keys, (const float *)a->k + t->j0 * a->stride + kv * D, a->stride, 1, n, D);
    moedi_pack_right(room->values, (const float *)a->v + t->j0 * a->stride + kv * D, 1, a->stride, D, n);
    for (int64_t g = 0; g < group; g++) {
        float *out = (float *)a->out + t->i0 * wide + (kv * group + g) * D;
        moedi_multiply_packed(room->scores, KEYS, room->queries + g * QUERIES * D, room->keys, NULL, round_up(m, ROWS),
                              round_up(n, COLUMNS), D, false);
        for (int64_t i = 0; i < m; i++) {
            int64_t low, high;
            seen(a, t, t->i0 + i, &low, &high);
            softmax_step(room->scores + i * KEYS, low, high, n, (float)a->scale, room->maximum + g * QUERIES + i,
                         room->sum + g * QUERIES + i, out + i * wide, D);
        }
        moedi_pack_left(room->weights, room->scores, KEYS, 1, m, n);
        moedi_multiply_packed(out, wide, room->weights, room->values, NULL, m, D, n, true);
    }
}

/* QUERIES tokens of one row, all query heads of one key head. */
static void attention_task(void *argument, int64_t index)
{
    attention_job *job = argument;
    const moed_op_attention *a = job->a;
    const int64_t D = a->head_dim, group = a->heads / a->kv_heads, wide = a->heads * D;
    const int64_t q = job->query_tiles - 1 - index % job->query_tiles, kv = index / job->query_tiles % a->kv_heads;
    const int64_t base = index / job->query_tiles / a->kv_heads * a->length;
    tile t = {.i0 = base + q * QUERIES, .i1 = base + least_of(a->length, (q + 1) * QUERIES)};
    const int64_t m = t.i1 - t.i0;
    forward_room room;
    float *slice = moedi_slices_claim(&job->slices);
    forward_size(a, &room, slice);
    for (int64_t g = 0; g < group; g++) {
        const int64_t h = kv * group + g;
        moedi_pack_left(room.queries + g * QUERIES * D, (const float *)a->q + t.i0 * a->stride + h * D, a->stride, 1, m, D);
        for (int64_t i = 0; i < m; i++) {
            clear((float *)a->out + (t.i0 + i) * wide + h * D, 0, D);
            room.maximum[g * QUERIES + i] = -INFINITY, room.sum[g * QUERIES + i] = 0;
        }
    }
    for (t.j0 = earliest(a, t.i0, t.i1); t.j0 < t.i1; t.j0 = t.j1) {
        t.j1 = least_of(t.j0 + KEYS, t.i1);
        forward_tile(a, &room, &t, kv);
    }
    for (int64_t g = 0; g < group; g++)
        for (int64_t i = 0; i < m; i++) {
            const int64_t h = kv * group + g;
            const float sum = room.sum[g * QUERIES + i], part = 1.0f / sum;
            float *out = (float *)a->out + (t.i0 + i) * wide + h * D;
            for (int64_t d = 0; d < D; d += VECTOR) put(out + d, part * get(out + d, D - d), D - d);
            ((float *)a->lse)[h * a->rows * a->length + t.i0 + i] =
                (float)((double)room.maximum[g * QUERIES + i] + log((double)sum));
        }
    moedi_slices_release(&job->slices, slice);
}

moed_status MOEDI_VARIED(attention)(void *self, const moed_op_attention *a)
{
    attention_job job = {.a = a, .query_tiles = (a->length + QUERIES - 1) / QUERIES};
    const int64_t tasks = a->rows * a->kv_heads * job.query_tiles;
    forward_room room;
    float none;
    const moed_status status = moedi_slices_open(&job.slices, self, tasks,
                                                 forward_size(a, &room, &none) * (int64_t)sizeof(float));
    if (status == MOED_OK) run(self, tasks, attention_task, &job);
    return status;
}

/* ---- backward ---- */

typedef struct backward_room {
    float *keys, *values, *keys_down;             /* right panels: k and v across the tile, k down it */
    float *queries, *d_out;                       /* left panels */
    float *queries_down, *d_out_down;             /* right panels */
    float *weights, *d_scores;                    /* the tile, row stride KEYS */
    float *panels;                                /* left panels of either, either way */
    float *delta;                                 /* (group, length): d_out . out */
} backward_room;

static int64_t backward_size(const moed_op_attention *a, backward_room *room, float *base)
{
    const int64_t D = a->head_dim, wide = round_up(D, COLUMNS);
    float *at = base;
    room->keys = at, at += KEYS * D;
    room->values = at, at += KEYS * D;
    room->keys_down = at, at += KEYS * wide;
    room->queries = at, at += QUERIES * D;
    room->d_out = at, at += QUERIES * D;
    room->queries_down = at, at += QUERIES * wide;
    room->d_out_down = at, at += QUERIES * wide;
    room->weights = at, at += QUERIES * KEYS;
    room->d_scores = at, at += QUERIES * KEYS;
    room->panels = at, at += round_up(KEYS, ROWS) * QUERIES;
    room->delta = at, at += a->heads / a->kv_heads * a->length;
    return at - base;
}

/* The tile's weights p = exp(scale s - lse) and gradients of its scores p (d_out . v - delta) scale; zero where nothing is
 * seen. */
static void weights_and_gradients(const moed_op_attention *a, const backward_room *room, const tile *t, const float *lse,
                                  const float *delta)
{
    const float scale = (float)a->scale;
    const int64_t n = t->j1 - t->j0;
    for (int64_t i = t->i0; i < t->i1; i++) {
        float *p = room->weights + (i - t->i0) * KEYS, *d = room->d_scores + (i - t->i0) * KEYS;
        int64_t low, high;
        seen(a, t, i, &low, &high);
        for (int64_t j = low; j < high; j += VECTOR) {
            const int64_t left = high - j;
            const vfloat weight = vexp(scale * get(p + j, left) - lse[i]);
            put(p + j, weight, left);
            put(d + j, weight * (get(d + j, left) - delta[i - t->i0]) * scale, left);
        }
        low = least_of(low, n), high = high < low ? low : high;
        clear(p, 0, low), clear(p, high, n);
        clear(d, 0, low), clear(d, high, n);
    }
}

static void backward_tile(const moed_op_attention *a, const backward_room *room, const tile *t, int64_t kv, int64_t h,
                          const float *delta)
{
    const int64_t D = a->head_dim, S = a->stride, wide = a->heads * D, m = t->i1 - t->i0, n = t->j1 - t->j0;
    const float *q = (const float *)a->q + t->i0 * S + h * D, *d_out = (const float *)a->d_out + t->i0 * wide + h * D;
    float *d_k = (float *)a->d_k + t->j0 * S + kv * D, *d_v = (float *)a->d_v + t->j0 * S + kv * D;
    moedi_pack_left(room->queries, q, S, 1, m, D);
    moedi_pack_left(room->d_out, d_out, wide, 1, m, D);
    moedi_pack_right(room->queries_down, q, 1, S, D, m);
    moedi_pack_right(room->d_out_down, d_out, 1, wide, D, m);
    const int64_t tall = round_up(m, ROWS), broad = round_up(n, COLUMNS); /* whole register tiles: the panels are filled up with
                                                                             zeros */
    moedi_multiply_packed(room->weights, KEYS, room->queries, room->keys, NULL, tall, broad, D, false);
    moedi_multiply_packed(room->d_scores, KEYS, room->d_out, room->values, NULL, tall, broad, D, false);
    weights_and_gradients(a, room, t, (const float *)a->lse + h * a->rows * a->length, delta);
    moedi_pack_left(room->panels, room->weights, 1, KEYS, n, m);
    moedi_multiply_packed(d_v, S, room->panels, room->d_out_down, NULL, n, D, m, true);
    moedi_pack_left(room->panels, room->d_scores, 1, KEYS, n, m);
    moedi_multiply_packed(d_k, S, room->panels, room->queries_down, NULL, n, D, m, true);
    moedi_pack_left(room->panels, room->d_scores, KEYS, 1, m, n);
    moedi_multiply_packed((float *)a->d_q + t->i0 * S + h * D, S, room->panels, room->keys_down, NULL, m, D, n, true);
}

/* delta, and gradients set to zero before tiles add to them: one row, one key head and its query heads. */
static void backward_begin(const moed_op_attention *a, const backward_room *room, int64_t base, int64_t kv)
{
    const int64_t D = a->head_dim, group = a->heads / a->kv_heads, wide = a->heads * D;
    for (int64_t i = base; i < base + a->length; i++) {
        clear((float *)a->d_k + i * a->stride + kv * D, 0, D);
        clear((float *)a->d_v + i * a->stride + kv * D, 0, D);
        for (int64_t g = 0; g < group; g++) {
            const int64_t h = kv * group + g;
            clear((float *)a->d_q + i * a->stride + h * D, 0, D);
            room->delta[g * a->length + i - base] =
                dot((const float *)a->d_out + i * wide + h * D, (const float *)a->out + i * wide + h * D, D);
        }
    }
}

static void attention_backward_task(void *argument, int64_t index)
{
    attention_job *job = argument;
    const moed_op_attention *a = job->a;
    const int64_t D = a->head_dim, S = a->stride, group = a->heads / a->kv_heads;
    const int64_t base = index / a->kv_heads * a->length, kv = index % a->kv_heads, end = base + a->length;
    backward_room room;
    float *slice = moedi_slices_claim(&job->slices);
    backward_size(a, &room, slice);
    backward_begin(a, &room, base, kv);
    tile t;
    for (t.j0 = base; t.j0 < end; t.j0 = t.j1) {
        const float *k = (const float *)a->k + t.j0 * S + kv * D, *v = (const float *)a->v + t.j0 * S + kv * D;
        t.j1 = least_of(t.j0 + KEYS, end);
        const int64_t n = t.j1 - t.j0;
        moedi_pack_right(room.keys, k, S, 1, n, D);
        moedi_pack_right(room.values, v, S, 1, n, D);
        moedi_pack_right(room.keys_down, k, 1, S, D, n);
        for (t.i0 = t.j0; t.i0 < end; t.i0 = t.i1) {
            t.i1 = least_of(t.i0 + QUERIES, end);
            if (earliest(a, t.i0, t.i1) >= t.j1) continue;
            for (int64_t g = 0; g < group; g++)
                backward_tile(a, &room, &t, kv, kv * group + g, room.delta + g * a->length + t.i0 - base);
        }
    }
    moedi_slices_release(&job->slices, slice);
}

moed_status MOEDI_VARIED(attention_backward)(void *self, const moed_op_attention *a)
{
    attention_job job = {.a = a};
    const int64_t tasks = a->rows * a->kv_heads;
    backward_room room;
    float none;
    const moed_status status = moedi_slices_open(&job.slices, self, tasks,
                                                 backward_size(a, &room, &none) * (int64_t)sizeof(float));
    if (status == MOED_OK) run(self, tasks, attention_backward_task, &job);
    return status;
}
