/* model/transformer.c - the transformer's memory: weights, gradients, activations. The arithmetic is in
 * forward.c and backward.c. */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "core/context.h"
#include "state.h"

enum {
    LOW = sizeof(int16_t),  /* bytes of what a narrow real lacks of a wide one */
    STAGING = 1 << 20       /* numbers on their way between narrow and wide at a time */
};

/* ---- groups of parameters ---- */

/* Walks a layout's parameters in slot order, group by group. */
typedef struct walk {
    const moed_layout *layout;
    const uint8_t *trained;  /* nullable: all */
    size_t item, wide_item;
    size_t *order;           /* nullable: only sizes are wanted */
    size_t used;
    int64_t bytes;           /* so far */
    int64_t added, written;  /* elements of gradients that operations add to, and of those that products write */
    int64_t lowest;
} walk;

static int64_t round_up(int64_t value, int64_t to)
{
    return (value + to - 1) / to * to;
}

/* The next group: slots from..to of a layer, for every expert (experts 0: not an expert's). Its gradient's place is among its
 * like. */
static moed_status walk_group(walk *w, moedi_group *g, int from, int to, int32_t layer, int64_t experts, int written)
{
    const moed_layout *l = w->layout;
    int trained = 0;
    int64_t *const place = written ? &w->written : &w->added;
    *g = (moedi_group){.first = w->used, .gradient = -1, .written = written};
    for (int64_t e = 0; e < (experts ? experts : 1); e++) {
        for (int s = from; s <= to; s++) {
            char name[512] = "";
            moedi_family_tensor(l->family, (moedi_slot)s, layer, (int32_t)e, name, sizeof name);
            const int64_t p = moedi_layout_find(l, name);
            if (p < 0) {
                return moedi_fail_parameter(MOED_E_MISMATCH, name, "the layout lacks parameter %s", name);
            }
            if (w->order) w->order[w->used] = (size_t)p;
            w->used++, g->count++;
            g->fixed = (l->params[p].flags & MOED_PARAM_FIXED) != 0; /* all of a group or none */
            g->size += moedi_shape_elements(l->params[p].shape, l->params[p].rank);
            trained |= !g->fixed && (!w->trained || w->trained[p]);
        }
    }
    w->bytes += g->size * (int64_t)(g->fixed ? w->wide_item : w->item);
    if (trained) {
        g->gradient = *place;
        *place = round_up(*place + g->size, (int64_t)(64 / w->item));
    }
    if (trained && layer < w->lowest) w->lowest = layer;
    return MOED_OK;
}

static size_t count_groups(const moed_layout *l)
{
    return 3 + (size_t)l->config.layers * MOEDI_GROUPS_PER_LAYER;
}

/* Whether a layer has a group. */
static int has_group(const moed_layout *l, int64_t layer, int kind)
{
    const moedi_config *c = &l->config;
    const int dense = moedi_config_dense(c, layer);
    switch (kind) {
    case MOEDI_GROUP_QKV_BIAS: return c->qkv_bias;
    case MOEDI_GROUP_Q_NORM:
    case MOEDI_GROUP_K_NORM: return c->qk_norm;
    case MOEDI_GROUP_O_BIAS: return c->o_bias;
    case MOEDI_GROUP_ROUTER: return !dense && l->family->slots[MOEDI_SLOT_ROUTER];
    case MOEDI_GROUP_GATE_UP:
    case MOEDI_GROUP_DOWN: return !dense;
    case MOEDI_GROUP_ROUTER_IN: return !dense && c->router_hidden > 0;
    case MOEDI_GROUP_ROUTER_BIAS: return !dense && c->selection_bias;
    case MOEDI_GROUP_ROUTER_NOISE: return !dense && c->router_noise;
    case MOEDI_GROUP_PLAIN_GATE_UP:
    case MOEDI_GROUP_PLAIN_DOWN: return moedi_plain_width(c, layer) > 0;
    case MOEDI_GROUP_SHARED_SWITCH: return !dense && c->shared_switch;
    default: return 1;
    }
}

/* Whether a layer's backward makes a group's gradient by one product, which need not add to what is there. */
static int is_written(const moedi_config *c, int kind)
{
    switch (kind) {
    case MOEDI_GROUP_ROUTER_IN:
    case MOEDI_GROUP_ROUTER: return moedi_config_routes(c);
    case MOEDI_GROUP_QKV:
    case MOEDI_GROUP_O:
    case MOEDI_GROUP_GATE_UP:
    case MOEDI_GROUP_DOWN:
    case MOEDI_GROUP_PLAIN_GATE_UP:
    case MOEDI_GROUP_PLAIN_DOWN:
    case MOEDI_GROUP_SHARED_SWITCH: return 1;
    default: return 0;
    }
}

