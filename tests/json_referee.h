/* tests/json_referee.h - what the library reads of a JSON text is what jansson reads, or both refuse it. */
#ifndef MOEDI_TEST_JSON_REFEREE_H
#define MOEDI_TEST_JSON_REFEREE_H

#include "support.h"

#include "util/json.h"
#include "util/json_scan.h"

static inline int json_depth(json_t *v)
{
    int deepest = 0, depth;
    const char *name;
    size_t i;
    json_t *inner;
    json_object_foreach(v, name, inner)
        if ((depth = json_depth(inner)) > deepest) deepest = depth;
    json_array_foreach(v, i, inner)
        if ((depth = json_depth(inner)) > deepest) deepest = depth;
    return deepest + (json_is_object(v) || json_is_array(v));
}

/* 1: taken by both. jansson takes deeper nesting, and passes over a zero byte after a number or a word. */
static inline int json_compare(const char *text, size_t size)
{
    json_error_t error;
    json_t *own = NULL, *theirs = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    char *copy = malloc(size ? size : 1); /* of its own, so that reading past it shows */
    assert_non_null(copy);
    memcpy(copy, text, size);
    const moed_status status = moedi_json_parse(&own, copy, size, "text");
    free(copy);
    const int taken = status == MOED_OK;
    if (taken) {
        if (!theirs) fail_msg("taken, and jansson says %s: %.*s", error.text, (int)size, text);
        char *a = json_dumps(own, JSON_REAL_PRECISION(17)), *b = json_dumps(theirs, JSON_REAL_PRECISION(17)); /* order and -0.0 */
        if (!json_equal(own, theirs) || strcmp(a, b) != 0) fail_msg("%s, and jansson reads %s", a, b);
        free(a), free(b);
    } else {
        moed_error_info e = {.struct_size = sizeof e};
        assert_ok(moed_last_error_get(&e));
        if (status != MOED_E_FORMAT || e.offset > (int64_t)size) fail_msg("%s at %lld", e.message, (long long)e.offset);
        const int deep = strstr(e.message, "nested too deep") && json_depth(theirs) > MOEDI_JSON_DEPTH;
        if (json_is_object(theirs) && !deep && !memchr(text, 0, size))
            fail_msg("%s, and jansson takes %.*s", e.message, (int)size, text);
    }
    json_decref(own), json_decref(theirs);
    return taken;
}

#endif
