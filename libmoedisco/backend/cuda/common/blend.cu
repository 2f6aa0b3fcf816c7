/* cuda/common/blend.cu - stretches of numbers made of others: in double, without contraction (the Makefile builds this file so),
 * so that the bits are the host's. Memory speed is the bound: each number of a source is read once. */
#include "numbers.cuh"
#include "operations.h"
#include "util/item.h"
#include "util/narrow.h"
#include "util/normal.h"

enum {
    THREADS = 256,
    PACK = 4,  /* numbers of one thread where addresses allow it; more would cost the registers that keep loads on their way */
    FEW = 24   /* terms that travel with the launch */
};

/* A term, with what the launch knows of it. */
struct term {
    moed_op_term is;
    int32_t on_first;                 /* the reference is the first term's source, copied as it is */
    int32_t reserved;
};

/* An array to write. */
struct target {
    void *out;
    int64_t block, row;
    int64_t rows, width, packs;       /* packs: in all */
    int32_t dtype, exact;             /* exact: the first term's bits are kept where nothing is added */
};

/* ---- numbers of a type known at run time ---- */

template <int V, typename U> __device__ static inline pack<U, V> load_bits(const void *array, int64_t at)
{
    pack<U, V> p;
    constexpr int STEP = V * sizeof(U) > 16 ? int(16 / sizeof(U)) : V; /* elements of one access */
#pragma unroll
    for (int i = 0; i < V; i += STEP)
        *reinterpret_cast<pack<U, STEP> *>(p.at + i) =
            *reinterpret_cast<const pack<U, STEP> *>(static_cast<const U *>(array) + at + i);
    return p;
}
template <int V, typename U> __device__ static inline void store_bits(void *array, int64_t at, const pack<U, V> &p)
{
    constexpr int STEP = V * sizeof(U) > 16 ? int(16 / sizeof(U)) : V;
#pragma unroll
    for (int i = 0; i < V; i += STEP)
        *reinterpret_cast<pack<U, STEP> *>(static_cast<U *>(array) + at + i) = *reinterpret_cast<const pack<U, STEP> *>(p.at + i);
}

/* V numbers of an array: of dtype D, held as they are stored so that many can be on their way; of any dtype for D = 0. */
template <int32_t D> struct stored { typedef uint16_t type; };
template <> struct stored<MOED_DTYPE_F32> { typedef float type; };
template <int V, int32_t D> struct numbers {
    pack<typename stored<D>::type, V> p;
    __device__ void load(const void *array, int32_t, int64_t at) { p = load_bits<V, typename stored<D>::type>(array, at); }
    __device__ double at(int k) const
    {
        if constexpr (D == MOED_DTYPE_F32) return double(p.at[k]);
        else return double(D == MOED_DTYPE_BF16 ? moedi_bits_float(uint32_t(p.at[k]) << 16) : moedi_from_f16(p.at[k]));
    }
};
template <int V> struct numbers<V, 0> {
    double x[V];
    template <int32_t D> __device__ void widen(const void *array, int64_t at)
    {
        numbers<V, D> n;
        n.load(array, D, at);
#pragma unroll
        for (int k = 0; k < V; k++) x[k] = n.at(k);
    }
    __device__ void load(const void *array, int32_t dtype, int64_t at)
    {
        if (dtype == MOED_DTYPE_BF16) widen<MOED_DTYPE_BF16>(array, at);
        else if (dtype == MOED_DTYPE_F16) widen<MOED_DTYPE_F16>(array, at);
        else if (dtype == MOED_DTYPE_F32) widen<MOED_DTYPE_F32>(array, at);
        else {
            const pack<double, V> p = load_bits<V, double>(array, at);
#pragma unroll
            for (int k = 0; k < V; k++) x[k] = p.at[k];
        }
    }
    __device__ double at(int k) const { return x[k]; }
};

