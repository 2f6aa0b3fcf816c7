/* cuda/common/engine.h - one opened CUDA device: its stream, scratch memory and handles, and how kernels are launched.
 *
 * The plug-in is a guest: every entry makes the engine's device current and puts the caller's back, all work goes to the engine's
 * stream, and no exception or message leaves it. */
#ifndef MOEDI_CUDA_ENGINE_H
#define MOEDI_CUDA_ENGINE_H

#include <cublasLt.h>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "moedisco/sys/backend.h"

struct moedi_cuda_gemm_plans;
struct moedi_cuda_attention_plans;
struct moedi_cuda_update_plan;

struct moedi_cuda {
    const moed_host_api *host;
    int device;
    CUcontext context;               /* the device's primary one, once the engine has started */
    cudaDeviceProp properties;
    cudaStream_t stream;
    bool own_stream;                 /* else the caller's, which orders memory too: nothing of ours waits for it */
    moed_device_alloc_fn device_alloc; /* NULL = cudaMalloc */
    moed_device_free_fn device_free;
    void *device_alloc_user;
    cublasLtHandle_t blas;
    void *workspace;                 /* of cuBLAS: WORKSPACE bytes, from its first product on */
    void *scratch;                   /* of one operation at a time; grows to the largest need, kept until close */
    size_t scratch_size;
    int64_t limit, in_use;           /* bytes; limit 0 = none */
    bool recording;                  /* a graph: no memory is taken meanwhile */
    int64_t moves;                   /* of memory that operations keep between calls: a recorded graph knows the old places */
    struct moedi_cuda_block *blocks; /* what was handed out, to count it back */
    moedi_cuda_gemm_plans *gemm_plans;
    moedi_cuda_attention_plans *attention_plans;
    moedi_cuda_update_plan *update_plan;
};

enum : size_t { MOEDI_CUDA_WORKSPACE = size_t(64) << 20 };

/* The status for a CUDA error, with a sentence that names what was tried. */
moed_status moedi_cuda_failed(moedi_cuda *e, cudaError_t error, const char *what);
moed_status moedi_cuda_fail(moedi_cuda *e, moed_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Device memory of `size` bytes, the caller's allocator's where there is one; it goes back to moedi_cuda_device_free (NULL is
 * nothing). Counted against the limit. */
moed_status moedi_cuda_device_alloc(moedi_cuda *e, size_t size, void **out);
void moedi_cuda_device_free(moedi_cuda *e, void *memory, size_t size);
/* At least `size` bytes of device memory, valid until the next operation of this engine asks again. */
moed_status moedi_cuda_scratch(moedi_cuda *e, size_t size, void **out);

#define MOEDI_CUDA_TRY(call)                           \
    do {                                               \
        const moed_status status_ = (call);            \
        if (status_ != MOED_OK) return status_;        \
    } while (0)
#define MOEDI_CUDA_CHECK(e, call)                                                     \
    do {                                                                              \
        const cudaError_t error_ = (call);                                            \
        if (error_ != cudaSuccess) return moedi_cuda_failed((e), error_, #call);      \
    } while (0)

/* Calls of the driver; NULL where there is none. */
struct moedi_cuda_driver {
    decltype(&cuCtxGetCurrent) get;
    decltype(&cuCtxSetCurrent) set;
    decltype(&cuTensorMapEncodeTiled) describe;
};
const moedi_cuda_driver &moedi_cuda_driver_of_process();

/* Makes the engine's device current while it lives, and then what the caller's thread had: any context, or none. By the driver:
 * the runtime names a thread without a context device 0's, and giving that back would make a context there. */
struct moedi_cuda_current {
    const moedi_cuda_driver &driver;
    CUcontext before = nullptr;
    bool changed = false;
    explicit moedi_cuda_current(const moedi_cuda *e) : driver(moedi_cuda_driver_of_process())
    {
        if (!driver.set || driver.get(&before) != CUDA_SUCCESS || (e->context && before == e->context)) return;
        changed = true;
        if (e->context) driver.set(e->context);
        else cudaSetDevice(e->device);
    }
    ~moedi_cuda_current()
    {
        if (changed) driver.set(before);
    }
};

/* Starts a kernel on the engine's stream. Nothing is done for an empty grid. */
template <typename... Parameters, typename... Arguments>
moed_status moedi_cuda_launch(moedi_cuda *e, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                              Arguments... arguments)
{
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return MOED_OK;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block, config.dynamicSmemBytes = shared, config.stream = e->stream;
    const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...);
    return error == cudaSuccess ? MOED_OK : moedi_cuda_failed(e, error, "the launch of a kernel");
}

/* Pieces of device memory, each aligned to 256 bytes: without a base only their sizes are added up. */
struct moedi_cuda_pieces {
    char *base = nullptr;
    size_t used = 0;
    template <typename T> T *take(int64_t count)
    {
        T *const at = base ? reinterpret_cast<T *>(base + used) : nullptr;
        used += (size_t(count) * sizeof(T) + 255) / 256 * 256;
        return at;
    }
};
/* Scratch for one operation: lay(pieces) takes all that it needs, once for the sizes, then for the memory. */
template <typename F> moed_status moedi_cuda_lay(moedi_cuda *e, F lay)
{
    moedi_cuda_pieces sizes, pieces;
    void *memory;
    lay(sizes);
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, sizes.used, &memory));
    pieces.base = static_cast<char *>(memory);
    lay(pieces);
    return MOED_OK;
}

static inline int64_t moedi_cuda_ceil(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

#endif
