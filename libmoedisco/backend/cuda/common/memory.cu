/* cuda/common/memory.cu - device memory that is handed out, and what goes there and back. */
#include "memory.h"

/* A block that was handed out. The list is short: models take few large ones. */
struct moedi_cuda_block {
    moedi_cuda_block *next;
    void *memory;
    size_t size;
};

moed_status moedi_cuda_allocate(void *self, size_t size, void **out)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    void *node = nullptr;
    if (size == 0) size = 1;
    MOEDI_CUDA_TRY(e->host->alloc(e->host->self, sizeof(moedi_cuda_block), &node));
    moedi_cuda_block *b = static_cast<moedi_cuda_block *>(node);
    const moed_status status = moedi_cuda_device_alloc(e, size, &b->memory);
    if (status != MOED_OK) {
        e->host->free(e->host->self, b);
        return status;
    }
    b->size = size, b->next = e->blocks, e->blocks = b;
    *out = b->memory;
    return MOED_OK;
}

void moedi_cuda_release(void *self, void *memory)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    for (moedi_cuda_block **at = &e->blocks; memory && *at; at = &(*at)->next) {
        moedi_cuda_block *b = *at;
        if (b->memory != memory) continue;
        moedi_cuda_device_free(e, memory, b->size);
        *at = b->next;
        e->host->free(e->host->self, b);
        return;
    }
}

void moedi_cuda_memory_forget(moedi_cuda *e)
{
    while (e->blocks) {
        moedi_cuda_block *b = e->blocks;
        e->blocks = b->next;
        moedi_cuda_device_free(e, b->memory, b->size);
        e->host->free(e->host->self, b);
    }
}

/* Pageable host memory has been copied out of when the call returns. */
moed_status moedi_cuda_upload(void *self, void *device, const void *host, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(device, host, size, cudaMemcpyHostToDevice, e->stream));
    cudaPointerAttributes about;
    if (cudaPointerGetAttributes(&about, host) != cudaSuccess) (void)cudaGetLastError();
    else if (about.type != cudaMemoryTypeUnregistered)
        MOEDI_CUDA_CHECK(e, cudaStreamSynchronize(e->stream)); /* pinned or managed: it would still be read */
    return MOED_OK;
}

moed_status moedi_cuda_download(void *self, void *host, const void *device, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(host, device, size, cudaMemcpyDeviceToHost, e->stream));
    return MOED_OK;
}

moed_status moedi_cuda_copy(void *self, void *to, const void *from, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, e->stream));
    return MOED_OK;
}

moed_status moedi_cuda_zero(void *self, void *device, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemsetAsync(device, 0, size, e->stream));
    return MOED_OK;
}

moed_status moedi_cuda_synchronize(void *self)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaStreamSynchronize(e->stream));
    return MOED_OK;
}
