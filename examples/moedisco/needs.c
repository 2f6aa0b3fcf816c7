/* needs.c - what training a model takes, each way, from its layout alone. */
#include <stdio.h>
#include <string.h>

#include "needs.h"
#include "output.h"

static const moed_field FIELDS[] = {
    FIELD_INTEGER(needs, parts, 0, 0, 1 << 24, "memory to train: parts of a split, 0 = one per expert"),
    FIELD_INTEGER(needs, length, 0, 0, 1 << 24, "memory to train: tokens per row, 0 = the model's context length, 2048 at most"),
};

void needs_flags(flags *f, needs *n)
{
    *n = (needs){0};
    flags_table(f, "model", FIELDS, sizeof FIELDS / sizeof *FIELDS, n);
}

typedef struct memory {
    int64_t masters, lean; /* of a card that computes in bf16 */
    int64_t cpu;           /* in fp32 */
} memory;

static moed_status estimate(const moed_layout *l, const moed_device_info *d, int32_t policy, int64_t length, int64_t *bytes)
{
    moed_train_options o;
    moed_estimate e = {.struct_size = sizeof e};
    OPTIONS_INIT(TRAIN_OPTIONS, &o);
    o.rows = 1, o.length = length, o.policy = policy;
    const moed_status status = moed_train_estimate(l, d, &o, &e);
    *bytes = d && strcmp(d->backend, "cpu") ? e.device_bytes : e.host_bytes;
    return status;
}

static moed_status measure(const moed_layout *l, int64_t length, memory *out)
{
    const moed_device_info card = {.struct_size = sizeof card, .backend = "cuda", .dtype = MOED_DTYPE_BF16},
                           cpu = {.struct_size = sizeof cpu, .backend = "cpu", .dtype = MOED_DTYPE_F32};
    moed_status status = estimate(l, &card, MOED_POLICY_FULL, length, &out->masters);
    if (!status) status = estimate(l, &card, MOED_POLICY_LEAN, length, &out->lean);
    if (!status) status = estimate(l, &cpu, MOED_POLICY_FULL, length, &out->cpu);
    return status;
}

static void tell(const char *what, const moed_layout *l, const memory *m, json_t *o)
{
    char masters[32], lean[32], cpu[32];
    moed_layout_info i = {.struct_size = sizeof i};
    moed_layout_get_info(l, &i);
    say("  %-48s %18s %15s %13s", what, human_bytes(m->masters, masters), human_bytes(m->lean, lean), human_bytes(m->cpu, cpu));
    put(o, "parameters", json_integer(i.total));
    put(o, "active", json_integer(i.active));
    put(o, "card_masters", json_integer(m->masters));
    put(o, "card_lean", json_integer(m->lean));
    put(o, "cpu", json_integer(m->cpu));
    emit(o);
}

int needs_tell(const needs *n, const moed_layout *l)
{
    moed_layout_info i = {.struct_size = sizeof i};
    moed_split_options o;
    moed_split *s = NULL;
    memory m;
    char name[96], total[32];
    OPTIONS_INIT(SPLIT_OPTIONS, &o);
    o.parts = (int32_t)n->parts;
    moed_status status = moed_layout_get_info(l, &i);
    const int64_t length = n->length ? n->length : i.context_length < 2048 ? i.context_length : 2048;
    const int64_t parts = n->parts ? n->parts : i.experts;
    if (!status) status = measure(l, length, &m);
    if (status) return fail_status(status);
    snprintf(name, sizeof name, "memory to train, a row of %lld tokens at a time", (long long)length);
    say("  %-48s %18s %15s %13s", name, "bf16, fp32 masters", "bf16, lean", "the CPU, fp32");
    tell("whole", l, &m, must(json_pack("{s:s, s:s, s:I}", "event", "memory", "what", "whole", "length", (json_int_t)length)));
    if (parts < 2) return EXIT_DONE;
    status = moed_split_create(&s, l, &o);
    const moed_layout *part = status ? NULL : moed_split_layout(s, 0);
    if (!status) status = part ? measure(part, length, &m) : MOED_E_ARGUMENT;
    if (status) {
        const int code = fail_status(status);
        moed_split_destroy(s);
        return code;
    }
    moed_layout_get_info(part, &i);
    snprintf(name, sizeof name, "one of %lld parts, of %s parameters", (long long)parts, human_count((double)i.total, total));
    tell(name, part, &m, must(json_pack("{s:s, s:s, s:I, s:I}", "event", "memory", "what", "part", "parts", (json_int_t)parts,
                                        "length", (json_int_t)length)));
    moed_split_destroy(s);
    return EXIT_DONE;
}
