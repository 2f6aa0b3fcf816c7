/* json_file.h - JSON files of the command, and files of lines of it. */
#ifndef JSON_FILE_H
#define JSON_FILE_H

#include <jansson.h>
#include <stdint.h>

/* Before anything else is done with jansson: from then on small blocks of it do not run out. */
void json_begin(void);
/* A JSON file, whole or not at all; takes o. */
int write_json(const char *path, json_t *o);
/* An object of a file, NULL after telling why not. */
json_t *read_json(const char *path);
/* The value that a text is, or NULL; why nullable. A lack of memory is not taken for a fault of the text. */
json_t *parse_json(const char *text, size_t size, json_error_t *why);

/* Without blanks around it; cuts the text. */
char *trimmed(char *text);

/* A text file line by line, without blank lines and blanks around lines. */
typedef struct lines {
    const char *path;
    char *text, *next;
    char *line;     /* the present one, to be changed at will */
    int64_t number; /* its, from 1 */
} lines;

/* An exit code. lines_close also after one that is not EXIT_DONE. */
int lines_open(lines *l, const char *path);
/* 0 at the end. */
int lines_next(lines *l);
/* The present line, NULL after telling why it is no JSON object. */
json_t *lines_object(const lines *l);
/* Tells what is wrong with the present line, " has ..." or ": ..."; EXIT_INPUT. */
int lines_fail(const lines *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
void lines_close(lines *l);

#endif
