/* A program of somebody else's that wants k-means and nothing more: plain C, pkg-config, the public ABI. */
#include <moedisco.h>

#include <stdio.h>
#include <string.h>

#define CHECK(call)                                                                                          \
    do {                                                                                                     \
        if ((call) != MOED_OK) return fprintf(stderr, "%s: %s\n", #call, moed_last_error()), 1;                \
    } while (0)
#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) return fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition), 1;            \
    } while (0)

int main(void)
{
    enum { COUNT = 300, WIDTH = 2, CLUSTERS = 3 };
    static const float centres[CLUSTERS][WIDTH] = {{0, 0}, {10, 0}, {0, 10}};
    static float points[COUNT][WIDTH];
    static int32_t labels[COUNT];
    moed_context *context = NULL;
    moed_kmeans *kmeans = NULL;
    moed_kmeans_options o;
    moed_kmeans_info info;
    moed_tensor x;
    int i, k;

    EXPECT(moed_version() == MOED_VERSION);
    EXPECT(moed_struct_size(MOED_STRUCT_KMEANS_OPTIONS) == sizeof o);
    memset(&x, 0, sizeof x);
    x.data = points, x.dtype = MOED_DTYPE_F32, x.rank = 2;
    x.shape[0] = COUNT, x.shape[1] = x.strides[0] = WIDTH, x.strides[1] = 1;
    for (i = 0; i < COUNT; i++) {
        points[i][0] = centres[i % CLUSTERS][0] + (float)((i * 7) % 11) / 11.0f;
        points[i][1] = centres[i % CLUSTERS][1] + (float)((i * 5) % 13) / 13.0f;
    }
    CHECK(moed_context_create(&context, NULL));
    CHECK(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
    o.clusters = CLUSTERS;
    o.seed = 1;
    CHECK(moed_kmeans_create(&kmeans, context, &o));
    moed_context_destroy(context); /* the handle keeps it alive */
    CHECK(moed_kmeans_fit(kmeans, &x, NULL, NULL, NULL));
    CHECK(moed_kmeans_labels(kmeans, labels, COUNT));
    for (i = CLUSTERS; i < COUNT; i++) EXPECT(labels[i] == labels[i % CLUSTERS]);
    EXPECT(labels[0] != labels[1] && labels[1] != labels[2] && labels[0] != labels[2]);
    info.struct_size = sizeof info;
    CHECK(moed_kmeans_get_info(kmeans, &info));
    for (k = 0; k < CLUSTERS; k++) EXPECT(info.counts[k] == COUNT / CLUSTERS);
    o.clusters = -1;
    EXPECT(moed_kmeans_create(&kmeans, NULL, &o) != MOED_OK && moed_last_error()[0]);
    moed_kmeans_destroy(kmeans);
    return 0;
}