/* The number at x of the type that has sizeof(U) bytes. */
template <typename U> __device__ static inline U round_to(double x, int32_t dtype);
template <> __device__ inline uint16_t round_to<uint16_t>(double x, int32_t dtype)
{
    const uint32_t odd = moedi_double_odd(x);
    return dtype == MOED_DTYPE_BF16 ? moedi_to_bf16(odd) : moedi_to_f16(moedi_bits_float(odd));
}
template <> __device__ inline float round_to<float>(double x, int32_t)
{
    return float(x);
}
template <> __device__ inline double round_to<double>(double x, int32_t)
{
    return x;
}

/* ---- the kernel ---- */

/* value + sum, or the first term's number where sum is zero: of a NaN that was copied the bits themselves. */
template <int V, typename U>
__device__ static inline void settle(const target &t, int64_t at, const void *first, int64_t from, const double (&value)[V],
                                     const double (&sum)[V])
{
    pack<U, V> p;
#pragma unroll
    for (int k = 0; k < V; k++) {
        if (sum[k] == 0.0 && t.exact && value[k] != value[k]) p.at[k] = static_cast<const U *>(first)[from + k];
        else p.at[k] = round_to<U>(sum[k] != 0.0 ? value[k] + sum[k] : value[k], t.dtype);
    }
    store_bits<V, U>(t.out, at, p);
}

struct place {
    int64_t b, r, c;
};

template <int V, int32_t D>
__device__ static inline void add_term(double (&sum)[V], const double (&value)[V], const numbers<V, D> &x, const term &t,
                                       const place &at)
{
    numbers<V, D> y;
    if (!t.on_first) y.load(t.is.reference, t.is.reference_dtype, at.b * t.is.reference_block + at.r * t.is.reference_row + at.c);
#pragma unroll
    for (int k = 0; k < V; k++) {
        const double moved = x.at(k), still = t.on_first ? value[k] : y.at(k);
        double d = moved - still;
        if (d != d && (moved == still || (moved != moved && still != still))) d = 0.0; /* equal infinities, two NaNs */
        sum[k] += t.is.scale * d;
    }
}

struct few_terms {
    term at[FEW];
};

/* D: the dtype of all arrays, 0 = they differ. DRAWN: the first term is a draw, and V is 1. MANY: few does not hold the terms. */
template <int V, int32_t D, bool DRAWN, bool MANY>
__global__ void __launch_bounds__(THREADS, 4)
    blend_kernel(const __grid_constant__ target t, const __grid_constant__ few_terms few, const term *many, int64_t count)
{
    constexpr int AHEAD = D ? 4 : 1; /* terms whose numbers are on their way together */
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= t.packs) return;
    const term *terms = MANY ? many : few.at;
    place p = {0, 0, i * V};
    if (t.packs > t.width / V) { /* more than one row: divisions are dear beside so little work */
        const int64_t row = p.c / t.width;
        p.c -= row * t.width;
        p.b = row / t.rows, p.r = row - p.b * t.rows;
    }
    const moed_op_term &first = terms[0].is;
    const int64_t from = p.b * first.block + p.r * first.row + p.c;
    double value[V], sum[V];
    numbers<V, D> base;
    if (!DRAWN && first.scale != 0.0) base.load(first.source, first.dtype, from);
#pragma unroll
    for (int k = 0; k < V; k++) {
        value[k] = sum[k] = 0.0;
        if (first.scale == 0.0) continue;
        const double x = DRAWN ? moedi_normal(first.key, first.step, first.index + uint64_t(from)) : base.at(k);
        value[k] = first.scale == 1.0 ? x : first.scale * x;
    }
    for (int64_t n = 1; n < count; n += AHEAD) {
        numbers<V, D> x[AHEAD];
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (n + j < count) {
                const moed_op_term &s = terms[n + j].is;
                x[j].load(s.source, s.dtype, p.b * s.block + p.r * s.row + p.c);
            }
#pragma unroll
        for (int j = 0; j < AHEAD; j++)
            if (n + j < count) add_term<V, D>(sum, value, x[j], terms[n + j], p);
    }
    const int64_t to = p.b * t.block + p.r * t.row + p.c;
    const int32_t dtype = D ? D : t.dtype;
    if (dtype == MOED_DTYPE_F64) settle<V, double>(t, to, first.source, from, value, sum);
    else if (dtype == MOED_DTYPE_F32) settle<V, float>(t, to, first.source, from, value, sum);
    else settle<V, uint16_t>(t, to, first.source, from, value, sum);
}

