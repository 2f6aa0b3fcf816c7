/* cuda/common/plugin.cu - the plug-in: its devices, engines on them, and the table of what they do. */
#include <stdio.h>
#include <string.h>

#include "graph.h"
#include "libraries.h"
#include "memory.h"
#include "operations.h"

/* ---- devices ---- */

/* The number of devices, or 0 and why. */
static int count_devices(const char **reason)
{
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    *reason = "";
    if (error == cudaSuccess) return count;
    (void)cudaGetLastError();
    int driver = 0;
    if (error == cudaErrorInsufficientDriver) /* of none, and of one that is too old */
        *reason = cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0
                      ? "the NVIDIA driver is too old for the CUDA that this plug-in was built with: update it"
                      : "no NVIDIA driver is loaded";
    else
        *reason = cudaGetErrorString(error);
    (void)cudaGetLastError();
    return 0;
}

static moed_status describe_device(const moed_host_api *host, int32_t index, moed_device_info *out)
{
    (void)host;
    const char *reason;
    const int count = count_devices(&reason);
    if (index < 0 || (index >= count && index > 0)) return MOED_E_RANGE;
    snprintf(out->name, sizeof out->name, "cuda:%d", index);
    if (count == 0) { /* one line that says why there is none */
        snprintf(out->description, sizeof out->description, "no NVIDIA GPU");
        snprintf(out->reason, sizeof out->reason, "%s", *reason ? reason : "the driver lists no device");
        return MOED_OK;
    }
    cudaDeviceProp p;
    if (cudaGetDeviceProperties(&p, index) != cudaSuccess) {
        snprintf(out->reason, sizeof out->reason, "the device does not answer: %s", cudaGetErrorString(cudaGetLastError()));
        return MOED_OK;
    }
    snprintf(out->description, sizeof out->description, "%.80s (compute capability %d.%d)", p.name, p.major, p.minor);
    out->memory = (int64_t)p.totalGlobalMem;
    if (p.major < 8)
        snprintf(out->reason, sizeof out->reason, "compute capability %d.%d: 8.0 or newer is needed", p.major, p.minor);
    return MOED_OK;
}

/* ---- engines ---- */

extern const moed_backend moedi_cuda_bf16, moedi_cuda_f32;

static void close_engine(void *self)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    {
        const moedi_cuda_current current(e);
        if (e->own_stream) cudaStreamSynchronize(e->stream);
        moedi_cuda_gemm_forget(e);
        moedi_cuda_attention_forget(e);
        moedi_cuda_update_forget(e);
        if (e->blas) moedi_cublas.cublasLtDestroy(e->blas);
        moedi_cuda_device_free(e, e->workspace, MOEDI_CUDA_WORKSPACE);
        moedi_cuda_device_free(e, e->scratch, e->scratch_size);
        moedi_cuda_memory_forget(e);
        if (e->own_stream) cudaStreamDestroy(e->stream);
        (void)cudaGetLastError();
    }
    e->host->free(e->host->self, e);
}

static moed_status start_engine(moedi_cuda *e)
{
    const moedi_cuda_current current(e);
    MOEDI_CUDA_TRY(moedi_cuda_libraries(e->host));
    MOEDI_CUDA_CHECK(e, cudaGetDeviceProperties(&e->properties, e->device));
    MOEDI_CUDA_CHECK(e, cudaFree(nullptr)); /* the context is there */
    if (current.driver.set && current.driver.get(&e->context) != CUDA_SUCCESS) e->context = nullptr;
    if (e->properties.major < 8)
        return moedi_cuda_fail(e, MOED_E_BACKEND, "cuda:%d has compute capability %d.%d: 8.0 or newer is needed", e->device,
                               e->properties.major, e->properties.minor);
    if (!e->stream) {
        MOEDI_CUDA_CHECK(e, cudaStreamCreateWithFlags(&e->stream, cudaStreamNonBlocking));
        e->own_stream = true;
    }
    if (moedi_cublas.cublasLtCreate(&e->blas) != CUBLAS_STATUS_SUCCESS)
        return moedi_cuda_fail(e, MOED_E_BACKEND, "cuda:%d: cuBLAS does not start", e->device);
    return MOED_OK;
}

static moed_status open_engine(const moed_host_api *host, const moed_backend_config *config, void **self,
                               const moed_backend **table)
{
    const char *asked = config->kernels && *config->kernels ? config->kernels : "auto";
    const bool narrow = !strcmp(asked, "auto") || !strcmp(asked, "bf16");
    const char *reason;
    char sentence[240];
    const int count = count_devices(&reason);
    if (config->device < 0 || config->device >= count) {
        snprintf(sentence, sizeof sentence, "there is no device cuda:%d: %s", (int)config->device,
                 *reason ? reason : "the driver lists fewer");
        return host->fail(host->self, MOED_E_BACKEND, sentence);
    }
    if (!narrow && strcmp(asked, "f32") != 0) {
        snprintf(sentence, sizeof sentence, "no kernel set of a CUDA device is called \"%.40s\"; there is auto, bf16, f32",
                 asked);
        return host->fail(host->self, MOED_E_BACKEND, sentence);
    }
    void *memory;
    const moed_status status = host->alloc(host->self, sizeof(moedi_cuda), &memory);
    if (status != MOED_OK) return status;
    moedi_cuda *e = static_cast<moedi_cuda *>(memset(memory, 0, sizeof(moedi_cuda)));
    e->host = host, e->device = config->device, e->limit = config->memory_limit;
    if (MOED_CONFIG_HAS(config, stream)) e->stream = static_cast<cudaStream_t>(config->stream);
    if (MOED_CONFIG_HAS(config, device_alloc_user)) {
        e->device_alloc = config->device_alloc, e->device_free = config->device_free;
        e->device_alloc_user = config->device_alloc_user;
    }
    const moed_status started = start_engine(e);
    if (started != MOED_OK) {
        close_engine(e);
        return started;
    }
    *self = e;
    *table = narrow ? &moedi_cuda_bf16 : &moedi_cuda_f32;
    return MOED_OK;
}

