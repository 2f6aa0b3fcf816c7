/* cuda/common/gemm.cu - matrix products by cuBLASLt, which is asked once per shape how to do it.
 *
 * cuBLAS thinks in columns: the row-major c (m, n) is its c^T (n, m), so that c^T = op(b)^T op(a)^T. */
#include <new>
#include <unordered_map>

#include "libraries.h"
#include "operations.h"

namespace {

struct shape {
    int64_t m, n, k, lda, ldb, ldc;
    int flags, alignment; /* transposes, accumulate, bias, wide, halves; log2 bytes that all addresses are multiples of */
    bool operator==(const shape &o) const
    {
        return m == o.m && n == o.n && k == o.k && lda == o.lda && ldb == o.ldb && ldc == o.ldc && flags == o.flags &&
               alignment == o.alignment;
    }
};
struct shape_hash {
    size_t operator()(const shape &s) const
    {
        size_t h = 0;
        for (int64_t x : {s.m, s.n, s.k, s.lda, s.ldb, s.ldc, (int64_t)s.flags, (int64_t)s.alignment})
            h = (h ^ (size_t)x) * 0x9e3779b97f4a7c15u + (h >> 29);
        return h;
    }
};
struct plan {
    cublasLtMatmulDesc_t product = nullptr;
    cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace = 0;
    ~plan()
    {
        if (a) moedi_cublas.cublasLtMatrixLayoutDestroy(a);
        if (b) moedi_cublas.cublasLtMatrixLayoutDestroy(b);
        if (c) moedi_cublas.cublasLtMatrixLayoutDestroy(c);
        if (product) moedi_cublas.cublasLtMatmulDescDestroy(product);
    }
};

/* The largest power of two up to 256 that all addresses are multiples of. */
int alignment_of(const moed_op_gemm *a)
{
    const uintptr_t together =
        (uintptr_t)a->a | (uintptr_t)a->b | (uintptr_t)a->c | (uintptr_t)a->bias | (uintptr_t)a->addend | 256;
    return __builtin_ctzll(together);
}

shape shape_of(const moed_op_gemm *a, cudaDataType_t real)
{
    const int halves = real == CUDA_R_16F ? 32 : 0;
    const int flags = halves | (a->transpose_a ? 1 : 0) | (a->transpose_b ? 2 : 0) | (a->accumulate ? 4 : 0) | (a->bias ? 8 : 0) |
                      (a->wide_c ? 16 : 0);
    return {a->m, a->n, a->k, a->lda, a->ldb, a->ldc, flags, alignment_of(a)};
}

template <typename V> bool set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t what, const V &value)
{
    return moedi_cublas.cublasLtMatmulDescSetAttribute(d, what, &value, sizeof value) == CUBLAS_STATUS_SUCCESS;
}

bool describe(plan *p, const moed_op_gemm *a, cudaDataType_t real)
{
    const cudaDataType_t to = a->wide_c ? CUDA_R_32F : real;
    /* first operand: b; op(b)^T (n, k) */
    const cublasOperation_t first = a->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N,
                            second = a->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    if (moedi_cublas.cublasLtMatmulDescCreate(&p->product, CUBLAS_COMPUTE_32F, CUDA_R_32F) != CUBLAS_STATUS_SUCCESS) return false;
    if (!set(p->product, CUBLASLT_MATMUL_DESC_TRANSA, first) || !set(p->product, CUBLASLT_MATMUL_DESC_TRANSB, second))
        return false;
    if (a->bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        if (!set(p->product, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue) ||
            !set(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, a->bias))
            return false;
    }
    return moedi_cublas.cublasLtMatrixLayoutCreate(&p->a, real, a->transpose_b ? a->k : a->n, a->transpose_b ? a->n : a->k,
                                                   a->ldb) == CUBLAS_STATUS_SUCCESS &&
           moedi_cublas.cublasLtMatrixLayoutCreate(&p->b, real, a->transpose_a ? a->m : a->k, a->transpose_a ? a->k : a->m,
                                                   a->lda) == CUBLAS_STATUS_SUCCESS &&
           moedi_cublas.cublasLtMatrixLayoutCreate(&p->c, to, a->n, a->m, a->ldc) == CUBLAS_STATUS_SUCCESS;
}

bool choose(moedi_cuda *e, plan *p, int alignment)
{
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    const size_t workspace = MOEDI_CUDA_WORKSPACE;
    const uint32_t bytes = 1u << alignment;
    if (moedi_cublas.cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    moedi_cublas.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace,
                                                      sizeof workspace);
    for (auto what : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                      CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
        moedi_cublas.cublasLtMatmulPreferenceSetAttribute(preference, what, &bytes, sizeof bytes);
    const cublasStatus_t status =
        moedi_cublas.cublasLtMatmulAlgoGetHeuristic(e->blas, p->product, p->a, p->b, p->c, p->c, preference, 1, &found, &count);
    moedi_cublas.cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0) return false;
    p->algorithm = found.algo, p->workspace = found.workspaceSize;
    return true;
}

} // namespace

