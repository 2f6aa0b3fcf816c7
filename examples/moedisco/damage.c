/* damage.c - what is wrong in a model's directory. */
#include <dirent.h>
#include <string.h>

#include "damage.h"
#include "output.h"

int damage_has_tensors(const char *dir)
{
    static const char *const ENDS[] = {".safetensors", ".safetensors.index.json"};
    DIR *folder = opendir(dir);
    int found = 0;
    for (const struct dirent *e; folder && !found && (e = readdir(folder)) != NULL;)
        for (size_t i = 0; i < 2; i++) {
            const size_t n = strlen(e->d_name), m = strlen(ENDS[i]);
            found |= n >= m && !strcmp(e->d_name + n - m, ENDS[i]);
        }
    if (folder) closedir(folder);
    return found;
}

enum { KINDS = 10, SHOWN = 20 }; /* lines of a kind that people get; --json has all */
static const char *const NAMES[KINDS] = {"other", "file", "index", "missing", "extra",
                                         "shape", "cut",  "tied",  "not_finite", "zero"};

static int32_t tell(const moed_finding *f, void *user)
{
    int64_t *counts = user; /* (KINDS) */
    const int32_t kind = f->kind > 0 && f->kind < KINDS ? f->kind : 0;
    if (counts[kind]++ < SHOWN) say("  %s", f->text);
    emit(json_pack("{s:s, s:s, s:s, s:s, s:I, s:s}", "event", "fault", "kind", NAMES[kind], "tensor", utf8(f->tensor), "file",
                   utf8(f->file), "count", (json_int_t)f->count, "text", utf8(f->text)));
    return app_stopped();
}

int damage_tell(moed_context *c, const char *dir, int numbers)
{
    int64_t counts[KINDS] = {0}, faults = 0;
    moed_model_options o;
    char taken[32];
    OPTIONS_INIT(MODEL_OPTIONS, &o);
    if (!numbers) o.flags = MOED_MODEL_STREAM;
    const double started = now_seconds();
    const moed_status status = moed_model_inspect(c, dir, &o, tell, counts, &faults, app_cancel);
    if (status) return fail_status(status);
    for (int k = 0; k < KINDS; k++)
        if (counts[k] > SHOWN) say("  and %lld more of kind %s (--json lists all)", (long long)(counts[k] - SHOWN), NAMES[k]);
    emit(json_pack("{s:s, s:s, s:I, s:b}", "event", "damage", "path", utf8(dir), "faults", (json_int_t)faults, "numbers",
                   numbers));
    if (faults) return fail(EXIT_INPUT, "%s: %lld fault%s", dir, (long long)faults, faults == 1 ? "" : "s");
    if (numbers) say("nothing is wrong with it: files, shapes and every number (%s)", human_time(now_seconds() - started, taken));
    else say("nothing is wrong with its files and shapes; the numbers were not read");
    return EXIT_DONE;
}
