/* fast/loss.c - the output head and its cross-entropy, in chunks of rows: the logits of a chunk by a matrix product, their
 * softmax in place, and from what is left there the gradients by two more. */
#include "fast.h"

typedef struct loss_job {
    const moed_op_cross_entropy *a;
    float *logits; /* (rows of the chunk, vocabulary) */
    int64_t first, rows;
    moedi_cut cut;
} loss_job;

/* Loss of row i from its logits x; x becomes the gradient of scale * loss by them when gradients are asked for. */
static void softmax_row(const moed_op_cross_entropy *a, int64_t i, float *x)
{
    const int64_t V = a->vocabulary, label = a->labels[i];
    float *losses = a->losses;
    if (label < 0) {
        losses[i] = 0;
        if (a->d_h) memset(x, 0, (size_t)V * sizeof *x);
        return;
    }
    vfloat top = splat(x[0]), sum = {0};
    int64_t w = 0;
    for (; w + VECTOR <= V; w += VECTOR) top = vmax(load(x + w), top);
    float highest = lanes_max(top);
    for (int64_t t = w; t < V; t++) highest = x[t] > highest ? x[t] : highest;
    const float own = x[label];
    for (w = 0; w + VECTOR <= V; w += VECTOR) {
        const vfloat power = vexp(load(x + w) - highest);
        store(x + w, power);
        sum += power;
    }
    float total = lanes_sum(sum);
    for (; w < V; w++) total += x[w] = exp1(x[w] - highest);
    const double weight = a->weights ? (double)a->weights[i] : 1.0;
    losses[i] = (float)(weight * (log((double)total) + ((double)highest - (double)own)));
    if (!a->d_h) return;
    const float factor = (float)(weight * a->scale), share = (float)(weight * a->scale / (double)total);
    for (w = 0; w < V; w += VECTOR) put(x + w, share * get(x + w, V - w), V - w);
    x[label] -= factor;
}
static void softmax_task(void *argument, int64_t index)
{
    const loss_job *job = argument;
    const int64_t end = least_of(job->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        softmax_row(job->a, job->first + i, job->logits + i * job->a->vocabulary);
}

moed_status MOEDI_VARIED(cross_entropy)(void *self, const moed_op_cross_entropy *a)
{
    const int64_t V = a->vocabulary, D = a->width;
    const int64_t chunk = moedi_loss_rows(a->rows, V);
    const size_t logits = moedi_loss_logit_bytes(a->rows, V), products = moedi_loss_panel_bytes(a->rows, V, D, ROWS, COLUMNS);
    void *scratch;
    const moed_status status = moedi_cpu_scratch(self, logits + products, &scratch);
    if (status != MOED_OK) return status;
    void *panels = (char *)scratch + logits;
    loss_job job = {.a = a, .logits = scratch};
    for (job.first = 0; job.first < a->rows; job.first += chunk) {
        const float *h = (const float *)a->h + job.first * D;
        job.rows = least_of(chunk, a->rows - job.first);
        job.cut = cut(job.rows, 4 * V);
        moed_op_gemm forward = {.c = job.logits, .a = h, .b = a->head, .m = job.rows, .n = V, .k = D};
        forward.lda = D, forward.ldb = D, forward.ldc = V, forward.transpose_b = 1;
        moedi_gemm_with(self, &forward, panels);
        run(self, job.cut.tasks, softmax_task, &job);
        if (!a->d_h) continue;
        moed_op_gemm to_h = {.c = (float *)a->d_h + job.first * D, .a = job.logits, .b = a->head, .m = job.rows, .n = D, .k = V};
        to_h.lda = V, to_h.ldb = D, to_h.ldc = D;
        moedi_gemm_with(self, &to_h, panels);
        if (!a->d_head) continue;
        moed_op_gemm to_head = {.c = a->d_head, .a = job.logits, .b = h, .m = V, .n = D, .k = job.rows};
        to_head.lda = V, to_head.ldb = D, to_head.ldc = D, to_head.transpose_a = 1, to_head.accumulate = 1;
        moedi_gemm_with(self, &to_head, panels);
    }
    return MOED_OK;
}
