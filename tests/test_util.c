/* tests/test_util.c - conversion, random numbers, files, JSON and safetensors. */
#include <fcntl.h>
#include <sys/file.h>

#include "support.h"
#include "fixture.h"

#include <fenv.h>
#include <math.h>

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>

#include "json_referee.h"
#include "util/dtype.h"
#include "util/file.h"
#include "util/hash.h"
#include "util/item.h"
#include "util/json_field.h"
#include "util/numbers.h"
#include "util/random.h"
#include "util/safetensors.h"

static int entries_in(const char *dir)
{
    int n = 0;
    DIR *d = opendir(dir);
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

/* ---- conversion ---- */

static void every_half_survives_the_way_to_double_and_back(void **state)
{
    (void)state;
    static const moed_dtype types[] = {MOED_DTYPE_F16, MOED_DTYPE_BF16};
    for (int t = 0; t < 2; t++)
        for (uint32_t h = 0; h < 65536; h++) {
            const uint16_t from = (uint16_t)h;
            uint16_t back;
            double d;
            moedi_to_double(&d, &from, types[t], 1);
            moedi_from_double(&back, types[t], &d, 1);
            if (d != d)
                assert_true((back & 0x7FFF) > (t ? 0x7F80 : 0x7C00));
            else
                assert_int_equal(back, from);
        }
}

static void narrowing_rounds_once_to_nearest_even(void **state)
{
    (void)state;
    static const struct {
        moed_dtype type;
        double value;
        uint16_t bits;
    } cases[] = {
        {MOED_DTYPE_BF16, 1.0 + 0x1p-8, 0x3F80},             /* tie to even, down */
        {MOED_DTYPE_BF16, 1.0 + 3 * 0x1p-8, 0x3F82},         /* tie to even, up */
        {MOED_DTYPE_BF16, 1.0 + 0x1p-8 + 0x1p-40, 0x3F81},   /* rounding to float first would make it a tie */
        {MOED_DTYPE_F16, 1.0 + 0x1p-11 + 0x1p-45, 0x3C01},
        {MOED_DTYPE_F16, 65519.9, 0x7BFF},
        {MOED_DTYPE_F16, 65520, 0x7C00},
        {MOED_DTYPE_F16, -0x1p-25, 0x8000},
        {MOED_DTYPE_F16, 0x1.8p-25, 0x0001},
        {MOED_DTYPE_F16, -0x1p-14, 0x8400},
        {MOED_DTYPE_BF16, 1e39, 0x7F80},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint16_t out;
        moedi_from_double(&out, cases[i].type, &cases[i].value, 1);
        assert_int_equal(out, cases[i].bits);
    }
}

/* ---- random numbers ---- */

/* Every instruction set gives the bits of the plain loops, in vectors and in what is left over, over all kinds of numbers. */
static void vectors_of_every_width_give_the_same_bits(void **state)
{
    enum { COUNT = 4099 };
    static const moed_dtype types[] = {MOED_DTYPE_F64, MOED_DTYPE_F32, MOED_DTYPE_F16, MOED_DTYPE_BF16};
    static double x[COUNT], y[COUNT], want[COUNT], got[COUNT];
    static unsigned char to[8 * COUNT], same[8 * COUNT];
    (void)state;
    for (int i = 0; i < COUNT; i++) { /* any bits at all; near each other; ties of the narrow types; infinities, NaN, zeros */
        uint64_t bits = moedi_random(1, 1, 0, (uint64_t)i);
        if (i % 4 == 1) bits = (bits & ~(UINT64_C(0x7ff) << 52)) | (uint64_t)(1023 - 30 + i % 60) << 52;
        if (i % 4 == 2) bits = (bits & ~((UINT64_C(1) << 44) - 1) & ~(UINT64_C(0x7ff) << 52)) | (uint64_t)(1000 + i % 40) << 52;
        memcpy(&x[i], &bits, 8);
        y[i] = i % 3 ? x[i] : x[COUNT - 1 - i];
        if (i % 97 == 0) x[i] = i % 2 ? INFINITY : -0.0, y[i] = i % 5 ? x[i] : 1.0;
    }
    const moedi_numbers *plain = moedi_numbers_set(0);
    for (int set = 1; set < MOEDI_NUMBERS_SETS; set++) {
        const moedi_numbers *n = moedi_numbers_set(set);
        if (!n) continue;
        for (size_t t = 0; t < 4; t++) {
            const size_t size = moedi_dtype_size(types[t]);
            plain->from_double(to, types[t], x, COUNT);
            n->from_double(same, types[t], x, COUNT);
            assert_memory_equal(to, same, size * COUNT);
            plain->to_double(want, to, types[t], COUNT);
            n->to_double(got, to, types[t], COUNT);
            assert_memory_equal(want, got, sizeof want);
            plain->settle(to, types[t], x, y, COUNT);
            n->settle(same, types[t], x, y, COUNT);
            assert_memory_equal(to, same, size * COUNT);
        }
        for (int i = 0; i < COUNT; i++) want[i] = got[i] = 0.25 * i;
        double a[COUNT], b[COUNT], lanes[MOEDI_LANES] = {0}, others[MOEDI_LANES] = {0};
        memcpy(a, x, sizeof a);
        memcpy(b, x, sizeof b);
        plain->add_difference(want, 1.5, a, y, COUNT);
        n->add_difference(got, 1.5, b, y, COUNT);
        assert_memory_equal(want, got, sizeof want);
        assert_memory_equal(a, b, sizeof a);
        plain->add_squares(lanes, a, COUNT);
        n->add_squares(others, a, COUNT);
        assert_memory_equal(lanes, others, sizeof lanes);
    }
}

static void kernels_know_the_size_of_every_type(void **state)
{
    (void)state;
    for (moed_dtype dtype = MOED_DTYPE_NONE; dtype <= MOED_DTYPE_C64 + 1; dtype++)
        assert_int_equal(moedi_item_bytes(dtype), moedi_dtype_size(dtype));
}

/* A value whose sum is zero keeps the bits it has, whatever they are; what did not move adds nothing, where it is not a number
 * too. */
static void settling_touches_what_moved_alone(void **state)
{
    (void)state;
    for (int set = 0; set < MOEDI_NUMBERS_SETS; set++) {
        const moedi_numbers *n = moedi_numbers_set(set);
        if (!n) continue;
        uint16_t out[4] = {0x8000, 0x7fc1, 0x3f80, 0x0001}; /* -0, a NaN with a mark, 1, the smallest */
        const double value[4] = {-0.0, NAN, 1, 0x1p-133};
        double sum[4] = {0, 0, 0, 0}, moved[4] = {-0.0, NAN, 1.5, INFINITY}, still[4] = {0.0, NAN, 1, INFINITY};
        n->add_difference(sum, 2, moved, still, 4);
        n->settle(out, MOED_DTYPE_BF16, value, sum, 4);
        assert_int_equal(out[0], 0x8000);
        assert_int_equal(out[1], 0x7fc1);
        assert_int_equal(out[2], 0x4000);
        assert_int_equal(out[3], 0x0001);
    }
}

static void normal_numbers_are_the_same_on_every_machine(void **state)
{
    (void)state;
    /* Bits pinned: initial weights must not change between builds, compilers and machines. */
    uint64_t all = 0;
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < 20000; i++) {
        const double x = moedi_random_normal(42, MOEDI_RANDOM_INIT, 7, i);
        uint64_t bits;
        memcpy(&bits, &x, 8);
        all = all * 31 + bits;
        sum += x, squares += x * x;
    }
    assert_true(fabs(sum / 20000) < 0.03 && fabs(squares / 20000 - 1) < 0.04);
    char text[32];
    snprintf(text, sizeof text, "%016llx", (unsigned long long)all);
    assert_string_equal(text, "7e8e21d2edf4720e");
}

