/* tests/plugins/old.c - a plug-in built for another backend interface: must be listed with the reason and never used. */
#include "moedisco/sys/backend.h"

static const moed_backend table = {.struct_size = 64, .abi = MOED_BACKEND_ABI + 1, .name = "old"};

MOED_API const moed_backend *moed_backend_entry_v1(const moed_host_api *host);
const moed_backend *moed_backend_entry_v1(const moed_host_api *host)
{
    (void)host;
    return &table;
}
