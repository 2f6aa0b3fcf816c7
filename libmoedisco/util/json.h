/* util/json.h - typed, checked reading of JSON objects, whose values are jansson's. Errors name file and field. */
#ifndef MOEDI_JSON_H
#define MOEDI_JSON_H

#include <jansson.h>

#include "core/context.h"

/* Parses an object; what is no JSON, names that stand twice, zero characters, bad UTF-8, deep nesting (json_scan.h) and numbers
 * that int64_t or double cannot hold are errors with the byte. A number with a point or an exponent is a real. The text need not
 * end with a zero. path names the source in errors. */
moed_status moedi_json_parse(json_t **out, const char *text, size_t size, const char *path);
moed_status moedi_json_open(json_t **out, const moed_context *c, const char *path); /* a file of at most 100 MB */

/* Fields of object o. With `required` 0 an absent or null field leaves *out alone. Range is checked: MOED_E_RANGE naming field
 * and value. */
moed_status moedi_json_integer(const json_t *o, const char *path, const char *field, int required, int64_t minimum,
                               int64_t maximum, int64_t *out);
moed_status moedi_json_number(const json_t *o, const char *path, const char *field, int required, double minimum, double maximum,
                              double *out);
moed_status moedi_json_boolean(const json_t *o, const char *path, const char *field, int required, int32_t *out);
moed_status moedi_json_text(const json_t *o, const char *path, const char *field, int required,
                            const char **out); /* borrowed from o */

/* Field "format" is the number that this library writes; MOED_E_UNSUPPORTED for another version's. */
moed_status moedi_json_format(const json_t *o, const char *path, int64_t mine);

/* Text by jansson's flags, without a final newline; free with moedi_free. */
moed_status moedi_json_dump(const moed_context *c, const json_t *o, size_t flags, char **out, size_t *size);
/* jansson's json_dumpb (bytes of the text, 0 on failure; the first `room` of them are written), untouched by the host's locale
 * and rounding. */
size_t moedi_json_line(const json_t *o, char *out, size_t room, size_t flags);
/* Text with two-space indent and a final newline; free with moedi_free. NULL text on failure. */
moed_status moedi_json_print(const moed_context *c, const json_t *o, char **out, size_t *size);
moed_status moedi_json_write(const moed_context *c, const json_t *o, const char *path); /* whole or not at all */

#endif
