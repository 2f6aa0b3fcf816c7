/* model/save.c - a model becomes a Hugging Face directory, whole or not at all. */
#include <stdio.h>
#include <string.h>

#include "companion.h"
#include "core/cancel.h"
#include "core/options.h"
#include "model.h"
#include "storage.h"

enum {
    UNIT = MOEDI_MODEL_UNIT, /* elements made by one task */
    UNITS = 8,               /* of a chunk: what is made while the chunk before is written */
    SERIAL_UNITS = 4         /* of a chunk that one thread makes and then writes */
};

/* What a layout without config.json has for one: enough to say what the directory is. */
static moed_status config_by_hand(const moed_context *c, const moed_layout *l, const char *path)
{
    char fingerprint[33];
    moedi_layout_fingerprint(l, fingerprint);
    json_t *o = json_pack("{s:{s:s,s:I,s:s}}", "moedisco", "layout", "by hand", "parameters", (json_int_t)l->count, "fingerprint",
                          fingerprint);
    if (!o) return moedi_fail(MOED_E_MEMORY, "no memory for %s", path);
    const moed_status status = moedi_json_write(c, o, path);
    json_decref(o);
    return status;
}

static moed_status write_config(const moed_context *c, const moed_layout *l, const char *dir)
{
    char *path = NULL;
    MOEDI_TRY(moedi_path_join(c, dir, "config.json", &path));
    const moed_status status = l->family ? moedi_file_write(c, path, l->config_text, strlen(l->config_text))
                                         : config_by_hand(c, l, path);
    moedi_free(c, path);
    return status;
}

/* Elements of a parameter: made into `made`, the same in the file's dtype at `bytes`. */
typedef struct chunk {
    size_t param;
    int64_t first, count;
    char *made, *bytes;
} chunk;

typedef struct writing {
    const moed_context *context;
    const moed_layout *from, *to; /* the same parameters, to's dtypes in the file */
    const moedi_producer *producer;
    const moed_cancel *cancel;
    int64_t most;                 /* elements of a chunk */
    size_t converted;             /* where converted numbers begin in a buffer */
    chunk making, made;           /* two buffers: one is filled while the other is written */
    void *memory;
    struct { size_t tensor; int64_t at; } *places; /* (parameters): the tensor that holds it, and its first element there */
    const char *dir;
    moedi_safetensors_entry *entries;
    char (*names)[sizeof ((moedi_stored *)0)->name]; /* of tensors that are stacks */
    size_t tensors;
    json_t *metadata;
    size_t *firsts;               /* (shards + 1): the first tensor of each file */
    size_t shards, shard;         /* shard: the file that is open is the one before; 0 = none */
    moedi_safetensors_writer writer;
} writing;

/* ---- files ---- */

enum { SHARDS_MOST = 99999, SHARD_NAME = 64 };

static void shard_name(const writing *w, size_t shard, char out[SHARD_NAME])
{
    if (w->shards == 1) snprintf(out, SHARD_NAME, "model.safetensors");
    else snprintf(out, SHARD_NAME, "model-%05zu-of-%05zu.safetensors", shard + 1, w->shards);
}

static int64_t tensor_bytes(const moedi_safetensors_entry *e)
{
    return moedi_shape_elements(e->shape, e->rank) * (int64_t)moedi_dtype_size(e->dtype);
}

/* Cuts the tensors, in order, into files of at most `most` bytes; a larger tensor has one of its own. 0 = one file. */
static moed_status cut_into_shards(writing *w, int64_t most)
{
    int64_t room = 0;
    MOEDI_TRY(MOEDI_NEW(w->context, w->tensors + 2, &w->firsts));
    for (size_t i = 0; i < w->tensors; i++) {
        const int64_t bytes = tensor_bytes(&w->entries[i]);
        if (i == 0 || (most && bytes > room)) w->firsts[w->shards++] = i, room = most;
        room = bytes < room ? room - bytes : 0;
    }
    if (w->shards == 0) w->shards = 1; /* a model without parameters is a file too */
    w->firsts[w->shards] = w->tensors;
    if (w->shards <= SHARDS_MOST) return MOED_OK;
    return moedi_fail_parameter(MOED_E_RANGE, "shard_bytes", "files of %lld bytes would be %zu files, and %d is the most",
                                (long long)most, w->shards, SHARDS_MOST);
}

