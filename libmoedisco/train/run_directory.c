/* train/run_directory.c - DIRECTORY of a run: its checkpoints by step, and whose it is. */
#include "run_directory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "util/file.h"

/* N of "step-N", -1 for any other name. */
static int64_t step_of(const char *name)
{
    if (strncmp(name, "step-", 5) != 0 || name[5] < '0' || name[5] > '9' || (name[5] == '0' && name[6])) return -1;
    char *end;
    const long long step = strtoll(name + 5, &end, 10);
    return *end == 0 && strlen(name) < 24 ? (int64_t)step : -1;
}

moed_status moedi_run_root(const moed_trainer *t, char **out)
{
    return moedi_path_join(t->context, t->options.directory, "checkpoints", out);
}

moed_status moedi_run_step_path(const moed_trainer *t, const char *root, int64_t step, char **out)
{
    char name[32];
    snprintf(name, sizeof name, "step-%" PRId64, step);
    return moedi_path_join(t->context, root, name, out);
}

static int newest_first(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

moed_status moedi_run_steps(const moed_trainer *t, const char *root, int64_t **steps, size_t *count)
{
    const moed_context *c = t->context;
    char **names = NULL;
    size_t name_count = 0;
    moed_status status = MOED_OK;
    struct stat there;
    *steps = NULL, *count = 0;
    if (lstat(root, &there) != 0 && errno == ENOENT) return MOED_OK;
    if (!moedi_path_is_directory(root)) /* a link to a disk that is away, say: not a run without checkpoints, to be begun anew */
        return moedi_fail_file(MOED_E_IO, root, -1, "is there, and is no directory or none that can be reached");
    MOEDI_TRY(moedi_directory_list(c, root, &names, &name_count));
    MOEDI_GO(MOEDI_NEW(c, name_count, steps));
    for (size_t i = 0; i < name_count; i++) {
        const int64_t step = step_of(names[i]);
        if (step >= 0) (*steps)[(*count)++] = step;
    }
    qsort(*steps, *count, sizeof **steps, newest_first);
out:
    for (size_t i = 0; i < name_count; i++) moedi_free(c, names[i]);
    moedi_free(c, names);
    if (status != MOED_OK) {
        moedi_free(c, *steps);
        *steps = NULL, *count = 0;
    }
    return status;
}

/* 1 when the directory holds checkpoints, valid or not. */
static moed_status any_checkpoint(const moed_trainer *t, int *any)
{
    char *root = NULL;
    int64_t *steps = NULL;
    size_t count = 0;
    MOEDI_TRY(moedi_run_root(t, &root));
    const moed_status status = moedi_run_steps(t, root, &steps, &count);
    *any = count > 0;
    moedi_free(t->context, steps);
    moedi_free(t->context, root);
    return status;
}

moed_status moedi_run_claim(moed_trainer *t)
{
    if (!t->options.directory || t->claimed) return MOED_OK;
    moedi_metrics metrics;
    MOEDI_TRY(moedi_directory_make(t->options.directory));
    MOEDI_TRY(moedi_metrics_open(&metrics, t->context, t->options.directory));
    moed_status status = MOED_OK;
    int used = 0;
    MOEDI_GO(moedi_metrics_used(&metrics, &used));
    if (!used) MOEDI_GO(any_checkpoint(t, &used));
    if (used && !t->resuming) {
        status = moedi_fail_file(MOED_E_EXISTS, t->options.directory, -1,
                                 "holds the metrics or checkpoints of a run: resume it, or choose another directory");
        goto out;
    }
    MOEDI_GO(moedi_metrics_cut(&metrics, t->step));
    t->metrics = metrics;
    t->claimed = 1;
    return MOED_OK;
out:
    moedi_metrics_close(&metrics);
    return status;
}
