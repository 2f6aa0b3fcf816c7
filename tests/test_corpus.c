/* test_corpus.c - building, opening, damaging, viewing, dividing and sampling corpora. */
#include "support.h"

#define FIXTURE_FOLDER
#include "fixture.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "corpus/corpus.h"
#include "corpus/indexed.h"

static void put(const char *name, const char *text) { support_write(support_path(dir, name), text, strlen(text)); }
static void folder(const char *name) { assert_int_equal(mkdir(support_path(dir, name), 0777), 0); }
static int there(const char *name) { return access(support_path(dir, name), F_OK) == 0; }

/* entries of the test's directory whose name begins like this */
static int entries(const char *beginning)
{
    char command[8192];
    int n = -1;
    snprintf(command, sizeof command, "ls -a '%s' | grep -c '^%s'", dir, beginning);
    FILE *f = popen(command, "r");
    assert_int_equal(fscanf(f, "%d", &n), 1);
    pclose(f);
    return n;
}

static moed_corpus_options defaults(void)
{
    moed_corpus_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CORPUS_OPTIONS, &o, sizeof o));
    return o;
}
static moed_status build(const char *from, const char *prefix, const moed_corpus_options *o, moed_corpus_report *report)
{
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", dir, from);
    const char *paths[1] = {path};
    if (report) *report = (moed_corpus_report){.struct_size = sizeof *report};
    return moed_corpus_build(context, paths, 1, support_path(dir, prefix), o, report, NULL);
}
static moed_corpus *opened(const char *prefix)
{
    moed_corpus *d = NULL;
    assert_ok(moed_corpus_open(&d, context, support_path(dir, prefix), NULL));
    return d;
}
static moed_corpus_info info_of(const moed_corpus *d)
{
    moed_corpus_info info = {.struct_size = sizeof info};
    assert_ok(moed_corpus_get_info(d, &info));
    return info;
}
/* a document of bytes as text; free() it */
static char *text_of(const moed_corpus *d, int64_t document)
{
    int32_t *tokens = calloc(1 << 20, sizeof *tokens);
    char *text = calloc(1 << 20, 1);
    int64_t n = 0;
    assert_ok(moed_corpus_read(d, document, 0, tokens, 1 << 20, &n));
    for (int64_t i = 0; i < n; i++) text[i] = (char)tokens[i];
    free(tokens);
    return text;
}
static void assert_text(const moed_corpus *d, int64_t document, const char *expected)
{
    char *text = text_of(d, document);
    assert_string_equal(text, expected);
    free(text);
}

/* ---- building ---- */

static void a_folder_is_walked_in_name_order_without_binary_hidden_and_linked_entries(void **state)
{
    (void)state;
    moed_corpus_report report;
    folder("f"), folder("f/b"), folder("f/.git");
    put("f/c.txt", "third"), put("f/a.txt", "first"), put("f/b/x.txt", "second"), put("f/.hidden", "never"),
        put("f/.git/y", "never");
    support_write(support_path(dir, "f/nul"), "a\0b", 3);
    support_write(support_path(dir, "f/latin"), "caf\xe9", 4);
    support_write(support_path(dir, "f/cut-character"), "caf\xc3", 4);
    assert_int_equal(symlink("..", support_path(dir, "f/b/loop")), 0);
    assert_int_equal(mkfifo(support_path(dir, "f/pipe"), 0600), 0);
    assert_ok(build("f", "c", NULL, &report));
    assert_int_equal(report.files, 3);
    assert_int_equal(report.binary_files, 3);
    assert_int_equal(report.documents, 3);
    moed_corpus *d = opened("c");
    assert_text(d, 0, "first"), assert_text(d, 1, "second"), assert_text(d, 2, "third");
    const moed_corpus_info info = info_of(d);
    assert_int_equal(info.vocabulary, 257);
    assert_int_equal(info.end_token, 256);
    assert_int_equal(info.tokens, 16);
    assert_int_equal(info.longest, 6);
    assert_string_equal(info.tokenizer, "bytes");
    assert_int_equal(strlen(info.fingerprint), 32);
    moed_corpus_destroy(d);
}

static void copies_and_blank_documents_are_dropped_and_counted(void **state)
{
    (void)state;
    moed_corpus_report report;
    moed_corpus_options o = defaults();
    char *big = malloc(200000);
    memset(big, 'x', 200000);
    folder("f");
    put("f/1", "same"), put("f/2", "same"), put("f/3", " \n\t"), put("f/4", ""), put("f/5", "ab"), put("f/8", "last");
    support_write(support_path(dir, "f/6"), big, 200000); /* larger than the builder's buffer: written, then taken back */
    support_write(support_path(dir, "f/7"), big, 200000);
    o.minimum_bytes = 3;
    o.document_bytes = 0;
    assert_ok(build("f", "c", &o, &report));
    assert_int_equal(report.documents, 3);
    assert_int_equal(report.duplicates, 2);
    assert_int_equal(report.empty, 3);
    assert_int_equal(report.tokens, 200008);
    moed_corpus *d = opened("c");
    assert_text(d, 0, "same"), assert_text(d, 2, "last");
    moed_corpus_destroy(d);
    free(big);
}