static void many_normal_numbers_are_those_drawn_one_by_one(void **state)
{
    enum { MANY = 5000 };
    double many[MANY + 1];
    (void)state;
    for (int set = 0; set < MOEDI_NUMBERS_SETS; set++) {
        const moedi_numbers *n = moedi_numbers_set(set);
        if (!n) continue;
        for (int64_t count = 0; count <= MANY; count = 3 * count + 1) { /* no vector's length, some blocks */
            const uint64_t first = UINT64_C(0xFFFFFFFF) - (uint64_t)count / 2; /* the index' upper half changes on the way */
            many[count] = 123.0;
            n->normals(many, 42, MOEDI_RANDOM_INIT, 7, first, count);
            assert_true(many[count] == 123.0);
            for (int64_t i = 0; i < count; i++) {
                const double one = moedi_random_normal(42, MOEDI_RANDOM_INIT, 7, first + (uint64_t)i);
                assert_memory_equal(&one, &many[i], sizeof one);
            }
        }
    }
}

static void normal_numbers_follow_the_distribution_function(void **state)
{
    (void)state;
    for (uint64_t i = 0; i < 5000; i++) {
        const double p = ((double)(moedi_random(3, MOEDI_RANDOM_PIECE, 0, i) >> 12) + 0.5) * 0x1p-52;
        const double x = moedi_random_normal(3, MOEDI_RANDOM_PIECE, 0, i);
        assert_true(fabs(0.5 * erfc(-x / sqrt(2)) - p) < 1e-14);
    }
}

static void a_permutation_holds_every_number_once_and_depends_on_seed_and_step(void **state)
{
    (void)state;
    int64_t a[500], b[500];
    char seen[500] = {0};
    moedi_random_permutation(1, MOEDI_RANDOM_EPOCH, 0, a, 500);
    for (int i = 0; i < 500; i++) {
        assert_true(a[i] >= 0 && a[i] < 500 && !seen[a[i]]);
        seen[a[i]] = 1;
    }
    moedi_random_permutation(1, MOEDI_RANDOM_EPOCH, 1, b, 500);
    assert_memory_not_equal(a, b, sizeof a);
    moedi_random_permutation(2, MOEDI_RANDOM_EPOCH, 0, b, 500);
    assert_memory_not_equal(a, b, sizeof a);
    moedi_random_permutation(1, MOEDI_RANDOM_EPOCH, 0, b, 500);
    assert_memory_equal(a, b, sizeof a);
}

static void a_place_is_a_bijection_for_every_count(void **state)
{
    (void)state;
    for (int64_t count = 1; count < 70; count++) {
        char seen[70] = {0};
        for (int64_t i = 0; i < count; i++) {
            const int64_t at = moedi_random_place(9, MOEDI_RANDOM_ROW, 2, i, count);
            assert_true(at >= 0 && at < count && !seen[at]);
            seen[at] = 1;
        }
    }
    int64_t fixed = 0;
    for (int64_t i = 0; i < 10000; i++) fixed += moedi_random_place(9, MOEDI_RANDOM_ROW, 2, i, 10000) == i;
    assert_true(fixed < 12); /* one is expected */
    const int64_t huge = INT64_C(1) << 60, place = moedi_random_place(9, MOEDI_RANDOM_ROW, 2, huge - 1, huge);
    assert_true(place >= 0 && place < huge && place != moedi_random_place(9, MOEDI_RANDOM_ROW, 3, huge - 1, huge));
}

/* ---- files ---- */

static void a_written_file_is_whole_or_not_there(void **state)
{
    (void)state;
    char *dir = support_directory();
    const char *path = support_path(dir, "x");
    assert_ok(moedi_file_write(context, path, "first", 5));
    moedi_writer w;
    assert_ok(moedi_writer_open(&w, context, path));
    assert_ok(moedi_writer_write(&w, "second", 6));
    char *text;
    assert_ok(moedi_file_text(context, path, 100, &text, NULL));
    assert_string_equal(text, "first");
    moedi_free(context, text);
    moedi_writer_abort(&w);
    assert_int_equal(entries_in(dir), 1);
    assert_refused(moedi_file_text(context, path, 3, &text, NULL), MOED_E_LIMIT, "at most 3");
    assert_refused(moedi_file_text(context, dir, 3, &text, NULL), MOED_E_FORMAT, "not a regular file");
    assert_refused(moedi_file_text(context, support_path(dir, "none"), 3, &text, NULL), MOED_E_NOT_FOUND, "none");
    support_remove(dir);
}

static void a_full_disk_leaves_the_old_file_and_nothing_else(void **state)
{
    (void)state;
    char *dir = support_directory();
    char *path = strdup(support_path(dir, "x"));
    assert_ok(moedi_file_write(context, path, "old", 3));
    struct rlimit before, small = {.rlim_cur = 100000};
    getrlimit(RLIMIT_FSIZE, &before);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    static char big[500000];
    const moed_status status = moedi_file_write(context, path, big, sizeof big);
    setrlimit(RLIMIT_FSIZE, &before);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(status, MOED_E_SPACE);
    assert_non_null(strstr(moed_last_error(), path));
    assert_int_equal(entries_in(dir), 1);
    char *text;
    assert_ok(moedi_file_text(context, path, 100, &text, NULL));
    assert_string_equal(text, "old");
    moedi_free(context, text);
    free(path);
    support_remove(dir);
}

