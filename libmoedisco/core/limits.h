/* core/limits.h - what the control groups of this process allow: CPUs and memory. */
#ifndef MOEDI_LIMITS_H
#define MOEDI_LIMITS_H

#include <stdint.h>

/* root: "" for this machine, or a directory that holds a recorded /proc/self/cgroup and /sys/fs/cgroup. Both versions of control
 * groups; of a group and all above it the tightest counts. */

/* CPUs that the quota comes to, rounded up; 0 = no quota. */
int32_t moedi_limits_cpus(const char *root);
/* Bytes; 0 = no limit. */
int64_t moedi_limits_memory(const char *root);

#endif
