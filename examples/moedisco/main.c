/* main.c - the verb table, general help, and stopping on SIGINT, SIGTERM and SIGHUP. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "app.h"
#include "json_file.h"

moed_cancel *app_cancel;
static volatile sig_atomic_t stopped;

static const verb VERBS[] = {
    {"try", "FOLDER", "From somebody's own text to a trained, inspected MoE model in --minutes minutes: measures the machine, "
     "picks sizes, builds a corpus, clusters it, trains, and shows what came out.", "moedisco try ~/notes --minutes 10",
     verb_try},
    {"corpus build", "PREFIX TEXT...", "Text files, folders and .jsonl files into a corpus PREFIX.bin, .idx and .json: bytes "
     "are the tokens, exact copies of a document are dropped.", "moedisco corpus build data/notes ~/notes", verb_corpus_build},
    {"corpus export", "CORPUS OUT", "Writes a corpus, or one cluster of it, as OUT.bin, .idx and .json for another trainer.",
     "moedisco corpus export data/notes cluster2 --partition p.safetensors --cluster 2", verb_corpus_export},
    {"corpus info", "CORPUS", "What a corpus holds.", "moedisco corpus info data/notes", verb_corpus_info},
    {"init", "DIR", "A fresh model as a Hugging Face directory, from sizes or from a config.json.",
     "moedisco init model --hidden 256 --layers 6 --experts 8", verb_init},
    {"info", "[PATH]", "What a file, model, corpus, partition or run directory is; of a model or a config.json also what "
     "training it takes, and what is wrong in its files (exit code 2); without PATH: the devices and kernel sets here.",
     "moedisco info run/disco", verb_info},
    {"cluster", "CORPUS PARTITION", "Clusters the documents of a corpus by their mean token embedding into the file PARTITION; "
     "shows size, tokens and most typical documents of each cluster.",
     "moedisco cluster data/notes p.safetensors --clusters 4 --model model", verb_cluster},
    {"split", "MODEL OUT",
     "One MoE model into submodels OUT/0, OUT/1, ...: the shared part and one expert (or an equal share) each.",
     "moedisco split model submodels", verb_split},
    {"train", "MODEL CORPUS OUT",
     "Trains one model on a corpus or on one cluster of it into OUT/model; takes up where it was stopped.",
     "moedisco train submodels/0 data/notes out0 --partition p.safetensors --cluster 0 --steps 500", verb_train},
    {"integrate", "BASE OUT SUBMODEL...", "Trained submodels, in the order of split, and the base they came from, into one "
     "MoE model OUT. The word lost stands for a missing one (--allow-missing).",
     "moedisco integrate model merged out0/model out1/model out2/model out3/model", verb_integrate},
    {"upcycle", "DENSE OUT", "One dense model (llama, mistral, qwen3, or one expert a layer) into an MoE model OUT: every "
     "expert its feed-forward, as it is, with noise, or with a share of its units drawn anew.",
     "moedisco upcycle mistral moe --experts 8 --top-k 2 --redraw 0.5", verb_upcycle},
    {"expand", "MODEL OUT", "One MoE model into OUT with more experts, drawn or cloned, that the old ones do not feel until "
     "they are chosen; or with fewer, the most used on a corpus.", "moedisco expand small big --experts 16", verb_expand},
    {"eval", "MODEL CORPUS|ITEMS", "Loss, perplexity, bits per byte and the load of each expert on a corpus; with --task, how "
     "many items of a multiple-choice task it gets right, as lm-evaluation-harness counts.",
     "moedisco eval run/disco/model data/notes", verb_eval},
    {"sample", "MODEL [PROMPT]", "Text from a model of byte tokens.", "moedisco sample run/disco/model 'The ' --temperature 0.8",
     verb_sample},
    {"plan emo", "", "EMO, an expert pool that grows: stages, memory, hours and money, beside the last stage's pool throughout.",
     "moedisco plan emo --grow 8,16,32,64 --top-k 8 --all-tokens 1e9 --step-times 8:2e-6,64:3e-6", verb_plan_emo},
    {"plan", "disco|full|upcycle [DIR]", "What `run` would do, before anything is spent: phases, memory, FLOPs, hours and money.",
     "moedisco plan disco --hidden 2048 --heads 16 --layers 24 --steps 4100 --branch-steps 4200", verb_plan},
    {"law fit", "RUNS", "Fits a scaling law to trained models: RUNS is CSV with a line of names, or JSON lines, of active "
     "parameters (active or N), experts (E), tokens (D) and loss (L).",
     "moedisco law fit runs.csv --out law.json --bootstrap 200", verb_law_fit},
    {"law predict", "", "The loss that a scaling law says, or the best use of a budget.",
     "moedisco law predict --experts 8,16,32 --flops 1e20", verb_law_predict},
    {"run disco", "DIR", "MoE-DisCo into DIR/disco by [common start,] clusters, split, K workers, integration and F-phase. "
     "Finished steps are kept; the same command goes on.", "moedisco run disco run --text ~/notes --minutes 5", verb_run},
    {"run full", "DIR", "The whole model on all data, into DIR/full: what MoE-DisCo is compared with.",
     "moedisco run full run --equal-money-to disco", verb_run},
    {"run upcycle", "DIR", "One dense model on all data, cloned into all experts, then the F-phase, into DIR/upcycle: the other "
     "thing to compare with.", "moedisco run upcycle run --equal-money-to disco", verb_run},
    {"run emo", "DIR", "A model whose pool of experts grows while it trains, into DIR/emo: --grow names the pool sizes, a "
     "scaling law their tokens. Killed anywhere, also inside an expansion, the same command goes on. With --grow, run disco "
     "grows too, after integration.",
     "moedisco run emo run --text ~/notes --family dots1 --grow 2,4,8,16 --steps 2000", verb_run},
    {"work", "RUN INDEX", "Trains submodel INDEX of the pipeline directory RUN: one worker of the S-phase, for job arrays.",
     "moedisco work run/disco 3", verb_work},
};
enum { VERB_COUNT = sizeof VERBS / sizeof *VERBS };

static void stop(int number)
{
    (void)number;
    stopped = 1;
    moed_cancel_request(app_cancel);
}

int app_stopped(void) { return stopped != 0; }

/* Characters before the first full stop, colon or semicolon that a blank or the end follows. */
static int first_clause(const char *text)
{
    int length = 0;
    while (text[length] && !(strchr(".:;", text[length]) && (text[length + 1] == ' ' || !text[length + 1]))) length++;
    return length;
}

