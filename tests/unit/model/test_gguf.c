#include "base/limits.h"
#include "model/dtype.h"
#include "model/gguf.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/gguf_builder.h"

/* Parses an exact copy on the heap, so that a sanitizer sees any read past its end. */
static int parse(const struct builder *b, struct error *err)
{
    struct gguf_file *f;
    void *copy = malloc(b->file.len > 0 ? b->file.len : 1);
    assert_non_null(copy);
    memcpy(copy, buf_str(&b->file), b->file.len);
    error_clear(err);
    int rc = gguf_file_parse(copy, b->file.len, &f, err);
    if (rc == 0)
        gguf_file_close(f);
    free(copy);
    return rc;
}

static void expect(struct builder *b, int code, const char *part)
{
    struct error err;
    assert_int_equal(parse(b, &err), code);
    assert_int_equal(err.code, code);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' does not contain '%s'", err.message, part);
    builder_done(b);
}

static void test_reads_values(void **state)
{
    (void)state;
    struct builder b;
    struct gguf_file *f;
    struct error err = {0};
    builder_init(&b);
    builder_u32(&b, "n", 7);
    builder_f32(&b, "x", 0.5f);
    builder_string(&b, "s", "text");
    builder_key(&b, "yes", GGUF_KIND_BOOL);
    buf_append_u8(&b.values, 1);
    builder_key(&b, "minus", GGUF_KIND_I8);
    buf_append_u8(&b.values, 0xff);
    builder_key(&b, "big", GGUF_KIND_U64);
    buf_append_u64(&b.values, UINT64_MAX);
    builder_key(&b, "list", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_I16);
    buf_append_u64(&b.values, 3);
    buf_append_u16(&b.values, 1);
    buf_append_u16(&b.values, 0xfffe);
    buf_append_u16(&b.values, 3);
    builder_key(&b, "words", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_STRING);
    buf_append_u64(&b.values, 2);
    builder_string_bytes(&b.values, "a", 1);
    builder_string_bytes(&b.values, "", 0);
    builder_tensor(&b, "t", DTYPE_Q4_0, 64, 3);
    builder_finish(&b);
    assert_int_equal(gguf_file_parse(b.file.data, b.file.len, &f, &err), 0);

    uint64_t u;
    int64_t i;
    double x;
    bool yes;
    struct gguf_string s;
    assert_int_equal(gguf_file_get_u64(f, "n", &u, &err), 0);
    assert_int_equal(u, 7);
    assert_int_equal(gguf_file_get_i64(f, "minus", &i, &err), 0);
    assert_int_equal(i, -1);
    assert_int_equal(gguf_file_get_u64(f, "minus", &u, &err), E_FORMAT);
    assert_int_equal(gguf_file_get_u64(f, "big", &u, &err), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(gguf_file_get_i64(f, "big", &i, &err), E_FORMAT);
    assert_int_equal(gguf_file_get_f64(f, "x", &x, &err), 0);
    assert_true(x == 0.5);
    assert_int_equal(gguf_file_get_f64(f, "n", &x, &err), E_FORMAT);
    assert_int_equal(gguf_file_get_bool(f, "yes", &yes, &err), 0);
    assert_true(yes);
    assert_int_equal(gguf_file_get_string(f, "s", &s, &err), 0);
    assert_int_equal(s.len, 4);
    assert_memory_equal(s.data, "text", 4);
    assert_int_equal(gguf_file_get_string(f, "absent", &s, &err), E_NOTFOUND);
    assert_non_null(strstr(err.message, "absent"));
    assert_int_equal(gguf_file_get_u64(f, "list", &u, &err), E_FORMAT);

    const struct gguf_value *list = gguf_file_find(f, "list"), *words = gguf_file_find(f, "words");
    assert_int_equal(list->count, 3);
    assert_int_equal(gguf_value_item_i64(list, 1), -2);
    assert_int_equal(gguf_value_item_i64(list, 3), 0); /* past the end */
    assert_int_equal(words->count, 2);
    assert_int_equal(words->strings[0].len, 1);
    assert_int_equal(words->strings[1].len, 0);
    assert_int_equal(gguf_file_n_values(f), 8);
    assert_ptr_equal(gguf_file_value(f, 6), list);
    assert_null(gguf_file_value(f, 8));

    const struct gguf_tensor *t = gguf_file_find_tensor(f, "t");
    assert_ptr_equal(t, gguf_file_tensor(f, 0));
    assert_int_equal(t->n_dims, 2);
    assert_int_equal(t->size_bytes, 3 * 2 * 18);
    assert_int_equal(t->offset, gguf_file_data_offset(f));
    assert_int_equal(gguf_file_size(f), b.file.len);
    assert_null(gguf_file_find_tensor(f, "u"));
    assert_string_equal(gguf_file_path(f), "");
    gguf_file_close(f);
    gguf_file_close(NULL);
    builder_done(&b);
}

/* Every shorter file is refused: nothing is read beyond the end, and nothing is taken for granted.
 */
static void test_every_cut_is_refused(void **state)
{
    (void)state;
    struct builder b;
    struct error err;
    builder_model(&b, &builder_tiny);
    size_t header = b.file.len - b.data_bytes, whole = b.file.len;
    assert_int_equal(parse(&b, &err), 0);
    for (size_t n = 0; n < whole; n += n < header + 64 ? 1 : 997) {
        b.file.len = n;
        int rc = parse(&b, &err);
        assert_int_equal(rc, E_FORMAT);
        assert_true(err.message[0] != '\0');
    }
    b.file.len = header / 2;
    expect(&b, E_FORMAT, "byte");
}

/* Any byte of the header may have any of a few values: accepted or refused, but never a crash. */
static void test_every_changed_byte(void **state)
{
    (void)state;
    struct builder b;
    struct error err;
    builder_model(&b, &builder_tiny);
    size_t header = b.file.len - b.data_bytes;
    for (size_t i = 0; i < header; i++) {
        char old = b.file.data[i];
        static const char values[] = {0, 1, 0x7f, (char)0xff};
        for (size_t k = 0; k < sizeof(values); k++) {
            b.file.data[i] = values[k];
            parse(&b, &err);
        }
        b.file.data[i] = old;
    }
    builder_done(&b);
}

static void begin_counts(struct builder *b, uint32_t version, uint64_t n_tensors, uint64_t n_values)
{
    builder_init(b);
    buf_append_str(&b->file, "GGUF");
    buf_append_u32(&b->file, version);
    buf_append_u64(&b->file, n_tensors);
    buf_append_u64(&b->file, n_values);
}

static void test_refuses_bad_preambles(void **state)
{
    (void)state;
    struct builder b;
    builder_init(&b);
    buf_append_str(&b.file, "GGML0000");
    expect(&b, E_FORMAT, "not a GGUF file");
    begin_counts(&b, 1, 0, 0);
    expect(&b, E_UNSUPPORTED, "version 1");
    begin_counts(&b, 0x03000000, 0, 0);
    expect(&b, E_UNSUPPORTED, "big-endian");
    begin_counts(&b, 3, UINT64_MAX, 0);
    expect(&b, E_LIMIT, "limits");
    begin_counts(&b, 3, 0, LIMIT_GGUF_KV_COUNT);
    expect(&b, E_FORMAT, "do not fit");
    begin_counts(&b, 3, 0, 0);
    struct error err;
    assert_int_equal(parse(&b, &err), 0);
    builder_done(&b);
}

static void test_refuses_bad_values(void **state)
{
    (void)state;
    struct builder b;
    builder_init(&b);
    builder_u32(&b, "twice", 1);
    builder_u32(&b, "other", 1);
    builder_u32(&b, "twice", 2);
    builder_finish(&b);
    expect(&b, E_FORMAT, "'twice' appears twice");

    builder_init(&b);
    builder_u32(&b, "", 1);
    builder_finish(&b);
    expect(&b, E_FORMAT, "empty");

    builder_init(&b);
    builder_key(&b, "kind", 13);
    buf_append_u64(&b.values, 0);
    builder_finish(&b);
    expect(&b, E_FORMAT, "unknown kind 13");

    builder_init(&b);
    builder_key(&b, "nested", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_ARRAY);
    buf_append_u64(&b.values, 1);
    builder_finish(&b);
    expect(&b, E_UNSUPPORTED, "array of arrays");

    builder_init(&b);
    builder_key(&b, "long", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_STRING);
    buf_append_u64(&b.values, LIMIT_GGUF_ARRAY_COUNT);
    builder_finish(&b);
    expect(&b, E_FORMAT, "more than the file holds");

    builder_init(&b);
    builder_key(&b, "longer", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_U8);
    buf_append_u64(&b.values, UINT64_MAX);
    builder_finish(&b);
    expect(&b, E_LIMIT, "items");

    builder_init(&b);
    builder_key(&b, "string", GGUF_KIND_STRING);
    buf_append_u64(&b.values, UINT64_MAX);
    builder_finish(&b);
    expect(&b, E_LIMIT, "bytes long");

    builder_init(&b);
    builder_key(&b, "maybe", GGUF_KIND_BOOL);
    buf_append_u8(&b.values, 2);
    builder_finish(&b);
    expect(&b, E_FORMAT, "neither true nor false");

    builder_init(&b);
    builder_u32(&b, "general.alignment", 48);
    builder_finish(&b);
    expect(&b, E_FORMAT, "power of two");

    builder_init(&b);
    builder_string(&b, "general.alignment", "32");
    builder_finish(&b);
    expect(&b, E_FORMAT, "not an integer");
}

static void one_tensor(struct builder *b, const char *name, uint32_t type, uint32_t n_dims,
                       uint64_t d0, uint64_t d1, uint64_t offset)
{
    uint64_t dim[8] = {d0, d1, 1, 1, 1, 1, 1, 1};
    builder_init(b);
    builder_tensor_at(b, name, type, n_dims, dim, offset);
    b->data_bytes = 256;
    builder_finish(b);
}

static void test_refuses_bad_tensors(void **state)
{
    (void)state;
    const uint64_t d[2] = {32, 1}, huge = UINT64_C(1) << 63;
    struct builder b;
    struct error err;
    one_tensor(&b, "t", DTYPE_F32, 1, 32, 1, 128);
    assert_int_equal(parse(&b, &err), 0);
    builder_done(&b);
    one_tensor(&b, "t", DTYPE_F32, 1, 32, 1, 160);
    expect(&b, E_FORMAT, "the file ends");
    one_tensor(&b, "t", DTYPE_F32, 1, 32, 1, UINT64_MAX - 31);
    expect(&b, E_FORMAT, "the file ends");
    one_tensor(&b, "t", DTYPE_F32, 1, 32, 1, 4);
    expect(&b, E_FORMAT, "multiple of 32");
    one_tensor(&b, "t", DTYPE_F32, 2, huge, 2, 0);
    expect(&b, E_FORMAT, "too large");
    one_tensor(&b, "t", DTYPE_F32, 2, UINT64_C(1) << 32, UINT64_C(1) << 32, 0);
    expect(&b, E_FORMAT, "too large");
    one_tensor(&b, "t", DTYPE_F32, 2, 32, 0, 0);
    expect(&b, E_FORMAT, "zero");
    one_tensor(&b, "t", DTYPE_Q4_0, 1, 33, 1, 0);
    expect(&b, E_FORMAT, "whole number of Q4_0 blocks");
    one_tensor(&b, "t", 4, 1, 32, 1, 0);
    expect(&b, E_UNSUPPORTED, "type 4");
    one_tensor(&b, "t", 4000000000u, 1, 32, 1, 0);
    expect(&b, E_UNSUPPORTED, "type 4000000000");
    one_tensor(&b, "t", DTYPE_F32, 0, 32, 1, 0);
    expect(&b, E_FORMAT, "0 dimensions");
    one_tensor(&b, "t", DTYPE_F32, 5, 32, 1, 0);
    expect(&b, E_FORMAT, "5 dimensions");
    one_tensor(&b, "t\n", DTYPE_F32, 1, 32, 1, 0);
    expect(&b, E_FORMAT, "not printable");
    one_tensor(&b, "a name of more than sixty-three bytes, which ggml could not keep..", DTYPE_F32,
               1, 32, 1, 0);
    expect(&b, E_LIMIT, "bytes long");

    builder_init(&b);
    builder_tensor_at(&b, "t", DTYPE_F32, 1, d, 0);
    builder_tensor_at(&b, "t", DTYPE_F32, 1, d, 128);
    b.data_bytes = 256;
    builder_finish(&b);
    expect(&b, E_FORMAT, "appears twice");

    builder_init(&b);
    builder_tensor_at(&b, "t", DTYPE_F32, 1, d, 0);
    builder_tensor_at(&b, "u", DTYPE_F32, 1, d, 96);
    b.data_bytes = 256;
    builder_finish(&b);
    expect(&b, E_FORMAT, "overlap");
}

/* The limits' worth of keys and tensors, in an order that is bad for naive sorting and hashing
 * alike. */
static void test_many_entries(void **state)
{
    (void)state;
    struct builder b;
    struct gguf_file *f;
    struct error err;
    char name[32];
    builder_init(&b);
    for (uint32_t i = 0; i < LIMIT_GGUF_KV_COUNT; i++) {
        snprintf(name, sizeof(name), "key.%u", LIMIT_GGUF_KV_COUNT - i);
        builder_u32(&b, name, i);
    }
    for (uint32_t i = 0; i < LIMIT_GGUF_TENSOR_COUNT; i++) {
        snprintf(name, sizeof(name), "tensor.%u", i);
        builder_tensor(&b, name, DTYPE_F32, 8, 0);
    }
    builder_finish(&b);
    assert_int_equal(gguf_file_parse(b.file.data, b.file.len, &f, &err), 0);
    uint64_t v;
    assert_int_equal(gguf_file_get_u64(f, "key.1", &v, &err), 0);
    assert_int_equal(v, LIMIT_GGUF_KV_COUNT - 1);
    assert_ptr_equal(gguf_file_find_tensor(f, "tensor.54321"), gguf_file_tensor(f, 54321));
    gguf_file_close(f);
    builder_done(&b);
}

static void test_files(void **state)
{
    (void)state;
    struct builder b;
    struct gguf_file *f;
    struct error err = {0};
    char path[] = "/tmp/shoal-test-gguf-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(gguf_file_open(path, &f, &err), E_FORMAT); /* empty */
    assert_non_null(strstr(err.message, path));

    builder_model(&b, &builder_tiny);
    assert_int_equal(write(fd, b.file.data, b.file.len), (ssize_t)b.file.len);
    assert_int_equal(gguf_file_open(path, &f, &err), 0);
    assert_string_equal(gguf_file_path(f), path);
    assert_int_equal(gguf_file_size(f), b.file.len);
    size_t header_size;
    const void *header = gguf_file_header(f, &header_size);
    assert_memory_equal(header, b.file.data, header_size);
    assert_true(header_size <= gguf_file_data_offset(f) &&
                gguf_file_data_offset(f) < header_size + 32);
    gguf_file_close(f);

    /* A long header makes the reader fetch more than once. */
    builder_done(&b);
    builder_init(&b);
    builder_key(&b, "long", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_U32);
    buf_append_u64(&b.values, 1u << 20);
    for (uint32_t i = 0; i < 1u << 20; i++)
        buf_append_u32(&b.values, i);
    builder_u32(&b, "after", 9);
    builder_finish(&b);
    assert_int_equal(pwrite(fd, b.file.data, b.file.len, 0), (ssize_t)b.file.len);
    assert_int_equal(ftruncate(fd, (off_t)b.file.len), 0);
    assert_int_equal(gguf_file_open(path, &f, &err), 0);
    assert_int_equal(gguf_value_item_i64(gguf_file_find(f, "long"), 1000000), 1000000);
    uint64_t v;
    assert_int_equal(gguf_file_get_u64(f, "after", &v, &err), 0);
    gguf_file_close(f);
    assert_int_equal(ftruncate(fd, (off_t)b.file.len - 100), 0);
    assert_int_equal(gguf_file_open(path, &f, &err), E_FORMAT);

    close(fd);
    unlink(path);
    assert_int_equal(gguf_file_open(path, &f, &err), E_NOTFOUND);
    assert_int_equal(gguf_file_open("/tmp", &f, &err), E_IO);
    assert_int_equal(gguf_file_open("/dev/null", &f, &err), E_IO);
    builder_done(&b);
}

static void test_dtypes(void **state)
{
    (void)state;
    assert_string_equal(dtype_traits(DTYPE_Q4_K)->name, "Q4_K");
    assert_null(dtype_traits(4));
    assert_null(dtype_traits(31));
    assert_null(dtype_traits(UINT32_MAX));
    assert_int_equal(dtype_row_bytes(DTYPE_F32, 3), 12);
    assert_int_equal(dtype_row_bytes(DTYPE_Q4_K, 512), 288);
    assert_int_equal(dtype_row_bytes(DTYPE_Q4_K, 128), 0);
    assert_int_equal(dtype_row_bytes(5, 32), 0);
    assert_int_equal(dtype_row_bytes(DTYPE_F32, UINT64_C(1) << 40), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_values),
        cmocka_unit_test(test_every_cut_is_refused),
        cmocka_unit_test(test_every_changed_byte),
        cmocka_unit_test(test_refuses_bad_preambles),
        cmocka_unit_test(test_refuses_bad_values),
        cmocka_unit_test(test_refuses_bad_tensors),
        cmocka_unit_test(test_many_entries),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_dtypes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
