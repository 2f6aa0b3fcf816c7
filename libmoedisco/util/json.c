/* util/json.c - fields of JSON objects, read with their type and range checked; objects printed. */
#include "json.h"

#include <string.h>

#include "file.h"
#include "surroundings.h"

enum { LARGEST_FILE = 100 << 20 };

typedef struct line {
    char *out;
    size_t room, used;
} line;

static int take_part(const char *part, size_t size, void *user)
{
    line *l = user;
    if (l->used < l->room) memcpy(l->out + l->used, part, size < l->room - l->used ? size : l->room - l->used);
    l->used += size;
    return 0;
}

/* Not json_dumpb, which leaves out a part that does not fit, and with it the bytes that would have. */
size_t moedi_json_line(const json_t *o, char *out, size_t room, size_t flags)
{
    const moedi_surroundings before = moedi_surroundings_enter();
    line l = {out, room, 0};
    const int failed = json_dump_callback(o, take_part, &l, flags);
    moedi_surroundings_leave(&before);
    return failed ? 0 : l.used;
}

/* Measured, then written: jansson's own growing text loses parts of itself, unseen, when it cannot grow. */
moed_status moedi_json_dump(const moed_context *c, const json_t *o, size_t flags, char **out, size_t *size)
{
    char *text = NULL;
    const size_t needed = moedi_json_line(o, NULL, 0, flags);
    if (needed == 0) return moedi_fail(MOED_E_MEMORY, "no memory to print JSON");
    MOEDI_TRY(moedi_alloc(c, needed + 2, (void **)&text)); /* room for a line's end and a zero */
    if (moedi_json_line(o, text, needed, flags) != needed) {
        moedi_free(c, text);
        return moedi_fail(MOED_E_MEMORY, "no memory to print JSON");
    }
    text[needed] = 0;
    *out = text;
    *size = needed;
    return MOED_OK;
}

moed_status moedi_json_open(json_t **out, const moed_context *c, const char *path)
{
    char *text;
    size_t size;
    MOEDI_TRY(moedi_file_text(c, path, LARGEST_FILE, &text, &size));
    const moed_status status = moedi_json_parse(out, text, size, path);
    moedi_free(c, text);
    return status;
}

static moed_status wrong(moed_status status, const char *path, const char *field, const char *is)
{
    moedi_fail_parameter(status, field, "%s: the field \"%s\" %s", path, field, is);
    return status;
}

/* NULL for an absent or null field; then *status says whether that is an error. */
static const json_t *get(const json_t *o, const char *path, const char *field, int required, moed_status *status)
{
    const json_t *v = json_object_get(o, field);
    *status = MOED_OK;
    if (v && !json_is_null(v)) return v;
    if (required) *status = wrong(MOED_E_FORMAT, path, field, "is missing");
    return NULL;
}

moed_status moedi_json_integer(const json_t *o, const char *path, const char *field, int required, int64_t minimum,
                               int64_t maximum, int64_t *out)
{
    moed_status status;
    const json_t *v = get(o, path, field, required, &status);
    if (!v) return status;
    if (!json_is_integer(v)) return wrong(MOED_E_FORMAT, path, field, "is not an integer");
    const int64_t n = json_integer_value(v);
    if (n < minimum || n > maximum)
        return moedi_fail_parameter(MOED_E_RANGE, field, "%s: the field \"%s\" is %lld; it must be from %lld to %lld", path,
                                    field, (long long)n, (long long)minimum, (long long)maximum);
    *out = n;
    return MOED_OK;
}

moed_status moedi_json_format(const json_t *o, const char *path, int64_t mine)
{
    int64_t format = 0;
    MOEDI_TRY(moedi_json_integer(o, path, "format", 1, 1, INT32_MAX, &format));
    if (format == mine) return MOED_OK;
    return moedi_fail_file(MOED_E_UNSUPPORTED, path, -1,
                           "format %lld is of another version of the library; this one reads format %lld", (long long)format,
                           (long long)mine);
}

moed_status moedi_json_number(const json_t *o, const char *path, const char *field, int required, double minimum, double maximum,
                              double *out)
{
    moed_status status;
    const json_t *v = get(o, path, field, required, &status);
    if (!v) return status;
    if (!json_is_number(v)) return wrong(MOED_E_FORMAT, path, field, "is not a number");
    const double n = json_number_value(v);
    if (!(n >= minimum && n <= maximum))
        return moedi_fail_parameter(MOED_E_RANGE, field, "%s: the field \"%s\" is %g; it must be from %g to %g", path, field, n,
                                    minimum, maximum);
    *out = n;
    return MOED_OK;
}

moed_status moedi_json_boolean(const json_t *o, const char *path, const char *field, int required, int32_t *out)
{
    moed_status status;
    const json_t *v = get(o, path, field, required, &status);
    if (!v) return status;
    if (!json_is_boolean(v)) return wrong(MOED_E_FORMAT, path, field, "is neither true nor false");
    *out = json_is_true(v);
    return MOED_OK;
}

moed_status moedi_json_text(const json_t *o, const char *path, const char *field, int required, const char **out)
{
    moed_status status;
    const json_t *v = get(o, path, field, required, &status);
    if (!v) return status;
    if (!json_is_string(v)) return wrong(MOED_E_FORMAT, path, field, "is not text");
    if (strlen(json_string_value(v)) != json_string_length(v)) return wrong(MOED_E_FORMAT, path, field, "holds a zero character");
    *out = json_string_value(v);
    return MOED_OK;
}

/* *same: the text reads back as the same object. */
static moed_status read_back(const char *text, size_t size, const json_t *o, int *same)
{
    json_t *again = NULL;
    MOEDI_TRY(moedi_json_parse(&again, text, size, "printed JSON"));
    *same = json_equal(again, o);
    json_decref(again);
    return MOED_OK;
}

/* Fifteen digits print 0.05 as 0.05; numbers that need seventeen get them. */
moed_status moedi_json_print(const moed_context *c, const json_t *o, char **out, size_t *size)
{
    char *text = NULL;
    size_t used = 0;
    moed_status status = MOED_OK;
    for (int same = 0, digits = 15; !same && digits <= 17; digits += 2) {
        moedi_free(c, text);
        text = NULL;
        MOEDI_GO(moedi_json_dump(c, o, JSON_INDENT(2) | JSON_REAL_PRECISION(digits), &text, &used));
        MOEDI_GO(read_back(text, used, o, &same));
    }
    text[used++] = '\n';
    text[used] = 0;
    *out = text;
    if (size) *size = used;
    return MOED_OK;
out:
    moedi_free(c, text);
    return status;
}

moed_status moedi_json_write(const moed_context *c, const json_t *o, const char *path)
{
    char *data;
    size_t size;
    MOEDI_TRY(moedi_json_print(c, o, &data, &size));
    const moed_status status = moedi_file_write(c, path, data, size);
    moedi_free(c, data);
    return status;
}
