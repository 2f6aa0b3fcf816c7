/* bench_corpus.c FOLDER [MEGABYTES [THREADS [PEER]]] - a corpus built of that much made text, as one text file and as JSON lines,
 * on the disk that FOLDER is on. Floor: reading the text and writing as many bytes as the corpus has (two a token), synced. PEER:
 * a command that does the same with the file given to it and prints its seconds. Removed after. */
#include <fcntl.h>
#include <unistd.h>

#include "bench.h"
#include "core/context.h"
#include "moedisco.h"
#include "util/file.h"

#define CHECK(call)                                                                                \
    do {                                                                                           \
        if ((call) != MOED_OK) return fprintf(stderr, "bench_corpus: %s\n", moed_last_error()), 1; \
    } while (0)

static uint32_t state = 1;
static uint32_t draw(uint32_t below)
{
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % below;
}

/* Documents of some hundred words; in JSON with quotes and line ends that must be escaped. */
static double write_text(const char *path, double bytes, int json)
{
    FILE *f = fopen(path, "wb");
    double at = 0;
    if (!f) return 0;
    while (at < bytes) {
        const uint32_t words = 100 + draw(800);
        if (json) at += fprintf(f, "{\"id\": %u, \"text\": \"", draw(1000000));
        for (uint32_t w = 0; w < words; w++) {
            char word[16];
            const uint32_t n = 2 + draw(8);
            for (uint32_t i = 0; i < n; i++) word[i] = (char)('a' + draw(26));
            word[n] = 0;
            at += fprintf(f, "%s%s", word,
                          w % 90 == 89   ? json ? ".\\n" : ".\n"
                          : w % 31 == 30 ? json ? " \\\"x\\\" " : " \"x\" "
                                         : " ");
        }
        at += fprintf(f, json ? "\"}\n" : "\n\n");
    }
    if (fclose(f)) return 0;
    return at;
}

/* Seconds to read the file, write `bytes` and sync them. */
static double floor_of(const char *path, const char *to, double bytes)
{
    static char buffer[1 << 20];
    const double t = bench_now();
    const int in = open(path, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    while (read(in, buffer, sizeof buffer) > 0) {}
    for (double at = 0; at < bytes; at += sizeof buffer)
        if (write(out, buffer, sizeof buffer) < 0) exit(1);
    if (fsync(out)) exit(1);
    close(in), close(out);
    return bench_now() - t;
}

/* What the peer says it took; 0 where there is none. */
static double seconds_of(const char *peer, const char *path)
{
    char command[8192];
    double seconds = 0;
    if (!peer || !*peer) return 0;
    snprintf(command, sizeof command, "%s '%s'", peer, path);
    FILE *f = popen(command, "r");
    if (f && fscanf(f, "%lf", &seconds) != 1) seconds = 0;
    if (f) pclose(f);
    return seconds;
}

static int bench(moed_context *c, const char *folder, double megabytes, int json, const char *peer)
{
    char path[4096], prefix[4096], other[4096], note[96];
    const char *paths[1] = {path};
    moed_corpus_report r = {.struct_size = sizeof r};
    snprintf(path, sizeof path, "%s/text.%s", folder, json ? "jsonl" : "txt");
    snprintf(prefix, sizeof prefix, "%s/corpus%d", folder, json);
    snprintf(other, sizeof other, "%s/floor", folder);
    const double bytes = write_text(path, megabytes * 1e6, json);
    const double t = bench_now();
    CHECK(moed_corpus_build(c, paths, 1, prefix, NULL, &r, NULL));
    const double seconds = bench_now() - t;
    snprintf(note, sizeof note, "%.0f MB of text, %.0f MB/s, %lld documents", bytes * 1e-6, bytes / seconds * 1e-6,
             (long long)r.documents);
    bench_row(json ? "corpus of JSON lines" : "corpus of a text file", seconds, floor_of(path, other, 2.0 * (double)r.tokens),
              seconds_of(peer, path), note);
    return 0;
}

int main(int count, char **arguments)
{
    moed_context *c = NULL;
    moed_context_options o;
    char folder[3900];
    if (count < 2) return fprintf(stderr, "bench_corpus FOLDER [MEGABYTES [THREADS [PEER]]]\n"), 2;
    const double megabytes = count > 2 ? atof(arguments[2]) : 64;
    snprintf(folder, sizeof folder, "%.3800s/bench-corpus-%ld", arguments[1], (long)getpid());
    CHECK(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.threads = count > 3 ? atoi(arguments[3]) : 0;
    CHECK(moed_context_create(&c, &o));
    CHECK(moedi_directory_make(folder));
    const char *peer = count > 4 ? arguments[4] : NULL;
    const int failed = bench(c, folder, megabytes, 0, peer) || bench(c, folder, megabytes, 1, peer);
    CHECK(moedi_directory_remove(folder));
    moed_context_destroy(c);
    return failed;
}
