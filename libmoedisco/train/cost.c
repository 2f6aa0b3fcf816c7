/* train/cost.c - what phases of work cost on devices that are paid by the hour. Source: MoE-DisCo (arXiv 2601.06857),
 * cost = devices * time of the longest submodel * price. */
#include <math.h>
#include <string.h>

#include "core/options.h"
#include "moedisco/train.h"

static moed_status check_phase(const moed_phase *p, size_t index)
{
    const char *name = p->name ? p->name : "";
    if (!(p->flops >= 0) || !isfinite(p->flops))
        return moedi_fail_parameter(MOED_E_RANGE, "flops", "phase %zu \"%s\": flops is %g, not a number from 0 up", index, name,
                                    p->flops);
    if (!(p->device_flops > 0) || !isfinite(p->device_flops))
        return moedi_fail_parameter(MOED_E_RANGE, "device_flops", "phase %zu \"%s\": device_flops is %g, not a number above 0",
                                    index, name, p->device_flops);
    if (!(p->price >= 0) || !isfinite(p->price))
        return moedi_fail_parameter(MOED_E_RANGE, "price", "phase %zu \"%s\": price is %g, not a number from 0 up", index, name,
                                    p->price);
    if (p->devices < 1)
        return moedi_fail_parameter(MOED_E_RANGE, "devices", "phase %zu \"%s\": devices is %d, less than 1", index, name,
                                    (int)p->devices);
    if (!(p->seconds >= 0) || !isfinite(p->seconds))
        return moedi_fail_parameter(MOED_E_RANGE, "seconds", "phase %zu \"%s\": seconds is %g, not a number from 0 up", index,
                                    name, p->seconds);
    return MOED_OK;
}

moed_status moed_train_cost(const moed_phase *phases, size_t count, moed_cost *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(phases || count == 0, "phases is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    moed_cost cost;
    memset(&cost, 0, sizeof cost);
    cost.struct_size = sizeof cost;
    for (size_t i = 0; i < count; i++) {
        const moed_phase *p = &phases[i];
        if (p->struct_size != sizeof *p)
            return moedi_fail(MOED_E_STRUCT, "phase %zu: struct_size is %u, this library's moed_phase has %zu bytes", i,
                              (unsigned)p->struct_size, sizeof *p);
        MOEDI_TRY(check_phase(p, i));
        const double hours = p->flops / p->device_flops / 3600.0;
        cost.hours += hours;
        cost.device_hours += hours * p->devices;
        cost.money += hours * p->devices * p->price;
        cost.flops += p->flops * p->devices;
        cost.seconds += p->seconds;
    }
    return moedi_info_write(MOED_STRUCT_COST, &cost, out);
}
