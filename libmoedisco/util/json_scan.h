/* util/json_scan.h - reads JSON (RFC 8259) strictly, one part after the other; allocates nothing and does not recurse. */
#ifndef MOEDI_JSON_SCAN_H
#define MOEDI_JSON_SCAN_H

#include <stdint.h>

/* Objects and lists in each other. Trees are freed, compared and printed by functions that recurse, on threads with small stacks
 * too. */
enum { MOEDI_JSON_DEPTH = 128 };

/* A string or name between its quotes, or a number. */
typedef struct moedi_json_string {
    const char *text;
    int64_t size;
    int escaped; /* it has backslashes */
} moedi_json_string;

typedef enum moedi_json_part {
    MOEDI_JSON_WRONG, /* the last one: the scan's `wrong` says why, its `at` where */
    MOEDI_JSON_END,   /* the last one: there was one value, and nothing follows */
    MOEDI_JSON_OBJECT,
    MOEDI_JSON_LIST,
    MOEDI_JSON_CLOSE, /* of the object or list that was opened last */
    MOEDI_JSON_NAME,  /* and its colon; whether the object has it already, the caller looks */
    MOEDI_JSON_STRING,
    MOEDI_JSON_INTEGER,
    MOEDI_JSON_REAL, /* a number with a point or an exponent */
    MOEDI_JSON_TRUE,
    MOEDI_JSON_FALSE,
    MOEDI_JSON_NULL
} moedi_json_part;

typedef struct moedi_json_scan {
    const char *at, *end, *wrong;
    moedi_json_string string; /* the last string, name or number */
    int fits;                 /* the last number is so short that int64_t or double holds it for certain */
    int expects, depth;
    char close[MOEDI_JSON_DEPTH]; /* what ends each open object or list */
} moedi_json_scan;

/* The text need not end with a zero. */
void moedi_json_begin(moedi_json_scan *s, const char *text, int64_t size);
moedi_json_part moedi_json_next(moedi_json_scan *s);

/* A string or name that was found, its backslashes resolved in place; the new size. */
int64_t moedi_json_unescape(char *text, int64_t size);

#endif
