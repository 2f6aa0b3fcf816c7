/* Pieces against a naive implementation, over dtypes, axes, shards and threads; and what is refused. */
#include "pieces.h"

#define FIXTURE_KERNELS "auto"
#define FIXTURE_THREADS 2
#include "fixture.h"

#include "util/random.h"

static double number(const moed_tensor *t, const int64_t *at)
{
    int64_t index = 0;
    double x = 0.0;
    for (int32_t a = 0; a < t->rank; a++) index = index * t->shape[a] + at[a];
    moedi_to_double(&x, (const char *)t->data + (size_t)index * moedi_dtype_size(t->dtype), t->dtype, 1);
    return x;
}

/* One element by the definition in base.h. */
static double naive(const moed_piece *pieces, size_t count, const moed_tensor *const *sources, const int64_t *at,
                    const int64_t *shape, int32_t rank)
{
    double value = 0.0, sum = 0.0;
    int64_t index = 0;
    for (int32_t a = 0; a < rank; a++) index = index * shape[a] + at[a];
    for (size_t i = 0; i < count; i++) {
        const moed_piece *p = &pieces[i];
        int64_t x[MOED_RANK_MAX], y[MOED_RANK_MAX], along = at[p->axis] - p->at;
        if (along < 0 || along >= p->count) continue;
        memcpy(x, at, sizeof x);
        memcpy(y, at, sizeof y);
        x[p->axis] = p->from + along, y[p->axis] = p->reference_from + along;
        if (p->op == MOED_PIECE_COPY) value = p->scale * number(&sources[p->source][p->source_param], x);
        if (p->op == MOED_PIECE_DRAW) value = p->scale * moedi_random_normal(p->seed, MOEDI_RANDOM_PIECE, 0, (uint64_t)index);
        if (p->op == MOED_PIECE_DELTA)
            sum += p->scale *
                   (number(&sources[p->source][p->source_param], x) - number(&sources[p->reference][p->reference_param], y));
    }
    return sum == 0.0 ? value : value + sum;
}

static void check_naive(const moed_piece *pieces, size_t count, const moed_tensor *const *sources, const moed_tensor *dst)
{
    int64_t at[MOED_RANK_MAX] = {0}, elements = moedi_shape_elements(dst->shape, dst->rank);
    size_t size = moedi_dtype_size(dst->dtype);
    for (int64_t n = 0; n < elements; n++) {
        unsigned char want[8];
        double x = naive(pieces, count, sources, at, dst->shape, dst->rank);
        moedi_from_double(want, dst->dtype, &x, 1);
        if (memcmp(want, (const char *)dst->data + (size_t)n * size, size) != 0)
            fail_msg("element %lld of %lld is not %g (%s)", (long long)n, (long long)elements, x, moed_dtype_name(dst->dtype));
        for (int32_t a = dst->rank; a-- > 0 && ++at[a] == dst->shape[a];) at[a] = 0;
    }
}

static void pieces_do_what_their_definition_says(void **state)
{
    static const moed_dtype dtypes[][4] = {{MOED_DTYPE_F32, MOED_DTYPE_F32, MOED_DTYPE_F32, MOED_DTYPE_F32},
                                           {MOED_DTYPE_BF16, MOED_DTYPE_F32, MOED_DTYPE_F64, MOED_DTYPE_BF16},
                                           {MOED_DTYPE_F16, MOED_DTYPE_BF16, MOED_DTYPE_F32, MOED_DTYPE_F64},
                                           {MOED_DTYPE_F32, MOED_DTYPE_F64, MOED_DTYPE_F16, MOED_DTYPE_F16}};
    (void)state;
    for (size_t d = 0; d < 4; d++)
        for (int32_t axis = 0; axis < 3; axis++) {
            scene s;
            scene_make(&s, axis, dtypes[d]);
            moed_tensor dst = make(dtypes[d][3], 3, s.shape, 7);
            assert_ok(moed_piece_apply(context, s.pieces, SCENE, s.sources, &dst, NULL));
            check_naive(s.pieces, SCENE, s.sources, &dst);
            free(dst.data);
            scene_free(&s);
        }
}

