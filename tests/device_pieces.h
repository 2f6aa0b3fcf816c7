/* tests/device_pieces.h - surgery in a device's memory beside the same in the host's, bit by bit: for the fake device and for a
 * GPU. The foreign trainer's memory comes from an engine of its own. */
#ifndef MOEDI_TEST_DEVICE_PIECES_H
#define MOEDI_TEST_DEVICE_PIECES_H

#include "pieces.h"
#include "train_support.h"

#include "core/context.h"

enum { FOREIGN_MOST = 64 };
typedef struct foreign {
    moedi_engine engine;
    void *blocks[FOREIGN_MOST];
    int count;
} foreign;

static inline void foreign_open(foreign *f, moed_context *c)
{
    f->count = 0;
    assert_ok(moedi_engine_open(&f->engine, c));
}
static inline void foreign_clear(foreign *f)
{
    while (f->count) f->engine.table->free(f->engine.self, f->blocks[--f->count]);
}
static inline void foreign_close(foreign *f)
{
    foreign_clear(f);
    moedi_engine_close(&f->engine);
}
static inline void foreign_write(foreign *f, const moed_tensor *device, const void *host)
{
    assert_ok(f->engine.table->upload(f->engine.self, device->data, host, tensor_bytes(device)));
    assert_ok(f->engine.table->synchronize(f->engine.self));
}
/* A copy of a host tensor, `shift` elements behind an aligned address. */
static inline moed_tensor foreign_copy(foreign *f, const moed_tensor *host, size_t shift)
{
    moed_tensor t = *host;
    assert_true(f->count < FOREIGN_MOST);
    shift *= moedi_dtype_size(t.dtype);
    assert_ok(f->engine.table->alloc(f->engine.self, tensor_bytes(&t) + shift + 1, &f->blocks[f->count]));
    t.data = (char *)f->blocks[f->count++] + shift, t.device = MOED_MEMORY_DEVICE;
    foreign_write(f, &t, host->data);
    return t;
}
static inline void *foreign_read(foreign *f, const moed_tensor *device)
{
    void *bytes = malloc(tensor_bytes(device) + 1);
    assert_ok(f->engine.table->download(f->engine.self, bytes, device->data, tensor_bytes(device)));
    assert_ok(f->engine.table->synchronize(f->engine.self));
    return bytes;
}

/* The same pieces on the host and on the device: the same bits. `shape` of the destination, of the shard if there is one. */
static inline void both(foreign *f, const moed_piece *pieces, size_t count, const moed_tensor *const *sources, int source_count,
                        moed_dtype dtype, int32_t rank, const int64_t *shape, const moed_shard *shard, size_t shift)
{
    moed_tensor moved[8], host = make(dtype, rank, shape, 77), device;
    const moed_tensor *there[8];
    moed_context *c = f->engine.context;
    assert_true(source_count <= 8);
    for (int i = 0; i < source_count; i++) moved[i] = foreign_copy(f, sources[i], shift), there[i] = &moved[i];
    device = foreign_copy(f, &host, shift);
    assert_ok(moed_piece_apply(c, pieces, count, sources, &host, shard));
    assert_ok(moed_piece_apply(c, pieces, count, there, &device, shard));
    unsigned char *got = foreign_read(f, &device), *want = host.data;
    for (size_t i = 0; i < tensor_bytes(&host); i++)
        if (got[i] != want[i])
            fail_msg("byte %zu of %zu (%s): %d, not %d", i, tensor_bytes(&host), moed_dtype_name(dtype), got[i], want[i]);
    free(got);
    free(host.data);
    foreign_clear(f);
}

