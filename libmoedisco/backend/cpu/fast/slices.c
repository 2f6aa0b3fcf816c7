/* fast/slices.c - scratch for tasks. */
#include <sched.h>

#include "fast.h"

moed_status moedi_slices_open(moedi_slices *s, moedi_cpu *e, int64_t tasks, int64_t size)
{
    void *shared;
    return moedi_slices_open_with(s, e, tasks, size, 0, &shared);
}
moed_status moedi_slices_open_with(moedi_slices *s, moedi_cpu *e, int64_t tasks, int64_t size, int64_t shared_size, void **shared)
{
    s->slices = moedi_cpu_slices(tasks);
    s->size = round_up(size, 64);
    s->busy = 0;
    void *base = NULL;
    shared_size = round_up(shared_size, 64);
    const moed_status status = moedi_cpu_scratch(e, (size_t)(shared_size + s->slices * s->size), &base);
    s->base = (char *)base + shared_size;
    *shared = base;
    return status;
}
void *moedi_slices_claim(moedi_slices *s)
{
    for (;;) {
        for (int64_t i = 0; i < s->slices; i++) {
            const uint64_t bit = (uint64_t)1 << i;
            if (!(__atomic_fetch_or(&s->busy, bit, __ATOMIC_ACQUIRE) & bit)) return s->base + i * s->size;
        }
        sched_yield();
    }
}
void moedi_slices_release(moedi_slices *s, void *slice)
{
    const int64_t i = ((char *)slice - s->base) / s->size;
    __atomic_fetch_and(&s->busy, ~((uint64_t)1 << i), __ATOMIC_RELEASE);
}