static void shards_along_any_axis_are_slices_of_the_whole(void **state)
{
    static const moed_dtype dtypes[3] = {MOED_DTYPE_F32, MOED_DTYPE_BF16, MOED_DTYPE_F32};
    (void)state;
    for (int32_t axis = 0; axis < 3; axis++)
        for (int32_t along = 0; along < 3; along++) {
            scene s;
            scene_make(&s, axis, dtypes);
            moed_tensor whole = make(MOED_DTYPE_F32, 3, s.shape, 7);
            assert_ok(moed_piece_apply(context, s.pieces, SCENE, s.sources, &whole, NULL));
            int64_t length = s.shape[along], cut = length / 3, inner = 1;
            for (int32_t a = along + 1; a < 3; a++) inner *= s.shape[a];
            for (int64_t start = 0; start < length; start += cut) {
                moed_shard shard = {
                    .axis = along, .start = start, .count = length - start < cut ? length - start : cut, .whole = length};
                int64_t shape[3] = {s.shape[0], s.shape[1], s.shape[2]};
                shape[along] = shard.count;
                moed_tensor part = make(MOED_DTYPE_F32, 3, shape, 8);
                assert_ok(moed_piece_apply(context, s.pieces, SCENE, s.sources, &part, &shard));
                int64_t rows = moedi_shape_elements(shape, 3) / (shard.count * inner);
                for (int64_t r = 0; r < rows; r++)
                    assert_memory_equal((float *)part.data + r * shard.count * inner,
                                        (float *)whole.data + (r * length + start) * inner,
                                        (size_t)(shard.count * inner) * sizeof(float));
                free(part.data);
            }
            free(whole.data);
            scene_free(&s);
        }
}

static void bits_do_not_depend_on_threads(void **state)
{
    static const int64_t shape[2] = {1000, 701}; /* several parallel tasks */
    const moed_piece pieces[] = {{.op = MOED_PIECE_COPY, .count = 1000, .scale = 1.0},
                                 {.op = MOED_PIECE_DELTA, .source = 1, .count = 1000, .scale = 0.3},
                                 {.op = MOED_PIECE_DELTA, .source = 2, .count = 1000, .scale = 0.7}};
    moed_tensor t[3], first = {0};
    const moed_tensor *sources[3];
    (void)state;
    for (int k = 0; k < 3; k++) t[k] = make(k ? MOED_DTYPE_F32 : MOED_DTYPE_BF16, 2, shape, (uint64_t)k + 1), sources[k] = &t[k];
    for (int32_t threads = 1; threads <= 3; threads++) {
        moed_context *c = support_context("auto", threads);
        moed_tensor dst = make(MOED_DTYPE_F32, 2, shape, 9);
        assert_ok(moed_piece_apply(c, pieces, 3, sources, &dst, NULL));
        if (threads == 1) first = dst, check_naive(pieces, 3, sources, &dst);
        else {
            assert_memory_equal(first.data, dst.data, 1000 * 701 * sizeof(float));
            free(dst.data);
        }
        moed_context_destroy(c);
    }
    free(first.data);
    for (int k = 0; k < 3; k++) free(t[k].data);
}

