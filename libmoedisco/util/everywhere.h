/* util/everywhere.h - inline functions that kernels of a GPU share with the host. */
#ifndef MOEDI_EVERYWHERE_H
#define MOEDI_EVERYWHERE_H

#ifdef __CUDACC__
#define MOEDI_EVERYWHERE static inline __host__ __device__
#define MOEDI_UNROLL(times) /* nvcc does so by itself */
#else
#define MOEDI_PRAGMA(text) _Pragma(#text)
#define MOEDI_EVERYWHERE static inline
#define MOEDI_UNROLL(times) MOEDI_PRAGMA(GCC unroll times)
#endif

#endif
