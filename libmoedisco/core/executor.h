/* core/executor.h - a pool of threads, or the caller's own executor. */
#ifndef MOEDI_EXECUTOR_H
#define MOEDI_EXECUTOR_H

#include "moedisco/context.h"

typedef struct moedi_executor moedi_executor;

/* threads counts the calling thread; workers start with the first parallel call. */
moed_status moedi_executor_create(moedi_executor **out, int32_t threads, moed_executor_fn own, void *user);
void moedi_executor_destroy(moedi_executor *e);
void moedi_executor_run(moedi_executor *e, int64_t count, moed_task_fn task, void *argument);
/* From now on the parallel calls of this thread leave out the tasks that have not begun when `cancel` is requested (NULL: none):
 * what they were to compute is then undefined, and the caller drops it. Only around work whose results index nothing. Returns the
 * token watched before. */
const moed_cancel *moedi_executor_watch(const moed_cancel *cancel);
/* In a child after fork() the workers are gone: forget them without joining. */
void moedi_executor_abandon(moedi_executor *e);
/* Physical cores this process may use: affinity and cgroup quota. At least 1. */
int32_t moedi_executor_available(void);

#endif
