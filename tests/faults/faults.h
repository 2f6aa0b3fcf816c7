/* tests/faults/faults.h - counts system calls that write and allocations, and fails the n-th of them. As a preloaded library it
 * is told by the environment (and counts over all processes together); included by a test program, by fault_arm. */
#ifndef MOEDI_FAULTS_H
#define MOEDI_FAULTS_H

#include <stdint.h>

enum { FAULT_COUNT, FAULT_ENOSPC, FAULT_EIO, FAULT_SHORT, FAULT_EINTR, FAULT_NOMEM, FAULT_KILL, FAULT_KINDS };
enum { FAULT_CALLS = 1, FAULT_MEMORY = 2 };

/* FAULT_STATE in the environment names a file of this size that holds one. */
typedef struct fault_state {
    int64_t what, kind, at; /* calls or memory; what happens; to which of them, counted from 1; 0 = none */
    int64_t sticky;         /* and to all after it */
    _Atomic int64_t seen, hit;
    char last[64];          /* the call that failed */
} fault_state;
extern fault_state *fault_now;

static inline void fault_arm(int what, int kind, int64_t at)
{
    fault_now->what = what, fault_now->kind = kind, fault_now->at = at, fault_now->sticky = 0;
    fault_now->seen = fault_now->hit = 0;
    fault_now->last[0] = 0;
}

#endif
