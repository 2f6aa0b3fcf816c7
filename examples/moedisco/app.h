/* app.h - what every verb shares: exit codes, how failures are told, the context, stopping. */
#ifndef APP_H
#define APP_H

#include "flags.h"

enum {
    EXIT_DONE = 0,
    EXIT_OTHER = 1,    /* retry once */
    EXIT_INPUT = 2,    /* bad usage or input: never retry */
    EXIT_FIT = 3,      /* does not fit: never retry */
    EXIT_STOPPED = 75  /* stopped and resumable: retry */
};

/* A row of the verb table. */
struct verb {
    const char *name;      /* "corpus build" */
    const char *arguments; /* "FOLDER..." */
    const char *summary;
    const char *example;
    int (*run)(const verb *v, int argc, char **argv);
};

/* Print one line "moedisco: ..." on standard error; return the exit code. */
int fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The library's last error; the exit code that belongs to it, asked for before another call of the library. A full disk, and a
 * path that may not be read or written, are bad input: a second try would end in the same way. */
int fail_status(moed_status status);
int exit_code(moed_status status);
/* The same for a system call of the command's own. */
int fail_errno(const char *path, const char *what, int reason);

/* Set by SIGINT, SIGTERM and SIGHUP, which also request app_cancel. */
extern moed_cancel *app_cancel;
int app_stopped(void);

/* Flags of every verb that opens a context. */
typedef struct common {
    moed_context_options context;
    int32_t json;
    int32_t quiet;
} common;

void common_flags(flags *f, common *c);
/* After parsing: applies --json and --quiet, opens the context. An exit code. */
int common_open(const common *c, moed_context **out);

/* Opens a corpus by its prefix; NULL options = defaults. Out parameters as the library's. */
moed_status open_corpus(moed_corpus **out, moed_context *c, const char *prefix);
/* Opens a model whose numbers stay on disk. */
moed_status open_streamed(moed_model **out, moed_context *c, const char *dir);

/* Options with the library's defaults, the command's where they differ. */
#define OPTIONS_INIT(ID, pointer) moed_options_init(MOED_STRUCT_##ID, (pointer), sizeof *(pointer))

/* Paths. Results are the caller's to free; memory running out ends the program. */
char *text_format(const char *format, ...) __attribute__((format(printf, 1, 2)));
char *path_join(const char *a, const char *b);
int path_exists(const char *path);
/* Both are there, and the same. */
int same_folder(const char *a, const char *b);
/* EXIT_INPUT where the result would take the place of what it is made from, else EXIT_DONE. */
int refuse_same(const char *input, const char *out);
int path_is_folder(const char *path);
int make_folder(const char *path);             /* with its parents; an exit code */
/* make_folder, and its undoing after work that failed, as far as the folders are empty. made: the first new one, or NULL. */
int make_folder_for(const char *path, char **made);
void unmake_folder(int code, const char *path, char *made); /* frees made; removes nothing when code is EXIT_DONE */
char *path_relative(const char *from, const char *to); /* `to` (existing folder or file's folder) as seen from folder `from` */
char *path_from(const char *folder, const char *path); /* path itself when absolute, else below folder */
/* A file's whole text, NULL after telling why not. */
char *read_text(const char *path, size_t *size);
/* What another program told last: the last line of its standard error (nullable: none), without "moedisco: ". */
void last_words(FILE *file, char *out, size_t size);
/* open and write that no signal cuts short; -1 and errno. */
int open_again(const char *path, int how);
int write_whole(int file, const char *data, size_t size);
void *must(void *memory);
double now_seconds(void);
const char *human_bytes(int64_t bytes, char out[32]);
const char *human_count(double count, char out[32]);
const char *human_flops(double flops, char out[32]); /* "88 GFLOP" */
const char *human_time(double seconds, char out[32]);

int verb_try(const verb *v, int argc, char **argv);
int verb_corpus_build(const verb *v, int argc, char **argv);
int verb_corpus_export(const verb *v, int argc, char **argv);
int verb_corpus_info(const verb *v, int argc, char **argv);
int verb_init(const verb *v, int argc, char **argv);
int verb_info(const verb *v, int argc, char **argv);
int verb_eval(const verb *v, int argc, char **argv);
int verb_sample(const verb *v, int argc, char **argv);
int verb_cluster(const verb *v, int argc, char **argv);
int verb_split(const verb *v, int argc, char **argv);
int verb_integrate(const verb *v, int argc, char **argv);
int verb_upcycle(const verb *v, int argc, char **argv);
int verb_expand(const verb *v, int argc, char **argv);
int verb_train(const verb *v, int argc, char **argv);
int verb_plan(const verb *v, int argc, char **argv);
int verb_plan_emo(const verb *v, int argc, char **argv);
int verb_law_fit(const verb *v, int argc, char **argv);
int verb_law_predict(const verb *v, int argc, char **argv);
int verb_run(const verb *v, int argc, char **argv);
int verb_work(const verb *v, int argc, char **argv);

#endif
