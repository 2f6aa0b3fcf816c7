/* bench_grouped - the CUDA plug-in's products of groups, in bf16 on device 0: the fast ones against the plain kernel, bit by bit,
 * then their time. Numbers of the checks are small integers, whose sums are exact in float whatever their order. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <algorithm>
#include <vector>

#include "backend/cuda/common/numbers.cuh"

extern "C" const moed_backend *moed_backend_entry_v1(const moed_host_api *host);

namespace {

enum use { FORWARD, BACKWARD, WEIGHTS }; /* a b^T, a b, a^T b */

void must(bool good, const char *what)
{
    if (good) return;
    fprintf(stderr, "bench_grouped: %s: %s\n", what, cudaGetErrorString(cudaGetLastError()));
    exit(1);
}

/* ---- a host that does no more than the plug-in asks of it here ---- */
moed_status host_alloc(void *, size_t size, void **out)
{
    return (*out = aligned_alloc(64, (size + 63) / 64 * 64)) ? MOED_OK : MOED_E_MEMORY;
}
void host_free(void *, void *memory)
{
    free(memory);
}
moed_status host_fail(void *, moed_status status, const char *sentence)
{
    fprintf(stderr, "bench_grouped: %s\n", sentence);
    return status;
}

struct backend {
    const moed_backend *table;
    moedi_cuda *engine;
    moed_status product(const moed_op_grouped_gemm &a) const
    {
        return table->grouped_gemm(engine, &a);
    }
};

template <typename T> struct memory {
    T *at = nullptr;
    size_t count;
    explicit memory(size_t n) : count(n)
    {
        must(cudaMalloc(&at, n * sizeof(T)) == cudaSuccess, "device memory");
    }
    memory(const memory &) = delete;
    ~memory()
    {
        cudaFree(at);
    }
};

__host__ __device__ uint32_t scramble(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return uint32_t((x ^ (x >> 31)) >> 16);
}
/* small integers, or numbers of about a normal distribution */
__global__ void fill_kernel(bf16 *to, size_t count, uint64_t seed, bool integers)
{
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
        const uint32_t x = scramble((seed << 40) + i + 1);
        const float sum = (x & 255) + (x >> 8 & 255) + (x >> 16 & 255) + (x >> 24);
        to[i] = __float2bfloat16(integers ? int(x % 9) - 4.0f : (sum - 510.0f) / 148.0f);
    }
}
__global__ void differ_kernel(const bf16 *x, const bf16 *y, size_t count, unsigned *different)
{
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x)
        if (__bfloat16_as_ushort(x[i]) != __bfloat16_as_ushort(y[i])) atomicAdd(different, 1);
}
void fill(const backend &b, bf16 *to, size_t count, uint64_t seed, bool integers)
{
    fill_kernel<<<1024, 256, 0, b.engine->stream>>>(to, count, seed, integers);
}

/* ---- sizes of groups ---- */

std::vector<int64_t> offsets_of(const std::vector<int64_t> &sizes)
{
    std::vector<int64_t> offsets(1, 0);
    for (int64_t size : sizes) offsets.push_back(offsets.back() + size);
    return offsets;
}
std::vector<int64_t> even(int64_t groups, int64_t rows)
{
    return std::vector<int64_t>(groups, rows / groups);
}
/* The largest has about five times the mean, the smallest a fourth, in no order. */
std::vector<int64_t> skewed(int64_t groups, int64_t rows)
{
    std::vector<int64_t> sizes;
    double sum = 0;
    for (int64_t g = 0; g < groups; g++) sum += pow(g + 1.0, -0.6);
    for (int64_t g = 0; g < groups; g++) sizes.push_back(int64_t(rows * pow((g * 37 % groups) + 1.0, -0.6) / sum));
    int64_t rest = rows;
    for (int64_t size : sizes) rest -= size;
    sizes.back() += rest;
    return sizes;
}
/* A third empty, a third of one row, the others of up to `most`. */
std::vector<int64_t> ragged(int64_t groups, int64_t most, uint64_t seed)
{
    std::vector<int64_t> sizes;
    for (int64_t g = 0; g < groups; g++) {
        const uint32_t x = scramble(seed * 1000 + g + 7);
        sizes.push_back(x % 3 == 0 ? 0 : x % 3 == 1 ? 1 : (x >> 8) % most + 1);
    }
    return sizes;
}
std::vector<int64_t> all_in(int64_t groups, int64_t which, int64_t rows)
{
    std::vector<int64_t> sizes(groups, 0);
    sizes[which] = rows;
    return sizes;
}

