/* tests/gpu/test_gpu.c - the library on a GPU beside the same on the CPU: gradients, 300 steps, checkpoints that go from one to
 * the other, steps as graphs, the caller's stream and allocator, limits, cancel, embedding, k-means and surgery. MOED_TEST_DEVICE
 * names the device (cuda:0). Run by `make check-gpu`. */
#include <dlfcn.h>
#include <fnmatch.h>

#include "train_support.h"

#include "device_pieces.h"

enum { WORDS = 64, DOCUMENTS = 400, DOCUMENT = 300 };

/* ---- text with something to learn and something left over: a random walk in which each word has four successors ---- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 31, x *= 0x7fb5d329728ea185u, x ^= x >> 27, x *= 0x81dadef4bc2dd44du;
    return x ^ x >> 33;
}
static int32_t walk_length(int64_t document, int64_t *tokens, void *user)
{
    (void)document, (void)user;
    *tokens = DOCUMENT;
    return 0;
}
static int32_t walk_read(int64_t document, int64_t offset, int32_t *tokens, int64_t count, void *user)
{
    int32_t word = (int32_t)(document % (WORDS - 1));
    (void)user;
    for (int64_t i = 0; i < offset + count; i++) {
        const uint64_t draw = mix((uint64_t)(document * 1000003 + i)) % 8;
        word = (int32_t)(mix((uint64_t)word * 4 + (draw < 4 ? 0 : draw < 6 ? 1 : draw - 4)) % (WORDS - 1));
        if (i >= offset) tokens[i - offset] = word;
    }
    return 0;
}

/* ---- contexts ---- */

static moed_context *context_on(const char *device, const char *kernels, int64_t limit)
{
    moed_context *c = NULL;
    moed_context_options o;
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.device = device, o.kernels = kernels, o.device_limit = limit;
    assert_ok(moed_context_create(&c, &o));
    return c;
}
static const char *gpu(void)
{
    const char *named = getenv("MOED_TEST_DEVICE");
    return named ? named : "cuda:0";
}

typedef struct bench {
    moed_context *context;
    moed_corpus *corpus;
    moed_model *model;
} bench;

static moed_corpus *walk_corpus(moed_context *c)
{
    return support_corpus(c, (moed_documents){.count = DOCUMENTS, .length = walk_length, .read = walk_read}, WORDS, WORDS - 1);
}
/* Switches that the models of the other tests have not: norms of queries and keys, whole or by head, biases of all projections,
 * positions by yarn, a layer without experts, shared experts without a switch, sigmoid scores with a selection bias, scaled
 * weights. */
#define WALK_FAMILY(type, more)                                                                                       \
    "{\"model_type\": \"" type "\", \"vocab_size\": 64, \"hidden_size\": 64, \"num_hidden_layers\": 3,"               \
    " \"num_attention_heads\": 4, \"num_key_value_heads\": 2, \"num_experts_per_tok\": 2, \"intermediate_size\": 96," \
    " \"initializer_range\": 0.1, " more "}"
static const char *const other_families[] = {
    WALK_FAMILY("olmoe",
                "\"num_experts\": 4, \"attention_bias\": true, \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}"),
    WALK_FAMILY("qwen3_moe",
                "\"num_experts\": 4, \"moe_intermediate_size\": 64, \"mlp_only_layers\": [1], \"norm_topk_prob\": true"),
    WALK_FAMILY("dots1",
                "\"n_routed_experts\": 4, \"n_shared_experts\": 2, \"moe_intermediate_size\": 64, \"first_k_dense_replace\": 1,"
                " \"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5"),
};
static bench bench_of(const char *device, const char *kernels, const char *config)
{
    bench b = {.context = context_on(device, kernels, 0)};
    b.corpus = walk_corpus(b.context);
    b.model = config ? support_biased(support_fresh(b.context, config, 7, -1), 0.1f) : tiny_model_of(b.context, 64, 3, 4, WORDS);
    return b;
}
static bench bench_on(const char *device, const char *kernels) { return bench_of(device, kernels, NULL); }
static void bench_close(bench *b)
{
    moed_model_destroy(b->model);
    moed_corpus_destroy(b->corpus);
    moed_context_destroy(b->context);
}
static moed_train_options walk_options(int64_t steps)
{
    moed_train_options o = tiny_options(steps);
    o.rows = 8, o.length = 64, o.learning_rate = 3e-3, o.micro_batches = 2;
    return o;
}

