/* workers.h - the K workers of the S-phase as processes side by side. */
#ifndef WORKERS_H
#define WORKERS_H

#include "pipeline.h"

/* Runs `work DIR k` for every k whose model is not there yet. A worker that dies or exits with 1 is started once more; 2 and 3
 * are never retried. An exit code; SIGTERM and SIGINT are passed on and waited for. */
int workers_run(pipeline *p, const flags *f, int64_t parts);

/* Whether submodel `index` is trained. */
int worker_done(const pipeline *p, int64_t index);

#endif
