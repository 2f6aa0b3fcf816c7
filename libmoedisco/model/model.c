/* model/model.c - models in memory: made, initialised, borrowed, read. */
#include "model.h"

#include <string.h>

#include "core/options.h"
#include "util/hash.h"
#include "util/random.h"

moed_model *moedi_model_retain(const moed_model *m)
{
    moed_model *own = (moed_model *)m;
    if (own) atomic_fetch_add(&own->references, 1);
    return own;
}

void moed_model_destroy(moed_model *m)
{
    if (!m || atomic_fetch_sub(&m->references, 1) != 1) return;
    moed_context *c = m->context;
    const moed_release_fn release = m->release;
    void *user = m->release_user;
    for (size_t i = 0; i < m->file_count; i++) moedi_safetensors_close(&m->files[i]);
    moedi_free(c, m->files);
    moedi_free(c, m->places);
    moedi_free(c, m->origin);
    moedi_free(c, m->tensors);
    if (m->device) moedi_device_free(c, m->arena);
    else moedi_free(c, m->arena);
    moed_layout_destroy(m->layout);
    moedi_free(c, m);
    moedi_context_release(c);
    if (release) release(user);
}

moed_status moedi_model_shell(moed_model **out, moed_context *c, const moed_layout *l)
{
    moed_model *m = NULL;
    MOEDI_TRY(MOEDI_NEW(c, 1, &m));
    atomic_init(&m->references, 1);
    m->context = moedi_context_retain(c);
    m->layout = moedi_layout_retain(l);
    const moed_status status = MOEDI_NEW(c, l->count, &m->tensors);
    if (status != MOED_OK) {
        moed_model_destroy(m);
        return status;
    }
    for (size_t i = 0; i < l->count; i++)
        moedi_tensor_set(&m->tensors[i], NULL, l->params[i].dtype, l->params[i].rank, l->params[i].shape);
    *out = m;
    return MOED_OK;
}

static moed_status create(moed_model **out, moed_context *c, const moed_layout *l, int32_t device)
{
    moed_model *m = NULL;
    size_t size = 0;
    MOEDI_TRY(moedi_model_shell(&m, c, l));
    m->device = device;
    /* Parameters follow each other without gaps, so that a slot's tensors are one matrix; only a change of dtype may leave
     * some. */
    for (size_t i = 0; i < l->count; i++) {
        const size_t item = moedi_dtype_size(l->params[i].dtype);
        size = (size + item - 1) / item * item + moedi_param_bytes(&l->params[i]);
    }
    const moed_status status =
        device ? moedi_device_alloc(c, size, &m->arena) : moedi_alloc_array(c, (int64_t)size, 1, &m->arena);
    if (status != MOED_OK) {
        moed_model_destroy(m);
        return status;
    }
    size = 0;
    for (size_t i = 0; i < l->count; i++) {
        const size_t item = moedi_dtype_size(l->params[i].dtype);
        size = (size + item - 1) / item * item;
        m->tensors[i].data = (char *)m->arena + size;
        m->tensors[i].device = device;
        size += moedi_param_bytes(&l->params[i]);
    }
    *out = m;
    return MOED_OK;
}

moed_status moedi_model_create(moed_model **out, moed_context *c, const moed_layout *l)
{
    return create(out, c, l, MOED_MEMORY_HOST);
}

moed_status moedi_model_create_device(moed_model **out, moed_context *c, const moed_layout *l)
{
    return create(out, c, l, MOED_MEMORY_DEVICE);
}

/* ---- initialisation ---- */

enum { DRAW_CHUNK = 1 << 15, DRAW_BLOCK = 512 };

typedef struct draw {
    const moed_model *model;
    const int64_t *first; /* (count + 1): chunks before each parameter */
    struct moedi_drawn numbers;
} draw;

/* Elements [first, first + count) of a parameter as they are drawn. Of the name, seed and index and nothing else: a tensor's
 * numbers do not depend on its neighbours. Rounded to float for either arithmetic, then to `dtype`. */