static moed_status open_next_shard(writing *w)
{
    char name[SHARD_NAME], *path = NULL;
    const size_t first = w->firsts[w->shard];
    shard_name(w, w->shard, name);
    MOEDI_TRY(moedi_path_join(w->context, w->dir, name, &path));
    const moed_status status = moedi_safetensors_create(&w->writer, w->context, path, w->entries + first,
                                                        w->firsts[w->shard + 1] - first, w->metadata);
    moedi_free(w->context, path);
    w->shard += status == MOED_OK;
    return status;
}

/* Opens the file that holds a tensor; those before it are whole by then. */
static moed_status reach_shard_of(writing *w, size_t tensor)
{
    while (w->shard == 0 || (w->shard < w->shards && tensor >= w->firsts[w->shard])) {
        if (w->shard) MOEDI_TRY(moedi_safetensors_commit(&w->writer));
        MOEDI_TRY(open_next_shard(w));
    }
    return MOED_OK;
}

static json_t *weight_map(const writing *w)
{
    json_t *map = json_object();
    for (size_t s = 0; map && s < w->shards; s++) {
        char name[SHARD_NAME];
        shard_name(w, s, name);
        for (size_t i = w->firsts[s]; i < w->firsts[s + 1]; i++)
            if (json_object_set_new(map, w->entries[i].name, json_string(name)) != 0) {
                json_decref(map);
                return NULL;
            }
    }
    return map;
}

/* What tells readers which file holds which tensor. */
static moed_status write_index(const writing *w)
{
    int64_t bytes = 0;
    char *path = NULL;
    moed_status status;
    if (w->shards == 1) return MOED_OK;
    for (size_t i = 0; i < w->tensors; i++) bytes += tensor_bytes(&w->entries[i]);
    json_t *map = weight_map(w), *o = NULL;
    if (map) o = json_pack("{s:{s:I},s:O}", "metadata", "total_size", (json_int_t)bytes, "weight_map", map);
    if (!o) {
        status = moedi_fail(MOED_E_MEMORY, "no memory for the index of %zu files", w->shards);
        goto out;
    }
    MOEDI_GO(moedi_path_join(w->context, w->dir, "model.safetensors.index.json", &path));
    MOEDI_GO(moedi_json_write(w->context, o, path));
out:
    moedi_free(w->context, path);
    json_decref(map);
    json_decref(o);
    return status;
}

/* ---- numbers ---- */

static moed_status make_elements(const writing *w, int64_t at, int64_t count)
{
    const chunk *k = &w->making;
    const int32_t from = w->from->params[k->param].dtype, to = w->to->params[k->param].dtype;
    char *made = k->made + (size_t)at * moedi_dtype_size(from);
    MOEDI_TRY(w->producer->produce(w->producer->user, k->param, k->first + at, count, made));
    if (k->made != k->bytes) moedi_convert(k->bytes + (size_t)at * moedi_dtype_size(to), to, made, from, count);
    return MOED_OK;
}

static moed_status write_made(writing *w)
{
    const chunk *k = &w->made;
    const int64_t item = (int64_t)moedi_dtype_size(w->to->params[k->param].dtype);
    if (k->count == 0) return MOED_OK;
    const size_t tensor = w->places[k->param].tensor;
    MOEDI_TRY(reach_shard_of(w, tensor));
    return moedi_safetensors_write(&w->writer, tensor - w->firsts[w->shard - 1], (w->places[k->param].at + k->first) * item,
                                   k->bytes, (size_t)(k->count * item));
}

