/* surgery/assemble.h - a model made by pieces, in memory or streamed to a directory. */
#ifndef MOEDI_ASSEMBLE_H
#define MOEDI_ASSEMBLE_H

#include "surgery/piece.h"

/* A surgery: how each parameter of the new model is made. */
typedef struct moedi_surgery {
    moed_context *context;         /* of the new model */
    const moed_layout *layout;     /* of the new model */
    int32_t device;                /* in memory: MOED_MEMORY_HOST or MOED_MEMORY_DEVICE */
    /* Adds the pieces of parameter `param`; called with room for none first. */
    moed_status (*pieces)(void *user, size_t param, moedi_piece_list *list);
    moedi_piece_resolve_fn resolve;
    void *user;
    const char *origin;            /* directory whose companions go along, nullable */
    int64_t shard_bytes;           /* of a file in a directory; see moedi_saving */
    int measure;                   /* 1: take the sums below, over shared parameters, unless on a device; see moedi_plan */
    double moved, original;        /* out */
} moedi_surgery;

/* In memory when dir is NULL; otherwise written there tensor by tensor, all or nothing, with a few MB of memory
 * whatever the model's size, and opened as a stream (out nullable). */
moed_status moedi_assemble(moed_model **out, moedi_surgery *s, const char *dir, const moed_cancel *cancel);

#endif
