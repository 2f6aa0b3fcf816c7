/* train.c - the verb train: one model on one corpus or cluster. */
#include <stdlib.h>
#include <string.h>

#include "clusters.h"
#include "output.h"
#include "training.h"

int verb_train(const verb *v, int argc, char **argv)
{
    flags f = {0};
    common c;
    choice pick;
    training t = {.label = "train"};
    moed_context *context = NULL;
    moed_corpus *d = NULL, *view = NULL, *held_out = NULL;
    OPTIONS_INIT(TRAIN_OPTIONS, &t.options);
    t.options.checkpoint_every = 100;
    flags_struct(&f, "training", MOED_STRUCT_TRAIN_OPTIONS, &t.options, "directory,held_out,progress,progress_user");
    choice_flags(&f, &pick, PART_TRAIN);
    common_flags(&f, &c);
    int code = flags_parse(&f, v, argc, argv, 3, 3);
    if (code >= 0) return code;
    if ((code = common_open(&c, &context))) return code;
    const char *out = f.positionals[2];
    char *model_dir = path_join(out, "model");
    moed_report held = {.struct_size = sizeof held};
    moed_status status = moed_model_open(&t.model, context, f.positionals[0], NULL);
    if (!status) status = open_corpus(&d, context, f.positionals[1]);
    if (status) code = fail_status(status);
    if (!code && pick.held_out <= 0 && pick.part == PART_TRAIN) pick.part = PART_ALL;
    if (!code) code = choice_view(&pick, context, d, &view, &held_out);
    moed_layout_info layout = {.struct_size = sizeof layout};
    if (!code && !moed_layout_get_info(moed_model_layout(t.model), &layout) && layout.context_length < t.options.length &&
        !flags_given(&f, "length"))
        t.options.length = layout.context_length;
    t.context = context;
    t.corpus = view;
    t.options.directory = out;
    t.options.held_out = held_out;
    if (!code) training_tell_unheeded(&f, moed_model_layout(t.model));
    if (!code) code = training_run(&t);
    if (!code && (status = moed_model_save(t.model, model_dir, NULL))) code = fail_status(status);
    if (!code && held_out) code = training_evaluate(t.model, held_out, &t.options, &held);
    if (!code) {
        say("trained: %s%s", model_dir, held_out ? "" : " (nothing was held out)");
        if (held_out) say("held-out loss %.4f over %lld tokens", held.loss, (long long)held.labels);
        emit(json_pack("{s:s, s:s, s:I, s:f, s:o}", "event", "trained", "path", utf8(model_dir), "step",
                       (json_int_t)t.options.steps, "loss", t.last.loss, "held_out_loss",
                       held_out ? json_real(held.loss) : json_null()));
    }
    free(model_dir);
    moed_corpus_destroy(held_out);
    moed_corpus_destroy(view);
    moed_corpus_destroy(d);
    moed_model_destroy(t.model);
    moed_context_destroy(context);
    return code;
}