static void draw_elements(const struct moedi_drawn *d, const moed_param *p, int64_t first, int64_t count, moed_dtype dtype,
                          char *out)
{
    const size_t item = moedi_dtype_size(dtype);
    const int zero = moedi_param_begins_zero(p);
    const int one = !zero && (p->flags & MOED_PARAM_NORM) != 0;
    const uint64_t step = moedi_hash_bytes(p->name, strlen(p->name)).low;
    double numbers[DRAW_BLOCK];
    float rounded[DRAW_BLOCK];
    if (zero) {
        memset(out, 0, (size_t)count * item);
        return;
    }
    for (int64_t at = 0; at < count; at += DRAW_BLOCK) {
        const int64_t n = count - at < DRAW_BLOCK ? count - at : DRAW_BLOCK;
        if (!one) moedi_random_normals(numbers, d->seed, MOEDI_RANDOM_INIT, step, (uint64_t)(first + at), n);
        for (int64_t i = 0; i < n; i++) rounded[i] = one ? 1.0f : (float)(d->std * numbers[i]);
        moedi_convert(out + (size_t)at * item, dtype, rounded, MOED_DTYPE_F32, n);
    }
}

static void draw_chunk(void *argument, int64_t index)
{
    const draw *d = argument;
    const moed_layout *l = d->model->layout;
    size_t low = 0, high = l->count; /* the last parameter whose first chunk is not after index */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if (d->first[middle] <= index)
            low = middle;
        else
            high = middle;
    }
    const moed_param *p = &l->params[low];
    const moed_tensor *t = &d->model->tensors[low];
    const int64_t from = (index - d->first[low]) * DRAW_CHUNK, left = moedi_param_elements(p) - from;
    draw_elements(&d->numbers, p, from, left < DRAW_CHUNK ? left : DRAW_CHUNK, t->dtype,
                  (char *)t->data + (size_t)from * moedi_dtype_size(t->dtype));
}

static moed_status draw_model(moed_model *m, struct moedi_drawn numbers)
{
    const moed_layout *l = m->layout;
    int64_t *first = NULL;
    MOEDI_TRY(MOEDI_NEW(m->context, l->count + 1, &first));
    for (size_t i = 0; i < l->count; i++)
        first[i + 1] = first[i] + (moedi_param_elements(&l->params[i]) + DRAW_CHUNK - 1) / DRAW_CHUNK;
    draw d = {m, first, numbers};
    moedi_parallel(m->context, first[l->count], draw_chunk, &d);
    moedi_free(m->context, first);
    return MOED_OK;
}

/* The options with defaults and checked flags. */
moed_status moedi_model_options_read(const moed_model_options *given, uint32_t flags, moed_model_options *out)
{
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_MODEL_OPTIONS, given, out));
    if (out->flags & ~flags)
        return moedi_fail(MOED_E_ARGUMENT, "model options: flags 0x%x are not for this call", (unsigned)(out->flags & ~flags));
    return MOED_OK;
}

