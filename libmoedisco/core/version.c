/* core/version.c - what this library is. */
#include "moedisco/base.h"

uint32_t moed_version(void)
{
    return MOED_VERSION;
}

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

const char *moed_build_info(void)
{
    return "libmoedisco " TEXT(MOED_VERSION_MAJOR) "." TEXT(MOED_VERSION_MINOR) "." TEXT(MOED_VERSION_PATCH)
#if defined(__clang__)
        ", clang " __clang_version__
#elif defined(__GNUC__)
        ", gcc " __VERSION__
#endif
#if defined(__x86_64__)
        ", x86-64: kernels v2 v3 v4 reference double";
#elif defined(__aarch64__)
        ", aarch64: kernels neon reference double";
#else
        ": kernels reference double";
#endif
}
