/* core/cancel.c - the cancel token: one atomic flag. */
#include "cancel.h"

#include <stdatomic.h>
#include <stdlib.h>

struct moed_cancel {
    atomic_int requested;
};

moed_status moed_cancel_create(moed_cancel **out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    /* The only memory outside a context: a token may be older and live longer than any. */
    moed_cancel *cancel = malloc(sizeof *cancel);
    if (!cancel) return moedi_fail(MOED_E_MEMORY, "no memory for a cancel token");
    atomic_init(&cancel->requested, 0);
    *out = cancel;
    return MOED_OK;
}

void moed_cancel_destroy(moed_cancel *cancel)
{
    free(cancel);
}

void moed_cancel_request(moed_cancel *cancel)
{
    if (cancel) atomic_store(&cancel->requested, 1);
}

int moedi_cancel_seen(const moed_cancel *cancel)
{
    return cancel && atomic_load_explicit(&((moed_cancel *)(uintptr_t)cancel)->requested, memory_order_relaxed);
}

moed_status moedi_cancel_check(const moed_cancel *cancel)
{
    if (!moedi_cancel_seen(cancel)) return MOED_OK;
    return moedi_fail(MOED_E_CANCELLED, "cancelled by request");
}