/* The slots of a group. */
static void slots_of(const moedi_config *c, int64_t layer, int kind, int *from, int *to)
{
    static const struct { int from, to; } slots[MOEDI_GROUPS_PER_LAYER] = {
        [MOEDI_GROUP_ATTENTION_NORM] = {MOEDI_SLOT_ATTENTION_NORM, MOEDI_SLOT_ATTENTION_NORM},
        [MOEDI_GROUP_QKV] = {MOEDI_SLOT_Q, MOEDI_SLOT_V},
        [MOEDI_GROUP_QKV_BIAS] = {MOEDI_SLOT_Q_BIAS, MOEDI_SLOT_V_BIAS},
        [MOEDI_GROUP_Q_NORM] = {MOEDI_SLOT_Q_NORM, MOEDI_SLOT_Q_NORM},
        [MOEDI_GROUP_K_NORM] = {MOEDI_SLOT_K_NORM, MOEDI_SLOT_K_NORM},
        [MOEDI_GROUP_O] = {MOEDI_SLOT_O, MOEDI_SLOT_O},
        [MOEDI_GROUP_O_BIAS] = {MOEDI_SLOT_O_BIAS, MOEDI_SLOT_O_BIAS},
        [MOEDI_GROUP_FFN_NORM] = {MOEDI_SLOT_FFN_NORM, MOEDI_SLOT_FFN_NORM},
        [MOEDI_GROUP_ROUTER_IN] = {MOEDI_SLOT_ROUTER_IN, MOEDI_SLOT_ROUTER_IN},
        [MOEDI_GROUP_ROUTER] = {MOEDI_SLOT_ROUTER, MOEDI_SLOT_ROUTER},
        [MOEDI_GROUP_ROUTER_BIAS] = {MOEDI_SLOT_ROUTER_BIAS, MOEDI_SLOT_ROUTER_BIAS},
        [MOEDI_GROUP_ROUTER_NOISE] = {MOEDI_SLOT_ROUTER_NOISE, MOEDI_SLOT_ROUTER_NOISE},
        [MOEDI_GROUP_GATE_UP] = {MOEDI_SLOT_EXPERT_GATE, MOEDI_SLOT_EXPERT_UP},
        [MOEDI_GROUP_DOWN] = {MOEDI_SLOT_EXPERT_DOWN, MOEDI_SLOT_EXPERT_DOWN},
        [MOEDI_GROUP_PLAIN_GATE_UP] = {MOEDI_SLOT_SHARED_GATE, MOEDI_SLOT_SHARED_UP},
        [MOEDI_GROUP_PLAIN_DOWN] = {MOEDI_SLOT_SHARED_DOWN, MOEDI_SLOT_SHARED_DOWN},
        [MOEDI_GROUP_SHARED_SWITCH] = {MOEDI_SLOT_SHARED_SWITCH, MOEDI_SLOT_SHARED_SWITCH},
    };
    *from = slots[kind].from, *to = slots[kind].to;
    if (kind == MOEDI_GROUP_ROUTER && c->router_hidden) *from = *to = MOEDI_SLOT_ROUTER_OUT;
    if (!moedi_config_dense(c, layer)) return;
    if (kind == MOEDI_GROUP_PLAIN_GATE_UP) *from = MOEDI_SLOT_DENSE_GATE, *to = MOEDI_SLOT_DENSE_UP;
    if (kind == MOEDI_GROUP_PLAIN_DOWN) *from = *to = MOEDI_SLOT_DENSE_DOWN;
}

/* groups (count_groups) nullable. */
static moed_status walk_layout(walk *w, moedi_group *groups)
{
    const moedi_config *c = &w->layout->config;
    moedi_group ignored, *g = groups ? groups : &ignored;
    const int next = groups != NULL;
    w->lowest = c->layers;
    MOEDI_TRY(walk_group(w, g, MOEDI_SLOT_EMBEDDING, MOEDI_SLOT_EMBEDDING, -1, 0, 0));
    g += next;
    for (int32_t layer = 0; layer < c->layers; layer++) {
        for (int kind = 0; kind < MOEDI_GROUPS_PER_LAYER; kind++, g += next) {
            const int expert = kind == MOEDI_GROUP_GATE_UP || kind == MOEDI_GROUP_DOWN;
            int from, to;
            if (!has_group(w->layout, layer, kind)) continue;
            slots_of(c, layer, kind, &from, &to);
            MOEDI_TRY(walk_group(w, g, from, to, layer, expert ? moedi_layout_window(w->layout) : 0, is_written(c, kind)));
        }
    }
    MOEDI_TRY(walk_group(w, g, MOEDI_SLOT_FINAL_NORM, MOEDI_SLOT_FINAL_NORM, INT_MAX, 0, 0));
    g += next;
    return c->tied ? MOED_OK : walk_group(w, g, MOEDI_SLOT_HEAD, MOEDI_SLOT_HEAD, INT_MAX, 0, 0);
}

