/* tests/fuzz/growth.c - a growth's state from a stranger, its checksum made right: what is taken is a table that can be asked
 * anywhere, and gives the same bytes again. */
#include "fuzz.h"

#include "util/hash.h"

enum { GROWTH_SUM = 16, GROWTH_ROOM = 1 << 16 };

static void ask_everywhere(const moed_growth *g)
{
    moed_growth_info info = {.struct_size = sizeof info};
    moed_growth_point p = {.struct_size = sizeof p};
    assert_ok(moed_growth_get_info(g, &info));
    for (int64_t i = 0; i <= 8; i++) {
        assert_ok(moed_growth_at(g, info.tokens / 8 * i, &p));
        assert_in_range(p.stage, 0, info.stages - 1);
        assert_true(p.learning_rate >= 0 && p.learning_rate <= 100);
        assert_true(p.start < p.end);
    }
    assert_ok(moed_growth_at(g, INT64_MAX, &p));
    assert_true(p.due & MOED_GROWTH_END);
}

FUZZ_TARGET(growth)
{
    static uint8_t state[GROWTH_ROOM], again[GROWTH_ROOM];
    moed_growth *g = NULL;
    size_t written = 0;
    fuzz_begin();
    if (size > sizeof state) size = sizeof state;
    memcpy(state, data, size);
    if (size >= GROWTH_SUM) {
        const moedi_digest sum = moedi_hash_bytes(state, size - GROWTH_SUM);
        memcpy(state + size - GROWTH_SUM, &sum.low, 8);
        memcpy(state + size - 8, &sum.high, 8);
    }
    const moed_status status = moed_growth_from_state(&g, fuzz_context, state, size);
    if (status != MOED_OK) return fuzz_end(status, NULL);
    ask_everywhere(g);
    assert_ok(moed_growth_get_state(g, again, sizeof again, &written));
    assert_int_equal(written, size);
    assert_memory_equal(again, state, size);
    moed_growth_destroy(g);
    return fuzz_end(MOED_OK, NULL);
}