static inline void check_scenes(moed_context *c)
{
    static const moed_dtype dtypes[][4] = {{MOED_DTYPE_F32, MOED_DTYPE_F32, MOED_DTYPE_F32, MOED_DTYPE_F32},
                                           {MOED_DTYPE_BF16, MOED_DTYPE_BF16, MOED_DTYPE_BF16, MOED_DTYPE_BF16},
                                           {MOED_DTYPE_BF16, MOED_DTYPE_F32, MOED_DTYPE_F64, MOED_DTYPE_BF16},
                                           {MOED_DTYPE_F16, MOED_DTYPE_BF16, MOED_DTYPE_F32, MOED_DTYPE_F64},
                                           {MOED_DTYPE_F32, MOED_DTYPE_F64, MOED_DTYPE_F16, MOED_DTYPE_F16}};
    foreign f;
    foreign_open(&f, c);
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++)
        for (int32_t axis = 0; axis < 3; axis++)
            for (int32_t along = -1; along < 3; along++) { /* -1: whole */
                scene s;
                scene_make(&s, axis, dtypes[d]);
                const int64_t whole = along < 0 ? 0 : s.shape[along];
                const moed_shard shard = {.axis = along, .start = whole / 3, .count = whole / 2, .whole = whole};
                if (along >= 0) s.shape[along] = shard.count;
                both(&f, s.pieces, SCENE, s.sources, 3, dtypes[d][3], 3, s.shape, along < 0 ? NULL : &shard, d % 2);
                scene_free(&s);
            }
    foreign_close(&f);
}

/* More submodels than fit into one launch, aligned and not; draws; a scale of 0 between them. */
static inline void check_many_terms(moed_context *c)
{
    enum { MANY = 61 };
    moed_piece pieces[1 + MANY] = {{.op = MOED_PIECE_COPY, .count = 5, .scale = 1.0}};
    foreign f;
    foreign_open(&f, c);
    for (int i = 1; i <= MANY; i++)
        pieces[i] = (moed_piece){.op = MOED_PIECE_DELTA, .source = 1 + i % 3, .count = i % 7 ? 5 : 3, .at = i % 7 ? 0 : 2,
                                 .from = i % 7 ? 0 : 1, .reference_from = i % 7 ? 0 : 2, .scale = i % 11 ? 0.3 / i : 0.0};
    for (int kind = 0; kind < 4; kind++) {
        static const moed_dtype dtypes[4] = {MOED_DTYPE_BF16, MOED_DTYPE_F32, MOED_DTYPE_F16, MOED_DTYPE_BF16};
        const int64_t shape[2] = {5, kind == 3 ? 1027 : 4096};
        moed_tensor t[4];
        const moed_tensor *sources[4];
        for (int i = 0; i < 4; i++) t[i] = make(dtypes[kind], 2, shape, (uint64_t)i + 1), sources[i] = &t[i];
        both(&f, pieces, 1 + MANY, sources, 4, dtypes[kind], 2, shape, NULL, 0);
        pieces[0].op = MOED_PIECE_DRAW, pieces[0].seed = 12345, pieces[0].scale = 0.25;
        both(&f, pieces, kind % 2 ? 1 + MANY : 1, sources, 4, dtypes[kind], 2, shape, NULL, 0);
        pieces[0].op = MOED_PIECE_COPY, pieces[0].scale = 1.0;
        for (int i = 0; i < 4; i++) free(t[i].data);
    }
    foreign_close(&f);
}

/* -0, a NaN, infinities and denormals; nothing moved, and one number did. */
static inline void check_kept_bits(moed_context *c)
{
    const uint32_t singles[8] = {0x80000000u, 0x7fc01234u, 0xff800000u, 0x7f800000u, 1, 0x80000001u, 0xffb00001u, 0x3f800000u};
    const uint16_t halves[8] = {0x8000, 0x7fc1, 0xff80, 0x7f80, 1, 0x8001, 0xffb1, 0x3f80};
    const moed_piece pieces[] = {{.op = MOED_PIECE_COPY, .count = 8, .scale = 1.0},
                                 {.op = MOED_PIECE_DELTA, .source = 1, .count = 8, .scale = 0.5},
                                 {.op = MOED_PIECE_DELTA, .source = 2, .count = 8, .scale = 0.0}};
    const int64_t shape[1] = {8};
    foreign f;
    foreign_open(&f, c);
    for (int wide = 0; wide < 2; wide++)
        for (int moved = 0; moved < 2; moved++) {
            moed_tensor t[3];
            const moed_tensor *sources[3];
            for (int i = 0; i < 3; i++) {
                t[i] = make(wide ? MOED_DTYPE_F32 : MOED_DTYPE_BF16, 1, shape, 1), sources[i] = &t[i];
                memcpy(t[i].data, wide ? (const void *)singles : halves, tensor_bytes(&t[i]));
            }
            memset(t[2].data, 0xff, tensor_bytes(&t[2]));
            if (moved) ((unsigned char *)t[1].data)[wide ? 28 : 14] ^= 1;
            both(&f, pieces, 3, sources, 3, t[0].dtype, 1, shape, NULL, 0);
            for (int i = 0; i < 3; i++) free(t[i].data);
        }
    foreign_close(&f);
}

