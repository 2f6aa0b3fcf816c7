/* model/open.c - a Hugging Face directory becomes a model: config.json, one safetensors file or an index and its shards. */
#include "model.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/options.h"
#include "storage.h"

static const char SINGLE[] = "model.safetensors", INDEX[] = "model.safetensors.index.json";

typedef struct opening {
    moed_context *context;
    const moed_layout *layout;
    const char *dir;
    moedi_safetensors *files;
    char **paths;               /* (file_count), for errors */
    size_t file_count;
    struct moedi_place *places; /* (layout's count) */
    struct moedi_place head;    /* of a tied model whose file carries the head too */
    int stacked;                /* experts lie in stacks */
    moedi_faults *faults;       /* NULL: the first fault ends it */
} opening;

/* A fault of the directory: the end, or one more that is told. What is no fault of what was read ends it in any case. */
static moed_status found(opening *o, int32_t kind, const char *file, const char *tensor, moed_status status)
{
    if (!o->faults || (status != MOED_E_FORMAT && status != MOED_E_MISMATCH && status != MOED_E_NOT_FOUND &&
                       status != MOED_E_UNSUPPORTED))
        return status;
    return moedi_faults_tell(o->faults, kind, file, tensor, 0);
}

static void opening_close(opening *o)
{
    for (size_t i = 0; o->files && i < o->file_count; i++) moedi_safetensors_close(&o->files[i]);
    for (size_t i = 0; o->paths && i < o->file_count; i++) moedi_free(o->context, o->paths[i]);
    moedi_free(o->context, o->files);
    moedi_free(o->context, o->paths);
    moedi_free(o->context, o->places);
}

/* ---- which files ---- */

static int is_cut(const moedi_safetensors *s, const moedi_safetensors_entry *e)
{
    return e->offset > s->file.size - e->bytes;
}

/* The tensors of a file that ends early, where that is told. */
static moed_status tell_cut(opening *o, const moedi_safetensors *s)
{
    for (size_t k = 0; k < s->count; k++) {
        const moedi_safetensors_entry *e = &s->entries[k];
        if (!is_cut(s, e)) continue;
        const int64_t there = s->file.size > e->offset ? s->file.size - e->offset : 0;
        MOEDI_TRY(found(o, MOED_FINDING_CUT, s->file.path, e->name,
                        moedi_fail_file(MOED_E_FORMAT, s->file.path, e->offset,
                                        "tensor %s is cut off: of its %lld bytes %lld are there", e->name,
                                        (long long)e->bytes, (long long)there)));
    }
    return MOED_OK;
}

static moed_status open_file(opening *o, const char *name)
{
    char *path = NULL;
    MOEDI_TRY(moedi_path_join(o->context, o->dir, name, &path));
    moedi_safetensors *s = &o->files[o->file_count];
    const moed_status status =
        o->faults ? moedi_safetensors_open_cut(s, o->context, path) : moedi_safetensors_open(s, o->context, path);
    if (status == MOED_OK) {
        o->paths[o->file_count++] = path;
        return tell_cut(o, s);
    }
    const moed_status after = found(o, MOED_FINDING_FILE, path, NULL, status);
    moedi_free(o->context, path);
    return after;
}

static moed_status room_for_files(opening *o, size_t count)
{
    MOEDI_TRY(MOEDI_NEW(o->context, count, &o->files));
    return MOEDI_NEW(o->context, count, &o->paths);
}

/* A shard lies beside its index: names that lead elsewhere are refused. */
static moed_status check_shard_name(const char *index, const char *tensor, const json_t *value)
{
    const char *name = json_string_value(value);
    if (!name) return moedi_fail_file(MOED_E_FORMAT, index, -1, "weight_map: the file of tensor %s is not a text", tensor);
    if (!name[0] || strchr(name, '/') || strchr(name, '\\') || name[0] == '.' || strlen(name) != json_string_length(value))
        return moedi_fail_file(MOED_E_FORMAT, index, -1, "weight_map: tensor %s lies in \"%.128s\", which is no plain file name",
                               tensor, name);
    return MOED_OK;
}

