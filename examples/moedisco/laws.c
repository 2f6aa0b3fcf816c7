/* laws.c - scaling laws of the command: by a preset's name or from a file, and the runs that they are fitted to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "json_file.h"
#include "laws.h"
#include "output.h"

enum { COEFFICIENTS_MOST = 64, LAW_VERSION = 1 };

/* ---- choices of the library's tables ---- */

static const char *choices_of(const char *field_name)
{
    static moed_field field;
    for (size_t i = 0;; i++) {
        field = (moed_field){.struct_size = sizeof field};
        if (moed_options_field(MOED_STRUCT_LAW_OPTIONS, i, &field)) return "";
        if (!strcmp(field.name, field_name)) return field.choices;
    }
}

/* ---- a law as a file ---- */

static void range_read(const json_t *all, const char *name, double *low, double *high)
{
    const json_t *pair = json_object_get(all, name);
    *low = json_number_value(json_array_get(pair, 0));
    *high = json_number_value(json_array_get(pair, 1));
}

static int law_read(moed_law **out, moed_context *c, const char *path, int64_t top_k)
{
    moed_law_options o;
    double values[COEFFICIENTS_MOST];
    json_t *file = read_json(path);
    if (!file) return EXIT_INPUT;
    OPTIONS_INIT(LAW_OPTIONS, &o);
    const json_t *list = json_object_get(file, "coefficients"), *range = json_object_get(file, "range");
    const char *form = json_string_value(json_object_get(file, "form")),
               *kind = json_string_value(json_object_get(file, "format"));
    const json_int_t own = json_integer_value(json_object_get(file, "top_k"));
    const json_t *version = json_object_get(file, "version");
    int code = EXIT_DONE;
    o.preset = MOED_LAW_CUSTOM;
    o.form = form ? choice_of(choices_of("form"), form) : -1;
    o.coefficient_count = (int32_t)json_array_size(list);
    if (!kind || strcmp(kind, "moedisco-law") || o.form < 0 || o.coefficient_count > COEFFICIENTS_MOST)
        code = fail(EXIT_INPUT, "%s: is no law of `moedisco law fit`", path);
    else if (version && json_integer_value(version) != LAW_VERSION)
        code = fail(EXIT_INPUT, "%s: a law of another version than %d, which is known here", path, LAW_VERSION);
    for (int32_t i = 0; !code && i < o.coefficient_count; i++) {
        const json_t *value = json_object_get(json_array_get(list, (size_t)i), "value");
        values[i] = json_number_value(value);
        if (!json_is_number(value)) code = fail(EXIT_INPUT, "%s: coefficient %d has no number as its value", path, (int)i);
    }
    if (!code) {
        o.coefficients = values;
        o.top_k = (int32_t)(top_k ? top_k : own >= 1 && own <= INT32_MAX ? own : 0);
        o.source = json_string_value(json_object_get(file, "source"));
        range_read(range, "active", &o.active_min, &o.active_max);
        range_read(range, "experts", &o.experts_min, &o.experts_max);
        range_read(range, "tokens", &o.tokens_min, &o.tokens_max);
        const moed_status status = moed_law_create(out, c, &o);
        if (status) code = fail(exit_code(status), "%s: %s", path, moed_last_error());
    }
    json_decref(file);
    return code;
}

int law_open(moed_law **out, moed_context *c, const char *name, int64_t top_k)
{
    moed_law_options o;
    const char *presets = choices_of("preset");
    const int32_t preset = choice_of(presets, name);
    if (preset <= MOED_LAW_CUSTOM) {
        if (path_exists(name)) return law_read(out, c, name, top_k);
        return fail(EXIT_INPUT, "--law %s: neither a file nor one of %s", name, strchr(presets, '|') + 1);
    }
    OPTIONS_INIT(LAW_OPTIONS, &o);
    o.preset = preset;
    if (top_k) o.top_k = (int32_t)top_k;
    const moed_status status = moed_law_create(out, c, &o);
    return status ? fail_status(status) : EXIT_DONE;
}

int law_save(const char *path, const moed_law *l)
{
    moed_law_info i = {.struct_size = sizeof i};
    moed_law_get_info(l, &i);
    size_t length = 0;
    const char *named = choice_name(choices_of("form"), i.form, &length);
    char *form = must(strndup(named, length));
    json_t *o = must(json_pack(
        "{s:s, s:i, s:s, s:i, s:s, s:{s:[ff], s:[ff], s:[ff]}, s:{s:I, s:I, s:f, s:f, s:i}}", "format", "moedisco-law", "version",
        LAW_VERSION, "form", form, "top_k", (int)i.top_k, "source", i.source, "range", "active", i.active_min, i.active_max,
        "experts", i.experts_min, i.experts_max, "tokens", i.tokens_min, i.tokens_max, "fit", "runs", (json_int_t)i.trained_runs,
        "held_out", (json_int_t)i.held_out_runs, "rmse", i.trained_rmse, "held_out_rmse", i.held_out_rmse, "bootstrap",
        (int)i.bootstrap));
    json_t *list = must(json_array());
    for (int32_t k = 0; k < i.coefficients; k++) {
        moed_coefficient one = {.struct_size = sizeof one};
        moed_law_coefficient(l, (size_t)k, &one);
        put_last(list, json_pack("{s:s, s:f, s:f, s:f}", "name", one.name, "value", one.value, "low", one.low, "high", one.high));
    }
    put(o, "coefficients", list);
    free(form);
    return write_json(path, o);
}

