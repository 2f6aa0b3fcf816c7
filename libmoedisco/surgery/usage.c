/* surgery/usage.c - which part gets which experts: those that its own documents use most, every part the same number. */
#include <math.h>
#include <string.h>

#include "core/cancel.h"
#include "surgery/split.h"

/* One layer as an assignment problem: `rows` places of the parts, `each` of them in a part, to `columns` experts, at the largest
 * sum of usage. Solved by shortest augmenting paths over potentials (the Hungarian method: Kuhn, 1955; in this form Edmonds and
 * Karp, 1972; Jonker and Volgenant, 1987), exact, in rows^2 * columns steps. Rows and columns are numbered from 1; 0 is none. */
typedef struct matching {
    int32_t rows, columns, each;
    const double *usage;             /* (parts, stride) */
    int64_t stride;
    double *row_price, *column_price; /* (rows + 1), (columns + 1) */
    double *slack;                    /* (columns + 1): least reduced cost of a column from the rows of the tree */
    int32_t *row_of;                  /* (columns + 1): the row that holds a column */
    int32_t *before;                  /* (columns + 1): the column before it on the path */
    uint8_t *seen;                    /* (columns + 1): in the tree */
} matching;

static double cost(const matching *m, int32_t row, int32_t column)
{
    return -m->usage[(row - 1) / m->each * m->stride + (column - 1)];
}

/* Takes column `at` into the tree; the next one, the cheapest to reach. */
static int32_t grow(matching *m, int32_t at)
{
    const int32_t row = m->row_of[at];
    double least = INFINITY;
    int32_t next = 0;
    m->seen[at] = 1;
    for (int32_t c = 1; c <= m->columns; c++) {
        if (m->seen[c]) continue;
        const double reduced = cost(m, row, c) - m->row_price[row] - m->column_price[c];
        if (reduced < m->slack[c]) m->slack[c] = reduced, m->before[c] = at;
        if (m->slack[c] < least) least = m->slack[c], next = c;
    }
    for (int32_t c = 0; c <= m->columns; c++) {
        if (m->seen[c]) m->row_price[m->row_of[c]] += least, m->column_price[c] -= least;
        else m->slack[c] -= least;
    }
    return next;
}

static void place_row(matching *m, int32_t row)
{
    int32_t at = 0;
    m->row_of[0] = row;
    for (int32_t c = 0; c <= m->columns; c++) m->slack[c] = INFINITY, m->seen[c] = 0;
    do at = grow(m, at);
    while (m->row_of[at]);
    for (; at; at = m->before[at]) m->row_of[at] = m->row_of[m->before[at]];
}

static moed_status match_layer(matching *m, const moed_cancel *cancel)
{
    memset(m->row_price, 0, (size_t)(m->rows + 1) * sizeof *m->row_price);
    memset(m->column_price, 0, (size_t)(m->columns + 1) * sizeof *m->column_price);
    memset(m->row_of, 0, (size_t)(m->columns + 1) * sizeof *m->row_of);
    for (int32_t row = 1; row <= m->rows; row++) {
        MOEDI_TRY(moedi_cancel_check(cancel));
        place_row(m, row);
    }
    return MOED_OK;
}

static moed_status matching_create(matching *m, const moed_split *s, int32_t most)
{
    const int64_t room = (int64_t)most + 1;
    m->stride = (int64_t)s->layout->layers * most;
    MOEDI_TRY(MOEDI_NEW(s->context, room, &m->row_price));
    MOEDI_TRY(MOEDI_NEW(s->context, room, &m->column_price));
    MOEDI_TRY(MOEDI_NEW(s->context, room, &m->slack));
    MOEDI_TRY(MOEDI_NEW(s->context, room, &m->row_of));
    MOEDI_TRY(MOEDI_NEW(s->context, room, &m->before));
    return MOEDI_NEW(s->context, room, &m->seen);
}

static void matching_destroy(matching *m, const moed_split *s)
{
    moedi_free(s->context, m->row_price);
    moedi_free(s->context, m->column_price);
    moedi_free(s->context, m->slack);
    moedi_free(s->context, m->row_of);
    moedi_free(s->context, m->before);
    moedi_free(s->context, m->seen);
}

static moed_status check_usage(const moed_split *s, const double *usage, int32_t most)
{
    const moed_layout *l = s->layout;
    for (int32_t part = 0; part < s->parts; part++)
        for (int32_t layer = 0; layer < l->layers; layer++)
            for (int32_t e = 0; e < l->experts[layer]; e++) {
                const double u = usage[((int64_t)part * l->layers + layer) * most + e];
                if (!isfinite(u) || u < 0.0)
                    return moedi_fail_parameter(
                        MOED_E_ARGUMENT, "usage",
                        "part %d, layer %d, expert %d: a usage of %g is not a finite number of at least 0", part, layer, e, u);
            }
    return MOED_OK;
}

/* The experts of one part, in ascending order. */
static int32_t list_of_part(const matching *m, int32_t part, int32_t *experts)
{
    int32_t count = 0;
    for (int32_t c = 1; c <= m->columns; c++)
        if (m->row_of[c] && (m->row_of[c] - 1) / m->each == part) experts[count++] = c - 1;
    return count;
}

moed_status moed_split_assign_usage(moed_split *s, const double *usage, const moed_cancel *cancel)
{
    moedi_clear_error();
    MOEDI_REQUIRE(s && usage, "the split or usage is NULL");
    MOEDI_TRY(moedi_context_check(s->context));
    const moed_layout *l = s->layout;
    matching m = {0};
    const int32_t most = l->most_experts;
    int32_t *experts = NULL;
    moed_status status;
    MOEDI_TRY(check_usage(s, usage, most));
    MOEDI_GO(MOEDI_NEW(s->context, most, &experts));
    MOEDI_GO(matching_create(&m, s, most));
    for (int32_t layer = 0; layer < l->layers; layer++) {
        if (!l->experts[layer]) continue;
        m.usage = usage + (int64_t)layer * most;
        m.each = l->experts[layer] / s->parts, m.rows = m.each * s->parts, m.columns = l->experts[layer];
        MOEDI_GO(match_layer(&m, cancel));
        for (int32_t part = 0; part < s->parts; part++) {
            const int32_t count = list_of_part(&m, part, experts);
            MOEDI_GO(moed_split_assign(s, part, layer, experts, count));
        }
    }
out:
    matching_destroy(&m, s);
    moedi_free(s->context, experts);
    return status;
}
