/* train/settings.c - checks between fields; the table behind moedi_options_read holds each field's own range. */
#include "settings.h"

#include "core/options.h"

const char *moedi_policy_name(int32_t policy)
{
    static const char *const names[] = {"auto", "full", "lean"};
    return names[policy];
}

moed_status moedi_settings_read(const moed_layout *l, const moed_train_options *given, moed_train_options *out)
{
    MOEDI_TRY(moedi_options_read(MOED_STRUCT_TRAIN_OPTIONS, given, out));
    if (!l->family)
        return moedi_fail(MOED_E_UNSUPPORTED,
                          "a layout made by hand has no forward pass: only layouts of a family's config train here");
    if (out->rows % out->micro_batches != 0)
        return moedi_fail_parameter(MOED_E_RANGE, "micro_batches", "micro_batches %lld does not divide rows %lld",
                                    (long long)out->micro_batches, (long long)out->rows);
    if (out->length > l->config.context_length)
        return moedi_fail_parameter(MOED_E_RANGE, "length", "length %lld is more than the model's context of %lld tokens",
                                    (long long)out->length, (long long)l->config.context_length);
    if (out->rows > INT32_MAX / out->length)
        return moedi_fail_parameter(MOED_E_RANGE, "rows", "rows %lld of %lld tokens are more than 2^31 tokens a step",
                                    (long long)out->rows, (long long)out->length);
    if (out->schedule == MOED_SCHEDULE_WSD && out->warmup + out->decay > 1.0)
        return moedi_fail_parameter(MOED_E_RANGE, "decay", "warmup %g and decay %g are more than the whole run together",
                                    out->warmup, out->decay);
    if (out->directory && !out->directory[0])
        return moedi_fail_parameter(MOED_E_ARGUMENT, "directory", "directory is empty: NULL writes nothing");
    if (out->checkpoint_every > 0 && !out->directory)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "checkpoint_every",
                                    "checkpoint_every is %lld without a directory to write to", (long long)out->checkpoint_every);
    if (out->evaluate_every > 0 && !out->held_out)
        return moedi_fail_parameter(MOED_E_ARGUMENT, "evaluate_every", "evaluate_every is %lld without a held_out corpus",
                                    (long long)out->evaluate_every);
    return MOED_OK;
}
