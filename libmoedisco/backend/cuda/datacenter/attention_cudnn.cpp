/* cuda/datacenter/attention_cudnn.cpp - attention by cuDNN's fused kernels, over q, k and v as they lie. Where rows hold several
 * documents a bias hides the others. A plan is made at the first call of a shape and kept; what cuDNN has no plan for is
 * remembered too, and the plain kernels run. Sums are taken in one order: the same bits every time. */
#define NV_CUDNN_FRONTEND_DISABLE_LOGGING
#define CUDNN_FRONTEND_SKIP_JSON_LIB
#include "../common/libraries.h"

/* cuDNN's functions as they were loaded, in place of those that a linker would bind. */
#define cudnnGetStream moedi_cudnn.cudnnGetStream
#define cudnnGetVersion moedi_cudnn.cudnnGetVersion
#define cudnnGetErrorString moedi_cudnn.cudnnGetErrorString
#define cudnnGetLastErrorString moedi_cudnn.cudnnGetLastErrorString
#define cudnnBackendCreateDescriptor moedi_cudnn.cudnnBackendCreateDescriptor
#define cudnnBackendDestroyDescriptor moedi_cudnn.cudnnBackendDestroyDescriptor
#define cudnnBackendExecute moedi_cudnn.cudnnBackendExecute
#define cudnnBackendFinalize moedi_cudnn.cudnnBackendFinalize
#define cudnnBackendGetAttribute moedi_cudnn.cudnnBackendGetAttribute
#define cudnnBackendSetAttribute moedi_cudnn.cudnnBackendSetAttribute
#include <cudnn_frontend.h>
/* Of an engine of the headers that compiles at run time; attention does not reach it. */
#pragma weak nvrtcCompileProgram
#pragma weak nvrtcCreateProgram
#pragma weak nvrtcDestroyProgram
#pragma weak nvrtcGetCUBIN
#pragma weak nvrtcGetCUBINSize
#pragma weak nvrtcGetProgramLog
#pragma weak nvrtcGetProgramLogSize

#include <new>
#include <vector>

#include "../common/operations.h"
#include "attention_layout.h"

namespace fe = cudnn_frontend;
using tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

namespace {

struct shape {
    int64_t rows, length, heads, kv_heads, head_dim, stride;
    double scale;
    int32_t whole, backward;
    bool operator==(const shape &o) const
    {
        return rows == o.rows && length == o.length && heads == o.heads && kv_heads == o.kv_heads && head_dim == o.head_dim &&
               stride == o.stride && scale == o.scale && whole == o.whole && backward == o.backward;
    }
};

enum id : int64_t { Q = 1, K, V, OUT, LSE, D_Q, D_K, D_V, D_OUT, DOCUMENT_BIAS };

struct plan {
    shape of;
    std::shared_ptr<fe::graph::Graph> graph; /* none: cuDNN has no plan */
    int64_t workspace;
};

} // namespace

/* ---- plans: the tensors of a shape in the terms of cuDNN, (batch, heads, length, head_dim) ---- */

static void place(fe::graph::Tensor_attributes &t, const shape &s, id uid, int64_t heads, int64_t stride)
{
    t.set_uid(uid).set_dim({s.rows, heads, s.length, s.head_dim}).set_stride({s.length * stride, s.head_dim, stride, 1});
}

static tensor input(fe::graph::Graph &graph, const shape &s, id uid, int64_t heads, int64_t stride)
{
    fe::graph::Tensor_attributes t;
    place(t, s, uid, heads, stride);
    return graph.tensor(t);
}

static void output(const tensor &t, const shape &s, id uid, int64_t heads, int64_t stride)
{
    t->set_output(true);
    place(*t, s, uid, heads, stride);
}

/* lse is (heads, rows, length), which is written so; cuDNN before 9.26 reads (rows, heads, length) alone. */
static void place_lse(fe::graph::Tensor_attributes &t, const shape &s)
{
    t.set_uid(LSE).set_dim({s.rows, s.heads, s.length, 1}).set_data_type(fe::DataType_t::FLOAT);
    if (s.backward) t.set_stride({s.heads * s.length, s.length, 1, 1});
    else t.set_stride({s.length, s.rows * s.length, 1, 1});
}

template <typename Attributes> static void mask(fe::graph::Graph &graph, const shape &s, Attributes &a)
{
    a.set_attn_scale((float)s.scale).set_causal_mask(true);
    if (s.whole) return;
    const int64_t stride = moedi_cuda_bias_stride(s.length);
    fe::graph::Tensor_attributes bias;
    bias.set_uid(DOCUMENT_BIAS).set_dim({s.rows, 1, s.length, s.length});
    bias.set_stride({s.length * stride, s.length * stride, stride, 1});
    a.set_bias(graph.tensor(bias));
}

