/* util/surroundings.h - decimals are read and printed by this thread alone in the C locale, whatever another thread sets
 * meanwhile, and rounded to the nearest whatever the host rounds to: a number reads back as it was printed. */
#ifndef MOEDI_SURROUNDINGS_H
#define MOEDI_SURROUNDINGS_H

#include <fenv.h>
#include <locale.h>

typedef struct moedi_surroundings {
    locale_t locale;
    int rounding;
} moedi_surroundings;

static inline moedi_surroundings moedi_surroundings_enter(void)
{
    const locale_t plain = newlocale(LC_ALL_MASK, "C", (locale_t)0); /* static in the C library: nothing to free */
    const moedi_surroundings before = {.locale = uselocale(plain), .rounding = fegetround()};
    fesetround(FE_TONEAREST);
    return before;
}

static inline void moedi_surroundings_leave(const moedi_surroundings *before)
{
    fesetround(before->rounding);
    uselocale(before->locale);
}

#endif
