/* train/run_directory.h - DIRECTORY of a run: metrics.jsonl, checkpoints/step-N. */
#ifndef MOEDI_RUN_DIRECTORY_H
#define MOEDI_RUN_DIRECTORY_H

#include "trainer.h"

/* DIRECTORY/checkpoints, and step-N below that root. Free with moedi_free. */
moed_status moedi_run_root(const moed_trainer *t, char **out);
moed_status moedi_run_step_path(const moed_trainer *t, const char *root, int64_t step, char **out);
/* Steps of the checkpoints in root, valid or not, newest first. steps: free with moedi_free. */
moed_status moedi_run_steps(const moed_trainer *t, const char *root, int64_t **steps, size_t *count);

/* Takes the directory: refuses one that holds another run, opens the metrics and cuts them back to the trainer's step. */
moed_status moedi_run_claim(moed_trainer *t);

#endif
