/* train/checkpoint_size.c - what a checkpoint takes in host memory while it is written or read. */
#include "checkpoint_size.h"

#include <string.h>

#include "optimizer.h"
#include "util/dtype.h"
#include "util/safetensors.h"

/* Of a tensor: its entry, in the list and the writer's; its line of the header, which is at most so long beside the name. */
static int64_t entry_bytes(const moed_param *p)
{
    enum { LINE = 256 };
    return (int64_t)(2 * sizeof(moedi_safetensors_entry) + LINE + 2 * (strlen(p->name) + 3));
}

int64_t moedi_checkpoint_bytes(const moed_layout *l, const moed_backend_info *numbers, const uint8_t *trained, int32_t policy)
{
    enum { BUFFERS = (1 << 20) + (1 << 15) }; /* a checksum's, more than a writer's; paths, hashes and the like */
    const int64_t item = (int64_t)moedi_dtype_size(numbers->wide);
    int64_t model = moedi_model_write_elements(l) * item + 2 * (int64_t)strlen(l->config_text);
    int64_t moments = MOEDI_CHECKPOINT_CHUNK * item;
    for (size_t i = 0; i < l->count; i++) {
        const moed_param *p = &l->params[i];
        model +=
            entry_bytes(p) + (int64_t)(sizeof *p + sizeof *l->by_name + strlen(p->name) + 1); /* the exact layout is another */
        if (trained[i]) moments += moedi_optimizer_parts(policy) * (entry_bytes(p) + (int64_t)sizeof(moedi_moment));
    }
    return BUFFERS + (model > moments ? model : moments);
}
