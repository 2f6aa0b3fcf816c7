/* train/evaluate.c - what a model makes of a corpus without being trained on it: held-out loss, and how its
 * routers use experts. */
#include "evaluate.h"

#include <math.h>

#include "core/options.h"
#include "loads.h"
#include "model/layerwise.h"
#include "rows.h"
#include "util/clock.h"

/* ---- loss ---- */

/* Sums over batches, each weighted by its labels. */
static void add_losses(moed_report *sums, const moedi_losses *l, int64_t labels)
{
    sums->labels += labels;
    sums->loss += l->loss * (double)labels;
    sums->load_balance += l->load_balance * (double)labels;
    sums->z_loss += l->z_loss * (double)labels;
}

/* Sums to means. */
static moed_status finish_losses(moed_report *r, double seconds)
{
    const double labels = (double)r->labels;
    if (!r->labels) return moedi_fail(MOED_E_ARGUMENT, "the corpus has no tokens to evaluate");
    r->loss /= labels, r->load_balance /= labels, r->z_loss /= labels;
    if (!isfinite(r->loss)) return moedi_fail(MOED_E_NUMERIC, "the held-out loss is %g", moedi_told(r->loss));
    r->struct_size = (uint32_t)sizeof *r;
    r->tokens = r->labels;
    r->seconds = seconds;
    r->tokens_per_second = seconds > 0 ? labels / seconds : 0;
    return MOED_OK;
}

moed_status moedi_evaluate(moedi_transformer *t, const moed_corpus *d, int64_t tokens, int64_t rows,
                           int64_t length, int32_t document_mask, moed_report *out, const moed_cancel *cancel)
{
    const moedi_config *c = moedi_transformer_config(t);
    const double started = moedi_clock_seconds();
    moed_report sums = {0};
    int64_t *loads = NULL; /* (layers, experts) */
    moedi_rows r = {0};
    moed_batch b;
    moed_status status;
    int64_t labels;
    MOEDI_GO(moedi_rows_open(&r, d, tokens, rows, length));
    MOEDI_GO(MOEDI_NEW(r.context, c->layers * c->experts, &loads));
    for (;;) {
        moedi_losses losses;
        MOEDI_GO(moedi_rows_next(&r, &b, &labels));
        if (!labels) break;
        if (!document_mask) b.documents = NULL;
        MOEDI_GO(moedi_transformer_forward(t, &b, NULL, cancel));
        MOEDI_GO(moedi_transformer_losses(t, &losses));
        add_losses(&sums, &losses, labels);
        moedi_loads_add(c, moedi_transformer_offsets(t, 0), loads);
    }
    MOEDI_GO(finish_losses(&sums, moedi_clock_seconds() - started));
    sums.max_load = moedi_loads_most(c, loads);
    *out = sums;
out:
    if (r.context) moedi_free(r.context, loads);
    moedi_rows_close(&r);
    return status;
}

void moedi_evaluate_shape(const moedi_config *c, int64_t most, int64_t *rows, int64_t *length)
{
    *length = c->context_length < 512 ? c->context_length : 512;
    *rows = 4096 / *length < most ? 4096 / *length : most;
}

moed_status moedi_evaluate_check(const moed_layout *l, const moed_corpus *d, const char *which)
{
    MOEDI_TRY(moedi_context_check(d->context));
    if (d->info.vocabulary > l->config.vocabulary)
        return moedi_fail_parameter(MOED_E_MISMATCH, "vocabulary", "%s has a vocabulary of %lld tokens, the model only %lld",
                                    which, (long long)d->info.vocabulary, (long long)l->config.vocabulary);
    if (d->info.end_token >= l->config.vocabulary)
        return moedi_fail_parameter(MOED_E_MISMATCH, "end_token",
                                    "%s ends documents with token %lld, the model's vocabulary has only %lld", which,
                                    (long long)d->info.end_token, (long long)l->config.vocabulary);
    return MOED_OK;
}

moed_status moedi_evaluate_check_pair(const moed_model *m, const moed_corpus *d)
{
    MOEDI_TRY(moedi_context_check(m->context));
    if (!m->layout->family) {
        return moedi_fail(MOED_E_UNSUPPORTED,
                          "a layout made by hand has no forward pass: only a family's layout has");
    }
    return moedi_evaluate_check(m->layout, d, "the corpus");
}

moed_status moed_model_evaluate(const moed_model *m, const moed_corpus *d, int64_t tokens, int64_t rows,
                                int64_t length, int32_t document_mask, moed_report *out,
                                const moed_cancel *cancel)
{
    moedi_transformer *t = NULL;
    moed_report full;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(m && d && out, "model, corpus and out must be given");
    MOEDI_REQUIRE(tokens >= 0, "tokens must not be negative");
    MOEDI_TRY(moedi_info_check(MOED_STRUCT_REPORT, out));
    MOEDI_TRY(moedi_evaluate_check_pair(m, d));
    MOEDI_TRY(moedi_transformer_create(&t, m, rows, length, 0, NULL));
    MOEDI_GO(moedi_evaluate(t, d, tokens, rows, length, document_mask, &full, cancel));
    status = moedi_info_write(MOED_STRUCT_REPORT, &full, out);
out:
    moedi_transformer_destroy(t);
    return status;
}

