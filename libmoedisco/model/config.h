/* model/config.h - what the readers of config.json share. */
#ifndef MOEDI_CONFIG_H
#define MOEDI_CONFIG_H

#include "util/json.h"

/* MOED_E_UNSUPPORTED naming the field and its value; only: what would be supported. */
moed_status moedi_config_unsupported(const json_t *o, const char *field, const char *path, const char *only);
/* Not there, or null. */
int moedi_config_absent(const json_t *o, const char *field);

#endif