/* Opens every shard that weight_map names, and checks that map and shards say the same. */
static moed_status open_shards(opening *o, const char *index, const json_t *map)
{
    json_t *seen = json_object(); /* file name -> number */
    moed_status status = seen ? MOED_OK : moedi_fail(MOED_E_MEMORY, "no memory to read %s", index);
    const char *tensor, *name;
    json_t *value;

    if (status != MOED_OK) return status;
    json_object_foreach((json_t *)map, tensor, value) {
        if ((status = check_shard_name(index, tensor, value)) != MOED_OK) {
            MOEDI_GO(found(o, MOED_FINDING_INDEX, index, tensor, status));
            continue;
        }
        if (json_object_get(seen, json_string_value(value))) continue;
        if (json_object_set_new(seen, json_string_value(value), json_integer((json_int_t)json_object_size(seen))) != 0) {
            status = moedi_fail(MOED_E_MEMORY, "no memory to read %s", index);
            goto out;
        }
    }
    if (json_object_size(seen) == 0) {
        status = found(o, MOED_FINDING_INDEX, index, NULL,
                       moedi_fail_file(MOED_E_FORMAT, index, -1, "weight_map names no tensor"));
        goto out;
    }
    MOEDI_GO(room_for_files(o, json_object_size(seen)));
    json_object_foreach(seen, name, value) MOEDI_GO(open_file(o, name));
    json_object_foreach((json_t *)map, tensor, value) {
        name = json_string_value(value);
        for (size_t i = 0; name && i < o->file_count; i++) {
            const char *base = strrchr(o->paths[i], '/');
            if (strcmp(base ? base + 1 : o->paths[i], name) != 0 || moedi_safetensors_find(&o->files[i], tensor)) continue;
            MOEDI_GO(found(o, MOED_FINDING_INDEX, o->paths[i], tensor,
                           moedi_fail_file(MOED_E_MISMATCH, o->paths[i], -1, "tensor %s is not there, though %s says so", tensor,
                                           INDEX)));
        }
    }
    for (size_t i = 0; i < o->file_count; i++)
        for (size_t k = 0; k < o->files[i].count; k++) {
            const char *base = strrchr(o->paths[i], '/');
            const char *at = json_string_value(json_object_get(map, o->files[i].entries[k].name));
            if (at && !strcmp(at, base ? base + 1 : o->paths[i])) continue;
            MOEDI_GO(found(o, MOED_FINDING_INDEX, o->paths[i], o->files[i].entries[k].name,
                           moedi_fail_file(MOED_E_MISMATCH, o->paths[i], -1, "tensor %s is not one that %s places here",
                                           o->files[i].entries[k].name, INDEX)));
        }
out:
    json_decref(seen);
    return status;
}

static moed_status open_files(opening *o)
{
    char *single = NULL, *index = NULL;
    json_t *root = NULL;
    moed_status status;

    MOEDI_GO(moedi_path_join(o->context, o->dir, SINGLE, &single));
    MOEDI_GO(moedi_path_join(o->context, o->dir, INDEX, &index));
    if (moedi_path_exists(single)) {
        MOEDI_GO(room_for_files(o, 1));
        MOEDI_GO(open_file(o, SINGLE));
    } else if (moedi_path_exists(index)) {
        if ((status = moedi_json_open(&root, o->context, index)) != MOED_OK) {
            status = found(o, MOED_FINDING_INDEX, index, NULL, status);
            goto out;
        }
        const json_t *map = json_object_get(root, "weight_map");
        status = json_is_object(map) ? open_shards(o, index, map)
                                     : found(o, MOED_FINDING_INDEX, index, NULL,
                                             moedi_fail_file(MOED_E_FORMAT, index, -1, "there is no object weight_map"));
    } else {
        status = found(o, MOED_FINDING_FILE, o->dir, NULL,
                       moedi_fail_file(MOED_E_NOT_FOUND, o->dir, -1, "there is neither %s nor %s", SINGLE, INDEX));
    }
out:
    json_decref(root);
    moedi_free(o->context, single);
    moedi_free(o->context, index);
    return status;
}