/* Task 0 writes what was made before, the others make a unit each. */
static moed_status make_or_write(void *argument, int64_t index)
{
    writing *w = argument;
    if (index == 0) return write_made(w);
    const int64_t at = (index - 1) * UNIT, left = w->making.count - at;
    return make_elements(w, at, left < UNIT ? left : UNIT);
}

/* The chunk after k; its param is the count of parameters after the last. */
static chunk chunk_after(const writing *w, chunk k)
{
    k.first += k.count;
    while (k.param < w->from->count) {
        const int64_t left = moedi_param_elements(&w->from->params[k.param]) - k.first;
        k.count = left < w->most ? left : w->most;
        if (k.count > 0) return k;
        k.param++, k.first = 0;
    }
    k.count = 0;
    return k;
}

static moed_status prepare(const writing *w, const chunk *k)
{
    const moedi_producer *p = w->producer;
    return p->prepare && k->count ? p->prepare(p->user, k->param, k->first, k->count) : MOED_OK;
}

static void swap_buffers(writing *w)
{
    const chunk made = w->making;
    w->making.made = w->made.made, w->making.bytes = w->made.bytes;
    w->made = made;
}

static moed_status write_params(writing *w)
{
    chunk next = chunk_after(w, (chunk){0});
    MOEDI_TRY(prepare(w, &next));
    while (next.count) {
        w->making.param = next.param, w->making.first = next.first, w->making.count = next.count;
        if (w->from->params[next.param].dtype == w->to->params[next.param].dtype) w->making.bytes = w->making.made;
        else w->making.bytes = w->making.made + w->converted;
        next = chunk_after(w, next);
        MOEDI_TRY(moedi_cancel_check(w->cancel));
        MOEDI_TRY(prepare(w, &next));
        if (w->producer->serial) {
            MOEDI_TRY(make_elements(w, 0, w->making.count));
            MOEDI_TRY(write_made(w));
        } else {
            MOEDI_TRY(moedi_parallel_try(w->context, 1 + (w->making.count + UNIT - 1) / UNIT, make_or_write, w));
        }
        swap_buffers(w);
    }
    return write_made(w);
}

/* Of a chunk: `most`, or what the largest parameter needs. */
static int64_t chunk_elements(const moed_layout *l, int64_t most)
{
    int64_t largest = 1;
    for (size_t i = 0; i < l->count; i++) {
        const int64_t elements = moedi_param_elements(&l->params[i]);
        if (elements > largest) largest = elements;
    }
    return largest < most ? (largest + 7) / 8 * 8 : most; /* so that both parts of a buffer are aligned */
}

int64_t moedi_model_write_elements(const moed_layout *l) { return 2 * chunk_elements(l, SERIAL_UNITS * UNIT); }

static moed_status make_buffers(writing *w)
{
    size_t from = 1, to = 0;
    for (size_t i = 0; i < w->from->count; i++) {
        const moed_param *a = &w->from->params[i], *b = &w->to->params[i];
        if (moedi_dtype_size(a->dtype) > from) from = moedi_dtype_size(a->dtype);
        if (a->dtype != b->dtype && moedi_dtype_size(b->dtype) > to) to = moedi_dtype_size(b->dtype);
    }
    w->most = chunk_elements(w->from, w->most);
    w->converted = (size_t)w->most * from;
    const size_t buffer = w->converted + (size_t)w->most * to;
    MOEDI_TRY(moedi_alloc(w->context, 2 * buffer, &w->memory));
    w->making.made = w->memory, w->made.made = (char *)w->memory + buffer;
    return MOED_OK;
}

