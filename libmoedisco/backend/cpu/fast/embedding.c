/* fast/embedding.c - rows of the token table. */
#include "fast.h"

typedef struct embedding_job {
    const moed_op_embedding *a;
    moedi_cut cut;
} embedding_job;

static void embedding_task(void *argument, int64_t index)
{
    const embedding_job *job = argument;
    const moed_op_embedding *a = job->a;
    const int64_t width = a->width, end = least_of(a->count, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        memcpy((float *)a->out + i * width, (const float *)a->table + a->tokens[i] * width, (size_t)width * sizeof(float));
}
moed_status MOEDI_VARIED(embedding)(void *self, const moed_op_embedding *a)
{
    embedding_job job = {a, cut(a->count, a->width)};
    run(self, job.cut.tasks, embedding_task, &job);
    return MOED_OK;
}

/* A task has columns of its own and takes the tokens in order: no two add to the same place. */
static void embedding_backward_task(void *argument, int64_t index)
{
    const embedding_job *job = argument;
    const moed_op_embedding *a = job->a;
    const int64_t first = index * job->cut.size, columns = least_of(job->cut.size, a->width - first);
    for (int64_t i = 0; i < a->count; i++)
        axpy((float *)a->d_table + a->tokens[i] * a->width + first, 1.0f, (const float *)a->d_out + i * a->width + first,
             columns);
}
moed_status MOEDI_VARIED(embedding_backward)(void *self, const moed_op_embedding *a)
{
    const moedi_cut columns = {(a->width + 63) / 64, 64};
    embedding_job job = {a, columns};
    run(self, columns.tasks, embedding_backward_task, &job);
    return MOED_OK;
}

enum { MEAN_COLUMNS = 128 };

typedef struct mean_job {
    const moed_op_embed_mean *a;
    moedi_cut cut;
} mean_job;

static void mean_of(const moed_op_embed_mean *a, int64_t document, int64_t first)
{
    const int64_t from = a->offsets[document], end = a->offsets[document + 1], columns = least_of(MEAN_COLUMNS, a->width - first);
    double sum[MEAN_COLUMNS] = {0};
    for (int64_t t = from; t < end; t++) {
        const float *row = (const float *)a->table + a->tokens[t] * a->width + first;
        for (int64_t d = 0; d < columns; d++) sum[d] += (double)row[d];
    }
    for (int64_t d = 0; d < columns; d++)
        a->out[document * a->width + first + d] = end > from ? (float)(sum[d] / (double)(end - from)) : 0.0f;
}
static void mean_task(void *argument, int64_t index)
{
    const mean_job *job = argument;
    const int64_t end = least_of(job->a->documents, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        for (int64_t first = 0; first < job->a->width; first += MEAN_COLUMNS) mean_of(job->a, i, first);
}
moed_status MOEDI_VARIED(embed_mean)(void *self, const moed_op_embed_mean *a)
{
    mean_job job = {a, cut(a->documents, 100 * a->width)};
    run(self, job.cut.tasks, mean_task, &job);
    return MOED_OK;
}
