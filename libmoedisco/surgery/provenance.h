/* surgery/provenance.h - what a submodel says of its origin: the object "moedisco" in its config.json. */
#ifndef MOEDI_PROVENANCE_H
#define MOEDI_PROVENANCE_H

#include "model/model.h"
#include "util/hash.h"

/* {"part": k, "parts": K, "experts": [[of layer 0], ...], "base": 32 hex digits}; base nullable (not known
 * yet). */
moed_status moedi_provenance_create(json_t **out, int32_t part, int32_t parts, int32_t layers,
                                    int32_t *const *experts, const int32_t *counts, const char *base);
/* The object of a layout, NULL when it has none. Free with json_decref. */
moed_status moedi_provenance_read(json_t **out, const moed_layout *l);
/* A layout made by hand has no config.json of a family: the object alone becomes its text. */
moed_status moedi_provenance_attach(moed_layout *l, json_t *object);
/* MOED_E_MISMATCH naming the field in which `found` (a submodel's, NULL = it says nothing) differs from
 * `expected`. A clone may come from any part. */
moed_status moedi_provenance_compare(const json_t *expected, const json_t *found, int clone);

/* Identity of a model's numbers: over name, shape and the first 512 numbers of every parameter, as doubles, so
 * that the same numbers have the same digest in memory, on disk and in a wider type; cheap for a model of any
 * size. */
moed_status moedi_provenance_digest(const moed_model *m, char out[33]);

#endif
