/* surgery/integrate.c - trained submodels and their base into one model. */
#include <math.h>
#include <string.h>

#include "core/options.h"
#include "moedisco/integrate.h"
#include "surgery/assemble.h"
#include "surgery/split.h"
#include "util/hash.h"
#include "util/random.h"

/* A registered submodel. */
typedef struct member {
    moed_model *model;             /* NULL: not there (yet) */
    double weight;
} member;

struct moed_integration {
    moed_context *context;
    moed_split *split;
    moed_model *base;
    moed_integration_options options;
    char digest[33];               /* of the base's numbers */
    member *members;               /* (parts) */
    int32_t most;                  /* experts of the layers with most */
    struct owner { int32_t part, slot; } *owners; /* (layers, most); part -1: the expert stays the base's */
    moed_tensor *gates;            /* (layers): rows given for the gate (parts, width); data owned */
    double *scales;                /* (layers, most) of experts' outputs; NULL = all 1 */
    double drift;
};

/* ---- construction ---- */

static moed_status find_owners(moed_integration *i)
{
    const moed_layout *l = i->split->layout;
    i->most = l->most_experts;
    MOEDI_TRY(MOEDI_NEW(i->context, (int64_t)l->layers * i->most, &i->owners));
    for (int32_t layer = 0; layer < l->layers; layer++)
        for (int32_t e = 0; e < l->experts[layer]; e++) {
            struct owner *o = &i->owners[(int64_t)layer * i->most + e];
            moedi_split_owner(i->split, layer, e, &o->part, &o->slot);
        }
    return MOED_OK;
}

moed_status moed_integration_create(moed_integration **out, moed_split *s, const moed_model *base,
                                    const moed_integration_options *options)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out && s && base, "out, the split or the base is NULL");
    moed_integration_options o = {0};
    moed_integration *i = NULL;
    moed_status status = MOED_OK;
    MOEDI_TRY(moedi_context_check(s->context));
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_INTEGRATION_OPTIONS, options, &o));
    MOEDI_TRY(moedi_split_use(s));
    MOEDI_TRY(moedi_layout_equal(s->layout, base->layout, 1));
    MOEDI_TRY(MOEDI_NEW(s->context, 1, &i));
    i->context = moedi_context_retain(s->context);
    i->split = moedi_split_retain(s);
    i->base = moedi_model_retain(base);
    i->options = o;
    MOEDI_GO(MOEDI_NEW(i->context, s->parts, &i->members));
    MOEDI_GO(MOEDI_NEW(i->context, s->layout->layers, &i->gates));
    MOEDI_GO(find_owners(i));
    MOEDI_GO(moedi_provenance_digest(base, i->digest));
    *out = i;
    return MOED_OK;
out:
    moed_integration_destroy(i);
    return status;
}

void moed_integration_destroy(moed_integration *i)
{
    if (!i) return;
    moed_context *c = i->context;
    for (int32_t k = 0; i->members && k < i->split->parts; k++) moed_model_destroy(i->members[k].model);
    for (int32_t l = 0; i->gates && l < i->split->layout->layers; l++) moedi_free(c, i->gates[l].data);
    moedi_free(c, i->members);
    moedi_free(c, i->owners);
    moedi_free(c, i->gates);
    moedi_free(c, i->scales);
    moed_model_destroy(i->base);
    moed_split_destroy(i->split);
    moedi_free(c, i);
    moedi_context_release(c);
}

/* ---- the submodels ---- */

static moed_status check_provenance(const moed_integration *i, int32_t part, const moed_model *submodel)
{
    json_t *expected = NULL, *found = NULL;
    moed_status status = MOED_OK;
    MOEDI_GO(moedi_provenance_read(&found, submodel->layout));
    MOEDI_GO(moedi_split_provenance(i->split, part, i->digest, &expected));
    MOEDI_GO(moedi_provenance_compare(expected, found, !!(i->options.flags & MOED_INTEGRATION_CLONES)));
out:
    json_decref(expected);
    json_decref(found);
    return status;
}

