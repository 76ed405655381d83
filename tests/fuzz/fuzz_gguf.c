/* A GGUF file as a stranger sends it: opened, read in every way, and divided in several ways. */
#include "model/shard.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool ok)
{
    if (!ok)
        abort();
}

static void read_values(const struct gguf_file *f)
{
    uint64_t u;
    int64_t i;
    double x;
    bool yes;
    struct gguf_string s;
    double sum = 0;
    for (size_t n = 0; n < gguf_file_n_values(f); n++) {
        const struct gguf_value *v = gguf_file_value(f, n);
        char *key = strndup(v->key.data, v->key.len);
        check(key != NULL && gguf_file_find(f, key) == v);
        gguf_file_get_u64(f, key, &u, NULL);
        gguf_file_get_i64(f, key, &i, NULL);
        gguf_file_get_f64(f, key, &x, NULL);
        gguf_file_get_bool(f, key, &yes, NULL);
        gguf_file_get_string(f, key, &s, NULL);
        free(key);
        for (uint64_t k = 0; k < v->count; k++) {
            if (v->strings != NULL)
                sum += v->strings[k].len > 0 ? v->strings[k].data[v->strings[k].len - 1] : 0;
            else
                sum += (double)gguf_value_item_i64(v, k) + gguf_value_item_f64(v, k);
        }
    }
    volatile double kept = sum; /* so that the reads are not optimized away */
    (void)kept;
    for (size_t n = 0; n < gguf_file_n_tensors(f); n++) {
        const struct gguf_tensor *t = gguf_file_tensor(f, n);
        check(gguf_file_find_tensor(f, t->name) == t);
        check(t->size_bytes > 0 && t->offset >= gguf_file_data_offset(f));
        check(t->offset <= gguf_file_size(f) && t->size_bytes <= gguf_file_size(f) - t->offset);
    }
}

static uint64_t check_slice(const struct shard *s, const struct model *m, enum role role,
                            uint32_t layer)
{
    struct tensor_slice slice;
    if (!shard_slice(s, m, role, layer, &slice))
        return 0;
    const struct gguf_tensor *t = slice.tensor;
    check(slice.n_rows > 0 && slice.row_bytes > 0 && slice.file_offset >= t->offset);
    check(slice.file_offset - t->offset + (slice.n_rows - 1) * slice.row_stride_bytes +
              slice.row_bytes <=
          t->size_bytes);
    return slice.n_rows * slice.row_bytes;
}

static void divide_model(const struct model *m, const char *text, uint32_t n_ranks,
                         const uint32_t *weight)
{
    struct split split;
    struct shard s;
    if (split_parse(text, n_ranks, m->config.n_layer, weight, &split, NULL) != 0)
        return;
    check(split_check(&split, m->config.n_layer, NULL) == 0);
    for (uint32_t r = 0; r < n_ranks; r++) {
        if (shard_init(&s, m, &split, r, NULL) != 0)
            return;
        uint64_t bytes = 0;
        for (int role = 0; role < ROLE_FIRST_OF_LAYER; role++)
            bytes += check_slice(&s, m, (enum role)role, 0);
        for (uint32_t l = 0; l < m->config.n_layer; l++)
            for (int role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT; role++)
                bytes += check_slice(&s, m, (enum role)role, l);
        check(bytes == shard_weight_bytes(&s, m));
        shard_done(&s);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t weight[] = {3, 1, UINT32_MAX, 7};
    struct gguf_file *f;
    struct model *m;
    struct error err = {0};
    int rc = gguf_file_parse(data, size, &f, &err);
    check(rc == 0 || (rc == err.code && err.message[0] != '\0'));
    if (rc != 0)
        return 0;
    read_values(f);
    rc = model_from_file(f, &m, &err);
    check(rc == 0 || (rc == err.code && err.message[0] != '\0'));
    if (rc != 0)
        return 0;
    divide_model(m, "tensor", 1, NULL);
    divide_model(m, "tensor", 3, weight);
    divide_model(m, "pipeline", 2, weight);
    divide_model(m, "2x2", 4, weight);
    model_close(m);
    return 0;
}
