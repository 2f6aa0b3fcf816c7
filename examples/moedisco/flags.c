/* flags.c - flags made of option structs. */
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app.h"
#include "output.h"

static int listed(const char *list, const char *name)
{
    const size_t length = strlen(name);
    for (const char *at = list; at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL)
        if (!strncmp(at, name, length) && (at[length] == ',' || at[length] == 0)) return 1;
    return 0;
}

static void *place(const flag *item) { return (char *)item->value + item->field.offset; }

const char *choice_name(const char *choices, int64_t index, size_t *length)
{
    const char *at = choices;
    while (index-- > 0 && at) at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL;
    if (!at) return NULL;
    *length = strcspn(at, "|");
    return at;
}

int32_t choice_of(const char *choices, const char *name)
{
    size_t length = 0;
    const char *at;
    for (int32_t i = 0; (at = choice_name(choices, i, &length)) != NULL; i++)
        if (strlen(name) == length && !strncmp(at, name, length)) return i;
    return -1;
}

void flags_value_text(const flag *item, char *out, size_t size)
{
    const void *p = place(item);
    size_t length = 0;
    const char *name;
    switch (item->field.type) {
    case MOED_FIELD_I32:
    case MOED_FIELD_SWITCH: snprintf(out, size, "%d", *(const int32_t *)p); break;
    case MOED_FIELD_I64: snprintf(out, size, "%lld", (long long)*(const int64_t *)p); break;
    case MOED_FIELD_U64: snprintf(out, size, "%llu", (unsigned long long)*(const uint64_t *)p); break;
    case MOED_FIELD_F64: snprintf(out, size, "%.10g", *(const double *)p); break;
    case MOED_FIELD_TEXT: snprintf(out, size, "%s", *(const char *const *)p ? *(const char *const *)p : ""); break;
    case MOED_FIELD_CHOICE:
        name = choice_name(item->field.choices, *(const int32_t *)p, &length);
        snprintf(out, size, "%.*s", (int)length, name ? name : "");
        break;
    default: out[0] = 0;
    }
}

/* Under the first `length` characters of name. */
static void add(flags *f, const char *group, const char *name, size_t length, const moed_field *field, void *base)
{
    if (f->count == FLAGS_MAX || field->type == MOED_FIELD_POINTER) return;
    flag *item = &f->items[f->count];
    memset(item, 0, sizeof *item);
    item->field = *field;
    item->group = group;
    item->value = base;
    snprintf(item->name, sizeof item->name, "%.*s", (int)length, name);
    for (char *c = item->name; *c; c++)
        if (*c == '_') *c = '-';
    item->first = (int)f->count;
    for (size_t i = 0; i < f->count; i++)
        if (!strcmp(f->items[i].name, item->name)) {
            item->first = (int)i;
            break;
        }
    flags_value_text(item, item->initial, sizeof item->initial);
    f->count++;
}

void flags_struct(flags *f, const char *group, int32_t id, void *options, const char *except)
{
    moed_field field;
    for (size_t i = 0;; i++) {
        memset(&field, 0, sizeof field);
        field.struct_size = sizeof field;
        if (moed_options_field(id, i, &field) != MOED_OK) return;
        if (!listed(except, field.name)) add(f, group, field.name, strlen(field.name), &field, options);
    }
}

void flags_struct_as(flags *f, const char *group, int32_t id, void *options, const char *names)
{
    for (const char *at = names; *at; at += strcspn(at, ","), at += *at == ',') {
        const size_t from = strcspn(at, "="), to = strcspn(at + from + 1, ",");
        moed_field field = {.struct_size = sizeof field};
        for (size_t i = 0; moed_options_field(id, i, &field) == MOED_OK; i++)
            if (strlen(field.name) == from && !strncmp(field.name, at, from)) add(f, group, at + from + 1, to, &field, options);
    }
}

void flags_table(flags *f, const char *group, const moed_field *fields, size_t count, void *base)
{
    for (size_t i = 0; i < count; i++) add(f, group, fields[i].name, strlen(fields[i].name), &fields[i], base);
}

void flags_passing(flags *f, size_t from)
{
    for (size_t i = from; i < f->count; i++) f->items[i].passing = 1;
}

flag *flags_find(flags *f, const char *name)
{
    for (size_t i = 0; i < f->count; i++)
        if (!strcmp(f->items[i].name, name)) return &f->items[i];
    return NULL;
}

int flags_given(const flags *f, const char *name)
{
    for (size_t i = 0; i < f->count; i++)
        if (!strcmp(f->items[i].name, name) && f->items[i].given) return 1;
    return 0;
}

