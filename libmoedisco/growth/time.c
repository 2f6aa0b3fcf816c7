/* growth/time.c - seconds per token at a number of experts, from the few numbers that were measured. */
#include <math.h>

#include "core/status.h"
#include "moedisco/growth.h"

static moed_status check_points(const moed_step_time *points, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!(points[i].experts >= 1 && points[i].experts <= 1e30))
            return moedi_fail_parameter(MOED_E_RANGE, "experts", "step time %zu: experts is %g; it must be from 1 to 1e30", i,
                                        moedi_told(points[i].experts));
        if (!(points[i].seconds > 0 && points[i].seconds <= 1e30))
            return moedi_fail_parameter(MOED_E_RANGE, "seconds", "step time %zu: seconds is %g; it must be above 0, 1e30 at most",
                                        i, moedi_told(points[i].seconds));
        for (size_t j = 0; j < i; j++)
            if (points[j].experts == points[i].experts)
                return moedi_fail_parameter(MOED_E_ARGUMENT, "experts", "step times %zu and %zu are both of %g experts", j, i,
                                            points[i].experts);
    }
    return MOED_OK;
}

/* The point nearest to `experts`, on that side of it (-1 below, 1 above) where there is one; `skipped` (or NULL) is left out. */
static const moed_step_time *nearest(const moed_step_time *points, size_t count, double experts, int side,
                                     const moed_step_time *skipped)
{
    const moed_step_time *best = points == skipped ? points + 1 : points;
    for (const moed_step_time *p = points; p < points + count; p++) {
        const int here = side * (p->experts - experts) > 0, there = side * (best->experts - experts) > 0;
        const int closer = fabs(p->experts - experts) < fabs(best->experts - experts);
        if (p != skipped && (here > there || (here == there && closer))) best = p;
    }
    return best;
}

moed_status moed_step_time_at(const moed_step_time *points, size_t count, double experts, double *seconds, int32_t *how)
{
    moedi_clear_error();
    MOEDI_REQUIRE(seconds, "seconds is NULL");
    MOEDI_REQUIRE(points && count > 0, "there is no step time");
    MOEDI_TRY(check_points(points, count));
    if (!(experts >= 1 && experts <= 1e30))
        return moedi_fail_parameter(MOED_E_RANGE, "experts", "experts is %g; it must be from 1 to 1e30", moedi_told(experts));
    const moed_step_time *a = nearest(points, count, experts, 0, NULL);
    int32_t way = a->experts == experts ? MOED_TIME_GIVEN : MOED_TIME_SINGLE;
    double found = a->seconds;
    if (way != MOED_TIME_GIVEN && count > 1) {
        a = nearest(points, count, experts, -1, NULL);
        const moed_step_time *b = nearest(points, count, experts, 1, a);
        way = a->experts < experts && b->experts > experts ? MOED_TIME_BETWEEN : MOED_TIME_BEYOND;
        found = fmax(0, a->seconds + (b->seconds - a->seconds) * ((experts - a->experts) / (b->experts - a->experts)));
    }
    *seconds = found;
    if (how) *how = way;
    return MOED_OK;
}
