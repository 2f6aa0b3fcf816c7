/* train/metrics.c - lines for plots and tables; jansson prints the numbers, so the host's locale cannot change them. */
#include "metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "util/file.h"
#include "util/json.h"

enum { LINE_MOST = 1 << 13, LAYERS_MOST = 240 /* whose loads a line has room for */ };

moed_status moedi_metrics_open(moedi_metrics *out, const moed_context *c, const char *directory)
{
    moedi_metrics m = {.fd = -1, .path = NULL, .context = c};
    MOEDI_TRY(moedi_path_join(c, directory, "metrics.jsonl", &m.path));
    do m.fd = open(m.path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    while (m.fd < 0 && errno == EINTR);
    moed_status status = MOED_OK;
    if (m.fd < 0) status = moedi_fail_errno(m.path, "open");
    /* A file system without locks (ENOLCK, EOPNOTSUPP) is no reason to stop: the lock guards against a mistake only. */
    else if (flock(m.fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        status = moedi_fail_file(MOED_E_STATE, m.path, -1, "another trainer is writing to this directory");
    if (status != MOED_OK) {
        moedi_metrics_close(&m);
        return status;
    }
    *out = m;
    return MOED_OK;
}

void moedi_metrics_close(moedi_metrics *m)
{
    if (m->fd >= 0) close(m->fd);
    if (m->path) moedi_free(m->context, m->path);
    m->fd = -1;
    m->path = NULL;
}

moed_status moedi_metrics_used(const moedi_metrics *m, int *used)
{
    const off_t size = lseek(m->fd, 0, SEEK_END);
    if (size < 0) return moedi_fail_errno(m->path, "read");
    *used = size > 0;
    return MOED_OK;
}

/* The step a line is about, or -1 when it is no line of ours; a lack of memory is not taken for that. */
static moed_status step_of(const moedi_metrics *m, const char *line, size_t size, int64_t *step)
{
    json_t *o = NULL;
    const moed_status status = moedi_json_parse(&o, line, size, m->path);
    *step = -1;
    if (status == MOED_E_MEMORY) return status;
    moedi_clear_error();
    const json_t *value = json_object_get(o, "step");
    if (json_is_integer(value)) *step = (int64_t)json_integer_value(value);
    json_decref(o);
    return MOED_OK;
}

static int shorten(const moedi_metrics *m, off_t size)
{
    int result;
    do result = ftruncate(m->fd, size);
    while (result != 0 && errno == EINTR);
    return result;
}

moed_status moedi_metrics_cut(moedi_metrics *m, int64_t step)
{
    if (m->fd < 0) return MOED_OK;
    char buffer[4 * LINE_MOST];
    off_t kept = 0;
    for (;;) {
        const ssize_t n = pread(m->fd, buffer, sizeof buffer, kept);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return moedi_fail_errno(m->path, "read");
        size_t used = 0;
        int stop = 0;
        const char *end;
        while (!stop && (end = memchr(buffer + used, '\n', (size_t)n - used))) {
            const size_t size = (size_t)(end - (buffer + used));
            int64_t at;
            MOEDI_TRY(step_of(m, buffer + used, size, &at));
            stop = at > step;
            if (!stop) used += size + 1;
        }
        kept += (off_t)used;
        if (stop || used == 0) break;
    }
    if (shorten(m, kept) != 0) return moedi_fail_errno(m->path, "shorten");
    return MOED_OK;
}

/* Takes o. A line that could not be written whole is taken back. */
static moed_status append(moedi_metrics *m, json_t *o)
{
    char line[LINE_MOST];
    const size_t size = o ? moedi_json_line(o, line, sizeof line - 1,
                                            JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(10))
                          : 0;
    json_decref(o);
    if (size == 0 || size > sizeof line - 1) return moedi_fail(MOED_E_MEMORY, "out of memory for a line of %s", m->path);
    line[size] = '\n';
    const off_t before = lseek(m->fd, 0, SEEK_END);
    for (size_t done = 0; done < size + 1;) {
        const ssize_t n = write(m->fd, line + done, size + 1 - done);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO;
        if (n > 0) {
            done += (size_t)n;
            continue;
        }
        const moed_status status = moedi_fail_errno(m->path, "write");
        if (done > 0 && before >= 0 && shorten(m, before) != 0)
            moedi_log(m->context, MOED_LOG_WARNING, "%s: ends in a torn line; resume takes it away", m->path);
        return status;
    }
    return MOED_OK;
}

/* Four digits say enough of it. */
static int add_rounded(json_t *list, double x)
{
    return json_array_append_new(list, json_real(round(x * 1e4) / 1e4));
}

/* How even each layer's choices are, layers without experts left out. NULL: no memory. */
static json_t *pack_loads(const moedi_config *c, const int64_t *loads, int64_t *scratch)
{
    json_t *most = json_array(), *least = json_array(), *entropy = json_array(), *gini = json_array();
    int failed = !most || !least || !entropy || !gini;
    for (int64_t layer = 0; !failed && layer < c->layers; layer++) {
        if (moedi_config_dense(c, layer)) continue;
        const moedi_evenness found = moedi_loads_evenness(loads + layer * c->experts, c->experts, scratch);
        failed = add_rounded(most, found.most) || add_rounded(least, found.least) || add_rounded(entropy, found.entropy) ||
                 add_rounded(gini, found.gini);
    }
    if (!failed) return json_pack("{s:o, s:o, s:o, s:o}", "max", most, "min", least, "entropy", entropy, "gini", gini);
    json_decref(most), json_decref(least), json_decref(entropy), json_decref(gini);
    return NULL;
}

moed_status moedi_metrics_step(moedi_metrics *m, const moed_report *r, const moedi_config *c, const int64_t *loads,
                               int64_t *scratch)
{
    if (m->fd < 0) return MOED_OK;
    json_t *o = json_pack("{s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "step", (json_int_t)r->step, "tokens",
                          (json_int_t)r->tokens, "loss", r->loss, "load_balance", r->load_balance, "z_loss", r->z_loss,
                          "gradient_norm", r->gradient_norm, "learning_rate", r->learning_rate, "max_load", r->max_load,
                          "seconds", r->seconds, "tokens_per_second", r->tokens_per_second);
    if (o && c->experts > 1 && c->routed_layers > 0 && c->routed_layers <= LAYERS_MOST &&
        json_object_set_new(o, "loads", pack_loads(c, loads, scratch)) != 0) {
        json_decref(o);
        o = NULL;
    }
    return append(m, o);
}

moed_status moedi_metrics_evaluation(moedi_metrics *m, int64_t step, const moed_report *r)
{
    if (m->fd < 0) return MOED_OK;
    const double most = 700.0; /* exp stays finite */
    return append(m, json_pack("{s:I, s:f, s:f, s:I, s:f}", "step", (json_int_t)step, "held_out_loss", r->loss, "perplexity",
                               exp(r->loss < most ? r->loss : most), "labels", (json_int_t)r->labels, "evaluation_seconds",
                               r->seconds));
}

moed_status moedi_metrics_expansion(moedi_metrics *m, int64_t step, const moedi_config *c)
{
    if (m->fd < 0) return MOED_OK;
    return append(m, json_pack("{s:I, s:I, s:I}", "step", (json_int_t)step, "experts", (json_int_t)c->experts, "top_k",
                               (json_int_t)c->top_k));
}

moed_status moedi_metrics_sync(moedi_metrics *m)
{
    if (m->fd < 0) return MOED_OK;
    int result;
    do result = fdatasync(m->fd);
    while (result != 0 && errno == EINTR);
    return result == 0 ? MOED_OK : moedi_fail_errno(m->path, "sync");
}