/* One array under two shapes: element (r, i) of one is not that of the other. */
static void a_reference_of_another_shape_over_the_same_memory_is_another(void **state)
{
    float numbers[8], moved[8], out[4];
    const int64_t narrow[2] = {2, 2}, wide[2] = {2, 4};
    moed_tensor t[3], dst;
    const moed_tensor *sources[3] = {&t[0], &t[1], &t[2]};
    const moed_piece pieces[] = {{.op = MOED_PIECE_COPY, .axis = 1, .count = 2, .scale = 1.0},
                                 {.op = MOED_PIECE_DELTA, .axis = 1, .source = 2, .reference = 1, .count = 2, .scale = 0.5}};
    (void)state;
    for (int i = 0; i < 8; i++) numbers[i] = (float)(i * i), moved[i] = (float)(3 * i + 1);
    moedi_tensor_set(&t[0], numbers, MOED_DTYPE_F32, 2, narrow);
    moedi_tensor_set(&t[1], numbers, MOED_DTYPE_F32, 2, wide);
    moedi_tensor_set(&t[2], moved, MOED_DTYPE_F32, 2, wide);
    moedi_tensor_set(&dst, out, MOED_DTYPE_F32, 2, narrow);
    assert_ok(moed_piece_apply(context, pieces, 2, sources, &dst, NULL));
    check_naive(pieces, 2, sources, &dst);
}

static void what_did_not_move_keeps_its_bits(void **state)
{
    const uint32_t bits[5] = {0x80000000u, 0x7fc01234u, 0x7f800000u, 0xff800000u, 0x00000001u}; /* -0, a NaN, +-inf, a denormal */
    uint32_t base[5], moved[5], out[5] = {0};
    const int64_t shape[1] = {5};
    moed_tensor t[2], dst;
    const moed_tensor *sources[2] = {&t[0], &t[1]};
    const moed_piece pieces[] = {{.op = MOED_PIECE_COPY, .count = 5, .scale = 1.0},
                                 {.op = MOED_PIECE_DELTA, .source = 1, .count = 5, .scale = 0.5},
                                 {.op = MOED_PIECE_DELTA, .source = 1, .count = 5, .scale = 0.0}};
    (void)state;
    memcpy(base, bits, sizeof bits);
    memcpy(moved, bits, sizeof bits);
    moedi_tensor_set(&t[0], base, MOED_DTYPE_F32, 1, shape);
    moedi_tensor_set(&t[1], moved, MOED_DTYPE_F32, 1, shape);
    moedi_tensor_set(&dst, out, MOED_DTYPE_F32, 1, shape);
    assert_ok(moed_piece_apply(context, pieces, 3, sources, &dst, NULL));
    assert_memory_equal(out, bits, sizeof bits);
    /* a scale of 0 takes nothing of a source that diverged */
    moved[0] = 0x7fc00000u;
    assert_ok(moed_piece_apply(context, (moed_piece[]){pieces[0], pieces[2]}, 2, sources, &dst, NULL));
    assert_memory_equal(out, bits, sizeof bits);
    /* and makes zeros of one that is copied */
    moed_piece zero = pieces[0];
    zero.scale = 0.0;
    assert_ok(moed_piece_apply(context, &zero, 1, sources, &dst, NULL));
    for (int i = 0; i < 5; i++) assert_int_equal(out[i], 0);
}

static void members_an_operation_does_not_use_are_not_looked_at(void **state)
{
    (void)state;
    const int64_t shape[2] = {3, 2};
    moed_tensor source = make(MOED_DTYPE_F32, 2, shape, 1), dst = make(MOED_DTYPE_F32, 2, shape, 2);
    const moed_tensor *sources[1] = {&source};
    moed_piece p = {.op = MOED_PIECE_COPY, .axis = 1, .reference = -7, .reference_param = INT64_MIN, .reference_from = INT64_MAX,
                    .count = 2, .scale = 1};
    assert_ok(moed_piece_apply(context, &p, 1, sources, &dst, NULL));
    assert_memory_equal(dst.data, source.data, 24);
    p.op = MOED_PIECE_DRAW, p.source = -7, p.source_param = INT64_MIN, p.from = INT64_MAX;
    assert_ok(moed_piece_apply(context, &p, 1, NULL, &dst, NULL));
    free(source.data);
    free(dst.data);
}

