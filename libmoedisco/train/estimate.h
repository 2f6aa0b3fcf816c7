/* train/estimate.h - bytes of a run before it starts. */
#ifndef MOEDI_ESTIMATE_H
#define MOEDI_ESTIMATE_H

#include "model/transformer.h"
#include "moedisco/train.h"

typedef struct moedi_budget {
    int64_t weights;               /* of the arithmetic's dtype, with their low halves */
    int64_t gradients, moments;
    int64_t activations;
    int64_t workspace;             /* that an engine keeps for its operations */
    int64_t rest;                  /* host: rows, routing, lists, the order of the corpus' documents */
} moedi_budget;

/* Where a run computes, and the bytes it may take there: INT64_MAX where nothing is known to limit it. */
typedef struct moedi_room {
    int64_t host, device;          /* of a device that tells its memory, 15/16: the rest is its driver's and its libraries' */
    int64_t device_whole;          /* what it tells; 0 = nothing */
    int32_t on_host;               /* device memory is host memory */
    int32_t in_place;              /* the weights are there already */
    const moed_backend *backend;   /* of the device; NULL = not known here */
} moedi_room;
/* Of context c, of whose host memory `used` is taken. device (nullable): another than the context's own. */
moedi_room moedi_room_of(const moed_context *c, const moed_device_info *device, int64_t used);
/* What a budget takes in either memory. */
moedi_room moedi_budget_place(const moedi_budget *b, const moedi_room *room);
/* The policy that options.policy comes to in this room, its budget, and why, in a few words. numbers: that the device computes
 * with; documents: of the corpus, 0 = not known. */
moed_status moedi_policy_choose(const moed_layout *l, const moed_backend_info *numbers, const moed_train_options *o,
                                const uint8_t *trained, int64_t documents, const moedi_room *room, int32_t *policy,
                                moedi_budget *out, const char **reason);

#endif
