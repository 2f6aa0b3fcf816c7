/* cuda/common/optimizer.cu - the gradients' norm and AdamW over all tensors in one launch each: tensors are cut into pieces, a
 * block each. What changes by step lies in device memory. */
#include <string.h>

#include <new>
#include <vector>

#include "backend/lean.h"
#include "numbers.cuh"
#include "operations.h"

enum { THREADS = 256, PIECE = 1 << 16 }; /* whole blocks of codes */
static_assert(PIECE % MOEDI_LEAN_BLOCK == 0, "a block of codes is one piece's");

namespace {
struct piece {
    int32_t slice;
    int32_t count;
    int64_t first;
};
} // namespace

/* The slices of the last call and their pieces on the device: made again when the slices are others. */
struct moedi_cuda_update_plan {
    std::vector<moed_op_slice> slices;
    int64_t pieces = 0;
    bool numbers = false, codes = false; /* what moments there are */
    void *device = nullptr;         /* slices, pieces, partial sums */
    size_t size = 0;
    size_t pieces_at = 0, sums_at = 0;
};

void moedi_cuda_update_forget(moedi_cuda *e)
{
    if (!e->update_plan) return;
    moedi_cuda_device_free(e, e->update_plan->device, e->update_plan->size);
    e->moves++;
    delete e->update_plan;
    e->update_plan = nullptr;
}

/* Where the parts of a plan lie; returns its size. */
static size_t lay(int64_t slices, int64_t pieces, size_t *pieces_at, size_t *sums_at)
{
    *pieces_at = ((size_t)slices * sizeof(moed_op_slice) + 255) / 256 * 256;
    *sums_at = *pieces_at + ((size_t)pieces * sizeof(piece) + 255) / 256 * 256;
    return *sums_at + (size_t)(pieces + 1) * sizeof(double);
}

/* Each slice has one piece that is not whole, at most. */
size_t moedi_cuda_update_room(const moed_workload *w)
{
    size_t pieces_at, sums_at;
    return lay(w->slices, w->numbers / PIECE + w->slices, &pieces_at, &sums_at);
}

static moed_status make_plan(moedi_cuda *e, const moed_op_update *a)
{
    moedi_cuda_update_forget(e);
    moedi_cuda_update_plan *p = e->update_plan = new moedi_cuda_update_plan;
    std::vector<piece> pieces;
    for (int64_t s = 0; s < a->count; s++)
        for (int64_t at = 0; at < a->slices[s].count; at += PIECE) {
            const int64_t left = a->slices[s].count - at;
            pieces.push_back({(int32_t)s, (int32_t)(left < PIECE ? left : PIECE), at});
        }
    const size_t slices_size = (size_t)a->count * sizeof *a->slices, pieces_size = pieces.size() * sizeof(piece);
    p->size = lay(a->count, (int64_t)pieces.size(), &p->pieces_at, &p->sums_at);
    MOEDI_CUDA_TRY(moedi_cuda_device_alloc(e, p->size, &p->device));
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(p->device, a->slices, slices_size, cudaMemcpyHostToDevice, e->stream));
    MOEDI_CUDA_CHECK(e, cudaMemcpyAsync(static_cast<char *>(p->device) + p->pieces_at, pieces.data(), pieces_size,
                                        cudaMemcpyHostToDevice, e->stream));
    MOEDI_CUDA_CHECK(e, cudaStreamSynchronize(e->stream));
    p->pieces = (int64_t)pieces.size();
    for (int64_t s = 0; s < a->count; s++) (a->slices[s].m_scale ? p->codes : p->numbers) = true;
    p->slices.assign(a->slices, a->slices + a->count);
    return MOED_OK;
}

