/* tokenize.c - texts into a model's tokens. What reads a tokenizer.json is a program of its own, since the one library that all
 * models' files are made for is Python's: it gets a JSON text a line and gives a JSON list of tokens for each. */
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "json_file.h"
#include "output.h"
#include "tokenize.h"

void tokens_free(token_list *lists, size_t count)
{
    for (size_t i = 0; lists && i < count; i++) free(lists[i].ids);
    free(lists);
}

static void take_bytes(const char *text, token_list *out)
{
    out->count = strlen(text);
    out->ids = must(calloc(out->count + 1, sizeof *out->ids));
    for (size_t i = 0; i < out->count; i++) out->ids[i] = (unsigned char)text[i];
}

/* ---- a program ---- */

/* The streams of the program: files without a name, so that neither side waits for the other. */
typedef struct streams {
    FILE *in, *out, *words;
} streams;

static void close_streams(streams *s)
{
    if (s->in) fclose(s->in);
    if (s->out) fclose(s->out);
    if (s->words) fclose(s->words);
}

static int fill_streams(streams *s, char *const *texts, size_t count)
{
    *s = (streams){tmpfile(), tmpfile(), tmpfile()};
    if (!s->in || !s->out || !s->words) return fail_errno("the folder for temporary files", "cannot be written", errno);
    for (size_t i = 0; i < count; i++) {
        json_t *text = json_string(texts[i]);
        if (!text) return fail(EXIT_INPUT, "a text is not UTF-8: %s", utf8(texts[i]));
        char *line = json_line(text, JSON_ENCODE_ANY);
        fprintf(s->in, "%s\n", line);
        free(line);
        json_decref(text);
    }
    if (fflush(s->in) || ferror(s->in)) return fail_errno("the folder for temporary files", "cannot be written", errno);
    return EXIT_DONE;
}

static char *default_program(void)
{
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) return must(strdup("moedisco-tokenize"));
    path[length] = 0;
    char *slash = strrchr(path, '/');
    if (slash) *slash = 0;
    return path_join(path, "moedisco-tokenize");
}

enum { NOT_RUN = 127 };

/* Bytes that tokens of the texts may take, as generous as may be: a program that never stops does not fill the disk. */
static rlim_t most_of_output(const streams *s)
{
    fseeko(s->in, 0, SEEK_END);
    const rlim_t most = ((rlim_t)1 << 26) + 64 * (rlim_t)ftello(s->in);
    rewind(s->in);
    lseek(fileno(s->in), 0, SEEK_SET);
    return most;
}

static int run_program(const char *program, const char *file, const streams *s, int *status)
{
    const struct rlimit most = {most_of_output(s), most_of_output(s)};
    const pid_t parent = getpid(), child = fork();
    if (child == 0) { /* only async-signal-safe calls until exec */
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        if (getppid() != parent) _exit(EXIT_OTHER);
        dup2(fileno(s->in), STDIN_FILENO);
        dup2(fileno(s->out), STDOUT_FILENO);
        dup2(fileno(s->words), STDERR_FILENO);
        signal(SIGPIPE, SIG_DFL);
        signal(SIGXFSZ, SIG_DFL);
        setrlimit(RLIMIT_FSIZE, &most);
        execlp(program, program, file, (char *)NULL);
        _exit(NOT_RUN);
    }
    if (child < 0) return fail(EXIT_OTHER, "%s cannot be started: %s", program, strerror(errno));
    while (waitpid(child, status, 0) < 0 && errno == EINTR)
        if (app_stopped()) kill(child, SIGTERM);
    return app_stopped() ? fail(EXIT_STOPPED, "stopped; the same command starts again") : EXIT_DONE;
}

/* One line of tokens; 0 when it is none. */
static int take_line(const char *line, size_t size, int64_t vocabulary, token_list *out)
{
    json_t *list = parse_json(line, size, NULL);
    int good = json_is_array(list);
    out->count = json_array_size(list);
    out->ids = must(calloc(out->count + 1, sizeof *out->ids));
    for (size_t i = 0; good && i < out->count; i++) {
        const json_t *id = json_array_get(list, i);
        good = json_is_integer(id) && json_integer_value(id) >= 0 && json_integer_value(id) < vocabulary;
        if (good) out->ids[i] = (int32_t)json_integer_value(id);
    }
    json_decref(list);
    return good;
}

static int take_lines(const tokenizer *t, const char *program, FILE *from, size_t count, token_list *out)
{
    char *line = NULL;
    size_t room = 0, taken = 0;
    int code = EXIT_DONE;
    rewind(from);
    for (ssize_t size; !code && (size = getline(&line, &room, from)) > 0; taken++)
        if (taken == count || !take_line(line, (size_t)size, t->vocabulary, &out[taken]))
            code = fail(EXIT_INPUT, "%s: line %zu for %s is no list of tokens from 0 to %lld", program, taken + 1, t->file,
                        (long long)t->vocabulary - 1);
    free(line);
    if (!code && taken != count) code = fail(EXIT_INPUT, "%s: gave tokens for %zu of %zu texts", program, taken, count);
    return code;
}

static int ask_program(const tokenizer *t, char *const *texts, size_t count, token_list *out)
{
    char *program = t->program ? must(strdup(t->program)) : default_program(), words[512];
    streams s;
    int status = 0, code = fill_streams(&s, texts, count);
    if (!code) code = run_program(program, t->file, &s, &status);
    if (!code && WIFEXITED(status) && WEXITSTATUS(status) == NOT_RUN)
        code = fail(EXIT_INPUT, "%s cannot be run; it takes Python 3, or another tokenizer by --tokenizer-program", program);
    if (!code && WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ)
        code = fail(EXIT_INPUT, "%s %s: wrote far more than tokens of %zu texts take, and was stopped", program, t->file, count);
    if (!code && status) {
        rewind(s.words);
        last_words(s.words, words, sizeof words);
        code = fail(EXIT_INPUT, "%s %s: %s", program, t->file, words);
    }
    if (!code) code = take_lines(t, program, s.out, count, out);
    close_streams(&s);
    free(program);
    return code;
}

int tokenize(const tokenizer *t, char *const *texts, size_t count, token_list **out)
{
    token_list *lists = must(calloc(count + 1, sizeof *lists));
    int code = EXIT_DONE;
    if (t->file) code = ask_program(t, texts, count, lists);
    for (size_t i = 0; !t->file && i < count; i++) take_bytes(texts[i], &lists[i]);
    if (code) tokens_free(lists, count);
    else *out = lists;
    return code;
}
