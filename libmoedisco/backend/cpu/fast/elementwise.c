/* fast/elementwise.c - operations that pass once over their rows: RMSNorm, SwiGLU, the sigmoid gate, additions and sums. */
#include "fast.h"

/* ---- RMSNorm ---- */

typedef struct norm_job {
    const moed_op_rmsnorm *a;
    moedi_cut cut;
    float *partial; /* (tasks, width): d_weight of a task's rows */
} norm_job;

static void rmsnorm_task(void *argument, int64_t index)
{
    const norm_job *job = argument;
    const moed_op_rmsnorm *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    const float *weight = a->weight;
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const float *x = (const float *)a->x + moedi_norm_row(a, i, a->stride);
        float *out = (float *)a->out + moedi_norm_row(a, i, a->out_stride);
        const float r = (float)(1.0 / sqrt((double)dot(x, x, width) / (double)width + a->epsilon));
        for (int64_t d = 0; d < width; d += VECTOR)
            put(out + d, get(x + d, width - d) * r * get(weight + d, width - d), width - d);
        ((float *)a->rstd)[i] = r;
    }
}
moed_status MOEDI_VARIED(rmsnorm)(void *self, const moed_op_rmsnorm *a)
{
    norm_job job = {.a = a, .cut = cut(a->rows, a->width)};
    run(self, job.cut.tasks, rmsnorm_task, &job);
    return MOED_OK;
}

/* With x^ = x rstd: d_x += rstd (w d_out - x^ mean(w d_out x^)), d_weight += sum over rows of d_out x^. */
static void rmsnorm_backward_task(void *argument, int64_t index)
{
    const norm_job *job = argument;
    const moed_op_rmsnorm *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    const float *weight = a->weight;
    const bool in_place = a->d_x == a->d_out;
    float *partial = job->partial + index * width;
    memset(partial, 0, (size_t)width * sizeof *partial);
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const float *x = (const float *)a->x + moedi_norm_row(a, i, a->stride);
        const float *d_out = (const float *)a->d_out + moedi_norm_row(a, i, a->out_stride);
        float *d_x = (float *)a->d_x + moedi_norm_row(a, i, a->out_stride);
        const float r = ((const float *)a->rstd)[i];
        vfloat sum = {0};
        for (int64_t d = 0; d < width; d += VECTOR) {
            const int64_t left = width - d;
            const vfloat along = get(x + d, left) * r * get(d_out + d, left);
            put(partial + d, get(partial + d, left) + along, left);
            sum += along * get(weight + d, left);
        }
        const float back = r * lanes_sum(sum) / (float)width;
        for (int64_t d = 0; d < width; d += VECTOR) {
            const int64_t left = width - d;
            const vfloat own = get(weight + d, left) * get(d_out + d, left) - get(x + d, left) * back;
            put(d_x + d, in_place ? r * own : get(d_x + d, left) + r * own, left);
        }
    }
}
moed_status MOEDI_VARIED(rmsnorm_backward)(void *self, const moed_op_rmsnorm *a)
{
    norm_job job = {.a = a, .cut = cut(a->rows, a->width)};
    void *scratch;
    const moed_status status = moedi_cpu_scratch(self, (size_t)(job.cut.tasks * a->width) * sizeof(float), &scratch);
    if (status != MOED_OK) return status;
    job.partial = scratch;
    run(self, job.cut.tasks, rmsnorm_backward_task, &job);
    for (int64_t d = 0; a->d_weight && d < a->width; d++) {
        double sum = 0;
        for (int64_t t = 0; t < job.cut.tasks; t++) sum += (double)job.partial[t * a->width + d];
        ((float *)a->d_weight)[d] = (float)((double)((float *)a->d_weight)[d] + sum);
    }
    return MOED_OK;
}

/* ---- SwiGLU ---- */

typedef struct swiglu_job {
    const moed_op_swiglu *a;
    moedi_cut cut;
} swiglu_job;