/* The tensors of the files: each parameter, or a stack of several. */
static moed_status describe_tensors(writing *w)
{
    MOEDI_TRY(MOEDI_NEW(w->context, w->to->count, &w->entries));
    MOEDI_TRY(MOEDI_NEW(w->context, w->to->count, &w->places));
    MOEDI_TRY(moedi_alloc_array(w->context, w->to->stacked ? (int64_t)w->to->count : 1, sizeof w->names[0], (void **)&w->names));
    for (size_t i = 0; i < w->to->count; w->tensors++) {
        moedi_stored s;
        int64_t at = 0;
        moedi_safetensors_entry *e = &w->entries[w->tensors];
        moedi_storage_from(w->to, i, &s);
        if (s.stacked) memcpy(w->names[w->tensors], s.name, sizeof s.name);
        e->name = s.stacked ? w->names[w->tensors] : s.tensor.name;
        e->dtype = s.tensor.dtype, e->rank = s.tensor.rank;
        memcpy(e->shape, s.tensor.shape, sizeof s.tensor.shape);
        for (const size_t end = i + s.count; i < end; i++) {
            if (w->to->params[i].dtype != e->dtype)
                return moedi_fail_parameter(MOED_E_MISMATCH, e->name, "tensor %s would hold numbers of several dtypes", e->name);
            w->places[i].tensor = w->tensors, w->places[i].at = at;
            at += moedi_param_elements(&w->to->params[i]);
        }
    }
    w->metadata = json_pack("{s:s}", "format", "pt"); /* Transformers wants to know which framework's tensors these are */
    return w->metadata ? MOED_OK : moedi_fail(MOED_E_MEMORY, "no memory for a file's metadata");
}

static moed_status write_tensors(writing *w, int64_t shard_bytes)
{
    moed_status status;
    MOEDI_GO(describe_tensors(w));
    MOEDI_GO(cut_into_shards(w, shard_bytes));
    MOEDI_GO(make_buffers(w));
    MOEDI_GO(reach_shard_of(w, 0));
    MOEDI_GO(write_params(w));
    MOEDI_GO(reach_shard_of(w, w->tensors)); /* the last may hold nothing but tensors without elements */
    MOEDI_GO(moedi_safetensors_commit(&w->writer));
    MOEDI_GO(write_index(w));
out:
    moedi_safetensors_abort(&w->writer);
    moedi_free(w->context, w->memory);
    moedi_free(w->context, w->entries);
    moedi_free(w->context, w->names);
    moedi_free(w->context, w->places);
    moedi_free(w->context, w->firsts);
    json_decref(w->metadata);
    return status;
}

static moed_status write_from(const moed_context *c, const moed_layout *l, const moedi_saving *s, const moedi_producer *p,
                              const moed_cancel *cancel)
{
    moed_layout *to = NULL;
    moed_status status;

    if (s->dtype == MOED_DTYPE_NONE)
        to = moedi_layout_retain(l);
    else
        MOEDI_TRY(moedi_layout_with_dtype(&to, l, s->dtype));
    writing w = {.context = c, .from = l, .to = to, .producer = p, .cancel = cancel, .dir = s->dir,
                 .most = (p->serial ? SERIAL_UNITS : UNITS) * UNIT};
    MOEDI_GO(write_config(c, to, s->dir));
    MOEDI_GO(write_tensors(&w, s->shard_bytes));
    MOEDI_GO(moedi_companions_copy(c, s->origin, s->dir));
out:
    moed_layout_destroy(to);
    return status;
}

moed_status moedi_model_write(const moed_context *c, const moed_layout *l, const char *dir, moed_dtype dtype,
                              moedi_produce_fn produce, void *user, const moed_cancel *cancel)
{
    const moedi_producer p = {.produce = produce, .user = user, .serial = 1};
    const moedi_saving s = {.dir = dir, .dtype = dtype};
    return write_from(c, l, &s, &p, cancel);
}

/* ---- saving ---- */

static int ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), k = strlen(end);
    return n >= k && !strcmp(text + n - k, end);
}