static void a_fresh_directory_appears_whole_and_replaces_an_old_one(void **state)
{
    (void)state;
    char *dir = support_directory();
    char *path = strdup(support_path(dir, "model"));
    for (int round = 0; round < 2; round++) {
        moedi_fresh_directory d;
        char *inside;
        assert_ok(moedi_fresh_directory_begin(&d, context, path));
        assert_ok(moedi_path_join(context, d.temporary, round ? "new" : "old", &inside));
        assert_ok(moedi_file_write(context, inside, "1", 1));
        moedi_free(context, inside);
        assert_int_equal(moedi_path_exists(support_path(path, "new")), 0);
        assert_ok(moedi_fresh_directory_commit(&d));
        assert_true(moedi_path_exists(support_path(path, round ? "new" : "old")));
    }
    assert_int_equal(entries_in(path), 1);
    moedi_fresh_directory d;
    assert_ok(moedi_fresh_directory_begin(&d, context, path));
    moedi_fresh_directory_abort(&d);
    assert_int_equal(entries_in(dir), 1);
    free(path);
    support_remove(dir);
}

/* In a container the process that comes after a killed one often has its number: the lock says who lives. */
static void what_killed_writers_left_is_swept_and_what_living_ones_write_is_not(void **state)
{
    (void)state;
    char *dir = support_directory(), name[4150];
    int living[2];
    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "%s/f.tmp-%ld-%d", dir, (long)getpid(), i);
        support_write(name, "old", 3);
        snprintf(name, sizeof name, "%s/d.tmp-%ld-%d", dir, (long)getpid(), i);
        assert_int_equal(mkdir(name, 0777), 0);
        snprintf(name, sizeof name, "%s/d.tmp-%ld-%d/stale", dir, (long)getpid(), i);
        support_write(name, "old", 3);
    }
    static const char *const strangers[] = {"f.tmp-1", "f.tmp-1-", "f.tmp-1-2x", "ff.tmp-1-2", "f.txt.tmp-1-2", "f.tmp-1-2.gz"};
    for (size_t i = 0; i < 6; i++) support_write(support_path(dir, strangers[i]), "theirs", 6);
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s/%c.tmp-%ld-7", dir, i ? 'd' : 'f', (long)getpid());
        living[i] = open(name, O_RDONLY | O_CLOEXEC);
        assert_int_equal(flock(living[i], LOCK_EX | LOCK_NB), 0);
    }
    assert_ok(moedi_file_write(context, support_path(dir, "f"), "new", 3));
    moedi_fresh_directory d;
    assert_ok(moedi_fresh_directory_begin(&d, context, support_path(dir, "d")));
    assert_ok(moedi_fresh_directory_commit(&d));
    assert_int_equal(moedi_path_exists(support_path(dir, "d/stale")), 0);
    for (size_t i = 0; i < 6; i++) assert_true(moedi_path_exists(support_path(dir, strangers[i])));
    assert_int_equal(entries_in(dir), 6 + 2 + 2); /* the strangers, f and d, and the two locked ones */
    for (int i = 0; i < 2; i++) close(living[i]);
    support_remove(dir);
}

/* A writer's own temporary is locked, so a second writer of the same path does not take it away. */
static void two_writers_of_one_path_leave_each_other_alone(void **state)
{
    (void)state;
    char *dir = support_directory();
    moedi_writer a, b;
    moedi_fresh_directory x, y;
    assert_ok(moedi_writer_open(&a, context, support_path(dir, "f")));
    assert_ok(moedi_writer_open(&b, context, support_path(dir, "f")));
    assert_ok(moedi_writer_write(&a, "a", 1));
    assert_ok(moedi_writer_write(&b, "bb", 2));
    assert_ok(moedi_writer_commit(&a));
    assert_ok(moedi_writer_commit(&b));
    assert_ok(moedi_fresh_directory_begin(&x, context, support_path(dir, "d")));
    assert_ok(moedi_fresh_directory_begin(&y, context, support_path(dir, "d")));
    assert_ok(moedi_fresh_directory_commit(&x));
    assert_ok(moedi_fresh_directory_commit(&y));
    assert_int_equal(entries_in(dir), 2);
    support_remove(dir);
}

/* Where directories cannot be exchanged in one step, a kill between the two steps leaves the old one under another name. */
static void an_old_directory_that_lost_its_name_gets_it_back(void **state)
{
    (void)state;
    char *dir = support_directory();
    moedi_fresh_directory d;
    assert_int_equal(mkdir(support_path(dir, "d.old-1-2"), 0777), 0);
    support_write(support_path(dir, "d.old-1-2/content"), "old", 3);
    assert_ok(moedi_fresh_directory_begin(&d, context, support_path(dir, "d")));
    assert_true(moedi_path_exists(support_path(dir, "d/content")));
    moedi_fresh_directory_abort(&d);
    assert_int_equal(mkdir(support_path(dir, "d.old-1-2"), 0777), 0);
    assert_ok(moedi_fresh_directory_begin(&d, context, support_path(dir, "d")));
    assert_int_equal(moedi_path_exists(support_path(dir, "d.old-1-2")), 0);
    moedi_fresh_directory_abort(&d);
    support_remove(dir);
}

static void a_directory_behind_a_link_is_replaced_and_the_link_stays(void **state)
{
    (void)state;
    char *dir = support_directory();
    struct stat s;
    moedi_fresh_directory d;
    assert_int_equal(mkdir(support_path(dir, "real"), 0777), 0);
    support_write(support_path(dir, "real/old"), "old", 3);
    assert_int_equal(symlink("real", support_path(dir, "link")), 0);
    assert_ok(moedi_fresh_directory_begin(&d, context, support_path(dir, "link")));
    support_write(support_path(d.temporary, "new"), "new", 3);
    assert_ok(moedi_fresh_directory_commit(&d));
    assert_int_equal(lstat(support_path(dir, "link"), &s), 0);
    assert_true(S_ISLNK(s.st_mode));
    assert_int_equal(stat(support_path(dir, "real/new"), &s), 0);
    assert_int_not_equal(stat(support_path(dir, "real/old"), &s), 0);
    support_remove(dir);
}

static void names_are_listed_in_order(void **state)
{
    (void)state;
    char *dir = support_directory();
    static const char *const made[] = {"b", "a10", "a2", "C"};
    for (int i = 0; i < 4; i++) support_write(support_path(dir, made[i]), "", 0);
    char **names;
    size_t count;
    assert_ok(moedi_directory_list(context, dir, &names, &count));
    assert_int_equal(count, 4);
    assert_string_equal(names[0], "C");
    assert_string_equal(names[1], "a10");
    assert_string_equal(names[3], "b");
    for (size_t i = 0; i < count; i++) moedi_free(context, names[i]);
    moedi_free(context, names);
    support_remove(dir);
}