/* ---- gradients ---- */

/* All gradients of the first batch in float, one after the other; free() them. */
static float *gradients(const char *device, const char *kernels, const char *config, size_t *count, double *loss)
{
    bench b = bench_of(device, kernels, config);
    const moed_train_options o = walk_options(1);
    moed_trainer *t;
    moed_report r = empty_report();
    float *all = NULL;
    *count = 0;
    assert_ok(moed_trainer_create(&t, b.context, b.model, b.corpus, NULL, &o));
    assert_ok(moed_trainer_forward_backward(t, NULL, &r));
    *loss = r.loss;
    for (size_t p = 0; p < model_params(b.model); p++) {
        moed_tensor g;
        moed_param param;
        assert_ok(moed_layout_param(moed_model_layout(b.model), p, &param));
        if (param.flags & MOED_PARAM_FIXED) continue;
        assert_ok(moed_trainer_gradient(t, p, &g));
        size_t n = 1;
        for (int32_t i = 0; i < g.rank; i++) n *= (size_t)g.shape[i];
        all = realloc(all, (*count + n) * sizeof *all);
        for (size_t i = 0; i < n; i++) {
            const uint32_t bits = g.dtype == MOED_DTYPE_BF16 ? (uint32_t)((const uint16_t *)g.data)[i] << 16
                                                             : ((const uint32_t *)g.data)[i];
            memcpy(all + *count + i, &bits, sizeof bits);
        }
        *count += n;
    }
    moed_trainer_destroy(t);
    bench_close(&b);
    return all;
}

static void compare_gradients(const char *config, double narrow)
{
    const struct { const char *kernels; double bound; } cases[] = {{"f32", 2e-5}, {"bf16", narrow}};
    size_t count, other;
    double loss, its_loss;
    float *want = gradients("cpu", "auto", config, &count, &loss);
    for (int i = 0; i < 2; i++) {
        float *got = gradients(gpu(), cases[i].kernels, config, &other, &its_loss);
        double square = 0, difference = 0;
        assert_int_equal(other, count);
        for (size_t k = 0; k < count; k++) {
            square += (double)want[k] * (double)want[k];
            difference += ((double)got[k] - (double)want[k]) * ((double)got[k] - (double)want[k]);
        }
        print_message("%s: gradients differ by %.2e of their norm, losses by %.2e\n", cases[i].kernels, sqrt(difference / square),
                      fabs(loss - its_loss));
        assert_true(sqrt(difference / square) < cases[i].bound);
        assert_true(fabs(loss - its_loss) < cases[i].bound * loss);
        free(got);
    }
    free(want);
}

static void gradients_are_those_of_the_cpu(void **state)
{
    (void)state;
    compare_gradients(NULL, 3e-2);
}
/* In bf16 a few of the tokens choose other experts: near ties are more among these. */
static void gradients_of_other_families_are_those_of_the_cpu(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof other_families / sizeof *other_families; i++) compare_gradients(other_families[i], 1e-1);
}

/* ---- many steps ---- */

static double mean_of_last_losses(const char *device, const char *kernels, int32_t policy)
{
    enum { STEPS = 300, LAST = 50 };
    bench b = bench_on(device, kernels);
    moed_train_options o = walk_options(STEPS);
    moed_trainer *t;
    moed_report r = empty_report();
    double sum = 0;
    o.policy = policy;
    assert_ok(moed_trainer_create(&t, b.context, b.model, b.corpus, NULL, &o));
    for (int step = 1; step <= STEPS; step++) {
        assert_ok(moed_trainer_run(t, 1, &r, NULL));
        if (step > STEPS - LAST) sum += r.loss;
    }
    moed_trainer_destroy(t);
    bench_close(&b);
    return sum / LAST;
}