/* ---- the plan of activations ---- */

/* Hands out memory of one block; base NULL only counts. */
typedef struct arena {
    char *base;
    int64_t used, peak;
    int overflow;
} arena;

/* count * per items of `size` bytes */
static void *take(arena *a, int64_t count, int64_t per, size_t size)
{
    int64_t bytes;
    const int64_t at = a->used;
    if (__builtin_mul_overflow(count, per, &bytes) || __builtin_mul_overflow(bytes, (int64_t)size, &bytes) ||
        bytes > INT64_MAX / 4 || a->used > INT64_MAX / 4) {
        a->overflow = 1;
        return NULL;
    }
    a->used = round_up(at + bytes, 64);
    if (a->used > a->peak) a->peak = a->used;
    return a->base ? a->base + at : NULL;
}

/* What an only expert has no need of. */
static void plan_routing(arena *a, const moedi_transformer *t, int64_t tokens, moedi_activations *out)
{
    const moedi_config *c = t->config;
    const int64_t places = tokens * c->top_k;
    out->router_hidden = take(a, tokens, c->router_hidden, t->item);
    out->router_logits = take(a, tokens, c->experts, t->wide);
    out->probabilities = take(a, tokens, c->experts, t->wide);
    out->router_lse = take(a, tokens, 1, t->wide);
    out->slot = take(a, places, 1, sizeof *out->slot);
    out->source = take(a, places, 1, sizeof *out->source);
}

/* What a layer has beside its attention. */
typedef struct contents {
    int experts;
    int64_t plain; /* width */
} contents;

static contents contents_of(const moedi_config *c, int64_t layer)
{
    return (contents){!moedi_config_dense(c, layer), moedi_plain_width(c, layer)};
}

/* Room for any layer. */
static contents contents_of_all(const moedi_config *c)
{
    contents all = {0};
    for (int64_t l = 0; l < c->layers; l++) {
        const contents one = contents_of(c, l);
        all.experts |= one.experts;
        if (one.plain > all.plain) all.plain = one.plain;
    }
    return all;
}

static void plan_attention(arena *a, const moedi_transformer *t, int64_t tokens, moedi_activations *out)
{
    const moedi_config *c = t->config;
    out->qkv = take(a, tokens, moedi_qkv_width(c), t->item);
    out->attended = take(a, tokens, c->heads * c->head_dim, t->item);
    out->attention_lse = take(a, tokens, c->heads, t->wide);
    if (!c->qk_norm) return;
    out->unnormed = take(a, tokens, moedi_qk_width(c), t->item);
    out->q_rstd = take(a, tokens, c->qk_norm == MOEDI_QK_NORM_HEAD ? c->heads : 1, t->wide);
    out->k_rstd = take(a, tokens, c->qk_norm == MOEDI_QK_NORM_HEAD ? c->kv_heads : 1, t->wide);
}

/* The part of a layer's activations that backward needs. Outside TRAIN attention, the experts and what every token passes take
 * turns in the same memory. */
static void plan_layer(arena *a, const moedi_transformer *t, int64_t tokens, contents has, moedi_activations *out)
{
    const moedi_config *c = t->config;
    out->x = take(a, tokens, c->hidden, t->item);
    out->mid = t->train ? take(a, tokens, c->hidden, t->item) : out->x;
    out->attention_rstd = take(a, tokens, 1, t->wide);
    out->ffn_rstd = take(a, tokens, 1, t->wide);
    out->h = t->renorm ? t->normed : take(a, tokens, c->hidden, t->item);
    const int64_t start = a->used;
    out->normed = t->renorm ? t->normed : take(a, tokens, c->hidden, t->item);
    plan_attention(a, t, tokens, out);
    if (!t->train) a->used = start;
    if (has.experts) out->gate_up = take(a, tokens * c->top_k, 2 * c->expert_width, t->item);
    if (has.experts && moedi_config_routes(c)) plan_routing(a, t, tokens, out);
    if (!t->train) a->used = start;
    if (has.plain) out->plain_gate_up = take(a, tokens, 2 * has.plain, t->item);
    if (has.experts && c->shared_switch) {
        out->shared_y = take(a, tokens, c->hidden, t->item);
        out->shared_switch = take(a, tokens, 1, t->item);
    }
    a->used = a->peak;
}

