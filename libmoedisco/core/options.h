/* core/options.h - reading option structs: defaults, sizes, ranges. */
#ifndef MOEDI_OPTIONS_H
#define MOEDI_OPTIONS_H

#include "status.h"

#define MOEDI_LARGEST_RATE 100.0 /* of learning_rate, with what multiplies it: beyond it weights leave the range of float */

/* Copies the caller's options struct `given` (NULL = defaults) of struct id `id` into out (this library's full struct): checks
 * struct_size, the unknown tail, unknown bits of flags, and every field's range; the error names field and value. Fields that an
 * older, smaller struct lacks are 0. */
moed_status moedi_options_read(int32_t id, const void *given, void *out);

/* An out struct that moedi_info_write will take: asked before work that would be lost, or done unseen, if it did not. */
moed_status moedi_info_check(int32_t id, const void *out);

/* Checks an out struct's size and copies `full` (this library's) into it, as much as the caller has room for. */
moed_status moedi_info_write(int32_t id, const void *full, void *out);

#endif
