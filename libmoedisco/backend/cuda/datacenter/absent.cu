#include "../common/operations.h"
moed_status moedi_cuda_grouped_sm90(moedi_cuda *, const moed_op_grouped_gemm *) { return MOED_E_UNSUPPORTED; }
