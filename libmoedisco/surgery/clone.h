/* surgery/clone.h - experts made of those of another model: as they are, with noise, or with a share of their units drawn
 * anew. */
#ifndef MOEDI_CLONE_H
#define MOEDI_CLONE_H

#include "surgery/piece.h"

/* Sums of squares of a tensor by intermediate unit. */
typedef struct moedi_unit_sums {
    int64_t param;                   /* of the source; -1 = none yet */
    double *squares;                 /* (width) */
} moedi_unit_sums;

typedef struct moedi_cloner {
    const moed_model *source;        /* of the numbers: piece source 0 */
    const moed_layout *layout;       /* of the result */
    const int64_t *from;             /* (parameters of layout): whose clone each is, of the source */
    uint64_t seed;
    double noise;                    /* on every number, as a share of its tensor's root mean square */
    double redraw;                   /* share of an expert's units */
    int64_t width;                   /* intermediate units of an expert */
    moedi_unit_sums sums[3];         /* of the latest: experts' gates and ups take turns */
    int latest;
    int64_t *order;                  /* (width) */
    uint8_t *drawn;                  /* (width): units of the expert at hand that are drawn anew */
    unsigned char *bytes;            /* of a stretch of a tensor, and the same as numbers */
    double *numbers;
} moedi_cloner;

/* Memory for a cloner of which the first six fields are filled in; destroyed even where this failed. */
moed_status moedi_cloner_open(moedi_cloner *c);
void moedi_cloner_close(moedi_cloner *c);
/* The pieces of an expert's tensor, a parameter of the result. Redrawn units are normal with the root mean square of what they
 * replace, the same units in the expert's three tensors. MOED_E_NUMERIC where the source holds what is no number. */
moed_status moedi_cloner_pieces(moedi_cloner *c, size_t param, moedi_piece_list *list);
/* A seed for a use (0 on) of a parameter. */
uint64_t moedi_cloner_seed(const moedi_cloner *c, const moed_param *p, uint64_t use);

#endif
