/* choices.c - multiple-choice tasks, by the conventions of lm-evaluation-harness 0.4: an item is a context and choices; the
 * answer is the choice that is likeliest after the context and a blank (acc), or likeliest per character (acc_norm) or byte
 * (acc_bytes) of the choice. Contexts that are too long lose their beginning. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "choices.h"
#include "json_file.h"
#include "output.h"
#include "tokenize.h"

/* Where a task's items have what, and what stands around the question. */
typedef struct task {
    const char *name, *before, *question, *after;
    const char *list;      /* field with the choices, or */
    const char *fields[2]; /* a field for each */
    const char *gold;
} task;

static const task TASKS[] = {
    {0},
    {"arc_easy", "", "query", "\nAnswer:", "choices", {0}, "gold"}, /* the query begins with "Question: " already */
    {"piqa", "Question: ", "goal", "\nAnswer:", NULL, {"sol1", "sol2"}, "label"},
};

static const moed_field FIELDS[] = {
    FIELD_CHOICE_(choices_settings, task, "none|arc_easy|piqa",
                  "score the items of a multiple-choice task, JSON lines, instead of a corpus"),
    FIELD_INTEGER(choices_settings, items, 0, 0, 1 << 30, "of a task: the first so many items, 0 = all"),
    FIELD_TEXT_(choices_settings, labels,
                "of a task: a file with the number of the right choice of each item, where the items lack it"),
    FIELD_TEXT_(choices_settings, tokenizer,
                "of a task: a tokenizer.json; none = the model's own, or bytes for a model of bytes"),
    {sizeof(moed_field), 0, "tokenizer_program", "", "of a task: what reads a tokenizer.json: called with its path, it gets a "
     "JSON text a line and gives a JSON list of tokens a line; none = moedisco-tokenize, which takes Python and its tokenizers",
     MOED_FIELD_TEXT, offsetof(choices_settings, program), 0, 0, 0},
};

void choices_flags(flags *f, choices_settings *s)
{
    *s = (choices_settings){0};
    flags_table(f, "task", FIELDS, sizeof FIELDS / sizeof *FIELDS, s);
}

/* ---- items ---- */

typedef struct item {
    int64_t gold, first, count; /* its choices in the arrays of the set */
} item;

typedef struct item_set {
    item *items;
    int64_t count, room;
    char **texts;    /* the context of each item, then context, blank and choice for each choice: (count + choices) */
    int64_t *chars, *bytes; /* (choices) */
    int64_t text_count, choice_count, text_room;
} item_set;

static void set_free(item_set *s)
{
    for (int64_t i = 0; i < s->text_count; i++) free(s->texts[i]);
    free(s->texts);
    free(s->items);
    free(s->chars);
    free(s->bytes);
}

static void add_text(item_set *s, char *text)
{
    if (s->text_count == s->text_room) {
        s->text_room = 2 * s->text_room + 64;
        s->texts = must(realloc(s->texts, (size_t)s->text_room * sizeof *s->texts));
        s->chars = must(realloc(s->chars, (size_t)s->text_room * sizeof *s->chars));
        s->bytes = must(realloc(s->bytes, (size_t)s->text_room * sizeof *s->bytes));
    }
    s->texts[s->text_count++] = text;
}

static void add_choice(item_set *s, const char *context, const char *choice)
{
    add_text(s, text_format("%s %s", context, choice));
    int64_t chars = 0;
    for (const char *c = choice; *c; c++) chars += ((unsigned char)*c & 0xC0) != 0x80;
    s->chars[s->choice_count] = chars;
    s->bytes[s->choice_count++] = (int64_t)strlen(choice);
}

