/* settings.h - run.json: every effective setting of a pipeline, and what a second start may not change. */
#ifndef SETTINGS_H
#define SETTINGS_H

#include "pipeline.h"

/* Writes DIR/run.json, whole or not at all. */
int settings_write(const pipeline *p, const flags *f);
/* Reads DIR/run.json: settings that were not given are taken from it; one that was given and differs is refused. */
int settings_read(pipeline *p, flags *f);

/* corpus/source.json: the text that a run directory's corpus was built from. */
int settings_write_source(const char *path, const char *text);
int settings_same_source(const char *path, const char *text);

#endif
