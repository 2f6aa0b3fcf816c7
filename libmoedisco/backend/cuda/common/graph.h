/* cuda/common/graph.h - slots of the table: work that is recorded once and launched as a whole. */
#ifndef MOEDI_CUDA_GRAPH_H
#define MOEDI_CUDA_GRAPH_H

#include "engine.h"

moed_status moedi_cuda_graph_begin(void *self);
moed_status moedi_cuda_graph_end(void *self, void **out);
moed_status moedi_cuda_graph_launch(void *self, void *graph);
void moedi_cuda_graph_free(void *self, void *graph);

#endif