static moed_status plan_for(moedi_cuda *e, const moed_op_update *a)
{
    const moedi_cuda_update_plan *p = e->update_plan;
    if (p && (int64_t)p->slices.size() == a->count &&
        (a->count == 0 || !memcmp(p->slices.data(), a->slices, (size_t)a->count * sizeof *a->slices)))
        return MOED_OK;
    moed_status status;
    try {
        status = make_plan(e, a);
    } catch (const std::bad_alloc &) {
        status = moedi_cuda_fail(e, MOED_E_MEMORY, "out of memory for the list of tensors to update");
    }
    if (status != MOED_OK) moedi_cuda_update_forget(e);
    return status;
}
static const moed_op_slice *device_slices(const moedi_cuda *e)
{
    return static_cast<const moed_op_slice *>(e->update_plan->device);
}
static const piece *device_pieces(const moedi_cuda *e)
{
    return reinterpret_cast<const piece *>(static_cast<char *>(e->update_plan->device) + e->update_plan->pieces_at);
}
static double *device_sums(const moedi_cuda *e)
{
    return reinterpret_cast<double *>(static_cast<char *>(e->update_plan->device) + e->update_plan->sums_at);
}

/* ---- norm ---- */

template <typename T> __global__ void squares_kernel(double *sums, const moed_op_slice *slices, const piece *pieces)
{
    constexpr int V = WIDE_ACCESS<T>;
    const piece mine = pieces[blockIdx.x];
    const T *g = static_cast<const T *>(slices[mine.slice].gradient) + mine.first;
    const int whole = reinterpret_cast<uintptr_t>(g) % 16 == 0 ? mine.count / V * V : 0;
    double sum = 0;
    for (int i = threadIdx.x * V; i < whole; i += THREADS * V) {
        float v[V], part = 0;
        load(v, g + i);
#pragma unroll
        for (int k = 0; k < V; k++) part += v[k] * v[k];
        sum += (double)part;
    }
    for (int i = whole + threadIdx.x; i < mine.count; i += THREADS) {
        const double v = (double)to_float(g[i]);
        sum += v * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}
static __global__ void norm_kernel(moed_step_scalars *s, const double *sums, int64_t count, const float *losses,
                                   int64_t loss_count, double clip)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
    for (int64_t i = threadIdx.x; i < loss_count; i += blockDim.x)
        if (!isfinite(losses[i])) sum = NAN;
    sum = block_sum(sum);
    if (threadIdx.x) return;
    s->gradient_norm = sqrt(sum) * fabs(s->gradient_scale);
    s->clip_factor = clip > 0 && s->gradient_norm > clip ? clip / s->gradient_norm : 1.0;
}
template <typename T> moed_status moedi_cuda_gradient_norm(moedi_cuda *e, const moed_op_update *a)
{
    MOEDI_CUDA_TRY(plan_for(e, a));
    MOEDI_CUDA_TRY(moedi_cuda_launch(e, squares_kernel<T>, (unsigned)e->update_plan->pieces, THREADS, 0, device_sums(e),
                                     device_slices(e), device_pieces(e)));
    return moedi_cuda_launch(e, norm_kernel, 1, 1024, 0, a->scalars, (const double *)device_sums(e), e->update_plan->pieces,
                             static_cast<const float *>(a->losses), a->losses ? a->loss_count : (int64_t)0, a->clip);
}
MOEDI_CUDA_DEFINED(gradient_norm, update)

/* ---- AdamW ---- */

struct rates {
    float scale, beta1, beta2, m_correction, root_correction, epsilon, rate, decay;
    __device__ rates(const moed_step_scalars *s, const moed_op_slice &slice, double beta1_, double beta2_, double epsilon_)
        : scale((float)(s->gradient_scale * s->clip_factor)), beta1((float)beta1_), beta2((float)beta2_),
          m_correction((float)(1.0 / s->beta1_correction)), root_correction((float)(1.0 / sqrt(s->beta2_correction))),
          epsilon((float)epsilon_), rate((float)s->learning_rate), decay((float)slice.weight_decay)
    {
    }
};
/* Both within 2 units in the last place, in a fourth of the instructions that correct rounding takes: with moments of 8 bits
 * these are what an update waits for. A divisor that is no normal number counts as 0. */
__device__ static inline float root_of(float x)
{
    float root;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
    return root;
}
__device__ static inline float quotient(float x, float y)
{
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(y));
    return x * inverse;
}
/* Returns the root of v. */
__device__ static inline float update_one(float *p, float *m, float *v, float gradient, const rates &r)
{
    const float g = gradient * r.scale;
    *m = r.beta1 * *m + (1.0f - r.beta1) * g;
    *v = r.beta2 * *v + (1.0f - r.beta2) * g * g;
    const float root = root_of(*v);
    *p -= r.rate * (quotient(*m * r.m_correction, root * r.root_correction + r.epsilon) + r.decay * *p);
    return root;
}