static inline void check_bytes(moed_context *c)
{
    static const moed_dtype dtypes[] = {MOED_DTYPE_U8,  MOED_DTYPE_BOOL, MOED_DTYPE_I16,
                                        MOED_DTYPE_I32, MOED_DTYPE_C64,  MOED_DTYPE_BF16};
    const moed_piece swap[2] = {{.op = MOED_PIECE_COPY, .axis = 1, .from = 2, .count = 1, .scale = 1.0},
                                {.op = MOED_PIECE_COPY, .axis = 1, .at = 1, .count = 2, .scale = 1.0}};
    foreign f;
    foreign_open(&f, c);
    for (size_t d = 0; d < sizeof dtypes / sizeof dtypes[0]; d++)
        for (int64_t width = 5; width <= 64; width += 59) {
            const int64_t shape[3] = {4, 3, width};
            moed_tensor t = make(MOED_DTYPE_I64, 3, shape, 1);
            const moed_tensor *sources[1] = {&t};
            t.dtype = dtypes[d];
            for (size_t i = 0; i < tensor_bytes(&t); i++) ((unsigned char *)t.data)[i] = (unsigned char)(i * 37 + i / 256);
            both(&f, swap, 2, sources, 1, dtypes[d], 3, shape, NULL, 0);
            free(t.data);
        }
    foreign_close(&f);
}

static inline void check_refusals(moed_context *c)
{
    const int64_t shape[2] = {4, 3};
    const moed_piece p = {.op = MOED_PIECE_COPY, .count = 4, .scale = 1.0};
    moed_tensor host = make(MOED_DTYPE_F32, 2, shape, 1), out = make(MOED_DTYPE_F32, 2, shape, 2), device, there;
    foreign f;
    foreign_open(&f, c);
    device = foreign_copy(&f, &host, 0), there = foreign_copy(&f, &out, 0);
    assert_refused(moed_piece_apply(c, &p, 1, (const moed_tensor *[]){&host}, &there, NULL), MOED_E_ARGUMENT,
                   "piece 0: its source is in host memory, the destination in device memory");
    assert_refused(moed_piece_apply(c, &p, 1, (const moed_tensor *[]){&device}, &out, NULL), MOED_E_ARGUMENT,
                   "in device memory, the destination in host");
    there.device = 2;
    assert_refused(moed_piece_apply(c, &p, 1, (const moed_tensor *[]){&device}, &there, NULL), MOED_E_UNSUPPORTED, "device 2");
    there.device = MOED_MEMORY_DEVICE;
    assert_refused(moed_piece_apply(c, &p, 1, (const moed_tensor *[]){&there}, &there, NULL), MOED_E_ARGUMENT, "overlaps");
    foreign_close(&f);
    free(host.data), free(out.data);
}

/* ---- whole models ---- */

enum { DEVICE_PARTS = 4, DEVICE_PARAMS = 6 };

