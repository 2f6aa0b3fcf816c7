/* cost.c - what the phases of a pipeline cost on the priced devices. */
#include <stdio.h>
#include <string.h>

#include "cost.h"
#include "output.h"
#include "training.h"

const char *human_money(double dollars, char out[32])
{
    snprintf(out, 32, dollars >= 0.1 || dollars == 0 ? "$%.2f" : "$%.3g", dollars);
    return out;
}

static int step_flops(const moed_layout *l, moed_train_options o, double *flops)
{
    moed_estimate e;
    o.steps = 1;
    const int code = training_estimate(l, &o, &e);
    *flops = e.flops;
    return code;
}

int cost_steps(const pipeline *p, step_cost *out)
{
    double dense = 0, whole = 0;
    int code = step_flops(p->dense, branch_options(p), &dense);
    if (!code) code = step_flops(pipeline_grown(p), final_options(p), &whole);
    if (code) return code;
    const double cheap = p->cheap_price / 3600 / p->cheap_flops, dear = p->dear_price / 3600 / p->dear_flops;
    out->flops[PHASE_START] = dense;
    out->flops[PHASE_BRANCH] = dense * (double)pipeline_parts(p);
    out->flops[PHASE_FINAL] = whole;
    out->money[PHASE_START] = out->flops[PHASE_START] * cheap;
    out->money[PHASE_BRANCH] = out->flops[PHASE_BRANCH] * cheap;
    out->money[PHASE_FINAL] = out->flops[PHASE_FINAL] * dear;
    return EXIT_DONE;
}

int cost_phases(const pipeline *p, const double *seconds, moed_phase *out, size_t *count)
{
    static const char *const NAMES[] = {"start", "S-phase", "F-phase"};
    const int64_t steps[] = {p->start_steps, p->branch_steps, p->steps};
    const int32_t devices[] = {1, (int32_t)pipeline_parts(p), 1};
    step_cost one;
    const int code = cost_steps(p, &one);
    *count = 0;
    for (int k = 0; k < PHASE_COUNT && !code; k++) {
        if (steps[k] <= 0) continue;
        moed_phase *phase = &out[(*count)++];
        memset(phase, 0, sizeof *phase);
        phase->struct_size = sizeof *phase;
        phase->name = NAMES[k];
        phase->flops = one.flops[k] / devices[k] * (double)steps[k];
        phase->device_flops = k == PHASE_FINAL ? p->dear_flops : p->cheap_flops;
        phase->price = k == PHASE_FINAL ? p->dear_price : p->cheap_price;
        phase->devices = devices[k];
        phase->seconds = seconds ? seconds[k] : 0;
    }
    return code;
}

int cost_of(const moed_phase *phases, size_t count, moed_cost *out)
{
    memset(out, 0, sizeof *out);
    out->struct_size = sizeof *out;
    if (!count) return EXIT_DONE;
    const moed_status status = moed_train_cost(phases, count, out);
    return status ? fail_status(status) : EXIT_DONE;
}

json_t *cost_json(const moed_cost *c)
{
    return must(json_pack("{s:f, s:f, s:f, s:f, s:f}", "money", c->money, "flops", c->flops, "hours", c->hours, "device_hours",
                          c->device_hours, "seconds_here", c->seconds));
}

json_t *cost_ahead(const moed_cost *c)
{
    json_t *o = cost_json(c);
    json_object_del(o, "seconds_here");
    return o;
}

json_t *phases_json(const moed_phase *phases, size_t count)
{
    json_t *all = must(json_array());
    for (size_t i = 0; i < count; i++) {
        moed_cost c;
        cost_of(&phases[i], 1, &c);
        json_t *o = cost_json(&c);
        put(o, "name", json_string(phases[i].name));
        put(o, "devices", json_integer(phases[i].devices));
        put(o, "price", json_real(phases[i].price));
        put_last(all, o);
    }
    return all;
}

json_t *cost_plan(const pipeline *p)
{
    moed_phase phases[PHASE_COUNT];
    moed_cost c;
    size_t count = 0;
    if (cost_phases(p, NULL, phases, &count) || cost_of(phases, count, &c)) return must(json_object());
    json_t *o = cost_ahead(&c);
    put(o, "phases", phases_json(phases, count));
    return o;
}
