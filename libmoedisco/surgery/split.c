/* surgery/split.c - one MoE model into submodels: assignment, layouts, pieces. */
#include "surgery/split.h"

#include "core/options.h"
#include "surgery/assemble.h"

/* Whether a split cuts the parameter along expert_axis. */
static int is_stack(const moed_param *p)
{
    return p->expert_axis >= 0;
}

/* ---- the assignment ---- */

static int32_t *list_of(const moed_split *s, int32_t part, int32_t layer)
{
    return s->experts[(int64_t)part * s->layout->layers + layer];
}

static int32_t count_of(const moed_split *s, int32_t part, int32_t layer)
{
    return s->counts[(int64_t)part * s->layout->layers + layer];
}

/* The same list to the layers from first to last that have experts: to all of them, or without memory to none. */
static moed_status set_lists(moed_split *s, int32_t part, int32_t first, int32_t last, const int32_t *experts, int32_t count)
{
    const moed_layout *l = s->layout;
    int32_t layers = 0;
    void **copies = NULL, **next;
    for (int32_t layer = first; layer <= last; layer++) layers += l->experts[layer] > 0;
    MOEDI_TRY(moedi_copies(s->context, experts, (size_t)count * sizeof *experts, layers, &copies));
    next = copies;
    for (int32_t layer = first; layer <= last; layer++) {
        if (!l->experts[layer]) continue;
        const int64_t at = (int64_t)part * l->layers + layer;
        moedi_free(s->context, s->experts[at]);
        s->experts[at] = *next++, s->counts[at] = count;
    }
    moedi_free(s->context, copies);
    return MOED_OK;
}

/* Experts k, k + parts, ... of every layer to part k. */
static moed_status assign_in_turn(moed_split *s)
{
    int32_t *list = NULL;
    moed_status status = MOED_OK;
    const moed_layout *l = s->layout;
    MOEDI_TRY(MOEDI_NEW(s->context, l->most_experts, &list));
    for (int32_t part = 0; part < s->parts; part++)
        for (int32_t layer = 0; layer < l->layers; layer++) {
            int32_t count = 0;
            for (int64_t e = part; e < l->experts[layer]; e += s->parts) list[count++] = (int32_t)e;
            if (count) MOEDI_GO(set_lists(s, part, layer, layer, list, count));
        }
out:
    moedi_free(s->context, list);
    return status;
}

moed_status moed_split_create(moed_split **out, const moed_layout *l, const moed_split_options *options)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out && l, "out or the layout is NULL");
    moed_split_options o = {0};
    moed_split *s = NULL;
    moed_status status = MOED_OK;
    MOEDI_TRY(moedi_context_check(l->context));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_SPLIT_OPTIONS, options, &o));
    if (l->most_experts == 0) return moedi_fail(MOED_E_ARGUMENT, "the layout has no layer with experts to split");
    if (o.parts < 0) return moedi_fail(MOED_E_RANGE, "%d parts asked for", o.parts);
    int32_t parts = o.parts ? o.parts : l->most_experts;
    for (int32_t layer = 0; layer < l->layers; layer++)
        if (l->experts[layer] && l->experts[layer] < parts)
            return moedi_fail(MOED_E_ARGUMENT, "layer %d has %d experts, too few for %d parts", layer,
                              l->experts[layer], parts);
    MOEDI_TRY(MOEDI_NEW(l->context, 1, &s));
    atomic_init(&s->references, 1);
    s->context = moedi_context_retain(l->context);
    s->layout = moedi_layout_retain(l);
    s->parts = parts;
    s->dense = (o.flags & MOED_SPLIT_DENSE) != 0;
    s->dtype = o.dtype;
    s->shard_bytes = o.shard_bytes;
    MOEDI_GO(MOEDI_NEW(s->context, (int64_t)parts * l->layers, &s->experts));
    MOEDI_GO(MOEDI_NEW(s->context, (int64_t)parts * l->layers, &s->counts));
    MOEDI_GO(MOEDI_NEW(s->context, parts, &s->made));
    MOEDI_GO(assign_in_turn(s));
    *out = s;
    return MOED_OK;
out:
    moed_split_destroy(s);
    return status;
}

moed_split *moedi_split_retain(const moed_split *s)
{
    moed_split *own = (moed_split *)s;
    atomic_fetch_add(&own->references, 1);
    return own;
}

