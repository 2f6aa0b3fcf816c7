/* budget.h - from minutes, money or another pipeline's money to steps. */
#ifndef BUDGET_H
#define BUDGET_H

#include "pipeline.h"

/* try: refuses a corpus that is too small to cluster and train on. */
int budget_check_text(const pipeline *p);
/* try: the largest model that the time and the text can feed, and a word when there is little text. */
int budget_pick_sizes(pipeline *p, const flags *f);

#endif