static void a_long_file_is_cut_at_blank_lines_and_nothing_is_lost(void **state)
{
    (void)state;
    moed_corpus_options o = defaults();
    char *text = malloc(1 << 20), *joined = calloc(1 << 20, 1);
    size_t n = 0;
    for (int i = 0; i < 3000; i++) n += (size_t)sprintf(text + n, "line %d of the text\n%s", i, i % 7 == 6 ? "\n" : "");
    support_write(support_path(dir, "long.txt"), text, n);
    o.document_bytes = 1000;
    assert_ok(build("long.txt", "c", &o, NULL));
    moed_corpus *d = opened("c");
    const moed_corpus_info info = info_of(d);
    assert_in_range(info.documents, n / 1500, n / 1000);
    for (int64_t i = 0; i < info.documents; i++) {
        char *one = text_of(d, i);
        if (i) assert_memory_equal(joined + strlen(joined) - 2, "\n\n", 2);
        strcat(joined, one);
        free(one);
    }
    assert_int_equal(strlen(joined), n);
    assert_memory_equal(joined, text, n);
    moed_corpus_destroy(d);
    free(text), free(joined);
}

static void a_long_file_without_lines_is_cut_between_characters(void **state)
{
    (void)state;
    moed_corpus_options o = defaults();
    char *text = malloc(30001);
    for (int i = 0; i < 10000; i++) memcpy(text + i * 3, i % 2 ? "\xe2\x82\xac" : "\xe4\xb8\xad", 3);
    text[4] = (char)0x83; /* one other character, so that no two documents are copies */
    for (int i = 0; i < 10000; i += 50)
        text[i * 3] = 'a', text[i * 3 + 1] = (char)('a' + i / 50 % 26), text[i * 3 + 2] = (char)('a' + i / 1300);
    support_write(support_path(dir, "long.txt"), text, 30000);
    o.document_bytes = 100;
    assert_ok(build("long.txt", "c", &o, NULL));
    moed_corpus *d = opened("c");
    const moed_corpus_info info = info_of(d);
    assert_int_equal(info.tokens, 30000);
    assert_in_range(info.longest, 400, 402);
    for (int64_t i = 0; i < info.documents; i++) {
        char *one = text_of(d, i);
        assert_int_not_equal((unsigned char)one[0] & 0xc0, 0x80);
        free(one);
    }
    moed_corpus_destroy(d);
    free(text);
}

static void json_lines_give_their_field(void **state)
{
    (void)state;
    moed_corpus_options o = defaults();
    put("a.jsonl", "{\"text\": \"one\\n\\u00e9\", \"n\": 1}\n\n{\"text\":\"two\"}\r\n{\"text\":\"\"}\n{\"text\":\"three\"}");
    moed_corpus_report report;
    assert_ok(build("a.jsonl", "c", NULL, &report));
    assert_int_equal(report.documents, 3);
    assert_int_equal(report.empty, 1);
    moed_corpus *d = opened("c");
    assert_text(d, 0, "one\n\xc3\xa9"), assert_text(d, 1, "two"), assert_text(d, 2, "three");
    moed_corpus_destroy(d);
    put("b.jsonl", "{\"body\": \"x\"}\n");
    o.field = "body";
    assert_ok(build("b.jsonl", "c2", &o, NULL));
}

static void a_byte_order_mark_is_no_text(void **state)
{
    (void)state;
    folder("f");
    put("f/a.txt", "\xEF\xBB\xBFone"), put("f/b.jsonl", "\xEF\xBB\xBF{\"text\": \"two\"}\n"), put("f/c.txt", "\xEF\xBB\xBF");
    put("f/d.txt", "three \xEF\xBB\xBF stays"); /* inside it is a character */
    assert_ok(build("f", "c", NULL, NULL));
    moed_corpus *d = opened("c");
    assert_text(d, 0, "one"), assert_text(d, 1, "two"), assert_text(d, 2, "three \xEF\xBB\xBF stays");
    moed_corpus_destroy(d);
}

static void text_that_is_none_is_refused_and_leaves_nothing(void **state)
{
    (void)state;
    folder("e"), folder("b");
    support_write(support_path(dir, "b/x"), "\x7f" "ELF\0\0", 6);
    put("bad.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"fine too\"}\n{\"text\": \n");
    put("field.jsonl", "{\"text\": \"fine\"}\n{\"body\": \"x\"}\n");
    put("number.jsonl", "{\"text\": 3}\n");
    put("list.jsonl", "[1]\n");
    put("blank", "\n\n");
    assert_refused(build("e", "c", NULL, NULL), MOED_E_FORMAT, "no text for a corpus");
    assert_refused(build("b", "c", NULL, NULL), MOED_E_FORMAT, "1 binary (or not UTF-8) files left out");
    assert_refused(build("b/x", "c", NULL, NULL), MOED_E_FORMAT, "b/x: a binary file");
    assert_refused(build("blank", "c", NULL, NULL), MOED_E_FORMAT, "1 documents empty");
    assert_refused(build("bad.jsonl", "c", NULL, NULL), MOED_E_FORMAT, "bad.jsonl:3");
    assert_refused(build("field.jsonl", "c", NULL, NULL), MOED_E_FORMAT, "field.jsonl:2: there is no field \"text\"");
    assert_refused(build("number.jsonl", "c", NULL, NULL), MOED_E_FORMAT, "number.jsonl:1: field \"text\" is no string");
    assert_refused(build("list.jsonl", "c", NULL, NULL), MOED_E_FORMAT, "list.jsonl:1");
    assert_refused(build("absent", "c", NULL, NULL), MOED_E_NOT_FOUND, "absent");
    assert_refused(build("bad.jsonl", "no/such/c", NULL, NULL), MOED_E_NOT_FOUND, "no/such/c.bin");
    assert_int_equal(entries("c"), 0);
}

static void a_failed_build_leaves_the_older_corpus_alone(void **state)
{
    (void)state;
    put("a.txt", "the older text"), put("bad.jsonl", "{\n");
    assert_ok(build("a.txt", "c", NULL, NULL));
    assert_int_not_equal(build("bad.jsonl", "c", NULL, NULL), MOED_OK);
    moed_corpus *d = opened("c");
    assert_text(d, 0, "the older text");
    moed_corpus_destroy(d);
}

