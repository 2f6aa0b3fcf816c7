/* model/layout.c - what the parameters of a model are: checked, indexed by name, compared. */
#include "layout.h"

#include <stdlib.h>
#include <string.h>

#include "util/dtype.h"
#include "util/hash.h"
#include "util/utf8.h"

#define ELEMENTS_MAX ((int64_t)1 << 48)
enum { LAYERS_MAX = 1 << 20 };

int64_t moedi_param_elements(const moed_param *p)
{
    return moedi_shape_elements(p->shape, p->rank);
}

size_t moedi_param_bytes(const moed_param *p)
{
    return (size_t)moedi_param_elements(p) * moedi_dtype_size(p->dtype);
}

moed_layout *moedi_layout_retain(const moed_layout *l)
{
    moed_layout *own = (moed_layout *)l;
    if (own) atomic_fetch_add(&own->references, 1);
    return own;
}

void moed_layout_destroy(moed_layout *l)
{
    if (!l || atomic_fetch_sub(&l->references, 1) != 1) return;
    moed_context *c = l->context;
    moedi_free(c, l->params);
    moedi_free(c, l->names);
    moedi_free(c, l->experts);
    moedi_free(c, l->config_text);
    moedi_free(c, l->by_name);
    moedi_free(c, l);
    moedi_context_release(c);
}

/* ---- checks ---- */

static moed_status check_name(const moed_param *p, size_t index)
{
    if (!p->name || !p->name[0]) return moedi_fail(MOED_E_ARGUMENT, "parameter %zu has no name", index);
    const size_t length = strnlen(p->name, MOEDI_NAME_MAX + 1);
    if (length > MOEDI_NAME_MAX)
        return moedi_fail(MOED_E_ARGUMENT, "parameter %zu: its name is longer than %d bytes", index, (int)MOEDI_NAME_MAX);
    if (!strcmp(p->name, "__metadata__"))
        return moedi_fail_parameter(MOED_E_ARGUMENT, p->name,
                                    "parameter %zu: the name __metadata__ is reserved by the safetensors format", index);
    if (!moedi_utf8_text(p->name, (int64_t)length))
        return moedi_fail(MOED_E_ARGUMENT, "parameter %zu: its name is not UTF-8", index);
    return MOED_OK;
}

#define WRONG(p, ...) moedi_fail_parameter(MOED_E_ARGUMENT, (p)->name, __VA_ARGS__)

static moed_status check_shape(const moed_param *p)
{
    if (p->rank < 0 || p->rank > MOED_RANK_MAX)
        return WRONG(p, "parameter %s: rank %d is outside 0..%d", p->name, (int)p->rank, MOED_RANK_MAX);
    for (int32_t i = 0; i < p->rank; i++)
        if (p->shape[i] < 1)
            return WRONG(p, "parameter %s: size %lld of axis %d is below 1", p->name, (long long)p->shape[i], (int)i);
    const int64_t elements = moedi_param_elements(p);
    if (elements < 0 || elements > ELEMENTS_MAX) return WRONG(p, "parameter %s: its shape has more than 2^48 numbers", p->name);
    if (moedi_dtype_size(p->dtype) == 0)
        return WRONG(p, "parameter %s: dtype %d is unknown or has elements below a byte", p->name, (int)p->dtype);
    if (p->role != MOED_ROLE_OPAQUE && !moedi_dtype_is_float(p->dtype))
        return WRONG(p, "parameter %s: dtype %s is for opaque parameters only; others are F32, F16, BF16 or F64", p->name,
                     moed_dtype_name(p->dtype));
    return MOED_OK;
}

