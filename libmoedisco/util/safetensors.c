/* util/safetensors.c - 8 bytes of header length, a JSON header, and the tensors' bytes without holes. */
#include "safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "dtype.h"

enum { LARGEST_HEADER = 100000000 }; /* what every implementation of the format allows */

/* ---- reading ---- */

static moed_status refuse(const char *path, const char *name, const char *says)
{
    moedi_fail_parameter(MOED_E_FORMAT, name, "%s: the tensor \"%.100s\" %s", path, name, says);
    return MOED_E_FORMAT;
}

static moed_status read_shape(moedi_safetensors_entry *e, const json_t *shape, const char *path)
{
    if (!json_is_array(shape)) return refuse(path, e->name, "has no shape");
    const size_t rank = json_array_size(shape);
    if (rank > MOED_RANK_MAX)
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, e->name,
                                    "%s: the tensor \"%.100s\" has %zu dimensions; at most %d are supported", path, e->name, rank,
                                    MOED_RANK_MAX);
    e->rank = (int32_t)rank;
    for (size_t i = 0; i < rank; i++) {
        const json_t *n = json_array_get(shape, i);
        if (!json_is_integer(n) || json_integer_value(n) < 0) return refuse(path, e->name, "has a size that is not a count");
        e->shape[i] = json_integer_value(n);
    }
    e->elements = moedi_shape_elements(e->shape, e->rank);
    if (e->elements < 0) return refuse(path, e->name, "has a shape whose product overflows");
    return MOED_OK;
}

/* A header entry to e; offsets relative to the data, `data` bytes long at most. */
static moed_status read_entry(moedi_safetensors_entry *e, const json_t *o, int64_t data, const char *path)
{
    if (!json_is_object(o)) return refuse(path, e->name, "is not described by an object");
    const json_t *type = json_object_get(o, "dtype"), *offsets = json_object_get(o, "data_offsets");
    if (!json_is_string(type)) return refuse(path, e->name, "has no dtype");
    e->dtype = moedi_dtype_parse(json_string_value(type));
    if (e->dtype == MOED_DTYPE_NONE)
        return moedi_fail_parameter(MOED_E_UNSUPPORTED, e->name, "%s: the tensor \"%.100s\" has the unknown dtype \"%.20s\"",
                                    path, e->name, json_string_value(type));
    MOEDI_TRY(read_shape(e, json_object_get(o, "shape"), path));
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 || !json_is_integer(json_array_get(offsets, 0)) ||
        !json_is_integer(json_array_get(offsets, 1)))
        return refuse(path, e->name, "has no pair of data_offsets");
    const int64_t begin = json_integer_value(json_array_get(offsets, 0)), end = json_integer_value(json_array_get(offsets, 1));
    if (begin < 0 || end < begin || end > data) return refuse(path, e->name, "has data_offsets outside the file");
    int64_t bits;
    if (__builtin_mul_overflow(e->elements, (int64_t)moed_dtype_bits(e->dtype), &bits))
        return refuse(path, e->name, "has a shape whose bytes overflow");
    if (bits % 8) return refuse(path, e->name, "ends inside a byte");
    if (bits / 8 != end - begin) return refuse(path, e->name, "has a shape that does not fill its data_offsets");
    e->offset = begin;
    e->bytes = end - begin;
    return MOED_OK;
}

static int by_offset(const void *a, const void *b)
{
    const moedi_safetensors_entry *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? -1 : 1; /* empty ones first */
    return strcmp(x->name, y->name);
}