/* What lives within one part of a layer: attention, the experts, the shared expert and a piece of logits take turns in the
 * same memory. */
static void plan_passing(arena *a, moedi_transformer *t, int64_t tokens)
{
    const moedi_config *c = t->config;
    const contents has = contents_of_all(c);
    const int64_t places = tokens * c->top_k;
    const int64_t start = a->used;
    if (t->train) {
        t->d_qkv = take(a, tokens, moedi_qkv_width(c), t->item);
        t->d_attended = take(a, tokens, c->heads * c->head_dim, t->item);
    }
    a->used = start;
    if (has.experts) t->act = take(a, places, c->expert_width, t->item);
    if (has.experts && moedi_config_routes(c)) {
        t->places = take(a, places, c->hidden, t->item);
        if (t->train) t->d_weights = take(a, places, 1, t->wide);
        if (t->train) t->d_router_logits = take(a, tokens, c->experts, t->item);
        if (t->train) t->d_router_hidden = take(a, tokens, c->router_hidden, t->item);
    }
    a->used = start;
    if (has.plain) t->plain_act = take(a, tokens, has.plain, t->item);
    if (has.experts && c->shared_switch && t->train) {
        t->d_shared_y = take(a, tokens, c->hidden, t->item);
        t->d_shared_switch = take(a, tokens, 1, t->item);
    }
    a->used = start;
    t->logit_rows = tokens < 64 ? tokens : 64;
    t->logits = take(a, t->logit_rows, c->vocabulary, t->wide);
    a->used = a->peak;
}

/* Everything an engine needs beside weights and gradients: t's pointers into a->base, or only its size in
 * a->peak. */
static void plan(arena *a, moedi_transformer *t)
{
    const moedi_config *c = t->config;
    const int64_t tokens = t->rows * t->length;
    t->cosine = take(a, t->length, c->head_dim / 2, t->wide);
    t->sine = take(a, t->length, c->head_dim / 2, t->wide);
    t->own_results = take(a, MOEDI_RESULTS, 1, t->wide);
    t->token_losses = take(a, tokens, 1, t->wide);
    t->own_offsets = take(a, c->layers, c->experts + 1, sizeof *t->own_offsets);
    /* Narrow reals are there to spare memory: two norms more a layer are less than a hundredth of its time. */
    t->renorm = t->wide > t->item;
    if (t->renorm) t->normed = take(a, tokens, c->hidden, t->item);
    moedi_activations shared = {0};
    for (int64_t l = 0; l < c->layers; l++) {
        moedi_activations mine = {0};
        if (t->train || !l) {
            shared = (moedi_activations){0};
            plan_layer(a, t, tokens, t->train ? contents_of(c, l) : contents_of_all(c), &shared);
        }
        mine = shared;
        if (!moedi_config_dense(c, l)) {
            mine.ids = take(a, tokens, c->top_k, sizeof *mine.ids);
            mine.weights = take(a, tokens, c->top_k, t->wide);
        }
        if (t->layers) t->layers[l] = mine;
        if (a->overflow) return;
    }
    t->final_x = t->train ? take(a, tokens, c->hidden, t->item) : shared.x;
    t->final_rstd = take(a, tokens, 1, t->wide);
    t->final_h = take(a, tokens, c->hidden, t->item);
    if (t->train) {
        t->d_x = take(a, tokens, c->hidden, t->item);
        t->d_h = take(a, tokens, c->hidden, t->item);
    }
    plan_passing(a, t, tokens);
}

/* A family's layout and sizes that the arithmetic can index. */
static moed_status check_sizes(const moed_layout *l, int64_t rows, int64_t length)
{
    if (!l->family) {
        return moedi_fail(MOED_E_UNSUPPORTED,
                          "a layout made by hand has no forward pass: only a family's layout has");
    }
    const moedi_config *c = &l->config;
    if (rows < 1) return moedi_fail(MOED_E_RANGE, "rows is %lld: it must be at least 1", (long long)rows);
    if (length < 1) {
        return moedi_fail(MOED_E_RANGE, "length is %lld: it must be at least 1", (long long)length);
    }
    if (length > c->context_length) {
        return moedi_fail(MOED_E_RANGE,
                          "rows of %lld tokens are longer than the model's max_position_embeddings, %lld",
                          (long long)length, (long long)c->context_length);
    }
    if (rows > INT32_MAX / length || rows * length > INT32_MAX / c->top_k) {
        return moedi_fail(MOED_E_RANGE, "%lld rows of %lld tokens are more than one pass can take",
                          (long long)rows, (long long)length);
    }
    return MOED_OK;
}