static void a_corpus_in_its_own_folder_does_not_eat_itself(void **state)
{
    (void)state;
    folder("f"), put("f/a.txt", "text");
    assert_ok(build("f", "f/c", NULL, NULL));
    assert_ok(build("f", "f/c", NULL, NULL));
    moed_corpus *d = opened("f/c");
    assert_int_equal(info_of(d).documents, 1);
    moed_corpus_destroy(d);
}

static void a_cancelled_build_leaves_nothing(void **state)
{
    (void)state;
    moed_cancel *cancel;
    put("a.txt", "text");
    assert_ok(moed_cancel_create(&cancel));
    moed_cancel_request(cancel);
    char path[4200];
    snprintf(path, sizeof path, "%s/a.txt", dir);
    const char *paths[1] = {path};
    assert_refused(moed_corpus_build(context, paths, 1, support_path(dir, "c"), NULL, NULL, cancel), MOED_E_CANCELLED, "");
    assert_int_equal(entries("c"), 0);
    moed_cancel_destroy(cancel);
}

/* A child process, so that its file size limit is its own: a disk that is full after `limit` bytes of any file. */
static int build_with_limit(rlim_t limit)
{
    const pid_t child = fork();
    if (child == 0) {
        const struct rlimit r = {limit, limit};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &r);
        moed_context *own = support_context("reference", 1);
        char path[4200], prefix[4200];
        snprintf(path, sizeof path, "%s/many.jsonl", dir);
        snprintf(prefix, sizeof prefix, "%s/c", dir);
        const char *paths[1] = {path};
        const moed_status status = moed_corpus_build(own, paths, 1, prefix, NULL, NULL, NULL);
        const int code = status == MOED_OK ? 0 : strstr(moed_last_error(), prefix) ? 1 : 2;
        moed_context_destroy(own); /* for leak checkers, which look at this process too */
        _exit(code);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void a_full_disk_is_named_and_leaves_nothing(void **state)
{
    (void)state;
    FILE *f = fopen(support_path(dir, "many.jsonl"), "w");
    for (int i = 0; i < 2000; i++) fprintf(f, "{\"text\": \"%d\"}\n", i); /* .idx (40 KB) is larger than .bin (14 KB) */
    fclose(f);
    const rlim_t limits[] = {0, 100, 10000, 20000, 40000};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        assert_int_equal(build_with_limit(limits[i]), 1);
        assert_int_equal(entries("c"), 0);
    }
    assert_int_equal(build_with_limit(100000), 0);
    assert_int_equal(entries("c"), 3);
}

/* Killed at any instant: nothing opens, or all of it does. The instants are spread by a growing delay. */
static void a_killed_build_leaves_a_whole_corpus_or_none_and_can_be_repeated(void **state)
{
    (void)state;
    FILE *f = fopen(support_path(dir, "many.jsonl"), "w");
    for (int i = 0; i < 2000; i++) fprintf(f, "{\"text\": \"text %d\"}\n", i);
    fclose(f);
    for (int round = 0; round < 12; round++) {
        const pid_t child = fork();
        if (child == 0) {
            moed_context *own = support_context("reference", 1);
            char path[4200], prefix[4200];
            snprintf(path, sizeof path, "%s/many.jsonl", dir);
            snprintf(prefix, sizeof prefix, "%s/c", dir);
            const char *paths[1] = {path};
            for (;;) moed_corpus_build(own, paths, 1, prefix, NULL, NULL, NULL);
        }
        usleep(2000 + 1700 * (useconds_t)round);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        moed_corpus *d = NULL;
        const moed_status status = moed_corpus_open(&d, context, support_path(dir, "c"), NULL);
        if (status == MOED_OK) assert_int_equal(info_of(d).documents, 2000);
        else assert_int_equal(status, MOED_E_NOT_FOUND);
        moed_corpus_destroy(d);
    }
    assert_ok(build("many.jsonl", "c", NULL, NULL));
    moed_corpus *d = opened("c");
    assert_int_equal(info_of(d).documents, 2000);
    moed_corpus_destroy(d);
}

/* ---- other people's files ---- */

/* Two documents, the first of two sequences and an empty one between: [1 2 3 | | 4] [5 6]. Returns bytes of .idx. */
static size_t write_pair(const char *prefix, int wide, unsigned char *idx)
{
    char name[64];
    const uint64_t head[3] = {1, 4, 3};
    const int32_t lengths[4] = {3, 0, 1, 2}, tokens[6] = {1, 2, 3, 4, 5, 6};
    const uint16_t narrow[6] = {1, 2, 3, 4, 5, 6};
    const int64_t item = wide ? 4 : 2, pointers[4] = {0, 3 * item, 3 * item, 4 * item}, bounds[3] = {0, 3, 4};
    memcpy(idx, MOEDI_INDEXED_MAGIC, 9);
    memcpy(idx + 9, head, 8);
    idx[17] = wide ? 4 : 8;
    memcpy(idx + 18, head + 1, 16);
    memcpy(idx + 34, lengths, 16);
    memcpy(idx + 50, pointers, 32);
    memcpy(idx + 82, bounds, 24);
    snprintf(name, sizeof name, "%s.idx", prefix);
    support_write(support_path(dir, name), idx, 106);
    snprintf(name, sizeof name, "%s.bin", prefix);
    support_write(support_path(dir, name), wide ? (const void *)tokens : narrow, (size_t)(6 * item));
    return 106;
}