struct moedi_cuda_gemm_plans {
    std::unordered_map<shape, plan, shape_hash> all;
};

void moedi_cuda_gemm_forget(moedi_cuda *e)
{
    delete e->gemm_plans;
    e->gemm_plans = nullptr;
}

/* A plan for the shape: made at its first use. NULL where cuBLAS has none. */
static plan *find_plan(moedi_cuda *e, const moed_op_gemm *a, cudaDataType_t real)
{
    if (!e->gemm_plans) e->gemm_plans = new moedi_cuda_gemm_plans;
    const shape s = shape_of(a, real);
    const auto known = e->gemm_plans->all.find(s);
    if (known != e->gemm_plans->all.end()) return &known->second;
    plan *p = &e->gemm_plans->all[s];
    if (describe(p, a, real) && choose(e, p, s.alignment)) return p;
    e->gemm_plans->all.erase(s);
    return nullptr;
}

/* What c starts from, where it accumulates. */
static const void *addend_of(const moed_op_gemm *a)
{
    return a->addend ? a->addend : a->c;
}

static moed_status multiply(moedi_cuda *e, const moed_op_gemm *a, cudaDataType_t real)
{
    const float one = 1, beta = a->accumulate ? 1 : 0;
    plan *p = nullptr;
    try {
        p = find_plan(e, a, real);
    } catch (const std::bad_alloc &) {
        return moedi_cuda_fail(e, MOED_E_MEMORY, "out of memory for the plan of a matrix product");
    }
    if (!p)
        return moedi_cuda_fail(e, MOED_E_DEVICE, "cuda:%d: cuBLAS has no way to do a product of (%lld, %lld, %lld)", e->device,
                               (long long)a->m, (long long)a->n, (long long)a->k);
    if (!e->workspace) MOEDI_CUDA_TRY(moedi_cuda_device_alloc(e, MOEDI_CUDA_WORKSPACE, &e->workspace));
    if (a->bias) set(p->product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, a->bias);
    const cublasStatus_t status =
        moedi_cublas.cublasLtMatmul(e->blas, p->product, &one, a->b, p->a, a->a, p->b, &beta, a->accumulate ? addend_of(a) : a->c,
                                    p->c, a->c, p->c, &p->algorithm, e->workspace, p->workspace, e->stream);
    if (status == CUBLAS_STATUS_SUCCESS) return MOED_OK;
    return moedi_cuda_fail(e, MOED_E_DEVICE, "cuda:%d: a product of (%lld, %lld, %lld): %s", e->device, (long long)a->m,
                           (long long)a->n, (long long)a->k, moedi_cublas.cublasLtGetStatusString(status));
}

/* c = [addend] [+ bias] where nothing is summed over. */
template <typename T, typename C>
__global__ void fill_kernel(C *c, const C *addend, const T *bias, int64_t m, int64_t n, int64_t ldc)
{
    const int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= m * n) return;
    const int64_t at = i / n * ldc + i % n;
    c[at] = (C)((addend ? (float)addend[at] : 0.0f) + (bias ? (float)bias[i % n] : 0.0f));
}

template <typename T> moed_status moedi_cuda_gemm(moedi_cuda *e, const moed_op_gemm *a)
{
    if (a->m <= 0 || a->n <= 0) return MOED_OK;
    const unsigned blocks = (unsigned)moedi_cuda_ceil(a->m * a->n, 256);
    const void *addend = a->accumulate ? addend_of(a) : nullptr;
    if (a->k <= 0 && a->wide_c)
        return moedi_cuda_launch(e, fill_kernel<T, float>, blocks, 256, 0, static_cast<float *>(a->c),
                                 static_cast<const float *>(addend), static_cast<const T *>(nullptr), a->m, a->n, a->ldc);
    if (a->k <= 0)
        return moedi_cuda_launch(e, fill_kernel<T, T>, blocks, 256, 0, static_cast<T *>(a->c), static_cast<const T *>(addend),
                                 static_cast<const T *>(a->bias), a->m, a->n, a->ldc);
    return multiply(e, a, sizeof(T) == 2 ? CUDA_R_16BF : CUDA_R_32F);
}
MOEDI_CUDA_DEFINED(gemm, gemm)

moed_status moedi_cuda_gemm_halves(moedi_cuda *e, const moed_op_gemm *a)
{
    return multiply(e, a, CUDA_R_16F);
}