static void three_hundred_steps_end_where_the_cpu_ends(void **state)
{
    static const struct { const char *kernels; int32_t policy; } cases[] = {
        {"f32", MOED_POLICY_FULL}, {"bf16", MOED_POLICY_FULL}, {"f32", MOED_POLICY_LEAN}, {"bf16", MOED_POLICY_LEAN}};
    const double cpu = mean_of_last_losses("cpu", "auto", MOED_POLICY_FULL);
    (void)state;
    print_message("mean loss of the last 50 of 300 steps: CPU %.5f\n", cpu);
    for (int i = 0; i < 4; i++) {
        const double got = mean_of_last_losses(gpu(), cases[i].kernels, cases[i].policy);
        print_message("    %s, %s: %.5f (%+.3f%%)\n", cases[i].kernels, cases[i].policy == MOED_POLICY_LEAN ? "lean" : "full",
                      got, 100 * (got / cpu - 1));
        assert_true(fabs(got / cpu - 1) < 0.005);
    }
}

/* Of the last 40 of 200 steps of the family with selection biases, whose pool doubles after 100. each: MOED_BALANCE_*.
 * load [out]: of the largest loads there, the mean; 2.3 where biases rest. */
static double mean_after_growth(const char *device, const char *kernels, int32_t each, double *load)
{
    enum { STEPS = 200, LAST = 40 };
    bench b = bench_of(device, kernels, other_families[2]);
    moed_train_options o = walk_options(STEPS);
    moed_expansion_options grown;
    moed_trainer *t;
    moed_report r = empty_report();
    double sum = 0;
    o.schedule = MOED_SCHEDULE_CONSTANT, o.balance_rate = 1e-2, o.load_balance = 0, o.policy = MOED_POLICY_FULL;
    o.balance_each = each;
    if (each == MOED_BALANCE_MICRO_BATCH) o.micro_batches = 4;
    *load = 0;
    assert_ok(moed_options_init(MOED_STRUCT_EXPANSION_OPTIONS, &grown, sizeof grown));
    grown.experts = 8, grown.seed = 5;
    assert_ok(moed_trainer_create(&t, b.context, b.model, b.corpus, NULL, &o));
    assert_ok(moed_trainer_run(t, STEPS / 2, &r, NULL));
    assert_ok(moed_trainer_expand(t, NULL, &grown, 1));
    for (int step = STEPS / 2 + 1; step <= STEPS; step++) {
        assert_ok(moed_trainer_run(t, 1, &r, NULL));
        if (step <= STEPS - LAST) continue;
        sum += r.loss, *load += r.max_load / LAST;
    }
    moed_trainer_destroy(t);
    bench_close(&b);
    return sum / LAST;
}

static void a_pool_that_grows_ends_where_the_cpus_ends(void **state)
{
    static const char *const kernels[] = {"f32", "bf16"}, *const when[] = {"step", "micro-batch"};
    (void)state;
    for (int32_t each = MOED_BALANCE_STEP; each <= MOED_BALANCE_MICRO_BATCH; each++) {
        double load;
        const double cpu = mean_after_growth("cpu", "auto", each, &load);
        print_message("mean loss of the last 40 of 200 steps, 4 then 8 experts, balanced after each %s: CPU %.5f, largest load "
                      "%.2f of the mean\n", when[each], cpu, load);
        for (int i = 0; i < 2; i++) {
            const double got = mean_after_growth(gpu(), kernels[i], each, &load);
            print_message("    %s: %.5f (%+.3f%%), %.2f\n", kernels[i], got, 100 * (got / cpu - 1), load);
            assert_true(fabs(got / cpu - 1) < 0.01 && load < 2);
        }
    }
}