moed_status moed_model_init(moed_model **out, moed_context *c, const moed_layout *l, const moed_model_options *given)
{
    moed_model_options o;
    moed_layout *layout = NULL;
    moed_model *m = NULL;
    moed_status status;

    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(l, "the layout is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_model_options_read(given, MOED_MODEL_STREAM, &o));
    const double std = o.init_std >= 0 ? o.init_std : l->family ? l->config.init_std : 0.02;
    const struct moedi_drawn numbers = {.on = 1, .seed = o.seed, .std = std};
    if (o.flags & MOED_MODEL_STREAM) {
        MOEDI_GO(moedi_model_shell(&m, c, l));
        m->drawn = numbers;
    } else {
        MOEDI_GO(moedi_layout_with_dtype(&layout, l, c->backend_info.wide));
        MOEDI_GO(moedi_model_create(&m, c, layout));
        MOEDI_GO(draw_model(m, numbers));
    }
    *out = m;
    m = NULL;
out:
    moed_model_destroy(m);
    moed_layout_destroy(layout);
    return status;
}

/* ---- borrowing ---- */

static moed_status check_borrowed(const moed_context *c, const moed_param *p, const moed_tensor *t, int32_t device)
{
    int64_t stride = 1;
#define BAD(...) moedi_fail_parameter(MOED_E_MISMATCH, p->name, __VA_ARGS__)
    if (!t->data) return moedi_fail_parameter(MOED_E_ARGUMENT, p->name, "tensor %s: its data is NULL", p->name);
    const char *has = moedi_context_lacks_memory(c, t->device);
    if (has) return BAD("tensor %s: on device %d, and the context's device %s has %s", p->name, (int)t->device, c->device, has);
    if (t->device != device)
        return BAD("tensor %s: in memory %d, the tensors before it in %d", p->name, (int)t->device, (int)device);
    if (t->dtype != p->dtype)
        return BAD("tensor %s: dtype %d is not the layout's %s", p->name, (int)t->dtype, moed_dtype_name(p->dtype));
    if (t->rank != p->rank) return BAD("tensor %s: rank %d is not the layout's %d", p->name, (int)t->rank, (int)p->rank);
    for (int32_t r = p->rank - 1; r >= 0; r--) {
        if (t->shape[r] != p->shape[r])
            return BAD("tensor %s: size %lld of axis %d is not the layout's %lld", p->name, (long long)t->shape[r], (int)r,
                       (long long)p->shape[r]);
        if (t->shape[r] > 1 && t->strides[r] != stride)
            return BAD("tensor %s: stride %lld of axis %d, where a contiguous array has %lld", p->name, (long long)t->strides[r],
                       (int)r, (long long)stride);
        stride *= t->shape[r];
    }
    if ((uintptr_t)t->data % moedi_dtype_size(p->dtype) != 0)
        return BAD("tensor %s: its data is not aligned to the %zu bytes of its dtype", p->name, moedi_dtype_size(p->dtype));
#undef BAD
    return MOED_OK;
}

moed_status moed_model_borrow(moed_model **out, moed_context *c, const moed_layout *l, const moed_tensor *tensors, size_t count,
                              moed_release_fn release, void *user)
{
    moed_model *m = NULL;
    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(l, "the layout is NULL");
    MOEDI_REQUIRE(tensors, "the tensors are NULL");
    MOEDI_TRY(moedi_context_check(c));
    if (count != l->count) return moedi_fail(MOED_E_MISMATCH, "%zu tensors for a layout of %zu parameters", count, l->count);
    for (size_t i = 0; i < count; i++) MOEDI_TRY(check_borrowed(c, &l->params[i], &tensors[i], tensors[0].device));
    MOEDI_TRY(moedi_model_shell(&m, c, l));
    m->device = count && tensors[0].device;
    for (size_t i = 0; i < count; i++) m->tensors[i].data = tensors[i].data, m->tensors[i].device = m->device;
    m->borrowed = 1;
    m->release = release;
    m->release_user = user;
    *out = m;
    return MOED_OK;
}

/* ---- reading ---- */

static moed_status check_held(const moed_model *m)
{
    if (m->drawn.on)
        return moedi_fail(MOED_E_STATE,
                          "the model's numbers are drawn when they are read: make it without MOED_MODEL_STREAM for this");
    return m->places ? moedi_fail(MOED_E_STATE, "the model's numbers are on disk: open it without MOED_MODEL_STREAM for this")
                     : MOED_OK;
}

moed_status moedi_model_check_resident(const moed_model *m)
{
    MOEDI_TRY(check_held(m));
    if (!m->device) return MOED_OK;
    return moedi_fail(MOED_E_STATE,
                      "the model's numbers are in memory of the device %s: surgery and save take them from there, this takes a "
                      "model in host memory", m->context->device);
}

moed_status moedi_model_read(const moed_model *m, size_t param, int64_t first, int64_t count, void *out)
{
    const moed_param *p = &m->layout->params[param];
    const size_t item = moedi_dtype_size(p->dtype);
    if (m->drawn.on) {
        draw_elements(&m->drawn, p, first, count, p->dtype, out);
        return MOED_OK;
    }
    if (m->device)
        return moedi_device_read(m->context, out, (const char *)m->tensors[param].data + (size_t)first * item,
                                 (size_t)count * item);
    if (!m->places) {
        memcpy(out, (const char *)m->tensors[param].data + (size_t)first * item, (size_t)count * item);
        return MOED_OK;
    }
    const struct moedi_place *place = &m->places[param];
    const int64_t at = (place->at + first) * (int64_t)item;
    return moedi_safetensors_read(&m->files[place->file], place->entry, at, out, (size_t)count * item);
}

void moedi_model_ahead(const moed_model *m, size_t param, int64_t first, int64_t count)
{
    if (!m->places) return;
    const struct moedi_place *place = &m->places[param];
    const int64_t item = (int64_t)moedi_dtype_size(m->layout->params[param].dtype);
    moedi_file_ahead(&m->files[place->file].file, place->entry->offset + (place->at + first) * item, count * item);
}

const moed_layout *moed_model_layout(const moed_model *m)
{
    return m ? m->layout : NULL;
}

moed_status moed_model_tensor(const moed_model *m, size_t param, moed_tensor *out)
{
    moedi_clear_error();
    MOEDI_REQUIRE(m, "the model is NULL");
    MOEDI_REQUIRE(out, "out is NULL");
    if (param >= m->layout->count) return moedi_fail(MOED_E_RANGE, "parameter %zu of a model of %zu", param, m->layout->count);
    MOEDI_TRY(moedi_context_check(m->context));
    MOEDI_TRY(check_held(m));
    *out = m->tensors[param];
    return MOED_OK;
}
