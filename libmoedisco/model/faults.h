/* model/faults.h - telling a caller of every fault of a model's directory. */
#ifndef MOEDI_FAULTS_H
#define MOEDI_FAULTS_H

#include "core/context.h"
#include "moedisco/model.h"

/* Who is told of the faults of a directory, and how many there were. */
typedef struct moedi_faults {
    moed_finding_fn tell;           /* nullable */
    void *user;
    int64_t count;
} moedi_faults;
/* Tells this thread's last error as one of them, and clears it. tensor nullable. */
moed_status moedi_faults_tell(moedi_faults *f, int32_t kind, const char *file, const char *tensor, int64_t count);

#endif
