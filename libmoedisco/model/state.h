/* model/state.h - what transformer.c lays out and forward.c and backward.c work on. Private to them. */
#ifndef MOEDI_STATE_H
#define MOEDI_STATE_H

#include "core/cancel.h"
#include "staged.h"
#include "transformer.h"

/* Parameters that one operation takes as one matrix, or one stack of matrices. They lie one after another in
 * memory. */
typedef struct moedi_group {
    size_t first, count;            /* in moedi_transformer.order; count 0: the model has no such group */
    int64_t size;                   /* elements */
    int64_t gradient;               /* element in the block of gradients, -1: all frozen */
    void *weight;
    int owned;                      /* weight is in this transformer's own block, not in the model's memory */
    int fixed;                      /* no gradient trains it: of wide numbers, however narrow reals are */
    int written;                    /* the gradient is one product's, and lies behind those that are added to */
} moedi_group;

enum { /* groups of a layer */
    MOEDI_GROUP_ATTENTION_NORM,     /* (D) */
    MOEDI_GROUP_QKV,                /* ((heads + 2 kv_heads) * head_dim, D) */
    MOEDI_GROUP_QKV_BIAS,
    MOEDI_GROUP_Q_NORM,             /* (heads * head_dim) or (head_dim) */
    MOEDI_GROUP_K_NORM,             /* (kv_heads * head_dim) or (head_dim) */
    MOEDI_GROUP_O,                  /* (D, heads * head_dim) */
    MOEDI_GROUP_O_BIAS,             /* (D) */
    MOEDI_GROUP_FFN_NORM,           /* (D) */
    MOEDI_GROUP_ROUTER_IN,          /* (H, D), of a router of two layers */
    MOEDI_GROUP_ROUTER,             /* (E, D), or (E, H) */
    MOEDI_GROUP_ROUTER_BIAS,        /* (E) */
    MOEDI_GROUP_ROUTER_NOISE,       /* (E, D) */
    MOEDI_GROUP_GATE_UP,            /* (E, 2 F, D) */
    MOEDI_GROUP_DOWN,               /* (E, D, F) */
    MOEDI_GROUP_PLAIN_GATE_UP,      /* (2 S, D): what every token passes, a shared expert, or all of a layer without experts */
    MOEDI_GROUP_PLAIN_DOWN,         /* (D, S) */
    MOEDI_GROUP_SHARED_SWITCH,      /* (1, D) */
    MOEDI_GROUPS_PER_LAYER
};

/* What a layer's forward leaves behind. In TRAIN mode every layer has its own; otherwise all share one, but
 * for the routing. N tokens, P = N * top_k places. */
typedef struct moedi_activations {
    void *x, *mid;                  /* (N, D) residual stream: entering; before the experts (outside TRAIN: x) */
    void *attention_rstd, *ffn_rstd; /* (N), wide as all statistics and the routing's */
    void *normed;                   /* (N, D) what q, k, v are made of; see moedi_transformer.renorm */
    void *qkv;                      /* (N, (heads + 2 kv_heads) * head_dim), rotated */
    void *unnormed;                 /* (N, (heads + kv_heads) * head_dim) q and k before their norms */
    void *q_rstd, *k_rstd;          /* (N, heads), (N, kv_heads), or (N) where norms are over all heads */
    void *attended, *attention_lse; /* (N, heads, head_dim), (heads, N) */
    void *h;                        /* (N, D) what router and experts see; likewise */
    void *router_hidden;            /* (N, H) */
    void *router_logits, *probabilities, *router_lse; /* (N, E), (N, E), (N) */
    int32_t *ids;                   /* (N, top_k) */
    void *weights;                  /* (N, top_k) */
    int64_t *offsets;               /* (E + 1) */
    int32_t *slot, *source;         /* (N, top_k), (P) */
    void *gate_up;                  /* (P, 2 F); backward puts its gradient there */
    void *plain_gate_up;            /* (N, 2 S) likewise */
    void *shared_y, *shared_switch; /* (N, D), (N): of a shared expert with a switch */
} moedi_activations;

struct moedi_transformer {
    moed_model *model;
    const moed_layout *layout;      /* the model's */
    const moedi_config *config;     /* the layout's */
    moedi_engine engine;
    size_t item, wide;              /* bytes of a real, of a wide number */
    int train;
    int renorm;                     /* one block for the norms' outputs of all layers: backward makes them again */
    int replay;
    const void *states;             /* host: what enters the first layer in the place of embeddings; nullable */
    moedi_tap_fn tap;               /* nullable */
    void *tap_user;
    moedi_bring_fn bring;           /* nullable */
    void *bring_user;
    int64_t rows, length;           /* room */

    size_t *order;                  /* (parameters) in slot order */
    moedi_group *groups;            /* embedding, layers * MOEDI_GROUPS_PER_LAYER, final norm, head */
    size_t group_count;
    void **weight;                  /* (parameters) */
    int64_t *gradient;              /* (parameters) element in the block, -1 frozen */
    int64_t gradient_count, added_count; /* elements of a block; of those in front, which operations add to */
    void *own_weights, *own_gradients, *arena; /* device memory */
    int16_t *low; /* likewise: the low halves of what trains, in the order of the gradients; NULL where reals are wide */
    void *gradients;                /* the block in use */
    int32_t fresh;                  /* what it holds of groups that are `written` counts for nothing */
    int64_t lowest;                 /* trained layer, -1: the embedding is, config.layers: no layer is */

