/* train/recording.h - device work that is the same every time: recorded once where the backend can, then launched as a whole. */
#ifndef MOEDI_RECORDING_H
#define MOEDI_RECORDING_H

#include "core/context.h"

typedef struct moedi_recording {
    void *graph;                 /* the backend's; NULL = none yet */
    double number;               /* that the work was enqueued with */
    int32_t ordinary;            /* it has run in the ordinary way: memory is taken, plans are made, kernels are loaded */
    int32_t refused;             /* the backend cannot record it */
} moedi_recording;

/* Only enqueues, and reads nothing on the host but what stays the same. */
typedef moed_status (*moedi_enqueue_fn)(void *user);

int moedi_recording_possible(const moedi_engine *e);
/* Does enqueue's work: the first time with this number in the ordinary way, the second time recording it, then by launching the
 * graph. */
moed_status moedi_recording_run(moedi_recording *r, const moedi_engine *e, double number, moedi_enqueue_fn enqueue, void *user);
void moedi_recording_destroy(moedi_recording *r, const moedi_engine *e);

#endif
