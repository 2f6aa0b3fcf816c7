/* model/config_field.c - a field of config.json that is not there, or is refused by name and value. */
#include "config_field.h"

#include <stdio.h>
#include <string.h>

void moedi_config_describe(const json_t *value, char *out, size_t size)
{
    const size_t n = moedi_json_line(value, out, size - 1, JSON_COMPACT | JSON_ENCODE_ANY);
    if (n == 0)
        snprintf(out, size, "a value");
    else if (n < size)
        out[n] = '\0';
    else
        memcpy(out + size - 4, "...", 4);
}

moed_status moedi_config_unsupported(const json_t *o, const char *field, const char *path, const char *only)
{
    char value[80];
    moedi_config_describe(json_object_get(o, field), value, sizeof value);
    return moedi_fail_parameter(MOED_E_UNSUPPORTED, field, "%s: field %s is %s, and only %s is supported", path, field, value,
                                only);
}

int moedi_config_absent(const json_t *o, const char *field)
{
    const json_t *v = json_object_get(o, field);
    return !v || json_is_null(v);
}