moed_status moed_integration_add(moed_integration *i, int32_t part, const moed_model *submodel, double weight)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i && submodel, "the integration or the submodel is NULL");
    MOEDI_TRY(moedi_context_check(i->context));
    const moedi_part *made = NULL;
    MOEDI_TRY(moedi_split_part(i->split, part, &made));
    if (i->members[part].model) return moedi_fail(MOED_E_EXISTS, "part %d was added already", part);
    if (!isfinite(weight) || weight < 0.0)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "weight",
                                    "part %d: weight %g is not a finite number of at least 0", part, weight);
    MOEDI_TRY(check_provenance(i, part, submodel));
    MOEDI_TRY(moedi_layout_equal(submodel->layout, made->layout, 1));
    i->members[part].model = moedi_model_retain(submodel);
    i->members[part].weight = weight;
    return MOED_OK;
}

static void count_members(const moed_integration *i, int32_t *present, int32_t *missing, double *sum)
{
    *present = 0, *missing = -1, *sum = 0.0;
    for (int32_t k = 0; k < i->split->parts; k++) {
        if (i->members[k].model) (*present)++, *sum += i->members[k].weight;
        else if (*missing < 0) *missing = k;
    }
}

/* gamma of part k; weights were checked by check_ready or there is nobody to weigh. */
static double gamma_of(const moed_integration *i, int32_t part, int32_t present, double sum)
{
    const member *m = &i->members[part];
    if (!m->model) return 0.0;
    if (i->options.merge == MOED_MERGE_UNIFORM) return 1.0 / present;
    return i->options.merge == MOED_MERGE_WEIGHTED ? m->weight / sum : m->weight;
}

static moed_status check_weights(const moed_integration *i, int32_t *present, double *sum)
{
    int32_t missing = -1;
    count_members(i, present, &missing, sum);
    if (i->options.merge == MOED_MERGE_WEIGHTED && *present && !(*sum > 0.0 && isfinite(*sum)))
        return moedi_fail_parameter(
            MOED_E_STATE, "weight",
            "the weights of the %d submodels add up to %g: there is nothing to divide by", *present, *sum);
    return MOED_OK;
}

moed_status moed_integration_weights(const moed_integration *i, double *gamma)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i && gamma, "the integration or gamma is NULL");
    MOEDI_TRY(moedi_context_check(i->context));
    int32_t present = 0;
    double sum = 0.0;
    MOEDI_TRY(check_weights(i, &present, &sum));
    for (int32_t k = 0; k < i->split->parts; k++) gamma[k] = gamma_of(i, k, present, sum);
    return MOED_OK;
}

moed_status moed_integration_get_info(const moed_integration *i, moed_integration_info *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i && out, "the integration or out is NULL");
    MOEDI_TRY(moedi_context_check(i->context));
    moed_integration_info info = {.struct_size = sizeof info};
    double sum = 0.0;
    info.parts = i->split->parts;
    count_members(i, &info.present, &info.first_missing, &sum);
    info.drift = i->drift;
    return moedi_info_write(MOED_STRUCT_INTEGRATION_INFO, &info, out);
}

/* ---- the gate and the experts' scale ---- */

static const moed_param *router_of(const moed_integration *i, int32_t layer)
{
    const moed_layout *l = i->split->layout;
    for (size_t p = 0; p < l->count; p++)
        if (l->params[p].layer == layer && l->params[p].role == MOED_ROLE_ROUTER) return &l->params[p];
    return NULL;
}

static double mean_of_column(const float *rows, int64_t count, int64_t width, int64_t column)
{
    double mean = 0.0;
    for (int64_t r = 0; r < count; r++) mean += (double)rows[r * width + column];
    return mean / (double)count;
}

/* Root mean square of row `row` after the mean over rows is subtracted. */
static double centred_rms(const moed_tensor *rows, int64_t row)
{
    const float *x = rows->data;
    int64_t width = rows->shape[1];
    double sum = 0.0;
    for (int64_t d = 0; d < width; d++) {
        double v = (double)x[row * width + d] - mean_of_column(x, rows->shape[0], width, d);
        sum += v * v;
    }
    return sqrt(sum / (double)width);
}

/* The same over all rows. */
static double centred_rms_of_all(const moed_tensor *rows)
{
    double sum = 0.0;
    for (int64_t r = 0; r < rows->shape[0]; r++) {
        const double rms = centred_rms(rows, r);
        sum += rms * rms;
    }
    return sqrt(sum / (double)rows->shape[0]);
}

static int takes_rows(const moed_integration *i)
{
    return i->options.gate == MOED_GATE_CENTROIDS || i->options.gate == MOED_GATE_RIDGE;
}