static void a_float_survives_in_two_halves_of_which_the_high_one_is_the_nearest(void **state)
{
    uint32_t r = 1;
    (void)state;
    for (int i = 0; i < 100000; i++) {
        uint32_t bits = i < 8 ? (const uint32_t[]){0,           0x80000000u, 1,           0x3f808000u,
                                                   0xbf808000u, 0x7f800000u, 0x7fc00001u, 0xffffffffu}[i]
                              : (r = r * 1664525u + 1013904223u);
        float x, alone, again;
        uint16_t high, only;
        int16_t low;
        memcpy(&x, &bits, sizeof x);
        moedi_halve(&high, &low, &x, 1);
        moedi_unite(&again, &high, &low, 1);
        if (isnan(x)) {
            assert_true(isnan(again));
            continue;
        }
        assert_memory_equal(&again, &x, sizeof x);
        moedi_halve(&only, NULL, &x, 1);
        assert_int_equal(only, high);
        moedi_unite(&alone, &high, NULL, 1);
        if (isfinite(alone))
            assert_true(fabs((double)x - (double)alone) <= ldexp(fabs((double)alone), -8) || fabs((double)x) < 1.2e-38);
    }
}

static void a_hash_does_not_depend_on_how_the_data_comes(void **state)
{
    (void)state;
    static char data[3000000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (char)(i * 7 >> 3);
    const moedi_digest whole = moedi_hash_bytes(data, sizeof data);
    moedi_hash *h;
    assert_ok(moedi_hash_create(&h, context));
    for (size_t at = 0; at < sizeof data; at += 1000) moedi_hash_update(h, data + at, 1000);
    const moedi_digest parts = moedi_hash_digest(h);
    moedi_hash_destroy(h);
    char *dir = support_directory();
    moedi_digest file;
    int64_t size;
    support_write(support_path(dir, "data"), data, sizeof data);
    assert_ok(moedi_hash_file(context, support_path(dir, "data"), &file, &size));
    assert_int_equal(size, sizeof data);
    assert_true(whole.low == parts.low && whole.high == parts.high && whole.low == file.low && whole.high == file.high);
    support_remove(dir);
}

/* ---- JSON ---- */

static void json_faults_name_file_and_field(void **state)
{
    (void)state;
    static const struct {
        const char *text, *words;
    } broken[] = {{"", "is not JSON"}, {"[1]", "not an object"}, {"{\"a\":1,\"a\":2}", "is not JSON"},
                  {"{\"a\":1} x", "is not JSON"},
                  {"{\"a\":NaN}", "is not JSON"}, {"{\"a\":99999999999999999999}", "is not JSON"},
                  {"{\"a\":\"\xff\"}", "is not JSON"}};
    json_t *o;
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++)
        assert_refused(moedi_json_parse(&o, broken[i].text, strlen(broken[i].text), "f.json"), MOED_E_FORMAT, broken[i].words);
    char deep[10000];
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"a\":", 5);
    assert_refused(moedi_json_parse(&o, deep, sizeof deep, "f.json"), MOED_E_FORMAT, "f.json");
    const char *good = "{\"n\": 7, \"x\": 0.5, \"b\": true, \"s\": \"hi\", \"z\": null}";
    assert_ok(moedi_json_parse(&o, good, strlen(good), "f.json"));
    int64_t n = 0;
    double x = 0;
    int32_t b = 0;
    const char *s = NULL;
    assert_ok(moedi_json_integer(o, "f.json", "n", 1, 0, 10, &n));
    assert_ok(moedi_json_number(o, "f.json", "x", 1, 0, 1, &x));
    assert_ok(moedi_json_boolean(o, "f.json", "b", 1, &b));
    assert_ok(moedi_json_text(o, "f.json", "s", 1, &s));
    assert_true(n == 7 && x == 0.5 && b == 1 && !strcmp(s, "hi"));
    assert_ok(moedi_json_integer(o, "f.json", "z", 0, 0, 10, &n));
    assert_int_equal(n, 7);
    assert_refused(moedi_json_integer(o, "f.json", "z", 1, 0, 10, &n), MOED_E_FORMAT, "f.json: the field \"z\" is missing");
    assert_refused(moedi_json_integer(o, "f.json", "n", 1, 8, 10, &n), MOED_E_RANGE, "\"n\" is 7; it must be from 8 to 10");
    assert_refused(moedi_json_integer(o, "f.json", "x", 1, 0, 10, &n), MOED_E_FORMAT, "\"x\" is not an integer");
    assert_refused(moedi_json_boolean(o, "f.json", "n", 1, &b), MOED_E_FORMAT, "\"n\" is neither");
    json_decref(o);
}

/* 0: left to moedi_json_parse; 1: taken, and jansson reads the same. *known: jansson finds the field. */
static int field_taken(const char *line, int64_t size, int *known)
{
    moedi_json_string found;
    json_error_t error;
    json_t *o = json_loadb(line, (size_t)size, JSON_REJECT_DUPLICATES, &error);
    const json_t *text = json_is_object(o) ? json_object_get(o, "text") : NULL;
    const int taken = moedi_json_field(line, size, "text", &found);
    *known = json_is_string(text);
    if (taken) {
        char own[4096];
        if (!*known) fail_msg("taken, and jansson says %s: %.*s", o ? "no such string" : error.text, (int)size, line);
        memcpy(own, found.text, (size_t)found.size);
        const int64_t length = found.escaped ? moedi_json_unescape(own, found.size) : found.size;
        assert_int_equal(length, json_string_length(text));
        assert_memory_equal(own, json_string_value(text), (size_t)length);
    }
    json_decref(o);
    return taken;
}

static const char *const usual_lines[] = {
    "{\"text\":\"\"}",
    " {\"id\": 12, \"text\": \"one \\\"two\\\"\\n\\t\\\\ \\/\\b\\f\\r\", \"last\": null}\t\r",
    "{\"text\": \"\\u0041\\u00e9\\u20AC\\ud83d\\ude00 \xc3\xa9 \xf0\x9f\x98\x80 and on and on and on\"}",
    "{\"meta\": {\"a\": [1, -0.5, 1e5, 2E-10, 0, [], {}, {\"a\": true}], \"b\": false}, \"text\": \"x\", \"n\": "
    "123456789012345678}",
    "{\"a\": {\"text\": 1}, \"text\": \"outer\", \"b\": [{\"text\": 2}, {\"text\": 3}]}",
};
enum { USUAL = sizeof usual_lines / sizeof *usual_lines };

