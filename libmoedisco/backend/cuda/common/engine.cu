/* cuda/common/engine.cu - an engine's errors, context and device memory. */
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>

/* ---- errors ---- */

moed_status moedi_cuda_fail(moedi_cuda *e, moed_status status, const char *format, ...)
{
    char sentence[320];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return e->host->fail(e->host->self, status, sentence);
}

/* After these the driver answers every later call of the process with the same error. */
static bool is_lost(cudaError_t error)
{
    switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable: return true;
    default: return false;
    }
}

moed_status moedi_cuda_failed(moedi_cuda *e, cudaError_t error, const char *what)
{
    (void)cudaGetLastError(); /* it is told here; the caller's own calls shall not meet it */
    if (error == cudaErrorMemoryAllocation)
        return moedi_cuda_fail(e, MOED_E_MEMORY, "cuda:%d has no memory left for %.120s", e->device, what);
    return moedi_cuda_fail(e, MOED_E_DEVICE, "cuda:%d: %.120s: %.80s%s", e->device, what, cudaGetErrorString(error),
                           is_lost(error) ? "; the device is lost to this process: a new one can resume from the last checkpoint"
                                          : "");
}

/* ---- the caller's context ---- */

template <typename F> static F driver_call(const char *name)
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) (void)cudaGetLastError();
    return error == cudaSuccess && result == cudaDriverEntryPointSuccess ? reinterpret_cast<F>(found) : nullptr;
}

const moedi_cuda_driver &moedi_cuda_driver_of_process()
{
    static const moedi_cuda_driver driver = [] {
        moedi_cuda_driver d = {driver_call<decltype(d.get)>("cuCtxGetCurrent"), driver_call<decltype(d.set)>("cuCtxSetCurrent"),
                               driver_call<decltype(d.describe)>("cuTensorMapEncodeTiled")};
        if (!d.get) d.set = nullptr;
        return d;
    }();
    return driver;
}

/* ---- memory ---- */

static moed_status within_limit(moedi_cuda *e, size_t more)
{
    if (e->limit > 0 && (int64_t)more > e->limit - e->in_use)
        return moedi_cuda_fail(e, MOED_E_LIMIT, "cuda:%d: %zu bytes more than the %lld in use are over the limit of %lld",
                               e->device, more, (long long)e->in_use, (long long)e->limit);
    return MOED_OK;
}

static moed_status not_recording(moedi_cuda *e, size_t size)
{
    if (!e->recording) return MOED_OK;
    return moedi_cuda_fail(e, MOED_E_STATE, "cuda:%d: %zu bytes are asked for while work is recorded", e->device, size);
}

static moed_status no_memory(moedi_cuda *e, cudaError_t error, size_t size)
{
    char what[160];
    size_t left = 0, total = 0;
    (void)cudaGetLastError();
    if (cudaMemGetInfo(&left, &total) != cudaSuccess) (void)cudaGetLastError();
    snprintf(what, sizeof what, "%zu bytes: %zu of %zu are free, this engine holds %lld", size, left, total,
             (long long)e->in_use);
    return moedi_cuda_failed(e, error, what);
}

/* Everything that an engine holds passes here: blocks, the workspace of cuBLAS, scratch, the optimizer's lists. */
moed_status moedi_cuda_device_alloc(moedi_cuda *e, size_t size, void **out)
{
    void *memory = nullptr;
    cudaError_t error = cudaErrorMemoryAllocation;
    MOEDI_CUDA_TRY(not_recording(e, size));
    MOEDI_CUDA_TRY(within_limit(e, size));
    if (!e->device_alloc) error = cudaMalloc(&memory, size);
    else if ((memory = e->device_alloc(size, e->stream, e->device_alloc_user)) != nullptr) error = cudaSuccess;
    if (error != cudaSuccess) return no_memory(e, error, size);
    e->in_use += (int64_t)size;
    *out = memory;
    return MOED_OK;
}

/* cudaFree waits for the work that uses the memory; of the caller's allocator the same is asked. */
void moedi_cuda_device_free(moedi_cuda *e, void *memory, size_t size)
{
    if (!memory) return;
    e->in_use -= (int64_t)size;
    if (e->device_free) e->device_free(memory, size, e->stream, e->device_alloc_user);
    else cudaFree(memory);
}

moed_status moedi_cuda_scratch(moedi_cuda *e, size_t size, void **out)
{
    if (size > e->scratch_size) {
        MOEDI_CUDA_TRY(not_recording(e, size)); /* before what there is goes */
        moedi_cuda_device_free(e, e->scratch, e->scratch_size);
        e->scratch = nullptr, e->scratch_size = 0, e->moves++;
        MOEDI_CUDA_TRY(moedi_cuda_device_alloc(e, size, &e->scratch));
        e->scratch_size = size;
    }
    *out = e->scratch;
    return MOED_OK;
}