template <typename T> static moed_status tell_info(void *self, moed_backend_info *out)
{
    const moedi_cuda *e = static_cast<const moedi_cuda *>(self);
    const bool narrow = sizeof(T) == 2;
    out->dtype = narrow ? MOED_DTYPE_BF16 : MOED_DTYPE_F32;
    out->wide = MOED_DTYPE_F32;
    out->host_memory = 0;
    snprintf(out->kernels, sizeof out->kernels, "%s", narrow ? "bf16" : "f32");
    snprintf(out->reason, sizeof out->reason, "%.100s, compute capability %d.%d", e->properties.name, e->properties.major,
             e->properties.minor);
    return MOED_OK;
}

/* ---- the caller's events ---- */

/* What an engine there would be, without its memory: for messages, and to make the device current. */
static moedi_cuda place_of(const moed_host_api *host, const moed_backend_config *config)
{
    moedi_cuda e = {};
    e.host = host, e.device = config->device, e.stream = static_cast<cudaStream_t>(config->stream);
    return e;
}

static moed_status wait_event(const moed_host_api *host, const moed_backend_config *config, void *event)
{
    moedi_cuda e = place_of(host, config);
    const moedi_cuda_current current(&e);
    if (e.stream) MOEDI_CUDA_CHECK(&e, cudaStreamWaitEvent(e.stream, static_cast<cudaEvent_t>(event), 0));
    else MOEDI_CUDA_CHECK(&e, cudaEventSynchronize(static_cast<cudaEvent_t>(event)));
    return MOED_OK;
}

static moed_status record_event(const moed_host_api *host, const moed_backend_config *config, void *event)
{
    moedi_cuda e = place_of(host, config);
    const moedi_cuda_current current(&e);
    /* without a stream: this thread's, where the library enqueues nothing */
    MOEDI_CUDA_CHECK(&e, cudaEventRecord(static_cast<cudaEvent_t>(event), e.stream ? e.stream : cudaStreamPerThread));
    return MOED_OK;
}

/* ---- what a step takes, without an engine ---- */

template <typename T> static int64_t room_for(const moed_workload *w)
{
    size_t most = 0; /* scratch is one operation's at a time */
#define MOEDI_CUDA_MOST(slot) \
    if (const size_t room = moedi_cuda_##slot##_room<T>(w); room > most) most = room;
    MOEDI_CUDA_ROOMS(MOEDI_CUDA_MOST)
    return (int64_t)(MOEDI_CUDA_WORKSPACE + most + moedi_cuda_update_room(w));
}

static int64_t workspace(const moed_workload *w)
{
    return w->dtype == MOED_DTYPE_BF16 ? room_for<__nv_bfloat16>(w) : room_for<float>(w);
}

/* ---- the tables ---- */

template <typename T> struct slots {
#define MOEDI_CUDA_SLOT(slot, arguments)                                     \
    static moed_status slot(void *self, const moed_op_##arguments *a)        \
    {                                                                        \
        moedi_cuda *e = static_cast<moedi_cuda *>(self);                     \
        const moedi_cuda_current current(e);                                 \
        return moedi_cuda_##slot<T>(e, a);                                   \
    }
    MOEDI_CUDA_OPERATIONS(MOEDI_CUDA_SLOT)
    static constexpr moed_backend table()
    {
        moed_backend b = {};
        b.struct_size = sizeof b, b.abi = MOED_BACKEND_ABI, b.name = "cuda";
        b.device = describe_device, b.open = open_engine, b.close = close_engine, b.info = tell_info<T>;
        b.alloc = moedi_cuda_allocate, b.free = moedi_cuda_release;
        b.upload = moedi_cuda_upload, b.download = moedi_cuda_download, b.copy = moedi_cuda_copy, b.zero = moedi_cuda_zero;
        b.synchronize = moedi_cuda_synchronize;
        b.graph_begin = moedi_cuda_graph_begin, b.graph_end = moedi_cuda_graph_end;
        b.graph_launch = moedi_cuda_graph_launch, b.graph_free = moedi_cuda_graph_free;
        b.wait_event = wait_event, b.record_event = record_event;
        b.workspace = workspace;
#define MOEDI_CUDA_FILL(operation, arguments) b.operation = operation;
        MOEDI_CUDA_OPERATIONS(MOEDI_CUDA_FILL)
        return b;
    }
};
const moed_backend moedi_cuda_bf16 = slots<__nv_bfloat16>::table(), moedi_cuda_f32 = slots<float>::table();

extern "C" __attribute__((visibility("default"))) const moed_backend *moed_backend_entry_v1(const moed_host_api *host)
{
    return host && host->abi == MOED_BACKEND_ABI ? &moedi_cuda_bf16 : nullptr;
}