void moed_split_destroy(moed_split *s)
{
    if (!s || atomic_fetch_sub(&s->references, 1) != 1) return;
    moed_context *c = s->context;
    for (int64_t i = 0; s->experts && i < (int64_t)s->parts * s->layout->layers; i++)
        moedi_free(c, s->experts[i]);
    for (int32_t part = 0; s->made && part < s->parts; part++) {
        moed_layout_destroy(s->made[part].layout);
        moedi_free(c, s->made[part].base);
        moedi_free(c, s->made[part].own);
    }
    moedi_free(c, s->experts);
    moedi_free(c, s->counts);
    moedi_free(c, s->made);
    moed_layout_destroy(s->layout);
    moedi_free(c, s);
    moedi_context_release(c);
}

static moed_status check_part(const moed_split *s, int32_t part)
{
    if (part >= 0 && part < s->parts) return MOED_OK;
    return moedi_fail(MOED_E_RANGE, "part %d of %d asked for", part, s->parts);
}

static moed_status check_list(const moed_split *s, int32_t part, int32_t layer, const int32_t *experts,
                              int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        if (experts[i] < 0 || experts[i] >= s->layout->experts[layer])
            return moedi_fail(MOED_E_RANGE, "part %d: expert %d of %d asked for in layer %d", part, experts[i],
                              s->layout->experts[layer], layer);
        for (int32_t j = 0; j < i; j++)
            if (experts[j] == experts[i])
                return moedi_fail(MOED_E_ARGUMENT, "part %d: expert %d is listed twice for layer %d", part,
                                  experts[i], layer);
    }
    return MOED_OK;
}

moed_status moed_split_assign(moed_split *s, int32_t part, int32_t layer, const int32_t *experts, int32_t count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(s && experts, "the split or experts is NULL");
    MOEDI_REQUIRE(count > 0, "no experts are listed");
    MOEDI_TRY(moedi_context_check(s->context));
    MOEDI_TRY(check_part(s, part));
    if (s->used)
        return moedi_fail(
            MOED_E_STATE,
            "the split is in use: assign experts before its layouts, pieces or models are asked for");
    if (layer < -1 || layer >= s->layout->layers)
        return moedi_fail(MOED_E_RANGE, "layer %d of %d asked for", layer, s->layout->layers);
    if (layer >= 0 && !s->layout->experts[layer])
        return moedi_fail(MOED_E_ARGUMENT, "layer %d has no experts", layer);
    int32_t first = layer < 0 ? 0 : layer, last = layer < 0 ? s->layout->layers - 1 : layer;
    for (int32_t l = first; l <= last; l++)
        if (s->layout->experts[l]) MOEDI_TRY(check_list(s, part, l, experts, count));
    return set_lists(s, part, first, last, experts, count);
}

/* A submodel's list of one layer; as many experts as it names, at most room. */
static moed_status read_list(const json_t *list, int32_t layer, int32_t *experts, size_t room, int32_t *count)
{
    const size_t n = json_array_size(list);
    if (!json_is_array(list) || n > room)
        return moedi_fail_parameter(MOED_E_MISMATCH, "experts", "the submodel's experts of layer %d are no list of at most %zu",
                                    layer, room);
    for (size_t j = 0; j < n; j++) {
        const json_t *e = json_array_get(list, j);
        if (!json_is_integer(e) || json_integer_value(e) < 0 || json_integer_value(e) > INT32_MAX)
            return moedi_fail_parameter(MOED_E_MISMATCH, "experts",
                                        "the submodel's experts of layer %d are no numbers of experts", layer);
        experts[j] = (int32_t)json_integer_value(e);
    }
    *count = (int32_t)n;
    return MOED_OK;
}

static moed_status take_lists(moed_split *s, int32_t part, const json_t *found)
{
    const moed_layout *l = s->layout;
    const json_t *lists = json_object_get(found, "experts"), *parts = json_object_get(found, "parts");
    int32_t *experts = NULL, count = 0;
    moed_status status = MOED_OK;
    if (!json_is_integer(parts) || json_integer_value(parts) != s->parts)
        return moedi_fail_parameter(MOED_E_MISMATCH, "parts", "the submodel is one of %lld, and the split has %d parts",
                                    (long long)json_integer_value(parts), s->parts);
    if (!json_is_array(lists) || json_array_size(lists) != (size_t)l->layers)
        return moedi_fail_parameter(MOED_E_MISMATCH, "experts", "the submodel names experts of %zu layers, and the base has %d",
                                    json_array_size(lists), l->layers);
    MOEDI_TRY(MOEDI_NEW(s->context, l->most_experts, &experts));
    for (int32_t layer = 0; layer < l->layers; layer++) {
        MOEDI_GO(read_list(json_array_get(lists, (size_t)layer), layer, experts, (size_t)l->most_experts, &count));
        if (l->experts[layer]) MOEDI_GO(moed_split_assign(s, part, layer, experts, count));
    }
out:
    moedi_free(s->context, experts);
    return status;
}