static moed_status check_gate(const moed_integration *i, int32_t layer, const moed_tensor *rows)
{
    const moed_param *router = router_of(i, layer);
    const float *x = rows->data;
    if (!router) return moedi_fail(MOED_E_ARGUMENT, "layer %d has no router", layer);
    if (router->rank != 2 || router->shape[1] != rows->shape[1])
        return moedi_fail_parameter(
            MOED_E_MISMATCH, router->name,
            "the gate's rows have %lld columns, and tensor \"%s\" has rank %d and rows of %lld",
            (long long)rows->shape[1], router->name, router->rank,
            (long long)(router->rank > 1 ? router->shape[1] : 1));
    for (int64_t n = 0; n < rows->shape[0] * rows->shape[1]; n++)
        if (!isfinite(x[n]))
            return moedi_fail(MOED_E_NUMERIC, "the gate's row %lld holds %g in column %lld",
                              (long long)(n / rows->shape[1]), (double)x[n], (long long)(n % rows->shape[1]));
    if (i->options.gate == MOED_GATE_RIDGE && centred_rms_of_all(rows) == 0.0)
        return moedi_fail(MOED_E_ARGUMENT, "the gate's rows are all the same: nothing of them is left to scale");
    for (int64_t r = 0; r < rows->shape[0]; r++)
        if (i->options.gate == MOED_GATE_CENTROIDS && centred_rms(rows, r) == 0.0)
            return moedi_fail(MOED_E_ARGUMENT,
                              "the gate's row %lld is the mean of all rows: nothing of it is left to scale",
                              (long long)r);
    return MOED_OK;
}

moed_status moed_integration_set_gate(moed_integration *i, int32_t layer, const moed_tensor *rows)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i && rows && rows->data, "the integration, rows or their data is NULL");
    MOEDI_TRY(moedi_context_check(i->context));
    const moed_layout *l = i->split->layout;
    if (!takes_rows(i))
        return moedi_fail(
            MOED_E_STATE,
            "the integration was made without gate = MOED_GATE_CENTROIDS or MOED_GATE_RIDGE, so it takes no rows");
    if (layer < -1 || layer >= l->layers)
        return moedi_fail(MOED_E_RANGE, "layer %d of %d asked for", layer, l->layers);
    if (rows->device != 0 || rows->dtype != MOED_DTYPE_F32 || rows->rank != 2 ||
        rows->shape[0] != i->split->parts || rows->shape[1] < 1 || rows->strides[1] != 1 ||
        rows->strides[0] != rows->shape[1])
        return moedi_fail(MOED_E_ARGUMENT,
                          "the gate's rows must be a contiguous F32 array of shape (%d, width) in host memory",
                          i->split->parts);
    if (layer >= 0 && !l->experts[layer]) return moedi_fail(MOED_E_ARGUMENT, "layer %d has no experts", layer);
    const int32_t first = layer < 0 ? 0 : layer, last = layer < 0 ? l->layers - 1 : layer;
    int32_t gates = 0;
    for (int32_t n = first; n <= last; n++) {
        if (!l->experts[n]) continue;
        MOEDI_TRY(check_gate(i, n, rows));
        gates++;
    }
    const size_t size = (size_t)rows->shape[0] * (size_t)rows->shape[1] * sizeof(float);
    void **copies = NULL, **next;
    MOEDI_TRY(moedi_copies(i->context, rows->data, size, gates, &copies));
    next = copies;
    for (int32_t n = first; n <= last; n++) {
        if (!l->experts[n]) continue;
        moedi_free(i->context, i->gates[n].data);
        i->gates[n] = *rows;
        i->gates[n].data = *next++;
    }
    moedi_free(i->context, copies);
    return MOED_OK;
}

