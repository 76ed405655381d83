/*
 * Fails the n-th allocation in turn, for every n, while a model is opened and a shard is made. The
 * sources are included here with their allocator replaced.
 */
#include "failing_alloc.h"

#include "model/gguf.c"
#include "model/model.c"
#include "model/shard.c"
#undef malloc
#undef calloc
#undef realloc

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#include "model/gguf_builder.h"

static int open_and_shard(const char *path, const struct builder *b, struct error *err)
{
    struct gguf_file *f;
    struct model *m;
    struct split split;
    struct shard s;
    int rc = path != NULL ? gguf_file_open(path, &f, err)
                          : gguf_file_parse(b->file.data, b->file.len, &f, err);
    if (rc != 0 || (rc = model_from_file(f, &m, err)) != 0)
        return rc;
    rc = split_parse("tensor", 2, m->config.n_layer, NULL, &split, err);
    if (rc == 0 && (rc = shard_init(&s, m, &split, 1, err)) == 0)
        shard_done(&s);
    model_close(m);
    return rc;
}

static void fail_each(const char *path, const struct builder *b)
{
    struct error err;
    long n = 0;
    for (int rc = E_NOMEM; rc != 0; n++) {
        assert_true(n < 1000);
        allocations_left = n;
        error_clear(&err);
        rc = open_and_shard(path, b, &err);
        assert_true(rc == 0 || (rc == E_NOMEM && err.code == E_NOMEM));
    }
    allocations_left = -1;
    assert_true(n > 8); /* some did fail */
}

static void test_each_allocation_fails(void **state)
{
    (void)state;
    struct builder b;
    builder_init(&b);
    builder_config(&b, &builder_tiny);
    builder_key(&b, "words", GGUF_KIND_ARRAY);
    buf_append_u32(&b.values, GGUF_KIND_STRING);
    buf_append_u64(&b.values, 2);
    builder_string_bytes(&b.values, "a", 1);
    builder_string_bytes(&b.values, "b", 1);
    builder_weights(&b, &builder_tiny);
    builder_finish(&b);
    fail_each(NULL, &b);

    char path[] = "/tmp/shoal-test-alloc-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b.file.data, b.file.len), (ssize_t)b.file.len);
    close(fd);
    fail_each(path, &b);
    unlink(path);
    builder_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_allocation_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