/* ---- products ---- */

/* A weight (out, in) for each group; its matrices' rows start a multiple of 8 elements, and `pad` more, apart. */
struct layer {
    const char *name;
    int64_t out, in, pad;
    int64_t stride(int64_t width) const
    {
        return moedi_cuda_ceil(width, 8) * 8 + pad;
    }
};

moed_op_grouped_gemm describe(const layer &l, use u, int64_t groups, int64_t rows, int accumulate)
{
    moed_op_grouped_gemm a = {};
    a.groups = groups, a.accumulate = accumulate;
    if (u == FORWARD) a.m = rows, a.n = l.out, a.k = l.in, a.transpose_b = 1;
    if (u == BACKWARD) a.m = rows, a.n = l.in, a.k = l.out;
    if (u == WEIGHTS) a.m = l.out, a.n = l.in, a.k = rows, a.reduce = 1;
    a.lda = l.stride(a.reduce ? a.m : a.k), a.ldb = l.stride(a.transpose_b ? a.k : a.n), a.ldc = l.stride(a.n);
    a.stride_b = (a.transpose_b ? a.n : a.k) * a.ldb, a.stride_c = a.m * a.ldc;
    return a;
}

/* The plain kernel takes what is off by one element. Everything of c is compared, what lies between its rows too. */
bool check(const backend &b, const layer &l, use u, const std::vector<int64_t> &sizes, int accumulate)
{
    const std::vector<int64_t> offsets = offsets_of(sizes);
    const int64_t groups = (int64_t)sizes.size(), rows = offsets.back();
    moed_op_grouped_gemm a = describe(l, u, groups, rows, accumulate);
    const size_t size_a = rows * a.lda, size_b = a.reduce ? rows * a.ldb : groups * a.stride_b;
    const size_t size_c = a.reduce ? groups * a.stride_c : rows * a.ldc;
    memory<int64_t> at(offsets.size());
    memory<bf16> left(size_a + 8), right(size_b + 8), c(size_c + 8), again(size_c + 8), plain(size_c + 8);
    memory<unsigned> different(2);
    must(cudaMemcpy(at.at, offsets.data(), offsets.size() * 8, cudaMemcpyHostToDevice) == cudaSuccess, "offsets");
    cudaMemset(different.at, 0, 2 * sizeof(unsigned));
    cudaDeviceSynchronize();
    a.offsets = at.at;
    for (int shift = 0; shift < 2; shift++) {
        fill(b, left.at + shift, size_a, 1, true), fill(b, right.at + shift, size_b, 2, true);
        a.a = left.at + shift, a.b = right.at + shift;
        for (bf16 *to : {shift ? plain.at + 1 : c.at, shift ? nullptr : again.at}) {
            if (!to) continue;
            fill(b, to, size_c, 3, true);
            a.c = to;
            must(b.product(a) == MOED_OK, "product");
        }
    }
    differ_kernel<<<256, 256, 0, b.engine->stream>>>(c.at, plain.at + 1, size_c, different.at);
    differ_kernel<<<256, 256, 0, b.engine->stream>>>(c.at, again.at, size_c, different.at + 1);
    unsigned counts[2];
    must(cudaStreamSynchronize(b.engine->stream) == cudaSuccess, "check");
    must(cudaMemcpy(counts, different.at, sizeof counts, cudaMemcpyDeviceToHost) == cudaSuccess, "check");
    if (counts[0] || counts[1])
        printf("WRONG use %d, %lld groups, %lld rows, %lld x %lld + %lld, accumulate %d: %u of %zu differ, %u from run to run\n",
               u, (long long)groups, (long long)rows, (long long)l.out, (long long)l.in, (long long)l.pad, accumulate, counts[0],
               size_c, counts[1]);
    return counts[0] == 0 && counts[1] == 0;
}

