/* model/layout_map.c - which parameter of one layout the numbers of another's come from. */
#include "layout.h"

void moedi_layout_map(const moed_layout *to, const moed_layout *from, const int32_t *origins, int64_t *map)
{
    const int32_t experts = (int32_t)to->config.experts;
    for (size_t i = 0; i < to->count; i++) map[i] = -1;
    for (moedi_slot slot = 0; slot < MOEDI_SLOT_COUNT; slot++) {
        const int of_expert = moedi_slot_of_expert(slot), of_layer = moedi_slot_of_layer(slot);
        for (int32_t layer = of_layer ? 0 : -1; layer < (of_layer ? to->layers : 0); layer++)
            for (int32_t e = of_expert ? 0 : -1; e < (of_expert ? experts : 0); e++) {
                const int64_t param = moedi_layout_slot(to, slot, layer, e);
                const int32_t origin = !of_expert ? -1 : origins ? origins[(int64_t)layer * experts + e] : 0;
                if (param < 0 || (of_expert && origin < 0)) continue;
                map[param] = moedi_layout_slot(from, slot, layer, origin);
            }
    }
}

moed_status moedi_layout_take_dtypes(moed_layout **l, const moed_layout *from, const int64_t *map)
{
    const moed_context *c = (*l)->context;
    moed_layout *typed = NULL;
    moed_dtype *dtypes = NULL;
    MOEDI_TRY(MOEDI_NEW(c, (*l)->count, &dtypes));
    for (size_t i = 0; i < (*l)->count; i++) dtypes[i] = from->params[map[i] < 0 ? 0 : map[i]].dtype;
    const moed_status status = moedi_layout_with_dtypes(&typed, *l, dtypes);
    moedi_free(c, dtypes);
    if (status != MOED_OK) return status;
    moed_layout_destroy(*l);
    *l = typed;
    return MOED_OK;
}
