/* app.c - what every verb shares. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "app.h"
#include "output.h"

int fail(int code, const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    for (char *c = text; *c; c++)
        if ((unsigned char)*c < 32 || *c == 127) *c = '?';
    output_clear();
    fflush(stdout);
    fprintf(stderr, "moedisco: %s\n", text);
    return code;
}

int exit_code(moed_status status)
{
    moed_error_info e = {.struct_size = sizeof e};
    switch (status) {
    case MOED_OK: return EXIT_DONE;
    case MOED_E_LIMIT:
    case MOED_E_MEMORY: return EXIT_FIT;
    case MOED_E_CANCELLED:
    case MOED_E_CALLBACK: return EXIT_STOPPED;
    case MOED_E_IO: return moed_last_error_get(&e) == MOED_OK && e.retryable ? EXIT_OTHER : EXIT_INPUT;
    case MOED_E_DEVICE:
    case MOED_E_FORKED:
    case MOED_E_INTERNAL: return EXIT_OTHER;
    default: return EXIT_INPUT;
    }
}

int fail_errno(const char *path, const char *what, int reason)
{
    const int space = reason == ENOSPC || reason == EDQUOT || reason == EFBIG;
    const int place = reason == EACCES || reason == EPERM || reason == EROFS || reason == EISDIR || reason == ENOTDIR ||
                      reason == ENOENT || reason == ENAMETOOLONG || reason == ELOOP;
    return fail(space || place ? EXIT_INPUT : EXIT_OTHER, "%s: %s: %s", path, what, strerror(reason));
}

int fail_status(moed_status status)
{
    const char *text = moed_last_error();
    if ((status == MOED_E_CANCELLED || status == MOED_E_CALLBACK) && app_stopped())
        return fail(EXIT_STOPPED, "stopped; the same command starts again");
    return fail(exit_code(status), "%s", text[0] ? text : moed_status_text(status));
}

/* ---- context ---- */

static const moed_field OUTPUT_FIELDS[] = {
    FIELD_SWITCH_(common, json, "JSON lines only on standard output"),
    FIELD_SWITCH_(common, quiet, "no progress"),
};

void common_flags(flags *f, common *c)
{
    memset(c, 0, sizeof *c);
    const size_t from = f->count;
    OPTIONS_INIT(CONTEXT_OPTIONS, &c->context);
    c->context.log_level = MOED_LOG_WARNING;
    flags_struct(f, "device", MOED_STRUCT_CONTEXT_OPTIONS, &c->context, NULL);
    flags_table(f, "output", OUTPUT_FIELDS, sizeof OUTPUT_FIELDS / sizeof *OUTPUT_FIELDS, c);
    flags_passing(f, from);
}

static void log_line(int32_t level, const char *line, void *user)
{
    (void)user;
    static const char *const NAMES[] = {"", "error", "warning", "info", "debug"};
    output_clear();
    fprintf(stderr, "%s: %s\n", level >= 1 && level <= 4 ? NAMES[level] : "log", line);
}

int common_open(const common *c, moed_context **out)
{
    output_mode(c->json, c->quiet);
    moed_context_options o = c->context;
    o.log = log_line;
    const moed_status status = moed_context_create(out, &o);
    return status ? fail_status(status) : EXIT_DONE;
}

moed_status open_corpus(moed_corpus **out, moed_context *c, const char *prefix) { return moed_corpus_open(out, c, prefix, NULL); }

moed_status open_streamed(moed_model **out, moed_context *c, const char *dir)
{
    moed_model_options o;
    OPTIONS_INIT(MODEL_OPTIONS, &o);
    o.flags = MOED_MODEL_STREAM;
    return moed_model_open(out, c, dir, &o);
}

/* ---- paths and numbers ---- */

void *must(void *memory)
{
    if (!memory) exit(fail(EXIT_FIT, "out of memory"));
    return memory;
}

char *text_format(const char *format, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, format);
    if (vasprintf(&text, format, list) < 0) text = NULL;
    va_end(list);
    return must(text);
}

char *path_join(const char *a, const char *b)
{
    const size_t n = strlen(a);
    return text_format("%s%s%s", a, n && a[n - 1] == '/' ? "" : "/", b);
}

int path_exists(const char *path) { return access(path, F_OK) == 0; }

int path_is_folder(const char *path)
{
    struct stat s;
    return stat(path, &s) == 0 && S_ISDIR(s.st_mode);
}

int make_folder(const char *path)
{
    char *copy = must(strdup(path));
    int code = EXIT_DONE;
    for (char *at = copy + 1;; at++) {
        if (*at && *at != '/') continue;
        const char kept = *at;
        *at = 0;
        if (mkdir(copy, 0777) && errno != EEXIST) {
            code = fail_errno(copy, "cannot make the folder", errno);
            break;
        }
        *at = kept;
        if (!kept) break;
    }
    if (!code && !path_is_folder(path)) code = fail(EXIT_INPUT, "%s: is not a folder", path);
    free(copy);
    return code;
}

int make_folder_for(const char *path, char **made)
{
    char *first = NULL; /* the topmost that is missing */
    for (size_t n = 1; !first && path[n - 1]; n++) {
        if (path[n] && path[n] != '/') continue;
        char *folder = must(strndup(path, n));
        if (path_exists(folder)) free(folder);
        else first = folder;
    }
    const int code = make_folder(path);
    if (code) unmake_folder(code, path, first);
    *made = code ? NULL : first;
    return code;
}

