/* choices.h - multiple-choice tasks, by the conventions of lm-evaluation-harness. */
#ifndef CHOICES_H
#define CHOICES_H

#include "app.h"

enum { TASK_NONE = 0 }; /* the others are rows of a table */

typedef struct choices_settings {
    int32_t task;
    int64_t items;
    const char *labels, *tokenizer, *program;
} choices_settings;

void choices_flags(flags *f, choices_settings *s);
/* Scores the items of the file `path` with the model that lies in folder dir. An exit code. */
int choices_evaluate(const moed_model *m, const char *dir, const char *path, const choices_settings *s);

#endif