/* ---- checkpoints ---- */

/* Resumes in dir when there is something, runs to `steps`, saves; the numbers then. */
static float *go_on(const char *device, const char *kernels, int32_t policy, const char *dir, int resume, int64_t to,
                    size_t *count)
{
    bench b = bench_on(device, kernels);
    moed_train_options o = walk_options(9);
    moed_trainer *t;
    moed_report r = empty_report();
    o.directory = dir, o.policy = policy;
    assert_ok(moed_trainer_create(&t, b.context, b.model, b.corpus, NULL, &o));
    if (resume) assert_ok(moed_trainer_resume(t));
    if (to) {
        assert_ok(moed_trainer_run(t, to, &r, NULL));
        assert_ok(moed_trainer_save(t));
    }
    moed_trainer_destroy(t);
    float *numbers = model_numbers(b.model, count);
    bench_close(&b);
    return numbers;
}

/* Each reads what is there, goes on by two steps, and the next one reads that. */
static void pass_on(int32_t policy)
{
    static const struct { const char *device, *kernels; } readers[] = {{"cpu", "auto"}, {NULL, "f32"}, {NULL, "bf16"}};
    char *dir = support_directory();
    size_t count, other;
    float *trained = go_on(gpu(), "bf16", policy, dir, 0, 3, &count);
    for (int i = 0; i < 3; i++) {
        const char *device = readers[i].device ? readers[i].device : gpu();
        /* the only ones that hold less */
        const int rounds = policy == MOED_POLICY_LEAN && strcmp(readers[i].kernels, "bf16") == 0;
        float *read = go_on(device, readers[i].kernels, policy, dir, 1, 0, &other);
        assert_int_equal(other, count);
        for (size_t k = 0; k < count; k++)
            assert_true(rounds ? fabsf(read[k] - trained[k]) <= fabsf(trained[k]) / 256 : read[k] == trained[k]);
        free(read);
        free(trained);
        trained = go_on(device, readers[i].kernels, policy, dir, 1, 2, &count);
    }
    free(trained);
    support_remove(dir);
}

static void a_checkpoint_goes_from_gpu_to_cpu_and_back_without_losing_a_bit(void **state)
{
    (void)state;
    pass_on(MOED_POLICY_FULL);
}

static void a_lean_checkpoint_goes_from_gpu_to_cpu_and_back(void **state)
{
    (void)state;
    pass_on(MOED_POLICY_LEAN);
}

/* ---- limits, cancel ---- */

static void a_device_limit_is_refused_with_the_figure(void **state)
{
    moed_context *c = context_on(gpu(), "bf16", 1 << 20);
    moed_model *m = tiny_model_of(c, 64, 3, 4, WORDS);
    moed_corpus *d = tiny_corpus(c, NULL);
    const moed_train_options o = walk_options(1);
    moed_trainer *t = NULL;
    (void)state;
    assert_int_equal(moed_trainer_create(&t, c, m, d, NULL, &o), MOED_E_LIMIT);
    assert_non_null(strstr(moed_last_error(), "1048576"));
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
}

/* What is computed beforehand is enough: the engine refuses what goes beyond the limit. Logits, attention and the sums of the
 * norm's gradients have the most scratch in turn. */
