/* tests/pieces.h - tensors, and pieces that use every operation. */
#ifndef MOEDI_TEST_PIECES_H
#define MOEDI_TEST_PIECES_H

#include "support.h"

#include "util/dtype.h"

/* A tensor with numbers in memory of its own; free(t.data). */
static inline moed_tensor make(moed_dtype dtype, int32_t rank, const int64_t *shape, uint64_t seed)
{
    moed_tensor t;
    int64_t count = moedi_shape_elements(shape, rank);
    float *x = malloc((size_t)count * sizeof *x + 1);
    moedi_tensor_set(&t, malloc((size_t)count * 8 + 1), dtype, rank, shape);
    support_random(x, count, seed);
    moedi_convert(t.data, dtype, x, MOED_DTYPE_F32, count);
    free(x);
    return t;
}

enum { SCENE = 7 };

/* Sources of one shape but for their length along an axis, and pieces that use all operations along it. */
typedef struct scene {
    moed_tensor tensors[3];
    const moed_tensor *sources[3];
    moed_piece pieces[SCENE];
    int64_t shape[3];
} scene;

static inline void scene_make(scene *s, int32_t axis, const moed_dtype *dtypes)
{
    static const int64_t shape[3] = {11, 13, 301};
    static const int64_t lengths[3] = {9, 12, 10}; /* of the sources along axis */
    memset(s, 0, sizeof *s);
    for (int k = 0; k < 3; k++) {
        memcpy(s->shape, shape, sizeof shape);
        s->shape[axis] = lengths[k];
        s->tensors[k] = make(dtypes[k], 3, s->shape, (uint64_t)k + 1);
        s->sources[k] = &s->tensors[k];
    }
    s->shape[axis] = 10;
    const moed_piece pieces[SCENE] = {
        {.op = MOED_PIECE_COPY, .source = 1, .from = 5, .at = 0, .count = 4, .scale = 1.0},
        {.op = MOED_PIECE_DRAW, .at = 4, .count = 1, .scale = 0.5, .seed = 99},
        {.op = MOED_PIECE_COPY, .source = 2, .from = 2, .at = 5, .count = 5, .scale = -1.75},
        {.op = MOED_PIECE_DELTA, .source = 1, .reference = 0, .from = 1, .reference_from = 0, .at = 0, .count = 9, .scale = 0.25},
        /* on its reference, as a submodel on its base */
        {.op = MOED_PIECE_DELTA, .source = 0, .reference = 1, .from = 2, .reference_from = 6, .at = 1, .count = 3, .scale = -0.5},
        {.op = MOED_PIECE_DELTA, .source = 2, .reference = 0, .from = 3, .reference_from = 4, .at = 5, .count = 5, .scale = 3.0},
        {.op = MOED_PIECE_DELTA, .source = 2, .reference = 2, .from = 0, .reference_from = 0, .at = 9, .count = 1, .scale = 1.0}};
    memcpy(s->pieces, pieces, sizeof pieces);
    for (int i = 0; i < SCENE; i++) s->pieces[i].axis = axis;
}
static inline void scene_free(scene *s)
{
    for (int k = 0; k < 3; k++) free(s->tensors[k].data);
}

#endif