/* ---- runs ---- */

enum { COLUMNS = 4 };
static const char *const NAMES[COLUMNS][4] = {{"active", "n", "n_act", "n_active"},
                                              {"experts", "e", "num_experts", NULL},
                                              {"tokens", "d", NULL, NULL},
                                              {"loss", "l", NULL, NULL}};

static int column_of(const char *name)
{
    for (int k = 0; k < COLUMNS; k++)
        for (int a = 0; a < 4 && NAMES[k][a]; a++)
            if (!strcasecmp(NAMES[k][a], name)) return k;
    return -1;
}

/* The next field of *line, without quotes around it, in which a separator is a character like any other; NULL at the end. */
static char *next_field(char **line, char separator)
{
    char *const field = *line;
    int quoted = 0;
    if (!field) return NULL;
    char *end = field;
    for (; *end && (quoted || *end != separator); end++) quoted ^= *end == '"';
    *line = *end ? end + 1 : NULL;
    *end = 0;
    char *text = trimmed(field);
    const size_t length = strlen(text);
    if (length < 2 || *text != '"' || text[length - 1] != '"') return text;
    text[length - 1] = 0;
    return text + 1;
}

typedef struct runs {
    lines lines;
    moed_run_point *points;
    size_t count, room;
    int column[POSITIONALS_MAX]; /* CSV: what each field is, -1 = passed over */
    int columns;                 /* 0 before the line of names */
    char separator;
} runs;

static int keep(runs *r, const double values[COLUMNS])
{
    for (int k = 0; k < COLUMNS; k++)
        if (!(values[k] > 0) || isinf(values[k]))
            return lines_fail(&r->lines, ": %s is %g; it must be above 0, and finite", NAMES[k][0], values[k]);
    if (r->count == r->room) r->points = must(realloc(r->points, (r->room = r->room ? 2 * r->room : 256) * sizeof *r->points));
    r->points[r->count++] = (moed_run_point){values[0], values[1], values[2], values[3]};
    return EXIT_DONE;
}

static int csv_names(runs *r)
{
    char *line = r->lines.line;
    int seen[COLUMNS] = {0};
    r->separator = strchr(line, '\t') ? '\t' : strchr(line, ';') ? ';' : ',';
    for (char *field; (field = next_field(&line, r->separator));) {
        if (r->columns == POSITIONALS_MAX) return lines_fail(&r->lines, " has more than %d fields", POSITIONALS_MAX);
        const int k = r->column[r->columns++] = column_of(field);
        if (k >= 0 && seen[k]++) return lines_fail(&r->lines, " names %s twice", NAMES[k][0]);
    }
    for (int k = 0; k < COLUMNS; k++)
        if (!seen[k])
            return lines_fail(&r->lines, " names no column %s (or %s); active, experts, tokens and loss are needed", NAMES[k][0],
                              NAMES[k][1]);
    return EXIT_DONE;
}

static int csv_line(runs *r)
{
    char *line = r->lines.line;
    double values[COLUMNS];
    int found = 0, at = 0;
    for (char *field; (field = next_field(&line, r->separator)); at++) {
        const int k = at < r->columns ? r->column[at] : -1;
        if (k < 0) continue;
        char *end;
        values[k] = strtod(field, &end);
        if (end == field || *end) return lines_fail(&r->lines, ": %s is \"%s\", no number", NAMES[k][0], field);
        found++;
    }
    if (found < COLUMNS) return lines_fail(&r->lines, " has %d fields of the %d named", at, r->columns);
    return keep(r, values);
}

static int json_run(runs *r)
{
    double values[COLUMNS];
    int seen[COLUMNS] = {0}, code = EXIT_DONE;
    const char *key;
    json_t *value, *o = lines_object(&r->lines);
    if (!o) return EXIT_INPUT;
    json_object_foreach(o, key, value) {
        const int k = column_of(key);
        if (k < 0 || code) continue;
        if (!json_is_number(value)) code = lines_fail(&r->lines, ": %s is no number", key);
        else if (seen[k]++) code = lines_fail(&r->lines, " names %s twice", NAMES[k][0]);
        else values[k] = json_number_value(value);
    }
    for (int k = 0; k < COLUMNS && !code; k++)
        if (!seen[k]) code = lines_fail(&r->lines, " has no %s (or %s)", NAMES[k][0], NAMES[k][1]);
    json_decref(o);
    return code ? code : keep(r, values);
}

int runs_read(const char *path, moed_run_point **out, size_t *count)
{
    runs r = {0};
    int code = lines_open(&r.lines, path);
    while (!code && lines_next(&r.lines)) {
        if (*r.lines.line == '#') continue;
        if (*r.lines.line == '[')
            code = lines_fail(&r.lines, " begins a JSON list; each run must be an object in a line of its own");
        else if (*r.lines.line == '{') code = json_run(&r);
        else code = r.columns ? csv_line(&r) : csv_names(&r);
    }
    lines_close(&r.lines);
    if (!code && !r.count) code = fail(EXIT_INPUT, "%s: holds no runs", path);
    if (code) free(r.points);
    else *out = r.points, *count = r.count;
    return code;
}