moed_status moedi_transformer_bytes(const moed_layout *l, const moed_backend_info *numbers, int64_t rows,
                                    int64_t length, uint32_t flags, const uint8_t *trained, int64_t *weights,
                                    int64_t *gradients, int64_t *activations)
{
    const size_t item = moedi_dtype_size(numbers->dtype);
    MOEDI_TRY(check_sizes(l, rows, length));
    walk w = {.layout = l, .trained = trained, .item = item, .wide_item = moedi_dtype_size(numbers->wide)};
    MOEDI_TRY(walk_layout(&w, NULL));
    moedi_transformer t = {.config = &l->config, .item = item, .rows = rows, .length = length};
    t.wide = w.wide_item;
    t.train = (flags & MOEDI_TRANSFORMER_TRAIN) != 0;
    arena a = {0};
    plan(&a, &t);
    if (a.overflow) {
        return moedi_fail(MOED_E_RANGE, "%lld rows of %lld tokens do not fit in any memory", (long long)rows,
                          (long long)length);
    }
    const int halves = t.train && flags & MOEDI_TRANSFORMER_MASTERS && t.wide > item;
    if (weights) *weights = w.bytes + (halves ? (w.added + w.written) * LOW : 0);
    if (gradients) *gradients = t.train ? (w.added + w.written) * (int64_t)item : 0;
    if (activations) *activations = a.peak + moedi_staged_bytes(rows * length);
    return MOED_OK;
}

/* ---- weights ---- */

static size_t item_of(const moedi_transformer *t, const moedi_group *g)
{
    return g->fixed ? t->wide : t->item;
}

/* Whether a group's tensors are such that the engine can work on them where they are. */
static int usable_in_place(const moedi_transformer *t, const moedi_group *g)
{
    const moed_tensor *tensors = t->model->tensors;
    const char *expected = tensors[t->order[g->first]].data;
    if (!t->engine.info.host_memory || (uintptr_t)expected % item_of(t, g)) return 0;
    for (size_t i = g->first; i < g->first + g->count; i++) {
        const moed_tensor *x = &tensors[t->order[i]];
        if (x->data != expected || x->dtype != (g->fixed ? t->engine.info.wide : t->engine.info.dtype)) return 0;
        expected += (size_t)moedi_shape_elements(x->shape, x->rank) * item_of(t, g);
    }
    return 1;
}

/* Decides where each group's weights lie, and makes room for those that need some. */
static moed_status place_weights(moedi_transformer *t)
{
    arena a = {0};
    for (size_t i = 0; i < t->group_count; i++) {
        moedi_group *g = &t->groups[i];
        if (!g->count) continue;
        g->owned = !usable_in_place(t, g);
        if (g->owned) take(&a, g->size, 1, item_of(t, g));
    }
    if (a.peak) MOEDI_TRY(t->engine.table->alloc(t->engine.self, (size_t)a.peak, &t->own_weights));
    a = (arena){.base = t->own_weights};
    for (size_t i = 0; i < t->group_count; i++) {
        moedi_group *g = &t->groups[i];
        if (!g->count) continue;
        g->weight = g->owned ? take(&a, g->size, 1, item_of(t, g)) : t->model->tensors[t->order[g->first]].data;
        int64_t at = 0;
        for (size_t j = g->first; j < g->first + g->count; j++) {
            const moed_param *p = &t->layout->params[t->order[j]];
            t->weight[t->order[j]] = (char *)g->weight + (size_t)at * item_of(t, g);
            t->gradient[t->order[j]] = t->train && g->gradient >= 0 ? g->gradient + at : -1;
            at += moedi_shape_elements(p->shape, p->rank);
        }
    }
    return MOED_OK;
}

/* The low halves of a parameter's numbers, NULL where it has none. */
static int16_t *low_of(const moedi_transformer *t, size_t param)
{
    return t->low && t->gradient[param] >= 0 ? t->low + t->gradient[param] : NULL;
}

/* At most STAGING numbers of a parameter, `at` on, between wide host memory and narrow device memory. */
static moed_status move_piece(moedi_transformer *t, size_t param, int64_t at, int64_t count, void *wide, int up)
{
    const moed_backend *b = t->engine.table;
    void *self = t->engine.self, *high = moedi_at(t, t->weight[param], at);
    int16_t *low = low_of(t, param), *host_low = low ? (int16_t *)moedi_at(t, t->staging, STAGING) : NULL;
    if (up) {
        moedi_halve(t->staging, host_low, wide, count);
        MOEDI_TRY(b->upload(self, high, t->staging, (size_t)count * t->item));
        if (low) MOEDI_TRY(b->upload(self, low + at, host_low, (size_t)count * sizeof *low));
        return b->synchronize(self);
    }
    MOEDI_TRY(b->download(self, t->staging, high, (size_t)count * t->item));
    if (low) MOEDI_TRY(b->download(self, host_low, low + at, (size_t)count * sizeof *low));
    MOEDI_TRY(b->synchronize(self));
    moedi_unite(wide, t->staging, host_low, count);
    return MOED_OK;
}

