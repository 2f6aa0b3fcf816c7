/* train/schedule.c - linear warm-up to the peak, then constant, a half cosine, or a plateau with a linear end. Sources: cosine,
 * arXiv 1608.03983; warm-up-stable-decay, MiniCPM (arXiv 2404.06395, section 4). */
#include "schedule.h"

#include <math.h>

static int64_t share(double part, int64_t steps)
{
    int64_t n = (int64_t)(part * (double)steps + 0.5);
    return n < steps ? n : steps;
}

double moedi_schedule_balance(const moed_train_options *o, int64_t step)
{
    const int64_t warmup = share(o->warmup, o->steps);
    const double left = step <= warmup ? 1 - (double)(step - 1) / (double)warmup : 0;
    return o->balance_boost > 0 ? o->balance_rate * pow(o->balance_boost, left) : o->balance_rate;
}

double moedi_schedule_rate(const moed_train_options *o, int64_t step)
{
    const double pi = 3.14159265358979323846;
    const double peak = o->learning_rate;
    const int64_t warmup = share(o->warmup, o->steps);
    if (step > o->steps) step = o->steps;
    if (step < warmup) return peak * (double)step / (double)warmup;
    if (o->schedule == MOED_SCHEDULE_COSINE) {
        if (step == warmup) return peak;
        const double progress = (double)(step - warmup) / (double)(o->steps - warmup);
        return peak * (o->final_rate + (1.0 - o->final_rate) * 0.5 * (1.0 + cos(pi * progress)));
    }
    if (o->schedule == MOED_SCHEDULE_WSD) {
        int64_t decay = share(o->decay, o->steps);
        if (decay > o->steps - warmup) decay = o->steps - warmup;
        const int64_t into = step - (o->steps - decay);
        if (into > 0) return peak * (1.0 - (1.0 - o->final_rate) * (double)into / (double)decay);
    }
    return peak;
}
