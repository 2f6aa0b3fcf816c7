/* model/staged.c - a batch's numbers go up together: every upload may wait for the device. */
#include "staged.h"

#include <string.h>

enum { TOKENS, LABELS, START, POSITIONS, WEIGHTS, ARRAYS, ALIGNMENT = 64 };
_Static_assert(sizeof(float) == sizeof(int32_t), "all arrays have numbers of one size");

static size_t array_bytes(int64_t tokens)
{
    return ((size_t)tokens * sizeof(int32_t) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

int64_t moedi_staged_bytes(int64_t tokens)
{
    return ARRAYS * (int64_t)array_bytes(tokens);
}

moed_status moedi_staged_create(moedi_staged *out, const moedi_engine *e, int64_t tokens)
{
    moedi_staged s = {.engine = e, .room = tokens};
    const int64_t bytes = moedi_staged_bytes(tokens);
    void *device = NULL;
    MOEDI_TRY(moedi_alloc_array(e->context, bytes, 1, (void **)&s.host));
    const moed_status status = e->table->alloc(e->self, (size_t)bytes, &device);
    if (status != MOED_OK) {
        moedi_free(e->context, s.host);
        return status;
    }
    s.device = device;
    *out = s;
    return MOED_OK;
}

void moedi_staged_destroy(moedi_staged *s)
{
    if (!s->engine) return;
    s->engine->table->free(s->engine->self, s->device);
    moedi_free(s->engine->context, s->host);
    memset(s, 0, sizeof *s);
}

/* Positions restart in every row; attention starts at the row's first token, or at the first of the run of its document
 * number. */
static void place(moedi_staged *s, const moed_batch *b)
{
    const int64_t count = b->rows * b->length, shard = s->shard * b->length;
    int32_t *start = (int32_t *)(void *)(s->host + START * array_bytes(s->room));
    int32_t *positions = (int32_t *)(void *)(s->host + POSITIONS * array_bytes(s->room));
    s->whole = 1;
    for (int64_t i = 0; i < count; i++) {
        positions[i] = (int32_t)(i % b->length);
        const int fresh = !positions[i] || (b->documents && b->documents[i] != b->documents[i - 1]);
        start[i] = fresh ? (int32_t)(i % shard) : start[i - 1];
        if (fresh && positions[i]) s->whole = 0;
    }
}

moed_status moedi_staged_upload(moedi_staged *s, const moed_batch *b, int64_t shard, int64_t labels, double label_weight)
{
    const size_t bytes = (size_t)(b->rows * b->length) * sizeof(int32_t), each = array_bytes(s->room);
    s->rows = b->rows, s->length = b->length, s->shard = shard;
    s->labels = labels, s->label_weight = label_weight;
    s->labelled = b->labels != NULL, s->weighted = b->weights != NULL;
    place(s, b);
    memcpy(s->host + TOKENS * each, b->tokens, bytes);
    if (b->labels) memcpy(s->host + LABELS * each, b->labels, bytes);
    if (b->weights) memcpy(s->host + WEIGHTS * each, b->weights, bytes);
    const size_t used = b->weights ? WEIGHTS * each + bytes : POSITIONS * each + bytes;
    return s->engine->table->upload(s->engine->self, s->device, s->host, used);
}

int64_t moedi_staged_shards(const moedi_staged *s)
{
    return (s->rows + s->shard - 1) / s->shard;
}

moedi_shard moedi_staged_shard(const moedi_staged *s, int64_t index)
{
    const int64_t first = index * s->shard, left = s->rows - first;
    const size_t each = array_bytes(s->room);
    const char *at = s->device + (size_t)(first * s->length) * sizeof(int32_t);
    return (moedi_shard){
        .rows = left < s->shard ? left : s->shard,
        .tokens = (const void *)(at + TOKENS * each),
        .labels = s->labelled ? (const void *)(at + LABELS * each) : NULL,
        .positions = (const void *)(at + POSITIONS * each),
        .start = (const void *)(at + START * each),
        .weights = s->weighted ? (const void *)(at + WEIGHTS * each) : NULL,
    };
}