static void describe_forward(const shape &s, fe::graph::Graph &graph, const tensor &q, const tensor &k, const tensor &v)
{
    fe::graph::SDPA_attributes a;
    mask(graph, s, a);
    a.set_generate_stats(true);
    auto [out, lse] = graph.sdpa(q, k, v, a);
    output(out, s, OUT, s.heads, s.heads * s.head_dim);
    lse->set_output(true);
    place_lse(*lse, s);
}

static void describe_backward(const shape &s, fe::graph::Graph &graph, const tensor &q, const tensor &k, const tensor &v)
{
    const int64_t width = s.heads * s.head_dim;
    const tensor out = input(graph, s, OUT, s.heads, width), d_out = input(graph, s, D_OUT, s.heads, width);
    fe::graph::Tensor_attributes lse;
    place_lse(lse, s);
    fe::graph::SDPA_backward_attributes a;
    mask(graph, s, a);
    a.set_deterministic_algorithm(true);
    auto [d_q, d_k, d_v] = graph.sdpa_backward(q, k, v, out, d_out, graph.tensor(lse), a);
    output(d_q, s, D_Q, s.heads, s.stride);
    output(d_k, s, D_K, s.kv_heads, s.stride);
    output(d_v, s, D_V, s.kv_heads, s.stride);
}

static void describe(const shape &s, fe::graph::Graph &graph)
{
    graph.set_io_data_type(fe::DataType_t::BFLOAT16).set_intermediate_data_type(fe::DataType_t::FLOAT);
    graph.set_compute_data_type(fe::DataType_t::FLOAT);
    const tensor q = input(graph, s, Q, s.heads, s.stride), k = input(graph, s, K, s.kv_heads, s.stride),
                 v = input(graph, s, V, s.kv_heads, s.stride);
    if (s.backward) describe_backward(s, graph, q, k, v);
    else describe_forward(s, graph, q, k, v);
}

struct moedi_cuda_attention_plans {
    cudnnHandle_t handle = nullptr; /* none: there is no cuDNN here */
    std::vector<plan> made;
};

/* The engine's plans with a handle on its stream, or NULL where there is no cuDNN. */
static moedi_cuda_attention_plans *plans_of(moedi_cuda *e)
{
    if (!e->attention_plans) {
        moedi_cuda_attention_plans *plans = new moedi_cuda_attention_plans;
        e->attention_plans = plans;
        if (moedi_cuda_load_cudnn(e->host) && moedi_cudnn.cudnnCreate(&plans->handle) == CUDNN_STATUS_SUCCESS)
            moedi_cudnn.cudnnSetStream(plans->handle, e->stream);
    }
    return e->attention_plans->handle ? e->attention_plans : nullptr;
}

void moedi_cuda_attention_forget(moedi_cuda *e)
{
    if (!e->attention_plans) return;
    e->attention_plans->made.clear();
    if (e->attention_plans->handle) moedi_cudnn.cudnnDestroy(e->attention_plans->handle);
    delete e->attention_plans;
    e->attention_plans = nullptr;
}

static const plan &plan_of(moedi_cuda *e, moedi_cuda_attention_plans *plans, const shape &s)
{
    for (const plan &p : plans->made)
        if (p.of == s) return p;
    plan p = {s, std::make_shared<fe::graph::Graph>(), 0};
    describe(s, *p.graph);
    fe::error_t error = p.graph->build(plans->handle, {fe::HeurMode_t::A});
    if (error.is_good()) error = p.graph->get_workspace_size(p.workspace);
    if (error.is_bad()) {
        (void)cudaGetLastError();
        const std::string why = error.get_message().substr(0, 200);
        const std::string line = "attention: cuDNN has no plan for this shape, plain kernels run: " + why;
        if (e->host->log) e->host->log(e->host->self, MOED_LOG_DEBUG, line.c_str());
        p.graph = nullptr;
    }
    plans->made.push_back(p);
    return plans->made.back();
}

/* ---- calls ---- */

/* Scratch of a call: the plan's workspace behind what is made for cuDNN first. */
struct scratch {
    float *lse = nullptr;
    char *bias = nullptr, *workspace = nullptr;
};
static scratch lay(moedi_cuda_pieces *pieces, const shape &s, int64_t workspace)
{
    scratch at;
    if (s.backward) at.lse = pieces->take<float>(s.heads * s.rows * s.length);
    if (!s.whole) at.bias = pieces->take<char>(2 * s.rows * s.length * moedi_cuda_bias_stride(s.length));
    at.workspace = pieces->take<char>(workspace);
    return at;
}

