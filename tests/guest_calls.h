/* tests/guest_calls.h - every public call that takes a handle, made in a child of fork() with the parent's handles: each has to
 * say so. Include after guest_support.h. */
#ifndef MOEDI_TEST_GUEST_CALLS_H
#define MOEDI_TEST_GUEST_CALLS_H

/* Every public call that takes a handle, on handles of the parent. A name that is not here or in `exempt` is missing from the
 * list below. */
static int refused;
static char unrefused[2048];

#define CHILD(name, ...)                                                              \
    do {                                                                              \
        static const char entry[] = #name " ";                                       \
        if (name(__VA_ARGS__) == MOED_E_FORKED && strstr(moed_last_error(), "fork")) refused++; \
        else strncat(unrefused, entry, sizeof unrefused - strlen(unrefused) - 1);     \
    } while (0)

static void call_data(const guest *g)
{
    moed_corpus *d = NULL, *e = NULL;
    moed_corpus_info corpus = {.struct_size = sizeof corpus};
    moed_kmeans_info kmeans = {.struct_size = sizeof kmeans};
    moed_partition_info partition = {.struct_size = sizeof partition};
    moed_kmeans *k = NULL;
    moed_partition *p = NULL;
    const char *const paths[] = {"/nowhere"};
    const moed_documents documents = {
        .struct_size = sizeof documents, .count = TINY_DOCUMENTS, .length = tiny_length, .read = tiny_read};
    int32_t tokens[64], labels[64];
    int64_t number = 0;
    float weights[64];
    moed_tensor x = support_tensor(g->vectors, MOED_DTYPE_F32, g->documents, GUEST_HIDDEN);
    CHILD(moed_corpus_build, g->context, paths, 1, "/nowhere/corpus", NULL, NULL, NULL);
    CHILD(moed_corpus_open, &d, g->context, "/nowhere/corpus", NULL);
    CHILD(moed_corpus_wrap, &d, g->context, &documents, NULL);
    CHILD(moed_corpus_get_info, g->corpus, &corpus);
    CHILD(moed_corpus_read, g->corpus, 0, 0, tokens, 64, &number);
    CHILD(moed_corpus_source_document, g->train, 0, &number);
    CHILD(moed_corpus_subset, &d, g->corpus, &number, 1);
    CHILD(moed_corpus_divide, &d, &e, g->corpus, 0.5, 1);
    CHILD(moed_corpus_save, g->corpus, "/nowhere/corpus", NULL);
    CHILD(moed_corpus_sample, g->corpus, 1, 0, 1, 8, tokens, labels, NULL);
    CHILD(moed_corpus_embed, g->corpus, g->model, &x, NULL, NULL);
    CHILD(moed_corpus_weights, g->corpus, weights);
    CHILD(moed_kmeans_create, &k, g->context, NULL);
    CHILD(moed_kmeans_fit, g->kmeans, &x, NULL, NULL, NULL);
    CHILD(moed_kmeans_labels, g->kmeans, labels, g->documents);
    CHILD(moed_kmeans_assign, g->kmeans, &x, labels, NULL, NULL);
    const moed_vectors vectors = {.struct_size = sizeof vectors};
    CHILD(moed_kmeans_fit_stream, g->kmeans, &vectors, NULL, NULL, NULL);
    CHILD(moed_kmeans_assign_stream, g->kmeans, &vectors, labels, NULL, NULL);
    CHILD(moed_kmeans_get_info, g->kmeans, &kmeans);
    CHILD(moed_partition_create, &p, g->context, labels, 1, 1, NULL, NULL);
    CHILD(moed_partition_open, &p, g->context, "/nowhere");
    CHILD(moed_partition_save, g->partition, "/nowhere/p");
    CHILD(moed_partition_get_info, g->partition, &partition);
    CHILD(moed_partition_view, &d, g->partition, g->corpus, 0);
}