moed_status moed_integration_set_scale(moed_integration *i, const double *weight, int32_t top_k)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i && weight, "the integration or weight is NULL");
    MOEDI_TRY(moedi_context_check(i->context));
    const moed_layout *l = i->split->layout;
    int outputs = 0;
    double *scales = NULL;
    if (top_k < 1 || top_k > i->most) return moedi_fail(MOED_E_RANGE, "top_k %d of %d experts", top_k, i->most);
    for (size_t p = 0; p < l->count; p++)
        outputs |= l->params[p].role == MOED_ROLE_EXPERT && l->params[p].flags & MOED_PARAM_EXPERT_OUTPUT;
    if (!outputs)
        return moedi_fail(MOED_E_ARGUMENT, "no expert parameter of the layout has the flag "
                                           "MOED_PARAM_EXPERT_OUTPUT: there is nothing to scale");
    for (int32_t layer = 0; layer < l->layers; layer++)
        for (int32_t e = 0; e < l->experts[layer]; e++) {
            double w = weight[(int64_t)layer * i->most + e];
            if (!isfinite(w) || w < 0.0 || (w > 0.0 && !isfinite(1.0 / (top_k * w))))
                return moedi_fail_parameter(
                    MOED_E_ARGUMENT, "weight",
                    "layer %d, expert %d: routed weight %g is neither 0 nor a number that 1 can be divided by", layer, e, w);
        }
    MOEDI_TRY(MOEDI_NEW(i->context, (int64_t)l->layers * i->most, &scales));
    for (int64_t n = 0; n < (int64_t)l->layers * i->most; n++) scales[n] = 1.0;
    for (int32_t layer = 0; layer < l->layers; layer++)
        for (int32_t e = 0; e < l->experts[layer]; e++) {
            int64_t at = (int64_t)layer * i->most + e;
            if (weight[at] > 0.0) scales[at] = 1.0 / (top_k * weight[at]);
        }
    moedi_free(i->context, i->scales);
    i->scales = scales;
    return MOED_OK;
}

/* ---- pieces ---- */

/* What expert e of stack or tensor `param` is: a COPY from its part, or from the base. */
static moed_piece expert_piece(const moed_integration *i, size_t param, int32_t expert)
{
    const moed_param *p = &i->split->layout->params[param];
    int64_t at = (int64_t)p->layer * i->most + expert;
    const struct owner *o = &i->owners[at];
    moed_piece piece = moedi_piece_copy(0, param, moedi_piece_whole(p));
    int own = o->part >= 0 && i->members[o->part].model;
    if (own) {
        piece.source = 1 + o->part;
        piece.source_param = (int64_t)i->split->made[o->part].own[param];
    }
    if (i->scales && p->flags & MOED_PARAM_EXPERT_OUTPUT) piece.scale = i->scales[at];
    if (p->expert < 0) {
        piece.axis = p->expert_axis, piece.count = 1;
        piece.from = own ? o->slot : expert, piece.at = expert;
    }
    return piece;
}

static void expert_pieces(const moed_integration *i, size_t param, moedi_piece_list *list)
{
    const moed_param *p = &i->split->layout->params[param];
    int32_t first = p->expert >= 0 ? p->expert : 0,
            last = p->expert >= 0 ? p->expert : i->split->layout->experts[p->layer] - 1;
    for (int32_t e = first; e <= last; e++) {
        moed_piece piece = expert_piece(i, param, e);
        moedi_piece_add(list, &piece);
    }
}

static void shared_pieces(const moed_integration *i, size_t param, moedi_piece_list *list)
{
    int32_t present = 0, missing = -1;
    double sum = 0.0;
    moed_piece piece = moedi_piece_copy(0, param, moedi_piece_whole(&i->split->layout->params[param]));
    count_members(i, &present, &missing, &sum);
    moedi_piece_add(list, &piece);
    piece.op = MOED_PIECE_DELTA;
    piece.reference_param = (int64_t)param;
    for (int32_t k = 0; k < i->split->parts; k++) {
        if (!i->members[k].model) continue;
        piece.source = 1 + k, piece.source_param = (int64_t)i->split->made[k].own[param];
        piece.scale = gamma_of(i, k, present, sum);
        moedi_piece_add(list, &piece);
    }
}

/* Root mean square of row `row` of a base's tensor. */
static moed_status base_rms(const moed_integration *i, size_t param, int64_t row, double *out)
{
    const moed_param *p = &i->base->layout->params[param];
    int64_t width = moedi_param_elements(p) / p->shape[0];
    size_t size = moedi_dtype_size(p->dtype);
    double *x = NULL, sum = 0.0;
    void *bytes = NULL;
    moed_status status = MOED_OK;
    MOEDI_GO(moedi_alloc(i->context, (size_t)width * sizeof *x, (void **)&x));
    MOEDI_GO(moedi_alloc(i->context, (size_t)width * size, &bytes));
    MOEDI_GO(moedi_model_read(i->base, param, row * width, width, bytes));
    moedi_to_double(x, bytes, p->dtype, width);
    for (int64_t n = 0; n < width; n++) sum += x[n] * x[n];
    *out = sqrt(sum / (double)width);
    if (!isfinite(*out))
        status = moedi_fail_parameter(
            MOED_E_NUMERIC, p->name,
            "tensor \"%s\": the base's row %lld holds a NaN or is too large: give gate_std", p->name,
            (long long)row);
out:
    moedi_free(i->context, bytes);
    moedi_free(i->context, x);
    return status;
}

