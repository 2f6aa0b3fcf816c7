/* test_steady.c - what a run keeps up after its first step: no memory is asked for any more, and none is given back. */
#include "support.h"

#include "train_support.h"

typedef struct calls {
    int64_t made, ended; /* several threads may ask at once */
} calls;

static void *counting_alloc(size_t size, size_t alignment, void *user)
{
    __atomic_fetch_add(&((calls *)user)->made, 1, __ATOMIC_RELAXED);
    return aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}
static void counting_free(void *memory, size_t size, void *user)
{
    (void)size;
    __atomic_fetch_add(&((calls *)user)->ended, 1, __ATOMIC_RELAXED);
    free(memory);
}

/* Routing moves from step to step at this rate, and with it the sizes of the experts' products. */
static void check_steady(const char *kernels, int32_t threads, int experts, int64_t micro_batches)
{
    calls n = {0, 0};
    moed_context *c = NULL;
    moed_context_options context;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &context, sizeof context));
    context.kernels = kernels, context.threads = threads;
    context.alloc = counting_alloc, context.free = counting_free, context.alloc_user = &n;
    assert_ok(moed_context_create(&c, &context));
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_model *m = tiny_model_of(c, 32, 2, experts, 512);
    moed_train_options o = tiny_options(12);
    moed_report r = empty_report();
    moed_trainer *t = NULL;
    o.micro_batches = micro_batches, o.learning_rate = 0.05;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
    assert_ok(moed_trainer_run(t, 1, &r, NULL));
    const calls first = n;
    assert_ok(moed_trainer_run(t, 10, &r, NULL));
    assert_int_equal(r.step, 11);
    assert_int_equal(n.made, first.made);
    assert_int_equal(n.ended, first.ended);
    moed_trainer_destroy(t), moed_model_destroy(m), moed_corpus_destroy(d), moed_context_destroy(c);
    assert_int_equal(n.made, n.ended);
}

static void no_memory_is_asked_for_after_the_first_step(void **state)
{
    (void)state;
    check_steady("auto", 1, 4, 1);
    check_steady("auto", 3, 4, 1);
    check_steady("auto", 2, 9, 1);
    check_steady("auto", 2, 4, 2);
    check_steady("reference", 2, 4, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(no_memory_is_asked_for_after_the_first_step)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