/* A parameter that the device holds in wide numbers where its weights are narrow. */
static int held_wide(const moedi_transformer *t, size_t param)
{
    return (t->layout->params[param].flags & MOED_PARAM_FIXED) != 0;
}

/* Numbers of a parameter between host memory of the wide dtype and the device. */
static moed_status move_numbers(moedi_transformer *t, size_t param, int64_t first, int64_t count, void *wide, int up)
{
    const moed_backend *b = t->engine.table;
    const int staged = t->staging && !held_wide(t, param);
    for (int64_t at = 0; staged && at < count; at += STAGING) {
        const int64_t n = count - at < STAGING ? count - at : STAGING;
        MOEDI_TRY(move_piece(t, param, first + at, n, moedi_at_wide(t, wide, at), up));
    }
    if (staged) return MOED_OK;
    const size_t item = held_wide(t, param) ? t->wide : t->item, bytes = (size_t)count * item;
    void *device = (char *)t->weight[param] + (size_t)first * item;
    MOEDI_TRY(up ? b->upload(t->engine.self, device, wide, bytes) : b->download(t->engine.self, wide, device, bytes));
    return b->synchronize(t->engine.self);
}

/* A part of the model's own tensor, in its dtype, to or from wide numbers. */
static void convert_tensor(moedi_transformer *t, size_t param, int64_t first, int64_t count, void *wide, int out)
{
    const moed_tensor *x = &t->model->tensors[param];
    char *own = (char *)x->data + (size_t)first * moedi_dtype_size(x->dtype);
    if (out) moedi_convert(wide, t->engine.info.wide, own, x->dtype, count);
    else moedi_convert(own, x->dtype, wide, t->engine.info.wide, count);
}

/* A parameter that the device holds rounded, and that does not change: the model's own tensor is the exact one. */
static int rounded(const moedi_transformer *t, size_t param)
{
    return t->staging && t->gradient[param] < 0 && !held_wide(t, param);
}

moed_status moedi_transformer_read(moedi_transformer *t, size_t param, int64_t first, int64_t count, void *wide)
{
    if (!rounded(t, param)) return move_numbers(t, param, first, count, wide, 0);
    convert_tensor(t, param, first, count, wide, 1);
    return MOED_OK;
}

moed_status moedi_transformer_write(moedi_transformer *t, size_t param, int64_t first, int64_t count, void *wide)
{
    if (rounded(t, param)) convert_tensor(t, param, first, count, wide, 0);
    return move_numbers(t, param, first, count, wide, 1);
}

/* One tensor between the model's host memory and the device, through a host copy where the dtypes differ. */
static moed_status move_tensor(moedi_transformer *t, size_t param, int up)
{
    const moed_tensor *x = &t->model->tensors[param];
    const int64_t count = moedi_shape_elements(x->shape, x->rank);
    if (!up && rounded(t, param)) return MOED_OK;
    if (x->dtype == t->engine.info.wide) return move_numbers(t, param, 0, count, x->data, up);
    void *copy = NULL;
    moed_status status;
    MOEDI_GO(moedi_alloc(t->engine.context, (size_t)(count < STAGING ? count : STAGING) * t->wide, &copy));
    for (int64_t at = 0; at < count; at += STAGING) {
        const int64_t n = count - at < STAGING ? count - at : STAGING;
        if (up) convert_tensor(t, param, at, n, copy, 1);
        MOEDI_GO(move_numbers(t, param, at, n, copy, up));
        if (!up) convert_tensor(t, param, at, n, copy, 0);
    }
out:
    moedi_free(t->engine.context, copy);
    return status;
}

static moed_status move_group(moedi_transformer *t, const moedi_group *g, int up)
{
    for (size_t j = g->first; g->owned && j < g->first + g->count; j++) MOEDI_TRY(move_tensor(t, t->order[j], up));
    return MOED_OK;
}

static moed_status move_weights(moedi_transformer *t, int up)
{
    for (size_t i = 0; i < t->group_count; i++) MOEDI_TRY(move_group(t, &t->groups[i], up));
    return MOED_OK;
}

moed_status moedi_transformer_load_group(moedi_transformer *t, const moedi_group *g)
{
    return move_group(t, g, 1);
}

moed_status moedi_transformer_load(moedi_transformer *t)
{
    return move_weights(t, 1);
}

