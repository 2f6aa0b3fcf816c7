/* surgery/clone.c - sparse upcycling (arXiv 2212.05055), Drop-Upcycling (2502.19261), clones with noise (2510.08008). */
#include "surgery/clone.h"

#include <math.h>
#include <string.h>

#include "util/hash.h"
#include "util/random.h"

enum { STRETCH = 1 << 14 };

/* Along which axis of an expert's tensor its units lie. */
static int32_t unit_axis(const moed_param *p)
{
    return p->flags & MOED_PARAM_EXPERT_OUTPUT ? 1 : 0;
}

/* ---- sizes of what is replaced ---- */

static moed_status sum_units(moedi_cloner *c, int64_t param, moedi_unit_sums *s)
{
    const moed_param *p = &c->source->layout->params[param];
    const int64_t columns = p->shape[1], all = moedi_param_elements(p);
    const int by_column = unit_axis(p);
    memset(s->squares, 0, (size_t)c->width * sizeof *s->squares);
    s->param = -1;
    for (int64_t at = 0; at < all; at += STRETCH) {
        const int64_t count = all - at < STRETCH ? all - at : STRETCH;
        MOEDI_TRY(moedi_model_read(c->source, (size_t)param, at, count, c->bytes));
        moedi_to_double(c->numbers, c->bytes, p->dtype, count);
        for (int64_t i = 0; i < count; i++)
            s->squares[by_column ? (at + i) % columns : (at + i) / columns] += c->numbers[i] * c->numbers[i];
    }
    s->param = param;
    return MOED_OK;
}

static moed_status sums_of(moedi_cloner *c, int64_t param, const double **out)
{
    for (int i = 0; i < 3; i++)
        if (c->sums[i].param == param) {
            *out = c->sums[i].squares;
            return MOED_OK;
        }
    moedi_unit_sums *s = &c->sums[c->latest++ % 3];
    *out = s->squares;
    return sum_units(c, param, s);
}

/* Root mean square of the numbers of some units (those drawn anew), or of all. */
static moed_status size_of(moedi_cloner *c, size_t param, int of_drawn, double *out)
{
    const moed_param *p = &c->layout->params[param];
    const double *squares = NULL;
    double sum = 0;
    int64_t units = 0;
    MOEDI_TRY(sums_of(c, c->from[param], &squares));
    for (int64_t i = 0; i < c->width; i++)
        if (!of_drawn || c->drawn[i]) sum += squares[i], units++;
    const int64_t numbers = moedi_param_elements(p) / c->width * units;
    *out = units ? sqrt(sum / (double)numbers) : 0;
    if (isfinite(*out)) return MOED_OK;
    return moedi_fail_parameter(MOED_E_NUMERIC, p->name, "tensor \"%s\" holds a NaN or an infinite number",
                                c->source->layout->params[c->from[param]].name);
}

/* ---- pieces ---- */

uint64_t moedi_cloner_seed(const moedi_cloner *c, const moed_param *p, uint64_t use)
{
    return moedi_random(c->seed, MOEDI_RANDOM_CLONE, moedi_hash_bytes(p->name, strlen(p->name)).low, use);
}

/* Which units of an expert are drawn anew: the same in its three tensors. */
static void choose_units(moedi_cloner *c, const moed_param *p)
{
    const int64_t count = (int64_t)floor(c->redraw * (double)c->width + 0.5);
    const uint64_t expert = (uint64_t)p->layer << 32 | (uint32_t)p->expert;
    memset(c->drawn, 0, (size_t)c->width);
    if (count == 0) return;
    moedi_random_permutation(c->seed, MOEDI_RANDOM_CLONE, expert, c->order, c->width);
    for (int64_t i = 0; i < count; i++) c->drawn[c->order[i]] = 1;
}

moed_status moedi_cloner_pieces(moedi_cloner *c, size_t param, moedi_piece_list *list)
{
    const moed_param *p = &c->layout->params[param];
    moed_piece piece = moedi_piece_copy(0, (size_t)c->from[param], 0);
    double drawn = 0, whole = 0;
    choose_units(c, p);
    piece.axis = unit_axis(p);
    if (c->redraw > 0) MOEDI_TRY(size_of(c, param, 1, &drawn));
    for (int64_t first = 0, next; first < c->width; first = next) {
        for (next = first + 1; next < c->width && c->drawn[next] == c->drawn[first];) next++;
        piece.op = c->drawn[first] ? MOED_PIECE_DRAW : MOED_PIECE_COPY;
        piece.scale = c->drawn[first] ? drawn : 1;
        piece.seed = moedi_cloner_seed(c, p, 0);
        piece.from = piece.at = first, piece.count = next - first;
        moedi_piece_add(list, &piece);
    }
    if (c->noise <= 0) return MOED_OK;
    MOEDI_TRY(size_of(c, param, 0, &whole));
    const moed_piece noise = {.op = MOED_PIECE_NOISE, .axis = piece.axis, .count = c->width, .scale = c->noise * whole,
                              .seed = moedi_cloner_seed(c, p, 1)};
    moedi_piece_add(list, &noise);
    return MOED_OK;
}

/* ---- memory ---- */

moed_status moedi_cloner_open(moedi_cloner *c)
{
    const moed_context *context = c->source->context;
    c->width = c->source->layout->config.expert_width;
    for (int i = 0; i < 3; i++) {
        c->sums[i].param = -1;
        MOEDI_TRY(MOEDI_NEW(context, c->width, &c->sums[i].squares));
    }
    MOEDI_TRY(MOEDI_NEW(context, c->width, &c->order));
    MOEDI_TRY(MOEDI_NEW(context, c->width, &c->drawn));
    MOEDI_TRY(moedi_alloc_array(context, STRETCH, sizeof(double), (void **)&c->bytes));
    return MOEDI_NEW(context, STRETCH, &c->numbers);
}

void moedi_cloner_close(moedi_cloner *c)
{
    const moed_context *context = c->source->context;
    for (int i = 0; i < 3; i++) moedi_free(context, c->sums[i].squares);
    moedi_free(context, c->order);
    moedi_free(context, c->drawn);
    moedi_free(context, c->bytes);
    moedi_free(context, c->numbers);
}
