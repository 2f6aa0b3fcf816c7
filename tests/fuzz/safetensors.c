/* tests/fuzz/safetensors.c - a safetensors file from a stranger. */
#include "fuzz.h"

#include "util/safetensors.h"

FUZZ_TARGET(safetensors)
{
    fuzz_begin();
    moedi_safetensors s;
    const moed_status status = moedi_safetensors_open(&s, fuzz_context, fuzz_file("x.safetensors", data, size));
    if (status != MOED_OK) return fuzz_end(status, NULL);
    int64_t bytes = 0, first = s.file.size;
    for (size_t i = 0; i < s.count; i++) {
        const moedi_safetensors_entry *e = &s.entries[i];
        char *numbers = malloc((size_t)e->bytes + 1);
        assert_ok(moedi_safetensors_read(&s, e, 0, numbers, (size_t)e->bytes));
        free(numbers);
        assert_ptr_equal(moedi_safetensors_find(&s, e->name), e);
        if (e->offset < first) first = e->offset;
        bytes += e->bytes;
    }
    assert_true(s.count == 0 || first + bytes == s.file.size);
    moedi_safetensors_close(&s);
    return fuzz_end(MOED_OK, NULL);
}