static int by_name(const void *a, const void *b)
{
    const moedi_safetensors_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* With `cut` the data may end before the last tensors do. */
static moed_status check_tiling(const moedi_safetensors *s, int64_t data, int cut)
{
    int64_t at = 0;
    for (size_t i = 0; i < s->count; i++) { /* sorted by offset */
        if (s->entries[i].offset != at) return refuse(s->file.path, s->entries[i].name, "leaves a hole or overlaps another");
        at += s->entries[i].bytes;
    }
    if (cut ? at < data : at != data)
        return moedi_fail_file(MOED_E_FORMAT, s->file.path, -1, "has %lld bytes of data, but its tensors cover %lld",
                               (long long)data, (long long)at);
    return MOED_OK;
}

static moed_status read_metadata(moedi_safetensors *s, json_t *o)
{
    const char *key;
    json_t *value;
    if (!json_is_object(o)) return moedi_fail_file(MOED_E_FORMAT, s->file.path, -1, "has __metadata__ that is not an object");
    json_object_foreach(o, key, value) if (!json_is_string(value))
        return moedi_fail_file(MOED_E_FORMAT, s->file.path, -1, "has __metadata__ \"%.100s\" that is not text", key);
    s->metadata = json_incref(o);
    return MOED_OK;
}

static moed_status read_entries(moedi_safetensors *s, const moed_context *c, json_t *header, int64_t data_start, int cut)
{
    const char *key;
    json_t *value;
    const int64_t data = s->file.size - data_start;
    MOEDI_TRY(MOEDI_NEW(c, json_object_size(header), &s->entries));
    json_object_foreach(header, key, value)
    {
        if (!strcmp(key, "__metadata__")) {
            MOEDI_TRY(read_metadata(s, value));
            continue;
        }
        moedi_safetensors_entry *e = &s->entries[s->count];
        char *name;
        MOEDI_TRY(moedi_strdup(c, key, &name));
        e->name = name;
        s->count++; /* counted at once, so that close frees it */
        MOEDI_TRY(read_entry(e, value, cut ? INT64_MAX - data_start : data, s->file.path));
    }
    qsort(s->entries, s->count, sizeof *s->entries, by_offset);
    MOEDI_TRY(check_tiling(s, data, cut));
    for (size_t i = 0; i < s->count; i++) s->entries[i].offset += data_start;
    qsort(s->entries, s->count, sizeof *s->entries, by_name);
    return MOED_OK;
}

static moed_status open_file(moedi_safetensors *out, const moed_context *c, const char *path, int cut)
{
    moedi_safetensors s = {0};
    unsigned char prefix[8];
    uint64_t length = 0;
    void *text = NULL;
    json_t *header = NULL;
    moed_status status;
    MOEDI_GO(moedi_file_open(&s.file, c, path));
    if (s.file.size < 8) {
        status = moedi_fail_file(MOED_E_FORMAT, path, -1, "has %lld bytes: too small for a safetensors header",
                                 (long long)s.file.size);
        goto out;
    }
    MOEDI_GO(moedi_file_read(&s.file, 0, prefix, sizeof prefix));
    for (int i = 7; i >= 0; i--) length = length << 8 | prefix[i];
    if (length > LARGEST_HEADER) {
        status = moedi_fail_file(MOED_E_FORMAT, path, 0, "says its header has %llu bytes; the format allows %d",
                                 (unsigned long long)length, LARGEST_HEADER);
        goto out;
    }
    if ((int64_t)length > s.file.size - 8) {
        status = moedi_fail_file(MOED_E_FORMAT, path, 0, "says its header has %llu bytes, but only %lld follow",
                                 (unsigned long long)length, (long long)(s.file.size - 8));
        goto out;
    }
    MOEDI_GO(moedi_alloc(c, (size_t)length, &text));
    MOEDI_GO(moedi_file_read(&s.file, 8, text, (size_t)length));
    MOEDI_GO(moedi_json_parse(&header, text, (size_t)length, path));
    moedi_free(c, text);
    text = NULL;
    status = read_entries(&s, c, header, 8 + (int64_t)length, cut);
out:
    moedi_free(c, text);
    json_decref(header);
    if (status != MOED_OK)
        moedi_safetensors_close(&s);
    else
        *out = s;
    return status;
}

moed_status moedi_safetensors_open(moedi_safetensors *out, const moed_context *c, const char *path)
{
    return open_file(out, c, path, 0);
}

moed_status moedi_safetensors_open_cut(moedi_safetensors *out, const moed_context *c, const char *path)
{
    return open_file(out, c, path, 1);
}

void moedi_safetensors_close(moedi_safetensors *s)
{
    const moed_context *c = s->file.context;
    for (size_t i = 0; i < s->count; i++) moedi_free(c, (void *)(uintptr_t)s->entries[i].name);
    if (s->entries) moedi_free(c, s->entries);
    json_decref(s->metadata);
    moedi_file_close(&s->file);
    memset(s, 0, sizeof *s);
}

const moedi_safetensors_entry *moedi_safetensors_find(const moedi_safetensors *s, const char *name)
{
    const moedi_safetensors_entry key = {.name = name};
    return s->count ? bsearch(&key, s->entries, s->count, sizeof *s->entries, by_name) : NULL;
}

moed_status moedi_safetensors_read(const moedi_safetensors *s, const moedi_safetensors_entry *e, int64_t first_byte, void *out,
                                   size_t bytes)
{
    if (first_byte < 0 || first_byte > e->bytes || (int64_t)bytes > e->bytes - first_byte)
        return moedi_fail(MOED_E_INTERNAL, "%zu bytes from %lld on lie outside the tensor \"%.100s\"", bytes,
                          (long long)first_byte, e->name);
    return moedi_file_read(&s->file, e->offset + first_byte, out, bytes);
}

/* ---- writing ---- */

/* The header object; offsets are filled into w's entries relative to the data. */
static moed_status describe(moedi_safetensors_writer *w, const json_t *metadata, json_t **out)
{
    json_t *header = json_object();
    int64_t at = 0;
    int ok = header != NULL;
    /* a deep copy may lose fields unseen */
    if (metadata) ok = ok && json_object_set(header, "__metadata__", (json_t *)(uintptr_t)metadata) == 0;
    for (size_t i = 0; ok && i < w->count; i++) {
        moedi_safetensors_entry *e = &w->entries[i];
        const int64_t elements = moedi_shape_elements(e->shape, e->rank);
        int64_t bits;
        if (elements < 0 || !moed_dtype_bits(e->dtype) ||
            __builtin_mul_overflow(elements, (int64_t)moed_dtype_bits(e->dtype), &bits) || bits % 8 ||
            __builtin_add_overflow(at, bits / 8, &(int64_t){0})) {
            json_decref(header);
            return moedi_fail(MOED_E_INTERNAL, "the tensor \"%.100s\" cannot be written: its shape or dtype is wrong", e->name);
        }
        e->elements = elements;
        e->offset = at;
        e->bytes = bits / 8;
        at += e->bytes;
        json_t *shape = json_array(), *offsets = json_array(), *o = json_object(); /* json_pack forgets what it was given when
                                                                                      memory is short */
        for (int32_t d = 0; d < e->rank; d++) ok &= json_array_append_new(shape, json_integer(e->shape[d])) == 0;
        ok &= json_array_append_new(offsets, json_integer(e->offset)) == 0 &&
              json_array_append_new(offsets, json_integer(at)) == 0;
        ok &= json_object_set_new(o, "dtype", json_string(moed_dtype_name(e->dtype))) == 0;
        ok &= json_object_set_new(o, "shape", shape) == 0;
        ok &= json_object_set_new(o, "data_offsets", offsets) == 0;
        if (!ok || json_object_get(header, e->name)) {
            json_decref(o);
            ok = 0;
            break;
        }
        ok = json_object_set_new(header, e->name, o) == 0;
    }
    if (!ok) {
        json_decref(header);
        return moedi_fail(MOED_E_MEMORY, "no memory for the header of %zu tensors, or a name that stands twice", w->count);
    }
    *out = header;
    return MOED_OK;
}

moed_status moedi_safetensors_create(moedi_safetensors_writer *out, const moed_context *c, const char *path,
                                     const moedi_safetensors_entry *entries, size_t count, const json_t *metadata)
{
    moedi_safetensors_writer w = {.count = count};
    json_t *header = NULL;
    char *text = NULL;
    moed_status status;
    MOEDI_GO(moedi_writer_open(&w.writer, c, path));
    MOEDI_GO(MOEDI_NEW(c, count, &w.entries));
    for (size_t i = 0; i < count; i++) w.entries[i] = entries[i];
    MOEDI_GO(describe(&w, metadata, &header));
    size_t size = 0;
    MOEDI_GO(moedi_json_dump(c, header, JSON_COMPACT, &text, &size));
    const size_t padded = (size + 7) / 8 * 8; /* so that data is aligned to 8 bytes */
    unsigned char prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (unsigned char)((uint64_t)padded >> 8 * i);
    MOEDI_GO(moedi_writer_write(&w.writer, prefix, 8));
    MOEDI_GO(moedi_writer_write(&w.writer, text, size));
    MOEDI_GO(moedi_writer_write(&w.writer, "       ", padded - size));
    for (size_t i = 0; i < count; i++) w.entries[i].offset += 8 + (int64_t)padded;
out:
    moedi_free(c, text);
    json_decref(header);
    if (status != MOED_OK)
        moedi_safetensors_abort(&w);
    else
        *out = w;
    return status;
}

moed_status moedi_safetensors_write(moedi_safetensors_writer *w, size_t entry, int64_t first_byte, const void *data, size_t bytes)
{
    const moedi_safetensors_entry *e = &w->entries[entry];
    if (entry >= w->count || first_byte < 0 || first_byte > e->bytes || (int64_t)bytes > e->bytes - first_byte)
        return moedi_fail(MOED_E_INTERNAL, "%zu bytes from %lld on lie outside tensor %zu", bytes, (long long)first_byte, entry);
    const int64_t at = e->offset + first_byte;
    if (at != w->writer.written) MOEDI_TRY(moedi_writer_seek(&w->writer, at));
    w->writer.written = at; /* here: the position; write advances it */
    return moedi_writer_write(&w->writer, data, bytes);
}

moed_status moedi_safetensors_commit(moedi_safetensors_writer *w)
{
    const moed_context *c = w->writer.context;
    moedi_free(c, w->entries);
    w->entries = NULL;
    return moedi_writer_commit(&w->writer);
}

void moedi_safetensors_abort(moedi_safetensors_writer *w)
{
    if (!w->writer.path) return;
    moedi_free(w->writer.context, w->entries);
    w->entries = NULL;
    moedi_writer_abort(&w->writer);
}