static void a_field_of_a_line_is_what_jansson_reads(void **state)
{
    static const char *const others[] = {
        "", "[]", "\"text\"", "{}", "{\"text\": 1}", "{\"text\": null}", "{\"text\": \"a\"} x", "{\"text\": \"a\",}",
        "{\"text\": \"a\"", "{\"text\": \"a\", \"text\": \"b\"}", "{\"text\": \"a\", \"o\": {\"k\": 1, \"k\": 2}}",
        "{\"text\": \"\\u0000\"}", "{\"text\": \"\\ud800\"}", "{\"text\": \"\\udc00\\ud800\"}", "{\"text\": \"\\u12g4\"}",
        "{\"text\": \"\\x\"}", "{\"text\": \"a\nb\"}", "{\"text\": \"\xff\"}", "{\"text\": \"\xc0\x80\"}",
        "{\"text\": \"\xed\xa0\x80\"}", "{\"text\": \"a\", \"n\": 01}", "{\"text\": \"a\", \"n\": 1.}",
        "{\"text\": \"a\", \"n\": .5}", "{\"text\": \"a\", \"n\": +1}", "{\"text\": \"a\", \"n\": 1e}",
        "{\"text\": \"a\", \"n\": 1e999}", "{\"text\": \"a\", \"n\": 99999999999999999999}", "{\"text\": \"a\", \"n\": nul}",
        "{\"text\": \"a\", \"n\": truex}", "{\"text\": \"a\", \"n\": NaN}", "{\"text\": \"a\" \"n\": 1}", "{\"text\" \"a\"}",
        "{text: \"a\"}", "\xef\xbb\xbf{\"text\": \"a\"}", "{\"text\": \"a\", \"n\": [1 2]}", "{\"text\": \"a\", \"n\": [1,]}",
        "{\"te\\u0078t\": \"a\"}",
    };
    int known;
    (void)state;
    for (size_t i = 0; i < USUAL; i++) assert_true(field_taken(usual_lines[i], (int64_t)strlen(usual_lines[i]), &known) && known);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (field_taken(others[i], (int64_t)strlen(others[i]), &known)) fail_msg("taken: %s", others[i]);
    assert_false(field_taken("{\"text\": \"a\0\"}", 14, &known));
}

/* One byte of `line` is taken out, replaced, doubled or moved; *draw goes on. */
static size_t change(char *line, size_t size, uint32_t *draw)
{
    static const char bytes[] = "{}[]\",:\\ueE+-.0159 truefalsn\t\n\x01\x7f\x80\xbf\xc3\xe0\xed\xf0\xf4\xff";
    *draw = *draw * 1664525u + 1013904223u;
    const size_t at = (*draw >> 8) % size, kind = *draw >> 30;
    *draw = *draw * 1664525u + 1013904223u;
    const char byte = bytes[(*draw >> 8) % sizeof bytes]; /* the zero at its end too */
    if (kind == 0) memmove(line + at, line + at + 1, --size - at);
    else if (kind == 1) line[at] = byte;
    else if (kind == 2) memmove(line + at + 1, line + at, size++ - at), line[at] = byte;
    else line[at] = line[(*draw >> 8) % size];
    return size;
}

static void changed_lines_are_taken_only_as_jansson_takes_them(void **state)
{
    uint32_t draw = 1;
    int taken = 0, readable = 0;
    (void)state;
    for (int round = 0; round < 60000; round++) {
        char line[512];
        const char *from = usual_lines[round % USUAL];
        size_t size = strlen(from);
        memcpy(line, from, size);
        for (int changes = round / USUAL % 4; changes > 0; changes--) size = change(line, size, &draw);
        int known;
        taken += field_taken(line, (int64_t)size, &known);
        readable += known;
    }
    assert_true(readable > 20000 && taken > readable / 10 * 9);
}

/* Every one an object to both readers. */
static const char *const good_texts[] = {
    "{}", " \t\r\n{ } \n", "{\"\": \"\"}", "{\"a\": {\"a\": {\"a\": [{\"a\": 1}, {\"a\": 1}]}}}", "{\"a\":[],\"b\":[[],[[]],{}]}",
    "{\"a\": [true,false , null\t,true]}", "{\"a\": 0, \"b\": -0, \"c\": -0.0, \"d\": 0e0, \"e\": 0E-5}",
    "{\"most\": 9223372036854775807, \"least\": -9223372036854775808}",
    "{\"a\": [1e5, 1E+5, 1.5e-7, -1.25E2, 123456789012345678901e0]}",
    "{\"a\": 1.7976931348623157e308, \"b\": -1.7976931348623157e308, \"c\": 5e-324, \"d\": 1e-999, \"e\": 2.22507385850720e-308}",
    "{\"a\": 0.1000000000000000055511151231257827021181583404541015625000001, \"b\": 9007199254740993.0}",
    "{\"a\": 8.5e0000000000000000000000000000000000000000000000007}",
    "{\"\\\"\\\\\\/\\b\\f\\n\\r\\t\": \"\\\"\\\\\\/\\b\\f\\n\\r\\t\"}",
    "{\"\\u0041\\u00e9\\u20AC\": \"\\ud83d\\ude00\\uDBFF\\uDFFF\\uffff\"}",
    "{\"\xc3\xa9\": \"\x7f\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf\"}",
    "{\"a\": \"b\", \"b\": \"a\", \"aa\": \"\", \"A\": 1}",
    "{\"\\u0061\": 1, \"\\u0062\": \"\\u0063\", \"c\": [\"\\u0061\", \"\\u0061\"]}",
};