static moed_status check_role(const moed_param *p)
{
    if (p->role < 0 || p->role >= MOED_ROLE_COUNT)
        return WRONG(p, "parameter %s: role %d is none of 0..%d", p->name, (int)p->role, MOED_ROLE_COUNT - 1);
    if (p->layer < -1 || p->layer >= LAYERS_MAX)
        return WRONG(p, "parameter %s: layer %d is outside -1..%d", p->name, (int)p->layer, LAYERS_MAX - 1);
    if (p->expert < -1) return WRONG(p, "parameter %s: expert %d is below -1", p->name, (int)p->expert);
    if (p->expert_axis < -1 || p->expert_axis >= p->rank)
        return WRONG(p, "parameter %s: expert axis %d is outside -1..%d", p->name, (int)p->expert_axis, (int)p->rank - 1);
    const int router = moedi_param_is_router(p);
    if ((p->role == MOED_ROLE_EXPERT || router) && p->layer < 0)
        return WRONG(p, "parameter %s: experts and routers belong to a layer, not %d", p->name, (int)p->layer);
    if (p->role == MOED_ROLE_EXPERT && (p->expert >= 0) == (p->expert_axis >= 0))
        return WRONG(p, "parameter %s: expert %d and expert axis %d: an expert parameter is one expert's own (axis -1) or "
                     "a stack (expert -1)", p->name, (int)p->expert, (int)p->expert_axis);
    if (router && (p->expert != -1 || p->expert_axis != 0))
        return WRONG(p, "parameter %s: expert %d and expert axis %d: a router has expert -1 and expert axis 0", p->name,
                     (int)p->expert, (int)p->expert_axis);
    if (p->role != MOED_ROLE_EXPERT && !router && (p->expert != -1 || p->expert_axis != -1))
        return WRONG(p, "parameter %s: expert %d and expert axis %d: both are -1 unless the role is expert or router", p->name,
                     (int)p->expert, (int)p->expert_axis);
    return MOED_OK;
}

/* ---- construction ---- */

static moed_status copy_params(moed_layout *l, const moed_param *params, size_t count)
{
    size_t bytes = 0;
    for (size_t i = 0; i < count; i++) bytes += strlen(params[i].name) + 1;
    MOEDI_TRY(MOEDI_NEW(l->context, count, &l->params));
    MOEDI_TRY(moedi_alloc(l->context, bytes, (void **)&l->names));
    char *next = l->names;
    for (size_t i = 0; i < count; i++) {
        const size_t n = strlen(params[i].name) + 1;
        l->params[i] = params[i];
        l->params[i].reserved = 0;
        for (int32_t r = params[i].rank; r < MOED_RANK_MAX; r++) l->params[i].shape[r] = 0;
        l->params[i].name = memcpy(next, params[i].name, n);
        next += n;
    }
    l->count = count;
    return MOED_OK;
}

static int compare_names(const void *a, const void *b, void *params)
{
    const moed_param *p = params;
    return strcmp(p[*(const size_t *)a].name, p[*(const size_t *)b].name);
}

static moed_status index_names(moed_layout *l)
{
    MOEDI_TRY(MOEDI_NEW(l->context, l->count, &l->by_name));
    for (size_t i = 0; i < l->count; i++) l->by_name[i] = i;
    qsort_r(l->by_name, l->count, sizeof *l->by_name, compare_names, l->params);
    for (size_t i = 1; i < l->count; i++) {
        const moed_param *p = &l->params[l->by_name[i]];
        if (!strcmp(p->name, l->params[l->by_name[i - 1]].name)) return WRONG(p, "parameter %s is given twice", p->name);
    }
    return MOED_OK;
}

/* Sets layers and experts; own (layers) becomes the number of parameters that are one expert's own. */
static moed_status count_experts(moed_layout *l, int64_t **own)
{
    for (size_t i = 0; i < l->count; i++)
        if (l->params[i].layer >= l->layers) l->layers = l->params[i].layer + 1;
    MOEDI_TRY(MOEDI_NEW(l->context, l->layers, &l->experts));
    MOEDI_TRY(MOEDI_NEW(l->context, l->layers, own));
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        if (p->expert < 0 && p->expert_axis < 0) continue;
        const int64_t here = p->expert >= 0 ? (int64_t)p->expert + 1 : p->shape[p->expert_axis];
        if (here > INT32_MAX) return WRONG(p, "parameter %s: %lld experts are more than %d", p->name, (long long)here, INT32_MAX);
        if (here > l->experts[p->layer]) l->experts[p->layer] = (int32_t)here;
        if (here > l->most_experts) l->most_experts = (int32_t)here;
        (*own)[p->layer] += p->expert >= 0;
    }
    return MOED_OK;
}