static inline moed_layout *device_layout(moed_context *c)
{
    const moed_param p[DEVICE_PARAMS] = {
        {.name = "embed", .role = MOED_ROLE_SHARED, .layer = -1, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_BF16,
         .rank = 2, .shape = {37, 8}},
        {.name = "temperature", .role = MOED_ROLE_SHARED, .layer = 0, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_F32},
        {.name = "table", .role = MOED_ROLE_OPAQUE, .layer = -1, .expert = -1, .expert_axis = -1, .dtype = MOED_DTYPE_I32,
         .rank = 1, .shape = {9}},
        {.name = "gate", .role = MOED_ROLE_ROUTER, .layer = 0, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_F32, .rank = 2,
         .shape = {4, 8}},
        {.name = "up", .role = MOED_ROLE_EXPERT, .layer = 0, .expert = -1, .expert_axis = 1, .dtype = MOED_DTYPE_BF16, .rank = 3,
         .shape = {8, 4, 6}},
        {.name = "down", .role = MOED_ROLE_EXPERT, .layer = 0, .expert = -1, .expert_axis = 0, .dtype = MOED_DTYPE_BF16,
         .rank = 3, .shape = {4, 6, 8}}};
    moed_layout *l = NULL;
    assert_ok(moed_layout_create(&l, c, p, DEVICE_PARAMS));
    return l;
}

static inline void same_models(foreign *f, const moed_model *host, const moed_model *device)
{
    for (size_t i = 0; i < DEVICE_PARAMS; i++) {
        moed_tensor h, d;
        assert_ok(moed_model_tensor(host, i, &h));
        assert_ok(moed_model_tensor(device, i, &d));
        assert_int_equal(h.device, MOED_MEMORY_HOST);
        assert_int_equal(d.device, MOED_MEMORY_DEVICE);
        void *bytes = foreign_read(f, &d);
        assert_int_equal(tensor_bytes(&h), tensor_bytes(&d));
        assert_memory_equal(h.data, bytes, tensor_bytes(&h));
        free(bytes);
    }
}

static inline void same_files(const char *a, const char *b)
{
    char command[8600];
    snprintf(command, sizeof command, "cmp '%s/model.safetensors' '%s/model.safetensors'", a, b);
    assert_int_equal(system(command), 0);
}

/* Adds submodels with members of either memory; part 2 is missing. */
static inline moed_status integrate(moed_model **out, moed_split *s, const moed_model *base, moed_model *const *parts,
                                    const char *dir)
{
    moed_integration *i = NULL;
    moed_integration_options o;
    assert_ok(moed_options_init(MOED_STRUCT_INTEGRATION_OPTIONS, &o, sizeof o));
    o.merge = MOED_MERGE_WEIGHTED, o.gate = MOED_GATE_RANDOM, o.gate_std = -1.0, o.allow_missing = 1, o.seed = 3;
    assert_ok(moed_integration_create(&i, s, base, &o));
    for (int32_t k = 0; k < DEVICE_PARTS; k++)
        if (k != 2) assert_ok(moed_integration_add(i, k, parts[k], 1.0 + k));
    const moed_status status = moed_integration_finish(out, i, dir, NULL);
    char kept[512];
    snprintf(kept, sizeof kept, "%s", moed_last_error());
    moed_integration_destroy(i);
    return status == MOED_OK ? status : moedi_fail(status, "%s", kept);
}

