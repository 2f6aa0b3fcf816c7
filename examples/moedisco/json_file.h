/* json_file.h - JSON files of the command. */
#ifndef JSON_FILE_H
#define JSON_FILE_H

#include <jansson.h>

/* Before anything else is done with jansson: from then on small blocks of it do not run out. */
void json_begin(void);
/* A JSON file, whole or not at all; takes o. */
int write_json(const char *path, json_t *o);
/* An object of a file, NULL after telling why not. */
json_t *read_json(const char *path);

#endif
