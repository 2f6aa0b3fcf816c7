/* upcycle.c - a dense model into a Mixture-of-Experts model. */
#include "app.h"
#include "output.h"

int verb_upcycle(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    moed_upcycle_options o;
    moed_context *context = NULL;
    moed_model *dense = NULL, *whole = NULL;
    moed_layout_info info = {.struct_size = sizeof info};
    OPTIONS_INIT(UPCYCLE_OPTIONS, &o);
    flags_struct(&f, "upcycle", MOED_STRUCT_UPCYCLE_OPTIONS, &o, NULL);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 2, 2);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    code = refuse_same(f.positionals[0], f.positionals[1]);
    moed_status status = code ? MOED_OK : open_streamed(&dense, context, f.positionals[0]);
    if (!code && !status) status = moed_model_upcycle(&whole, dense, f.positionals[1], &o, app_cancel);
    if (!code && !status) status = moed_layout_get_info(moed_model_layout(whole), &info);
    if (!code && status) code = fail_status(status);
    if (!code) {
        say("%s: %s, %lld experts in each of %lld layers, %lld parameters", f.positionals[1], info.family,
            (long long)info.experts, (long long)info.layers, (long long)info.total);
        emit(json_pack("{s:s, s:s, s:I}", "event", "upcycled", "path", utf8(f.positionals[1]), "parameters",
                       (json_int_t)info.total));
    }
    moed_model_destroy(whole);
    moed_model_destroy(dense);
    moed_context_destroy(context);
    return code;
}