/* None is. */
static const char *const bad_texts[] = {
    "", " ", "{", "}", "[", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "{\"a\":1,}", "{,}", "{\"a\" 1}", "{\"a\":}",
    "{\"a\":1 \"b\":2}", "{1:2}", "{a:1}", "{'a':1}", "{\"a\":1}}", "{\"a\":1} {}", "{} x", "{\"a\":[1,]}", "{\"a\":[,1]}",
    "{\"a\":[1 2]}", "{\"a\":[1}", "{\"a\":{]}", "{\"a\":[1:2]}", "{\"a\":1]", "[]", "[{}]", "1", "\"a\"", "true", "null",
    "{\"a\":tru}", "{\"a\":truex}", "{\"a\":True}", "{\"a\":nul", "{\"a\":NaN}", "{\"a\":Infinity}", "{\"a\":-Infinity}",
    "{\"a\":01}", "{\"a\":-}", "{\"a\":-01}", "{\"a\":+1}", "{\"a\":.5}", "{\"a\":1.}", "{\"a\":1.e5}", "{\"a\":1e}",
    "{\"a\":1e+}", "{\"a\":1e5.5}", "{\"a\":0x10}", "{\"a\":1_000}", "{\"a\":1a}", "{\"a\":--1}", "{\"a\":9223372036854775808}",
    "{\"a\":-9223372036854775809}", "{\"a\":99999999999999999999999999999999999999}", "{\"a\":1e309}", "{\"a\":-1e309}",
    "{\"a\":1.7976931348623159e308}", "{\"a\":1,\"a\":1}", "{\"a\":1,\"\\u0061\":2}", "{\"\\u0061\":1,\"a\":2}",
    "{\"b\":{\"a\":1,\"c\":2,\"a\":3}}", "{\"\":1,\"\":2}", "{\"/\":1,\"\\/\":2}", "{\"\xc3\xa9\":1,\"\\u00E9\":2}",
    "{\"a\":\"\\u0000\"}", "{\"\\u0000\":1}", "{\"a\":\"\\ud800\"}", "{\"a\":\"\\udc00\"}", "{\"a\":\"\\ud800x\"}",
    "{\"a\":\"\\ud800\\n\"}", "{\"a\":\"\\ud800\\u0041\"}", "{\"a\":\"\\ud800\\ud800\"}", "{\"a\":\"\\udc00\\ud800\"}",
    "{\"a\":\"\\ud800\\u", "{\"a\":\"\\ud83d\\ude0\"}", "{\"a\":\"\\u12\"}", "{\"a\":\"\\u12g4\"}", "{\"a\":\"\\U0041\"}",
    "{\"a\":\"\\x41\"}", "{\"a\":\"\\", "{\"a\":\"\\u", "{\"a\":\"b", "{\"a\":\"b\\\"}", "{\"a\":\"\n\"}", "{\"a\":\"\x1f\"}",
    "{\"a\t\":1}", "{\"a\":\"\xff\"}", "{\"\xff\":1}", "{\"a\":\"\xc0\x80\"}", "{\"a\":\"\xc1\xbf\"}", "{\"a\":\"\xe0\x9f\xbf\"}",
    "{\"a\":\"\xed\xa0\x80\"}", "{\"a\":\"\xf0\x8f\xbf\xbf\"}", "{\"a\":\"\xf4\x90\x80\x80\"}", "{\"a\":\"\xf5\x80\x80\x80\"}",
    "{\"a\":\"\x80\"}", "{\"a\":\"\xc3\"}", "{\"a\":\"\xc3\\u0041\"}", "{\"a\":\"\xe2\x82", "\xef\xbb\xbf{}", "{}\xc2\xa0",
    "{\v}", "{\f}", "{/**/}", "{\"a\":1//\n}",
};

enum { GOOD = sizeof good_texts / sizeof *good_texts, BAD = sizeof bad_texts / sizeof *bad_texts };

static void both_readers_take_and_refuse_the_same(void **state)
{
    (void)state;
    for (size_t i = 0; i < GOOD; i++)
        if (!json_compare(good_texts[i], strlen(good_texts[i]))) fail_msg("%s: %s", good_texts[i], moed_last_error());
    for (size_t i = 0; i < BAD; i++)
        if (json_compare(bad_texts[i], strlen(bad_texts[i]))) fail_msg("taken: %s", bad_texts[i]);
    static const char zeros[] = "{\"a\":\"b\0c\", \"d\0\":1}\0";
    assert_false(json_compare(zeros, sizeof zeros - 1));
    assert_false(json_compare("{}\0", 3));
    for (size_t i = 0; i < GOOD; i++) /* cut anywhere it ends too early */
        for (size_t size = 0; size < strlen(good_texts[i]); size++)
            if (json_compare(good_texts[i], size) && i != 1) fail_msg("taken: %.*s", (int)size, good_texts[i]);
}

static void both_readers_take_and_refuse_the_same_changed_texts(void **state)
{
    uint32_t draw = 2;
    int taken = 0;
    (void)state;
    for (int round = 0; round < 20000; round++) {
        char text[512];
        const size_t number = (size_t)round % (GOOD + BAD);
        const char *from = number < GOOD ? good_texts[number] : bad_texts[number - GOOD];
        size_t size = strlen(from);
        memcpy(text, from, size);
        for (int changes = 1 + round / (GOOD + BAD) % 3; changes > 0 && size > 0; changes--) size = change(text, size, &draw);
        taken += json_compare(text, size);
    }
    assert_true(taken > 500 && taken < 10000);
}

static void deep_nesting_is_taken_to_its_limit(void **state)
{
    (void)state;
    for (int list = 0; list < 2; list++)
        for (int depth = MOEDI_JSON_DEPTH - 1; depth <= MOEDI_JSON_DEPTH + 1; depth++) {
            char text[16 * MOEDI_JSON_DEPTH] = "{\"a\":";
            for (int i = 1; i < depth; i++) strcat(text, list ? "[" : "{\"a\":");
            if (!list) strcat(text, "1");
            for (int i = 1; i < depth; i++) strcat(text, list ? "]" : "}");
            strcat(text, "}");
            assert_int_equal(json_compare(text, strlen(text)), depth <= MOEDI_JSON_DEPTH);
        }
}

static void a_fault_of_json_is_told_with_its_byte(void **state)
{
    static const struct {
        const char *text, *words;
        int64_t offset;
    } faults[] = {
        {"", "ends too early", 0},
        {"{\"a\": \"b", "ends too early", 8},
        {"{\"a\": 1 2}", "a comma or } was expected", 8},
        {"{\"a\": [1}", "a comma or ] was expected", 8},
        {"{\"a\" 1}", "a colon was expected", 5},
        {"{1}", "a name in quotes was expected", 1},
        {"{\"a\": }", "a value was expected", 6},
        {"{\"a\": nul}", "a value was expected", 6},
        {"{\"a\": 1.}", "a digit was expected", 8},
        {"{} x", "something follows its end", 3},
        {"{\"a\": \"b\nc\"}", "a control character", 8},
        {"{\"a\": \"b\xc3\x28\"}", "not UTF-8", 9},
        {"{\"a\": \"b\\x\"}", "a backslash", 8},
        {"{\"a\": \"b\\ud800\"}", "surrogate", 8},
        {"{\"a\": \"b\\u0000\"}", "zero character", 8},
        {"{\"a\": 1, \"\\u0061\": 2}", "this name twice", 9},
        {"{\"a\": 9223372036854775808}", "does not fit in 64 bits", 6},
        {"{\"a\": 1e999}", "too large", 6},
    };
    (void)state;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        json_t *o;
        moed_error_info e = {.struct_size = sizeof e};
        assert_refused(moedi_json_parse(&o, faults[i].text, strlen(faults[i].text), "f.json"), MOED_E_FORMAT, faults[i].words);
        assert_ok(moed_last_error_get(&e));
        if (e.offset != faults[i].offset) fail_msg("%s: at %d", faults[i].text, (int)e.offset);
    }
}

static int64_t blocks_before_failure, blocks_held;
static int failures_go_on;

