/* corpus/sampler.c - rows of packed documents, and rows for evaluation. The documents of an epoch, in an order drawn for it, are
 * one stream that is cut into pieces; the pieces become rows in a drawn order too, so that the rows of a small batch do not come
 * from one long document. */
#include <string.h>

#include "corpus.h"
#include "util/random.h"

/* An epoch: documents in an order, and where each begins in the epoch's stream. */
typedef struct order {
    int64_t epoch;     /* -1: none held yet */
    int64_t *document; /* (documents) */
    int64_t *start;    /* (documents + 1) */
} order;

struct moedi_sampler {
    moed_corpus *corpus;
    uint64_t seed;
    int64_t stream;  /* tokens of one epoch, end tokens included */
    order drawn;     /* of the epoch at hand */
    order plain;     /* documents as they come, for evaluation */
    int32_t *row;    /* a row and the token after it */
    int32_t *numbers;
    int64_t capacity;
};

static moed_status order_new(const moed_corpus *d, order *o)
{
    o->epoch = -1;
    MOEDI_TRY(MOEDI_NEW(d->context, d->documents, &o->document));
    return MOEDI_NEW(d->context, d->documents + 1, &o->start);
}

static void order_start(const moed_corpus *d, order *o)
{
    const int64_t end = d->info.end_token >= 0;
    o->start[0] = 0;
    for (int64_t i = 0; i < d->documents; i++) o->start[i + 1] = o->start[i] + d->lengths[o->document[i]] + end;
}

moed_status moedi_sampler_create(moedi_sampler **out, const moed_corpus *d, uint64_t seed)
{
    moedi_sampler *s = NULL;
    moed_status status;
    if (d->info.tokens == 0)
        return moedi_fail(MOED_E_ARGUMENT, "a corpus of %lld documents without tokens cannot be sampled",
                          (long long)d->documents);
    MOEDI_TRY(MOEDI_NEW(d->context, 1, &s));
    s->corpus = moedi_corpus_retain(d);
    s->seed = seed;
    s->stream = d->info.tokens + (d->info.end_token >= 0 ? d->documents : 0);
    MOEDI_GO(order_new(d, &s->drawn));
    MOEDI_GO(order_new(d, &s->plain));
    for (int64_t i = 0; i < d->documents; i++) s->plain.document[i] = i;
    order_start(d, &s->plain);
    *out = s;
    return MOED_OK;
out:
    moedi_sampler_destroy(s);
    return status;
}

int64_t moedi_sampler_bytes(int64_t documents, int64_t length)
{
    const int64_t each = (2 * documents + 1) * (int64_t)sizeof(int64_t); /* of the two orders */
    return (int64_t)sizeof(moedi_sampler) + 2 * each + 2 * (length + 1) * (int64_t)sizeof(int32_t);
}

void moedi_sampler_destroy(moedi_sampler *s)
{
    if (!s) return;
    moed_corpus *d = s->corpus;
    order *all[2] = {&s->drawn, &s->plain};
    for (int i = 0; i < 2; i++) {
        moedi_free(d->context, all[i]->document);
        moedi_free(d->context, all[i]->start);
    }
    moedi_free(d->context, s->row);
    moedi_free(d->context, s->numbers);
    moedi_free(d->context, s);
    moed_corpus_destroy(d);
}

static const order *epoch_order(moedi_sampler *s, int64_t epoch)
{
    order *o = &s->drawn;
    if (o->epoch != epoch) {
        moedi_random_permutation(s->seed, MOEDI_RANDOM_EPOCH, (uint64_t)epoch, o->document,
                                 s->corpus->documents);
        order_start(s->corpus, o);
        o->epoch = epoch;
    }
    return o;
}

/* The place in the order whose document covers stream position `at`: the last start that is not after it. */
static int64_t find_place(const order *o, int64_t documents, int64_t at)
{
    int64_t low = 0, high = documents;
    while (high - low > 1) {
        const int64_t middle = low + (high - low) / 2;
        if (o->start[middle] <= at) low = middle;
        else high = middle;
    }
    return low;
}

/* Stream positions [at, at + count) of one epoch; numbers (nullable) count documents up from *number. A document without
 * any stream position (empty, and no end token) is passed over. */
static moed_status fill(const moedi_sampler *s, const order *o, int64_t at, int64_t count, int32_t *tokens,
                        int32_t *numbers, int32_t *number)
{
    const moed_corpus *d = s->corpus;
    int64_t place = find_place(o, d->documents, at);
    for (int64_t done = 0; done < count; place++) {
        const int64_t document = o->document[place], offset = at + done - o->start[place];
        const int64_t left = o->start[place + 1] - o->start[place] - offset;
        const int64_t take = left < count - done ? left : count - done;
        int64_t words = d->lengths[document] - offset;
        if (take == 0) continue;
        if (words > take) words = take;
        MOEDI_TRY(moedi_corpus_tokens(d, document, offset, tokens + done, words));
        if (words < take) tokens[done + words] = (int32_t)d->info.end_token;
        const int32_t mine = *number;
        for (int64_t i = 0; numbers && i < take; i++) numbers[done + i] = mine;
        *number += take == left; /* the next position begins another document */
        done += take;
    }
    return MOED_OK;
}

