/* tests/plugins/fake.c - a backend plug-in whose device memory no host code can touch: every pointer it hands out carries a tag
 * that makes it an invalid address, and every operation takes the tag off before it calls the CPU's reference. What runs on it
 * respects the border between host and device, without a device. It also refuses host pointers where device pointers belong. */
#include <string.h>

#include "backend/cpu/cpu.h"

#define TAG UINT64_C(0x5A5) /* upper 12 bits; no address, count or sensible double has them */

static int is_tagged(uint64_t word)
{
    return word >> 52 == TAG;
}

static void *tag(void *memory)
{
    return (void *)(uintptr_t)((uint64_t)(uintptr_t)memory | TAG << 52);
}

static void *untag(const void *memory)
{
    return (void *)(uintptr_t)((uint64_t)(uintptr_t)memory & ((UINT64_C(1) << 52) - 1));
}

static moed_status fail(void *self, const char *sentence)
{
    const moed_host_api *host = ((moedi_cpu *)self)->host;
    return host->fail(host->self, MOED_E_DEVICE, sentence);
}

/* Takes the tags off all pointers of an argument struct; a bare host address among them is a fault of the caller. */
static int untag_arguments(void *arguments, size_t size)
{
    for (size_t at = 0; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, (char *)arguments + at, 8);
        if (is_tagged(word)) {
            word &= (UINT64_C(1) << 52) - 1;
            memcpy((char *)arguments + at, &word, 8);
        } else if (word >> 32 >= 0x5000 && word >> 32 < 0x8000) {
            return 0;
        }
    }
    return 1;
}

#define OPERATIONS(X)                                                                                                       \
    X(embedding, embedding) X(embedding_backward, embedding) X(rmsnorm, rmsnorm) X(rmsnorm_backward, rmsnorm) X(gemm, gemm)   \
    X(grouped_gemm, grouped_gemm) X(bias_backward, bias_backward) X(rope, rope) X(attention, attention)                       \
    X(attention_backward, attention) X(swiglu, swiglu) X(swiglu_backward, swiglu) X(router, router) X(router_backward, router) \
    X(dispatch, dispatch) X(gather, gather) X(gather_backward, gather) X(combine, combine) X(combine_backward, combine)       \
    X(sigmoid_gate, sigmoid_gate) X(sigmoid_gate_backward, sigmoid_gate) X(cross_entropy, cross_entropy) X(sum, sum) X(add, add) \
    X(embed_mean, embed_mean) X(kmeans_assign, kmeans_assign) X(kmeans_accumulate, kmeans_accumulate)

#define WRAP(slot, arguments)                                                                                   \
    static moed_status slot(void *self, const moed_op_##arguments *a)                                           \
    {                                                                                                           \
        moed_op_##arguments bare = *a;                                                                          \
        if (!untag_arguments(&bare, sizeof bare)) return fail(self, #slot " was given host memory");            \
        return moedi_reference_f32.slot(self, &bare);                                                           \
    }
OPERATIONS(WRAP)

/* The slices are a host array of device pointers. */
static moed_status update(void *self, const moed_op_update *a, moed_status (*operation)(void *, const moed_op_update *))
{
    enum { MOST = 4096 };
    static _Thread_local moed_op_slice slices[MOST];
    moed_op_update bare = *a;
    if (a->count > MOST) return fail(self, "more slices than this test's backend takes");
    for (int64_t i = 0; i < a->count; i++) {
        slices[i] = a->slices[i];
        if (!untag_arguments(&slices[i], sizeof slices[i])) return fail(self, "a slice is host memory");
    }
    if (!is_tagged((uint64_t)(uintptr_t)a->scalars)) return fail(self, "the step scalars are host memory");
    bare.slices = slices;
    bare.scalars = untag(a->scalars);
    return operation(self, &bare);
}

static moed_status gradient_norm(void *self, const moed_op_update *a)
{
    return update(self, a, moedi_reference_f32.gradient_norm);
}

static moed_status adamw(void *self, const moed_op_update *a)
{
    return update(self, a, moedi_reference_f32.adamw);
}

static moed_status alloc(void *self, size_t size, void **out)
{
    void *memory;
    const moed_status status = moedi_cpu_alloc(self, size, &memory);
    if (status == MOED_OK) *out = tag(memory);
    return status;
}

static void release(void *self, void *memory)
{
    moedi_cpu_free(self, memory ? untag(memory) : NULL);
}

#define DEVICE(p) is_tagged((uint64_t)(uintptr_t)(p))

static moed_status upload(void *self, void *device, const void *host, size_t size)
{
    if (size && (!DEVICE(device) || DEVICE(host))) return fail(self, "upload goes from host to device");
    return moedi_cpu_copy(self, untag(device), host, size);
}

static moed_status download(void *self, void *host, const void *device, size_t size)
{
    if (size && (DEVICE(host) || !DEVICE(device))) return fail(self, "download goes from device to host");
    return moedi_cpu_copy(self, host, untag(device), size);
}

static moed_status copy(void *self, void *to, const void *from, size_t size)
{
    if (size && (!DEVICE(to) || !DEVICE(from))) return fail(self, "copy goes from device to device");
    return moedi_cpu_copy(self, untag(to), untag(from), size);
}

static moed_status zero(void *self, void *device, size_t size)
{
    if (size && !DEVICE(device)) return fail(self, "zero works on device memory");
    return moedi_cpu_zero(self, untag(device), size);
}

static moed_status device(const moed_host_api *host, int32_t index, moed_device_info *out)
{
    host->log(host->self, MOED_LOG_DEBUG, "a device is asked about"); /* every function of the host is there, in a listing too */
    if (index > 1) return MOED_E_RANGE;
    strcpy(out->name, index ? "fake:1" : "fake:0");
    strcpy(out->description, "memory that no host code can touch");
    if (index) strcpy(out->reason, "it is there to be refused");
    return MOED_OK;
}

static const moed_backend table;

static moed_status open_engine(const moed_host_api *host, const moed_backend_config *config, void **self,
                               const moed_backend **chosen)
{
    moed_backend_config plain = *config;
    const moed_backend *ignored;
    plain.device = 0;
    plain.kernels = "reference";
    *chosen = &table;
    return moedi_cpu_open(host, &plain, self, &ignored);
}

static moed_status info(void *self, moed_backend_info *out)
{
    const moed_status status = moedi_reference_f32.info(self, out);
    out->host_memory = 0;
    strcpy(out->kernels, "fake");
    strcpy(out->reason, "the only ones");
    return status;
}

static const moed_backend table = {
    .struct_size = sizeof table,
    .abi = MOED_BACKEND_ABI,
    .name = "fake",
    .device = device,
    .open = open_engine,
    .close = moedi_cpu_close,
    .info = info,
    .alloc = alloc,
    .free = release,
    .upload = upload,
    .download = download,
    .copy = copy,
    .zero = zero,
    .synchronize = moedi_cpu_synchronize,
    .gradient_norm = gradient_norm,
    .adamw = adamw,
#define SLOT(slot, arguments) .slot = slot,
    OPERATIONS(SLOT)
};

MOED_API const moed_backend *moed_backend_entry_v1(const moed_host_api *host);
const moed_backend *moed_backend_entry_v1(const moed_host_api *host)
{
    return host->abi == MOED_BACKEND_ABI ? &table : NULL;
}
