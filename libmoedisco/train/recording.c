/* train/recording.c - a launch takes the place of hundreds of calls. What cannot be recorded is done in the ordinary way. */
#include "recording.h"

#include <string.h>

int moedi_recording_possible(const moedi_engine *e)
{
    const moed_backend *b = e->table;
    return MOED_BACKEND_HAS(b, graph_begin) && MOED_BACKEND_HAS(b, graph_end) && MOED_BACKEND_HAS(b, graph_launch) &&
           MOED_BACKEND_HAS(b, graph_free);
}

static void refuse(moedi_recording *r, const moedi_engine *e)
{
    moedi_log(e->context, MOED_LOG_INFO, "steps run without a graph: %s", moed_last_error());
    moedi_clear_error();
    r->refused = 1;
}

/* Fails only where the caller cancelled: nothing that was recorded has run. */
static moed_status record(moedi_recording *r, const moedi_engine *e, moedi_enqueue_fn enqueue, void *user)
{
    void *graph = NULL;
    moedi_error kept;
    if (e->table->graph_begin(e->self) != MOED_OK) {
        refuse(r, e);
        return MOED_OK;
    }
    const moed_status enqueued = enqueue(user);
    moedi_error_save(&kept);
    const moed_status ended = e->table->graph_end(e->self, &graph);
    if (enqueued == MOED_OK && ended == MOED_OK) {
        r->graph = graph;
        return MOED_OK;
    }
    if (graph) e->table->graph_free(e->self, graph);
    if (enqueued != MOED_OK) (void)moedi_error_restore(&kept);
    if (enqueued == MOED_E_CANCELLED) return enqueued;
    refuse(r, e);
    return MOED_OK;
}

moed_status moedi_recording_run(moedi_recording *r, const moedi_engine *e, double number, moedi_enqueue_fn enqueue, void *user)
{
    if (r->number != number) {
        const int32_t refused = r->refused;
        moedi_recording_destroy(r, e);
        r->number = number, r->refused = refused;
    }
    if (!r->graph && r->ordinary && !r->refused) MOEDI_TRY(record(r, e, enqueue, user));
    if (r->graph) {
        const moed_status status = e->table->graph_launch(e->self, r->graph);
        if (status != MOED_E_UNSUPPORTED) return status;
        moedi_clear_error();
        e->table->graph_free(e->self, r->graph);
        r->graph = NULL;
    }
    const moed_status status = enqueue(user);
    if (status == MOED_OK) r->ordinary = 1; /* one that ended early has not met all shapes */
    return status;
}

void moedi_recording_destroy(moedi_recording *r, const moedi_engine *e)
{
    if (r->graph) e->table->graph_free(e->self, r->graph);
    memset(r, 0, sizeof *r);
}