static void swiglu_task(void *argument, int64_t index)
{
    const swiglu_job *job = argument;
    const moed_op_swiglu *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const float *gate = (const float *)a->gate_up + i * 2 * width, *up = gate + width;
        float *out = (float *)a->out + i * width;
        for (int64_t d = 0; d < width; d += VECTOR) {
            const vfloat g = get(gate + d, width - d);
            put(out + d, g * vsigmoid(g) * get(up + d, width - d), width - d);
        }
    }
}
static void swiglu_backward_task(void *argument, int64_t index)
{
    const swiglu_job *job = argument;
    const moed_op_swiglu *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const int64_t row = a->slot ? a->slot[i] : i;
        const float *gate = (const float *)a->gate_up + row * 2 * width, *up = gate + width;
        const float *d_out = (const float *)a->d_out + row * width, weight = a->weights ? ((const float *)a->weights)[i] : 1.0f;
        float *d_gate = (float *)a->d_gate_up + row * 2 * width, *d_up = d_gate + width;
        float *out = a->out ? (float *)a->out + row * width : NULL;
        vfloat sum = {0};
        for (int64_t d = 0; d < width; d += VECTOR) {
            const int64_t left = width - d;
            const vfloat g = get(gate + d, left), u = get(up + d, left), s = vsigmoid(g), d_made = get(d_out + d, left);
            const vfloat made = g * s * u, o = weight * d_made;
            sum += d_made * made;
            put(d_gate + d, o * u * s * (1.0f + g * (1.0f - s)), left);
            put(d_up + d, o * g * s, left);
            if (out) put(out + d, weight * made, left);
        }
        if (a->d_weights) ((float *)a->d_weights)[i] = lanes_sum(sum);
    }
}
moed_status MOEDI_VARIED(swiglu)(void *self, const moed_op_swiglu *a)
{
    swiglu_job job = {a, cut(a->rows, 4 * a->width)};
    run(self, job.cut.tasks, swiglu_task, &job);
    return MOED_OK;
}
moed_status MOEDI_VARIED(swiglu_backward)(void *self, const moed_op_swiglu *a)
{
    swiglu_job job = {a, cut(a->rows, 4 * a->width)};
    run(self, job.cut.tasks, swiglu_backward_task, &job);
    return MOED_OK;
}

/* ---- the shared expert's gate ---- */

typedef struct gate_job {
    const moed_op_sigmoid_gate *a;
    moedi_cut cut;
} gate_job;

static void sigmoid_gate_task(void *argument, int64_t index)
{
    const gate_job *job = argument;
    const moed_op_sigmoid_gate *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        axpy((float *)a->out + i * width, vsigmoid(splat(((const float *)a->gate)[i]))[0], (const float *)a->x + i * width,
             width);
}
static void sigmoid_gate_backward_task(void *argument, int64_t index)
{
    const gate_job *job = argument;
    const moed_op_sigmoid_gate *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const float *d_out = (const float *)a->d_out + i * width;
        float *d_x = (float *)a->d_x + i * width;
        const float s = vsigmoid(splat(((const float *)a->gate)[i]))[0];
        ((float *)a->d_gate)[i] = s * (1.0f - s) * dot(d_out, (const float *)a->x + i * width, width);
        for (int64_t d = 0; d < width; d += VECTOR) put(d_x + d, s * get(d_out + d, width - d), width - d);
    }
}
moed_status MOEDI_VARIED(sigmoid_gate)(void *self, const moed_op_sigmoid_gate *a)
{
    gate_job job = {a, cut(a->rows, a->width)};
    run(self, job.cut.tasks, sigmoid_gate_task, &job);
    return MOED_OK;
}
moed_status MOEDI_VARIED(sigmoid_gate_backward)(void *self, const moed_op_sigmoid_gate *a)
{
    gate_job job = {a, cut(a->rows, a->width)};
    run(self, job.cut.tasks, sigmoid_gate_backward_task, &job);
    return MOED_OK;
}

/* ---- the router's hidden layer: a few numbers a token ---- */

typedef struct squash_job {
    const moed_op_squash *a;
    moedi_cut cut;
} squash_job;