/* gate_std, or the base row's own. */
static moed_status row_std(const moed_integration *i, size_t param, int64_t row, double *out)
{
    *out = i->options.gate_std;
    return *out < 0.0 ? base_rms(i, param, row, out) : MOED_OK;
}

static moed_status random_rows(const moed_integration *i, size_t param, moedi_piece_list *list)
{
    const moed_param *p = &i->split->layout->params[param];
    moed_piece piece = {.op = MOED_PIECE_DRAW, .count = 1};
    /* of the name: the same tensor has the same numbers wherever it stands in a layout */
    piece.seed =
        moedi_random(i->options.seed, MOEDI_RANDOM_PIECE, moedi_hash_bytes(p->name, strlen(p->name)).low, 0);
    for (int64_t e = 0; e < p->shape[0]; e++) {
        piece.at = e;
        MOEDI_TRY(row_std(i, param, e, &piece.scale));
        moedi_piece_add(list, &piece);
    }
    return MOED_OK;
}

/* What a part's centred row is multiplied by, for expert `row` of the router. */
static moed_status row_factor(const moed_integration *i, size_t param, int64_t row, int32_t part, double *out)
{
    const moed_param *p = &i->split->layout->params[param];
    const moed_tensor *rows = &i->gates[p->layer];
    double std = i->options.gate_std, sum = 0.0;
    if (i->options.gate == MOED_GATE_CENTROIDS) {
        MOEDI_TRY(row_std(i, param, row, &std));
        *out = std / centred_rms(rows, part);
        return MOED_OK;
    }
    if (std < 0.0) {
        for (int64_t e = 0; e < p->shape[0]; e++) {
            MOEDI_TRY(base_rms(i, param, e, &std));
            sum += std * std;
        }
        std = sqrt(sum / (double)p->shape[0]);
    }
    *out = std / centred_rms_of_all(rows);
    return MOED_OK;
}

/* Row of part k: s (c_k - mean) = sum over j of s / parts (c_k - c_j), on top of zeros, or of the base's row where the part has
 * several experts, which that row tells apart. */
static moed_status given_rows(const moed_integration *i, size_t param, moedi_piece_list *list)
{
    const moed_param *p = &i->split->layout->params[param];
    int32_t parts = i->split->parts, source = 1 + parts;
    if (!i->gates[p->layer].data)
        return moedi_fail(MOED_E_STATE, "layer %d has no rows for its gate yet: call moed_integration_set_gate",
                          p->layer);
    for (int32_t e = 0; e < (int32_t)p->shape[0]; e++) {
        int32_t part = i->owners[(int64_t)p->layer * i->most + e].part;
        moed_piece piece = moedi_piece_copy(0, param, 1);
        piece.from = piece.at = e;
        piece.scale = part < 0 || moedi_split_count(i->split, part, p->layer) > 1 ? 1.0 : 0.0;
        moedi_piece_add(list, &piece);
        if (part < 0) continue;
        double factor = 0.0;
        MOEDI_TRY(row_factor(i, param, e, part, &factor));
        piece.op = MOED_PIECE_DELTA;
        piece.source = piece.reference = source;
        piece.source_param = piece.reference_param = p->layer;
        piece.from = part;
        piece.scale = factor / parts;
        for (int32_t j = 0; j < parts; j++) {
            if (j == part) continue;
            piece.reference_from = j;
            moedi_piece_add(list, &piece);
        }
    }
    return MOED_OK;
}

static moed_status router_pieces(const moed_integration *i, size_t param, moedi_piece_list *list)
{
    const moed_param *p = &i->split->layout->params[param];
    moed_piece piece = moedi_piece_copy(0, param, moedi_piece_whole(p));
    if (p->role == MOED_ROLE_ROUTER && i->options.gate == MOED_GATE_RANDOM) return random_rows(i, param, list);
    if (p->role == MOED_ROLE_ROUTER && takes_rows(i)) return given_rows(i, param, list);
    if (i->options.gate == MOED_GATE_SUBMODELS && i->split->dense)
        return moedi_fail(MOED_E_STATE, "the submodels are dense: they carry no rows of a router");
    if (i->options.gate == MOED_GATE_SUBMODELS) {
        expert_pieces(i, param, list);
        return MOED_OK;
    }
    /* biases that were learnt for other rows mean nothing to new ones */
    if (i->options.gate != MOED_GATE_BASE) piece.scale = 0.0;
    moedi_piece_add(list, &piece);
    return MOED_OK;
}

