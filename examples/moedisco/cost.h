/* cost.h - what the phases of a pipeline cost on the priced devices. */
#ifndef COST_H
#define COST_H

#include "pipeline.h"

enum { PHASE_START, PHASE_BRANCH, PHASE_FINAL, PHASE_COUNT };

/* The phases a pipeline has (PHASE_COUNT room); *count of them. seconds: measured here by phase, nullable. */
int cost_phases(const pipeline *p, const double *seconds, moed_phase *out, size_t *count);
int cost_of(const moed_phase *phases, size_t count, moed_cost *out);
/* FLOPs and money of one step of each phase; all its devices. */
typedef struct step_cost {
    double flops[PHASE_COUNT], money[PHASE_COUNT];
} step_cost;
int cost_steps(const pipeline *p, step_cost *out);

json_t *cost_json(const moed_cost *c);
/* The same before anything ran: without the seconds it took here. */
json_t *cost_ahead(const moed_cost *c);
json_t *phases_json(const moed_phase *phases, size_t count);
/* What is planned, for run.json. */
json_t *cost_plan(const pipeline *p);
/* "$0.0123", with as many digits as it takes. */
const char *human_money(double dollars, char out[32]);

#endif
