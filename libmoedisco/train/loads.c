/* train/loads.c - how often each expert was chosen. */
#include "loads.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void moedi_loads_add(const moedi_config *c, const int64_t *offsets, int64_t *loads)
{
    for (int32_t layer = 0; layer < c->layers; layer++, offsets += c->experts + 1)
        for (int64_t e = 0; e < c->experts; e++) loads[layer * c->experts + e] += offsets[e + 1] - offsets[e];
}

static double share_of_most(const int64_t *loads, int64_t experts)
{
    int64_t total = 0, largest = 0;
    for (int64_t e = 0; e < experts; e++) {
        total += loads[e];
        if (loads[e] > largest) largest = loads[e];
    }
    return total > 0 ? (double)largest * (double)experts / (double)total : 0;
}

static int by_load(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

moedi_evenness moedi_loads_evenness(const int64_t *loads, int64_t experts, int64_t *scratch)
{
    moedi_evenness found = {.most = share_of_most(loads, experts)};
    double total = 0, entropy = 0, ranked = 0;
    memcpy(scratch, loads, (size_t)experts * sizeof *scratch);
    qsort(scratch, (size_t)experts, sizeof *scratch, by_load);
    for (int64_t e = 0; e < experts; e++) total += (double)scratch[e];
    if (!(total > 0)) return found;
    found.least = (double)scratch[0] * (double)experts / total; /* they are in order */
    for (int64_t e = 0; e < experts; e++) {
        const double share = (double)scratch[e] / total;
        if (share > 0) entropy -= share * log(share);
        ranked += (double)(2 * (e + 1) - experts - 1) * share;
    }
    found.entropy = experts > 1 ? entropy / log((double)experts) : 1;
    found.gini = ranked / (double)experts;
    return found;
}

double moedi_loads_most(const moedi_config *c, const int64_t *loads)
{
    double most = 0;
    for (int32_t layer = 0; layer < c->layers; layer++) {
        const double share = share_of_most(loads + layer * c->experts, c->experts);
        if (share > most) most = share;
    }
    return most;
}
