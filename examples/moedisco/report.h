/* report.h - what a run directory holds: the table of its pipelines. */
#ifndef REPORT_H
#define REPORT_H

#include "app.h"

/* All finished pipelines below root, side by side: loss against the four costs. */
int report_table(const char *root);
/* One pipeline's directory: its settings, how far it is, its result. */
int report_pipeline(const char *dir);
int report_holds_pipelines(const char *root);

#endif
