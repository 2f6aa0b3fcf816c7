/* tests/test_fuzz.c - files from strangers: every input that the fuzz targets in tests/fuzz keep is met again, without libFuzzer.
 * `test_fuzz NAME FILE...` meets the given ones; `test_fuzz --seeds` writes the corpora's seeds anew, after a format has
 * changed. */
#define FUZZ_REPLAY
#include <dirent.h>

#include "fuzz/checkpoint.c"
#include "fuzz/config.c"
#include "fuzz/growth.c"
#include "fuzz/indexed.c"
#include "fuzz/jsonl.c"
#include "fuzz/model.c"
#include "fuzz/partition.c"
#include "fuzz/safetensors.c"
#include "fuzz/shard.c"

#include "fuzz/seeds.h"

static const struct {
    const char *name;
    int (*target)(const uint8_t *data, size_t size);
} targets[] = {
    {"checkpoint", fuzz_checkpoint}, {"config", fuzz_config}, {"growth", fuzz_growth},       {"indexed", fuzz_indexed},
    {"jsonl", fuzz_jsonl},           {"model", fuzz_model},   {"partition", fuzz_partition}, {"safetensors", fuzz_safetensors},
    {"shard", fuzz_shard},
};
enum { TARGETS = sizeof targets / sizeof targets[0] };

static void replay_file(size_t target, const char *path)
{
    fprintf(stderr, "%s\n", path); /* the last line says which input it was, whatever happens */
    const fuzz_part input = fuzz_read(path);
    targets[target].target(input.data, input.size);
    fuzz_free(input);
}

static int is_file(const struct dirent *e)
{
    return e->d_name[0] != '.';
}

/* The seeds, which the library itself wrote, are taken; of the others many are refused. */
static void replay_corpus(void **state)
{
    const size_t target = *(const size_t *)*state;
    char dir[4096], path[4600];
    struct dirent **files = NULL;
    int refused = 0;
    snprintf(dir, sizeof dir, MOEDI_TEST_SOURCE "/tests/fuzz/corpus/%s", targets[target].name);
    const int count = scandir(dir, &files, is_file, alphasort);
    if (count < 1) fail_msg("no inputs in %s", dir);
    for (int i = 0; i < count; i++) {
        snprintf(path, sizeof path, "%s/%s", dir, files[i]->d_name);
        replay_file(target, path);
        refused += !fuzz_taken;
        if (strncmp(files[i]->d_name, "seed", 4) == 0 && !fuzz_taken) fail_msg("refused: %s", moed_last_error());
        free(files[i]);
    }
    free(files);
    assert_true(refused > 0);
}

int main(int argc, char **argv)
{
    static size_t numbers[TARGETS];
    struct CMUnitTest tests[TARGETS];
    if (argc == 2 && strcmp(argv[1], "--seeds") == 0) {
        write_seeds(MOEDI_TEST_SOURCE "/tests/fuzz/corpus");
        return 0;
    }
    for (size_t i = 0; i < TARGETS; i++) {
        if (argc > 2 && strcmp(argv[1], targets[i].name) == 0)
            for (int k = 2; k < argc; k++) replay_file(i, argv[k]);
        numbers[i] = i;
        tests[i] = (struct CMUnitTest){.name = targets[i].name, .test_func = replay_corpus, .initial_state = &numbers[i]};
    }
    return argc > 2 ? 0 : cmocka_run_group_tests(tests, NULL, NULL);
}
