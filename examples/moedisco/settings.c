/* settings.c - run.json. */
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "json_file.h"
#include "output.h"
#include "settings.h"

enum { RUN_FORMAT = 1 };

int settings_write(const pipeline *p, const flags *f)
{
    moed_context_info info = {.struct_size = sizeof info};
    moed_corpus_info corpus = {.struct_size = sizeof corpus};
    moed_context_get_info(p->context, &info);
    moed_corpus_get_info(p->whole, &corpus);
    char *path = path_join(p->dir, "run.json"), *command = text_format("run %s", kind_name(p->kind)),
         *stages = p->growth ? growing_stages(p->growth) : NULL;
    json_t *o = must(json_pack("{s:i, s:s, s:s, s:s, s:s, s:I, s:s, s:s*, s:o, s:o}", "format", RUN_FORMAT, "command", command,
                               "version", moed_build_info(), "device", info.device, "kernels", info.kernels, "seed",
                               (json_int_t)p->train.seed, "fingerprint", corpus.fingerprint, "stages", stages, "settings",
                               flags_json(f), "plan", cost_plan(p)));
    const int code = write_json(path, o);
    free(path);
    free(command);
    free(stages);
    return code;
}

/* A text beside the settings; NULL: the version that wrote the file kept none. */
static char *kept_text(const json_t *o, const char *name)
{
    const char *text = json_string_value(json_object_get(o, name));
    return text ? must(strdup(text)) : NULL;
}

static char *as_text(const json_t *value)
{
    if (json_is_null(value)) return must(strdup("none"));
    if (json_is_string(value)) return must(strdup(json_string_value(value)));
    if (json_is_real(value)) return text_format("%.10g", json_real_value(value));
    return json_line(value, JSON_ENCODE_ANY);
}

static int differs(const char *path, const char *name, const json_t *kept, const json_t *given)
{
    char *a = as_text(kept), *b = as_text(given);
    const int code = fail(EXIT_INPUT,
                          "%s: was started with --%s %s, and %s is given now; leave it out to go on, or choose another "
                          "--name",
                          path, name, a, b);
    free(a);
    free(b);
    return code;
}

static int merge(flags *f, const char *path, const json_t *kept)
{
    json_t *given = flags_json(f);
    int code = EXIT_DONE;
    for (size_t i = 0; i < f->count && !code; i++) {
        flag *item = &f->items[i];
        if (item->passing || item->first != (int)i) continue;
        const json_t *value = json_object_get(kept, item->name);
        if (!value) continue; /* a setting that the version which wrote it did not have: its default */
        if (item->given) {
            if (!json_equal((json_t *)(uintptr_t)value, json_object_get(given, item->name)))
                code = differs(path, item->name, value, json_object_get(given, item->name));
        } else if (!flags_set_json(f, item, value)) {
            code = fail(EXIT_INPUT, "%s: settings.%s is not a value this version knows", path, item->name);
        }
    }
    json_decref(given);
    return code;
}

int settings_read(pipeline *p, flags *f)
{
    char *path = path_join(p->dir, "run.json");
    if (!path_exists(path)) {
        const int code = fail(EXIT_INPUT, "%s: there is no such file: not a pipeline's directory", path);
        free(path);
        return code;
    }
    json_t *o = read_json(path);
    const char *command = json_string_value(json_object_get(o, "command"));
    int code = o ? EXIT_DONE : EXIT_INPUT;
    if (!code && (!command || strncmp(command, "run ", 4) || kind_of(command + 4) < 0))
        code = fail(EXIT_INPUT, "%s: command is missing or not one of run disco, run full, run upcycle, run emo", path);
    else if (!code && json_integer_value(json_object_get(o, "format")) != RUN_FORMAT)
        code = fail(EXIT_INPUT, "%s: format is missing or not %d, which this version writes", path, RUN_FORMAT);
    else if (!code && p->kind >= 0 && kind_of(command + 4) != p->kind)
        code = fail(EXIT_INPUT, "%s: holds `%s`, and `run %s` is asked for; choose another --name", path, command,
                    kind_name(p->kind));
    if (!code) {
        p->kind = kind_of(command + 4);
        code = merge(f, path, json_object_get(o, "settings"));
        p->fingerprint = kept_text(o, "fingerprint");
        p->stages = kept_text(o, "stages");
    }
    if (!code && p->kind == KIND_EMO && !p->growing.grow) code = fail(EXIT_INPUT, "%s: settings.grow is missing", path);
    if (!code && !p->corpus) code = fail(EXIT_INPUT, "%s: settings.corpus is missing", path);
    if (!code && (p->start_steps < 0 || p->branch_steps < 0 || p->steps < 0))
        code = fail(EXIT_INPUT, "%s: settings.%s is missing or negative", path,
                    p->steps < 0 ? "steps" : p->branch_steps < 0 ? "branch-steps" : "start-steps");
    json_decref(o);
    free(path);
    return code;
}

/* As typed, and as seen from the file: the same folder may be named in another way the next time. */
int settings_write_source(const char *path, const char *text)
{
    char *from_here = path_relative(path, text);
    const int code = write_json(path, must(json_pack("{s:s, s:s}", "text", utf8(text), "from_here", utf8(from_here))));
    free(from_here);
    return code;
}

int settings_same_source(const char *path, const char *text)
{
    json_t *o = path_exists(path) ? read_json(path) : NULL;
    const char *kept = json_string_value(json_object_get(o, "text"));
    const char *kept_from_here = json_string_value(json_object_get(o, "from_here"));
    char *from_here = path_relative(path, text);
    int code = EXIT_DONE;
    if (kept && strcmp(kept, utf8(text)) && !(kept_from_here && !strcmp(kept_from_here, utf8(from_here)))) {
        code = fail(EXIT_INPUT, "%s: the corpus was built from --text %s, and %s is given now; choose another run directory "
                    "(of try: --output)", path, kept, text);
    }
    free(from_here);
    json_decref(o);
    return code;
}