/* A parameter's number from its two halves, and back. */
__device__ static inline float unite(bf16 high, int16_t low)
{
    return __uint_as_float(((uint32_t)__bfloat16_as_ushort(high) << 16) + (uint32_t)(int32_t)low);
}
__device__ static inline void halve(bf16 *high, int16_t *low, float x)
{
    const uint32_t bits = __float_as_uint(x);
    const bool number = (bits & 0x7fffffffu) <= 0x7f800000u; /* rounding would carry a NaN over to a zero */
    *high = __ushort_as_bfloat16((unsigned short)(number ? (bits + 0x8000u) >> 16 : bits >> 16 | 0x40u));
    *low = number ? (int16_t)(uint16_t)bits : 0;
}
template <int V> __device__ inline void load_numbers(float (&out)[V], const float *p, const int16_t *low, int i)
{
    (void)low;
    load(out, p + i);
}
template <int V> __device__ inline void load_numbers(float (&out)[V], const bf16 *p, const int16_t *low, int i)
{
    const pack<bf16, V> h = *reinterpret_cast<const pack<bf16, V> *>(p + i);
    pack<int16_t, V> l = {};
    if (low) l = *reinterpret_cast<const pack<int16_t, V> *>(low + i);
#pragma unroll
    for (int k = 0; k < V; k++) out[k] = unite(h.at[k], l.at[k]);
}
template <int V> __device__ inline void store_numbers(float *p, int16_t *low, int i, const float (&in)[V])
{
    (void)low;
    store(p + i, in);
}
template <int V> __device__ inline void store_numbers(bf16 *p, int16_t *low, int i, const float (&in)[V])
{
    pack<bf16, V> h;
    pack<int16_t, V> l;
#pragma unroll
    for (int k = 0; k < V; k++) halve(&h.at[k], &l.at[k], in[k]);
    *reinterpret_cast<pack<bf16, V> *>(p + i) = h;
    if (low) *reinterpret_cast<pack<int16_t, V> *>(low + i) = l;
}

template <typename T, int V>
__device__ inline void update_pack(T *p, int16_t *low, float *m, float *v, const T *g, int i, const rates &r)
{
    float pp[V], mm[V], vv[V], gg[V];
    load_numbers(pp, p, low, i), load(gg, g + i);
    load(mm, m + i), load(vv, v + i);
#pragma unroll
    for (int k = 0; k < V; k++) update_one(&pp[k], &mm[k], &vv[k], gg[k], r);
    store_numbers(p, low, i, pp), store(m + i, mm), store(v + i, vv);
}
template <typename T>
__global__ void adamw_kernel(const moed_op_slice *slices, const piece *pieces, const moed_step_scalars *s, double beta1,
                             double beta2, double epsilon)
{
    constexpr int V = 4;
    if (!isfinite(s->gradient_norm)) return;
    const piece mine = pieces[blockIdx.x];
    const moed_op_slice slice = slices[mine.slice];
    if (slice.m_scale) return;
    const rates r(s, slice, beta1, beta2, epsilon);
    T *p = static_cast<T *>(slice.parameter) + mine.first;
    const T *g = static_cast<const T *>(slice.gradient) + mine.first;
    float *m = static_cast<float *>(slice.m) + mine.first, *v = static_cast<float *>(slice.v) + mine.first;
    int16_t *low = slice.low ? slice.low + mine.first : nullptr;
    const uintptr_t narrow = reinterpret_cast<uintptr_t>(p) | reinterpret_cast<uintptr_t>(g);
    const uintptr_t wide = reinterpret_cast<uintptr_t>(m) | reinterpret_cast<uintptr_t>(v);
    const bool fits = narrow % (V * sizeof(T)) == 0 && wide % 16 == 0 && reinterpret_cast<uintptr_t>(low) % 8 == 0;
    const int whole = fits ? mine.count / V * V : 0;
    for (int i = threadIdx.x * V; i < whole; i += THREADS * V) update_pack<T, V>(p, low, m, v, g, i, r);
    for (int i = whole + threadIdx.x; i < mine.count; i += THREADS) update_pack<T, 1>(p, low, m, v, g, i, r);
}

