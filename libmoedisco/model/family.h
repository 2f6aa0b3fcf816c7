/* model/family.h - a family is a row of configuration: config.json field names, switches and tensor names. No code of its own. */
#ifndef MOEDI_FAMILY_H
#define MOEDI_FAMILY_H

#include "moedisco/sys/backend.h"
#include "rope.h"
#include "util/dtype.h"
#include "util/json.h"

enum { /* moedi_config.qk_norm: queries and keys are normed before they are turned */
    MOEDI_QK_NORM_NONE,
    MOEDI_QK_NORM_WHOLE,            /* over all heads of a token */
    MOEDI_QK_NORM_HEAD              /* each head by itself, with the same weights */
};

enum { MOEDI_DENSE_LAYERS_MAX = 1024 }; /* layers without experts lie below */

/* One transformer's configuration, whatever the family calls its fields. */
typedef struct moedi_config {
    int64_t vocabulary, hidden, layers, heads, kv_heads, head_dim;
    int64_t experts, top_k, expert_width; /* in the layers that have experts */
    int64_t routed_layers;          /* how many have */
    int64_t router_hidden;          /* of a router of two layers, 0 = of one */
    int64_t shared_width;           /* of the shared experts of such a layer, together; 0 = none */
    int64_t dense_width;            /* of the feed-forward of the other layers; 0 = there are none */
    uint64_t dense[MOEDI_DENSE_LAYERS_MAX / 64]; /* a bit for each layer: no experts */
    int64_t context_length;         /* max_position_embeddings */
    double epsilon;                 /* of RMSNorm */
    moedi_rope rope;
    double init_std;                /* initializer_range */
    double weight_scale;            /* of the chosen experts' weights */
    int32_t score;                  /* MOED_SCORE_SOFTMAX or _SIGMOID */
    int32_t selection_bias;         /* experts are chosen by score + bias */
    int32_t router_noise;           /* the router has a matrix for noise */
    int32_t normalise_top_k;
    int32_t shared_switch;          /* the shared expert is behind a sigmoid gate */
    int32_t qk_norm;
    int32_t qkv_bias, o_bias;
    int32_t tied;                   /* output head = embedding */
    int32_t dtype;                  /* torch_dtype / dtype of the checkpoint */
} moedi_config;

/* Whether a layer has a plain feed-forward in the place of experts. */
static inline int moedi_config_dense(const moedi_config *c, int64_t layer)
{
    return layer < MOEDI_DENSE_LAYERS_MAX && (c->dense[layer / 64] >> (layer % 64) & 1);
}

/* Whether experts are routed. An only expert is not where its weight is 1 whatever the router says: it sees every token, its
 * router has no part in the output, and in the losses none either. */
static inline int moedi_config_routes(const moedi_config *c)
{
    return c->experts > 1 || c->weight_scale != 1.0 || (c->score == MOED_SCORE_SIGMOID && !c->normalise_top_k);
}

/* The weights of the one transformer, in the order they lie in memory. A slot with experts lies expert by expert; gate and up are
 * adjacent, so are q, k and v: each group is one matrix to the operations. */
typedef enum moedi_slot {
    MOEDI_SLOT_EMBEDDING,
    MOEDI_SLOT_ATTENTION_NORM,      /* per layer from here */
    MOEDI_SLOT_Q, MOEDI_SLOT_K, MOEDI_SLOT_V,
    MOEDI_SLOT_Q_BIAS, MOEDI_SLOT_K_BIAS, MOEDI_SLOT_V_BIAS,
    MOEDI_SLOT_Q_NORM, MOEDI_SLOT_K_NORM,
    MOEDI_SLOT_O,
    MOEDI_SLOT_O_BIAS,
    MOEDI_SLOT_FFN_NORM,
    MOEDI_SLOT_ROUTER,              /* of layers with experts from here */
    MOEDI_SLOT_ROUTER_IN,           /* (router_hidden, hidden): in the place of one layer two, with tanh between them */
    MOEDI_SLOT_ROUTER_OUT,          /* (experts, router_hidden) */
    MOEDI_SLOT_ROUTER_BIAS,         /* (experts): of the selection; no gradient trains it */
    MOEDI_SLOT_ROUTER_NOISE,        /* (experts, hidden): of a trainer that adds noise to the logits; kept, not computed with */
    MOEDI_SLOT_EXPERT_GATE, MOEDI_SLOT_EXPERT_UP,   /* per expert */
    MOEDI_SLOT_EXPERT_DOWN,                          /* per expert */
    MOEDI_SLOT_SHARED_GATE, MOEDI_SLOT_SHARED_UP, MOEDI_SLOT_SHARED_DOWN,
    MOEDI_SLOT_SHARED_SWITCH,       /* (1, hidden): the shared expert's sigmoid gate */
    MOEDI_SLOT_DENSE_GATE, MOEDI_SLOT_DENSE_UP, MOEDI_SLOT_DENSE_DOWN, /* of layers without */
    MOEDI_SLOT_FINAL_NORM,          /* after the layers */
    MOEDI_SLOT_HEAD,
    MOEDI_SLOT_COUNT
} moedi_slot;

