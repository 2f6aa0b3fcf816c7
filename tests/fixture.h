/* tests/fixture.h - a folder and a context (plain kernels, one thread) for each test; T(test): its line in main. Include after
 * support.h. */
#ifndef MOEDI_TEST_FIXTURE_H
#define MOEDI_TEST_FIXTURE_H

static char *dir;
static moed_context *context;

static int setup(void **state)
{
    (void)state;
    dir = support_directory();
    context = support_context("reference", 1);
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    support_close(context);
    support_remove(dir);
    return 0;
}
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