/* All that speaks of a layer's experts must speak of the same number, and experts with parameters of their own be all there. */
static moed_status check_experts(moed_layout *l)
{
    int64_t *own = NULL;
    uint8_t *seen = NULL;  /* one byte per expert of every layer whose experts have parameters of their own */
    size_t *first = NULL;  /* (layers): where a layer's experts begin in it */
    size_t total = 0;
    moed_status status;

    MOEDI_GO(count_experts(l, &own));
    MOEDI_GO(MOEDI_NEW(l->context, l->layers, &first));
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        if (p->expert_axis >= 0 && p->shape[p->expert_axis] != l->experts[p->layer]) {
            status = WRONG(p, "parameter %s: %lld experts on axis %d, where layer %d has %d", p->name,
                           (long long)p->shape[p->expert_axis], (int)p->expert_axis, (int)p->layer, (int)l->experts[p->layer]);
            goto out;
        }
        if (p->expert >= 0 && own[p->layer] < l->experts[p->layer]) {
            status = WRONG(p, "parameter %s: layer %d has %d experts but only %lld expert parameters", p->name, (int)p->layer,
                           (int)l->experts[p->layer], (long long)own[p->layer]);
            goto out;
        }
    }
    for (int32_t k = 0; k < l->layers; k++) {
        first[k] = total;
        if (own[k] > 0) total += (size_t)l->experts[k];
    }
    MOEDI_GO(moedi_alloc_array(l->context, (int64_t)total, 1, (void **)&seen));
    for (size_t i = 0; i < l->count; i++)
        if (l->params[i].expert >= 0) seen[first[l->params[i].layer] + (size_t)l->params[i].expert] = 1;
    for (int32_t k = 0; k < l->layers; k++)
        for (int32_t e = 0; own[k] > 0 && e < l->experts[k]; e++)
            if (!seen[first[k] + (size_t)e]) {
                status = moedi_fail(MOED_E_ARGUMENT, "layer %d: expert %d of %d has no parameter", (int)k, (int)e,
                                    (int)l->experts[k]);
                goto out;
            }
out:
    moedi_free(l->context, own);
    moedi_free(l->context, seen);
    moedi_free(l->context, first);
    return status;
}

moed_status moedi_layout_build(moed_layout **out, moed_context *c, const moed_param *params, size_t count)
{
    moed_layout *l = NULL;
    moed_status status = MOED_OK;

    MOEDI_TRY(MOEDI_NEW(c, 1, &l));
    atomic_init(&l->references, 1);
    l->context = moedi_context_retain(c);
    for (size_t i = 0; i < count; i++) {
        MOEDI_GO(check_name(&params[i], i));
        MOEDI_GO(check_shape(&params[i]));
        MOEDI_GO(check_role(&params[i]));
        l->elements += moedi_param_elements(&params[i]);
        if (l->elements > ELEMENTS_MAX) {
            status = WRONG(&params[i], "parameter %s: the model has more than 2^48 numbers with it", params[i].name);
            goto out;
        }
    }
    MOEDI_GO(copy_params(l, params, count));
    MOEDI_GO(index_names(l));
    MOEDI_GO(check_experts(l));
    MOEDI_GO(moedi_strdup(c, "", &l->config_text));
    *out = l;
    l = NULL;
out:
    moed_layout_destroy(l);
    return status;
}

moed_status moed_layout_create(moed_layout **out, moed_context *c, const moed_param *params, size_t count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(params && count > 0, "no parameters");
    MOEDI_TRY(moedi_context_check(c));
    return moedi_layout_build(out, c, params, count);
}

moed_status moedi_layout_narrow(moed_layout *l, int32_t window)
{
    size_t count = 0;
    l->elements = 0;
    for (size_t i = 0; i < l->count; i++) {
        if (l->params[i].expert >= window) continue;
        l->params[count++] = l->params[i];
        l->elements += moedi_param_elements(&l->params[i]);
    }
    l->count = count, l->window = window;
    moedi_free(l->context, l->by_name);
    l->by_name = NULL;
    return index_names(l);
}

/* ---- reading ---- */