/* ---- which tensors ---- */

static moed_status check_entry(const moed_param *p, const moedi_safetensors_entry *e, const char *path)
{
    char have[160] = "", want[160] = "";
    int same = e->rank == p->rank;
    for (int32_t r = 0; r < e->rank; r++) {
        if (same && e->shape[r] != p->shape[r]) same = 0;
        snprintf(have + strlen(have), sizeof have - strlen(have), "%s%lld", r ? ", " : "", (long long)e->shape[r]);
    }
    for (int32_t r = 0; r < p->rank; r++)
        snprintf(want + strlen(want), sizeof want - strlen(want), "%s%lld", r ? ", " : "", (long long)p->shape[r]);
    if (!same)
        return moedi_fail_file(MOED_E_MISMATCH, path, -1, "tensor %s has shape (%s), and the model's is (%s)", p->name, have,
                               want);
    if (moedi_dtype_is_float(p->dtype) ? !moedi_dtype_is_float(e->dtype) : e->dtype != p->dtype)
        return moedi_fail_file(MOED_E_MISMATCH, path, -1, "tensor %s has dtype %s, and the model needs %s", p->name,
                               moed_dtype_name(e->dtype),
                               moedi_dtype_is_float(p->dtype) ? "F32, F16, BF16 or F64" : moed_dtype_name(p->dtype));
    return MOED_OK;
}

static int is_tied_head(const moed_layout *l, const char *name)
{
    return l->family && l->config.tied && !strcmp(name, l->family->slots[MOEDI_SLOT_HEAD]);
}

enum { UNFIT = -1 }; /* in the place of a file: the tensor is there, and cannot be the parameter */

/* The parameters that a tensor holds lie there one after another. */
static void place_parameters(opening *o, const moedi_stored *s, int32_t file, const moedi_safetensors_entry *e)
{
    int64_t at = 0;
    o->stacked |= s->stacked;
    for (size_t i = s->first; i < s->first + s->count; i++) {
        o->places[i] = (struct moedi_place){file, e, at};
        at += moedi_param_elements(&o->layout->params[i]);
    }
}

static moed_status place_tensors(opening *o)
{
    const moed_layout *l = o->layout;
    MOEDI_TRY(MOEDI_NEW(o->context, l->count, &o->places));
    for (size_t i = 0; i < o->file_count; i++)
        for (size_t k = 0; k < o->files[i].count; k++) {
            const moedi_safetensors_entry *e = &o->files[i].entries[k];
            const int tied = is_tied_head(l, e->name);
            moedi_stored held;
            if (moedi_storage_ignores(l, e->name)) continue;
            if (!moedi_storage_find(l, tied ? l->family->slots[MOEDI_SLOT_EMBEDDING] : e->name, &held)) {
                MOEDI_TRY(found(o, MOED_FINDING_EXTRA, o->paths[i], e->name,
                                moedi_fail_file(MOED_E_MISMATCH, o->paths[i], -1,
                                                "tensor %s is no parameter of the model that config.json describes%s", e->name,
                                                moedi_storage_advice(e->name))));
                continue;
            }
            const moed_status status = check_entry(&held.tensor, e, o->paths[i]);
            const int32_t file = status == MOED_OK ? (int32_t)i : UNFIT;
            if (tied) o->head = (struct moedi_place){file, status == MOED_OK ? e : NULL, 0};
            else place_parameters(o, &held, file, status == MOED_OK ? e : NULL);
            if (status != MOED_OK) MOEDI_TRY(found(o, MOED_FINDING_SHAPE, o->paths[i], e->name, status));
        }
    for (size_t i = 0; i < l->count; i++) {
        if (o->places[i].entry || o->places[i].file == UNFIT) continue;
        const int stack = o->stacked && l->params[i].role == MOED_ROLE_EXPERT;
        MOEDI_TRY(found(o, MOED_FINDING_MISSING, o->dir, l->params[i].name,
                        moedi_fail_file(MOED_E_MISMATCH, o->dir, -1, "tensor %s is missing%s", l->params[i].name,
                                        stack ? ", and a stack that would hold it" : "")));
    }
    return MOED_OK;
}