static void copies_take_any_type_of_whole_bytes(void **state)
{
    static const moed_dtype dtypes[] = {MOED_DTYPE_U8,  MOED_DTYPE_BOOL, MOED_DTYPE_I16,    MOED_DTYPE_I32,
                                        MOED_DTYPE_I64, MOED_DTYPE_C64,  MOED_DTYPE_F8_E4M3};
    (void)state;
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++) {
        unsigned char from[64], to[64] = {0};
        const int64_t shape[2] = {2, 4};
        size_t size = moedi_dtype_size(dtypes[d]) * 8;
        moed_tensor source, dst;
        const moed_tensor *sources[1] = {&source};
        for (int i = 0; i < 64; i++) from[i] = (unsigned char)(37 * i + 11);
        moedi_tensor_set(&source, from, dtypes[d], 2, shape);
        moedi_tensor_set(&dst, to, dtypes[d], 2, shape);
        moed_piece swap[2] = {{.op = MOED_PIECE_COPY, .from = 1, .at = 0, .count = 1, .scale = 1.0},
                              {.op = MOED_PIECE_COPY, .from = 0, .at = 1, .count = 1, .scale = 1.0}};
        assert_ok(moed_piece_apply(context, swap, 2, sources, &dst, NULL));
        assert_memory_equal(to, from + size / 2, size / 2);
        assert_memory_equal(to + size / 2, from, size / 2);
        swap[0].scale = 2.0;
        assert_refused(moed_piece_apply(context, swap, 2, sources, &dst, NULL), MOED_E_ARGUMENT, moed_dtype_name(dtypes[d]));
    }
}

static void a_single_number_is_a_tensor_too(void **state)
{
    float base = 2.0f, moved = 3.0f, out = 0.0f;
    moed_tensor t[2], dst;
    const moed_tensor *sources[2] = {&t[0], &t[1]};
    const moed_piece pieces[] = {{.op = MOED_PIECE_COPY, .count = 1, .scale = 1.0},
                                 {.op = MOED_PIECE_DELTA, .source = 1, .count = 1, .scale = 0.5}};
    (void)state;
    moedi_tensor_set(&t[0], &base, MOED_DTYPE_F32, 0, NULL);
    moedi_tensor_set(&t[1], &moved, MOED_DTYPE_F32, 0, NULL);
    moedi_tensor_set(&dst, &out, MOED_DTYPE_F32, 0, NULL);
    assert_ok(moed_piece_apply(context, pieces, 2, sources, &dst, NULL));
    assert_float_equal(out, 2.5f, 0);
}

