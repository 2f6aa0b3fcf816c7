/* model/faults.c - what is wrong in a directory, told one by one where opening would end at the first. */
#include "faults.h"

moed_status moedi_faults_tell(moedi_faults *f, int32_t kind, const char *file, const char *tensor, int64_t count)
{
    moedi_error e;
    moedi_error_save(&e);
    moedi_clear_error();
    const moed_finding told = {.struct_size = (uint32_t)sizeof told, .kind = kind, .count = count, .file = file,
                               .tensor = tensor ? tensor : "", .text = e.message};
    f->count++;
    const int32_t code = f->tell ? f->tell(&told, f->user) : 0;
    return code ? moedi_fail_callback("tell", code) : MOED_OK;
}