moed_status moedi_transformer_store(moedi_transformer *t)
{
    return move_weights(t, 0);
}

/* ---- create, destroy ---- */

/* cosine and sine of position * frequency, made in double. */
static moed_status upload_rope(moedi_transformer *t)
{
    const moedi_config *c = t->config;
    const int64_t half = c->head_dim / 2, count = t->length * half;
    double *exact = NULL;
    void *table = NULL;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(t->engine.context, 2 * count, &exact));
    MOEDI_GO(moedi_alloc(t->engine.context, 2 * (size_t)count * t->wide, &table));
    for (int64_t p = 0; p < t->length; p++) {
        for (int64_t i = 0; i < half; i++) {
            const double angle = (double)p * moedi_rope_frequency(&c->rope, c->head_dim, i);
            exact[p * half + i] = c->rope.magnitude * cos(angle);
            exact[count + p * half + i] = c->rope.magnitude * sin(angle);
        }
    }
    moedi_from_double(table, t->engine.info.wide, exact, 2 * count);
    MOEDI_GO(t->engine.table->upload(t->engine.self, t->cosine, table, (size_t)count * t->wide));
    MOEDI_GO(t->engine.table->upload(t->engine.self, t->sine, moedi_at_wide(t, table, count),
                                     (size_t)count * t->wide));
    MOEDI_GO(t->engine.table->synchronize(t->engine.self));
out:
    moedi_free(t->engine.context, exact);
    moedi_free(t->engine.context, table);
    return status;
}

int64_t moedi_transformer_host_bytes(const moed_layout *l, const moed_backend_info *numbers)
{
    const size_t item = moedi_dtype_size(numbers->dtype), wide = moedi_dtype_size(numbers->wide);
    const size_t tables = l->count * (sizeof(size_t) + sizeof(void *) + sizeof(int64_t)) + count_groups(l) * sizeof(moedi_group);
    const size_t layers = (size_t)l->config.layers;
    const size_t passes = layers * (sizeof(moedi_activations) + (size_t)(l->config.experts + 1) * sizeof(int64_t));
    return (int64_t)(sizeof(moedi_transformer) + tables + passes + (wide > item ? STAGING * (item + LOW) : 0));
}

/* Host memory: the parameter tables and what goes up and down each pass. */
static moed_status allocate_host(moedi_transformer *t, const uint8_t *trained)
{
    const moed_context *c = t->engine.context;
    const size_t count = t->layout->count;
    t->group_count = count_groups(t->layout);
    MOEDI_TRY(MOEDI_NEW(c, count, &t->order));
    MOEDI_TRY(MOEDI_NEW(c, t->group_count, &t->groups));
    MOEDI_TRY(MOEDI_NEW(c, count, &t->weight));
    MOEDI_TRY(MOEDI_NEW(c, count, &t->gradient));
    MOEDI_TRY(MOEDI_NEW(c, t->config->layers, &t->layers));
    MOEDI_TRY(MOEDI_NEW(c, t->config->layers * (t->config->experts + 1), &t->host_offsets));
    if (t->wide > t->item) MOEDI_TRY(moedi_alloc(c, STAGING * (t->item + LOW), &t->staging));
    for (size_t i = 0; i < count; i++) t->gradient[i] = -1;
    walk w = {.layout = t->layout, .trained = trained, .item = t->item, .wide_item = t->wide, .order = t->order};
    MOEDI_TRY(walk_layout(&w, t->groups));
    for (size_t i = 0; i < t->group_count; i++)
        if (t->groups[i].gradient >= 0 && t->groups[i].written) t->groups[i].gradient += w.added;
    t->gradient_count = t->train ? w.added + w.written : 0;
    t->added_count = t->train ? w.added : 0;
    t->lowest = w.lowest;
    return MOED_OK;
}

void moedi_transformer_set_results(moedi_transformer *t, void *results, int64_t *offsets)
{
    t->results = results ? results : t->own_results;
    t->offsets = offsets ? offsets : t->own_offsets;
    for (int64_t l = 0; l < t->config->layers; l++) t->layers[l].offsets = t->offsets + l * (t->config->experts + 1);
}

