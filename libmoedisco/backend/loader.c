/* backend/loader.c - plug-ins are found, opened with local symbols, asked for their table, and never closed. */
#include "loader.h"

#include <dirent.h>
#include <dlfcn.h>
#include <fnmatch.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cpu/cpu.h"

typedef struct search {
    moedi_backend_visitor visit;
    void *user;
    int stopped;
    struct stat folders[16]; /* that were searched: the environment may name the library's own */
    int count;
} search;

/* ---- the host without a context ---- */

static moed_status bare_alloc(void *self, size_t size, void **out)
{
    (void)self;
    void *memory = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!memory) return moedi_fail(MOED_E_MEMORY, "no memory for %zu bytes", size);
    *out = memory;
    return MOED_OK;
}

static void bare_free(void *self, void *memory)
{
    (void)self;
    free(memory);
}

static void bare_parallel(void *self, int64_t count, moed_task_fn task, void *argument)
{
    (void)self;
    for (int64_t i = 0; i < count; i++) task(argument, i);
}

static void bare_log(void *self, int32_t level, const char *line)
{
    (void)self, (void)level, (void)line;
}

static moed_status bare_fail(void *self, moed_status status, const char *sentence)
{
    (void)self;
    return moedi_fail(status, "%s", sentence);
}

const moed_host_api moedi_bare_host = {
    .struct_size = sizeof(moed_host_api),
    .abi = MOED_BACKEND_ABI,
    .alloc = bare_alloc,
    .free = bare_free,
    .parallel = bare_parallel,
    .log = bare_log,
    .fail = bare_fail,
};

/* ---- plug-ins ---- */

/* NULL when the table can be used, else what it lacks. */
static const char *fault_of(const moed_backend *t)
{
    if (!t) return "its entry point returned no table: it does not work with this version of the library";
    if (t->abi != MOED_BACKEND_ABI) return "it was built for another version of the backend interface";
    const size_t needed = offsetof(moed_backend, kmeans_step); /* what follows is optional */
    if (t->struct_size < needed) return "its table is shorter than this library needs";
    if (!t->name || !*t->name || strchr(t->name, ':')) return "its table has no usable name";
    const char *slots = (const char *)t + offsetof(moed_backend, device);
    for (size_t at = 0; at < needed - offsetof(moed_backend, device); at += sizeof(void (*)(void))) {
        void (*slot)(void);
        memcpy(&slot, slots + at, sizeof slot);
        if (!slot) return "its table has an empty slot";
    }
    return NULL;
}

static void visit_plugin(search *s, const char *path)
{
    struct stat file;
    if (stat(path, &file) == 0 && !S_ISREG(file.st_mode)) { /* a named pipe would be waited for */
        s->stopped = s->visit(NULL, path, "it is no regular file", s->user);
        return;
    }
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        s->stopped = s->visit(NULL, path, reason ? reason : "it does not load", s->user);
        return;
    }
    void *symbol = dlsym(library, MOED_BACKEND_ENTRY);
    const char *fault = "it has no " MOED_BACKEND_ENTRY;
    const moed_backend *table = NULL;
    if (symbol) {
        moed_backend_entry_fn entry;
        memcpy(&entry, &symbol, sizeof entry);
        table = entry(&moedi_bare_host);
        fault = fault_of(table);
    }
    s->stopped = s->visit(fault ? NULL : table, path, fault ? fault : "", s->user);
}

static int is_plugin(const struct dirent *e)
{
    return fnmatch("libmoedisco-*.so", e->d_name, 0) == 0;
}

static int searched(search *s, const char *directory)
{
    struct stat folder;
    if (stat(directory, &folder) != 0) return 1; /* nothing to search */
    for (int i = 0; i < s->count; i++)
        if (s->folders[i].st_dev == folder.st_dev && s->folders[i].st_ino == folder.st_ino) return 1;
    if (s->count < (int)(sizeof s->folders / sizeof s->folders[0])) s->folders[s->count++] = folder;
    return 0;
}

static void visit_directory(search *s, const char *directory)
{
    struct dirent **names;
    if (s->stopped || directory[0] != '/') return; /* a relative folder would depend on the current directory */
    if (searched(s, directory)) return;
    const int count = scandir(directory, &names, is_plugin, alphasort);
    for (int i = 0; i < count; i++) {
        char path[4096];
        if (!s->stopped && snprintf(path, sizeof path, "%s/%s", directory, names[i]->d_name) < (int)sizeof path)
            visit_plugin(s, path);
        free(names[i]);
    }
    if (count >= 0) free(names);
}

void moedi_backends(const char *explicit_dir, int use_environment, moedi_backend_visitor visit, void *user)
{
    search s = {.visit = visit, .user = user};
    s.stopped = visit(&moedi_cpu_backend, "", "", user);
    if (explicit_dir && *explicit_dir && !s.stopped) {
        char *absolute = realpath(explicit_dir, NULL); /* the caller named it: relative is meant */
        if (absolute) visit_directory(&s, absolute);
        free(absolute);
    }
    const char *list = use_environment ? secure_getenv("MOED_BACKEND_PATH") : NULL;
    while (list && *list) {
        char directory[4096];
        const size_t n = strcspn(list, ":");
        if (n < sizeof directory) {
            memcpy(directory, list, n);
            directory[n] = 0;
            visit_directory(&s, directory);
        }
        list += n + (list[n] == ':');
    }
    Dl_info self;
    void (*here)(const char *, int, moedi_backend_visitor, void *) = moedi_backends;
    void *address;
    memcpy(&address, &here, sizeof address);
    if (dladdr(address, &self) && self.dli_fname) {
        char directory[4096];
        const char *slash = strrchr(self.dli_fname, '/');
        if (slash && snprintf(directory, sizeof directory, "%.*s/moedisco-backends", (int)(slash - self.dli_fname),
                              self.dli_fname) < (int)sizeof directory)
            visit_directory(&s, directory);
    }
    visit_directory(&s, MOEDI_LIBDIR "/moedisco-backends");
}

typedef struct wanted {
    const char *name;
    const moed_backend *found;
} wanted;

static int is_wanted(const moed_backend *table, const char *path, const char *reason, void *user)
{
    wanted *w = user;
    (void)path, (void)reason;
    if (table && strcmp(table->name, w->name) == 0) w->found = table;
    return w->found != NULL;
}

const moed_backend *moedi_backend_named(const char *explicit_dir, int use_environment, const char *name)
{
    wanted w = {.name = name};
    moedi_backends(explicit_dir, use_environment, is_wanted, &w);
    return w.found;
}