static void foreign_pairs_open_with_documents_of_several_sequences(void **state)
{
    (void)state;
    unsigned char idx[128];
    for (int wide = 0; wide < 2; wide++) {
        int32_t t[8];
        int64_t n = 0;
        write_pair("m", wide, idx);
        moed_corpus *d = opened("m");
        const moed_corpus_info info = info_of(d);
        assert_int_equal(info.documents, 2);
        assert_int_equal(info.tokens, 6);
        assert_int_equal(info.vocabulary, 7);
        assert_int_equal(info.end_token, -1);
        assert_ok(moed_corpus_read(d, 0, 1, t, 8, &n));
        assert_int_equal(n, 3);
        assert_int_equal(t[0], 2), assert_int_equal(t[2], 4);
        assert_ok(moed_corpus_read(d, 1, 0, t, 1, &n));
        assert_int_equal(n, 1), assert_int_equal(t[0], 5);
        assert_ok(moed_corpus_read(d, 1, 2, t, 8, &n));
        assert_int_equal(n, 0);
        assert_refused(moed_corpus_read(d, 2, 0, t, 8, &n), MOED_E_RANGE, "document 2 of a corpus of 2");
        assert_refused(moed_corpus_read(d, 1, 3, t, 8, &n), MOED_E_RANGE, "offset 3");
        moed_corpus_destroy(d);
    }
}

static void every_truncation_of_an_index_is_refused(void **state)
{
    (void)state;
    unsigned char idx[128];
    moed_corpus *d = NULL;
    const size_t size = write_pair("m", 0, idx);
    for (size_t n = 0; n < size; n++) {
        support_write(support_path(dir, "m.idx"), idx, n);
        assert_refused(moed_corpus_open(&d, context, support_path(dir, "m"), NULL), MOED_E_FORMAT, "m.idx");
    }
    idx[size] = 0;
    support_write(support_path(dir, "m.idx"), idx, size + 1);
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "m"), NULL), MOED_E_FORMAT, "m.idx");
}

/* Every bit of the index flipped: refused with its name, or a corpus all of whose documents can be read. */
static void every_flip_of_an_index_is_refused_or_harmless(void **state)
{
    (void)state;
    unsigned char idx[128];
    int refused = 0;
    const size_t size = write_pair("m", 0, idx);
    for (size_t bit = 0; bit < size * 8; bit++) {
        moed_corpus *d = NULL;
        idx[bit / 8] ^= (unsigned char)(1 << bit % 8);
        support_write(support_path(dir, "m.idx"), idx, size);
        idx[bit / 8] ^= (unsigned char)(1 << bit % 8);
        if (moed_corpus_open(&d, context, support_path(dir, "m"), NULL) != MOED_OK) {
            if (!strstr(moed_last_error(), "m.idx")) fail_msg("bit %zu: %s", bit, moed_last_error());
            refused++;
            continue;
        }
        for (int64_t i = 0; i < info_of(d).documents; i++) {
            int32_t t[8];
            int64_t n;
            assert_ok(moed_corpus_read(d, i, 0, t, 8, &n));
            assert_in_range(n, 0, 6);
        }
        moed_corpus_destroy(d);
    }
    assert_true(refused > (int)size * 8 - 40);
}

static void hostile_index_fields_are_named(void **state)
{
    (void)state;
    static const struct { size_t at; int bytes; int64_t value; const char *words; } cases[] = {
        {0, 1, 'X', "does not begin with MMIDIDX"},
        {9, 8, 2, "version 2"},
        {17, 1, 5, "token type 5"},
        {18, 8, INT64_MAX, "sequences"},
        {18, 8, (int64_t)1 << 60, "sequences"},
        {26, 8, -1, "document bounds"},
        {34, 4, -1, "sequence 0 has a length of -1"},
        {34, 4, INT32_MAX, "sequence 0, 2147483647 tokens"},
        {50, 8, -2, "sequence 0"},
        {58, 8, 4, "sequence 1"},            /* before the end of sequence 0 */
        {66, 8, 7, "sequence 2"},            /* between two tokens */
        {74, 8, INT64_MAX - 1, "sequence 3"},
        {82, 8, 1, "document bound 0 is sequence 1"},
        {90, 8, -1, "document bound 1 is sequence -1"},
        {90, 8, 5, "document bound 1 is sequence 5"},
        {98, 8, 3, "the last document bound is sequence 3 of 4"},
    };
    unsigned char idx[128];
    moed_corpus *d = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t size = write_pair("m", 0, idx);
        memcpy(idx + cases[i].at, &cases[i].value, (size_t)cases[i].bytes);
        support_write(support_path(dir, "m.idx"), idx, size);
        const moed_status status = moed_corpus_open(&d, context, support_path(dir, "m"), NULL);
        assert_true(status == MOED_E_FORMAT || status == MOED_E_UNSUPPORTED);
        if (!strstr(moed_last_error(), cases[i].words)) fail_msg("%s lacks %s", moed_last_error(), cases[i].words);
    }
    write_pair("m", 0, idx);
    assert_int_equal(truncate(support_path(dir, "m.bin"), 11), 0);
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "m"), NULL), MOED_E_FORMAT, "m.bin");
    assert_int_equal(unlink(support_path(dir, "m.bin")), 0);
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "m"), NULL), MOED_E_NOT_FOUND, "m.bin");
}

static void tokens_outside_the_vocabulary_are_refused_when_read(void **state)
{
    (void)state;
    unsigned char idx[128];
    int32_t t[8];
    int64_t n;
    moed_corpus *d = NULL;
    moed_corpus_options o = defaults();
    write_pair("m", 1, idx);
    o.vocabulary = 6;
    assert_ok(moed_corpus_open(&d, context, support_path(dir, "m"), &o));
    assert_ok(moed_corpus_read(d, 0, 0, t, 8, &n));
    assert_refused(moed_corpus_read(d, 1, 0, t, 8, &n), MOED_E_FORMAT, "token 1 is 6, outside the vocabulary of 6");
    moed_corpus_destroy(d);
    o.end_token = 6;
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "m"), &o), MOED_E_RANGE, "end_token: 6");
    o.end_token = -1, o.vocabulary = 0;
    const int32_t negative[6] = {1, 2, -3, 4, 5, 6};
    support_write(support_path(dir, "m.bin"), negative, sizeof negative);
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "m"), &o), MOED_E_FORMAT, "token 2 is -3");
}

