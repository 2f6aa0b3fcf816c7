/* model/save.c - a model becomes a Hugging Face directory, whole or not at all. */
#include <string.h>

#include "core/cancel.h"
#include "core/options.h"
#include "model.h"

enum { CHUNK = 1 << 20 }; /* elements produced and written at a time */

/* What a layout without config.json has for one: enough to say what the directory is. */
static moed_status config_by_hand(const moed_context *c, const moed_layout *l, const char *path)
{
    char fingerprint[33];
    moedi_layout_fingerprint(l, fingerprint);
    json_t *o = json_pack("{s:{s:s,s:I,s:s}}", "moedisco", "layout", "by hand", "parameters", (json_int_t)l->count, "fingerprint", fingerprint);
    if (!o) return moedi_fail(MOED_E_MEMORY, "no memory for %s", path);
    const moed_status status = moedi_json_write(c, o, path);
    json_decref(o);
    return status;
}

static moed_status write_config(const moed_context *c, const moed_layout *l, const char *dir)
{
    char *path = NULL;
    MOEDI_TRY(moedi_path_join(c, dir, "config.json", &path));
    const moed_status status = l->family ? moedi_file_write(c, path, l->config_text, strlen(l->config_text)) : config_by_hand(c, l, path);
    moedi_free(c, path);
    return status;
}

typedef struct writing {
    const moed_context *context;
    const moed_layout *from, *to; /* the same parameters, to's dtypes in the file */
    moedi_produce_fn produce;
    void *user;
    const moed_cancel *cancel;
    char *made, *converted;       /* CHUNK elements each */
    moedi_safetensors_writer writer;
} writing;

static moed_status write_param(writing *w, size_t i)
{
    const moed_param *from = &w->from->params[i], *to = &w->to->params[i];
    const int64_t elements = moedi_param_elements(from);
    const size_t item = moedi_dtype_size(to->dtype);
    for (int64_t at = 0; at < elements; at += CHUNK) {
        const int64_t left = elements - at, count = left < CHUNK ? left : CHUNK;
        const void *bytes = w->made;
        MOEDI_TRY(moedi_cancel_check(w->cancel));
        MOEDI_TRY(w->produce(w->user, i, at, count, w->made));
        if (from->dtype != to->dtype) {
            moedi_convert(w->converted, to->dtype, w->made, from->dtype, count);
            bytes = w->converted;
        }
        MOEDI_TRY(moedi_safetensors_write(&w->writer, i, at * (int64_t)item, bytes, (size_t)count * item));
    }
    return MOED_OK;
}

static moed_status write_tensors(writing *w, const char *dir)
{
    const moed_context *c = w->context;
    moedi_safetensors_entry *entries = NULL;
    json_t *metadata = NULL;
    char *path = NULL;
    moed_status status;

    MOEDI_GO(MOEDI_NEW(c, w->to->count, &entries));
    for (size_t i = 0; i < w->to->count; i++) {
        const moed_param *p = &w->to->params[i];
        entries[i].name = p->name, entries[i].dtype = p->dtype, entries[i].rank = p->rank;
        memcpy(entries[i].shape, p->shape, sizeof p->shape);
    }
    if (!(metadata = json_pack("{s:s}", "format", "pt"))) { /* Transformers wants to know which framework's tensors these are */
        status = moedi_fail(MOED_E_MEMORY, "no memory for a file's metadata");
        goto out;
    }
    MOEDI_GO(moedi_path_join(c, dir, "model.safetensors", &path));
    MOEDI_GO(moedi_alloc(c, CHUNK * sizeof(double), (void **)&w->made));
    MOEDI_GO(moedi_alloc(c, CHUNK * sizeof(double), (void **)&w->converted));
    MOEDI_GO(moedi_safetensors_create(&w->writer, c, path, entries, w->to->count, metadata));
    for (size_t i = 0; i < w->to->count; i++) MOEDI_GO(write_param(w, i));
    MOEDI_GO(moedi_safetensors_commit(&w->writer));
out:
    moedi_safetensors_abort(&w->writer);
    moedi_free(c, w->made);
    moedi_free(c, w->converted);
    moedi_free(c, path);
    moedi_free(c, entries);
    json_decref(metadata);
    return status;
}

moed_status moedi_model_write(const moed_context *c, const moed_layout *l, const char *dir, moed_dtype dtype, moedi_produce_fn produce, void *user,
                              const moed_cancel *cancel)
{
    moed_layout *to = NULL;
    moed_status status;

    if (dtype == MOED_DTYPE_NONE)
        to = moedi_layout_retain(l);
    else
        MOEDI_TRY(moedi_layout_with_dtype(&to, l, dtype));
    writing w = {.context = c, .from = l, .to = to, .produce = produce, .user = user, .cancel = cancel};
    MOEDI_GO(write_config(c, to, dir));
    MOEDI_GO(write_tensors(&w, dir));
out:
    moed_layout_destroy(to);
    return status;
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

/* Only a model may be replaced: a directory with anything else in it is somebody's, and stays. */
static moed_status check_replaceable(const moed_context *c, const char *dir)
{
    char **names = NULL;
    size_t count = 0, config = 0;
    moed_status status = MOED_OK;

    if (!moedi_path_exists(dir)) return MOED_OK;
    if (!moedi_path_is_directory(dir)) return moedi_fail_file(MOED_E_EXISTS, dir, -1, "this is no directory (a file, or a link to nothing): a model is saved as a directory");
    MOEDI_TRY(moedi_directory_list(c, dir, &names, &count));
    for (size_t i = 0; i < count; i++) config += !strcmp(names[i], "config.json");
    for (size_t i = 0; i < count && status == MOED_OK; i++)
        if (!is_models_file(names[i]))
            status = moedi_fail_file(MOED_E_EXISTS, dir, -1,
                                     "the directory holds %s, which is no file of a saved model: it is not replaced", names[i]);
    if (status == MOED_OK && count > 0 && !config)
        status = moedi_fail_file(MOED_E_EXISTS, dir, -1, "the directory holds files but no config.json, so no model: it is not replaced");
    for (size_t i = 0; i < count; i++) moedi_free(c, names[i]);
    moedi_free(c, names);
    return status;
}

static moed_status produce_from_model(void *user, size_t param, int64_t first, int64_t count, void *out)
{
    return moedi_model_read(user, param, first, count, out);
}

moed_status moedi_model_save_at(const moed_context *c, const moed_layout *l, const char *dir, moed_dtype dtype, moedi_produce_fn produce, void *user,
                                const moed_cancel *cancel)
{
    moedi_fresh_directory fresh = {0};
    moed_status status;

    MOEDI_TRY(check_replaceable(c, dir));
    MOEDI_TRY(moedi_fresh_directory_begin(&fresh, c, dir));
    MOEDI_GO(moedi_model_write(c, l, fresh.temporary, dtype, produce, user, cancel));
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
    return moedi_model_save_at(m->context, m->layout, dir, o.dtype, produce_from_model, (void *)m, NULL);
}
