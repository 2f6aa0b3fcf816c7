/* 06_growth.c - EMO's schedule in a loop of one's own: a law divides the tokens among pools of 4, 8 and 16 experts; the loop asks
 * before each step what is due, is killed half-way, and goes on from the bytes it kept. */
#include <stdio.h>

#include <moedisco.h>

enum { STEPS = 1000, STEP_TOKENS = 32768 };

static int schedule(moed_context *c, moed_growth **out)
{
    static const int32_t EXPERTS[] = {4, 8, 16};
    moed_growth_options o;
    moed_law_options law;
    moed_law *l = NULL;
    if (moed_options_init(MOED_STRUCT_GROWTH_OPTIONS, &o, sizeof o) != MOED_OK) return 2;
    if (moed_options_init(MOED_STRUCT_LAW_OPTIONS, &law, sizeof law) != MOED_OK) return 2;
    o.tokens = (int64_t)STEPS * STEP_TOKENS, o.step_tokens = STEP_TOKENS, o.active = 30e6;
    o.warmup = 20;
    law.top_k = 2; /* the published law (Ludziejewski 2025) at 2, 4 and 8 experts for each that a token visits */
    if (moed_law_create(&l, c, &law) != MOED_OK) return 2;
    const int code = moed_growth_from_law(out, c, l, EXPERTS, 3, &o) == MOED_OK ? 0 : 2;
    moed_law_destroy(l);
    return code;
}

/* Steps from *tokens on, `most` at most: what a trainer would do is printed where something changes. */
static int train(moed_growth *g, int64_t *tokens, int most)
{
    moed_growth_point p = {.struct_size = sizeof p};
    for (int i = 0; i < most; i++, *tokens += STEP_TOKENS) {
        if (moed_growth_at(g, *tokens, &p) != MOED_OK) return 2;
        if (p.due & MOED_GROWTH_EXPAND) {
            printf("step %4d: expand from %d to %d experts\n", (int)(*tokens / STEP_TOKENS), (int)p.experts_now, (int)p.experts);
            if (moed_growth_enter(g, p.stage, *tokens) != MOED_OK) return 2;
        }
        if (p.due & MOED_GROWTH_END) break;
        if (*tokens == p.start || i == 0)
            printf("step %4d: %2d experts, learning rate %.2e\n", (int)(*tokens / STEP_TOKENS), (int)p.experts, p.learning_rate);
    }
    return 0;
}

int main(int argc, char **argv)
{
    unsigned char kept[1024];
    size_t size = 0;
    int64_t tokens = 0;
    moed_context *c = NULL;
    moed_growth *g = NULL;
    if (argc != 1) {
        fprintf(stderr, "usage: %s (no arguments)\n", argv[0]);
        return 2;
    }
    int code = moed_context_create(&c, NULL) == MOED_OK ? schedule(c, &g) : 2;
    if (code == 0) code = train(g, &tokens, 700);
    if (code == 0) code = moed_growth_get_state(g, kept, sizeof kept, &size) == MOED_OK ? 0 : 2;
    moed_growth_destroy(g);
    g = NULL;
    if (code == 0) printf("killed at step %d, %zu bytes kept beside the weights\n", (int)(tokens / STEP_TOKENS), size);
    if (code == 0) code = moed_growth_from_state(&g, c, kept, size) == MOED_OK ? 0 : 2;
    if (code == 0) code = train(g, &tokens, STEPS);
    if (code == 0) printf("done after %d steps\n", (int)(tokens / STEP_TOKENS));
    if (code) fprintf(stderr, "%s\n", moed_last_error());
    moed_growth_destroy(g);
    moed_context_destroy(c);
    return code;
}
