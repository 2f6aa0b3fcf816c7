/* try.c - the verb try: from somebody's own text to a trained, inspected model in a few minutes. */
#include <stdlib.h>
#include <string.h>

#include "output.h"
#include "pipeline.h"
#include "sample.h"

/* Shorter than the library's: somebody's text may be one file of 50 kB, and documents are what is clustered and held out. */
enum { TRY_DOCUMENT_BYTES = 1024 };

static void tell_where(const pipeline *p)
{
    say(" ");
    say("where it all lies:");
    say("  %s/corpus/text.bin, .idx, .json   the corpus", p->root);
    say("  %s/run.json                 every setting", p->dir);
    say("  %s/partition.safetensors    which document is in which cluster", p->dir);
    say("  %s/submodels/K/model        the submodels", p->dir);
    say("  %s/model                    the trained model, a Hugging Face directory", p->dir);
    say("next: moedisco sample %s/model 'Once' --color;  moedisco eval %s/model %s/corpus/text --part held-out", p->dir, p->dir,
        p->root);
    say("      moedisco run full %s --equal-money-to disco   the rival at the same money", p->root);
}

int verb_try(const verb *v, int argc, char **argv)
{
    flags f = {0};
    pipeline p;
    sampling s;
    struct own { const char *output; } own = {"moedisco-try"};
    static const moed_field FIELDS[] = {FIELD_TEXT_(struct own, output, "folder that everything is written to")};
    moed_model *m = NULL;
    pipeline_flags(&f, &p, KIND_DISCO);
    p.minutes = 10;
    strcpy(flags_find(&f, "minutes")->initial, "10");
    flags_find(&f, "minutes")->field.minimum = 0.2; /* nothing comes of less */
    p.build.document_bytes = TRY_DOCUMENT_BYTES;
    snprintf(flags_find(&f, "document-bytes")->initial, sizeof f.items[0].initial, "%d", TRY_DOCUMENT_BYTES);
    const size_t from = f.count;
    flags_table(&f, "output", FIELDS, 1, &own);
    sampling_flags(&f, &s, 0);
    flags_passing(&f, from);
    int code = flags_parse(&f, v, argc, argv, 1, 1);
    if (code >= 0) return code;
    if (p.text || p.corpus) return fail(EXIT_INPUT, "try takes its text from FOLDER: leave --text and --corpus out");
    if (!path_exists(f.positionals[0])) return fail(EXIT_INPUT, "%s: there is no such file or folder", f.positionals[0]);
    p.text = f.positionals[0];
    p.pick_sizes = 1;
    code = pipeline_run(&p, &f, own.output);
    if (!code) {
        char *model = path_join(p.dir, "model");
        const moed_status status = moed_model_open(&m, p.context, model, NULL);
        say(" ");
        say("what it writes:");
        code = status ? fail_status(status) : sample_text(m, "", &s);
        moed_model_destroy(m);
        free(model);
        if (!code) tell_where(&p);
    }
    pipeline_close(&p);
    flags_free(&f);
    return code;
}
