/* fast/router.c - which experts a token goes to, and the way there and back. */
#include "fast.h"

typedef struct router_job {
    const moed_op_router *a;
    moedi_cut cut;
    double *partial; /* (tasks, 2 * experts + 1): summed shares, number of choices, summed lse^2 */
    double *balance; /* (experts): gradient of the load-balance loss by a share */
} router_job;

/* What the choice is made by. */
INLINE float preference(const moed_op_router *a, const float *scores, int64_t e)
{
    return a->bias ? scores[e] + ((const float *)a->bias)[e] : scores[e];
}

/* The top_k most preferred in one pass, kept in order; the lower index first among equals, always valid and distinct. */
static void choose_experts(const moed_op_router *a, int32_t *ids, const float *scores)
{
    int64_t held = 0;
    for (int64_t e = 0; e < a->experts; e++) {
        const float own = preference(a, scores, e);
        if (held == a->top_k && !(own > preference(a, scores, ids[held - 1]))) continue;
        int64_t at = held < a->top_k ? held++ : a->top_k - 1;
        for (; at > 0 && own > preference(a, scores, ids[at - 1]); at--) ids[at] = ids[at - 1];
        ids[at] = (int32_t)e;
    }
}

/* Of a row's scores; that of probabilities is 1 but for rounding. */
static float sum_of(const moed_op_router *a, const float *scores)
{
    vfloat sum = {0};
    if (a->score != MOED_SCORE_SIGMOID) return 1.0f;
    for (int64_t e = 0; e < a->experts; e += VECTOR) sum += get(scores + e, a->experts - e);
    return lanes_sum(sum);
}

static void route(const moed_op_router *a, int64_t i)
{
    const int64_t E = a->experts;
    const float *logits = (const float *)a->logits + i * E;
    float *p = (float *)a->probabilities + i * E, *weights = (float *)a->weights + i * a->top_k;
    int32_t *ids = a->ids + i * a->top_k;
    float highest = logits[0], chosen = 0;
    vfloat sum = {0};
    for (int64_t e = 1; e < E; e++) highest = logits[e] > highest ? logits[e] : highest;
    for (int64_t e = 0; e < E; e += VECTOR) {
        const vfloat power = vexp(get(logits + e, E - e) - highest);
        put(p + e, power, E - e);
        sum += get(p + e, E - e); /* without the lanes past the end */
    }
    const float total = lanes_sum(sum);
    ((float *)a->lse)[i] = (float)((double)highest + log((double)total));
    for (int64_t e = 0; e < E; e += VECTOR)
        put(p + e, a->score == MOED_SCORE_SIGMOID ? vsigmoid(get(logits + e, E - e)) : get(p + e, E - e) / total, E - e);
    if (!a->replay) choose_experts(a, ids, p);
    for (int64_t j = 0; j < a->top_k; j++) chosen += p[ids[j]];
    const float scale = a->weight_scale ? (float)a->weight_scale : 1.0f;
    for (int64_t j = 0; j < a->top_k; j++) weights[j] = scale * (a->normalise ? p[ids[j]] / chosen : p[ids[j]]);
}
static void router_task(void *argument, int64_t index)
{
    const router_job *job = argument;
    const moed_op_router *a = job->a;
    const int64_t E = a->experts, end = least_of(a->rows, (index + 1) * job->cut.size);
    double *share = job->partial + index * (2 * E + 1), *choices = share + E;
    memset(share, 0, (size_t)(2 * E + 1) * sizeof(double));
    for (int64_t i = index * job->cut.size; i < end; i++) {
        route(a, i);
        const float *scores = (const float *)a->probabilities + i * E;
        const double lse = (double)((const float *)a->lse)[i], part = 1.0 / (double)sum_of(a, scores);
        for (int64_t e = 0; e < E; e++) share[e] += (double)scores[e] * part;
        for (int64_t j = 0; j < a->top_k; j++) choices[a->ids[i * a->top_k + j]] += 1;
        choices[E] += lse * lse;
    }
}
moed_status MOEDI_VARIED(router)(void *self, const moed_op_router *a)
{
    const int64_t E = a->experts, each = 2 * E + 1;
    router_job job = {.a = a, .cut = cut(a->rows, 8 * E)};
    void *scratch;
    const moed_status status = moedi_cpu_scratch(self, (size_t)(job.cut.tasks * each) * sizeof(double), &scratch);
    if (status != MOED_OK) return status;
    job.partial = scratch;
    run(self, job.cut.tasks, router_task, &job);
    float *losses = a->losses;
    if (!losses || a->rows <= 0) return MOED_OK;
    double balance = 0, z = 0;
    for (int64_t e = 0; e < E; e++) {
        double share = 0, choices = 0;
        for (int64_t t = 0; t < job.cut.tasks; t++) share += job.partial[t * each + e], choices += job.partial[t * each + E + e];
        balance += choices / (double)(a->rows * a->top_k) * (share / (double)a->rows);
    }
    for (int64_t t = 0; t < job.cut.tasks; t++) z += job.partial[t * each + 2 * E];
    losses[0] = (float)((double)losses[0] + (double)E * balance * a->loss_scale);
    losses[1] = (float)((double)losses[1] + z / (double)a->rows * a->loss_scale);
    return MOED_OK;
}

