/* backend/balance.h - which way a selection bias moves, for every engine that does it: they give the same bits. Source: arXiv
 * 2408.15664. */
#ifndef MOEDI_BALANCE_H
#define MOEDI_BALANCE_H

#include <stdint.h>

#include "util/everywhere.h"

/* From -1 to 1: own is an expert's choices times the number of experts, total all choices. */
MOEDI_EVERYWHERE double moedi_balance_way(int64_t own, int64_t total, double band)
{
    if (own == total) return 0;
    const double away = band > 0 ? (double)(total - own) / ((double)total * band) : own < total ? 1 : -1;
    return away > 1 ? 1 : away < -1 ? -1 : away;
}

#endif