static moed_status check_rows(moedi_sampler *s, int64_t first_row, int64_t rows, int64_t length)
{
    const moed_context *c = s->corpus->context;
    if (first_row < 0)
        return moedi_fail_parameter(MOED_E_RANGE, "first_row", "first_row: %lld is below 0",
                                    (long long)first_row);
    if (rows < 0) return moedi_fail_parameter(MOED_E_RANGE, "rows", "rows: %lld is below 0", (long long)rows);
    if (length < 1 || length > INT32_MAX - 2)
        return moedi_fail_parameter(MOED_E_RANGE, "length", "length: %lld is outside 1 to %ld",
                                    (long long)length, (long)INT32_MAX - 2);
    if (first_row > INT64_MAX / 2 - rows || first_row + rows > INT64_MAX / 2 / length || s->stream > INT64_MAX / 4)
        return moedi_fail_parameter(MOED_E_RANGE, "first_row",
                                    "first_row: row %lld of length %lld is past the end of counting",
                                    (long long)first_row, (long long)length);
    if (length + 1 > s->capacity) {
        MOEDI_TRY(moedi_realloc_array(c, length + 1, sizeof *s->row, (void **)&s->row));
        MOEDI_TRY(moedi_realloc_array(c, length + 1, sizeof *s->numbers, (void **)&s->numbers));
        s->capacity = length + 1;
    }
    return MOED_OK;
}

moed_status moedi_sampler_rows(moedi_sampler *s, int64_t first_row, int64_t rows, int64_t length,
                               int32_t *tokens, int32_t *labels, int32_t *documents)
{
    MOEDI_TRY(check_rows(s, first_row, rows, length));
    const int64_t pieces = (s->stream - 1) / length + 1;
    for (int64_t r = 0; r < rows; r++) {
        const int64_t epoch = (first_row + r) / pieces;
        const int64_t piece = moedi_random_place(s->seed, MOEDI_RANDOM_ROW, (uint64_t)epoch, (first_row + r) % pieces, pieces);
        int32_t number = 0;
        for (int64_t done = 0; done < length + 1;) { /* past its end the stream begins again */
            const int64_t at = (piece * length + done) % s->stream;
            const int64_t left = s->stream - at, n = left < length + 1 - done ? left : length + 1 - done;
            int32_t *numbers = documents ? s->numbers + done : NULL;
            MOEDI_TRY(fill(s, epoch_order(s, epoch), at, n, s->row + done, numbers, &number));
            done += n;
        }
        const size_t bytes = (size_t)length * sizeof *tokens;
        memcpy(tokens + r * length, s->row, bytes);
        memcpy(labels + r * length, s->row + 1, bytes);
        if (documents) memcpy(documents + r * length, s->numbers, bytes);
    }
    return MOED_OK;
}

int64_t moedi_sampler_evaluation_rows(const moedi_sampler *s, int64_t length)
{
    return (s->stream - 1) / length + 1;
}

moed_status moedi_sampler_evaluation(moedi_sampler *s, int64_t first_row, int64_t rows, int64_t length,
                                     int32_t *tokens, int32_t *labels, int32_t *documents)
{
    MOEDI_TRY(check_rows(s, first_row, rows, length));
    const int64_t all = moedi_sampler_evaluation_rows(s, length);
    if (first_row + rows > all)
        return moedi_fail_parameter(MOED_E_RANGE, "rows", "rows: row %lld of %lld evaluation rows",
                                    (long long)(first_row + rows - 1), (long long)all);
    const int32_t end = (int32_t)s->corpus->info.end_token, blank = end >= 0 ? end : 0;
    for (int64_t r = 0; r < rows; r++) {
        /* inputs are positions [from - 1, from + length - 1), labels [from, from + length) */
        const int64_t from = (first_row + r) * length, first = from > 0 ? from - 1 : 0, lead = from > 0 ? 0 : 1;
        const int64_t last = from + length < s->stream ? from + length : s->stream, n = last - first;
        int32_t number = (int32_t)lead;
        if (lead) s->row[0] = blank, s->numbers[0] = 0;
        MOEDI_TRY(fill(s, &s->plain, first, n, s->row + lead, s->numbers + lead, &number));
        for (int64_t i = n + lead; i < length + 1; i++) s->row[i] = blank, s->numbers[i] = number + 1;
        for (int64_t i = 0; i < length; i++) {
            tokens[r * length + i] = s->row[i];
            labels[r * length + i] = i + 1 < n + lead ? s->row[i + 1] : -1;
            if (documents) documents[r * length + i] = s->numbers[i];
        }
        if (lead && end < 0) labels[r * length] = -1;
    }
    return MOED_OK;
}

moed_status moed_corpus_sample(const moed_corpus *d, uint64_t seed, int64_t first_row, int64_t rows,
                               int64_t length, int32_t *tokens, int32_t *labels, int32_t *documents)
{
    moedi_sampler *s = NULL;
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(tokens && labels, "tokens or labels is NULL");
    MOEDI_TRY(moedi_context_check(d->context));
    MOEDI_TRY(moedi_sampler_create(&s, d, seed));
    const moed_status status = moedi_sampler_rows(s, first_row, rows, length, tokens, labels, documents);
    moedi_sampler_destroy(s);
    return status;
}