static void a_run_takes_no_more_than_the_estimate(void **state)
{
    static const struct { const char *kernels; int vocabulary; int64_t rows, length; int32_t masked, policy; } cases[] = {
        {"bf16", 120000, 16, 256, 0, MOED_POLICY_FULL}, {"bf16", WORDS, 64, 256, 0, MOED_POLICY_FULL},
        {"bf16", WORDS, 16, 250, 1, MOED_POLICY_LEAN},  {"bf16", WORDS, 2, 8, 1, MOED_POLICY_FULL},
        {"f32", 120000, 16, 256, 1, MOED_POLICY_LEAN},  {"f32", WORDS, 16, 256, 1, MOED_POLICY_FULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        moed_estimate e = {.struct_size = sizeof e};
        moed_train_options o = walk_options(3);
        moed_trainer *t = NULL;
        o.rows = cases[i].rows, o.length = cases[i].length, o.document_mask = cases[i].masked, o.policy = cases[i].policy;
        moed_context *c = context_on(gpu(), cases[i].kernels, 0);
        moed_model *m = tiny_model_of(c, 64, 3, 4, cases[i].vocabulary);
        assert_ok(moed_train_estimate(moed_model_layout(m), NULL, &o, &e));
        moed_model_destroy(m);
        moed_context_destroy(c);
        print_message("%s, vocabulary %d, %d x %d: %.1f MB, of them %.1f activations and workspace\n", cases[i].kernels,
                      cases[i].vocabulary, (int)o.rows, (int)o.length, 1e-6 * (double)e.device_bytes,
                      1e-6 * (double)e.activations);
        c = context_on(gpu(), cases[i].kernels, e.device_bytes);
        m = tiny_model_of(c, 64, 3, 4, cases[i].vocabulary);
        moed_corpus *d = walk_corpus(c);
        assert_ok(moed_trainer_create(&t, c, m, d, NULL, &o));
        assert_ok(moed_trainer_run(t, 0, NULL, NULL));
        moed_trainer_destroy(t);
        moed_corpus_destroy(d);
        moed_model_destroy(m);
        moed_context_destroy(c);
    }
}

static void a_cancelled_step_leaves_nothing_behind(void **state)
{
    bench b = bench_on(gpu(), "bf16");
    const moed_train_options o = walk_options(4);
    moed_trainer *t;
    moed_cancel *cancel;
    moed_report r = empty_report();
    (void)state;
    assert_ok(moed_cancel_create(&cancel));
    assert_ok(moed_trainer_create(&t, b.context, b.model, b.corpus, NULL, &o));
    assert_ok(moed_trainer_run(t, 1, &r, NULL));
    const double first = r.loss;
    moed_cancel_request(cancel);
    assert_int_equal(moed_trainer_run(t, 1, &r, cancel), MOED_E_CANCELLED);
    assert_ok(moed_trainer_run(t, 1, &r, NULL));
    assert_true(r.step == 2 && isfinite(r.loss) && r.loss < 2 * first);
    moed_trainer_destroy(t);
    moed_cancel_destroy(cancel);
    bench_close(&b);
}

/* ---- a step as a graph ---- */

/* With the same options, twice in the ordinary way and once as graphs: bits where the ordinary way has them, else within
 * noise. */
static void a_step_as_a_graph_is_the_ordinary_one(void **state)
{
    int long_runs = 0, exact = 0;
    (void)state;
    for (int i = 0; i < POISONED_CASES; i++) {
        moed_train_options o = poisoned_options(i);
        float *numbers[3];
        double losses[3][POISONED_STEPS];
        int done[3];
        size_t count[3];
        for (int k = 0; k < 3; k++) {
            moed_context *c = context_on(gpu(), i % 2 ? "bf16" : "f32", 0);
            o.graph = k == 2;
            numbers[k] = poisoned_steps(c, &o, losses[k], &done[k], &count[k]);
            moed_context_destroy(c);
        }
        assert_true(done[1] == done[0] && done[2] == done[0] && count[2] == count[0]);
        const size_t bytes = count[0] * sizeof(float);
        const int same = !memcmp(numbers[0], numbers[1], bytes);
        if (same) assert_memory_equal(numbers[2], numbers[0], bytes);
        for (int s = 0; s < done[0]; s++) assert_true(fabs(losses[2][s] - losses[0][s]) <= (same ? 0 : 1e-3) * losses[0][s]);
        for (int k = 0; k < 3; k++) free(numbers[k]);
        exact += same;
        long_runs += done[0] >= 3 && done[0] < POISONED_STEPS; /* the refused step was a graph */
    }
    print_message("the ordinary way gives the same bits twice in %d of %d cases; a graph refused a step in %d\n", exact,
                  (int)POISONED_CASES, long_runs);
    assert_true(long_runs >= 3);
}

/* 20 steps with text: the largest difference of a loss, as a share. */
static void twenty_steps_as_graphs_are_those_without(void **state)
{
    enum { STEPS = 20 };
    double losses[2][STEPS];
    (void)state;
    for (int graph = 0; graph < 2; graph++) {
        bench b = bench_on(gpu(), "bf16");
        moed_train_options o = walk_options(STEPS);
        moed_trainer *t;
        moed_report r = empty_report();
        o.graph = graph, o.micro_batches = 4, o.document_mask = 1;
        assert_ok(moed_trainer_create(&t, b.context, b.model, b.corpus, NULL, &o));
        for (int s = 0; s < STEPS; s++) {
            assert_ok(moed_trainer_run(t, 1, &r, NULL));
            losses[graph][s] = r.loss;
            if (s == 9) assert_ok(moed_trainer_evaluate(t, b.corpus, 1000, &r, NULL)); /* takes other memory of the engine */
        }
        moed_trainer_destroy(t);
        bench_close(&b);
    }
    double most = 0;
    for (int s = 0; s < STEPS; s++) most = fmax(most, fabs(losses[1][s] / losses[0][s] - 1));
    print_message("20 steps with and without a graph: losses differ by %.1e at most\n", most);
    assert_true(most < 1e-2);
}

/* ---- the caller's stream, events and device allocator: the driver's own calls, as a host of the library would make them ---- */

static struct driver {
    int (*cuInit)(unsigned);
    int (*cuDeviceGet)(int *, int);
    int (*cuDevicePrimaryCtxRetain)(void **, int);
    int (*cuDevicePrimaryCtxRelease_v2)(int);
    int (*cuCtxSetCurrent)(void *);
    int (*cuCtxGetCurrent)(void **);
    int (*cuDevicePrimaryCtxGetState)(int, unsigned *, int *);
    int (*cuStreamCreate)(void **, unsigned);
    int (*cuStreamSynchronize)(void *);
    int (*cuStreamQuery)(void *);
    int (*cuStreamDestroy_v2)(void *);
    int (*cuEventCreate)(void **, unsigned);
    int (*cuEventRecord)(void *, void *);
    int (*cuEventQuery)(void *);
    int (*cuEventDestroy_v2)(void *);
    int (*cuMemAlloc_v2)(unsigned long long *, size_t);
    int (*cuMemFree_v2)(unsigned long long);
} driver;

static int load_driver(void)
{
    static const char *const names[] = {"cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2",
                                        "cuCtxSetCurrent", "cuCtxGetCurrent", "cuDevicePrimaryCtxGetState", "cuStreamCreate",
                                        "cuStreamSynchronize", "cuStreamQuery", "cuStreamDestroy_v2", "cuEventCreate",
                                        "cuEventRecord", "cuEventQuery", "cuEventDestroy_v2", "cuMemAlloc_v2", "cuMemFree_v2"};
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), **slots = (void **)&driver;
    for (size_t i = 0; library && i < sizeof names / sizeof *names; i++)
        if (!(slots[i] = dlsym(library, names[i]))) return 0;
    return library != NULL;
}

