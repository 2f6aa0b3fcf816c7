/* tests/fuzz/partition.c - a partition from a stranger: what is taken comes back the same when it is saved. */
#include "fuzz.h"

static void same_partition(const moed_partition *a, const moed_partition *b)
{
    moed_partition_info x = {.struct_size = sizeof x}, y = {.struct_size = sizeof y};
    assert_ok(moed_partition_get_info(a, &x));
    assert_ok(moed_partition_get_info(b, &y));
    assert_int_equal(x.documents, y.documents);
    assert_int_equal(x.clusters, y.clusters);
    assert_int_equal(x.width, y.width);
    assert_string_equal(x.fingerprint, y.fingerprint);
    assert_memory_equal(x.labels, y.labels, (size_t)x.documents * sizeof *x.labels);
    if (x.centroids) assert_memory_equal(x.centroids, y.centroids, (size_t)(x.clusters * x.width) * sizeof *x.centroids);
    for (int64_t i = 0; i < x.documents; i++) assert_true(x.labels[i] >= 0 && x.labels[i] < x.clusters);
}

FUZZ_TARGET(partition)
{
    fuzz_begin();
    moed_partition *p = NULL, *again = NULL;
    const moed_status status = moed_partition_open(&p, fuzz_context, fuzz_file("p.safetensors", data, size));
    if (status != MOED_OK) return fuzz_end(status, NULL);
    const char *copy = support_path(fuzz_dir, "copy.safetensors");
    assert_ok(moed_partition_save(p, copy));
    assert_ok(moed_partition_open(&again, fuzz_context, copy));
    same_partition(p, again);
    moed_partition_destroy(again);
    moed_partition_destroy(p);
    return fuzz_end(MOED_OK, NULL);
}