static moed_status allocate_device(moedi_transformer *t, uint32_t flags)
{
    const moed_backend *b = t->engine.table;
    MOEDI_TRY(place_weights(t));
    if (t->gradient_count) {
        const size_t bytes = (size_t)t->gradient_count * t->item;
        MOEDI_TRY(b->alloc(t->engine.self, bytes, &t->own_gradients));
        MOEDI_TRY(b->zero(t->engine.self, t->own_gradients, bytes));
        t->gradients = t->own_gradients;
    }
    if (t->gradient_count && t->wide > t->item && flags & MOEDI_TRANSFORMER_MASTERS)
        MOEDI_TRY(b->alloc(t->engine.self, (size_t)t->gradient_count * LOW, (void **)&t->low));
    arena a = {0};
    plan(&a, t);
    if (a.overflow) {
        return moedi_fail(MOED_E_RANGE, "%lld rows of %lld tokens do not fit in any memory",
                          (long long)t->rows, (long long)t->length);
    }
    MOEDI_TRY(b->alloc(t->engine.self, (size_t)a.peak, &t->arena));
    a = (arena){.base = t->arena};
    plan(&a, t);
    moedi_transformer_set_results(t, NULL, NULL);
    return moedi_staged_create(&t->own_batch, &t->engine, t->rows * t->length);
}

moed_status moedi_transformer_create(moedi_transformer **out, const moed_model *m, int64_t rows,
                                     int64_t length, uint32_t flags, const uint8_t *trained)
{
    moedi_transformer *t = NULL;
    moed_status status;
    MOEDI_TRY(check_sizes(m->layout, rows, length));
    MOEDI_TRY(moedi_model_check_resident(m));
    MOEDI_TRY(MOEDI_NEW(m->context, 1, &t));
    t->model = moedi_model_retain(m);
    t->layout = m->layout, t->config = &m->layout->config;
    t->rows = rows, t->length = length;
    t->train = (flags & MOEDI_TRANSFORMER_TRAIN) != 0;
    MOEDI_GO(moedi_engine_open(&t->engine, m->context));
    t->item = t->engine.item, t->wide = t->engine.wide_item;
    if (t->config->router_hidden && !MOED_BACKEND_HAS(t->engine.table, squash)) {
        status = moedi_fail(MOED_E_UNSUPPORTED, "a router of two layers needs an operation that the backend %s does not have",
                            t->engine.table->name);
        goto out;
    }
    MOEDI_GO(allocate_host(t, trained));
    MOEDI_GO(allocate_device(t, flags));
    for (size_t i = 0; trained && i < t->layout->count; i++) {
        if (!trained[i]) t->gradient[i] = -1;
    }
    MOEDI_GO(upload_rope(t));
    MOEDI_GO(moedi_transformer_load(t));
    *out = t;
    return MOED_OK;
out:
    moedi_transformer_destroy(t);
    return status;
}

void moedi_transformer_destroy(moedi_transformer *t)
{
    if (!t) return;
    moed_model *m = t->model;
    const moed_context *c = m->context;
    moedi_staged_destroy(&t->own_batch);
    if (t->engine.table) {
        t->engine.table->free(t->engine.self, t->arena);
        t->engine.table->free(t->engine.self, t->own_gradients);
        t->engine.table->free(t->engine.self, t->low);
        t->engine.table->free(t->engine.self, t->own_weights);
    }
    moedi_free(c, t->order);
    moedi_free(c, t->groups);
    moedi_free(c, t->weight);
    moedi_free(c, t->gradient);
    moedi_free(c, t->layers);
    moedi_free(c, t->host_offsets);
    moedi_free(c, t->staging);
    if (t->engine.table) moedi_engine_close(&t->engine);
    moedi_free(c, t);
    moed_model_destroy(m);
}

/* ---- what others see ---- */

moedi_engine *moedi_transformer_engine(moedi_transformer *t)
{
    return &t->engine;
}

const moedi_config *moedi_transformer_config(const moedi_transformer *t)
{
    return t->config;
}

void moedi_transformer_replay(moedi_transformer *t, int replay)
{
    t->replay = replay;
}

void *moedi_transformer_weight(moedi_transformer *t, size_t param)
{
    return t->weight[param];
}

void *moedi_transformer_selection_bias(moedi_transformer *t, int64_t layer)
{
    const moedi_group *g = moedi_group_of(t, layer, MOEDI_GROUP_ROUTER_BIAS);
    return g->count ? g->weight : NULL;
}

void *moedi_transformer_gradient(moedi_transformer *t, size_t param)
{
    return t->gradient[param] < 0 ? NULL : moedi_at(t, t->gradients, t->gradient[param]);
}

int16_t *moedi_transformer_low(moedi_transformer *t, size_t param)
{
    return low_of(t, param);
}

void *moedi_transformer_gradients(moedi_transformer *t, int64_t *count)
{
    if (count) *count = t->gradient_count;
    return t->gradients;
}

moed_status moedi_transformer_open_gradients(moedi_transformer *t, void *block, int32_t fresh)
{
    t->gradients = block, t->fresh = fresh;
    return fresh ? t->engine.table->zero(t->engine.self, block, (size_t)t->added_count * t->item) : MOED_OK;
}
