/* Values survive a restart, a damaged file is put aside, a full disk keeps the old value. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "store/store.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static char folder[64], path[128];

static int make_folder(void **state)
{
    (void)state;
    snprintf(folder, sizeof(folder), "/tmp/shoal-store-XXXXXX");
    if (mkdtemp(folder) == NULL)
        return -1;
    snprintf(path, sizeof(path), "%s/state.db", folder);
    return 0;
}

static int remove_folder(void **state)
{
    char name[4096];
    (void)state;
    remove(path);
    snprintf(name, sizeof(name), "%s.damaged-1", path);
    remove(name);
    snprintf(name, sizeof(name), "%s-journal", path);
    remove(name);
    return rmdir(folder);
}

static struct store *open_store(char damaged[4096])
{
    struct error err = {0};
    struct store *s = NULL;
    if (store_open(path, &s, damaged, &err) != 0)
        fail_msg("%s", err.message);
    return s;
}

static void assert_value(struct store *s, const char *key, const void *value, size_t n)
{
    struct error err = {0};
    struct buf b;
    buf_init(&b, 1 << 20);
    assert_int_equal(store_read(s, key, &b, &err), 0);
    assert_int_equal(b.len, n);
    assert_memory_equal(b.data, value, n);
    buf_done(&b);
}

static void test_values_survive(void **state)
{
    (void)state;
    struct error err = {0};
    struct buf b;
    struct store *s = open_store(NULL);
    buf_init(&b, 100);
    assert_int_equal(store_read(s, "cluster", &b, &err), E_NOTFOUND);
    assert_int_equal(store_write(s, "cluster", "one\0two", 7, &err), 0);
    assert_int_equal(store_write(s, "cluster", "three", 5, &err), 0);
    assert_int_equal(store_write(s, "other", "", 0, &err), 0);
    store_close(s);
    s = open_store(NULL);
    assert_value(s, "cluster", "three", 5);
    assert_int_equal(store_read(s, "other", &b, &err), 0);
    assert_int_equal(b.len, 0);
    assert_int_equal(store_write(s, "big", &b, (size_t)STORE_VALUE_BYTES_MAX + 1, &err), E_LIMIT);
    store_close(s);
    buf_done(&b);
}

static void test_a_damaged_file_is_put_aside(void **state)
{
    (void)state;
    char damaged[4096] = "x";
    struct error err = {0};
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 5000; i++)
        fputs("this is no database ", f);
    fclose(f);
    struct store *s = open_store(damaged);
    assert_non_null(strstr(damaged, "state.db.damaged-1"));
    assert_int_equal(access(damaged, F_OK), 0);
    assert_int_equal(store_write(s, "cluster", "new", 3, &err), 0);
    store_close(s);
    s = open_store(damaged);
    assert_string_equal(damaged, "");
    assert_value(s, "cluster", "new", 3);
    store_close(s);
}

static void test_no_folder(void **state)
{
    (void)state;
    struct error err = {0};
    struct store *s = NULL;
    assert_int_equal(store_open("/nowhere/at/all/state.db", &s, NULL, &err), E_IO);
    assert_non_null(strstr(err.message, "/nowhere/at/all/state.db"));
}

static void test_a_full_disk_keeps_the_old_value(void **state)
{
    (void)state;
    struct error err = {0};
    struct store *s = open_store(NULL);
    assert_int_equal(store_write(s, "cluster", "old", 3, &err), 0);
    char *large = calloc(1, 1 << 20);
    assert_non_null(large);
    struct rlimit before, small = {.rlim_cur = 100000, .rlim_max = RLIM_INFINITY};
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = store_write(s, "cluster", large, 1 << 20, &err);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rc, E_IO);
    assert_value(s, "cluster", "old", 3);
    assert_int_equal(store_write(s, "cluster", "newer", 5, &err), 0);
    assert_value(s, "cluster", "newer", 5);
    free(large);
    store_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_values_survive, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_a_damaged_file_is_put_aside, make_folder,
                                        remove_folder),
        cmocka_unit_test(test_no_folder),
        cmocka_unit_test_setup_teardown(test_a_full_disk_keeps_the_old_value, make_folder,
                                        remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
