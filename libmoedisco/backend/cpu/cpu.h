/* backend/cpu/cpu.h - the CPU backend: one engine, several operation tables (kernel sets). */
#ifndef MOEDI_CPU_H
#define MOEDI_CPU_H

#include "moedisco/sys/backend.h"

/* reference/ and fast/ are compiled once per variant (Makefile): every external name in them carries the variant, so that all
 * live side by side in one library. MOEDI_VARIED(gemm) is moedi_gemm_v3 in the v3 objects. */
#define MOEDI_JOIN_(name, variant) moedi_##name##_##variant
#define MOEDI_JOIN(name, variant) MOEDI_JOIN_(name, variant)
#ifdef MOEDI_VARIANT
#define MOEDI_VARIED(name) MOEDI_JOIN(name, MOEDI_VARIANT)
#endif

typedef struct moedi_cpu {
    const moed_host_api *host;
    void *scratch;           /* grows to the largest need, kept until close */
    size_t scratch_size;
    int64_t limit, in_use;   /* bytes of device memory; limit 0 = none */
    const char *kernels;     /* name of the kernel set; static */
    const char *reason;      /* why it was taken; static */
} moedi_cpu;

/* At least `size` bytes aligned to 64, valid until the next call on this engine. */
moed_status moedi_cpu_scratch(moedi_cpu *e, size_t size, void **out);

/* Pieces of scratch for so many tasks: for more than can run at a time on this machine, but not for all. */
int64_t moedi_cpu_slices(int64_t tasks);

/* Devices and memory: the first slots of every CPU table. */
moed_status moedi_cpu_device(const moed_host_api *host, int32_t index, moed_device_info *out);
moed_status moedi_cpu_open(const moed_host_api *host, const moed_backend_config *config, void **self, const moed_backend **table);
void moedi_cpu_close(void *self);
moed_status moedi_cpu_alloc(void *self, size_t size, void **out);
void moedi_cpu_free(void *self, void *memory);
moed_status moedi_cpu_copy(void *self, void *to, const void *from, size_t size); /* upload and download too */
moed_status moedi_cpu_upload(void *self, void *device, const void *host, size_t size);
moed_status moedi_cpu_download(void *self, void *host, const void *device, size_t size);
moed_status moedi_cpu_zero(void *self, void *device, size_t size);
moed_status moedi_cpu_synchronize(void *self);
/* Of every kernel set: those that take less are counted as if they took as much. */
int64_t moedi_cpu_workspace(const moed_workload *w);
moed_status moedi_cpu_info_f32(void *self, moed_backend_info *out);
moed_status moedi_cpu_info_f64(void *self, moed_backend_info *out);
moed_status moedi_balance_f32(void *self, const moed_op_balance *a);

/* Where row `row` begins in an array whose whole rows lie `stride` apart. */
static inline int64_t moedi_norm_row(const moed_op_rmsnorm *a, int64_t row, int64_t stride)
{
    return a->parts ? row / a->parts * stride + row % a->parts * a->width : row * a->width;
}

/* The tables: plain operations in float and double, fast ones per instruction set. */
extern const moed_backend moedi_reference_f32, moedi_reference_f64;
extern const moed_backend moedi_fast_v2, moedi_fast_v3, moedi_fast_v4, moedi_fast_neon;

/* The backend that is built in ("cpu"): what the registry lists first. open returns one of the tables above. */
extern const moed_backend moedi_cpu_backend;

#endif