/* The sentence that is wrong with an item, or NULL. */
static const char *add_item(item_set *s, const task *t, const json_t *o, int64_t gold)
{
    const char *question = json_string_value(json_object_get(o, t->question));
    const json_t *list = t->list ? json_object_get(o, t->list) : NULL, *own = json_object_get(o, t->gold);
    const size_t count = t->list ? json_array_size(list) : 2;
    if (!question) return "has no question";
    if (count < 2) return "has no choices";
    if (s->count == s->room) s->items = must(realloc(s->items, (size_t)(s->room = 2 * s->room + 64) * sizeof *s->items));
    item *i = &s->items[s->count];
    *i = (item){.gold = json_is_integer(own) ? json_integer_value(own) : gold, .first = s->choice_count, .count = (int64_t)count};
    if (i->gold < 0) return "does not say which choice is right, and --labels does not either";
    if (i->gold >= i->count) return "says that a choice is right which it does not have";
    char *context = text_format("%s%s%s", t->before, question, t->after);
    add_text(s, context);
    s->count++;
    for (size_t k = 0; k < count; k++) {
        const char *choice = json_string_value(t->list ? json_array_get(list, k) : json_object_get(o, t->fields[k]));
        if (!choice || !*choice) return "has a choice that is no text";
        add_choice(s, context, choice);
    }
    return NULL;
}

/* The numbers in a file, one for each item; NULL after telling why there are none. */
static int64_t *read_labels(const char *path, int64_t *count)
{
    size_t size;
    char *text = read_text(path, &size), *end = text;
    if (!text) return NULL;
    int64_t *labels = must(calloc(size / 2 + 1, sizeof *labels)); /* a digit and a line break each, at least */
    *count = 0;
    for (const char *at = text;; at = end) {
        const long long label = strtoll(at, &end, 10);
        if (end == at) break;
        labels[(*count)++] = label;
    }
    const int whole = !end[strspn(end, " \t\r\n")];
    free(text);
    if (whole) return labels;
    free(labels);
    fail(EXIT_INPUT, "%s: line %lld is no number", path, (long long)*count + 1);
    return NULL;
}

static int read_items(const char *path, const choices_settings *s, item_set *set)
{
    const task *t = &TASKS[s->task];
    int64_t label_count = 0;
    int64_t *labels = s->labels ? read_labels(s->labels, &label_count) : NULL;
    lines l = {0};
    int code = s->labels && !labels ? EXIT_INPUT : lines_open(&l, path);
    while (!code && (!s->items || set->count < s->items) && lines_next(&l)) {
        json_t *o = lines_object(&l);
        const char *wrong = o ? add_item(set, t, o, set->count < label_count ? labels[set->count] : -1) : NULL;
        if (!o) code = EXIT_INPUT;
        if (wrong) code = lines_fail(&l, " %s", wrong);
        json_decref(o);
    }
    if (!code && !set->count) code = fail(EXIT_INPUT, "%s: has no items", path);
    lines_close(&l);
    free(labels);
    return code;
}

/* ---- requests ---- */

/* A choice after its context as a row of tokens. */
typedef struct request {
    const int32_t *tokens; /* of the row, and the one after its last */
    int64_t length;        /* of the row */
    int64_t scored;        /* tokens at its end whose successors are the choice's */
    int64_t choice;        /* in the set's arrays */
} request;

static int longer(const void *a, const void *b)
{
    const request *x = a, *y = b;
    if (x->length != y->length) return x->length < y->length ? 1 : -1;
    return x->choice < y->choice ? -1 : x->choice > y->choice;
}

/* Tokens of the context alone are cut from those of context and choice, as the harness does: a token may reach over the
 * border. */
