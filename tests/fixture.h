/* tests/fixture.h - a context for each test, or for all of a program, with FIXTURE_KERNELS and FIXTURE_THREADS (plain kernels,
 * one thread); with FIXTURE_FOLDER a folder too. Also the test's state. T(test): its line in main. Include after support.h. */
#ifndef MOEDI_TEST_FIXTURE_H
#define MOEDI_TEST_FIXTURE_H

#ifndef FIXTURE_KERNELS
#define FIXTURE_KERNELS "reference"
#endif
#ifndef FIXTURE_THREADS
#define FIXTURE_THREADS 1
#endif

static moed_context *context;
#ifdef FIXTURE_FOLDER
static char *dir;
#endif

static int setup(void **state)
{
    *state = context = support_context(FIXTURE_KERNELS, FIXTURE_THREADS);
#ifdef FIXTURE_FOLDER
    dir = support_directory();
#endif
    return 0;
}
static int teardown(void **state)
{
    (void)state;
    support_close(context);
#ifdef FIXTURE_FOLDER
    support_remove(dir);
#endif
    return 0;
}
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