typedef struct device_memory {
    int64_t blocks, bytes, calls;
    void *stream;
} device_memory;

static void *take(size_t size, void *stream, void *user)
{
    device_memory *m = user;
    unsigned long long at = 0;
    assert_ptr_equal(stream, m->stream);
    if (driver.cuMemAlloc_v2(&at, size) != 0) return NULL;
    m->blocks++, m->calls++, m->bytes += (int64_t)size;
    return (void *)(uintptr_t)at;
}
static void give_back(void *memory, size_t size, void *stream, void *user)
{
    device_memory *m = user;
    assert_ptr_equal(stream, m->stream);
    m->blocks--, m->bytes -= (int64_t)size;
    assert_int_equal(driver.cuMemFree_v2((unsigned long long)(uintptr_t)memory), 0);
}

/* What a thread had current it has afterwards: nothing, even. */
static void the_current_context_is_left_alone(void **state)
{
    void *current = &current;
    int device = 0, active = 0;
    unsigned flags;
    (void)state;
    if (!load_driver() || strncmp(gpu(), "cuda:", 5) != 0) skip();
    assert_int_equal(driver.cuInit(0), 0);
    assert_int_equal(driver.cuCtxSetCurrent(NULL), 0);
    moed_context *c = context_on(gpu(), "bf16", 0);
    moed_model *m = tiny_model_of(c, 64, 3, 4, TINY_VOCABULARY);
    moed_corpus *d = tiny_corpus(c, NULL);
    const moed_train_options options = tiny_options(3);
    moed_trainer *t;
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &options));
    assert_ok(moed_trainer_run(t, 0, NULL, NULL));
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
    assert_int_equal(driver.cuCtxGetCurrent(&current), 0);
    assert_null(current);
    if (atoi(gpu() + 5) == 0) return; /* else device 0 was not touched, unless another test did */
    assert_int_equal(driver.cuDeviceGet(&device, 0), 0);
    assert_int_equal(driver.cuDevicePrimaryCtxGetState(device, &flags, &active), 0);
    assert_int_equal(active, 0);
}

