/* cuda/common/memory.h - slots of the table: memory, and what goes there and back, in the order of the engine's stream. */
#ifndef MOEDI_CUDA_MEMORY_H
#define MOEDI_CUDA_MEMORY_H

#include "engine.h"

moed_status moedi_cuda_allocate(void *self, size_t size, void **out);
void moedi_cuda_release(void *self, void *memory);
moed_status moedi_cuda_upload(void *self, void *device, const void *host, size_t size);
moed_status moedi_cuda_download(void *self, void *host, const void *device, size_t size);
moed_status moedi_cuda_copy(void *self, void *to, const void *from, size_t size);
moed_status moedi_cuda_zero(void *self, void *device, size_t size);
moed_status moedi_cuda_synchronize(void *self);
/* All that was handed out goes. */
void moedi_cuda_memory_forget(moedi_cuda *e);

#endif
