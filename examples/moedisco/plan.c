/* plan.c - the verb plan: what `run` would do, before anything is spent. */
#include <stdlib.h>
#include <string.h>

#include "cost.h"
#include "output.h"
#include "settings.h"
#include "training.h"

static void show_phase(const pipeline *p, const moed_phase *phase, const moed_estimate *e, int64_t steps)
{
    char flops[32], memory[32], disk[32], money[32];
    moed_cost c;
    const int dear = phase->device_flops == p->dear_flops && phase->price == p->dear_price;
    if (cost_of(phase, 1, &c)) return;
    say("  %-8s %2d x %-10s %8lld steps %10s %9s memory %9s disk %10.4g h %12s", phase->name, (int)phase->devices,
        dear ? p->dear_device : p->cheap_device, (long long)steps, human_flops(c.flops, flops),
        human_bytes(training_memory(e), memory), human_bytes(e->disk_bytes, disk), c.hours, human_money(c.money, money));
    json_t *o = cost_ahead(&c);
    put(o, "event", json_string("phase"));
    put(o, "phase", json_string(phase->name));
    put(o, "devices", json_integer(phase->devices));
    put(o, "steps", json_integer(steps));
    put(o, "memory", json_integer(training_memory(e)));
    put(o, "disk", json_integer(e->disk_bytes));
    emit(o);
}

static int show(const pipeline *p)
{
    moed_phase phases[PHASE_COUNT];
    moed_estimate e;
    moed_cost c;
    size_t count = 0;
    char flops[32], money[32], place[128];
    const struct { const char *name; const moed_layout *layout; moed_train_options options; int64_t steps; } rows[] = {
        {"start", p->dense, start_options(p), p->start_steps},
        {"S-phase", p->dense, branch_options(p), p->branch_steps},
        {"F-phase", pipeline_grown(p), final_options(p), p->steps},
    };
    int code = cost_phases(p, NULL, phases, &count);
    training_place(p->context, place);
    say("plan for %s; memory %s:", kind_name(p->kind), place);
    for (size_t i = 0; i < count && !code; i++)
        for (size_t r = 0; r < 3 && !code; r++)
            if (!strcmp(rows[r].name, phases[i].name) && !(code = training_estimate(rows[r].layout, &rows[r].options, &e)))
                show_phase(p, &phases[i], &e, rows[r].steps);
    if (code || (code = cost_of(phases, count, &c))) return code;
    say("  together %s, %.4g hours, %.4g device-hours, %s", human_flops(c.flops, flops), c.hours, c.device_hours,
        human_money(c.money, money));
    say("  prices of %s; speeds are inferred from the paper's hours: set --cheap-flops and --dear-flops to your own",
        p->price_date);
    json_t *o = cost_ahead(&c);
    put(o, "event", json_string("plan"));
    put(o, "kind", json_string(kind_name(p->kind)));
    emit(o);
    return EXIT_DONE;
}

static int plan(pipeline *p, flags *f)
{
    moed_corpus_info info = {.struct_size = sizeof info, .vocabulary = 257};
    int code = pipeline_check(p);
    if (code || (code = common_open(&p->common, &p->context))) return code;
    sizes_settle(&p->size, f);
    if (!flags_given(f, "length") && p->train.length > p->size.context_length) p->train.length = p->size.context_length;
    if (p->minutes > 0) return fail(EXIT_INPUT, "--minutes: plan measures nothing; give steps or --money");
    p->root = must(strdup(f->positional_count > 1 ? f->positionals[1] : "."));
    if (p->corpus) {
        moed_status status = open_corpus(&p->whole, p->context, p->corpus);
        if (!status) status = moed_corpus_get_info(p->whole, &info);
        if (status) return fail_status(status);
    }
    if ((code = pipeline_settle(p, f)) || (code = pipeline_layouts(p, info.vocabulary)) || (code = pipeline_budget(p)))
        return code;
    return (code = pipeline_growth(p)) ? code : show(p);
}

int verb_plan(const verb *v, int argc, char **argv)
{
    flags f = {0};
    pipeline p;
    const int32_t kind = argc > 0 ? kind_of(argv[0]) : -1;
    pipeline_flags(&f, &p, kind < 0 ? KIND_DISCO : kind);
    int code = flags_parse(&f, v, argc, argv, 1, 2);
    if (code >= 0) return code;
    if (kind < 0) return fail(EXIT_INPUT, "plan %s: must be one of disco, full, upcycle, emo, as the first argument", argv[0]);
    code = plan(&p, &f);
    pipeline_close(&p);
    flags_free(&f);
    return code;
}
