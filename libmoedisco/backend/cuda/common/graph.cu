/* cuda/common/graph.cu - work that is recorded once and launched as a whole. */
#include "graph.h"

struct moedi_cuda_graph {
    cudaGraphExec_t whole;
    int64_t moves;                   /* of the engine when it was recorded */
};

/* Of this thread alone: the host's other threads may do what they like meanwhile. So a stream that the legacy default stream
 * waits for is not recorded, nor is that one: a cudaMemcpy of any thread would fail meanwhile, and end the recording. */
moed_status moedi_cuda_graph_begin(void *self)
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

moed_status moedi_cuda_graph_end(void *self, void **out)
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

moed_status moedi_cuda_graph_launch(void *self, void *graph)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    const moedi_cuda_graph *g = static_cast<const moedi_cuda_graph *>(graph);
    const moedi_cuda_current current(e);
    if (g->moves != e->moves)
        return moedi_cuda_fail(e, MOED_E_UNSUPPORTED, "cuda:%d: memory that the graph uses has moved", e->device);
    MOEDI_CUDA_CHECK(e, cudaGraphLaunch(g->whole, e->stream));
    return MOED_OK;
}

void moedi_cuda_graph_free(void *self, void *graph)
{
    moedi_cuda *e = static_cast<moedi_cuda *>(self);
    moedi_cuda_graph *g = static_cast<moedi_cuda_graph *>(graph);
    const moedi_cuda_current current(e);
    if (!g) return;
    cudaGraphExecDestroy(g->whole); /* what still runs of it is waited for by the driver */
    e->host->free(e->host->self, g);
}
