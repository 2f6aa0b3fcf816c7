/* tests/fuzz/config.c - a config.json from a stranger: what becomes a layout says itself again, and can be planned with. */
#include "fuzz.h"

#include "model/layout.h"

static void use_layout(const moed_layout *l)
{
    moed_layout_info info = {.struct_size = sizeof info};
    assert_ok(moed_layout_get_info(l, &info));
    assert_true(info.total >= info.active && info.active > 0 && info.bytes > 0 && info.forward_flops > 0);
    moed_train_options o = tiny_options(10);
    moed_estimate estimate = {.struct_size = sizeof estimate};
    const moed_status planned = moed_train_estimate(l, NULL, &o, &estimate);
    if (planned != MOED_OK) fuzz_refused(planned, moed_last_error());
    else assert_true(estimate.host_bytes >= info.total * 4);
    moed_split *split = NULL;
    const moed_status status = moed_split_create(&split, l, NULL);
    if (status == MOED_OK) {
        const moed_layout *part = moed_split_layout(split, 0);
        moed_error_info e = {.struct_size = sizeof e};
        assert_ok(moed_last_error_get(&e));
        if (!part) fuzz_refused(e.status, e.message);
    }
    moed_split_destroy(split);
}

FUZZ_TARGET(config)
{
    fuzz_begin();
    moed_layout *l = NULL, *again = NULL;
    char *text = malloc(size + 1); /* not zero-terminated, and of its own so that reading past it shows */
    memcpy(text, data, size);
    const moed_status status = moed_layout_from_config(&l, fuzz_context, text, size);
    free(text);
    if (status != MOED_OK) return fuzz_end(status, NULL);
    const char *config = moed_layout_config(l);
    const moed_status second = moed_layout_from_config(&again, fuzz_context, config, strlen(config));
    if (second == MOED_OK) {
        char a[33], b[33];
        moedi_layout_fingerprint(l, a), moedi_layout_fingerprint(again, b);
        assert_string_equal(a, b);
    } else {
        assert_int_equal(second, MOED_E_LIMIT); /* of tens of thousands of parameters, two do not fit at once */
    }
    moed_layout_destroy(again);
    use_layout(l);
    moed_layout_destroy(l);
    return fuzz_end(MOED_OK, NULL);
}
