/* train/selection.c - comma-separated words: a role's name, or a pattern of parameter names in which * stands for anything. */
#include "selection.h"

#include <string.h>

#include "util/dtype.h"

/* The usual two-pointer match: on a mismatch go back to the last star and let it swallow one more. */
static int matches(const char *pattern, size_t length, const char *text)
{
    size_t p = 0, star = SIZE_MAX;
    const char *mark = text;
    while (*text) {
        if (p < length && pattern[p] == '*') star = p++, mark = text;
        else if (p < length && pattern[p] == *text) p++, text++;
        else if (star != SIZE_MAX) p = star + 1, text = ++mark;
        else return 0;
    }
    while (p < length && pattern[p] == '*') p++;
    return p == length;
}

static int32_t role_of(const char *word, size_t length)
{
    static const struct { const char *name; int32_t role; } roles[] = {
        {"shared", MOED_ROLE_SHARED}, {"expert", MOED_ROLE_EXPERT}, {"router", MOED_ROLE_ROUTER}, {"bias", MOED_ROLE_ROUTER_BIAS},
    };
    for (size_t i = 0; i < sizeof roles / sizeof roles[0]; i++)
        if (strlen(roles[i].name) == length && memcmp(roles[i].name, word, length) == 0) return roles[i].role;
    return -1;
}

static moed_status mark(const moed_layout *l, const char *field, const char *words, uint8_t value, uint8_t *trained)
{
    while (*words) {
        words += strspn(words, ", \t");
        const size_t length = strcspn(words, ", \t");
        if (length == 0) break;
        const int32_t role = role_of(words, length);
        size_t found = 0;
        for (size_t i = 0; i < l->count; i++) {
            if (role >= 0 ? l->params[i].role != role : !matches(words, length, l->params[i].name)) continue;
            trained[i] = value;
            found++;
        }
        if (role < 0 && found == 0)
            return moedi_fail_parameter(MOED_E_ARGUMENT, field,
                                        "%s: \"%.*s\" is no role (shared, expert, router, bias) and matches no parameter's name",
                                        field, (int)length, words);
        words += length;
    }
    return MOED_OK;
}

moed_status moedi_selection(const moed_layout *l, const char *train, const char *freeze, uint8_t *trained)
{
    memset(trained, train ? 0 : 1, l->count);
    if (train) MOEDI_TRY(mark(l, "train", train, 1, trained));
    if (freeze) MOEDI_TRY(mark(l, "freeze", freeze, 0, trained));
    size_t left = 0;
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        if (p->role == MOED_ROLE_OPAQUE || p->flags & MOED_PARAM_FIXED || !moedi_dtype_is_float(p->dtype)) trained[i] = 0;
        left += trained[i];
    }
    if (left == 0)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "train", "train \"%s\" without freeze \"%s\" leaves no parameter to train",
                                    train ? train : "", freeze ? freeze : "");
    return MOED_OK;
}
