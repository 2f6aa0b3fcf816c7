/* pipeline.h - disco, full, upcycle and emo as points of one pipeline:
 *
 *     base -> [start: one dense model on all data, cloned into every expert] -> [cluster, split, K workers, integrate] -> F-phase
 *
 * The F-phase may grow: it is in stages then, each with more experts than the one before, on the data that comes next.
 * A pipeline lives in its own directory below the run directory; all of a run directory share its corpus and held-out
 * documents. */
#ifndef PIPELINE_H
#define PIPELINE_H

#include "clusters.h"
#include "growing.h"
#include "size.h"
#include "stopwatch.h"

enum { KIND_DISCO, KIND_FULL, KIND_UPCYCLE, KIND_EMO, KIND_COUNT };

typedef struct pipeline {
    int32_t kind;
    /* what it works on */
    const char *text, *corpus, *name;
    double held_out;
    uint64_t held_out_seed;
    /* what it does */
    sizes size;
    clustering clusters;
    moed_corpus_options build;
    moed_integration_options integration;
    moed_train_options train;             /* of the F-phase; its rows, length and optimizer are every phase's */
    int64_t start_steps, branch_steps, steps; /* of the start, of each submodel, of the F-phase; -1 = from the budget */
    double start_learning_rate, branch_learning_rate;
    const char *branch_freeze;
    int32_t scale_experts;
    growing growing;                      /* of the F-phase; its .grow NULL: it does not */
    moed_expansion_options expansion;
    int64_t stage_warmup;                 /* steps at the beginning of every stage */
    /* how much */
    double minutes, money;
    const char *equal_money_to;
    double start_share, branch_share;     /* of the money */
    /* prices */
    const char *cheap_device, *dear_device, *price_date;
    double cheap_price, dear_price;       /* per hour */
    double cheap_flops, dear_flops;       /* effective, in training */
    /* how it is run */
    int64_t workers;
    common common;

    /* at work */
    char *root, *dir;                     /* RUN and RUN/NAME */
    char *corpus_prefix;
    double began;                         /* now_seconds() at the start of the command */
    int pick_sizes;                       /* choose sizes by the time and the text (try) */
    int lock;
    moed_context *context;
    stopwatch watch;                      /* of the phase that this process is in */
    moed_corpus *whole, *train_view, *held_view;
    moed_layout *layout;                  /* of the base */
    moed_layout *grown;                   /* of the result */
    moed_growth *growth;                  /* NULL: the F-phase does not grow */
    moed_split *split;
    const moed_layout *dense;             /* of one submodel, the split's */
    /* what a started run began with, by its run.json */
    char *fingerprint;                    /* of its corpus; NULL: not kept */
    char *stages;                         /* of its growth, pool sizes with their tokens as in --grow; NULL: not kept */
    char *base_config;                    /* its model's, where --config was given */
} pipeline;

/* Adds every flag of `run`, `plan` and `try`; the pipeline has its defaults then. */
void pipeline_flags(flags *f, pipeline *p, int32_t kind);
const char *kind_name(int32_t kind);
/* -1 for no such kind. */
int32_t kind_of(const char *name);

/* From parsed flags to the result and the table: opens or starts the pipeline in root/NAME. An exit code. */
int pipeline_run(pipeline *p, flags *f, const char *root);
/* Opens a started pipeline as its worker does: everything from run.json. */
int pipeline_open(pipeline *p, flags *f, const char *dir);
/* What --grow says of the model's sizes and of the steps. */
int pipeline_settle(pipeline *p, const flags *f);
/* Layouts for a vocabulary, without a run directory. */
int pipeline_layouts(pipeline *p, int64_t vocabulary);
/* What cannot be asked for together; an exit code. */
int pipeline_check(const pipeline *p);
/* Of the result: the base's, or that of the last stage. */
const moed_layout *pipeline_grown(const pipeline *p);
/* The schedule of a growing F-phase, once its steps are known. */
int pipeline_growth(pipeline *p);
/* Steps of every phase from the budget; no -1 is left. */
int pipeline_budget(pipeline *p);
void pipeline_close(pipeline *p);

/* Options of the phases. */
moed_train_options start_options(const pipeline *p);
moed_train_options branch_options(const pipeline *p);
moed_train_options final_options(const pipeline *p);
moed_train_options stage_options(const pipeline *p, const moed_stage *s);
int64_t pipeline_parts(const pipeline *p);

#endif
