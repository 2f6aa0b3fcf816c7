/* cuda/datacenter/kmeans_assign_absent.cu - in place of kmeans_assign_sm90.cu where no code for Hopper is built: no shape is
 * ours. */
#include "../common/operations.h"

moed_status moedi_cuda_kmeans_assign_sm90(moedi_cuda *, const moed_op_kmeans_assign *)
{
    return MOED_E_UNSUPPORTED;
}