static void a_description_of_other_token_files_is_refused(void **state)
{
    (void)state;
    put("a.txt", "one text"), put("b.txt", "another!");
    assert_ok(build("a.txt", "a", NULL, NULL));
    assert_ok(build("b.txt", "b", NULL, NULL));
    moed_corpus *a = opened("a"), *b = opened("b"), *d = NULL;
    const moed_corpus_info first = info_of(a);
    assert_string_not_equal(first.fingerprint, info_of(b).fingerprint);
    assert_int_equal(rename(support_path(dir, "b.bin"), support_path(dir, "a.bin")), 0);
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "a"), NULL), MOED_E_CHECKSUM, first.fingerprint);
    put("a.json", "{\"format\": \"else\"}");
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "a"), NULL), MOED_E_FORMAT, "a.json");
    put("a.json", "{");
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "a"), NULL), MOED_E_FORMAT, "a.json");
    moed_corpus_destroy(a), moed_corpus_destroy(b);
}

static void write_shard(const char *name, int wide, const int32_t *tokens, int32_t count, int32_t claimed)
{
    unsigned char file[1024 + 64] = {0};
    const int32_t head[3] = {wide ? 20240801 : 20240520, wide ? 7 : 1, claimed};
    memcpy(file, head, sizeof head);
    for (int32_t i = 0; i < count; i++) {
        const uint16_t narrow = (uint16_t)tokens[i];
        if (wide) memcpy(file + 1024 + i * 4, &tokens[i], 4);
        else memcpy(file + 1024 + i * 2, &narrow, 2);
    }
    support_write(support_path(dir, name), file, 1024 + (size_t)(count * (wide ? 4 : 2)));
}

static void shards_are_cut_at_their_end_token(void **state)
{
    (void)state;
    moed_corpus *d = NULL;
    for (int wide = 0; wide < 2; wide++) {
        const int32_t end = wide ? 128000 : 50256, tokens[8] = {end, 1, 2, end, end, 3, 4, 5};
        int32_t t[8];
        int64_t n;
        write_shard("s.bin", wide, tokens, 8, 8);
        d = opened("s.bin");
        assert_int_equal(info_of(d).documents, 2);
        assert_int_equal(info_of(d).tokens, 5);
        assert_int_equal(info_of(d).end_token, end);
        assert_int_equal(info_of(d).vocabulary, end + 1);
        assert_ok(moed_corpus_read(d, 1, 1, t, 8, &n));
        assert_int_equal(n, 2), assert_int_equal(t[0], 4);
        moed_corpus_destroy(d);
        write_shard("s.bin", wide, tokens, 8, 9);
        assert_refused(moed_corpus_open(&d, context, support_path(dir, "s.bin"), NULL), MOED_E_FORMAT, "9 tokens");
        write_shard("s.bin", wide, tokens, 8, -1);
        assert_refused(moed_corpus_open(&d, context, support_path(dir, "s.bin"), NULL), MOED_E_FORMAT, "-1 tokens");
        write_shard("s.bin", wide, tokens, 1, 1);
        assert_refused(moed_corpus_open(&d, context, support_path(dir, "s.bin"), NULL), MOED_E_FORMAT, "no documents");
    }
    const int32_t huge[2] = {5, -7};
    write_shard("s.bin", 1, huge, 2, 2);
    assert_refused(moed_corpus_open(&d, context, support_path(dir, "s.bin"), NULL), MOED_E_FORMAT, "token 1 is 4294967289");
}

/* ---- the caller's own documents, views ---- */

static int32_t own_length(int64_t document, int64_t *tokens, void *user)
{
    *tokens = document % 5; /* document d has d % 5 tokens, all of them d + 10 */
    return user && document == *(int64_t *)user ? 7 : 0;
}
static int32_t own_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)offset, (void)user;
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)document + 10;
    return 0;
}
static moed_corpus *wrapped(int64_t count, int64_t end_token)
{
    moed_corpus *d = NULL;
    moed_corpus_options o = defaults();
    o.end_token = end_token;
    const moed_documents own = {sizeof own, 0, count, own_length, own_read, NULL};
    assert_ok(moed_corpus_wrap(&d, context, &own, &o));
    return d;
}

static void callbacks_serve_documents_and_can_stop(void **state)
{
    (void)state;
    int32_t t[8];
    int64_t n, stop = 3;
    moed_corpus *d = wrapped(10, 0);
    assert_int_equal(info_of(d).tokens, 20);
    assert_int_equal(info_of(d).vocabulary, 20);
    assert_int_equal(info_of(d).longest, 4);
    assert_ok(moed_corpus_read(d, 9, 2, t, 8, &n));
    assert_int_equal(n, 2), assert_int_equal(t[1], 19);
    moed_corpus_destroy(d);
    d = NULL;
    moed_documents own = {sizeof own, 0, 10, own_length, own_read, &stop};
    assert_refused(moed_corpus_wrap(&d, context, &own, NULL), MOED_E_CALLBACK, "moed_documents.length");
    own.count = 0;
    assert_refused(moed_corpus_wrap(&d, context, &own, NULL), MOED_E_ARGUMENT, "0 documents");
    own.count = 1, own.user = NULL;
    assert_refused(moed_corpus_wrap(&d, context, &own, NULL), MOED_E_FORMAT, "holds no tokens");
    assert_null(d);
}