/* ---- bytes alone ---- */

/* out (blocks, rows, width) of units of U, all strides in units. */
template <typename U> __global__ void copy_kernel(target t, const void *source, int64_t block, int64_t row)
{
    const int64_t i = int64_t(blockIdx.x) * THREADS + threadIdx.x;
    if (i >= t.packs) return;
    int64_t b = 0, r = 0, c = i;
    if (t.packs > t.width) {
        const int64_t line = i / t.width;
        c -= line * t.width;
        b = line / t.rows, r = line - b * t.rows;
    }
    static_cast<U *>(t.out)[b * t.block + r * t.row + c] = static_cast<const U *>(source)[b * block + r * row + c];
}

template <typename U> static moed_status copy_units(moedi_cuda *e, const moed_op_blend *a, int64_t bytes)
{
    const int64_t unit = int64_t(sizeof(U));
    const moed_op_term &s = a->terms[0];
    target t = {};
    t.out = a->out, t.block = a->block * bytes / unit, t.row = a->row * bytes / unit;
    t.rows = a->rows, t.width = a->width * bytes / unit, t.packs = a->blocks * a->rows * t.width;
    return moedi_cuda_launch(e, copy_kernel<U>, (unsigned)moedi_cuda_ceil(t.packs, THREADS), THREADS, 0, t, s.source,
                             s.block * bytes / unit, s.row * bytes / unit);
}

static moed_status copy_bytes(moedi_cuda *e, const moed_op_blend *a)
{
    const int64_t bytes = moedi_item_bytes(a->dtype);
    const moed_op_term &s = a->terms[0];
    const uint64_t together = reinterpret_cast<uintptr_t>(a->out) | reinterpret_cast<uintptr_t>(s.source) |
                              uint64_t((a->block | a->row | a->width | s.block | s.row) * bytes);
    if (together % 16 == 0) return copy_units<uint4>(e, a, bytes);
    if (together % 4 == 0) return copy_units<uint32_t>(e, a, bytes);
    if (together % 2 == 0) return copy_units<uint16_t>(e, a, bytes);
    return copy_units<uint8_t>(e, a, bytes);
}

/* ---- the launch ---- */

static __global__ void put_kernel(term *to, const __grid_constant__ few_terms few, int count)
{
    if (int(threadIdx.x) < count) to[threadIdx.x] = few.at[threadIdx.x];
}

static term term_of(const moed_op_blend *a, int64_t index)
{
    const moed_op_term &first = a->terms[0], &t = a->terms[index];
    term out = {};
    out.is = t;
    out.on_first = first.op == MOED_PIECE_COPY && first.scale == 1.0 && t.op == MOED_PIECE_DELTA && t.reference == first.source &&
                   t.reference_dtype == first.dtype && t.reference_block == first.block && t.reference_row == first.row;
    return out;
}

/* The next terms, FEW at most, from *index on; those of scale 0 add nothing, whatever they hold. */
static int next_terms(few_terms *few, const moed_op_blend *a, int64_t *index)
{
    int count = 0;
    for (; *index < a->count && count < FEW; ++*index)
        if (*index == 0 || a->terms[*index].scale != 0.0) few->at[count++] = term_of(a, *index);
    return count;
}

/* Terms too many to travel with a launch are put into scratch by launches of their own: no host array is read later, and nothing
 * waits. */
static moed_status put_terms(moedi_cuda *e, const moed_op_blend *a, term **out, int64_t *count)
{
    void *memory;
    MOEDI_CUDA_TRY(moedi_cuda_scratch(e, size_t(a->count) * sizeof(term), &memory));
    *out = static_cast<term *>(memory);
    *count = 0;
    for (int64_t index = 0; index < a->count;) {
        few_terms few = {};
        const int n = next_terms(&few, a, &index);
        MOEDI_CUDA_TRY(moedi_cuda_launch(e, put_kernel, 1, 32, 0, *out + *count, few, n));
        *count += n;
    }
    return MOED_OK;
}

