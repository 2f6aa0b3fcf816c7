/* surgery/piece.h - executes pieces, of tensors in memory and models on disk, into whole tensors and shards. */
#ifndef MOEDI_PIECE_H
#define MOEDI_PIECE_H

#include "model/model.h"

/* Where the numbers of one (source, parameter) are. */
typedef struct moedi_piece_source {
    int32_t dtype, rank;
    const int64_t *shape;
    const void *data;              /* contiguous memory; NULL: read through model */
    int32_t device;                /* of data */
    const moed_model *model;
    size_t param;
} moedi_piece_source;

/* Says where they are, or refuses numbers that do not exist. */
typedef moed_status (*moedi_piece_resolve_fn)(void *user, int32_t source, int64_t param, moedi_piece_source *out);
/* The parameter of a model as a source. */
moed_status moedi_piece_source_model(const moed_model *m, int64_t param, moedi_piece_source *out);

/* What is to be made: a whole tensor, or with `shard` the stretch of it that is at hand. */
typedef struct moedi_plan_request {
    const moed_context *context;
    const moed_piece *pieces;
    size_t count;
    const char *name;              /* of the tensor, for errors; NULL = it has none */
    int32_t dtype, rank;
    int32_t device;                /* where it is made: MOED_MEMORY_HOST, or the context's device and all sources there too */
    const int64_t *shape;          /* of the whole tensor */
    const moed_shard *shard;       /* nullable */
    moedi_piece_resolve_fn resolve;
    void *user;
    int measure;                   /* 1: take the sums of squares below */
} moedi_plan_request;

typedef struct moedi_plan_piece {
    moed_piece piece;
    moedi_piece_source source, reference;
    int exact;                     /* bytes are copied as they are */
    int on_reference;              /* DELTA: the COPY below it brings the reference's numbers, so that they need no second
                                      conversion */
} moedi_plan_piece;

/* Pieces that were checked, ready to be executed. */
typedef struct moedi_plan {
    const moed_context *context;
    int32_t dtype;
    int measure;
    int64_t elements;              /* at hand: of the shard when there is one */
    int64_t length, inner;         /* the whole tensor as (outer, length, inner) around the pieces' axis */
    struct { int64_t start, count, whole; } part; /* the shard's stretch of every row of `whole` elements */
    moedi_plan_piece *bases;       /* COPY and DRAW: they tile [0, length) in ascending order */
    moedi_plan_piece *deltas;
    size_t base_count, delta_count;
    int bytes;                       /* 1: nothing but bytes are moved */
    double moved;                  /* out: sum over all DELTAs of (source - reference)^2 */
    double original;               /* out: sum of squares of what the COPYs brought, where there are DELTAs */
} moedi_plan;

/* Checks everything: ranges, axes, ranks, shapes, types, tiling. Nothing was written when it refuses. */
moed_status moedi_plan_create(moedi_plan *out, const moedi_plan_request *request);
void moedi_plan_destroy(moedi_plan *plan);
/* On the device: enqueues all of it on the context's stream, or waits where the context has none. Sums of squares are not
 * taken. */
moed_status moedi_plan_enqueue(const moedi_plan *plan, void *out);
/* In host memory. Makes elements [first, first + count) of what is at hand. The same bits for any number of threads and any way
 * of cutting. */
moed_status moedi_plan_fill(moedi_plan *plan, int64_t first, int64_t count, void *out);


/* The same in parts that several threads make side by side: elements [first, first + count), count at most MOEDI_PLAN_UNIT and
 * first a multiple of it. squares [out]: what they add to moved and original, to be added up in order. */
enum { MOEDI_PLAN_UNIT = MOEDI_MODEL_UNIT };
moed_status moedi_plan_make(const moedi_plan *plan, int64_t first, int64_t count, void *out, double squares[2]);
/* Tells the system which bytes of files these elements will need, so that they are in memory by then. */
void moedi_plan_ahead(const moedi_plan *plan, int64_t first, int64_t count);

/* A list of pieces being written for a caller: counts all, keeps what there is room for. */
typedef struct moedi_piece_list {
    moed_piece *pieces;
    size_t capacity, count;
} moedi_piece_list;
/* Adds a piece; one that goes on where the last ended joins it. */
void moedi_piece_add(moedi_piece_list *list, const moed_piece *piece);
/* The whole tensor (count along axis 0) as a COPY of a source's parameter. */
moed_piece moedi_piece_copy(int32_t source, size_t param, int64_t count);
/* Indices of the whole tensor along axis 0: 1 for a single number. */
int64_t moedi_piece_whole(const moed_param *p);

#endif
