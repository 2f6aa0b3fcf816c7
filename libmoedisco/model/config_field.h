/* model/config_field.h - what the readers of config.json share. */
#ifndef MOEDI_CONFIG_FIELD_H
#define MOEDI_CONFIG_FIELD_H

#include "util/json.h"

/* The value of a field for a sentence, cut short. */
void moedi_config_describe(const json_t *value, char *out, size_t size);
/* MOED_E_UNSUPPORTED naming the field and its value; only: what would be supported. */
moed_status moedi_config_unsupported(const json_t *o, const char *field, const char *path, const char *only);
/* Not there, or null. */
int moedi_config_absent(const json_t *o, const char *field);

#endif