static void call_models(const guest *g)
{
    const moed_layout *l = moed_model_layout(g->model);
    moed_layout *layout = NULL;
    moed_model *m = NULL;
    moed_layout_info info = {.struct_size = sizeof info};
    moed_param param;
    int32_t tokens[4] = {1, 2, 3, 4}, experts[64];
    float numbers[4 * GUEST_VOCABULARY];
    double usage[2 * GUEST_PARTS];
    const moed_batch b = {.tokens = tokens, .rows = 1, .length = 4};
    moed_tensor out = {.data = numbers, .dtype = MOED_DTYPE_F32, .rank = 3, .shape = {1, 4, GUEST_VOCABULARY},
                       .strides = {4 * GUEST_VOCABULARY, GUEST_VOCABULARY, 1}}, view;
    moed_tensor x = support_tensor(numbers, MOED_DTYPE_F32, 4, 0), y = support_tensor(numbers + 8, MOED_DTYPE_F32, 4, 0);
    const moed_tensor *sources[] = {&x};
    const moed_piece piece = {.op = MOED_PIECE_COPY, .count = 4, .scale = 1};
    moed_report r = empty_report();
    moed_context_info context = {.struct_size = sizeof context};
    CHILD(moed_context_get_info, g->context, &context);
    int event = 0;
    CHILD(moed_context_wait_event, g->context, &event);
    CHILD(moed_context_record_event, g->context, &event);
    CHILD(moed_layout_create, &layout, g->context, &param, 1);
    CHILD(moed_layout_from_config, &layout, g->context, "{}", 2);
    CHILD(moed_layout_get_info, l, &info);
    CHILD(moed_layout_param, l, 0, &param);
    CHILD(moed_piece_apply, g->context, &piece, 1, sources, &y, NULL);
    CHILD(moed_model_open, &m, g->context, "/nowhere", NULL);
    CHILD(moed_model_inspect, g->context, "/nowhere", NULL, NULL, NULL, &(int64_t){0}, NULL);
    CHILD(moed_model_init, &m, g->context, l, NULL);
    CHILD(moed_model_borrow, &m, g->context, l, &x, 1, NULL, NULL);
    CHILD(moed_model_tensor, g->model, 0, &view);
    CHILD(moed_model_logits, g->model, &b, &out, NULL);
    const moed_batch labelled = {.tokens = tokens, .labels = tokens, .rows = 1, .length = 4};
    CHILD(moed_model_likelihood, g->model, &labelled, usage, NULL, NULL);
    CHILD(moed_model_routing, g->model, &b, experts, NULL, NULL);
    CHILD(moed_model_save, g->model, "/nowhere/m", NULL);
    CHILD(moed_model_usage, g->model, g->corpus, 0, usage, NULL, NULL);
    CHILD(moed_model_fit_gate, g->model, g->corpus, g->partition, 0, 1, numbers, NULL);
    CHILD(moed_model_evaluate, g->model, g->corpus, 0, 1, 8, 1, &r, NULL);
}

static void call_surgery_and_training(const guest *g)
{
    const moed_layout *l = moed_model_layout(g->model);
    moed_split *s = NULL;
    moed_integration *i = NULL;
    moed_model *m = NULL;
    moed_trainer *t = NULL;
    moed_train_options o;
    moed_options_init(MOED_STRUCT_TRAIN_OPTIONS, &o, sizeof o);
    moed_estimate estimate = {.struct_size = sizeof estimate};
    moed_integration_info integration = {.struct_size = sizeof integration};
    moed_trainer_info trainer = {.struct_size = sizeof trainer};
    moed_report r = empty_report();
    int32_t expert = 0, count32;
    size_t count;
    double numbers[2 * GUEST_PARTS] = {0};
    moed_tensor view = {.data = numbers};
    moed_model *made = NULL;
    CHILD(moed_model_upcycle, &made, g->model, NULL, NULL, NULL);
    CHILD(moed_split_create, &s, l, NULL);
    CHILD(moed_split_assign, g->split, 0, -1, &expert, 1);
    CHILD(moed_split_assign_usage, g->split, numbers, NULL);
    CHILD(moed_split_assign_from, g->split, 0, moed_model_layout(g->model));
    CHILD(moed_split_experts, g->split, 0, 0, NULL, 0, &count32);
    CHILD(moed_split_pieces, g->split, 0, 0, NULL, 0, &count);
    CHILD(moed_split_build, &m, g->split, 0, g->model, NULL, NULL);
    if (!moed_split_layout(g->split, 0) && strstr(moed_last_error(), "fork")) refused++;
    else strncat(unrefused, "moed_split_layout ", sizeof unrefused - strlen(unrefused) - 1);
    CHILD(moed_integration_create, &i, g->split, g->model, NULL);
    CHILD(moed_integration_add, g->integration, 0, g->parts[0], 1);
    CHILD(moed_integration_weights, g->integration, numbers);
    CHILD(moed_integration_pieces, g->integration, 0, NULL, 0, &count);
    CHILD(moed_integration_set_gate, g->integration, -1, &view);
    CHILD(moed_integration_set_scale, g->integration, numbers, 2);
    CHILD(moed_integration_get_info, g->integration, &integration);
    CHILD(moed_integration_finish, &m, g->integration, NULL, NULL);
    CHILD(moed_train_estimate, l, NULL, &o, &estimate);
    CHILD(moed_trainer_create, &t, g->context, g->model, g->corpus, NULL, &o);
    CHILD(moed_trainer_get_info, g->trainer, &trainer);
    CHILD(moed_trainer_run, g->trainer, 1, NULL, NULL);
    CHILD(moed_trainer_forward_backward, g->trainer, NULL, NULL);
    CHILD(moed_trainer_gradient, g->trainer, 0, &view);
    CHILD(moed_trainer_update, g->trainer, 1, NULL);
    CHILD(moed_trainer_evaluate, g->trainer, g->corpus, 0, &r, NULL);
    CHILD(moed_trainer_save, g->trainer);
    CHILD(moed_trainer_resume, g->trainer);
}

