/* growth/time.c - seconds per token at a number of experts, from the few numbers that were measured. */
#include <math.h>

#include "core/status.h"
#include "moedisco/growth.h"

static moed_status check_points(const moed_step_time *points, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!(points[i].experts >= 1 && points[i].experts <= 1e30))
            return moedi_fail_parameter(MOED_E_RANGE, "experts", "step time %zu: experts is %g; it must be from 1 to 1e30", i,
                                        points[i].experts);
        if (!(points[i].seconds > 0 && points[i].seconds <= 1e30))
            return moedi_fail_parameter(MOED_E_RANGE, "seconds", "step time %zu: seconds is %g; it must be above 0", i,
                                        points[i].seconds);
        for (size_t j = 0; j < i; j++)
            if (points[j].experts == points[i].experts)
                return moedi_fail_parameter(MOED_E_ARGUMENT, "experts", "step times %zu and %zu are both of %g experts", j, i,
                                            points[i].experts);
    }
    return MOED_OK;
}

/* The point nearest to `experts` on one side of it (side -1, 1) and beyond `past`, NULL when there is none. */
static const moed_step_time *nearest(const moed_step_time *points, size_t count, double past, int side)
{
    const moed_step_time *best = NULL;
    for (size_t i = 0; i < count; i++) {
        const double away = side * (points[i].experts - past);
        if (away > 0 && (!best || away < side * (best->experts - past))) best = &points[i];
    }
    return best;
}

moed_status moed_step_time_at(const moed_step_time *points, size_t count, double experts, double *seconds, int32_t *how)
{
    int32_t way = MOED_TIME_GIVEN;
    moedi_clear_error();
    MOEDI_REQUIRE(seconds, "seconds is NULL");
    MOEDI_REQUIRE(points && count > 0, "there is no step time");
    MOEDI_TRY(check_points(points, count));
    if (!(experts >= 1 && experts <= 1e30))
        return moedi_fail_parameter(MOED_E_RANGE, "experts", "experts is %g; it must be from 1 to 1e30", experts);
    double found = -1;
    for (size_t i = 0; i < count; i++)
        if (points[i].experts == experts || count == 1) found = points[i].seconds;
    if (found < 0) {
        const moed_step_time *a = nearest(points, count, experts, -1), *b = nearest(points, count, experts, 1);
        way = a && b ? MOED_TIME_BETWEEN : MOED_TIME_BEYOND;
        if (!a) a = nearest(points, count, b->experts, 1);
        if (!b) b = nearest(points, count, a->experts, -1);
        found = fmax(0, a->seconds + (b->seconds - a->seconds) * ((experts - a->experts) / (b->experts - a->experts)));
    } else if (points[0].experts != experts && count == 1) {
        way = MOED_TIME_SINGLE;
    }
    *seconds = found;
    if (how) *how = way;
    return MOED_OK;
}
