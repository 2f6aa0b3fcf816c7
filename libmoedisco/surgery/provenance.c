/* surgery/provenance.c - the record that lets integration refuse, by name, a submodel of another base or part. */
#include "surgery/provenance.h"

#include <string.h>

enum { SAMPLE = 512 };

moed_status moedi_provenance_create(json_t **out, int32_t part, int32_t parts, int32_t layers,
                                    int32_t *const *experts, const int32_t *counts, const char *base)
{
    int lost = 0; /* no memory for a part of it */
    json_t *lists = json_array();
    for (int32_t l = 0; l < layers; l++) {
        json_t *list = json_array();
        for (int32_t j = 0; j < counts[l]; j++) lost |= json_array_append_new(list, json_integer(experts[l][j]));
        lost |= json_array_append_new(lists, list);
    }
    json_t *o = json_object();
    lost |= json_object_set_new(o, "part", json_integer(part)); /* each takes its value, whatever comes of it */
    lost |= json_object_set_new(o, "parts", json_integer(parts));
    lost |= json_object_set_new(o, "experts", lists);
    if (base) lost |= json_object_set_new(o, "base", json_string(base));
    if (lost) {
        json_decref(o);
        return moedi_fail(MOED_E_MEMORY, "no memory for the provenance of part %d", part);
    }
    *out = o;
    return MOED_OK;
}

moed_status moedi_provenance_read(json_t **out, const moed_layout *l)
{
    json_t *config = NULL;
    *out = NULL;
    if (!l->config_text || !l->config_text[0]) return MOED_OK;
    MOEDI_TRY(moedi_json_parse(&config, l->config_text, strlen(l->config_text), "config.json"));
    json_t *object = json_object_get(config, "moedisco");
    if (json_is_object(object)) *out = json_incref(object);
    json_decref(config);
    return MOED_OK;
}

moed_status moedi_provenance_attach(moed_layout *l, json_t *object)
{
    char *text = NULL;
    size_t size = 0;
    json_t *config = json_object();
    if (!config || json_object_set(config, "moedisco", object)) {
        json_decref(config);
        return moedi_fail(MOED_E_MEMORY, "no memory for the provenance of a layout");
    }
    moed_status status = moedi_json_print(l->context, config, &text, &size);
    json_decref(config);
    if (status != MOED_OK) return status;
    moedi_free(l->context, l->config_text);
    l->config_text = text;
    return MOED_OK;
}

moed_status moedi_provenance_compare(const json_t *expected, const json_t *found, int clone)
{
    static const char *const fields[] = {"base", "parts", "part", "experts"};
    if (!found) return MOED_OK;
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        const json_t *want = json_object_get(expected, fields[i]), *has = json_object_get(found, fields[i]);
        if (!want || !has || json_equal(want, has)) continue;
        if (i == 0)
            return moedi_fail_parameter(
                MOED_E_MISMATCH, "base", "the submodel was split from another base (base %.40s, not %.40s)",
                json_is_string(has) ? json_string_value(has) : "?", json_string_value(want));
        if (clone) continue;
        if (i < 3)
            return moedi_fail_parameter(MOED_E_MISMATCH, fields[i], "the submodel's %s is %lld, not %lld",
                                        fields[i], (long long)json_integer_value(has),
                                        (long long)json_integer_value(want));
        return moedi_fail_parameter(
            MOED_E_MISMATCH, "experts",
            "the submodel holds other experts of the base than the split gives this part");
    }
    return MOED_OK;
}

static moed_status digest_parameter(const moed_model *m, size_t param, moedi_hash *h)
{
    const moed_param *p = &m->layout->params[param];
    const moed_tensor *t = m->tensors ? &m->tensors[param] : NULL;
    int32_t dtype = t && t->data ? t->dtype : p->dtype;
    int64_t count = moedi_shape_elements(p->shape, p->rank);
    double numbers[SAMPLE] = {0};
    unsigned char bytes[SAMPLE * 16];
    if (count > SAMPLE) count = SAMPLE;
    moedi_hash_update(h, p->name, strlen(p->name) + 1);
    moedi_hash_update(h, p->shape, (size_t)p->rank * sizeof p->shape[0]);
    size_t size = moedi_dtype_size(dtype);
    if (count == 0 || size == 0) return MOED_OK;
    MOEDI_TRY(moedi_model_read(m, param, 0, count, bytes));
    if (moedi_dtype_is_float(dtype)) {
        moedi_to_double(numbers, bytes, dtype, count);
        moedi_hash_update(h, numbers, (size_t)count * sizeof numbers[0]);
    } else {
        moedi_hash_update(h, bytes, (size_t)count * size);
    }
    return MOED_OK;
}

moed_status moedi_provenance_digest(const moed_model *m, char out[33])
{
    moed_status status = MOED_OK;
    moedi_hash *h = NULL;
    MOEDI_TRY(moedi_hash_create(&h, m->context));
    for (size_t i = 0; i < m->layout->count; i++) MOEDI_GO(digest_parameter(m, i, h));
    moedi_digest_print(moedi_hash_digest(h), out);
out:
    moedi_hash_destroy(h);
    return status;
}