/* One line for each verb, or for each kind of one ("run"). */
static void list_verbs(const char *group)
{
    const size_t length = strlen(group);
    for (size_t i = 0; i < VERB_COUNT; i++) {
        const verb *v = &VERBS[i];
        if (length && (strncmp(v->name, group, length) || v->name[length] != ' ')) continue;
        printf("  %-14s %-26s %.*s\n", v->name, v->arguments, first_clause(v->summary), v->summary);
    }
}

static int is_group(const char *name)
{
    const size_t length = strlen(name);
    int found = 0;
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (!strcmp(VERBS[i].name, name)) return 0; /* a verb of its own, plan, beside a kind that has other flags, plan emo */
        found |= !strncmp(VERBS[i].name, name, length) && VERBS[i].name[length] == ' ';
    }
    return found;
}

static int group_help(const char *name)
{
    printf("usage: moedisco %s KIND ... [--flags]\n\n", name);
    list_verbs(name);
    printf("\n`moedisco %s KIND --help` lists a kind's flags with defaults and an example.\n", name);
    return EXIT_DONE;
}

static int asks_for_help(const char *word) { return !strcmp(word, "--help") || !strcmp(word, "-h"); }

static int general_help(void)
{
    printf("moedisco - train Mixture-of-Experts language models cheaply (MoE-DisCo)\n\nusage: moedisco VERB ... [--flags]\n\n");
    list_verbs("");
    printf("\n`moedisco VERB --help` lists a verb's flags with defaults and an example. "
           "Start with: moedisco try FOLDER --minutes 10\n"
           "exit codes: 0 done, 2 bad usage or input (also a path that may not be read or written, a full disk, a damaged "
           "model), 3 does\n"
           "not fit in memory, 75 stopped and resumable, 1 anything else: worth one more try\n");
    return EXIT_DONE;
}