static void *failing_memory(size_t size)
{
    const int64_t left = blocks_before_failure--;
    void *block = left == 0 || (left < 0 && failures_go_on) ? NULL : malloc(size);
    blocks_held += block != NULL;
    return block;
}
static void counted_free(void *block)
{
    blocks_held -= block != NULL;
    free(block);
}

/* Every allocation fails in turn: alone, or with all that follow. The last reading, in which none does, is taken or refused. */
static int64_t fail_in_turn(const char *text, moed_status end)
{
    for (int64_t n = 0;; n++) {
        json_t *o = NULL;
        blocks_before_failure = n, blocks_held = 0;
        const moed_status status = moedi_json_parse(&o, text, strlen(text), "f.json");
        const int failed = blocks_before_failure < 0;
        if (failed) assert_refused(status, MOED_E_MEMORY, "f.json: no memory to parse");
        else assert_int_equal(status, end);
        assert_true((o != NULL) == (status == MOED_OK));
        json_decref(o);
        assert_int_equal(blocks_held, 0);
        if (!failed) return n;
    }
}

/* Where jansson's reader ends the process, or loses characters: long numbers, words and strings. */
static void a_lack_of_memory_is_told_wherever_it_is_met(void **state)
{
    static const char digits[] = "1234567890123456789012345678901234567890", word[] = "truetruetruetruetruetruetruetruetruetrue";
    (void)state;
    json_set_alloc_funcs(failing_memory, counted_free);
    for (failures_go_on = 0; failures_go_on < 2; failures_go_on++) {
        for (int size = 1; size <= 40; size++) {
            char text[4096];
            snprintf(text, sizeof text, "{\"a\": %.*s, \"b\": 1}", size, digits);
            fail_in_turn(text, size < 20 ? MOED_OK : MOED_E_FORMAT);
            snprintf(text, sizeof text, "{\"a\": [-%.*s.5e-1 ]}", size, digits);
            assert_true(fail_in_turn(text, MOED_OK) > 3);
            snprintf(text, sizeof text, "{\"a\": %.*s}", size, word);
            fail_in_turn(text, size == 4 ? MOED_OK : MOED_E_FORMAT);
            snprintf(text, sizeof text, "{\"\\n%.*s\": \"\\u00e9%.*s\"}", size, word, size, digits);
            assert_true(fail_in_turn(text, MOED_OK) > 3);
        }
        char many[4096] = "{";
        for (int i = 0; i < 40; i++) sprintf(many + strlen(many), "\"name %d\": [[], {\"a\": [%d]}, true], ", i, i);
        strcat(many, "\"numbers\": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]}");
        assert_true(fail_in_turn(many, MOED_OK) > 100);
    }
    json_set_alloc_funcs(malloc, free);
}

static void printed_numbers_are_short_and_read_back_exactly(void **state)
{
    (void)state;
    const double values[] = {0.05, 1e-6, 1.0 / 3, 0.1 + 0.2, 1e300};
    const char *const short_text = "{\n  \"x\": 0.05\n}\n";
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        json_t *o = json_pack("{s:f}", "x", values[i]), *back;
        char *text;
        size_t size;
        assert_ok(moedi_json_print(context, o, &text, &size));
        if (i == 0) assert_string_equal(text, short_text);
        assert_ok(moedi_json_parse(&back, text, size, "text"));
        assert_true(json_real_value(json_object_get(back, "x")) == values[i]);
        moedi_free(context, text);
        json_decref(back);
        json_decref(o);
    }
}

/* ---- safetensors ---- */

static void numbers_read_back_whatever_the_host_rounds_to(void **state)
{
    (void)state;
    static const int modes[] = {FE_TOWARDZERO, FE_UPWARD, FE_DOWNWARD};
    const double values[] = {0.01, 0.1, 1e-6, 1.0 / 3, 6.02e23};
    for (size_t m = 0; m < 3; m++) {
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
            json_t *o = json_pack("{s:f}", "x", values[i]), *again = NULL;
            char *text = NULL;
            size_t size = 0;
            double back = 0;
            fesetround(modes[m]);
            const moed_status printed = moedi_json_print(context, o, &text, &size);
            const moed_status parsed = printed == MOED_OK ? moedi_json_parse(&again, text, size, "x") : printed;
            const int after = fegetround();
            fesetround(FE_TONEAREST);
            assert_ok(parsed);
            assert_int_equal(after, modes[m]);
            assert_ok(moedi_json_number(again, "x", "x", 1, 0, 1e300, &back));
            assert_true(back == values[i]);
            moedi_free(context, text);
            json_decref(again);
            json_decref(o);
        }
    }
}

static void safetensors_round_trip_in_pieces_and_any_order(void **state)
{
    (void)state;
    char *dir = support_directory();
    const char *path = support_path(dir, "x.safetensors");
    const moedi_safetensors_entry entries[3] = {
        {.name = "b", .dtype = MOED_DTYPE_F32, .rank = 2, .shape = {3, 5}},
        {.name = "a", .dtype = MOED_DTYPE_I64, .rank = 0},
        {.name = "empty", .dtype = MOED_DTYPE_BF16, .rank = 2, .shape = {0, 4}},
    };
    float b[15];
    support_random(b, 15, 1);
    const int64_t a = -5;
    json_t *metadata = json_pack("{s:s}", "format", "pt");
    moedi_safetensors_writer w;
    assert_ok(moedi_safetensors_create(&w, context, path, entries, 3, metadata));
    json_decref(metadata);
    assert_ok(moedi_safetensors_write(&w, 1, 0, &a, 8));
    assert_ok(moedi_safetensors_write(&w, 0, 20, b + 5, 40));
    assert_ok(moedi_safetensors_write(&w, 0, 0, b, 20));
    assert_int_equal(moedi_safetensors_write(&w, 0, 56, b, 8), MOED_E_INTERNAL);
    assert_ok(moedi_safetensors_commit(&w));
    moedi_safetensors s;
    assert_ok(moedi_safetensors_open(&s, context, path));
    assert_int_equal(s.count, 3);
    assert_string_equal(json_string_value(json_object_get(s.metadata, "format")), "pt");
    const moedi_safetensors_entry *e = moedi_safetensors_find(&s, "b");
    float back[15];
    assert_true(e && e->rank == 2 && e->shape[1] == 5 && e->dtype == MOED_DTYPE_F32 && e->offset % 8 == 0);
    assert_ok(moedi_safetensors_read(&s, e, 0, back, 60));
    assert_memory_equal(back, b, 60);
    int64_t number;
    assert_ok(moedi_safetensors_read(&s, moedi_safetensors_find(&s, "a"), 0, &number, 8));
    assert_int_equal(number, -5);
    assert_null(moedi_safetensors_find(&s, "c"));
    moedi_safetensors_close(&s);
    support_remove(dir);
}