/* A plan says what it takes only where there is a device. A bound for backward's, which takes more than forward's:
 * deterministic kernels write down the gradients of the scores, 16 bits each, queries and keys filled up to whole tiles; a float
 * for each query of a head; and sums in float of d_q, and of each head's part of d_k and d_v where heads share them. */
static int64_t workspace_most(const shape &s)
{
    const int64_t filled = (s.length + 127) / 128 * 128, queries = s.rows * s.heads * filled, sums = s.kv_heads < s.heads ? 3 : 1;
    return queries * (2 * filled + 4 + 4 * sums * s.head_dim) + (1 << 20);
}

size_t moedi_cuda_attention_cudnn_room(const moed_workload *w)
{
    const shape s = {w->rows, w->length, w->heads, w->kv_heads, w->head_dim, 0, 0, !w->masked, 1};
    moedi_cuda_pieces pieces;
    if (s.head_dim % 8 == 0 && s.length > 1) lay(&pieces, s, workspace_most(s));
    return pieces.used;
}

/* What reads 16 bytes at once must find them aligned. */
static bool suits(const moed_op_attention *a, bool backward)
{
    uintptr_t together = 0;
    for (const void *p : {a->q, a->k, a->v, (const void *)a->out}) together |= reinterpret_cast<uintptr_t>(p);
    if (backward)
        for (const void *p : {(const void *)a->d_q, (const void *)a->d_k, (const void *)a->d_v, a->d_out})
            together |= reinterpret_cast<uintptr_t>(p);
    return together % 16 == 0 && a->stride % 8 == 0 && a->head_dim % 8 == 0 && a->length > 1;
}

static moed_status attend(moedi_cuda *e, const moed_op_attention *a, bool backward)
{
    if (!suits(a, backward)) return MOED_E_UNSUPPORTED;
    moedi_cuda_attention_plans *plans = plans_of(e);
    if (!plans) return MOED_E_UNSUPPORTED;
    const shape s = {a->rows, a->length, a->heads, a->kv_heads, a->head_dim, a->stride, a->scale, a->whole, backward};
    const plan &p = plan_of(e, plans, s);
    if (!p.graph) return MOED_E_UNSUPPORTED;

    scratch at = {};
    MOEDI_CUDA_TRY(moedi_cuda_lay(e, [&](moedi_cuda_pieces &pieces) { at = lay(&pieces, s, p.workspace); }));
    void *const lse = backward ? at.lse : a->lse;
    if (backward) MOEDI_CUDA_TRY(moedi_cuda_lse_by_row(e, at.lse, static_cast<const float *>(a->lse), s.rows, s.heads, s.length));
    if (!s.whole) MOEDI_CUDA_TRY(moedi_cuda_document_bias(e, at.bias, a->start, s.rows, s.length));

    std::unordered_map<int64_t, void *> places = {{Q, const_cast<void *>(a->q)}, {K, const_cast<void *>(a->k)},
                                                  {V, const_cast<void *>(a->v)}, {OUT, a->out}, {LSE, lse}};
    if (backward) places.insert({{D_Q, a->d_q}, {D_K, a->d_k}, {D_V, a->d_v}, {D_OUT, const_cast<void *>(a->d_out)}});
    if (!s.whole) places.insert({DOCUMENT_BIAS, at.bias});
    fe::error_t error = p.graph->execute(plans->handle, places, at.workspace);
    if (error.is_good()) return MOED_OK;
    (void)cudaGetLastError();
    const std::string why = error.get_message();
    return moedi_cuda_fail(e, MOED_E_DEVICE, "cuda:%d: cuDNN's attention does not run: %.200s", e->device, why.c_str());
}

/* No exception leaves. */
static moed_status guarded(moedi_cuda *e, const moed_op_attention *a, bool backward)
{
    try {
        return attend(e, a, backward);
    } catch (const std::bad_alloc &) {
        return moedi_cuda_fail(e, MOED_E_MEMORY, "there is no memory left for a plan of attention");
    } catch (const std::exception &error) {
        return moedi_cuda_fail(e, MOED_E_DEVICE, "cuda:%d: cuDNN's attention does not run: %.200s", e->device, error.what());
    } catch (...) {
        return moedi_cuda_fail(e, MOED_E_DEVICE, "cuda:%d: cuDNN's attention does not run", e->device);
    }
}

moed_status moedi_cuda_attention_cudnn(moedi_cuda *e, const moed_op_attention *a)
{
    return guarded(e, a, false);
}

moed_status moedi_cuda_attention_backward_cudnn(moedi_cuda *e, const moed_op_attention *a)
{
    return guarded(e, a, true);
}