static inline void check_models(moed_context *c)
{
    moed_layout *l = device_layout(c);
    moed_tensor host[DEVICE_PARAMS], device[DEVICE_PARAMS];
    moed_model *base[2], *parts[2][DEVICE_PARTS], *whole[3];
    moed_split *s = NULL;
    char *dirs[2] = {support_directory(), support_directory()};
    foreign f;
    foreign_open(&f, c);
    for (size_t i = 0; i < DEVICE_PARAMS; i++) {
        moed_param p;
        assert_ok(moed_layout_param(l, i, &p));
        host[i] = make(p.dtype == MOED_DTYPE_I32 ? MOED_DTYPE_F32 : p.dtype, p.rank, p.shape, i + 1);
        host[i].dtype = p.dtype;
        device[i] = foreign_copy(&f, &host[i], 0);
    }
    assert_ok(moed_model_borrow(&base[0], c, l, host, DEVICE_PARAMS, NULL, NULL));
    assert_ok(moed_model_borrow(&base[1], c, l, device, DEVICE_PARAMS, NULL, NULL));
    assert_ok(moed_split_create(&s, l, NULL));
    for (int32_t k = 0; k < DEVICE_PARTS; k++) {
        for (int side = 0; side < 2; side++) assert_ok(moed_split_build(&parts[side][k], s, k, base[side], NULL, NULL));
        same_models(&f, parts[0][k], parts[1][k]);
        for (size_t i = 0; i < DEVICE_PARAMS; i++) { /* as if trained */
            moed_tensor h, d;
            assert_ok(moed_model_tensor(parts[0][k], i, &h));
            assert_ok(moed_model_tensor(parts[1][k], i, &d));
            for (size_t n = 0; n < tensor_bytes(&h); n += 4 + (size_t)k) ((unsigned char *)h.data)[n] ^= 0x13;
            foreign_write(&f, &d, h.data);
        }
    }
    assert_ok(integrate(&whole[0], s, base[0], parts[0], NULL));
    assert_ok(integrate(&whole[1], s, base[1], parts[1], NULL));
    same_models(&f, whole[0], whole[1]);
    assert_ok(integrate(&whole[2], s, base[0], parts[1], NULL)); /* into host memory from anywhere */
    same_models(&f, whole[2], whole[1]);
    assert_refused(integrate(&whole[2], s, base[1], parts[0], NULL), MOED_E_ARGUMENT,
                   "in host memory, the destination in device memory");
    moed_model_destroy(whole[2]);
    for (int side = 0; side < 2; side++)
        assert_ok(integrate(NULL, s, base[side], parts[side], support_path(dirs[side], "whole")));
    same_files(support_path(dirs[0], "whole"), support_path(dirs[1], "whole"));
    for (int side = 0; side < 2; side++) assert_ok(moed_model_save(whole[side], support_path(dirs[side], "saved"), NULL));
    same_files(support_path(dirs[0], "saved"), support_path(dirs[1], "saved"));

    moed_tensor mixed[DEVICE_PARAMS];
    memcpy(mixed, device, sizeof mixed);
    mixed[3] = host[3];
    assert_refused(moed_model_borrow(&whole[2], c, l, mixed, DEVICE_PARAMS, NULL, NULL), MOED_E_MISMATCH, "gate");
    for (int side = 0; side < 2; side++) {
        moed_model_destroy(whole[side]), moed_model_destroy(base[side]);
        for (int32_t k = 0; k < DEVICE_PARTS; k++) moed_model_destroy(parts[side][k]);
        support_remove(dirs[side]);
    }
    for (size_t i = 0; i < DEVICE_PARAMS; i++) free(host[i].data);
    moed_split_destroy(s);
    moed_layout_destroy(l);
    foreign_close(&f);
}

/* A family's model in device memory: what computes with it says where the numbers are. */
static inline void check_computing(moed_context *c, const moed_model *host, const moed_batch *b, moed_tensor *logits)
{
    const moed_layout *l = moed_model_layout(host);
    moed_tensor tensors[FOREIGN_MOST];
    moed_layout_info info = {.struct_size = sizeof info};
    moed_model *m = NULL;
    foreign f;
    foreign_open(&f, c);
    assert_ok(moed_layout_get_info(l, &info));
    for (int64_t i = 0; i < info.params; i++) {
        moed_tensor t;
        assert_ok(moed_model_tensor(host, (size_t)i, &t));
        tensors[i] = foreign_copy(&f, &t, 0);
    }
    assert_ok(moed_model_borrow(&m, c, l, tensors, (size_t)info.params, NULL, NULL));
    assert_refused(moed_model_logits(m, b, logits, NULL), MOED_E_STATE, "in memory of the device");
    moed_model_destroy(m);
    foreign_close(&f);
}

static inline void check_device_surgery(moed_context *c)
{
    check_scenes(c);
    check_many_terms(c);
    check_kept_bits(c);
    check_bytes(c);
    check_refusals(c);
    check_models(c);
}

#endif
