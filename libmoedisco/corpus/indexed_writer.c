/* corpus/indexed_writer.c - writing PREFIX.bin, .idx and .json so that a kill at any instant leaves a whole
 * corpus or none. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/cancel.h"
#include "indexed.h"
#include "util/temporary.h"

#define BLOCK 65536
#define BLOCKS 64

moed_status moedi_path_suffix(const moed_context *c, const char *prefix, const char *suffix, char **out)
{
    const size_t size = strlen(prefix) + strlen(suffix) + 1;
    char *path = NULL;
    MOEDI_TRY(moedi_alloc(c, size, (void **)&path));
    snprintf(path, size, "%s%s", prefix, suffix);
    *out = path;
    return MOED_OK;
}

moed_status moedi_indexed_fingerprint(const moed_context *c, const moedi_file *idx, const moedi_file *bin,
                                      char out[33])
{
    unsigned char *block = NULL;
    moedi_hash *h = NULL;
    moed_status status;
    const uint64_t size = (uint64_t)bin->size;
    MOEDI_GO(moedi_alloc(c, BLOCK, (void **)&block));
    MOEDI_GO(moedi_hash_create(&h, c));
    for (int64_t at = 0; idx && at < idx->size; at += BLOCK) {
        const size_t n = idx->size - at < BLOCK ? (size_t)(idx->size - at) : BLOCK;
        MOEDI_GO(moedi_file_read(idx, at, block, n));
        moedi_hash_update(h, block, n);
    }
    moedi_hash_update(h, &size, sizeof size);
    const int64_t whole = (bin->size + BLOCK - 1) / BLOCK, blocks = whole < BLOCKS ? whole : BLOCKS;
    for (int64_t i = 0; i < blocks; i++) {
        /* few blocks: the file from end to end; many: spread over it, the last one at its end (without overflow
         * of i * range) */
        const int64_t range = bin->size - BLOCK, steps = BLOCKS - 1;
        const int64_t at = whole <= BLOCKS ? i * BLOCK : range / steps * i + range % steps * i / steps;
        const size_t n = bin->size - at < BLOCK ? (size_t)(bin->size - at) : BLOCK;
        MOEDI_GO(moedi_file_read(bin, at, block, n));
        moedi_hash_update(h, block, n);
    }
    moedi_digest_print(moedi_hash_digest(h), out);
out:
    moedi_hash_destroy(h);
    moedi_free(c, block);
    return status;
}

/* Only a corpus may be replaced: what has no description of one beside it is somebody's, and stays. The description is put in
 * place before the token files and leaves after them, so that what a kill leaves has one too. */
static moed_status check_replaceable(const moedi_indexed_writer *w)
{
    const char *const paths[] = {w->bin_path, w->idx_path}, *format = NULL;
    json_t *o = NULL;
    if (moedi_path_exists(w->json_path)) {
        moed_status status = moedi_json_open(&o, w->context, w->json_path);
        if (status == MOED_OK) status = moedi_json_text(o, w->json_path, "format", 1, &format);
        const int ours = status == MOED_OK && strcmp(format, MOEDI_CORPUS_FORMAT) == 0;
        json_decref(o);
        if (ours || (status != MOED_OK && status != MOED_E_FORMAT && status != MOED_E_LIMIT)) return status;
        return moedi_fail_file(MOED_E_EXISTS, w->json_path, -1, "describes no corpus: it is not replaced");
    }
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (moedi_path_exists(paths[i]))
            return moedi_fail_file(MOED_E_EXISTS, paths[i], -1,
                                   "is there without %s to say that it is a corpus': it is not replaced", w->json_path);
    return MOED_OK;
}

moed_status moedi_indexed_create(moedi_indexed_writer *w, const moed_context *c, const char *prefix,
                                 int64_t item)
{
    moed_status status;
    memset(w, 0, sizeof *w);
    w->context = c;
    w->item = item;
    if (prefix[strlen(prefix) - 1] == '/')
        return moedi_fail_file(MOED_E_ARGUMENT, prefix, -1, "is a folder: a prefix ends in a name, as in %scorpus", prefix);
    MOEDI_GO(moedi_path_suffix(c, prefix, ".bin", &w->bin_path));
    MOEDI_GO(moedi_path_suffix(c, prefix, ".idx", &w->idx_path));
    MOEDI_GO(moedi_path_suffix(c, prefix, ".json", &w->json_path));
    MOEDI_GO(check_replaceable(w));
    MOEDI_GO(moedi_writer_open(&w->bin, c, w->bin_path));
    return MOED_OK;
out:
    moedi_indexed_abort(w);
    return status;
}

void moedi_indexed_abort(moedi_indexed_writer *w)
{
    if (!w->context) return;
    moedi_writer_abort(&w->bin);
    moedi_writer_abort(&w->idx);
    moedi_writer_abort(&w->json);
    moedi_free(w->context, w->bin_path);
    moedi_free(w->context, w->idx_path);
    moedi_free(w->context, w->json_path);
    moedi_free(w->context, w->lengths);
    memset(w, 0, sizeof *w);
}