static void views_of_views_go_back_to_the_whole_corpus(void **state)
{
    (void)state;
    moed_corpus *d = wrapped(20, 0), *v = NULL, *w = NULL;
    const int64_t odd[4] = {19, 1, 13, 7}, two[2] = {2, 0}, bad[1] = {4};
    int64_t source = -1, n;
    int32_t t[8];
    assert_ok(moed_corpus_subset(&v, d, odd, 4));
    assert_ok(moed_corpus_subset(&w, v, two, 2));
    assert_string_equal(info_of(w).fingerprint, info_of(d).fingerprint);
    moed_corpus_destroy(d), moed_corpus_destroy(v); /* in any order: the view keeps them */
    assert_ok(moed_corpus_source_document(w, 0, &source));
    assert_int_equal(source, 13);
    assert_ok(moed_corpus_read(w, 1, 0, t, 8, &n));
    assert_int_equal(n, 4), assert_int_equal(t[0], 29);
    assert_int_equal(info_of(w).tokens, 7);
    assert_refused(moed_corpus_subset(&v, w, bad, 1), MOED_E_RANGE, "document 4 of a corpus of 2");
    assert_refused(moed_corpus_subset(&v, w, two, 0), MOED_E_ARGUMENT, "0 documents");
    moed_corpus_destroy(w);
}

static void dividing_parts_every_document_once(void **state)
{
    (void)state;
    moed_corpus *d = wrapped(1000, 0), *train = NULL, *held = NULL, *again = NULL, *other = NULL;
    int seen[1000] = {0};
    assert_ok(moed_corpus_divide(&train, &held, d, 0.1, 5));
    moed_corpus *parts[2] = {train, held};
    for (int p = 0; p < 2; p++)
        for (int64_t i = 0, s; i < info_of(parts[p]).documents; i++) {
            assert_ok(moed_corpus_source_document(parts[p], i, &s));
            seen[s]++;
        }
    for (int i = 0; i < 1000; i++) assert_int_equal(seen[i], 1);
    assert_in_range(info_of(held).documents, 70, 130);
    assert_ok(moed_corpus_divide(&again, &other, held, 0.1, 5)); /* the draw is by document: all of held would be held out
                                                                    again */
    assert_int_equal(info_of(again).documents, 1);
    moed_corpus_destroy(again), moed_corpus_destroy(other), moed_corpus_destroy(train), moed_corpus_destroy(held);
    assert_refused(moed_corpus_divide(&train, &held, d, 1.0, 5), MOED_E_RANGE, "fraction: 1");
    assert_refused(moed_corpus_divide(&train, &held, d, NAN, 5), MOED_E_RANGE, "fraction");
    assert_refused(moed_corpus_divide(&train, &train, d, 0.5, 5), MOED_E_ARGUMENT, "one variable");
    const int64_t one = 4;
    moed_corpus *single = NULL;
    assert_ok(moed_corpus_subset(&single, d, &one, 1));
    assert_refused(moed_corpus_divide(&train, &held, single, 0.5, 5), MOED_E_ARGUMENT, "at least 2");
    moed_corpus_destroy(single), moed_corpus_destroy(d);
    d = wrapped(3, 0);
    for (uint64_t seed = 0; seed < 20; seed++) {
        assert_ok(moed_corpus_divide(&train, &held, d, seed % 2 ? 0.999 : 0.001, seed));
        assert_int_equal(info_of(train).documents + info_of(held).documents, 3);
        assert_in_range(info_of(held).documents, 1, 2);
        moed_corpus_destroy(train), moed_corpus_destroy(held);
    }
    moed_corpus_destroy(d);
}

static void a_saved_view_opens_as_a_corpus_of_its_own(void **state)
{
    (void)state;
    moed_corpus *d = wrapped(20, 3), *v = NULL;
    const int64_t list[3] = {19, 5, 7};
    int32_t t[8];
    int64_t n;
    assert_ok(moed_corpus_subset(&v, d, list, 3));
    assert_ok(moed_corpus_save(v, support_path(dir, "v"), NULL));
    moed_corpus *s = opened("v");
    assert_int_equal(info_of(s).documents, 3);
    assert_int_equal(info_of(s).vocabulary, info_of(d).vocabulary);
    assert_int_equal(info_of(s).end_token, 3);
    assert_ok(moed_corpus_read(s, 2, 0, t, 8, &n));
    assert_int_equal(n, 2), assert_int_equal(t[0], 17);
    assert_ok(moed_corpus_read(s, 1, 0, t, 8, &n)); /* an empty document stays one */
    assert_int_equal(n, 0);
    moed_corpus_destroy(s), moed_corpus_destroy(v), moed_corpus_destroy(d);
    assert_int_equal(entries("v"), 3);
    assert_true(there("v.idx"));
}

static int32_t far_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    own_read(document, offset, tokens, count, user);
    tokens[0] = 100000;
    return 0;
}
static void large_vocabularies_are_saved_in_four_bytes(void **state)
{
    (void)state;
    moed_corpus *d = NULL;
    const moed_documents own = {sizeof own, 0, 3, own_length, far_read, NULL};
    int32_t t[8];
    int64_t n;
    assert_ok(moed_corpus_wrap(&d, context, &own, NULL));
    assert_ok(moed_corpus_save(d, support_path(dir, "v"), NULL));
    moed_corpus_destroy(d);
    d = opened("v");
    assert_ok(moed_corpus_read(d, 2, 0, t, 8, &n));
    assert_int_equal(n, 2), assert_int_equal(t[0], 100000), assert_int_equal(t[1], 12);
    moed_corpus_destroy(d);
}

/* ---- the sampler ---- */

