/* core/status.h - error text, private side. A function that fails returns moedi_fail(...). */
#ifndef MOEDI_STATUS_H
#define MOEDI_STATUS_H

#include "moedisco/base.h"

#define MOEDI_PRINTF(text, first) __attribute__((format(printf, text, first)))

/* Sets this thread's error sentence (one line: what, and which value) and returns status. */
moed_status moedi_fail(moed_status status, const char *format, ...) MOEDI_PRINTF(2, 3);

/* The same with the file it is about (and the byte, -1 = none): the sentence becomes "path: sentence". */
moed_status moedi_fail_file(moed_status status, const char *path, int64_t offset, const char *format, ...) MOEDI_PRINTF(4, 5);

/* The same with the parameter, field or tensor it is about; name it in the sentence too. */
moed_status moedi_fail_parameter(moed_status status, const char *parameter, const char *format, ...) MOEDI_PRINTF(3, 4);

/* From errno after a system call on path: MOED_E_SPACE, MOED_E_NOT_FOUND, MOED_E_MEMORY or MOED_E_IO, "path: cannot `verb`:
 * reason". Not retryable where the path itself is at fault: no permission, a read-only place, a folder instead of a file, a name
 * too long. */
moed_status moedi_fail_errno(const char *path, const char *verb);

/* MOED_E_CALLBACK with the callback's own number. */
moed_status moedi_fail_callback(const char *which, int64_t code);

#ifdef MOEDI_ANALYZE
/* For `make analyze` and `make tidy`, which see one file at a time: failing never returns MOED_OK. No function, which clang would
 * not look into from five calls deep. */
#define moedi_failed(call)                                     \
    ({                                                         \
        const moed_status moedi_failed_ = (call);              \
        if (moedi_failed_ == MOED_OK) __builtin_unreachable(); \
        moedi_failed_;                                         \
    })
#define moedi_fail(...) moedi_failed((moedi_fail)(__VA_ARGS__))
#define moedi_fail_file(...) moedi_failed((moedi_fail_file)(__VA_ARGS__))
#define moedi_fail_parameter(...) moedi_failed((moedi_fail_parameter)(__VA_ARGS__))
#define moedi_fail_errno(...) moedi_failed((moedi_fail_errno)(__VA_ARGS__))
#define moedi_fail_callback(...) moedi_failed((moedi_fail_callback)(__VA_ARGS__))
#endif

/* A number for a sentence: processors compute NaN with a sign, and "-nan" says nothing that "nan" does not. */
static inline double moedi_told(double x) { return x != x ? __builtin_nan("") : x; }

/* Every public call that can fail begins with this. */
void moedi_clear_error(void);

/* An error on its way from one thread to another, or kept over clean-up. Filled by save, set again by restore. */
typedef struct moedi_error {
    moed_status status;
    int32_t retryable;
    int64_t offset, callback_code;
    char message[512];
    char path[256];
    char parameter[128];
} moedi_error;
void moedi_error_save(moedi_error *out);
moed_status moedi_error_restore(const moedi_error *error);

/* Returns from the enclosing function on failure / jumps to `out` with `status` set. */
#define MOEDI_TRY(call)                              \
    do {                                             \
        moed_status moedi_try_ = (call);             \
        if (moedi_try_ != MOED_OK) return moedi_try_; \
    } while (0)
#define MOEDI_GO(call)                                    \
    do {                                                  \
        if ((status = (call)) != MOED_OK) goto out;       \
    } while (0)

/* First lines of a public function: clears the error, refuses NULL. */
#define MOEDI_REQUIRE(condition, what)                                                    \
    do {                                                                                  \
        if (!(condition)) return moedi_fail(MOED_E_ARGUMENT, "%s: %s", __func__, (what)); \
    } while (0)

#endif