static int is_models_file(const char *name)
{
    return !strcmp(name, "config.json") || !strcmp(name, "generation_config.json") || ends_with(name, ".safetensors") ||
           ends_with(name, ".safetensors.index.json");
}

/* A file that goes along with the model: the new directory will have it too. */
static moed_status comes_along(const moed_context *c, const char *name, const char *origin, int *along)
{
    char *path = NULL;
    *along = 0;
    if (!origin || !moedi_is_companion(name)) return MOED_OK;
    MOEDI_TRY(moedi_path_join(c, origin, name, &path));
    *along = moedi_path_exists(path);
    moedi_free(c, path);
    return MOED_OK;
}

/* Only a model may be replaced: a directory with anything else in it is somebody's, and stays. */
static moed_status check_replaceable(const moed_context *c, const moedi_saving *s)
{
    const char *dir = s->dir;
    char **names = NULL;
    size_t count = 0, config = 0;
    moed_status status = MOED_OK;

    if (!moedi_path_exists(dir)) return MOED_OK;
    if (!moedi_path_is_directory(dir))
        return moedi_fail_file(MOED_E_EXISTS, dir, -1,
                               "this is no directory (a file, or a link to nothing): a model is saved as a directory");
    MOEDI_TRY(moedi_directory_list(c, dir, &names, &count));
    for (size_t i = 0; i < count; i++) config += !strcmp(names[i], "config.json");
    for (size_t i = 0; i < count && status == MOED_OK; i++) {
        int along = 0;
        if (is_models_file(names[i])) continue;
        status = comes_along(c, names[i], s->origin, &along);
        if (status == MOED_OK && !along)
            status = moedi_fail_file(MOED_E_EXISTS, dir, -1,
                                     "the directory holds %s, which is no file of a saved model: it is not replaced", names[i]);
    }
    if (status == MOED_OK && count > 0 && !config)
        status = moedi_fail_file(MOED_E_EXISTS, dir, -1,
                                 "the directory holds files but no config.json, so no model: it is not replaced");
    for (size_t i = 0; i < count; i++) moedi_free(c, names[i]);
    moedi_free(c, names);
    return status;
}

static moed_status prepare_from_model(void *user, size_t param, int64_t first, int64_t count)
{
    moedi_model_ahead(user, param, first, count);
    return MOED_OK;
}

static moed_status produce_from_model(void *user, size_t param, int64_t first, int64_t count, void *out)
{
    return moedi_model_read(user, param, first, count, out);
}

moed_status moedi_model_save_from(const moed_context *c, const moed_layout *l, const moedi_saving *s, const moedi_producer *p,
                                  const moed_cancel *cancel)
{
    moedi_fresh_directory fresh = {0};
    moedi_saving inside = *s;
    moed_status status;

    MOEDI_TRY(check_replaceable(c, s));
    MOEDI_TRY(moedi_fresh_directory_begin(&fresh, c, s->dir));
    inside.dir = fresh.temporary;
    MOEDI_GO(write_from(c, l, &inside, p, cancel));
    MOEDI_GO(moedi_fresh_directory_commit(&fresh));
out:
    moedi_fresh_directory_abort(&fresh);
    return status;
}

moed_status moed_model_save(const moed_model *m, const char *dir, const moed_model_options *given)
{
    moed_model_options o;
    moedi_clear_error();
    MOEDI_REQUIRE(m, "the model is NULL");
    MOEDI_REQUIRE(dir && dir[0], "no directory is named");
    MOEDI_TRY(moedi_context_check(m->context));
    MOEDI_TRY(moedi_model_options_read(given, 0, &o));
    const moedi_producer p = {.prepare = prepare_from_model, .produce = produce_from_model, .user = (void *)(uintptr_t)m};
    const moedi_saving s = {.dir = dir, .dtype = o.dtype, .shard_bytes = o.shard_bytes, .origin = m->origin};
    return moedi_model_save_from(m->context, m->layout, &s, &p, NULL);
}
