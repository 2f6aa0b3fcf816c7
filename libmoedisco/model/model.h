/* model/model.h - a layout with memory or files behind it, private side. */
#ifndef MOEDI_MODEL_H
#define MOEDI_MODEL_H

#include "faults.h"
#include "layout.h"
#include "util/dtype.h"
#include "util/safetensors.h"

struct moed_model {
    atomic_int references;
    moed_context *context;
    moed_layout *layout;
    char *origin;                   /* absolute path of the directory it comes from, whose companions go along; NULL = none */
    moed_tensor *tensors;           /* (count); data NULL while on disk (streamed) */
    void *arena;                    /* owned memory of all tensors, in slot order; NULL when borrowed or streamed */
    moedi_safetensors *files;       /* streamed: the open files (file_count) */
    size_t file_count;
    struct moedi_place { int32_t file; const moedi_safetensors_entry *entry; int64_t at; } *places; /* streamed: (count); at: its
                                     * first element in the entry */
    struct moedi_drawn { int32_t on; uint64_t seed; double std; } drawn; /* on: no numbers are held, they are drawn when read */
    int32_t borrowed;
    int32_t device;                 /* 1: tensors and arena are memory of the context's device */
    moed_release_fn release;        /* borrowed; nullable */
    void *release_user;
};

moed_model *moedi_model_retain(const moed_model *m);
/* A model without memory: tensors have dtype and shape, and no data. */
moed_status moedi_model_shell(moed_model **out, moed_context *c, const moed_layout *l);
/* Options with defaults (given nullable); refuses flags other than those. */
moed_status moedi_model_options_read(const moed_model_options *given, uint32_t flags, moed_model_options *out);
/* A model with owned memory for every parameter of l (retained, its dtypes): zeroed, or of the context's device and as it
 * comes. */
moed_status moedi_model_create(moed_model **out, moed_context *c, const moed_layout *l);
moed_status moedi_model_create_device(moed_model **out, moed_context *c, const moed_layout *l);
/* Elements [first, first + count) of a parameter in the layout's dtype, from memory, disk or device. */
moed_status moedi_model_read(const moed_model *m, size_t param, int64_t first, int64_t count, void *out);
/* Says that these will be read soon: a hint, which costs nothing when they are in memory. */
void moedi_model_ahead(const moed_model *m, size_t param, int64_t first, int64_t count);
/* A model whose numbers are in host memory: MOED_E_STATE for one that is streamed or on a device. */
moed_status moedi_model_check_resident(const moed_model *m);

/* Writes a model directory into `dir` (made already, e.g. a fresh directory's temporary): config.json from the layout, and the
 * tensors, produced in order by `produce`, at most `most` bytes at a time. Tied heads are not written. */
typedef moed_status (*moedi_produce_fn)(void *user, size_t param, int64_t first, int64_t count, void *out);
moed_status moedi_model_write(const moed_context *c, const moed_layout *l, const char *dir, moed_dtype dtype,
                              moedi_produce_fn produce, void *user, const moed_cancel *cancel);
/* Elements that it holds at once, in two pieces. */
int64_t moedi_model_write_elements(const moed_layout *l);
/* Writes a whole directory: fresh, synced, renamed; replaces a model's directory and nothing else. Several threads make
 * numbers while those made before are written: `produce` is called for MOEDI_MODEL_UNIT elements at most, from a multiple of
 * that on, by several threads at once; before that `prepare` (nullable) on the calling thread for the chunk of a parameter
 * that is to come, one chunk ahead. */
enum { MOEDI_MODEL_UNIT = 1 << 18 };
typedef struct moedi_producer {
    moed_status (*prepare)(void *user, size_t param, int64_t first, int64_t count);
    moedi_produce_fn produce;
    void *user;
    int serial;                     /* 1: produce is called on the calling thread, in order */
} moedi_producer;
typedef struct moedi_saving {
    const char *dir;
    moed_dtype dtype;               /* of floating parameters, MOED_DTYPE_NONE = the layout's */
    int64_t shard_bytes;            /* of one file at most, if its tensors allow; 0 = one file */
    const char *origin;             /* directory whose companions go along, nullable */
} moedi_saving;
moed_status moedi_model_save_from(const moed_context *c, const moed_layout *l, const moedi_saving *s, const moedi_producer *p,
                                  const moed_cancel *cancel);
/* The tensors of a directory as a model of layout l (its config.json is not read): resident as in moed_model_open, or
 * streamed. */
moed_status moedi_model_open_as(moed_model **out, moed_context *c, const moed_layout *l, const char *dir, int stream);
/* The layout that a directory's config.json describes. */
moed_status moedi_model_layout_of(moed_layout **out, moed_context *c, const char *dir);

/* The same as streamed, with every fault told instead of the first ending it: files that could be opened, and parameters whose
 * place has no entry, or one that the file ends before. Nothing but its files may be read. */
moed_status moedi_model_open_faulty(moed_model **out, moed_context *c, const moed_layout *l, const char *dir,
                                    moedi_faults *faults);

#endif
