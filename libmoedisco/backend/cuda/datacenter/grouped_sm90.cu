/* cuda/datacenter/grouped_sm90.cu - products of groups on Hopper, in bf16 with float sums: CUTLASS' persistent kernels, one
 * launch for all groups. Sizes and addresses of the groups are written on the device, from the offsets that only it knows. */
#define NDEBUG 1 /* CUTLASS asserts in its kernels */

#include <climits>

#include "cutlass/device_kernel.h"
#include "cutlass/epilogue/collective/collective_builder.hpp"
#include "cutlass/gemm/collective/collective_builder.hpp"
#include "cutlass/gemm/group_array_problem_shape.hpp"
#include "cutlass/gemm/kernel/gemm_universal.hpp"

#include "../common/operations.h"

namespace {

using cute::_1, cute::_2, cute::_64, cute::_128, cute::Shape;
using real = cutlass::bfloat16_t;
using row_major = cutlass::layout::RowMajor;
using column_major = cutlass::layout::ColumnMajor;
using group_size = Shape<int, int, int>; /* m, n, k */
using group_sizes = cutlass::gemm::GroupProblemShape<group_size>;

/* In reals: the copy engine wants addresses and strides to be multiples of 16 bytes. */
enum : int { ALIGNMENT = 16 / sizeof(real) };

/* One entry per group each, on the device. */
struct tables {
    group_size *sizes;
    const real **a, **b;
    real **c;
    int64_t *lda, *ldb, *ldc;
};

/* A block's two groups of warps have a tile of c each, and multiply and store in turns ("pingpong"). Two blocks, one above the
 * other, share what they read of b. Tile is a parameter for nvcc's sake: it stumbles over CUTLASS' types that depend on none. */
template <class LayoutA, class LayoutB, class Tile = Shape<_128, _128, _64>> struct product {
    using cluster = Shape<_2, _1, _1>;
    using epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Tile, cluster, cutlass::epilogue::collective::EpilogueTileAuto,
        float, float, real, row_major *, ALIGNMENT, real, row_major *, ALIGNMENT,
        cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong,
        cutlass::epilogue::fusion::LinearCombination<real, float>>::CollectiveOp;
    using mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
        cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, real, LayoutA *, ALIGNMENT, real, LayoutB *, ALIGNMENT, float, Tile,
        cluster, cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(sizeof(typename epilogue::SharedStorage))>,
        cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong>::CollectiveOp;
    using kernel = cutlass::gemm::kernel::GemmUniversal<group_sizes, mainloop, epilogue>;
    using scheduler = typename kernel::TileScheduler;
    using stride_a = typename kernel::InternalStrideA;
    using stride_b = typename kernel::InternalStrideB;
    using stride_c = typename kernel::InternalStrideC;
    static_assert(sizeof(stride_a) == 8 && sizeof(stride_b) == 8 && sizeof(stride_c) == 8, "one number; constants take no room");

    static moed_status run(moedi_cuda *e, const moed_op_grouped_gemm *a);
    static size_t room(int64_t groups);
};

/* Scratch of a product; returns CUTLASS' part of it, a descriptor or two of each multiprocessor. */
char *lay(moedi_cuda_pieces *pieces, tables *t, int64_t groups, size_t workspace)
{
    t->sizes = pieces->take<group_size>(groups);
    t->a = pieces->take<const real *>(groups), t->b = pieces->take<const real *>(groups), t->c = pieces->take<real *>(groups);
    t->lda = pieces->take<int64_t>(groups), t->ldb = pieces->take<int64_t>(groups), t->ldc = pieces->take<int64_t>(groups);
    return pieces->take<char>(int64_t(workspace));
}

/* Fills the tables. The groups without rows are no products; of a reduction, their c is zeroed here. */
__global__ void prepare_kernel(moed_op_grouped_gemm a, tables t)
{
    const int64_t g = blockIdx.x, from = a.offsets[g], count = a.offsets[g + 1] - from;
    real *const c = static_cast<real *>(a.c) + (a.reduce ? g * a.stride_c : from * a.ldc);
    if (blockIdx.y == 0 && threadIdx.x == 0) {
        const int64_t m = a.reduce && count ? a.m : count, k = a.reduce ? count : a.k;
        t.sizes[g] = group_size(int(m), int(a.n), int(k));
        t.a[g] = static_cast<const real *>(a.a) + from * a.lda;
        t.b[g] = static_cast<const real *>(a.b) + (a.reduce ? from * a.ldb : g * a.stride_b);
        t.c[g] = c;
        t.lda[g] = a.lda, t.ldb[g] = a.ldb, t.ldc[g] = a.ldc;
    }
    if (!a.reduce || a.accumulate || count) return;
    for (int64_t row = blockIdx.y; row < a.m; row += gridDim.y)
        for (int64_t column = threadIdx.x; column < a.n; column += blockDim.x) c[row * a.ldc + column] = real(0);
}

template <class LayoutA, class LayoutB, class Tile>
moed_status product<LayoutA, LayoutB, Tile>::run(moedi_cuda *e, const moed_op_grouped_gemm *a)
{
    typename kernel::Arguments arguments{};
    arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
    arguments.problem_shape.num_groups = int(a->groups);
    arguments.epilogue.thread.alpha = 1, arguments.epilogue.thread.beta = a->accumulate ? 1 : 0;
    arguments.hw_info.device_id = e->device, arguments.hw_info.sm_count = e->properties.multiProcessorCount;
    /* along n: blocks at work at one time read few rows of a, and the b of one group */
    arguments.scheduler.raster_order = scheduler::RasterOrderOptions::AlongN;
    const size_t workspace_size = kernel::get_workspace_size(arguments);

    tables t;
    char *workspace = nullptr;
    MOEDI_CUDA_TRY(
        moedi_cuda_lay(e, [&](moedi_cuda_pieces &pieces) { workspace = lay(&pieces, &t, a->groups, workspace_size); }));
    arguments.problem_shape.problem_shapes = t.sizes;
    arguments.mainloop = {t.a, reinterpret_cast<stride_a *>(t.lda), t.b, reinterpret_cast<stride_b *>(t.ldb)};
    arguments.epilogue.ptr_C = const_cast<const real **>(t.c), arguments.epilogue.ptr_D = t.c;
    arguments.epilogue.dC = arguments.epilogue.dD = reinterpret_cast<stride_c *>(t.ldc);

    const unsigned zeroing = a->reduce && !a->accumulate ? 16 : 1; /* blocks a group */
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, prepare_kernel, dim3(unsigned(a->groups), zeroing), 256, 0, *a, t));
    const auto entry = cutlass::device_kernel<kernel>;
    const int shared = kernel::SharedStorageSize;
    MOEDI_CUDA_CHECK(e, cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    const typename kernel::Params parameters = kernel::to_underlying_arguments(arguments, workspace);
    cudaLaunchAttribute together = {};
    together.id = cudaLaunchAttributeClusterDimension;
    together.val.clusterDim = {cute::size<0>(cluster{}), cute::size<1>(cluster{}), 1};
    cudaLaunchConfig_t config = {};
    config.gridDim = kernel::get_grid_shape(parameters), config.blockDim = kernel::get_block_shape();
    config.dynamicSmemBytes = shared, config.stream = e->stream, config.attrs = &together, config.numAttrs = 1;
    MOEDI_CUDA_CHECK(e, cudaLaunchKernelEx(&config, entry, parameters));
    return MOED_OK;
}

