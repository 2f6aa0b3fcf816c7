/* flags.h - flags made of option structs: every field the library can describe is a flag with its default, range and
 * sentence; the command's own settings are described by tables of the same kind. */
#ifndef FLAGS_H
#define FLAGS_H

#include <jansson.h>
#include <moedisco.h>

typedef struct verb verb;

typedef struct flag {
    moed_field field;
    char name[48];        /* kebab-case, without dashes */
    char initial[48];     /* the default as text */
    const char *group;
    void *value;          /* where it is kept */
    int given;            /* on the command line */
    int passing;          /* does not change results: not kept in run.json */
    int first;            /* index of the first flag of this name: twins are set together */
    char *owned;          /* text read from a file */
} flag;

enum { FLAGS_MAX = 160, POSITIONALS_MAX = 256 };

typedef struct flags {
    flag items[FLAGS_MAX];
    size_t count;
    const char *positionals[POSITIONALS_MAX];
    size_t positional_count;
} flags;

/* Rows of the command's own tables. */
#define FIELD_OWN(s, member, kind, choices_, initial_, low, high, text) \
    { sizeof(moed_field), 0, #member, choices_, text, kind, (uint32_t)offsetof(s, member), initial_, low, high }
#define FIELD_INTEGER(s, member, initial_, low, high, text) FIELD_OWN(s, member, MOED_FIELD_I64, "", initial_, low, high, text)
#define FIELD_NUMBER(s, member, initial_, low, high, text) FIELD_OWN(s, member, MOED_FIELD_F64, "", initial_, low, high, text)
#define FIELD_TEXT_(s, member, text) FIELD_OWN(s, member, MOED_FIELD_TEXT, "", 0, 0, 0, text)
#define FIELD_CHOICE_(s, member, choices_, text) FIELD_OWN(s, member, MOED_FIELD_CHOICE, choices_, 0, 0, 0, text)
#define FIELD_SWITCH_(s, member, text) FIELD_OWN(s, member, MOED_FIELD_SWITCH, "", 0, 0, 1, text)

/* Adds the fields of options struct `id` at `options`, whose present values are the defaults, but those in `except`
 * (comma-separated, nullable). */
void flags_struct(flags *f, const char *group, int32_t id, void *options, const char *except);
/* Only some fields of it, under other names: "method=new_experts,std=new_std". */
void flags_struct_as(flags *f, const char *group, int32_t id, void *options, const char *names);
/* The same for a table of the command's own. */
void flags_table(flags *f, const char *group, const moed_field *fields, size_t count, void *base);
/* The flags added since `from` do not change results. */
void flags_passing(flags *f, size_t from);

/* Reads the command line into the structs; -1 to go on, else an exit code (help was printed, or a fault told).
 * Between `least` and `most` positional arguments. */
int flags_parse(flags *f, const verb *v, int argc, char **argv, size_t least, size_t most);
int flags_given(const flags *f, const char *name);
flag *flags_find(flags *f, const char *name);
/* Says of each of the names (comma-separated) that was given that it changes nothing, and why. */
void flags_tell_unheeded(const flags *f, const char *names, const char *why);

/* Every flag but the passing ones, by name. */
json_t *flags_json(const flags *f);
/* Sets a flag from such an object's value; 0 when it does not fit. */
int flags_set_json(flags *f, flag *item, const json_t *value);
void flags_value_text(const flag *item, char *out, size_t size);
void flags_free(flags *f);

/* Index of a name in "a|b|c", -1 when it is not there; and the name (not ended, length [out]) of an index, NULL past the last. */
int32_t choice_of(const char *choices, const char *name);
const char *choice_name(const char *choices, int64_t index, size_t *length);

/* "8,16,32" or "8:2e9,16:1e9" into numbers[count] and, where after is not NULL, what stands after each colon (-1 where there is
 * none). An exit code that names the flag. */
int pairs_read(const char *flag_name, const char *text, double *numbers, double *after, size_t room, size_t *count);

/* Nearest of names[count] to `word` by edit distance, NULL when none is near. */
const char *nearest(const char *word, const char *const *names, size_t count);

#endif
