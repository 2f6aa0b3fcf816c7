/* core/status.c - codes, their texts, and the thread's last error. */
#undef MOEDI_ANALYZE /* here is where failing is made */
#include "status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static _Thread_local moedi_error last = {.offset = -1};

static const struct {
    moed_status value;
    const char *name, *text;
} statuses[] = {
#define ROW(name, value, text) {value, "MOED_" #name, text},
    MOED_STATUS_LIST(ROW)
#undef ROW
};

const char *moed_status_name(moed_status status)
{
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i].value == status) return statuses[i].name;
    return "MOED_E_UNKNOWN";
}

const char *moed_status_text(moed_status status)
{
    for (size_t i = 0; i < sizeof statuses / sizeof *statuses; i++)
        if (statuses[i].value == status) return statuses[i].text;
    return "not a status of this library";
}

static int is_retryable(moed_status status)
{
    return status == MOED_E_MEMORY || status == MOED_E_SPACE || status == MOED_E_IO || status == MOED_E_CANCELLED ||
           status == MOED_E_DEVICE;
}

/* Keeps the sentence on one line: names from files may hold anything. */
static void set(moed_status status, const char *path, const char *parameter, int64_t offset, const char *message)
{
    moedi_error e = {.status = status, .retryable = is_retryable(status), .offset = offset};
    snprintf(e.path, sizeof e.path, "%s", path);
    snprintf(e.parameter, sizeof e.parameter, "%s", parameter);
    if (*path && offset >= 0)
        snprintf(e.message, sizeof e.message, "%s: %s (byte %lld)", path, message, (long long)offset);
    else if (*path)
        snprintf(e.message, sizeof e.message, "%s: %s", path, message);
    else
        snprintf(e.message, sizeof e.message, "%s", message);
    for (char *p = e.message; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) *p = '?';
    last = e;
}

#define FORMAT_MESSAGE(buffer, format)                      \
    do {                                                    \
        va_list list;                                       \
        va_start(list, format);                             \
        vsnprintf((buffer), sizeof(buffer), (format), list); \
        va_end(list);                                       \
    } while (0)

moed_status moedi_fail(moed_status status, const char *format, ...)
{
    char message[sizeof last.message];
    FORMAT_MESSAGE(message, format);
    set(status, "", "", -1, message);
    return status;
}

moed_status moedi_fail_file(moed_status status, const char *path, int64_t offset, const char *format, ...)
{
    char message[sizeof last.message];
    FORMAT_MESSAGE(message, format);
    set(status, path ? path : "", "", offset, message);
    return status;
}

moed_status moedi_fail_parameter(moed_status status, const char *parameter, const char *format, ...)
{
    char message[sizeof last.message];
    FORMAT_MESSAGE(message, format);
    set(status, "", parameter ? parameter : "", -1, message);
    return status;
}

/* Reasons that lie in the path that was named and not in the moment: the same call ends in the same way again. */
static int is_of_the_path(int number)
{
    return number == EACCES || number == EPERM || number == EROFS || number == EISDIR || number == ENAMETOOLONG ||
           number == ELOOP;
}

moed_status moedi_fail_errno(const char *path, const char *verb)
{
    const int number = errno;
    moed_status status = MOED_E_IO;
    if (number == ENOSPC || number == EDQUOT || number == EFBIG) status = MOED_E_SPACE;
    if (number == ENOENT || number == ENOTDIR) status = MOED_E_NOT_FOUND;
    if (number == ENOMEM) status = MOED_E_MEMORY;
    char reason[128] = "";
    const char *text = strerror_r(number, reason, sizeof reason); /* GNU's: locale may translate it, which is fine */
    moedi_fail_file(status, path, -1, "cannot %s: %s", verb, text);
    if (is_of_the_path(number)) last.retryable = 0;
    return status;
}

moed_status moedi_fail_callback(const char *which, int64_t code)
{
    moedi_fail(MOED_E_CALLBACK, "the %s callback returned %lld", which, (long long)code);
    last.callback_code = code;
    return MOED_E_CALLBACK;
}

void moedi_clear_error(void)
{
    last.status = MOED_OK;
    last.message[0] = last.path[0] = last.parameter[0] = 0;
    last.offset = -1;
    last.callback_code = 0;
    last.retryable = 0;
}

void moedi_error_save(moedi_error *out)
{
    *out = last;
}

moed_status moedi_error_restore(const moedi_error *error)
{
    last = *error;
    return last.status;
}

const char *moed_last_error(void)
{
    return last.message;
}

moed_status moed_last_error_get(moed_error_info *out)
{
    if (!out || out->struct_size < 8) return MOED_E_ARGUMENT;
    moed_error_info info = {
        .struct_size = out->struct_size,
        .status = last.status,
        .retryable = last.retryable,
        .offset = last.offset,
        .callback_code = last.callback_code,
        .message = last.message,
        .path = last.path,
        .parameter = last.parameter,
    };
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info);
    return MOED_OK;
}