/* The stream of an epoch is a ring of 75 positions, cut into 5 pieces of 15 that come in a drawn order. */
static void an_epoch_holds_every_document_once_in_shuffled_pieces(void **state)
{
    (void)state;
    enum { LENGTH = 15, PIECES = 5, EPOCHS = 8, ROWS = PIECES * EPOCHS };
    moed_corpus *d = wrapped(25, 0);
    int32_t tokens[ROWS * LENGTH], labels[ROWS * LENGTH], numbers[ROWS * LENGTH];
    assert_ok(moed_corpus_sample(d, 3, 0, ROWS, LENGTH, tokens, labels, numbers));
    int orders_differ = 0, in_order = 0;
    for (int e = 0; e < EPOCHS; e++) {
        const int32_t *t = tokens + e * PIECES * LENGTH, *l = labels + e * PIECES * LENGTH, *n = numbers + e * PIECES * LENGTH;
        int count[40] = {0}, label_count[40] = {0};
        for (int i = 0; i < PIECES * LENGTH; i++) {
            count[t[i]]++, label_count[l[i]]++;
            if ((i + 1) % LENGTH == 0) continue;
            assert_int_equal(l[i], t[i + 1]);
            assert_int_equal(n[i + 1] - n[i], t[i] == 0); /* a boundary is just after an end */
        }
        assert_int_equal(count[0], 25);
        for (int k = 0; k < 25; k++) assert_int_equal(count[k + 10], k % 5);
        assert_memory_equal(count, label_count, sizeof count);
        orders_differ |= e > 0 && memcmp(t, tokens, PIECES * LENGTH * sizeof *t) != 0;
        /* pieces that follow each other in the stream: the last label of one is the first token of the next */
        for (int p = 0; p + 1 < PIECES; p++) in_order += l[p * LENGTH + LENGTH - 1] == t[(p + 1) * LENGTH];
    }
    assert_true(orders_differ && in_order < EPOCHS * (PIECES - 1) / 2);
    /* a pure function of (seed, row) */
    int32_t one[LENGTH], next[LENGTH];
    for (int r = ROWS - 1; r >= 0; r -= 3) {
        assert_ok(moed_corpus_sample(d, 3, r, 1, LENGTH, one, next, NULL));
        assert_memory_equal(one, tokens + r * LENGTH, sizeof one);
        assert_memory_equal(next, labels + r * LENGTH, sizeof next);
    }
    assert_ok(moed_corpus_sample(d, 4, 0, 1, LENGTH, one, next, NULL));
    assert_memory_not_equal(one, tokens, sizeof one);
    moed_corpus_destroy(d);
}

static void a_document_shorter_than_a_row_repeats_with_boundaries(void **state)
{
    (void)state;
    moed_corpus *d = wrapped(5, 0), *v = NULL, *none = NULL;
    const int64_t third = 3, empty = 0;
    int32_t tokens[18], labels[18], numbers[18];
    assert_ok(moed_corpus_subset(&v, d, &third, 1));
    assert_ok(moed_corpus_sample(v, 1, 0, 2, 9, tokens, labels, numbers));
    for (int i = 0; i < 18; i++) {
        const int at = i % 9; /* every row is the document from its beginning */
        assert_int_equal(tokens[i], at % 4 == 3 ? 0 : 13);
        assert_int_equal(labels[i], at % 4 == 2 ? 0 : 13);
        assert_int_equal(numbers[i], at / 4);
    }
    assert_ok(moed_corpus_subset(&none, d, &empty, 1));
    assert_refused(moed_corpus_sample(none, 1, 0, 1, 4, tokens, labels, NULL), MOED_E_ARGUMENT, "without tokens");
    assert_refused(moed_corpus_sample(v, 1, -1, 1, 4, tokens, labels, NULL), MOED_E_RANGE, "first_row: -1");
    assert_refused(moed_corpus_sample(v, 1, INT64_MAX / 4, 1, 4, tokens, labels, NULL), MOED_E_RANGE, "past the end");
    assert_refused(moed_corpus_sample(v, 1, 0, 1, 0, tokens, labels, NULL), MOED_E_RANGE, "length: 0");
    moed_corpus_destroy(none), moed_corpus_destroy(v), moed_corpus_destroy(d);
}

static void without_end_token_documents_follow_each_other(void **state)
{
    (void)state;
    moed_corpus *d = wrapped(8, -1);
    int32_t tokens[16], labels[16], numbers[16];
    int count[20] = {0};
    assert_ok(moed_corpus_sample(d, 1, 0, 1, 16, tokens, labels, numbers)); /* 1+2+3+4 + 1+2 = 13 tokens in a ring */
    for (int i = 0; i < 13; i++) count[tokens[i]]++;
    for (int k = 0; k < 8; k++) assert_int_equal(count[k + 10], k % 5);
    for (int i = 1; i < 16; i++)
        if (tokens[i] != tokens[i - 1]) assert_int_equal(numbers[i], numbers[i - 1] + 1);
    moed_corpus_destroy(d);
}