/* header as given (its length in front), `data` zero bytes after it */
static void expect_header(const char *dir, const char *header, size_t data, moed_status status, const char *words)
{
    char file[4096] = {0};
    const size_t n = strlen(header);
    for (int i = 0; i < 8; i++) file[i] = (char)((uint64_t)n >> 8 * i);
    memcpy(file + 8, header, n);
    const char *path = support_path(dir, "x.safetensors");
    support_write(path, file, 8 + n + data);
    moedi_safetensors s;
    if (status == MOED_OK) {
        assert_ok(moedi_safetensors_open(&s, context, path));
        moedi_safetensors_close(&s);
    } else {
        assert_refused(moedi_safetensors_open(&s, context, path), status, words);
        assert_non_null(strstr(moed_last_error(), "x.safetensors"));
    }
}

static void hostile_safetensors_headers_are_refused_with_the_reason(void **state)
{
    (void)state;
    char *dir = support_directory();
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, MOED_OK, "");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, MOED_E_FORMAT, "outside the file");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 9, MOED_E_FORMAT, "cover 8");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8, MOED_E_FORMAT, "hole");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                       "\"u\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
                  MOED_E_FORMAT, "overlaps");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,0]}}", 8, MOED_E_FORMAT, "outside the file");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", 8, MOED_E_FORMAT, "not a count");
    expect_header(dir, "{\"t\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,8]}}", 8, MOED_E_FORMAT,
                  "overflow");
    expect_header(dir, "{\"t\":{\"dtype\":\"Q7\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, MOED_E_UNSUPPORTED, "Q7");
    expect_header(dir, "{\"t\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, MOED_E_FORMAT, "inside a byte");
    expect_header(dir, "{\"t\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1, MOED_E_UNSUPPORTED,
                  "7 dimensions");
    expect_header(dir, "{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                       "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                  MOED_E_FORMAT, "not JSON");
    expect_header(dir, "{\"t\":{\"dtype\":\"I32\",\"shape\":[2,18446744073709551614],\"data_offsets\":[0,16]}}", 16,
                  MOED_E_FORMAT, "x.safetensors");
    expect_header(dir, "{\"__metadata__\":{\"a\":1}}", 0, MOED_E_FORMAT, "not text");
    support_remove(dir);
}

/* As the format's own library judges them: white space around the header, tensors without numbers, numbers of half a byte. */
static void what_the_format_allows_is_taken(void **state)
{
    (void)state;
    char *dir = support_directory();
    expect_header(dir, "\t\n{}\r ", 0, MOED_OK, "");
    expect_header(dir, "{}    ", 0, MOED_OK, "");
    expect_header(dir, "{\"t\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, MOED_OK, "");
    expect_header(dir, "{\"t\":{\"dtype\":\"I32\",\"shape\":[2,0],\"data_offsets\":[0,0]}}", 0, MOED_OK, "");
    expect_header(dir, "{\"t\":{\"dtype\":\"F4\",\"shape\":[1,2],\"data_offsets\":[0,1]}}", 1, MOED_OK, "");
    support_remove(dir);
}

static void files_that_hold_no_whole_header_are_refused(void **state)
{
    (void)state;
    static const struct { const char *bytes; size_t size; const char *words; } cases[] = {
        {"", 0, "too small"},
        {"\1\0\0\0", 4, "too small"},
        {"\3\0\0\0\0\0\0\0{}", 10, "only 2 follow"},
        {"\377\377\377\377\377\377\377\377{}", 10, "the format allows"},
        {"\1\0\0\0\0\0\0\0{", 9, "not JSON"},
        {"\1\0\0\0\0\0\0\0\377", 9, "not JSON"},
    };
    char *dir = support_directory();
    const char *path = support_path(dir, "x.safetensors");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moedi_safetensors s;
        support_write(path, cases[i].bytes, cases[i].size);
        assert_refused(moedi_safetensors_open(&s, context, path), MOED_E_FORMAT, cases[i].words);
        assert_non_null(strstr(moed_last_error(), "x.safetensors"));
    }
    support_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_know_the_size_of_every_type),
        cmocka_unit_test(every_half_survives_the_way_to_double_and_back),
        cmocka_unit_test(narrowing_rounds_once_to_nearest_even),
        cmocka_unit_test(vectors_of_every_width_give_the_same_bits),
        cmocka_unit_test(settling_touches_what_moved_alone),
        cmocka_unit_test(normal_numbers_are_the_same_on_every_machine),
        cmocka_unit_test(many_normal_numbers_are_those_drawn_one_by_one),
        cmocka_unit_test(normal_numbers_follow_the_distribution_function),
        cmocka_unit_test(a_permutation_holds_every_number_once_and_depends_on_seed_and_step),
        cmocka_unit_test(a_place_is_a_bijection_for_every_count),
        cmocka_unit_test(a_written_file_is_whole_or_not_there),
        cmocka_unit_test(a_full_disk_leaves_the_old_file_and_nothing_else),
        cmocka_unit_test(a_fresh_directory_appears_whole_and_replaces_an_old_one),
        cmocka_unit_test(what_killed_writers_left_is_swept_and_what_living_ones_write_is_not),
        cmocka_unit_test(two_writers_of_one_path_leave_each_other_alone),
        cmocka_unit_test(an_old_directory_that_lost_its_name_gets_it_back),
        cmocka_unit_test(a_directory_behind_a_link_is_replaced_and_the_link_stays),
        cmocka_unit_test(names_are_listed_in_order),
        cmocka_unit_test(a_float_survives_in_two_halves_of_which_the_high_one_is_the_nearest),
        cmocka_unit_test(a_hash_does_not_depend_on_how_the_data_comes),
        cmocka_unit_test(json_faults_name_file_and_field),
        cmocka_unit_test(a_field_of_a_line_is_what_jansson_reads),
        cmocka_unit_test(changed_lines_are_taken_only_as_jansson_takes_them),
        cmocka_unit_test(both_readers_take_and_refuse_the_same),
        cmocka_unit_test(both_readers_take_and_refuse_the_same_changed_texts),
        cmocka_unit_test(deep_nesting_is_taken_to_its_limit),
        cmocka_unit_test(a_fault_of_json_is_told_with_its_byte),
        cmocka_unit_test(a_lack_of_memory_is_told_wherever_it_is_met),
        cmocka_unit_test(printed_numbers_are_short_and_read_back_exactly),
        cmocka_unit_test(numbers_read_back_whatever_the_host_rounds_to),
        cmocka_unit_test(safetensors_round_trip_in_pieces_and_any_order),
        cmocka_unit_test(hostile_safetensors_headers_are_refused_with_the_reason),
        cmocka_unit_test(what_the_format_allows_is_taken),
        cmocka_unit_test(files_that_hold_no_whole_header_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