static moed_status list_pieces(void *user, size_t param, moedi_piece_list *list)
{
    const moed_integration *i = user;
    const moed_param *p = &i->split->layout->params[param];
    if (moedi_param_is_router(p)) return router_pieces(i, param, list);
    if (p->role == MOED_ROLE_EXPERT) {
        expert_pieces(i, param, list);
    } else if (p->role == MOED_ROLE_OPAQUE) {
        moed_piece piece = moedi_piece_copy(0, param, moedi_piece_whole(p));
        moedi_piece_add(list, &piece);
    } else {
        shared_pieces(i, param, list);
    }
    return MOED_OK;
}

static moed_status check_ready(const moed_integration *i)
{
    int32_t present = 0, missing = -1;
    double sum = 0.0;
    count_members(i, &present, &missing, &sum);
    if (present == 0)
        return moedi_fail(MOED_E_STATE, "no submodel was added: part 0 of %d is missing", i->split->parts);
    if (missing >= 0 && !i->options.allow_missing)
        return moedi_fail(MOED_E_STATE,
                          "part %d of %d is missing (allow_missing = 1 takes its experts from the base)",
                          missing, i->split->parts);
    return check_weights(i, &present, &sum);
}

moed_status moed_integration_pieces(moed_integration *i, size_t param, moed_piece *pieces, size_t capacity,
                                    size_t *count)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i && count, "the integration or count is NULL");
    MOEDI_REQUIRE(pieces || capacity == 0, "pieces is NULL and capacity is not 0");
    MOEDI_TRY(moedi_context_check(i->context));
    MOEDI_TRY(check_ready(i));
    moedi_piece_list list = {.pieces = pieces, .capacity = capacity};
    if (param >= i->split->layout->count)
        return moedi_fail(MOED_E_RANGE, "parameter %zu of a layout of %zu asked for", param,
                          i->split->layout->count);
    MOEDI_TRY(list_pieces(i, param, &list));
    *count = list.count;
    return MOED_OK;
}

/* ---- finishing ---- */

static moed_status resolve(void *user, int32_t source, int64_t param, moedi_piece_source *out)
{
    const moed_integration *i = user;
    if (source == 0) return moedi_piece_source_model(i->base, param, out);
    if (source <= i->split->parts) return moedi_piece_source_model(i->members[source - 1].model, param, out);
    const moed_tensor *rows = &i->gates[param];
    out->dtype = rows->dtype, out->rank = rows->rank, out->shape = rows->shape, out->data = rows->data;
    return MOED_OK;
}

moed_status moed_integration_finish(moed_model **out, moed_integration *i, const char *dir,
                                    const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(i, "the integration is NULL");
    MOEDI_REQUIRE(out || dir, "out is NULL and no directory is given");
    MOEDI_REQUIRE(!dir || dir[0], "the directory's name is empty");
    MOEDI_TRY(moedi_context_check(i->context));
    MOEDI_TRY(check_ready(i));
    moed_layout *layout = moedi_layout_retain(i->base->layout);
    moed_status status = i->options.dtype ? moedi_layout_take_dtype(&layout, i->options.dtype) : MOED_OK;
    moedi_surgery surgery = {.context = i->base->context,
                             .layout = layout,
                             .device = i->base->device,
                             .pieces = list_pieces,
                             .resolve = resolve,
                             .user = i,
                             .origin = i->base->origin,
                             .shard_bytes = i->options.shard_bytes,
                             .measure = 1};
    int32_t present = 0, missing = -1;
    double sum = 0.0;
    if (status == MOED_OK) status = moedi_assemble(out, &surgery, dir, cancel);
    moed_layout_destroy(layout);
    if (status != MOED_OK) return status;
    count_members(i, &present, &missing, &sum);
    i->drift = surgery.original > 0.0 ? sqrt(surgery.moved / present / surgery.original) : 0.0;
    return MOED_OK;
}
