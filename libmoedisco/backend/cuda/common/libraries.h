/* cuda/common/libraries.h - NVIDIA's libraries, loaded at run time: what only lists devices needs none of them, and a machine
 * that lacks one gets a sentence. Their functions keep their names. */
#ifndef MOEDI_CUDA_LIBRARIES_H
#define MOEDI_CUDA_LIBRARIES_H

#include <cublasLt.h>
#ifdef MOEDI_CUDNN
#include <cudnn.h>
#endif

#include "moedisco/sys/backend.h"

#define MOEDI_CUDA_CUBLAS(X)                                                                                              \
    X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtGetStatusString) X(cublasLtMatmul) X(cublasLtMatmulAlgoGetHeuristic)   \
    X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) X(cublasLtMatmulDescSetAttribute)                            \
    X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) X(cublasLtMatmulPreferenceSetAttribute)          \
    X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy)

#define MOEDI_CUDA_CUDNN(X)                                                                                               \
    X(cudnnCreate) X(cudnnDestroy) X(cudnnSetStream) X(cudnnGetStream) X(cudnnGetVersion) X(cudnnGetErrorString)          \
    X(cudnnGetLastErrorString) X(cudnnBackendCreateDescriptor) X(cudnnBackendDestroyDescriptor) X(cudnnBackendExecute)    \
    X(cudnnBackendFinalize) X(cudnnBackendGetAttribute) X(cudnnBackendSetAttribute)

/* Loads what every engine needs and is not yet loaded. MOED_E_BACKEND naming the file that does not load. Libraries stay.
 * Threads: any. */
moed_status moedi_cuda_libraries(const moed_host_api *host);
/* Loads cuDNN, which engines can do without: false where it does not load, and the first time the log says why. Threads: any. */
bool moedi_cuda_load_cudnn(const moed_host_api *host);

/* The loaded functions in place of those that a linker would bind. */
struct moedi_cuda_cublas {
#define MOEDI_CUDA_MEMBER(name) decltype(&::name) name;
    MOEDI_CUDA_CUBLAS(MOEDI_CUDA_MEMBER)
};
extern moedi_cuda_cublas moedi_cublas;
#ifdef MOEDI_CUDNN
struct moedi_cuda_cudnn {
    MOEDI_CUDA_CUDNN(MOEDI_CUDA_MEMBER)
};
extern moedi_cuda_cudnn moedi_cudnn;
#endif

#endif
