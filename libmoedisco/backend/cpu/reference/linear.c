/* backend/cpu/reference/linear.c - matrix products, and sums. */
#include "reference.h"

/* A matrix as a pair of strides, so that a transpose is a swap. */
typedef struct matrix {
    const real *data;
    int64_t row, column;
} matrix;

static matrix as_matrix(const real *data, int64_t stride, int transpose)
{
    return transpose ? (matrix){data, 1, stride} : (matrix){data, stride, 1};
}

/* c (m, n; row stride ldc) = [addend (the same) +] a (m, k) * b (k, n) [+ bias (n)] */
static void multiply(real *c, int64_t ldc, matrix a, matrix b, const real *bias, int accumulate, const real *addend, int64_t m,
                     int64_t n, int64_t k)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t p = 0; p < k; p++)
                sum += (double)a.data[i * a.row + p * a.column] * (double)b.data[p * b.row + j * b.column];
            if (bias) sum += (double)bias[j];
            if (accumulate) sum += (double)addend[i * ldc + j];
            c[i * ldc + j] = (real)sum;
        }
}

MOEDI_REFERENCE(gemm, gemm)
{
    (void)self;
    multiply(a->c, a->ldc, as_matrix(a->a, a->lda, a->transpose_a), as_matrix(a->b, a->ldb, a->transpose_b), a->bias,
             a->accumulate, a->addend ? a->addend : a->c, a->m, a->n, a->k);
    return MOED_OK;
}

MOEDI_REFERENCE(grouped_gemm, grouped_gemm)
{
    (void)self;
    for (int64_t g = 0; g < a->groups; g++) {
        const int64_t first = a->offsets[g], count = a->offsets[g + 1] - first;
        const real *rows = (const real *)a->a + first * a->lda;
        real *c = (real *)a->c + (a->reduce ? g * a->stride_c : first * a->ldc);
        if (a->reduce)
            multiply(c, a->ldc, as_matrix(rows, a->lda, 1), as_matrix((const real *)a->b + first * a->ldb, a->ldb, 0), NULL,
                     a->accumulate, c, a->m, a->n, count);
        else
            multiply(c, a->ldc, as_matrix(rows, a->lda, 0),
                     as_matrix((const real *)a->b + g * a->stride_b, a->ldb, a->transpose_b), NULL, a->accumulate, c, count, a->n,
                     a->k);
    }
    return MOED_OK;
}

MOEDI_REFERENCE(bias_backward, bias_backward)
{
    const real *d_out = a->d_out; /* (m, n) */
    real *d_bias = a->d_bias;
    (void)self;

    for (int64_t j = 0; j < a->n; j++) {
        double sum = 0;
        for (int64_t i = 0; i < a->m; i++) sum += (double)d_out[i * a->ld + j];
        d_bias[j] = (real)((double)d_bias[j] + sum);
    }
    return MOED_OK;
}

MOEDI_REFERENCE(sum, sum)
{
    const real *x = a->x;
    real *out = a->out;
    double sum = 0;
    (void)self;

    for (int64_t i = 0; i < a->count; i++) sum += (double)x[i];
    sum *= a->scale;
    out[0] = (real)(a->accumulate ? (double)out[0] + sum : sum);
    return MOED_OK;
}

MOEDI_REFERENCE(add, add)
{
    const real *x = a->a, *y = a->b;
    real *out = a->out;
    (void)self;

    for (int64_t i = 0; i < a->count; i++) out[i] = x[i] + y[i];
    return MOED_OK;
}