enum { CHUNK = 1 << 18 }; /* elements read at a time where they are converted or compared */

/* A tied model's head, when stored, must be the embedding: otherwise config.json and tensors describe two models. */
static moed_status check_tied_head(opening *o)
{
    if (!o->head.entry) return MOED_OK;
    const struct moedi_place *both[2] = {&o->head, &o->places[moedi_layout_slot(o->layout, MOEDI_SLOT_EMBEDDING, -1, -1)]};
    for (int i = 0; i < 2; i++)
        if (!both[i]->entry || is_cut(&o->files[both[i]->file], both[i]->entry)) return MOED_OK; /* that was told */
    char *raw = NULL;
    double *numbers[2] = {NULL, NULL};
    moed_status status;

    MOEDI_GO(moedi_alloc(o->context, CHUNK * sizeof(double), (void **)&raw));
    for (int i = 0; i < 2; i++) MOEDI_GO(moedi_alloc(o->context, CHUNK * sizeof(double), (void **)&numbers[i]));
    for (int64_t at = 0; at < o->head.entry->elements; at += CHUNK) {
        const int64_t left = o->head.entry->elements - at, count = left < CHUNK ? left : CHUNK;
        for (int i = 0; i < 2; i++) {
            const moedi_safetensors_entry *e = both[i]->entry;
            const size_t item = moedi_dtype_size(e->dtype);
            MOEDI_GO(moedi_safetensors_read(&o->files[both[i]->file], e, at * (int64_t)item, raw, (size_t)count * item));
            moedi_to_double(numbers[i], raw, e->dtype, count);
        }
        if (memcmp(numbers[0], numbers[1], (size_t)count * sizeof(double)) != 0) {
            status = found(o, MOED_FINDING_TIED, o->paths[o->head.file], o->head.entry->name,
                           moedi_fail_file(MOED_E_MISMATCH, o->paths[o->head.file], -1,
                                           "tensor %s is not the embedding, though config.json ties them", o->head.entry->name));
            goto out;
        }
    }
out:
    moedi_free(o->context, raw);
    moedi_free(o->context, numbers[0]);
    moedi_free(o->context, numbers[1]);
    return status;
}

/* ---- numbers ---- */

typedef struct loading {
    const opening *o;
    moed_model *model;
} loading;

static moed_status load_tensor(void *argument, int64_t index)
{
    const loading *w = argument;
    const struct moedi_place *place = &w->o->places[index];
    const moedi_safetensors_entry *e = place->entry;
    const moed_tensor *t = &w->model->tensors[index];
    const moedi_safetensors *file = &w->o->files[place->file];
    const int64_t elements = moedi_param_elements(&w->model->layout->params[index]);
    const size_t from = moedi_dtype_size(e->dtype), to = moedi_dtype_size(t->dtype);
    char *chunk = NULL;
    moed_status status = MOED_OK;

    if (e->dtype == t->dtype) return moedi_safetensors_read(file, e, place->at * (int64_t)from, t->data, (size_t)elements * from);
    MOEDI_TRY(moedi_alloc(w->o->context, CHUNK * from, (void **)&chunk));
    for (int64_t at = 0; at < elements && status == MOED_OK; at += CHUNK) {
        const int64_t left = elements - at, count = left < CHUNK ? left : CHUNK;
        status = moedi_safetensors_read(file, e, (place->at + at) * (int64_t)from, chunk, (size_t)count * from);
        if (status == MOED_OK) moedi_convert((char *)t->data + (size_t)at * to, t->dtype, chunk, e->dtype, count);
    }
    moedi_free(w->o->context, chunk);
    return status;
}

static moed_status load_resident(moed_model **out, opening *o)
{
    moed_layout *layout = NULL;
    moed_model *m = NULL;
    moed_status status;

    MOEDI_GO(moedi_layout_with_dtype(&layout, o->layout, o->context->backend_info.wide));
    layout->stacked = o->stacked;
    MOEDI_GO(moedi_model_create(&m, o->context, layout));
    loading w = {o, m};
    MOEDI_GO(moedi_parallel_try(o->context, (int64_t)layout->count, load_tensor, &w));
    *out = m;
    m = NULL;
out:
    moed_model_destroy(m);
    moed_layout_destroy(layout);
    return status;
}

