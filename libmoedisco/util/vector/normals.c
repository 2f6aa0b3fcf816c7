/* util/vector/normals.c - many normal numbers: the bits that moedi_random_normal gives one by one, from loops that the compiler
 * makes vectors of. Six in seven numbers lie in the centre, so all take its arithmetic and the others are gathered for theirs. */
#include "util/normal.h"
#include "util/numbers.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

enum { CHUNK = 512 };

static void tails(double *restrict out, const double *restrict q, const int32_t *restrict place, int64_t count)
{
    double r[CHUNK], x[CHUNK];
    for (int64_t i = 0; i < count; i++) r[i] = moedi_normal_r(q[i]);
    for (int64_t i = 0; i < count; i++) x[i] = moedi_normal_middle(r[i]);
    for (int64_t i = 0; i < count; i++) {
        const double far = r[i] <= MOEDI_NORMAL_MIDDLE ? x[i] : moedi_normal_far(r[i]); /* one in 36 billion */
        out[place[i]] = q[i] < 0 ? -far : far;
    }
}

void JOIN(moedi_normals_, MOEDI_VARIANT)(double *restrict out, uint64_t seed, uint32_t purpose, uint64_t step, uint64_t first,
                                         int64_t count);
void JOIN(moedi_normals_, MOEDI_VARIANT)(double *restrict out, uint64_t seed, uint32_t purpose, uint64_t step, uint64_t first,
                                         int64_t count)
{
    const uint64_t key = moedi_philox_key(seed, purpose);
    double q[CHUNK], outer[CHUNK];
    uint64_t random[CHUNK];
    int32_t place[CHUNK];
    for (int64_t at = 0; at < count; at += CHUNK) {
        const int64_t n = count - at < CHUNK ? count - at : CHUNK;
        int64_t gathered = 0;
        for (int64_t i = 0; i < n; i++) random[i] = moedi_philox(key, step, first + (uint64_t)(at + i));
        for (int64_t i = 0; i < n; i++) q[i] = moedi_normal_quantile(random[i]);
        for (int64_t i = 0; i < n; i++)
            out[at + i] = moedi_normal_centre(q[i] >= -MOEDI_NORMAL_CENTRE && q[i] <= MOEDI_NORMAL_CENTRE ? q[i] : 0);
        for (int64_t i = 0; i < n; i++) {
            outer[gathered] = q[i], place[gathered] = (int32_t)i;
            gathered += q[i] < -MOEDI_NORMAL_CENTRE || q[i] > MOEDI_NORMAL_CENTRE;
        }
        tails(out + at, outer, place, gathered);
    }
}
