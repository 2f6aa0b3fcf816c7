/* cuda/datacenter/attention_absent.cu - in place of attention_cudnn.cpp where the headers of cuDNN are not installed. */
#include "../common/operations.h"

moed_status moedi_cuda_attention_cudnn(moedi_cuda *, const moed_op_attention *)
{
    return MOED_E_UNSUPPORTED;
}

moed_status moedi_cuda_attention_backward_cudnn(moedi_cuda *, const moed_op_attention *)
{
    return MOED_E_UNSUPPORTED;
}

size_t moedi_cuda_attention_cudnn_room(const moed_workload *)
{
    return 0;
}

void moedi_cuda_attention_forget(moedi_cuda *)
{
}