/* The model takes the open files over. A parameter that has no tensor keeps the layout's dtype. */
static moed_status leave_on_disk(moed_model **out, opening *o)
{
    moed_layout *layout = NULL;
    moed_dtype *dtypes = NULL;
    moed_model *m = NULL;
    moed_status status;

    MOEDI_GO(MOEDI_NEW(o->context, o->layout->count, &dtypes));
    for (size_t i = 0; i < o->layout->count; i++)
        dtypes[i] = o->places[i].entry ? o->places[i].entry->dtype : o->layout->params[i].dtype;
    MOEDI_GO(moedi_layout_with_dtypes(&layout, o->layout, dtypes));
    layout->stacked = o->stacked;
    MOEDI_GO(moedi_model_shell(&m, o->context, layout));
    m->files = o->files, m->file_count = o->file_count, m->places = o->places;
    o->files = NULL, o->places = NULL;
    *out = m;
out:
    moedi_free(o->context, dtypes);
    moed_layout_destroy(layout);
    return status;
}

/* Where its tokenizer and the like are found when the model is written again. */
static moed_status remember_origin(moed_model *m, const char *dir)
{
    char absolute[PATH_MAX];
    return realpath(dir, absolute) ? moedi_strdup(m->context, absolute, &m->origin) : MOED_OK;
}

static moed_status open_all(moed_model **out, moed_context *c, const moed_layout *l, const char *dir, int stream,
                            moedi_faults *faults)
{
    opening o = {.context = c, .layout = l, .dir = dir, .faults = faults};
    moed_model *m = NULL;
    moed_status status;

    MOEDI_GO(open_files(&o));
    MOEDI_GO(place_tensors(&o));
    MOEDI_GO(check_tied_head(&o));
    MOEDI_GO(stream ? leave_on_disk(&m, &o) : load_resident(&m, &o));
    MOEDI_GO(remember_origin(m, dir));
    *out = m;
    m = NULL;
out:
    moed_model_destroy(m);
    opening_close(&o);
    return status;
}

moed_status moedi_model_open_as(moed_model **out, moed_context *c, const moed_layout *l, const char *dir, int stream)
{
    return open_all(out, c, l, dir, stream, NULL);
}

moed_status moedi_model_open_faulty(moed_model **out, moed_context *c, const moed_layout *l, const char *dir,
                                    moedi_faults *faults)
{
    return open_all(out, c, l, dir, 1, faults);
}

moed_status moedi_model_layout_of(moed_layout **out, moed_context *c, const char *dir)
{
    char *path = NULL;
    json_t *config = NULL;
    moed_status status;

    if (!moedi_path_exists(dir)) return moedi_fail_file(MOED_E_NOT_FOUND, dir, -1, "there is no such directory");
    if (!moedi_path_is_directory(dir))
        return moedi_fail_file(MOED_E_FORMAT, dir, -1, "is a file; a model is a directory with config.json and its tensors");
    MOEDI_GO(moedi_path_join(c, dir, "config.json", &path));
    MOEDI_GO(moedi_json_open(&config, c, path));
    MOEDI_GO(moedi_layout_from_json(out, c, config, path));
out:
    moedi_free(c, path);
    json_decref(config);
    return status;
}

moed_status moed_model_open(moed_model **out, moed_context *c, const char *dir, const moed_model_options *given)
{
    moed_model_options options;
    moed_layout *layout = NULL;

    moedi_clear_error();
    MOEDI_REQUIRE(out, "out is NULL");
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(dir && dir[0], "no directory is named");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_model_options_read(given, MOED_MODEL_STREAM, &options));
    MOEDI_TRY(moedi_model_layout_of(&layout, c, dir));
    const moed_status status = moedi_model_open_as(out, c, layout, dir, (options.flags & MOED_MODEL_STREAM) != 0);
    moed_layout_destroy(layout);
    return status;
}
