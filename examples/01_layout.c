/* 01_layout.c - what a config.json describes: parameters, their bytes, and the work per token.
 *
 *   01_layout path/to/config.json
 */
#include <moedisco.h>

#include <inttypes.h>
#include <stdio.h>

static size_t read_text(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "rb");
    if (!f) return 0;
    const size_t n = fread(text, 1, size, f);
    fclose(f);
    return n;
}

int main(int argc, char **argv)
{
    static char text[1 << 20];
    moed_context *context = NULL;
    moed_layout *layout = NULL;
    moed_layout_info info = {.struct_size = sizeof info};

    if (argc != 2) {
        fprintf(stderr, "usage: %s CONFIG.JSON\n", argc > 0 ? argv[0] : "01_layout");
        return 2;
    }
    const size_t size = read_text(argv[1], text, sizeof text);
    if (size == 0) {
        fprintf(stderr, "%s: cannot be read, or is empty\n", argv[1]);
        return 2;
    }
    if (moed_context_create(&context, NULL) != MOED_OK || moed_layout_from_config(&layout, context, text, size) != MOED_OK ||
        moed_layout_get_info(layout, &info) != MOED_OK) {
        fprintf(stderr, "%s\n", moed_last_error());
        moed_context_destroy(context);
        return 2;
    }
    printf("family      %s, %" PRId64 " layers, %" PRId64 " experts of which %" PRId64 " work on a token\n", info.family,
           info.layers, info.experts, info.top_k);
    printf("parameters  %" PRId64 " numbers in %" PRId64 " tensors, %" PRId64 " bytes\n", info.total, info.params, info.bytes);
    printf("active      %" PRId64 " per token\n", info.active);
    printf("forward     %.4g FLOPs per token of a row of %" PRId64 "\n", info.forward_flops, info.context_length);
    moed_layout_destroy(layout);
    moed_context_destroy(context);
    return 0;
}