static int make_requests(const item_set *s, const token_list *tokens, int64_t longest, const char *path, request *out)
{
    const token_list *next = tokens;
    for (int64_t i = 0; i < s->count; i++) {
        const token_list *context = next++;
        for (int64_t k = 0; k < s->items[i].count; k++) {
            const token_list *whole = next++;
            const int64_t count = (int64_t)whole->count, scored = count - (int64_t)context->count;
            if (scored < 1 || scored > longest || count < 2)
                return fail(EXIT_INPUT, "%s: item %lld: choice %lld has %lld tokens; from 1 to the %lld of the model's context "
                            "are scored", path, (long long)i + 1, (long long)k, (long long)scored, (long long)longest);
            const int64_t length = count - 1 < longest ? count - 1 : longest;
            out[s->items[i].first + k] = (request){.tokens = whole->ids + count - 1 - length, .length = length,
                                                   .scored = scored < length ? scored : length, .choice = s->items[i].first + k};
        }
    }
    return EXIT_DONE;
}

enum { TOKENS_AT_ONCE = 1 << 16 };

/* Likelihoods of requests (count), sorted, which fit together: out by choice. */
static moed_status score_some(const moed_model *m, const request *r, int64_t count, double *out)
{
    const int64_t length = r[0].length;
    const size_t room = (size_t)(count * length);
    int32_t *tokens = must(calloc(room, sizeof *tokens)), *labels = must(malloc(room * sizeof *labels));
    double *sums = must(calloc((size_t)count, sizeof *sums));
    memset(labels, -1, room * sizeof *labels);
    for (int64_t i = 0; i < count; i++) {
        memcpy(tokens + i * length, r[i].tokens, (size_t)r[i].length * sizeof *tokens);
        for (int64_t at = r[i].length - r[i].scored; at < r[i].length; at++) labels[i * length + at] = r[i].tokens[at + 1];
    }
    const moed_batch b = {.tokens = tokens, .labels = labels, .rows = count, .length = length};
    const moed_status status = moed_model_likelihood(m, &b, sums, NULL, app_cancel);
    for (int64_t i = 0; i < count; i++) out[r[i].choice] = sums[i];
    free(tokens);
    free(labels);
    free(sums);
    return status;
}

/* Rows of like length go together. */
static int score(const moed_model *m, request *r, int64_t count, double *out)
{
    progress p;
    char text[64];
    progress_begin(&p, "eval", count, NULL);
    qsort(r, (size_t)count, sizeof *r, longer);
    for (int64_t at = 0, some, done; at < count; at = done) {
        some = TOKENS_AT_ONCE / r[at].length > 1 ? TOKENS_AT_ONCE / r[at].length : 1;
        if (some > count - at) some = count - at;
        done = at + some;
        const moed_status status = score_some(m, r + at, some, out);
        if (status) return progress_end(&p), fail_status(status);
        snprintf(text, sizeof text, "eval: %lld of %lld choices", (long long)done, (long long)count);
        progress_text(&p, done == count, text);
    }
    progress_end(&p);
    for (int64_t i = 0; i < count; i++)
        if (!isfinite(out[i])) return fail(EXIT_INPUT, "the model's likelihoods are not numbers; moedisco info looks for why");
    return EXIT_DONE;
}

/* ---- figures ---- */

enum { ACC, ACC_NORM, ACC_BYTES, FIGURES };
static const char *const NAMES[FIGURES] = {"acc", "acc_norm", "acc_bytes"};

/* The choice with the largest likelihood per unit; of equal ones the first. */
static int64_t best(const double *likelihoods, const int64_t *units, const item *i)
{
    int64_t chosen = 0;
    double most = -INFINITY;
    for (int64_t k = 0; k < i->count; k++) {
        const double value = likelihoods[i->first + k] / (units ? (double)units[i->first + k] : 1.0);
        if (value > most) most = value, chosen = k;
    }
    return chosen;
}

static void tell_item(const item_set *s, const double *likelihoods, int64_t number, const int64_t chosen[FIGURES])
{
    const item *i = &s->items[number];
    json_t *list = json_array();
    for (int64_t k = 0; k < i->count; k++) put_last(list, json_real(likelihoods[i->first + k]));
    emit(json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:o}", "event", "item", "item", (json_int_t)number, "gold",
                   (json_int_t)i->gold, NAMES[ACC], (json_int_t)chosen[ACC], NAMES[ACC_NORM], (json_int_t)chosen[ACC_NORM],
                   NAMES[ACC_BYTES], (json_int_t)chosen[ACC_BYTES], "likelihoods", list));
}

