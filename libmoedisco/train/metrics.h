/* train/metrics.h - metrics.jsonl: one JSON object a line, each appended with a single write. */
#ifndef MOEDI_METRICS_H
#define MOEDI_METRICS_H

#include "core/context.h"
#include "loads.h"
#include "moedisco/train.h"

typedef struct moedi_metrics {
    int fd;                 /* -1: closed */
    char *path;
    const moed_context *context;
} moedi_metrics;

/* Opens or makes DIRECTORY/metrics.jsonl and locks it: MOED_E_STATE when another trainer writes there. */
moed_status moedi_metrics_open(moedi_metrics *out, const moed_context *c, const char *directory);
void moedi_metrics_close(moedi_metrics *m);
/* 1 when there is anything in it. */
moed_status moedi_metrics_used(const moedi_metrics *m, int *used);
/* What follows the first line with a "step" > step goes, and a torn end; a line that is damaged costs no other. */
moed_status moedi_metrics_cut(moedi_metrics *m, int64_t step);
/* On a closed file these do nothing. */
/* loads (layers, experts) of the step; scratch (experts). */
moed_status moedi_metrics_step(moedi_metrics *m, const moed_report *report, const moedi_config *c, const int64_t *loads,
                               int64_t *scratch);
moed_status moedi_metrics_evaluation(moedi_metrics *m, int64_t step, const moed_report *report);
/* After step `step` the model has other experts. */
moed_status moedi_metrics_expansion(moedi_metrics *m, int64_t step, const moedi_config *c);
moed_status moedi_metrics_sync(moedi_metrics *m);

#endif
