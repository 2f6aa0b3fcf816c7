/* Gradients of every parameter tensor against central differences, in double, routing held fixed. */
#include "support.h"

#include "core/context.h"
#include "tiny.h"

/* What the gradient is of. */
static double objective(moedi_transformer *t, const moed_batch *b, const moedi_objective *o)
{
    moedi_losses l;
    assert_ok(moedi_transformer_forward(t, b, NULL, NULL));
    assert_ok(moedi_transformer_losses(t, &l));
    const double loss = o->label_weight > 0 ? l.loss * l.label_weight / o->label_weight : l.loss;
    return o->scale * (loss + o->load_balance * l.load_balance + o->z_loss * l.z_loss);
}

/* Norm of the difference of gradient and central differences, divided by the larger norm. */
static double tensor_error(moedi_transformer *t, const moed_batch *b, const moedi_objective *o,
                           const moed_layout *l, size_t param)
{
    const double step = 1e-5;
    double *weight = moedi_transformer_weight(t, param);
    const double *gradient = moedi_transformer_gradient(t, param);
    double difference = 0, size = 0;
    for (int64_t i = 0; i < moedi_shape_elements(l->params[param].shape, l->params[param].rank); i++) {
        const double kept = weight[i];
        weight[i] = kept + step;
        const double above = objective(t, b, o);
        weight[i] = kept - step;
        const double below = objective(t, b, o);
        weight[i] = kept;
        const double expected = (above - below) / (2 * step);
        difference += (gradient[i] - expected) * (gradient[i] - expected);
        size += fmax(expected * expected, gradient[i] * gradient[i]);
    }
    /* a tensor whose gradient is zero (the router of one expert): rounding of the differences only */
    return sqrt(difference) / fmax(sqrt(size), 1e-4);
}

static double check_config(const char *name, const char *config, const moedi_objective *o, uint64_t seed)
{
    moed_context *c = support_context("double", 1);
    moed_model *m = tiny_model(c, config, seed);
    const moed_layout *l = moed_model_layout(m);
    moedi_transformer *t = NULL;
    tiny_batch b;
    double worst = 0;
    tiny_fill(&b, 2, 8, seed);
    assert_ok(moedi_transformer_create(&t, m, 2, 8, MOEDI_TRANSFORMER_TRAIN, NULL));
    assert_int_equal(moedi_transformer_engine(t)->item, sizeof(double));
    assert_ok(moedi_transformer_forward(t, &b.batch, o, NULL));
    assert_ok(moedi_transformer_backward(t, NULL));
    moedi_transformer_replay(t, 1);
    for (size_t p = 0; p < l->count; p++) {
        if (!moedi_transformer_gradient(t, p)) {
            assert_true(l->params[p].flags & MOED_PARAM_FIXED);
            continue;
        }
        const double error = tensor_error(t, &b.batch, o, l, p);
        if (!(error < 1e-4))
            fail_msg("%s: gradient of %s is off by %g of its norm", name, l->params[p].name, error);
        worst = fmax(worst, error);
    }
    print_message("gradients: %s: worst relative error %.1e\n", name, worst);
    moedi_transformer_destroy(t);
    moed_model_destroy(m);
    moed_context_destroy(c);
    return worst;
}

static void gradients_are_central_differences(void **state)
{
    (void)state;
    const moedi_objective o = {.load_balance = 0.3, .z_loss = 0.2, .scale = 1};
    double worst = 0;
    for (int i = 0; i < TINY_CONFIGS; i++)
        worst = fmax(worst, check_config(tiny_configs[i].name, tiny_configs[i].config, &o, 3 + (uint64_t)i));
    print_message("gradients: worst of all %.1e\n", worst);
}

static void gradients_follow_scale_and_label_weight(void **state)
{
    (void)state;
    const moedi_objective o = {.load_balance = 0.1, .z_loss = 0.05, .scale = 0.25, .label_weight = 40};
    check_config(tiny_configs[0].name, tiny_configs[0].config, &o, 11);
}

/* Two forward and backward passes add up. */
static void gradients_accumulate(void **state)
{
    (void)state;
    moed_context *c = support_context("double", 1);
    moed_model *m = tiny_model(c, tiny_configs[1].config, 5);
    const moedi_objective o = {.load_balance = 0.1, .z_loss = 0.1, .scale = 1};
    moedi_transformer *t = NULL;
    tiny_batch b;
    int64_t count;
    tiny_fill(&b, 2, 8, 1);
    assert_ok(moedi_transformer_create(&t, m, 2, 8, MOEDI_TRANSFORMER_TRAIN, NULL));
    double *block = moedi_transformer_gradients(t, &count), *once = malloc((size_t)count * sizeof *once);
    for (int i = 0; i < 2; i++) {
        assert_ok(moedi_transformer_forward(t, &b.batch, &o, NULL));
        assert_ok(moedi_transformer_backward(t, NULL));
        if (!i) memcpy(once, block, (size_t)count * sizeof *once);
    }
    for (int64_t i = 0; i < count; i++) assert_true(fabs(block[i] - 2 * once[i]) <= 1e-12);
    free(once);
    moedi_transformer_destroy(t);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_central_differences),
        cmocka_unit_test(gradients_follow_scale_and_label_weight),
        cmocka_unit_test(gradients_accumulate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