static void stream_events_and_memory_are_the_callers(void **state)
{
    void *primary = NULL, *event = NULL;
    int device = 0;
    device_memory memory = {0};
    moed_context *c = NULL;
    moed_context_options o;
    (void)state;
    if (!load_driver() || strncmp(gpu(), "cuda:", 5) != 0) skip();
    assert_int_equal(driver.cuInit(0), 0);
    assert_int_equal(driver.cuDeviceGet(&device, atoi(gpu() + 5)), 0);
    assert_int_equal(driver.cuDevicePrimaryCtxRetain(&primary, device), 0);
    assert_int_equal(driver.cuCtxSetCurrent(primary), 0);
    assert_int_equal(driver.cuStreamCreate(&memory.stream, 1), 0);
    assert_int_equal(driver.cuEventCreate(&event, 2), 0);
    assert_ok(moed_options_init(MOED_STRUCT_CONTEXT_OPTIONS, &o, sizeof o));
    o.device = gpu(), o.kernels = "bf16", o.stream = memory.stream;
    o.device_alloc = take, o.device_free = give_back, o.device_alloc_user = &memory;
    assert_ok(moed_context_create(&c, &o));
    moed_model *m = tiny_model_of(c, 64, 3, 4, TINY_VOCABULARY);
    moed_corpus *d = tiny_corpus(c, NULL);
    moed_train_options options = tiny_options(6);
    options.document_mask = 0; /* the first step has met all shapes */
    moed_trainer *t;
    moed_report r = empty_report();
    assert_int_equal(driver.cuEventRecord(event, memory.stream), 0);
    assert_ok(moed_context_wait_event(c, event));
    assert_ok(moed_trainer_create(&t, c, m, d, NULL, &options));
    assert_true(memory.blocks > 0);
    assert_ok(moed_trainer_run(t, 2, &r, NULL));
    const int64_t calls = memory.calls;
    assert_ok(moed_trainer_run(t, 0, &r, NULL));
    assert_int_equal(memory.calls, calls);
    assert_ok(moed_context_record_event(c, event));
    assert_int_equal(driver.cuStreamSynchronize(memory.stream), 0);
    assert_int_equal(driver.cuEventQuery(event), 0);
    moed_trainer_destroy(t);
    moed_corpus_destroy(d);
    moed_model_destroy(m);
    moed_context_destroy(c);
    assert_true(memory.blocks == 0 && memory.bytes == 0);
    assert_int_equal(driver.cuStreamQuery(memory.stream), 0); /* it is still there */
    assert_int_equal(driver.cuEventDestroy_v2(event), 0);
    assert_int_equal(driver.cuStreamDestroy_v2(memory.stream), 0);
    assert_int_equal(driver.cuDevicePrimaryCtxRelease_v2(device), 0);
}