static void squash_task(void *argument, int64_t index)
{
    const squash_job *job = argument;
    const moed_op_squash *a = job->a;
    const int64_t end = least_of(a->count, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i += VECTOR)
        put((float *)a->out + i, 2.0f * vsigmoid(2.0f * get((const float *)a->x + i, end - i)) - 1.0f, end - i);
}
static void squash_backward_task(void *argument, int64_t index)
{
    const squash_job *job = argument;
    const moed_op_squash *a = job->a;
    const int64_t end = least_of(a->count, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i += VECTOR) {
        const vfloat out = get((const float *)a->out + i, end - i);
        put((float *)a->d_x + i, get((const float *)a->d_out + i, end - i) * (1.0f - out * out), end - i);
    }
}
moed_status MOEDI_VARIED(squash)(void *self, const moed_op_squash *a)
{
    squash_job job = {a, cut(a->count, 8)};
    run(self, job.cut.tasks, squash_task, &job);
    return MOED_OK;
}
moed_status MOEDI_VARIED(squash_backward)(void *self, const moed_op_squash *a)
{
    squash_job job = {a, cut(a->count, 8)};
    run(self, job.cut.tasks, squash_backward_task, &job);
    return MOED_OK;
}

/* ---- additions and sums ---- */

typedef struct add_job {
    const moed_op_add *a;
    moedi_cut cut;
} add_job;

static void add_task(void *argument, int64_t index)
{
    const add_job *job = argument;
    const float *x = job->a->a, *y = job->a->b;
    float *out = job->a->out;
    const int64_t end = least_of(job->a->count, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i += VECTOR)
        put(out + i, get(x + i, end - i) + get(y + i, end - i), end - i);
}
moed_status MOEDI_VARIED(add)(void *self, const moed_op_add *a)
{
    add_job job = {a, cut(a->count, 1)};
    run(self, job.cut.tasks, add_task, &job);
    return MOED_OK;
}

typedef struct sum_job {
    const float *x;
    int64_t count;
    moedi_cut cut;
    double partial[256];
} sum_job;

static void sum_task(void *argument, int64_t index)
{
    sum_job *job = argument;
    const int64_t end = least_of(job->count, (index + 1) * job->cut.size);
    double lanes[8] = {0}, total = 0;
    int64_t i = index * job->cut.size;
    for (; i + 8 <= end; i += 8)
        for (int l = 0; l < 8; l++) lanes[l] += (double)job->x[i + l];
    for (; i < end; i++) total += (double)job->x[i];
    for (int l = 0; l < 8; l++) total += lanes[l];
    job->partial[index] = total;
}
moed_status MOEDI_VARIED(sum)(void *self, const moed_op_sum *a)
{
    sum_job job = {.x = a->x, .count = a->count, .cut = cut(a->count, 1)};
    float *out = a->out;
    double total = 0;
    run(self, job.cut.tasks, sum_task, &job);
    for (int64_t t = 0; t < job.cut.tasks; t++) total += job.partial[t];
    total *= a->scale;
    out[0] = (float)(a->accumulate ? (double)out[0] + total : total);
    return MOED_OK;
}

enum { BIAS_COLUMNS = 64 };

/* A task has its own columns and goes down the rows. */
static void bias_task(void *argument, int64_t index)
{
    const moed_op_bias_backward *a = argument;
    const int64_t first = index * BIAS_COLUMNS, columns = least_of(BIAS_COLUMNS, a->n - first);
    double total[BIAS_COLUMNS] = {0};
    for (int64_t i = 0; i < a->m; i += 32) {
        float block[BIAS_COLUMNS] = {0};
        for (int64_t r = i; r < least_of(a->m, i + 32); r++)
            axpy(block, 1.0f, (const float *)a->d_out + r * a->ld + first, columns);
        for (int64_t j = 0; j < columns; j++) total[j] += (double)block[j];
    }
    float *d_bias = (float *)a->d_bias + first;
    for (int64_t j = 0; j < columns; j++) d_bias[j] = (float)((double)d_bias[j] + total[j]);
}
moed_status MOEDI_VARIED(bias_backward)(void *self, const moed_op_bias_backward *a)
{
    moed_op_bias_backward copy = *a;
    run(self, (a->n + BIAS_COLUMNS - 1) / BIAS_COLUMNS, bias_task, &copy);
    return MOED_OK;
}
