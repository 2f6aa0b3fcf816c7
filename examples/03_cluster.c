/* 03_cluster.c - k-means alone, on vectors made here: three clouds of points in a plane, plain and balanced. */
#include <inttypes.h>
#include <stdio.h>

#include <moedisco.h>

enum { POINTS = 900, WIDTH = 2, CLUSTERS = 3 };

static int cluster(moed_context *c, const moed_tensor *x, int32_t method)
{
    moed_kmeans_options o;
    moed_kmeans_info info = {.struct_size = sizeof info};
    moed_kmeans *k = NULL;
    if (moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o) != MOED_OK) return 2;
    o.clusters = CLUSTERS;
    o.method = method;
    if (moed_kmeans_create(&k, c, &o) != MOED_OK) return 2;
    int code = moed_kmeans_fit(k, x, NULL, NULL, NULL) == MOED_OK && moed_kmeans_get_info(k, &info) == MOED_OK ? 0 : 2;
    if (code == 0) {
        printf("%s: inertia %.1f\n", method == MOED_KMEANS_BALANCED ? "balanced" : "plain", info.inertia);
        for (int64_t i = 0; i < info.clusters; i++)
            printf("  %3" PRId64 " points around (%.2f, %.2f)\n", info.counts[i], (double)info.centroids[i * WIDTH],
                   (double)info.centroids[i * WIDTH + 1]);
    }
    moed_kmeans_destroy(k);
    return code;
}

int main(int argc, char **argv)
{
    static float points[POINTS * WIDTH];
    const float corners[CLUSTERS][WIDTH] = {{0, 0}, {8, 0}, {4, 7}};
    uint32_t random = 1;
    moed_context *c = NULL;
    if (argc != 1) {
        fprintf(stderr, "usage: %s (no arguments)\n", argv[0]);
        return 2;
    }
    for (int i = 0; i < POINTS * WIDTH; i++) { /* half of the points in the first cloud */
        const int point = i / WIDTH, cloud = point % 4 < 2 ? 0 : point % 4 - 1;
        random = random * 1664525u + 1013904223u;
        points[i] = corners[cloud][i % WIDTH] + (float)(random >> 8) / 4194304.0f - 2.0f;
    }
    const moed_tensor x = {points, MOED_DTYPE_F32, 0, 2, 0, {POINTS, WIDTH}, {WIDTH, 1}};
    int code = moed_context_create(&c, NULL) == MOED_OK ? 0 : 2;
    if (code == 0) code = cluster(c, &x, MOED_KMEANS_PLAIN);
    if (code == 0) code = cluster(c, &x, MOED_KMEANS_BALANCED);
    if (code) fprintf(stderr, "%s\n", moed_last_error());
    moed_context_destroy(c);
    return code;
}