/* Whether each expert, and whether each layer, has one of its own. */
static inline int moedi_slot_of_expert(moedi_slot slot)
{
    return slot >= MOEDI_SLOT_EXPERT_GATE && slot <= MOEDI_SLOT_EXPERT_DOWN;
}
static inline int moedi_slot_of_layer(moedi_slot slot)
{
    return slot >= MOEDI_SLOT_ATTENTION_NORM && slot < MOEDI_SLOT_FINAL_NORM;
}

typedef struct moedi_family {
    const char *name;               /* config.json's model_type */
    const char *architecture;
    const char *slots[MOEDI_SLOT_COUNT]; /* tensor name patterns: %l layer, %e expert; NULL = the family has none */
    const char *stacked[MOEDI_SLOT_COUNT]; /* those that Transformers 5 names otherwise in memory, gate standing for gate and up,
                                     * each of all experts of a layer; NULL = as in slots, all NULL = it does not stack them */
    /* config.json's field names where families differ (NULL: it has no such field), and its defaults */
    const char *experts_field;      /* NULL: a dense family, whose feed-forward is an only expert without a router */
    const char *experts_alias, *top_k_field, *expert_width_field, *shared_width_field;
    const char *expert_sizes_field; /* expert_width_field is of all experts together, in equal parts, which this field may list */
    const char *shared_count_field; /* so many shared experts, each as wide as an expert: one of the widths together */
    const char *bias_field, *weight_scale_field, *noise_field;
    const char *router_field, *router_hidden_field; /* "linear", or "mlp" (the default); of an mlp, default as many as experts */
    struct { const char *field, *only; } needed[8]; /* fields that must be absent or what is said here, as JSON */
    const char *dense;              /* the family that a model of one expert is, exactly, without a router; NULL = there is
                                       none */
    const char *moe;                /* of such a family: the one whose experts its feed-forward can be */
    int32_t bias;                   /* default of bias_field */
    int32_t normalise_top_k;        /* 0, 1, or -1 = norm_topk_prob, default 0 */
    int32_t qk_norm, score;
    int32_t sliding_window;         /* 1 = the field sliding_window alone switches windowed attention on; 2 = from
                                       max_window_layers on */
    int32_t window;                 /* default of sliding_window, 0 = none */
    int32_t head_dim;               /* default of head_dim, 0 = hidden / heads */
    int32_t kv_heads;               /* default of num_key_value_heads; 0 = as many as heads */
    double epsilon, rope_theta;     /* defaults */
    int64_t context_length;         /* default of max_position_embeddings */
} moedi_family;

/* NULL when there is none of that name. */
const moedi_family *moedi_family_find(const char *model_type);
/* "qwen2_moe, mixtral, ..." */
void moedi_family_list(char *out, size_t size);
/* A pattern with layer and expert for %l and %e; its length (cut to size - 1). */
size_t moedi_pattern_fill(const char *pattern, int32_t layer, int32_t expert, char *out, size_t size);
/* The tensor name of a slot; layer and expert fill %l and %e. 0 when the family has none of it, else the length (cut to size -
 * 1). */
size_t moedi_family_tensor(const moedi_family *f, moedi_slot slot, int32_t layer, int32_t expert, char *out, size_t size);
/* The tensor of a slot under a configuration: all of moed_param but the name; 0 when the model has none (layer and expert -1). */
int moedi_family_param(const moedi_family *f, const moedi_config *config, moedi_slot slot, moed_param *out);

/* Reads and checks config.json's object; unknown families, unsupported fields that matter and bad values are errors naming the
 * field. Writes nothing into o; path names it in errors. */
moed_status moedi_config_read(moedi_config *out, const moedi_family **family, const json_t *o, const char *path);
/* The field that says how many experts a config.json has: Transformers writes either of two names. */
const char *moedi_config_experts_field(const moedi_family *f, const json_t *o);
/* "bfloat16": a floating dtype as config.json spells it. */
const char *moedi_config_dtype_name(moed_dtype dtype);

#endif