int64_t moedi_layout_find(const moed_layout *l, const char *name)
{
    size_t low = 0, high = l->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const int order = strcmp(l->params[l->by_name[middle]].name, name);
        if (order == 0) return (int64_t)l->by_name[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return -1;
}

int64_t moedi_layout_slot(const moed_layout *l, moedi_slot slot, int32_t layer, int32_t expert)
{
    char name[MOEDI_NAME_MAX + 1];
    if (!l->family || !moedi_family_tensor(l->family, slot, layer, expert, name, sizeof name)) return -1;
    return moedi_layout_find(l, name);
}

moed_status moed_layout_param(const moed_layout *l, size_t index, moed_param *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(l, "the layout is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_TRY(moedi_context_check(l->context));
    if (index >= l->count) return moedi_fail(MOED_E_RANGE, "parameter %zu of a layout of %zu", index, l->count);
    *out = l->params[index];
    return MOED_OK;
}

const char *moed_layout_config(const moed_layout *l)
{
    return l ? l->config_text : "";
}

/* ---- comparing ---- */

static moed_status differ(const moed_param *p, const char *what, long long a, long long b)
{
    return moedi_fail_parameter(MOED_E_MISMATCH, p->name, "parameter %s: %s %lld in one layout and %lld in the other", p->name,
                                what, a, b);
}

static moed_status equal_params(const moed_param *a, const moed_param *b, int any_dtype)
{
    if (a->role != b->role) return differ(a, "role", a->role, b->role);
    if (a->layer != b->layer) return differ(a, "layer", a->layer, b->layer);
    if (a->expert != b->expert) return differ(a, "expert", a->expert, b->expert);
    if (a->expert_axis != b->expert_axis) return differ(a, "expert axis", a->expert_axis, b->expert_axis);
    if (a->rank != b->rank) return differ(a, "rank", a->rank, b->rank);
    for (int32_t r = 0; r < a->rank; r++)
        if (a->shape[r] != b->shape[r]) return differ(a, r == 0 ? "rows" : "size", a->shape[r], b->shape[r]);
    if (!any_dtype && a->dtype != b->dtype)
        return moedi_fail_parameter(MOED_E_MISMATCH, a->name, "parameter %s: dtype %s in one layout and %s in the other", a->name,
                                    moed_dtype_name(a->dtype), moed_dtype_name(b->dtype));
    return MOED_OK;
}

moed_status moedi_layout_equal(const moed_layout *a, const moed_layout *b, int any_dtype)
{
    for (size_t i = 0; i < a->count && i < b->count; i++) {
        const moed_param *p = &a->params[i], *q = &b->params[i];
        if (strcmp(p->name, q->name) != 0)
            return moedi_fail_parameter(MOED_E_MISMATCH, p->name, "parameter %zu is %s in one layout and %s in the other", i,
                                        p->name, q->name);
        MOEDI_TRY(equal_params(p, q, any_dtype));
    }
    if (a->count != b->count) {
        const moed_param *p = a->count > b->count ? &a->params[b->count] : &b->params[a->count];
        return moedi_fail_parameter(MOED_E_MISMATCH, p->name, "parameter %s is in only one of the two layouts", p->name);
    }
    return MOED_OK;
}

/* A chain: each link is the digest of the one before, a parameter's name and its numbers as little-endian words. */
void moedi_layout_fingerprint(const moed_layout *l, char out[33])
{
    moedi_digest digest = {0, 0};
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        const moedi_digest name = moedi_hash_bytes(p->name, strlen(p->name));
        const uint64_t record[16] = {digest.low,
                                     digest.high,
                                     name.low,
                                     name.high,
                                     (uint64_t)p->role,
                                     (uint64_t)p->layer,
                                     (uint64_t)p->expert,
                                     (uint64_t)p->expert_axis,
                                     (uint64_t)p->dtype,
                                     (uint64_t)p->rank,
                                     (uint64_t)p->shape[0],
                                     (uint64_t)p->shape[1],
                                     (uint64_t)p->shape[2],
                                     (uint64_t)p->shape[3],
                                     (uint64_t)p->shape[4],
                                     (uint64_t)p->shape[5]};
        unsigned char bytes[sizeof record];
        for (size_t b = 0; b < sizeof bytes; b++) bytes[b] = (unsigned char)(record[b / 8] >> (8 * (b % 8)));
        digest = moedi_hash_bytes(bytes, sizeof bytes);
    }
    moedi_digest_print(digest, out);
}