static void call_growth(const guest *g)
{
    moed_expansion *expansion = NULL;
    moed_model *m = NULL;
    size_t size;
    int64_t loads[1];
    CHILD(moed_expansion_create, &expansion, g->model, NULL, NULL);
    CHILD(moed_expansion_pieces, g->expansion, 0, 0, NULL, 0, &size);
    CHILD(moed_expansion_build, &m, g->expansion, NULL, NULL);
    CHILD(moed_trainer_expand, g->trainer, NULL, NULL, 0);
    CHILD(moed_trainer_loads, g->trainer, loads, 1);
}

static void call_laws(const guest *g)
{
    static const int32_t experts[] = {2, 4};
    const moed_run_point run = {1e8, 1, 1e9, 3};
    const moed_stage stage = {.struct_size = sizeof stage, .experts = 1, .tokens = 1};
    moed_law *l = NULL;
    moed_growth *w = NULL;
    moed_law_info law = {.struct_size = sizeof law};
    moed_coefficient coefficient = {.struct_size = sizeof coefficient};
    moed_law_terms terms = {.struct_size = sizeof terms};
    moed_growth_info growth = {.struct_size = sizeof growth};
    moed_growth_point point = {.struct_size = sizeof point};
    moed_stage out = {.struct_size = sizeof out};
    double x, y;
    char state[1024];
    size_t size;
    CHILD(moed_law_create, &l, g->context, NULL);
    CHILD(moed_law_fit, &l, g->context, &run, 1, NULL, NULL);
    CHILD(moed_law_get_info, g->law, &law);
    CHILD(moed_law_coefficient, g->law, 0, &coefficient);
    CHILD(moed_law_predict, g->law, 1e8, 2, 1e9, &x);
    CHILD(moed_law_get_terms, g->law, 2, &terms);
    CHILD(moed_law_optimum, g->law, 1e18, 2, &x, &y);
    CHILD(moed_law_optimal_tokens, g->law, 1e8, 2, &x);
    CHILD(moed_growth_create, &w, g->context, &stage, 1, NULL);
    CHILD(moed_growth_from_law, &w, g->context, g->law, experts, 2, NULL);
    CHILD(moed_growth_from_power, &w, g->context, experts, 2, NULL);
    CHILD(moed_growth_from_tokens, &w, g->context, experts, &(int64_t){1000}, 1, NULL);
    CHILD(moed_growth_from_state, &w, g->context, state, 8);
    CHILD(moed_growth_get_info, g->growth, &growth);
    CHILD(moed_growth_stage, g->growth, 0, &out);
    CHILD(moed_growth_at, g->growth, 0, &point);
    CHILD(moed_growth_enter, g->growth, 0, 0);
    CHILD(moed_growth_get_state, g->growth, state, sizeof state, &size);
    CHILD(moed_growth_set_state, g->growth, state, 8);
}

/* Those that take no handle, destroy one, or only hand out a pointer that the handle holds. */
static const char exempt[] =
    " moed_version moed_build_info moed_status_name moed_status_text moed_last_error moed_last_error_get moed_struct_size "
    "moed_options_init moed_options_field moed_dtype_bits moed_dtype_name moed_cancel_create moed_cancel_destroy "
    "moed_cancel_request moed_device_list moed_context_create moed_context_destroy moed_layout_config moed_layout_destroy "
    "moed_model_layout moed_model_destroy moed_corpus_destroy moed_kmeans_destroy moed_partition_destroy moed_split_destroy "
    "moed_integration_destroy moed_train_cost moed_trainer_destroy moed_trainer_model moed_expansion_layout "
    "moed_expansion_destroy moed_law_destroy moed_growth_destroy moed_step_time_at ";

/* How many public calls must say that a handle is another process', by the list of exported symbols. */
static int calls_with_handles(void)
{
    char line[256], name[128], entry[140];
    int count = 0;
    FILE *f = fopen(MOEDI_TEST_SOURCE "/libmoedisco/moedisco.map", "re");
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, " moed_%100[a-z0-9_];", name) != 1) continue;
        snprintf(entry, sizeof entry, " moed_%s ", name);
        count += !strstr(exempt, entry);
    }
    fclose(f);
    return count;
}

#endif