/* ---- AdamW where moments are codes: a warp for each block of them, a lane for 8 numbers ---- */

enum { PER_LANE = MOEDI_LEAN_BLOCK / 32 };

__device__ static inline void store_rounded(float *p, float x, uint32_t random)
{
    (void)random;
    *p = x;
}
__device__ static inline void store_rounded(bf16 *p, float x, uint32_t random)
{
    *p = __ushort_as_bfloat16(moedi_lean_round(x, random));
}

/* A lane's numbers and their gradients, and the codes of their moments, four in a word. */
enum { WORDS = PER_LANE / 4 };
template <typename T> struct lane_work {
    T p[PER_LANE], g[PER_LANE];
    uint32_t m[WORDS], v[WORDS];
};

__device__ static inline uint32_t code_of(const uint32_t (&words)[WORDS], int i)
{
    return words[i / 4] >> i % 4 * 8 & 255;
}

/* In accesses of 16 bytes at most. */
template <typename T, int N> __device__ inline void copy_whole(T (&to)[N], const void *from)
{
    typedef pack<T, N * sizeof(T) <= 16 ? N : 16 / sizeof(T)> part;
    constexpr int SIZE = sizeof(part) / sizeof(T);
#pragma unroll
    for (int i = 0; i < N; i += SIZE) {
        const part p = reinterpret_cast<const part *>(from)[i / SIZE];
#pragma unroll
        for (int k = 0; k < SIZE; k++) to[i + k] = p.at[k];
    }
}
template <typename T, int N> __device__ inline void copy_whole(void *to, const T (&from)[N])
{
    typedef pack<T, N * sizeof(T) <= 16 ? N : 16 / sizeof(T)> part;
    constexpr int SIZE = sizeof(part) / sizeof(T);
#pragma unroll
    for (int i = 0; i < N; i += SIZE) {
        part p;
#pragma unroll
        for (int k = 0; k < SIZE; k++) p.at[k] = from[i + k];
        reinterpret_cast<part *>(to)[i / SIZE] = p;
    }
}

/* Numbers `first` on of a slice; what is beyond its end is 0. Whole lanes take all four arrays at once, none after another. */
template <typename T>
__device__ inline void take(lane_work<T> &w, const moed_op_slice &slice, int64_t first, int count, bool whole)
{
    const T *const p = static_cast<const T *>(slice.parameter) + first, *const g = static_cast<const T *>(slice.gradient) + first;
    const uint8_t *const m = static_cast<const uint8_t *>(slice.m) + first;
    const uint8_t *const v = static_cast<const uint8_t *>(slice.v) + first;
    if (whole) {
        copy_whole(w.p, p), copy_whole(w.g, g), copy_whole(w.m, m), copy_whole(w.v, v);
        return;
    }
    memset(&w, 0, sizeof w);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (i < count) {
            w.p[i] = p[i], w.g[i] = g[i];
            w.m[i / 4] |= (uint32_t)m[i] << i % 4 * 8, w.v[i / 4] |= (uint32_t)v[i] << i % 4 * 8;
        }
}
template <typename T>
__device__ inline void put(const lane_work<T> &w, const moed_op_slice &slice, int64_t first, int count, bool whole)
{
    T *const p = static_cast<T *>(slice.parameter) + first;
    uint8_t *const m = static_cast<uint8_t *>(slice.m) + first, *const v = static_cast<uint8_t *>(slice.v) + first;
    if (whole) {
        copy_whole(p, w.p), copy_whole(m, w.m), copy_whole(v, w.v);
        return;
    }
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        if (i < count) p[i] = w.p[i], m[i] = (uint8_t)code_of(w.m, i), v[i] = (uint8_t)code_of(w.v, i);
}

