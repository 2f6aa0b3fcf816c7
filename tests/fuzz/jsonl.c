/* tests/fuzz/jsonl.c - JSON lines from a stranger become a corpus that opens and holds what the report says, or nothing. */
#include "corpus.h"
#include "json_referee.h"
#include "util/json_field.h"

/* The input as one line: both readers make the same of it, and what the field finder takes is what jansson reads. */
static void compare_readers(const char *line, size_t size)
{
    moedi_json_string found;
    const int known = json_compare(line, size);
    if (!moedi_json_field(line, (int64_t)size, "text", &found)) return;
    assert_true(known);
    json_t *o = json_loadb(line, size, JSON_REJECT_DUPLICATES, NULL);
    const json_t *text = json_object_get(o, "text");
    assert_true(json_is_string(text));
    char *own = malloc((size_t)found.size + 1);
    assert_non_null(own);
    memcpy(own, found.text, (size_t)found.size);
    assert_int_equal(found.escaped ? moedi_json_unescape(own, found.size) : found.size, json_string_length(text));
    assert_memory_equal(own, json_string_value(text), json_string_length(text));
    free(own);
    json_decref(o);
}

FUZZ_TARGET(jsonl)
{
    fuzz_begin();
    compare_readers((const char *)data, size);
    const char *lines = fuzz_file("in.jsonl", data, size), *built = support_path(fuzz_dir, "built");
    moed_corpus_report report = {.struct_size = sizeof report};
    const moed_status status = moed_corpus_build(fuzz_context, &lines, 1, built, NULL, &report, NULL);
    if (status != MOED_OK) {
        char says[1024];
        snprintf(says, sizeof says, "%s", moed_last_error());
        assert_int_not_equal(access(support_path(fuzz_dir, "built.idx"), F_OK), 0);
        return fuzz_end(status, says);
    }
    moed_corpus *d = NULL;
    assert_ok(moed_corpus_open(&d, fuzz_context, built, NULL));
    moed_corpus_info info = {.struct_size = sizeof info};
    assert_ok(moed_corpus_get_info(d, &info));
    assert_int_equal(info.documents, report.documents);
    assert_int_equal(info.tokens, report.tokens);
    fuzz_use_corpus(d);
    moed_corpus_destroy(d);
    static const char *const parts[] = {"built.idx", "built.bin", "built.json"};
    for (int i = 0; i < 3; i++) assert_int_equal(remove(support_path(fuzz_dir, parts[i])), 0);
    return fuzz_end(MOED_OK, NULL);
}