void unmake_folder(int code, const char *path, char *made)
{
    char *at = must(strdup(path));
    while (code && made && strlen(at) >= strlen(made) && (!rmdir(at) || errno == ENOENT)) {
        char *slash = strrchr(at, '/');
        if (!slash) break;
        *slash = 0;
    }
    free(at);
    free(made);
}

/* The real path of something whose last part need not exist. */
static char *real_path(const char *path)
{
    char buffer[PATH_MAX];
    if (realpath(path, buffer)) return must(strdup(buffer));
    const char *slash = strrchr(path, '/');
    char *folder = slash ? must(strndup(path, (size_t)(slash - path) + 1)) : must(strdup("."));
    char *result = realpath(folder, buffer) ? path_join(buffer, slash ? slash + 1 : path) : must(strdup(path));
    free(folder);
    return result;
}

char *path_relative(const char *from, const char *to)
{
    char *a = real_path(from), *b = real_path(to);
    size_t common_end = 0, i = 0;
    for (;; i++) {
        const int a_ends = a[i] == 0 || a[i] == '/', b_ends = b[i] == 0 || b[i] == '/';
        if (a_ends && b_ends) common_end = i;
        if (a[i] != b[i] || !a[i]) break;
    }
    char *result = must(strdup(""));
    for (const char *at = a + common_end; *at; at++)
        if (*at == '/' && at[1]) {
            char *longer = text_format("%s../", result);
            free(result);
            result = longer;
        }
    const char *rest = b + common_end;
    while (*rest == '/') rest++;
    char *whole = text_format("%s%s", result, rest);
    free(result);
    free(a);
    free(b);
    return whole;
}

char *path_from(const char *folder, const char *path) { return path[0] == '/' ? must(strdup(path)) : path_join(folder, path); }

int open_again(const char *path, int how)
{
    int file;
    do file = open(path, how, 0666);
    while (file < 0 && errno == EINTR);
    return file;
}

int write_whole(int file, const char *data, size_t size)
{
    while (size > 0) {
        const ssize_t n = write(file, data, size);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) errno = EIO;
        if (n <= 0) return -1;
        data += n;
        size -= (size_t)n;
    }
    return 0;
}

double now_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

const char *human_bytes(int64_t bytes, char out[32])
{
    static const char *const UNITS[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1000 && unit < 4) {
        value /= 1000;
        unit++;
    }
    snprintf(out, 32, unit ? "%.3g %s" : "%.0f %s", value, UNITS[unit]);
    return out;
}

const char *human_count(double count, char out[32])
{
    static const char *const UNITS[] = {"", "k", "M", "G", "T", "P", "E"};
    size_t unit = 0;
    while (count >= 999.5 && unit < 6) {
        count /= 1000;
        unit++;
    }
    snprintf(out, 32, "%.3g%s", count, UNITS[unit]);
    return out;
}

const char *human_flops(double flops, char out[32])
{
    static const char *const UNITS[] = {"", "k", "M", "G", "T", "P", "E", "Z"};
    size_t unit = 0;
    while (flops >= 999.5 && unit < 7) {
        flops /= 1000;
        unit++;
    }
    snprintf(out, 32, flops < 9.95 && unit ? "%.1f %sFLOP" : "%.0f %sFLOP", flops, UNITS[unit]);
    return out;
}

const char *human_time(double seconds, char out[32])
{
    const int64_t s = seconds > 0 ? (int64_t)(seconds + 0.5) : 0;
    if (s >= 3600) snprintf(out, 32, "%lld:%02d:%02d", (long long)(s / 3600), (int)(s / 60 % 60), (int)(s % 60));
    else snprintf(out, 32, "%d:%02d", (int)(s / 60), (int)(s % 60));
    return out;
}

char *read_text(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        if (errno == ENOMEM) must(NULL);
        fail(EXIT_INPUT, "%s: cannot be read: %s", path, strerror(errno));
        return NULL;
    }
    size_t used = 0, room = 1 << 16;
    char *text = must(malloc(room));
    for (size_t got; (got = fread(text + used, 1, room - used - 1, file)) > 0;) {
        used += got;
        if (used + 1 == room) text = must(realloc(text, room *= 2));
        if (used > 100u << 20) break;
    }
    const int reason = ferror(file) ? errno ? errno : EIO : 0, bad = reason || used > 100u << 20;
    fclose(file);
    if (bad) {
        if (reason) fail(EXIT_INPUT, "%s: cannot be read: %s", path, strerror(reason));
        else fail(EXIT_INPUT, "%s: has more than the 100 MB that are read as one text", path);
        free(text);
        return NULL;
    }
    text[used] = 0;
    *size = used;
    return text;
}

void last_words(FILE *file, char *out, size_t size)
{
    char line[1024];
    snprintf(out, size, "it said nothing");
    while (file && fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (line[0]) snprintf(out, size, "%s", strncmp(line, "moedisco: ", 10) ? line : line + 10);
    }
}

int same_folder(const char *a, const char *b)
{
    struct stat x, y;
    return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int refuse_same(const char *input, const char *out)
{
    if (!same_folder(input, out)) return EXIT_DONE;
    return fail(EXIT_INPUT, "%s: is the result and an input too; choose another folder for OUT", out);
}