void flags_tell_unheeded(const flags *f, const char *names, const char *why)
{
    while (*names) {
        char name[sizeof f->items[0].name];
        const size_t size = strcspn(names, ",");
        snprintf(name, sizeof name, "%.*s", (int)size, names);
        if (flags_given(f, name)) say("--%s changes nothing: %s", name, why);
        names += size + (names[size] == ',');
    }
}

/* ---- values ---- */

static int out_of_range(const flag *item, double value)
{
    const moed_field *d = &item->field;
    return d->maximum > d->minimum && !(value >= d->minimum && value <= d->maximum);
}

static int bad_value(const flag *item, const char *text)
{
    const moed_field *d = &item->field;
    if (d->type == MOED_FIELD_CHOICE) return fail(EXIT_INPUT, "--%s %s: must be one of %s", item->name, text, d->choices);
    if (d->type == MOED_FIELD_SWITCH) return fail(EXIT_INPUT, "--%s=%s: must be 0 or 1", item->name, text);
    const char *kind = d->type == MOED_FIELD_F64 ? "a number" : "a whole number";
    if (d->maximum >= 1e15 && d->type != MOED_FIELD_U64 && !(strtod(text, NULL) > d->maximum))
        return fail(EXIT_INPUT, "--%s %s: must be %s, at least %.10g", item->name, text, kind, d->minimum);
    if (d->maximum > d->minimum && d->type != MOED_FIELD_U64)
        return fail(EXIT_INPUT, "--%s %s: must be %s from %.10g to %.10g", item->name, text, kind, d->minimum, d->maximum);
    return fail(EXIT_INPUT, "--%s %s: must be %s", item->name, text, kind);
}

/* -1 when it fits, else an exit code after telling why. */
static int set_text(flag *item, const char *text)
{
    const moed_field *d = &item->field;
    void *p = place(item);
    char *end = NULL;
    errno = 0;
    switch (d->type) {
    case MOED_FIELD_TEXT:
        if (!item->passing && utf8(text) != text) /* it is kept in run.json */
            return fail(EXIT_INPUT, "--%s %s: is not UTF-8, as all that is kept in run.json is; choose another", item->name,
                        utf8(text));
        *(const char **)p = text;
        return -1;
    case MOED_FIELD_CHOICE: {
        const int32_t index = choice_of(d->choices, text);
        if (index < 0) return bad_value(item, text);
        *(int32_t *)p = index;
        return -1;
    }
    case MOED_FIELD_SWITCH:
        if (strcmp(text, "0") != 0 && strcmp(text, "1") != 0) return bad_value(item, text);
        *(int32_t *)p = text[0] - '0';
        return -1;
    case MOED_FIELD_F64: {
        const double value = strtod(text, &end);
        if (end == text || *end || !isfinite(value) || out_of_range(item, value)) return bad_value(item, text);
        *(double *)p = value;
        return -1;
    }
    case MOED_FIELD_U64: {
        const unsigned long long value = strtoull(text, &end, 10);
        if (end == text || *end || errno || strchr(text, '-')) return bad_value(item, text);
        *(uint64_t *)p = value;
        return -1;
    }
    default: {
        const long long value = strtoll(text, &end, 10);
        if (end == text || *end || errno || out_of_range(item, (double)value)) return bad_value(item, text);
        if (d->type == MOED_FIELD_I32) {
            if (value < INT32_MIN || value > INT32_MAX) return bad_value(item, text);
            *(int32_t *)p = (int32_t)value;
        } else {
            *(int64_t *)p = value;
        }
        return -1;
    }
    }
}

/* Sets the flag and its twins. No flag is a list that grows: of two values one was meant otherwise. */
static int set_all(flags *f, flag *item, const char *text)
{
    if (item->given) return fail(EXIT_INPUT, "--%s is given twice; give it once", item->name);
    for (size_t i = 0; i < f->count; i++)
        if (f->items[i].first == item->first) {
            const int code = set_text(&f->items[i], text);
            if (code >= 0) return code;
            f->items[i].given = 1;
        }
    return -1;
}

/* ---- help and suggestions ---- */

static size_t distance(const char *a, const char *b)
{
    enum { LONGEST = 64 };
    size_t row[LONGEST + 1];
    const size_t n = strlen(a), m = strlen(b);
    if (n > LONGEST || m > LONGEST) return LONGEST;
    for (size_t j = 0; j <= m; j++) row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            const size_t up = row[j];
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (up + 1 < best) best = up + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = up;
            row[j] = best;
        }
    }
    return row[m];
}

const char *nearest(const char *word, const char *const *names, size_t count)
{
    const char *best = NULL;
    size_t least = strlen(word) / 2 + 1;
    for (size_t i = 0; i < count; i++) {
        const size_t d = distance(word, names[i]);
        if (d < least) {
            least = d;
            best = names[i];
        }
    }
    return best;
}

