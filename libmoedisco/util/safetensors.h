/* util/safetensors.h - the safetensors format: reading files from strangers, writing in one pass. */
#ifndef MOEDI_SAFETENSORS_H
#define MOEDI_SAFETENSORS_H

#include "file.h"
#include "json.h"

typedef struct moedi_safetensors_entry {
    const char *name;
    int32_t dtype;                 /* moed_dtype */
    int32_t rank;                  /* 0..MOED_RANK_MAX; more is MOED_E_UNSUPPORTED */
    int64_t shape[MOED_RANK_MAX];
    int64_t elements;
    int64_t offset;                /* reader: absolute byte in the file; writer: filled in by create */
    int64_t bytes;
} moedi_safetensors_entry;

typedef struct moedi_safetensors {
    moedi_file file;
    moedi_safetensors_entry *entries; /* sorted by name */
    size_t count;
    json_t *metadata;              /* object of strings, or NULL */
} moedi_safetensors;

/* Checks everything before anything is believed: header length, UTF-8, JSON, names once, known dtypes, shapes without overflow,
 * offsets that tile the data without holes or overlap to the file's end. */
moed_status moedi_safetensors_open(moedi_safetensors *out, const moed_context *c, const char *path);
/* The same, but the file may end before its tensors do: those that reach beyond file.size cannot be read, the others can. */
moed_status moedi_safetensors_open_cut(moedi_safetensors *out, const moed_context *c, const char *path);
void moedi_safetensors_close(moedi_safetensors *s);
const moedi_safetensors_entry *moedi_safetensors_find(const moedi_safetensors *s, const char *name); /* NULL = not there */
moed_status moedi_safetensors_read(const moedi_safetensors *s, const moedi_safetensors_entry *e, int64_t first_byte, void *out,
                                   size_t bytes);

/* Writing: describe all tensors (name, dtype, rank, shape), then write each one's bytes, in any order and in pieces. */
typedef struct moedi_safetensors_writer {
    moedi_writer writer;
    moedi_safetensors_entry *entries; /* in the order given; offset and bytes filled in */
    size_t count;
} moedi_safetensors_writer;
moed_status moedi_safetensors_create(moedi_safetensors_writer *out, const moed_context *c, const char *path,
                                     const moedi_safetensors_entry *entries, size_t count, const json_t *metadata);
moed_status moedi_safetensors_write(moedi_safetensors_writer *w, size_t entry, int64_t first_byte, const void *data,
                                    size_t bytes);
moed_status moedi_safetensors_commit(moedi_safetensors_writer *w);
void moedi_safetensors_abort(moedi_safetensors_writer *w);

#endif
