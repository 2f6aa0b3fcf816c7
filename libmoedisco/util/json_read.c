/* util/json_read.c - JSON text becomes jansson's values. jansson's own reader ends the process, or loses characters unseen, when
 * a buffer of it cannot grow. */
#include "json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"
#include "surroundings.h"

/* A string that ends with a zero. Its memory comes from where that of jansson's values does. */
typedef struct copy {
    char *text;
    size_t room;
} copy;

typedef struct reader {
    moedi_json_scan scan;
    const char *text, *path;
    size_t size;
    copy name, string;              /* name: of the next value in an object */
    json_t *root;                   /* owns everything that was read */
    json_t *open[MOEDI_JSON_DEPTH]; /* objects and lists that have not ended */
} reader;

static moed_status no_memory(const reader *r)
{
    return moedi_fail(MOED_E_MEMORY, "%s: no memory to parse %zu bytes of JSON", r->path, r->size);
}

static moed_status is_wrong(const reader *r, const char *at, const char *why)
{
    return moedi_fail_file(MOED_E_FORMAT, r->path, at - r->text, "is not JSON: %s", why);
}

static void drop_copy(copy *c)
{
    json_malloc_t give;
    json_free_t take_back;
    json_get_alloc_funcs(&give, &take_back);
    if (c->text) take_back(c->text);
    *c = (copy){0};
}

/* Room doubles, so that all strings together cost no more than the longest one. */
static moed_status copy_string(const reader *r, copy *c, size_t *size)
{
    const moedi_json_string *s = &r->scan.string;
    const size_t needed = (size_t)s->size + 1, doubled = 2 * c->room;
    if (needed > c->room) {
        json_malloc_t give;
        json_free_t take_back;
        json_get_alloc_funcs(&give, &take_back);
        drop_copy(c);
        const size_t room = needed > doubled ? needed : doubled;
        c->text = give(room);
        if (!c->text) return no_memory(r);
        c->room = room;
    }
    memcpy(c->text, s->text, (size_t)s->size);
    *size = s->escaped ? (size_t)moedi_json_unescape(c->text, s->size) : (size_t)s->size;
    c->text[*size] = 0;
    return MOED_OK;
}

/* Where the value belongs that lies so deep. NULL: there was no memory for it. */
static moed_status put(reader *r, int depth, json_t *value)
{
    int failed = 0;
    if (!value) return no_memory(r);
    if (depth == 0) r->root = value;
    else if (json_is_array(r->open[depth - 1])) failed = json_array_append_new(r->open[depth - 1], value);
    else failed = json_object_set_new_nocheck(r->open[depth - 1], r->name.text, value);
    return failed ? no_memory(r) : MOED_OK;
}

static moed_status put_opened(reader *r, json_t *value)
{
    const int depth = r->scan.depth - 1;
    r->open[depth] = value;
    return put(r, depth, value);
}

/* Compared after unescaping. */
static moed_status take_name(reader *r)
{
    size_t size;
    MOEDI_TRY(copy_string(r, &r->name, &size));
    if (!json_object_get(r->open[r->scan.depth - 1], r->name.text)) return MOED_OK;
    return is_wrong(r, r->scan.string.text - 1, "an object has this name twice");
}

static moed_status put_string(reader *r)
{
    size_t size;
    if (!r->scan.string.escaped)
        return put(r, r->scan.depth, json_stringn_nocheck(r->scan.string.text, (size_t)r->scan.string.size));
    MOEDI_TRY(copy_string(r, &r->string, &size));
    return put(r, r->scan.depth, json_stringn_nocheck(r->string.text, size));
}

/* Downward, because the least one has no opposite. */
static moed_status put_integer(reader *r)
{
    const moedi_json_string *digits = &r->scan.string;
    const int minus = *digits->text == '-';
    int64_t n = 0;
    int beyond = 0;
    for (int64_t i = minus; i < digits->size && !beyond; i++)
        beyond = __builtin_mul_overflow(n, (int64_t)10, &n) || __builtin_sub_overflow(n, (int64_t)(digits->text[i] - '0'), &n);
    if (!beyond && !minus) beyond = __builtin_sub_overflow((int64_t)0, n, &n);
    if (beyond) return is_wrong(r, digits->text, "an integer does not fit in 64 bits");
    return put(r, r->scan.depth, json_integer(n));
}

static moed_status put_real(reader *r)
{
    size_t size;
    MOEDI_TRY(copy_string(r, &r->string, &size));
    const double x = strtod(r->string.text, NULL);
    if (!isfinite(x)) return is_wrong(r, r->scan.string.text, "a number is too large");
    return put(r, r->scan.depth, json_real(x));
}

static moed_status take_part(reader *r, moedi_json_part part)
{
    switch (part) {
    case MOEDI_JSON_WRONG: return is_wrong(r, r->scan.at, r->scan.wrong);
    case MOEDI_JSON_OBJECT: return put_opened(r, json_object());
    case MOEDI_JSON_LIST: return put_opened(r, json_array());
    case MOEDI_JSON_NAME: return take_name(r);
    case MOEDI_JSON_STRING: return put_string(r);
    case MOEDI_JSON_INTEGER: return put_integer(r);
    case MOEDI_JSON_REAL: return put_real(r);
    case MOEDI_JSON_TRUE: return put(r, r->scan.depth, json_true());
    case MOEDI_JSON_FALSE: return put(r, r->scan.depth, json_false());
    case MOEDI_JSON_NULL: return put(r, r->scan.depth, json_null());
    case MOEDI_JSON_CLOSE:
    case MOEDI_JSON_END: break;
    }
    return MOED_OK;
}

moed_status moedi_json_parse(json_t **out, const char *text, size_t size, const char *path)
{
    reader r = {.text = text, .path = path, .size = size};
    const moedi_surroundings before = moedi_surroundings_enter();
    moed_status status = MOED_OK;
    moedi_json_begin(&r.scan, text, (int64_t)size);
    for (moedi_json_part part = MOEDI_JSON_NULL; part != MOEDI_JSON_END && status == MOED_OK;) {
        part = moedi_json_next(&r.scan);
        status = take_part(&r, part);
    }
    moedi_surroundings_leave(&before);
    drop_copy(&r.name);
    drop_copy(&r.string);
    if (status == MOED_OK && !json_is_object(r.root))
        status = moedi_fail_file(MOED_E_FORMAT, path, -1, "is JSON, but not an object");
    if (status == MOED_OK) *out = r.root;
    else json_decref(r.root);
    return status;
}