static int unknown(const flags *f, const char *name)
{
    const char *names[FLAGS_MAX];
    for (size_t i = 0; i < f->count; i++) names[i] = f->items[i].name;
    const char *near = nearest(name, names, f->count);
    if (near) return fail(EXIT_INPUT, "unknown flag --%s; did you mean --%s?", name, near);
    return fail(EXIT_INPUT, "unknown flag --%s; --help lists all flags", name);
}

static void help_flag(const flag *item)
{
    const moed_field *d = &item->field;
    char head[96], tail[256] = "", sentence[640];
    if (d->type == MOED_FIELD_SWITCH) snprintf(head, sizeof head, "--[no-]%s", item->name);
    else
        snprintf(head, sizeof head, "--%s %s", item->name,
                 d->type == MOED_FIELD_TEXT     ? "TEXT"
                 : d->type == MOED_FIELD_F64    ? "X"
                 : d->type == MOED_FIELD_CHOICE ? "NAME"
                                                : "N");
    size_t at = 0;
    if (d->type == MOED_FIELD_CHOICE) at += (size_t)snprintf(tail, sizeof tail, "%s; ", d->choices);
    else if (d->maximum > d->minimum && d->type != MOED_FIELD_SWITCH && d->type != MOED_FIELD_TEXT && d->type != MOED_FIELD_U64)
        at += (size_t)snprintf(tail, sizeof tail, d->maximum >= 1e15 ? "from %.10g; " : "%.10g to %.10g; ", d->minimum,
                               d->maximum);
    if (at < sizeof tail) {
        if (d->type == MOED_FIELD_SWITCH)
            snprintf(tail + at, sizeof tail - at, "default %s", item->initial[0] == '1' ? "on" : "off");
        else snprintf(tail + at, sizeof tail - at, "default %s", item->initial[0] ? item->initial : "none");
    }
    snprintf(sentence, sizeof sentence, "%s [%s]", d->sentence, tail);
    printf("  %-26s ", head);
    if (strlen(head) > 26) printf("\n%29s", "");
    wrapped(sentence, 29, 110);
}

static void help(const flags *f, const verb *v)
{
    printf("moedisco %s %s\n", v->name, v->arguments);
    wrapped(v->summary, 0, 110);
    printf("\nexample: %s\n", v->example);
    const char *group = NULL;
    for (size_t i = 0; i < f->count; i++) {
        if (f->items[i].first != (int)i) continue;
        if (!group || strcmp(group, f->items[i].group) != 0) {
            group = f->items[i].group;
            printf("\n%s:\n", group);
        }
        help_flag(&f->items[i]);
    }
}

/* ---- the command line ---- */

static int one_flag(flags *f, int argc, char **argv, int *at)
{
    const char *word = argv[*at] + 2, *equal = strchr(word, '=');
    char name[48];
    snprintf(name, sizeof name, "%.*s", equal ? (int)(equal - word) : (int)strlen(word), word);
    flag *item = flags_find(f, name);
    if (!item && !strncmp(name, "no-", 3) && !equal) {
        item = flags_find(f, name + 3);
        if (item && item->field.type == MOED_FIELD_SWITCH) return set_all(f, item, "0");
        item = NULL;
    }
    if (!item) return unknown(f, name);
    if (equal) return set_all(f, item, equal + 1);
    if (item->field.type == MOED_FIELD_SWITCH) return set_all(f, item, "1");
    if (*at + 1 >= argc) return fail(EXIT_INPUT, "--%s needs a value", name);
    if (!strncmp(argv[*at + 1], "--", 2))
        return fail(EXIT_INPUT, "--%s needs a value before %s; --%s=VALUE may begin with anything", name, argv[*at + 1], name);
    return set_all(f, item, argv[++*at]);
}

int flags_parse(flags *f, const verb *v, int argc, char **argv, size_t least, size_t most)
{
    if (f->count == FLAGS_MAX) return fail(EXIT_OTHER, "%s has more flags than there is room for: FLAGS_MAX", v->name);
    int only_arguments = 0;
    for (int i = 0; i < argc; i++)
        if (!strcmp(argv[i], "--")) break;
        else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
            help(f, v);
            return EXIT_DONE;
        }
    for (int i = 0; i < argc; i++) {
        if (!only_arguments && !strcmp(argv[i], "--")) {
            only_arguments = 1;
        } else if (!only_arguments && !strncmp(argv[i], "--", 2)) {
            const int code = one_flag(f, argc, argv, &i);
            if (code >= 0) return code;
        } else if (!only_arguments && argv[i][0] == '-' && argv[i][1]) {
            return fail(EXIT_INPUT, "unknown flag %s; --help lists all flags", argv[i]);
        } else {
            if (f->positional_count == most || f->positional_count == POSITIONALS_MAX)
                return fail(EXIT_INPUT, "unexpected argument %s; usage: moedisco %s %s", argv[i], v->name, v->arguments);
            if (!argv[i][0]) return fail(EXIT_INPUT, "an argument is empty; usage: moedisco %s %s", v->name, v->arguments);
            f->positionals[f->positional_count++] = argv[i];
        }
    }
    if (f->positional_count < least) return fail(EXIT_INPUT, "usage: moedisco %s %s", v->name, v->arguments);
    return -1;
}