template <class LayoutA, class LayoutB, class Tile> size_t product<LayoutA, LayoutB, Tile>::room(int64_t groups)
{
    typename kernel::Arguments arguments{};
    arguments.hw_info.sm_count = 2 * 132; /* no Hopper has half as many */
    tables t;
    moedi_cuda_pieces pieces;
    lay(&pieces, &t, groups, kernel::get_workspace_size(arguments));
    return pieces.used;
}

/* What the copy engine can address: it reads nothing past a row's end, but writes whole 16 bytes. Sizes are int to CUTLASS. */
bool is_ours(const moedi_cuda *e, const moed_op_grouped_gemm *a)
{
    const uintptr_t addresses = uintptr_t(a->a) | uintptr_t(a->b) | uintptr_t(a->c);
    const int64_t widths = a->n | (a->reduce ? a->m : a->k); /* of rows in memory */
    const int64_t strides = a->lda | a->ldb | a->ldc | (a->reduce ? a->stride_c : a->stride_b);
    return e->properties.major == 9 && a->k > 0 && a->m <= INT_MAX && a->n <= INT_MAX && a->k <= INT_MAX && addresses % 16 == 0 &&
           (widths | strides) % ALIGNMENT == 0;
}

} // namespace

moed_status moedi_cuda_grouped_sm90(moedi_cuda *e, const moed_op_grouped_gemm *a)
{
    if (!is_ours(e, a)) return MOED_E_UNSUPPORTED;
    if (a->reduce) return product<column_major, row_major>::run(e, a);
    return a->transpose_b ? product<row_major, column_major>::run(e, a) : product<row_major, row_major>::run(e, a);
}

size_t moedi_cuda_grouped_sm90_room(const moed_workload *w)
{
    const size_t forward = product<row_major, column_major>::room(w->experts);
    const size_t backward = product<row_major, row_major>::room(w->experts);
    const size_t reduction = product<column_major, row_major>::room(w->experts);
    const size_t most = forward > backward ? forward : backward;
    return most > reduction ? most : reduction;
}