/* ---- usage ---- */

/* Adds one batch's choices where a label counts. counts, sums (layers, experts); sums of routed weights. */
static moed_status count_choices(moedi_transformer *t, const moed_batch *b, int32_t *ids, void *raw,
                                 double *weights, double *counts, double *sums)
{
    const moedi_config *c = moedi_transformer_config(t);
    const int64_t choices = b->rows * b->length * c->top_k;
    for (int32_t layer = 0; layer < c->layers; layer++) {
        MOEDI_TRY(moedi_transformer_routing(t, layer, ids, raw));
        moedi_to_double(weights, raw, moedi_transformer_engine(t)->info.wide, choices);
        for (int64_t i = 0; i < choices; i++) {
            if (b->labels[i / c->top_k] < 0 || ids[i] < 0) continue;
            counts[layer * c->experts + ids[i]] += 1;
            sums[layer * c->experts + ids[i]] += weights[i];
        }
    }
    return MOED_OK;
}

/* counts, sums (layers, experts), zeroed. Attention stays inside documents: a corpus' usage does not depend
 * on how it is packed. */
static moed_status measure_usage(moedi_transformer *t, moedi_rows *r, double *counts, double *sums,
                                 const moed_cancel *cancel)
{
    const moedi_config *c = moedi_transformer_config(t);
    const int64_t choices = r->rows * r->length * c->top_k;
    int32_t *ids = NULL;
    void *raw = NULL;
    double *weights = NULL;
    moed_batch b;
    int64_t labels;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(r->context, choices, &ids));
    MOEDI_GO(MOEDI_NEW(r->context, choices, &weights));
    MOEDI_GO(moedi_alloc_array(r->context, choices, moedi_transformer_engine(t)->wide_item, &raw));
    for (;;) {
        MOEDI_GO(moedi_rows_next(r, &b, &labels));
        if (!labels) break;
        const moed_batch unlabelled = {
            .tokens = b.tokens, .documents = b.documents, .rows = b.rows, .length = b.length};
        MOEDI_GO(moedi_transformer_forward(t, &unlabelled, NULL, cancel));
        MOEDI_GO(count_choices(t, &b, ids, raw, weights, counts, sums));
    }
out:
    moedi_free(r->context, ids);
    moedi_free(r->context, weights);
    moedi_free(r->context, raw);
    return status;
}

/* Counts to shares, sums to means. */
static moed_status finish_usage(const moedi_config *c, const double *counts, const double *sums,
                                double *usage, double *weight)
{
    for (int64_t layer = 0; layer < c->layers; layer++) {
        const int64_t at = layer * c->experts;
        double total = 0;
        for (int64_t e = 0; e < c->experts; e++) total += counts[at + e];
        const int dense = moedi_config_dense(c, layer);
        if (total <= 0 && !dense) return moedi_fail(MOED_E_ARGUMENT, "the corpus has no tokens to measure usage on");
        for (int64_t e = at; e < at + c->experts; e++) {
            if (!isfinite(sums[e])) /* the choices say nothing then */
                return moedi_fail(MOED_E_NUMERIC, "layer %lld: the router's weights are %g: numbers of the model are not finite",
                                  (long long)layer, moedi_told(sums[e]));
            usage[e] = dense ? 0 : counts[e] / total;
            if (weight) weight[e] = counts[e] > 0 ? sums[e] / counts[e] : 0;
        }
    }
    return MOED_OK;
}

/* What a streamed model may take, in bytes: a process of 512 MiB has room for one with layers as large as Qwen1.5-MoE's. Beside a
 * device there is more, and going through the files again is what takes the time there. */
static const struct room {
    int64_t experts;     /* held at once */
    int64_t activations; /* of the rows that go through a layer together, where not all experts are */
    int64_t states;      /* that wait for the next layer */
} host_room = {48 << 20, 144 << 20, 32 << 20}, device_room = {(int64_t)4 << 30, 1 << 30, 128 << 20};

static const struct room *room_of(const moed_model *m)
{
    return m->context->backend_info.host_memory ? &host_room : &device_room;
}