/* ---- embedding, clusters ---- */

static void embedding_and_clusters_are_those_of_the_cpu(void **state)
{
    float *vectors[2];
    int32_t labels[2][DOCUMENTS];
    int same = 0;
    (void)state;
    for (int i = 0; i < 2; i++) {
        bench b = bench_on(i ? gpu() : "cpu", i ? "f32" : "auto");
        moed_kmeans *k;
        moed_kmeans_options o;
        vectors[i] = calloc(DOCUMENTS * 64, sizeof(float));
        moed_tensor x = support_tensor(vectors[i], MOED_DTYPE_F32, DOCUMENTS, 64);
        assert_ok(moed_corpus_embed(b.corpus, b.model, &x, NULL, NULL));
        assert_ok(moed_options_init(MOED_STRUCT_KMEANS_OPTIONS, &o, sizeof o));
        o.clusters = 4;
        assert_ok(moed_kmeans_create(&k, b.context, &o));
        assert_ok(moed_kmeans_fit(k, &x, NULL, NULL, NULL));
        assert_ok(moed_kmeans_labels(k, labels[i], DOCUMENTS));
        moed_kmeans_destroy(k);
        bench_close(&b);
    }
    for (int i = 0; i < DOCUMENTS * 64; i++) assert_true(fabsf(vectors[0][i] - vectors[1][i]) < 1e-6f);
    for (int i = 0; i < DOCUMENTS; i++) same += labels[0][i] == labels[1][i];
    print_message("%d of %d documents in the same cluster\n", same, DOCUMENTS);
    assert_true(same >= DOCUMENTS * 98 / 100);
    free(vectors[0]), free(vectors[1]);
}

/* ---- surgery ---- */

static void surgery_in_gpu_memory_gives_the_bits_of_the_host(void **state)
{
    moed_context *c = context_on(gpu(), "bf16", 0);
    (void)state;
    check_device_surgery(c);
    moed_context_destroy(c);
}

/* test_gpu [TEST]: a name, or one with * in it. */
int main(int count, char **arguments)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_those_of_the_cpu),
        cmocka_unit_test(gradients_of_other_families_are_those_of_the_cpu),
        cmocka_unit_test(three_hundred_steps_end_where_the_cpu_ends),
        cmocka_unit_test(a_pool_that_grows_ends_where_the_cpus_ends),
        cmocka_unit_test(a_checkpoint_goes_from_gpu_to_cpu_and_back_without_losing_a_bit),
        cmocka_unit_test(a_lean_checkpoint_goes_from_gpu_to_cpu_and_back),
        cmocka_unit_test(a_device_limit_is_refused_with_the_figure),
        cmocka_unit_test(a_run_takes_no_more_than_the_estimate),
        cmocka_unit_test(a_cancelled_step_leaves_nothing_behind),
        cmocka_unit_test(a_step_as_a_graph_is_the_ordinary_one),
        cmocka_unit_test(twenty_steps_as_graphs_are_those_without),
        cmocka_unit_test(the_current_context_is_left_alone),
        cmocka_unit_test(stream_events_and_memory_are_the_callers),
        cmocka_unit_test(embedding_and_clusters_are_those_of_the_cpu),
        cmocka_unit_test(surgery_in_gpu_memory_gives_the_bits_of_the_host),
    };
    size_t chosen = 0;
    for (size_t i = 0; count > 1 && i < sizeof tests / sizeof *tests; i++) chosen += !fnmatch(arguments[1], tests[i].name, 0);
    if (count > 1 && chosen == 0) return fprintf(stderr, "test_gpu: no test is called %s\n", arguments[1]), 2;
    if (count > 1) cmocka_set_test_filter(arguments[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
