/* util/item.h - what an element takes, for code that is linked without the library (plug-ins, kernels) and so lacks dtype.c's
 * table. */
#ifndef MOEDI_ITEM_H
#define MOEDI_ITEM_H

#include "moedisco/base.h"
#include "util/everywhere.h"

/* Bytes; 0 below a byte and unknown, as moedi_dtype_size says. */
MOEDI_EVERYWHERE int64_t moedi_item_bytes(int32_t dtype)
{
    switch (dtype) {
    case MOED_DTYPE_C64:
    case MOED_DTYPE_F64:
    case MOED_DTYPE_I64:
    case MOED_DTYPE_U64: return 8;
    case MOED_DTYPE_F32:
    case MOED_DTYPE_I32:
    case MOED_DTYPE_U32: return 4;
    case MOED_DTYPE_F16:
    case MOED_DTYPE_BF16:
    case MOED_DTYPE_I16:
    case MOED_DTYPE_U16: return 2;
    case MOED_DTYPE_U8:
    case MOED_DTYPE_I8:
    case MOED_DTYPE_BOOL:
    case MOED_DTYPE_F8_E4M3:
    case MOED_DTYPE_F8_E5M2:
    case MOED_DTYPE_F8_E8M0: return 1;
    default: return 0;
    }
}

#endif
