/* bench_law.c [THREADS [SETS]] - what the published law gives beside its paper's table; fits of SETS sets of 300 made runs with
 * 0.5% noise: seconds, RMSE of log L over the runs held out, over 2,000 runs without noise, and how far the optimum at 1e20 FLOP
 * and 8 experts lies from the law behind the runs; the shares of EMO's stages by the law rule. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "bench.h"
#include "law_runs.h"

enum { RUNS = 300, CHECKED = 2000 };

static int failed(void)
{
    fprintf(stderr, "bench_law: %s\n", moed_last_error());
    return 1;
}

static int table(const moed_law *l)
{
    static const double PUBLISHED[6][5] = {{1, 30.364, -.1817, 53.984, -.1965},   {2, 27.798, -.1780, 66.840, -.2065},
                                           {4, 24.846, -.1731, 87.702, -.2192},   {8, 21.833, -.1676, 119.913, -.2338},
                                           {16, 19.016, -.1617, 167.507, -.2494}, {32, 16.542, -.1557, 234.673, -.2652}};
    double worst = 0, n = 0, d = 0;
    printf("published law, ours beside the paper's table\n");
    for (int i = 0; i < 6; i++) {
        moed_law_terms t = {.struct_size = sizeof t};
        if (moed_law_get_terms(l, PUBLISHED[i][0], &t)) return failed();
        const double ours[4] = {t.m, -t.p, t.n, -t.v};
        for (int k = 0; k < 4; k++) worst = fmax(worst, fabs(ours[k] / PUBLISHED[i][k + 1] - 1));
        printf("  E %2g  m %7.3f (%7.3f)  mu %.4f (%.4f)  n %8.3f (%8.3f)  nu %.4f (%.4f)\n", PUBLISHED[i][0], ours[0],
               PUBLISHED[i][1], ours[1], PUBLISHED[i][2], ours[2], PUBLISHED[i][3], ours[3], PUBLISHED[i][4]);
    }
    if (moed_law_optimum(l, 1e20, 8, &n, &d)) return failed();
    printf("  largest difference %.2f%%; optimum at 1e20 FLOP, 8 experts: N %.4gB, D %.4gB\n", 100 * worst, n / 1e9, d / 1e9);
    return 0;
}

static int fits(moed_context *c, const moed_law *truth, int sets)
{
    static moed_run_point runs[RUNS], checked[CHECKED];
    double slowest = 0, worst = 0, sum = 0, truth_worst = 0, n, d, true_n, true_d;
    int below = 0;
    if (law_runs(checked, CHECKED, truth, 6, 0, 999) || moed_law_optimum(truth, 1e20, 8, &true_n, &true_d)) return failed();
    printf("fits of %d runs, 0.5%% noise, a fifth held out\n", RUNS);
    for (int s = 0; s < sets; s++) {
        moed_law *l = NULL;
        moed_law_info info = {.struct_size = sizeof info};
        double square = 0, loss;
        if (law_runs(runs, RUNS, truth, 6, 0.005, (uint64_t)s)) return failed();
        const double begun = bench_now();
        if (moed_law_fit(&l, c, runs, RUNS, NULL, NULL)) return failed();
        const double seconds = bench_now() - begun;
        moed_law_get_info(l, &info);
        for (int i = 0; i < CHECKED; i++) {
            if (moed_law_predict(l, checked[i].active, checked[i].experts, checked[i].tokens, &loss)) return failed();
            square += pow(log(loss / checked[i].loss), 2);
        }
        if (moed_law_optimum(l, 1e20, 8, &n, &d)) return failed();
        const double off = sqrt(square / CHECKED);
        printf("  set %2d: %.2f s, RMSE %.5f fitted, %.5f held out, %.5f from the law behind; optimum N %+.1f%%\n", s, seconds,
               info.trained_rmse, info.held_out_rmse, off, 100 * (n / true_n - 1));
        fflush(stdout);
        slowest = fmax(slowest, seconds), worst = fmax(worst, info.held_out_rmse), truth_worst = fmax(truth_worst, off);
        sum += info.held_out_rmse;
        below += info.held_out_rmse < 0.006;
        moed_law_destroy(l);
    }
    printf("  slowest %.2f s; held-out RMSE mean %.5f, largest %.5f, below 0.006 in %d of %d; from the law behind at most %.5f\n",
           slowest, sum / sets, worst, below, sets, truth_worst);
    return 0;
}

static int shares(moed_context *c)
{
    static const int32_t EXPERTS[] = {8, 16, 32, 64, 128};
    static const double FORMULA[] = {25.4, 9.9, 15.5, 21.7, 27.4}, PUBLISHED[] = {23.5, 9.5, 16.5, 21.8, 28.6};
    moed_law_options law;
    moed_growth_options o;
    moed_law *l = NULL;
    moed_growth *g = NULL, *power = NULL;
    moed_options_init(MOED_STRUCT_LAW_OPTIONS, &law, sizeof law);
    moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &o, sizeof o);
    law.top_k = 8;
    o.tokens = 1920000000000, o.step_tokens = 8000000, o.active = 1.1e9;
    if (moed_law_create(&l, c, &law) || moed_growth_from_law(&g, c, l, EXPERTS, 5, &o) ||
        moed_growth_from_power(&power, c, EXPERTS, 5, &o))
        return failed();
    printf("EMO's stages, N 1.1e9, 1.92e12 tokens, top-8: law rule (formula), power rule, published\n");
    for (size_t i = 0; i < 5; i++) {
        moed_stage s = {.struct_size = sizeof s}, p = {.struct_size = sizeof p};
        if (moed_growth_stage(g, i, &s) || moed_growth_stage(power, i, &p)) return failed();
        printf("  E %3d  %6.2f%% (%.1f%%)  %6.2f%%  %.1f%%\n", (int)s.experts, (double)s.tokens / 1.92e10, FORMULA[i],
               (double)p.tokens / 1.92e10, PUBLISHED[i]);
    }
    moed_growth_destroy(g), moed_growth_destroy(power), moed_law_destroy(l);
    return 0;
}

int main(int argc, char **argv)
{
    moed_context *c = NULL;
    moed_law *truth = NULL;
    moed_context_options o;
    const int sets = argc > 2 ? atoi(argv[2]) : 10;
    moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o);
    o.threads = argc > 1 ? atoi(argv[1]) : 2;
    if (moed_context_create(&c, &o) || moed_law_create(&truth, c, NULL)) return failed();
    const int code = table(truth) || (sets > 0 && fits(c, truth, sets)) || shares(c);
    moed_law_destroy(truth);
    moed_context_destroy(c);
    return code;
}