/* Whether every row of an array begins where packs may be read. */
static bool packs_fit(const void *array, int32_t dtype, int64_t block, int64_t row)
{
    const int64_t bytes = PACK * moedi_item_bytes(dtype);
    const uintptr_t access = uintptr_t(bytes < 16 ? bytes : 16);
    return reinterpret_cast<uintptr_t>(array) % access == 0 && block % PACK == 0 && row % PACK == 0;
}

/* Of all arrays: numbers that are drawn come one by one. */
static bool all_packs_fit(const moed_op_blend *a)
{
    bool fit = a->width % PACK == 0 && packs_fit(a->out, a->dtype, a->block, a->row);
    for (int64_t i = 0; i < a->count; i++) {
        const moed_op_term &t = a->terms[i];
        fit = fit && t.op != MOED_PIECE_DRAW && packs_fit(t.source, t.dtype, t.block, t.row);
        if (t.op == MOED_PIECE_DELTA) fit = fit && packs_fit(t.reference, t.reference_dtype, t.reference_block, t.reference_row);
    }
    return fit;
}

/* The dtype of all arrays, or 0. */
static int32_t one_dtype(const moed_op_blend *a)
{
    bool same = a->dtype == MOED_DTYPE_BF16 || a->dtype == MOED_DTYPE_F16 || a->dtype == MOED_DTYPE_F32;
    for (int64_t i = 0; i < a->count; i++)
        same = same && a->terms[i].dtype == a->dtype && (i == 0 || a->terms[i].reference_dtype == a->dtype);
    return same ? a->dtype : 0;
}

template <bool MANY> static auto kernel_for(const moed_op_blend *a, bool packed)
{
    if (a->terms[0].op == MOED_PIECE_DRAW) return blend_kernel<1, 0, true, MANY>;
    if (!packed) return blend_kernel<1, 0, false, MANY>;
    switch (one_dtype(a)) {
    case MOED_DTYPE_BF16: return blend_kernel<PACK, MOED_DTYPE_BF16, false, MANY>;
    case MOED_DTYPE_F16: return blend_kernel<PACK, MOED_DTYPE_F16, false, MANY>;
    case MOED_DTYPE_F32: return blend_kernel<PACK, MOED_DTYPE_F32, false, MANY>;
    default: return blend_kernel<PACK, 0, false, MANY>;
    }
}

template <typename T> moed_status moedi_cuda_blend(moedi_cuda *e, const moed_op_blend *a)
{
    static_assert(FEW <= 32, "one warp puts them");
    if (a->blocks <= 0 || a->rows <= 0 || a->width <= 0) return MOED_OK;
    const moed_op_term &first = a->terms[0];
    const bool exact = first.op == MOED_PIECE_COPY && first.scale == 1.0 && first.dtype == a->dtype;
    if (exact && a->count == 1) return copy_bytes(e, a);
    const bool packed = all_packs_fit(a);
    target t = {};
    t.out = a->out, t.block = a->block, t.row = a->row, t.rows = a->rows, t.width = a->width;
    t.packs = a->blocks * a->rows * (packed ? a->width / PACK : a->width), t.dtype = a->dtype, t.exact = exact;
    few_terms few = {};
    term *many = nullptr;
    int64_t index = 0, count = next_terms(&few, a, &index);
    if (index < a->count) MOEDI_CUDA_TRY(put_terms(e, a, &many, &count));
    const auto kernel = many ? kernel_for<true>(a, packed) : kernel_for<false>(a, packed);
    return moedi_cuda_launch(e, kernel, (unsigned)moedi_cuda_ceil(t.packs, THREADS), THREADS, 0, t, few, (const term *)many,
                             count);
}
MOEDI_CUDA_DEFINED(blend, blend)
