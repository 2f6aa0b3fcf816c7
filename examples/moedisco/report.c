/* report.c - what a run directory holds: the table of its pipelines. */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "json_file.h"
#include "output.h"
#include "report.h"
#include "settings.h"

static int visible(const struct dirent *e) { return e->d_name[0] != '.'; }

static char *pipeline_file(const char *root, const char *name, const char *file)
{
    return text_format("%s/%s/%s", root, name, file);
}

/* Calls take for every pipeline below root, in name order; EXIT_INPUT after telling of a damaged file. */
static int each(const char *root, const char *file, void (*take)(const char *name, const json_t *o, void *user), void *user)
{
    struct dirent **entries = NULL;
    const int count = scandir(root, &entries, visible, alphasort);
    int code = EXIT_DONE;
    for (int i = 0; i < count; i++) {
        char *run = pipeline_file(root, entries[i]->d_name, "run.json"), *path = pipeline_file(root, entries[i]->d_name, file);
        const int there = path_exists(run) && path_exists(path);
        json_t *o = there ? read_json(path) : NULL;
        if (there && !o) code = EXIT_INPUT;
        if (o) take(entries[i]->d_name, o, user);
        json_decref(o);
        free(run);
        free(path);
        free(entries[i]);
    }
    free(entries);
    return code;
}

int report_holds_pipelines(const char *root)
{
    struct dirent **entries = NULL;
    const int count = scandir(root, &entries, visible, alphasort);
    int found = 0;
    for (int i = 0; i < count; i++) {
        char *run = pipeline_file(root, entries[i]->d_name, "run.json");
        found |= path_exists(run);
        free(run);
        free(entries[i]);
    }
    free(entries);
    return found;
}

static double number(const json_t *o, const char *a, const char *b)
{
    const json_t *inner = b ? json_object_get(json_object_get(o, a), b) : json_object_get(o, a);
    return json_number_value(inner);
}

static const char *text_of(const json_t *o, const char *field)
{
    const char *text = json_string_value(json_object_get(o, field));
    return text ? text : "not known";
}

typedef struct table {
    int rows, tiny;   /* tiny: some run costs less than a cent */
} table;

static void row(const char *name, const json_t *o, void *user)
{
    char money[32], flops[32], here[32], device_hours[32], hours[32];
    const double loss = number(o, "held_out_loss", NULL);
    table *t = user;
    t->rows++;
    t->tiny |= number(o, "cost", "money") < 0.01;
    snprintf(device_hours, sizeof device_hours, "%.3g", number(o, "cost", "device_hours"));
    snprintf(hours, sizeof hours, "%.3g", number(o, "cost", "hours"));
    say("  %-10s %7.4f %10.3f %9s %9s %9s %8s %8s", name, loss, exp(loss),
        human_money(number(o, "cost", "money"), money), human_flops(number(o, "cost", "flops"), flops),
        human_time(number(o, "cost", "seconds_here"), here), device_hours, hours);
    json_t *copy = must(json_copy((json_t *)(uintptr_t)o));
    if (!json_equal(copy, o)) must(NULL); /* a copy may lose fields to a lack of memory */
    put(copy, "event", json_string("result"));
    put(copy, "pipeline", json_string(name));
    emit(copy);
}

static void prices(const char *name, const json_t *o, void *user)
{
    char *const seen = user; /* every set of prices once */
    const json_t *s = json_object_get(o, "settings");
    char text[512], line[640];
    (void)name;
    snprintf(text, sizeof text,
             "%s $%.4g/h at an inferred %.3g TFLOP/s (start, S-phase), %s $%.4g/h at %.3g TFLOP/s (F-phase), prices of %s",
             text_of(s, "cheap-device"), number(s, "cheap-price", NULL), number(s, "cheap-flops", NULL) / 1e12,
             text_of(s, "dear-device"), number(s, "dear-price", NULL), number(s, "dear-flops", NULL) / 1e12,
             text_of(s, "price-date"));
    snprintf(line, sizeof line, "%s", text);
    if (!strcmp(seen, line)) return;
    snprintf(seen, 640, "%s", line);
    say_wrapped("priced, not run: money, device-hours and hours are those of devices that were not present: %s.", line);
}

int report_table(const char *root)
{
    table t = {0};
    char seen[640] = "";
    say(" ");
    say("  %-10s %7s %10s %9s %9s %9s %8s %8s", "pipeline", "loss", "perplexity", "money", "FLOP", "time here", "device-h",
        "hours");
    const int results = each(root, "result.json", row, &t);
    if (!t.rows) say("  (no pipeline in %s is finished yet)", root);
    const int runs = each(root, "run.json", prices, seen);
    say_wrapped("loss and perplexity are those of the held-out documents.");
    if (t.tiny) say_wrapped("money is tiny because the model is: a GPU would be done with it in a moment.");
    say_wrapped("time here is wall-clock, measured on this machine. Published beside it (MoE-DisCo paper, GPUs, loss of "
                "full training): 47.6 to 69.5 %% of the money saved.");
    return results ? results : runs;
}

static int in_dir(const char *dir, const char *name)
{
    char *path = path_join(dir, name);
    const int there = path_exists(path);
    free(path);
    return there;
}

int report_pipeline(const char *dir)
{
    char *path = path_join(dir, "run.json"), *result_path = path_join(dir, "result.json");
    json_t *o = read_json(path), *result = o && path_exists(result_path) ? read_json(result_path) : NULL;
    free(path);
    free(result_path);
    if (!o) return EXIT_INPUT;
    const json_t *s = json_object_get(o, "settings");
    char money[32], flops[32];
    const char *stage = result ? "finished" : in_dir(dir, "model") ? "trained" : in_dir(dir, "integrated") ? "in its F-phase"
                        : in_dir(dir, "submodels") ? "in its S-phase" : "begun";
    say("pipeline %s: %s, %s; corpus %s, seed %lld, kernels %s", dir, text_of(o, "command"), stage, text_of(s, "corpus"),
        (long long)json_integer_value(json_object_get(o, "seed")), text_of(o, "kernels"));
    say("  steps: start %lld, S-phase %lld, F-phase %lld; planned: %s, %s",
        (long long)json_integer_value(json_object_get(s, "start-steps")),
        (long long)json_integer_value(json_object_get(s, "branch-steps")),
        (long long)json_integer_value(json_object_get(s, "steps")), human_money(number(o, "plan", "money"), money),
        human_flops(number(o, "plan", "flops"), flops));
    if (result)
        say("  held-out loss %.4f, perplexity %.3f", number(result, "held_out_loss", NULL), number(result, "perplexity", NULL));
    put(o, "event", json_string("run"));
    put(o, "stage", json_string(stage));
    put(o, "result", result ? json_incref((json_t *)(uintptr_t)result) : json_null());
    emit(o);
    json_decref(result);
    return EXIT_DONE;
}
