/* util/json_field.h - one string out of a JSON object, without a tree of the rest: what lines of text are read by. */
#ifndef MOEDI_JSON_FIELD_H
#define MOEDI_JSON_FIELD_H

#include "json_scan.h"

/* 1: text is a JSON object that moedi_json_parse takes, and its field is this string. 0: it is not, or has something unusual
 * (deep nesting, many fields, escaped names, long numbers), and moedi_json_parse knows. Allocates nothing. */
int moedi_json_field(const char *text, int64_t size, const char *field, moedi_json_string *out);

#endif