/* One batch through the layer that was loaded, rows at a time. counts, sums (experts). */
static moed_status count_layer(moedi_layerwise *w, int64_t step, const moed_batch *b, char *states, void *const room[3],
                               double *counts, double *sums, const moed_cancel *cancel)
{
    moedi_transformer *t = moedi_layerwise_transformer(w);
    const int64_t hidden = moedi_transformer_config(t)->hidden;
    for (int64_t row = 0; row < b->rows; row += step) {
        const int64_t at = row * b->length;
        const moed_batch part = {.documents = b->documents + at, .labels = b->labels + at, .length = b->length,
                                 .rows = b->rows - row < step ? b->rows - row : step};
        MOEDI_TRY(moedi_layerwise_pass(w, &part, states + (size_t)(at * hidden) * moedi_transformer_engine(t)->item, cancel));
        MOEDI_TRY(count_choices(t, &part, room[0], room[1], room[2], counts, sums));
    }
    return MOED_OK;
}

/* The same for a streamed model: all rows that there is room for go through a layer before the next one is read. */
static moed_status measure_layerwise(const moed_model *m, moedi_rows *r, int64_t step, int64_t experts, double *counts,
                                     double *sums, const moed_cancel *cancel)
{
    const moedi_config *c = &m->layout->config;
    const int64_t choices = step * r->length * c->top_k;
    moedi_layerwise *w = NULL;
    void *room[3] = {NULL}; /* ids, raw weights, weights: (choices) */
    char *states = NULL;
    moed_batch b;
    int64_t labels;
    moed_status status;
    MOEDI_GO(moedi_layerwise_create(&w, m, step, r->length, experts));
    MOEDI_GO(moedi_alloc_array(r->context, choices, sizeof(int32_t), &room[0]));
    MOEDI_GO(moedi_alloc_array(r->context, choices, sizeof(double), &room[1]));
    MOEDI_GO(moedi_alloc_array(r->context, choices, sizeof(double), &room[2]));
    MOEDI_GO(moedi_alloc_array(r->context, r->rows * r->length * c->hidden, moedi_dtype_size(m->context->backend_info.dtype),
                               (void **)&states));
    for (;;) {
        MOEDI_GO(moedi_rows_next(r, &b, &labels));
        if (!labels) break;
        MOEDI_GO(moedi_layerwise_embed(w, b.tokens, b.rows * b.length, states));
        for (int32_t layer = 0; layer < c->layers; layer++) {
            MOEDI_GO(moedi_layerwise_load(w, layer, cancel));
            MOEDI_GO(count_layer(w, step, &b, states, room, counts + layer * c->experts, sums + layer * c->experts, cancel));
        }
    }
out:
    for (int i = 0; i < 3; i++) moedi_free(r->context, room[i]);
    moedi_free(r->context, states);
    moedi_layerwise_destroy(w);
    return status;
}

/* Rows that wait for the next layer together: as many as there is room for, or as there are. */
static int64_t waiting_rows(const moed_model *m, const moed_corpus *d, int64_t tokens, int64_t length)
{
    const int64_t row = length * m->layout->config.hidden * (int64_t)moedi_dtype_size(m->context->backend_info.dtype);
    const int64_t all = tokens && tokens < d->info.tokens ? tokens : d->info.tokens + d->documents;
    int64_t wait = room_of(m)->states / row;
    if (wait > all / length + 1) wait = all / length + 1;
    return wait > 1 ? wait : 1;
}

moed_status moedi_evaluate_usage(const moed_model *m, const moed_corpus *d, int64_t tokens, int64_t experts, double *usage,
                                 double *weight, const moed_cancel *cancel)
{
    moedi_transformer *t = NULL;
    double *counts = NULL, *sums;
    moedi_rows r = {0};
    moed_status status;
    MOEDI_TRY(moedi_evaluate_check_pair(m, d));
    const moedi_config *c = &m->layout->config;
    const int streamed = m->places != NULL;
    int64_t rows, length, wait;
    moedi_evaluate_shape(c, 8, &rows, &length);
    wait = rows; /* at a time; of these `rows` through a layer at a time */
    if (streamed) {
        wait = waiting_rows(m, d, tokens, length);
        MOEDI_GO(moedi_layerwise_rows(m, length, experts, room_of(m)->activations, wait, &rows));
    } else MOEDI_GO(moedi_transformer_create(&t, m, rows, length, 0, NULL));
    MOEDI_GO(MOEDI_NEW(m->context, 2 * c->layers * c->experts, &counts));
    sums = counts + c->layers * c->experts;
    MOEDI_GO(moedi_rows_open(&r, d, tokens, wait, length));
    MOEDI_GO(streamed ? measure_layerwise(m, &r, rows, experts, counts, sums, cancel)
                      : measure_usage(t, &r, counts, sums, cancel));
    status = finish_usage(c, counts, sums, usage, weight);
out:
    moedi_rows_close(&r);
    moedi_free(m->context, counts);
    moedi_transformer_destroy(t);
    return status;
}

moed_status moed_model_usage(const moed_model *m, const moed_corpus *d, int64_t tokens, double *usage,
                             double *weight, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(m && d && usage, "model, corpus and usage must be given");
    MOEDI_REQUIRE(tokens >= 0, "tokens must not be negative");
    return moedi_evaluate_usage(m, d, tokens, room_of(m)->experts, usage, weight, cancel);
}