static void tell(const item_set *s, const double *likelihoods, const task *t, const tokenizer *by)
{
    const int64_t *units[FIGURES] = {NULL, s->chars, s->bytes};
    int64_t right[FIGURES] = {0};
    for (int64_t i = 0; i < s->count; i++) {
        int64_t chosen[FIGURES];
        for (int f = 0; f < FIGURES; f++) {
            chosen[f] = best(likelihoods, units[f], &s->items[i]);
            right[f] += chosen[f] == s->items[i].gold;
        }
        if (output_json()) tell_item(s, likelihoods, i, chosen);
    }
    const char *tokens = by->file ? by->file : "bytes";
    json_t *o = must(json_pack("{s:s, s:s, s:s, s:I}", "event", "task", "task", t->name, "tokenizer", utf8(tokens), "items",
                               (json_int_t)s->count));
    say("%s: %lld items, tokens by %s", t->name, (long long)s->count, tokens);
    for (int f = 0; f < FIGURES; f++) {
        static const char *const OF[FIGURES] = {"likeliest choice", "likeliest per character", "likeliest per byte"};
        const double n = (double)s->count, mean = (double)right[f] / n, deviation = n > 1 ? sqrt(mean * (1 - mean) / (n - 1)) : 0;
        char name[32];
        snprintf(name, sizeof name, "%s_stderr", NAMES[f]);
        put(o, NAMES[f], json_real(mean));
        put(o, name, json_real(deviation));
        say("  %-9s %.4f +- %.4f  %s", NAMES[f], mean, deviation, OF[f]);
    }
    emit(o);
}

/* ---- together ---- */

/* own: where the path of the model's own tokenizer is kept. */
static int choose_tokenizer(const choices_settings *s, const char *dir, const moed_layout_info *i, tokenizer *out, char **own)
{
    *own = path_join(dir, "tokenizer.json");
    *out = (tokenizer){.file = s->tokenizer ? s->tokenizer : path_exists(*own) ? *own : NULL, .program = s->program,
                       .vocabulary = i->vocabulary};
    if (out->file && !path_exists(out->file)) return fail(EXIT_INPUT, "--tokenizer %s: there is no such file", out->file);
    if (out->file || i->vocabulary == BYTES_VOCABULARY) return EXIT_DONE;
    return fail(EXIT_INPUT, "%s: a vocabulary of %lld tokens, and no tokenizer.json beside it; give one by --tokenizer", dir,
                (long long)i->vocabulary);
}

int choices_evaluate(const moed_model *m, const char *dir, const char *path, const choices_settings *s)
{
    moed_layout_info info = {.struct_size = sizeof info};
    tokenizer by;
    char *own = NULL;
    item_set set = {0};
    token_list *tokens = NULL;
    request *requests = NULL;
    double *likelihoods = NULL;
    moed_layout_get_info(moed_model_layout(m), &info);
    int code = choose_tokenizer(s, dir, &info, &by, &own);
    if (!code) code = read_items(path, s, &set);
    if (!code) code = tokenize(&by, set.texts, (size_t)set.text_count, &tokens);
    if (!code) {
        requests = must(calloc((size_t)set.choice_count, sizeof *requests));
        likelihoods = must(calloc((size_t)set.choice_count, sizeof *likelihoods));
        code = make_requests(&set, tokens, info.context_length, path, requests);
    }
    if (!code) code = score(m, requests, set.choice_count, likelihoods);
    if (!code) tell(&set, likelihoods, &TASKS[s->task], &by);
    free(requests);
    free(likelihoods);
    tokens_free(tokens, (size_t)set.text_count);
    set_free(&set);
    free(own);
    return code;
}