int check_all(const backend &b)
{
    int wrong = 0, done = 0;
    const layer layers[] = {{"", 64, 64, 0},   {"", 136, 72, 8}, {"", 1408, 256, 0}, {"", 256, 1408, 64},
                            {"", 520, 328, 0}, {"", 77, 131, 0}, {"", 300, 7, 3}};
    const std::vector<int64_t> cases[] = {even(1, 300),       all_in(5, 2, 700),   all_in(40, 39, 1),
                                          ragged(7, 400, 1),  ragged(33, 300, 2),  ragged(512, 40, 3),
                                          even(512, 512),     skewed(64, 4096),    all_in(3, 0, 5)};
    for (use u : {FORWARD, BACKWARD, WEIGHTS})
        for (int accumulate = 0; accumulate < 2; accumulate++)
            for (const layer &l : layers)
                for (const auto &sizes : cases) done++, wrong += !check(b, l, u, sizes, accumulate);
    printf("checks: %d done, %d wrong\n", done, wrong);
    return wrong;
}

double time_product(const backend &b, const moed_op_grouped_gemm &a)
{
    enum { WARM = 3, TIMES = 20 };
    cudaEvent_t events[TIMES + 1];
    for (cudaEvent_t &event : events) cudaEventCreate(&event);
    for (int i = 0; i < WARM; i++) must(b.product(a) == MOED_OK, "product");
    cudaEventRecord(events[0], b.engine->stream);
    for (int i = 0; i < TIMES; i++) {
        must(b.product(a) == MOED_OK, "product");
        cudaEventRecord(events[i + 1], b.engine->stream);
    }
    must(cudaStreamSynchronize(b.engine->stream) == cudaSuccess, "time");
    std::vector<float> each(TIMES);
    for (int i = 0; i < TIMES; i++) cudaEventElapsedTime(&each[i], events[i], events[i + 1]);
    for (cudaEvent_t &event : events) cudaEventDestroy(event);
    std::sort(each.begin(), each.end());
    return each[TIMES / 2];
}

void time_all(const backend &b)
{
    const layer layers[] = {{"gate", 1408, 2048, 0}, {"gate+up", 2816, 2048, 0}, {"down", 2048, 1408, 0}};
    const struct {
        int64_t groups, rows;
    } batches[] = {{64, 131072}, {4, 16384}};
    const size_t most = size_t(131072) * 2816;
    memory<bf16> left(most), right(most), c(most);
    memory<int64_t> at(65);
    fill(b, left.at, most, 1, false), fill(b, right.at, most, 2, false), fill(b, c.at, most, 3, false);
    printf("%-8s %6s %7s %-8s %-9s %8s %8s\n", "layer", "groups", "rows", "sizes", "use", "ms", "TFLOP/s");
    for (const auto &batch : batches)
        for (int skew = 0; skew < 2; skew++) {
            const std::vector<int64_t> sizes = skew ? skewed(batch.groups, batch.rows) : even(batch.groups, batch.rows);
            const std::vector<int64_t> offsets = offsets_of(sizes);
            must(cudaMemcpy(at.at, offsets.data(), offsets.size() * 8, cudaMemcpyHostToDevice) == cudaSuccess, "offsets");
            for (const layer &l : layers)
                for (int which = 0; which < 4; which++) {
                    const char *names[] = {"forward", "d_x", "d_w =", "d_w +="};
                    moed_op_grouped_gemm a = describe(l, which < 2 ? use(which) : WEIGHTS, batch.groups, batch.rows, which == 3);
                    a.offsets = at.at, a.a = left.at, a.b = right.at, a.c = c.at;
                    const double ms = time_product(b, a);
                    printf("%-8s %6lld %7lld %-8s %-9s %8.3f %8.0f\n", l.name, (long long)batch.groups, (long long)batch.rows,
                           skew ? "skewed" : "even", names[which], ms, 2e-9 * batch.rows * l.out * l.in / ms);
                }
        }
}

} // namespace

int main()
{
    moed_host_api host = {};
    host.struct_size = sizeof host, host.abi = MOED_BACKEND_ABI;
    host.alloc = host_alloc, host.free = host_free, host.fail = host_fail;
    moed_backend_config config = {};
    config.struct_size = sizeof config, config.kernels = "bf16";
    backend b = {moed_backend_entry_v1(&host), nullptr};
    must(b.table != nullptr, "the plug-in");
    must(b.table->open(&host, &config, reinterpret_cast<void **>(&b.engine), &b.table) == MOED_OK, "open");
    const int wrong = check_all(b);
    fflush(stdout);
    time_all(b);
    b.table->close(b.engine);
    return wrong != 0;
}
