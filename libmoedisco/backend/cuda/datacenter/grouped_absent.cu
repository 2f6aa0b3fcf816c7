/* cuda/datacenter/grouped_absent.cu - in place of grouped_sm90.cu where no code for Hopper is built: no shape is ours. */
#include "../common/operations.h"

moed_status moedi_cuda_grouped_sm90(moedi_cuda *, const moed_op_grouped_gemm *)
{
    return MOED_E_UNSUPPORTED;
}

size_t moedi_cuda_grouped_sm90_room(const moed_workload *)
{
    return 0;
}