moed_status moed_split_assign_from(moed_split *s, int32_t part, const moed_layout *submodel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(s && submodel, "the split or the submodel's layout is NULL");
    MOEDI_TRY(moedi_context_check(s->context));
    MOEDI_TRY(check_part(s, part));
    json_t *found = NULL;
    MOEDI_TRY(moedi_provenance_read(&found, submodel));
    if (!found || !json_object_get(found, "experts")) {
        json_decref(found);
        return moedi_fail(MOED_E_NOT_FOUND, "the submodel's config.json says nothing of the experts it holds");
    }
    const moed_status status = take_lists(s, part, found);
    json_decref(found);
    return status;
}

moed_status moed_split_experts(const moed_split *s, int32_t part, int32_t layer, int32_t *experts,
                               int32_t capacity, int32_t *count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(s && count, "the split or count is NULL");
    MOEDI_REQUIRE(experts || capacity == 0, "experts is NULL and capacity is not 0");
    MOEDI_TRY(moedi_context_check(s->context));
    MOEDI_TRY(check_part(s, part));
    if (layer < 0 || layer >= s->layout->layers)
        return moedi_fail(MOED_E_RANGE, "layer %d of %d asked for", layer, s->layout->layers);
    int32_t there = count_of(s, part, layer);
    for (int32_t i = 0; i < there && i < capacity; i++) experts[i] = list_of(s, part, layer)[i];
    *count = there;
    return MOED_OK;
}

void moedi_split_owner(const moed_split *s, int32_t layer, int32_t expert, int32_t *part, int32_t *slot)
{
    *part = *slot = -1;
    for (int32_t k = 0; k < s->parts; k++)
        for (int32_t j = 0; j < count_of(s, k, layer); j++)
            if (list_of(s, k, layer)[j] == expert) {
                *part = k, *slot = j;
                return;
            }
}

static moed_status check_layer(const moed_split *s, int32_t layer, int32_t *owner)
{
    for (int32_t e = 0; e < s->layout->experts[layer]; e++) owner[e] = -1;
    for (int32_t part = 0; part < s->parts; part++) {
        if (count_of(s, part, layer) != count_of(s, 0, layer))
            return moedi_fail(
                MOED_E_ARGUMENT,
                "layer %d: of its %d experts part 0 holds %d and part %d holds %d; every part holds the same number: split into "
                "a number of parts that divides the experts, or give a table of experts",
                layer, s->layout->experts[layer], count_of(s, 0, layer), part, count_of(s, part, layer));
        for (int32_t j = 0; j < count_of(s, part, layer); j++) {
            int32_t e = list_of(s, part, layer)[j];
            if (owner[e] >= 0)
                return moedi_fail(MOED_E_ARGUMENT, "layer %d: expert %d is given to part %d and to part %d",
                                  layer, e, owner[e], part);
            owner[e] = part;
        }
    }
    return MOED_OK;
}

int32_t moedi_split_count(const moed_split *s, int32_t part, int32_t layer)
{
    return count_of(s, part, layer);
}

moed_status moedi_split_use(moed_split *s)
{
    const moed_layout *l = s->layout;
    moed_status status = MOED_OK;
    int32_t *owner = NULL, first = -1;
    if (s->used) return MOED_OK;
    MOEDI_TRY(MOEDI_NEW(s->context, l->most_experts, &owner));
    for (int32_t layer = 0; layer < l->layers; layer++) {
        if (!l->experts[layer]) continue;
        MOEDI_GO(check_layer(s, layer, owner));
        if (first < 0) first = layer;
        if (l->family && count_of(s, 0, layer) != count_of(s, 0, first)) {
            status = moedi_fail(
                MOED_E_ARGUMENT,
                "layer %d: parts hold %d experts, and %d of layer %d; a %s model has the same number in "
                "every layer",
                layer, count_of(s, 0, layer), count_of(s, 0, first), first, l->family->name);
            goto out;
        }
    }
    s->used = 1;
out:
    moedi_free(s->context, owner);
    return status;
}

/* ---- layouts of the parts ---- */

moed_status moedi_split_provenance(const moed_split *s, int32_t part, const char *base, json_t **out)
{
    int64_t at = (int64_t)part * s->layout->layers;
    return moedi_provenance_create(out, part, s->parts, s->layout->layers, s->experts + at, s->counts + at, base);
}

