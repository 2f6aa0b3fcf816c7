/* train/optimizer.c - slices for the norm and AdamW operations. Decay is decoupled (arXiv 1711.05101) and on matrices only. */
#include "optimizer.h"

#include <math.h>
#include <string.h>

#include "backend/lean.h"
#include "schedule.h"
#include "util/random.h"

enum { ALIGNMENT = 64 };

/* Blocks of codes of a tensor, the last one shorter. */
static int64_t blocks_of(int64_t count)
{
    return (count + MOEDI_LEAN_BLOCK - 1) / MOEDI_LEAN_BLOCK;
}

int moedi_optimizer_parts(int32_t policy)
{
    return policy == MOED_POLICY_LEAN ? 4 : 2;
}

/* Part `part` of a tensor of `count` numbers, without its memory. */
static moedi_moment describe(int32_t policy, moed_dtype wide, int64_t count, int part)
{
    static const char *const names[MOEDI_MOMENT_PARTS] = {"m", "v", "m_scale", "v_scale"};
    if (policy != MOED_POLICY_LEAN) return (moedi_moment){names[part], wide, count, NULL};
    if (part < 2) return (moedi_moment){names[part], MOED_DTYPE_U8, count, NULL};
    return (moedi_moment){names[part], MOED_DTYPE_F32, blocks_of(count), NULL};
}

static int64_t part_bytes(const moedi_moment *m)
{
    return (m->count * (int64_t)moedi_dtype_size(m->dtype) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int64_t moedi_optimizer_bytes(const moed_layout *l, const moed_backend_info *numbers, const uint8_t *trained, int32_t policy)
{
    int64_t bytes = 0;
    for (size_t i = 0; i < l->count; i++)
        for (int part = 0; trained[i] && part < moedi_optimizer_parts(policy); part++) {
            const moedi_moment m = describe(policy, numbers->wide, moedi_param_elements(&l->params[i]), part);
            bytes += part_bytes(&m);
        }
    return bytes;
}

moedi_moment moedi_optimizer_part(const moedi_optimizer *o, int32_t policy, size_t slice, int part)
{
    const moed_op_slice *s = &o->slices[slice];
    void *const memory[MOEDI_MOMENT_PARTS] = {s->m, s->v, s->m_scale, s->v_scale};
    moedi_moment m = describe(policy, moedi_transformer_engine(o->transformer)->info.wide, s->count, part);
    if (policy == o->policy) m.memory = memory[part];
    return m;
}

static int decays(const moed_param *p)
{
    return p->rank >= 2 && !(p->flags & (MOED_PARAM_NORM | MOED_PARAM_BIAS)) && p->role != MOED_ROLE_ROUTER_BIAS;
}

static void place_slices(moedi_optimizer *o, const moed_layout *l, const uint8_t *trained, double weight_decay)
{
    const moed_dtype wide = moedi_transformer_engine(o->transformer)->info.wide;
    char *at = o->moments;
    int64_t blocks = 0;
    size_t s = 0;
    for (size_t i = 0; i < l->count; i++) {
        if (!trained[i]) continue;
        moed_op_slice *slice = &o->slices[s];
        o->params[s++] = i;
        slice->count = moedi_param_elements(&l->params[i]);
        slice->parameter = moedi_transformer_weight(o->transformer, i);
        slice->low = moedi_transformer_low(o->transformer, i);
        slice->weight_decay = decays(&l->params[i]) ? weight_decay : 0.0;
        slice->block = blocks;
        void *memory[MOEDI_MOMENT_PARTS] = {NULL};
        for (int part = 0; part < moedi_optimizer_parts(o->policy); part++) {
            const moedi_moment m = describe(o->policy, wide, slice->count, part);
            memory[part] = at;
            at += part_bytes(&m);
        }
        slice->m = memory[0], slice->v = memory[1], slice->m_scale = memory[2], slice->v_scale = memory[3];
        o->numbers += slice->count;
        blocks += blocks_of(slice->count);
    }
}

moed_status moedi_optimizer_create(moedi_optimizer *out, moedi_transformer *t, const moed_layout *l, const uint8_t *trained,
                                   double weight_decay, int32_t policy, moed_step_scalars *scalars)
{
    moed_status status = MOED_OK;
    const moedi_engine *e = moedi_transformer_engine(t);
    moedi_optimizer o;
    memset(&o, 0, sizeof o);
    o.transformer = t;
    o.context = e->context;
    o.policy = policy;
    o.scalars = scalars;
    for (size_t i = 0; i < l->count; i++) o.count += trained[i] != 0;
    const size_t bytes = (size_t)moedi_optimizer_bytes(l, &e->info, trained, policy);
    MOEDI_GO(MOEDI_NEW(o.context, o.count, &o.params));
    MOEDI_GO(MOEDI_NEW(o.context, o.count, &o.slices));
    MOEDI_GO(e->table->alloc(e->self, bytes, &o.moments));
    MOEDI_GO(e->table->zero(e->self, o.moments, bytes));
    place_slices(&o, l, trained, weight_decay);
    *out = o;
    return MOED_OK;
out:
    moedi_optimizer_destroy(&o);
    return status;
}

void moedi_optimizer_destroy(moedi_optimizer *o)
{
    if (!o->transformer) return;
    const moedi_engine *e = moedi_transformer_engine(o->transformer);
    e->table->free(e->self, o->moments);
    moedi_free(o->context, o->slices);
    moedi_free(o->context, o->params);
    memset(o, 0, sizeof *o);
}

static moed_op_update arguments(const moedi_optimizer *o, const moed_train_options *options)
{
    moed_op_update u;
    memset(&u, 0, sizeof u);
    u.slices = o->slices;
    u.count = (int64_t)o->count;
    u.scalars = o->scalars;
    u.beta1 = options->beta1, u.beta2 = options->beta2, u.epsilon = options->epsilon;
    u.clip = options->clip;
    return u;
}

moed_status moedi_optimizer_prepare(moedi_optimizer *o, const moed_train_options *options, int64_t step, double rate,
                                    double scale)
{
    const moedi_engine *e = moedi_transformer_engine(o->transformer);
    moed_step_scalars scalars;
    memset(&scalars, 0, sizeof scalars);
    scalars.learning_rate = rate;
    scalars.beta1_correction = 1.0 - pow(options->beta1, (double)(step - o->since));
    scalars.beta2_correction = 1.0 - pow(options->beta2, (double)(step - o->since));
    scalars.gradient_scale = scale;
    scalars.step = (uint64_t)step;
    scalars.balance_rate = moedi_schedule_balance(options, step);
    scalars.random = moedi_random(options->seed, MOEDI_RANDOM_ROUNDING, (uint64_t)step, 0);
    return e->table->upload(e->self, o->scalars, &scalars, sizeof scalars);
}

moed_status moedi_optimizer_measure(moedi_optimizer *o, const moed_train_options *options, const void *losses, int64_t count)
{
    const moedi_engine *e = moedi_transformer_engine(o->transformer);
    for (size_t i = 0; i < o->count; i++) o->slices[i].gradient = moedi_transformer_gradient(o->transformer, o->params[i]);
    moed_op_update u = arguments(o, options);
    u.losses = losses, u.loss_count = count;
    return e->table->gradient_norm(e->self, &u);
}

moed_status moedi_optimizer_apply(moedi_optimizer *o, const moed_train_options *options)
{
    const moedi_engine *e = moedi_transformer_engine(o->transformer);
    const moed_op_update u = arguments(o, options);
    return e->table->adamw(e->self, &u);
}