moed_status moedi_indexed_append(moedi_indexed_writer *w, const void *tokens, int64_t count)
{
    if (count > INT32_MAX - w->open)
        return moedi_fail_file(MOED_E_RANGE, w->bin_path, -1,
                               "document %lld has more than %ld tokens, the most that the format holds",
                               (long long)w->documents, (long)INT32_MAX);
    MOEDI_TRY(moedi_writer_write(&w->bin, tokens, (size_t)(count * w->item)));
    w->open += count;
    return MOED_OK;
}

moed_status moedi_indexed_end(moedi_indexed_writer *w)
{
    if (w->documents == w->capacity) {
        const int64_t larger = w->capacity ? w->capacity * 2 : 1024;
        MOEDI_TRY(moedi_realloc_array(w->context, larger, sizeof *w->lengths, (void **)&w->lengths));
        w->capacity = larger;
    }
    w->lengths[w->documents++] = (int32_t)w->open;
    w->tokens += w->open;
    w->open = 0;
    return MOED_OK;
}

moed_status moedi_indexed_drop(moedi_indexed_writer *w)
{
    w->open = 0;
    return moedi_writer_seek(&w->bin, w->tokens * w->item);
}

static moed_status write_idx(moedi_indexed_writer *w)
{
    moedi_writer *f = &w->idx;
    const uint64_t version = 1, sequences = (uint64_t)w->documents, bounds = sequences + 1;
    const uint8_t dtype = w->item == 2 ? MOEDI_INDEXED_UINT16 : MOEDI_INDEXED_INT32;
    int64_t pointer = 0;
    MOEDI_TRY(moedi_writer_open(f, w->context, w->idx_path));
    MOEDI_TRY(moedi_writer_write(f, MOEDI_INDEXED_MAGIC, 9));
    MOEDI_TRY(moedi_writer_write(f, &version, 8));
    MOEDI_TRY(moedi_writer_write(f, &dtype, 1));
    MOEDI_TRY(moedi_writer_write(f, &sequences, 8));
    MOEDI_TRY(moedi_writer_write(f, &bounds, 8));
    MOEDI_TRY(moedi_writer_write(f, w->lengths, (size_t)w->documents * sizeof *w->lengths));
    for (int64_t i = 0; i < w->documents; i++) {
        MOEDI_TRY(moedi_writer_write(f, &pointer, 8));
        pointer += w->lengths[i] * w->item;
    }
    for (int64_t i = 0; i <= w->documents; i++) MOEDI_TRY(moedi_writer_write(f, &i, 8));
    return MOED_OK;
}

static moed_status describe(moedi_indexed_writer *w, json_t *description)
{
    const moed_context *c = w->context;
    moedi_file bin, idx;
    char fingerprint[33], *text = NULL;
    size_t size = 0;
    MOEDI_TRY(moedi_file_open(&bin, c, w->bin.temporary));
    moed_status status = moedi_file_open(&idx, c, w->idx.temporary);
    if (status == MOED_OK) {
        status = moedi_indexed_fingerprint(c, &idx, &bin, fingerprint);
        moedi_file_close(&idx);
    }
    moedi_file_close(&bin);
    if (status != MOED_OK) return status;
    if (json_object_set_new(description, "documents", json_integer(w->documents)) != 0 ||
        json_object_set_new(description, "tokens", json_integer(w->tokens)) != 0 ||
        json_object_set_new(description, "fingerprint", json_string(fingerprint)) != 0)
        return moedi_fail(MOED_E_MEMORY, "no memory for the description of %s", w->json_path);
    MOEDI_TRY(moedi_json_print(c, description, &text, &size));
    MOEDI_GO(moedi_writer_open(&w->json, c, w->json_path));
    MOEDI_GO(moedi_writer_write(&w->json, text, size));
    MOEDI_GO(moedi_writer_settle(&w->json, (int64_t)size));
out:
    moedi_free(c, text);
    return status;
}

/* An older corpus steps aside, its index first: from there to the last rename nothing at PREFIX opens. */
enum { FILES = 3 };
typedef struct older {
    char *paths[FILES], *asides[FILES];
} older;

static moed_status step_aside(const moed_context *c, older *o)
{
    for (int i = 0; i < FILES; i++) MOEDI_TRY(moedi_temporary_aside(c, o->paths[i], &o->asides[i]));
    return MOED_OK;
}

/* The index comes last. What could not be put back stays where it is, and the error keeps the first reason. */
static void put_back(const moed_context *c, const older *o)
{
    moedi_error error;
    moedi_error_save(&error);
    for (int i = FILES; i-- > 0;) {
        if (!o->asides[i]) continue;
        if (rename(o->asides[i], o->paths[i]) == 0) continue;
        moedi_log(c, MOED_LOG_WARNING, "%s: could not be put back; it lies in %s", o->paths[i], o->asides[i]);
        break; /* without the rest there is nothing to open */
    }
    moedi_error_restore(&error);
}