/* By hand: the base's parameters without the experts of others; stacks get shorter, own tensors keep their
 * names. */
static moed_status hand_layout(const moed_split *s, int32_t part, moed_layout **out)
{
    const moed_layout *l = s->layout;
    moed_param *params = NULL;
    size_t count = 0;
    MOEDI_TRY(MOEDI_NEW(s->context, l->count, &params));
    for (size_t i = 0; i < l->count; i++) {
        moed_param p = l->params[i];
        if (is_stack(&p)) p.shape[p.expert_axis] = count_of(s, part, p.layer);
        if (p.expert >= 0) {
            int32_t owner = -1, slot = -1;
            moedi_split_owner(s, p.layer, p.expert, &owner, &slot);
            if (owner != part) continue;
            p.expert = slot;
        }
        params[count++] = p;
    }
    moed_status status = moedi_layout_build(out, s->context, params, count);
    moedi_free(s->context, params);
    return status;
}

/* Of a family: by the experts that the part holds. */
static moed_status map_family(const moed_split *s, int32_t part, moedi_part *made)
{
    const int32_t layers = s->layout->layers, each = (int32_t)made->layout->config.experts;
    int32_t *origins = NULL; /* (layers, each) */
    MOEDI_TRY(MOEDI_NEW(s->context, (int64_t)layers * each, &origins));
    for (int32_t layer = 0; layer < layers; layer++)
        for (int32_t e = 0; e < each; e++)
            origins[(int64_t)layer * each + e] = e < count_of(s, part, layer) ? list_of(s, part, layer)[e] : -1;
    moedi_layout_map(made->layout, s->layout, origins, made->base);
    moedi_free(s->context, origins);
    return MOED_OK;
}

static moed_status map_parameters(const moed_split *s, int32_t part, moedi_part *made)
{
    const moed_layout *l = s->layout, *of_part = made->layout;
    MOEDI_TRY(MOEDI_NEW(s->context, of_part->count, &made->base));
    MOEDI_TRY(MOEDI_NEW(s->context, l->count, &made->own));
    for (size_t i = 0; i < l->count; i++) made->own[i] = SIZE_MAX;
    if (l->family) MOEDI_TRY(map_family(s, part, made));
    for (size_t i = 0; i < of_part->count; i++) {
        if (!l->family) made->base[i] = moedi_layout_find(l, of_part->params[i].name); /* by hand: names stay */
        if (made->base[i] < 0)
            return moedi_fail(MOED_E_INTERNAL, "tensor \"%s\" of part %d has no counterpart in the base", of_part->params[i].name,
                              part);
        made->own[made->base[i]] = i;
    }
    return MOED_OK;
}

static moed_status check_dense(const moed_split *s, int32_t part, int32_t layer)
{
    const int32_t count = count_of(s, part, layer); /* as in every layer of a family's model */
    if (count == 1) return MOED_OK;
    return moedi_fail(MOED_E_UNSUPPORTED, "part %d holds %d experts of a layer: a dense model is one expert", part, count);
}

/* The layout of a part that says which base (nullable) it is of. */
static moed_status stamped_layout(const moed_split *s, int32_t part, const char *digest, moed_layout **out)
{
    json_t *provenance = NULL;
    moed_layout *l = NULL;
    moed_status status = MOED_OK;
    int32_t layer = 0;
    while (!s->layout->experts[layer]) layer++;
    MOEDI_TRY(moedi_split_provenance(s, part, digest, &provenance));
    if (s->dense) {
        MOEDI_GO(check_dense(s, part, layer));
        MOEDI_GO(moedi_layout_dense(&l, s->layout, provenance));
    } else if (s->layout->family) {
        MOEDI_GO(moedi_layout_with_experts(&l, s->layout, count_of(s, part, layer), 0, provenance));
    } else {
        MOEDI_GO(hand_layout(s, part, &l));
        MOEDI_GO(moedi_provenance_attach(l, provenance));
    }
    *out = l;
    l = NULL;
out:
    moed_layout_destroy(l);
    json_decref(provenance);
    return status;
}

