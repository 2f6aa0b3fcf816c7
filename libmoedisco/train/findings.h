/* train/findings.h - what a step finds on the device, in one block that comes back in one download: the step's scalars, and of
 * each shard the losses and the choices of experts. */
#ifndef MOEDI_FINDINGS_H
#define MOEDI_FINDINGS_H

#include "model/transformer.h"

typedef struct moedi_findings {
    moedi_transformer *transformer;
    int64_t shards;              /* room */
    size_t losses_at, offsets_at, bytes;
    char *device, *host;         /* moed_step_scalars, losses (shards, MOEDI_RESULTS) wide,
                                    offsets (shards, layers, experts + 1) */
} moedi_findings;

/* Of device memory, and of host memory again. */
int64_t moedi_findings_bytes(const moedi_config *c, const moed_backend_info *numbers, int64_t shards);
moed_status moedi_findings_create(moedi_findings *out, moedi_transformer *t, int64_t shards);
void moedi_findings_destroy(moedi_findings *f);
/* On the device. */
moed_step_scalars *moedi_findings_scalars(const moedi_findings *f);
const void *moedi_findings_losses(const moedi_findings *f);
const int64_t *moedi_findings_offsets(const moedi_findings *f, int64_t shard);
/* The transformer's next forwards write there; -1: to its own place. */
void moedi_findings_direct(const moedi_findings *f, int64_t shard);
/* Waits for everything, and brings it all to the host: the following are valid then. */
moed_status moedi_findings_download(const moedi_findings *f);
const moed_step_scalars *moedi_findings_read_scalars(const moedi_findings *f);
/* offsets [out] (layers, experts + 1), borrowed. */
void moedi_findings_read(const moedi_findings *f, int64_t shard, int64_t tokens, moedi_losses *out, const int64_t **offsets);

#endif
