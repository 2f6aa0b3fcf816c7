/* train/loads.c - how often each expert was chosen. */
#include "loads.h"

void moedi_loads_add(const moedi_config *c, const int64_t *offsets, int64_t *loads)
{
    for (int32_t layer = 0; layer < c->layers; layer++, offsets += c->experts + 1)
        for (int64_t e = 0; e < c->experts; e++) loads[layer * c->experts + e] += offsets[e + 1] - offsets[e];
}

double moedi_loads_most(const moedi_config *c, const int64_t *loads)
{
    double most = 0;
    for (int64_t layer = 0; layer < c->layers; layer++) {
        int64_t total = 0, largest = 0;
        for (int64_t e = 0; e < c->experts; e++) {
            const int64_t load = loads[layer * c->experts + e];
            total += load;
            if (load > largest) largest = load;
        }
        const double share = total > 0 ? (double)largest * (double)c->experts / (double)total : 0;
        if (share > most) most = share;
    }
    return most;
}
