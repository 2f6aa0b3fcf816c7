/* fast/table.c - the table of this instruction set. */
#include "fast.h"

#define SLOT(slot, type) .slot = MOEDI_VARIED(slot),
const moed_backend MOEDI_VARIED(fast) = {
    .struct_size = sizeof(moed_backend),
    .abi = MOED_BACKEND_ABI,
    .name = "cpu",
    .device = moedi_cpu_device,
    .open = moedi_cpu_open,
    .close = moedi_cpu_close,
    .info = moedi_cpu_info_f32,
    .alloc = moedi_cpu_alloc,
    .free = moedi_cpu_free,
    .upload = moedi_cpu_upload,
    .download = moedi_cpu_download,
    .copy = moedi_cpu_copy,
    .zero = moedi_cpu_zero,
    .synchronize = moedi_cpu_synchronize,
    MOEDI_FAST_OPERATIONS(SLOT)
    .balance = moedi_balance_f32, /* the reference's: its bits are stated */
};