/* Of w_j = f s_j: d_s_j = f d_w_j; when normalised f is the scale over the sum of the chosen, and d_s_j = f (d_w_j - sum_l d_w_l
 * s_l / sum). Only the chosen have a part through the weights. With b the load balance's gradient by a share q = s / sum s:
 * softmax, where s = q: d_logits = s (d_s + b - sum s (d_s + b)); sigmoid: d_logits = s (1 - s) (d_s + (b - sum q b) / sum s).
 * And the gradient of mean lse^2, 2 lse softmax / rows. */
INLINE float through_score(bool sigmoid, float score, double d, float logit, double lse, double z)
{
    const double s = (double)score;
    if (!sigmoid) return (float)(s * (d + z));
    return (float)(s * (1.0 - s) * d + (z != 0.0 ? z * exp((double)logit - lse) : 0.0));
}
static void router_backward_task(void *argument, int64_t index)
{
    const router_job *job = argument;
    const moed_op_router *a = job->a;
    const int64_t E = a->experts, end = least_of(a->rows, (index + 1) * job->cut.size);
    const bool sigmoid = a->score == MOED_SCORE_SIGMOID;
    const double scale = a->weight_scale ? a->weight_scale : 1.0;
    for (int64_t i = index * job->cut.size; i < end; i++) {
        const float *p = (const float *)a->probabilities + i * E, *d_weights = (const float *)a->d_weights + i * a->top_k;
        const float *logits = (const float *)a->logits + i * E;
        const int32_t *ids = a->ids + i * a->top_k;
        float *d_logits = (float *)a->d_logits + i * E;
        double chosen = 0, shared = 0, mean = 0;
        for (int64_t j = 0; j < a->top_k; j++) chosen += (double)p[ids[j]];
        for (int64_t j = 0; j < a->top_k; j++) shared += (double)d_weights[j] * ((double)p[ids[j]] / chosen);
        const double part = a->normalise ? scale / chosen : scale, common = a->normalise ? shared : 0.0;
        const double all = (double)sum_of(a, p), lse = (double)((const float *)a->lse)[i];
        for (int64_t e = 0; e < E; e++) mean += (double)p[e] / all * job->balance[e];
        for (int64_t j = 0; j < a->top_k && !sigmoid; j++) mean += (double)p[ids[j]] * ((double)d_weights[j] - common) * part;
        const double z = a->z_loss * a->loss_scale * 2.0 * lse / (double)a->rows;
        for (int64_t e = 0; e < E; e++)
            d_logits[e] = through_score(sigmoid, p[e], (job->balance[e] - mean) / all, logits[e], lse, z);
        for (int64_t j = 0; j < a->top_k; j++) {
            const int64_t e = ids[j];
            const double d = (job->balance[e] - mean) / all + ((double)d_weights[j] - common) * part;
            d_logits[e] = through_score(sigmoid, p[e], d, logits[e], lse, z);
        }
    }
}
moed_status MOEDI_VARIED(router_backward)(void *self, const moed_op_router *a)
{
    router_job job = {.a = a, .cut = cut(a->rows, 8 * a->experts)};
    void *scratch;
    const moed_status status = moedi_cpu_scratch(self, (size_t)a->experts * sizeof(double), &scratch);
    if (status != MOED_OK) return status;
    job.balance = scratch;
    memset(job.balance, 0, (size_t)a->experts * sizeof(double));
    for (int64_t c = 0; c < a->rows * a->top_k; c++) job.balance[a->ids[c]] += 1;
    for (int64_t e = 0; e < a->experts && a->rows > 0; e++) {
        const double share = job.balance[e] / (double)(a->rows * a->top_k);
        job.balance[e] = a->load_balance * a->loss_scale * (double)a->experts * share / (double)a->rows;
    }
    run(self, job.cut.tasks, router_backward_task, &job);
    return MOED_OK;
}