static int no_such_verb(int argc, char **argv)
{
    const char *names[VERB_COUNT];
    char wanted[128];
    for (size_t i = 0; i < VERB_COUNT; i++) names[i] = VERBS[i].name;
    if (is_group(argv[1])) return fail(EXIT_INPUT, "%s needs one of its kinds; moedisco %s --help lists them", argv[1], argv[1]);
    snprintf(wanted, sizeof wanted, "%s", argv[1]);
    const char *near = nearest(wanted, names, VERB_COUNT);
    if (!near && argc > 2) {
        snprintf(wanted, sizeof wanted, "%s %s", argv[1], argv[2]);
        near = nearest(wanted, names, VERB_COUNT);
    }
    if (near) return fail(EXIT_INPUT, "unknown verb %s; did you mean %s?", argv[1], near);
    return fail(EXIT_INPUT, "unknown verb %s; moedisco --help lists them", argv[1]);
}

/* The verb that begins argv, and how many words its name has. */
static const verb *find_verb(int argc, char **argv, int *words)
{
    char two[128];
    for (size_t i = 0; i < VERB_COUNT; i++) {
        if (!strcmp(VERBS[i].name, argv[1])) {
            *words = 1;
            return &VERBS[i];
        }
        if (argc < 3) continue;
        snprintf(two, sizeof two, "%s %s", argv[1], argv[2]);
        if (!strcmp(VERBS[i].name, two)) {
            *words = 2;
            return &VERBS[i];
        }
    }
    return NULL;
}

/* A pipe whose reader has seen enough (| head) is no fault. */
static int reader_left(void)
{
    struct pollfd end = {.fd = STDOUT_FILENO, .events = POLLOUT};
    return poll(&end, 1, 0) == 1 && (end.revents & POLLERR);
}

/* A closed standard stream would lend its number to the next file that is opened, and messages would go into that. */
static void fill_standard_streams(void)
{
    int file;
    do file = open("/dev/null", O_RDWR);
    while (file >= 0 && file <= STDERR_FILENO);
    if (file >= 0) close(file);
}

/* What was ignored when the command began (nohup, a shell's background job) stays ignored. */
static void stop_on(int number)
{
    struct sigaction action = {.sa_handler = stop}, before;
    if (sigaction(number, NULL, &before) == 0 && before.sa_handler != SIG_IGN) sigaction(number, &action, NULL);
}

static int run(int argc, char **argv)
{
    char wish[] = "--help", *help[] = {argv[0], wish, wish, wish};
    if (argc < 2) return general_help(), EXIT_INPUT;
    if (asks_for_help(argv[1]) || (!strcmp(argv[1], "help") && argc == 2)) return general_help();
    if (!strcmp(argv[1], "--version")) return printf("%s\n", moed_build_info()), EXIT_DONE;
    if (!strcmp(argv[1], "help")) { /* `help run disco` is `run disco --help` */
        const int words_given = argc > 3 ? 2 : 1;
        for (int i = 1; i <= words_given; i++) help[i] = argv[i + 1];
        argc = words_given + 2;
        argv = help;
    }
    if (argc == 3 && is_group(argv[1]) && asks_for_help(argv[2])) return group_help(argv[1]);
    int words = 0;
    const verb *v = find_verb(argc, argv, &words);
    if (!v) return no_such_verb(argc, argv);
    if (moed_cancel_create(&app_cancel)) return fail(EXIT_FIT, "%s", moed_last_error());
    stop_on(SIGINT);
    stop_on(SIGTERM);
    stop_on(SIGHUP);
    return v->run(v, argc - 1 - words, argv + 1 + words); /* app_cancel lives as long as the handler that may ask for it */
}

int main(int argc, char **argv)
{
    fill_standard_streams();
    json_begin();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* ulimit -f: the write fails instead and is told as a full disk is; workers inherit it */
    int code = run(argc, argv);
    if ((fflush(stdout) || ferror(stdout)) && !reader_left() && code == EXIT_DONE)
        code = fail(EXIT_OTHER, "standard output could not be written");
    return code;
}
