/* cuda/common/engine.cu - devices, engines and their memory. */
#include "engine.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libraries.h"
#include "operations.h"

/* A block that was handed out. The list is short: models take few large ones. */
struct moedi_cuda_block {
    moedi_cuda_block *next;
    void *memory;
    size_t size;
};

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
        while (e->blocks) {
            moedi_cuda_block *b = e->blocks;
            e->blocks = b->next;
            moedi_cuda_device_free(e, b->memory, b->size);
            e->host->free(e->host->self, b);
        }
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

static moed_status allocate(void *self, size_t size, void **out)
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

static void release(void *self, void *memory)
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

/* Pageable host memory has been copied out of when the call returns. */
static moed_status upload(void *self, void *device, const void *host, size_t size)
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

static moed_status download(void *self, void *host, const void *device, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(host, device, size, cudaMemcpyDeviceToHost, e->stream));
    return MOED_OK;
}

static moed_status copy(void *self, void *to, const void *from, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice, e->stream));
    return MOED_OK;
}

static moed_status zero(void *self, void *device, size_t size)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaMemsetAsync(device, 0, size, e->stream));
    return MOED_OK;
}

static moed_status synchronize(void *self)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    MOEDI_CUDA_CHECK(e, cudaStreamSynchronize(e->stream));
    return MOED_OK;
}

/* ---- graphs ---- */

struct moedi_cuda_graph {
    cudaGraphExec_t whole;
    int64_t moves;                   /* of the engine when it was recorded */
};

/* Of this thread alone: the host's other threads may do what they like meanwhile. So a stream that the legacy default stream
 * waits for is not recorded, nor is that one: a cudaMemcpy of any thread would fail meanwhile, and end the recording. */
static moed_status graph_begin(void *self)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    unsigned flags = 0;
    MOEDI_CUDA_CHECK(e, cudaStreamGetFlags(e->stream, &flags));
    if (!(flags & cudaStreamNonBlocking))
        return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "cuda:%d: work on a stream without cudaStreamNonBlocking is not recorded",
                               e->device);
    e->recording = cudaStreamBeginCapture(e->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    if (e->recording) return MOED_OK;
    const cudaError_t error = cudaGetLastError();
    return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "cuda:%d: work on this stream cannot be recorded: %s", e->device,
                           cudaGetErrorString(error));
}

static moed_status graph_end(void *self, void **out)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_current current(e);
    cudaGraph_t graph = nullptr;
    void *memory = nullptr;
    *out = nullptr;
    e->recording = false;
    const cudaError_t error = cudaStreamEndCapture(e->stream, &graph);
    if (error != cudaSuccess) {
        if (graph) cudaGraphDestroy(graph);
        return moedi_cuda_failed(e, error, "the end of a recording");
    }
    moed_status status = e->host->alloc(e->host->self, sizeof(moedi_cuda_graph), &memory);
    moedi_cuda_graph *g = static_cast<moedi_cuda_graph *>(memory);
    if (status == MOED_OK) {
        const cudaError_t made = cudaGraphInstantiate(&g->whole, graph, 0);
        if (made != cudaSuccess) status = moedi_cuda_failed(e, made, "a graph");
        if (made != cudaSuccess) e->host->free(e->host->self, g);
    }
    cudaGraphDestroy(graph);
    if (status != MOED_OK) return status;
    g->moves = e->moves;
    *out = g;
    return MOED_OK;
}

static moed_status graph_launch(void *self, void *graph)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_graph *g = static_cast<const moedi_cuda_graph *>(graph);
    const moedi_cuda_current current(e);
    if (g->moves != e->moves)
        return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "cuda:%d: memory that the graph uses has moved", e->device);
    MOEDI_CUDA_CHECK(e, cudaGraphLaunch(g->whole, e->stream));
    return MOED_OK;
}

static void graph_free(void *self, void *graph)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    moedi_cuda_graph *g = static_cast<moedi_cuda_graph *>(graph);
    const moedi_cuda_current current(e);
    if (!g) return;
    cudaGraphExecDestroy(g->whole); /* what still runs of it is waited for by the driver */
    e->host->free(e->host->self, g);
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
        b.alloc = allocate, b.free = release, b.upload = upload, b.download = download, b.copy = copy, b.zero = zero;
        b.synchronize = synchronize;
        b.graph_begin = graph_begin, b.graph_end = graph_end, b.graph_launch = graph_launch, b.graph_free = graph_free;
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