/* One thread: two passes over a few thousand integers cost less than waking others. offsets[e + 1] counts, then moves on as
 * expert e's next place, and so ends where e + 1 begins. */
moed_status MOEDI_VARIED(dispatch)(void *self, const moed_op_dispatch *a)
{
    (void)self;
    const int64_t choices = a->rows * a->top_k;
    int64_t before = 0;
    memset(a->offsets, 0, (size_t)(a->experts + 1) * sizeof *a->offsets);
    for (int64_t c = 0; c < choices; c++) a->offsets[a->ids[c] + 1]++;
    for (int64_t e = 1; e <= a->experts; e++) {
        const int64_t count = a->offsets[e];
        a->offsets[e] = before;
        before += count;
    }
    for (int64_t i = 0; i < a->rows; i++)
        for (int64_t c = i * a->top_k; c < (i + 1) * a->top_k; c++) {
            const int64_t place = a->offsets[a->ids[c] + 1]++;
            a->slot[c] = (int32_t)place;
            a->source[place] = (int32_t)i;
        }
    return MOED_OK;
}

typedef struct gather_job {
    const moed_op_gather *a;
    moedi_cut cut;
} gather_job;

static void gather_task(void *argument, int64_t index)
{
    const gather_job *job = argument;
    const moed_op_gather *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows * a->top_k, (index + 1) * job->cut.size);
    for (int64_t s = index * job->cut.size; s < end; s++)
        memcpy((float *)a->out + s * width, (const float *)a->x + a->source[s] * width, (size_t)width * sizeof(float));
}
static void gather_backward_task(void *argument, int64_t index)
{
    const gather_job *job = argument;
    const moed_op_gather *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        for (int64_t j = 0; j < a->top_k; j++)
            axpy((float *)a->d_x + i * width, 1.0f, (const float *)a->d_out + a->slot[i * a->top_k + j] * width, width);
}
moed_status MOEDI_VARIED(gather)(void *self, const moed_op_gather *a)
{
    gather_job job = {a, cut(a->rows * a->top_k, a->width)};
    run(self, job.cut.tasks, gather_task, &job);
    return MOED_OK;
}
moed_status MOEDI_VARIED(gather_backward)(void *self, const moed_op_gather *a)
{
    gather_job job = {a, cut(a->rows, a->top_k * a->width)};
    run(self, job.cut.tasks, gather_backward_task, &job);
    return MOED_OK;
}

typedef struct combine_job {
    const moed_op_combine *a;
    moedi_cut cut;
} combine_job;

static void combine_task(void *argument, int64_t index)
{
    const combine_job *job = argument;
    const moed_op_combine *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++) {
        float *out = (float *)a->out + i * width;
        if (a->addend && a->addend != a->out) memcpy(out, (const float *)a->addend + i * width, (size_t)width * sizeof(float));
        for (int64_t c = i * a->top_k; c < (i + 1) * a->top_k; c++)
            axpy(out, ((const float *)a->weights)[c], (const float *)a->y + a->slot[c] * width, width);
    }
}
static void combine_backward_task(void *argument, int64_t index)
{
    const combine_job *job = argument;
    const moed_op_combine *a = job->a;
    const int64_t width = a->width, end = least_of(a->rows, (index + 1) * job->cut.size);
    for (int64_t i = index * job->cut.size; i < end; i++)
        for (int64_t c = i * a->top_k; c < (i + 1) * a->top_k; c++) {
            const float *d_out = (const float *)a->d_out + i * width, weight = ((const float *)a->weights)[c];
            float *d_y = (float *)a->d_y + a->slot[c] * width;
            ((float *)a->d_weights)[c] = dot(d_out, (const float *)a->y + a->slot[c] * width, width);
            for (int64_t d = 0; d < width; d += VECTOR) put(d_y + d, weight * get(d_out + d, width - d), width - d);
        }
}
moed_status MOEDI_VARIED(combine)(void *self, const moed_op_combine *a)
{
    combine_job job = {a, cut(a->rows, a->top_k * a->width)};
    run(self, job.cut.tasks, combine_task, &job);
    return MOED_OK;
}
moed_status MOEDI_VARIED(combine_backward)(void *self, const moed_op_combine *a)
{
    combine_job job = {a, cut(a->rows, a->top_k * a->width)};
    run(self, job.cut.tasks, combine_backward_task, &job);
    return MOED_OK;
}