static void pieces_that_cannot_be_are_refused_before_anything_is_written(void **state)
{
    const int64_t shape[2] = {4, 3}, other[2] = {4, 2};
    moed_tensor t[2] = {make(MOED_DTYPE_F32, 2, shape, 1), make(MOED_DTYPE_F32, 2, other, 2)};
    const moed_tensor *sources[2] = {&t[0], &t[1]};
    moed_tensor dst = make(MOED_DTYPE_F32, 2, shape, 3);
    float before[12];
    const moed_piece good = {.op = MOED_PIECE_COPY, .count = 4, .scale = 1.0};
    moed_piece p[2];
    (void)state;
    memcpy(before, dst.data, sizeof before);
#define REFUSED(status, words) assert_refused(moed_piece_apply(context, p, 2, sources, &dst, NULL), status, words)
#define WITH(change) p[0] = good, p[1] = (moed_piece){.op = MOED_PIECE_DELTA, .count = 4, .scale = 1.0}, change
    WITH(p[1].op = 7);
    REFUSED(MOED_E_ARGUMENT, "piece 1: there is no operation 7");
    WITH(p[0].axis = 2);
    REFUSED(MOED_E_ARGUMENT, "piece 0: lies along axis 2");
    WITH(p[1].axis = 1);
    REFUSED(MOED_E_ARGUMENT, "piece 1: lies along axis 1");
    WITH(p[0].axis = -1);
    REFUSED(MOED_E_ARGUMENT, "axis -1");
    WITH(p[1].at = 1);
    REFUSED(MOED_E_RANGE, "[1, +4)");
    WITH(p[1].at = INT64_MAX);
    REFUSED(MOED_E_RANGE, "piece 1");
    WITH(p[1].count = -1);
    REFUSED(MOED_E_RANGE, "piece 1");
    WITH(p[1].from = 1);
    REFUSED(MOED_E_RANGE, "piece 1");
    WITH(p[1].from = -1);
    REFUSED(MOED_E_RANGE, "piece 1");
    WITH(p[1].reference_from = INT64_MIN);
    REFUSED(MOED_E_RANGE, "reference");
    WITH(p[1].source = 1);
    REFUSED(MOED_E_ARGUMENT, "source has 2 along axis 1");
    WITH(p[1].source = -1);
    REFUSED(MOED_E_ARGUMENT, "source -1");
    WITH(p[1].scale = NAN);
    REFUSED(MOED_E_ARGUMENT, "scale");
    WITH(p[1] = good);
    REFUSED(MOED_E_ARGUMENT, "index 0 twice");
    WITH(p[0].count = 3);
    REFUSED(MOED_E_ARGUMENT, "3 indices of 4");
    WITH((p[0].count = 1, p[1] = good, p[1].at = 2, p[1].count = 2));
    REFUSED(MOED_E_ARGUMENT, "index 1 not at all");
    assert_refused(moed_piece_apply(context, p, 0, sources, &dst, NULL), MOED_E_ARGUMENT, "no pieces");
    p[0] = good;
    dst.strides[0] = 4;
    assert_refused(moed_piece_apply(context, p, 1, sources, &dst, NULL), MOED_E_ARGUMENT, "contiguous");
    dst.strides[0] = 3, dst.device = 1;
    assert_refused(moed_piece_apply(context, p, 1, sources, &dst, NULL), MOED_E_UNSUPPORTED, "device 1");
    dst.device = 0;
    moed_shard shard = {.axis = 0, .start = 1, .count = 4, .whole = 4};
    assert_refused(moed_piece_apply(context, p, 1, sources, &dst, &shard), MOED_E_RANGE, "shard");
    shard.axis = 2;
    assert_refused(moed_piece_apply(context, p, 1, sources, &dst, &shard), MOED_E_ARGUMENT, "axis 2");
    shard.axis = 0, shard.count = 3;
    assert_refused(moed_piece_apply(context, p, 1, sources, &dst, &shard), MOED_E_ARGUMENT, "shard");
    assert_refused(moed_piece_apply(context, p, 1, (const moed_tensor *[]){&dst}, &dst, NULL), MOED_E_ARGUMENT, "overlaps");
    assert_refused(moed_piece_apply(context, p, 1, NULL, &dst, NULL), MOED_E_ARGUMENT, "not given");
    assert_memory_equal(before, dst.data, sizeof before);
    free(dst.data);
    free(t[0].data);
    free(t[1].data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_do_what_their_definition_says),
        cmocka_unit_test(shards_along_any_axis_are_slices_of_the_whole),
        cmocka_unit_test(bits_do_not_depend_on_threads),
        cmocka_unit_test(a_reference_of_another_shape_over_the_same_memory_is_another),
        cmocka_unit_test(what_did_not_move_keeps_its_bits),
        cmocka_unit_test(members_an_operation_does_not_use_are_not_looked_at),
        cmocka_unit_test(copies_take_any_type_of_whole_bytes),
        cmocka_unit_test(a_single_number_is_a_tensor_too),
        cmocka_unit_test(pieces_that_cannot_be_are_refused_before_anything_is_written),
    };
    return cmocka_run_group_tests_name("pieces", tests, setup, teardown);
}