static void forget(const moed_context *c, older *o, int remove)
{
    for (int i = 0; i < FILES; i++) {
        if (remove && o->asides[i]) unlink(o->asides[i]);
        moedi_free(c, o->asides[i]);
    }
}

moed_status moedi_indexed_commit(moedi_indexed_writer *w, json_t *description)
{
    moed_status status;
    older old = {.paths = {w->idx_path, w->bin_path, w->json_path}};
    int placed = 0;
    /* everything is on the disk under its temporary name before the first rename: none can be followed by "no space left" */
    MOEDI_GO(moedi_writer_settle(&w->bin, w->tokens * w->item));
    MOEDI_GO(write_idx(w));
    MOEDI_GO(moedi_writer_settle(&w->idx, MOEDI_INDEXED_HEADER + w->documents * 20 + 8));
    MOEDI_GO(describe(w, description));
    status = step_aside(w->context, &old);
    moedi_writer *const writers[FILES] = {&w->json, &w->bin, &w->idx};
    while (status == MOED_OK && placed < FILES) status = moedi_writer_commit(writers[placed++]);
    if (status != MOED_OK) {
        while (placed-- > 0) unlink(old.paths[FILES - 1 - placed]);
        put_back(w->context, &old);
    }
    forget(w->context, &old, status == MOED_OK);
out:
    moedi_indexed_abort(w);
    return status;
}

json_t *moedi_corpus_description(const char *tokenizer, int64_t vocabulary, int64_t end_token)
{
    json_t *o = json_object();
    if (!o || json_object_set_new(o, "format", json_string(MOEDI_CORPUS_FORMAT)) != 0 ||
        json_object_set_new(o, "version", json_integer(MOEDI_CORPUS_VERSION)) != 0 ||
        json_object_set_new(o, "tokenizer", json_string(tokenizer)) != 0 ||
        json_object_set_new(o, "vocabulary", json_integer(vocabulary)) != 0 ||
        json_object_set_new(o, "end_token", json_integer(end_token)) != 0 ||
        /* documents in PREFIX.bin do not hold the end token: whoever packs them adds it */
        json_object_set_new(o, "end_token_stored", json_false()) != 0) {
        json_decref(o);
        return NULL;
    }
    return o;
}

static moed_status save_documents(moedi_indexed_writer *w, const moed_corpus *d, const moed_cancel *cancel)
{
    int32_t *chunk = NULL;
    uint16_t *narrow = NULL;
    moed_status status;
    MOEDI_GO(MOEDI_NEW(d->context, MOEDI_CORPUS_CHUNK, &chunk));
    MOEDI_GO(MOEDI_NEW(d->context, MOEDI_CORPUS_CHUNK, &narrow));
    for (int64_t i = 0; i < d->documents; i++) {
        MOEDI_GO(moedi_cancel_check(cancel));
        for (int64_t at = 0; at < d->lengths[i]; at += MOEDI_CORPUS_CHUNK) {
            const int64_t left = d->lengths[i] - at, n = left < MOEDI_CORPUS_CHUNK ? left : MOEDI_CORPUS_CHUNK;
            MOEDI_GO(moedi_corpus_tokens(d, i, at, chunk, n));
            for (int64_t j = 0; j < n; j++) narrow[j] = (uint16_t)chunk[j];
            MOEDI_GO(moedi_indexed_append(w, w->item == 2 ? (const void *)narrow : chunk, n));
        }
        MOEDI_GO(moedi_indexed_end(w));
    }
out:
    moedi_free(d->context, chunk);
    moedi_free(d->context, narrow);
    return status;
}

moed_status moed_corpus_save(const moed_corpus *d, const char *prefix, const moed_cancel *cancel)
{
    moedi_indexed_writer w;
    json_t *description = NULL;
    moed_status status;
    moedi_clear_error();
    MOEDI_REQUIRE(d, "the corpus is NULL");
    MOEDI_REQUIRE(prefix && prefix[0], "prefix is NULL or empty");
    MOEDI_TRY(moedi_context_check(d->context));
    MOEDI_TRY(moedi_indexed_create(&w, d->context, prefix, d->info.vocabulary <= 65536 ? 2 : 4));
    MOEDI_GO(save_documents(&w, d, cancel));
    description = moedi_corpus_description(d->info.tokenizer, d->info.vocabulary, d->info.end_token);
    if (!description ||
        (d->parent && json_object_set_new(description, "view_of", json_string(d->info.fingerprint)) != 0)) {
        status = moedi_fail(MOED_E_MEMORY, "no memory for the description of %s", prefix);
        goto out;
    }
    status = moedi_indexed_commit(&w, description);
out:
    json_decref(description);
    moedi_indexed_abort(&w);
    return status;
}