/* All lanes of a warp together: block `index` of the slice. */
template <typename T>
__device__ inline void update_block(const moed_op_slice &slice, int64_t index, bool aligned, const rates &r, uint64_t random)
{
    const int lane = threadIdx.x & 31;
    const int64_t first = index * MOEDI_LEAN_BLOCK + lane * PER_LANE, left = slice.count - first;
    const int count = left >= PER_LANE ? PER_LANE : left > 0 ? (int)left : 0;
    const bool whole = aligned && count == PER_LANE;
    const float m_before = slice.m_scale[index], v_before = slice.v_scale[index];
    const uint32_t key = moedi_lean_key(random, slice.block + index);
    lane_work<T> w;
    float m[PER_LANE], root[PER_LANE], m_most = 0, root_most = 0;
    take(w, slice, first, count, whole);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const float was = moedi_lean_decode_root(code_of(w.v, i)) * v_before;
        float number = to_float(w.p[i]), v = was * was;
        m[i] = moedi_lean_decode_m(code_of(w.m, i)) * m_before;
        root[i] = update_one(&number, &m[i], &v, to_float(w.g[i]), r);
        store_rounded(&w.p[i], number, moedi_lean_random(key, lane * PER_LANE + i));
        m_most = fmaxf(m_most, fabsf(m[i])), root_most = fmaxf(root_most, root[i]);
    }
    const float m_scale = moedi_lean_scale(warp_max_magnitude(m_most)), v_scale = moedi_lean_scale(warp_max_magnitude(root_most));
    const float m_inverse = moedi_lean_inverse(m_scale), v_inverse = moedi_lean_inverse(v_scale);
#pragma unroll
    for (int k = 0; k < WORDS; k++) w.m[k] = w.v[k] = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        const uint32_t bits = moedi_lean_random(key, lane * PER_LANE + i);
        w.m[i / 4] |= moedi_lean_encode_m(m[i] * m_inverse, bits) << i % 4 * 8;
        w.v[i / 4] |= moedi_lean_encode_root(root[i] * v_inverse, bits) << i % 4 * 8;
    }
    put(w, slice, first, count, whole);
    if (lane == 0) slice.m_scale[index] = m_scale, slice.v_scale[index] = v_scale;
}
template <typename T>
__global__ void __launch_bounds__(THREADS, 4)
    adamw_codes_kernel(const moed_op_slice *slices, const piece *pieces, const moed_step_scalars *s, double beta1, double beta2,
                       double epsilon)
{
    if (!isfinite(s->gradient_norm)) return;
    const piece mine = pieces[blockIdx.x];
    const moed_op_slice slice = slices[mine.slice];
    if (!slice.m_scale) return;
    const rates r(s, slice, beta1, beta2, epsilon);
    const uintptr_t narrow = reinterpret_cast<uintptr_t>(slice.parameter) | reinterpret_cast<uintptr_t>(slice.gradient);
    const bool aligned =
        narrow % 16 == 0 && (reinterpret_cast<uintptr_t>(slice.m) | reinterpret_cast<uintptr_t>(slice.v)) % PER_LANE == 0;
    const uint64_t random = s->random; /* here, not once a block: stores might change it for all that the compiler knows */
    const int64_t from = mine.first / MOEDI_LEAN_BLOCK, to = (mine.first + mine.count + MOEDI_LEAN_BLOCK - 1) / MOEDI_LEAN_BLOCK;
    for (int64_t block = from + threadIdx.x / 32; block < to; block += THREADS / 32)
        update_block<T>(slice, block, aligned, r, random);
}

template <typename T> moed_status moedi_cuda_adamw(moedi_cuda *e, const moed_op_update *a)
{
    MOEDI_CUDA_TRY(plan_for(e, a));
    const moedi_cuda_update_plan *p = e->update_plan;
    const moed_step_scalars *s = a->scalars;
    if (p->numbers)
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, adamw_kernel<T>, (unsigned)p->pieces, THREADS, 0, device_slices(e), device_pieces(e),
                                         s, a->beta1, a->beta2, a->epsilon));
    if (!p->codes) return MOED_OK;
    return moedi_cuda_launch(e, adamw_codes_kernel<T>, (unsigned)p->pieces, THREADS, 0, device_slices(e), device_pieces(e), s,
                             a->beta1, a->beta2, a->epsilon);
}
MOEDI_CUDA_DEFINED(adamw, update)