    /* activations outside layers */
    moedi_staged own_batch;         /* of forwards whose caller stages none */
    moedi_shard now;                /* the batch of this pass */
    void *cosine, *sine;            /* (length, head_dim / 2) */
    void *final_x, *final_rstd, *final_h; /* (N, D), (N), (N, D) */
    void *token_losses, *results;   /* (N), (MOEDI_RESULTS) */
    int64_t *offsets;               /* (layers, E + 1) */
    void *own_results;              /* these two, unless the caller has another place for them */
    int64_t *own_offsets;
    moedi_activations *layers;
    void *normed;                   /* (N, D) with renorm */
    void *d_x, *d_h;                /* (N, D) gradients (TRAIN) */
    /* what lives within one part of a layer; the parts take turns in the same memory */
    void *d_qkv, *d_attended;       /* attention (TRAIN) */
    void *places, *act;             /* experts: (P, D) what they read, or what they made, or a gradient of these; (P, F) */
    void *d_weights, *d_router_logits, *d_router_hidden; /* (P), (N, E), (N, H) (TRAIN) */
    void *plain_act;                /* (N, S) */
    void *d_shared_y, *d_shared_switch; /* (TRAIN) */
    void *logits;                   /* (logit_rows, V) */
    int64_t logit_rows;

    /* host */
    void *staging;                  /* reals and low halves on their way, NULL where reals are wide */
    int64_t *host_offsets;          /* (layers, E + 1), of the last moedi_transformer_losses */

    /* the last forward */
    int64_t last_rows, last_length, tokens_now; /* 0 = none */
    int32_t whole;                  /* every row of its batch is one document */
    double label_weight;            /* of its batch */
    moedi_objective objective;
    int ready;                      /* its backward may run */

    const moed_cancel *cancel;      /* of the pass that runs, NULL outside one */
};

static inline int64_t moedi_qkv_width(const moedi_config *c)
{
    return (c->heads + 2 * c->kv_heads) * c->head_dim;
}
static inline int64_t moedi_qk_width(const moedi_config *c)
{
    return (c->heads + c->kv_heads) * c->head_dim;
}
/* Of the feed-forward that every token passes in a layer, 0 = it has none. */
static inline int64_t moedi_plain_width(const moedi_config *c, int64_t layer)
{
    return moedi_config_dense(c, layer) ? c->dense_width : c->shared_width;
}
static inline const moedi_group *moedi_group_of(const moedi_transformer *t, int64_t layer, int kind)
{
    return &t->groups[1 + layer * MOEDI_GROUPS_PER_LAYER + kind];
}
static inline const moedi_group *moedi_group_embedding(const moedi_transformer *t)
{
    return &t->groups[0];
}
static inline const moedi_group *moedi_group_final_norm(const moedi_transformer *t)
{
    return &t->groups[t->group_count - 2];
}
/* The head's own, or the embedding's when tied. */
static inline const moedi_group *moedi_group_head(const moedi_transformer *t)
{
    return t->config->tied ? &t->groups[0] : &t->groups[t->group_count - 1];
}
/* Element `index` of an array of reals, of wide numbers. */
static inline void *moedi_at(const moedi_transformer *t, const void *base, int64_t index)
{
    return (char *)(uintptr_t)base + (size_t)index * t->item;
}
static inline void *moedi_at_wide(const moedi_transformer *t, const void *base, int64_t index)
{
    return (char *)(uintptr_t)base + (size_t)index * t->wide;
}
/* Gradient of a group, NULL when frozen. */
static inline void *moedi_group_gradient(const moedi_transformer *t, const moedi_group *g)
{
    return g->count && g->gradient >= 0 ? moedi_at(t, t->gradients, g->gradient) : NULL;
}

/* out = norm(x), and rstd (forward.c; backward makes again what was not kept) */
moed_status moedi_transformer_norm(moedi_transformer *t, void *out, void *rstd, const void *x, const moedi_group *weight);

/* The norm of a layer's queries, or of its keys, forward from `unnormed` to qkv, backward in place of their gradients
 * (forward.c). */
moed_op_rmsnorm moedi_transformer_qk_norm(const moedi_transformer *t, int64_t layer, int key);

/* The model's numbers of a group to the engine, where they are not in place (transformer.c). */
moed_status moedi_transformer_load_group(moedi_transformer *t, const moedi_group *g);

/* table->operation(engine, &(struct){ fields }), returning from the enclosing function on failure. */
#define MOEDI_OP(t, operation, type, ...) \
    MOEDI_TRY((t)->engine.table->operation((t)->engine.self, &(type){__VA_ARGS__}))

/* The same for operations that take long: on the CPU they end early once the pass is cancelled, and the pass with them. Their
 * results are numbers only: what the others index by is always whole. */
#define MOEDI_LONG_OP(t, operation, type, ...)                                                                     \
    do {                                                                                                           \
        const moed_cancel *moedi_before_ = moedi_executor_watch((t)->cancel);                                      \
        const moed_status moedi_done_ = (t)->engine.table->operation((t)->engine.self, &(type){__VA_ARGS__});      \
        moedi_executor_watch(moedi_before_);                                                                       \
        MOEDI_TRY(moedi_done_);                                                                                    \
        MOEDI_TRY(moedi_cancel_check((t)->cancel));                                                                \
    } while (0)

#endif