static void evaluation_rows_hold_every_token_once_as_a_label(void **state)
{
    (void)state;
    for (int end = -1; end < 1; end++) {
        moed_corpus *d = wrapped(12, end);
        moedi_sampler *s = NULL;
        int32_t tokens[8 * 7], labels[8 * 7], numbers[8 * 7];
        int count[30] = {0}, ends = 0, blanks = 0;
        assert_ok(moedi_sampler_create(&s, d, 0));
        const int64_t rows = moedi_sampler_evaluation_rows(s, 7), stream = 21 + (end < 0 ? 0 : 12);
        assert_int_equal(rows, (stream + 6) / 7);
        assert_ok(moedi_sampler_evaluation(s, 0, 2, 7, tokens, labels, numbers));
        assert_ok(moedi_sampler_evaluation(s, 2, rows - 2, 7, tokens + 14, labels + 14, numbers + 14));
        for (int i = 0; i < rows * 7; i++) {
            if (labels[i] == -1) blanks++;
            else if (labels[i] == 0) ends++;
            else count[labels[i]]++;
            if (i && labels[i - 1] >= 0) assert_int_equal(tokens[i], labels[i - 1]);
        }
        assert_int_equal(ends, end < 0 ? 0 : 12);
        assert_int_equal(blanks, rows * 7 - stream + (end < 0));
        for (int k = 0; k < 12; k++) assert_int_equal(count[k + 10], k % 5 - (end < 0 && k == 1));
        assert_int_equal(moedi_sampler_evaluation(s, rows, 1, 7, tokens, labels, numbers), MOED_E_RANGE);
        moedi_sampler_destroy(s);
        moed_corpus_destroy(d);
    }
}

static moed_status build_open_divide_sample(moed_context *c)
{
    char path[4200], prefix[4200];
    int32_t tokens[16], labels[16];
    moed_corpus *d = NULL, *train = NULL, *held_out = NULL;
    snprintf(path, sizeof path, "%s/f", dir);
    snprintf(prefix, sizeof prefix, "%s/c", dir);
    const char *paths[1] = {path};
    moed_status status = moed_corpus_build(c, paths, 1, prefix, NULL, NULL, NULL);
    if (status == MOED_OK) status = moed_corpus_open(&d, c, prefix, NULL);
    if (status == MOED_OK) status = moed_corpus_divide(&train, &held_out, d, 0.5, 1);
    if (status == MOED_OK) status = moed_corpus_sample(train, 1, 0, 2, 8, tokens, labels, NULL);
    moed_corpus_destroy(d), moed_corpus_destroy(train), moed_corpus_destroy(held_out);
    return status;
}

static int32_t length_one(int64_t document, int64_t *tokens, void *user)
{
    (void)document, (void)user;
    *tokens = 1;
    return 0;
}
static int32_t read_zero(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    (void)document, (void)offset, (void)user;
    memset(tokens, 0, (size_t)count * sizeof *tokens);
    return 0;
}

/* What estimates of a run go by. */
static void a_sampler_holds_the_bytes_it_says(void **state)
{
    (void)state;
    enum { DOCUMENTS = 5000, LENGTH = 700 };
    const moed_documents documents = {
        .struct_size = sizeof documents, .count = DOCUMENTS, .length = length_one, .read = read_zero};
    moed_corpus *d = NULL;
    moedi_sampler *s = NULL;
    int32_t tokens[LENGTH], labels[LENGTH];
    assert_ok(moed_corpus_wrap(&d, context, &documents, NULL));
    const int64_t before = support_held(context);
    assert_ok(moedi_sampler_create(&s, d, 1));
    assert_ok(moedi_sampler_rows(s, 0, 1, LENGTH, tokens, labels, NULL));
    const int64_t held = support_held(context) - before, said = moedi_sampler_bytes(DOCUMENTS, LENGTH);
    assert_in_range(held, said, said + 7 * 128); /* each block has a head and is filled up */
    moedi_sampler_destroy(s);
    moed_corpus_destroy(d);
}

static void running_out_of_memory_anywhere_is_survived(void **state)
{
    (void)state;
    int64_t allowed;
    moed_context *c = support_scarce_context(&allowed);
    folder("f"), put("f/a.txt", "one"), put("f/b.jsonl", "{\"text\": \"two\"}\n"), put("f/c.txt", "three");
    int64_t n = 0;
    for (moed_status status = MOED_E_MEMORY; support_scarce(c, &allowed, n, 0, status); n++) status = build_open_divide_sample(c);
    assert_true(n > 30);
    assert_int_equal(entries("c"), 3);
    support_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        T(a_folder_is_walked_in_name_order_without_binary_hidden_and_linked_entries),
        T(copies_and_blank_documents_are_dropped_and_counted),
        T(a_long_file_is_cut_at_blank_lines_and_nothing_is_lost),
        T(a_long_file_without_lines_is_cut_between_characters),
        T(json_lines_give_their_field),
        T(a_byte_order_mark_is_no_text),
        T(text_that_is_none_is_refused_and_leaves_nothing),
        T(a_failed_build_leaves_the_older_corpus_alone),
        T(a_corpus_in_its_own_folder_does_not_eat_itself),
        T(a_cancelled_build_leaves_nothing),
        T(a_full_disk_is_named_and_leaves_nothing),
        T(a_killed_build_leaves_a_whole_corpus_or_none_and_can_be_repeated),
        T(foreign_pairs_open_with_documents_of_several_sequences),
        T(every_truncation_of_an_index_is_refused),
        T(every_flip_of_an_index_is_refused_or_harmless),
        T(hostile_index_fields_are_named),
        T(tokens_outside_the_vocabulary_are_refused_when_read),
        T(a_description_of_other_token_files_is_refused),
        T(shards_are_cut_at_their_end_token),
        T(callbacks_serve_documents_and_can_stop),
        T(views_of_views_go_back_to_the_whole_corpus),
        T(dividing_parts_every_document_once),
        T(a_saved_view_opens_as_a_corpus_of_its_own),
        T(large_vocabularies_are_saved_in_four_bytes),
        T(an_epoch_holds_every_document_once_in_shuffled_pieces),
        T(a_document_shorter_than_a_row_repeats_with_boundaries),
        T(without_end_token_documents_follow_each_other),
        T(evaluation_rows_hold_every_token_once_as_a_label),
        T(a_sampler_holds_the_bytes_it_says),
        T(running_out_of_memory_anywhere_is_survived),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
