/* phases.h - the phases of a pipeline: each makes one thing in its directory, and is skipped when that thing is there whole. */
#ifndef PHASES_H
#define PHASES_H

#include "pipeline.h"

int phases_run(pipeline *p, const flags *f);
/* Directory of a submodel's trained model; the caller frees it. */
char *submodel_path(const pipeline *p, int64_t index, const char *what);

#endif