moed_status moedi_split_part(moed_split *s, int32_t part, const moedi_part **out)
{
    MOEDI_TRY(check_part(s, part));
    MOEDI_TRY(moedi_split_use(s));
    moedi_part *made = &s->made[part], fresh = {0};
    moed_status status = MOED_OK;
    if (!made->layout) {
        MOEDI_GO(stamped_layout(s, part, NULL, &fresh.layout));
        MOEDI_GO(map_parameters(s, part, &fresh));
        MOEDI_GO(moedi_layout_take_dtypes(&fresh.layout, s->layout, fresh.base));
        *made = fresh;
    }
    *out = made;
    return MOED_OK;
out:
    moed_layout_destroy(fresh.layout);
    moedi_free(s->context, fresh.base);
    moedi_free(s->context, fresh.own);
    return status;
}

const moed_layout *moed_split_layout(moed_split *s, int32_t part)
{
    const moedi_part *made = NULL;
    moedi_clear_error();
    if (!s) {
        moedi_fail(MOED_E_ARGUMENT, "%s: the split is NULL", __func__);
        return NULL;
    }
    if (moedi_context_check(s->context) != MOED_OK || moedi_split_part(s, part, &made) != MOED_OK) return NULL;
    return made->layout;
}

/* ---- pieces and models ---- */

static moed_status list_pieces(const moed_split *s, int32_t part, const moedi_part *made, size_t param,
                               moedi_piece_list *list)
{
    const size_t base = (size_t)made->base[param];
    const moed_param *p = &s->layout->params[base];
    moed_piece piece = moedi_piece_copy(0, base, moedi_piece_whole(p));
    if (!is_stack(p)) {
        moedi_piece_add(list, &piece);
        return MOED_OK;
    }
    for (int32_t j = 0; j < count_of(s, part, p->layer); j++) {
        piece.axis = p->expert_axis;
        piece.from = list_of(s, part, p->layer)[j];
        piece.at = j, piece.count = 1;
        moedi_piece_add(list, &piece);
    }
    return MOED_OK;
}

moed_status moed_split_pieces(moed_split *s, int32_t part, size_t param, moed_piece *pieces, size_t capacity,
                              size_t *count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(s && count, "the split or count is NULL");
    MOEDI_REQUIRE(pieces || capacity == 0, "pieces is NULL and capacity is not 0");
    MOEDI_TRY(moedi_context_check(s->context));
    const moedi_part *made = NULL;
    moedi_piece_list list = {.pieces = pieces, .capacity = capacity};
    MOEDI_TRY(moedi_split_part(s, part, &made));
    if (param >= made->layout->count)
        return moedi_fail(MOED_E_RANGE, "parameter %zu of a layout of %zu asked for", param, made->layout->count);
    MOEDI_TRY(list_pieces(s, part, made, param, &list));
    *count = list.count;
    return MOED_OK;
}

typedef struct build {
    const moed_split *split;
    const moedi_part *made;
    const moed_model *base;
    int32_t part;
} build;

static moed_status build_pieces(void *user, size_t param, moedi_piece_list *list)
{
    const build *b = user;
    return list_pieces(b->split, b->part, b->made, param, list);
}

static moed_status build_resolve(void *user, int32_t source, int64_t param, moedi_piece_source *out)
{
    (void)source;
    return moedi_piece_source_model(((const build *)user)->base, param, out);
}

moed_status moed_split_build(moed_model **out, moed_split *s, int32_t part, const moed_model *base,
                             const char *dir, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(s && base, "the split or the base is NULL");
    MOEDI_REQUIRE(out || dir, "out is NULL and no directory is given");
    MOEDI_REQUIRE(!dir || dir[0], "the directory's name is empty");
    MOEDI_TRY(moedi_context_check(s->context));
    moed_layout *layout = NULL;
    moed_status status = MOED_OK;
    char digest[33];
    build b = {.split = s, .base = base, .part = part};
    MOEDI_TRY(moedi_split_part(s, part, &b.made));
    MOEDI_TRY(moedi_layout_equal(s->layout, base->layout, 1));
    MOEDI_TRY(moedi_provenance_digest(base, digest));
    MOEDI_TRY(stamped_layout(s, part, digest, &layout));
    MOEDI_GO(moedi_layout_take_dtypes(&layout, base->layout, b.made->base));
    if (s->dtype) MOEDI_GO(moedi_layout_take_dtype(&layout, s->dtype));
    moedi_surgery surgery = {.context = base->context,
                             .layout = layout,
                             .device = base->device,
                             .pieces = build_pieces,
                             .resolve = build_resolve,
                             .user = &b,
                             .origin = base->origin,
                             .shard_bytes = s->shard_bytes};
    MOEDI_GO(moedi_assemble(out, &surgery, dir, cancel));
out:
    moed_layout_destroy(layout);
    return status;
}