/* ---- files ---- */

json_t *flags_json(const flags *f)
{
    json_t *o = must(json_object());
    for (size_t i = 0; i < f->count; i++) {
        const flag *item = &f->items[i];
        if (item->passing || item->first != (int)i) continue;
        const void *p = place(item);
        char text[64];
        json_t *value = NULL;
        switch (item->field.type) {
        case MOED_FIELD_I32: value = json_integer(*(const int32_t *)p); break;
        case MOED_FIELD_I64: value = json_integer(*(const int64_t *)p); break;
        case MOED_FIELD_U64: value = json_integer((json_int_t)*(const uint64_t *)p); break;
        case MOED_FIELD_F64: value = json_real(*(const double *)p); break;
        case MOED_FIELD_SWITCH: value = json_boolean(*(const int32_t *)p); break;
        case MOED_FIELD_TEXT: value = *(const char *const *)p ? json_string(*(const char *const *)p) : json_null(); break;
        default:
            flags_value_text(item, text, sizeof text);
            value = json_string(text);
        }
        put(o, item->name, value);
    }
    return o;
}

int flags_set_json(flags *f, flag *item, const json_t *value)
{
    int good = 1;
    for (size_t i = 0; i < f->count && good; i++) {
        flag *twin = &f->items[i];
        if (twin->first != item->first) continue;
        void *p = place(twin);
        switch (twin->field.type) {
        case MOED_FIELD_TEXT:
            good = json_is_string(value) || json_is_null(value);
            free(twin->owned);
            twin->owned = json_is_string(value) ? must(strdup(json_string_value(value))) : NULL;
            *(const char **)p = twin->owned;
            break;
        case MOED_FIELD_F64:
            good = json_is_number(value) && !out_of_range(twin, json_number_value(value));
            if (good) *(double *)p = json_number_value(value);
            break;
        case MOED_FIELD_SWITCH:
            good = json_is_boolean(value);
            if (good) *(int32_t *)p = json_is_true(value);
            break;
        case MOED_FIELD_U64:
            good = json_is_integer(value) && json_integer_value(value) >= 0;
            if (good) *(uint64_t *)p = (uint64_t)json_integer_value(value);
            break;
        case MOED_FIELD_CHOICE: {
            size_t length = 0;
            const char *name, *wanted = json_string_value(value);
            int32_t index = 0;
            good = 0;
            for (; wanted && (name = choice_name(twin->field.choices, index, &length)) != NULL; index++)
                if (strlen(wanted) == length && !strncmp(name, wanted, length)) {
                    *(int32_t *)p = index;
                    good = 1;
                    break;
                }
            break;
        }
        default:
            good = json_is_integer(value);
            good = good && !out_of_range(twin, (double)json_integer_value(value));
            if (good && twin->field.type == MOED_FIELD_I32)
                good = json_integer_value(value) >= INT32_MIN && json_integer_value(value) <= INT32_MAX;
            if (!good) break;
            if (twin->field.type == MOED_FIELD_I32) *(int32_t *)p = (int32_t)json_integer_value(value);
            else *(int64_t *)p = json_integer_value(value);
        }
    }
    return good;
}

void flags_free(flags *f)
{
    for (size_t i = 0; i < f->count; i++) free(f->items[i].owned);
    f->count = 0;
}

/* ---- lists in flags ---- */

int pairs_read(const char *flag_name, const char *text, double *numbers, double *after, size_t room, size_t *count)
{
    *count = 0;
    for (const char *at = text; *at;) {
        char *end;
        if (*count == room) return fail(EXIT_INPUT, "--%s: more than %zu numbers", flag_name, room);
        numbers[*count] = strtod(at, &end);
        int bad = end == at || !isfinite(numbers[*count]);
        if (after) after[*count] = -1;
        if (!bad && after && *end == ':') {
            at = end + 1;
            after[*count] = strtod(at, &end);
            bad = end == at || !isfinite(after[*count]) || after[*count] < 0;
        }
        if (bad || (*end && *end != ',') || (*end == ',' && !end[1]))
            return fail(EXIT_INPUT, "--%s %s: must be numbers with commas between%s", flag_name, text,
                        after ? ", each with what belongs to it after a colon" : "");
        ++*count;
        at = *end ? end + 1 : end;
    }
    if (!*count) return fail(EXIT_INPUT, "--%s is empty", flag_name);
    return EXIT_DONE;
}
