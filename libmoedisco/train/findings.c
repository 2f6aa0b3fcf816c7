/* train/findings.c - a step's findings lie together, so that the host waits once a step. */
#include "findings.h"

#include <string.h>

enum { ALIGNMENT = 64 };

static size_t aligned(size_t size)
{
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static int64_t offsets_of_shard(const moedi_config *c)
{
    return (int64_t)c->layers * (c->experts + 1);
}

static void lay_out(moedi_findings *f, const moedi_config *c, const moed_backend_info *numbers, int64_t shards)
{
    f->shards = shards;
    f->losses_at = aligned(sizeof(moed_step_scalars));
    f->offsets_at = f->losses_at + aligned((size_t)(MOEDI_RESULTS * shards) * moedi_dtype_size(numbers->wide));
    f->bytes = f->offsets_at + (size_t)(shards * offsets_of_shard(c)) * sizeof(int64_t);
}

int64_t moedi_findings_bytes(const moedi_config *c, const moed_backend_info *numbers, int64_t shards)
{
    moedi_findings f;
    lay_out(&f, c, numbers, shards);
    return (int64_t)f.bytes;
}

moed_status moedi_findings_create(moedi_findings *out, moedi_transformer *t, int64_t shards)
{
    const moedi_engine *e = moedi_transformer_engine(t);
    moedi_findings f = {.transformer = t};
    void *device = NULL;
    lay_out(&f, moedi_transformer_config(t), &e->info, shards);
    MOEDI_TRY(moedi_alloc_array(e->context, (int64_t)f.bytes, 1, (void **)&f.host));
    moed_status status = e->table->alloc(e->self, f.bytes, &device);
    f.device = device;
    if (status == MOED_OK) status = e->table->zero(e->self, device, f.bytes);
    if (status != MOED_OK) moedi_findings_destroy(&f);
    else *out = f;
    return status;
}

void moedi_findings_destroy(moedi_findings *f)
{
    if (!f->transformer) return;
    const moedi_engine *e = moedi_transformer_engine(f->transformer);
    moedi_findings_direct(f, -1);
    e->table->free(e->self, f->device);
    moedi_free(e->context, f->host);
    memset(f, 0, sizeof *f);
}

moed_step_scalars *moedi_findings_scalars(const moedi_findings *f)
{
    return (moed_step_scalars *)(void *)f->device;
}

const void *moedi_findings_losses(const moedi_findings *f)
{
    return f->device + f->losses_at;
}

static size_t losses_at(const moedi_findings *f, int64_t shard)
{
    return f->losses_at + (size_t)(MOEDI_RESULTS * shard) * moedi_transformer_engine(f->transformer)->wide_item;
}

static size_t offsets_at(const moedi_findings *f, int64_t shard)
{
    return f->offsets_at + (size_t)(shard * offsets_of_shard(moedi_transformer_config(f->transformer))) * sizeof(int64_t);
}

const int64_t *moedi_findings_offsets(const moedi_findings *f, int64_t shard)
{
    return (const int64_t *)(const void *)(f->device + offsets_at(f, shard));
}

void moedi_findings_direct(const moedi_findings *f, int64_t shard)
{
    void *losses = shard < 0 ? NULL : f->device + losses_at(f, shard);
    void *offsets = shard < 0 ? NULL : f->device + offsets_at(f, shard);
    moedi_transformer_set_results(f->transformer, losses, offsets);
}

moed_status moedi_findings_download(const moedi_findings *f)
{
    const moedi_engine *e = moedi_transformer_engine(f->transformer);
    MOEDI_TRY(e->table->download(e->self, f->host, f->device, f->bytes));
    return e->table->synchronize(e->self);
}

const moed_step_scalars *moedi_findings_read_scalars(const moedi_findings *f)
{
    return (const moed_step_scalars *)(const void *)f->host;
}

void moedi_findings_read(const moedi_findings *f, int64_t shard, int64_t tokens, moedi_losses *out, const int64_t **offsets)
{
    int64_t *mine = (int64_t *)(void *)(f->host + offsets_at(f, shard));
    moedi_transformer_read_results(f->transformer, f->host + losses_at(f, shard), mine, tokens, out);
    *offsets = mine;
}
