/* model/inspect.c - what is wrong in a model's directory: files, index and tensors as open.c finds them, then every number. */
#include "core/cancel.h"
#include "core/options.h"
#include "model.h"

/* ---- the numbers of one file ---- */

enum { PIECE = 1 << 20 }; /* bytes read at a time */

typedef struct tally {
    int64_t bad;   /* not finite */
    int64_t first; /* of these, -1 none */
    int zero;      /* all are */
} tally;

typedef struct scan {
    const moed_context *context;
    const moedi_safetensors *file;
    tally *tallies; /* (file's count) */
    const moed_cancel *cancel;
} scan;

/* Numbers whose exponent is all ones are NaN or infinite; those without a bit below the sign are zero. */
#define COUNT(type, exponent)                                           \
    do {                                                                \
        const type *x = data;                                           \
        type any = 0;                                                   \
        int64_t bad = 0;                                                \
        for (int64_t i = 0; i < count; i++) {                           \
            any |= (type)(x[i] << 1);                                   \
            bad += (x[i] & (exponent)) == (exponent);                   \
        }                                                               \
        for (int64_t i = 0; bad && t->first < 0 && i < count; i++)      \
            if ((x[i] & (exponent)) == (exponent)) t->first = from + i; \
        t->bad += bad;                                                  \
        if (any) t->zero = 0;                                           \
    } while (0)

static void count_numbers(tally *t, const void *data, moed_dtype dtype, int64_t from, int64_t count)
{
    switch (dtype) {
    case MOED_DTYPE_F32: COUNT(uint32_t, 0x7F800000u); break;
    case MOED_DTYPE_F16: COUNT(uint16_t, 0x7C00u); break;
    case MOED_DTYPE_BF16: COUNT(uint16_t, 0x7F80u); break;
    default: COUNT(uint64_t, UINT64_C(0x7FF0000000000000)); break;
    }
}

static moed_status scan_tensor(void *argument, int64_t index)
{
    const scan *s = argument;
    const moedi_safetensors_entry *e = &s->file->entries[index];
    tally *t = &s->tallies[index];
    const size_t item = moedi_dtype_size(e->dtype);
    void *piece = NULL;
    moed_status status = MOED_OK;
    *t = (tally){.first = -1, .zero = e->elements > 0};
    if (!moedi_dtype_is_float(e->dtype) || e->offset > s->file->file.size - e->bytes) { /* what is cut off was told */
        t->zero = 0;
        return MOED_OK;
    }
    MOEDI_TRY(moedi_alloc(s->context, e->bytes < PIECE ? (size_t)e->bytes : PIECE, &piece));
    for (int64_t at = 0; at < e->bytes; at += PIECE) {
        const int64_t bytes = e->bytes - at < PIECE ? e->bytes - at : PIECE;
        MOEDI_GO(moedi_cancel_check(s->cancel));
        MOEDI_GO(moedi_safetensors_read(s->file, e, at, piece, (size_t)bytes));
        count_numbers(t, piece, e->dtype, at / (int64_t)item, bytes / (int64_t)item);
    }
out:
    moedi_free(s->context, piece);
    return status;
}

/* Numbers that begin as zeros may be zeros still. */
static int may_be_zero(const moed_layout *l, const char *name)
{
    const int64_t param = moedi_layout_find(l, name);
    return param >= 0 && moedi_param_begins_zero(&l->params[param]);
}

static moed_status tell_numbers(moedi_faults *f, const moed_layout *l, const moedi_safetensors *file,
                                const moedi_safetensors_entry *e, const tally *t)
{
    const char *path = file->file.path;
    if (t->bad) {
        moedi_fail_file(MOED_E_NUMERIC, path, -1, "tensor %s: %lld of %lld numbers are NaN or infinite, the first at %lld",
                        e->name, (long long)t->bad, (long long)e->elements, (long long)t->first);
        return moedi_faults_tell(f, MOED_FINDING_NOT_FINITE, path, e->name, t->bad);
    }
    if (!t->zero || may_be_zero(l, e->name)) return MOED_OK;
    moedi_fail_file(MOED_E_NUMERIC, path, -1, "tensor %s: all %lld numbers are 0", e->name, (long long)e->elements);
    return moedi_faults_tell(f, MOED_FINDING_ZERO, path, e->name, e->elements);
}

static moed_status scan_file(moed_context *c, const moed_layout *l, const moedi_safetensors *file, moedi_faults *f,
                             const moed_cancel *cancel)
{
    scan s = {.context = c, .file = file, .cancel = cancel};
    moed_status status;
    MOEDI_TRY(MOEDI_NEW(c, file->count, &s.tallies));
    MOEDI_GO(moedi_parallel_try(c, (int64_t)file->count, scan_tensor, &s));
    for (size_t k = 0; k < file->count; k++) MOEDI_GO(tell_numbers(f, l, file, &file->entries[k], &s.tallies[k]));
out:
    moedi_free(c, s.tallies);
    return status;
}

moed_status moed_model_inspect(moed_context *c, const char *dir, const moed_model_options *given, moed_finding_fn tell,
                               void *user, int64_t *findings, const moed_cancel *cancel)
{
    moed_model_options o;
    moed_layout *l = NULL;
    moed_model *m = NULL;
    moedi_faults f = {.tell = tell, .user = user};
    moed_status status;

    moedi_clear_error();
    MOEDI_REQUIRE(c, "the context is NULL");
    MOEDI_REQUIRE(dir && dir[0], "no directory is named");
    MOEDI_REQUIRE(findings, "findings is NULL");
    MOEDI_TRY(moedi_context_check(c));
    MOEDI_TRY(moedi_model_options_read(given, MOED_MODEL_STREAM, &o));
    MOEDI_GO(moedi_model_layout_of(&l, c, dir));
    MOEDI_GO(moedi_model_open_faulty(&m, c, l, dir, &f));
    if (!(o.flags & MOED_MODEL_STREAM))
        for (size_t i = 0; i < m->file_count; i++) MOEDI_GO(scan_file(c, l, &m->files[i], &f, cancel));
    *findings = f.count;
    status = MOED_OK;
out:
    moed_model_destroy(m);
    moed_layout_destroy(l);
    return status;
}
