/* util/json_field.c - finds a string in a JSON object, and gives up rather than guess. */
#include "json_field.h"

#include <string.h>

enum { DEPTH = 16, NAMES = 64 }; /* objects and lists in each other; names that wait to be compared, of all open objects */

typedef struct names {
    moedi_json_string all[NAMES];
    int used, first[DEPTH + 1]; /* where those of the object begin that lies so deep */
} names;

static int is_same(const moedi_json_string *name, const char *text, int64_t size)
{
    return name->size == size && memcmp(name->text, text, (size_t)size) == 0;
}

/* Names stand once in an object. */
static int add_name(names *n, int depth, const moedi_json_string *name)
{
    if (name->escaped || n->used == NAMES) return 0;
    for (int i = n->first[depth]; i < n->used; i++)
        if (is_same(&n->all[i], name->text, name->size)) return 0;
    n->all[n->used++] = *name;
    return 1;
}

int moedi_json_field(const char *text, int64_t size, const char *field, moedi_json_string *out)
{
    moedi_json_scan s;
    names n;
    const int64_t length = (int64_t)strlen(field);
    moedi_json_begin(&s, text, size);
    n.used = 0;
    out->text = NULL;
    for (int wanted = 0, first = 1;; first = 0) {
        const moedi_json_part part = moedi_json_next(&s);
        if ((first && part != MOEDI_JSON_OBJECT) || (wanted && part != MOEDI_JSON_STRING)) return 0;
        if (wanted) *out = s.string;
        wanted = 0;
        switch (part) {
        case MOEDI_JSON_WRONG: return 0;
        case MOEDI_JSON_END: return out->text != NULL;
        case MOEDI_JSON_OBJECT:
        case MOEDI_JSON_LIST:
            if (s.depth > DEPTH) return 0;
            n.first[s.depth] = n.used;
            break;
        case MOEDI_JSON_CLOSE: n.used = n.first[s.depth + 1]; break;
        case MOEDI_JSON_NAME:
            if (!add_name(&n, s.depth, &s.string)) return 0;
            wanted = s.depth == 1 && is_same(&s.string, field, length);
            break;
        case MOEDI_JSON_INTEGER:
        case MOEDI_JSON_REAL:
            if (!s.fits) return 0;
            break;
        default: break;
        }
    }
}
